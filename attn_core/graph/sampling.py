"""Pairs drawn for some nodes of a graph, and nodes numbered anew.

The compiled module does both, with the GIL released, and reads no more of a graph than is drawn;
plain torch, where it is not there, draws the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from attn_core import compiled
from attn_core.dropout import random_bits
from attn_core.graph.listing import Sorted


class Drawn(NamedTuple):
    """Pairs drawn for some nodes: those of the i-th lie at `begins[i]:begins[i + 1]`."""

    begins: Tensor  # int64 [n + 1]
    sources: Tensor  # int32 [m], their other ends
    places: Tensor  # int64 [m], the numbers of the caller's edges


def draw(order: Sorted, nodes: Tensor, most: int, seed: int) -> Drawn:
    """For each node all of its pairs, or `most` different ones, each subset equally likely.

    What is drawn for a node is a function of the seed and the node, in the order of the graph.
    Floyd's algorithm (Bentley and Floyd, 1987): `most` steps, however many pairs there are.

    Args:
        order: the pairs, sorted by these nodes.
        nodes: int64 `[n]`, in range.
        most: how many at most; -1: all.
        seed: of 64 bits.
    """
    if not compiled.is_on():
        return _draw(order, nodes, most, seed)
    nodes, begins = nodes.contiguous(), nodes.new_empty(len(nodes) + 1)
    size = compiled.call("count_drawn", order.pointer, len(order.places), nodes, most, begins)
    sources, places = torch.empty(size, dtype=torch.int32), torch.empty(size, dtype=torch.int64)
    threads = torch.get_num_threads()
    compiled.call("draw_pairs", *order, nodes, most, seed, begins, threads, sources, places)
    return Drawn(begins, sources, places)


def _draw(order: Sorted, nodes: Tensor, most: int, seed: int) -> Drawn:
    first = order.pointer[nodes]
    degrees = order.pointer[nodes + 1] - first
    counts = degrees if most < 0 else degrees.clamp(max=most)
    begins = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    slots = torch.arange(int(begins[-1]))
    slots -= begins[:-1].repeat_interleave(counts)  # 0, 1, … of each node
    if most > 0 and len(many := torch.nonzero(degrees > most).squeeze(1)):
        chosen = _subsets(degrees[many], most, nodes[many], seed)
        slots[begins[:-1][many, None] + torch.arange(most)] = chosen
    slots += first.repeat_interleave(counts)
    return Drawn(begins, order.columns[slots], order.places[slots].long())


def _subsets(sizes: Tensor, k: int, nodes: Tensor, seed: int) -> Tensor:
    """k different numbers below each size, each subset equally likely: int64 `[n, k]`, sorted.

    Floyd: for j = size - k … size - 1, draw one of 0 … j; if it is there already, take j instead.
    """
    random = random_bits(torch.tensor(seed), nodes[:, None], torch.arange(k))  # 32 bits each
    chosen = torch.empty(len(sizes), k, dtype=torch.int64)
    for i in range(k):
        last = sizes - k + i
        drawn = random[:, i] * (last + 1) >> 32
        again = (chosen[:, :i] == drawn[:, None]).any(1)
        chosen[:, i] = torch.where(again, last, drawn)
    return chosen.sort(1).values


class Numbers:
    """New numbers for some nodes: 0, 1, … in the order in which they are given and found.

    Attributes:
        known: int64, the nodes that have numbers, in the order of these.
    """

    def __init__(self, place: Tensor) -> None:
        self._place, self._known, self._count = place, [place.new_empty(0, dtype=torch.int64)], 0

    @property
    def known(self) -> Tensor:
        return torch.cat(self._known)

    def give(self, nodes: Tensor) -> None:
        """Number the first nodes; one that comes twice keeps its first place."""
        if compiled.is_on():
            compiled.call("give_numbers", nodes.contiguous(), self._place)
        else:
            numbers = torch.arange(len(nodes), dtype=torch.int32)
            self._place.scatter_reduce_(0, nodes, numbers, "amin", include_self=False)
        self._keep(nodes)

    def of(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of nodes (int32), and those that had none before, each once, ascending."""
        first = self._count
        if compiled.is_on():
            fresh, to = nodes.new_empty(len(nodes), dtype=torch.int64), torch.empty_like(nodes)
            given = nodes, first, self._place, torch.get_num_threads(), fresh, to
            fresh = fresh[: compiled.call("number_nodes", *given)].clone()
        else:
            fresh = nodes[self._place[nodes] < 0].unique().long()
            self._place[fresh] = torch.arange(first, first + len(fresh), dtype=torch.int32)
            to = self._place[nodes]
        self._keep(fresh)
        return to, fresh

    def _keep(self, nodes: Tensor) -> None:
        self._known.append(nodes)
        self._count += len(nodes)

    def forget(self) -> None:
        """Leave the memory as it was found."""
        if compiled.is_on():
            compiled.call("take_numbers", self.known, self._place)
        else:
            self._place[self.known] = -1


_kept = threading.local()


@contextmanager
def numbering(num_nodes: int) -> Iterator[Numbers]:
    """Numbers for nodes below `num_nodes`, which hold as long as the `with` block lasts.

    An array of all nodes is kept for each thread, of 4 bytes for each: to make it anew would take
    longer than all else.
    """
    place: Tensor | None = getattr(_kept, "place", None)
    _kept.place = None  # after an error it is not as it was found, and left alone
    if place is None or len(place) < num_nodes:
        place = torch.full((num_nodes,), -1, dtype=torch.int32, device="cpu")
    numbers = Numbers(place[:num_nodes])
    yield numbers
    numbers.forget()
    _kept.place = place
