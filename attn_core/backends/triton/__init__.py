"""Attention on the GPU: Triton kernels behind the ops of `torch.ops.attn_core`.

Importing this imports no Triton; its modules do.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from attn_core import gpu
from attn_core.gpu import on_cpu

__all__ = ["on_cpu", "refuses", "serves"]

_WIDEST = 4096  # channels of a head that one program holds; wider ones go to plain torch


def serves(key: Tensor, value: Tensor) -> bool:
    """Whether the kernels over edges run on such tensors, `[Nk, H, D]` and `[Nk, H, Dv]`."""
    return gpu.serves(key, value) and max(key.shape[-1], value.shape[-1]) <= _WIDEST


def refuses(error: Exception) -> bool:
    """Whether this is Triton's word on a kernel that it cannot compile or launch."""
    errors: Any = sys.modules.get("triton.errors")
    told = errors is not None and isinstance(error, errors.TritonError)
    return told or (isinstance(error, RuntimeError) and "PassManager" in str(error))
