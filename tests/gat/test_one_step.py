"""A layer's steps behind its linear maps in one: to the result of the single ones, or not."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gat
from attn_core import Edges
from attn_core.backends import cpu
from attn_core.ops import edge_layer

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")
LAYERS = "GATConv", "GATv2Conv", "TransformerConv"
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "averaged": {"concat": False},
    "edge features": {"edge_dim": 3},
    "dropout": {"dropout": 0.5},
    "edge features, dropout": {"edge_dim": 3, "dropout": 0.5},
    "no bias": {"bias": False},
    "no bias, averaged": {"bias": False, "concat": False},
    "residual": {"residual": True},
    "residual, averaged": {"residual": True, "concat": False, "dropout": 0.3},
}
NODES, EDGES = 30, 90


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each call of a layer, whether one step served it."""
    served: list[bool] = []
    original = edge_layer.attend

    def attend(*given: Any, **more: Any) -> Tensor | None:
        out = original(*given, **more)
        served.append(out is not None)
        return out

    monkeypatch.setattr(edge_layer, "attend", attend)
    return served


def layer_of(name: str, options: str, dtype: torch.dtype = torch.float64) -> Any:
    given = dict(OPTIONS[options])
    if name == "TransformerConv" and given.pop("residual", False):
        given["root_weight"] = False
    return getattr(gat, name)(6, 4, heads=3, **given).to(dtype)


