"""Soft against hard attention: spells handwritten digits, looking at their pixels letter by letter.

    python -m examples.captioning                               # scikit-learn's digits, offline
    python -m examples.captioning --digits 2 --models soft gumbel --runs 3
    python -m examples.captioning --models soft --coverage 0.1  # the doubly stochastic regulariser

An image of one digit is to be spelt ("four"), or a strip of two ("four seven"). Before each letter
the decoder looks at the image: softly, at a mean of all pixels, or hard, at one of them, which it
learns by REINFORCE (after a soft beginning) or by the Gumbel straight-through estimator. This is
"Show, Attend and Tell" (Xu et al., 2015) in small. What a decoder knows of the image comes through
its attention alone, but for the model without attention, which sees the mean of all pixels'
features at every step. The program prints how many images of a held-out set are spelt without a
mistake, and writes to --out the same as metrics.json, the progress of training (curves.png), and
where each letter looked (letters-1.png, letters-2.png).
"""

from __future__ import annotations

import argparse
import functools
import platform
import sys
import textwrap
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from examples._captioning import (
    GREYS,
    REACH,
    SIDE,
    Digits,
    Speller,
    Strips,
    Training,
    classify,
    measure,
    spell,
    split_digits,
    strips,
    text,
    together,
    train,
    write,
)
from examples._comparison import Job, aligned, percent, run_jobs, summary
from examples._files import prepare_folder, write_atomically, write_json
from examples._graphs import SEED, number
from examples._program import Parser, exit_status

PROGRAM = "python -m examples.captioning"
MODELS = {
    "soft": "soft (a mean of all pixels)",
    "reinforce": "hard, REINFORCE",
    "gumbel": "hard, Gumbel straight-through",
    "none": "no attention",
}
SHORT = {"soft": "soft", "reinforce": "hard,\nREINFORCE", "gumbel": "hard,\nGumbel"}
COLOURS = {"soft": "#3f90da", "reinforce": "#e76300", "gumbel": "#832db6", "none": "#94a4a2"}
LOOK = "#e76300"
MEASURES = ("exact_match", "places", "on_its_digit")
TEST_ROUNDS = 3  # how often each test image occurs in every place of the strips to test on
EPOCHS = {1: 40, 2: 24}  # a strip has more letters to learn from
# Labels of the images that are drawn: for each, the first test images of these digits
DRAWN: dict[int, list[tuple[int, ...]]] = {1: [(4,), (7,), (2,)], 2: [(4, 7), (3, 6)]}


def run(args: argparse.Namespace) -> int:
    """Trains all models from all seeds; writes what there is after each training."""
    folder = Path(args.out)
    prepare_folder(folder)
    parts = split_digits()
    sizes = {name: len(part.labels) for name, part in parts.items()}
    print("images: {train:,} to train, {valid} to validate, {test} to test".format(**sizes))
    epochs = {width: args.epochs or EPOCHS.get(width, EPOCHS[2]) for width in args.digits}
    training = Training(*(getattr(args, name) for name in Training._fields))
    tests = {width: held_out_strips(parts["test"], width) for width in args.digits}
    results: dict[str, Any] = {
        "images": sizes,
        "config": {name: value for name, value in vars(args).items() if name != "out"}
        | {"epochs": {str(width): count for width, count in epochs.items()}},
        "tasks": {
            str(width): {
                "strips": len(test.labels),
                "support_vector_machine": classify(parts, test),
                "models": {name: [] for name in args.models},
            }
            for width, test in tests.items()
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "scikit-learn")},
    }
    drawn: dict[int, dict[str, Speller]] = {width: {} for width in args.digits}

    def one(width: int, name: str, seed: int, step: Any) -> None:
        torch.manual_seed(seed)
        settings = training._replace(epochs=epochs[width])
        model = Speller(
            width, name, args.size, args.state, glance=args.glance, temperature=args.temperature
        )
        found = {"seed": seed, **train(parts, model, settings, seed, step)}
        found |= measure(model, tests[width])
        results["tasks"][str(width)]["models"][name].append(found)
        drawn[width].setdefault(name, model)
        write_results(folder, results)

    jobs: dict[str, Job] = {
        f"{width} digit{'s' * (width > 1)}, {name} (seed {seed})": functools.partial(
            one, width, name, seed
        )
        for seed in range(args.seed, args.seed + args.runs)
        for width in args.digits
        for name in args.models
    }
    complete = run_jobs(jobs, args.runs * len(args.models) * sum(epochs.values()))
    for width, models in drawn.items():
        attending = {name: model for name, model in models.items() if name != "none"}
        if attending:
            figure = draw_letters(attending, chosen_strips(parts["test"], width))
            save(folder / f"letters-{width}.png", figure)
    figure = Figure(figsize=(1 + 4 * len(args.digits), 4.2), layout="constrained")
    draw_curves(figure, results)
    save(folder / "curves.png", figure)
    if not complete:
        print("\ninterrupted; this is what there is so far", file=sys.stderr)
    print(f"\n{table(results)}\n\nmetrics.json and pictures are in {folder}")
    return 0 if complete else 130


