"""The GAT model: its layers, its numbers, what it returns and what it refuses."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.loader
import torch_geometric.nn
from torch import Tensor
from torch_geometric.nn.models.basic_gnn import BasicGNN

from attn_core import Edges
from gat import AGNN, GAT, GATv2, GraphAttention, GraphTransformer
from gat.models import AttentionNetwork

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
EDGE_ATTR = torch.randn(7, 2, generator=torch.Generator().manual_seed(2))

OPTIONS: dict[str, dict[str, Any]] = {
    "one layer": {"num_layers": 1, "out_channels": 3, "heads": 3},
    "two layers": {"num_layers": 2, "out_channels": 3, "dropout": 0.5},
    "three layers": {"num_layers": 3, "out_channels": 3, "heads": 2, "residual": True},
    "hidden output": {"num_layers": 2, "heads": 2, "act": "elu"},
    "GATv2": {"num_layers": 2, "out_channels": 3, "heads": 2, "v2": True, "share_weights": True},
    "edge features": {"num_layers": 2, "out_channels": 3, "edge_dim": 2, "negative_slope": 0.1},
    "batch norm": {"num_layers": 2, "out_channels": 3, "norm": "batch_norm", "act_first": True},
    "graph norm": {"num_layers": 3, "norm": "layer_norm", "norm_kwargs": {"eps": 0.1}},
    "averaged": {"num_layers": 3, "out_channels": 3, "heads": 2, "concat": False},
    "activation": {"num_layers": 2, "act": "leaky_relu", "act_kwargs": {"negative_slope": 0.3}},
    "no activation": {"num_layers": 3, "act": None, "add_self_loops": False},
    "last": {"num_layers": 2, "out_channels": 3, "jk": "last"},
    "cat": {"num_layers": 2, "out_channels": 3, "jk": "cat", "norm": "graph_norm"},
    "max": {"num_layers": 3, "jk": "max", "act": torch.relu_},
    "lstm": {"num_layers": 2, "out_channels": 3, "jk": "lstm"},
}


def build(options: str) -> tuple[GAT, dict[str, Tensor]]:
    model = GAT(4, 6, **OPTIONS[options])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, {"edge_attr": EDGE_ATTR} if "edge_dim" in OPTIONS[options] else {}


@pytest.mark.parametrize("options", OPTIONS)
def test_is_torch_geometrics(options: str) -> None:
    """The same arguments, names of parameters, and numbers."""
    model, edge_attr = build(options)
    theirs = torch_geometric.nn.GAT(4, 6, **OPTIONS[options])
    theirs.load_state_dict(model.state_dict(), strict=True)
    assert repr(model) == repr(theirs)
    batch = torch.tensor([0, 0, 0, 1, 1, 1])
    for given in ({}, {"batch": batch, "batch_size": 2}):
        found, expected = (m.eval()(X, EDGES, **edge_attr, **given) for m in (model, theirs))
        torch.testing.assert_close(found, expected)


def test_takes_its_arguments_in_torch_geometrics_order() -> None:
    ours, theirs = (
        [p for p in inspect.signature(call).parameters.values() if p.kind != p.VAR_KEYWORD]
        for call in (AttentionNetwork.__init__, BasicGNN.__init__)
    )
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == [
        (p.name, p.default) for p in theirs
    ]
    assert {p.kind for p in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}
    for model in (GAT, GATv2, GraphTransformer, GraphAttention, AGNN):
        names = list(inspect.signature(model).parameters)
        assert names[:6] == [p.name for p in theirs[1:7]]
        called = list(inspect.signature(model.forward).parameters)
        there = list(inspect.signature(BasicGNN.forward).parameters)
        assert called[: len(there)] == there


@pytest.mark.parametrize("kind", [GAT, GATv2, GraphTransformer, GraphAttention, AGNN])
def test_two_layers_and_no_number_of_outputs(kind: Any) -> None:
    model = kind(16, 8, 2)
    assert len(model.convs) == 2
    assert model(torch.randn(6, 16), EDGES).shape == (6, 8)


@pytest.mark.parametrize("kind", [GAT, GATv2, GraphTransformer, GraphAttention, AGNN])
def test_layers_compute_what_later_ones_still_need(kind: Any) -> None:
    """A batch as NeighborLoader gives it, with the nodes and edges of each hop."""
    edge_index = torch.tensor([[1, 2, 3, 4, 5, 3], [0, 0, 1, 1, 2, 2]])
    model = kind(4, 8, 2, 3).eval()
    hops = {"num_sampled_nodes_per_hop": [1, 2, 3], "num_sampled_edges_per_hop": [2, 4]}
    seen: list[int] = []
    for conv in model.convs:
        conv.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    out = model(X, edge_index, **hops)
    assert seen == [6, 3]
    torch.testing.assert_close(out[0], model(X, edge_index)[0])


def test_inference_layer_by_layer() -> None:
    data = torch_geometric.data.Data(x=X, edge_index=EDGES[:, [0, 1, 4, 5, 6]])
    for model in (
        GAT(4, 6, 3, 3, heads=2, norm="batch_norm"),
        GraphTransformer(4, 6, 2, 3, jk="last"),
    ):
        model.eval()
        torch.testing.assert_close(model.inference(OneByOne(data)), model(X, data.edge_index))
    with pytest.raises(ValueError, match="level is 'graph'; inference"):
        GAT(4, 6, 2, 3, level="graph").eval().inference(OneByOne(data))


class OneByOne(torch_geometric.loader.NeighborLoader):
    """NeighborLoader's batches of one node with all its neighbours, without its samplers."""

    def __init__(self, data: torch_geometric.data.Data) -> None:
        self.data, self.dataset = data, range(data.num_nodes)  # type: ignore[assignment]
        self.node_sampler = SimpleNamespace(num_neighbors=[-1])

    def __iter__(self) -> Iterator[Any]:
        source, target = self.data.edge_index
        for node in range(self.data.num_nodes):
            others = source[target == node]
            n_id = torch.cat([torch.tensor([node]), others])
            edges = torch.stack([torch.arange(1, len(n_id)), torch.zeros(len(others)).long()])
            yield torch_geometric.data.Data(n_id=n_id, edge_index=edges, batch_size=1)


