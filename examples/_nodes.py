"""Learning the labels of nodes: models from plain settings, and how one is trained and judged."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch_geometric.data import Batch, Data

from examples._baselines import Baseline, r_squared
from examples.commands.node_classification import NAMES
from examples.shared.files import UserError, check_kind, save_checkpoint, saved_model
from examples.shared.graphs import graphs_of, split_views
from examples.shared.program import SIGNALS
from examples.shared.trainer import Trainer, load_weights, own_weights, seed_everything
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
# What quantities differ in: dropout makes a sum of many a random number, so that little of them is
# learned. (A drawn graph of 120 nodes: R² 0.1 with the paper's dropout, 0.85 with none.)
QUANTITIES: dict[str, Any] = {"dropout": 0.0, "residual": True}
# What other models differ in: AGNN's from its paper (Thekumparampil et al., 2018), as for Cora.
OF_MODEL: dict[str, dict[str, Any]] = {
    "gat": {},
    "gatv2": {},
    "transformer": {"residual": True},
    "agnn": {"hidden": 16, "dropout": 0.5, "lr": 0.01, "weight_decay": 5e-4},
}
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

    With several labels per node, micro-F1 stands in for accuracy; where labels are quantities, it
    is the mean squared error and R². `data` is a graph, or what `split_views` makes of it.
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
    """Mean cross-entropy, and accuracy or micro-F1; of quantities the squared error, and R²."""
    if y.dim() == 1 and y.is_floating_point():
        found = logits.squeeze(1).cpu().numpy()
        return loss_of(logits, y).item(), r_squared(found, y.cpu().numpy())
    if y.dim() == 2:
        found = (logits > 0).cpu().numpy()
        f1 = f1_score(y.cpu().numpy(), found, average="micro", zero_division=0)
        return loss_of(logits, y).item(), float(f1)
    right = logits.argmax(dim=1) == y
    return loss_of(logits, y).item(), right.double().mean().item()


def loss_of(logits: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy of one label per node, or of each of several that may be true.

    Of quantities it is the mean squared error.
    """
    return losses_of(logits, y).mean()


def losses_of(logits: Tensor, y: Tensor) -> Tensor:
    """What `loss_of` takes the mean of."""
    if y.dim() == 2:
        return binary_cross_entropy_with_logits(logits, y, reduction="none")
    if y.is_floating_point():
        return (logits.squeeze(1) - y).square()
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
    label_scale: list[float] | None = None  # of quantities: their mean, their deviation
    progress: Progress = field(default_factory=Progress)
    rivals: list[Baseline] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def save(self) -> None:
        """Writes all that it takes to go on from here."""
        save_checkpoint(self.checkpoint, {"config": self.config, **vars(self.progress)})


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
        check_kind(config["label_scale"], (type(None), [float]), "label_scale")
        outputs = 1 if config["label_scale"] is not None else len(config["class_names"])
        if outputs != model.config["out_channels"]:
            raise ValueError("class_names do not match the model")
        load_weights(model, weights)
    return model.eval(), config
