"""SuperGATConv: torch_geometric's numbers, its loss among them, over all options."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch_geometric.nn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attn_core import Edges
from gat import SuperGATConv
from tests.gat.conftest import EDGES, PATHS, TOLERANCE, assert_same_calls, graphs

CLASSES = SuperGATConv, torch_geometric.nn.SuperGATConv
NEGATIVE = torch.tensor([[0, 5, 3], [4, 1, 2]])


def with_loss(layer: Any, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What comes out, and the loss with what it is made of."""
    out = layer(*given)
    return out, layer.att_x, layer.get_attention_loss()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["MX", "SD"])
def test_agrees_over_the_product_of_options(twins: Any, kind: str, path: str) -> None:
    flags = itertools.product((1, 3), (True, False), (True, False), (True, False), TOLERANCE)
    for heads, concat, loops, bias, dtype in flags:
        options = {"heads": heads, "concat": concat, "add_self_loops": loops, "bias": bias}
        layers = twins(4, 3, **options, attention_type=kind, classes=CLASSES, dtype=dtype)
        x = torch.randn(6, 4, dtype=dtype)
        assert_same_calls(*layers, with_loss, x, EDGES, NEGATIVE, path=path)
        for layer in layers:
            layer.eval()
        assert_same_calls(*layers, lambda layer, *given: layer(*given), x, EDGES, path=path)


@pytest.mark.parametrize("kind", ["MX", "SD"])
@pytest.mark.parametrize("options", [{}, {"edge_sample_ratio": 0.6}, {"neg_sample_ratio": 2.0},
                                     {"is_undirected": True}])  # fmt: skip
@pytest.mark.parametrize("batch", [None, torch.tensor([0, 0, 0, 1, 1, 1])])
def test_samples_the_same_pairs(twins: Any, kind: str, options: Any, batch: Any) -> None:
    layers = twins(4, 3, 2, attention_type=kind, classes=CLASSES, **options)
    edges = EDGES if batch is None else torch.tensor([[0, 1, 4, 4], [1, 2, 3, 5]])
    x = torch.randn(6, 4, dtype=torch.float64)
    assert_same_calls(*layers, lambda layer, x: with_loss(layer, x, edges, None, batch), x)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    graph=graphs(),
    kind=st.sampled_from(["MX", "SD"]),
    loops=st.booleans(),
    slope=st.sampled_from([0.0, 0.2, 1.5]),
    flow=st.sampled_from(["source_to_target", "target_to_source"]),
    path=st.sampled_from(PATHS),
)
def test_agrees_on_any_graph(
    twins: Any, graph: Any, kind: str, loops: bool, slope: float, flow: str, path: str
) -> None:
    nodes, targets, edges = graph
    x = torch.randn(max(nodes, targets or 0), 2, dtype=torch.float64)
    layers = twins(2, 2, 2, attention_type=kind, add_self_loops=loops, negative_slope=slope,
                   flow=flow, classes=CLASSES)  # fmt: skip
    for layer in layers:
        layer.eval()
    assert_same_calls(*layers, lambda layer, x: layer(x, edges), x, path=path)


def test_the_weights_are_those_worked_out_by_hand() -> None:
    layer = SuperGATConv(1, 1, attention_type="SD", add_self_loops=False, bias=False)
    torch.nn.init.ones_(layer.lin.weight)
    x = torch.tensor([[1.0], [math.log(3)], [0.0]])
    out, (pairs, weights) = layer(
        x, torch.tensor([[1, 2], [0, 0]]), return_attention_weights=True
    )  # products log 3 and 0: weights 3/4 and 1/4
    assert pairs.tolist() == [[1, 2], [0, 0]]
    torch.testing.assert_close(weights, torch.tensor([[0.75], [0.25]]))
    torch.testing.assert_close(out, torch.tensor([[0.75 * math.log(3)], [0.0], [0.0]]))
    # The loss in the same call: both edges, one sampled pair or none
    assert layer.att_y[:2].tolist() == [1, 1]


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("kind", ["MX", "SD"])
def test_watched_weights_are_those_of_the_output(kind: str, flow: str) -> None:
    layer = SuperGATConv(4, 3, 2, attention_type=kind, flow=flow, bias=False).eval().double()
    layer.register_message_forward_hook(lambda *_: None)
    x = torch.randn(6, 4, dtype=torch.float64)
    out, (pairs, weights) = layer(x, EDGES, return_attention_weights=True)
    j, i = pairs if flow == "source_to_target" else pairs.flip(0)
    h = layer.lin(x).view(6, 2, 3)
    expected = torch.zeros_like(h).index_add(0, i, weights[..., None] * h[j]).flatten(1)
    torch.testing.assert_close(out, expected)
    nodes = torch.tensor([3])
    some, _ = layer(x, EDGES, return_attention_weights=nodes)[1]
    assert torch.equal(some, pairs[:, i == 3])


def test_edges_built_once_serve_with_and_without_self_loops(twins: Any) -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    for built, added in itertools.product((True, False), repeat=2):
        ours, theirs = twins(4, 3, add_self_loops=built or added, classes=CLASSES)
        ours.add_self_loops = added
        edges = Edges.from_edge_index(EDGES, size=6, self_loops=built)
        for watched in (False, True):
            if watched:
                ours.register_message_forward_hook(lambda *_: None)
            torch.testing.assert_close(ours(x, edges), theirs(x, EDGES))


@pytest.mark.parametrize(("options", "message"), [
    ({"attention_type": "XM"}, "attention_type is 'XM'; expected one of 'MX', 'SD'"),
    ({"dropout": 2}, "dropout is 2; a probability lies between 0 and 1"),
    ({"neg_sample_ratio": 0}, "neg_sample_ratio is 0; expected more than 0"),
    ({"edge_sample_ratio": 2}, "edge_sample_ratio is 2; expected more than 0, at most 1"),
])  # fmt: skip
def test_bad_options_are_told_what_is_wrong(options: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        SuperGATConv(4, 3, **options)
    assert str(raised.value) == message
