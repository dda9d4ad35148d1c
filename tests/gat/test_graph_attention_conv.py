"""GraphAttentionConv: any score and any normaliser on the edges of a graph."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer
from torch_geometric.nn import HeteroConv, SAGPooling, to_hetero
from torch_geometric.nn.models.basic_gnn import BasicGNN

from attn_core import (
    Additive,
    Dense,
    Edges,
    Entmax,
    General,
    Hard,
    Identity,
    Location,
    Normalizer,
    Score,
    Softmax,
    Sparsemax,
    attend,
    backend,
)
from gat import GATConv, GATv2Conv, GraphAttentionConv, TransformerConv, attention_weights
from tests.gat.conftest import EDGES, KINDS, SIMPLE

SCORES = ["additive", "concat", "cosine", "dot", "general", "scaled_dot", "separable"]
NORMALIZERS: dict[str, Any] = {
    "softmax": "softmax",
    "warm softmax": lambda: Softmax(2.0),
    "sparsemax": "sparsemax",
    "entmax": "entmax",
    "learned entmax": lambda: Entmax(nn.Parameter(torch.tensor([1.3, 1.7]))),
    "identity": "identity",
}
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
EDGE_ATTR = torch.randn(8, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def build(*arguments: Any, **options: Any) -> GraphAttentionConv:
    layer = GraphAttentionConv(*(arguments or (4, 3, 2)), **options).double()
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return layer


def named(normalizer: str) -> Any:
    made = NORMALIZERS[normalizer]
    return made() if callable(made) else made


def outcome(layer: Any, x: Any, edge_index: Any, edge_attr: Tensor | None = None) -> list[Any]:
    """Output, weights and gradients."""
    layer.zero_grad()
    given = [t.detach().clone().requires_grad_() for t in ((x,) if isinstance(x, Tensor) else x)]
    x = given[0] if isinstance(x, Tensor) else tuple(given)
    if edge_attr is not None:
        edge_attr = edge_attr.clone().requires_grad_()
        given.append(edge_attr)
    out, (_, weights) = layer(x, edge_index, edge_attr, return_attention_weights=True)
    (out * torch.arange(out.numel(), dtype=out.dtype).view_as(out).sin()).sum().backward()
    return [out, weights, *(t.grad for t in given), *(p.grad for p in layer.parameters())]


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:  # no part in the output
            assert all(t is None or not t.any() for t in (a, b))
        else:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


# --- What it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("edge_dim", [None, 2])
@pytest.mark.parametrize("concat", [True, False])
def test_gat_is_one_of_its_settings(edge_dim: int | None, concat: bool) -> None:
    layer = build(
        *(4, 3, 2),
        score="separable",
        share_weights=True,
        value_projection=False,
        bias=False,
        concat=concat,
        edge_dim=edge_dim,
    )
    theirs = GATConv(4, 3, 2, bias=False, concat=concat, edge_dim=edge_dim).double()
    parameters = dict(layer.named_parameters())
    with torch.no_grad():
        theirs.lin.weight.copy_(parameters["lin_key.weight"])
        theirs.att_src.copy_(parameters["score_key_vector"])
        theirs.att_dst.copy_(parameters["score_query_vector"])
        if edge_dim:
            theirs.lin_edge.weight.copy_(parameters["lin_edge.weight"])
            theirs.att_edge.copy_(parameters["score_key_vector"])
    edge_attr = EDGE_ATTR if edge_dim else None
    inputs = 4 if edge_dim else 3
    assert_same(
        outcome(layer, X, EDGES, edge_attr)[:inputs],
        outcome(theirs, X, EDGES, edge_attr)[:inputs],
    )


@pytest.mark.parametrize("share", [True, False])
def test_gatv2_is_one_of_its_settings(share: bool) -> None:
    layer = build(
        *(4, 3, 2),
        score="additive",
        activation="leaky_relu",
        share_weights=share,
        value_projection=False,
        edge_dim=2,
        residual=True,
    )
    theirs = GATv2Conv(4, 3, 2, share_weights=share, edge_dim=2, residual=True).double()
    renamed = {"score_vector": "att", "lin_key": "lin_l", "lin_query": "lin_r"}
    state = {}
    for name, tensor in layer.state_dict().items():
        for ours, other in renamed.items():
            name = name.replace(ours, other)
        state[name] = tensor[None] if name == "att" else tensor
    theirs.load_state_dict(state, strict=True)
    assert_same(outcome(layer, X, EDGES, EDGE_ATTR)[:4], outcome(theirs, X, EDGES, EDGE_ATTR)[:4])


def test_the_graph_transformer_is_one_of_its_settings() -> None:
    layer = build(4, 3, 2, score="scaled_dot", add_self_loops=False)
    with torch.no_grad():
        layer.bias.zero_()
    theirs = TransformerConv(4, 3, 2, root_weight=False).double()
    theirs.load_state_dict({**theirs.state_dict(), **{
        k: v for k, v in layer.state_dict().items() if k.startswith("lin_")
    }})  # fmt: skip
    assert_same(outcome(layer, X, EDGES)[:3], outcome(theirs, X, EDGES)[:3])


@pytest.mark.parametrize(
    ("score", "normalizer"), list(itertools.product(SCORES, NORMALIZERS))
)  # fmt: skip
def test_on_a_complete_graph_it_is_dense_attention(score: str, normalizer: str) -> None:
    layer = build(4, 3, 2, score=score, normalizer=named(normalizer), bias=False)
    complete = torch.cartesian_prod(torch.arange(6), torch.arange(6)).t()
    query, key, value = (
        linear(X).view(6, 2, 3) for linear in (layer.lin_query, layer.lin_key, layer.lin_value)
    )
    dense = attend(
        *(query, key, value),
        score=layer.score,
        normalizer=layer.normalizer,
        support=Dense(),
        need_weights=True,
    )
    (found,) = attention_weights(layer, X, complete)
    torch.testing.assert_close(found.to_dense(), dense.weights)
    torch.testing.assert_close(layer(X, complete), dense.output.flatten(1))


# --- On every path --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["reference", "messages"])
@pytest.mark.parametrize("edge_dim", [None, 2])
@pytest.mark.parametrize(
    ("score", "normalizer"), list(itertools.product(SCORES, NORMALIZERS))
)  # fmt: skip
def test_every_path_computes_the_same(
    score: str, normalizer: str, edge_dim: int | None, path: str
) -> None:
    layer = build(4, 3, 2, score=score, normalizer=named(normalizer), edge_dim=edge_dim)
    given = X, EDGES, *[EDGE_ATTR] * (edge_dim is not None)
    expected = outcome(layer, *given)
    if path == "messages":
        layer.register_message_forward_hook(lambda *_: None)
    with backend("reference") if path == "reference" else nullcontext():
        assert_same(outcome(layer, *given), expected)
    if normalizer != "identity":
        weights = expected[1]
        (found,) = attention_weights(layer, *given)
        totals = torch.zeros(6, 2).double().index_add(0, found.edge_index[1], weights)
        torch.testing.assert_close(totals, torch.ones(6, 2).double())


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
def test_bipartite_graphs(normalizer: str, flow: str, watched: bool) -> None:
    layer = build(
        *((4, 2), 3, 2), score="general", normalizer=normalizer, add_self_loops=False, flow=flow
    )
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    sources, targets = X, X[:3, :2]
    pairs = torch.tensor([[5, 4, 3, 0], [0, 0, 2, 2]])
    given = pairs.flip(0) if flow == "target_to_source" else pairs
    out = layer((sources, targets), given)
    assert out.shape == (3, 6)
    torch.testing.assert_close(out[1], layer.bias)  # has no in-edges
    whole = build((4, 2), 3, 2, score="general", normalizer=normalizer, add_self_loops=False)
    whole.load_state_dict(layer.state_dict())
    padded = torch.cat([targets, targets.new_zeros(3, 2)])
    torch.testing.assert_close(whole((sources, padded), pairs)[:3], out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalizer", ["softmax", "entmax"])
def test_every_kind_of_edge_index_means_the_same(kind: str, normalizer: str) -> None:
    layer = build(4, 3, 2, normalizer=normalizer)
    torch.testing.assert_close(layer(X, KINDS[kind](SIMPLE.clone())), layer(X, SIMPLE))


# --- Normalisers that other libraries have not ----------------------------------------------------


def ones(**options: Any) -> GraphAttentionConv:
    """x' = Σ α x over numbers, with the logits x_i x_j, or x_i + x_j."""
    layer = GraphAttentionConv(1, 1, bias=False, add_self_loops=False, **options)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    return layer


