"""The forward kernel, an online softmax over the pairs of each row; and how parts are merged."""

from __future__ import annotations

import triton
import triton.language as tl

from attn_core.backends.triton.pieces import (
    addresses,
    generated,
    head_vectors,
    kept,
    kernel,
    logits,
    numbers,
    put_numbers,
    put_vectors,
    query_vectors,
    vectors,
    work,
)


@kernel
def attend_rows(
    items, num_items, other, place, edge_id, seed, threshold, keep_scale,
    query, key, value, vector, bias, pair_key, pair_value,
    output, log_sum_exp, maximum, total_of, part_output, part_maximum, part_total,
    QUERY_ROW, QUERY_HEAD, KEY_ROW, KEY_HEAD, VALUE_ROW, VALUE_HEAD, BIAS_ROW, BIAS_HEAD,
    PAIR_KEY_ROW, PAIR_KEY_HEAD, PAIR_VALUE_ROW, PAIR_VALUE_HEAD,
    KIND, CONSTANT, FUNCTION, HEADS, WIDTH, VALUE_WIDTH, ACC, ROWS, BLOCK, PAD, VALUE_PAD,
):  # fmt: skip
    """Output, log-sum-exp, maximum and total of ROWS items, whole rows or parts.

    Without a value it is the key, which is then not read twice.
    """
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, item_ok, start, length, part = work(items, num_items, first, ROWS)
    if FUNCTION is not None:
        q = addresses(query, row, QUERY_ROW, QUERY_HEAD, HEADS, BLOCK)
    else:
        q = query_vectors(query, row, item_ok, QUERY_ROW, QUERY_HEAD, HEADS, BLOCK, WIDTH, PAD,
                          ROWS, ACC)  # fmt: skip
        v = head_vectors(vector, HEADS, BLOCK, WIDTH, PAD, ACC)

    largest = tl.full([ROWS, BLOCK], float("-inf"), ACC)
    total = tl.zeros([ROWS, BLOCK], ACC)
    mean = tl.zeros([ROWS, BLOCK, VALUE_PAD], ACC)
    following = tl.load(other + start, mask=length > 0, other=0)  # read one pair ahead
    for step in range(tl.max(length, 0)):
        ok = step < length
        slot = start + step
        node = following.to(tl.int64)
        following = tl.load(other + slot + 1, mask=step + 1 < length, other=0)
        if FUNCTION is not None:
            k = addresses(key, node, KEY_ROW, KEY_HEAD, HEADS, BLOCK)
        else:
            k = vectors(key, node, ok, KEY_ROW, KEY_HEAD, HEADS, BLOCK, WIDTH, PAD, ACC)
        x, own = k, k
        if value is not None:
            x = vectors(value, node, ok, VALUE_ROW, VALUE_HEAD, HEADS, BLOCK, VALUE_WIDTH,
                        VALUE_PAD, ACC)  # fmt: skip
        if place is not None:
            pair = tl.load(place + slot, mask=ok, other=0).to(tl.int64)
            if pair_key is not None:
                if FUNCTION is not None:
                    own = addresses(pair_key, pair, PAIR_KEY_ROW, PAIR_KEY_HEAD, HEADS, BLOCK)
                else:
                    k += vectors(pair_key, pair, ok, PAIR_KEY_ROW, PAIR_KEY_HEAD, HEADS, BLOCK,
                                 WIDTH, PAD, ACC)  # fmt: skip
            if pair_value is not None:
                x += vectors(pair_value, pair, ok, PAIR_VALUE_ROW, PAIR_VALUE_HEAD, HEADS, BLOCK,
                             VALUE_WIDTH, VALUE_PAD, ACC)  # fmt: skip
        if FUNCTION is not None:
            logit = tl.sum(generated("logits", FUNCTION, q, k, own, vector, None, ok, HEADS, BLOCK,
                                     ROWS), 2)  # fmt: skip
        else:
            logit = logits(q, k, v, KIND, CONSTANT, ACC)
        if bias is not None:
            logit += numbers(bias, pair, ok, BIAS_ROW, BIAS_HEAD, HEADS, BLOCK, ACC)
        logit = tl.where(ok[:, None], logit, float("-inf"))

        larger = tl.maximum(largest, logit)
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # not -inf - -inf
        shrink = tl.exp(largest - shift)
        weight = tl.exp(logit - shift)
        largest = larger
        total = total * shrink + weight
        if seed is not None:
            weight *= kept(seed, edge_id, slot, ok, threshold, keep_scale, HEADS, BLOCK, ACC)
        mean = mean * shrink[:, :, None] + weight[:, :, None] * x

    mean /= tl.where(total == 0, 1.0, total)[:, :, None]
    whole, split = item_ok & (part < 0), item_ok & (part >= 0)
    put_vectors(output, row, whole, HEADS, BLOCK, VALUE_WIDTH, VALUE_PAD, mean)
    put_statistics(log_sum_exp, maximum, total_of, row, whole, HEADS, BLOCK, largest, total)
    if part_output is not None:
        put_vectors(part_output, part, split, HEADS, BLOCK, VALUE_WIDTH, VALUE_PAD, mean)
        put_numbers(part_maximum, part, split, HEADS, BLOCK, largest)
        put_numbers(part_total, part, split, HEADS, BLOCK, total)


@triton.jit
def put_statistics(log_sum_exp, maximum, total_of, row, ok, HEADS, BLOCK, largest, total):
    """Store what is known of the softmax of each row, `[R, H]`, where it is wanted."""
    put_numbers(maximum, row, ok, HEADS, BLOCK, largest)
    if total_of is not None:
        put_numbers(total_of, row, ok, HEADS, BLOCK, total)
    if log_sum_exp is not None:
        lse = largest + tl.log(tl.where(total == 0, 1.0, total))
        lse = tl.where(total == 0, float("-inf"), lse)
        put_numbers(log_sum_exp, row, ok, HEADS, BLOCK, lse)


