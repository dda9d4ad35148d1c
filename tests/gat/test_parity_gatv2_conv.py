"""GATv2Conv against torch_geometric's: the same numbers, gradients and forms over all options."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

from attn_core import Edges
from gat import GATv2Conv
from tests.gat.conftest import (
    EDGE_OPTIONS,
    EDGES,
    PATHS,
    PYG,
    TOLERANCE,
    assert_parity,
    assert_parity_on,
    assert_same,
    features,
    with_options,
)

# name: (in_channels, nodes of x)
INPUTS: dict[str, tuple[Any, Any]] = {
    "one set of nodes": (4, 6),
    "sources and targets": ((4, 4), (6, 5)),
    "more targets than sources": ((4, 4), (6, 8)),
    "one width for both": (4, (6, 5)),
}
# The ways to fill in self-loops concern no other option, and are tested on every path below
PRODUCT = [name for name in EDGE_OPTIONS if not name.startswith("self-loops filled")]


@pytest.fixture
def twins(twins: Any) -> Any:
    return functools.partial(twins, classes=(GATv2Conv, torch_geometric.nn.GATv2Conv))


def parity_of(twins: Any, inputs: str, options: str, path: str, dtype: torch.dtype, **more: Any):
    in_channels, nodes = INPUTS[inputs]
    edge_dim, shape, loops, fill = EDGE_OPTIONS[options]
    more |= {"edge_dim": edge_dim, "add_self_loops": loops, "fill_value": fill}
    ours, theirs = twins(in_channels, 3, dtype=dtype, **more)
    edge_index = EDGES if nodes == 6 else EDGES.clamp(max=4)
    edge_attr = None if shape is None else torch.randn(shape, dtype=dtype)
    assert_parity(ours, theirs, features(nodes, in_channels, dtype), edge_index, edge_attr, path)


@pytest.mark.parametrize("options", PRODUCT)
@pytest.mark.parametrize("inputs", INPUTS)
def test_agrees_over_the_product_of_options(twins: Any, inputs: str, options: str) -> None:
    names = "concat", "residual", "bias", "share_weights"
    for flags in itertools.product((True, False), repeat=4):
        more = dict(zip(names, flags, strict=True))
        parity_of(twins, inputs, options, "fused", torch.float64, heads=3, **more)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("options", EDGE_OPTIONS)
def test_agrees_on_every_path_in_both_precisions(twins: Any, options: str, path: str) -> None:
    for inputs, dtype in itertools.product(INPUTS, TOLERANCE):
        parity_of(twins, inputs, options, path, dtype, heads=2, residual=True)


@with_options
def test_agrees_on_any_graph(twins: Any, **options: Any) -> None:
    assert_parity_on(twins, **options)


@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "softmax"])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("loops", [True, False])
def test_agrees_for_other_aggregations_and_flows(
    twins: Any, aggr: str, flow: str, loops: bool
) -> None:
    # A number fills the self-loops: theirs cannot reduce the features there when the flow is turned
    options = {"edge_dim": 2, "add_self_loops": loops, "fill_value": 0.5}
    ours, theirs = twins((4, 3), 3, 2, aggr=aggr, flow=flow, **options)
    x, edge_attr = features((6, 5), (4, 3), torch.float64), torch.randn(8, 2).double()
    edge_index = torch.stack([EDGES[0], EDGES[1].clamp(max=4)])
    edge_index[0, 7] = 5  # a node that only the larger side has
    if flow == "target_to_source":
        edge_index = edge_index.flip(0)
    assert_parity(ours, theirs, x, edge_index, edge_attr)


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("to_sparse", [to_torch_coo_tensor, to_torch_csr_tensor])
def test_sparse_matrices_give_the_same_form_of_weights(
    twins: Any, to_sparse: Any, loops: bool
) -> None:
    target_source = torch.tensor([[0, 0, 1, 1, 2, 3, 3], [1, 4, 0, 3, 2, 2, 5]])
    matrix = to_sparse(target_source, size=(6, 6))
    x = torch.randn(6, 4, dtype=torch.float64)
    (out, (weights, values)), (expected, (expected_weights, expected_values)) = (
        layer(x, matrix, return_attention_weights=True)
        for layer in twins(4, 3, 2, add_self_loops=loops)
    )
    assert_same(out, expected)
    assert_same(values, expected_values)
    assert weights.layout == expected_weights.layout
    assert_same(weights.to_dense(), expected_weights.to_dense())


def test_sparse_matrix_comes_with_edge_attr_in_its_own_order(twins: Any) -> None:
    ours, theirs = twins(4, 3, 2, edge_dim=2, add_self_loops=False)
    matrix = to_torch_csr_tensor(torch.tensor([[0, 1, 1, 3], [1, 0, 3, 2]]), size=(6, 6))
    x, edge_attr = torch.randn(6, 4).double(), torch.randn(4, 2).double()
    assert_same(ours(x, matrix, edge_attr), theirs(x, matrix, edge_attr))


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("sort", [None, "row", "col"])
def test_edge_index_objects_are_taken_and_returned(
    twins: Any, sort: str | None, loops: bool
) -> None:
    edge_index = EdgeIndex(EDGES, sparse_size=(6, 6))
    if sort is not None:
        edge_index = edge_index.sort_by(sort)[0]
    ours, theirs = twins(4, 3, 2, add_self_loops=loops, edge_dim=2)
    x, edge_attr = torch.randn(6, 4).double(), torch.randn(8, 2).double()
    assert_parity(ours, theirs, x, edge_index, edge_attr)
    _, (pairs, _) = ours(x, edge_index, edge_attr, return_attention_weights=True)
    assert isinstance(pairs, EdgeIndex)
    assert pairs.sparse_size() == (6, 6)


@pytest.mark.parametrize("edge_attr", [None, torch.randn(8, 2, dtype=torch.float64)])
def test_edges_built_once_agree_with_and_without_self_loops(
    twins: Any, edge_attr: Tensor | None
) -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    for built, added in itertools.product((True, False), repeat=2):
        edge_dim = None if edge_attr is None else 2
        ours, theirs = twins(4, 3, 2, edge_dim=edge_dim, add_self_loops=built or added)
        ours.add_self_loops = added
        edges = Edges.from_edge_index(EDGES, size=6, self_loops=built)
        out, (pairs, weights) = ours(x, edges, edge_attr, return_attention_weights=True)
        expected, (expected_pairs, expected_weights) = theirs(
            x, EDGES, edge_attr, return_attention_weights=True
        )
        assert torch.equal(pairs, expected_pairs)
        assert_same(out, expected)
        assert_same(weights, expected_weights)


def test_integer_features_of_edges_agree(twins: Any) -> None:
    ours, theirs = twins(4, 3, 2, edge_dim=1, dtype=torch.float32)
    x, categories = torch.randn(6, 4), torch.arange(8)
    assert_same(ours(x, EDGES, categories), theirs(x, EDGES, categories))


def test_no_fill_value_stands_for_ones(twins: Any) -> None:
    ours, theirs = twins(4, 3, 2, edge_dim=2, fill_value=None)
    x, edge_attr = torch.randn(6, 4).double(), torch.randn(8, 2).double()
    assert_parity(ours, theirs, x, EDGES, edge_attr)


def test_only_true_asks_for_weights(twins: Any) -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    ours, theirs = twins(4, 3)
    for layer in (ours, theirs) if PYG >= (2, 8) else (ours,):  # theirs took any bool for yes
        assert isinstance(layer(x, EDGES, return_attention_weights=False), Tensor)
        assert isinstance(layer(x, EDGES, return_attention_weights=True), tuple)


def test_dropout_on_messages_draws_what_theirs_draws(twins: Any) -> None:
    ours, theirs = twins(4, 3, 2, dropout=0.5)
    ours.register_message_forward_hook(lambda *_: None)
    outputs = []
    for layer in (ours, theirs):
        torch.manual_seed(5)
        outputs.append(layer(torch.ones(6, 4, dtype=torch.float64), EDGES))
    assert_same(*outputs)
