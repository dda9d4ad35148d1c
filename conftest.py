"""Settings for every test and doctest."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"  # no window, also in the programs that tests start
# torch keeps the backward passes it compiled, by what calls an op and not by what the op takes
os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "0")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported

# Modules that need an extra cannot be searched for doctests without it
EXTRAS = {
    "gat/hub.py": "huggingface_hub",
    "gat/graphgym.py": "yacs",
    "examples/lightning.py": "lightning",
}
collect_ignore = [module for module, needed in EXTRAS.items() if find_spec(needed) is None]


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Give every test the same random numbers, alone or among others, on any worker."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_names() -> Iterator[None]:
    """Forget the names that a test gives to scores and normalisers of its own."""
    from attn_core import Normalizer, Score  # not before TRITON_INTERPRET is set

    before = [(cls.named, dict(cls.named)) for cls in (Score, Normalizer)]
    yield
    for named, known in before:
        named.clear()
        named.update(known)
