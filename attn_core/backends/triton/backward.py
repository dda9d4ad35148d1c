"""The backward kernels: one pass by query and one by key; weights are made anew.

Both serve logits as well, which have no weights: the gradients of the scores of pairs are given,
and nothing is said of values. With the score of a product that is a weighted sum over edges.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attn_core.backends.triton.pieces import (
    activate,
    addresses,
    among,
    generated,
    head_vectors,
    kept,
    kernel,
    logits,
    numbers,
    put_numbers,
    put_vectors,
    query_vectors,
    slope,
    vectors,
    work,
)


@kernel
def mean_rows(
    grad_output, output, grad_log_sum_exp, mean, rows, HEADS, WIDTH, ACC, ROWS, BLOCK, PAD
):
    """What the softmax takes off the gradients of a row's weights: their mean under the weights."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    ok = row < rows
    stride = HEADS * WIDTH
    grad = vectors(grad_output, row, ok, stride, WIDTH, HEADS, BLOCK, WIDTH, PAD, ACC)
    out = vectors(output, row, ok, stride, WIDTH, HEADS, BLOCK, WIDTH, PAD, ACC)
    of_lse = numbers(grad_log_sum_exp, row, ok, HEADS, 1, HEADS, BLOCK, ACC)
    put_numbers(mean, row, ok, HEADS, BLOCK, tl.sum(grad * out, 2) - of_lse)


@triton.jit
def weights_and_grads(logit, largest, total, mean, rest, grad, x, scale, ok, HEADS, BLOCK):
    """The weights after dropout and the gradients of the logits, `[R, H]` each.

    `rest` is taken off after the mean, of which it has the digits that the mean has no room for.
    """
    shift = tl.where(largest == float("-inf"), 0.0, largest)
    logit = tl.where(among(ok, HEADS, BLOCK), logit - shift, float("-inf"))
    weight = tl.exp(logit) / tl.where(total == 0, 1.0, total)
    grad_logit = weight * (tl.sum(grad * x, 2) * scale - mean - rest)
    return weight * scale, grad_logit


@triton.jit
def grad_hidden(q, k, vector, grad_logit, KIND, CONSTANT, ACC):
    """The gradient of the hidden vector of an additive score, `[R, H, D]`."""
    return slope(q + k, KIND, CONSTANT, ACC) * vector * grad_logit[:, :, None]


