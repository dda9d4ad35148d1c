"""The process of one contender: it makes what is to run, then runs and times it when it is told to.

It imports torch alone, so that a contender may live in an environment that lacks this library.
What it reads and writes are lines of json: a list `[verb, name of the run]`, and the answer.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SHORT = 0.1  # seconds; what takes less is run several times in a row
ASLEEP = 0.03  # seconds until the threads of the process that ran before have stopped spinning


@dataclass
class Contender:
    """What one process measures.

    Args:
        runs: what can be timed, by name.
        forget: drops what runs remember of each other, such as a sorted graph.
        results: computes what every contender must agree on, by name.
        facts: what a report should say of it, such as versions.
    """

    runs: Mapping[str, Callable[[], Any]]
    forget: Callable[[], Any] = lambda: None
    results: Callable[[], Mapping[str, Tensor]] = dict
    facts: Mapping[str, str] = field(default_factory=dict)

    def warm(self, name: str) -> float:
        """Run it once, untimed but for the answer."""
        return _seconds(self.runs[name])

    def time(self, name: str) -> float:
        """The seconds of one run: the median of several where it is short."""
        time.sleep(ASLEEP)
        first = _seconds(self.runs[name])
        if first > SHORT:
            return first
        # The first one found the caches full of what another contender left there
        repeats = max(3, min(25, int(SHORT / max(first, 1e-9))))
        return statistics.median(_seconds(self.runs[name]) for _ in range(repeats))

    def memory(self, name: str) -> list[int] | None:
        """The most bytes that a run takes beyond what is there before; and the process, ever.

        What earlier runs remember counts as taken. None where the system does not tell.
        """
        self.forget()
        gc.collect()
        _return_free_memory()
        try:
            ever = resident_peak()
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            before = resident_peak()
        except OSError:
            return None
        self.runs[name]()
        return [resident_peak() - before, max(ever, resident_peak())]

    def digest(self, _: str) -> dict[str, list[float]]:
        """Two numbers of each result, which tell different ones apart."""
        return {name: digest(x) for name, x in self.results().items()}

    def about(self, _: str) -> dict[str, str]:
        """The facts."""
        return dict(self.facts)


def of_layers(
    calls: Mapping[str, Callable[[Tensor], Tensor]],
    layers: Mapping[str, nn.Module],
    x: Tensor,
    forget: Callable[[], Any] = lambda: None,
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Contender:
    """The forward pass of each layer, and both passes, with gradients of x and of all parameters.

    Args:
        calls: what computes each layer's output from x.
        layers: where the parameters are.
        x: `[N, F]`, the features.
        forget: see `Contender`; gradients are dropped as well.
        within: the context in which both passes run.
    """
    x.requires_grad_()

    def forward(name: str) -> None:
        with within(), torch.no_grad():
            calls[name](x)

    def both(name: str) -> Tensor:
        drop_gradients()
        with within():
            output = calls[name](x)
            output.backward(output.detach())
        return output

    def drop_gradients() -> None:
        x.grad = None
        for layer in layers.values():
            layer.zero_grad()

    def forget_all() -> None:
        drop_gradients()
        forget()

    def results() -> dict[str, Tensor]:
        found = {}
        for name in calls:
            found[f"output of {name}"] = both(name)
            assert x.grad is not None
            found[f"gradient of {name}"] = x.grad
        return found

    runs: dict[str, Callable[[], Any]] = {}
    for name in calls:
        runs[f"{name}, forward"] = partial(forward, name)
        runs[f"{name}, forward and backward"] = partial(both, name)
    return Contender(runs, forget_all, results)


def of_attention(
    call: Callable[..., Tensor],
    inputs: str,
    laid: Callable[[Tensor], Tensor] = lambda x: x,
    back: Callable[[Tensor], Tensor] = lambda x: x,
) -> Contender:
    """Attention alone: the forward pass, and both passes with gradients of query, key and value.

    Args:
        call: computes the output of query, key and value, given by name.
        inputs: a file with these and the gradient of the output (`grad`), each `[T, H, D]`.
        laid: lays each of them out as `call` wants it, before anything is timed.
        back: lays the results out as the inputs were.
    """
    given = {name: laid(x).contiguous() for name, x in torch.load(inputs).items()}
    grad = given.pop("grad")
    leaves = {name: x.requires_grad_() for name, x in given.items()}

    def forward() -> None:
        with torch.no_grad():
            call(**leaves)

    def both() -> Tensor:
        forget()
        output = call(**leaves)
        output.backward(grad)
        return output

    def forget() -> None:
        for x in leaves.values():
            x.grad = None

    def results() -> dict[str, Tensor]:
        found = {"output": back(both())}
        for name, x in leaves.items():
            assert x.grad is not None
            found[f"gradient of the {name}"] = back(x.grad)
        return found

    return Contender({"forward": forward, "forward and backward": both}, forget, results)


def of_translation(
    model: nn.Module,
    loss: Callable[[], Tensor],
    search: Callable[[], Tensor],
    embedding: nn.Parameter,
) -> Contender:
    """A training step of a model, but for the optimiser's; and a search with it.

    Args:
        model: what learns and translates.
        loss: of a batch, the mean over its target tokens.
        search: the log-probability of the best target of each of some sources.
        embedding: of the source, whose gradient goes through all the rest.
    """

    def step() -> Tensor:
        model.train()
        model.zero_grad()
        found = loss()
        found.backward()
        return found

    def decode() -> Tensor:
        model.eval()
        with torch.no_grad():
            return search()

    def results() -> dict[str, Tensor]:
        found = {"loss": step()}
        assert embedding.grad is not None
        return found | {"gradient": embedding.grad, "log-probabilities": decode()}

    size = sum(x.numel() for x in model.parameters())
    runs = {"step": step, "search": decode}
    return Contender(runs, model.zero_grad, results, {"parameters": str(size)})


def translators(
    package: str, of_kind: Callable[[str, dict[str, Any]], Contender], inputs: str
) -> Contender:
    """A peer's models, one of each kind, of what `benchmarks._translators` wrote."""
    given = torch.load(inputs, weights_only=True)
    contender = in_one_process({kind: of_kind(kind, given) for kind in given["parameters"]})
    contender.facts = {**contender.facts, "version": importlib.import_module(package).__version__}
    return contender


