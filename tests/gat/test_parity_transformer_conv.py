"""TransformerConv against torch_geometric's: the same numbers, gradients and forms."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

from attn_core import Edges
from gat import EdgeAttention, TransformerConv
from tests.gat.conftest import (
    EDGES,
    PATHS,
    PYG,
    TOLERANCE,
    assert_parity,
    assert_same,
    features,
    graphs,
)

# name: (in_channels, nodes of x)
INPUTS: dict[str, tuple[Any, Any]] = {
    "one set of nodes": (4, 6),
    "sources and targets": ((4, 3), (6, 5)),
    "more targets than sources": ((4, 3), (6, 8)),
    "one width for both": (4, (6, 5)),
}
FLAGS = "concat", "beta", "root_weight", "bias"


@pytest.fixture
def twins(twins: Any) -> Any:
    return functools.partial(twins, classes=(TransformerConv, torch_geometric.nn.TransformerConv))


def parity_of(
    twins: Any, inputs: str, edge_dim: int | None, path: str, dtype: torch.dtype, **more: Any
) -> None:
    in_channels, nodes = INPUTS[inputs]
    ours, theirs = twins(in_channels, 3, edge_dim=edge_dim, dtype=dtype, **more)
    edge_index = EDGES if nodes == 6 else EDGES.clamp(max=4)
    edge_attr = None if edge_dim is None else torch.randn(8, edge_dim, dtype=dtype)
    assert_parity(ours, theirs, features(nodes, in_channels, dtype), edge_index, edge_attr, path)


@pytest.mark.parametrize("edge_dim", [None, 2])
@pytest.mark.parametrize("inputs", INPUTS)
def test_agrees_over_the_product_of_options(twins: Any, inputs: str, edge_dim: int | None) -> None:
    for heads, *flags in itertools.product((1, 3), *[(True, False)] * 4):
        more = dict(zip(FLAGS, flags, strict=True))
        if PYG < (2, 7) and not more["bias"]:
            continue  # queries, keys and values kept theirs
        parity_of(twins, inputs, edge_dim, "fused", torch.float64, heads=heads, **more)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("edge_dim", [None, 2])
def test_agrees_on_every_path_in_both_precisions(
    twins: Any, edge_dim: int | None, path: str
) -> None:
    for inputs, dtype in itertools.product(INPUTS, TOLERANCE):
        parity_of(twins, inputs, edge_dim, path, dtype, heads=2, beta=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    graph=graphs(),
    heads=st.integers(1, 3),
    beta=st.booleans(),
    edge_dim=st.none() | st.integers(1, 2),
    path=st.sampled_from(PATHS),
)
def test_agrees_on_any_graph(
    twins: Any, graph: Any, heads: int, beta: bool, edge_dim: int | None, path: str
) -> None:
    nodes, targets, edge_index = graph
    in_channels = 2 if targets is None else (2, 3)
    ours, theirs = twins(in_channels, 2, heads, beta=beta, edge_dim=edge_dim)
    x = features(nodes if targets is None else (nodes, targets), in_channels, torch.float64)
    edge_attr = None if edge_dim is None else torch.randn(edge_index.shape[1], edge_dim).double()
    assert_parity(ours, theirs, x, edge_index, edge_attr, path)


@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "softmax"])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_agrees_for_other_aggregations_and_flows(twins: Any, aggr: str, flow: str) -> None:
    ours, theirs = twins((4, 3), 3, 2, aggr=aggr, flow=flow, edge_dim=2)
    x, edge_attr = features((6, 5), (4, 3), torch.float64), torch.randn(8, 2).double()
    edge_index = torch.stack([EDGES[0], EDGES[1].clamp(max=4)])
    edge_index[0, 7] = 5  # a node that only the larger side has
    if flow == "target_to_source":
        edge_index = edge_index.flip(0)
    assert_parity(ours, theirs, x, edge_index, edge_attr)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("to_sparse", [to_torch_coo_tensor, to_torch_csr_tensor])
def test_a_sparse_matrix_comes_back_beside_its_weights(
    twins: Any, to_sparse: Any, asked: bool
) -> None:
    matrix = to_sparse(torch.tensor([[0, 0, 1, 1, 2, 3], [1, 4, 0, 3, 2, 2]]), size=(6, 6))
    x = torch.randn(6, 4, dtype=torch.float64)
    (out, (pairs, weights)), (expected, (expected_pairs, expected_weights)) = (
        layer(x, matrix, return_attention_weights=asked) for layer in twins(4, 3, 2)
    )
    assert_same(out, expected)
    assert_same(weights, expected_weights)
    assert pairs is matrix
    assert expected_pairs is matrix


def test_sparse_matrix_comes_with_edge_attr_in_its_own_order(twins: Any) -> None:
    ours, theirs = twins(4, 3, 2, edge_dim=2)
    matrix = to_torch_csr_tensor(torch.tensor([[0, 1, 1, 3], [1, 0, 3, 2]]), size=(6, 6))
    x, edge_attr = torch.randn(6, 4).double(), torch.randn(4, 2).double()
    assert_same(ours(x, matrix, edge_attr), theirs(x, matrix, edge_attr))


@pytest.mark.parametrize("sort", [None, "row", "col"])
def test_edge_index_objects_are_taken_and_returned(twins: Any, sort: str | None) -> None:
    edge_index = EdgeIndex(EDGES, sparse_size=(6, 6))
    if sort is not None:
        edge_index = edge_index.sort_by(sort)[0]
    ours, theirs = twins(4, 3, 2, edge_dim=2)
    x, edge_attr = torch.randn(6, 4).double(), torch.randn(8, 2).double()
    assert_parity(ours, theirs, x, edge_index, edge_attr)
    _, (pairs, _) = ours(x, edge_index, edge_attr, return_attention_weights=True)
    assert isinstance(pairs, EdgeIndex)
    assert pairs.sparse_size() == (6, 6)


@pytest.mark.parametrize("edge_dim", [None, 2])
def test_edges_built_once_agree(twins: Any, edge_dim: int | None) -> None:
    ours, theirs = twins(4, 3, 2, edge_dim=edge_dim)
    x, edges = torch.randn(6, 4).double(), Edges.from_edge_index(EDGES, size=6)
    edge_attr = None if edge_dim is None else torch.randn(8, edge_dim).double()
    out, (pairs, weights) = ours(x, edges, edge_attr, return_attention_weights=True)
    expected, (_, expected_weights) = theirs(x, EDGES, edge_attr, return_attention_weights=True)
    assert torch.equal(pairs, EDGES)
    assert_same(out, expected)
    assert_same(weights, expected_weights)


def test_any_boolean_asks_for_weights(twins: Any) -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    ours, theirs = twins(4, 3)
    for asked in (True, False):
        attention = ours(x, EDGES, return_attention_weights=asked)[1]
        assert isinstance(attention, EdgeAttention)
        assert_same(attention.weights, theirs(x, EDGES, return_attention_weights=asked)[1][1])
    for layer in (ours, theirs):
        assert isinstance(layer(x, EDGES, return_attention_weights=None), Tensor)


@pytest.mark.parametrize("path", ["fused", "messages"])
def test_returned_weights_are_theirs_in_training_too(twins: Any, path: str) -> None:
    """Of torch_geometric's layers this is the one that returns the weights before dropout."""
    ours, theirs = twins(4, 3, 2, dropout=0.5)
    x = torch.randn(6, 4, dtype=torch.float64)
    if path == "messages":
        ours.register_message_forward_hook(lambda *_: None)
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(5)
        results.append(layer(x, EDGES, return_attention_weights=True))
    assert_same(results[0][1][1], results[1][1][1])
    if path == "messages":  # then the draw is theirs as well
        assert_same(results[0][0], results[1][0])
