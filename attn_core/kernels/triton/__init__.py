"""Softmax attention over edges on the GPU: Triton kernels behind `torch.ops.attn_core`.

Importing this imports no Triton; `attn_core.kernels.triton.run` does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WIDEST = 4096  # channels of a head that one program holds; wider ones go to plain torch
_devices = {"cuda"}


def serves(key: Tensor, value: Tensor) -> bool:
    """Whether these kernels run on such tensors, `[Nk, H, D]` and `[Nk, H, Dv]`."""
    return (
        value.device.type in _devices
        and key.dtype in _DTYPES
        and value.dtype in _DTYPES
        and max(key.shape[-1], value.shape[-1]) <= _WIDEST
        and _installed()
    )


@contextmanager
def on_cpu() -> Iterator[None]:
    """Inside, the kernels serve CPU tensors as well, interpreted: slow, and for tests alone.

    `TRITON_INTERPRET=1` must be set before anything imports Triton, as torch.compile does.
    """
    _devices.add("cpu")
    try:
        yield
    finally:
        _devices.discard("cpu")


@cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
