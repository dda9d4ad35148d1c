"""The backward kernels: one pass by query and one by key; weights are made anew."""

from __future__ import annotations

import triton
import triton.language as tl

from attn_core.backends.triton.pieces import (
    activate,
    head_vectors,
    kept,
    logits,
    numbers,
    put_numbers,
    put_vectors,
    slope,
    vectors,
)


@triton.jit
def mean_rows(
    grad_output, output, grad_log_sum_exp, mean, num_rows, heads, width,
    ACC: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """What the softmax takes off the gradients of a row's weights: their mean under the weights."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row_ok = row < num_rows
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    head_ok = head < heads
    channel = tl.arange(0, WIDTH)
    channel_ok = channel < width
    stride = heads * width
    grad = vectors(grad_output, row, stride, width, row_ok, head, head_ok, channel, channel_ok, ACC)
    out = vectors(output, row, stride, width, row_ok, head, head_ok, channel, channel_ok, ACC)
    of_lse = numbers(grad_log_sum_exp, row, heads, 1, row_ok, head, head_ok, ACC)
    put_numbers(mean, row, row_ok, head, head_ok, heads, tl.sum(grad * out, 2) - of_lse)


@triton.jit
def weights_and_grads(logit, largest, total, mean, grad, x, scale, ok, head_ok):
    """The weights after dropout and the gradients of the logits, `[R, H]` each."""
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    logit = tl.where(ok[:, None] & head_ok[None, :], logit - shift, float("-inf"))
    weight = tl.exp(logit) / tl.where(total == 0, 1.0, total)
    grad_logit = weight * (tl.sum(grad * x, 2) * scale - mean)
    return weight * scale, grad_logit


@triton.jit
def grad_hidden(q, k, vector, grad_logit, KIND: tl.constexpr, CONSTANT: tl.constexpr,
                ACC: tl.constexpr):  # fmt: skip
    """The gradient of the hidden vector of an additive score, `[R, H, D]`."""
    return slope(q + k, KIND, CONSTANT, ACC) * vector * grad_logit[:, :, None]


@triton.jit
def by_query(
    item_row, item_start, item_length, item_part, num_items,
    other, place, edge_id, seed, threshold, keep_scale,
    query, query_row, query_head,
    key, key_row, key_head,
    value, value_row, value_head,
    vector,
    bias, bias_row, bias_head,
    pair_key, pair_key_row, pair_key_head,
    pair_value, pair_value_row, pair_value_head,
    grad_output, maximum, total, mean,
    grad_query, part_query, part_vector, grad_bias, grad_pair_key, grad_pair_value,
    heads, width, value_width,
    KIND: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, of the vector, and of what is given per pair, where not None."""
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
    grad = vectors(grad_output, row, heads * value_width, value_width, item_ok, head, head_ok,
                   value_channel, value_channel_ok, ACC)  # fmt: skip
    largest = numbers(maximum, row, heads, 1, item_ok, head, head_ok, ACC)
    row_total = numbers(total, row, heads, 1, item_ok, head, head_ok, ACC)
    row_mean = numbers(mean, row, heads, 1, item_ok, head, head_ok, ACC)

    sum_query = tl.zeros([ROWS, HEADS, WIDTH], ACC)
    sum_vector = tl.zeros([ROWS, HEADS, WIDTH], ACC)
    scale = tl.full([ROWS, HEADS], 1.0, ACC)
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
        if seed is not None:
            scale = kept(seed, edge_id, slot, ok, head, threshold, keep_scale, ACC)
        weight, grad_logit = weights_and_grads(logit, largest, row_total, row_mean, grad, x, scale,
                                               ok, head_ok)  # fmt: skip

        if grad_bias is not None:
            put_numbers(grad_bias, pair, ok, head, head_ok, heads, grad_logit)
        if grad_pair_value is not None:
            put_vectors(grad_pair_value, pair, ok, head, head_ok, heads, value_channel,
                        value_channel_ok, value_width, weight[:, :, None] * grad)  # fmt: skip
        if KIND == "dot":
            of_score = CONSTANT * grad_logit[:, :, None]
            if grad_query is not None:
                sum_query += of_score * k
            if grad_pair_key is not None:
                put_vectors(grad_pair_key, pair, ok, head, head_ok, heads, channel, channel_ok,
                            width, of_score * q)  # fmt: skip
        else:
            if part_vector is not None:
                active = activate(q + k, KIND, CONSTANT, ACC)
                sum_vector += active * grad_logit[:, :, None]
            if (grad_query is not None) or (grad_pair_key is not None):
                of_hidden = grad_hidden(q, k, v, grad_logit, KIND, CONSTANT, ACC)
                if grad_query is not None:
                    sum_query += of_hidden
                if grad_pair_key is not None:
                    put_vectors(grad_pair_key, pair, ok, head, head_ok, heads, channel, channel_ok,
                                width, of_hidden)  # fmt: skip

    if grad_query is not None:
        put_vectors(grad_query, row, item_ok & (part < 0), head, head_ok, heads, channel,
                    channel_ok, width, sum_query)  # fmt: skip
    if part_query is not None:
        put_vectors(part_query, part, item_ok & (part >= 0), head, head_ok, heads, channel,
                    channel_ok, width, sum_query)  # fmt: skip
    if part_vector is not None:
        program = tl.program_id(0) + tl.zeros([1], tl.int64)
        of_all = tl.sum(sum_vector, 0)[None, :, :]
        put_vectors(part_vector, program, program >= 0, head, head_ok, heads, channel, channel_ok,
                    width, of_all)  # fmt: skip


@triton.jit
def by_key(
    item_row, item_start, item_length, item_part, num_items,
    other, place, edge_id, seed, threshold, keep_scale,
    query, query_row, query_head,
    key, key_row, key_head,
    value, value_row, value_head,
    vector,
    bias, bias_row, bias_head,
    pair_key, pair_key_row, pair_key_head,
    pair_value, pair_value_row, pair_value_head,
    grad_output, maximum, total, mean,
    grad_key, part_key, grad_value, part_value,
    heads, width, value_width,
    KIND: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and of values, where not None; the items are those of the transpose."""
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

    row_key = vectors(key, row, key_row, key_head, item_ok, head, head_ok, channel, channel_ok, ACC)
    row_value = vectors(value, row, value_row, value_head, item_ok, head, head_ok, value_channel,
                        value_channel_ok, ACC)  # fmt: skip
    v = tl.full([1, HEADS, WIDTH], 1.0, ACC)
    if vector is not None:
        v = head_vectors(vector, head, head_ok, heads, channel, channel_ok, width, ACC)

    q = tl.zeros([ROWS, HEADS, WIDTH], ACC)
    sum_key = tl.zeros([ROWS, HEADS, WIDTH], ACC)
    sum_value = tl.zeros([ROWS, HEADS, VALUE_WIDTH], ACC)
    scale = tl.full([ROWS, HEADS], 1.0, ACC)
    for step in range(tl.max(length, 0)):
        ok = step < length
        slot = start + step
        node = tl.load(other + slot, mask=ok, other=0).to(tl.int64)
        if query is not None:
            q = vectors(query, node, query_row, query_head, ok, head, head_ok, channel, channel_ok,
                        ACC)  # fmt: skip
        grad = vectors(grad_output, node, heads * value_width, value_width, ok, head, head_ok,
                       value_channel, value_channel_ok, ACC)  # fmt: skip
        largest = numbers(maximum, node, heads, 1, ok, head, head_ok, ACC)
        node_total = numbers(total, node, heads, 1, ok, head, head_ok, ACC)
        node_mean = numbers(mean, node, heads, 1, ok, head, head_ok, ACC)
        k, x = row_key, row_value
        if place is not None:
            pair = tl.load(place + slot, mask=ok, other=0).to(tl.int64)
            if pair_key is not None:
                k = row_key + vectors(pair_key, pair, pair_key_row, pair_key_head, ok, head,
                                      head_ok, channel, channel_ok, ACC)  # fmt: skip
            if pair_value is not None:
                x = row_value + vectors(pair_value, pair, pair_value_row, pair_value_head, ok, head,
                                        head_ok, value_channel, value_channel_ok, ACC)  # fmt: skip
        logit = logits(q, k, v, KIND, CONSTANT, ACC)
        if bias is not None:
            logit += numbers(bias, pair, bias_row, bias_head, ok, head, head_ok, ACC)
        if seed is not None:
            scale = kept(seed, edge_id, slot, ok, head, threshold, keep_scale, ACC)
        weight, grad_logit = weights_and_grads(logit, largest, node_total, node_mean, grad, x,
                                               scale, ok, head_ok)  # fmt: skip
        if grad_value is not None:
            sum_value += weight[:, :, None] * grad
        if grad_key is not None:
            if KIND == "dot":
                sum_key += CONSTANT * grad_logit[:, :, None] * q
            else:
                sum_key += grad_hidden(q, k, v, grad_logit, KIND, CONSTANT, ACC)

    whole, split = item_ok & (part < 0), item_ok & (part >= 0)
    if grad_key is not None:
        put_vectors(grad_key, row, whole, head, head_ok, heads, channel, channel_ok, width, sum_key)
    if part_key is not None:
        put_vectors(part_key, part, split, head, head_ok, heads, channel, channel_ok, width,
                    sum_key)  # fmt: skip
    if grad_value is not None:
        put_vectors(grad_value, row, whole, head, head_ok, heads, value_channel, value_channel_ok,
                    value_width, sum_value)  # fmt: skip
    if part_value is not None:
        put_vectors(part_value, part, split, head, head_ok, heads, value_channel,
                    value_channel_ok, value_width, sum_value)  # fmt: skip
