"""What the programs share: how they read their command line, and say mean ± deviation."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import NoReturn

import torch

from examples._files import UserError


class Parser(argparse.ArgumentParser):
    """Reports errors like all that the user can mend: one line, status 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")


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
