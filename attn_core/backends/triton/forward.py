"""The forward kernel: an online softmax over the pairs of each row."""

from __future__ import annotations

import triton
import triton.language as tl

from attn_core.backends.triton.pieces import (
    head_vectors,
    kept,
    logits,
    numbers,
    put_numbers,
    put_vectors,
    vectors,
)


@triton.jit
def attend_rows(
    item_row, item_start, item_length, item_part, num_items,
    other, place, edge_id, seed, threshold, keep_scale,
    query, query_row, query_head,
    key, key_row, key_head,
    value, value_row, value_head,
    vector,
    bias, bias_row, bias_head,
    pair_key, pair_key_row, pair_key_head,
    pair_value, pair_value_row, pair_value_head,
    output, log_sum_exp, maximum, total_of,
    part_output, part_maximum, part_total,
    heads, width, value_width,
    KIND: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Output, log-sum-exp, maximum and total of ROWS items, whole rows or parts."""
    item = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(item_row + item, mask=item < num_items, other=-1).to(tl.int64)
    item_ok = row >= 0
    start = tl.load(item_start + item, mask=item_ok, other=0)
    length = tl.load(item_length + item, mask=item_ok, other=0)
    part = tl.load(item_part + item, mask=item_ok, other=-1).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    head_ok = head < heads
    channel, value_channel = tl.arange(0, WIDTH), tl.arange(0, VALUE_WIDTH)
    channel_ok, value_channel_ok = channel < width, value_channel < value_width

    q = tl.zeros([ROWS, HEADS, WIDTH], ACC)
    if query is not None:
        q = vectors(query, row, query_row, query_head, item_ok, head, head_ok, channel, channel_ok,
                    ACC)  # fmt: skip
    v = tl.full([1, HEADS, WIDTH], 1.0, ACC)
    if vector is not None:
        v = head_vectors(vector, head, head_ok, heads, channel, channel_ok, width, ACC)

    largest = tl.full([ROWS, HEADS], float("-inf"), ACC)
    total = tl.zeros([ROWS, HEADS], ACC)
    mean = tl.zeros([ROWS, HEADS, VALUE_WIDTH], ACC)
    for step in range(tl.max(length, 0)):
        ok = step < length
        slot = start + step
        node = tl.load(other + slot, mask=ok, other=0).to(tl.int64)
        k = vectors(key, node, key_row, key_head, ok, head, head_ok, channel, channel_ok, ACC)
        x = vectors(value, node, value_row, value_head, ok, head, head_ok, value_channel,
                    value_channel_ok, ACC)  # fmt: skip
        if place is not None:
            pair = tl.load(place + slot, mask=ok, other=0).to(tl.int64)
            if pair_key is not None:
                k += vectors(pair_key, pair, pair_key_row, pair_key_head, ok, head, head_ok,
                             channel, channel_ok, ACC)  # fmt: skip
            if pair_value is not None:
                x += vectors(pair_value, pair, pair_value_row, pair_value_head, ok, head, head_ok,
                             value_channel, value_channel_ok, ACC)  # fmt: skip
        logit = logits(q, k, v, KIND, CONSTANT, ACC)
        if bias is not None:
            logit += numbers(bias, pair, bias_row, bias_head, ok, head, head_ok, ACC)
        logit = tl.where(ok[:, None], logit, float("-inf"))

        larger = tl.maximum(largest, logit)
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # not -inf - -inf
        shrink = tl.exp(largest - shift)
        weight = tl.exp(logit - shift)
        largest = larger
        total = total * shrink + weight
        if seed is not None:
            weight *= kept(seed, edge_id, slot, ok, head, threshold, keep_scale, ACC)
        mean = mean * shrink[:, :, None] + weight[:, :, None] * x

    mean /= tl.where(total == 0, 1.0, total)[:, :, None]
    whole, split = item_ok & (part < 0), item_ok & (part >= 0)
    put_vectors(output, row, whole, head, head_ok, heads, value_channel, value_channel_ok,
                value_width, mean)  # fmt: skip
    put_statistics(log_sum_exp, maximum, total_of, row, whole, head, head_ok, heads, largest, total)
    if part_output is not None:
        put_vectors(part_output, part, split, head, head_ok, heads, value_channel,
                    value_channel_ok, value_width, mean)  # fmt: skip
        put_numbers(part_maximum, part, split, head, head_ok, heads, largest)
        put_numbers(part_total, part, split, head, head_ok, heads, total)


@triton.jit
def put_statistics(log_sum_exp, maximum, total_of, row, ok, head, head_ok, heads, largest, total):
    """Store what is known of the softmax of each row, `[R, H]`."""
    lse = tl.where(total == 0, float("-inf"), largest + tl.log(tl.where(total == 0, 1.0, total)))
    put_numbers(log_sum_exp, row, ok, head, head_ok, heads, lse)
    put_numbers(maximum, row, ok, head, head_ok, heads, largest)
    put_numbers(total_of, row, ok, head, head_ok, heads, total)


@triton.jit
def combine_rows(
    split_row, split_pointer,
    part_x, part_maximum, part_total,
    x, log_sum_exp, maximum, total_of,
    heads, width,
    ACC: tl.constexpr, PARTS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one row, in their order: sums, or means under their totals."""
    first = tl.load(split_pointer + tl.program_id(0))
    number = (tl.load(split_pointer + tl.program_id(0) + 1) - first).to(tl.int32)
    row = tl.load(split_row + tl.program_id(0)) + tl.zeros([1], tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    head_ok = head < heads
    channel = tl.arange(0, WIDTH)
    channel_ok = channel < width
    largest = tl.full([HEADS], float("-inf"), ACC)
    total = tl.zeros([HEADS], ACC)
    merged = tl.zeros([HEADS, WIDTH], ACC)
    for begin in range(0, number, PARTS):
        step = begin + tl.arange(0, PARTS)
        ok = step < number
        part = first + step
        tile = vectors(part_x, part, heads * width, width, ok, head, head_ok, channel, channel_ok,
                       ACC)  # fmt: skip
        if part_maximum is None:
            merged += tl.sum(tile, 0)
        else:
            most = numbers(part_maximum, part, heads, 1, ok, head, head_ok, ACC)
            most = tl.where(ok[:, None], most, float("-inf"))
            larger = tl.maximum(largest, tl.max(most, 0))
            shift = tl.where(larger == float("-inf"), 0.0, larger)
            shrink = tl.exp(largest - shift)
            weight = tl.exp(most - shift[None, :])
            weight *= numbers(part_total, part, heads, 1, ok, head, head_ok, ACC)
            largest = larger
            total = total * shrink + tl.sum(weight, 0)
            merged = merged * shrink[:, None] + tl.sum(weight[:, :, None] * tile, 0)
    if part_maximum is not None:
        merged /= tl.where(total == 0, 1.0, total)[:, None]
        put_statistics(log_sum_exp, maximum, total_of, row, row >= 0, head, head_ok, heads,
                       largest[None, :], total[None, :])  # fmt: skip
    put_vectors(x, row, row >= 0, head, head_ok, heads, channel, channel_ok, width,
                merged[None, :, :])  # fmt: skip
