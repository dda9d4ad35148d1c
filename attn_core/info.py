"""`python -m attn_core.info`: what is live on this machine, for a bug report."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import attn_core
from attn_core import gpu
from attn_core.backends import cpu
from attn_core.compat import TESTED


def untested(name: str, release: str) -> str:
    """A remark on a release outside those that the tests ran with, or nothing.

    >>> untested("torch", "2.99.0+cpu")
    ' (newer than 2.15, the newest that was tested)'
    """
    oldest, newest = TESTED[name]
    if _series(release) > _series(newest):
        return f" (newer than {newest}, the newest that was tested)"
    return f" (older than {oldest}: not supported)" if _series(release) < _series(oldest) else ""


def _series(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])


def _installed(name: str) -> str:
    try:
        release = version(name)
    except PackageNotFoundError:
        return "not installed"
    return release + (untested(name, release) if name in TESTED else "")


def _of_gpu(index: int) -> str:
    """Its name, and whether Triton works on it."""
    if not gpu.installed:
        live = "none, for Triton is not installed"
    else:
        reason = gpu.failure("cuda", index)
        live = "Triton" if reason is None else f"none ({reason})"
    return f"{live}, {torch.cuda.get_device_name(index)}"


def report() -> str:
    """A few lines that say which versions and which kernels are at work.

    >>> "CPU kernels:" in report()
    True
    """
    lines = {
        "gat-attention": attn_core.__version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}{untested('torch', torch.__version__)}, "
        f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "torch_geometric": _installed("torch_geometric"),
        "triton": _installed("triton"),
        "system": f"{platform.system()} {platform.machine()}",
        "CPU kernels": cpu.description(),
        **{f"GPU kernels, cuda:{i}": _of_gpu(i) for i in range(torch.cuda.device_count())},
    }
    return "\n".join(f"{name}: {text}" for name, text in lines.items())


if __name__ == "__main__":
    print(report())
