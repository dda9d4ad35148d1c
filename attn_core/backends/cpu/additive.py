"""Additive scores over dense supports in C++: hidden vectors never leave the registers."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_core import compiled
from attn_core.transforms import bare

_KINDS = {"leaky_relu": 1, "tanh": 2}
_WIDEST = 2**20


def serves(*tensors: Tensor) -> bool:
    """Whether the kernels take these."""
    dtype = tensors[0].dtype
    return (
        compiled.is_on()
        and dtype in (torch.float32, torch.float64)
        and tensors[0].shape[-1] <= _WIDEST
        and all(x.device.type == "cpu" and x.dtype == dtype and x.numel() > 0 for x in tensors)
    )


def forward(query: Tensor, key: Tensor, vector: Tensor, kind: str, constant: float) -> Tensor:
    """The logits `[B, Tq, Tk]` of queries `[B, Tq, D]`, keys `[B, Tk, D]`, vectors `[B, D]`."""
    logits = query.new_empty(query.shape[0], query.shape[1], key.shape[1])
    compiled.call("additive_scores", *_given(query, key, vector, kind, constant), logits)
    return logits


def backward(
    grad: Tensor, query: Tensor, key: Tensor, vector: Tensor, kind: str, constant: float
) -> tuple[Tensor, ...]:
    """Gradients of query, key and vector."""
    given = _given(query, key, vector, kind, constant)
    made = tuple(x.new_empty(x.shape) for x in (query, key, vector))
    compiled.call("additive_gradients", bare(grad).contiguous(), *given, *made)
    return made


def _given(
    query: Tensor, key: Tensor, vector: Tensor, kind: str, constant: float
) -> tuple[Tensor | int | float, ...]:
    tensors = (bare(x) for x in (query, key, vector.contiguous()))
    packed = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
    return *packed, _KINDS[kind], constant, torch.get_num_threads()
