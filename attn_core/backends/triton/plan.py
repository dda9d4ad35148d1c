"""Who computes what: the rows of a graph, cut into items of work of nearly the same size.

An item is a whole row of at most CHUNK pairs, or a chunk of CHUNK pairs of a longer one. Items are
sorted by their length, so that a program, which walks through the pairs of several items in
lockstep, gets items that end together; the longest come first, so that none is left for the end.
The chunks of a row leave partial results, which are merged in their order.

How many items, parts and split rows there are depends on the numbers on the GPU, which the host
does not wait for: there is room for as many as there can be, and the rest belongs to the row -1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attn_core.graph.grouping import Grouping
from attn_core.graph.read import Order, places_of
from attn_core.supports.edges import Edges

CHUNK = 256  # pairs in an item; fixed, for the bits of the result depend on it


class Items(NamedTuple):
    """The work of all rows.

    Attributes:
        row, start, length, part: of each item, its row, its first sorted pair, its number of pairs
            and the number of its partial result, -1 for a whole row.
        split_row, split_pointer: the rows that were cut, and where their partial results begin.
        num_parts: room for how many partial results there must be.
        place: where each sorted pair stands in the list of pairs.
        num_rows: how many rows there are.
    """

    row: Tensor
    start: Tensor
    length: Tensor
    part: Tensor
    split_row: Tensor
    split_pointer: Tensor
    num_parts: int
    place: Tensor
    num_rows: int


class Side(NamedTuple):
    """The work by query, or for the transpose by key.

    Attributes:
        items: the rows are the queries, or the keys.
        other: the node at the other end of each sorted pair.
        source: where it comes from: the caller's edge, or E + node of a self-loop.
    """

    items: Items
    other: Tensor
    source: Tensor


def side_of(edges: Edges, by: str) -> Side:
    """The work by "query" or by "key", made once per Edges."""
    grouping = edges.by_query if by == "query" else edges.by_key
    side: Side = grouping.once("triton side", lambda grouping: _side(edges, grouping))
    return side


def items_of(grouping: Grouping) -> Items:
    """The work of all rows of a grouping, made once."""
    items: Items = grouping.once("triton items", lambda grouping: plan(grouping.order))
    return items


def _side(edges: Edges, grouping: Grouping) -> Side:
    items, permutation = items_of(grouping), grouping.permutation
    nodes = edges.num_keys + edges.num_queries
    source = items.place
    if edges.given is not edges:
        of_pair = edges.source_id.index_select(0, permutation)
        source = of_pair.to(_index(edges.given.num_edges + nodes))
    return Side(items, grouping.other.index_select(0, permutation).to(_index(nodes)), source)


def plan(order: Order) -> Items:
    """Cut the rows of sorted pairs into items."""
    pointer, pairs = order.pointer, len(order.permutation)
    rows, device = len(pointer) - 1, pointer.device
    index = _index(pairs + rows)
    number = (pointer.diff() + CHUNK - 1).div_(CHUNK, rounding_mode="floor").clamp_(min=1)
    ends = number.cumsum(0)
    item = torch.arange(rows + pairs // CHUNK, device=device)
    row = torch.searchsorted(ends, item, right=True)
    exists, row = row < rows, row.clamp(max=rows - 1)
    start = pointer[row] + (item - (ends - number)[row]) * CHUNK
    length = (pointer[row + 1] - start).clamp_(0, CHUNK)
    is_part = (number[row] > 1) & exists
    part = torch.where(is_part, is_part.cumsum(0) - 1, -1)

    split_row = places_of(number > 1, pairs // CHUNK)
    is_split = split_row < rows
    numbers = torch.where(is_split, number[split_row.clamp(max=rows - 1)], 0)
    split_pointer = torch.cat([pointer.new_zeros(1), numbers.cumsum(0)])
    longest_first = torch.argsort(length, descending=True, stable=True)
    return Items(
        torch.where(exists, row, -1)[longest_first].to(index),
        start[longest_first],
        length[longest_first].int(),
        part[longest_first].to(index),
        torch.where(is_split, split_row, -1),
        split_pointer,
        2 * (pairs // CHUNK),  # a row of more than CHUNK pairs leaves fewer than twice its share
        order.permutation.to(index),
        rows,
    )


def _index(most: int) -> torch.dtype:
    """The dtype of numbers up to `most`."""
    return torch.int32 if most < 2**31 else torch.int64
