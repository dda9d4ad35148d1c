"""Trains models that translate, with the attention of your choice, and applies them.

    python -m examples.translation train                            # dates, offline, minutes
    python -m examples.translation train --data multi30k --model transformer
    python -m examples.translation train --data source.txt target.txt --languages de en
    python -m examples.translation translate --model runs/dates     # prompts for sentences
    python -m examples.translation translate --model runs/dates --file dates.txt
    python -m examples.translation evaluate --model runs/dates --beam 5

Training writes the best model, its scores and pictures of its alignments to --out. It may be
stopped anywhere, by Ctrl-C or worse: the same command with --resume goes on to the same final
weights, bit for bit (on the same machine, with as many threads).
"""

from __future__ import annotations

from examples.commands.translation import parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from datasets import EncodedPairs, Pairs, PairSplits, Tokenizer
from datasets.parallel_text import read_lines
from datasets.vocabulary import UNK
from examples._translation import (
    KINDS,
    Architecture,
    Corpus,
    Data,
    Found,
    Model,
    Run,
    Settings,
    Translator,
    bleu_tokens,
    describe,
    fingerprint,
    load_translator,
    merit,
    perplexity,
    quality,
    save_translator,
    suited,
    word_by_word,
)
from examples._translation import translate as translate_pairs
from examples.shared.files import (
    UserError,
    check_settings,
    load_checkpoint,
    prepare_folder,
    remove,
    save_checkpoint,
    write_json,
    write_text,
)
from examples.shared.options import fill_in, pick
from examples.shared.pictures import save_figure
from examples.shared.processes import goes_on, joined
from examples.shared.program import check_device, exit_status, progress_bar, remaining, versions
from examples.shared.tables import aligned
from examples.shared.trainer import parameters
from sequence_attn.plot import heatmap

PROGRAM = "python -m examples.translation"
DRAWN = 40  # tokens of a side in a picture of their alignment
# What suits the data; chosen on its validation pairs. For files see `suited`.
DATES: dict[str, Any] = {
    "embedding_size": 64, "state_size": 128, "layers": 1, "heads": 4, "feed_forward_size": 256,
    "dropout": 0.1, "epochs": 20, "patience": 20, "batch_tokens": 1500,
    "lr": 3e-3, "warmup": 100, "label_smoothing": 0.0, "average": 0.99, "beam": 1, "alpha": 1.0,
}  # fmt: skip
RECURRENT: dict[str, Any] = {
    "embedding_size": 256, "state_size": 512, "layers": 1, "heads": 8, "feed_forward_size": 512,
    "dropout": 0.3, "epochs": 10, "patience": 5, "batch_tokens": 2500,
    "lr": 1e-3, "warmup": 200, "label_smoothing": 0.1, "average": 0.995, "beam": 5, "alpha": 1.0,
}  # fmt: skip
TRANSFORMER = {**RECURRENT, "dropout": 0.15, "epochs": 14, "warmup": 400, "alpha": 1.5}
# Which options a model has no use for
USELESS: dict[str, tuple[str, ...]] = {
    "input_feeding": ("luong",),
    "context": ("rnn",),
    "reads": ("grammar",),
    "cell": tuple(kind for kind in KINDS if kind != "transformer"),
    "state_size": tuple(kind for kind in KINDS if kind != "transformer"),
    "heads": ("transformer",),
    "feed_forward_size": ("transformer",),
    "positions": ("transformer",),
}
OTHER_PAIRS = dict.fromkeys(
    ("pairs", "source_size", "target_size"),
    "the sentence pairs, and so perhaps the vocabularies, have changed",
)