def test_sparsemax_forgets_distant_neighbours() -> None:
    x, edge_index = torch.tensor([[1.0], [0.8], [-1.0]]), torch.tensor([[0, 1, 2], [0, 0, 0]])
    layer = ones(score="dot", normalizer="sparsemax")
    out, (_, weights) = layer(x, edge_index, return_attention_weights=True)
    torch.testing.assert_close(weights[:, 0], torch.tensor([0.6, 0.4, 0.0]))
    torch.testing.assert_close(out[0, 0], torch.tensor(0.6 + 0.4 * 0.8))


def test_unnormalised_attention_counts_neighbours() -> None:
    x = torch.ones(4, 1)
    layer = ones(score="dot", normalizer=Identity())
    edge_index = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]])
    assert layer(x, edge_index)[:, 0].tolist() == [3, 1, 0, 0]


def test_hard_attention_takes_the_largest_score_alone() -> None:
    x, edge_index = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([[0, 1, 2, 0], [0, 0, 0, 2]])
    layer = ones(score="dot", normalizer="hard")
    out, (_, weights) = layer(x, edge_index, return_attention_weights=True)
    assert weights[:, 0].tolist() == [0, 1, 0, 1]
    assert out[:, 0].tolist() == [2, 0, 1]


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("choose", ["sample", "gumbel"])
def test_drawn_attention_returns_what_it_drew(choose: str, watched: bool) -> None:
    layer = build(4, 3, 2, score="dot", normalizer=Hard(choose), dropout=0.0)
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    out, attention = layer(X, EDGES, return_attention_weights=True)
    dense = attention.to_dense(6)  # [H, targets, sources]
    torch.testing.assert_close(dense.sum(-1), torch.ones(2, 6).double())
    value = layer.lin_value(X).view(6, 2, 3)
    expected = torch.einsum("hts,shc->thc", dense, value).flatten(1) + layer.bias
    torch.testing.assert_close(out, expected)
    draws = [layer(X, EDGES, return_attention_weights=True)[1].weights for _ in range(5)]
    assert any(not torch.equal(draw.round(), draws[0].round()) for draw in draws)


