"""What the programs share: how they read their command line, end, and say mean ± deviation."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import torch

from datasets import DataFileError, GraphFileError
from examples._files import UserError


class Parser(argparse.ArgumentParser):
    """Reports errors like all that the user can mend: one line, status 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


def exit_status(work: Callable[[], int]) -> int:
    """What `work` returns; 2 after an error that the user can mend, 130 if interrupted.

    >>> exit_status(lambda: 0)
    0
    """
    try:
        return work()
    except (UserError, GraphFileError, DataFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def check_device(name: str) -> None:
    """Raises UserError unless tensors can live there."""
    try:
        torch.empty(0, device=name).cpu()  # "meta" gives nothing back
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        reason = str(error).splitlines()[0].partition(". ")[0]  # then torch lists all its backends
        raise UserError(f"--device {name} is of no use here: {reason}") from error


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, each None where there are too few values."""
    return {
        "mean": statistics.mean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }
