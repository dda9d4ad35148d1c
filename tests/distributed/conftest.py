"""Runs a test's functions in several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[2]


class InProcesses(Protocol):
    def __call__(
        self, script: str, function: str, world: int, *, seconds: float = 180
    ) -> list[Any]: ...


@pytest.fixture(scope="module")
def in_processes(tmp_path_factory: pytest.TempPathFactory) -> InProcesses:
    """What `function(rank, world)` of a script returns in each of `world` processes.

    They end after `seconds`, whatever they do.
    """
    if not (dist.is_available() and dist.is_gloo_available()) or not hasattr(os, "fork"):
        pytest.skip("needs torch.distributed with gloo, and fork")

    def run(script: str, function: str, world: int, *, seconds: float = 180) -> list[Any]:
        folder = tmp_path_factory.mktemp(f"{function}-{world}")
        launch = Path(__file__).with_name("launch.py")
        ended = subprocess.run(
            [sys.executable, launch, str(world), folder, script, function, str(seconds)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=seconds + 60,
        )
        assert ended.returncode == 0, ended.stderr[-5000:]
        return [torch.load(folder / f"{rank}.pt") for rank in range(world)]

    return run