@dataclass
class Task:
    """One training, and where it is kept."""

    run: Run
    data: Data
    folder: Path
    binding: dict[str, Any]  # what must not change between a training and its resumption
    search: dict[str, Any]  # beam and alpha of the test, and of later translations

    @property
    def name(self) -> str:
        return self.run.architecture.kind

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Writes all that it takes to go on from here."""
        save_checkpoint(self.checkpoint, {"config": self.binding, **self.run.state()})

    def write_model(self) -> None:
        """Writes the best model so far."""
        run = self.run
        pairs = run.corpus.splits
        save_translator(
            self.folder,
            run.architecture,
            run.best["weights"],
            (run.corpus.source, run.corpus.target),
            (pairs.source_tokenizer, pairs.target_tokenizer),
            {
                "data": dataclasses.asdict(self.data),
                "search": self.search,
                "epoch": run.best["epoch"],
            },
        )


def train(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Trains as the options say; writes the model, its metrics and pictures to --out."""
    check_device(args.device)
    check_useless(args)
    data = chosen_data(args)
    corpus = data.corpus()
    set_defaults(args, corpus.splits)
    architecture, settings = chosen_architecture(args, corpus), chosen_settings(args)
    sentences = chosen_sentences(args, corpus, architecture)
    folder = Path(args.out or Path("runs", default_name(args)))
    begin(folder, args)
    print(describe(corpus))
    rows, task = [], None
    if corpus.splits.target_tokenizer.unit != "characters":
        rows.append(baseline(corpus))
    try:
        task = prepare(args, data, corpus, architecture, settings, folder)
        rows.append(finish(task, args))
        draw(task, sentences)
        if wants_baseline(args):
            plain = dataclasses.replace(
                architecture, kind="rnn", attention=None, normalizer="softmax", tie=False
            )
            equal = dataclasses.replace(
                settings, epochs=task.run.epoch, patience=task.run.epoch
            )  # as many steps
            task = prepare(args, data, corpus, plain, equal, folder / "baseline")
            rows.append(finish(task, args))
    except KeyboardInterrupt:
        if task is None:
            raise  # there is nothing to keep
        task.save()
        again = [word for word in words if word not in ("--resume", "--restart")]
        print(
            f"\ninterrupted in epoch {task.run.epoch + 1} of {task.name}; a checkpoint is in"
            f" {task.folder}\ngo on with: {PROGRAM} {shlex.join([*again, '--resume'])}",
            file=sys.stderr,
        )
        return 130
    print(f"\n{table(rows)}\n\n{verdict(rows)}model, metrics and pictures are in {folder}")
    forget(folder)
    return 0


def begin(folder: Path, args: argparse.Namespace) -> None:
    """Refuses to overwrite a training that was interrupted, or to resume one that never was."""
    prepare_folder(folder)
    checkpoint = folder / "checkpoint.pt"
    if goes_on(args, checkpoint):
        if not checkpoint.exists():
            load_checkpoint(checkpoint)  # says what to do
    elif checkpoint.exists() and not args.restart:
        raise UserError(
            f"{folder} holds an unfinished training: go on with --resume, give it up with"
            " --restart, or choose another --out"
        )
    else:
        forget(folder)


def forget(folder: Path) -> None:
    """Removes the checkpoints of a training and of its baseline."""
    remove(folder / "checkpoint.pt", folder / "baseline" / "checkpoint.pt")


def prepare(
    args: argparse.Namespace,
    data: Data,
    corpus: Corpus,
    architecture: Architecture,
    settings: Settings,
    folder: Path,
) -> Task:
    """A new training, or one that was interrupted."""
    prepare_folder(folder)
    binding = {
        **dataclasses.asdict(data),
        **dataclasses.asdict(architecture),
        **dataclasses.asdict(settings),
        "names": list(data.names),
        "languages": list(data.languages),
        "data_seed": data.seed,
        "seed": args.seed,
        "device": args.device,
        "pairs": fingerprint(corpus),
    }
    checkpoint, state = folder / "checkpoint.pt", None
    if checkpoint.exists():
        state = load_checkpoint(checkpoint)
        check_settings(checkpoint, state.pop("config", None), binding, **OTHER_PAIRS)
    run = Run(corpus, architecture, settings, args.seed, args.device, state)
    return Task(run, data, folder, binding, {"beam": args.beam, "alpha": args.alpha})