@kernel
def by_query(
    items, num_items, turns, other, place, edge_id, seed, threshold, keep_scale,
    query, key, value, vector, bias, pair_key, pair_value,
    grad_score, grad_output, maximum, total, mean, rest, missed, part_missed,
    grad_query, part_query, part_vector, grad_bias, grad_pair_key, grad_pair_value,
    QUERY_ROW, QUERY_HEAD, KEY_ROW, KEY_HEAD, VALUE_ROW, VALUE_HEAD, BIAS_ROW, BIAS_HEAD,
    PAIR_KEY_ROW, PAIR_KEY_HEAD, PAIR_VALUE_ROW, PAIR_VALUE_HEAD,
    KIND, CONSTANT, FUNCTION, HEADS, WIDTH, VALUE_WIDTH, ACC, ROWS, BLOCK, PAD, VALUE_PAD,
    PAIR_WIDTH, PAIR_PAD, PAIR_HEADS, VECTOR_WIDTH, VECTOR_PAD, MANY,
):  # fmt: skip
    """Gradients of queries, of the vector, and of what is given per pair, where not None.

    Or what the gradients of the logits of a row sum to, into `missed`, of the rows where that is
    not 0: the mean that was taken off them is off by as much.

    A program serves ROWS items, or as many in each of its turns: what programs say of the vector
    would else take as much memory as there are nodes.
    """
    if FUNCTION is None:
        v = head_vectors(vector, HEADS, BLOCK, WIDTH, PAD, ACC)
    sum_vector = tl.zeros([ROWS, BLOCK, VECTOR_PAD], ACC)
    for turn in range(turns if MANY else 1):
        first = (tl.program_id(0).to(tl.int64) + turn * tl.num_programs(0)) * ROWS
        row, item_ok, start, length, part = work(items, num_items, first, ROWS)
        if FUNCTION is not None:
            q = addresses(query, row, QUERY_ROW, QUERY_HEAD, HEADS, BLOCK)
        else:
            q = query_vectors(query, row, item_ok, QUERY_ROW, QUERY_HEAD, HEADS, BLOCK, WIDTH, PAD,
                              ROWS, ACC)  # fmt: skip
        if grad_score is None:
            grad = vectors(grad_output, row, item_ok, HEADS * VALUE_WIDTH, VALUE_WIDTH, HEADS,
                           BLOCK, VALUE_WIDTH, VALUE_PAD, ACC)  # fmt: skip
            largest = numbers(maximum, row, item_ok, HEADS, 1, HEADS, BLOCK, ACC)
            row_total = numbers(total, row, item_ok, HEADS, 1, HEADS, BLOCK, ACC)
            row_mean = numbers(mean, row, item_ok, HEADS, 1, HEADS, BLOCK, ACC)
            row_rest = tl.zeros([ROWS, BLOCK], ACC)
            if rest is not None:
                row_rest = numbers(rest, row, item_ok, HEADS, 1, HEADS, BLOCK, ACC)
            sum_missed = tl.zeros([ROWS, BLOCK], ACC)
            if missed is not None:  # the other rows are not looked at
                asked = numbers(missed, row, item_ok, HEADS, 1, HEADS, BLOCK, ACC)
                length = tl.where(tl.max(asked, 1) > 0, length, 0)
        sum_query = tl.zeros([ROWS, BLOCK, PAD], ACC)
        scale = tl.full([ROWS, BLOCK], 1.0, ACC)
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
                    x += vectors(pair_value, pair, ok, PAIR_VALUE_ROW, PAIR_VALUE_HEAD, HEADS,
                                 BLOCK, VALUE_WIDTH, VALUE_PAD, ACC)  # fmt: skip
            if grad_score is not None:
                grad_logit = numbers(grad_score, pair, ok, HEADS, 1, HEADS, BLOCK, ACC)
            else:
                if FUNCTION is not None:
                    logit = tl.sum(generated("logits", FUNCTION, q, k, own, vector, None, ok, HEADS,
                                             BLOCK, ROWS), 2)  # fmt: skip
                else:
                    logit = logits(q, k, v, KIND, CONSTANT, ACC)
                if bias is not None:
                    logit += numbers(bias, pair, ok, BIAS_ROW, BIAS_HEAD, HEADS, BLOCK, ACC)
                if seed is not None:
                    scale = kept(seed, edge_id, slot, ok, threshold, keep_scale, HEADS, BLOCK, ACC)
                weight, grad_logit = weights_and_grads(
                    logit, largest, row_total, row_mean, row_rest, grad, x, scale, ok, HEADS, BLOCK
                )
                if missed is not None:
                    sum_missed += grad_logit
                if grad_pair_value is not None:
                    put_vectors(grad_pair_value, pair, ok, HEADS, BLOCK, VALUE_WIDTH, VALUE_PAD,
                                weight[:, :, None] * grad)  # fmt: skip
            if grad_bias is not None:
                put_numbers(grad_bias, pair, ok, HEADS, BLOCK, grad_logit)
            if FUNCTION is not None:
                of_score = grad_logit[:, :, None]
                if grad_query is not None:
                    sum_query += generated("query", FUNCTION, q, k, own, vector, of_score, ok,
                                           HEADS, BLOCK, ROWS)  # fmt: skip
                if part_vector is not None:
                    sum_vector += generated("parameters", FUNCTION, q, k, own, vector, of_score, ok,
                                            HEADS, BLOCK, ROWS)  # fmt: skip
                if grad_pair_key is not None:
                    of_own = generated("pair", FUNCTION, q, k, own, vector, of_score, ok, HEADS,
                                       BLOCK, ROWS)  # fmt: skip
                    if PAIR_HEADS == HEADS:
                        put_vectors(grad_pair_key, pair, ok, HEADS, BLOCK, PAIR_WIDTH, PAIR_PAD,
                                    of_own)  # fmt: skip
                    else:  # one vector for all heads, of which each program has some
                        put_vectors(grad_pair_key, pair, ok, PAIR_HEADS, 1, PAIR_WIDTH, PAIR_PAD,
                                    tl.sum(of_own, 1, keep_dims=True))  # fmt: skip
            elif KIND == "dot":
                of_score = CONSTANT * grad_logit[:, :, None]
                if grad_query is not None:
                    sum_query += of_score * k
                if grad_pair_key is not None:
                    put_vectors(grad_pair_key, pair, ok, HEADS, BLOCK, WIDTH, PAD, of_score * q)
            else:
                if part_vector is not None:
                    sum_vector += activate(q + k, KIND, CONSTANT, ACC) * grad_logit[:, :, None]
                if (grad_query is not None) or (grad_pair_key is not None):
                    of_hidden = grad_hidden(q, k, v, grad_logit, KIND, CONSTANT, ACC)
                    if grad_query is not None:
                        sum_query += of_hidden
                    if grad_pair_key is not None:
                        put_vectors(grad_pair_key, pair, ok, HEADS, BLOCK, WIDTH, PAD, of_hidden)

        if missed is not None:
            put_numbers(missed, row, item_ok & (part < 0), HEADS, BLOCK, sum_missed)
        if part_missed is not None:
            put_numbers(part_missed, part, item_ok & (part >= 0), HEADS, BLOCK, sum_missed)
        if grad_query is not None:
            put_vectors(grad_query, row, item_ok & (part < 0), HEADS, BLOCK, WIDTH, PAD, sum_query)
        if part_query is not None:
            put_vectors(part_query, part, item_ok & (part >= 0), HEADS, BLOCK, WIDTH, PAD,
                        sum_query)  # fmt: skip
    if part_vector is not None:
        program = tl.program_id(0) + tl.zeros([1], tl.int64)
        of_all = tl.sum(sum_vector, 0)[None, :, :]
        put_vectors(part_vector, program, program >= 0, HEADS, BLOCK, VECTOR_WIDTH, VECTOR_PAD,
                    of_all)  # fmt: skip


