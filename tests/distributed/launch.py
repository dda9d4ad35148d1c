"""Runs a function of a script in several processes that find each other, on this machine alone.

`python launch.py WORLD FOLDER SCRIPT FUNCTION SECONDS`: calls `FUNCTION(rank, world)` in each, and
writes what it returns to `FOLDER/RANK.pt`. The libraries are imported once, before the processes
fork. The first that fails, or the end of the time, ends all.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import pytest  # noqa: F401
import torch
import torch.distributed as dist

import gat  # noqa: F401
import sequence_attn  # noqa: F401
from attn_core.distributed import leave


def child(rank: int, world: int, folder: Path, script: str, function: str, seconds: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    limit = timedelta(seconds=seconds)
    where = f"file://{folder}/store"
    dist.init_process_group("gloo", where, rank=rank, world_size=world, timeout=limit)
    result = runpy.run_path(script)[function](rank, world)
    torch.save(result, folder / f"{rank}.pt")
    leave()


def main(world: int, folder: Path, script: str, function: str, seconds: float) -> int:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    end = time.monotonic() + seconds
    children = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                child(rank, world, folder, script, function, seconds)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(pid)
    failed = 0
    while children and not failed and time.monotonic() < end:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            children.remove(pid)
            failed = failed or os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.02)
    if children and not failed:
        print(f"{len(children)} processes still ran after {seconds} s", file=sys.stderr)
        failed = 124
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return failed


if __name__ == "__main__":
    given = sys.argv[1:]
    sys.exit(main(int(given[0]), Path(given[1]), given[2], given[3], float(given[4])))
