"""What attention does for long sentences: how many are right, against their length.

    python -m examples.long_sentences                                # reverse letters, offline
    python -m examples.long_sentences --task sort --length 20
    python -m examples.long_sentences --data source.txt target.txt   # translate your own text

An encoder–decoder without attention must squeeze a whole sentence into one vector, so it gets worse
with every word; attention lets the decoder look back. This is the experiment behind figure 2 of
Bahdanau, Cho, Bengio, "Neural Machine Translation by Jointly Learning to Align and Translate"
(2015). All models train on the same sequences of up to L tokens, for as many updates, and are
tested on those of up to 2 L; the ones without attention are widened until they have at least as
many parameters as the others. The program prints a table by length, and writes the same to
metrics.json and length.png in --out.
"""

from __future__ import annotations

import argparse
import functools
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples._comparison import Job, aligned, percent, run_jobs, summary
from examples._files import UserError, prepare_folder, write_atomically, write_json
from examples._graphs import SEED, number
from examples._long_sentences import (
    MODELS,
    TASKS,
    WITHOUT_ATTENTION,
    Task,
    Training,
    Widths,
    letters_task,
    text_task,
    train,
)
from examples._program import Parser, exit_status

PROGRAM = "python -m examples.long_sentences"
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


def load_task(args: argparse.Namespace) -> Task:
    """Reads or generates the sequences; fills in the options that were not given.

    Raises:
        UserError: a file cannot be read, or an option has no meaning for these sequences.
    """
    kind = "letters" if args.data is None else "text"
    other = DEFAULTS["text" if kind == "letters" else "letters"]
    for option in other.keys() - DEFAULTS[kind].keys():
        if getattr(args, option) is not None:
            mend = "leave it out" if args.data else "give --data, or leave it out"
            name = option.replace("_", "-")
            raise UserError(f"--{name} has no meaning for {kind}; {mend}")
    for option, value in DEFAULTS[kind].items():
        if getattr(args, option) is None:
            setattr(args, option, value)
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
    folder = Path(args.out)
    task = load_task(args)
    prepare_folder(folder)
    print(describe(task))
    widths = Widths(*(getattr(args, name) for name in Widths._fields))
    training = Training(*(getattr(args, name) for name in Training._fields))
    results: dict[str, Any] = {
        "task": describe(task),
        "length": task.length,
        "measures": task.measures,
        "config": {name: value for name, value in vars(args).items() if name != "out"},
        "models": {name: [] for name in args.models},
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }

    def one(name: str, seed: int, step: Any) -> None:
        results["models"][name].append(train(task, name, widths, training, seed, step))
        write_results(folder, results)

    jobs: dict[str, Job] = {
        f"{name} (seed {seed})": functools.partial(one, name, seed)
        for seed in range(args.seed, args.seed + args.runs)
        for name in args.models
    }
    complete = run_jobs(jobs, len(jobs) * args.epochs)
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    draw(figure, results)
    write_atomically(folder / "length.png", lambda temporary: figure.savefig(temporary, dpi=150))
    if not complete:
        print("\ninterrupted; this is what there is so far", file=sys.stderr)
    print(f"\n{table(results)}\n\nmetrics.json and length.png are in {folder}")
    return 0 if complete else 130


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Writes metrics.json."""
    runs = results["config"]["runs"]
    complete = all(len(found) == runs for found in results["models"].values())
    means = {
        name: [
            {"low": buckets[0]["low"], "high": buckets[0]["high"], "pairs": buckets[0]["pairs"]}
            | (summary(buckets, results["measures"]) if buckets[0]["pairs"] else {})
            for buckets in zip(*(result["buckets"] for result in found), strict=True)
        ]
        for name, found in results["models"].items()
        if found
    }
    write_json(folder / "metrics.json", {"complete": complete, **results, "summary": means})


def table(results: dict[str, Any]) -> str:
    """For each measure a row for each bucket of lengths, and a column for each model."""
    models = {name: found for name, found in results["models"].items() if found}
    buckets = next(iter(models.values()))[0]["buckets"]
    parts = [
        ["", *models],
        ["parameters", *(f"{found[0]['parameters']:,}" for found in models.values())],
        ["width of the decoder's state", *(str(found[0]["state"]) for found in models.values())],
        ["seconds", *(_mean([r["seconds"] for r in found]) for found in models.values())],
        ["loss of a token", *(_mean([r["loss"] for r in f], 3) for f in models.values())],
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


def _mean(values: Sequence[float], digits: int = 1) -> str:
    return f"{sum(values) / len(values):.{digits}f}"


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
        for name, found in results["models"].items():
            if found:
                _draw_model(panel, name, [result["buckets"] for result in found], measure)
        panel.set(
            xlabel="tokens of the source", ylabel=NAMES[measure], xlim=(0.5, 2 * length + 0.5),
            ylim=(-2 if measure != "bleu" else 0, 102),
        )  # fmt: skip
        panel.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9,
        handlelength=3,
    )  # fmt: skip


def _draw_model(
    panel: Axes, name: str, runs: Sequence[Sequence[dict[str, Any]]], measure: str
) -> None:
    filled = [nth for nth, bucket in enumerate(runs[0]) if bucket["pairs"]]
    places = [(runs[0][nth]["low"] + runs[0][nth]["high"]) / 2 for nth in filled]
    curves = [[100 * buckets[nth][measure] for nth in filled] for buckets in runs]
    style = "--" if name in WITHOUT_ATTENTION else "-"
    if len(curves) > 1:
        for curve in curves:
            panel.plot(places, curve, style, color=COLOURS[name], linewidth=0.8, alpha=0.4)
    mean = [sum(values) / len(values) for values in zip(*curves, strict=True)]
    panel.plot(
        places, mean, style, color=COLOURS[name], linewidth=2, marker="o", markersize=4,
        label=MODELS[name],
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The options of the program."""
    parser = Parser(
        prog=PROGRAM,
        description="Compare encoder–decoders with and without attention on long sentences.",
        allow_abbrev=False,
    )
    count, share = number(int, 1), number(float, 0, below=1)
    group = parser.add_argument_group("sequences (defaults: small; --data has its own)")
    group.add_argument("--task", choices=TASKS, help="of random letters; default: reverse")
    group.add_argument(
        "--data", nargs=2, metavar=("SRC", "TGT"), help="your own: two files, line by line"
    )
    group.add_argument(
        "--length", type=number(int, 2), help="L: train up to it, test up to twice as much;"
        " default: 12 letters, 15 tokens of --data",
    )  # fmt: skip
    group.add_argument("--sentences", type=count, help="generated to train on; default: 8000")
    group.add_argument("--unit", choices=("words", "characters"), help="of --data; default: words")
    group.add_argument("--lower", action="store_true", default=None, help="lower-case --data")
    group.add_argument(
        "--min-count", type=count, help="rarer tokens of --data count as unknown; default: 2"
    )
    group = parser.add_argument_group("models (defaults: small; --data has its own)")
    group.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL",
        help=f"which to compare, of {', '.join(MODELS)}; default: all",
    )  # fmt: skip
    group.add_argument("--embedding", type=count, help="the width of a token")
    group.add_argument(
        "--state", type=number(int, 2), help="of decoders with attention; the others are wider"
    )
    group.add_argument("--dropout", type=share)
    group = parser.add_argument_group("training (defaults: as above)")
    group.add_argument("--epochs", type=count)
    group.add_argument("--batch-size", type=count)
    group.add_argument("--lr", type=number(float, 0, below=1000), help="highest learning rate")
    group.add_argument("--runs", type=count, default=2, help="each from another seed; default: 2")
    group.add_argument("--seed", type=SEED, default=0, help="of the first run")
    group.add_argument("--out", metavar="DIR", default=str(Path("runs", "long_sentences")))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