@triton.jit
def merge(merged, largest, total, part, ok, part_x, part_maximum, part_total,
          HEADS, BLOCK, WIDTH, PAD, ACC):  # fmt: skip
    """What was merged of a row, `[H, D]` and `[H]`, with some more of its parts."""
    if part_x is not None:
        tile = vectors(part_x, part, ok, HEADS * WIDTH, WIDTH, HEADS, BLOCK, WIDTH, PAD, ACC)
    if part_maximum is None:
        merged += tl.sum(tile, 0)
    else:
        most = numbers(part_maximum, part, ok, HEADS, 1, HEADS, BLOCK, ACC)
        most = tl.where(ok[:, None], most, float("-inf"))
        larger = tl.maximum(largest, tl.max(most, 0))
        if part_total is None:  # the total counts what is NaN, which a maximum may not see
            total += tl.sum(tl.where(most != most, 1.0, 0.0).to(ACC), 0)
        else:
            shift = tl.where(larger == float("-inf"), 0.0, larger)
            shrink = tl.exp(largest - shift)
            weight = tl.exp(most - shift[None, :])
            weight *= numbers(part_total, part, ok, HEADS, 1, HEADS, BLOCK, ACC)
            total = total * shrink + tl.sum(weight, 0)
            if part_x is not None:
                merged = merged * shrink[:, None] + tl.sum(weight[:, :, None] * tile, 0)
        largest = larger
    return merged, largest, total


@triton.jit
def put_merged(x, log_sum_exp, maximum, total_of, row, ok, merged, largest, total, part_x,
               part_maximum, part_total, HEADS, BLOCK, WIDTH, PAD):  # fmt: skip
    """Store what was merged of one row: sums; or means and maxima and totals; or the latter two."""
    if part_maximum is not None:
        if part_total is None:
            largest = tl.where(total > 0, float("nan"), largest)
        else:
            merged /= tl.where(total == 0, 1.0, total)[:, None]
        put_statistics(log_sum_exp, maximum, total_of, row, ok, HEADS, BLOCK, largest[None, :],
                       total[None, :])  # fmt: skip
    if part_x is not None:
        put_vectors(x, row, ok, HEADS, BLOCK, WIDTH, PAD, merged[None, :, :])


@kernel
def merge_windows(
    parts, part_x, part_maximum, part_total, HEADS, WIDTH, ACC, WINDOW, PARTS, BLOCK, PAD
):
    """Merge WINDOW parts that all belong to one row, into the place of the first of them."""
    first = tl.program_id(0).to(tl.int64) * WINDOW + tl.zeros([1], tl.int64)
    row, last = tl.load(parts + 2 * first), tl.load(parts + 2 * (first + WINDOW - 1))
    together = (row >= 0) & (row == last)
    number = tl.max(tl.where(together, WINDOW, 0), 0)
    largest = tl.full([BLOCK], float("-inf"), ACC)
    total = tl.zeros([BLOCK], ACC)
    merged = tl.zeros([BLOCK, PAD], ACC)
    for begin in range(0, number, PARTS):
        step = begin + tl.arange(0, PARTS)
        merged, largest, total = merge(
            merged, largest, total, first + step, step < number, part_x, part_maximum, part_total,
            HEADS, BLOCK, WIDTH, PAD, ACC,
        )  # fmt: skip
    put_merged(part_x, None, part_maximum, part_total, first, together, merged, largest, total,
               part_x, part_maximum, part_total, HEADS, BLOCK, WIDTH, PAD)  # fmt: skip


@kernel
def combine_rows(
    parts, part_x, part_maximum, part_total, x, log_sum_exp, maximum, total_of,
    HEADS, WIDTH, ACC, WINDOW, PARTS, BLOCK, PAD,
):  # fmt: skip
    """Merge the parts of one row, in their order: sums, or means under their totals.

    Of the parts that `merge_windows` merged it reads the first; if WINDOW is 0, nothing did. The
    program is that of a part, and has something to do if it is the first of its row.
    """
    first = tl.program_id(0).to(tl.int64)
    row = tl.load(parts + 2 * first + tl.zeros([1], tl.int64)).to(tl.int64)
    number = tl.load(parts + 2 * first + 1).to(tl.int32)
    before, windows = number, 0 * number  # parts before the first whole window, then windows
    if WINDOW != 0:
        ahead = (WINDOW - 1 - (first + WINDOW - 1) % WINDOW).to(tl.int32)
        before = tl.minimum(number, ahead)
        windows = (number - before) // WINDOW
    left = number - windows * (WINDOW - 1) if WINDOW != 0 else number
    largest = tl.full([BLOCK], float("-inf"), ACC)
    total = tl.zeros([BLOCK], ACC)
    merged = tl.zeros([BLOCK, PAD], ACC)
    for begin in range(0, left, PARTS):
        step = begin + tl.arange(0, PARTS)
        skipped = tl.minimum(tl.maximum(step - before, 0), windows)
        part = first + step + (skipped * (WINDOW - 1) if WINDOW != 0 else 0)
        merged, largest, total = merge(
            merged, largest, total, part, step < left, part_x, part_maximum, part_total, HEADS,
            BLOCK, WIDTH, PAD, ACC,
        )  # fmt: skip
    ok = (row >= 0) & (number > 0)
    put_merged(x, log_sum_exp, maximum, total_of, row, ok, merged, largest, total, part_x,
               part_maximum, part_total, HEADS, BLOCK, WIDTH, PAD)  # fmt: skip
