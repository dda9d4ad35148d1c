"""Settings for every test and doctest."""

import os

import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"  # no window, also in the programs that tests start
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Give every test the same random numbers, alone or among others, on any worker."""
    torch.manual_seed(0)
