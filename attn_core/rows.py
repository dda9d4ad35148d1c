"""Rows: the scores of each query, as something that can be reduced.

Over a dense support the rows lie along the last axis; over edges a row is scattered through a list
of pairs. `DenseRows` and `EdgeRows` know how to reduce either, so that the mathematics of a
normaliser is written once.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """The scores of each query, as something that can be reduced."""

    def allow(self, scores: Tensor) -> Tensor:
        """The scores, with -inf at the pairs that do not exist."""

    def max(self, x: Tensor) -> Tensor:
        """The largest entry of each row."""

    def sum(self, x: Tensor) -> Tensor:
        """The sum of each row."""

    def spread(self, per_row: Tensor) -> Tensor:
        """Hand each pair the number of its row."""

    def per_query(self, per_row: Tensor) -> Tensor:
        """The numbers of the rows, one per query and head, for the caller."""

    def from_query(self, per_query: Tensor) -> Tensor:
        """The reverse of `per_query`."""

    def per_head(self, parameter: Tensor) -> Tensor:
        """Shape a parameter `[]` or `[H]` so that it broadcasts against the scores."""

    def places(self, x: Tensor) -> Tensor:
        """A number for each entry of x that grows along its row."""

    def descending(self, x: Tensor) -> tuple[Tensor, Tensor, Rows]:
        """Each row sorted downwards, the rank 1, 2, … of each entry, and the sorted rows."""

    def running_sum(self, x: Tensor) -> Tensor:
        """For each entry, the sum of its row up to and with it."""


class DenseRows:
    """Rows along the last axis of scores `[..., H, Tq, Tk]`, with an optional mask.

    Args:
        mask: bool, broadcasts against the scores; True where the query may attend to the key.
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        self.mask = mask

    def allow(self, scores: Tensor) -> Tensor:
        return scores if self.mask is None else scores.masked_fill(~self.mask, -math.inf)

    def max(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 0:
            return x.new_full((*x.shape[:-1], 1), -math.inf)
        return x.amax(-1, keepdim=True)

    def sum(self, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True)

    def spread(self, per_row: Tensor) -> Tensor:
        return per_row

    def per_query(self, per_row: Tensor) -> Tensor:
        return per_row.squeeze(-1)

    def from_query(self, per_query: Tensor) -> Tensor:
        return per_query.unsqueeze(-1)

    def per_head(self, parameter: Tensor) -> Tensor:
        return parameter[..., None, None] if parameter.dim() else parameter

    def places(self, x: Tensor) -> Tensor:
        return torch.arange(x.shape[-1], device=x.device)

    def descending(self, x: Tensor) -> tuple[Tensor, Tensor, Rows]:
        rank = torch.arange(1, x.shape[-1] + 1, device=x.device)
        return x.sort(-1, descending=True).values, rank, self

    def running_sum(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


class EdgeRows:
    """Rows scattered over a list of pairs, scores `[E, ...]`: pair e belongs to row `index[e]`.

    Args:
        index: int64 `[E]`, each in 0 … num - 1.
        num: how many rows there are, the empty ones included.
        exists: bool `[E]`, which of the pairs there are. Default: all.
    """

    def __init__(self, index: Tensor, num: int, exists: Tensor | None = None) -> None:
        self.index, self.num, self.exists = index, num, exists

    def allow(self, scores: Tensor) -> Tensor:
        if self.exists is None:
            return scores
        exists = self.exists.view(-1, *[1] * (scores.dim() - 1))
        return scores.masked_fill(~exists, -math.inf)

    def max(self, x: Tensor) -> Tensor:
        index = self.index.view(-1, *[1] * (x.dim() - 1)).expand_as(x)
        lowest = x.new_full((self.num, *x.shape[1:]), -math.inf)
        return lowest.scatter_reduce(0, index, x, "amax")

    def sum(self, x: Tensor) -> Tensor:
        return x.new_zeros(self.num, *x.shape[1:]).index_add(0, self.index, x)

    def spread(self, per_row: Tensor) -> Tensor:
        return per_row.index_select(0, self.index)

    def per_query(self, per_row: Tensor) -> Tensor:
        return per_row

    def from_query(self, per_query: Tensor) -> Tensor:
        return per_query

    def per_head(self, parameter: Tensor) -> Tensor:
        return parameter

    def places(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[0], device=x.device)
        return places.view(-1, *[1] * (x.dim() - 1))

    def descending(self, x: Tensor) -> tuple[Tensor, Tensor, Rows]:
        # Sort by value, then by row: rows keep their places, which are the same in each head. ONNX
        # knows no stable sort, so that numbers of which none are equal stand for the rows
        by_value = x.argsort(0, descending=True)
        by_row = (self.index[by_value] * x.shape[0] + self.places(x)).argsort(0)
        order = by_value.gather(0, by_row)
        rows = EdgeRows(self.index.sort().values, self.num)
        # Of the shape: len() would ask torch.compile for a number that depends on the data
        rank = torch.arange(1, self.index.shape[0] + 1, device=x.device)
        rank = rank - rows.spread(rows.starts())
        return x.gather(0, order), rank.view(-1, *[1] * (x.dim() - 1)), rows

    def running_sum(self, x: Tensor) -> Tensor:
        total = torch.cat([x.new_zeros(1, *x.shape[1:]), x.cumsum(0)])
        return total[1:] - self.spread(total[self.starts()])

    def starts(self) -> Tensor:
        """Where each row begins, once the pairs are sorted by row."""
        sizes = self.index.new_zeros(self.num).index_add(0, self.index, torch.ones_like(self.index))
        return sizes.cumsum(0) - sizes
