"""Time by turns, and memory in a process of its own."""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks._worker import resident_peak
from examples.shared.files import UserError

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Timings:
    """Seconds of each contender in each round, `[contender][round]`."""

    seconds: Mapping[str, list[float]]

    def milliseconds(self, name: str) -> float:
        """The median over the rounds."""
        return 1e3 * statistics.median(self.seconds[name])

    def fastest(self, name: str) -> float:
        """The minimum over the rounds, in milliseconds."""
        return 1e3 * min(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """How many times as long one contender takes as another: the median over the rounds.

        Both were measured right after each other, so what else the machine does cancels out.
        """
        pairs = zip(self.seconds[name], self.seconds[to], strict=True)
        return statistics.median(a / b for a, b in pairs)


def stopwatch(run: Callable[[], Any]) -> float:
    """Run something and return how many seconds it took."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cuda_events(run: Callable[[], Any]) -> float:
    """The same on a GPU, by its own clock: the work that was queued, not the queueing."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def take_turns(
    contenders: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: int = 2,
    timer: Callable[[Callable[[], Any]], float] = stopwatch,
) -> Timings:
    """Run all contenders one after the other, round after round.

    Args:
        contenders: what to run, by name.
        rounds: how often each is timed.
        warm_up: how often each runs before.
        timer: runs one and returns its seconds.

    >>> timings = take_turns({"a": lambda: sum(range(9)), "b": lambda: None}, rounds=3)
    >>> len(timings.seconds["a"]), timings.ratio("b", to="b")
    (3, 1.0)
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-warm_up, rounds):
        for name, run in contenders.items():
            if turn < 0:
                run()
            else:
                seconds[name].append(timer(run))
    return Timings(seconds)


def with_backward(contenders: Mapping[str, Callable[[], Any]]) -> dict[str, Callable[[], Any]]:
    """The same contenders, each of which then computes the gradients of all that it returns."""

    def step(run: Callable[[], Any]) -> None:
        # Squared, for the gradients of a plain sum are a single number spread over all
        sums = [x.square().sum() for x in tree_leaves(run()) if isinstance(x, Tensor)]
        torch.stack(sums).sum().backward()

    return {name: partial(step, run) for name, run in contenders.items()}


def assert_agree(contenders: Mapping[str, Callable[[], Any]], tolerance: float = 1e-4) -> None:
    """Raise unless all contenders return the same tensors: only equals are worth a comparison."""
    first, *others = contenders
    expected = [x for x in tree_leaves(contenders[first]()) if isinstance(x, Tensor)]
    for name in others:
        found = [x for x in tree_leaves(contenders[name]()) if isinstance(x, Tensor)]
        try:
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        except AssertionError as error:
            raise AssertionError(f"{name} and {first} do not compute the same: {error}") from error


def peak_memory(task: str, **arguments: Any) -> tuple[int, float]:
    """What a task takes at most beyond what was there before, measured in a fresh process.

    Args:
        task: "module:function"; the function makes the inputs and returns what to run.
        arguments: of that function; numbers and strings.

    Returns:
        Bytes, the inputs left out; and the seconds that it ran.

    Raises:
        UserError: the process failed, or the system does not tell.
    """
    command = [sys.executable, "-m", __name__, task, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = "killed, perhaps for lack of memory" if done.returncode < 0 else done.stderr
        raise UserError(f"cannot measure the memory of {task} {arguments}: {reason}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return measured["bytes"], measured["seconds"]


def _main(task: str, arguments: str) -> None:
    """Run a task in this process, and print what it took."""
    module, function = task.split(":")
    run = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    try:
        before, start = resident_peak(), time.perf_counter()
    except OSError as error:
        raise SystemExit("memory is measured through /proc, which this system lacks") from error
    run()
    seconds = time.perf_counter() - start
    print(json.dumps({"bytes": resident_peak() - before, "seconds": seconds}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
