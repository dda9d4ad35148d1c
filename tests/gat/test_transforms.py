"""Reorder: another order of the nodes, the same graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.transforms import Compose, ToUndirected

import gat
from gat.transforms import Reorder

METHODS = "rcm", "degree", "community"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def graph(number: int = 30, edges: int = 90) -> Data:
    """Everything that a graph may have beside its edges, isolated nodes and double edges too."""
    edge_index = torch.randint(number - 2, (2, edges))
    return Data(
        x=torch.randn(number, 5),
        edge_index=edge_index,
        edge_attr=torch.randn(edges, 3),
        edge_weight=torch.rand(edges),
        y=torch.randint(4, (number,)),
        train_mask=torch.rand(number) < 0.5,
        edge_label_index=torch.randint(number, (2, 7)),
        edge_label=torch.ones(7),
        seed_index=torch.tensor([3, 1]),
        name="a graph",
        num_nodes=number,
    )


@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_same_graph(method: str) -> None:
    data = graph()
    moved = Reorder(method)(data)
    order = moved.node_order
    assert sorted(order.tolist()) == list(range(30))
    for name in ("x", "y", "train_mask"):
        assert torch.equal(moved[name], data[name][order])
    for name in ("edge_label_index", "seed_index"):
        assert torch.equal(order[moved[name]], data[name])
    assert torch.equal(order[moved.edge_index], data.edge_index[:, moved.edge_order])
    assert torch.equal(moved.edge_attr, data.edge_attr[moved.edge_order])
    assert torch.equal(moved.edge_label, data.edge_label)
    assert moved.name == "a graph"
    source, target = moved.edge_index
    assert (torch.diff(target * 30 + source) >= 0).all()
    assert "node_order" not in data


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_gives_each_node_what_it_gave_before(method: str) -> None:
    data = graph()
    moved = Reorder(method)(data)
    conv = gat.GATv2Conv(5, 4, heads=2, edge_dim=3)
    out = conv(moved.x, moved.edge_index, moved.edge_attr)
    expected = conv(data.x, data.edge_index, data.edge_attr)
    torch.testing.assert_close(Reorder.original(out, moved), expected)


@pytest.mark.parametrize("method", METHODS)
def test_undone_it_is_what_it_was(method: str) -> None:
    data = graph()
    moved = Reorder(method)(data)
    moved.prediction = torch.randn(30)
    back = Reorder.undo(moved)
    assert set(back.keys()) == {*data.keys(), "prediction"}
    for name, value in data:
        same = torch.equal(back[name], value) if isinstance(value, torch.Tensor) else None
        assert back[name] == value if same is None else same
    assert torch.equal(back.prediction, Reorder.original(moved.prediction, moved))


def test_neighbours_come_close() -> None:
    side = 20
    place = torch.arange(side * side).view(side, side)
    right = torch.stack([place[:, :-1].flatten(), place[:, 1:].flatten()])
    down = torch.stack([place[:-1].flatten(), place[1:].flatten()])
    drawn = torch.randperm(side * side)
    data = Data(edge_index=drawn[torch.cat([right, down], 1)], num_nodes=side * side)
    moved = Compose([ToUndirected(), Reorder()])(data)
    assert (moved.edge_index[0] - moved.edge_index[1]).abs().max() <= side
    by_degree = Reorder("degree")(data)
    degree = torch.bincount(by_degree.edge_index[0], minlength=side * side)
    assert (torch.diff(degree) <= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_graphs_of_a_batch_stay_together(method: str) -> None:
    graphs = [graph(number, 2 * number) for number in (12, 5, 9)]
    for one in graphs:
        del one.edge_label_index, one.edge_label, one.seed_index
    batch = Batch.from_data_list(graphs)
    moved = Reorder(method)(batch)
    assert torch.equal(moved.batch, batch.batch) and torch.equal(moved.ptr, batch.ptr)
    for one, given in zip(moved.to_data_list(), graphs, strict=True):
        assert one.edge_index.min() >= 0 and one.edge_index.max() < given.num_nodes
        assert torch.equal(one.x.sum(0).round(decimals=4), given.x.sum(0).round(decimals=4))
    for i, one in enumerate(moved.to_data_list()):
        order = moved.node_order[batch.ptr[i] : batch.ptr[i + 1]] - batch.ptr[i]
        assert torch.equal(one.x, graphs[i].x[order])
        pairs = {(*pair,) for pair in order[one.edge_index].t().tolist()}
        assert pairs == {(*pair,) for pair in graphs[i].edge_index.t().tolist()}
    back = Reorder.undo(moved)
    assert torch.equal(back.x, batch.x) and torch.equal(back.edge_index, batch.edge_index)
    assert torch.equal(back.ptr, batch.ptr)


def test_rows_of_any_kind_go_with_their_nodes_and_edges() -> None:
    data = graph()
    data.names = [f"n{i}" for i in range(30)]
    data.pair = tuple(range(30))
    data.age = np.arange(30.0)
    data.edge_kind = [f"e{i}" for i in range(90)]
    data.about = ["three", "words", "only"]
    data.edge_index = data.edge_index.int()
    moved = Reorder()(data)
    order = moved.node_order.tolist()
    assert moved.names == [f"n{i}" for i in order] and moved.pair == (*order,)
    assert moved.age.tolist() == order and moved.about == data.about
    assert moved.edge_kind == [f"e{i}" for i in moved.edge_order.tolist()]
    assert moved.edge_index.dtype == torch.int32
    back = Reorder.undo(moved)
    assert back.names == data.names and back.edge_kind == data.edge_kind
    assert torch.equal(back.edge_index, data.edge_index) and back.edge_index.dtype == torch.int32


def test_sparse_features_and_graphs_without_edges() -> None:
    data = graph()
    data.x = data.x.relu().to_sparse_csr()
    moved = Reorder()(data)
    assert moved.x.layout == torch.sparse_csr
    assert torch.equal(moved.x.to_dense(), data.x.to_dense()[moved.node_order])
    for number in (0, 3):
        empty = Data(edge_index=torch.empty(2, 0, dtype=torch.int64), num_nodes=number)
        for method in METHODS:
            assert Reorder(method)(empty).node_order.shape == (number,)


def test_what_it_cannot_reorder_is_refused() -> None:
    with pytest.raises(ValueError, match="method is 'rmc'; expected one of 'rcm', 'degree'"):
        Reorder("rmc")
    with pytest.raises(TypeError, match="data is a HeteroData; Reorder takes"):
        Reorder()(HeteroData())
    with pytest.raises(ValueError, match="data has no edge_index"):
        Reorder()(Data(x=torch.ones(2, 1)))
    with pytest.raises(ValueError, match=r"node_order already: call Reorder\.undo"):
        Reorder()(Reorder()(graph()))
    with pytest.raises(ValueError, match="data has no node_order"):
        Reorder.undo(graph())
    data = graph()
    data.adj_t = torch.eye(30).to_sparse_csr()
    with pytest.raises(ValueError, match=r"data\.adj_t is a sparse matrix"):
        Reorder()(data)
    assert repr(Reorder("degree")) == "Reorder('degree')"
