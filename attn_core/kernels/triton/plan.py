"""Who computes what: the rows of a graph, cut into items of work of nearly the same size.

An item is a whole row of at most CHUNK pairs, or a chunk of CHUNK pairs of a longer one. Items are
sorted by their length, so that a program, which walks through the pairs of several items in
lockstep, gets items that end together; the longest come first, so that none is left for the end.
The chunks of a row leave partial results, which `combine` merges in their order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attn_core.supports import Edges

CHUNK = 256  # pairs in an item; fixed, for the bits of the result depend on it


class Side(NamedTuple):
    """The work of all rows, which are the queries, or for the transpose the keys.

    Attributes:
        row, start, length, part: of each item, its row, its first sorted pair, its number of pairs
            and the number of its partial result, -1 for a whole row.
        split_row, split_pointer: the rows that were cut, and where their partial results begin.
        num_parts: how many partial results there are.
        other: the node at the other end of each sorted pair.
        place: where each sorted pair stands in the list of pairs.
        source: where it comes from: the caller's edge, or E + node of a self-loop.
    """

    row: Tensor
    start: Tensor
    length: Tensor
    part: Tensor
    split_row: Tensor
    split_pointer: Tensor
    num_parts: int
    other: Tensor
    place: Tensor
    source: Tensor


def side_of(edges: Edges, by: str) -> Side:
    """The work by "query" or by "key", made once per Edges."""
    name = f"_triton_by_{by}"
    if name not in edges.__dict__:
        with torch.inference_mode(False):
            edges.__dict__[name] = _plan(edges, by)
    side: Side = edges.__dict__[name]
    return side


def _plan(edges: Edges, by: str) -> Side:
    if by == "query":
        order, other = edges.by_query, edges.key_index
    else:
        order, other = edges.by_key, edges.query_index
    pointer = order.pointer
    number = (pointer.diff() + CHUNK - 1).div_(CHUNK, rounding_mode="floor").clamp_(min=1)
    row = torch.repeat_interleave(number)
    chunk = torch.arange(len(row), device=row.device) - (number.cumsum(0) - number)[row]
    start = pointer[row] + chunk * CHUNK
    length = (pointer[row + 1] - start).clamp_(max=CHUNK)
    is_part = number[row] > 1
    part = torch.where(is_part, is_part.cumsum(0) - 1, -1)
    split_row = torch.nonzero(number > 1).squeeze(1)
    split_pointer = torch.cat([pointer.new_zeros(1), number[split_row].cumsum(0)])
    longest_first = torch.argsort(length, descending=True, stable=True)

    largest = max(2 * edges.num_edges, edges.num_keys + edges.num_queries)
    index = torch.int32 if largest < 2**31 else torch.int64
    place = order.permutation.to(index)
    source = place
    if edges.given is not edges:
        source = edges.source_id.index_select(0, order.permutation).to(index)
    return Side(
        row[longest_first].to(index),
        start[longest_first],
        length[longest_first].int(),
        part[longest_first].to(index),
        split_row,
        split_pointer,
        int(split_pointer[-1]),
        other.index_select(0, order.permutation).to(index),
        place,
        source,
    )
