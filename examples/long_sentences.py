"""What attention does for long sentences: how many are right, against their length.

    python -m examples.long_sentences                                # reverse letters, offline
    python -m examples.long_sentences --task sort --length 20
    python -m examples.long_sentences --data source.txt target.txt   # translate your own text
    python -m examples.long_sentences ask abcdefghijkl --model runs/long_sentences

An encoder–decoder without attention must squeeze a whole sentence into one vector, so it gets worse
with every word; attention lets the decoder look back. This is the experiment behind figure 2 of
Bahdanau, Cho, Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate"
(2015). All models train on the same sequences of up to L tokens, for as many updates, and are
tested on those of up to 2 L; the ones without attention are widened until they have at least as
many parameters as the others. The program prints a table by length, and writes the same to
metrics.json and length.png in --out, beside the models of the first seed, which can be asked.
"""

from __future__ import annotations

from examples.commands.long_sentences import MODELS, Training, Widths, parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import dataclasses
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from string import ascii_lowercase
from typing import Any, NamedTuple

import sacrebleu
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy

from datasets import EncodedPairs, Pairs, Tokenizer, Vocabulary, bucketed, encode_pairs, in_order
from datasets.parallel_text import parallel_text
from datasets.tokens import Unit
from datasets.vocabulary import PAD
from examples.shared.files import UserError, prepare_folder, save_model, saved_model
from examples.shared.options import fill_in, pick
from examples.shared.pictures import apart, bare, legend_below, save_figure
from examples.shared.program import exit_status, versions
from examples.shared.runner import Results, run_all
from examples.shared.tables import aligned, percent, summary
from examples.shared.trainer import Trainer, load_weights, one_cycle, own_weights, parameters
from sequence_attn.seq2seq import RecurrentEncoder, Seq2Seq, bahdanau, generate, luong, plain

ALPHABET = ascii_lowercase
ANSWERS: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": list,
    "reverse": lambda letters: letters[::-1],
    "sort": sorted,
}
WITHOUT_ATTENTION = ("rnn", "context")
DEFAULTS: dict[str, dict[str, Any]] = {
    "letters": {
        "length": 12, "embedding": 32, "state": 64, "dropout": 0.0,
        "epochs": 8, "batch_size": 64, "lr": 5e-3, "task": "reverse", "sentences": 8000,
    },
    "text": {
        "length": 15, "embedding": 128, "state": 256, "dropout": 0.2,
        "epochs": 10, "batch_size": 64, "lr": 2e-3, "unit": "words", "lower": False, "min_count": 2,
    },
}  # fmt: skip
PER_BUCKET = 200  # generated sequences to test on
NAMES = {
    "exact_match": "exact match in %",
    "token_accuracy": "tokens in their place, in %",
    "bleu": "BLEU of the tokens",
}
COLOURS = {"rnn": "#ffa90e", "context": "#e76300", "bahdanau": "#3f90da", "luong": "#832db6"}


