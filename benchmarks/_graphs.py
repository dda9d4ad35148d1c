"""Graphs to measure on: the same number of edges, differently spread over the nodes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

IN_DEGREE = 16  # on average


def uniform(num_edges: int, nodes: int, device: str) -> Tensor:
    """Both ends of each edge at random."""
    return torch.randint(nodes, (2, num_edges), device=device)


def power_law(num_edges: int, nodes: int, device: str) -> Tensor:
    """Node number n has about n^(-2/3) of the edges of node 1, at either end; names shuffled."""
    rank = torch.rand(2, num_edges, device=device, dtype=torch.float64) ** 3 * nodes
    names = torch.stack([torch.randperm(nodes, device=device) for _ in range(2)])
    return names.gather(1, rank.long().clamp_(max=nodes - 1))


def hub(num_edges: int, nodes: int, device: str) -> Tensor:
    """Half of all edges end in one node."""
    pairs = uniform(num_edges, nodes, device)
    pairs[1, ::2] = 0
    return pairs


def band(num_edges: int, nodes: int, device: str) -> Tensor:
    """Each node sees the ones around it, in order: what a window is as a graph."""
    target = torch.arange(num_edges, device=device) // max(1, num_edges // nodes)
    offset = torch.arange(num_edges, device=device) % max(1, num_edges // nodes)
    source = target + offset - num_edges // nodes // 2
    return torch.stack([source.clamp(0, nodes - 1), target.clamp(max=nodes - 1)])


GRAPHS: dict[str, Callable[[int, int, str], Tensor]] = {
    "uniform": uniform,
    "power law": power_law,
    "one hub": hub,
    "band": band,
}


def make_graph(kind: str, num_edges: int, device: str) -> tuple[Tensor, int]:
    """An edge_index `[2, E]` of one of GRAPHS, and its number of nodes.

    >>> pairs, nodes = make_graph("band", 64, "cpu")
    >>> nodes, pairs[0, :16].unique().tolist(), pairs[1].bincount().tolist()
    (4, [0, 1, 2, 3], [16, 16, 16, 16])
    """
    nodes = max(2, num_edges // IN_DEGREE)
    return GRAPHS[kind](num_edges, nodes, device), nodes
