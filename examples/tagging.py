"""Where attention is weak: labels that depend on the order of the words, learned in nine ways.

    python -m examples.tagging                                # generated sentences, offline
    python -m examples.tagging --conllu train.conllu test.conllu
    python -m examples.tagging --models attention rotary bilstm --runs 5

Attention sees a set of words. What it knows of their order it is told: by positions, by a window,
by a causal mask. Convolutions and recurrent networks know order by themselves. All of them are
trained here with about as many parameters, on the same sentences for as many epochs.

By default the sentences are generated (see `spell`): what a word is labelled with depends on the
symbol just before it, and on the last bracket before it, however far. With --conllu they are the
reader's own, of which parts of speech are learned (universaldependencies.org has such files). For
both the program computes what nothing that is blind to order can exceed. It prints a table, and
writes the same to metrics.json and accuracy.png in --out.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from datasets import read_conllu
from examples._files import UserError, prepare_folder, write_atomically, write_json
from examples._graphs import SEED, number
from examples._program import Parser, check_device, exit_status, mean_and_deviation
from examples._tagging import (
    MODELS,
    Task,
    Training,
    Widths,
    commonest_tags,
    order_blind_bound,
    spell,
    train,
)

PROGRAM = "python -m examples.tagging"
# The same for all models; large enough that most of them learn what they can.
DEFAULTS: dict[str, dict[str, Any]] = {
    "generated": {
        "size": 32, "layers": 2, "heads": 4, "window": 2, "dropout": 0.0,
        "epochs": 12, "batch_size": 32, "lr": 5e-3, "sentences": 800,
    },
    "conllu": {
        "size": 64, "layers": 2, "heads": 4, "window": 2, "dropout": 0.2,
        "epochs": 10, "batch_size": 32, "lr": 3e-3, "min_count": 2, "column": "upos",
    },
}  # fmt: skip
TEST_SENTENCES = 500
BASELINE, BOUND = "each word's commonest tag", "upper bound without order"


def load_task(args: argparse.Namespace) -> Task:
    """Reads or generates the sentences; fills in the options that were not given.

    Raises:
        UserError: a file cannot be read, or an option has no meaning for this data.
    """
    kind = "generated" if args.conllu is None else "conllu"
    for option in ("sentences", "min_count", "column"):
        if getattr(args, option) is not None and option not in DEFAULTS[kind]:
            mend = "leave it out" if args.conllu else "give --conllu, or leave it out"
            name = option.replace("_", "-")
            raise UserError(f"--{name} has no meaning for {kind} sentences; {mend}")
    for option, value in DEFAULTS[kind].items():
        if getattr(args, option) is None:
            setattr(args, option, value)
    if args.size % (2 * args.heads):
        raise UserError(
            f"--size {args.size} is no multiple of {2 * args.heads}: rotary positions turn pairs of"
            f" channels in each of the {args.heads} heads; choose --size {2 * args.heads} or a"
            " multiple, or fewer --heads"
        )
    if args.conllu is None:
        parts = spell(args.sentences, seed=0), spell(TEST_SENTENCES, seed=1)
        return Task.of("generated", *parts, aspects=("last symbol", "bracket"))
    try:
        learned, judged = (read_conllu(path, column=args.column) for path in args.conllu)
        return Task.of(Path(args.conllu[0]).stem, learned, judged, min_count=args.min_count)
    except ValueError as error:
        raise UserError(str(error)) from error


def describe(task: Task) -> str:
    """One line about the sentences."""
    parts = (
        f"{len(part):,} sentences ({sum(map(len, part.source)):,} words) to {verb}"
        for part, verb in ((task.train, "train"), (task.test, "test"))
    )
    return f"{task.name}: {', '.join(parts)}; {len(task.tags)} tags"


def run(args: argparse.Namespace) -> int:
    """Trains all models from all seeds; writes what there is after each training."""
    check_device(args.device)
    folder = Path(args.out or Path("runs", "tagging"))
    task = load_task(args)
    prepare_folder(folder)
    print(describe(task))
    widths = Widths(*(getattr(args, name) for name in Widths._fields))
    training = Training(*(getattr(args, name) for name in Training._fields))
    results: dict[str, Any] = {
        "task": describe(task),
        "config": {name: value for name, value in vars(args).items() if name != "out"},
        "baselines": {BASELINE: commonest_tags(task), BOUND: order_blind_bound(task)},
        "models": {name: [] for name in args.models},
        "versions": {"python": platform.python_version(), "torch": version("torch")},
    }
    terminal = sys.stderr.isatty()
    bar = tqdm(
        total=args.runs * len(args.models) * args.epochs, unit="epoch", leave=not terminal,
        mininterval=0.1 if terminal else 10,
    )  # fmt: skip
    try:
        with bar:
            for seed in range(args.seed, args.seed + args.runs):
                for name in args.models:
                    bar.set_description(f"{name} (seed {seed})", refresh=False)

                    def step(loss: float, name: str = name) -> None:
                        if not math.isfinite(loss):
                            raise UserError(f"the loss of {name} became {loss}: lower --lr")
                        bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                        bar.update()

                    found = train(task, name, widths, training, seed, step)
                    results["models"][name].append(found)
                    write_results(folder, results)
    except KeyboardInterrupt:
        if not any(results["models"].values()):
            raise  # there is nothing to keep
        save_picture(folder, results)
        print(f"\ninterrupted; what there is so far is in {folder}", file=sys.stderr)
        print(f"\n{table(results)}\n")
        return 130
    save_picture(folder, results)
    print(f"\n{table(results)}\n")
    print(f"metrics.json and accuracy.png are in {folder}")
    return 0


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Writes metrics.json."""
    runs = results["config"]["runs"]
    complete = all(len(found) == runs for found in results["models"].values())
    summary = {
        name: {
            part: {
                measure: mean_and_deviation([result[part][measure] for result in found])
                for measure in found[0][part]
            }
            for part in ("train", "test")
        }
        for name, found in results["models"].items()
        if found
    }
    write_json(folder / "metrics.json", {"complete": complete, **results, "summary": summary})


