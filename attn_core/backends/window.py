"""Windowed softmax attention with a product score, in blocks of neighbouring queries.

The windows of b neighbouring queries lie in one slice of s = b + W - 1 keys. Each block is a small
dense attention over its slice, masked to the band that its windows form. Nothing is approximated,
and nothing is copied: the overlapping slices of all blocks are one view of the keys, which torch's
scaled_dot_product_attention reads as it is, and all blocks share one mask. Only the queries whose
windows reach beyond the keys are apart, in a block at either end.

With a dilation of d, every d-th position is a sequence of its own, whose windows are not dilated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core.backends import sdpa
from attn_core.call import Attended, Call
from attn_core.compat import is_exporting
from attn_core.supports.window import Window

BLOCK = 32  # queries; a larger block computes more pairs in vain, a smaller one reads keys anew


def serves(call: Call) -> bool:
    """Whether this call can be cut into blocks: it can, unless the windows lie anywhere."""
    window = call.support
    return (
        isinstance(window, Window)
        and not call.need_weights
        and not call.need_log_sum_exp
        and call.query is not None
        and window.lie_alike(call.query.shape[-3], call.num_keys)
        and sdpa.is_product(call)
        and (window.dilation == 1 or call.query.shape[-3] == call.num_keys)
        # How many blocks there are is a number of Python's, which an exported program cannot vary
        and not is_exporting()
    )


def run(call: Call) -> Attended:
    """The output `[..., Tq, H, Dv]`."""
    window, query = call.support, call.query
    assert isinstance(window, Window) and query is not None
    *batch, queries, _, _ = query.shape
    step, keys, columns = window.dilation, call.num_keys, window.width
    blocks = _Blocks(
        call,
        query=_by_time(query, step),
        key=_by_time(call.key, step),
        value=_by_time(call.value, step),
        bias=_bias_by_time(call, window),
        limits=_limits(call, window),
        before=window.radius - (keys - queries if step == 1 else 0),
        columns=columns,
    )
    # Between these, no window reaches beyond the keys of any sequence
    first = max(0, blocks.before)
    count = max(0, queries // step - (columns - 1 - window.radius) - first) // BLOCK
    if count == 0:
        output = blocks.attend(0, len(blocks.query))
    else:
        last = first + count * BLOCK
        inner = blocks.attend(first, BLOCK, count, lengths=window.lengths is not None)
        ends = blocks.attend(0, first), blocks.attend(last, len(blocks.query) - last)
        output = torch.cat([ends[0], inner, ends[1]])
    # [⌈T / step⌉, step * B, H, D]
    output = output.unflatten(1, (step, math.prod(batch))).flatten(0, 1)[:queries]
    output = output.movedim(0, 1).reshape(*batch, queries, *output.shape[2:])
    return Attended(output, None, None)


@dataclass(frozen=True, eq=False)
class _Blocks:
    """What a call attends to, as S sequences side by side, `[T, S, H, D]`.

    Query i sees the keys i - before, i - before + 1 …, `columns` of them, as far as they exist.
    """

    call: Call
    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None  # [T or 1, S or 1, H or 1, W]
    limits: Tensor | None  # [S], how many keys each sequence has, unless it has all
    before: int
    columns: int

    def attend(
        self, first: int, size: int, count: int | None = None, lengths: bool = True
    ) -> Tensor:
        """The output `[count · size, S, H, D]` of as many blocks of queries, from `first` on.

        Without a count, of one block, whose windows may reach beyond the keys. Others must lie
        within the keys, unless `lengths` is True: then the keys behind the ends of their sequences
        are left out.
        """
        alone, count = count is None, 1 if count is None else count
        call, (_, sequences, heads, width) = self.call, self.value.shape
        scale, temperature = sdpa.factors(call)
        start = first - self.before
        stop = start + size + self.columns - 1
        if alone:
            start, stop = (max(0, min(x, len(self.key))) for x in (start, stop))
        if size == 0 or start == stop:
            return self.value.new_zeros(size, sequences, heads, width)

        offset = torch.arange(start, stop, device=self.key.device) - (
            torch.arange(first, first + size, device=self.key.device)[:, None] - self.before
        )
        mask = ((offset >= 0) & (offset < self.columns)).expand(1, 1, 1, -1, -1)
        limits = self.limits if lengths else None
        if limits is not None:
            position = torch.arange(start, start + count * size, size, device=self.key.device)
            position = position[:, None] + torch.arange(stop - start, device=self.key.device)
            mask = mask & (position[:, None] < limits[:, None])[:, :, None, None]
        bias = None
        if self.bias is not None:
            bias = self.bias
            if len(bias) == 1:
                bias = bias.unsqueeze(1).expand(-1, size, -1, -1, -1)
            else:
                bias = bias[first : first + count * size].unflatten(0, (count, size))
            skip = start - (first - self.before)
            bias = _skewed(bias.movedim(1, -2))[..., skip : skip + stop - start]

        # [count, S, H, b, D] and [count, S, H, s, D], of which the first two become the batch
        query = self.query[first : first + count * size]
        key, value = (x[start : stop + (count - 1) * size] for x in (self.key, self.value))
        if all(x is None or x.shape[1:3] == (1, 1) for x in (mask, bias)):
            # All are treated alike, so sequences may count as heads: no copy is needed then
            query, key, value = (x.flatten(1, 2).unsqueeze(1) for x in (query, key, value))
        query = query.unflatten(0, (count, size)).movedim(1, -2).flatten(0, 1)
        if alone:  # torch.compile would make a graph for each size that it unfolds to
            key, value = (x.movedim(0, -2) for x in (key, value))
        else:
            slices = size + self.columns - 1
            key, value = (
                x.unfold(0, slices, size).transpose(-1, -2).flatten(0, 1) for x in (key, value)
            )
        merged = [
            x if x is None else _flat(x, count, query.shape[0] // count) for x in (mask, bias)
        ]
        output = sdpa.masked(
            query,
            key,
            value,
            *merged,
            dropout=call.dropout,
            scale=scale,
            temperature=temperature,
            never_empty=not alone and limits is None and bias is None,
        )
        output = output.unflatten(0, (count, -1)).movedim(-2, 1)  # [count, b, S, H, D]
        return output.reshape(count * size, sequences, heads, width)


def _flat(mask: Tensor, count: int, sequences: int) -> Tensor:
    """`[count or 1, S or 1, ...]` as what broadcasts to `[count · S, ...]`."""
    if mask.shape[:2] != (1, 1):
        mask = mask.expand(count, sequences, -1, -1, -1)
    return mask.flatten(0, 1)


def _by_time(x: Tensor, step: int) -> Tensor:
    """`[..., T, H, D]` as `[⌈T / step⌉, step · B, H, D]`: every step-th position side by side."""
    x = x.unsqueeze(0) if x.dim() == 3 else x.flatten(0, -4)
    x = x.transpose(0, 1)
    if step == 1:
        return x
    if len(x) % step:
        x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % step))
    return x.unflatten(0, (-1, step)).flatten(1, 2)


def _bias_by_time(call: Call, window: Window) -> Tensor | None:
    """The bias as `[T or 1, S or 1, H or 1, W]`."""
    bias, query = call.bias, call.query
    if bias is None or query is None:
        return None
    *batch, queries, _, _ = query.shape
    bias = bias.reshape((1,) * (query.dim() - bias.dim()) + bias.shape)
    several, step = math.prod(bias.shape[:-3]) > 1, window.dilation
    if step > 1 and (several or bias.shape[-2] > 1):
        bias = bias.expand(*batch, -1, queries, window.width)
    else:
        bias = bias.expand(*(batch if several else bias.shape[:-3]), -1, -1, window.width)
        step = 1  # one row for all
    return _by_time(bias.transpose(-2, -3), step)


def _limits(call: Call, window: Window) -> Tensor | None:
    """How many keys each sequence of `_by_time` has, `[step · B]`, unless it has all of them."""
    step, keys, batch = window.dilation, call.num_keys, call.key.shape[:-3]
    lengths = window.lengths
    if lengths is None:
        if keys % step == 0:
            return None
        lengths = torch.full(batch, keys, device=call.key.device)
    start = torch.arange(step, device=lengths.device)[:, None]
    return ((lengths.flatten() - start + step - 1) // step).flatten()


def _skewed(bias: Tensor) -> Tensor:
    """`[..., b, W]` with row i moved right by i columns, `[..., b, b + W - 1]`; elsewhere -inf."""
    rows, columns = bias.shape[-2:]
    bias = F.pad(bias, (0, rows), value=-math.inf).flatten(-2)
    return bias[..., : rows * (rows + columns - 1)].unflatten(-1, (rows, rows + columns - 1))