def held_out_strips(digits: Digits, width: int) -> Strips:
    """What is tested on: single images once, strips of several in a fixed random order."""
    rounds = 1 if width == 1 else TEST_ROUNDS
    return strips(digits, width, rounds, torch.Generator().manual_seed(0))


def chosen_strips(digits: Digits, width: int) -> Strips:
    """What is drawn: the first images there are of fixed digits."""
    wanted = DRAWN.get(width, [tuple(range(1, width + 1))])
    first = {label: i for i, label in reversed(list(enumerate(digits.labels.tolist())))}
    return together(digits, torch.tensor([[first[label] for label in row] for row in wanted]))


def write_results(folder: Path, results: dict[str, Any]) -> None:
    """Writes metrics.json."""
    runs, tasks, complete = results["config"]["runs"], {}, True
    for width, task in results["tasks"].items():
        models: dict[str, list[dict[str, Any]]] = task["models"]
        complete = complete and all(len(found) == runs for found in models.values())
        means = {name: summary(found, MEASURES) for name, found in models.items() if found}
        tasks[width] = {**task, "summary": means}
    write_json(folder / "metrics.json", {"complete": complete, **results, "tasks": tasks})


def table(results: dict[str, Any]) -> str:
    """For each number of digits, a row for each model."""
    blocks = []
    for width, task in results["tasks"].items():
        strips_of = "single digits" if width == "1" else f"strips of {width} digits"
        head = [f"{strips_of}, {task['strips']:,} to test"]
        rows = [[*head, "parameters", "seconds", "exact match in %", "pixels per letter"]]
        several = width != "1"
        rows[0] += ["weight on its digit in %"] * several
        for name, found in task["models"].items():
            if not found:
                continue
            seconds = sum(result["seconds"] for result in found) / len(found)
            pixels = [result["places"] for result in found if result["places"] is not None]
            row = [MODELS[name], f"{found[0]['parameters']:,}", f"{seconds:.1f}"]
            row += [percent([result["exact_match"] for result in found])]
            row += [f"{sum(pixels) / len(pixels):.1f}" if pixels else "–"]
            rows.append(row + [percent([r["on_its_digit"] for r in found])] * several)
        machine = f"{100 * task['support_vector_machine']:.1f}"
        rows.append(["support vector machine", *["–"] * 2, machine, *["–"] * (len(rows[0]) - 4)])
        blocks.append(aligned(rows))
    notes = [
        "pixels per letter: exp(entropy) of the weights; of each pixel a letter sees the 5 × 5"
        " around it",
        "support vector machine: classifies each digit by itself, and need not spell",
    ]
    if len(results["tasks"]) > 1 or "1" not in results["tasks"]:
        notes.insert(1, "weight on its digit: of the letters of strips that are spelt right")
    if results["config"]["runs"] > 1:
        notes.append("±: standard deviation over seeds; the images are the same in all runs")
    return "\n\n".join([*blocks, "\n".join(notes)])


def draw_curves(figure: Figure, results: dict[str, Any]) -> None:
    """Exact match on the validation images over the epochs: bold the first seed, faint others."""
    tasks = results["tasks"]
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, (width, task) in zip(panels, tasks.items(), strict=True):
        for name, found in task["models"].items():
            for nth, result in enumerate(found):
                curve = result["valid_exact_match"]
                panel.plot(
                    range(1, len(curve) + 1), curve, color=COLOURS[name],
                    linewidth=0.8 if nth else 1.8, alpha=0.4 if nth else 1,
                    label=None if nth else MODELS[name],
                )  # fmt: skip
        panel.set_title("single digits" if width == "1" else f"strips of {width}", fontsize=11)
        panel.set(xlabel="epoch", ylim=(0, 1))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("validation images spelt without a mistake")
    handles = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )


