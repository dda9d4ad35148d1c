"""Kernels over groups of entries `[E, C]`: sums, maxima, what a softmax is made of, entmax.

Tiles are `[R, S, C]`: rows (of items), steps along them, columns. An entry is read through `place`,
where each of those sorted by group stands.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attn_core.backends.triton.pieces import among, heads_at, kernel, put_numbers, work

MOST_TURNS = tl.constexpr(64)  # of Newton's method, which needs about half as many at worst


@triton.jit
def entries(place, start, length, begin, STEPS, COLUMNS, BLOCK):
    """Where the numbers of STEPS entries of each row are, and which there are, `[R, S, C]` each."""
    step = begin + tl.arange(0, STEPS)
    there = step[None, :] < length[:, None]
    entry = tl.load(place + start[:, None] + step[None, :], mask=there, other=0).to(tl.int64)
    column = heads_at(COLUMNS, BLOCK)
    ok = there[:, :, None]
    if COLUMNS % BLOCK != 0:
        ok = ok & (column < COLUMNS)[None, None, :]
    return entry[:, :, None] * COLUMNS + column[None, None, :], ok


@kernel
def reduce_rows(
    items, num_items, place, x, factor, out, total, part_out, part_total,
    KIND, COLUMNS, ACC, ROWS, STEPS, BLOCK,
):  # fmt: skip
    """The sum ("sum") or maximum ("max") of each item, or ("softmax") maximum and total.

    The total is `Σ exp(x - maximum)`; a factor multiplies what is summed.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, item_ok, start, length, part = work(items, num_items, first, ROWS)
    largest = tl.full([ROWS, BLOCK], float("-inf"), ACC)
    acc = tl.zeros([ROWS, BLOCK], ACC)
    for begin in range(0, tl.max(length, 0), STEPS):
        at, ok = entries(place, start, length, begin, STEPS, COLUMNS, BLOCK)
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
                acc = acc * tl.exp(largest - shift) + tl.sum(share, 1)
            largest = larger
    if KIND == "max":
        largest = tl.where(acc > 0, float("nan"), largest)

    found = acc if KIND == "sum" else largest
    whole, split = item_ok & (part < 0), item_ok & (part >= 0)
    put_numbers(out, row, whole, COLUMNS, BLOCK, found)
    if KIND == "softmax":
        put_numbers(total, row, whole, COLUMNS, BLOCK, acc)
    if part_out is not None:
        put_numbers(part_out, part, split, COLUMNS, BLOCK, found)
        if KIND == "softmax":
            put_numbers(part_total, part, split, COLUMNS, BLOCK, acc)


@triton.jit
def tile_of(index, num_entries, COLUMNS, ENTRIES, BLOCK):
    """Of a tile of entries: where it is, where the numbers of its groups are, and what there is."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    there = entry < num_entries
    row = tl.load(index + entry, mask=there, other=0).to(tl.int64)
    column = heads_at(COLUMNS, BLOCK)[None, :]
    at, of_row = entry[:, None] * COLUMNS + column, row[:, None] * COLUMNS + column
    return at, of_row, among(there, COLUMNS, BLOCK)


@kernel
def softmax_entries(x, index, largest, total, weights, num_entries, COLUMNS, ACC, ENTRIES, BLOCK):
    """`exp(x - largest) / total` with the numbers of each entry's group."""
    at, of_row, ok = tile_of(index, num_entries, COLUMNS, ENTRIES, BLOCK)
    shift = tl.load(largest + of_row, mask=ok, other=0.0)
    shift = tl.where(shift == float("-inf"), 0.0, shift)
    divisor = tl.load(total + of_row, mask=ok, other=1.0)
    weight = tl.exp(tl.load(x + at, mask=ok, other=0.0).to(ACC) - shift)
    weight /= tl.where(divisor == 0, 1.0, divisor)
    tl.store(weights + at, weight.to(weights.dtype.element_ty), mask=ok)


@kernel
def softmax_backward_entries(
    weights, grad, index, mean, out, num_entries, COLUMNS, ACC, ENTRIES, BLOCK
):
    """`weight (grad - mean)` with the mean of each entry's group."""
    at, of_row, ok = tile_of(index, num_entries, COLUMNS, ENTRIES, BLOCK)
    centre = tl.load(mean + of_row, mask=ok, other=0.0)
    weight = tl.load(weights + at, mask=ok, other=0.0).to(ACC)
    found = weight * (tl.load(grad + at, mask=ok, other=0.0).to(ACC) - centre)
    tl.store(out + at, found.to(out.dtype.element_ty), mask=ok)


