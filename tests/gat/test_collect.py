"""The attention of every layer of a model in one call, and weights with their edges."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import HeteroConv, Sequential, to_hetero
from torch_geometric.nn.models.basic_gnn import BasicGNN

import gat
from attn_core import Edges
from gat import (
    AGNNConv,
    EdgeAttention,
    GATConv,
    GATv2Conv,
    GraphAttentionConv,
    TransformerConv,
    attention_weights,
)
from tests.gat.conftest import KINDS, SIMPLE

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
# A duplicate (0 → 1), a self-loop (2), a node without in-edges (4) and an isolated one (5)
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
CONVS = [GATConv, GATv2Conv, TransformerConv, AGNNConv]


def build(conv: Any, **options: Any) -> Any:
    return conv() if conv is AGNNConv else conv(4, 2, heads=2, **options)


def assert_ties(layer: Any, expected: Any) -> None:
    """The edges are the same, and so are the weights."""
    pairs, weights = expected
    assert torch.equal(layer.edge_index, pairs)
    torch.testing.assert_close(layer.weights, weights)


# --- Every layer of a model -----------------------------------------------------------------------


@pytest.mark.parametrize("conv", CONVS)
def test_a_layer_alone_tells_what_it_attends_to(conv: Any) -> None:
    layer = build(conv)
    (found,) = attention_weights(layer, X, EDGES)
    assert found.name == ""
    assert found.size == (6, 6)
    if conv is not AGNNConv:
        assert_ties(found, layer(X, EDGES, return_attention_weights=True)[1])
    totals = found.to_dense().sum(-1)  # [H, targets]
    has_edges = torch.isin(torch.arange(6), found.edge_index[1]).float()
    torch.testing.assert_close(totals, has_edges.expand_as(totals))


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("conv", [*CONVS, GraphAttentionConv])
def test_the_weights_of_chosen_nodes(conv: Any, kind: str, flow: str) -> None:
    if flow == "target_to_source" and kind != "int64":
        pytest.skip("these name sources and targets themselves")
    layer, edges = build(conv), KINDS[kind](SIMPLE.clone())
    layer.flow = flow
    mask = torch.tensor([False, True, True, False, False, False])
    (everything,) = attention_weights(layer, X, edges)
    expected = torch.where(mask[:, None], everything.to_dense(), 0.0)
    for nodes in (mask, torch.tensor([2, 1])):
        (found,) = attention_weights(layer, X, edges, nodes=nodes)
        assert len(found.weights) == mask[everything.edge_index[1]].sum()
        torch.testing.assert_close(found.to_dense(), expected)
        for node in (1, 2):
            assert torch.equal(found.top_k(node).sources, everything.top_k(node).sources)
    with pytest.raises(IndexError, match="queries has the entry 6"):
        attention_weights(layer, X, edges, nodes=torch.tensor([6]))


def test_chosen_nodes_where_the_caller_asks_for_weights_too_or_messages_are_watched() -> None:
    nodes = torch.tensor([0, 3])
    model = gat.GAT(4, 8, 2, 3, heads=2).eval()
    everything = attention_weights(model, X, EDGES)
    returned = attention_weights(AsksItself(model), X, EDGES, nodes=nodes)
    model.convs[1].register_message_forward_hook(lambda *_: None)
    for found in (returned, attention_weights(model, X, EDGES, nodes=nodes)):
        for some, all_of_them in zip(found, everything, strict=True):
            kept = torch.isin(all_of_them.edge_index[1], nodes)
            assert_ties(some, (all_of_them.edge_index[:, kept], all_of_them.weights[kept]))


class AsksItself(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out, attention = self.model(x, edge_index, return_attention_weights=True)
        assert all(int(pairs[1].unique().numel()) == 6 for pairs, _ in attention)  # all of them
        return out  # type: ignore[no-any-return]


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_agnn_weights_are_those_that_make_its_output(flow: str) -> None:
    layer = AGNNConv(flow=flow)
    torch.nn.init.constant_(layer.beta, 1.7)
    (found,) = attention_weights(layer, X, EDGES)
    torch.testing.assert_close(found.to_dense()[0] @ X, layer(X, EDGES))


def test_a_model_of_ours_gives_what_it_returns_itself() -> None:
    model = gat.GAT(4, 8, 3, 3, dropout=0.6, heads=2)
    torch.manual_seed(0)
    _, expected = model(X, EDGES, return_attention_weights=True)
    torch.manual_seed(0)  # dropout: the layers run as they would
    found = attention_weights(model, X, EDGES)
    assert [layer.name for layer in found] == ["convs.0", "convs.1", "convs.2"]
    for layer, attention in zip(found, expected, strict=True):
        assert_ties(layer, attention)


@pytest.mark.parametrize("conv", CONVS)
def test_models_of_torch_geometric(conv: Any) -> None:
    class Model(BasicGNN):
        supports_edge_weight = supports_edge_attr = supports_norm_batch = False

        def init_conv(self, inputs: int, outputs: int, **_: Any) -> nn.Module:
            return conv() if conv is AGNNConv else conv(inputs, outputs)

    model = Model(4, 4, 2, 3).eval()
    found = attention_weights(model, X, EDGES)
    assert [layer.name for layer in found] == ["convs.0", "convs.1"]
    assert found[0].weights.shape == (7 if conv is TransformerConv else 12, 1)


def test_sequential_and_a_layer_that_is_called_twice() -> None:
    layer = GATConv(4, 4)
    steps = [(layer, "x, edge_index -> x"), nn.ReLU(), (layer, "x, edge_index -> x")]
    model = Sequential("x, edge_index", steps)
    first, second = attention_weights(model, X, EDGES)
    assert first.name == second.name
    assert_ties(first, layer(X, EDGES, return_attention_weights=True)[1])
    hidden = layer(X, EDGES).relu()
    assert_ties(second, layer(hidden, EDGES, return_attention_weights=True)[1])


@pytest.mark.filterwarnings("ignore:There exist node types:UserWarning")
def test_heterogeneous_models() -> None:
    types = ("paper", "cites", "paper"), ("author", "writes", "paper")
    writes = torch.tensor([[0, 1, 2, 2], [4, 0, 1, 1]])
    x, edges = {"paper": X, "author": X[:3, :2]}, {types[0]: EDGES, types[1]: writes}
    between = GATv2Conv((2, 4), 3, heads=2, add_self_loops=False)
    model = HeteroConv({types[0]: GATConv(4, 3, heads=2), types[1]: between})
    cites, wrote = attention_weights(model, x, edges)
    assert (cites.size, wrote.size) == ((6, 6), (3, 6))
    assert_ties(wrote, between((x["author"], X), writes, return_attention_weights=True)[1])
    assert wrote.to_dense().shape == (2, 6, 3)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = TransformerConv((-1, -1), 3)

        # Annotated as a string, it fails in torch.fx before torch 2.7, whatever the layer
        def forward(self, x, edge_index):
            return self.conv(x, edge_index)

    edges[types[1][2], "by", types[1][0]] = writes.flip(0)
    found = attention_weights(to_hetero(Net(), (list(x), list(edges))), x, edges)
    assert [layer.name for layer in found] == [f"conv.{'__'.join(t)}" for t in edges]
    assert [layer.size for layer in found] == [(6, 6), (3, 6), (6, 3)]


def test_the_model_is_called_once_and_left_as_it_was() -> None:
    model = gat.GAT(4, 8, 2, 3, heads=2).eval()
    seen: list[Any] = []
    model.convs[0].register_forward_hook(lambda _, args, out: seen.append((args, out)))
    state, hooks = copy.deepcopy(model.state_dict()), len(model.convs[0]._forward_hooks)
    before = model(X, EDGES)
    attention_weights(model, X, EDGES)
    (_, plain), (args, watched) = seen
    assert isinstance(watched, Tensor)  # what else is hooked in sees nothing of it
    torch.testing.assert_close(plain, watched)
    assert len(args) == 3
    assert (len(model.convs[0]._forward_hooks), len(model.convs[0]._forward_pre_hooks)) == (
        hooks,
        0,
    )
    torch.testing.assert_close(model(X, EDGES), before)
    after = model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(state.values(), after, strict=True))
    with pytest.raises(ValueError, match="built with in_channels=4"):
        attention_weights(model, X[:, :2], EDGES)
    assert not model.convs[0]._forward_pre_hooks


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("conv", [GATConv, GATv2Conv, TransformerConv])
def test_a_caller_gets_what_it_asked_for(conv: Any, asked: bool | None) -> None:
    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = build(conv)

        def forward(self, x: Tensor) -> None:
            result.append(self.conv(x, EDGES, return_attention_weights=asked))

    result: list[Any] = []
    model = Caller()
    model(X)
    attention_weights(model, X)
    assert type(result[0]) is type(result[1])
    torch.testing.assert_close(result[0], result[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("conv", CONVS)
def test_every_kind_of_edge_index(conv: Any, kind: str) -> None:
    layer = build(conv)
    (found,) = attention_weights(layer, X, KINDS[kind](SIMPLE.clone()))
    assert type(found.edge_index) is Tensor
    pairs: Any = SIMPLE
    if kind == "Edges with self-loops":
        pairs = Edges.from_edge_index(SIMPLE, size=6, self_loops=True)
    (expected,) = attention_weights(layer, X, pairs)
    torch.testing.assert_close(found.to_dense(), expected.to_dense())
    assert found.size == (6, 6)


def test_the_turned_flow_is_turned_back() -> None:
    layer = GATConv(4, 2, flow="target_to_source", add_self_loops=False)
    (found,) = attention_weights(layer, X, EDGES.flip(0))
    layer.flow = "source_to_target"
    (expected,) = attention_weights(layer, X, EDGES)
    torch.testing.assert_close(found.to_dense(), expected.to_dense())


def test_weights_carry_gradients_and_leave_dropout_alone() -> None:
    layer = GATConv(4, 2, heads=2, dropout=0.9)
    (found,) = attention_weights(layer, X, EDGES)
    torch.testing.assert_close(found.to_dense().sum(-1), torch.ones(2, 6))
    found.weights.square().sum().backward()
    assert layer.att_src.grad is not None and layer.att_src.grad.any()


def test_compiled_models() -> None:
    model = gat.GAT(4, 8, 2, 3, heads=2).eval()
    expected = attention_weights(model, X, EDGES)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(X, EDGES)
    for layer, other in zip(attention_weights(compiled, X, EDGES), expected, strict=True):
        assert layer.name == f"_orig_mod.{other.name}"
        torch.testing.assert_close(layer.weights, other.weights)
    torch.testing.assert_close(compiled(X, EDGES), model(X, EDGES))


def test_watched_layers_pass_messages_and_tell_the_same() -> None:
    layer = GATConv(4, 2, heads=2)
    (expected,) = attention_weights(layer, X, EDGES)
    layer.register_message_forward_hook(lambda *_: None)
    (found,) = attention_weights(layer, X, EDGES)
    assert_ties(found, (expected.edge_index, expected.weights))


def test_a_model_without_attention_is_told_the_mend() -> None:
    with pytest.raises(ValueError) as raised:
        attention_weights(torch_geometric.nn.GAT(4, 8, 2), X, EDGES)
    assert str(raised.value) == (
        "model is a GAT without attention layers of gat: gat.replace(model) puts them in the place "
        "of torch_geometric's"
    )


def test_a_subclass_that_hides_its_weights_is_named() -> None:
    class Hiding(GATConv):
        def forward(self, x: Tensor, edge_index: Any) -> Any:  # type: ignore[override]
            return super().forward(x, edge_index)

    with pytest.raises(TypeError, match=r"^layer '0' is a Hiding, whose forward takes no return_"):
        attention_weights(nn.Sequential(Hiding(4, 2)), X, EDGES)


# --- Weights with their edges ---------------------------------------------------------------------

# 0 → 2 twice, 1 → 2, 2 → 0
PAIRS = torch.tensor([[0, 1, 2, 0], [2, 2, 0, 2]])
WEIGHTS = torch.tensor([[0.25, 0.5], [0.5, 0.25], [1.0, 1.0], [0.25, 0.25]])


@pytest.mark.parametrize("pairs", [PAIRS, PAIRS.int(), EdgeIndex(PAIRS)])
def test_dense_weights_are_those_worked_out_by_hand(pairs: Tensor) -> None:
    attention = EdgeAttention(pairs, WEIGHTS)
    expected = torch.tensor([[0, 0, 1], [0, 0, 0], [0.5, 0.5, 0]])
    assert torch.equal(attention.to_dense()[0], expected)  # row: who attends
    assert attention.to_dense()[1, 2].tolist() == [0.75, 0.25, 0]
    assert attention.to_dense(4).shape == (2, 4, 4)
    assert attention.to_dense((5, 3)).shape == (2, 3, 5)
    edge_index, weights = attention  # it is still a pair
    assert edge_index is pairs and weights is WEIGHTS


def test_dense_weights_carry_gradients() -> None:
    weights = WEIGHTS.clone().requires_grad_()
    EdgeAttention(PAIRS, weights).to_dense()[0, 2, 0].backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [[1, 0], [0, 0], [0, 0], [1, 0]]


def test_networkx_keeps_duplicates_apart() -> None:
    graph = EdgeAttention(PAIRS, WEIGHTS).to_networkx(4)
    assert sorted(graph.nodes) == [0, 1, 2, 3]
    assert sorted(graph.edges(keys=True, data="weight")) == [
        (0, 2, 0, 0.375),
        (0, 2, 3, 0.25),
        (1, 2, 1, 0.375),
        (2, 0, 2, 1.0),
    ]
    assert EdgeAttention(PAIRS, WEIGHTS).to_networkx(head=0).edges[1, 2, 1]["weight"] == 0.5


def test_networkx_tells_the_sides_of_a_bipartite_graph_apart() -> None:
    graph = EdgeAttention(PAIRS[:, :1], WEIGHTS[:1]).to_networkx((1, 3), bipartite=True)
    assert list(graph.nodes) == [("source", 0), *(("target", i) for i in range(3))]
    assert list(graph.edges) == [(("source", 0), ("target", 2), 0)]


def test_without_networkx_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'gat-attention\[plot\]'"):
        EdgeAttention(PAIRS, WEIGHTS).to_networkx()


def test_the_strongest_edges_of_a_node() -> None:
    attention = EdgeAttention(PAIRS, WEIGHTS)
    sources, weights, edges = attention.top_k(2, 2)  # by the mean; the first of equals first
    assert (sources.tolist(), weights.tolist(), edges.tolist()) == ([0, 1], [0.375] * 2, [0, 1])
    assert attention.top_k(2, head=0).edges.tolist() == [1, 0, 3]
    assert attention.top_k(2, head=1).sources.tolist() == [0, 1, 0]
    for nobody in (attention.top_k(1), attention.top_k(9)):
        assert [x.tolist() for x in nobody] == [[], [], []]


def test_attention_over_no_edges() -> None:
    attention = EdgeAttention(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(0, 2))
    assert attention.to_dense().shape == (2, 0, 0)
    assert attention.to_dense(3).tolist() == [[[0.0] * 3] * 3] * 2
    assert len(attention.to_networkx(3)) == 3
    assert not len(attention.top_k(0).edges)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: a.to_dense(2), ValueError, "size says 2 sources, but edge_index has the node 2 "
         "among them: give size at least 3"),
        (lambda a: a.to_networkx((3, 1)), ValueError, "size says 1 targets, but edge_index has the "
         "node 2 among them: give size at least 3"),
        (lambda a: a.top_k(-1), IndexError, "node is -1; nodes are numbered from 0"),
        (lambda a: a.top_k(0, 0), ValueError, "k is 0; expected at least 1"),
        (lambda a: a.top_k(0, head=2), IndexError, "head is 2; there are 2 of them (0 to 1)"),
        (lambda a: a.to_networkx(head=-1), IndexError, "head is -1; there are 2 of them (0 to 1)"),
    ],
)  # fmt: skip
def test_bad_arguments_are_told_what_is_wrong(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error) as raised:
        call(EdgeAttention(PAIRS, WEIGHTS))
    assert str(raised.value) == message


def test_a_layer_knows_its_nodes() -> None:
    (found,) = attention_weights(GATConv(4, 2, add_self_loops=False), X, EDGES)
    assert len(found.to_networkx()) == 6  # node 5 is isolated
    assert found.to_dense().shape == (1, 6, 6)
    assert not len(found.top_k(5).edges)
    with pytest.raises(IndexError, match="node is 6; layer '' has 6 targets"):
        found.top_k(6)
