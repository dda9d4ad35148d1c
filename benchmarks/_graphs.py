"""Graphs to measure on: the same number of edges, differently spread over the nodes.

All but `band` are free of self-loops.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

IN_DEGREE = 16  # on average


def uniform(num_edges: int, nodes: int, device: str) -> Tensor:
    """Both ends of each edge at random."""
    return _without_self_loops(torch.randint(nodes, (2, num_edges), device=device), nodes)


def power_law(num_edges: int, nodes: int, device: str) -> Tensor:
    """Node number n has about n^(-2/3) of the edges of node 1, at either end; names shuffled."""
    pairs = torch.empty(2, num_edges, dtype=torch.int64, device=device)
    for row in pairs:
        names = torch.randperm(nodes, device=device)
        rank = torch.rand(num_edges, device=device, dtype=torch.float64).pow_(3).mul_(nodes)
        row.copy_(names[rank.long().clamp_(max=nodes - 1)])
    return _without_self_loops(pairs, nodes)


def hub(num_edges: int, nodes: int, device: str) -> Tensor:
    """Half of all edges end in one node."""
    pairs = torch.randint(nodes, (2, num_edges), device=device)
    pairs[1, ::2] = 0
    return _without_self_loops(pairs, nodes)


def band(num_edges: int, nodes: int, device: str) -> Tensor:
    """Each node sees the ones around it and itself, in order: what a window is as a graph."""
    target = torch.arange(num_edges, device=device) // max(1, num_edges // nodes)
    offset = torch.arange(num_edges, device=device) % max(1, num_edges // nodes)
    source = target + offset - num_edges // nodes // 2
    return torch.stack([source.clamp(0, nodes - 1), target.clamp(max=nodes - 1)])


def _without_self_loops(pairs: Tensor, nodes: int) -> Tensor:
    """The source of each self-loop moved on by one node, in place."""
    source, target = pairs
    source.add_(source == target).remainder_(nodes)
    return pairs


GRAPHS: dict[str, Callable[[int, int, str], Tensor]] = {
    "uniform": uniform,
    "power law": power_law,
    "one hub": hub,
    "band": band,
}


def make_graph(
    kind: str, num_edges: int, device: str = "cpu", nodes: int | None = None
) -> tuple[Tensor, int]:
    """An edge_index `[2, E]` of one of GRAPHS, and its number of nodes, by default E / 16.

    >>> pairs, nodes = make_graph("band", 64)
    >>> nodes, pairs[0, :16].unique().tolist(), pairs[1].bincount().tolist()
    (4, [0, 1, 2, 3], [16, 16, 16, 16])
    """
    nodes = max(2, num_edges // IN_DEGREE) if nodes is None else nodes
    return GRAPHS[kind](num_edges, nodes, device), nodes