@kernel
def by_key(
    items, num_items, other, place, edge_id, seed, threshold, keep_scale,
    query, key, value, vector, bias, pair_key, pair_value,
    grad_score, grad_output, maximum, total, mean, rest,
    grad_key, part_key, grad_value, part_value,
    QUERY_ROW, QUERY_HEAD, KEY_ROW, KEY_HEAD, VALUE_ROW, VALUE_HEAD, BIAS_ROW, BIAS_HEAD,
    PAIR_KEY_ROW, PAIR_KEY_HEAD, PAIR_VALUE_ROW, PAIR_VALUE_HEAD,
    KIND, CONSTANT, FUNCTION, HEADS, WIDTH, VALUE_WIDTH, ACC, ROWS, BLOCK, PAD, VALUE_PAD,
):  # fmt: skip
    """Gradients of keys and of values, where not None; the items are those of the transpose."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row, item_ok, start, length, part = work(items, num_items, first, ROWS)
    row_key = tl.zeros([ROWS, BLOCK, PAD], ACC)
    if FUNCTION is not None:
        row_key = addresses(key, row, KEY_ROW, KEY_HEAD, HEADS, BLOCK)
    elif (KIND != "dot") or (grad_score is None):  # else the gradient does not depend on it
        row_key = vectors(key, row, item_ok, KEY_ROW, KEY_HEAD, HEADS, BLOCK, WIDTH, PAD, ACC)
    row_value = row_key
    if value is not None:
        row_value = vectors(value, row, item_ok, VALUE_ROW, VALUE_HEAD, HEADS, BLOCK, VALUE_WIDTH,
                            VALUE_PAD, ACC)  # fmt: skip
    if FUNCTION is None:
        v = head_vectors(vector, HEADS, BLOCK, WIDTH, PAD, ACC)
    sum_key = tl.zeros([ROWS, BLOCK, PAD], ACC)
    sum_value = tl.zeros([ROWS, BLOCK, VALUE_PAD], ACC)
    scale = tl.full([ROWS, BLOCK], 1.0, ACC)
    following = tl.load(other + start, mask=length > 0, other=0)  # read one pair ahead
    for step in range(tl.max(length, 0)):
        ok = step < length
        slot = start + step
        node = following.to(tl.int64)
        following = tl.load(other + slot + 1, mask=step + 1 < length, other=0)
        if FUNCTION is not None:
            q = addresses(query, node, QUERY_ROW, QUERY_HEAD, HEADS, BLOCK)
        else:
            q = query_vectors(query, node, ok, QUERY_ROW, QUERY_HEAD, HEADS, BLOCK, WIDTH, PAD,
                              ROWS, ACC)  # fmt: skip
        k, x, own = row_key, row_value, row_key
        if place is not None:
            pair = tl.load(place + slot, mask=ok, other=0).to(tl.int64)
            if pair_key is not None:
                if FUNCTION is not None:
                    own = addresses(pair_key, pair, PAIR_KEY_ROW, PAIR_KEY_HEAD, HEADS, BLOCK)
                else:
                    k = row_key + vectors(pair_key, pair, ok, PAIR_KEY_ROW, PAIR_KEY_HEAD, HEADS,
                                          BLOCK, WIDTH, PAD, ACC)  # fmt: skip
            if pair_value is not None:
                x = row_value + vectors(pair_value, pair, ok, PAIR_VALUE_ROW, PAIR_VALUE_HEAD,
                                        HEADS, BLOCK, VALUE_WIDTH, VALUE_PAD, ACC)  # fmt: skip
        if grad_score is not None:
            grad_logit = numbers(grad_score, pair, ok, HEADS, 1, HEADS, BLOCK, ACC)
        else:
            grad = vectors(grad_output, node, ok, HEADS * VALUE_WIDTH, VALUE_WIDTH, HEADS, BLOCK,
                           VALUE_WIDTH, VALUE_PAD, ACC)  # fmt: skip
            largest = numbers(maximum, node, ok, HEADS, 1, HEADS, BLOCK, ACC)
            node_total = numbers(total, node, ok, HEADS, 1, HEADS, BLOCK, ACC)
            node_mean = numbers(mean, node, ok, HEADS, 1, HEADS, BLOCK, ACC)
            node_rest = numbers(rest, node, ok, HEADS, 1, HEADS, BLOCK, ACC)
            if FUNCTION is not None:
                logit = tl.sum(generated("logits", FUNCTION, q, k, own, vector, None, ok, HEADS,
                                         BLOCK, ROWS), 2)  # fmt: skip
            else:
                logit = logits(q, k, v, KIND, CONSTANT, ACC)
            if bias is not None:
                logit += numbers(bias, pair, ok, BIAS_ROW, BIAS_HEAD, HEADS, BLOCK, ACC)
            if seed is not None:
                scale = kept(seed, edge_id, slot, ok, threshold, keep_scale, HEADS, BLOCK, ACC)
            weight, grad_logit = weights_and_grads(
                logit, largest, node_total, node_mean, node_rest, grad, x, scale, ok, HEADS, BLOCK
            )
            if grad_value is not None:
                sum_value += weight[:, :, None] * grad
        if grad_key is not None:
            if FUNCTION is not None:
                sum_key += generated("key", FUNCTION, q, k, own, vector, grad_logit[:, :, None], ok,
                                     HEADS, BLOCK, ROWS)  # fmt: skip
            elif KIND == "dot":
                sum_key += CONSTANT * grad_logit[:, :, None] * q
            else:
                sum_key += grad_hidden(q, k, v, grad_logit, KIND, CONSTANT, ACC)

    whole, split = item_ok & (part < 0), item_ok & (part >= 0)
    if grad_key is not None:
        put_vectors(grad_key, row, whole, HEADS, BLOCK, WIDTH, PAD, sum_key)
    if part_key is not None:
        put_vectors(part_key, part, split, HEADS, BLOCK, WIDTH, PAD, sum_key)
    if grad_value is not None:
        put_vectors(grad_value, row, whole, HEADS, BLOCK, VALUE_WIDTH, VALUE_PAD, sum_value)
    if part_value is not None:
        put_vectors(part_value, part, split, HEADS, BLOCK, VALUE_WIDTH, VALUE_PAD, sum_value)
