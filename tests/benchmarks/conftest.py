"""Contenders in the process of the test, where it is not the processes that are tested."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import _processes
from benchmarks._processes import Task
from benchmarks._worker import Contender


def allocate(megabytes: int) -> Callable[[], torch.Tensor]:
    """What to run for so much memory, in a process that imports little."""
    return lambda: torch.ones(megabytes * 2**18)


class InThisProcess:
    """Answers as `Process` does; its memory is 1 MiB, of 1 GiB in all."""

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.task = name, task

    def wait(self) -> list[str]:
        module, function = self.task.maker.split(":")
        given = json.loads(json.dumps(self.task.arguments))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            make = getattr(importlib.import_module(module), function)
            self.contender: Contender = make(**given)
        return sorted(self.contender.runs)

    def __call__(self, verb: str, run: str = "") -> Any:
        if verb == "memory":
            return [2**20, 2**30] if run in self.contender.runs else None
        return json.loads(json.dumps(getattr(self.contender, verb)(run)))

    def close(self) -> None:
        pass


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure contenders in the process of the test: starting one takes seconds."""
    monkeypatch.setattr(_processes, "Process", InThisProcess)
