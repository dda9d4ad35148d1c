"""What the layers have in common, being drop-ins over one base."""

from __future__ import annotations

import inspect
import itertools
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csr_tensor

import gat
from attn_core import Edges, backend, compiled
from attn_core.backends import cpu
from attn_core.graph import grouping
from tests.gat.conftest import EDGES, KINDS, SIMPLE, assert_same

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
ARGUMENTS: dict[str, tuple[int, ...]] = {
    "GATConv": (4, 3, 2),
    "GATv2Conv": (4, 3, 2),
    "TransformerConv": (4, 3, 2),
    "AGNNConv": (),
}
WITH_EDGE_FEATURES = ["GATConv", "GATv2Conv", "TransformerConv"]
PATHS = ["fused", "reference", "messages"]


@pytest.fixture(params=ARGUMENTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def build(name: str, *arguments: Any, **options: Any) -> Any:
    return getattr(gat, name)(*(arguments or ARGUMENTS[name]), **options)


def both(twins: Any, name: str, **options: Any) -> tuple[Any, Any]:
    classes = getattr(gat, name), getattr(torch_geometric.nn, name)
    return twins(*ARGUMENTS[name], classes=classes, **options)


def on(path: str, layer: Any) -> Any:
    """Within this context, and on this layer, computation takes the path of that name."""
    if path == "messages":
        layer.register_message_forward_hook(lambda *_: None)
    return backend("reference") if path == "reference" else nullcontext()


# --- In theirs' place -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["__init__", "forward", "edge_update", "message"])
def test_has_the_same_arguments_and_defaults(name: str, method: str) -> None:
    ours, theirs = (
        [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]
        for function in (getattr(getattr(m, name), method) for m in (gat, torch_geometric.nn))
    )
    assert ours == theirs


CONSTRUCTIONS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    *[
        (name, (channels, 3), options)
        for name, channels in itertools.product(WITH_EDGE_FEATURES, (4, (4, 2), -1, (-1, -1)))
        for options in ({}, {"bias": False, "concat": False}, {"edge_dim": 2}, {"edge_dim": -1})
    ],
    ("GATv2Conv", (4, 3), {"residual": True, "share_weights": True}),
    ("GATv2Conv", (-1, 3), {"residual": True, "share_weights": True}),
    ("GATv2Conv", ((-1, -1), 3), {"residual": True}),
    ("TransformerConv", (4, 3), {"beta": True, "edge_dim": 2}),
    ("TransformerConv", (4, 3), {"beta": True, "root_weight": False}),
    ("TransformerConv", ((-1, -1), 3), {"beta": True, "edge_dim": -1, "concat": False}),
    ("AGNNConv", (), {}),
    ("AGNNConv", (False,), {}),
]


