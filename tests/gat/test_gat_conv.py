"""GATConv itself: values worked out by hand, kinds of edge_index, extreme graphs, bad input."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

from attn_core import Edges, backend
from gat import EdgeAttention, GATConv
from tests.gat.conftest import KINDS, SIMPLE, sparse_tensor

# A duplicate (0 → 1), a self-loop (2), a node without in-edges (4) and an isolated one (5)
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGE_ATTR = torch.randn(7, 2, generator=torch.Generator().manual_seed(2))


def scalar_layer(**options: Any) -> GATConv:
    """x' = Σ α x with α = softmax LeakyReLU(x_i + x_j + e_ij): all parameters are 1."""
    layer = GATConv(1, 1, bias=False, **options)
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


def test_features_of_an_edge_add_to_its_score() -> None:
    x, edge_index = torch.zeros(3, 1), torch.tensor([[1, 2, 0], [0, 0, 0]])
    edge_attr = torch.tensor([math.log(2), math.log(6), 9.0])
    _, (_, weights) = scalar_layer(edge_dim=1)(
        x, edge_index, edge_attr, return_attention_weights=True
    )
    # The loop (0, 0) is replaced by one with the mean of ln 2 and ln 6, which is ln √12
    expected = torch.tensor([2, 6, math.sqrt(12)]) / (8 + math.sqrt(12))
    torch.testing.assert_close(weights[:3, 0], expected)


def test_a_target_that_no_source_shares_a_number_with_gets_no_self_loop() -> None:
    """Also where its edges' features are to be reduced, which torch_geometric cannot."""
    conv = scalar_layer(edge_dim=1)
    x = torch.ones(1, 1), torch.zeros(2, 1)
    _, (pairs, weights) = conv(
        x, torch.tensor([[0], [1]]), torch.ones(1, 1), return_attention_weights=True
    )
    assert pairs.tolist() == [[0, 0], [1, 0]]
    assert weights.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("edge_dim", [None, 2])
def test_weights_sum_to_one_before_dropout(training: bool, edge_dim: int | None) -> None:
    layer = GATConv(4, 3, heads=2, dropout=0.7, edge_dim=edge_dim).train(training)
    edge_attr = None if edge_dim is None else EDGE_ATTR
    _, attention = layer(X, EDGES, edge_attr, return_attention_weights=True)
    assert isinstance(attention, EdgeAttention)
    total = torch.zeros(6, 2).index_add(0, attention.edge_index[1], attention.weights)
    torch.testing.assert_close(total, torch.ones(6, 2))
    layer.eval()
    _, again = layer(X, EDGES, edge_attr, return_attention_weights=True)
    torch.testing.assert_close(attention.weights, again.weights)


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    layer = GATConv(1, 1, dropout=0.5, add_self_loops=False, bias=False)
    torch.nn.init.ones_(layer.lin.weight)
    pairs = torch.arange(2000).repeat(2, 1)  # each node sees itself alone: 0 or 2 comes out
    out = layer(torch.ones(2000, 1), pairs)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert abs(out.mean() - 1) < 0.1


@pytest.mark.parametrize("p", [1.0, 0.0])
def test_dropout_of_all_or_nothing(p: float) -> None:
    layer = GATConv(4, 3, dropout=p)
    expected = layer.bias.expand(6, 3) if p else layer.eval()(X, EDGES)
    torch.testing.assert_close(layer.train()(X, EDGES), expected)


# --- What an edge_index may be --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inference", [False, True])
def test_every_kind_of_edge_index_means_the_same(kind: str, inference: bool) -> None:
    layer = GATConv(4, 3, heads=2)
    expected = layer(X, SIMPLE)
    with torch.inference_mode() if inference else nullcontext():
        torch.testing.assert_close(layer(X, KINDS[kind](SIMPLE.clone())), expected)


def test_a_sparse_tensor_comes_back_with_the_weights_as_values() -> None:
    layer = GATConv(4, 3, heads=2)
    _, attention = layer(X, sparse_tensor(SIMPLE), return_attention_weights=True)
    _, (pairs, weights) = layer(X, SIMPLE, return_attention_weights=True)
    order = (pairs[1] * 6 + pairs[0]).argsort()
    assert torch.equal(attention.row, pairs[1][order])
    assert torch.equal(attention.col, pairs[0][order])
    torch.testing.assert_close(attention.value, weights[order])


