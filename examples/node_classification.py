"""Trains a graph attention network to classify the nodes of a graph, and applies it.

    python -m examples.node_classification                        # handwritten digits, offline
    python -m examples.node_classification --dataset cora --runs 10
    python -m examples.node_classification --dataset cora --model gatv2
    python -m examples.node_classification --dataset ppi          # graphs never trained on
    python -m examples.node_classification --edges edges.csv --features x.csv --labels labels.csv
    python -m examples.node_classification predict --model runs/digits --output predictions.csv

Training writes the best model, its scores beside simple baselines, and pictures to --out. Ctrl-C
keeps what there is; the same command with --resume goes on to the same final numbers.
"""

from __future__ import annotations

import argparse
import csv
import platform
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from torch_geometric.data import Data
from tqdm import tqdm

from examples._baselines import Baseline, baselines
from examples._files import (
    UserError,
    load_checkpoint,
    prepare_folder,
    save_checkpoint,
    save_model,
    write_atomically,
    write_json,
)
from examples._graph_models import (
    CHOICES,
    NORMALIZERS,
    SCORES,
    arguments_of,
    build,
    check_options,
    kind_of,
    load_model,
    name_of,
)
from examples._graphs import (
    SEED,
    add_graph_options,
    check_splits,
    describe,
    fingerprint,
    is_multi_label,
    load_graph,
    number,
    score_name,
)
from examples._pictures import save_pictures
from examples._program import Parser, check_device, exit_status, mean_and_deviation
from examples._training import Progress, Run, Settings

# The hyper-parameters of "Graph Attention Networks" (Veličković et al., 2018).
PAPER: dict[str, Any] = {
    "layers": 2, "hidden": 8, "heads": 8, "out_heads": 1, "dropout": 0.6, "value_dropout": 0.0,
    "residual": False, "norm": False, "feed_forward": 0, "jumping": None, "score": None,
    "normalizer": None,
    "lr": 0.005, "weight_decay": 5e-4, "epochs": 1000, "patience": 100,
}  # fmt: skip
# On these graphs the authors' code also drops what nodes hand on, which the paper does not say (on
# Citeseer it is worth a point, half of one in validation), and leaves the end to patience alone.
CITATIONS = {**PAPER, "value_dropout": 0.6, "epochs": 100_000}
DEFAULTS: dict[str, dict[str, Any]] = {
    # Chosen on the validation nodes. Labels are few, so it pays to hear from four hops away.
    "digits": {
        **PAPER, "layers": 4, "hidden": 32, "heads": 4, "dropout": 0.5, "weight_decay": 2e-3,
        "patience": 50,
    },
    "karate": PAPER,
    "cora": CITATIONS,
    "citeseer": CITATIONS,
    "pubmed": {**CITATIONS, "out_heads": 8, "lr": 0.01, "weight_decay": 1e-3},
    "ppi": {
        **PAPER, "layers": 3, "hidden": 256, "heads": 4, "out_heads": 6, "dropout": 0.0,
        "residual": True, "weight_decay": 0.0,
    },
    "files": PAPER,
}  # fmt: skip
# What other models differ in: AGNN's from its paper (Thekumparampil et al., 2018), as for Cora.
OF_MODEL: dict[str, dict[str, Any]] = {
    "gat": {},
    "gatv2": {},
    "transformer": {"residual": True},
    "agnn": {"hidden": 16, "dropout": 0.5, "lr": 0.01, "weight_decay": 5e-4},
}
# What must not change between a training and its resumption, besides the graph itself.
BINDING = (
    "dataset",
    "model",
    "neighbours",
    "labels_per_class",
    "split_seed",
    *PAPER,
    "seed",
    "device",
)
PROGRAM = "python -m examples.node_classification"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")  # torch: "in beta state"
    words = list(sys.argv[1:] if argv is None else argv)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread:  # a polite kill is a Ctrl-C
        previous = signal.signal(signal.SIGTERM, _interrupt)

    def work() -> int:
        if words[:1] == ["predict"]:
            return predict(prediction_parser().parse_args(words[1:]))
        return train(training_parser().parse_args(words), words)

    try:
        return exit_status(work)
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@dataclass
class Task:
    """One training: what is learned, from what, how far it has come, and where it is kept."""

    args: argparse.Namespace
    data: Data
    settings: Settings
    config: dict[str, Any]  # names the settings that a checkpoint is bound to
    folder: Path
    progress: Progress = field(default_factory=Progress)
    rivals: list[Baseline] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Writes all that it takes to go on from here."""
        save_checkpoint(self.checkpoint, {"config": self.config, **vars(self.progress)})


def train(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Trains as the options say; writes the model, its metrics and pictures to --out."""
    task = prepare(args)
    print(describe(task.data))
    try:
        task.rivals = baselines(task.data)
        train_runs(task)
        write_results(task)
        print(f"\n{table(task)}\n")
        draw(task)
    except KeyboardInterrupt:
        if not task.progress.results and task.progress.run is None:
            raise  # there is nothing to keep
        task.save()
        write_results(task)
        again = [word for word in words if word not in ("--resume", "--restart")]
        print(
            f"\ninterrupted {how_far(task)}; the best model so far, its metrics and a checkpoint"
            f" are in {task.folder}\ngo on with: {PROGRAM} {shlex.join([*again, '--resume'])}",
            file=sys.stderr,
        )
        return 130
    task.checkpoint.unlink(missing_ok=True)
    print(f"model, metrics and pictures are in {task.folder}")
    return 0


