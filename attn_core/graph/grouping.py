"""Entries grouped by an index: those of one query, or of one key, or of any group.

A `Grouping` sorts its index when that is first needed. `grouping_of` is the one look-up by which
every op finds the Grouping of the index it was handed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attn_core import compiled
from attn_core.compat import listed
from attn_core.gpu import is_gpu
from attn_core.graph.known import known, own, owner_of
from attn_core.graph.listing import Listing, Sorted
from attn_core.graph.read import Order, row_pointer, sort_nodes
from attn_core.transforms import bare, is_transformed, outside_inference


class Grouping:
    """One end of a list of pairs, or any other index of groups.

    Attributes:
        index: int64 `[E]`, the group of each entry.
        num: how many groups there are, the empty ones included.
        other: what stands beside each entry, the other end of its pair: int64 `[E]`. By default
            the index itself.
    """

    def __init__(
        self, index: Tensor, num: int, other: Tensor | None = None, order: Order | None = None
    ) -> None:
        self.index, self.num = index, num
        self.other = index if other is None else other
        if order is not None:
            self.__dict__["order"] = order
        self._made: dict[str, Any] = {}

    @cached_property
    def order(self) -> Order:
        """The entries sorted by group, those of one group in the order they were given in (CSR)."""
        with outside_inference():
            order, columns = sort_pairs(self.index, self.num, self.other)
        if columns is not None:
            self.__dict__["columns"] = columns
        return order

    @cached_property
    def columns(self) -> Tensor:
        """What stands beside each sorted entry, int32."""
        order = self.order  # which may bring them along
        if (brought := self.__dict__.get("columns")) is not None:
            return brought
        with outside_inference():
            return self.other[order.permutation].int()

    def once(self, name: str, make: Callable[[Grouping], Any]) -> Any:
        """What a backend makes of this grouping, made once."""
        if name not in self._made:
            with outside_inference():
                self._made[name] = make(self)
        return self._made[name]

    @property
    def pointer(self) -> Tensor:
        """Where the sorted entries of each group begin, int64 `[num + 1]`."""
        return self.order.pointer

    @property
    def permutation(self) -> Tensor:
        """Which entry each sorted one is, int64 `[E]`."""
        return self.order.permutation

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}  # what a backend makes suits one device


class End(Grouping):
    """One end of the pairs of a `Listing`: 0 the keys, 1 the queries."""

    def __init__(self, listing: Listing, end: int) -> None:
        self._listing, self._end, self.num = listing, end, listing.sizes[end]
        self._made = {}

    @property
    def sorted(self) -> Sorted:
        """The pairs sorted by this end."""
        return self._listing.by_query if self._end else self._listing.by_key

    @cached_property
    def index(self) -> Tensor:  # type: ignore[override]
        index = self._listing.pairs[self._end]
        own(index, self)
        return index

    @property
    def other(self) -> Tensor:  # type: ignore[override]
        return self._listing.pairs[1 - self._end]

    @cached_property
    def order(self) -> Order:
        with outside_inference():
            return Order(self.sorted.pointer, self._listing.positions(self.sorted.places))

    @property
    def columns(self) -> Tensor:
        return self.sorted.columns

    @property
    def pointer(self) -> Tensor:
        return self.sorted.pointer


def grouping_of(index: Tensor, num: int) -> Grouping:
    """The Grouping of an index `[E]`, or of the queries of pairs `[2, E]`; sorted once.

    That of Edges is theirs, of another index it is kept as long as the index lives unedited.
    """
    owner = owner_of(index)
    if isinstance(owner, Grouping):
        return owner
    if owner is not None:
        found: Grouping = owner.by_query
        return found
    return known(
        index, ("grouping", num), lambda: _ordered(index if index.dim() == 1 else index[1], num)
    )


def _ordered(index: Tensor, num: int) -> Grouping:
    grouping = Grouping(index, num)
    _ = grouping.order
    del grouping.index, grouping.other  # what is kept of a tensor must not refer to it
    return grouping


def limits(index: Tensor) -> tuple[int, int]:
    """The smallest and the largest entry; a GPU is asked once, as long as the index is not edited.

    >>> limits(torch.tensor([2, 0])), limits(torch.tensor([], dtype=torch.int64))
    ((0, 2), (0, -1))
    """
    if index.shape[0] == 0:
        return 0, -1

    def look() -> tuple[int, int]:
        low, high = listed(torch.stack(torch.aminmax(index)))
        return low, high

    return known(index, ("limits",), look) if is_gpu(index.device) else look()


def sort_pairs(nodes: Tensor, num: int, others: Tensor) -> tuple[Order, Tensor | None]:
    """Sort pairs by one of their ends, stably, and their other ends too if that costs nothing."""
    if is_gpu(nodes.device):
        return sort_nodes(nodes, num), None
    if compiled.is_on() and nodes.device.type == "cpu" and not is_transformed():
        nodes, others = bare(nodes), bare(others)
        pointer, order = nodes.new_empty(num + 1), nodes.new_empty(len(nodes))
        sorted_others = torch.empty(len(nodes), dtype=torch.int32, device=nodes.device)
        given = nodes.contiguous(), others.contiguous(), 2**31, torch.get_num_threads()
        if compiled.call("sort", *given, pointer, sorted_others, order) >= 0:
            return Order(pointer, order), sorted_others
    _check(nodes, num)
    pointer = row_pointer(nodes, num)
    if bool((nodes[1:] >= nodes[:-1]).all()):  # sorted already
        return Order(pointer, torch.arange(len(nodes), device=nodes.device)), None
    return Order(pointer, torch.argsort(nodes, stable=True)), None


def _check(nodes: Tensor, num: int) -> None:
    """Raise if a node is out of range: to count to it might take all memory there is."""
    low, high = limits(nodes)
    if low < 0 or high >= num:
        raise IndexError(
            f"an index has the entry {low if low < 0 else high}, but there are only {num} groups "
            f"(0 to {num - 1}); it was edited after it was checked"
        )