@pytest.mark.parametrize(
    "to_sparse",
    [to_torch_coo_tensor, to_torch_csr_tensor, sparse_tensor],
)
@pytest.mark.parametrize("loops", [True, False])
def test_feature_vectors_in_a_matrix_are_edge_features(to_sparse: Any, loops: bool) -> None:
    order = (SIMPLE[1] * 6 + SIMPLE[0]).argsort()
    pairs, edge_attr = SIMPLE[:, order], EDGE_ATTR[order]
    layer = GATConv(4, 3, heads=2, edge_dim=2, add_self_loops=loops)
    if to_sparse is sparse_tensor:
        matrix = sparse_tensor(pairs)
        matrix.value = edge_attr
    else:
        matrix = to_sparse(pairs.flip(0), edge_attr, size=6)
    torch.testing.assert_close(layer(X, matrix), layer(X, pairs, edge_attr))


def test_edges_edited_in_place_between_calls_count() -> None:
    layer, edge_index = GATConv(4, 3), EDGES.clone()
    before = layer(X, edge_index)
    edge_index[0, 0] = 3
    after = layer(X, edge_index)
    torch.testing.assert_close(after, layer(X, edge_index.clone()))
    assert not torch.allclose(after, before)
    edge_index[0, 0] = 6
    with pytest.raises(IndexError, match="node 6"):
        layer(X, edge_index)


def test_an_edit_before_backward_is_refused() -> None:
    layer, edge_index = GATConv(4, 3), EDGES.clone()
    out = layer(X, edge_index)
    edge_index[0, 0] = 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_backward_does_not_need_the_edges_to_live_on() -> None:
    layer = GATConv(4, 3, heads=2)
    grads = []
    for keep in (True, False):
        layer.zero_grad()
        edges = Edges.from_edge_index(EDGES, size=6, self_loops=True)
        out = layer(X, edges)
        if not keep:
            del edges
        out.square().sum().backward()
        grads.append(layer.lin.weight.grad.clone())
    torch.testing.assert_close(*grads)


# --- Extreme graphs and tensors -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_hub_of_100_000_edges_is_as_exact_as_its_dtype(dtype: torch.dtype) -> None:
    nodes = 100_000
    layer = GATConv(2, 4, heads=2, add_self_loops=False).to(dtype)
    x = torch.randn(nodes, 2).to(dtype)
    edge_index = torch.stack([torch.arange(nodes), torch.zeros(nodes, dtype=torch.int64)])
    x.requires_grad_()
    out, (_, weights) = layer(x, edge_index, return_attention_weights=True)
    out[0].float().sum().backward()
    exact = GATConv(2, 4, heads=2, add_self_loops=False).double()
    exact.load_state_dict(layer.state_dict())
    y = x.detach().double().requires_grad_()
    expected, (_, expected_weights) = exact(y, edge_index, return_attention_weights=True)
    expected[0].sum().backward()
    eps = torch.finfo(dtype).eps
    # What the projections round is of the size of their numbers, not of the small mean of a hub
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2 * eps)
    torch.testing.assert_close(
        weights.double(), expected_weights, rtol=16 * eps, atol=torch.finfo(dtype).tiny
    )
    atol = 8 * eps * float(y.grad.abs().max())
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=0, atol=atol)


def test_a_node_without_edges_gets_the_bias_alone() -> None:
    layer = GATConv(4, 3, add_self_loops=False)
    torch.nn.init.normal_(layer.bias)
    x = X.clone().requires_grad_()
    out = layer(x, EDGES)
    for node in (4, 5):
        assert torch.equal(out[node], layer.bias)
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert not x.grad[5].any()


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("edge_dim", [None, 2])
@pytest.mark.parametrize("nodes", [0, 1, 3])
def test_a_graph_without_edges(nodes: int, edge_dim: int | None, loops: bool) -> None:
    layer = GATConv(4, 3, heads=2, edge_dim=edge_dim, add_self_loops=loops)
    x = torch.randn(nodes, 4, requires_grad=True)
    edge_attr = None if edge_dim is None else torch.zeros(0, 2)
    edge_index = torch.zeros(2, 0, dtype=torch.int64)
    out, (pairs, weights) = layer(x, edge_index, edge_attr, return_attention_weights=True)
    out.sum().backward()
    assert pairs.shape == (2, nodes if loops else 0)
    assert weights.shape == (nodes if loops else 0, 2)
    torch.testing.assert_close(out, layer.lin(x) if loops else torch.zeros(nodes, 6))
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("edge_dim", [None, 2])
def test_the_same_call_from_the_same_seed_gives_the_same(edge_dim: int | None) -> None:
    layer = GATConv(8, 8, heads=4, dropout=0.3, edge_dim=edge_dim)
    edge_index = torch.randint(300, (2, 5000))
    edge_attr = None if edge_dim is None else torch.randn(5000, 2)
    runs = []
    for _ in range(3):
        torch.manual_seed(0)
        layer.zero_grad()
        x = torch.arange(2400.0).view(300, 8).sin().requires_grad_()
        out = layer(x, edge_index.clone(), edge_attr)
        out.square().sum().backward()
        runs.append([out, x.grad, *(p.grad for p in layer.parameters())])
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0])


