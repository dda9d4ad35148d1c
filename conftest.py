"""Settings for every test and doctest."""

from __future__ import annotations  # older releases of pytest have not all these names

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


class Failures:
    """Prints what fails when it fails: a run that is stopped has said what it found."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self.terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.terminal.write_line(f"\n{report.nodeid}\n{report.longreprtext}")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal:  # which a worker lacks
        config.pluginmanager.register(Failures(terminal))


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
