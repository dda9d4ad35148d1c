"""The layers on the mini-batches of a NeighborLoader.

The loader is torch_geometric's, and so is its slicing of features and edges. To draw neighbours by
itself it needs pyg-lib or torch-sparse, which are compiled for each version of torch, and not to be
had for this one; so it is given the samplers below, which take all neighbours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import NeighborLoader
from torch_geometric.sampler import (
    BaseSampler,
    HeteroSamplerOutput,
    NodeSamplerInput,
    SamplerOutput,
)
from torch_geometric.utils import trim_to_layer

import gat

HOPS = 2
WRITES = "author", "writes", "paper"
OPTIONS: dict[str, dict[str, Any]] = {
    "GATConv": {"add_self_loops": False},
    "GATv2Conv": {"add_self_loops": False},
    "TransformerConv": {},
}


class NodeSampler(BaseSampler):
    def sample_from_edges(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class AllNeighbours(NodeSampler):
    """Everything within some hops of the seeds: these come first, then those who are a hop away."""

    def __init__(self, edge_index: Tensor, hops: int) -> None:
        self.edge_index, self.hops = edge_index, hops

    def sample_from_nodes(self, index: NodeSamplerInput, **_: Any) -> SamplerOutput:
        nodes, edges = index.node.tolist(), []
        nodes_per_hop, edges_per_hop = [len(nodes)], []
        new = nodes
        for _hop in range(self.hops):
            found = [e for n in new for e in (self.edge_index[1] == n).nonzero()[:, 0].tolist()]
            seen = {*nodes}
            new = [*dict.fromkeys(n for n in self.edge_index[0, found].tolist() if n not in seen)]
            nodes, edges = nodes + new, edges + found
            nodes_per_hop.append(len(new))
            edges_per_hop.append(len(found))
        place = {n: i for i, n in enumerate(nodes)}
        row, col = (
            torch.tensor([place[n] for n in self.edge_index[end, edges].tolist()], dtype=torch.long)
            for end in (0, 1)
        )
        return SamplerOutput(
            node=torch.tensor(nodes),
            row=row,
            col=col,
            edge=torch.tensor(edges, dtype=torch.long),
            num_sampled_nodes=nodes_per_hop,
            num_sampled_edges=edges_per_hop,
            metadata=(index.input_id, index.time),
        )


class AllAuthors(NodeSampler):
    """The authors of some papers."""

    def __init__(self, edge_index: Tensor) -> None:
        self.edge_index = edge_index

    def sample_from_nodes(self, index: NodeSamplerInput, **_: Any) -> HeteroSamplerOutput:
        author, paper = self.edge_index
        edge = torch.isin(paper, index.node).nonzero()[:, 0]
        authors, row = author[edge].unique(return_inverse=True)
        col = (paper[edge][:, None] == index.node).nonzero()[:, 1]
        return HeteroSamplerOutput(
            node={"author": authors, "paper": index.node},
            row={WRITES: row},
            col={WRITES: col},
            edge={WRITES: edge},
            metadata=(index.input_id, index.time),
        )


class Net(nn.Module):
    """Two layers over edges with features."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(4, 3, 2, edge_dim=2), conv(6, 2, 2, edge_dim=2)])


@pytest.fixture
def graph() -> Data:
    return Data(
        x=torch.randn(30, 4, dtype=torch.float64),
        edge_index=torch.randint(30, (2, 60)),
        edge_attr=torch.randn(60, 2, dtype=torch.float64),
    )


@pytest.fixture(params=OPTIONS)
def nets(request: pytest.FixtureRequest, twins: Any) -> Any:
    """Ours and theirs, with the same parameters."""
    modules = gat, torch_geometric.nn
    return twins(classes=tuple(partial(Net, getattr(module, request.param)) for module in modules))


