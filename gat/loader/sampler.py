"""Neighbours drawn hop by hop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    NegativeSampling,
    NodeSamplerInput,
    SamplerOutput,
)
from torch_geometric.sampler.neighbor_sampler import edge_sample

from attn_core import Edges
from attn_core.dropout import draw_seed, random_bits
from attn_core.graph.sampling import draw, numbering
from gat.loader.block import Block, block_from, checked


class NeighborSampler(BaseSampler):
    """Draws some in-edges of each node, hop by hop, without replacement.

    A node of degree d and a fan-out of k has each of its k-subsets of edges with equal probability
    (Floyd's algorithm: Bentley and Floyd, 1987), in O(k) steps however large d is. The compiled
    module draws with the GIL released, in as many threads as torch has; without it, plain torch
    draws the same, more slowly. Hamilton, Ying,
    Leskovec, "Inductive Representation Learning on Large Graphs", NeurIPS 2017.

    With a seed, the edges drawn for a node are a function of the seed, the epoch, the hop and the
    node alone: of no order, worker, process or batch. So mini-batches that are shared out to any
    number of processes are together what one process would have drawn (with `blocks`, where a node
    is drawn for anew in each layer).

    Args:
        edge_index: `attn_core.Edges`, or what `Edges.from_edge_index` takes.
        num_neighbors: the fan-out of each hop from the seeds, one for each layer of a model; -1
            takes all edges.
        num_nodes: N. Default: what edge_index tells.
        seed: default None, fresh random numbers with each call.

    Raises:
        ValueError: no hops, a fan-out below -1, or edges between two kinds of nodes.

    >>> sampler = NeighborSampler(torch.tensor([[1, 2, 3, 0], [0, 0, 0, 1]]), [2, 2], seed=1)
    >>> first, second = sampler.blocks(torch.tensor([0]))  # of the first layer, and of the second
    >>> second.edges
    Edges(num_keys=3, num_queries=1, num_edges=2, device='cpu')
    """

    def __init__(
        self,
        edge_index: Any,
        num_neighbors: Sequence[int],
        *,
        num_nodes: int | None = None,
        seed: int | None = None,
    ) -> None:
        if not num_neighbors or min(num_neighbors) < -1:
            raise ValueError(
                f"num_neighbors is {list(num_neighbors)}; expected a fan-out for each hop, or -1"
            )
        edges = edge_index
        if not isinstance(edge_index, Edges):
            edges = Edges.from_edge_index(edge_index, num_nodes)
        edges = edges.given
        if edges.num_keys != edges.num_queries:
            raise ValueError(
                f"edge_index goes from {edges.num_keys} to {edges.num_queries} nodes: give "
                "num_nodes, or a graph of one kind of nodes"
            )
        self.num_neighbors, self.seed = list(num_neighbors), seed
        self.num_nodes = edges.num_queries
        self._order = edges.sorted(by_key=False)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it change

    @property
    def epoch(self) -> int:
        """Draws with a seed are other ones in each epoch; set it before each. Default 0."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def blocks(self, nodes: Tensor) -> list[Block]:
        """One block for each layer, the first layer first; the last one's targets are the nodes.

        Args:
            nodes: integers `[n]`.

        Raises:
            TypeError, ValueError, IndexError: nodes of another dtype or shape, or out of range.
        """
        targets, found = checked("nodes", nodes, self.num_nodes), []
        for fan_out, seed in zip(self.num_neighbors, self._seeds(), strict=True):
            drawn = draw(self._order, targets, fan_out, seed)
            block = block_from(targets, drawn, self.num_nodes)
            found.append(block)
            targets = block.sources
        return found[::-1]

    def sample_from_nodes(self, index: NodeSamplerInput, **_: Any) -> SamplerOutput:
        """One subgraph around the nodes, for torch_geometric's NodeLoader."""
        out = self._sample(index.node)
        out.metadata = (index.input_id, index.time)
        return out

    def sample_from_edges(
        self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> SamplerOutput:
        """One subgraph around the ends of the edges, for torch_geometric's LinkLoader."""
        return edge_sample(
            index, self._sample, self.num_nodes, disjoint=False, neg_sampling=neg_sampling
        )

    def _sample(self, nodes: Tensor, *_: Any) -> SamplerOutput:
        new = checked("nodes", nodes, self.num_nodes)
        rows, cols, ids, nodes_per_hop, edges_per_hop = [], [], [], [len(new)], []
        first = 0  # the number of the first of the new nodes
        with numbering(self.num_nodes) as numbers:
            numbers.give(new)
            for fan_out, seed in zip(self.num_neighbors, self._seeds(), strict=True):
                drawn = draw(self._order, new, fan_out, seed)
                target = torch.arange(first, first + len(new))
                cols.append(target.repeat_interleave(drawn.begins.diff()))
                first += len(new)
                row, new = numbers.of(drawn.sources)
                rows.append(row.long())
                ids.append(drawn.places)
                nodes_per_hop.append(len(new))
                edges_per_hop.append(len(row))
            known = numbers.known
        return SamplerOutput(
            node=known,
            row=torch.cat(rows),
            col=torch.cat(cols),
            edge=torch.cat(ids),
            num_sampled_nodes=nodes_per_hop,
            num_sampled_edges=edges_per_hop,
        )

    def _seeds(self) -> list[int]:
        """A seed for each hop."""
        hops = torch.arange(len(self.num_neighbors))
        if self.seed is None:
            return [int(draw_seed(hops.device)) for _ in hops]
        place = self._epoch * 2**16 + hops
        high, low = (random_bits(torch.tensor(self.seed), place, hops[:1] + i) for i in range(2))
        seeds: list[int] = (high << 32 | low).tolist()
        return seeds
