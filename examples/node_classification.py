"""Trains a graph attention network to classify the nodes of a graph, and applies it.

    python -m examples.node_classification                        # handwritten digits, offline
    python -m examples.node_classification --dataset cora --runs 10
    python -m examples.node_classification --dataset cora --model gatv2
    python -m examples.node_classification --dataset ppi          # graphs never trained on
    python -m examples.node_classification --edges edges.csv --features x.csv --labels labels.csv
    python -m examples.node_classification --dataset pubmed --sampled 15 10  # in mini-batches
    torchrun --nproc-per-node 2 -m examples.node_classification   # the graph in two parts
    python -m examples.node_classification predict --model runs/digits --output predictions.csv

Training writes the best model, its scores beside simple baselines, and pictures to --out. Ctrl-C
keeps what there is; the same command with --resume goes on to the same final numbers.
"""

from __future__ import annotations

from examples.commands.node_classification import PROGRAM, parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Data

from examples._baselines import baselines
from examples._node_outcomes import best_model, further, judged_on_test, predictions, table
from examples._nodes import (
    DEFAULTS,
    OF_MODEL,
    PAPER,
    QUANTITIES,
    RESULT,
    Progress,
    Run,
    Settings,
    Task,
    arguments_of,
    build,
    check_options,
    kind_of,
    load_model,
)
from examples._pictures import save_pictures
from examples.shared.files import (
    UserError,
    check_kind,
    check_settings,
    damage_told,
    is_first_process,
    load_checkpoint,
    prepare_folder,
    remove,
    save_model,
    write_csv,
    write_json,
)
from examples.shared.graphs import (
    check_splits,
    describe,
    doubts,
    fingerprint,
    is_multi_label,
    is_regression,
    load_graph,
    score_name,
    score_text,
    standardise,
    standardise_labels,
)
from examples.shared.options import fill_in
from examples.shared.processes import goes_on, joined, world_size
from examples.shared.program import check_device, exit_status, progress_bar, versions
from examples.shared.tables import summary
from examples.shared.trainer import WEIGHTS, load_weights

# What must not change between a training and its resumption, besides the graph itself.
BINDING = (
    "dataset",
    "task",
    "model",
    "neighbours",
    "labels_per_class",
    "split_seed",
    "sampled",
    "batch_size",
    *PAPER,
    "seed",
    "device",
)


