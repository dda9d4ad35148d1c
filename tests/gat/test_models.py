"""The GAT model: its layers, its numbers, what it returns and what it refuses."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor

from attn_core import Edges
from gat import GAT

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
EDGE_ATTR = torch.randn(7, 2, generator=torch.Generator().manual_seed(2))

OPTIONS: dict[str, dict[str, Any]] = {
    "one layer": {"num_layers": 1, "out_heads": 3},
    "two layers": {},
    "three layers": {"num_layers": 3, "heads": 2, "out_heads": 4, "residual": True},
    "edge features": {"edge_dim": 2, "negative_slope": 0.1},
    "no self-loops": {"add_self_loops": False, "dropout": 0.1, "attention_dropout": 0.5},
}


def stack_of_theirs(model: GAT) -> torch.nn.ModuleList:
    """The layers of the paper put together from torch_geometric's, with the model's weights."""
    config = model.config
    shared = {name: config[name] for name in ("negative_slope", "add_self_loops", "edge_dim")}
    shared["residual"] = config["residual"]
    heads, hidden = config["heads"], config["hidden_channels"]
    layers, width = [], config["in_channels"]
    for _ in range(config["num_layers"] - 1):
        layers.append(torch_geometric.nn.GATConv(width, hidden, heads, **shared))
        width = heads * hidden
    out = config["out_channels"], config["out_heads"]
    layers.append(torch_geometric.nn.GATConv(width, *out, concat=False, **shared))
    stack = torch.nn.ModuleList(layers)
    stack.load_state_dict(model.convs.state_dict(), strict=True)
    return stack


def build(options: str) -> tuple[GAT, Tensor | None]:
    model = GAT(4, 5, 3, **OPTIONS[options])
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model, EDGE_ATTR if "edge_dim" in OPTIONS[options] else None


@pytest.mark.parametrize("options", OPTIONS)
def test_equals_the_stack_put_together_from_torch_geometric(options: str) -> None:
    model, edge_attr = build(options)
    stack = stack_of_theirs(model)
    model.eval()
    h = X
    for layer in stack[:-1]:
        h = F.elu(layer(h, EDGES, edge_attr))
    torch.testing.assert_close(model.embed(X, EDGES, edge_attr), h)
    torch.testing.assert_close(model(X, EDGES, edge_attr), stack[-1](h, EDGES, edge_attr))


@pytest.mark.parametrize("options", OPTIONS)
def test_returns_every_layers_weights_first_layer_first(options: str) -> None:
    model, edge_attr = build(options)
    model.eval()
    out, attention = model(X, EDGES, edge_attr, return_attention_weights=True)
    torch.testing.assert_close(out, model(X, EDGES, edge_attr))
    config = model.config
    heads = [config["heads"]] * (config["num_layers"] - 1) + [config["out_heads"]]
    assert [layer.weights.shape[1] for layer in attention] == heads
    h = X
    for conv, (edge_index, weights) in zip(model.convs, attention, strict=True):
        h, (expected_edges, expected) = conv(h, EDGES, edge_attr, return_attention_weights=True)
        assert torch.equal(edge_index, expected_edges)
        torch.testing.assert_close(weights, expected)
        total = torch.zeros(6, weights.shape[1]).index_add(0, edge_index[1], weights)
        has_edges = torch.zeros(6, dtype=torch.bool).index_fill(0, edge_index[1], True)
        torch.testing.assert_close(total, has_edges[:, None].expand_as(total).float())
        h = F.elu(h)


def test_dropout_acts_in_training_alone() -> None:
    model, _ = build("two layers")
    assert not torch.allclose(model(X, EDGES), model(X, EDGES))
    model.eval()
    torch.testing.assert_close(model(X, EDGES), model(X, EDGES))


def test_attention_dropout_is_that_of_the_features_unless_given() -> None:
    assert [conv.dropout for conv in GAT(4, 5, 3, dropout=0.3).convs] == [0.3, 0.3]
    model = GAT(4, 5, 3, dropout=0.3, attention_dropout=0.0)
    assert (model.dropout, [conv.dropout for conv in model.convs]) == (0.3, [0, 0])


def test_all_dropped_leaves_the_bias() -> None:
    model = GAT(4, 5, 3, dropout=1.0)
    torch.nn.init.normal_(model.convs[-1].bias)
    assert torch.equal(model(X, EDGES), model.convs[-1].bias.expand(6, 3))


@pytest.mark.parametrize("options", OPTIONS)
def test_config_and_state_dict_rebuild_the_model(options: str) -> None:
    model, edge_attr = build(options)
    config = json.loads(json.dumps(model.config))  # as it is stored beside a checkpoint
    other = GAT(**config)
    other.load_state_dict(model.state_dict(), strict=True)
    assert other.config == model.config
    torch.testing.assert_close(other.eval()(X, EDGES, edge_attr), model.eval()(X, EDGES, edge_attr))


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for convs\.0\.att_src"):
        GAT(4, 5, 3, heads=2).load_state_dict(GAT(4, 5, 3).state_dict())


def test_reset_parameters_starts_anew() -> None:
    model = GAT(4, 5, 3)
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(7)
    model.reset_parameters()
    assert not torch.equal(model.state_dict()["convs.0.lin.weight"], before["convs.0.lin.weight"])
    torch.manual_seed(7)
    for conv in model.convs:
        conv.reset_parameters()
    expected = model.state_dict()
    torch.manual_seed(7)
    model.reset_parameters()
    assert all(torch.equal(model.state_dict()[name], expected[name]) for name in expected)


def test_takes_its_width_from_the_first_call() -> None:
    model = GAT(-1, 5, 3)
    model(X, EDGES)
    assert model.convs[0].lin.weight.shape == (40, 4)


def test_takes_edges_built_once() -> None:
    model = GAT(4, 5, 3).eval()
    edges = Edges.from_edge_index(EDGES, size=6)
    torch.testing.assert_close(model(X, edges), model(X, EDGES))


def test_learns_what_a_node_cannot_know_alone() -> None:
    """The label of a node is the sign of the feature of its one neighbour."""
    x = torch.randn(200, 1)
    source = torch.randperm(200)
    edge_index = torch.stack([source, torch.arange(200)])
    label = (x[source, 0] > 0).long()
    model = GAT(1, 8, 2, num_layers=1, dropout=0.0, add_self_loops=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x, edge_index), label).backward()
        optimizer.step()
    assert (model(x, edge_index).argmax(-1) == label).float().mean() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0; a network needs at least one"),
        ({"heads": 0}, "heads is 0; a network needs at least one"),
        ({"out_heads": 0}, "out_heads is 0; a network needs at least one"),
        ({"dropout": 1.2}, "dropout is 1.2; a probability lies between 0 and 1"),
        ({"attention_dropout": -1}, "attention_dropout is -1; a probability lies between 0 and 1"),
    ],
)
def test_bad_options_are_told_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        GAT(4, 5, 3, **options)
    assert str(raised.value) == message


def test_edge_attr_that_the_model_cannot_use_warns_at_the_callers_line() -> None:
    model = GAT(4, 5, 3)
    with pytest.warns(UserWarning, match="edge_attr .* is not used") as caught:
        model(X, EDGES, EDGE_ATTR)
    assert {warning.filename for warning in caught} == {__file__}
