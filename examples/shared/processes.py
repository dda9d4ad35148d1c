"""Several processes under torchrun, of which the first alone prints, draws and writes files."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from attn_core.distributed import leave
from examples.shared.files import UserError, is_first_process

# What torch's backends say when they lose a process
_LOST = ("Connection closed", "Connection reset", "Timed out", "Broken pipe", "Socket Timeout")


def world_size() -> int:
    """How many processes torchrun started; one without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process."""
    return int(os.environ.get("RANK", "0"))


def goes_on(args: argparse.Namespace, checkpoint: Path) -> bool:
    """Whether to go on from a checkpoint: by --resume, or since torchrun has started all anew."""
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return bool(args.resume) or (restarts > 0 and checkpoint.exists())


@contextlib.contextmanager
def joined(minutes: float = 10) -> Iterator[None]:
    """Inside, the processes that torchrun started know each other; all but the first are silent.

    Args:
        minutes: how long to wait for another process before giving up.

    Raises:
        UserError: another process ended.
    """
    if world_size() == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    limit = timedelta(minutes=minutes)
    store, number, world = next(rendezvous("env://", timeout=limit))
    # torchrun starts all anew with the store of before, where the addresses of the dead still stand
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=world, timeout=limit)
    try:
        with _silence() if not is_first_process() else contextlib.nullcontext():
            yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _LOST):
            raise
        raise UserError(
            "another process of this training has ended: nothing is lost but what came after the "
            "last checkpoint; go on with the same command and --resume"
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):  # whoever is gone cannot say goodbye
            leave()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Inside, nothing is printed, but for errors that end the program."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        errors, sys.stderr = sys.stderr, nowhere
        try:
            yield
        finally:
            sys.stderr = errors