def save_picture(folder: Path, results: dict[str, Any]) -> None:
    """Writes accuracy.png."""
    figure = Figure(figsize=(3 + 3 * len(_measures(results)), 4.5), layout="constrained")
    draw(figure, results)
    write_atomically(folder / "accuracy.png", lambda temporary: figure.savefig(temporary, dpi=150))


def _measures(results: dict[str, Any]) -> list[str]:
    return list(results["baselines"][BOUND])


def table(results: dict[str, Any]) -> str:
    """A row for each model: its size, its time, and its accuracies in %."""
    measures = _measures(results)
    rows = [["accuracy in %", "parameters", "seconds", "train", "test", *measures[1:]]]
    for name, known in results["baselines"].items():
        rows.append([name, "", "", "", *(f"{100 * known[measure]:.1f}" for measure in measures)])
    for name, found in results["models"].items():
        if found:
            seconds = sum(result["seconds"] for result in found) / len(found)
            size = f"{found[0]['parameters']:,}"
            rows.append([MODELS[name].title, size, f"{seconds:.1f}", _percent(found, "train")])
            rows[-1] += [_percent(found, "test", measure) for measure in measures]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if len(measures) > 1:
        both = " and ".join(measures[1:])
        lines.append(f"{both}: of the test words, these parts of a tag by themselves")
    lines.append(
        f"{BOUND}: nothing that is blind to order, whatever it has learned, has more of the"
        " test words right"
    )
    if results["config"]["runs"] > 1:
        lines.append("±: standard deviation over seeds; the sentences are the same in all runs")
    return "\n".join(lines)


def _percent(found: Sequence[dict[str, Any]], part: str, measure: str = "accuracy") -> str:
    known = mean_and_deviation([100 * result[part][measure] for result in found])
    deviation = "" if known["std"] is None else f" ± {known['std']:.1f}"
    return f"{known['mean']:.1f}{deviation}"


def draw(figure: Figure, results: dict[str, Any]) -> None:
    """Test accuracies, a panel for each measure: bars are means, dots seeds, lines baselines."""
    measures = _measures(results)
    models = {name: found for name, found in results["models"].items() if found}
    titles = [MODELS[name].title.replace("  +", "+") for name in models]
    colours = ["#3f90da" if MODELS[name].sees_order else "#e76300" for name in models]
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for measure, panel in zip(measures, panels, strict=True):
        seeds = [[100 * run["test"][measure] for run in found] for found in models.values()]
        panel.barh(titles, list(map(statistics.mean, seeds)), color=colours)
        for title, values in zip(titles, seeds, strict=True):
            panel.scatter(values, [title] * len(values), color="black", s=6, zorder=3, label="seed")
        for (name, known), style in zip(results["baselines"].items(), (":", "--"), strict=True):
            panel.axvline(
                100 * known[measure], color="black", linewidth=1, linestyle=style, label=name
            )
        panel.set(xlim=(0, 100), xlabel="% of the test words")
        panel.set_title("whole tag" if measure == "accuracy" else measure, fontsize=11)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()  # the first on top
    handles = dict(zip(*panels[0].get_legend_handles_labels()[::-1], strict=True))  # one per label
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )


def parser() -> argparse.ArgumentParser:
    """The options of the program."""
    parser = Parser(
        prog=PROGRAM,
        description="Compare attention, convolutions and recurrent networks at tagging words.",
        allow_abbrev=False,
    )
    count, share = number(int, 1), number(float, 0, below=1)
    group = parser.add_argument_group("sentences")
    group.add_argument(
        "--conllu", nargs=2, metavar=("TRAIN", "TEST"), help="your own; default: generated ones"
    )
    group.add_argument("--column", help="of --conllu: upos (default), xpos, …")
    group.add_argument(
        "--min-count", type=count, help="rarer words of --conllu count as unknown; default: 2"
    )
    group.add_argument("--sentences", type=count, help="generated to train on; default: 800")
    group = parser.add_argument_group("models (defaults: small; --conllu has its own)")
    group.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL",
        help=f"which to compare, of {', '.join(MODELS)}; default: all",
    )  # fmt: skip
    group.add_argument("--size", type=count, help="channels between layers")
    group.add_argument("--layers", type=count, help="of the Transformers; others match their size")
    group.add_argument("--heads", type=count)
    group.add_argument("--window", type=number(int, 0), help="words to either side")
    group.add_argument("--dropout", type=share)
    group = parser.add_argument_group("training (defaults: as above)")
    group.add_argument("--epochs", type=count)
    group.add_argument("--batch-size", type=count)
    group.add_argument("--lr", type=number(float, 0, below=1000), help="highest learning rate")
    group.add_argument("--runs", type=count, default=3, help="each from another seed; default: 3")
    group.add_argument("--seed", type=SEED, default=0, help="of the first run")
    group.add_argument("--device", default="cpu", help="as torch names it; default: cpu")
    group.add_argument("--out", metavar="DIR", help="default: runs/tagging")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
