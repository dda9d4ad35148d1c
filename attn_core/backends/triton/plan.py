"""Who computes what: the rows of a graph, cut into items of work of nearly the same size.

An item is a whole row of at most `chunk_of` pairs, or a chunk of so many of a longer one. Items are
sorted by their length, so that a program, which walks through the pairs of several items in
lockstep, gets items that end together; the longest come first, so that none is left for the end.
The chunks of a row leave partial results, which are merged in their order.

How many items and parts there are depends on the numbers on the GPU, which the host does not wait
for: there is room for as many as there can be, and the rest belongs to the row -1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from attn_core.backends.triton.pieces import kernel
from attn_core.backends.triton.tiles import padded
from attn_core.graph.grouping import Grouping
from attn_core.graph.read import Order
from attn_core.supports.edges import Edges

CHUNK = 256  # pairs in an item, at most
_LEAST = 32  # of a small graph, whose hubs would else keep a GPU waiting
_PROGRAMS = 4096  # among which a small graph is divided
_TILE = 256  # rows, items or pairs of a program
_LOW = tl.constexpr(2**32 - 1)


class Items(NamedTuple):
    """The work of all rows.

    Attributes:
        table: `[items, 4]`: of each item its row, its first sorted pair, its number of pairs, and
            the number of its partial result, -1 for a whole row.
        parts: `[room for them, 2]`: the row of each partial result (-1: there is none), and for the
            first of a row how many it has, else 0.
        place: where each sorted pair stands in the list of pairs.
        other: what stands beside each sorted pair: the node at its other end; None of an index.
        pointer: where the sorted pairs of each row begin.
    """

    table: Tensor
    parts: Tensor
    place: Tensor
    other: Tensor | None
    pointer: Tensor


class Side(NamedTuple):
    """The work by query, or for the transpose by key.

    Attributes:
        items: the rows are the queries, or the keys.
        source: where each sorted pair comes from: the caller's edge, or E + node of a self-loop.
    """

    items: Items
    source: Tensor


def side_of(edges: Edges, by: str) -> Side:
    """The work by "query" or by "key", made once per Edges."""
    grouping = edges.by_query if by == "query" else edges.by_key
    side: Side = grouping.once("triton side", lambda grouping: _side(edges, grouping))
    return side


def items_of(grouping: Grouping) -> Items:
    """The work of all rows of a grouping, made once."""
    items: Items = grouping.once(
        "triton items",
        lambda grouping: plan(grouping.order, getattr(grouping, "other", None)),
    )
    return items


def _side(edges: Edges, grouping: Grouping) -> Side:
    items = items_of(grouping)
    if max(edges.num_keys, edges.num_queries) >= 2**31:
        items = items._replace(other=grouping.other.index_select(0, grouping.permutation))
    source = items.place
    if edges.given is not edges:
        of_pair = edges.source_id.index_select(0, grouping.permutation)
        source = of_pair.to(_index(edges.given.num_edges + edges.num_keys + edges.num_queries))
    return Side(items, source)


def chunk_of(pairs: int) -> int:
    """How many pairs an item has at most; on this depend the bits of the results."""
    return min(CHUNK, max(_LEAST, padded(pairs // _PROGRAMS)))


@kernel
def count_chunks(pointer, counts, rows, CHUNK, TILE):
    """Of each row the number of its items and, 2³² times, that of its partial results."""
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    ok = row < rows
    length = tl.load(pointer + row + 1, mask=ok, other=0) - tl.load(pointer + row, mask=ok, other=0)
    number = tl.maximum((length + CHUNK - 1) // CHUNK, 1)
    tl.store(counts + row, number + (tl.where(number > 1, number, 0) << 32), mask=ok)


@kernel
def cut_rows(pointer, ends, table, lengths, parts, rows, num_items, num_parts, steps, CHUNK, TILE):
    """The items in the order of their rows, what they are to be sorted by, and the parts.

    `ends` adds up the numbers of `count_chunks`; the row of an item is found in it by bisection.
    """
    item = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    low = tl.zeros([TILE], tl.int64)
    high = low + rows
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = low < high
        end = tl.load(ends + middle, mask=open_, other=0) & _LOW
        high = tl.where(open_ & (end > item), middle, high)
        low = tl.where(open_ & (end <= item), middle + 1, low)
    row = low
    ok = (item < num_items) & (row < rows)
    before = tl.load(ends + row - 1, mask=ok & (row > 0), other=0)
    number = (tl.load(ends + row, mask=ok, other=0) & _LOW) - (before & _LOW)
    chunk = item - (before & _LOW)
    start = tl.load(pointer + row, mask=ok, other=0) + chunk * CHUNK
    length = tl.load(pointer + row + 1, mask=ok, other=0) - start
    length = tl.where(ok, tl.minimum(tl.maximum(length, 0), CHUNK), 0)
    is_part = ok & (number > 1)
    part = (before >> 32) + chunk

    at = table + 4 * item
    there = item < num_items
    kind = table.dtype.element_ty
    tl.store(at, tl.where(ok, row, -1).to(kind), mask=there)
    tl.store(at + 1, start.to(kind), mask=there)
    tl.store(at + 2, length.to(kind), mask=there)
    tl.store(at + 3, tl.where(is_part, part, -1).to(kind), mask=there)
    tl.store(lengths + item, length.to(tl.int16), mask=there)
    if parts is not None:
        at = parts + 2 * part
        tl.store(at, row.to(kind), mask=is_part)
        tl.store(at + 1, tl.where(chunk == 0, number, 0).to(kind), mask=is_part)
        at = parts + 2 * item
        unused = (item >= tl.load(ends + rows - 1) >> 32) & (item < num_parts)
        tl.store(at, tl.full([TILE], -1, kind), mask=unused)
        tl.store(at + 1, tl.zeros([TILE], kind), mask=unused)


@kernel
def put_in_order(order, cut, table, num_items, permutation, nodes, other, pairs, TILE):
    """The items in an order of theirs, and of each sorted pair the node at the other end."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    ok = i < num_items
    item = tl.load(order + i, mask=ok, other=0)
    for field in tl.static_range(4):
        number = tl.load(cut + 4 * item + field, mask=ok, other=0)
        tl.store(table + 4 * i + field, number, mask=ok)
    if other is not None:
        ok = i < pairs
        node = tl.load(nodes + tl.load(permutation + i, mask=ok, other=0), mask=ok, other=0)
        tl.store(other + i, node.to(other.dtype.element_ty), mask=ok)


