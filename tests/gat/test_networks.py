"""What GAT, GATv2 and their like share: the body, its options, its levels; and AGNN."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor

import gat
from gat import AGNN, GAT, GATv2, GraphAttention, GraphTransformer

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
EDGE_ATTR = torch.randn(7, 2, generator=torch.Generator().manual_seed(2))
BODIES = (GAT, GATv2, GraphTransformer, GraphAttention)
EVERYTHING: dict[str, Any] = {
    "num_layers": 3, "heads": 2, "norm": "layer_norm", "feed_forward": 2, "jk": "cat", "act": "elu",
    "edge_dim": 2, "dropout": 0.3, "attention_dropout": 0.2, "value_dropout": 0.1,
    "input_dropout": 0.1,
}  # fmt: skip


# --- The layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"v2": True}])
def test_gat_in_a_stack_of_its_layers_by_name(options: Any) -> None:
    model = GAT(4, 10, 2, 3, heads=2, negative_slope=0.1, act="elu", out_heads=1, **options).eval()
    conv = torch_geometric.nn.GATv2Conv if options else torch_geometric.nn.GATConv
    first = conv(4, 5, 2, negative_slope=0.1)
    last = conv(10, 3, 1, concat=False, negative_slope=0.1)
    first.load_state_dict(model.convs[0].state_dict())
    last.load_state_dict(model.convs[1].state_dict())
    torch.testing.assert_close(model(X, EDGES), last(F.elu(first(X, EDGES)), EDGES))


def test_gatv2_is_gat_of_its_layers() -> None:
    model = GATv2(4, 10, 2, 3, heads=2, share_weights=True).eval()
    other = GAT(4, 10, 2, 3, heads=2, share_weights=True, v2=True).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(model(X, EDGES), other(X, EDGES))


def test_graph_transformer_by_hand() -> None:
    options: Any = {"act": "elu", "heads": 2, "out_heads": 1, "edge_dim": 2, "beta": True}
    model = GraphTransformer(4, 10, 2, 3, **options).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    first = torch_geometric.nn.TransformerConv(4, 5, 2, edge_dim=2, beta=True)
    last = torch_geometric.nn.TransformerConv(10, 3, 1, concat=False, edge_dim=2, beta=True)
    first.load_state_dict(model.convs[0].state_dict())
    last.load_state_dict(model.convs[1].state_dict())
    state = model.state_dict()

    def norm(h: Tensor, which: str) -> Tensor:
        centred = h - h.mean(dim=1, keepdim=True)
        scaled = centred / (h.var(dim=1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return scaled * state[f"{which}.0.weight"] + state[f"{which}.0.bias"]

    h = F.elu(norm(first(X, EDGES, EDGE_ATTR), "norms"))
    hidden = F.elu(h @ state["networks.0.0.weight"].T + state["networks.0.0.bias"])
    assert hidden.shape == (6, 20)
    h = h + hidden @ state["networks.0.3.weight"].T + state["networks.0.3.bias"]
    h = norm(h, "network_norms")
    torch.testing.assert_close(model.embed(X, EDGES, EDGE_ATTR), h)
    torch.testing.assert_close(model(X, EDGES, edge_attr=EDGE_ATTR), last(h, EDGES, EDGE_ATTR))


def test_graph_attention_hands_its_score_and_normaliser_to_every_layer() -> None:
    model = GraphAttention(4, 6, 2, 3, score="general", normalizer="sparsemax", share_weights=True)
    for conv in model.convs:
        assert repr(conv.normalizer) == "Sparsemax()" and type(conv.score).__name__ == "General"
        assert conv.lin_query is conv.lin_key
    assert (model.config["score"], model.config["normalizer"]) == ("general", "sparsemax")


@pytest.mark.parametrize("jk", ["last", "cat", "max", "lstm"])
def test_jumping_knowledge_sees_all_layers(jk: Any) -> None:
    model = GAT(4, 10, 3, 3, act="elu", jk=jk, heads=2).eval()
    h, outputs = X, []
    for conv in model.convs:
        h = F.elu(conv(h, EDGES))
        outputs.append(h)
    expected = {
        "last": lambda: outputs[-1],
        "cat": lambda: torch.cat(outputs, dim=1),
        "max": lambda: torch.stack(outputs).amax(dim=0),
        "lstm": lambda: model.jk(outputs),
    }[jk]()
    torch.testing.assert_close(model.embed(X, EDGES), expected)
    torch.testing.assert_close(model(X, EDGES), model.lin(expected))


@pytest.mark.parametrize("body", BODIES)
def test_every_parameter_has_a_gradient(body: Any) -> None:
    model = body(4, 6, out_channels=3, **{**EVERYTHING, "jk": "lstm"})
    model.eval()(X, EDGES, edge_attr=EDGE_ATTR).square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []


@pytest.mark.parametrize("body", BODIES)
def test_value_dropout_reaches_the_layers(body: Any) -> None:
    assert [conv.value_dropout for conv in body(4, 5, 2, 3, value_dropout=0.4).convs] == [0.4, 0.4]


@pytest.mark.parametrize("body", [*BODIES, AGNN])
def test_sparse_features_give_what_dense_ones_give(body: Any) -> None:
    dense = X * (X > 0)
    model = body(4, 5, 2, 3).eval()
    torch.testing.assert_close(model(dense.to_sparse_csr(), EDGES), model(dense, EDGES))
    model.train()(dense.to_sparse_csr(), EDGES).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("body", [*BODIES, AGNN])
def test_config_and_state_dict_rebuild_the_model(body: Any) -> None:
    options = {"num_layers": 3, "dropout": 0.3, "act": "elu"} if body is AGNN else EVERYTHING
    edge_attr = {} if body is AGNN else {"edge_attr": EDGE_ATTR}
    model = body(4, 6, out_channels=3, **options)
    assert {name: model.config[name] for name in options} == options
    other = body(**json.loads(json.dumps(model.config)))
    other.load_state_dict(model.state_dict(), strict=True)
    assert other.config == model.config
    torch.testing.assert_close(
        other.eval()(X, EDGES, **edge_attr), model.eval()(X, EDGES, **edge_attr)
    )
    copied = copy.deepcopy(model)
    torch.testing.assert_close(copied(X, EDGES, **edge_attr), model(X, EDGES, **edge_attr))


@pytest.mark.parametrize("body", [*BODIES, AGNN])
def test_reset_parameters_draws_all_weights_anew(body: Any) -> None:
    options = {"num_layers": 2} if body is AGNN else {**EVERYTHING, "jk": "lstm"}
    model = body(4, 6, out_channels=3, **options)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.0)
    model.reset_parameters()
    assert [name for name, p in model.named_parameters() if (p == 7).any()] == []


def test_torch_compile_takes_every_option() -> None:
    model = GATv2(4, 6, out_channels=3, **EVERYTHING).eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(X, EDGES, edge_attr=EDGE_ATTR), model(X, EDGES, edge_attr=EDGE_ATTR)
    )


@pytest.mark.parametrize("body", [*BODIES, AGNN])
def test_no_edges_and_no_nodes(body: Any) -> None:
    model = body(4, 5, 2, 3).eval()
    none = torch.empty(2, 0, dtype=torch.long)
    torch.testing.assert_close(model(X, none), torch.cat([model(x[None], none) for x in X]))
    assert model(X[:0], none).shape == (0, 3)


# --- Attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [*BODIES, AGNN])
def test_returns_every_layers_weights(body: Any) -> None:
    options = {} if body is AGNN else {"jk": "max", "norm": "layer_norm", "heads": 2}
    model = body(4, 6, 3, 3, **options).eval()
    out, attention = model(X, EDGES, return_attention_weights=True)
    torch.testing.assert_close(out, model(X, EDGES))
    found = gat.attention_weights(model, X, EDGES)
    assert len(found) == len(attention) == 3
    for layer, (edge_index, weights) in zip(found, attention, strict=True):
        assert torch.equal(layer.edge_index, edge_index)
        torch.testing.assert_close(layer.weights, weights)


# --- Levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", BODIES)
def test_graph_level_is_a_map_of_the_mean_and_treats_graphs_alone(body: Any) -> None:
    model = body(4, 5, 2, 3, level="graph").eval()
    mean = model.embed(X, EDGES).mean(dim=0, keepdim=True)
    torch.testing.assert_close(model(X, EDGES), model.lin(mean))
    both = model(
        torch.cat([X, X[:2]]),
        torch.cat([EDGES, torch.tensor([[6], [7]])], dim=1),
        batch=torch.tensor([0] * 6 + [1] * 2),
    )
    torch.testing.assert_close(both[:1], model(X, EDGES))
    torch.testing.assert_close(both[1:], model(X[:2], torch.tensor([[0], [1]])))


def test_graphs_without_nodes_have_an_output() -> None:
    model = GAT(4, 5, 2, 3, level="graph").eval()
    none = torch.empty(2, 0, dtype=torch.long)
    out = model(X[:2], none, batch=torch.tensor([0, 2]), batch_size=4)
    assert out.shape == (4, 3)
    torch.testing.assert_close(out[1], model.lin.bias)
    torch.testing.assert_close(out[3], model(X[:0], none)[0])


@pytest.mark.parametrize("body", BODIES)
def test_edge_level_judges_pairs_by_both_ends_and_their_order(body: Any) -> None:
    model = body(4, 5, 2, 2, jk="cat", level="edge").eval()
    pairs = torch.tensor([[0, 1, 5, 0], [1, 0, 5, 1]])
    out = model(X, EDGES, edge_label_index=pairs)
    h = model.embed(X, EDGES)
    for pair, logits in zip(pairs.T, out, strict=True):
        torch.testing.assert_close(model.lin(torch.cat([h[pair[0]], h[pair[1]]])), logits)
    torch.testing.assert_close(out[0], out[3])
    assert not torch.allclose(out[0], out[1])
    assert model(X, EDGES, edge_label_index=pairs[:, :0]).shape == (0, 2)


def test_graph_level_learns_what_no_bag_of_nodes_tells() -> None:
    """In half of the graphs, like nodes are neighbours; in the others, unlike ones."""
    group = torch.tensor([0, 1, 0, 1, 0, 1])
    mixed = torch.rand(40) < 0.5
    graphs = []
    for unlike in mixed.tolist():
        allowed = (group[:, None] != group) if unlike else (group[:, None] == group)
        edges = (allowed & (torch.rand(6, 6) < 0.7)).nonzero().T
        graphs.append(torch_geometric.data.Data(x=F.one_hot(group).float(), edge_index=edges))
    batch = torch_geometric.data.Batch.from_data_list(graphs)
    model = GraphTransformer(2, 16, 1, 2, heads=2, level="graph")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        out = model(batch.x, batch.edge_index, batch=batch.batch)
        F.cross_entropy(out, mixed.long()).backward()
        optimizer.step()
    assert torch.equal(out.argmax(1), mixed.long())


# --- Errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 0}, "num_layers is 0; a network needs at least one"),
        ({"value_dropout": 1.5}, "value_dropout is 1.5; a probability lies between 0 and 1"),
        ({"feed_forward": -1}, "feed_forward is -1; give the factor of the width, or 0"),
        ({"jk": "sum"}, "jk is 'sum'; expected None or one of 'last', 'cat', 'max', 'lstm'"),
        ({"heads": 2}, "hidden_channels is 5, which 2 heads cannot share: give a multiple of 2"),
        ({"level": "link"}, "level is 'link'; expected one of 'node', 'edge', 'graph'"),
    ],
)
def test_bad_options_are_told_by_name(body: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        body(4, 5, **{"num_layers": 2, "out_channels": 3, **options})
    assert str(raised.value) == message


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="depth"):
        GAT(4, 5, 2, 3, depth=3)


@pytest.mark.parametrize(
    ("level", "given", "message"),
    [
        ("graph", {"edge_label_index": EDGES}, r"leave it out, or build .* with level='edge'"),
        ("edge", {}, "edge_label_index is None; a model of level='edge' needs"),
        ("edge", {"edge_label_index": EDGES[0]}, r"edge_label_index is of shape \[7\]"),
        ("edge", {"edge_label_index": EDGES.int()}, r"of shape \[2, 7\] and torch\.int32; a model"),
        ("edge", {"edge_label_index": EDGES - 1}, "edge_label_index names node -1, but x has 6"),
        ("edge", {"edge_label_index": EDGES + 2}, "edge_label_index names node 6, but x has 6"),
        (
            "graph",
            {"batch": torch.zeros(5).long()},
            r"batch has shape \[5\], but there are 6 nodes",
        ),
    ],
)
def test_arguments_of_another_level(level: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, IndexError), match=message):
        GAT(4, 5, 2, 3, level=level)(X, EDGES, **given)


# --- AGNN -----------------------------------------------------------------------------------------


def test_agnn_is_two_maps_round_the_layers() -> None:
    model = AGNN(4, 5, 3, 3).eval()
    first, second, third = (torch_geometric.nn.AGNNConv(requires_grad=i > 0) for i in range(3))
    for conv in model.convs[1:]:
        torch.nn.init.constant_(conv.beta, 1.7)
    second.load_state_dict(model.convs[1].state_dict())
    third.load_state_dict(model.convs[2].state_dict())
    h = F.relu(X @ model.first.weight.T + model.first.bias)
    for conv in (first, second, third):
        h = conv(h, EDGES)
    torch.testing.assert_close(model.embed(X, EDGES), h)
    torch.testing.assert_close(model(X, EDGES), h @ model.last.weight.T + model.last.bias)
    assert [conv.requires_grad for conv in model.convs] == [False, True, True]


def test_agnn_has_no_use_for_features_of_edges() -> None:
    with pytest.raises(ValueError, match=r"edge_attr of shape \[7, 2\] is given to an AGNN"):
        AGNN(4, 5, 2, 3)(X, EDGES, edge_attr=EDGE_ATTR)
    with pytest.raises(ValueError, match="num_layers is 0"):
        AGNN(4, 5, 0, 3)
    with pytest.raises(ValueError, match="dropout is 2; a probability"):
        AGNN(4, 5, 2, 3, dropout=2)
