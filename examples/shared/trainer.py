"""One training, batch by batch: the loop that all programs share, and states to go on from."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from examples.shared.files import UserError, check_kind, damage_told
from examples.shared.program import SIGNALS

WEIGHTS = {str: Tensor}


class Trainer:
    """One training, batch by batch.

    Between two calls of its methods it is consistent, and `state` has all that the rest depends on:
    random numbers, the optimiser, and the place within the epoch.

    Args:
        model: is trained.
        optimizer: of its parameters.
        batches: those of an epoch, by its number from 0. It may draw from torch's generator.
        loss: the mean loss of a batch, and over how many terms.
        epochs: the most epochs to train for.
        patience: stop after this many epochs without a new best. Default: never.
        clip: the largest norm of the gradient. Default: any.
        schedule: of the learning rate, which it sets for the next step. Default: constant.
        average: the decay of an exponential average of the weights, which is what is validated and
            kept. Default: 0, no average.
        mend: what to do about a loss that is no number.
    """

    # What a state has besides tensors, and of which kind (see `check_kind`)
    KINDS: ClassVar[dict[str, Any]] = {
        "epoch": int, "batch": int, "steps": int, "waited": int, "seconds": float, "terms": int,
        "loss_sum": float, "loss_terms": int, "scores": [{str: float}],
        "best": ({}, {str: (float, dict)}),
    }  # fmt: skip

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        batches: Callable[[int], Sequence[Any]],
        loss: Callable[[Any], tuple[Tensor, int]],
        *,
        epochs: int,
        patience: float = math.inf,
        clip: float = math.inf,
        schedule: LRScheduler | None = None,
        average: float = 0.0,
        mend: str = "lower --lr",
    ) -> None:
        self.model: Any = model
        self.optimizer, self.schedule = optimizer, schedule
        self.batches, self.loss, self.mend = batches, loss, mend
        self.epochs, self.patience, self.clip = epochs, patience, clip
        self.device = next(model.parameters()).device
        self.averaged: AveragedModel | None = None
        if average:
            self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(average))
        self.epoch = self.batch = self.steps = self.waited = 0
        self.seconds = 0.0  # spent in training, without validation
        self.terms = 0  # of the loss, such as target tokens that were predicted in training
        self.loss_sum, self.loss_terms = 0.0, 0  # of the epoch under way
        self.scores: list[dict[str, float]] = []  # of the epochs that are over
        self.best: dict[str, Any] = {}
        self._planned: tuple[int, Sequence[Any]] | None = None
        self._before_plan: Tensor | None = None  # torch's random state then

    @property
    def plan(self) -> Sequence[Any]:
        """The batches of the epoch under way; the same every time."""
        if self._planned is None or self._planned[0] != self.epoch:
            self._before_plan = torch.get_rng_state()
            self._planned = self.epoch, self.batches(self.epoch)
        return self._planned[1]

    @property
    def done(self) -> bool:
        return self.epoch >= self.epochs or self.waited >= self.patience

    @property
    def judged(self) -> Any:
        """The model that is validated: with the averaged weights, or the model itself."""
        return self.model if self.averaged is None else self.averaged.module

    def start(self, batches: Callable[[int], Sequence[Any]]) -> None:
        """Begins to count: what was learned before, by `train_on`, belongs to no epoch."""
        self.batches = batches
        self.batch = self.steps = self.terms = self.loss_terms = 0
        self.seconds = self.loss_sum = 0.0

    def prepare_step(self) -> None:
        """Called before each step, for a learning rate that needs more than a schedule."""

    def train_on(self, batch: Any) -> float:
        """Trains on a batch; returns its mean loss. A signal waits for its end."""
        with SIGNALS.held():
            started = time.perf_counter()
            self.model.train()
            self.prepare_step()
            loss, terms = self.loss(batch)
            self.optimizer.zero_grad()
            loss.backward()
            norm = 0.0
            if self.clip < math.inf:
                norm = clip_grad_norm_(self.model.parameters(), self.clip).item()
            value = loss.item()
            if not math.isfinite(value) or not math.isfinite(norm):
                raise UserError(
                    f"the loss became {value} in epoch {self.epoch + 1} (gradient {norm}):"
                    f" {self.mend}"
                )
            self.optimizer.step()
            if self.schedule is not None:
                self.schedule.step()
            if self.averaged is not None:
                self.averaged.update_parameters(self.model)
            self.loss_sum, self.loss_terms = self.loss_sum + value * terms, self.loss_terms + terms
            self.batch, self.steps, self.terms = self.batch + 1, self.steps + 1, self.terms + terms
            self.seconds += time.perf_counter() - started
        return value

    def train_batch(self) -> float:
        """Trains on the next batch of the epoch; returns its mean loss."""
        return self.train_on(self.plan[self.batch])

    @property
    def mean_loss(self) -> float:
        """Of a term, in the epoch under way."""
        return self.loss_sum / max(1, self.loss_terms)

    @property
    def epoch_is_over(self) -> bool:
        """Whether all of its batches have been trained on, so that `end_epoch` comes next."""
        return self.batch >= len(self.plan)

    def train_epoch(self, progress: Callable[[float], object] = lambda loss: None) -> float:
        """Trains on the batches that are left of an epoch; returns the mean loss of a term."""
        while not self.epoch_is_over:
            progress(self.train_batch())
        return self.mean_loss

    def train(self, progress: Callable[[float], object] = lambda loss: None) -> float:
        """Trains to the end without a look at scores; returns the mean loss of the last epoch.

        `progress` is called after each epoch with its mean loss.
        """
        loss = math.nan
        while not self.done:
            loss = self.train_epoch()
            self.end_epoch({})
            progress(loss)
        return loss

    def end_epoch(self, scores: dict[str, float], better: bool | None = None) -> None:
        """Turns to the next epoch; keeps the weights if the scores are `better` than all so far.

        With None nobody judges, or the caller does.
        """
        with SIGNALS.held():
            if better:
                self.best = {**scores, "weights": own_weights(self.judged)}
            if better is not None:
                self.waited = 0 if better else self.waited + 1
            self.scores.append(scores)
            self.epoch, self.batch, self.loss_sum, self.loss_terms = self.epoch + 1, 0, 0.0, 0

    def best_model(self) -> Any:
        """A copy of the model with its best weights so far, in evaluation mode."""
        model = copy.deepcopy(self.judged)
        load_weights(model, self.best["weights"])
        return model.eval()

    def state(self) -> dict[str, Any]:
        """A copy of everything that the rest of this training depends on."""
        planned = self._planned is not None and self._planned[0] == self.epoch
        return {
            **{name: copy.copy(getattr(self, name)) for name in self.KINDS},
            "model": own_weights(self.model),
            "averaged": None if self.averaged is None else own_weights(self.averaged),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "random": random_state(self.device),
            "before_plan": self._before_plan if planned else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state()` gave of such a training.

        Raises:
            UserError: the state is of another model, or damaged.
        """
        with damage_told("the checkpoint", "or of another architecture"):
            check_kind({name: state[name] for name in self.KINDS}, self.KINDS)
            for name in self.KINDS:
                setattr(self, name, copy.copy(state[name]))
            load_weights(self.model, state["model"])
            if self.averaged is not None:
                load_weights(self.averaged, state["averaged"])
            if self.best:
                load_weights(copy.deepcopy(self.judged), self.best["weights"])
            self._load_optimizer(state["optimizer"])
            if self.schedule is not None:
                self.schedule.load_state_dict(state["schedule"])
            if state["before_plan"] is not None:
                torch.set_rng_state(state["before_plan"])
                if self.batch > len(self.plan):
                    raise ValueError(f"batch is {self.batch} of {len(self.plan)}")
            set_random_state(state["random"], self.device)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        kinds = {name: type(value) for name, value in self.optimizer.defaults.items()}
        self.optimizer.load_state_dict(state)
        for group in self.optimizer.param_groups:
            for name, kind in kinds.items():
                check_kind(group[name], float if kind is int else kind, name)
            for parameter in group["params"]:
                for name, value in self.optimizer.state[parameter].items():
                    check_kind(value, Tensor, name)
                    if value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"{name} has another shape than its parameter")


def one_cycle(optimizer: Optimizer, lr: float, steps: int) -> OneCycleLR:
    """The rate rises to `lr` for a tenth of the steps, then falls."""
    return OneCycleLR(optimizer, lr, total_steps=max(steps, 2), pct_start=0.1)


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight once, also where two modules share it; copies on the CPU."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    state = model.state_dict()
    return {name: x.detach().cpu().clone() for name, x in tensors.items() if name in state}


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts what `own_weights` returned into a model.

    Raises:
        RuntimeError: names or shapes differ.
    """
    model.load_state_dict(model.state_dict() | weights)  # a shared weight has two names
    if missing := own_weights(model).keys() - weights.keys():
        raise RuntimeError(f"Missing key(s): {', '.join(sorted(missing))}")


def seed_everything(seed: int) -> None:
    """Sets every generator that a training may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator that a training may draw from."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    numpy["state"]["key"] = numpy["state"]["key"].tolist()  # no arrays in a checkpoint
    return {
        "python": random.getstate(),
        "numpy": numpy,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Goes back to what `random_state` gave."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
