"""AGNNConv against torch_geometric's: the same numbers and gradients."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attn_core import Edges
from gat import AGNNConv
from tests.gat.conftest import EDGES, PATHS, TOLERANCE, assert_parity, assert_same, features, graphs


@pytest.fixture
def twins(twins: Any) -> Any:
    def make(**options: Any) -> tuple[Any, Any]:
        layers = twins(classes=(AGNNConv, torch_geometric.nn.AGNNConv), **options)
        for layer in layers:
            torch.nn.init.constant_(layer.beta, 0.7)
        return layers

    return functools.wraps(twins)(make)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("learned", [True, False])
def test_agrees_over_the_product_of_options(
    twins: Any, learned: bool, loops: bool, path: str
) -> None:
    for dtype in TOLERANCE:
        layers = twins(requires_grad=learned, add_self_loops=loops, dtype=dtype)
        x = torch.randn(6, 4, dtype=dtype)
        assert_parity(*layers, x, EDGES, path=path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    graph=graphs(),
    channels=st.integers(1, 3),
    loops=st.booleans(),
    path=st.sampled_from(PATHS),
)
def test_agrees_on_any_graph(twins: Any, graph: Any, channels: int, loops: bool, path: str) -> None:
    nodes, targets, edge_index = graph
    nodes = max(nodes, targets or 0)
    layers = twins(add_self_loops=loops)
    assert_parity(*layers, features(nodes, channels, torch.float64), edge_index, path=path)


def test_features_of_zero_have_no_direction(twins: Any) -> None:
    """Their cosine with any others is 0; the gradients there are large, and those of theirs."""
    x = torch.randn(6, 4, dtype=torch.float64)
    x[1] = 0
    assert_parity(*twins(), x, EDGES)


@pytest.mark.parametrize("aggr", ["sum", "mean", "max", "softmax"])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("loops", [True, False])
def test_agrees_for_other_aggregations_and_flows(
    twins: Any, aggr: str, flow: str, loops: bool
) -> None:
    layers = twins(aggr=aggr, flow=flow, add_self_loops=loops)
    assert_parity(*layers, torch.randn(6, 4, dtype=torch.float64), EDGES)


def test_edges_built_once_agree_with_and_without_self_loops(twins: Any) -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    for built, added in itertools.product((True, False), repeat=2):
        ours, theirs = twins(add_self_loops=built or added)
        ours.add_self_loops = added
        edges = Edges.from_edge_index(EDGES, size=6, self_loops=built)
        assert_same(ours(x, edges), theirs(x, EDGES))
