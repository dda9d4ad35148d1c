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

import argparse
import copy
import dataclasses
import platform
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from datasets import (
    DataFileError,
    EncodedPairs,
    Pairs,
    PairSplits,
    TextFileError,
    Tokenizer,
    VocabularyError,
)
from datasets.parallel_text import read_lines
from datasets.vocabulary import UNK
from examples._files import (
    UserError,
    load_checkpoint,
    prepare_folder,
    save_checkpoint,
    write_atomically,
    write_json,
)
from examples._program import check_device
from examples._translation_data import Data, describe, fingerprint
from examples._translation_models import (
    Architecture,
    Model,
    Translator,
    load_translator,
    load_weights,
    save_translator,
)
from examples._translation_options import (
    PROGRAM,
    check_lengths,
    chosen_architecture,
    chosen_data,
    chosen_settings,
    default_name,
    evaluation_parser,
    set_defaults,
    training_parser,
    translation_parser,
    wants_baseline,
)
from examples._translation_training import (
    Corpus,
    Found,
    Run,
    Settings,
    perplexity,
    quality,
)
from examples._translation_training import translate as translate_pairs
from sequence_attn.plot import heatmap


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "train": (training_parser, train),
        "translate": (translation_parser, translate),
        "evaluate": (evaluation_parser, evaluate),
    }
    torch.set_flush_denormal(True)  # numbers that are next to nothing take long
    try:
        if words[:1] in ([], ["-h"], ["--help"]):
            print(f"{__doc__}\nEach command explains its options: {PROGRAM} train --help")
            return 0 if words else 2
        if words[0] not in commands:
            raise UserError(f"{words[0]!r} is none of {', '.join(commands)}; begin with one")
        parser, command = commands[words[0]]
        return command(parser().parse_args(words[1:]), words)
    except (UserError, DataFileError, TextFileError, VocabularyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        torch.set_flush_denormal(False)


class Signals:
    """Ctrl-C and a polite kill as KeyboardInterrupt, held back while a step must not be torn."""

    def __init__(self) -> None:
        self._holding = self._pending = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handles the signals from here on, where that is possible: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = signal.SIGINT, signal.SIGTERM
        before = [signal.signal(kind, self._handle) for kind in kinds]
        try:
            yield
        finally:
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What happens inside happens to its end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._holding:
            raise KeyboardInterrupt
        self._pending = True


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

    def best_model(self) -> Model:
        """A copy of the model with its best weights so far."""
        model = copy.deepcopy(self.run.result)
        load_weights(model, self.run.best["weights"])
        return model.eval()

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
    set_defaults(args)
    data = chosen_data(args)
    corpus = data.corpus()
    architecture, settings = chosen_architecture(args, corpus), chosen_settings(args)
    sentences = chosen_sentences(args, corpus, architecture)
    folder = Path(args.out or Path("runs", default_name(args)))
    begin(folder, args)
    print(describe(corpus))
    rows, signals, task = [], Signals(), None
    try:
        with signals.caught():
            task = prepare(args, data, corpus, architecture, settings, folder)
            rows.append(finish(task, args, signals))
            draw(task, sentences)
            if wants_baseline(args):
                plain = dataclasses.replace(
                    architecture, kind="rnn", attention=None, normalizer="softmax", tie=False
                )
                equal = dataclasses.replace(
                    settings, epochs=task.run.epoch, patience=task.run.epoch
                )  # as many steps
                task = prepare(args, data, corpus, plain, equal, folder / "baseline")
                rows.append(finish(task, args, signals))
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
    print(f"\n{table(rows)}\n\nmodel, metrics and pictures are in {folder}")
    forget(folder)
    return 0


def begin(folder: Path, args: argparse.Namespace) -> None:
    """Refuses to overwrite a training that was interrupted, or to resume one that never was."""
    prepare_folder(folder)
    checkpoint = folder / "checkpoint.pt"
    if args.resume:
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
    for path in (folder / "checkpoint.pt", folder / "baseline" / "checkpoint.pt"):
        path.unlink(missing_ok=True)


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
        compare(checkpoint, state.pop("config", None), binding)
    run = Run(corpus, architecture, settings, args.seed, args.device, state)
    return Task(run, data, folder, binding, {"beam": args.beam, "alpha": args.alpha})


def compare(path: Path, before: Any, now: dict[str, Any]) -> None:
    """Refuses a checkpoint of another training."""
    before = before if isinstance(before, dict) else {}
    changed = [
        f"{name} was {before.get(name)}, is now {value}"
        for name, value in now.items()
        if name != "pairs" and before.get(name) != value
    ]
    if not changed and before.get("pairs") != now["pairs"]:
        changed = ["the sentence pairs, and so perhaps the vocabularies, have changed"]
    if changed:
        raise UserError(
            f"cannot resume from {path}, made with other settings: {'; '.join(changed)}."
            " Use those, or start over with --restart"
        )


def finish(task: Task, args: argparse.Namespace, signals: Signals) -> dict[str, Any]:
    """Trains to the end, saving every now and then; returns what the table says of it."""
    run = task.run
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    print(f"{task.name}: {parameters:,} parameters", flush=True)
    predictions = sum(len(target) + 1 for target in run.corpus.splits.train.target)
    saved = time.monotonic()
    while not run.done:
        name = f"{task.name}, epoch {run.epoch + 1}/{run.settings.epochs}"
        with progress_bar(name, predictions, "tokens", run.loss_tokens) as bar:
            while not run.epoch_is_over:
                before = run.tokens
                with signals.held():
                    loss = run.train_batch()
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(run.tokens - before)
                if time.monotonic() - saved > 60 * args.checkpoint_minutes:
                    task.save()
                    saved = time.monotonic()
        best, scores = run.best, run.validate()
        with signals.held():
            run.end_epoch(scores)
        task.save()
        if run.best is not best:
            task.write_model()
        saved = time.monotonic()
        print(in_words(scores, run), flush=True)
    task.write_model()  # again, for an interruption may have come before it
    if run.epoch < run.settings.epochs:
        print(f"no better epoch for {run.waited} epochs: stopped early")
    model = task.best_model()
    result = {
        "model": task.name,
        "parameters": parameters,
        "best_epoch": run.best["epoch"],
        "epochs": run.epoch,
        "steps": run.steps,
        "tokens_per_second": run.tokens / run.seconds,
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
            "history": run.history,
            "settings": task.binding,
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "sacrebleu")},
            },
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
    with progress_bar(f"translate {split}", len(encoded), "pairs") as bar:
        written = translate_pairs(
            model, encoded, corpus.target, architecture, device, beam=beam, alpha=alpha,
            progress=bar.update,
        )  # fmt: skip
    if found is not None:
        found.extend(written)
    pairs = getattr(corpus.splits, split)
    scores = quality([one.tokens for one in written], pairs, corpus, full=True)
    return {"perplexity": perplexity(model, encoded, device), **scores}


