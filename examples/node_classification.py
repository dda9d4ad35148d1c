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

from examples.commands.node_classification import NAMES, PROGRAM, parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import math
import shlex
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch_geometric.data import Batch, Data

from examples._baselines import Baseline, baselines
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
    save_checkpoint,
    save_model,
    saved_model,
    write_csv,
    write_json,
)
from examples.shared.graphs import (
    check_splits,
    describe,
    doubts,
    fingerprint,
    graphs_of,
    is_multi_label,
    load_graph,
    score_name,
    split_views,
    standardise,
)
from examples.shared.options import fill_in
from examples.shared.processes import goes_on, joined, world_size
from examples.shared.program import SIGNALS, check_device, exit_status, progress_bar, versions
from examples.shared.tables import aligned, percent, summary
from examples.shared.trainer import WEIGHTS, Trainer, load_weights, own_weights, seed_everything
from examples.shared.ways import way_of
from gat import AGNN, GAT, GATv2, GraphAttention, GraphTransformer

Model = GAT | GATv2 | GraphTransformer | GraphAttention | AGNN
MODELS: dict[str, type[Model]] = {
    "gat": GAT, "gatv2": GATv2, "transformer": GraphTransformer, "agnn": AGNN,
    "attention": GraphAttention,
}  # fmt: skip
# Options that a model of another kind has no use for.
ATTENTION = ("heads", "out_heads", "value_dropout", "residual", "norm", "feed_forward", "jumping")
PARTS = ("score", "normalizer")
# A model as a GraphAttention, in which its score and its normaliser can be replaced.
AS_ATTENTION: dict[str, dict[str, Any]] = {
    "gat": {"score": "separable", "share_weights": True, "value_projection": False},
    "gatv2": {"score": "additive", "activation": "leaky_relu", "value_projection": False},
    "transformer": {"score": "scaled_dot", "add_self_loops": False},
}


def kind_of(args: argparse.Namespace) -> str:
    """The model that the options name: one with another score or normaliser is an "attention"."""
    return "attention" if args.score or args.normalizer else str(args.model)


def name_of(args: argparse.Namespace) -> str:
    """What to call it in a table."""
    changed = [part for part in (args.score, args.normalizer) if part]
    return NAMES[args.model] + (f" with {', '.join(changed)}" if changed else "")


def build(kind: str, arguments: dict[str, Any]) -> Model:
    """A model of that kind, from its arguments.

    >>> build("agnn", {"in_channels": 4, "hidden_channels": 8, "num_layers": 2}).config["dropout"]
    0.0
    """
    return MODELS[kind](**arguments)