def test_the_log_probability_of_choices_is_that_of_the_softmax() -> None:
    layer = build(4, 3, 2, score="scaled_dot", normalizer=Hard("sample"), edge_dim=2)
    _, attention = layer(X, EDGES, EDGE_ATTR, return_attention_weights=True)
    log_prob, entropy = layer.log_prob(X, EDGES, attention, EDGE_ATTR)
    soft = build(4, 3, 2, score="scaled_dot", edge_dim=2)
    soft.load_state_dict(layer.state_dict())
    _, (pairs, weights) = soft(X, EDGES, EDGE_ATTR, return_attention_weights=True)
    log_weights = weights.log()
    zeros = torch.zeros(6, 2).double()
    expected = zeros.index_add(0, pairs[1], attention.weights.round() * log_weights)
    torch.testing.assert_close(log_prob, expected)
    torch.testing.assert_close(entropy, zeros.index_add(0, pairs[1], -weights * log_weights))
    log_prob.sum().backward()
    assert layer.lin_query.weight.grad is not None and layer.lin_query.weight.grad.any()
    with pytest.raises(ValueError, match=r"^normalizer is Softmax\(temperature=1.0\), which draws"):
        soft.log_prob(X, EDGES, attention, EDGE_ATTR)


def test_reinforce_learns_whom_to_attend_to() -> None:
    """Of two neighbours one has what is wanted; the choice is learned from the reward alone."""
    torch.manual_seed(0)
    x = torch.eye(3)
    edge_index = torch.tensor([[0, 1], [2, 2]])
    layer = GraphAttentionConv(
        *(3, 2), score="dot", normalizer=Hard("sample"), add_self_loops=False
    )
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(150):
        _, attention = layer(x, edge_index, return_attention_weights=True)
        reward = attention.weights[1, 0] - 0.5  # it chose node 1
        loss = -(reward * layer.log_prob(x, edge_index, attention).log_prob[2]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    chosen = [
        layer(x, edge_index, return_attention_weights=True)[1].weights[1, 0] for _ in range(50)
    ]
    assert sum(chosen) >= 48


def test_parameters_of_a_normaliser_and_of_a_score_are_learned_with_the_layer() -> None:
    alpha, vector = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.randn(2, 3))
    layer = GraphAttentionConv(4, 3, 2, score=Additive(vector, "relu"), normalizer=Entmax(alpha))
    assert layer.normalizer_alpha is alpha and layer.score_vector is vector
    layer(X.float(), EDGES).square().sum().backward()
    assert alpha.grad is not None and alpha.grad != 0
    assert vector.grad is not None and vector.grad.any()
    other = copy.deepcopy(layer).double()
    assert (other.normalizer.alpha.dtype, alpha.dtype) == (torch.float64, torch.float32)
    with torch.no_grad():
        other.normalizer_alpha.fill_(2)
    sparse = build(4, 3, 2, score=Additive(vector.double(), "relu"), normalizer="sparsemax")
    sparse.load_state_dict({k: v for k, v in other.state_dict().items()
                            if k not in ("normalizer_alpha", "score_vector")})  # fmt: skip
    torch.testing.assert_close(other(X, EDGES), sparse(X, EDGES))
    assert alpha == 1.5


