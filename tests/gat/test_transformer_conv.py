"""TransformerConv itself: values worked out by hand, and what it does in extreme cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch_geometric.utils import to_torch_csc_tensor

from attn_core import Dense, Edges, ScaledDot, attend, backend
from gat import TransformerConv

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])


def scalar_layer(**options: Any) -> TransformerConv:
    """x' = x + Σ α (x + e) with α = softmax x_i (x_j + e_ij): all parameters are 1."""
    layer = TransformerConv(1, 1, bias=False, **options)
    for parameter in layer.parameters():
        torch.nn.init.ones_(parameter)
    return layer


def test_weights_and_output_are_those_worked_out_by_hand() -> None:
    x, edge_index = torch.tensor([[1.0], [math.log(3)], [0.0]]), torch.tensor([[1, 2], [0, 0]])
    out, (pairs, weights) = scalar_layer()(x, edge_index, return_attention_weights=True)
    assert torch.equal(pairs, edge_index)  # no self-loops here
    torch.testing.assert_close(weights[:, 0], torch.tensor([3 / 4, 1 / 4]))
    torch.testing.assert_close(out, x + torch.stack([3 / 4 * x[1], x[2] * 0, x[2] * 0]))


def test_features_of_an_edge_join_its_key_and_its_value() -> None:
    x, edge_index = torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor([[1, 2], [0, 0]])
    edge_attr = torch.tensor([math.log(3), 0.0])
    out, (_, weights) = scalar_layer(edge_dim=1)(
        x, edge_index, edge_attr, return_attention_weights=True
    )
    torch.testing.assert_close(weights[:, 0], torch.tensor([3 / 4, 1 / 4]))
    torch.testing.assert_close(out[0], 1 + 3 / 4 * edge_attr[:1])


def test_the_gate_chooses_between_neighbours_and_self() -> None:
    layer = scalar_layer(beta=True)
    x, edge_index = torch.tensor([[1.0], [3.0]]), torch.tensor([[1], [0]])
    with torch.no_grad():
        layer.lin_beta.weight.copy_(torch.tensor([[0.0, 0.0, 1.0]]))  # out - skip = 2
    gate = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(layer(x, edge_index)[0], torch.tensor([gate + (1 - gate) * 3]))


def test_on_a_complete_graph_it_is_dense_attention() -> None:
    layer = TransformerConv(4, 3, heads=2, root_weight=False)
    query, key, value = (
        linear(X).view(6, 2, 3) for linear in (layer.lin_query, layer.lin_key, layer.lin_value)
    )
    dense = attend(query, key, value, score=ScaledDot(), support=Dense()).output.flatten(1)
    complete = torch.cartesian_prod(torch.arange(6), torch.arange(6)).t()
    torch.testing.assert_close(layer(X, complete), dense)


def test_a_node_without_edges_gets_the_skip_connection_alone() -> None:
    layer = TransformerConv(4, 3, heads=2)
    x = X.clone().requires_grad_()
    out = layer(x, EDGES)
    torch.testing.assert_close(out[4:], layer.lin_skip(X[4:]))
    out.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("path", ["fused", "reference", "messages"])
def test_a_node_whose_scores_are_all_minus_infinity_attends_to_nothing(path: str) -> None:
    layer = TransformerConv(4, 3)
    with torch.no_grad():
        layer.lin_key.bias.fill_(-math.inf)
        layer.lin_query.weight.zero_()
        layer.lin_query.bias.fill_(1)
    if path == "messages":
        layer.register_message_forward_hook(lambda *_: None)
    with backend("reference" if path == "reference" else "auto"):
        out, (_, weights) = layer(X, EDGES, return_attention_weights=True)
    assert not weights.any()  # theirs gives NaN
    torch.testing.assert_close(out, layer.lin_skip(X))


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("asked", [None, True, False])
def test_nothing_is_left_in_the_layer_after_a_call(asked: bool | None, watched: bool) -> None:
    layer, seen = TransformerConv(4, 3), []
    if watched:  # in between, torch_geometric's explainers find the weights there
        layer.register_message_forward_hook(lambda layer, *_: seen.append(layer._alpha))
    layer(X, EDGES, return_attention_weights=asked)
    assert layer._alpha is None
    assert [weights.shape for weights in seen] == [(7, 1)] * watched


def test_weights_of_a_compressed_matrix_are_in_the_order_of_its_entries() -> None:
    """Columns first; torch_geometric refuses such a matrix."""
    layer = TransformerConv(4, 3)
    pairs = EDGES[:, [0, 1, 2, 4, 5, 6]]
    matrix = to_torch_csc_tensor(pairs.flip(0), size=6)
    _, (given, weights) = layer(X, matrix, return_attention_weights=True)
    _, (_, expected) = layer(X, pairs, return_attention_weights=True)
    assert given is matrix
    torch.testing.assert_close(weights, expected[pairs[0].argsort(stable=True)])


def test_self_loops_of_edges_need_features_that_nobody_gave() -> None:
    layer = TransformerConv(4, 3, edge_dim=2)
    edges = Edges.from_edge_index(EDGES, size=6, self_loops=True)
    with pytest.raises(ValueError) as raised:
        layer(X, edges, torch.ones(7, 2))
    assert str(raised.value) == (
        "edge_index is Edges to which self-loops were added, and edge_attr has no features for "
        "these: build the Edges with self_loops=False"
    )