def prepare(args: argparse.Namespace) -> Task:
    """Checks all that can be checked before the work begins."""
    if args.edges is not None and args.labels is None:
        raise UserError("--edges needs --labels: without labels there is nothing to learn")
    check_device(args.device)
    data = load_graph(args)
    check_splits(data)
    check_options(args)
    for option, value in {**DEFAULTS[args.dataset], **OF_MODEL[args.model]}.items():
        if getattr(args, option) is None:
            setattr(args, option, value)
    settings = Settings(
        model=arguments_of(args, data.num_features, len(data.class_names), edge_width(data)),
        kind=kind_of(args),
        lr=args.lr,
        weight_decay=args.weight_decay,
        epochs=args.epochs,
        patience=args.patience,
    )
    config = {name: getattr(args, name) for name in BINDING} | {"graph": fingerprint(data)}
    parts = data.name, args.model if args.model != "gat" else None, args.score, args.normalizer
    name = "-".join(part for part in parts if part)
    task = Task(args, data, settings, config, Path(args.out or Path("runs", name)))
    prepare_folder(task.folder)
    if args.resume:
        task.progress = resume(task)
    elif task.checkpoint.exists() and not args.restart:
        raise UserError(
            f"{task.folder} holds an unfinished training: go on with --resume, give it up with"
            " --restart, or choose another --out"
        )
    return task


def edge_width(data: Data) -> int | None:
    """Numbers per edge, None if edges carry none."""
    return data.edge_attr.size(1) if "edge_attr" in data else None


def resume(task: Task) -> Progress:
    """Reads what an interrupted training of the same task has reached."""
    state = load_checkpoint(task.checkpoint)
    before = state.pop("config", {})
    changed = [
        f"--{name.replace('_', '-')} was {before.get(name)}, is now {value}"
        for name, value in task.config.items()
        if name != "graph" and before.get(name) != value
    ]
    if not changed and before.get("graph") != task.config["graph"]:
        changed = ["the graph has changed"]
    if changed:
        raise UserError(
            f"cannot resume from {task.checkpoint}, made with other settings: {'; '.join(changed)}."
            " Use those, or start over with --restart"
        )
    try:
        return Progress(**state)
    except TypeError as error:
        raise UserError(f"{task.checkpoint} is damaged; start over with --restart") from error


def train_runs(task: Task) -> None:
    """Trains from each seed that has no result yet, saving every now and then."""
    args, progress = task.args, task.progress
    data = task.data.clone().to(args.device)
    for nth, seed in enumerate(range(args.seed, args.seed + args.runs), start=1):
        name = f"run {nth}/{args.runs} (seed {seed})"
        if progress.has(seed):
            print(f"{name}: done before the interruption")
            continue
        run = Run(data, task.settings, seed, progress.run)
        with progress_bar(name, run) as bar:
            while not run.done:
                progress.step(run)
                if run.epoch % args.checkpoint_every == 0:
                    task.save()
                bar.set_postfix_str(latest(run), refresh=False)
                bar.update()
        result = progress.finish(run)
        task.save()
        print(
            f"{name}: {result['epochs']} epochs in {result['seconds']:.1f} s; best epoch"
            f" {result['best_epoch']}: validation {score_name(data)}"
            f" {result['val_accuracy']:.1%},"
            f" test {result['test_accuracy']:.1%}"
        )


