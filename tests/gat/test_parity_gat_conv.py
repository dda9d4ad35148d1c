"""GATConv against torch_geometric's: the same numbers, gradients and forms over all options."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

from attn_core import Edges
from gat import GATConv
from tests.gat.conftest import (
    EDGE_OPTIONS,
    EDGES,
    PATHS,
    TOLERANCE,
    assert_parity,
    assert_parity_on,
    assert_same,
    features,
    pairwise,
    with_options,
)

TheirGATConv = torch_geometric.nn.GATConv

# name: (in_channels, nodes of x, size)
INPUTS: dict[str, tuple[Any, Any, Any]] = {
    "one set of nodes": (4, 6, None),
    "sources and targets": ((4, 3), (6, 5), None),
    "sources and targets with size": ((4, 3), (6, 5), (6, 5)),
    "more targets than sources": ((4, 3), (6, 8), None),
    "one projection for both": (4, (6, 5), None),
    "sources alone": ((4, 3), (6, None), None),
    "sources alone with size": ((4, 3), (6, None), (6, 5)),
}


def parity_of(twins: Any, inputs: str, options: str, path: str, dtype: torch.dtype, **more: Any):
    in_channels, nodes, size = INPUTS[inputs]
    edge_dim, shape, loops, fill = EDGE_OPTIONS[options]
    ours, theirs = twins(
        in_channels,
        3,
        edge_dim=edge_dim,
        add_self_loops=loops,
        fill_value=fill,
        dtype=dtype,
        **more,
    )
    edge_index = EDGES if nodes == 6 else EDGES.clamp(max=4)
    edge_attr = None if shape is None else torch.randn(shape, dtype=dtype)
    x = features(nodes, in_channels, dtype)
    assert_parity(ours, theirs, x, edge_index, edge_attr, path=path, size=size)


@pytest.mark.parametrize("options", EDGE_OPTIONS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_agrees_over_the_product_of_options(twins: Any, inputs: str, options: str) -> None:
    flags = pairwise((1, 3), (True, False), (False, True), (False, True))
    for heads, concat, residual, bias in flags:
        more = {"heads": heads, "concat": concat, "residual": residual, "bias": bias}
        parity_of(twins, inputs, options, "fused", torch.float64, **more)


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
    options = {"aggr": aggr, "flow": flow, "edge_dim": 2, "add_self_loops": loops}
    ours, theirs = twins((4, 3), 3, 2, **options)
    x, edge_attr = features((6, 5), (4, 3), torch.float64), torch.randn(8, 2).double()
    assert_parity(ours, theirs, x, EDGES.clamp(max=4), edge_attr)


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("values", [None, torch.randn(7)])
@pytest.mark.parametrize("to_sparse", [to_torch_coo_tensor, to_torch_csr_tensor])
def test_sparse_matrices_give_the_same_output_and_form_of_weights(
    twins: Any, to_sparse: Any, values: Tensor | None, loops: bool
) -> None:
    target_source = torch.tensor([[0, 0, 1, 1, 2, 3, 3], [1, 4, 0, 3, 2, 2, 5]])
    matrix = to_sparse(target_source, values, size=(6, 6))
    # A value per edge is a weight, which GATConv does not read; it would read a feature vector
    ours, theirs = twins(4, 3, 2, add_self_loops=loops, edge_dim=2)
    x = torch.randn(6, 4, dtype=torch.float64)
    (out, (weights, values_)), (expected, (expected_weights, expected_values)) = (
        layer(x, matrix, return_attention_weights=True) for layer in (ours, theirs)
    )
    assert_same(out, expected)
    assert_same(values_, expected_values)
    assert weights.layout == expected_weights.layout
    assert weights.shape == expected_weights.shape
    indices = ["crow_indices", "col_indices"] if weights.layout == torch.sparse_csr else ["indices"]
    for part in indices:
        assert torch.equal(getattr(weights, part)(), getattr(expected_weights, part)())
    assert_same(weights.values(), expected_weights.values())
    assert_same(ours(x, matrix), theirs(x, matrix))


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


def test_int32_edges_and_integer_features_agree(twins: Any) -> None:
    ours, theirs = twins(4, 3, 2, edge_dim=1, dtype=torch.float32)
    x = torch.randn(6, 4)
    assert_parity(*twins(4, 3), x.double(), EDGES.int())
    categories = torch.arange(8)
    assert_same(ours(x, EDGES, categories), theirs(x, EDGES, categories))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_features_agree(twins: Any, layout: torch.layout) -> None:
    ours, theirs = twins(4, 3, 2)
    x = torch.eye(6, 4, dtype=torch.float64).to_sparse(layout=layout)
    assert_same(ours(x, EDGES), theirs(x, EDGES))


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


@pytest.mark.parametrize("method", ["__init__", "forward", "edge_update", "message"])
def test_has_the_same_arguments_and_defaults(method: str) -> None:
    ours, theirs = (
        [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]
        for function in (getattr(GATConv, method), getattr(TheirGATConv, method))
    )
    assert ours == theirs


CONSTRUCTIONS: list[tuple[Any, dict[str, Any]]] = [
    (4, {}),
    (4, {"bias": False, "concat": False}),
    ((4, 2), {"residual": True}),
    (4, {"edge_dim": 2, "residual": True}),
    (-1, {"edge_dim": -1, "residual": True}),
    ((-1, -1), {"edge_dim": 2, "residual": True}),
]


@pytest.mark.parametrize(("in_channels", "options"), CONSTRUCTIONS)
def test_is_constructed_like_theirs(in_channels: Any, options: dict[str, Any]) -> None:
    """Same seed, same parameters in the same order (that of optimiser states), same repr."""
    layers = []
    for cls in (GATConv, TheirGATConv):
        torch.manual_seed(3)
        layer = cls(in_channels, 3, heads=2, **options)
        x = (
            torch.ones(6, 4)
            if isinstance(in_channels, int)
            else (torch.ones(6, 4), torch.ones(6, 2))
        )
        edge_attr = torch.ones(8, 2) if "edge_dim" in options else None
        layer(x, EDGES, edge_attr)  # lazy parameters are drawn here
        layers.append(layer)
    ours, theirs = layers
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    for step in ("drawn", "reset"):
        for (name, ours_), (theirs_name, theirs_) in zip(
            ours.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert name == theirs_name
            assert torch.equal(ours_, theirs_), f"{name} {step}"
        for layer in layers:
            torch.manual_seed(4)
            layer.reset_parameters()


@pytest.mark.parametrize(("in_channels", "options"), CONSTRUCTIONS[:4])
def test_checkpoints_load_both_ways_and_into_lazy_layers(
    in_channels: Any, options: dict[str, Any]
) -> None:
    lazy = -1 if isinstance(in_channels, int) else (-1, -1)
    for saved, loaded in itertools.permutations((GATConv, TheirGATConv)):
        state = saved(in_channels, 3, 2, **options).state_dict()
        for channels in (in_channels, lazy):
            layer = loaded(channels, 3, 2, **options)
            layer.load_state_dict(state, strict=True)
            for name, tensor in layer.state_dict().items():
                assert torch.equal(tensor, state[name])


def test_dropout_on_messages_draws_what_theirs_draws(twins: Any) -> None:
    ours, theirs = twins(4, 3, 2, dropout=0.5)
    ours.register_message_forward_hook(lambda *_: None)
    outputs = []
    for layer in (ours, theirs):
        torch.manual_seed(5)
        outputs.append(layer(torch.ones(6, 4, dtype=torch.float64), EDGES))
    assert_same(*outputs)
