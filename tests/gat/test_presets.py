"""Published settings by name, and the options and models that they need."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch_geometric.utils import softmax

from attn_core import Edges
from gat import GAT, GATConv
from gat.models import PRESETS, ResidualAttention, preset

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 0, 3, 4], [1, 0, 2, 3, 1, 0]])
LOOPS = torch.cat([EDGES[:, EDGES[0] != EDGES[1]], torch.arange(6).expand(2, -1)], dim=1)


@pytest.mark.parametrize(("name", "graph"), PRESETS)
def test_every_preset_builds_a_model_that_trains(name: str, graph: str) -> None:
    settings = preset(name, graph)
    model = settings.build(4, 3)
    out = model(X, LOOPS)
    assert out.shape == (6, 3)
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert settings.source and settings.metric in ("accuracy", "roc_auc")


@pytest.mark.parametrize("name", ["cora", "pubmed", "computers", "minesweeper", "roman-empire"])
def test_tuned_gat_is_the_network_of_its_authors(name: str) -> None:
    """Their network in plain torch: attention plus a linear map, norm, ReLU, a map at the end."""
    settings = preset("tuned-gat", name)
    model: Any = settings.build(4, 3).double().eval()

    def attention(conv: GATConv, x: Tensor) -> Tensor:
        h, (j, i) = conv.lin(x), LOOPS
        of_source, of_target = ((h * a.flatten()).sum(-1) for a in (conv.att_src, conv.att_dst))
        weights = softmax(F.leaky_relu(of_source[j] + of_target[i], 0.2), i, num_nodes=6)
        return torch.zeros_like(h).index_add(0, i, weights[:, None] * h[j])

    x = X.double()
    if settings.arguments["input_projection"]:
        x = model.projection(x)
    for layer in range(settings.arguments["num_layers"]):
        h = attention(model.convs[layer], x)
        h = h + model.skips[layer](x) if model.skips else h
        norm = model.norms[layer]
        if settings.arguments["norm"] == "layer_norm":
            h = F.layer_norm(h, h.shape[1:], norm.weight, norm.bias)
        elif settings.arguments["norm"] == "batch_norm":
            h = (h - norm.module.running_mean) / (norm.module.running_var + 1e-5).sqrt()
        x = h.relu()
    torch.testing.assert_close(model(X.double(), LOOPS), model.lin(x))


def test_the_projection_comes_first_and_is_dropped_behind() -> None:
    model = GAT(4, 8, 2, 3, heads=2, input_projection=True, dropout=0.5).eval()
    assert model.convs[0].in_channels == 8 and model.in_channels == 4
    first = model.convs[0](model.projection(X), EDGES).relu()
    torch.testing.assert_close(model.embed(X, EDGES), first)
    torch.testing.assert_close(model(X, EDGES), model.convs[1](first, EDGES))
    again = GAT(**model.config)
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again.eval()(X, EDGES), model(X, EDGES))


def test_the_residual_is_a_linear_map_of_what_enters_a_hidden_layer() -> None:
    model = GAT(4, 8, 3, 3, heads=2, linear_residual=True).eval()
    assert [lin.in_channels for lin in model.skips] == [4, 8]  # the last layer makes the output
    x = (model.convs[0](X, EDGES) + model.skips[0](X)).relu()
    x = (model.convs[1](x, EDGES) + model.skips[1](x)).relu()
    torch.testing.assert_close(model(X, EDGES), model.convs[2](x, EDGES))
    torch.testing.assert_close(model.embed(X, EDGES), x)
    of_layers = X
    for layer in range(3):
        of_layers = model.inference_per_layer(layer, of_layers, EDGES, 6)
    torch.testing.assert_close(of_layers, model(X, EDGES))


def test_attention_pools_the_nodes_of_each_graph() -> None:
    model = GAT(4, 8, 2, 3, heads=2, level="graph", pool="attention").eval()
    batch = torch.tensor([0, 0, 1, 1, 1, 3])  # the third graph has no nodes
    out, x = model(X, EDGES, batch=batch), model.embed(X, EDGES)
    weights = model.gate(x).exp().squeeze(1)
    for graph in (0, 1, 3):
        of_graph = batch == graph
        pooled = (weights[of_graph, None] * x[of_graph]).sum(0) / weights[of_graph].sum()
        torch.testing.assert_close(out[graph], model.lin(pooled))
    torch.testing.assert_close(out[2], model.lin.bias)
    assert model(X, EDGES).shape == (1, 3)
    with pytest.raises(ValueError, match="pool is 'max'; expected one of 'mean', 'attention'"):
        GAT(4, 8, 2, 3, level="graph", pool="max")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [
    {"input_projection": True, "linear_residual": True},
    {"level": "graph", "pool": "attention"},
])  # fmt: skip
def test_the_options_are_one_graph_for_the_compiler(options: Any) -> None:
    torch._dynamo.reset()
    model = GAT(4, 8, 2, 3, heads=2, **options).eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for nodes, edges in ((10, 41), (13, 48), (16, 55)):
        x, edge_index = torch.randn(nodes, 4), torch.randint(nodes, (2, edges))
        torch.testing.assert_close(compiled(x, edge_index), model(x, edge_index))
    assert counter.frame_count <= 2


# --- GAT-sep and the others -----------------------------------------------------------------------


def by_hand(model: Any, x: Tensor) -> Tensor:
    """The networks of Platonov et al. in plain torch."""
    pairs = EDGES if model.kind.endswith("-sep") else LOOPS
    j, i = pairs
    x = model.input(x)
    for norm, block in zip(model.norms, model.blocks, strict=True):
        h = norm(x)
        if isinstance(block, nn.Sequential):
            x = x + block(h)
            continue
        heads = block.heads
        if model.kind.startswith("GAT"):
            h = block.lin(h)
            scores = F.leaky_relu(block.of_key(h)[j] + block.of_query(h)[i], 0.2)
            value = h.view(6, heads, -1)
        else:
            query, key, value = (
                lin(h).view(6, heads, -1) for lin in (block.query, block.key, block.value)
            )
            scores = (query[i] * key[j]).sum(-1) / math.sqrt(key.shape[-1])
        weights = softmax(scores, i, num_nodes=6)
        out = torch.zeros_like(value).index_add(0, i, weights[..., None] * value[j]).flatten(1)
        out = torch.cat([h, out], dim=1) if block.sep else out
        x = x + (block.network(out) if model.kind.startswith("GAT") else block.lin(out))
    return model.output(x)


@pytest.mark.parametrize("kind", ["GAT", "GAT-sep", "GT", "GT-sep"])
@pytest.mark.parametrize("norm", ["layer_norm", None])
def test_the_networks_are_those_written_out(kind: Any, norm: Any) -> None:
    model = ResidualAttention(4, 8, 2, 3, kind=kind, heads=2, norm=norm, feed_forward=2)
    model = model.double().eval()
    x = X.double()
    torch.testing.assert_close(model(x, EDGES), by_hand(model, x))
    torch.testing.assert_close(model(x, Edges(EDGES, 6, 6)), model(x, EDGES))
    again = ResidualAttention(**model.config).double().eval()
    again.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(again(x, EDGES), model(x, EDGES))


def test_a_node_is_kept_apart_from_its_neighbours() -> None:
    model = ResidualAttention(4, 8, 1, 3, kind="GAT-sep", heads=2)
    assert model.blocks[0].network[0].in_features == 16


@pytest.mark.parametrize(("call", "message"), [
    (lambda: preset("tuned-gat", "karate"), "there is no preset 'tuned-gat' for 'karate': it has "
     "settings for cora, citeseer, pubmed, computers, coauthor-cs, minesweeper, "
     "squirrel-filtered, chameleon-filtered, photo, coauthor-physics, wikics, amazon-ratings, "
     "roman-empire, questions"),
    (lambda: preset("gcn", "cora"),
     "name is 'gcn'; expected one of 'tuned-gat', 'gat', 'gat-sep', 'gt', 'gt-sep'"),
    (lambda: ResidualAttention(4, 8, 2, 3, kind="gat"),
     "kind is 'gat'; expected one of 'GAT', 'GAT-sep', 'GT', 'GT-sep'"),
    (lambda: ResidualAttention(4, 8, 2, 3, heads=3),
     "hidden_channels is 8, which 3 heads cannot share: give a multiple of 3"),
])  # fmt: skip
def test_what_is_not_there_is_told(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        call()
    assert str(raised.value) == message