# --- Extremes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax", "entmax", "hard", "identity"])
@pytest.mark.parametrize("nodes", [0, 1, 3])
@pytest.mark.parametrize("loops", [True, False])
def test_a_graph_without_edges(normalizer: str, nodes: int, loops: bool) -> None:
    layer = build(4, 3, 2, score="scaled_dot", normalizer=normalizer, add_self_loops=loops)
    x = X[:nodes].clone().requires_grad_()
    out = layer(x, torch.zeros(2, 0, dtype=torch.int64))
    out.sum().backward()
    if not loops:
        torch.testing.assert_close(out, layer.bias.expand(nodes, 6))
    elif normalizer != "identity":
        torch.testing.assert_close(out, layer.lin_value(x) + layer.bias)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
def test_a_hub_of_70_000_edges_in_half_precision(normalizer: str, dtype: torch.dtype) -> None:
    nodes = 70_000
    layer = GraphAttentionConv(2, 4, 2, normalizer=normalizer, bias=False).to(dtype)
    x = torch.randn(nodes, 2).to(dtype)
    edge_index = torch.stack([torch.arange(nodes), torch.zeros(nodes, dtype=torch.int64)])
    exact = copy.deepcopy(layer).double()
    tolerance = 8 * torch.finfo(dtype).eps
    out, expected = layer(x, edge_index)[0].double(), exact(x.double(), edge_index)[0]
    torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)
    assert out.any()


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize(
    ("score", "normalizer"), [("additive", "softmax"), ("general", "sparsemax"), ("cosine", "hard")]
)  # fmt: skip
def test_autocast_gives_its_dtype(score: str, normalizer: str, watched: bool) -> None:
    layer = GraphAttentionConv(4, 3, 2, score=score, normalizer=normalizer, residual=True)
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    with torch.autocast("cpu", torch.bfloat16):
        out, (_, weights) = layer(X.float(), EDGES, return_attention_weights=True)
    assert (out.dtype, weights.dtype) == (torch.bfloat16, torch.bfloat16)
    out.float().sum().backward()
    assert layer.lin_value.weight.grad.dtype == torch.float32


