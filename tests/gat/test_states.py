"""States of one graph, `x [B, N, F]`: each attends as it would alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gat
from attn_core import Edges

B, N, E, F, D = 3, 7, 20, 4, 3

LAYERS: dict[str, Callable[..., nn.Module]] = {
    "GATConv": gat.GATConv,
    "GATConv with residual": lambda *a, **k: gat.GATConv(*a, residual=True, **k),
    "GATConv of a mean": lambda *a, **k: gat.GATConv(*a, concat=False, fill_value="max", **k),
    "GATv2Conv": gat.GATv2Conv,
    "GATv2Conv with one map": lambda *a, **k: gat.GATv2Conv(*a, share_weights=True, **k),
    "TransformerConv": gat.TransformerConv,
    "TransformerConv with a gate": lambda *a, **k: gat.TransformerConv(*a, beta=True, **k),
    "GraphAttentionConv": lambda *a, **k: gat.GraphAttentionConv(
        *a, score="general", normalizer="sparsemax", **k
    ),
    "AGNNConv": lambda *_, **__: gat.AGNNConv(),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def layer(name: str, **options: Any) -> nn.Module:
    return LAYERS[name](F, 5, 2, **options).double()


def graph() -> Tensor:
    return torch.randint(0, N, (2, E))


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def same_as_alone(conv: nn.Module, x: Tensor, *given: Any, options: Any = None) -> None:
    """The batch equals its states one by one, with all gradients; `given` may have a batch."""
    options = options or {}

    def of(state: int | None) -> Any:
        taken = (g[state] if isinstance(g, Tensor) and g.dim() == 3 else g for g in given)
        return conv(x, *given, **options) if state is None else conv(x[state], *taken, **options)

    wanted = [x, *(g for g in given if getattr(g, "requires_grad", False)), *conv.parameters()]
    batch, alone = of(None), [of(state) for state in range(B)]
    if isinstance(batch, tuple):
        assert all(torch.equal(batch[1].edge_index, a[1].edge_index) for a in alone)
        torch.testing.assert_close(
            batch[1].weights, torch.stack([a[1].weights for a in alone]), rtol=1e-11, atol=1e-12
        )
        batch, alone = batch[0], [a[0] for a in alone]
    ours, theirs = batch, torch.stack(alone)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    factor = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * factor).sum(), wanted, allow_unused=True),
        torch.autograd.grad((theirs * factor).sum(), wanted, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["edge_index", "edges"])
@pytest.mark.parametrize("name", LAYERS)
def test_states_attend_as_they_would_alone(name: str, kind: str) -> None:
    edge_index: Any = graph()
    if kind == "edges":
        edge_index = Edges.from_edge_index(edge_index, N)
    same_as_alone(layer(name), randn(B, N, F), edge_index)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "AGNNConv"])
def test_edges_have_features_for_all_states_or_for_each(name: str, shared: bool) -> None:
    edge_attr = randn(E, D) if shared else randn(B, E, D)
    same_as_alone(layer(name, edge_dim=D), randn(B, N, F), graph(), edge_attr)


@pytest.mark.parametrize("asked", [True, torch.tensor([4, 1])])
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "AGNNConv"])
def test_weights_of_each_state(name: str, asked: Any) -> None:
    options = {"return_attention_weights": asked}
    same_as_alone(layer(name), randn(B, N, F), graph(), options=options)


def test_weights_of_agnn() -> None:
    conv, x, edge_index = gat.AGNNConv().double(), randn(2, B, N, F), graph()
    found = conv.attention(x, edge_index)
    for i in range(2):
        for j in range(B):
            alone = conv.attention(x[i, j], edge_index)
            torch.testing.assert_close(found.weights[i, j], alone.weights)


@pytest.mark.parametrize("name", LAYERS)
def test_states_are_the_union_of_as_many_graphs(name: str) -> None:
    conv, x, edge_index = layer(name), randn(B, N, F), graph()
    union = torch.cat([edge_index + N * state for state in range(B)], dim=1)
    out = conv(x, edge_index)  # in one piece: view would raise
    torch.testing.assert_close(out.view(B * N, -1), conv(x.flatten(0, 1), union))


def test_bipartite_states() -> None:
    conv = gat.GATv2Conv((F, 6), 5, heads=2, add_self_loops=False).double()
    sources, targets = randn(B, N, F), randn(B, 3, 6)
    edge_index = torch.stack([torch.randint(0, N, (E,)), torch.randint(0, 3, (E,))])
    out = conv((sources, targets), edge_index)
    for state in range(B):
        torch.testing.assert_close(out[state], conv((sources[state], targets[state]), edge_index))
    one = conv((sources[0], targets), edge_index)  # the same sources for all
    torch.testing.assert_close(one[1], conv((sources[0], targets[1]), edge_index))


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "GraphAttentionConv", "TransformerConv"])
def test_the_first_sources_are_the_targets_of_a_block(name: str) -> None:
    edge_index = torch.stack([torch.randint(0, N, (E,)), torch.randint(0, 3, (E,))])
    same_as_alone(layer(name), randn(B, N, F), Edges.from_edge_index(edge_index, (N, 3)))


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv", "AGNNConv"])
def test_any_number_of_batch_dimensions_compiled_too(name: str) -> None:
    conv, x, edge_index = layer(name), randn(2, B, N, F), graph()
    out = torch.compile(conv, fullgraph=True)(x, edge_index)
    torch.testing.assert_close(out, conv(x, edge_index))
    torch.testing.assert_close(out[1, 2], conv(x[1, 2], edge_index))


def test_each_map_of_a_layer_is_computed_once() -> None:
    conv, calls = gat.TransformerConv(4, 4), []
    conv.lin_skip.register_forward_hook(lambda *_: calls.append(1))
    conv(torch.randn(B, N, 4), graph())
    conv(torch.randn(N, 4), graph())
    assert len(calls) == 2


def test_dropout_differs_from_state_to_state() -> None:
    conv, edge_index = gat.GATConv(F, 5, dropout=0.5).double(), graph()
    conv.value_dropout = 0.5
    x = randn(N, F).detach().expand(B, N, F)
    out = conv(x, edge_index)
    assert not torch.equal(out[0], out[1])
    conv.eval()
    torch.testing.assert_close(conv(x, edge_index)[0], conv(x[0], edge_index))


def test_the_weights_of_a_state_are_used_as_those_of_a_graph() -> None:
    conv, x, edge_index = layer("GATConv"), randn(B, N, F), graph()
    _, attention = conv(x, edge_index, return_attention_weights=True)
    dense = attention.to_dense(N)
    assert dense.shape == (B, 2, N, N)
    first = attention._replace(weights=attention.weights[0])
    torch.testing.assert_close(dense[0], first.to_dense(N))
    with pytest.raises(ValueError, match=r"weights have shape \[3, .*attention.weights\[0\]"):
        attention.top_k(0)


def test_what_takes_one_state_says_so() -> None:
    x, edge_index = torch.randn(B, N, F), graph()
    conv = gat.GATConv(F, 5)
    conv.register_message_forward_pre_hook(lambda *_: None)
    hooked = r"x has the batch dimensions \[3\], but GATConv goes through message passing"
    with pytest.raises(ValueError, match=hooked):
        conv(x, edge_index)
    with pytest.raises(ValueError, match="GATv2Conv goes through message passing"):
        gat.GATv2Conv(F, 5, flow="target_to_source")(x, edge_index)
    with pytest.raises(ValueError, match="AGNNConv goes through message passing"):
        gat.AGNNConv(aggr="max")(x, edge_index)
    with pytest.raises(TypeError, match="a sparse matrix has no place for the weights of each"):
        pairs = torch.sparse_coo_tensor(edge_index, torch.ones(E), (N, N)).coalesce()
        gat.GATConv(F, 5)(x, pairs, return_attention_weights=True)
    with pytest.raises(ValueError, match=r"expects \[20, 3\].*, or \[3, 20, 3\]"):
        gat.GATConv(F, 5, edge_dim=3)(x, edge_index, torch.randn(2, E, 3))
    with pytest.raises(ValueError, match=r"SuperGATConv expects \[nodes, channels\]"):
        gat.SuperGATConv(F, 5)(x, edge_index)