def arguments_of(
    args: argparse.Namespace, in_channels: int, out_channels: int, edge_dim: int | None
) -> dict[str, Any]:
    """The arguments of the model that the options name.

    Raises:
        UserError: edges have features, and the model has no use for them.
    """
    arguments: dict[str, Any] = {
        "in_channels": in_channels,
        "hidden_channels": args.hidden,
        "num_layers": args.layers,
        "out_channels": out_channels,
        "dropout": args.dropout,
    }
    if args.model != "agnn":
        node_norm = {"norm": "layer_norm", "norm_kwargs": {"mode": "node"}}
        residual = "root_weight" if kind_of(args) == "transformer" else "residual"
        arguments |= {
            "hidden_channels": args.hidden * args.heads,
            "act": "elu",
            **(node_norm if args.norm else {"norm": None}),
            "jk": args.jumping,
            "input_dropout": args.dropout,
            residual: args.residual,
        }
        arguments |= {name: getattr(args, name) for name in ("heads", "out_heads", "value_dropout")}
        arguments["feed_forward"] = args.feed_forward
    if kind_of(args) == "attention":
        arguments |= AS_ATTENTION[args.model]
        arguments |= {part: getattr(args, part) for part in PARTS if getattr(args, part)}
        if arguments["score"] not in ("additive", "concat", "separable"):
            arguments.pop("activation", None)
    if args.model != "agnn":
        return arguments | {"edge_dim": edge_dim}
    if edge_dim is not None:
        raise UserError(
            f"the edges have {edge_dim} numbers each, of which --model agnn makes no use: choose"
            " another model, or leave out these columns"
        )
    return arguments


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError if an option is given that the model does not have."""
    if args.model == "agnn":
        for option in (*ATTENTION, *PARTS):
            if getattr(args, option) is not None:
                raise UserError(
                    f"--{option.replace('_', '-')} has no meaning for --model agnn; leave it out"
                )


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
    "sampled",
    "batch_size",
    *PAPER,
    "seed",
    "device",
)
HISTORY = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
TOO_FAST = "lower --lr, or bring the features to a common scale"
# What `Run.result` returns
RESULT = {
    "seed": int, "epochs": int, "best_epoch": int, "stopped_early": bool, "seconds": float,
    "history": {str: [float]},
    **dict.fromkeys((*HISTORY, "test_loss", "test_accuracy"), float),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Args:
        model: the arguments of the model.
        lr: learning rate of Adam.
        weight_decay: factor of the squared norm of all parameters in the loss.
        epochs: the most epochs to train for.
        patience: stop after this many epochs without a new best on the validation nodes.
        kind: of the model, one of `MODELS`.
        batch_graphs: how many graphs a step looks at, where there are several.
        sampled: how many neighbours are drawn for each layer, the last one first. Default: a step
            looks at the whole graph.
        batch_size: how many training nodes a step looks at then.
    """

    model: dict[str, Any]
    lr: float
    weight_decay: float
    epochs: int
    patience: int
    kind: str = "gat"
    batch_graphs: int = 2
    sampled: Sequence[int] = ()
    batch_size: int = 512