@pytest.mark.parametrize(("name", "arguments", "options"), CONSTRUCTIONS)
def test_is_constructed_like_theirs(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """Same seed, same parameters in the same order (that of optimiser states), same repr."""
    layers = []
    pair = bool(arguments) and isinstance(arguments[0], tuple)
    x = (torch.ones(6, 4), torch.ones(6, 2)) if pair else torch.ones(6, 4)
    heads = {} if name == "AGNNConv" else {"heads": 2}
    for module in (gat, torch_geometric.nn):
        torch.manual_seed(3)
        layer = getattr(module, name)(*arguments, **heads, **options)
        layer(x, EDGES, *[torch.ones(8, 2)] * ("edge_dim" in options))  # draws what is lazy
        layers.append(layer)
    ours, theirs = layers
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert repr(ours) == repr(theirs)
    for step in ("drawn", "reset"):
        for (key, mine), (their_key, their) in zip(
            ours.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert key == their_key
            assert torch.equal(mine, their), f"{key} {step}"
        for layer in layers:
            torch.manual_seed(4)
            layer.reset_parameters()


@pytest.mark.parametrize(
    ("name", "arguments", "options"),
    [case for case in CONSTRUCTIONS if -1 not in (*case[2].values(), *case[1][:1])
     and case[1][:1] != ((-1, -1),)],
)  # fmt: skip
def test_checkpoints_load_both_ways_and_into_lazy_layers(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    lazy = [arguments]
    if arguments and name != "AGNNConv":
        lazy.append(((-1, -1) if isinstance(arguments[0], tuple) else -1, *arguments[1:]))
    for saved, loaded in itertools.permutations((gat, torch_geometric.nn)):
        state = getattr(saved, name)(*arguments, **options).state_dict()
        for given in lazy:
            layer = getattr(loaded, name)(*given, **options)
            layer.load_state_dict(state, strict=True)
            for key, tensor in layer.state_dict().items():
                assert torch.equal(tensor, state[key])


# --- What an edge_index may be --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inference", [False, True])
def test_every_kind_of_edge_index_means_the_same(name: str, kind: str, inference: bool) -> None:
    layer = build(name)
    pairs = SIMPLE
    if kind == "Edges with self-loops" and name == "TransformerConv":  # which adds none itself
        pairs = Edges.from_edge_index(SIMPLE, size=6, self_loops=True).edge_index
    expected = layer(X, pairs)
    with torch.inference_mode() if inference else nullcontext():
        torch.testing.assert_close(layer(X, KINDS[kind](SIMPLE.clone())), expected)


@pytest.mark.parametrize("to_sparse", [to_torch_coo_tensor, to_torch_csr_tensor])
def test_sparse_matrices_agree(twins: Any, name: str, to_sparse: Any) -> None:
    ours, theirs = both(twins, name)
    matrix = to_sparse(SIMPLE.flip(0), size=6)
    assert_same(ours(X.double(), matrix), theirs(X.double(), matrix))


@pytest.mark.parametrize("sort", [None, "row", "col"])
def test_edge_index_objects_agree(twins: Any, name: str, sort: str | None) -> None:
    ours, theirs = both(twins, name)
    edge_index = EdgeIndex(EDGES, sparse_size=(6, 6))
    if sort is not None:
        edge_index = edge_index.sort_by(sort)[0]
    assert_same(ours(X.double(), edge_index), theirs(X.double(), edge_index))


def test_int32_edges_agree(twins: Any, name: str) -> None:
    ours, theirs = both(twins, name)
    assert_same(ours(X.double(), EDGES.int()), theirs(X.double(), EDGES.int()))


@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_features_agree(twins: Any, name: str, layout: torch.layout) -> None:
    ours, theirs = both(twins, name)
    x = torch.eye(6, 4, dtype=torch.float64).to_sparse(layout=layout)
    assert_same(ours(x, EDGES), theirs(x, EDGES))


@pytest.mark.parametrize("end", ["row", "col"])
def test_a_sorted_edge_index_keeps_its_order_when_self_loops_come(
    name: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch_geometric forgets that it is sorted; here nothing is sorted again."""
    edge_index = EdgeIndex(EDGES, sparse_size=(6, 6)).sort_by(end)[0].fill_cache_()
    layer, x = build(name), X.clone().requires_grad_()
    monkeypatch.setattr(grouping, "sort_pairs", lambda *_: pytest.fail("sorts again"))
    layer(x, edge_index).sum().backward()
    monkeypatch.undo()
    torch.testing.assert_close(layer(X, edge_index), layer(X, edge_index.as_tensor()))


@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
def test_the_flow_decides_which_row_names_the_sources(name: str) -> None:
    """An EdgeIndex that comes back, and the check of node numbers, follow it."""
    options = {} if name == "TransformerConv" else {"add_self_loops": False}
    layer = build(name, (4, 4), 3, flow="target_to_source", **options)
    sources, targets = X, X[:2]
    edge_index = torch.tensor([[0, 1, 1], [5, 0, 3]])  # row 1 has the sources here
    _, (pairs, weights) = layer(
        (sources, targets), EdgeIndex(edge_index), return_attention_weights=True
    )
    assert pairs.sparse_size() == (2, 6)
    assert weights[0] == 1
    for size in ((2, 6), (6, 2)):
        edges = Edges.from_edge_index(edge_index.clamp(max=1), size=size)
        fits = size == (2, 6)
        with nullcontext() if fits else pytest.raises(ValueError, match="build them with"):
            layer((sources, targets), edges)


# --- Extreme graphs and tensors -------------------------------------------------------------------


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("nodes", [0, 1, 3])
def test_a_graph_without_edges(name: str, nodes: int, loops: bool) -> None:
    options = {} if name == "TransformerConv" else {"add_self_loops": loops}
    layer = build(name, **options)
    x = torch.randn(nodes, 4, requires_grad=True)
    out = layer(x, torch.zeros(2, 0, dtype=torch.int64))
    out.sum().backward()
    expected = {
        "GATConv": lambda: layer.lin(x) if loops else torch.zeros(nodes, 6),
        "GATv2Conv": lambda: layer.lin_l(x) if loops else torch.zeros(nodes, 6),
        "TransformerConv": lambda: layer.lin_skip(x),
        "AGNNConv": lambda: x if loops else torch.zeros(nodes, 4),
    }
    torch.testing.assert_close(out, expected[name]())
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_hub_of_70_000_edges_is_as_exact_as_its_dtype(name: str, dtype: torch.dtype) -> None:
    nodes, bias = 70_000, {} if name == "AGNNConv" else {"bias": False}
    layer = build(name, *([2, 4, 2] if bias else []), **bias).to(dtype)
    x = torch.randn(nodes, 2).to(dtype).requires_grad_()
    edge_index = torch.stack([torch.arange(nodes), torch.zeros(nodes, dtype=torch.int64)])
    out = layer(x, edge_index)
    out[0].float().sum().backward()
    exact = build(name, *([2, 4, 2] if bias else []), **bias).double()
    exact.load_state_dict(layer.state_dict())
    y = x.detach().double().requires_grad_()
    expected = exact(y, edge_index)
    expected[0].sum().backward()
    eps = torch.finfo(dtype).eps
    # What the projections round is of the size of their numbers, not of the small mean of a hub
    torch.testing.assert_close(out[0].double(), expected[0], rtol=4 * eps, atol=4 * eps)
    atol = 16 * eps * float(y.grad[1:].abs().max())
    torch.testing.assert_close(x.grad[1:].double(), y.grad[1:], rtol=0, atol=atol)
    assert out[0].any()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("edge_dim", [None, 2])
def test_autocast_gives_its_dtype_on_every_path(name: str, edge_dim: int | None, path: str) -> None:
    options = {} if edge_dim is None or name == "AGNNConv" else {"edge_dim": edge_dim}
    layer = build(name, **options)
    given = (X, EDGES, *[torch.randn(8, 2)] * len(options))
    exact = layer(*given)
    with on(path, layer), torch.autocast("cpu", torch.bfloat16):
        out = layer(*given)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")
@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
def test_under_autocast_kernels_read_rows_in_16_bits(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: dict[str, list[tuple[int, ...]]] = {}
    call = compiled.call

    def noted(function: str, *arguments: Any) -> Any:
        given = [x for x in arguments if isinstance(x, Tensor) and x.dtype == torch.bfloat16]
        shapes[function] = [tuple(x.shape) for x in given]
        return call(function, *arguments)

    monkeypatch.setattr(compiled, "call", noted)
    with torch.autocast("cpu", torch.bfloat16):
        build(name)(X.clone().requires_grad_(), EDGES).sum().backward()
    rows = 1 if name == "GATConv" else 3  # of a value, or of a query and a key as well
    assert len(shapes["forward"]) == rows + 1  # and the output
    assert len(shapes["backward"]) == 2 * rows + 1  # their gradients too, and that of the output


@pytest.mark.parametrize("path", PATHS)
def test_autocast_leaves_float64_alone(name: str, path: str) -> None:
    layer = build(name).double()
    expected = layer(X.double(), EDGES)
    with on(path, layer), torch.autocast("cpu", torch.bfloat16):
        assert_same(layer(X.double(), EDGES), expected)


@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
@pytest.mark.parametrize("path", PATHS)
def test_weights_under_autocast_have_its_dtype_too(name: str, path: str) -> None:
    layer = build(name)
    with on(path, layer), torch.autocast("cpu", torch.bfloat16):
        _, (_, weights) = layer(X, EDGES, return_attention_weights=True)
    assert weights.dtype == torch.bfloat16


def test_the_same_call_from_the_same_seed_gives_the_same(name: str) -> None:
    arguments = () if name == "AGNNConv" else (8, 8)
    layer = build(name, *arguments, **({"heads": 4, "dropout": 0.3} if arguments else {}))
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


@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
def test_dropout_follows_the_seed_and_keeps_the_mean(name: str) -> None:
    option = "root_weight" if name == "TransformerConv" else "add_self_loops"
    layer = build(name, 1, 1, dropout=0.5, bias=False, **{option: False})
    values = {"GATConv": "lin", "GATv2Conv": "lin_l", "TransformerConv": "lin_value"}[name]
    torch.nn.init.ones_(getattr(layer, values).weight)
    pairs = torch.arange(2000).repeat(2, 1)  # each node sees itself alone: 0 or 2 comes out

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return layer(torch.ones(2000, 1), pairs)

    assert set(draw(0).unique().tolist()) == {0.0, 2.0}
    assert abs(draw(0).mean() - 1) < 0.1
    assert torch.equal(draw(0), draw(0))
    assert not torch.allclose(draw(0), draw(1))


@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("edge_dim", [None, 2])
def test_returned_weights_sum_to_one_before_dropout(
    name: str, edge_dim: int | None, path: str
) -> None:
    layer = build(name, edge_dim=edge_dim, dropout=0.7)
    given = (X, EDGES, *[torch.randn(8, 2)] * (edge_dim is not None))
    with on(path, layer):
        _, attention = layer(*given, return_attention_weights=True)
        _, again = layer.eval()(*given, return_attention_weights=True)
    assert isinstance(attention, gat.EdgeAttention)
    total = torch.zeros(6, 2).index_add(0, attention.edge_index[1], attention.weights)
    has_edges = torch.zeros(6, 1).index_fill(0, attention.edge_index[1], 1.0)
    torch.testing.assert_close(total, has_edges.expand(6, 2))
    torch.testing.assert_close(attention.weights, again.weights)


@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
def test_dropout_of_all_or_nothing(name: str) -> None:
    layer = build(name, dropout=1.0)
    rest = layer.lin_skip(X) if name == "TransformerConv" else layer.bias.expand(6, 6)
    torch.testing.assert_close(layer(X, EDGES), rest)
    layer.dropout = 0.0
    torch.testing.assert_close(layer(X, EDGES), layer.eval()(X, EDGES))


def test_gradients_are_those_of_finite_differences(name: str) -> None:
    options = {} if name == "AGNNConv" else {"edge_dim": 2}
    layer = build(name, **options).double()
    edge_attr = [torch.randn(8, 2, dtype=torch.float64, requires_grad=True)] * len(options)

    def call(x: Tensor, *edge_attr: Tensor) -> Tensor:
        return layer(x, EDGES, *edge_attr)

    x = X.double().requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *edge_attr), fast_mode=True)
    with backend("reference"):
        assert torch.autograd.gradgradcheck(call, (x, *edge_attr), fast_mode=True)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["fused", "messages"])
@pytest.mark.parametrize("bad", [EDGES + 2, EDGES - 1, EDGES.float(), EDGES.t()])
def test_a_bad_edge_index_is_told_apart(name: str, bad: Tensor, path: str) -> None:
    layer = build(name)
    with (
        on(path, layer),
        pytest.raises(
            (IndexError, TypeError, ValueError), match=r"^edge_index has (the node|dtype|shape) "
        ),
    ):
        layer(X, bad)


@pytest.mark.parametrize("name", ["GATv2Conv", "TransformerConv"])
def test_features_of_the_targets_cannot_be_left_out(name: str) -> None:
    layer = build(name, (4, 4), 3)
    with pytest.raises(ValueError) as raised:
        layer((X, None), EDGES)
    assert str(raised.value) == (
        f"x[1] is None; {name} looks at both ends of an edge, so give the targets features "
        "(GATConv can do without the targets')"
    )
    with pytest.raises(ValueError, match=r"^x\[0\] is None; .* give the sources features"):
        layer((None, X), EDGES)


def messages_of(name: str) -> dict[str, tuple[Any, type[Exception], str]]:
    def layer(**options: Any) -> Any:
        return build(name, **options)

    attr = torch.randn(8, 2)
    return {
        "x too wide": (
            lambda: layer()(X.repeat(1, 2), EDGES),
            ValueError,
            f"x has shape [6, 8], but {name} was built with in_channels=4: give each node 4 "
            "features, or build it for 8",
        ),
        "x of another dtype": (
            lambda: layer()(X.double(), EDGES),
            TypeError,
            f"x has dtype torch.float64, but the parameters of {name} have torch.float32: convert "
            "one of them with .to()",
        ),
        "no x": (
            lambda: layer()(None, EDGES),
            TypeError,
            "x is a NoneType; expected a tensor of features [nodes, channels], or a pair of them "
            "(sources, targets)",
        ),
        "too few features": (
            lambda: layer(edge_dim=2)(X, EDGES, attr[1:]),
            ValueError,
            f"edge_attr has shape [7, 2]; with the 8 edges of edge_index and edge_dim=2, {name} "
            "expects [8, 2], one row of features for each edge",
        ),
        "features of another dtype": (
            lambda: layer(edge_dim=2)(X, EDGES, attr.double()),
            TypeError,
            f"edge_attr has dtype torch.float64, but the parameters of {name} have torch.float32: "
            "convert one of them with .to()",
        ),
        "Edges of another size": (
            lambda: layer()(X, Edges.from_edge_index(EDGES, size=7)),
            ValueError,
            "x has 6 source and 6 target nodes, but edge_index is Edges from 7 to 7 nodes: build "
            "them with size=(6, 6)",
        ),
        "no heads": (
            lambda: build(name, 4, 3, heads=0),
            ValueError,
            "heads is 0; an attention layer needs at least one",
        ),
        "dropout above 1": (
            lambda: build(name, 4, 3, dropout=1.5),
            ValueError,
            "dropout is 1.5; a probability lies between 0 and 1",
        ),
    }


@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
@pytest.mark.parametrize("case", messages_of("GATv2Conv"))
def test_bad_input_is_told_what_is_wrong(name: str, case: str) -> None:
    call, error, message = messages_of(name)[case]
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) == message


@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
def test_edge_attr_without_edge_dim_warns_at_the_callers_line(name: str) -> None:
    layer = build(name)
    with pytest.warns(UserWarning) as caught:
        line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
        out = layer(X, EDGES, torch.ones(8, 2))
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]
    assert str(caught[0].message) == (
        f"edge_attr of shape [8, 2] is not used, because {name} was built with edge_dim=None: "
        "build it with edge_dim=2, or drop edge_attr"
    )
    torch.testing.assert_close(out, layer(X, EDGES))


@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
def test_edge_dim_without_edge_attr_attends_without_features_and_warns(name: str) -> None:
    layer = build(name, edge_dim=2)
    with pytest.warns(UserWarning) as caught:
        line = inspect.currentframe().f_lineno + 1  # type: ignore[union-attr]
        out = layer(X, EDGES)
    assert [(w.filename, w.lineno) for w in caught] == [(__file__, line)]
    assert str(caught[0].message) == (
        f"edge_attr is None, but {name} was built with edge_dim=2, and attends as if all features "
        "of edges were zero: give it edge_attr, or build it with edge_dim=None"
    )
    plain = build(name)
    plain.load_state_dict(layer.state_dict(), strict=False)  # all but the map of edge features
    torch.testing.assert_close(out, plain(X, EDGES))
    torch.testing.assert_close(out, layer(X, EDGES, torch.zeros(8, 2)))


@pytest.mark.parametrize("name", WITH_EDGE_FEATURES)
def test_features_stored_in_a_sparse_matrix_need_no_edge_attr(
    name: str, recwarn: pytest.WarningsRecorder
) -> None:
    build(name, edge_dim=2)(
        X, torch.sparse_coo_tensor(SIMPLE.flip(0), torch.ones(6, 2), (6, 6, 2)).coalesce()
    )
    assert not [w for w in recwarn if "edge_attr" in str(w.message)]
