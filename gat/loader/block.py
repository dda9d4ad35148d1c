"""Some edges into some targets, whose nodes are numbered anew."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attn_core import Edges
from attn_core.graph.sampling import Drawn, draw, numbering


class Block(NamedTuple):
    """Some edges into some targets, for one layer: `layer(x[sources], block.edges)`.

    Attributes:
        edges: `attn_core.Edges` from the sources to the targets, in numbers of their own.
        sources: int64 `[n]`, the nodes of the graph that the sources are; the targets come first,
            then the others, ascending.
        edge_ids: int64 `[E]`, the edges of the graph that the edges are.
    """

    edges: Edges
    sources: Tensor
    edge_ids: Tensor


def block_of(edges: Edges, targets: Tensor) -> Block:
    """All edges into some targets.

    Args:
        edges: of the graph; self-loops that were added to it are left out, for layers to add.
        targets: integers `[n]`.

    Raises:
        TypeError, ValueError, IndexError: targets of another dtype or shape, or out of range.

    >>> edges = Edges.from_edge_index(torch.tensor([[0, 1, 2], [2, 2, 0]]))
    >>> block_of(edges, torch.tensor([2])).sources
    tensor([2, 0, 1])
    """
    edges = edges.given
    targets = checked("targets", targets, edges.num_queries)
    drawn = draw(edges.sorted(by_key=False), targets, -1, 0)
    return block_from(targets, drawn, max(edges.num_keys, edges.num_queries))


def block_from(targets: Tensor, drawn: Drawn, num_nodes: int) -> Block:
    """The block of what was drawn for targets."""
    with numbering(num_nodes) as numbers:
        numbers.give(targets)
        columns, _ = numbers.of(drawn.sources)
        sources = numbers.known
    return Block(Edges.from_csr(drawn.begins, columns, len(sources)), sources, drawn.places)


def checked(name: str, nodes: Tensor, num_nodes: int) -> Tensor:
    """Numbers of nodes as int64 `[n]`, in range."""
    if not isinstance(nodes, Tensor) or nodes.dtype == torch.bool or nodes.is_floating_point():
        kind = nodes.dtype if isinstance(nodes, Tensor) else type(nodes).__name__
        raise TypeError(f"{name} is {kind}; expected a tensor of integers [n], numbers of nodes")
    if nodes.dim() != 1:
        raise ValueError(f"{name} has shape {list(nodes.shape)}; expected [n], numbers of nodes")
    low, high = torch.stack(nodes.aminmax()).tolist() if len(nodes) else (0, -1)
    if low < 0 or high >= num_nodes:
        raise IndexError(
            f"{name} has the entry {low if low < 0 else high}; expected 0 to {num_nodes - 1}"
        )
    return nodes.long()