def draw_letters(models: dict[str, Speller], images: Strips) -> Figure:
    """Where each letter looked: a row for each image and model, a panel for each letter."""
    width = images.labels.shape[1]
    found = {name: write(model, images, need_weights=True) for name, model in models.items()}
    columns = max(len(text(one)) for row in found.values() for one in row)
    rows = len(images.labels) * len(models)
    across, down = 0.62 * (1 + 0.7 * (width - 1)), 0.92
    size = 1 + across * max(columns, 1), down * rows + 0.8  # inches
    figure = Figure(figsize=size)
    panels = figure.subplots(
        rows, max(columns, 1), squeeze=False,
        gridspec_kw={
            "left": 0.9 / size[0], "right": 1 - 0.1 / size[0], "wspace": 0.1, "hspace": 0.4,
            "bottom": 0.6 / size[1], "top": 1 - 0.3 / size[1],
        },
    )  # fmt: skip
    for panel in panels.flat:
        panel.axis("off")
    for nth, labels in enumerate(images.labels.tolist()):
        image = images.pixels[nth].view(SIDE, SIDE * width)
        for place, (name, hypotheses) in enumerate(found.items()):
            row = panels[nth * len(models) + place]
            weights, written = hypotheses[nth].weights, text(hypotheses[nth])
            assert weights is not None
            right = written == spell(labels)
            row[0].text(
                -0.15, 0.5, SHORT[name], transform=row[0].transAxes, ha="right", va="center",
                fontsize=8, color=COLOURS[name],
            )  # fmt: skip
            for letter, weight, panel in zip(written, weights[0], row, strict=False):
                look(panel, image, weight.view_as(image), hard=name != "soft")
                panel.set_title(
                    "space" if letter == " " else letter,
                    fontsize=8 if letter == " " else 12, pad=2,
                    color="black" if right else "#bd1f01",
                )  # fmt: skip
    caption = (
        "orange: where the decoder looked to write the letter above"
        f" (frame: the {REACH} × {REACH} pixels that it saw); red letters: a mistake"
    )
    figure.text(
        0.1 / size[0], 0.1 / size[1], textwrap.fill(caption, int(14 * size[0])),
        fontsize=8, color="#717581",
    )  # fmt: skip
    return figure


def look(panel: Axes, image: Tensor, weight: Tensor, *, hard: bool) -> None:
    """An image with the weight of each pixel on it; the largest weight is opaque."""
    panel.imshow(image.numpy(), cmap="Greys", vmin=0, vmax=1.25 * (GREYS - 1))
    overlay = torch.empty(*weight.shape, 4)
    overlay[..., :3] = torch.tensor(to_rgb(LOOK))
    overlay[..., 3] = 0.85 * weight / weight.max()
    panel.imshow(overlay.numpy())
    panel.axis("on")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(linewidth=0.5, color="#bbbbbb")
    if hard:
        y, x = divmod(int(weight.argmax()), weight.shape[1])
        corner = x - REACH / 2, y - REACH / 2
        panel.add_patch(Rectangle(corner, REACH, REACH, fill=False, edgecolor=LOOK, linewidth=1))


def save(path: Path, figure: Figure) -> None:
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150))


def parser() -> argparse.ArgumentParser:
    """The options of the program."""
    parser = Parser(
        prog=PROGRAM,
        description="Compare soft and hard attention at spelling handwritten digits.",
        allow_abbrev=False,
    )
    count, factor, rate = number(int, 1), number(float, 0), number(float, 0, below=1000)
    group = parser.add_argument_group("what is learned")
    group.add_argument(
        "--digits", nargs="+", type=number(int, 1, below=6), default=[1, 2], metavar="N",
        help="digits in a strip, one or several numbers; default: 1 2",
    )  # fmt: skip
    group.add_argument(
        "--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL",
        help=f"which to compare, of {', '.join(MODELS)}; default: all",
    )  # fmt: skip
    group = parser.add_argument_group("model")
    group.add_argument("--size", type=count, default=32, help="channels of a pixel; default: 32")
    group.add_argument("--state", type=count, default=64, help="of the decoder; default: 64")
    group.add_argument(
        "--glance", action="store_true",
        help="let the decoder start from the mean of all pixels, as in the paper",
    )  # fmt: skip
    group.add_argument("--temperature", type=temperature, default=1.0, help="of gumbel; default: 1")
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=count, help="default: 40 for single digits, 24 for strips")
    group.add_argument(
        "--rounds", type=count, default=1,
        help="how often an epoch has each image in every place of a strip; default: 1",
    )  # fmt: skip
    group.add_argument("--batch-size", type=count, default=64, help="default: 64")
    group.add_argument("--lr", type=rate, default=0.01, help="highest rate of Adam; default: 0.01")
    group.add_argument(
        "--coverage", type=factor, default=0.0,
        help="of soft attention: how much it is asked to look everywhere in the end; default: 0",
    )  # fmt: skip
    group.add_argument(
        "--entropy", type=factor, default=0.01,
        help="of reinforce: how much it is asked to try out other pixels; default: 0.01",
    )  # fmt: skip
    group.add_argument(
        "--reward", type=factor, default=1.0, help="weight of its loss in reinforce; default: 1"
    )
    group.add_argument(
        "--discount", type=number(float, 0, below=1.001), default=0.8,
        help="of reinforce: how much the letters behind count; default: 0.8",
    )  # fmt: skip
    group.add_argument(
        "--softly", type=number(float, 0, below=1), default=0.5,
        help="of reinforce: the part of the training that it begins with soft attention;"
        " default: 0.5",
    )  # fmt: skip
    group.add_argument("--runs", type=count, default=1, help="each from another seed; default: 1")
    group.add_argument("--seed", type=SEED, default=0, help="of the first run")
    group.add_argument("--out", metavar="DIR", default=str(Path("runs", "captioning")))
    return parser


def temperature(words: str) -> float:
    """A type for argparse: a number above 0."""
    value: float = number(float, 0)(words)
    if value == 0:
        raise argparse.ArgumentTypeError(f"must be above 0: {words!r}")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