def in_one_process(contenders: Mapping[str, Contender]) -> Contender:
    """Several contenders as one, their names before those of their runs, results and facts."""

    def named(of: Callable[[Contender], Mapping[str, Any]]) -> dict[str, Any]:
        return {f"{k}, {name}": x for k, one in contenders.items() for name, x in of(one).items()}

    def forget() -> None:
        for one in contenders.values():
            one.forget()

    return Contender(
        named(lambda one: one.runs),
        forget,
        lambda: named(lambda one: one.results()),
        named(lambda one: one.facts),
    )


def fill(model: nn.Module, parameters: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Give a model parameters that have other names.

    Args:
        model: what to fill.
        parameters: all of them; the shapes of vectors may differ by dimensions of 1.
        names: parts of the model's names, and what they are in `parameters`; replaced in order.

    >>> model = nn.Linear(2, 1)
    >>> fill(model, {"w": torch.ones(2), "bias": torch.zeros(1)}, {"weight": "w"})
    >>> model.weight.tolist()
    [[1.0, 1.0]]
    """
    left = dict(parameters)
    for name, parameter in model.named_parameters():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        parameter.data.copy_(left.pop(name).reshape(parameter.shape))
    if left:
        raise ValueError(f"the model has no place for {', '.join(left)}")


def digest(x: Tensor) -> list[float]:
    """The norm of a tensor, and a sum of its entries with signs of all sizes.

    >>> digest(torch.tensor([[0.0, 3.0], [4.0, 0.0]]))
    [5.0, 6.161602...]
    """
    flat = x.detach().double().flatten()
    return [float(flat.norm()), float(flat @ torch.arange(len(flat), dtype=flat.dtype).sin())]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def resident_peak() -> int:
    """The most bytes that were resident at once, since the peak started anew."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def _return_free_memory() -> None:
    """Give the system what was freed, lest it be taken again without being seen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of GNU's C library
    if trim is not None:
        trim(0)


def main(task: str, arguments: str) -> None:
    """Make the contender, then do as the lines on stdin say until they end."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints
    given = json.loads(arguments)
    torch.set_num_threads(given.pop("threads"))
    torch.manual_seed(0)
    module, function = task.split(":")
    contender: Contender = getattr(importlib.import_module(module), function)(**given)
    print(json.dumps(sorted(contender.runs)), file=answers, flush=True)
    for line in sys.stdin:
        verb, name = json.loads(line)
        print(json.dumps(getattr(contender, verb)(name)), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
