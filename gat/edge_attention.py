"""Attention weights that stay with the edges they belong to."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from attn_core.graph.read import as_plain

if TYPE_CHECKING:
    import networkx as nx


class TopEdges(NamedTuple):
    """The edges over which a node attends most, the strongest first.

    Attributes:
        sources: int64 `[n]`, whom it attends to.
        weights: `[n]`, how much.
        edges: int64 `[n]`, the columns of the edge_index.
    """

    sources: Tensor
    weights: Tensor
    edges: Tensor


class EdgeAttention(NamedTuple):
    """Attention weights with the edges that they belong to.

    It unpacks as `edge_index, weights`, and turns into what a reader or another program wants:
    `to_dense`, `to_networkx`, `top_k`.

    Attributes:
        edge_index: int64 `[2, E']`, sources and targets; self-loops that a layer added come last.
        weights: `[..., E', H]`, before dropout; those of one target and head sum to 1. Dimensions
            before these are of states of one graph that were attended over together.

    >>> edge_index = torch.tensor([[0, 1, 2], [2, 2, 0]])
    >>> attention = EdgeAttention(edge_index, torch.tensor([[0.25], [0.75], [1.0]]))
    >>> attention.top_k(2, k=1)
    TopEdges(sources=tensor([1]), weights=tensor([0.7500]), edges=tensor([1]))
    """

    edge_index: Tensor
    weights: Tensor

    def to_dense(self, size: int | tuple[int, int] | None = None) -> Tensor:
        """The weights as matrices, which is how attention over a dense support returns them.

        Args:
            size: the numbers of sources and targets, or one number for both. Default: one number,
                the largest node plus 1.

        Returns:
            `[..., H, targets, sources]`, zero where there is no edge; the weights of several edges
            from one node to another are added up. With gradients.

        Raises:
            ValueError: the edge_index has a node that is not below its size.

        >>> EdgeAttention(torch.tensor([[0, 1], [1, 0]]), torch.ones(2, 1)).to_dense()
        tensor([[[0., 1.],
                 [1., 0.]]])
        """
        sources, targets = self._sizes(size)
        source, target = as_plain(self.edge_index).long()
        *batch, _, heads = self.weights.shape
        dense = self.weights.new_zeros(*batch, targets * sources, heads)
        dense = dense.index_add(-2, target * sources + source, self.weights)
        return dense.unflatten(-2, (targets, sources)).movedim(-1, -3)

    def to_networkx(
        self,
        size: int | tuple[int, int] | None = None,
        *,
        head: int | None = None,
        bipartite: bool = False,
    ) -> nx.MultiDiGraph:
        """A networkx graph whose edges j → i carry `weight`, how much i attends to j.

        The key of an edge is its column in the edge_index, so that duplicates stay apart.

        Args:
            size: as in `to_dense`; nodes without edges are in the graph too.
            head: the head whose weights these are. Default: the mean over heads.
            bipartite: sources and targets are different nodes, named `("source", j)` and
                `("target", i)`. Default False.

        Raises:
            ModuleNotFoundError: networkx is missing.
            IndexError: there is no such head.
            ValueError: the weights are of a batch, or the edge_index has a node that is not below
                its size.

        >>> graph = EdgeAttention(torch.tensor([[0], [1]]), torch.ones(1, 2)).to_networkx()
        >>> list(graph.edges(keys=True, data="weight"))
        [(0, 1, 0, 1.0)]
        """
        try:
            import networkx as nx
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "to_networkx needs networkx: pip install 'gat-attention[plot]'",
                name=error.name,
            ) from error
        sources, targets = self._sizes(size)
        graph = nx.MultiDiGraph()
        ends: list[list[int] | list[tuple[str, int]]] = [*as_plain(self.edge_index).tolist()]
        if bipartite:
            graph.add_nodes_from(("source", j) for j in range(sources))
            graph.add_nodes_from(("target", i) for i in range(targets))
            ends = [
                [(side, node) for node in nodes]  # type: ignore[misc]
                for side, nodes in zip(("source", "target"), ends, strict=True)
            ]
        else:
            graph.add_nodes_from(range(max(sources, targets)))
        weights = self._of_head(head).detach().float().tolist()
        graph.add_edges_from(
            (source, target, edge, {"weight": weight})
            for edge, (source, target, weight) in enumerate(zip(*ends, weights, strict=True))
        )
        return graph

    def top_k(self, node: int, k: int = 5, *, head: int | None = None) -> TopEdges:
        """The k edges over which a node attends most.

        Args:
            node: the target.
            k: how many; there are fewer if the node has fewer in-edges. Default 5.
            head: by the weights of this head. Default: by the mean over heads.

        Returns:
            TopEdges(sources, weights, edges), the strongest first, equals in the order of edges.

        Raises:
            ValueError: k below 1, or weights of a batch.
            IndexError: a negative node, or no such head.
        """
        node, k = operator.index(node), operator.index(k)
        if node < 0:
            raise IndexError(f"node is {node}; nodes are numbered from 0")
        if k < 1:
            raise ValueError(f"k is {k}; expected at least 1")
        source, target = as_plain(self.edge_index)
        edges = torch.nonzero(target == node).squeeze(1)
        weights = self._of_head(head).index_select(0, edges)
        order = torch.sort(weights, descending=True, stable=True).indices[:k]
        edges = edges[order]
        return TopEdges(source[edges].long(), weights[order], edges)

    def _of_head(self, head: int | None) -> Tensor:
        """The weights `[E']` of a head, or their mean."""
        if self.weights.dim() != 2:
            raise ValueError(
                f"weights have shape {list(self.weights.shape)}, of states of one graph: choose "
                "one with attention._replace(weights=attention.weights[0])"
            )
        if head is None:
            return self.weights.mean(1)
        heads, head = self.weights.shape[1], operator.index(head)
        if not 0 <= head < heads:
            raise IndexError(f"head is {head}; there are {heads} of them (0 to {heads - 1})")
        return self.weights[:, head]

    def _sizes(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """The numbers of sources and of targets."""
        pairs = as_plain(self.edge_index)
        least = (pairs.amax(1) + 1).tolist() if pairs.shape[1] else [0, 0]
        given = (
            (max(least),) * 2 if size is None else size if isinstance(size, tuple) else (size,) * 2
        )
        for name, number, needed in zip(("sources", "targets"), given, least, strict=True):
            if number < needed:
                raise ValueError(
                    f"size says {number} {name}, but edge_index has the node {needed - 1} among "
                    f"them: give size at least {needed}"
                )
        return given