def progress_bar(name: str, total: int, unit: str, initial: int = 0) -> tqdm:
    """A bar that on a terminal moves and goes, and in a log says now and then how it stands."""
    return tqdm(
        desc=name,
        total=total,
        initial=initial,
        unit=f" {unit}",
        unit_scale=True,
        leave=False,
        mininterval=0.2 if sys.stderr.isatty() else 30,
    )


def in_words(scores: dict[str, float], run: Run) -> str:
    """The scores of one epoch."""
    said = [
        f"epoch {scores['epoch']:g}: loss {scores['train_loss']:.3f}",
        f"validation perplexity {scores['valid_perplexity']:.2f}",
        f"exact match {scores['valid_exact_match']:.1%}",
    ]
    if "valid_bleu" in scores:
        said.append(f"BLEU {scores['valid_bleu']:.2f}")
    return ", ".join(said) + f"; {run.tokens / max(run.seconds, 1e-9):,.0f} tokens/s"


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
    shown = {name: column for name, column in columns.items() if name in rows[0]}
    cells = [[head for head, _ in shown.values()]]
    cells += [[form.format(row[name]) for name, (_, form) in shown.items()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


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
        task.best_model(),
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
    """Draws where each token of a translation came from; of a Transformer the mean of the heads."""
    assert found.weights is not None
    weights: Tensor = found.weights.mean(1) if found.weights.dim() == 4 else found.weights
    what = "layer" if found.weights.dim() == 4 else "read"
    titles = [f"{what} {n + 1}" for n in range(len(weights))] if len(weights) > 1 else [""]
    labels = [*source, "<eos>"], found.labels
    columns, rows = (max(1.5, 0.3 * len(side)) for side in labels)
    figure = Figure(figsize=((columns + 2) * len(weights), rows + 1.5), layout="constrained")
    axes = figure.subplots(1, len(weights), squeeze=False)[0]
    heatmap(weights, *labels, titles=titles, ax=axes)
    write_atomically(
        path, lambda temporary: figure.savefig(temporary, dpi=150, bbox_inches="tight")
    )


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
    write_atomically(output, lambda temporary: temporary.write_text(text, encoding="utf-8"))
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
        data = dataclasses.replace(
            data, names=tuple(args.data), languages=(source.language, target.language),
            unit=source.unit, lower=source.lower,
        )  # fmt: skip
        pairs = data.pairs()
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
    parameters = sum(parameter.numel() for parameter in translator.model.parameters())
    print(
        f"{translator.architecture.kind}, {parameters:,} parameters, on {len(found):,} pairs"
        f" ({pairs.name}, {split}); beam {args.beam}, length penalty {args.alpha:g};"
        f" {seconds:.1f} s"
    )
    print(f"perplexity   {scores['perplexity']:8.3f}")
    print(f"exact match  {scores['exact_match']:8.2%}")
    if "bleu" in scores:
        kind = tokenizers[1].name
        case = ", lower-cased" if tokenizers[1].lower else ""
        print(f"BLEU         {scores['bleu']:8.2f}  of tokens: {kind}; sacreBLEU, tokenize=none")
        print(f"sacreBLEU    {scores['sacrebleu']:8.2f}  of detokenised text{case}; tokenize=13a")
    if args.output is not None:
        lines = [translator.target_tokenizer.detokenize(one.tokens) for one in found]
        text = "".join(f"{line}\n" for line in lines)
        output = Path(args.output)
        prepare_folder(output.parent)
        write_atomically(output, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