def test_weights_of_edges_are_not_used_and_it_says_so() -> None:
    model = GAT(4, 6, 2, 3).eval()
    with pytest.warns(
        UserWarning, match=r"edge_weight of shape \[7\] is not used by GAT"
    ) as caught:
        out = model(X, EDGES, EDGE_ATTR[:, 0])
    assert caught[0].filename == __file__
    assert torch.equal(out, model(X, EDGES))
    with pytest.raises(ValueError, match=r"edge_weight of shape \[7\] is given to an AGNN"):
        AGNN(4, 6, 2, 3)(X, EDGES, EDGE_ATTR[:, 0])


@pytest.mark.parametrize("options", OPTIONS)
def test_returns_every_layers_weights_first_layer_first(options: str) -> None:
    model, edge_attr = build(options)
    model.eval()
    out, attention = model(X, EDGES, **edge_attr, return_attention_weights=True)
    torch.testing.assert_close(out, model(X, EDGES, **edge_attr))
    assert len(attention) == len(model.convs)
    h = X
    for i, (edge_index, weights) in enumerate(attention):
        conv = model.convs[i]
        h, (expected_edges, expected) = conv(h, EDGES, **edge_attr, return_attention_weights=True)
        assert torch.equal(edge_index, expected_edges)
        torch.testing.assert_close(weights, expected)
        total = torch.zeros(6, weights.shape[1]).index_add(0, edge_index[1], weights)
        has_edges = torch.zeros(6, dtype=torch.bool).index_fill(0, edge_index[1], True)
        torch.testing.assert_close(total, has_edges[:, None].expand_as(total).float())
        h = model._after(i, h) if model._is_hidden(i) else h


def test_dropout_acts_in_training_alone() -> None:
    model, _ = build("two layers")
    assert not torch.allclose(model(X, EDGES), model(X, EDGES))
    model.eval()
    torch.testing.assert_close(model(X, EDGES), model(X, EDGES))


def test_attention_dropout_is_that_of_the_features_unless_given() -> None:
    assert [conv.dropout for conv in GAT(4, 5, 2, 3, dropout=0.3).convs] == [0.3, 0.3]
    model = GAT(4, 5, 2, 3, dropout=0.3, attention_dropout=0.0)
    assert (model.dropout.p, [conv.dropout for conv in model.convs]) == (0.3, [0, 0])


def test_input_dropout_acts_on_what_comes_in() -> None:
    model = GAT(4, 5, 1, 3, input_dropout=1.0)
    torch.nn.init.normal_(model.convs[-1].bias)
    assert torch.equal(model(X, EDGES), model.convs[-1].bias.expand(6, 3))
    plain = GAT(4, 5, 1, 3)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(X, EDGES), plain(X, EDGES))


def test_out_heads_are_those_of_the_layer_that_makes_the_output() -> None:
    assert [conv.heads for conv in GAT(4, 8, 3, 3, heads=4).convs] == [4, 4, 4]
    assert [conv.heads for conv in GAT(4, 8, 3, 3, heads=4, out_heads=6).convs] == [4, 4, 6]


@pytest.mark.parametrize("options", OPTIONS)
def test_config_and_state_dict_rebuild_the_model(options: str) -> None:
    model, edge_attr = build(options)
    config = model.config
    if not callable(config["act"]):
        config = json.loads(json.dumps(config))  # as it is stored beside a checkpoint
    other = GAT(**config)
    other.load_state_dict(model.state_dict(), strict=True)
    assert other.config == model.config
    torch.testing.assert_close(
        other.eval()(X, EDGES, **edge_attr), model.eval()(X, EDGES, **edge_attr)
    )


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"size mismatch for convs\.0\.att_src"):
        GAT(4, 6, 2, 3, heads=2).load_state_dict(GAT(4, 6, 2, 3).state_dict())


def test_reset_parameters_starts_anew() -> None:
    model = GAT(4, 5, 2, 3)
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
    model = GAT(-1, 5, 2, 3)
    model(X, EDGES)
    assert model.convs[0].lin.weight.shape == (5, 4)


def test_takes_edges_built_once() -> None:
    model = GAT(4, 5, 2, 3).eval()
    edges = Edges.from_edge_index(EDGES, size=6)
    torch.testing.assert_close(model(X, edges), model(X, EDGES))


def test_learns_what_a_node_cannot_know_alone() -> None:
    """The label of a node is the sign of the feature of its one neighbour."""
    x = torch.randn(200, 1)
    source = torch.randperm(200)
    edge_index = torch.stack([source, torch.arange(200)])
    label = (x[source, 0] > 0).long()
    model = GAT(1, 8, 1, 2, add_self_loops=False)
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
        GAT(4, 5, **{"num_layers": 2, "out_channels": 3, **options})
    assert str(raised.value) == message


def test_edge_attr_that_the_model_cannot_use_warns_at_the_callers_line() -> None:
    model = GAT(4, 5, 2, 3)
    with pytest.warns(UserWarning, match="edge_attr .* is not used") as caught:
        model(X, EDGES, edge_attr=EDGE_ATTR)
    assert {warning.filename for warning in caught} == {__file__}
