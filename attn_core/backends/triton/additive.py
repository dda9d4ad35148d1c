"""Additive scores over dense supports, `vᵀ φ(q_i + k_j)`, whose hidden vectors stay in registers.

Tiles are `[Q, K, D]`: queries, keys, channels. Backward, one kernel serves queries and keys alike,
with the two exchanged.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from attn_core.backends.triton.pieces import activate, matrix, slope
from attn_core.backends.triton.tiles import ACC, padded

TILE = 4096  # numbers in a tile
_CHANNELS = 4  # in a tile, forward: each loop adds to all logits
_MOST_ROWS = 32
_MOST_CHANNELS = 16  # backward, where a tile is summed over its other side


@triton.jit
def additive_logits(
    query, key, vector, logits, queries, keys, width, tiles, key_tiles,
    KIND: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """The logits `[B, Tq, Tk]` of one tile of queries and keys."""
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    i = tile // key_tiles * QUERIES + tl.arange(0, QUERIES)
    j = tile % key_tiles * KEYS + tl.arange(0, KEYS)
    i_ok, j_ok = i < queries, j < keys
    found = tl.zeros([QUERIES, KEYS], ACC)
    for begin in range(0, width, CHANNELS):
        channel = begin + tl.arange(0, CHANNELS)
        ok = channel < width
        q = matrix(query + batch * queries * width, i, i_ok, channel, ok, width, ACC)
        k = matrix(key + batch * keys * width, j, j_ok, channel, ok, width, ACC)
        v = tl.load(vector + batch * width + channel, mask=ok, other=0.0).to(ACC)
        active = activate(q[:, None, :] + k[None, :, :], KIND, CONSTANT, ACC)
        found += tl.sum(active * v[None, None, :], 2)
    at = i.to(tl.int64)[:, None] * keys + j[None, :]
    ok = i_ok[:, None] & j_ok[None, :]
    tl.store(logits + batch * queries * keys + at, found.to(logits.dtype.element_ty), mask=ok)


@triton.jit
def additive_grads(
    x, y, vector, grad, x_stride, y_stride, grad_x, part_vector, rows, others, width, tiles,
    KIND: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr,
    ROWS: tl.constexpr, OTHERS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """`v Σ_j grad_ij φ′(x_i + y_j)` of a tile of rows, and its `Σ_ij grad_ij φ(x_i + y_j)`."""
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    i = tile * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    i_ok, ok = i < rows, channel < width
    here = matrix(x + batch * rows * width, i, i_ok, channel, ok, width, ACC)
    of_x = tl.zeros([ROWS, CHANNELS], ACC)
    of_vector = tl.zeros([ROWS, CHANNELS], ACC)
    for begin in range(0, others, OTHERS):
        j = begin + tl.arange(0, OTHERS)
        j_ok = j < others
        there = matrix(y + batch * others * width, j, j_ok, channel, ok, width, ACC)
        at = i.to(tl.int64)[:, None] * x_stride + j.to(tl.int64)[None, :] * y_stride
        share = tl.load(
            grad + batch * rows * others + at, mask=i_ok[:, None] & j_ok[None, :], other=0.0
        ).to(ACC)[:, :, None]
        hidden = here[:, None, :] + there[None, :, :]
        of_x += tl.sum(slope(hidden, KIND, CONSTANT, ACC) * share, 1)
        if part_vector is not None:
            of_vector += tl.sum(activate(hidden, KIND, CONSTANT, ACC) * share, 1)
    v = tl.load(vector + batch * width + channel, mask=ok, other=0.0).to(ACC)
    at = (batch * rows + i)[:, None] * width + channel[None, :]
    of_x *= v[None, :]
    tl.store(grad_x + at, of_x.to(grad_x.dtype.element_ty), mask=i_ok[:, None] & ok[None, :])
    if part_vector is not None:
        at = tl.program_id(0).to(tl.int64) * width + channel
        tl.store(part_vector + at, tl.sum(of_vector, 0), mask=ok)


def forward(
    query: Tensor, key: Tensor, vector: Tensor, activation: str, negative_slope: float
) -> Tensor:
    """The logits `[B, Tq, Tk]` of queries `[B, Tq, D]`, keys `[B, Tk, D]`, vectors `[B, D]`."""
    (batch, queries, width), keys = query.shape, key.shape[1]
    logits = query.new_empty(batch, queries, keys)
    if not logits.numel():
        return logits
    rows = min(padded(queries), _MOST_ROWS)
    columns = min(padded(keys), TILE // (rows * _CHANNELS))
    key_tiles = triton.cdiv(keys, columns)
    tiles = triton.cdiv(queries, rows) * key_tiles
    with torch.cuda.device_of(query):  # Triton launches on the current device
        additive_logits[(batch * tiles,)](
            query.contiguous(), key.contiguous(), vector.contiguous(), logits, queries, keys,
            width, tiles, key_tiles, KIND=activation, CONSTANT=float(negative_slope),
            ACC=ACC[_wide(query)], QUERIES=rows, KEYS=columns, CHANNELS=_CHANNELS,
        )  # fmt: skip
    return logits


def backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    vector: Tensor,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and vector."""
    query, key, vector, grad = (x.contiguous() for x in (query, key, vector, grad))
    sizes = activation, float(negative_slope)
    keys = key.shape[1]
    of_query, of_vector = _of_rows(query, key, vector, grad, (keys, 1), *sizes, with_vector=True)
    of_key, _ = _of_rows(key, query, vector, grad, (1, keys), *sizes, with_vector=False)
    assert of_vector is not None
    return of_query, of_key, of_vector


def _of_rows(
    x: Tensor,
    y: Tensor,
    vector: Tensor,
    grad: Tensor,
    strides: tuple[int, int],
    activation: str,
    negative_slope: float,
    with_vector: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x, and that of the vector if wanted."""
    (batch, rows, width), others = x.shape, y.shape[1]
    if not x.numel():
        return torch.empty_like(x), torch.zeros_like(vector) if with_vector else None
    height, channels = min(padded(rows), _MOST_ROWS), min(padded(width), _MOST_CHANNELS)
    tiles = triton.cdiv(rows, height)
    grad_x, parts = torch.empty_like(x), None
    if with_vector:
        parts = x.new_empty(batch, tiles, width, dtype=_wide(x))
    across = max(1, min(padded(others), TILE // (height * channels)))
    with torch.cuda.device_of(x):
        additive_grads[batch * tiles, triton.cdiv(width, channels)](
            x, y, vector, grad, *strides, grad_x, parts, rows, others, width, tiles,
            KIND=activation, CONSTANT=negative_slope, ACC=ACC[_wide(x)], ROWS=height,
            OTHERS=across, CHANNELS=channels,
        )  # fmt: skip
    return grad_x, None if parts is None else parts.sum(1).to(vector.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