def finish(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Trains to the end, saving every now and then; returns what the table says of it."""
    run = task.run
    steps, epochs = len(run.plan), run.settings.epochs
    print(
        f"{task.name}: {parameters(run.model):,} parameters; {steps:,} steps in an epoch,"
        f" {steps * epochs:,} in {epochs} epochs at most",
        flush=True,
    )
    predictions = sum(len(target) + 1 for target in run.corpus.splits.train.target)
    saved = started = time.monotonic()
    before_start = run.epoch
    while not run.done:
        name = f"{task.name}, epoch {run.epoch + 1}/{run.settings.epochs}"
        with progress_bar(name, predictions, "tokens", run.loss_terms, patient=True) as bar:
            while not run.epoch_is_over:
                before = run.terms
                loss = run.train_batch()
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(run.terms - before)
                if time.monotonic() - saved > 60 * args.checkpoint_minutes:
                    task.save()
                    saved = time.monotonic()
        found: list[Found] = []
        best, scores = run.best, run.validate(found)
        run.end_epoch(scores, not best or merit(scores) > merit(best))
        task.save()
        if run.best is not best:
            task.write_model()
        saved = time.monotonic()
        time_left = remaining(run.epoch - before_start, epochs - before_start, saved - started)
        print(f"{in_words(scores, run)}; {time_left}", flush=True)
        for source, one in list(zip(run.corpus.splits.valid.source_text, found, strict=True))[:2]:
            print(f"    {source} → {run.corpus.splits.target_tokenizer.detokenize(one.tokens)}")
    task.write_model()  # again, for an interruption may have come before it
    if run.epoch < run.settings.epochs:
        print(f"no better epoch for {run.waited} epochs: stopped early")
    model = run.best_model()
    result = {
        "model": task.name,
        "parameters": parameters(run.model),
        "best_epoch": run.best["epoch"],
        "epochs": run.epoch,
        "steps": run.steps,
        "tokens_per_second": run.terms / run.seconds,
        "training_seconds": run.seconds,
        **{name: run.best[name] for name in run.best if name.startswith("valid_")},
    }
    tests = test_scores(model, run.corpus, run.architecture, "test", args.device, **task.search)
    result |= {f"test_{name}": value for name, value in tests.items()}
    write_json(
        task.folder / "metrics.json",
        {
            **result,
            **task.search,
            "history": run.scores,
            "settings": task.binding,
            "versions": versions("torch", "sacrebleu"),
        },
    )
    return result


def test_scores(
    model: Model,
    corpus: Corpus,
    architecture: Architecture,
    split: str,
    device: str,
    *,
    beam: int,
    alpha: float,
    found: list[Found] | None = None,
) -> dict[str, float]:
    """Perplexity and the quality of the translations of a split, which go to `found`."""
    encoded = corpus.encoded(split)
    with progress_bar(f"translate {split}", len(encoded), "pairs", patient=True) as bar:
        written = translate_pairs(
            model, encoded, corpus.target, architecture, device, beam=beam, alpha=alpha,
            progress=bar.update,
        )  # fmt: skip
    if found is not None:
        found.extend(written)
    pairs = getattr(corpus.splits, split)
    scores = quality([one.tokens for one in written], pairs, corpus, full=True)
    return {"perplexity": perplexity(model, encoded, device), **scores}


def in_words(scores: dict[str, float], run: Run) -> str:
    """The scores of one epoch."""
    said = [
        f"epoch {scores['epoch']:g}: loss {scores['train_loss']:.3f}",
        f"validation perplexity {scores['valid_perplexity']:.2f}",
        f"exact match {scores['valid_exact_match']:.1%}",
    ]
    for name, kind in (("valid_bleu", "BLEU"), ("valid_sacrebleu", "sacreBLEU")):
        if name in scores:
            said.append(f"{kind} {scores[name]:.2f}")
    return ", ".join(said) + f"; {run.terms / max(run.seconds, 1e-9):,.0f} tokens/s"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """What the models reach, aligned."""
    columns = {
        "model": ("model", "{}"),
        "parameters": ("parameters", "{:,}"),
        "best_epoch": ("epoch", "{:g}"),
        "valid_perplexity": ("valid. perplexity", "{:.2f}"),
        "test_perplexity": ("test perplexity", "{:.2f}"),
        "test_exact_match": ("test exact match", "{:.1%}"),
        "test_bleu": ("test BLEU (tokens)", "{:.2f}"),
        "test_sacrebleu": ("test sacreBLEU", "{:.2f}"),
        "tokens_per_second": ("tokens/s", "{:,.0f}"),
    }
    shown = {name: column for name, column in columns.items() if name in rows[-1]}
    cells = [[head for head, _ in shown.values()]]
    cells += [
        [form.format(row[name]) if name in row else "" for name, (_, form) in shown.items()]
        for row in rows
    ]
    return aligned(cells, str.ljust)


def baseline(corpus: Corpus) -> dict[str, Any]:
    """The table's row of `word_by_word`."""
    splits = corpus.splits
    found = [splits.target_tokenizer.tokenize(line) for line in word_by_word(splits)]
    scores = quality(found, splits.test, corpus, full=True)
    return {"model": "word by word", **{f"test_{name}": value for name, value in scores.items()}}


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Says so, if what was trained is no better than `word_by_word`."""
    lazy, trained = rows[0].get("test_sacrebleu"), rows[1:]
    if lazy is None or rows[0]["model"] != "word by word" or trained[0]["test_sacrebleu"] > lazy:
        return ""
    return (
        f"{trained[0]['model']} translates no better than word by word: it has learned too little"
        " to be of use. More pairs help most, then more --epochs.\n"
    )


def chosen_sentences(
    args: argparse.Namespace, corpus: Corpus, architecture: Architecture
) -> list[list[str]]:
    """The tokens of those sentences whose alignment is to be drawn."""
    texts = args.picture
    if texts is None:  # the longest of the first few show most
        texts = sorted(corpus.splits.valid.source_text[:12], key=len)[-3:]
    tokenizer, limit = corpus.splits.source_tokenizer, architecture.source_limit
    sentences = [tokenized(tokenizer, limit, text, f"--picture {text!r}") for text in texts]
    return [tokens for tokens in sentences if tokens]


def draw(task: Task, sentences: Sequence[list[str]]) -> None:
    """Writes the alignment of each sentence as alignment-1.png and so on."""
    run = task.run
    if task.name == "rnn":
        return
    pairs = run.corpus.splits
    translator = Translator(
        run.best_model(),
        run.architecture,
        run.corpus.source,
        run.corpus.target,
        pairs.source_tokenizer,
        pairs.target_tokenizer,
        {},
    )
    for nth, tokens in enumerate(sentences, start=1):
        found = translated(translator, [tokens], beam=1, need_weights=True)[0]
        save_alignment(task.folder / f"alignment-{nth}.png", tokens, found)


def save_alignment(path: Path, source: Sequence[str], found: Found) -> None:
    """Draws where each token of a translation came from; of a Transformer the mean of the heads.

    The darkest is a weight of 1, so that attention which is nearly even looks pale. Of each side
    there are no more than `DRAWN` tokens.
    """
    assert found.weights is not None
    weights: Tensor = found.weights.mean(1) if found.weights.dim() == 4 else found.weights
    what = "attention" + (", layer" if found.weights.dim() == 4 else ", read")
    titles = [f"{what} {n + 1}" for n in range(len(weights))]
    if len(weights) == 1:
        titles = ["attention: rows read columns"]
    sides = [*source, "<eos>"], found.labels
    if max(map(len, sides)) > DRAWN:
        titles = [f"{title}, the first {DRAWN} tokens" for title in titles]
    labels = [side[:DRAWN] for side in sides]
    columns, rows = (max(1.5, 0.3 * len(side)) for side in labels)
    figure = Figure(figsize=((columns + 2) * len(weights), rows + 1.5), layout="constrained")
    axes = figure.subplots(1, len(weights), squeeze=False)[0]
    heatmap(weights[:, :DRAWN, :DRAWN], *labels, titles=titles, vmax=1.0, ax=axes)
    save_figure(path, figure, bbox_inches="tight")


def tokenized(tokenizer: Tokenizer, limit: int | None, text: str, where: str) -> list[str]:
    """The tokens of a sentence for a model that reads `limit` of them, the end symbol included.

    Raises:
        UserError: there are more.
    """
    tokens = tokenizer.tokenize(text)
    if limit is not None and len(tokens) + 1 > limit:
        raise UserError(
            f"{where} has {len(tokens)} tokens, but the model's positions end at {limit}, one of"
            " which the end symbol takes: split it, or train with a larger --max-length"
        )
    return tokens


def translated(
    translator: Translator,
    sentences: Sequence[list[str]],
    *,
    beam: int,
    alpha: float = 1.0,
    need_weights: bool = False,
) -> list[Found]:
    """Translations of sentences of which none is empty."""
    source = [translator.source.encode(tokens, eos=True) for tokens in sentences]
    pairs = EncodedPairs(source, [[] for _ in source])
    device = next(translator.model.parameters()).device
    return translate_pairs(
        translator.model, pairs, translator.target, translator.architecture, device, beam=beam,
        alpha=alpha, need_weights=need_weights,
    )  # fmt: skip


def load_for_search(args: argparse.Namespace) -> Translator:
    """The model of --model; fills in the options of the search that were left out."""
    check_device(args.device)
    translator = load_translator(Path(args.model), args.device)
    for option in ("beam", "alpha"):
        if getattr(args, option) is None:
            setattr(args, option, translator.config["search"][option])
    return translator


def translate(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Translates a file, or what is typed."""
    translator = load_for_search(args)
    if args.pictures is not None:
        if translator.architecture.kind == "rnn":
            raise UserError(f"the model in {args.model} has no attention to draw: leave out"
                            " --pictures")  # fmt: skip
        prepare_folder(Path(args.pictures))
    if args.file is None:
        if args.output is not None:
            raise UserError("--output is for translations of a --file; name one")
        return converse(translator, args)
    lines = read_lines(Path(args.file))
    tokenizer, limit = translator.source_tokenizer, translator.architecture.source_limit
    tokens = [
        tokenized(tokenizer, limit, line, f"{args.file}, line {n}")
        for n, line in enumerate(lines, start=1)
    ]
    if args.output is not None:
        prepare_folder(Path(args.output).parent)
    # An empty line stays one, so that the lines of both files belong together
    written = [""] * len(lines)
    full = [n for n, of_line in enumerate(tokens) if of_line]
    found = translated(
        translator, [tokens[n] for n in full], beam=args.beam, alpha=args.alpha,
        need_weights=args.pictures is not None,
    )  # fmt: skip
    for n, one in zip(full, found, strict=True):
        written[n] = translator.target_tokenizer.detokenize(one.tokens)
        if args.pictures is not None:
            save_alignment(Path(args.pictures, f"alignment-{n + 1}.png"), tokens[n], one)
    text = "".join(f"{line}\n" for line in written)
    if args.output is None:
        sys.stdout.write(text)
        return 0
    output = Path(args.output)
    write_text(output, text)
    print(f"{len(full):,} translations are in {output}")
    return 0


def converse(translator: Translator, args: argparse.Namespace) -> int:
    """Translates line after line from the keyboard, or from a pipe, until it ends."""
    tokenizer, limit = translator.source_tokenizer, translator.architecture.source_limit
    count = 0
    if sys.stdin.isatty():
        print("a sentence on each line; an empty one ends", file=sys.stderr)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return 0
        except UnicodeDecodeError as error:
            raise UserError(f"the input is not UTF-8 text ({error.reason}); convert it") from error
        if not line and sys.stdin.isatty():
            return 0
        try:
            tokens = tokenized(tokenizer, limit, line, "the sentence")
        except UserError as error:
            print(error, file=sys.stderr)
            continue
        if not tokens:
            print()
            continue
        found = translated(
            translator, [tokens], beam=args.beam, alpha=args.alpha,
            need_weights=args.pictures is not None,
        )[0]  # fmt: skip
        print(translator.target_tokenizer.detokenize(found.tokens), flush=True)
        numbers = translator.source.encode(tokens)
        unknown = [token for token, n in zip(tokens, numbers, strict=True) if n == UNK]
        if unknown:
            print(f"(unknown to the model: {' '.join(unknown)})", file=sys.stderr)
        if args.pictures is not None:
            count += 1
            save_alignment(Path(args.pictures, f"alignment-{count}.png"), tokens, found)


def retokenised(pairs: PairSplits, source: Tokenizer, target: Tokenizer) -> PairSplits:
    """The same text as other tokens."""

    def same(part: Pairs) -> Pairs:
        return Pairs.from_text(part.source_text, part.target_text, source, target)

    return PairSplits(
        pairs.name, same(pairs.train), same(pairs.valid), same(pairs.test), source, target,
        pairs.dropped,
    )  # fmt: skip


def everything(pairs: PairSplits) -> Pairs:
    """The pairs of all splits."""
    splits = pairs.train, pairs.valid, pairs.test
    fields = [field.name for field in dataclasses.fields(Pairs)]
    joined = {name: [x for split in splits for x in getattr(split, name)] for name in fields}
    return Pairs(**joined)


def evaluate(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Prints how well a trained model translates, and by which measure."""
    translator = load_for_search(args)
    saved = translator.config["data"]
    data = Data(**{**saved, "names": tuple(saved["names"]), "languages": tuple(saved["languages"])})
    tokenizers, split = (translator.source_tokenizer, translator.target_tokenizer), args.split
    if args.data is None:
        pairs = data.pairs()
    else:
        source, target = tokenizers
        learned = source.unit == "subwords"  # those of the model, not of these files
        data = dataclasses.replace(
            data, names=tuple(args.data), languages=(source.language, target.language),
            unit="characters" if learned else source.unit, lower=source.lower,
        )  # fmt: skip
        pairs = retokenised(data.pairs(), *tokenizers) if learned else data.pairs()
        if len(args.data) == 2:  # none of these files was trained on
            pairs, split = dataclasses.replace(pairs, test=everything(pairs)), "test"
    if (pairs.source_tokenizer, pairs.target_tokenizer) != tokenizers:
        raise UserError(
            f"{pairs.name} comes in {pairs.target_tokenizer.name}, but the model in {args.model}"
            f" was trained on {tokenizers[1].name}: choose data of the same kind"
        )
    corpus = Corpus(pairs, translator.source, translator.target)
    check_lengths(corpus, translator.architecture, [split])
    found: list[Found] = []
    started = time.perf_counter()
    scores = test_scores(
        translator.model, corpus, translator.architecture, split, args.device, beam=args.beam,
        alpha=args.alpha, found=found,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    print(
        f"{translator.architecture.kind}, {parameters(translator.model):,} parameters, on"
        f" {len(found):,} pairs ({pairs.name}, {split}); beam {args.beam}, length penalty"
        f" {args.alpha:g}; {seconds:.1f} s"
    )
    print(f"perplexity   {scores['perplexity']:8.3f}")
    print(f"exact match  {scores['exact_match']:8.2%}")
    if "bleu" in scores:
        kind = tokenizers[1].name
        print(f"BLEU         {scores['bleu']:8.2f}  of tokens: {kind}; sacreBLEU, tokenize=none")
    if "sacrebleu" in scores:
        case = ", lower-cased" if tokenizers[1].lower else ""
        how = bleu_tokens(pairs.test.target_text)
        print(f"sacreBLEU    {scores['sacrebleu']:8.2f}  of detokenised text{case}; tokenize={how}")
    if args.output is not None:
        lines = [translator.target_tokenizer.detokenize(one.tokens) for one in found]
        text = "".join(f"{line}\n" for line in lines)
        output = Path(args.output)
        prepare_folder(output.parent)
        write_text(output, text)
    return 0


def chosen_data(args: argparse.Namespace) -> Data:
    """The data that the options of a training name."""
    names = tuple(args.data)
    if names in (("dates",), ("multi30k",)):
        for option in ("unit", "lower"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option} is for files of your own; leave it out")
    elif len(names) == 2:
        missing = [name for name in names if name in ("dates", "multi30k")]
        if missing:
            raise UserError(f"--data {' '.join(names)!r}: give {missing[0]!r} alone, or two files")
    if args.min_count is None and args.data != ["dates"]:
        args.min_count = 2 if names == ("multi30k",) or args.unit == "words" else 1
    return pick(
        args,
        Data,
        names=names,
        languages=tuple(args.languages or ("de", "en")),
        seed=args.data_seed,
    )


def check_useless(args: argparse.Namespace) -> None:
    """Raises UserError if an option is given that the model does not have."""
    for option, kinds in USELESS.items():
        if getattr(args, option) is not None and args.model not in kinds:
            flag = option.replace("_", "-")
            raise UserError(
                f"--{flag} is for --model {' and '.join(kinds)}; {args.model!r} has no use for it"
            )


def set_defaults(args: argparse.Namespace, splits: PairSplits) -> None:
    """Fills in what was left open, according to the data and the model."""
    if args.data == ["dates"]:
        defaults = DATES
    elif args.data == ["multi30k"]:
        defaults = TRANSFORMER if args.model == "transformer" else RECURRENT
    else:
        defaults = suited(args.model, splits)
    fill_in(args, "", {"": defaults})
    if args.cell is None:
        args.cell = "lstm" if args.model == "grammar" else "gru"


def chosen_architecture(args: argparse.Namespace, corpus: Corpus) -> Architecture:
    """The model that the options name.

    Raises:
        UserError: options that exclude each other, or sentences too long for --max-length.
    """
    if args.tie is None:
        args.tie = args.model in ("luong", "bahdanau", "grammar", "transformer")
    sizes = {"source_size": len(corpus.source), "target_size": len(corpus.target)}
    return with_limit(pick(args, Architecture, kind=args.model, **sizes), corpus)


def with_limit(architecture: Architecture, corpus: Corpus) -> Architecture:
    """The same with a limit of length, if the model needs one and the options gave none.

    Raises:
        UserError: sentences are longer than the limit, or a limit is of no use.
    """
    needed = dataclasses.replace(architecture, max_length=1).source_limit is not None
    if architecture.max_length is not None and not needed:
        raise UserError(
            "--max-length is for --positions learned and --attention location; leave it out, since"
            " this model has no limit"
        )
    if needed and architecture.max_length is None:
        longest = max(map(len, [*corpus.splits.train.source, *corpus.splits.train.target]))
        # Twice the longest sentence: learned positions that training never saw are of little use
        architecture = dataclasses.replace(architecture, max_length=2 * longest + 2)
    check_lengths(corpus, architecture, ["train", "valid", "test"])
    return architecture


def check_lengths(corpus: Corpus, architecture: Architecture, splits: Sequence[str]) -> None:
    """Refuses sentences that are longer than the positions of a model."""
    limits = {"source": architecture.source_limit, "target": architecture.target_limit}
    for split in splits:
        for side, limit in limits.items():
            sentences = getattr(getattr(corpus.splits, split), side)
            longest = max(map(len, sentences), default=0)
            if limit is not None and longest + 1 > limit:
                raise UserError(
                    f"a {side} sentence ({split}) has {longest} tokens, but the model's positions"
                    f" end at {limit}, one of which a special symbol takes: leave such sentences"
                    " out, or train with a larger --max-length"
                )


def chosen_settings(args: argparse.Namespace) -> Settings:
    """How the options say to train."""
    if args.sampled_softmax:
        if args.model == "transformer":
            raise UserError("--sampled-softmax is for recurrent models; leave it out")
        if args.teacher_forcing not in (None, 1):
            raise UserError(
                "--sampled-softmax draws among a few tokens, and --teacher-forcing below 1 needs"
                " the best of all: leave one out"
            )
        args.label_smoothing = 0.0  # which is over all tokens as well
    return pick(args, Settings)


def default_name(args: argparse.Namespace) -> str:
    """The folder of a training without --out."""
    data = args.data[0] if len(args.data) == 1 else Path(args.data[0]).stem
    return "dates" if (data, args.model) == ("dates", "luong") else f"{data}-{args.model}"


def wants_baseline(args: argparse.Namespace) -> bool:
    """Whether a model without attention is trained too: by default beside the quick example."""
    if args.baseline is None:
        return args.data == ["dates"] and args.model != "rnn"
    return bool(args.baseline)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": train, "translate": translate, "evaluate": evaluate}

    def work() -> int:
        args = parser().parse_args(words)
        with joined():
            return commands[args.command](args, words)

    return exit_status(work, flush_denormal=True)


if __name__ == "__main__":
    sys.exit(main())
