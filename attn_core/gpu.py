"""Where the Triton kernels run: on CUDA devices, and on the CPU where Triton interprets them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from attn_core import compiled

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_installed = importlib.util.find_spec("triton") is not None
_devices: tuple[str, ...] = ("cuda",)


def is_gpu(device: torch.device) -> bool:
    """Whether a device is a GPU, which must not wait for a look at its numbers."""
    return device.type in _devices


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels may run on these tensors."""
    for x in tensors:
        if x.device.type not in _devices or x.dtype not in DTYPES:
            return False
    return _installed and compiled.is_wanted()


@contextmanager
def on_cpu() -> Iterator[None]:
    """Inside, the kernels serve CPU tensors as well, interpreted: slow, and for tests alone.

    `TRITON_INTERPRET=1` must be set before anything imports Triton, as torch.compile does.
    """
    global _devices
    before, _devices = _devices, ("cuda", "cpu")
    try:
        yield
    finally:
        _devices = before
