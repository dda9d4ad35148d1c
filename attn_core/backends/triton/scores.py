"""The logits of edges, and their gradients, where more than the fused softmax needs them.

Tiles are `[R, H, D]`, as in the fused kernels: items of rows, one pair of each at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attn_core.backends.problem import Problem
from attn_core.backends.triton.pieces import (
    activate,
    head_vectors,
    logits,
    numbers,
    put_numbers,
    put_vectors,
    slope,
    vectors,
)
from attn_core.backends.triton.plan import Side, side_of
from attn_core.backends.triton.run import Laid, combine, grid_of, parts_of, strided


@triton.jit
def score_rows(
    item_row, item_start, item_length, num_items, other, place,
    query, query_row, query_head, key, key_row, key_head, vector,
    pair_key, pair_key_row, pair_key_head, found, heads, width,
    KIND: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The logits `[E, H]` of the pairs of ROWS items."""
    item = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(item_row + item, mask=item < num_items, other=-1).to(tl.int64)
    item_ok = row >= 0
    start = tl.load(item_start + item, mask=item_ok, other=0)
    length = tl.load(item_length + item, mask=item_ok, other=0)
    head, channel = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, WIDTH)
    head_ok, channel_ok = head < heads, channel < width
    q = tl.zeros([ROWS, HEADS, WIDTH], ACC)
    if query is not None:
        q = vectors(query, row, query_row, query_head, item_ok, head, head_ok, channel, channel_ok,
                    ACC)  # fmt: skip
    v = tl.full([1, HEADS, WIDTH], 1.0, ACC)
    if vector is not None:
        v = head_vectors(vector, head, head_ok, heads, channel, channel_ok, width, ACC)
    for step in range(tl.max(length, 0)):
        ok = step < length
        node = tl.load(other + start + step, mask=ok, other=0).to(tl.int64)
        pair = tl.load(place + start + step, mask=ok, other=0).to(tl.int64)
        k = vectors(key, node, key_row, key_head, ok, head, head_ok, channel, channel_ok, ACC)
        if pair_key is not None:
            k += vectors(pair_key, pair, pair_key_row, pair_key_head, ok, head, head_ok, channel,
                         channel_ok, ACC)  # fmt: skip
        put_numbers(found, pair, ok, head, head_ok, heads, logits(q, k, v, KIND, CONSTANT, ACC))


@triton.jit
def score_grads(
    item_row, item_start, item_length, item_part, num_items, other, place,
    here, here_row, here_head, there, there_row, there_head, vector,
    pair_key, pair_key_row, pair_key_head, grad,
    grad_here, part_here, part_vector, grad_pair_key, heads, width,
    KIND: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """From those of the logits, the gradients of the rows, the vector and the pairs.

    The rows are the queries, and those at the other end the keys, or the reverse.
    """
    item = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = tl.load(item_row + item, mask=item < num_items, other=-1).to(tl.int64)
    item_ok = row >= 0
    start = tl.load(item_start + item, mask=item_ok, other=0)
    length = tl.load(item_length + item, mask=item_ok, other=0)
    part = tl.load(item_part + item, mask=item_ok, other=-1).to(tl.int64)
    head, channel = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, WIDTH)
    head_ok, channel_ok = head < heads, channel < width
    x = tl.zeros([ROWS, HEADS, WIDTH], ACC)
    if here is not None:
        x = vectors(here, row, here_row, here_head, item_ok, head, head_ok, channel, channel_ok,
                    ACC)  # fmt: skip
    v = tl.full([1, HEADS, WIDTH], 1.0, ACC)
    if vector is not None:
        v = head_vectors(vector, head, head_ok, heads, channel, channel_ok, width, ACC)

    sum_here = tl.zeros([ROWS, HEADS, WIDTH], ACC)
    sum_vector = tl.zeros([ROWS, HEADS, WIDTH], ACC)
    for step in range(tl.max(length, 0)):
        ok = step < length
        node = tl.load(other + start + step, mask=ok, other=0).to(tl.int64)
        pair = tl.load(place + start + step, mask=ok, other=0).to(tl.int64)
        y = tl.zeros([ROWS, HEADS, WIDTH], ACC)
        if there is not None:
            y = vectors(there, node, there_row, there_head, ok, head, head_ok, channel, channel_ok,
                        ACC)  # fmt: skip
        if pair_key is not None:
            y += vectors(pair_key, pair, pair_key_row, pair_key_head, ok, head, head_ok, channel,
                         channel_ok, ACC)  # fmt: skip
        share = numbers(grad, pair, heads, 1, ok, head, head_ok, ACC)[:, :, None]
        if KIND == "dot":
            of_row, of_pair = CONSTANT * share * y, CONSTANT * share * x
        else:
            of_row = slope(x + y, KIND, CONSTANT, ACC) * v * share
            of_pair = of_row
            if part_vector is not None:
                sum_vector += activate(x + y, KIND, CONSTANT, ACC) * share
        sum_here += of_row
        if grad_pair_key is not None:
            put_vectors(grad_pair_key, pair, ok, head, head_ok, heads, channel, channel_ok, width,
                        of_pair)  # fmt: skip

    if grad_here is not None:
        put_vectors(grad_here, row, item_ok & (part < 0), head, head_ok, heads, channel, channel_ok,
                    width, sum_here)  # fmt: skip
    if part_here is not None:
        put_vectors(part_here, part, item_ok & (part >= 0), head, head_ok, heads, channel,
                    channel_ok, width, sum_here)  # fmt: skip
    if part_vector is not None:
        program = tl.program_id(0) + tl.zeros([1], tl.int64)
        put_vectors(part_vector, program, program >= 0, head, head_ok, heads, channel, channel_ok,
                    width, tl.sum(sum_vector, 0)[None, :, :])  # fmt: skip


