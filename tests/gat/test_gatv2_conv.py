"""GATv2Conv itself: values worked out by hand, and what it does in extreme cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from attn_core import backend
from gat import GATConv, GATv2Conv

X = torch.tensor([[0.0], [1.0], [-2.0]])


def scalar_layer(**options: Any) -> GATv2Conv:
    """x' = Σ α x with α = softmax LeakyReLU(x_i + x_j + e_ij): all parameters are 1."""
    layer = GATv2Conv(1, 1, bias=False, **options)
    for parameter in layer.parameters():
        torch.nn.init.ones_(parameter)
    return layer


def test_weights_and_output_are_those_worked_out_by_hand() -> None:
    x = torch.tensor([[0.0], [math.log(2)], [-math.log(32)]])
    edge_index = torch.tensor([[1, 2], [0, 0]])
    # Node 0: logits 0 (itself), ln 2 and 0.2 · -ln 32 = -ln 2, hence weights 1 : 2 : 1/2
    out, (pairs, weights) = scalar_layer()(x, edge_index, return_attention_weights=True)
    assert pairs.tolist() == [[1, 2, 0, 1, 2], [0, 0, 0, 1, 2]]
    torch.testing.assert_close(weights[:, 0], torch.tensor([4 / 7, 1 / 7, 2 / 7, 1, 1]))
    torch.testing.assert_close(out, torch.stack([(4 * x[1] + x[2]) / 7, x[1], x[2]]))


def test_features_of_an_edge_act_inside_the_activation() -> None:
    x, edge_index = torch.zeros(3, 1), torch.tensor([[1, 2], [0, 0]])
    edge_attr = torch.tensor([math.log(2), -math.log(32)])
    layer = scalar_layer(edge_dim=1, add_self_loops=False)
    _, (_, weights) = layer(x, edge_index, edge_attr, return_attention_weights=True)
    torch.testing.assert_close(weights[:, 0], torch.tensor([4 / 5, 1 / 5]))  # 2 : 1/2


def test_each_node_ranks_its_neighbours_for_itself_as_gat_cannot() -> None:
    """Keys 0 and 1 at the corners of a plane: node 2 prefers the one, node 3 the other."""
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
    edge_index = torch.tensor([[0, 1, 0, 1], [2, 2, 3, 3]])

    def ranking(layer: Any) -> list[bool]:
        _, (_, weights) = layer(x, edge_index, return_attention_weights=True)
        return (weights[0::2, 0] > weights[1::2, 0]).tolist()

    layer = GATv2Conv(2, 2, add_self_loops=False, bias=False)
    for parameter in (layer.lin_l.weight, layer.lin_r.weight):
        torch.nn.init.eye_(parameter)
    torch.nn.init.ones_(layer.att)
    assert ranking(layer) == [True, False]
    for seed in range(20):
        torch.manual_seed(seed)
        first, second = ranking(GATConv(2, 2, add_self_loops=False))
        assert first == second


@pytest.mark.parametrize("path", ["fused", "reference", "messages"])
def test_a_node_whose_scores_are_all_minus_infinity_attends_to_nothing(path: str) -> None:
    layer = scalar_layer(edge_dim=1, add_self_loops=False)
    x = X.clone().requires_grad_()
    edge_index = torch.tensor([[0, 1, 0], [2, 2, 1]])
    edge_attr = torch.tensor([-math.inf, -math.inf, 0.0])
    if path == "messages":
        layer.register_message_forward_hook(lambda *_: None)
    with backend("reference" if path == "reference" else "auto"):
        out, (_, weights) = layer(x, edge_index, edge_attr, return_attention_weights=True)
        out.sum().backward()
    assert weights[:, 0].tolist() == [0, 0, 1]  # theirs gives NaN
    assert out[2] == 0
    assert torch.isfinite(x.grad).all()


def test_shared_weights_are_one_parameter_and_one_projection() -> None:
    layer = GATv2Conv(4, 3, share_weights=True, bias=False)
    assert layer.lin_r is layer.lin_l
    assert len(list(layer.parameters())) == 2
    calls = []
    layer.lin_l.register_forward_hook(lambda *_: calls.append(1))
    layer(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]]))
    assert len(calls) == 1


def test_a_target_that_no_source_shares_a_number_with_gets_no_self_loop() -> None:
    """Also where its edges' features are to be reduced, which torch_geometric cannot."""
    x = torch.ones(1, 1), torch.zeros(2, 1)
    _, (pairs, weights) = scalar_layer(edge_dim=1)(
        x, torch.tensor([[0], [1]]), torch.ones(1, 1), return_attention_weights=True
    )
    assert pairs.tolist() == [[0, 0], [1, 0]]
    assert weights.tolist() == [[1.0], [1.0]]


def test_an_unknown_way_to_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="fill_value is 'median'; expected a number, a tensor"):
        GATv2Conv(4, 3, edge_dim=2, fill_value="median")
