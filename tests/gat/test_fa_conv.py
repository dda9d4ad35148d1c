"""FAConv: torch_geometric's numbers over all options."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

from attn_core import Edges
from gat import FAConv
from tests.gat.conftest import EDGES, PATHS, SIMPLE, TOLERANCE, assert_same_calls, graphs

CLASSES = FAConv, torch_geometric.nn.FAConv


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_agrees_over_the_product_of_options(twins: Any, path: str, flow: str) -> None:
    flags = itertools.product((True, False), (True, False), (True, False), (0.0, 0.3), TOLERANCE)
    for loops, normalize, cached, eps, dtype in flags:
        options = {"add_self_loops": loops, "normalize": normalize, "cached": cached, "eps": eps}
        layers = twins(4, **options, flow=flow, classes=CLASSES, dtype=dtype)
        x, x_0 = torch.randn(2, 6, 4, dtype=dtype)
        weight = () if normalize else (torch.rand(8, dtype=dtype),)

        def call(layer: Any, x: Any, x_0: Any, *weight: Any) -> Any:
            first = layer(x, x_0, EDGES, *weight, return_attention_weights=True)
            other = EDGES if not layer.cached else EDGES.flip(0)  # which a cached one looks not at
            return *first, layer(x, x_0, other, *weight, return_attention_weights=False)

        assert_same_calls(*layers, call, x, x_0, *weight, path=path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(graph=graphs(), loops=st.booleans(), path=st.sampled_from(PATHS))
def test_agrees_on_any_graph(twins: Any, graph: Any, loops: bool, path: str) -> None:
    nodes, targets, edges = graph
    x = torch.randn(max(nodes, targets or 0), 2, dtype=torch.float64)
    layers = twins(2, add_self_loops=loops, classes=CLASSES)
    assert_same_calls(*layers, lambda layer, x: layer(x, x, edges), x, path=path)


@pytest.mark.parametrize("to_sparse", [to_torch_coo_tensor, to_torch_csr_tensor])
@pytest.mark.parametrize("normalize", [True, False])
def test_sparse_matrices_give_the_same(twins: Any, to_sparse: Any, normalize: bool) -> None:
    layers = twins(4, normalize=normalize, classes=CLASSES)
    matrix = to_sparse(SIMPLE.flip(0), torch.rand(6).double(), size=(6, 6))
    x = torch.randn(6, 4, dtype=torch.float64)
    assert_same_calls(*layers, lambda layer, x: layer(x, x, matrix), x)


def test_weights_of_chosen_targets_and_edges_built_once() -> None:
    layer = FAConv(4).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    out, (pairs, alpha) = layer(x, x, EDGES, return_attention_weights=True)
    nodes, edges = torch.tensor([1, 4]), Edges(EDGES, 6, 6)
    for watched in (False, True):
        if watched:
            layer.register_message_forward_hook(lambda *_: None)
        same, (some, some_alpha) = layer(x, x, edges, return_attention_weights=nodes)
        torch.testing.assert_close(same, out)
        kept = torch.isin(pairs[1], nodes)
        assert torch.equal(some, pairs[:, kept])
        torch.testing.assert_close(some_alpha, alpha[kept])


def test_a_neighbour_is_subtracted_as_worked_out_by_hand() -> None:
    layer = FAConv(1, eps=0.5, add_self_loops=False)
    torch.nn.init.constant_(layer.att_l.weight, -100.0)
    torch.nn.init.zeros_(layer.att_r.weight)
    x = torch.tensor([[4.0], [6.0]])
    # tanh(-600) = -1; both have degree 1
    out = layer(x, x, torch.tensor([[0, 1], [1, 0]]))
    torch.testing.assert_close(out, torch.tensor([[0.5 * 4 - 6], [0.5 * 6 - 4]]))


@pytest.mark.parametrize(("normalize", "weight", "message"), [
    (True, torch.ones(8), "edge_weight was given, but FAConv was built with normalize=True, which "
     "makes the weights of the degrees: build it with normalize=False, or drop edge_weight"),
    (False, None, "edge_weight is None, but FAConv was built with normalize=False: give each edge "
     "its weight, or build it with normalize=True"),
])  # fmt: skip
def test_bad_input_is_told_what_is_wrong(normalize: bool, weight: Any, message: str) -> None:
    x = torch.ones(6, 4)
    with pytest.raises(ValueError) as raised:
        FAConv(4, normalize=normalize)(x, x, EDGES, weight)
    assert str(raised.value) == message
