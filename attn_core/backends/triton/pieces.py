"""What all kernels are made of: loads of head vectors, scores, and the hash of dropout.

Tiles are `[R, H, D]` or `[R, H]`: rows (each with one pair at a time), heads, channels; all three
padded to powers of two, with zeros beyond the end.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def vectors(x, row, row_stride, head_stride, row_ok, head, head_ok, channel, channel_ok, ACC):
    """Load the vectors of rows and heads, `[R, H, D]`."""
    offset = row[:, None, None] * row_stride + head[None, :, None] * head_stride
    ok = row_ok[:, None, None] & head_ok[None, :, None] & channel_ok[None, None, :]
    return tl.load(x + offset + channel[None, None, :], mask=ok, other=0.0).to(ACC)


@triton.jit
def put_vectors(x, row, row_ok, head, head_ok, heads, channel, channel_ok, width, tile):
    """Store a tile `[R, H, D]` into rows of a contiguous tensor."""
    offset = (row[:, None, None] * heads + head[None, :, None]) * width + channel[None, None, :]
    ok = row_ok[:, None, None] & head_ok[None, :, None] & channel_ok[None, None, :]
    tl.store(x + offset, tile.to(x.dtype.element_ty), mask=ok)


@triton.jit
def numbers(x, row, row_stride, head_stride, row_ok, head, head_ok, ACC):
    """Load one number for each row and head, `[R, H]`."""
    offset = row[:, None] * row_stride + head[None, :] * head_stride
    return tl.load(x + offset, mask=row_ok[:, None] & head_ok[None, :], other=0.0).to(ACC)


@triton.jit
def put_numbers(x, row, row_ok, head, head_ok, heads, tile):
    """Store a tile `[R, H]` into rows of a contiguous tensor."""
    offset = row[:, None] * heads + head[None, :]
    ok = row_ok[:, None] & head_ok[None, :]
    tl.store(x + offset, tile.to(x.dtype.element_ty), mask=ok)


@triton.jit
def head_vectors(x, head, head_ok, heads, channel, channel_ok, width, ACC):
    """Load the vector of each head of a contiguous `[H, D]`, as `[1, H, D]`."""
    offset = head[None, :, None] * width + channel[None, None, :]
    ok = head_ok[None, :, None] & channel_ok[None, None, :]
    return tl.load(x + offset, mask=ok, other=0.0).to(ACC)


@triton.jit
def tanh(x, ACC: tl.constexpr):
    """From one exponential that cannot overflow."""
    small = tl.exp(-2 * tl.abs(x))
    size = (1 - small) / (1 + small)
    y = tl.where(x < 0, -size, size)
    if tl.float32 == ACC:  # near 0 the difference from 1 loses digits, and a polynomial does not
        square = x * x
        near = x * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
        y = tl.where(tl.abs(x) < 0.2, near, y)
    return y


@triton.jit
def activate(x, KIND: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr):
    """φ(x); 0 at 0 for every φ, so that padding adds nothing."""
    if KIND == "tanh":
        return tanh(x, ACC)
    else:  # "leaky_relu"
        return tl.where(x > 0, x, CONSTANT * x)


@triton.jit
def slope(x, KIND: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr):
    """φ′(x)."""
    if KIND == "tanh":
        y = tanh(x, ACC)
        return 1 - y * y
    else:
        return tl.where(x > 0, tl.full(x.shape, 1.0, ACC), tl.full(x.shape, CONSTANT, ACC))


@triton.jit
def logits(query, key, vector, KIND: tl.constexpr, CONSTANT: tl.constexpr, ACC: tl.constexpr):
    """The score of each row's pair, `[R, H]`."""
    if KIND == "dot":
        return CONSTANT * tl.sum(query * key, 2)
    else:
        return tl.sum(activate(query + key, KIND, CONSTANT, ACC) * vector, 2)


@triton.jit
def mix(x):
    """The bijection of 32-bit integers of `attn_core.dropout`."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def absorb(state, word):
    return mix((state + word * 0x85EBCA6B) ^ 0xC2B2AE35)


@triton.jit
def random_bits(seed, edge, head):
    """32 random bits, uint32 `[R, H]`, of int64 edges `[R]` and heads `[H]`."""
    state = mix(seed.to(tl.uint32) ^ 0x9E3779B9)
    state = absorb(state, (seed >> 32).to(tl.uint32))
    of_edge = absorb(state, edge.to(tl.uint32))
    of_edge = absorb(of_edge, (edge >> 32).to(tl.uint32))
    return absorb(of_edge[:, None], head.to(tl.uint32)[None, :])


@triton.jit
def kept(seed, edge_id, slot, slot_ok, head, threshold, keep_scale, ACC):
    """What dropout multiplies the weights of pairs with, `[R, H]`."""
    edge = tl.load(edge_id + slot, mask=slot_ok, other=0).to(tl.int64)
    bits = random_bits(tl.load(seed), edge, head).to(tl.int64)
    return tl.where(bits >= threshold, keep_scale, 0.0).to(ACC)
