"""What all kernels are made of: their work, loads of head vectors, scores, the hash of dropout.

Tiles are `[R, H, D]` or `[R, H]`: rows (each with one pair at a time), heads, channels; all three
padded to powers of two, with zeros beyond the end. Only what is padded is masked, so that memory
is read 128 bits at a time wherever sizes are powers of two.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

# What changes from call to call, and would have a kernel compiled for each of its values
_CHANGING = {
    "num_items", "num_entries", "rows", "steps", "turns", "pairs", "threshold",
    "keep_scale",
}  # fmt: skip


def kernel(function: Callable[..., Any]) -> Any:
    """A kernel that is compiled for the values of its arguments in capitals.

    Strides are among them, which a compiler must know to read several numbers at once. None of
    them depends on the number of nodes or edges: see `attn_core.backends.triton.run.Laid`.
    """
    names = inspect.signature(function).parameters
    constants = {name: "constexpr" for name in names if name.isupper()}
    function.__annotations__.update(constants)
    made = triton.jit(function, do_not_specialize=[n for n in names if n in _CHANGING])
    if (
        rewrite := getattr(made, "rewrite", None)
    ) is not None:  # the interpreter's, from the source

        def with_constants() -> Any:
            rewritten = rewrite()
            rewritten.__annotations__.update(constants)
            return rewritten

        made.rewrite = with_constants
    return made


@triton.jit
def work(items, num_items, first, ROWS):
    """Of ROWS items: row, whether there is one, first pair, number of pairs, partial result."""
    item = first + tl.arange(0, ROWS)
    row = tl.load(items + 4 * item, mask=item < num_items, other=-1).to(tl.int64)
    ok = row >= 0
    start = tl.load(items + 4 * item + 1, mask=ok, other=0)
    length = tl.load(items + 4 * item + 2, mask=ok, other=0).to(tl.int32)
    part = tl.load(items + 4 * item + 3, mask=ok, other=-1).to(tl.int64)
    return row, ok, start, length, part


@triton.jit
def heads_at(HEADS, BLOCK):
    """The heads of this program, int64 `[H]`, for they are multiplied with strides."""
    head = tl.arange(0, BLOCK).to(tl.int64)
    if HEADS > BLOCK:
        head += tl.program_id(1).to(tl.int64) * BLOCK
    return head


@triton.jit
def among(ok, HEADS, BLOCK):
    """Which numbers of a tile `[R, H]` there are, of those of the rows."""
    there = ok[:, None]
    if HEADS % BLOCK != 0:
        there = there & (heads_at(HEADS, BLOCK) < HEADS)[None, :]
    return there


@triton.jit
def within(ok, HEADS, BLOCK, WIDTH, PAD):
    """Which numbers of a tile `[R, H, D]` there are, of those of the rows."""
    there = among(ok, HEADS, BLOCK)[:, :, None]
    if WIDTH != PAD:
        there = there & (tl.arange(0, PAD) < WIDTH)[None, None, :]
    return there


@triton.jit
def vectors(x, row, ok, ROW, HEAD, HEADS, BLOCK, WIDTH, PAD, ACC):
    """Load the vectors of rows and heads, `[R, H, D]`, whose strides are ROW and HEAD."""
    at = row[:, None, None] * ROW + (heads_at(HEADS, BLOCK) * HEAD)[None, :, None]
    at = at + tl.arange(0, PAD)[None, None, :]
    return tl.load(x + at, mask=within(ok, HEADS, BLOCK, WIDTH, PAD), other=0.0).to(ACC)


@triton.jit
def put_vectors(x, row, ok, HEADS, BLOCK, WIDTH, PAD, tile):
    """Store a tile `[R, H, D]` into rows of a contiguous tensor."""
    at = row[:, None, None] * (HEADS * WIDTH) + (heads_at(HEADS, BLOCK) * WIDTH)[None, :, None]
    at = at + tl.arange(0, PAD)[None, None, :]
    tl.store(x + at, tile.to(x.dtype.element_ty), mask=within(ok, HEADS, BLOCK, WIDTH, PAD))


@triton.jit
def numbers(x, row, ok, ROW, HEAD, HEADS, BLOCK, ACC):
    """Load one number for each row and head, `[R, H]`."""
    at = row[:, None] * ROW + (heads_at(HEADS, BLOCK) * HEAD)[None, :]
    return tl.load(x + at, mask=among(ok, HEADS, BLOCK), other=0.0).to(ACC)


@triton.jit
def put_numbers(x, row, ok, HEADS, BLOCK, tile):
    """Store a tile `[R, H]` into rows of a contiguous tensor."""
    at = row[:, None] * HEADS + heads_at(HEADS, BLOCK)[None, :]
    tl.store(x + at, tile.to(x.dtype.element_ty), mask=among(ok, HEADS, BLOCK))


@triton.jit
def query_vectors(query, row, ok, ROW, HEAD, HEADS, BLOCK, WIDTH, PAD, ROWS, ACC):
    """Those of queries, `[R, H, D]`; zeros if there are none."""
    q = tl.zeros([ROWS, BLOCK, PAD], ACC)
    if query is not None:
        q = vectors(query, row, ok, ROW, HEAD, HEADS, BLOCK, WIDTH, PAD, ACC)
    return q


@triton.jit
def head_vectors(vector, HEADS, BLOCK, WIDTH, PAD, ACC):
    """The vector of each head of a contiguous `[H, D]`, as `[1, H, D]`; ones if there is none."""
    v = tl.full([1, BLOCK, PAD], 1.0, ACC)
    if vector is not None:
        first = tl.zeros([1], tl.int64)
        v = vectors(vector, first, first == 0, 0, WIDTH, HEADS, BLOCK, WIDTH, PAD, ACC)
    return v


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
def addresses(x, row, ROW, HEAD, HEADS, BLOCK):
    """Where the vectors of rows and heads begin, `[R, H, 1]`."""
    return x + (row[:, None, None] * ROW + (heads_at(HEADS, BLOCK) * HEAD)[None, :, None])


@triton.jit
def generated(WHAT, FUNCTION, query, key, pair, parameters, grad, ok, HEADS, BLOCK, ROWS):
    """What a generated score makes of vectors at these addresses, `[R, H, C]`: see
    `attn_core.backends.generated.tiles`."""
    there, head = among(ok, HEADS, BLOCK)[:, :, None], heads_at(HEADS, BLOCK)[None, :, None]
    found = FUNCTION(WHAT, query, key, pair, parameters, grad, head, there, ROWS, BLOCK)
    return tl.where(there, found, 0.0)


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
def kept(seed, edge_id, slot, ok, threshold, keep_scale, HEADS, BLOCK, ACC):
    """What dropout multiplies the weights of pairs with, `[R, H]`."""
    edge = tl.load(edge_id + slot, mask=ok, other=0).to(tl.int64)
    bits = random_bits(tl.load(seed), edge, heads_at(HEADS, BLOCK)).to(tl.int64)
    return tl.where(bits >= threshold, keep_scale, 0.0).to(ACC)


@triton.jit
def matrix(x, row, row_ok, channel, channel_ok, width, ACC):
    """Load rows and channels of a contiguous matrix, with zeros beyond its end."""
    ok = row_ok[:, None] & channel_ok[None, :]
    at = row.to(tl.int64)[:, None] * width + channel[None, :]
    return tl.load(x + at, mask=ok, other=0.0).to(ACC)
