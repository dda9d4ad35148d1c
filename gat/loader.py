"""Mini-batches of a graph by sampled neighbours, and exact inference over graphs of any size.

`NeighborSampler` works inside torch_geometric's own `NodeLoader` and `LinkLoader`, without any
compiled extension, and gives blocks, one for each layer; `infer` goes through a graph layer by
layer, chunk by chunk, reading features from wherever they lie. See docs/scaling.md.
"""

from __future__ import annotations

import functools
import mmap
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch_geometric.nn
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
from gat.models import AGNN, AttentionNetwork

__all__ = ["Block", "NeighborSampler", "block_of", "infer", "rows_of"]


class Block(NamedTuple):
    """Some edges into some targets, for one layer: `layer(x[sources], block.edges)`.

    Attributes:
        edges: `attn_core.Edges` from the sources to the targets, in numbers of their own.
        sources: int64 `[n]`, the nodes of the graph that the sources are; the targets come first.
        edge_ids: int64 `[E]`, the edges of the graph that the edges are.
    """

    edges: Edges
    sources: Tensor
    edge_ids: Tensor


class NeighborSampler(BaseSampler):
    """Draws some in-edges of each node, hop by hop, without replacement.

    A node of degree d and a fan-out of k has each of its k-subsets of edges with equal probability
    (Floyd's algorithm: Bentley and Floyd, 1987), in O(k) steps however large d is. Hamilton, Ying,
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
        order = edges.by_query
        self._pointer, self._columns = order.pointer, order.columns
        self._edge_ids = order.permutation
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
            nodes: integers `[n]`, each once.
        """
        seeds, found = self._seeds(), []
        targets = nodes.long()
        for hop, fan_out in enumerate(self.num_neighbors):
            slots, counts = self._draw(targets, fan_out, seeds[hop])
            neighbors, ids = self._columns[slots], self._edge_ids[slots]
            block = _block(targets, neighbors, counts, ids, self.num_nodes)
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
        seeds, known = self._seeds(), nodes.long()
        number = _numbers.among(self.num_nodes)
        number.give(known)
        new, rows, cols, ids, nodes_per_hop, edges_per_hop = known, [], [], [], [len(known)], []
        for hop, fan_out in enumerate(self.num_neighbors):
            slots, counts = self._draw(new, fan_out, seeds[hop])
            sources = self._columns[slots].long()
            cols.append(number[new].repeat_interleave(counts))
            new = number.unknown(sources)
            number.give(new, len(known))
            known = torch.cat([known, new])
            rows.append(number[sources])
            ids.append(self._edge_ids[slots])
            nodes_per_hop.append(len(new))
            edges_per_hop.append(len(slots))
        number.forget(known)
        return SamplerOutput(
            node=known,
            row=torch.cat(rows),
            col=torch.cat(cols),
            edge=torch.cat(ids),
            num_sampled_nodes=nodes_per_hop,
            num_sampled_edges=edges_per_hop,
        )

    def _seeds(self) -> Tensor:
        """A seed for each hop, int64 `[hops]`."""
        hops = torch.arange(len(self.num_neighbors))
        if self.seed is None:
            return torch.stack([draw_seed(hops.device) for _ in hops])
        place = self._epoch * 2**16 + hops
        high, low = (random_bits(torch.tensor(self.seed), place, hops[:1] + i) for i in range(2))
        return high << 32 | low

    def _draw(self, nodes: Tensor, fan_out: int, seed: Tensor) -> tuple[Tensor, Tensor]:
        """Places among the sorted edges, those of the first node first, and how many each has."""
        first = self._pointer[nodes]
        degrees = self._pointer[nodes + 1] - first
        counts = degrees if fan_out < 0 else degrees.clamp(max=fan_out)
        places = torch.arange(int(counts.sum()))
        places -= (counts.cumsum(0) - counts).repeat_interleave(counts)  # 0, 1, … of each node
        if fan_out > 0 and len(many := torch.nonzero(degrees > fan_out).squeeze(1)):
            chosen = _subsets(degrees[many], fan_out, nodes[many], seed)
            begin = (counts.cumsum(0) - counts)[many]
            places[begin[:, None] + torch.arange(fan_out)] = chosen
        return places + first.repeat_interleave(counts), counts