def loader_of(data: Data) -> NeighborLoader:
    sampler = AllNeighbours(data.edge_index, HOPS)
    return NeighborLoader(data, [-1] * HOPS, neighbor_sampler=sampler, batch_size=7)


def on_the_whole_graph(net: Net, data: Data) -> Tensor:
    x = data.x
    for conv in net.convs:
        x = conv(x, data.edge_index, data.edge_attr)
    return x


def trimmed(net: Net, batch: Data) -> Tensor:
    """Each layer sees the nodes and edges that still matter."""
    x, edge_index, edge_attr = batch.x, batch.edge_index, batch.edge_attr
    for i, conv in enumerate(net.convs):
        x, edge_index, edge_attr = trim_to_layer(
            i, batch.num_sampled_nodes, batch.num_sampled_edges, x, edge_index, edge_attr
        )
        x = conv(x, edge_index, edge_attr)
    return x[: batch.batch_size]


def bipartite(net: Net, batch: Data) -> Tensor:
    """Each layer sees sources and targets, the first of the sources."""
    x = batch.x
    for i, conv in enumerate(net.convs):
        targets = sum(batch.num_sampled_nodes[: HOPS - i])
        edges = sum(batch.num_sampled_edges[: HOPS - i])
        x = conv((x, x[:targets]), batch.edge_index[:, :edges], batch.edge_attr[:edges])
    return x


@pytest.mark.parametrize("run", [trimmed, bipartite])
def test_batches_give_what_the_whole_graph_gives(nets: Any, graph: Data, run: Any) -> None:
    ours, theirs = nets
    expected, seen = on_the_whole_graph(ours, graph), 0
    for batch in loader_of(graph):
        out = run(ours, batch)
        close = {"rtol": 1e-10, "atol": 1e-10}
        torch.testing.assert_close(out, run(theirs, batch), **close)
        torch.testing.assert_close(out, expected[batch.n_id[: batch.batch_size]], **close)
        seen += len(out)
    assert seen == graph.num_nodes


def test_agnn_on_batches(twins: Any, graph: Data) -> None:
    ours, theirs = twins(classes=(gat.AGNNConv, torch_geometric.nn.AGNNConv))
    for batch in loader_of(graph):
        close = {"rtol": 1e-10, "atol": 1e-10}
        out = ours(batch.x, batch.edge_index)
        torch.testing.assert_close(out, theirs(batch.x, batch.edge_index), **close)
        seeds = slice(batch.batch_size)
        expected = ours(graph.x, graph.edge_index)[batch.n_id[seeds]]
        torch.testing.assert_close(out[seeds], expected, **close)


@pytest.mark.parametrize("asked", [None, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_two_kinds_of_nodes(twins: Any, name: str, asked: bool | None) -> None:
    data = HeteroData()
    data["author"].x = torch.randn(9, 4, dtype=torch.float64)
    data["paper"].x = torch.randn(20, 3, dtype=torch.float64)
    data[WRITES].edge_index = torch.stack([torch.randint(9, (30,)), torch.randint(15, (30,))])
    edge_index = data[WRITES].edge_index
    layers = twins(
        *((4, 3), 3, 2),
        classes=(getattr(gat, name), getattr(torch_geometric.nn, name)),
        **OPTIONS[name],
    )
    whole = layers[0]((data["author"].x, data["paper"].x), edge_index)
    loader = NeighborLoader(
        *(data, [-1]), input_nodes="paper", neighbor_sampler=AllAuthors(edge_index), batch_size=6
    )
    for batch in loader:
        x = batch["author"].x, batch["paper"].x
        size = {"size": tuple(map(len, x))} if name == "GATConv" else {}
        outputs = [
            layer(x, batch[WRITES].edge_index, return_attention_weights=asked, **size)
            for layer in layers
        ]
        torch.testing.assert_close(*map(tuple, outputs) if asked else outputs)
        out = outputs[0][0] if asked else outputs[0]
        torch.testing.assert_close(out, whole[batch["paper"].n_id])
