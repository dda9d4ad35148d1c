"""Windowed softmax attention with a product score, in blocks of neighbouring queries.

The windows of a block of b neighbouring queries lie in one slice of b + W - 1 keys. Each block is a
small dense attention over its slice, masked to the band that its windows form; all of them are one
call of torch's scaled_dot_product_attention. Nothing is approximated.

With a dilation of d, every d-th position is a sequence of its own, whose windows are not dilated.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core.kernels import sdpa
from attn_core.kernels.call import Call
from attn_core.normalizers import Softmax
from attn_core.scores import Dot
from attn_core.window import Window

BLOCK = 64  # queries; a larger block computes more pairs in vain, a smaller one reads keys anew


def serves(call: Call) -> bool:
    """Whether this call can be cut into blocks: it can, unless the windows lie anywhere."""
    window = call.support
    return (
        isinstance(window, Window)
        and window.centre is None
        and isinstance(call.score, Dot)
        and isinstance(call.normalizer, Softmax)
        and not isinstance(call.normalizer.temperature, Tensor)
        and call.pair_key is None
        and call.pair_value is None
        and call.query is not None
        and call.num_keys > 0
        and (window.dilation == 1 or call.query.shape[-3] == call.num_keys)
    )


def run(call: Call) -> tuple[Tensor, None, None]:
    """The output `[..., Tq, H, Dv]`."""
    window, score, query = call.support, call.score, call.query
    assert isinstance(window, Window) and isinstance(score, Dot) and query is not None
    assert isinstance(call.normalizer, Softmax)
    *batch, queries, heads, _ = query.shape
    step, keys, columns = window.dilation, call.num_keys, window.width
    real = torch.arange(keys, device=query.device)
    if window.lengths is None:
        real = torch.ones_like(real, dtype=torch.bool).expand(*batch, keys)
    else:
        real = real < window.lengths[..., None]

    # [B, T, ...], where B counts the sequences of the batch and of the dilation
    query, key, value, real = (
        _every(step, x.flatten(0, len(batch) - 1) if batch else x[None])
        for x in (query, call.key, call.value, real)
    )
    before = window.radius - (keys - queries if step == 1 else 0)
    after = 0 if window.causal else window.radius
    short = -query.shape[1] % BLOCK  # queries that the last block lacks
    query = F.pad(query, (0, 0, 0, 0, 0, short)).unflatten(1, (-1, BLOCK))  # [B, n, b, H, D]
    slices = BLOCK + columns - 1
    key, value = (
        F.pad(x, (0, 0, 0, 0, before, after + short)).unfold(1, slices, BLOCK).movedim(-1, 2)
        for x in (key, value)
    )  # [B, n, s, H, D]
    real = F.pad(real, (before, after + short)).unfold(1, slices, BLOCK)  # [B, n, s]

    offset = (
        torch.arange(slices, device=query.device)
        - torch.arange(BLOCK, device=query.device)[:, None]
    )
    seen = real.unsqueeze(2)
    never_empty = window.lengths is None and call.bias is None and queries <= keys
    if never_empty:  # but for the queries that fill up the last block: they may see anything
        there = real.new_ones(len(real) // step, queries)
        there = F.pad(_every(step, there), (0, short)).unflatten(1, (-1, BLOCK))
        seen = seen | ~there.unsqueeze(3)
    mask = ((offset >= 0) & (offset < columns)) & seen  # [B, n, b, s]
    bias = None
    if call.bias is not None:
        bias = call.bias.expand(*batch, heads, queries, columns)
        bias = bias.flatten(0, len(batch) - 1) if batch else bias[None]
        bias = _every(step, bias.transpose(1, 2)).flatten(2)  # [B, T, H * W]
        bias = (
            F.pad(bias, (0, 0, 0, short)).unflatten(2, (heads, columns)).unflatten(1, (-1, BLOCK))
        )
        bias = _skewed(bias.transpose(2, 3)).flatten(0, 1)  # [B * n, H, b, s]
    query, key, value = (x.flatten(0, 1).transpose(1, 2) for x in (query, key, value))
    output = sdpa.masked(
        query,
        key,
        value,
        mask.flatten(0, 1).unsqueeze(1),
        bias,
        dropout=call.dropout,
        scale=score.scale,
        temperature=float(call.normalizer.temperature),
        never_empty=never_empty,
    )  # [B * n, H, b, D]
    output = output.transpose(1, 2).unflatten(0, (len(real), -1)).flatten(1, 2)
    output = _together(step, output, queries)
    return output.unflatten(0, batch) if batch else output[0], None, None


def _every(step: int, x: Tensor) -> Tensor:
    """`[B, T, ...]` as the sequences of every step-th entry, `[B * step, ⌈T / step⌉, ...]`."""
    if step == 1:
        return x
    short = -x.shape[1] % step
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, short))
    return x.unflatten(1, (-1, step)).transpose(1, 2).flatten(0, 1)


def _together(step: int, x: Tensor, length: int) -> Tensor:
    """The reverse of `_every`, cut to the length."""
    if step > 1:
        length_of_each = -(-length // step)
        x = x[:, :length_of_each].unflatten(0, (-1, step)).transpose(1, 2).flatten(1, 2)
    return x[:, :length]


def _skewed(bias: Tensor) -> Tensor:
    """`[..., b, W]` with row i moved right by i columns, `[..., b, b + W - 1]`; elsewhere -inf."""
    rows, columns = bias.shape[-2:]
    bias = F.pad(bias, (0, rows), value=-math.inf).flatten(-2)
    return bias[..., : rows * (rows + columns - 1)].unflatten(-1, (rows, rows + columns - 1))