def _subsets(sizes: Tensor, k: int, nodes: Tensor, seed: Tensor) -> Tensor:
    """k different numbers below each size, each subset equally likely: int64 `[n, k]`, sorted.

    Floyd: for j = size - k … size - 1, draw one of 0 … j; if it is there already, take j instead.
    """
    random = random_bits(seed, nodes[:, None], torch.arange(k))  # 32 bits each
    chosen = torch.empty(len(sizes), k, dtype=torch.int64)
    for i in range(k):
        last = sizes - k + i
        drawn = random[:, i] * (last + 1) >> 32
        again = (chosen[:, :i] == drawn[:, None]).any(1)
        chosen[:, i] = torch.where(again, last, drawn)
    return chosen.sort(1).values


class _Numbers(threading.local):
    """New numbers for nodes, in an array of all nodes that is kept and left as it was found."""

    place = torch.empty(0, dtype=torch.int64)

    def among(self, num_nodes: int) -> _Numbers:
        """These, with room for so many nodes."""
        if len(self.place) < num_nodes:
            self.place = torch.full((num_nodes,), -1, dtype=torch.int64)
        return self

    def give(self, nodes: Tensor, first: int = 0) -> None:
        """Number the nodes from `first` on."""
        self.place[nodes] = torch.arange(first, first + len(nodes))

    def unknown(self, nodes: Tensor) -> Tensor:
        """Those that have no number yet, each once, ascending."""
        return nodes[self.place[nodes] < 0].unique()

    def __getitem__(self, nodes: Tensor) -> Tensor:
        return self.place[nodes]

    def forget(self, nodes: Tensor) -> None:
        self.place[nodes] = -1


_numbers = _Numbers()


def _block(
    targets: Tensor, neighbors: Tensor, counts: Tensor, edge_ids: Tensor, num_nodes: int
) -> Block:
    """The block of some neighbours of targets, of which each has `counts`, in this order."""
    neighbors, number = neighbors.long(), _numbers.among(num_nodes)
    number.give(targets)
    others = number.unknown(neighbors)
    number.give(others, len(targets))
    sources = torch.cat([targets, others])
    ends = number[neighbors], torch.arange(len(targets)).repeat_interleave(counts)
    number.forget(sources)
    edges = Edges.from_edge_index(torch.stack(ends), (len(sources), len(targets)))
    return Block(edges, sources, edge_ids)


def block_of(edges: Edges, targets: Tensor) -> Block:
    """All edges into some targets.

    Args:
        edges: of the graph; self-loops that were added to it are left out, for layers to add.
        targets: integers `[n]`, each once.

    >>> edges = Edges.from_edge_index(torch.tensor([[0, 1, 2], [2, 2, 0]]))
    >>> block_of(edges, torch.tensor([2])).sources
    tensor([2, 0, 1])
    """
    order, targets = edges.given.by_query, targets.long()
    first = order.pointer[targets]
    counts = order.pointer[targets + 1] - first
    slots = torch.arange(int(counts.sum()))
    slots += (first - counts.cumsum(0) + counts).repeat_interleave(counts)
    neighbors, ids = order.columns[slots], order.permutation[slots]
    return _block(targets, neighbors, counts, ids, max(edges.num_keys, edges.num_queries))


