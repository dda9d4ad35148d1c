"""The shell of the programs."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys, torch
from examples.shared.program import exit_status

def work():
    for _ in range(3):
        torch.empty(2**24).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.empty(2**24).fill_(1)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return 0

sys.exit(exit_status(work))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="says so to glibc")
def test_what_a_program_frees_is_there_for_its_next_step() -> None:
    command = [sys.executable, "-c", PROGRAM]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 1000  # of 81,920 fresh pages