def inputs(options: str, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    given = {"x": torch.randn(NODES, 6, dtype=dtype), "edge_index": torch.randint(25, (2, EDGES))}
    if "edge" in options:
        given["edge_attr"] = torch.randn(EDGES, 3, dtype=dtype)
    return given


def run(layer: Any, given: dict[str, Any]) -> list[Tensor]:
    """The output, and all gradients."""
    torch.manual_seed(1)
    leaves = {k: v.clone().requires_grad_() for k, v in given.items() if k != "edge_index"}
    out = layer(**{**given, **leaves})
    everything = [*leaves.values(), *layer.parameters()]
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    found = torch.autograd.grad((out * weights).sum(), everything, materialize_grads=True)
    return [out, *found]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_is_the_single_steps(
    name: str, options: str, steps: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, given = layer_of(name, options), inputs(options)
    found = run(layer, given)
    torch.manual_seed(1)
    with torch.no_grad():
        assert torch.equal(layer(**given), found[0])
    assert steps == [True, True]
    monkeypatch.setattr(edge_layer, "attend", lambda *_, **__: None)
    torch.testing.assert_close(found, run(layer, given), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("features", "channels", "heads", "nodes"),
    [(1, 4, 1, 7), (3, 8, 4, 97), (7, 12, 3, 130), (13, 4, 9, 1), (32, 8, 4, 50), (33, 20, 1, 1029),
     (256, 4, 2, 40), (257, 4, 2, 40), (130, 12, 2, 2500)],
)  # fmt: skip
@pytest.mark.parametrize("name", LAYERS)
def test_maps_of_any_size(
    name: str,
    features: int,
    channels: int,
    heads: int,
    nodes: int,
    steps: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = getattr(gat, name)(features, channels, heads=heads).double()
    x = torch.randn(nodes, features, dtype=torch.float64)
    given = {"x": x, "edge_index": torch.randint(nodes, (2, 3 * nodes))}
    found = run(layer, given)
    single = run(copy.deepcopy(layer).float(), {**given, "x": x.float()})
    assert steps == [True, True]
    monkeypatch.setattr(edge_layer, "attend", lambda *_, **__: None)
    expected = run(layer, given)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for one, true in zip(single, expected, strict=True):
        assert (one - true).abs().max() <= 1e-5 * max(1, true.abs().max())


@pytest.mark.parametrize("sizes", [(9, 4), (1100, 2100), (2100, 1), (1, 1030)])
@pytest.mark.parametrize("options", ["plain", "residual, averaged"])
@pytest.mark.parametrize("name", ["GATv2Conv", "TransformerConv"])
def test_maps_of_two_sides(
    name: str,
    options: str,
    sizes: tuple[int, int],
    steps: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = dict(OPTIONS[options])
    if name == "TransformerConv":
        given.pop("residual", None)
    layer = getattr(gat, name)((6, 5), 4, heads=3, **given).double()
    sides = [
        torch.randn(n, f, dtype=torch.float64, requires_grad=True)
        for n, f in zip(sizes, (6, 5), strict=True)
    ]
    edge_index = torch.stack([torch.randint(n, (20,)) for n in sizes])

    def everything() -> list[Tensor]:
        torch.manual_seed(1)
        out = layer(tuple(sides), edge_index)
        grads = torch.autograd.grad(out.square().sum(), [*sides, *layer.parameters()])
        return [out, *grads]

    found = everything()
    assert steps == [True]
    monkeypatch.setattr(edge_layer, "attend", lambda *_, **__: None)
    torch.testing.assert_close(found, everything(), rtol=1e-10, atol=1e-12)


def test_a_map_that_serves_both_sides(steps: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = gat.GATv2Conv(6, 4, heads=3, share_weights=True).double()
    given = inputs("plain")
    found = run(layer, given)
    assert steps == [True]
    monkeypatch.setattr(edge_layer, "attend", lambda *_, **__: None)
    torch.testing.assert_close(found, run(layer, given), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("where", ["forward", "forward pre", "full backward", "global", "method"])
@pytest.mark.parametrize("name", LAYERS)
def test_who_watches_a_map_sees_it(name: str, where: str) -> None:
    layer, given, seen = layer_of(name, "plain"), inputs("plain"), []
    linear = {"GATConv": "lin", "GATv2Conv": "lin_l", "TransformerConv": "lin_value"}[name]
    linear = getattr(layer, linear)

    def hook(module: Any, *_: Any) -> None:
        if module is linear:
            seen.append(where)

    if where == "method":
        original = linear.forward
        linear.forward = lambda x: seen.append(where) or original(x)
    elif where == "global":
        handle = torch.nn.modules.module.register_module_forward_hook(hook)
    else:
        getattr(linear, f"register_{where.replace(' ', '_')}_hook")(hook)
    try:
        run(layer, given)
    finally:
        if where == "global":
            handle.remove()
    assert seen == [where]


@pytest.mark.parametrize("name", LAYERS)
def test_the_same_bits_again_and_for_any_number_of_threads(name: str) -> None:
    layer = getattr(gat, name)(8, 8, heads=4, dropout=0.3)
    x, edge_index = torch.randn(3000, 8, requires_grad=True), torch.randint(3000, (2, 40_000))
    weights, threads, found = torch.randn(3000, 32), torch.get_num_threads(), []
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            torch.manual_seed(1)
            out = layer(x, edge_index)
            found.append([out, *torch.autograd.grad(out, [x, *layer.parameters()], weights)])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_edges_serve_as_well_as_an_edge_index(
    name: str, self_loops: bool, steps: list[bool]
) -> None:
    layer, given = layer_of(name, "dropout"), inputs("dropout")
    edges = Edges.from_edge_index(given["edge_index"], (NODES, NODES), self_loops=self_loops)
    if self_loops and name == "TransformerConv":
        given["edge_index"] = edges.edge_index
    expected = run(layer, given)
    if not (self_loops and name == "TransformerConv"):  # whose dropout knows edges by their number
        torch.testing.assert_close(run(layer, {**given, "edge_index": edges}), expected)
        assert steps == [True, True]


@pytest.mark.parametrize("name", LAYERS)
def test_edges_with_features_of_replaced_loops(name: str, steps: list[bool]) -> None:
    if name == "TransformerConv":
        pytest.skip("adds no self-loops")
    layer, given = layer_of(name, "edge features, dropout"), inputs("edge features")
    given["edge_index"][:, 3] = 7
    edges = Edges.from_edge_index(given["edge_index"], (NODES, NODES), self_loops=True)
    expected = run(layer, given)
    torch.testing.assert_close(run(layer, {**given, "edge_index": edges}), expected)
    assert steps == [True, False]  # these have a row for each pair that is left


@pytest.mark.parametrize("options", ["plain", "averaged", "edge features"])
@pytest.mark.parametrize("name", LAYERS)
def test_second_derivatives(name: str, options: str, steps: list[bool]) -> None:
    layer = layer_of(name, options)
    edge_index = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
    attr = torch.randn(4, 3, dtype=torch.float64) if "edge" in options else None

    def call(x: Tensor) -> Tensor:
        out: Tensor = layer(x, edge_index, attr)
        return out

    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)
    assert steps and all(steps)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_that_torch_batches(name: str) -> None:
    layer, given = layer_of(name, "plain"), inputs("plain")
    x = given["x"].requires_grad_()
    out = layer(x, given["edge_index"])
    several = torch.randn(3, *out.shape, dtype=out.dtype)
    (batched,) = torch.autograd.grad(out, x, several, retain_graph=True, is_grads_batched=True)
    one_by_one = [torch.autograd.grad(out, x, one, retain_graph=True)[0] for one in several]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


@pytest.mark.parametrize("name", LAYERS)
def test_some_gradients_alone(name: str) -> None:
    layer, given = layer_of(name, "edge features"), inputs("edge features")
    expected = dict(zip(("out", "x", "attr", *dict(layer.named_parameters())), run(layer, given),
                        strict=True))  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(expected["out"].shape, generator=generator, dtype=torch.float64)
    for wanted, parameter in layer.named_parameters():
        for other in layer.parameters():
            other.requires_grad_(other is parameter)
        (found,) = torch.autograd.grad((layer(**given) * weights).sum(), parameter)
        torch.testing.assert_close(found, expected[wanted])


@pytest.mark.parametrize(
    "options", [{"dropout": 0}, {"dropout": 1}, {"negative_slope": 0}, {"negative_slope": 1}]
)
@pytest.mark.parametrize("name", [*LAYERS, "GraphAttentionConv", "SuperGATConv"])
def test_whole_numbers_serve_as_others(name: str, options: dict[str, int]) -> None:
    ((option, number),), x = options.items(), torch.randn(6, 8)
    layer = getattr(gat, name)
    if option not in inspect.signature(layer.__init__).parameters:
        pytest.skip("has no such option")
    whole = layer(8, 8, **options)
    other = layer(8, 8, **{option: float(number)})
    other.load_state_dict(whole.state_dict())
    edge_index = torch.randint(6, (2, 20))
    assert torch.equal(whole(x, edge_index), other(x, edge_index))


WATCHERS: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
    "vmap": lambda layer, given: torch.func.vmap(lambda x: layer(x, given["edge_index"]))(
        given["x"][None]
    )[0],
    "forward mode": lambda layer, given: torch.func.jvp(
        lambda x: layer(x, given["edge_index"]), (given["x"],), (given["x"],)
    )[0],
    "functional call": lambda layer, given: torch.func.functional_call(
        layer, {k: v.detach() for k, v in layer.named_parameters()}, (), given
    ),
    "bfloat16": lambda layer, given: layer.bfloat16()(
        given["x"].bfloat16(), given["edge_index"]
    ).double(),
    "autocast": lambda layer, given: _autocast(layer.float(), given).double(),
}


def _autocast(layer: Any, given: dict[str, Any]) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = layer(given["x"].float(), given["edge_index"])
    assert out.dtype == torch.bfloat16
    return out


@pytest.mark.parametrize("watcher", WATCHERS)
@pytest.mark.parametrize("name", LAYERS)
def test_who_watches_sees_the_steps(name: str, watcher: str, steps: list[bool]) -> None:
    layer, given = layer_of(name, "plain"), inputs("plain")
    expected = layer(**given).detach()
    steps.clear()
    found = WATCHERS[watcher](layer, given)
    tolerance = 0.1 if watcher in ("bfloat16", "autocast") else 1e-10
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert not any(steps) or watcher == "functional call"


@pytest.mark.parametrize("name", LAYERS)
def test_an_edit_of_the_result_leaves_gradients_alone(name: str) -> None:
    options = "residual" if name == "TransformerConv" else "no bias"  # then nothing is added
    layer, given = layer_of(name, options), inputs(options)
    expected, found = (
        torch.autograd.grad(relu(layer(**given)).sum(), layer.parameters(), materialize_grads=True)
        for relu in (F.relu, F.relu_)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_an_edit_of_the_graph_before_the_backward_pass(name: str) -> None:
    layer, given = layer_of(name, "plain"), inputs("plain")
    out = layer(**given)
    given["edge_index"][0, 0] = 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_saved_passes_through_hooks(name: str, steps: list[bool]) -> None:
    layer, given = layer_of(name, "dropout"), inputs("dropout")
    given["edge_index"] = torch.randint(25, (2, 20 * NODES))
    expected, saved = run(layer, given), []

    def pack(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        found = run(layer, given)
    torch.testing.assert_close(found, expected)
    assert steps == [True, True]
    # What the maps make of the nodes, nothing of the size of pairs × channels
    assert max(saved) <= max(2 * 20 * NODES, 3 * NODES * 12) < 20 * NODES * 12


def test_an_empty_graph_and_isolated_nodes(steps: list[bool]) -> None:
    for name in LAYERS:
        layer = layer_of(name, "plain")
        nothing = torch.zeros(2, 0, dtype=torch.int64)
        for nodes in (0, 1, 4):
            x = torch.randn(nodes, 6, dtype=torch.float64, requires_grad=True)
            out = layer(x, nothing)
            out.sum().backward()
            assert out.shape == (nodes, 12) and bool(x.grad.isfinite().all())  # type: ignore[union-attr]
    assert all(steps)


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv"])
def test_a_bias_of_the_residuals_own_is_added(name: str) -> None:
    """A user may give the residual's map a bias: it counts beside the layer's."""
    layer, given = layer_of(name, "residual"), inputs("residual")
    plain = layer(**given)
    layer.res.bias = torch.nn.Parameter(torch.arange(12.0, dtype=torch.float64))
    out = layer(**given)
    torch.testing.assert_close(out, plain + layer.res.bias)
    out.sum().backward()
    torch.testing.assert_close(layer.res.bias.grad, torch.full_like(layer.res.bias, NODES))


def test_no_targets_share_the_sources_map() -> None:
    """One x of both sides, shared weights, and edges to nobody."""
    layer = gat.GATv2Conv(6, 4, heads=3, share_weights=True)
    edges = Edges(torch.empty(2, 0, dtype=torch.int64), NODES, 0)
    assert layer(torch.randn(NODES, 6), edges).shape == (0, 12)


@pytest.mark.parametrize("name", LAYERS)
def test_nodes_without_features(name: str) -> None:
    """Every call over features of width 0 gives the bias, the second too: zeros at first."""
    layer = getattr(gat, name)(0, 4)
    for _ in range(2):
        out = layer(torch.zeros(NODES, 0), torch.randint(NODES, (2, EDGES)))
        out.sum().backward()
        assert torch.equal(out, torch.zeros(NODES, 4))