@torch.no_grad()
def infer(
    model: AttentionNetwork | AGNN,
    features: Any,
    edges: Any,
    *,
    edge_attr: Any = None,
    chunk: int = 65536,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The output of a model for every node, exactly, without ever holding all features.

    Each layer is computed for all nodes before the next, for `chunk` targets at a time, from all
    their neighbours. In memory are the edges, the numbers between two layers, and the sources of
    one chunk; none is computed twice, where sampled neighbourhoods would overlap.

    Args:
        model: one of our models at the level of nodes; it is run in evaluation mode, and left as it
            was.
        features: `[N, in_channels]`, a tensor or an array, such as a `numpy.memmap` of float16.
        edges: `attn_core.Edges`, or what `Edges.from_edge_index` takes.
        edge_attr: `[E, edge_dim]`, likewise. Default: none.
        chunk: how many targets at once. Default 65536.
        dtype: to compute in. Default: that of the model's parameters.
        progress: called with the number of chunks that are done and of all there are. Default: no.

    Returns:
        `[N, out_channels]`.

    Raises:
        ValueError: another level of the model, features of another length, a chunk below 1.

    >>> import gat
    >>> model = gat.GAT(4, 8, num_layers=2, out_channels=3)
    >>> x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2], [1, 2, 4]])
    >>> torch.allclose(infer(model, x, edge_index, chunk=2), model.eval()(x, edge_index), atol=1e-6)
    True
    """
    if not isinstance(edges, Edges):
        edges = Edges.from_edge_index(edges, len(features))
    nodes = edges.num_queries
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 node at a time")
    if len(features) != nodes or edges.num_keys != nodes:
        raise ValueError(
            f"features has {len(features)} rows, but edges go from {edges.num_keys} to {nodes} "
            "nodes: give one row for each node"
        )
    if isinstance(model, AttentionNetwork) and model.level != "node":
        raise ValueError(f"level is {model.level!r}; inference by nodes is for level='node'")
    for part in model.modules():
        if type(part) in _ACROSS_NODES or getattr(part, "mode", None) == "graph":
            raise ValueError(
                f"the model has a {type(part).__name__}, which looks at all nodes at once: "
                "inference goes by chunks of nodes"
            )
    dtype = next(model.parameters()).dtype if dtype is None else dtype
    chunks = torch.arange(nodes).split(chunk)
    layers = range(model.num_layers)
    begins = not isinstance(model, AttentionNetwork)
    passes = begins + len(layers) + 1
    done = 0

    def over_chunks(compute: Callable[[Tensor], Tensor]) -> Tensor:
        """What is computed for the targets of each chunk, for all nodes."""
        nonlocal done
        out: Tensor | None = None
        for targets in chunks:
            found = compute(targets)
            out = found.new_empty(nodes, *found.shape[1:]) if out is None else out
            out[targets[0] : targets[0] + len(targets)] = found
            done += 1
            if progress is not None:
                progress(done, passes * len(chunks))
        return torch.empty(0) if out is None else out

    def layer(i: int, x: Any, targets: Tensor) -> Tensor:
        block = block_of(edges, targets)
        attr = None if edge_attr is None else rows_of(edge_attr, block.edge_ids, dtype)
        return model.step(i, rows_of(x, block.sources, dtype), block.edges, attr)

    training, x = model.training, features
    model.eval()
    try:
        if begins:
            x = over_chunks(lambda targets: model.begin(rows_of(features, targets, dtype)))
        outputs: list[Tensor] = []
        for i in layers:
            x = over_chunks(functools.partial(layer, i, x))
            outputs = [*outputs, x] if model.joins else [x]
        return over_chunks(lambda targets: model.finish([out[targets] for out in outputs]))
    finally:
        model.train(training)


# Where a chunk would be normalised in the place of the graph
_ACROSS_NODES = (
    torch_geometric.nn.DiffGroupNorm,
    torch_geometric.nn.GraphNorm,
    torch_geometric.nn.GraphSizeNorm,
    torch_geometric.nn.InstanceNorm,
    torch_geometric.nn.MeanSubtractionNorm,
    torch_geometric.nn.PairNorm,
)


def rows_of(x: Any, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Some rows of a tensor or array; of a file that is mapped, nothing else is kept.

    Args:
        x: `[N, ...]`, a tensor, or what NumPy indexes, such as a `numpy.memmap`.
        rows: int64 `[n]`.
        dtype: of the result. Default: that of x.

    >>> rows_of(np.eye(3, dtype=np.float16), torch.tensor([2]), torch.float32)
    tensor([[0., 0., 1.]])
    """
    if isinstance(x, Tensor):
        return x.index_select(0, rows.to(x.device)).to(dtype)
    found = torch.from_numpy(np.ascontiguousarray(x[rows.numpy()])).to(dtype)
    if isinstance(x, np.memmap) and x.mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED"):
        getattr(x, "_mmap").madvise(mmap.MADV_DONTNEED)  # noqa: B009  # what was read would count as this process's memory
    return found