@triton.jit
def whole_rows(items, num_items, pointer, ROWS):
    """Where rows begin, and their lengths: of items that are not cut, or of those that were.

    With a pointer the items are partial results; the first of each row stands for it.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    if pointer is None:
        row, ok, start, length, part = work(items, num_items, first, ROWS)
        length = tl.where(part < 0, length, 0)
    else:
        item = first + tl.arange(0, ROWS)
        ok = item < num_items
        ok = ok & (tl.load(items + 2 * item + 1, mask=ok, other=0) > 0)
        row = tl.load(items + 2 * item, mask=ok, other=0).to(tl.int64)
        start = tl.load(pointer + row, mask=ok, other=0)
        length = (tl.load(pointer + row + 1, mask=ok, other=0) - start).to(tl.int32)
    return start, length


@kernel
def entmax_rows(
    items, num_items, pointer, place, x, weights, COLUMNS, ALPHA, ACC, ROWS, STEPS, BLOCK
):
    """α-entmax of each row, `[s - τ]₊^p` with `s = (α - 1) x` and `p = 1 / (α - 1)`, 1 or 2.

    The sum of a row falls with τ and is convex in it, so Newton's steps from one below the largest
    s, where it is 1 at least, rise to the root and never beyond.
    """
    start, length = whole_rows(items, num_items, pointer, ROWS)
    longest = tl.max(length, 0)
    largest = tl.full([ROWS, BLOCK], float("-inf"), ACC)
    wrong = tl.zeros([ROWS, BLOCK], ACC)  # how many are NaN
    for begin in range(0, longest, STEPS):
        at, ok = entries(place, start, length, begin, STEPS, COLUMNS, BLOCK)
        tile = tl.load(x + at, mask=ok, other=float("-inf")).to(ACC) * (ALPHA - 1)
        largest = tl.maximum(largest, tl.max(tile, 1))
        wrong += tl.sum(tl.where(tile != tile, 1.0, 0.0).to(ACC), 1)
    wrong = tl.where(largest == float("inf"), 1.0, wrong)
    shift = tl.where(tl.abs(largest) == float("inf"), 0.0, largest)

    threshold = tl.full([ROWS, BLOCK], -1.0, ACC)
    turn = 0 * longest
    turns = tl.where(longest > 0, MOST_TURNS, 0)
    while turn < turns:
        total = tl.zeros([ROWS, BLOCK], ACC)
        slope = tl.zeros([ROWS, BLOCK], ACC)
        for begin in range(0, longest, STEPS):
            at, ok = entries(place, start, length, begin, STEPS, COLUMNS, BLOCK)
            tile = tl.load(x + at, mask=ok, other=float("-inf")).to(ACC) * (ALPHA - 1)
            above = tl.maximum(tile - shift[:, None, :] - threshold[:, None, :], 0.0)
            if ALPHA == 2:
                total += tl.sum(above, 1)
                slope += tl.sum(tl.where(above > 0, 1.0, 0.0).to(ACC), 1)
            else:
                total += tl.sum(above * above, 1)
                slope += tl.sum(2 * above, 1)
        step = tl.maximum(total - 1, 0.0) / tl.where(slope == 0, 1.0, slope)
        higher = tl.where(wrong > 0, threshold, threshold + step)
        rising = tl.max(tl.max((higher > threshold).to(tl.int32), 1), 0)
        turn = tl.where(rising > 0, turn + 1, turns)
        threshold = higher

    for begin in range(0, longest, STEPS):
        at, ok = entries(place, start, length, begin, STEPS, COLUMNS, BLOCK)
        tile = tl.load(x + at, mask=ok, other=float("-inf")).to(ACC) * (ALPHA - 1)
        above = tl.maximum(tile - shift[:, None, :] - threshold[:, None, :], 0.0)
        weight = above if ALPHA == 2 else above * above
        weight = tl.where(wrong[:, None, :] > 0, float("nan"), weight)
        tl.store(weights + at, weight.to(weights.dtype.element_ty), mask=ok)


@kernel
def entmax_backward_rows(
    items, num_items, pointer, place, weights, grad, out, COLUMNS, ALPHA, ACC, ROWS, STEPS, BLOCK
):
    """`u (g - Σ u g / Σ u)` with `u = w^(2 - α)`, the gradient of what α-entmax was taken of."""
    start, length = whole_rows(items, num_items, pointer, ROWS)
    longest = tl.max(length, 0)
    total = tl.zeros([ROWS, BLOCK], ACC)
    mean = tl.zeros([ROWS, BLOCK], ACC)
    for begin in range(0, longest, STEPS):
        at, ok = entries(place, start, length, begin, STEPS, COLUMNS, BLOCK)
        share = inside(tl.load(weights + at, mask=ok, other=0.0).to(ACC), ALPHA)
        total += tl.sum(share, 1)
        mean += tl.sum(share * tl.load(grad + at, mask=ok, other=0.0).to(ACC), 1)
    mean /= tl.where(total == 0, 1.0, total)
    for begin in range(0, longest, STEPS):
        at, ok = entries(place, start, length, begin, STEPS, COLUMNS, BLOCK)
        share = inside(tl.load(weights + at, mask=ok, other=0.0).to(ACC), ALPHA)
        found = share * (tl.load(grad + at, mask=ok, other=0.0).to(ACC) - mean[:, None, :])
        tl.store(out + at, found.to(out.dtype.element_ty), mask=ok)


@triton.jit
def inside(weight, ALPHA):
    """`w^(2 - α)` where w is not 0, else 0; NaN stays."""
    if ALPHA == 2:
        return tl.where(weight > 0, 1.0, weight)
    else:
        return tl.sqrt(weight)