def train(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Trains as the options say; writes the model, its metrics and pictures to --out."""
    task = prepare(args)
    try:
        task.rivals = baselines(task.data) if is_first_process() else []
        train_runs(task)
        write_results(task)
        print(f"\n{table(task)}\n")
        if is_first_process():
            print(f"{further(task)}\n")
            draw(task)
    except KeyboardInterrupt:
        if not task.progress.results and task.progress.run is None:
            raise  # there is nothing to keep
        task.save()
        if world_size() == 1:  # the others may have been interrupted elsewhere
            write_results(task)
        again = [word for word in words if word not in ("--resume", "--restart")]
        print(
            f"\ninterrupted {how_far(task)}; the best model so far, its metrics and a checkpoint"
            f" are in {task.folder}\ngo on with: {PROGRAM} {shlex.join([*again, '--resume'])}",
            file=sys.stderr,
        )
        return 130
    remove(task.checkpoint)
    print(f"model, metrics and pictures are in {task.folder}")
    return 0


def prepare(args: argparse.Namespace) -> Task:
    """Checks all that can be checked before the work begins."""
    if args.edges is not None and args.labels is None:
        raise UserError("--edges needs --labels: without labels there is nothing to learn")
    check_device(args.device)
    data = load_graph(args)
    check_splits(data)
    if args.task is None and is_regression(data):
        print(
            "note: the labels are numbers of which many differ: they are learned as quantities;"
            " --task classification makes a class of each",
            file=sys.stderr,
        )
    args.task = "regression" if is_regression(data) else "classification"
    for doubt in doubts(data):
        print(f"note: {doubt}", file=sys.stderr)
    print(describe(data))
    graph = fingerprint(data)
    label_scale = standardise_labels(data) if is_regression(data) else None
    data.label_scale = label_scale
    scale = standardise(data) if args.standardise else None
    check_options(args)
    defaults = DEFAULTS[args.dataset] | OF_MODEL[args.model]
    fill_in(args, "", {"": defaults | (QUANTITIES if is_regression(data) else {})})
    settings = Settings(
        model=arguments_of(args, data.num_features, len(data.class_names) or 1, edge_width(data)),
        kind=kind_of(args),
        lr=args.lr,
        weight_decay=args.weight_decay,
        epochs=args.epochs,
        patience=args.patience,
        sampled=args.sampled or (),
        batch_size=args.batch_size,
    )
    config = {name: getattr(args, name) for name in BINDING} | {"graph": graph}
    parts = data.name, args.model if args.model != "gat" else None, args.score, args.normalizer
    name = "-".join(part for part in parts if part)
    if scale is not None:
        config["standardise"] = True
    folder = Path(args.out or Path("runs", name))
    task = Task(args, data, settings, config, folder, scale, label_scale)
    prepare_folder(task.folder)
    if goes_on(args, task.checkpoint):
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
    path, best = task.checkpoint, {**RESULT, "weights": WEIGHTS}
    nothing = type(None)
    layout = {"config": dict, "results": [RESULT], "best": (nothing, best), "run": (nothing, dict)}
    state = load_checkpoint(path, layout)
    check_settings(path, state.pop("config"), task.config, graph="the graph has changed")
    with damage_told(path, "or of another program"):
        if state["best"] is not None:
            load_weights(build(task.settings.kind, task.settings.model), state["best"]["weights"])
        if state["run"] is not None:
            check_kind(state["run"]["seed"], int, "seed")
    return Progress(**state)


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
        with progress_bar(name, run.epochs, initial=run.epoch) as bar:
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
            f" {score_text(data, result['val_accuracy'])},"
            f" test {score_text(data, result['test_accuracy'])}"
        )


def latest(run: Run) -> str:
    """Losses and accuracies of the last epoch, for the progress bar."""
    now = run.scores[-1]
    return (
        f"loss {now['train_loss']:.3f}, {score_name(run.data)}"
        f" {score_text(run.data, now['train_accuracy'])};"
        f" validation {now['val_loss']:.3f}, {score_text(run.data, now['val_accuracy'])}"
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
            "classes": len(data.class_names) if task.label_scale is None else None,
            **{split: int(data[f"{split}_mask"].sum()) for split in ("train", "val", "test")},
        },
        "config": task.config,
        "score": score_name(data),
        "runs": [without_history(result) for result in task.progress.results],
        "unfinished_run": partial and without_history(partial),
        "best_seed": best["seed"],
        "summary": summary(task.progress.results, ("val_accuracy", "test_accuracy")),
        "baselines": [rival._asdict() for rival in task.rivals],
        "versions": versions("torch", "torch_geometric", "numpy", "scikit-learn"),
    }
    # Without features of their own, nodes are known by their place; the model fits these only.
    own_nodes = data.node_ids if task.args.edges and not task.args.features else None
    model = {
        "kind": task.settings.kind,
        "model": build(task.settings.kind, task.settings.model).config,
        "class_names": data.class_names,
        "multi_label": is_multi_label(data),
        "node_ids": own_nodes,
        "scale": task.scale,
        "label_scale": task.label_scale,
    }
    if task.progress.best is not None and not is_multi_label(data):
        metrics["test_of_best_run"] = judged_on_test(task)
    save_model(task.folder, best["weights"], model)
    write_json(task.folder / "metrics.json", metrics)


def without_history(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "history"}


def draw(task: Task) -> None:
    """Writes the pictures of the best run."""
    best, model = task.progress.best, best_model(task)
    assert best is not None
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
    if config["scale"] is not None:
        standardise(data, config["scale"])
    data, model = data.to(args.device), model.to(args.device)
    with torch.no_grad():
        logits = model(data.x, data.edge_index, edge_attr=data.get("edge_attr"))
    write_csv(output, predictions(logits, nodes, config))
    print(f"predictions for {data.num_nodes:,} nodes are in {output}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    warnings.filterwarnings("ignore", "Sparse (CSR|invariant)")  # torch: "in beta state"
    words = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        args = parser().parse_args(words)
        if args.command == "predict":
            return predict(args)
        with joined():
            return train(args, words)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