class Task(NamedTuple):
    """Sequences to learn from, and longer ones to test on.

    Attributes:
        name: of what is learned.
        length: L, the tokens of the longest source to train on.
        train: pairs of 1 to L source tokens.
        test: pairs of 1 to 2 · L source tokens, none of which is trained on.
        source, target: the vocabularies.
        unit: of the target, "words" or "characters".
        tokenizers: of source and target.
    """

    name: str
    length: int
    train: Pairs
    test: Pairs
    source: Vocabulary
    target: Vocabulary
    unit: Unit
    tokenizers: tuple[Tokenizer, Tokenizer] = (Tokenizer("characters"), Tokenizer("characters"))

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """First and last length of each bucket: up to four for L tokens, up to four beyond."""
        step = -(-self.length // 4)
        return [
            (low, min(low + step - 1, end))
            for end in (self.length, 2 * self.length)
            for low in range(end - self.length + 1, end + 1, step)
        ]

    @property
    def measures(self) -> tuple[str, ...]:
        """The first is drawn; translations have many right answers, so exact match says little."""
        if self.unit == "words":
            return ("bleu", "exact_match")
        return ("exact_match", "token_accuracy")

    def encoded(self, pairs: Pairs) -> EncodedPairs:
        """Pairs as numbers."""
        return encode_pairs(pairs, self.source, self.target)


def letters_task(kind: str, length: int, sentences: int, per_bucket: int) -> Task:
    """Random letters and what becomes of them: the same, the reverse, or the sorted letters.

    Args:
        kind: one of `TASKS`.
        length: L.
        sentences: to train on; their lengths are spread evenly over 1 to L.
        per_bucket: sequences to test on in each bucket of lengths.
    """
    vocabulary = Vocabulary(ALPHABET)
    nothing = Pairs([], [], [], [])
    task = Task(kind, length, nothing, nothing, vocabulary, vocabulary, "characters")

    def pairs(lengths: Sequence[int], seed: int, known: set[str]) -> Pairs:
        rng = random.Random(seed)
        rows = [rng.choices(ALPHABET, k=n) for n in lengths]
        rows = [row for row in rows if "".join(row) not in known]
        made = [ANSWERS[kind](row) for row in rows]
        return Pairs(rows, made, ["".join(row) for row in rows], ["".join(row) for row in made])

    train = pairs([1 + i % length for i in range(sentences)], 0, set())
    # The shortest sequences are so few that most of them are trained on
    lengths = [low + i % (high + 1 - low) for low, high in task.buckets for i in range(per_bucket)]
    return task._replace(train=train, test=pairs(lengths, 1, set(train.source_text)))


def text_task(
    source: str, target: str, length: int, unit: Unit, lower: bool, min_count: int
) -> Task:
    """Sentence pairs of two files: the held-out ones, and all that are too long, are tested on.

    Raises:
        ValueError: the files cannot be read, or have too few pairs of these lengths.
    """
    splits = parallel_text(source, target, unit=unit, lower=lower)

    def chosen(low: int, high: int, *parts: Pairs) -> Pairs:
        fields = ("source", "target", "source_text", "target_text")
        rows = [
            tuple(getattr(part, name)[i] for name in fields)
            for part in parts
            for i in range(len(part))
            if low <= len(part.source[i]) <= high
        ]
        return Pairs(*map(list, zip(*rows, strict=True))) if rows else Pairs([], [], [], [])

    train = chosen(1, length, splits.train)
    held_out = chosen(1, 2 * length, splits.valid, splits.test)
    longer = chosen(length + 1, 2 * length, splits.train)
    if not len(train) or not len(longer):
        raise ValueError(
            f"{source} has {len(train)} training sentences of up to {length} tokens and"
            f" {len(longer)} of {length + 1} to {2 * length}: choose another --length"
        )
    both = (getattr(held_out, name) + getattr(longer, name) for name in vars(held_out))
    source_words, target_words = (
        Vocabulary.build(side, min_count=min_count) for side in (train.source, train.target)
    )
    return Task(splits.name, length, train, Pairs(*both), source_words, target_words, unit,
                (splits.source_tokenizer, splits.target_tokenizer))  # fmt: skip


def build(task: Task, name: str, widths: Widths) -> Seq2Seq:
    """An untrained model, one of `MODELS`; all have a bidirectional GRU for an encoder."""
    embedding, state, dropout = widths
    encoder = RecurrentEncoder(embedding, state // 2, bidirectional=True)
    match name:
        case "bahdanau":
            decoder = bahdanau(embedding, state, state // 2, dropout=dropout)
        case "luong":
            decoder = luong(embedding, state, state, dropout=dropout)
        case _:
            context = name == "context"
            decoder = plain(embedding, state, state, context=context, dropout=dropout)
    return Seq2Seq(
        encoder,
        decoder,
        source_size=len(task.source),
        target_size=len(task.target),
        dropout=dropout,
    )


def fair_widths(task: Task, name: str, widths: Widths) -> Widths:
    """Those that give a model without attention at least as many parameters as one with it has."""
    if name not in WITHOUT_ATTENTION:
        return widths
    enough = max(
        parameters(build(task, other, widths)) for other in MODELS if other not in WITHOUT_ATTENTION
    )
    while parameters(build(task, name, widths)) < enough:
        widths = widths._replace(state=widths.state + 2)
    return widths


# What `train` returns
RESULT = {"seed": int, "state": int, "parameters": int, "seconds": float, "loss": float,
          "buckets": [{str: float}]}  # fmt: skip


def train(
    task: Task,
    name: str,
    widths: Widths,
    training: Training,
    seed: int,
    progress: Callable[[float], object] = lambda loss: None,
) -> tuple[dict[str, Any], Seq2Seq]:
    """Trains one of `MODELS` from one seed, and measures it.

    The seed is that of the first weights and of the order of the pairs. `widths` are those of the
    models with attention (see `fair_widths`), "state" in what is returned is that of this model.
    `progress` is called after each epoch with the mean loss of a token.
    """
    widths = fair_widths(task, name, widths)
    torch.manual_seed(seed)
    model = build(task, name, widths)
    pairs = task.encoded(task.train)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.lr)

    def batches(epoch: int) -> Any:
        return bucketed(pairs, batch_size=training.batch_size, seed=seed, epoch=epoch)

    def loss(batch: Any) -> tuple[Tensor, int]:
        inputs, truth = batch.target[:, :-1], batch.target[:, 1:]
        logits = model(batch.source, inputs, source_lengths=batch.source_lengths).logits
        error = cross_entropy(logits.flatten(0, 1), truth.flatten(), ignore_index=PAD)
        return error, batch.num_predictions

    schedule = one_cycle(optimizer, training.lr, training.epochs * len(batches(0)))
    trainer = Trainer(
        model, optimizer, batches, loss, epochs=training.epochs, clip=1.0, schedule=schedule
    )
    return {
        "seed": seed,
        "state": widths.state,
        "parameters": parameters(model),
        "loss": trainer.train(progress),
        "seconds": trainer.seconds,
        "buckets": measure(task, model),
    }, model


def measure(task: Task, model: Seq2Seq) -> list[dict[str, Any]]:
    """How good the model's targets are, found greedily, for each bucket of source lengths.

    Returns:
        For each bucket: low, high, pairs, and unless it is empty "exact_match" (the share of
        targets without a mistake), "token_accuracy" (the share of the true tokens, the end symbol
        included, that stand in their place) and, for words, "bleu" (of the tokens, 0 to 1).
    """
    found: list[list[str]] = []
    batches = in_order(task.encoded(task.test), batch_size=128, by_length=True)
    for batch in batches:
        longest = 2 * batch.source.shape[1] + 10
        written = generate(model, batch.source, batch.source_lengths, max_length=longest)
        found += [task.target.decode(best.tokens) for best, *_ in written]
    found = batches.restore(found)
    buckets = []
    for low, high in task.buckets:
        places = [i for i, source in enumerate(task.test.source) if low <= len(source) <= high]
        bucket: dict[str, Any] = {"low": low, "high": high, "pairs": len(places)}
        if places:
            said = [found[i] for i in places]
            bucket |= scores(said, [task.test.target[i] for i in places], task.unit)
        buckets.append(bucket)
    return buckets


def scores(said: Sequence[list[str]], true: Sequence[list[str]], unit: Unit) -> dict[str, float]:
    """The measures of some targets; see `measure`.

    >>> scores([["a", "b"], ["a"]], [["a", "b"], ["a", "c"]], "characters")
    {'exact_match': 0.5, 'token_accuracy': 0.6666666666666666}
    """
    right = total = 0
    for one, other in zip(said, true, strict=True):
        ends = [*one, None], [*other, None]  # None: the end symbol
        right += sum(a == b for a, b in zip(*ends, strict=False))
        total += len(ends[1])
    same = sum(one == other for one, other in zip(said, true, strict=True))
    known = {"exact_match": same / len(true), "token_accuracy": right / total}
    if unit == "words":
        spaced = [[" ".join(tokens) for tokens in side] for side in (said, true)]
        bleu = sacrebleu.corpus_bleu(spaced[0], [spaced[1]], tokenize="none", force=True)
        known["bleu"] = bleu.score / 100
    return known


def load_task(args: argparse.Namespace) -> Task:
    """Reads or generates the sequences; fills in the options that were not given.

    Raises:
        UserError: a file cannot be read, or an option has no meaning for these sequences.
    """
    kind, other = ("letters", "--data") if args.data is None else ("text", "")
    fill_in(args, kind, DEFAULTS, other)
    if args.state % 2:
        raise UserError(
            f"--state {args.state} is odd: each direction of the encoder has half of it; choose"
            f" --state {args.state + 1}"
        )
    if args.data is None:
        return letters_task(args.task, args.length, args.sentences, PER_BUCKET)
    try:
        source, target = args.data
        return text_task(source, target, args.length, args.unit, args.lower, args.min_count)
    except ValueError as error:
        raise UserError(str(error)) from error


def describe(task: Task) -> str:
    """One line about the sequences."""
    return (
        f"{task.name}: {len(task.train):,} sequences of 1 to {task.length} tokens to train,"
        f" {len(task.test):,} of 1 to {2 * task.length} to test"
    )


def run(args: argparse.Namespace) -> int:
    """Trains all models from all seeds; writes what there is after each training."""
    task, folder = load_task(args), Path(args.out)
    prepare_folder(folder)
    print(describe(task))
    widths, training = pick(args, Widths), pick(args, Training)
    results: dict[str, Any] = {
        "task": describe(task),
        "length": task.length,
        "measures": task.measures,
        "config": {name: value for name, value in vars(args).items() if name != "out"},
        "versions": versions("torch"),
    }

    def metrics(found: Results) -> dict[str, Any]:
        means = {name: summarise(of, task.measures) for name, of in found.items() if of}
        return {**results, "models": found, "summary": means}

    found = run_all(
        args,
        dict.fromkeys(args.models, args.epochs),
        lambda name, seed, step: train(task, name, widths, training, seed, step),
        RESULT,
        metrics,
        describe(task),
        lambda name: build(task, name, fair_widths(task, name, widths)),
    )
    for name, model in found.models.items():
        about = {"name": name, "widths": fair_widths(task, name, widths)._asdict(),
                 "source": task.source.to_dict(), "target": task.target.to_dict(),
                 "tokenizers": [dataclasses.asdict(t) for t in task.tokenizers]}  # fmt: skip
        prepare_folder(folder / name)
        save_model(folder / name, own_weights(model), about)
    results["models"] = {name: of for name, of in found.results.items() if of}
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    draw(figure, results)
    save_figure(folder / "length.png", figure)
    print(f"\n{table(results)}\n\nmetrics.json and length.png are in {folder}")
    return 0 if found.complete else 130


def ask(args: argparse.Namespace) -> int:
    """Prints what each model in a folder makes of sentences."""
    folders = [folder for name in MODELS if (folder := Path(args.model, name)).is_dir()]
    if not folders:
        raise UserError(f"there is no model in {args.model}; --model must name a training's --out")
    for folder in folders:
        with saved_model(folder) as (config, weights):
            source, target = (Vocabulary.from_dict(config[side]) for side in ("source", "target"))
            read, write = (Tokenizer(**settings) for settings in config["tokenizers"])
            nothing = Pairs([], [], [], [])
            task = Task("", 0, nothing, nothing, source, target, write.unit)
            model = build(task, config["name"], Widths(**config["widths"]))
            load_weights(model, weights)
        for sentence in args.sentences:
            numbers = torch.tensor([source.encode(read.tokenize(sentence), eos=True)])
            longest = 2 * numbers.shape[1] + 10
            lengths = torch.tensor([numbers.shape[1]])
            (best, *_), *_ = generate(model.eval(), numbers, lengths, max_length=longest)
            said = write.detokenize(target.decode(best.tokens))
            print(f"{config['name']:10}  {sentence} → {said}")
    return 0


def summarise(found: list[dict[str, Any]], measures: Sequence[str]) -> list[dict[str, Any]]:
    """The means of a model's measures over the seeds, for each bucket of lengths."""
    return [
        {name: buckets[0][name] for name in ("low", "high", "pairs")}
        | (summary(buckets, measures) if buckets[0]["pairs"] else {})
        for buckets in zip(*(result["buckets"] for result in found), strict=True)
    ]


def table(results: dict[str, Any]) -> str:
    """For each measure a row for each bucket of lengths, and a column for each model."""
    models = results["models"]
    buckets = next(iter(models.values()))[0]["buckets"]
    parts = [
        ["", *models],
        ["parameters", *(f"{found[0]['parameters']:,}" for found in models.values())],
        ["width of the decoder's state", *(str(found[0]["state"]) for found in models.values())],
        ["seconds", *(f"{mean(r['seconds'] for r in of):.1f}" for of in models.values())],
        ["loss of a token", *(f"{mean(r['loss'] for r in of):.3f}" for of in models.values())],
    ]
    blocks = [aligned(parts)]
    for measure in results["measures"]:
        rows = [[f"{NAMES[measure]}, by length", *models, "sequences"]]
        for nth, bucket in enumerate(buckets):
            if not bucket["pairs"]:
                continue
            longer = "  (longer)" if bucket["low"] > results["length"] else ""
            label = f"{bucket['low']} to {bucket['high']}{longer}"
            cells = [
                percent([result["buckets"][nth][measure] for result in found])
                for found in models.values()
            ]
            rows.append([label, *cells, str(bucket["pairs"])])
        blocks.append(aligned(rows))
    notes = [f"{name}: {MODELS[name]}" for name in models]
    notes.append("longer: than all sequences that were trained on")
    if results["config"]["runs"] > 1:
        notes.append("±: standard deviation over seeds; the sequences are the same in all runs")
    return "\n\n".join([*blocks, "\n".join(notes)])


def draw(figure: Figure, results: dict[str, Any]) -> None:
    """Each measure against the length: bold the mean over seeds, faint each seed."""
    measures, length = results["measures"], results["length"]
    panels = figure.subplots(1, len(measures), sharex=True, squeeze=False)[0]
    for measure, panel in zip(measures, panels, strict=True):
        panel.axvspan(length + 0.5, 2 * length + 0.5, color="#f0f0f0", zorder=0)
        panel.text(
            1.5 * length + 0.5, 1.02, "longer than all in training", ha="center", fontsize=9,
            color="#717581", transform=panel.get_xaxis_transform(),
        )  # fmt: skip
        count = len(results["models"])
        for nth, (name, found) in enumerate(results["models"].items()):
            runs = [[b for b in result["buckets"] if b["pairs"]] for result in found]
            places = [(bucket["low"] + bucket["high"]) / 2 for bucket in runs[0]]
            curves = [[100 * bucket[measure] for bucket in buckets] for buckets in runs]
            style: dict[str, Any] = {"color": COLOURS[name]}
            style["linestyle"] = "--" if name in WITHOUT_ATTENTION else "-"
            for curve in curves if len(curves) > 1 else []:
                panel.plot(places, curve, linewidth=0.8, alpha=0.4, **style)
            means = list(map(mean, zip(*curves, strict=True)))
            panel.plot(
                places, means, marker="o", markersize=4 + 2 * (count - 1 - nth),
                label=MODELS[name], **apart(nth, count), **style,
            )  # fmt: skip
        panel.set(
            xlabel="tokens of the source", ylabel=NAMES[measure], xlim=(0.5, 2 * length + 0.5),
            ylim=(-2 if measure != "bleu" else 0, 102),
        )  # fmt: skip
        bare(panel)
    legend_below(figure, panels[:1], ncols=2, handlelength=3)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""

    def work() -> int:
        args = parser().parse_args(argv)
        return ask(args) if args.command == "ask" else run(args)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