def test_the_same_call_from_the_same_seed_gives_the_same() -> None:
    layer = GraphAttentionConv(8, 8, heads=4, dropout=0.3, normalizer="entmax")
    edge_index = torch.randint(300, (2, 5000))
    runs = []
    for _ in range(3):
        torch.manual_seed(0)
        layer.zero_grad()
        x = torch.arange(2400.0).view(300, 8).sin().requires_grad_()
        out = layer(x, edge_index.clone())
        out.square().sum().backward()
        runs.append([out, x.grad, *(p.grad for p in layer.parameters())])
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0])


@pytest.mark.parametrize("watched", [False, True])
def test_weights_are_those_before_dropout(watched: bool) -> None:
    layer = build(4, 3, 2, dropout=1.0, normalizer="sparsemax")
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    out, (_, training) = layer(X, EDGES, return_attention_weights=True)
    torch.testing.assert_close(out, layer.bias.expand(6, 6))
    _, (_, evaluating) = layer.eval()(X, EDGES, return_attention_weights=True)
    torch.testing.assert_close(training, evaluating)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_sparse_features() -> None:
    layer = build(4, 3, 2, normalizer="sparsemax", residual=True)
    torch.testing.assert_close(layer(X.relu().to_sparse_csr(), EDGES), layer(X.relu(), EDGES))