def test_calls_from_many_threads_do_not_disturb_each_other() -> None:
    layer = GATConv(4, 3, heads=2)
    graphs = [torch.randint(6, (2, 50)) for _ in range(8)]
    expected = [layer(X, graph) for graph in graphs]

    def call(turn: int) -> bool:
        graph = graphs[turn % 8] if turn % 2 else graphs[turn % 8].clone()
        return torch.allclose(layer(X, graph), expected[turn % 8])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(call, range(64)))


def test_a_view_of_features_is_as_good_as_a_copy() -> None:
    layer = GATConv(4, 3, heads=2)
    wide = torch.randn(4, 12).t()[::2]  # [6, 4], no stride is 1 or contiguous
    torch.testing.assert_close(layer(wide, EDGES), layer(wide.contiguous(), EDGES))


@pytest.mark.parametrize("path", ["fused", "reference", "messages"])
def test_a_node_whose_scores_are_all_minus_infinity_attends_to_nothing(path: str) -> None:
    layer, x = scalar_layer(edge_dim=1, add_self_loops=False), X[:, :1].clone().requires_grad_()
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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Any) -> None:
    layer = GATConv(4, 3)
    expected = layer(X, EDGES)
    with mode():
        out = layer(X, EDGES)
        fresh = layer(X, EDGES.clone())  # under inference_mode, a tensor without a version
    assert not out.requires_grad
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(fresh, expected)
    layer(X, EDGES).sum().backward()  # what was built without gradients serves with them
    assert layer.lin.weight.grad.any()


def test_frozen_parts_get_no_gradient() -> None:
    layer = GATConv(4, 3)
    layer.lin.requires_grad_(False)
    layer(X, EDGES).sum().backward()
    assert layer.lin.weight.grad is None
    assert layer.att_src.grad is not None


def test_gradients_are_those_of_finite_differences() -> None:
    layer = GATConv(4, 2, heads=2, edge_dim=2, residual=True).double()
    x, edge_attr = X.double().requires_grad_(), EDGE_ATTR.double().requires_grad_()

    def call(x: Tensor, edge_attr: Tensor) -> tuple[Tensor, Tensor]:
        out, (_, weights) = layer(x, EDGES, edge_attr, return_attention_weights=True)
        return out, weights

    assert torch.autograd.gradcheck(call, (x, edge_attr), fast_mode=True)
    with backend("reference"):
        assert torch.autograd.gradgradcheck(call, (x, edge_attr), fast_mode=True)


def test_second_derivatives() -> None:
    layer, x = GATConv(4, 3).double(), X.double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: layer(x, EDGES), x)


# --- Bad input ------------------------------------------------------------------------------------

BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "node too large": (
        lambda: GATConv(4, 3)(X, torch.tensor([[0, 6], [1, 2]])),
        IndexError,
        "edge_index has the node 6 in row 0 (sources), but there are only 6 of them (0 to 5): give "
        "x a row for each node, or drop the edge",
    ),
    "target too large": (
        lambda: GATConv((4, 4), 3)((X, X[:2]), torch.tensor([[5], [2]])),
        IndexError,
        "edge_index has the node 2 in row 1 (targets), but there are only 2 of them (0 to 1): give "
        "x a row for each node, or drop the edge",
    ),
    "negative node": (
        lambda: GATConv(4, 3)(X, torch.tensor([[0], [-1]])),
        IndexError,
        "edge_index has the node -1 in row 1 (targets); nodes are numbered from 0, a negative "
        "number names none",
    ),
    "edge_index of floats": (
        lambda: GATConv(4, 3)(X, EDGES.float()),
        TypeError,
        "edge_index has dtype torch.float32; expected node numbers as torch.int64: convert it with "
        ".long()",
    ),
    "edge_index transposed": (
        lambda: GATConv(4, 3)(X, EDGES.t()),
        ValueError,
        "edge_index has shape [7, 2]; expected [2, E], sources in row 0 and targets in row 1: pass "
        "edge_index.t()",
    ),
    "edge_index transposed, with features": (
        lambda: GATConv(4, 3, edge_dim=2)(X, EDGES.t(), EDGE_ATTR),
        ValueError,
        "edge_index has shape [7, 2]; expected [2, E], sources in row 0 and targets in row 1: pass "
        "edge_index.t()",
    ),
    "edge_index of one dimension, with features": (
        lambda: GATConv(4, 3, edge_dim=2)(X, EDGES[0], EDGE_ATTR),
        ValueError,
        "edge_index has shape [7]; expected [2, E], sources in row 0 and targets in row 1",
    ),
    "edge_index is a list": (
        lambda: GATConv(4, 3)(X, EDGES.tolist()),
        TypeError,
        "edge_index is a list; expected an int64 tensor [2, E], a sparse matrix or Edges",
    ),
    "edge_index elsewhere": (
        lambda: GATConv(4, 3)(X, EDGES.to("meta")),
        ValueError,
        "edge_index is on meta, but x is on cpu: move one of them with .to()",
    ),
    "edge_index elsewhere, messages passed": (
        lambda: GATConv(4, 3, aggr="max")(X, EDGES.to("meta")),
        ValueError,
        "edge_index is on meta, but x is on cpu: move one of them with .to()",
    ),
    "x elsewhere": (
        lambda: GATConv(4, 3).to("meta")(X.to("meta"), EDGES),
        ValueError,
        "edge_index is on cpu, but x is on meta: move one of them with .to()",
    ),
    "x too wide": (
        lambda: GATConv(3, 3)(X, EDGES),
        ValueError,
        "x has shape [6, 4], but GATConv was built with in_channels=3: give each node 3 features, "
        "or build it for 4",
    ),
    "targets too wide": (
        lambda: GATConv((4, 3), 3)((X, X), EDGES),
        ValueError,
        "x[1] has shape [6, 4], but GATConv was built with in_channels=3: give each node 3 "
        "features, or build it for 4",
    ),
    "x too wide, once the width is known": (
        lambda: [layer := GATConv(-1, 3), layer(X, EDGES), layer(X[:, :3], EDGES)],
        ValueError,
        "x has shape [6, 3], but GATConv was built with in_channels=4: give each node 4 features, "
        "or build it for 3",
    ),
    "x of one dimension": (
        lambda: GATConv(4, 3)(X[0], EDGES),
        ValueError,
        "x has shape [4]; GATConv expects [nodes, channels], one row of features for each node "
        "(graphs of a batch are joined into one; states of one graph are [batch, nodes, channels])",
    ),
    "x of integers": (
        lambda: GATConv(4, 3)(X.long(), EDGES),
        TypeError,
        "x has dtype torch.int64; convert it with .float()",
    ),
    "size of the targets": (
        lambda: GATConv((4, 4), 3)((X, X[:5]), EDGES.clamp(max=4), size=(6, 4)),
        ValueError,
        "size is (6, 4), but x has 6 source and 5 target nodes: leave size out, or give x a row "
        "for each node",
    ),
    "size of the sources": (
        lambda: GATConv((4, 4), 3)((X, None), EDGES, size=(7, 4)),
        ValueError,
        "size is (7, 4), but x has 6 source and 4 target nodes: leave size out, or give x a row "
        "for each node",
    ),
    "Edges of another size": (
        lambda: GATConv(4, 3)(X, Edges.from_edge_index(EDGES, size=7)),
        ValueError,
        "x has 6 source and 6 target nodes, but edge_index is Edges from 7 to 7 nodes: build them "
        "with size=(6, 6)",
    ),
    "too few features": (
        lambda: GATConv(4, 3, edge_dim=2)(X, EDGES, EDGE_ATTR[1:]),
        ValueError,
        "edge_attr has shape [6, 2]; with the 7 edges of edge_index and edge_dim=2, GATConv "
        "expects [7, 2], one row of features for each edge",
    ),
    "features too wide": (
        lambda: GATConv(4, 3, edge_dim=1)(X, EDGES, EDGE_ATTR),
        ValueError,
        "edge_attr has shape [7, 2]; with the 7 edges of edge_index and edge_dim=1, GATConv "
        "expects [7, 1], one row of features for each edge",
    ),
    "features of three dimensions": (
        lambda: GATConv(4, 3, edge_dim=2)(X, EDGES, EDGE_ATTR[:, None]),
        ValueError,
        "edge_attr has shape [7, 1, 2]; with the 7 edges of edge_index and edge_dim=2, GATConv "
        "expects [7, 2], one row of features for each edge",
    ),
    "dropout above 1": (
        lambda: GATConv(4, 3, dropout=1.5),
        ValueError,
        "dropout is 1.5; a probability lies between 0 and 1",
    ),
    "dropout below 0": (
        lambda: GATConv(4, 3, dropout=-0.1),
        ValueError,
        "dropout is -0.1; a probability lies between 0 and 1",
    ),
    "no heads": (
        lambda: GATConv(4, 3, heads=0),
        ValueError,
        "heads is 0; an attention layer needs at least one",
    ),
    "a half head": (
        lambda: GATConv(4, 3, heads=1.5),  # type: ignore[arg-type]
        TypeError,
        "heads is 1.5; expected a whole number, at least 1",
    ),
    "nothing comes out": (
        lambda: GATConv(4, 0),
        ValueError,
        "out_channels is 0; an attention layer needs at least one",
    ),
    "an unknown way to fill": (
        lambda: GATConv(4, 3, edge_dim=2, fill_value="median"),
        ValueError,
        "fill_value is 'median'; expected a number, a tensor, or one of 'add', 'max', 'mean', "
        "'min', 'mul', 'sum'",
    ),
    "no x": (
        lambda: GATConv(4, 3)(None, EDGES),  # type: ignore[arg-type]
        TypeError,
        "x is a NoneType; expected a tensor of features [nodes, channels], or a pair of them "
        "(sources, targets)",
    ),
    "x of another dtype": (
        lambda: GATConv(4, 3)(X.double(), EDGES),
        TypeError,
        "x has dtype torch.float64, but the parameters of GATConv have torch.float32: convert one "
        "of them with .to()",
    ),
    "one size": (
        lambda: GATConv(4, 3)(X, EDGES, size=(6,)),  # type: ignore[arg-type]
        ValueError,
        "size is (6,); expected a pair (number of sources, number of targets)",
    ),
    "features on another device": (
        lambda: GATConv(4, 3, edge_dim=2)(X, EDGES, EDGE_ATTR.to("meta")),
        ValueError,
        "edge_attr is on meta, but x is on cpu: move one of them with .to()",
    ),
    "a width that is no integer": (
        lambda: GATConv(4.0, 3),  # type: ignore[arg-type]
        ValueError,
        "in_channels is 4.0; expected the features per node, or a pair of them (sources, targets)",
    ),
    "three widths": (
        lambda: GATConv((4, 4, 4), 3),  # type: ignore[arg-type]
        ValueError,
        "in_channels is (4, 4, 4); expected the features per node, or a pair of them (sources, "
        "targets)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_what_is_wrong(case: str) -> None:
    call, error, message = BAD[case]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize("hooked", [False, True])
def test_edge_attr_without_edge_dim_warns_at_the_callers_line(hooked: bool) -> None:
    layer = GATConv(4, 3)
    expected = layer(X, EDGES)
    if hooked:
        layer.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning) as caught:
        line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
        out = layer(X, EDGES, EDGE_ATTR)
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]
    assert str(caught[0].message) == (
        "edge_attr of shape [7, 2] is not used, because GATConv was built with edge_dim=None: "
        "build it with edge_dim=2, or drop edge_attr"
    )
    torch.testing.assert_close(out, expected)


def test_stored_values_that_are_not_used_do_not_warn() -> None:
    layer, matrix = GATConv(4, 3), to_torch_coo_tensor(SIMPLE.flip(0), torch.randn(6), size=6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        out = layer(X, matrix)
    torch.testing.assert_close(out, layer(X, SIMPLE))


def test_no_fill_value_stands_for_ones(twins: Any) -> None:
    ours, theirs = twins(4, 3, edge_dim=2, fill_value=None)
    given = X.double(), EDGES, EDGE_ATTR.double()
    torch.testing.assert_close(ours(*given), theirs(*given))


def test_an_edge_index_of_inference_mode_is_read_once_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from attn_core.supports.edges import Edges

    read, original = [], Edges._read
    monkeypatch.setattr(Edges, "_read", lambda *a: (read.append(1), original(*a))[1])
    layer = GATConv(4, 3)
    with torch.inference_mode():
        given = EDGES.clone()
        out = layer(X, given)
    assert len(read) == 1
    torch.testing.assert_close(out, layer(X, EDGES).detach())