def progress_bar(name: str, run: Run) -> tqdm:
    """A bar over the epochs of `run`: on a terminal it moves and goes, in a log it stays."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=name,
        total=run.settings.epochs,
        initial=run.epoch,
        leave=not terminal,
        mininterval=0.1 if terminal else 10,
    )


def latest(run: Run) -> str:
    """Losses and accuracies of the last epoch, for the progress bar."""
    now = {measure: values[-1] for measure, values in run.history.items()}
    return (
        f"loss {now['train_loss']:.3f}, {score_name(run.data)} {now['train_accuracy']:.1%};"
        f" validation {now['val_loss']:.3f}, {now['val_accuracy']:.1%}"
    )


def how_far(task: Task) -> str:
    """Says how far the training has come."""
    done = f"after {len(task.progress.results)} of {task.args.runs} runs"
    unfinished = task.progress.unfinished
    return done if unfinished is None else f"{done} and {unfinished['epoch']} epochs of the next"


def write_results(task: Task) -> None:
    """Writes the best model so far (model.safetensors, config.json) and metrics.json."""
    data, best, partial = task.data, task.progress.best, None
    if (state := task.progress.unfinished) is not None:
        run = Run(data, task.settings, state["seed"], state)
        partial = run.result()
        best = task.progress.better(run, partial)
    assert best is not None
    metrics = {
        "complete": len(task.progress.results) >= task.args.runs,
        "graph": {
            "name": data.name,
            "nodes": data.num_nodes,
            "edges": data.num_edges,
            "features": data.num_features,
            "classes": len(data.class_names),
            **{split: int(data[f"{split}_mask"].sum()) for split in ("train", "val", "test")},
        },
        "config": task.config,
        "score": score_name(data),
        "runs": [without_history(result) for result in task.progress.results],
        "unfinished_run": partial and without_history(partial),
        "best_seed": best["seed"],
        "summary": {
            measure: mean_and_deviation([result[measure] for result in task.progress.results])
            for measure in ("val_accuracy", "test_accuracy")
        },
        "baselines": [rival._asdict() for rival in task.rivals],
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "torch_geometric", "numpy", "scikit-learn")},
    }
    # Without features of their own, nodes are known by their place; the model fits these only.
    own_nodes = data.node_ids if task.args.edges and not task.args.features else None
    model = {
        "kind": task.settings.kind,
        "model": build(task.settings.kind, task.settings.model).config,
        "class_names": data.class_names,
        "multi_label": is_multi_label(data),
        "node_ids": own_nodes,
    }
    save_model(task.folder, best["weights"], model)
    write_json(task.folder / "metrics.json", metrics)


def without_history(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "history"}


def table(task: Task) -> str:
    """Accuracies of the model and of its rivals, aligned."""
    results = task.progress.results

    def percent(measure: str) -> str:
        found = mean_and_deviation([100 * result[measure] for result in results])
        deviation = "" if found["std"] is None else f" ± {found['std']:.1f}"
        return f"{found['mean']:.1f}{deviation}"

    rows = [(f"{score_name(task.data)} in %", "setting", "validation", "test")]
    rows += [
        (name, setting, f"{100 * val:.1f}", f"{100 * test:.1f}")
        for name, setting, val, test in task.rivals
    ]
    rows += [
        (name_of(task.args), f"{len(results)} run{'s' * (len(results) > 1)}",
         percent("val_accuracy"), percent("test_accuracy"))
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    if len(results) > 1:
        lines.append(
            "±: standard deviation over initialisations; the split is the same in all runs"
        )
    return "\n".join(lines)


def draw(task: Task) -> None:
    """Writes the pictures of the best run."""
    best = task.progress.best
    assert best is not None
    model = build(task.settings.kind, task.settings.model)
    model.load_state_dict(best["weights"])
    save_pictures(task.folder, model, task.data, task.progress.results, best["seed"], task.rivals)


def predict(args: argparse.Namespace) -> int:
    """Writes the class of each node and its probability, or its labels, to a csv file."""
    check_device(args.device)
    output = Path(args.output)
    if not output.name:
        raise UserError(
            f"--output {args.output!r} names no file; write one such as predictions.csv"
        )
    prepare_folder(output.parent)
    model, config = load_model(Path(args.model))
    data = load_graph(args)
    width = model.config["in_channels"]
    if data.num_features != width:
        raise UserError(
            f"the graph has {data.num_features} features per node, but the model in {args.model}"
            f" was trained on {width}; give it a graph with the same features"
        )
    if edge_width(data) != (edge_dim := model.config.get("edge_dim")):
        raise UserError(
            f"the graph has {edge_width(data) or 0} numbers per edge, but the model in {args.model}"
            f" was trained on {edge_dim or 0}; give --edges the same columns"
        )
    nodes = data.get("node_ids") or [str(node) for node in range(data.num_nodes)]
    if config["node_ids"] not in (None, nodes):
        raise UserError(
            f"the model in {args.model} was trained without --features, so it knows only the nodes"
            " of that graph, in that order; pass the same --edges and --labels"
        )
    data, model = data.to(args.device), model.to(args.device)
    with torch.no_grad():
        logits = model(data.x, data.edge_index, edge_attr=data.get("edge_attr"))
    write_csv(output, predictions(logits, nodes, config))
    print(f"predictions for {data.num_nodes:,} nodes are in {output}")
    return 0


def predictions(
    logits: torch.Tensor, nodes: Sequence[str], config: dict[str, Any]
) -> list[tuple[str, ...]]:
    """A table with the class of each node and its probability, or the labels that it has."""
    classes = config["class_names"]
    if config["multi_label"]:
        found = ([classes[c] for c in row.nonzero().flatten()] for row in logits.cpu() > 0)
        labelled = [(node, " ".join(names)) for node, names in zip(nodes, found, strict=True)]
        return [("node", "prediction"), *labelled]
    probability, chosen = logits.softmax(dim=1).max(dim=1)
    likely = zip(nodes, chosen.tolist(), probability.tolist(), strict=True)
    return [
        ("node", "prediction", "probability"),
        *((node, classes[c], f"{p:.6f}") for node, c, p in likely),
    ]


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)

    write_atomically(path, write)


def training_parser() -> argparse.ArgumentParser:
    """The options of a training."""
    parser = Parser(
        prog=PROGRAM,
        description="Train a graph attention network to classify the nodes of a graph.",
        epilog=f"'{PROGRAM} predict --help': apply a model that was trained.",
        allow_abbrev=False,
    )
    add_graph_options(parser)
    count, factor, share = number(int, 1), number(float, 0), number(float, 0, below=1)
    group = parser.add_argument_group("model (defaults: the paper's; --dataset digits has its own)")
    group.add_argument("--model", choices=CHOICES, default="gat", help="default: gat")
    group.add_argument("--score", choices=SCORES, help="instead of the model's own")
    group.add_argument("--normalizer", choices=NORMALIZERS, help="instead of softmax")
    group.add_argument("--layers", type=count)
    group.add_argument("--hidden", type=count, help="channels per head of the hidden layers")
    group.add_argument("--heads", type=count, help="of the hidden layers")
    group.add_argument("--out-heads", type=count, help="of the last layer, averaged")
    group.add_argument("--dropout", type=share, help="of layer inputs and attention weights")
    group.add_argument(
        "--value-dropout", type=share, help="of what nodes hand on, as in the code of GAT's authors"
    )
    group.add_argument("--residual", action="store_true", default=None, help="add skip connections")
    group.add_argument("--norm", action="store_true", default=None, help="add layer normalisation")
    group.add_argument(
        "--feed-forward", type=number(int, 0), metavar="K",
        help="add feed-forward networks with K times the width; 0: none",
    )  # fmt: skip
    group.add_argument(
        "--jumping", choices=("cat", "max", "lstm"), help="let the output see all layers"
    )

    group = parser.add_argument_group("training (defaults: as above)")
    group.add_argument("--lr", type=number(float, 0, below=1000), help="learning rate of Adam")
    group.add_argument("--weight-decay", type=factor)
    group.add_argument("--epochs", type=count, help="at most")
    group.add_argument("--patience", type=count, help="epochs without a new best before stopping")
    group.add_argument("--runs", type=count, default=3, help="how many, each from another seed")
    group.add_argument("--seed", type=SEED, default=0, help="of the first run")
    group.add_argument("--device", default="cpu", help="as torch names it; default: cpu")

    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", metavar="DIR", help="results already there are replaced; default: runs/<graph>"
    )
    group.add_argument("--checkpoint-every", type=count, default=100, metavar="EPOCHS")
    group = group.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on with the training in --out")
    group.add_argument("--restart", action="store_true", help="give up the one in --out, if any")
    return parser


def prediction_parser() -> argparse.ArgumentParser:
    """The options of a prediction."""
    parser = Parser(
        prog=f"{PROGRAM} predict",
        description="Write a csv (node, prediction, probability) for a graph.",
        allow_abbrev=False,
    )
    add_graph_options(parser)
    group = parser.add_argument_group("prediction")
    group.add_argument("--model", required=True, metavar="DIR", help="the --out of a training")
    group.add_argument("--output", required=True, metavar="CSV", help="where to write")
    group.add_argument("--device", default="cpu", help="as torch names it; default: cpu")
    return parser


if __name__ == "__main__":
    sys.exit(main())