# --- In torch and torch_geometric -----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"score": "general", "edge_dim": 2, "dropout": 0.5},
        {"score": "cosine", "edge_dim": 2, "add_self_loops": False},
        {"normalizer": "sparsemax", "add_self_loops": False},
        {"normalizer": "entmax", "score": "scaled_dot", "add_self_loops": False},
        {"normalizer": "hard", "add_self_loops": False},
        {"normalizer": "sparsemax"},
        {"normalizer": lambda: Softmax(0.5), "add_self_loops": False},
    ],
)
def test_graphs_of_all_sizes_need_one_recompilation_at_most(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    made = {k: v() if callable(v) else v for k, v in options.items()}
    layer = GraphAttentionConv(4, 3, 2, **made)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for i in range(6):
        nodes, edges = 10 + 3 * i, 41 + 7 * i
        given = [torch.randn(nodes, 4), torch.randint(nodes, (2, edges))]
        given += [torch.randn(edges, 2)] * ("edge_dim" in options)
        results = []
        for call in (compiled, layer):
            torch.manual_seed(0)
            layer.zero_grad()
            out = call(*given)
            out.square().sum().backward()
            results.append([out, *(p.grad for p in layer.parameters() if p.grad is not None)])
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
    assert counter.frame_count <= 2
    torch._dynamo.reset()


class Net(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first = build(4, 3, 2, **options)
        self.second = build(6, 2, 2, concat=False, **options)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
@pytest.mark.parametrize("algorithm", [AttentionExplainer, lambda: GNNExplainer(epochs=5)])
def test_explainers(algorithm: Callable[[], Any], normalizer: str) -> None:
    net = Net(score="general", normalizer=normalizer)
    pairs = EDGES[:, EDGES[0] != EDGES[1]]
    before = net(X, pairs)
    explainer = Explainer(
        net,
        algorithm(),
        explanation_type="model",
        edge_mask_type="object",
        model_config={
            "mode": "multiclass_classification",
            "task_level": "node",
            "return_type": "raw",
        },
    )
    mask = explainer(X, pairs).edge_mask
    assert mask.shape == (7,) and mask.any()
    if algorithm is AttentionExplainer:
        layers = attention_weights(net, X, pairs)
        weights = torch.cat([layer.weights[:7] for layer in layers], dim=-1)  # less self-loops
        torch.testing.assert_close(mask, weights.amax(-1))
    torch.testing.assert_close(net(X, pairs), before)


@pytest.mark.filterwarnings("ignore:There exist node types:UserWarning")
def test_heterogeneous_models() -> None:
    types = ("paper", "cites", "paper"), ("author", "writes", "paper")
    x = {"paper": X, "author": X[:3, :2]}
    edges = {types[0]: EDGES, types[1]: torch.tensor([[0, 1, 2, 2], [4, 0, 1, 1]])}
    options: dict[str, Any] = {"normalizer": "entmax", "add_self_loops": False}
    cites, writes = build(4, 3, **options), build((2, 4), 3, **options)
    net = HeteroConv({types[0]: cites, types[1]: writes})
    expected = cites(X, EDGES) + writes((x["author"], X), edges[types[1]])
    torch.testing.assert_close(net(x, edges)["paper"], expected)

    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = GraphAttentionConv((-1, -1), 3, **options)

        # Annotated as a string, it fails in torch.fx before torch 2.7, whatever the layer
        def forward(self, x, edge_index):
            return self.conv(x, edge_index)

    edges["paper", "by", "author"] = edges[types[1]].flip(0)
    out = to_hetero(Lazy(), (list(x), list(edges))).double()(x, edges)
    assert {name: y.shape for name, y in out.items()} == {"paper": (6, 3), "author": (3, 3)}


def test_in_models_of_torch_geometric() -> None:
    class Model(BasicGNN):
        supports_edge_weight = supports_norm_batch = False
        supports_edge_attr = True

        def init_conv(self, inputs: int, outputs: int, **kwargs: Any) -> nn.Module:
            return GraphAttentionConv(inputs, outputs, **kwargs)

    model = Model(4, 8, 2, 3, normalizer="sparsemax", edge_dim=2, jk="cat").double()
    first = model.convs[0](X, EDGES, EDGE_ATTR).relu()
    second = model.convs[1](first, EDGES, EDGE_ATTR).relu()
    expected = model.lin(torch.cat([first, second], -1))
    torch.testing.assert_close(model(X, EDGES, edge_attr=EDGE_ATTR), expected)
    pool = SAGPooling(4, GNN=GraphAttentionConv, normalizer="sparsemax").double()
    pooled, *_, kept, scores = pool(X, EDGES)
    assert len(kept) == 3
    torch.testing.assert_close(scores.abs(), pool.gnn(X, EDGES)[kept, 0].tanh().abs())
    torch.testing.assert_close(pooled, X[kept] * scores[:, None])


def test_a_message_that_a_subclass_replaces_counts() -> None:
    class Doubled(GraphAttentionConv):
        def message(self, value_j: Tensor, alpha: Tensor) -> Tensor:
            return 2 * super().message(value_j, alpha)

    layer, plain = Doubled(4, 3, 2, bias=False).double(), build(4, 3, 2, bias=False)
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(X, EDGES), 2 * plain(X, EDGES))
    assert plain._is_fused()


def test_lazy_layers_and_copies() -> None:
    layer = GraphAttentionConv(-1, 3, 2, edge_dim=-1, residual=True, score="concat")
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    outputs = []
    for one in copies:
        torch.manual_seed(0)
        outputs.append(one(X.float(), EDGES, EDGE_ATTR.float()))
    torch.testing.assert_close(*outputs)
    copies[1].load_state_dict(copies[0].state_dict(), strict=True)
    torch.manual_seed(1)
    copies[0].reset_parameters()
    assert not torch.equal(copies[0].score_weight, copies[1].score_weight)


def test_its_repr_says_what_it_is() -> None:
    assert repr(GraphAttentionConv(4, 3, 2, score="dot", normalizer="entmax")) == (
        "GraphAttentionConv(4, 3, heads=2, score=dot, normalizer=Entmax)"
    )


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: build(4, 3, score="best"), ValueError,
         f"score is 'best'; known ones are {', '.join(Score.named)}, or pass an attn_core.Score"),
        (lambda: build(4, 3, score="location"), ValueError,
         "score is location, which has a logit for each position, but nodes have no order: choose "
         "another score"),
        (lambda: build(4, 3, score=Location(torch.ones(1, 2, 3))), ValueError,
         "score is location, which has a logit for each position, but nodes have no order: choose "
         "another score"),
        (lambda: build(4, 3, score=3), TypeError,
         f"score is 3; known ones are {', '.join(Score.named)}, or pass an attn_core.Score"),
        (lambda: build(4, 3, normalizer=torch.softmax), TypeError,
         f"normalizer is {torch.softmax!r}; known ones are {', '.join(Normalizer.named)}, or pass "
         "an attn_core.Normalizer"),
        (lambda: build(4, 3, normalizer="max"), ValueError,
         f"normalizer is 'max'; known ones are {', '.join(Normalizer.named)}, or pass an "
         "attn_core.Normalizer"),
        (lambda: build(4, 3, score="dot", activation="tanh"), ValueError,
         "activation is 'tanh', but belongs to the scores 'additive', 'concat' and 'separable' by "
         "name; score is dot"),
        (lambda: build(4, 3, activation="sin"), ValueError,
         "activation is 'sin'; known ones are identity, leaky_relu, relu, tanh"),
        (lambda: build((4, 2), 3, share_weights=True), ValueError,
         "share_weights is True, but in_channels is (4, 2): sources and targets must have as many "
         "features to share a projection"),
        (lambda: build(4, 3, heads=0), ValueError,
         "heads is 0; an attention layer needs at least one"),
        (lambda: build(4, 3, dropout=2), ValueError,
         "dropout is 2; a probability lies between 0 and 1"),
        (lambda: build(4, 3, fill_value="median"), ValueError,
         "fill_value is 'median'; expected a number, a tensor, or one of 'add', 'max', 'mean', "
         "'min', 'mul', 'sum'"),
        (lambda: build(4, 3, score=General(torch.ones(1, 2, 2).double()))(X, EDGES), ValueError,
         "weight of General has shape [1, 2, 2]; its last dimension must be the width of the key, "
         "3"),
        (lambda: build((4, 4), 3)((X, None), EDGES), ValueError,
         "x[1] is None; GraphAttentionConv looks at both ends of an edge, so give the targets "
         "features (GATConv can do without the targets')"),
        (lambda: build(4, 3)(X.float(), EDGES), TypeError,
         "x has dtype torch.float32, but the parameters of GraphAttentionConv have torch.float64: "
         "convert one of them with .to()"),
        (lambda: build(4, 3)(X, EDGES + 2), IndexError, None),
    ],
)  # fmt: skip
def test_bad_input_is_told_what_is_wrong(call: Any, error: Any, message: str | None) -> None:
    with pytest.raises(error) as raised:
        call()
    if message is not None:
        assert str(raised.value) == message


@pytest.mark.parametrize("normalizer", ["softmax", Sparsemax()])
def test_edges_with_self_loops_of_their_own(normalizer: Any) -> None:
    layer = build(4, 3, 2, normalizer=normalizer, edge_dim=2)
    edges = Edges.from_edge_index(EDGES, 6, self_loops=True)
    torch.testing.assert_close(layer(X, edges, EDGE_ATTR), layer(X, EDGES, EDGE_ATTR))


@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax", "entmax"])
def test_a_node_whose_scores_are_all_minus_infinity_attends_to_nothing(normalizer: str) -> None:
    layer = ones(score="separable", normalizer=normalizer, edge_dim=1)
    edge_attr = torch.tensor([-math.inf, -math.inf, 0.0])
    x = torch.ones(3, 1, requires_grad=True)
    out, (_, weights) = layer(
        *(x, torch.tensor([[0, 1, 0], [2, 2, 1]]), edge_attr), return_attention_weights=True
    )
    out.sum().backward()
    assert weights[:, 0].tolist() == [0, 0, 1]
    assert torch.isfinite(x.grad).all()