@torch.no_grad()
def evaluate(
    model: Model, data: Data | Mapping[str, Data], splits: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """Mean cross-entropy and accuracy on the nodes of each split ("train", "val", "test").

    With several labels per node, micro-F1 stands in for accuracy. `data` is a graph, or what
    `split_views` makes of it.
    """
    model.eval()
    views = data if isinstance(data, Mapping) else split_views(data)
    scores = {}
    seen = logits = None
    for split in splits:
        view, mask = views[split], views[split][f"{split}_mask"]
        if logits is None or view is not seen:
            logits, seen = model(view.x, view.edge_index, edge_attr=view.get("edge_attr")), view
        scores[split] = score(logits[mask], view.y[mask])
    return scores


def score(logits: Tensor, y: Tensor) -> tuple[float, float]:
    """Mean cross-entropy, and accuracy or micro-F1."""
    if y.dim() == 2:
        found = (logits > 0).cpu().numpy()
        f1 = f1_score(y.cpu().numpy(), found, average="micro", zero_division=0)
        return loss_of(logits, y).item(), float(f1)
    right = logits.argmax(dim=1) == y
    return loss_of(logits, y).item(), right.double().mean().item()


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of one label per node, or of each of several that may be true."""
    return losses_of(logits, y).mean()


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """What `loss_of` takes the mean of."""
    if y.dim() == 2:
        return binary_cross_entropy_with_logits(logits, y, reduction="none")
    return cross_entropy(logits, y, reduction="none")


class Run(Trainer):
    """One training from one seed, epoch by epoch.

    Early stopping is that of the authors of GAT: patience starts anew whenever the validation loss
    or the validation accuracy is at least as good as ever before. The weights that are kept are
    those of the lowest validation loss; the authors' code also asks for the highest accuracy, which
    on a few hundred validation nodes is mostly chance, and comes too early on Pubmed.

    Args:
        data: the graph, with `x`, `edge_index`, `y` and the masks, on the device to train on.
        settings: what to train, and how.
        seed: of the initial weights and of dropout.
        state: what `state()` gave of a run from this seed, to go on from there.
    """

    KINDS: ClassVar[dict[str, Any]] = {
        **Trainer.KINDS, "seed": int, "lowest_loss": float, "highest_accuracy": float,
    }  # fmt: skip

    def __init__(
        self, data: Data, settings: Settings, seed: int, state: dict[str, Any] | None = None
    ) -> None:
        seed_everything(seed)
        self.data, self.settings, self.seed = data, settings, seed
        self.views = split_views(data)
        self.graphs = graphs_of(self.views["train"])
        model = build(settings.kind, settings.model).to(data.x.device)
        self.way = way_of(data, model, settings.sampled, settings.batch_size)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        super().__init__(
            model, optimizer, self._batches, self._loss, epochs=settings.epochs,
            patience=settings.patience, mend=TOO_FAST,
        )  # fmt: skip
        self.lowest_loss, self.highest_accuracy = math.inf, 0.0
        if state is not None and state["seed"] == seed:
            self.load(state)

    @property
    def history(self) -> dict[str, list[float]]:
        """Losses and accuracies of all epochs so far."""
        return {name: [epoch[name] for epoch in self.scores] for name in HISTORY}

    def step(self) -> None:
        """Trains for one epoch, then validates."""
        self.train_epoch()
        started = time.perf_counter()
        scores = flat(evaluate(self._judged(self.model), self.views, ("train", "val")))
        with SIGNALS.held():
            self.seconds += time.perf_counter() - started
            self.end_epoch(scores)
            self._stop_early(scores["val_loss"], scores["val_accuracy"])

    def _batches(self, epoch: int = 0) -> list[Data]:
        """What the steps of an epoch look at: the graph, or a few of the training graphs each."""
        if self.way is not None:
            return list(self.way.batches(epoch))
        if len(self.graphs) == 1:
            return self.graphs
        order = torch.randperm(len(self.graphs)).split(self.settings.batch_graphs)
        return [Batch.from_data_list([self.graphs[i] for i in places]) for places in order]

    def _loss(self, data: Data) -> tuple[Tensor, int]:
        if self.way is not None:
            return self.way.loss(data, losses_of), 1
        logits = self.model(data.x, data.edge_index, edge_attr=data.get("edge_attr"))
        return loss_of(logits[data.train_mask], data.y[data.train_mask]), 1

    def _judged(self, model: Any) -> Any:
        return model if self.way is None else self.way.judge(model)

    def _stop_early(self, loss: float, accuracy: float) -> None:
        if not math.isfinite(loss):
            raise UserError(f"the loss became {loss} in epoch {self.epoch}: {TOO_FAST}")
        low, high = loss <= self.lowest_loss, accuracy >= self.highest_accuracy
        self.waited = 0 if low or high else self.waited + 1
        if low:
            self.best = {"epoch": self.epoch, "weights": own_weights(self.model)}
        self.lowest_loss = min(self.lowest_loss, loss)
        self.highest_accuracy = max(self.highest_accuracy, accuracy)

    def result(self) -> dict[str, Any]:
        """The scores of the weights that were kept; the first look at the test nodes."""
        return {
            "seed": self.seed,
            "epochs": self.epoch,
            "best_epoch": self.best["epoch"],
            **flat(evaluate(self._judged(self.best_model()), self.views, ("train", "val", "test"))),
            "stopped_early": self.done and self.epoch < self.epochs,
            "seconds": self.seconds,
            "history": self.history,
        }


def flat(scores: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Scores by names such as val_loss and val_accuracy."""
    pairs = zip(("loss", "accuracy"), zip(*scores.values(), strict=True), strict=True)
    return {f"{s}_{name}": v for name, of in pairs for s, v in zip(scores, of, strict=True)}


@dataclass
class Progress:
    """What the runs so far have reached, and all that it takes to go on from there.

    It is consistent at every moment: saved wherever an exception strikes, be it in the middle of
    an epoch, it leads to the same results when training goes on from it.

    Args:
        results: of the runs that are done.
        best: the best of these by validation accuracy, then by loss, with its "weights".
        run: the state of the run that is under way, after its last full epoch.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    run: dict[str, Any] | None = None

    @property
    def unfinished(self) -> dict[str, Any] | None:
        """The state of the run that is under way, unless it is done."""
        return None if self.run is None or self.has(self.run["seed"]) else self.run

    def has(self, seed: int) -> bool:
        """Whether the run from this seed is done."""
        return any(result["seed"] == seed for result in self.results)

    def step(self, run: Run) -> None:
        """Trains `run` for an epoch."""
        run.step()
        self.run = run.state()

    def finish(self, run: Run) -> dict[str, Any]:
        """Counts `run` as done and returns its result."""
        result = run.result()
        self.best = self.better(run, result)
        self.results.append(result)
        return result

    def better(self, run: Run, result: dict[str, Any]) -> dict[str, Any]:
        """The better of the best so far and `run`."""
        if self.best is not None and _merit(self.best) >= _merit(result):
            return self.best
        return {**result, "weights": run.best["weights"]}


def _merit(result: dict[str, Any]) -> tuple[float, float]:
    return result["val_accuracy"], -result["val_loss"]


@dataclass
class Task:
    """One training: what is learned, from what, how far it has come, and where it is kept."""

    args: argparse.Namespace
    data: Data
    settings: Settings
    config: dict[str, Any]  # names the settings that a checkpoint is bound to
    folder: Path
    scale: dict[str, list[float]] | None = None  # of --standardise
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
        task.rivals = baselines(task.data) if is_first_process() else []
        train_runs(task)
        write_results(task)
        print(f"\n{table(task)}\n")
        if is_first_process():
            print(f"{of_classes(task)}\n")
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
    for doubt in doubts(data):
        print(f"note: {doubt}", file=sys.stderr)
    scale = standardise(data) if args.standardise else None
    check_options(args)
    fill_in(args, "", {"": DEFAULTS[args.dataset] | OF_MODEL[args.model]})
    settings = Settings(
        model=arguments_of(args, data.num_features, len(data.class_names), edge_width(data)),
        kind=kind_of(args),
        lr=args.lr,
        weight_decay=args.weight_decay,
        epochs=args.epochs,
        patience=args.patience,
        sampled=args.sampled or (),
        batch_size=args.batch_size,
    )
    config = {name: getattr(args, name) for name in BINDING} | {"graph": fingerprint(data)}
    parts = data.name, args.model if args.model != "gat" else None, args.score, args.normalizer
    name = "-".join(part for part in parts if part)
    if scale is not None:
        config["standardise"] = True
    task = Task(args, data, settings, config, Path(args.out or Path("runs", name)), scale)
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
            f" {result['val_accuracy']:.1%},"
            f" test {result['test_accuracy']:.1%}"
        )


def latest(run: Run) -> str:
    """Losses and accuracies of the last epoch, for the progress bar."""
    now = run.scores[-1]
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
    }
    if task.progress.best is not None and not is_multi_label(data):
        metrics["test_of_best_run"] = judged_on_test(task)
    save_model(task.folder, best["weights"], model)
    write_json(task.folder / "metrics.json", metrics)


def without_history(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "history"}


def table(task: Task) -> str:
    """Accuracies of the model and of its rivals, aligned."""
    results = task.progress.results
    rows = [[f"{score_name(task.data)} in %", "setting", "validation", "test"]]
    rows += [[r.name, r.setting, percent([r.val_accuracy]), percent([r.test_accuracy])]
             for r in task.rivals]  # fmt: skip
    scores = [percent([r[f"{split}_accuracy"] for r in results]) for split in ("val", "test")]
    rows += [[name_of(task.args), f"{len(results)} run{'s' * (len(results) > 1)}", *scores]]
    text = aligned(rows, str.ljust)
    if len(results) > 1:
        text += "\n±: standard deviation over initialisations; the split is the same in all runs"
    return text


def best_model(task: Task) -> Model:
    """The model of the best run, ready to predict."""
    best = task.progress.best
    assert best is not None
    model = build(task.settings.kind, task.settings.model)
    load_weights(model, best["weights"])
    return model.eval()


@torch.no_grad()
def judged_on_test(task: Task) -> dict[str, Any]:
    """What accuracy does not tell of the test nodes: macro-F1, ROC AUC, the confusion of classes.

    The ROC AUC is that of each class against all others, the mean over those that the test nodes
    have; None if they have one alone.
    """
    data = task.data
    logits = best_model(task)(data.x, data.edge_index, edge_attr=data.get("edge_attr"))
    logits, y = logits[data.test_mask].double(), data.y[data.test_mask].numpy()
    found, share = logits.argmax(dim=1).numpy(), logits.softmax(dim=1).numpy()
    there = [c for c in range(len(data.class_names)) if 0 < (y == c).sum() < len(y)]
    areas = [roc_auc_score(y == c, share[:, c]) for c in there]
    confusion = confusion_matrix(y, found, labels=range(len(data.class_names)))
    return {
        "macro_f1": float(f1_score(y, found, average="macro", zero_division=0)),
        "roc_auc": sum(map(float, areas)) / len(areas) if areas else None,
        "confusion": confusion.tolist(),
    }


def of_classes(task: Task) -> str:
    """The best run on the test nodes class by class, and a warning if it tells none apart."""
    data = task.data
    if is_multi_label(data):
        return ""
    test, names = judged_on_test(task), data.class_names
    auc = "" if test["roc_auc"] is None else f", ROC AUC {100 * test['roc_auc']:.1f}"
    lines = [f"best run, test nodes: macro-F1 {100 * test['macro_f1']:.1f}{auc}"]
    if len(names) <= 12:
        rows = [["class ↓  said →", *names]]
        rows += [[n, *map(str, row)] for n, row in zip(names, test["confusion"], strict=True)]
        lines.append(aligned(rows))
    results = task.progress.results
    reached = max((result["test_accuracy"] for result in results), default=1.0)
    usual = next(r.test_accuracy for r in task.rivals if r.name == "majority class")
    if reached <= usual:
        lines.append(
            f"note: nothing beats the majority class ({100 * usual:.1f} %): look at the ROC AUC"
            " above, where 50 is chance; try other features, --layers, --lr or --model"
        )
    return "\n".join(lines)


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


def predictions(
    logits: torch.Tensor, nodes: Sequence[str], config: dict[str, Any]
) -> list[tuple[str, ...]]:
    """A table: each node's class, its probability and those of all classes; or its labels."""
    classes = config["class_names"]
    if config["multi_label"]:
        found = ([classes[c] for c in row.nonzero().flatten()] for row in logits.cpu() > 0)
        labelled = [(node, " ".join(names)) for node, names in zip(nodes, found, strict=True)]
        return [("node", "prediction"), *labelled]
    shares = logits.softmax(dim=1)
    likely = zip(nodes, shares.argmax(dim=1).tolist(), shares.tolist(), strict=True)
    return [
        ("node", "prediction", "probability", *(f"p({name})" for name in classes)),
        *(
            (node, classes[c], f"{row[c]:.6f}", *(f"{share:.6f}" for share in row))
            for node, c, row in likely
        ),
    ]


def load_model(folder: Path) -> tuple[Model, dict[str, Any]]:
    """Rebuilds the model that `save_model` wrote, ready to predict, and returns its config too.

    Raises:
        UserError: a file is missing or damaged, or weights and config do not belong together.
    """
    with saved_model(folder) as (config, weights):
        model = build(config["kind"], config["model"])
        check_kind(config["class_names"], [str], "class_names")
        check_kind(config["node_ids"], (type(None), [str]), "node_ids")
        check_kind(config["scale"], (type(None), {str: [float]}), "scale")
        check_kind(config["multi_label"], bool, "multi_label")
        if len(config["class_names"]) != model.config["out_channels"]:
            raise ValueError("class_names do not match the model")
        load_weights(model, weights)
    return model.eval(), config


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
