"""Who computes what: the rows of a graph, cut into items of work of nearly the same size.

An item is a whole row of at most `chunk_of` pairs, or a chunk of so many of a longer one. Items are
sorted by their length, so that a program, which walks through the pairs of several items in
lockstep, gets items that end together; the longest come first, so that none is left for the end.
The chunks of a row leave partial results, which are merged in their order.

How many items and parts there are depends on the numbers on the GPU, which the host does not wait
for. So each row has room of its own, as much as it can need, where a division of its first pair
says; room that is not needed belongs to the row -1.
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


class Items(NamedTuple):
    """The work of all rows.

    Attributes:
        table: `[items, 4]`: of each item its row, its first sorted pair, its number of pairs, and
            the number of its partial result, -1 for a whole row.
        parts: `[room for them, 2]`: the row of each partial result (-1: there is none), and for the
            first of a row how many it has, else 0.
        place: where each sorted pair stands in the list of pairs.
        other: what stands beside each sorted pair: the node at its other end; None of an index.
        source: where each sorted pair comes from: the caller's edge, or E + node of a self-loop.
        pointer: where the sorted pairs of each row begin.
    """

    table: Tensor
    parts: Tensor
    place: Tensor
    other: Tensor | None
    source: Tensor
    pointer: Tensor


def side_of(edges: Edges, by: str) -> Items:
    """The work by "query", or for the transpose by "key", made once per Edges."""
    grouping = edges.by_query if by == "query" else edges.by_key
    items: Items = grouping.once("triton side", lambda grouping: _side(edges, grouping))
    return items


def _side(edges: Edges, grouping: Grouping) -> Items:
    source = edges.source_id if edges.adds_loops else None
    items = items_of(grouping, source, edges.num_places)
    if source is not None and items.source is items.place:  # made for sums over groups, before
        items = items._replace(source=source.index_select(0, grouping.permutation))
    if max(edges.num_keys, edges.num_queries) >= 2**31:
        items = items._replace(other=grouping.other.index_select(0, grouping.permutation))
    return items


def items_of(grouping: Grouping, source: Tensor | None = None, num_sources: int = 0) -> Items:
    """The work of all rows of a grouping, made once; see `plan`."""

    def make(grouping: Grouping) -> Items:
        return plan(grouping.order, getattr(grouping, "other", None), source, num_sources)

    items: Items = grouping.once("triton items", make)
    return items


def chunk_of(pairs: int) -> int:
    """How many pairs an item has at most; on this depend the bits of the results."""
    return min(CHUNK, max(_LEAST, padded(pairs // _PROGRAMS)))


@kernel
def cut_rows(pointer, table, lengths, parts, rows, num_items, steps, CHUNK, TILE):
    """The items in the order of their rows, what they are to be sorted by, and the parts.

    The items of row r have room from `r + pointer[r] // CHUNK` on, which bisection finds, and its
    parts from `2 (pointer[r] // CHUNK)` on: a row of more than CHUNK pairs reaches into the next
    CHUNK at least once, and where it does n times, it is cut into n + 1 chunks at most.
    """
    item = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    ok = item < num_items
    low = tl.zeros([TILE], tl.int64)
    high = low + rows
    for _ in range(steps):
        middle = (low + high) // 2
        open_ = low < high
        end = middle + 1 + tl.load(pointer + middle + 1, mask=open_, other=0) // CHUNK
        high = tl.where(open_ & (end > item), middle, high)
        low = tl.where(open_ & (end <= item), middle + 1, low)
    row = low
    begin = tl.load(pointer + row, mask=ok, other=0)
    end = tl.load(pointer + row + 1, mask=ok, other=0)
    before = begin // CHUNK
    chunk = item - row - before
    number = tl.maximum((end - begin + CHUNK - 1) // CHUNK, 1)
    there = chunk < number
    start = begin + chunk * CHUNK
    length = tl.where(there, tl.minimum(end - start, CHUNK), 0)
    part = tl.where(there & (number > 1), 2 * before + chunk, -1)

    at = table + 4 * item
    kind = table.dtype.element_ty
    tl.store(at, tl.where(there, row, -1).to(kind), mask=ok)
    tl.store(at + 1, start.to(kind), mask=ok)
    tl.store(at + 2, length.to(kind), mask=ok)
    tl.store(at + 3, part.to(kind), mask=ok)
    tl.store(lengths + item, tl.where(there, length, -1).to(tl.int16), mask=ok)  # room comes last
    if parts is not None:
        for half in tl.static_range(2):
            step = 2 * chunk + half
            used = (number > 1) & (step < number)
            at = parts + 2 * (2 * before + step)
            in_room = ok & (chunk < end // CHUNK - before)
            tl.store(at, tl.where(used, row, -1).to(kind), mask=in_room)
            tl.store(at + 1, tl.where(used & (step == 0), number, 0).to(kind), mask=in_room)


@kernel
def put_in_order(
    order, cut, table, num_items, permutation, nodes, other, ids, source, pairs, TILE
):  # fmt: skip
    """The items in their order; of each sorted pair the node at the other end, and its id."""
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    ok = i < num_items
    item = tl.load(order + i, mask=ok, other=0)
    for field in tl.static_range(4):
        number = tl.load(cut + 4 * item + field, mask=ok, other=0)
        tl.store(table + 4 * i + field, number, mask=ok)
    if other is not None:
        ok = i < pairs
        place = tl.load(permutation + i, mask=ok, other=0)
        node = tl.load(nodes + place, mask=ok, other=0)
        tl.store(other + i, node.to(other.dtype.element_ty), mask=ok)
        if source is not None:
            number = tl.load(ids + place, mask=ok, other=0)
            tl.store(source + i, number.to(source.dtype.element_ty), mask=ok)


def plan(
    order: Order,
    nodes: Tensor | None = None,
    ids: Tensor | None = None,
    num_ids: int = 0,
) -> Items:
    """Cut the rows of sorted pairs into items.

    Args:
        order: the sorted pairs.
        nodes: what stands at the other ends of the pairs, in the list of these.
        ids: where they come from, below `num_ids`; None: from where they stand.
    """
    pointer, permutation = order.pointer, order.permutation
    rows, pairs, device = len(pointer) - 1, len(permutation), pointer.device
    index, chunk = _index(pairs + rows), chunk_of(pairs)
    num_items, num_parts = rows + pairs // chunk, 2 * (pairs // chunk)
    cut = torch.empty(num_items, 4, dtype=index, device=device)
    table = torch.empty_like(cut)
    parts = torch.empty(num_parts, 2, dtype=index, device=device)
    other = None if nodes is None else torch.empty(pairs, dtype=torch.int32, device=device)
    source = None if ids is None else torch.empty(pairs, dtype=_index(num_ids), device=device)
    if rows:
        lengths = torch.empty(num_items, dtype=torch.int16, device=device)
        with torch.cuda.device_of(pointer):  # Triton launches on the current device
            cut_rows[_grid(num_items)](
                pointer, cut, lengths, parts if num_parts else None, rows, num_items,
                rows.bit_length(), CHUNK=chunk, TILE=_TILE,
            )  # fmt: skip
            longest_first = torch.sort(lengths, descending=True, stable=True).indices
            put_in_order[_grid(max(num_items, 0 if nodes is None else pairs))](
                longest_first, cut, table, num_items, permutation, nodes, other, ids, source, pairs,
                TILE=_TILE,
            )  # fmt: skip
    return Items(
        table, parts, permutation, other, permutation if source is None else source, pointer
    )


def _grid(number: int) -> tuple[int]:
    return (triton.cdiv(number, _TILE),)


def _index(most: int) -> torch.dtype:
    """The dtype of numbers up to `most`."""
    return torch.int32 if most < 2**31 else torch.int64
