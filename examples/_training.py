"""Training a model on graphs: epochs, early stopping, and states to go on from."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch_geometric.data import Batch, Data

from examples._files import UserError
from examples._graph_models import Model, build
from examples._graphs import graphs_of, split_views


@dataclass(frozen=True)
class Settings:
    """What is trained, and how.

    Args:
        model: the arguments of the model.
        lr: learning rate of Adam.
        weight_decay: factor of the squared norm of all parameters in the loss.
        epochs: the most epochs to train for.
        patience: stop after this many epochs without a new best on the validation nodes.
        kind: of the model, one of `examples._graph_models.MODELS`.
        batch_graphs: how many graphs a step looks at, where there are several.
    """

    model: dict[str, Any]
    lr: float
    weight_decay: float
    epochs: int
    patience: int
    kind: str = "gat"
    batch_graphs: int = 2


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
    if y.dim() == 2:
        return binary_cross_entropy_with_logits(logits, y)
    return cross_entropy(logits, y)


class Run:
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

    def __init__(
        self,
        data: Data,
        settings: Settings,
        seed: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.data, self.settings, self.seed = data, settings, seed
        self.views = split_views(data)
        self.graphs = graphs_of(self.views["train"])
        self.model = build(settings.kind, settings.model).to(data.x.device)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        self.epoch = self.waited = 0
        self.seconds = 0.0
        self.lowest_loss, self.highest_accuracy = math.inf, 0.0
        self.best: dict[str, Any] = {}
        self.history: dict[str, list[float]] = {
            name: [] for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
        }
        if state is not None and state["seed"] == seed:
            self._load(state)

    @property
    def done(self) -> bool:
        return self.epoch >= self.settings.epochs or self.waited >= self.settings.patience

    def step(self) -> None:
        """Trains for one epoch, then validates."""
        started = time.perf_counter()
        self.model.train()
        for data in self._batches():
            self.optimizer.zero_grad()
            logits = self.model(data.x, data.edge_index, edge_attr=data.get("edge_attr"))
            loss_of(logits[data.train_mask], data.y[data.train_mask]).backward()
            self.optimizer.step()
        self.epoch += 1
        scores = evaluate(self.model, self.views, ("train", "val"))
        for split, (loss, accuracy) in scores.items():
            self.history[f"{split}_loss"].append(loss)
            self.history[f"{split}_accuracy"].append(accuracy)
        self._stop_early(*scores["val"])
        self.seconds += time.perf_counter() - started

    def _batches(self) -> Iterator[Data]:
        """What the steps of an epoch look at: the graph, or a few of the training graphs each."""
        if len(self.graphs) == 1:
            yield self.graphs[0]
            return
        for chosen in torch.randperm(len(self.graphs)).split(self.settings.batch_graphs):
            yield Batch.from_data_list([self.graphs[i] for i in chosen.tolist()])

    def _stop_early(self, loss: float, accuracy: float) -> None:
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} in epoch {self.epoch}: lower --lr, or bring the features"
                " to a common scale"
            )
        low, high = loss <= self.lowest_loss, accuracy >= self.highest_accuracy
        self.waited = 0 if low or high else self.waited + 1
        if low:
            self.best = {"epoch": self.epoch, "weights": _copied(self.model.state_dict())}
        self.lowest_loss = min(self.lowest_loss, loss)
        self.highest_accuracy = max(self.highest_accuracy, accuracy)

    def result(self) -> dict[str, Any]:
        """The scores of the weights that were kept; the first look at the test nodes."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.best["weights"])
        scores = evaluate(model, self.views, ("train", "val", "test"))
        return {
            "seed": self.seed,
            "epochs": self.epoch,
            "best_epoch": self.best["epoch"],
            **{f"{split}_loss": loss for split, (loss, _) in scores.items()},
            **{f"{split}_accuracy": accuracy for split, (_, accuracy) in scores.items()},
            "stopped_early": self.done and self.epoch < self.settings.epochs,
            "seconds": self.seconds,
            "history": self.history,
        }

    _PLAIN = ("seed", "epoch", "waited", "seconds", "lowest_loss", "highest_accuracy", "best")

    def state(self) -> dict[str, Any]:
        """A copy of everything that the rest of this run depends on."""
        return {
            **{name: getattr(self, name) for name in self._PLAIN},
            "history": copy.deepcopy(self.history),
            "model": _copied(self.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "random": _random_state(self.data.x.device),
        }

    def _load(self, state: dict[str, Any]) -> None:
        try:
            for name in self._PLAIN:
                setattr(self, name, state[name])
            self.history = copy.deepcopy(state["history"])
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            _set_random_state(state["random"], self.data.x.device)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the checkpoint is of another architecture or damaged ({reason});"
                " start over with --restart"
            ) from error


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


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def _random_state(device: torch.device) -> dict[str, Any]:
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()  # no arrays in a checkpoint
    state = {
        "python": random.getstate(),
        "numpy": numpy,
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