def forward(problem: Problem) -> Tensor:
    """The logits `[E, H]`, in the order of the pairs."""
    p = Laid.of(problem)
    found = p.key.new_empty(p.edges.num_edges, p.heads, dtype=p.dtype)
    if not found.numel():
        return found
    side, settings = side_of(p.edges, "query"), _settings(p)
    items = side.items
    with torch.cuda.device_of(found):  # Triton launches on the current device
        score_rows[grid_of(side, settings)](
            *items[:3], len(items.row), side.other, items.place, *strided(p.query), *strided(p.key),
            p.vector, *strided(p.pair_key), found, **settings,
        )  # fmt: skip
    return found


def backward(problem: Problem, grad: Tensor, needed: list[bool]) -> list[Tensor | None]:
    """Gradients of what the fused kernels have gradients of, where needed and where it counts."""
    p, grad = Laid.of(problem), grad.contiguous()
    grads = [
        torch.zeros(x.shape, dtype=p.dtype, device=x.device) if x is not None and need else None
        for x, need in zip(p.tensors, needed, strict=True)
    ]
    grad_query, grad_key, grad_value, grad_vector, grad_bias, grad_pair_key, _ = grads
    assert grad_value is None and grad_bias is None  # logits do not depend on them
    if not grad.numel():
        return grads
    settings = _settings(p)
    with torch.cuda.device_of(grad):
        if grad_query is not None or grad_vector is not None or grad_pair_key is not None:
            side = side_of(p.edges, "query")
            part_vector = None
            if grad_vector is not None:
                programs = grid_of(side, settings)[0]
                part_vector = grad.new_empty(programs, *grad_vector.shape, dtype=p.dtype)
            _of_rows(p, side, p.query, p.key, p.pair_key, grad, grad_query, part_vector,
                     grad_pair_key, settings)  # fmt: skip
            if part_vector is not None:
                grads[3] = part_vector.sum(0)
        if grad_key is not None:
            pair_key = None if p.kind == "dot" else p.pair_key
            side = side_of(p.edges, "key")
            _of_rows(p, side, p.key, p.query, pair_key, grad, grad_key, None, None, settings)
    return grads


def _of_rows(
    p: Laid,
    side: Side,
    here: Tensor | None,
    there: Tensor | None,
    pair_key: Tensor | None,
    grad: Tensor,
    grad_here: Tensor | None,
    part_vector: Tensor | None,
    grad_pair_key: Tensor | None,
    settings: dict[str, object],
) -> None:
    items = side.items
    parts = None if grad_here is None else parts_of(p, side, p.key.shape[2])
    score_grads[grid_of(side, settings)](
        *items[:4], len(items.row), side.other, items.place, *strided(here), *strided(there),
        p.vector, *strided(pair_key), grad, grad_here, parts, part_vector, grad_pair_key,
        **settings,
    )  # fmt: skip
    combine(side, parts, grad_here)


def _settings(p: Laid) -> dict[str, object]:
    """Those of the fused kernels, which have values as well."""
    return {k: v for k, v in p.settings().items() if k not in ("value_width", "VALUE_WIDTH")}