def plan(order: Order, nodes: Tensor | None = None) -> Items:
    """Cut the rows of sorted pairs into items; nodes stand at the other ends of the pairs."""
    pointer, permutation = order.pointer, order.permutation
    rows, pairs, device = len(pointer) - 1, len(permutation), pointer.device
    index, chunk = _index(pairs + rows), chunk_of(pairs)
    # A row of more than `chunk` pairs leaves fewer than twice its share of them
    num_items, num_parts = rows + pairs // chunk, 2 * (pairs // chunk)
    cut = torch.empty(num_items, 4, dtype=index, device=device)
    table = torch.empty_like(cut)
    parts = torch.empty(num_parts, 2, dtype=index, device=device)
    other = None if nodes is None else torch.empty(pairs, dtype=torch.int32, device=device)
    if not rows:
        return Items(table, parts, permutation, other, pointer)
    counts = torch.empty(rows, dtype=torch.int64, device=device)
    lengths = torch.empty(num_items, dtype=torch.int16, device=device)
    with torch.cuda.device_of(pointer):  # Triton launches on the current device
        count_chunks[_grid(rows)](pointer, counts, rows, CHUNK=chunk, TILE=_TILE)
        cut_rows[_grid(max(num_items, num_parts))](
            pointer, counts.cumsum(0), cut, lengths, parts if num_parts else None, rows, num_items,
            num_parts, rows.bit_length(), CHUNK=chunk, TILE=_TILE,
        )  # fmt: skip
        longest_first = torch.sort(lengths, descending=True, stable=True).indices
        put_in_order[_grid(max(num_items, pairs if nodes is not None else 0))](
            longest_first, cut, table, num_items, permutation, nodes, other, pairs, TILE=_TILE
        )
    return Items(table, parts, permutation, other, pointer)


def _grid(number: int) -> tuple[int]:
    return (triton.cdiv(number, _TILE),)


def _index(most: int) -> torch.dtype:
    """The dtype of numbers up to `most`."""
    return torch.int32 if most < 2**31 else torch.int64
