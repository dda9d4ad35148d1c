"""Dropout of features."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core import compiled
from attn_core.dropout import draw_seed, dropout_scale, random_bits
from attn_core.transforms import nobody_watches

_DRAWS = 16  # neighbours in memory that the hash takes for the heads of one edge


def drop(x: Tensor, p: float, rows: Tensor | None = None) -> Tensor:
    """x with numbers dropped with probability p, the others divided by 1 - p.

    That is `F.dropout(x, p)`, which on CPUs takes most of its time to draw. Here the hash that
    drops attention weights (`attn_core.dropout`) draws, several numbers at once, and once more in
    the backward pass, so that no mask is kept.

    Args:
        x: `[N, ...]`.
        p: the probability.
        rows: int64 `[N]`, the numbers of the rows among those of a larger x, which are dropped here
            as they would be there, on any device. Default: x is the larger one.

    >>> drop(torch.ones(3), 1.0)
    tensor([0., 0., 0.])
    """
    if p == 1 or not x.is_floating_point():
        return F.dropout(x, p)
    if rows is not None:
        return _drop_rows(x, p, rows, draw_seed(x.device))
    if x.device.type != "cpu":
        return F.dropout(x, p)
    if compiled.is_on() and x.dtype in (torch.float16, torch.bfloat16):
        return _drop(x.float(), p, draw_seed(x.device)).to(x.dtype)
    if not compiled.is_on() or x.dtype not in (torch.float32, torch.float64):
        dtype = torch.promote_types(x.dtype, torch.float32)
        drawn = torch.rand(x.shape, dtype=dtype, device=x.device)
        return x * (drawn >= p).to(x.dtype).mul_(1 / (1 - p))
    return _drop(x, p, draw_seed(x.device))


def _drop_rows(x: Tensor, p: float, rows: Tensor, seed: Tensor) -> Tensor:
    width = x[0].numel() if len(x) else 0
    place = (rows[:, None] * width + torch.arange(width, device=x.device)).view(x.shape)
    random = random_bits(seed, place // _DRAWS, place % _DRAWS)
    return x * ((random >= int(p * 2**32)) * (1 / (1 - p))).to(x.dtype)


def _drop(x: Tensor, p: float, seed: Tensor) -> Tensor:
    if nobody_watches(x, seed):
        out: Tensor = _Drop.apply(x, p, seed)
        return out
    edges = torch.arange((x.numel() + _DRAWS - 1) // _DRAWS, device=x.device)
    scale = dropout_scale(seed, edges, _DRAWS, p).flatten()[: x.numel()]
    return x * scale.view(x.shape).to(x.dtype)


class _Drop(torch.autograd.Function):
    """The same in C++, whose gradient is dropped alike."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, seed: Tensor) -> Tensor:
        ctx.settings = p, seed
        x = x.contiguous()
        out = torch.empty_like(x)
        threads = torch.get_num_threads()
        compiled.call("drop", x.detach().view(-1), p, int(seed), threads, out.view(-1))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _drop(grads[0], *ctx.settings), None, None
