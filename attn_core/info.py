"""`python -m attn_core.info`: what is live on this machine, for a bug report."""

from __future__ import annotations

import platform

import torch

import attn_core  # noqa: F401
from attn_core.backends import cpu


def report() -> str:
    """A few lines that say which versions and which kernels are at work.

    >>> "CPU kernels:" in report()
    True
    """
    lines = {
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "system": f"{platform.system()} {platform.machine()}",
        "CPU kernels": cpu.description(),
    }
    return "\n".join(f"{name}: {text}" for name, text in lines.items())


if __name__ == "__main__":
    print(report())
