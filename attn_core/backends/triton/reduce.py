"""Kernels over groups of entries `[E, C]`: sums, maxima, and what a softmax is made of.

Tiles are `[R, S, C]`: rows (of items), steps along them, columns.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def reduce_rows(
    item_row, item_start, item_length, item_part, num_items,
    place, x, factor, out, total, part_out, part_total, columns,
    KIND: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, STEPS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sum ("sum") or maximum ("max") of each item, or ("softmax") maximum and total.

    The total is `Σ exp(x - maximum)`; a factor multiplies what is summed. Without parts, all items
    are whole rows; without a place, entries are sorted already.
    """
    item = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(item_row + item, mask=item < num_items, other=-1).to(tl.int64)
    item_ok = row >= 0
    start = tl.load(item_start + item, mask=item_ok, other=0)
    length = tl.load(item_length + item, mask=item_ok, other=0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    column_ok = column < columns

    largest = tl.full([ROWS, COLUMNS], float("-inf"), ACC)
    acc = tl.zeros([ROWS, COLUMNS], ACC)
    for begin in range(0, tl.max(length, 0), STEPS):
        step = begin + tl.arange(0, STEPS)
        entry_ok = step[None, :] < length[:, None]
        entry = start[:, None] + step[None, :]
        if place is not None:
            entry = tl.load(place + entry, mask=entry_ok, other=0).to(tl.int64)
        at = entry[:, :, None] * columns + column[None, None, :]
        ok = entry_ok[:, :, None] & column_ok[None, None, :]
        tile = tl.load(x + at, mask=ok, other=0.0).to(ACC)
        if KIND == "sum":
            if factor is not None:
                tile *= tl.load(factor + at, mask=ok, other=0.0).to(ACC)
            acc += tl.sum(tile, 1)
        else:
            tile = tl.where(ok, tile, float("-inf"))
            larger = tl.maximum(largest, tl.max(tile, 1))
            if KIND == "max":
                acc += tl.sum(tl.where(tile != tile, 1.0, 0.0).to(ACC), 1)  # how many are NaN
            else:
                shift = tl.where(larger == float("-inf"), 0.0, larger)  # not -inf - -inf
                share = tl.exp(tile - shift[:, None, :])
                if factor is not None:
                    share *= tl.load(factor + at, mask=ok, other=0.0).to(ACC)
                acc = acc * tl.exp(largest - shift) + tl.sum(share, 1)
            largest = larger
    if KIND == "max":
        largest = tl.where(acc > 0, float("nan"), largest)

    part = tl.full([ROWS], -1, tl.int64)
    if part_out is not None:
        part = tl.load(item_part + item, mask=item_ok, other=-1).to(tl.int64)
    ok = column_ok[None, :] & (item_ok & (part < 0))[:, None]
    at = row[:, None] * columns + column[None, :]
    first = acc if KIND == "sum" else largest
    tl.store(out + at, first.to(out.dtype.element_ty), mask=ok)
    if KIND == "softmax":
        tl.store(total + at, acc, mask=ok)
    if part_out is not None:
        ok = column_ok[None, :] & (item_ok & (part >= 0))[:, None]
        at = part[:, None] * columns + column[None, :]
        tl.store(part_out + at, first, mask=ok)
        if KIND == "softmax":
            tl.store(part_total + at, acc, mask=ok)


@triton.jit
def softmax_entries(
    x, index, largest, total, weights, num_entries, columns,
    ACC: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`exp(x - largest) / total` with the numbers of each entry's group."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ok = (entry < num_entries)[:, None] & (column < columns)[None, :]
    at = entry[:, None] * columns + column[None, :]
    row = tl.load(index + entry, mask=entry < num_entries, other=0)
    of_row = row[:, None] * columns + column[None, :]
    shift = tl.load(largest + of_row, mask=ok, other=0.0)
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    divisor = tl.load(total + of_row, mask=ok, other=1.0)
    weight = tl.exp(tl.load(x + at, mask=ok, other=0.0).to(ACC) - shift)
    weight /= tl.where(divisor == 0, 1.0, divisor)
    tl.store(weights + at, weight.to(weights.dtype.element_ty), mask=ok)


@triton.jit
def softmax_backward_entries(
    weights, grad, index, mean, out, num_entries, columns,
    ACC: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`weight (grad - mean)` with the mean of each entry's group."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    ok = (entry < num_entries)[:, None] & (column < columns)[None, :]
    at = entry[:, None] * columns + column[None, :]
    row = tl.load(index + entry, mask=entry < num_entries, other=0)
    centre = tl.load(mean + row[:, None] * columns + column[None, :], mask=ok, other=0.0)
    weight = tl.load(weights + at, mask=ok, other=0.0).to(ACC)
    found = weight * (tl.load(grad + at, mask=ok, other=0.0).to(ACC) - centre)
    tl.store(out + at, found.to(out.dtype.element_ty), mask=ok)
