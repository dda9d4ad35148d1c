"""Attention over edges with α-entmax by the fused kernels: against the definition in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attn_core import (
    Additive,
    Concat,
    Dot,
    Edges,
    Entmax,
    Normalizer,
    PendingEdges,
    ScaledDot,
    Separable,
    Sparsemax,
    attend,
    backend,
)
from attn_core.backends import cpu
from attn_core.ops import edge_entmax

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")

DOUBLE = torch.float64
SETS = ["avx512", "avx2", "baseline"]
SCORES = ["gat", "gatv2", "tanh", "dot", "scaled", "concat"]
NORMALIZERS: dict[str, Normalizer] = {
    "sparsemax": Sparsemax(),
    "1.5": Entmax(),
    "1.3": Entmax(1.3),
    "1.0001": Entmax(1.0001),
    "0.7": Entmax(0.7),
}
ALL = "bias pair_key pair_value loops dropout"


def problem(
    name: str,
    normalizer: str,
    pairs: Tensor,
    nodes: int,
    heads: int = 2,
    width: int = 4,
    value_width: int | None = None,
    options: str = "",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """The arguments of attend; `options` names what is given per pair, "loops" and "dropout"."""
    value_width = width if value_width is None else value_width
    rows = pairs.shape[1] + nodes * ("loops" in options)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=DOUBLE).to(dtype).requires_grad_()

    vectors = leaf(heads, width), leaf(heads, width)
    score: Any = {
        "gat": lambda: Separable(*vectors),
        "gatv2": lambda: Additive(vectors[0], "leaky_relu"),
        "tanh": lambda: Additive(vectors[0]),
        "dot": lambda: Dot(0.3),
        "scaled": lambda: ScaledDot(),
        "concat": lambda: Concat(leaf(heads, width, 2 * width), vectors[0]),
    }[name]()
    return {
        "query": leaf(nodes, heads, width),
        "key": leaf(nodes, heads, width),
        "value": leaf(nodes, heads, value_width),
        "score": score,
        "normalizer": NORMALIZERS[normalizer],
        "bias": leaf(rows, heads) if "bias" in options else None,
        "pair_key": leaf(rows, heads, width) if "pair_key" in options else None,
        "pair_value": leaf(rows, heads, value_width) if "pair_value" in options else None,
        "support": PendingEdges(pairs, nodes, nodes, "loops" in options),
        "dropout": 0.4 if "dropout" in options else 0.0,
    }


def leaves(arguments: dict[str, Any]) -> list[Tensor]:
    found = [x for x in arguments.values() if isinstance(x, Tensor)]
    return found + [x for x in vars(arguments["score"]).values() if isinstance(x, Tensor)]


def everything(arguments: dict[str, Any]) -> list[Tensor]:
    """The output and the gradients of all leaves."""
    torch.manual_seed(1)
    output = attend(**arguments).output
    torch.manual_seed(2)
    grad = torch.randn(output.shape, dtype=DOUBLE).to(output.dtype)
    gradients = torch.autograd.grad(output, leaves(arguments), grad, allow_unused=True)
    return [output, *(g for g in gradients if g is not None)]


def truth(arguments: dict[str, Any]) -> list[Tensor]:
    """The same by the definition in float64."""

    def double(x: Any) -> Any:
        return x.detach().double().requires_grad_() if isinstance(x, Tensor) else x

    score = arguments["score"]
    more = {name: double(x) for name, x in arguments.items()}
    more["score"] = type(score)(**{k: double(v) for k, v in vars(score).items()})
    with backend("reference"):
        return everything(more)


def assert_true(arguments: dict[str, Any], output: float, gradient: float) -> None:
    found, expected = everything(arguments), truth(arguments)
    for i, (ours, right) in enumerate(zip(found, expected, strict=True)):
        assert ours.shape == right.shape
        off = (ours.double() - right).abs().max().item() if right.numel() else 0.0
        size = max(right.abs().max().item(), 1e-2) if right.numel() else 1.0
        assert off <= (gradient if i else output) * size, (i, off, size)


def graph(nodes: int, num_edges: int) -> Tensor:
    """Random pairs with duplicates, self-loops, a hub of 70 edges and isolated nodes."""
    half = torch.randint(max(1, nodes * 2 // 3), (2, num_edges))
    hub = torch.stack([torch.randint(nodes, (70,)), torch.full((70,), nodes - 1)])
    return torch.cat([half, half[:, :3], hub], 1)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("variant", SETS, indirect=True)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_every_instruction_set_equals_the_definition(
    variant: None, name: str, normalizer: str
) -> None:
    for heads, width, options in ((8, 16, ""), (3, 7, ALL), (1, 32, ""), (20, 4, "bias")):
        given = name, normalizer, graph(50, 300), 50, heads, width, 5, options
        assert_true(problem(*given, dtype=DOUBLE), 1e-12, 1e-11)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("normalizer", ["sparsemax", "1.5", "1.3"])
@pytest.mark.parametrize("options", ["", ALL])
def test_single_precision(name: str, normalizer: str, options: str) -> None:
    assert_true(problem(name, normalizer, graph(50, 300), 50, 4, 8, 6, options), 1e-5, 1e-4)


@given(
    name=st.sampled_from(SCORES),
    normalizer=st.sampled_from(list(NORMALIZERS)),
    nodes=st.integers(1, 12),
    num_edges=st.integers(0, 60),
    heads=st.integers(1, 5),
    width=st.integers(1, 20),
    value_width=st.integers(1, 20),
    options=st.lists(st.sampled_from(ALL.split()), unique=True),
)
def test_any_shape_equals_the_definition(
    name: str,
    normalizer: str,
    nodes: int,
    num_edges: int,
    heads: int,
    width: int,
    value_width: int,
    options: list[str],
) -> None:
    torch.manual_seed(0)
    pairs = torch.randint(nodes, (2, num_edges))
    given = name, normalizer, pairs, nodes, heads, width, value_width, " ".join(options)
    assert_true(problem(*given, dtype=DOUBLE), 1e-11, 1e-10)


@pytest.mark.parametrize("name", ["gat", "gatv2", "scaled"])
@pytest.mark.parametrize("normalizer", ["sparsemax", "1.5", "1.3"])
def test_differentiable_twice(name: str, normalizer: str) -> None:
    arguments = problem(name, normalizer, graph(8, 20)[:, :40], 8, 2, 3, 5, ALL, DOUBLE)

    def run(*_: Tensor) -> Tensor:
        torch.manual_seed(3)
        return attend(**arguments).output

    assert torch.autograd.gradcheck(run, leaves(arguments), nondet_tol=0.0)
    assert torch.autograd.gradgradcheck(run, leaves(arguments))


@pytest.mark.parametrize("name", ["gat", "gatv2", "scaled"])
@pytest.mark.parametrize("normalizer", ["sparsemax", "1.5", "1.3"])
def test_a_hub_and_the_same_bits_for_any_number_of_threads(name: str, normalizer: str) -> None:
    """More pairs than one task takes, in several rows and columns."""
    hubs = torch.cat(
        [
            torch.stack([torch.randint(500, (n,)), torch.full((n,), to)])
            for n, to in ((12_000, 7), (4097, 8), (4096, 9))
        ],
        1,
    )
    pairs = torch.cat([torch.randint(500, (2, 9000)), hubs, hubs.flip(0)], 1)
    arguments = problem(name, normalizer, pairs, 500, 3, 4, None, ALL)
    assert_true(arguments, 1e-4, 1e-3)
    before, first = torch.get_num_threads(), everything(arguments)
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            for ours, expected in zip(everything(arguments), first, strict=True):
                assert torch.equal(ours, expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("normalizer", ["sparsemax", "1.5", "1.3", "0.7"])
def test_a_head_depends_on_no_other(normalizer: str) -> None:
    """All heads of a row are solved side by side, until the last of them is."""
    arguments = problem("dot", normalizer, graph(50, 300), 50, 8, 4, None, "bias")
    together = attend(**arguments).output
    for head in range(8):
        alone = {
            n: x[:, head : head + 1] if isinstance(x, Tensor) else x for n, x in arguments.items()
        }
        torch.testing.assert_close(attend(**alone).output[:, 0], together[:, head])
    arguments["bias"] = torch.cat([arguments["bias"][:, :7], 1e6 * arguments["bias"][:, 7:]], 1)
    assert torch.equal(attend(**arguments).output[:, :7], together[:, :7])


@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.2, 2.5, 0.6])
def test_scores_that_newtons_steps_are_slow_for(alpha: float) -> None:
    """Distances that double from score to score: each step could let go of one alone."""
    distances = 2.0 ** torch.arange(-300, 10, dtype=DOUBLE)
    for bias in (-distances, -distances.flip(0), torch.zeros_like(distances), -1e30 * distances):
        pairs = torch.stack([torch.arange(310), torch.zeros(310, dtype=torch.int64)])
        ones = torch.ones(310, 1, 4, dtype=DOUBLE)
        given: dict[str, Any] = {
            "score": Dot(0.0), "support": Edges(pairs, 310, 310), "bias": bias[:, None]
        }  # fmt: skip
        output = attend(ones, ones, ones, normalizer=Entmax(alpha), **given).output[0]
        torch.testing.assert_close(output, ones[0], rtol=1e-12, atol=1e-12)


def test_above_two_small_weights_are_roots() -> None:
    """α = 3: `√(1 - 2λ) + √(1 - 2λ - 2d) = 1` for scores 0 and -d; where d ≥ ½, one is alone."""
    x = torch.zeros(2, 1, 4, dtype=DOUBLE)
    edges = Edges(torch.tensor([[0, 1], [0, 0]]), 2, 2)
    value = torch.tensor([1.0, 0.0], dtype=DOUBLE)[:, None, None].expand(2, 1, 4)

    def first(bias: Tensor) -> Tensor:
        """The weight of the first of two."""
        given: Any = {"score": Dot(), "normalizer": Entmax(3.0), "support": edges, "bias": bias}
        return attend(x, x, value, **given).output[0, 0, 0]

    for d in (0.0, 0.1, 0.4):
        bias = torch.tensor([[0.0], [-d]], dtype=DOUBLE, requires_grad=True)
        # With the weights w and 1 - w, w² - (1 - w)² = 2d
        assert first(bias).item() == pytest.approx(0.5 + d, abs=1e-12)
        assert torch.autograd.gradcheck(first, bias)
    assert first(torch.tensor([[0.0], [-0.6]], dtype=DOUBLE)).item() == 1.0


@pytest.mark.parametrize("alpha", [3.0, 10.0, 30.0, 1000.0, 1e7])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_above_two_the_definition_serves(alpha: float, dtype: torch.dtype) -> None:
    """No λ of the kernel is exact enough there: its rows would sum to up to 34."""
    query, key = 2 * torch.randn(3, 2, 8, dtype=dtype), 2 * torch.randn(300, 2, 8, dtype=dtype)
    edges = Edges(torch.stack([torch.arange(300), torch.randint(3, (300,))]), 300, 3)
    given: Any = {"score": ScaledDot(), "normalizer": Entmax(alpha), "support": edges}
    ones = torch.ones(300, 2, 4, dtype=dtype)
    torch.testing.assert_close(attend(query, key, ones, **given).output, ones[:3])


def test_what_lies_outside_the_support_has_no_gradient() -> None:
    x = torch.zeros(3, 1, 4)
    pairs = torch.tensor([[0, 1, 2], [0, 0, 0]])
    bias = torch.tensor([[1.0], [0.8], [-1.0]], requires_grad=True)
    value = torch.arange(12.0).view(3, 1, 4).requires_grad_()
    output = attend(
        x, x, value, score=Dot(), normalizer=Sparsemax(), support=Edges(pairs, 3, 3), bias=bias
    ).output
    of_bias, of_value = torch.autograd.grad(output[0, 0, 0], [bias, value])
    torch.testing.assert_close(of_bias, torch.tensor([[-2.0], [2.0], [0.0]]))
    torch.testing.assert_close(of_value[:, 0, 0], torch.tensor([0.6, 0.4, 0.0]))


@pytest.mark.parametrize("normalizer", ["sparsemax", "1.5", "1.3", "0.7"])
def test_infinite_and_missing_numbers_mean_what_they_mean_in_plain_torch(normalizer: str) -> None:
    pairs = torch.tensor([[0, 1, 2, 0, 1, 0, 2, 1], [0, 0, 0, 1, 1, 2, 2, 3]])
    arguments = problem("dot", normalizer, pairs, 5, 1, 4, options="bias")
    inf, nan = math.inf, math.nan
    bias = torch.tensor([-inf, 0, 1, -inf, -inf, inf, 0, nan])[:, None]
    arguments["bias"] = bias.requires_grad_()
    found, expected = everything(arguments), truth(arguments)
    torch.testing.assert_close(found[0].double(), expected[0], equal_nan=True)
    assert not found[0][1].any() and not found[0][4].any()
    assert found[0][2].isnan().all() and found[0][3].isnan().all()
    # Infinite only where the numbers are: a graph of the first two queries alone has none
    arguments["support"] = PendingEdges(pairs[:, :5], 5, 5)
    arguments["bias"] = bias[:5].detach().requires_grad_()
    for gradient in everything(arguments)[1:]:
        assert gradient.isfinite().all()


def test_a_value_that_is_no_number_shows_whatever_its_weight() -> None:
    x = torch.zeros(3, 1, 4)
    pairs = torch.tensor([[0, 1, 2, 1], [0, 0, 0, 1]])
    given: dict[str, Any] = {
        "score": Dot(), "normalizer": Sparsemax(), "support": Edges(pairs, 3, 3),
        "bias": torch.tensor([[1.0], [0.8], [-1.0], [0.0]]),
    }  # fmt: skip
    value = torch.ones(3, 1, 4)
    value[2, 0, 1] = math.nan
    with backend("reference"):
        expected = attend(x, x, value, **given).output
    torch.testing.assert_close(attend(x, x, value, **given).output, expected, equal_nan=True)
    assert expected[0, 0, 1].isnan() and expected[1].isfinite().all()


def test_half_types_are_computed_in_float32() -> None:
    arguments = problem("gatv2", "sparsemax", graph(30, 200), 30, 4, 8, dtype=torch.bfloat16)
    assert attend(**arguments).output.dtype == torch.bfloat16
    eps = torch.finfo(torch.bfloat16).eps
    assert_true(arguments, 2 * eps, 2 * eps)


def test_weights_that_are_asked_for_and_a_learned_alpha_go_step_by_step() -> None:
    arguments = problem("gatv2", "1.5", graph(30, 200), 30, 4, 8, options="bias", dtype=DOUBLE)
    expected = attend(**arguments)
    assert expected.weights is None and expected.log_sum_exp is None
    found = attend(**arguments, need_weights=True)
    torch.testing.assert_close(found.output, expected.output)
    learned = dict(arguments, normalizer=Entmax(torch.tensor(1.5, dtype=DOUBLE)))
    torch.testing.assert_close(attend(**learned).output, expected.output)


def test_a_batch_is_as_many_graphs() -> None:
    pairs = graph(30, 200)
    each = [problem("scaled", "sparsemax", pairs, 30, 2, 4) for _ in range(3)]
    for one in each:
        one["support"] = Edges(pairs, 30, 30)
    together = dict(each[0])
    for name in ("query", "key", "value"):
        together[name] = torch.stack([one[name].detach() for one in each])
    output = attend(**together).output
    for ours, one in zip(output, each, strict=True):
        torch.testing.assert_close(ours, attend(**one).output)


def test_no_tensor_of_pairs_times_heads_is_kept() -> None:
    nodes, heads = 40, 4
    arguments = problem("scaled", "sparsemax", torch.randint(nodes, (2, 4000)), nodes, heads, 4)
    arguments["support"] = Edges(arguments["support"].plain(), nodes, nodes)
    saved: list[int] = []

    def note(x: Tensor) -> Tensor:
        saved.append(x.numel() * x.is_floating_point())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        attend(**arguments)
    assert max(saved) == nodes * heads * 4  # query, key and value
    assert nodes * heads * 2 in saved  # the thresholds


@pytest.mark.parametrize("name", ["gat", "dot"])
def test_the_ops_keep_their_contract_with_torch(name: str) -> None:
    pairs = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    width = 1 if name == "gat" else 4
    x = [torch.randn(4, 2, n, dtype=DOUBLE).requires_grad_() for n in (width, width, 4)]
    vector = torch.randn(2, 1, dtype=DOUBLE).requires_grad_() if name == "gat" else None
    kind = "leaky_relu" if name == "gat" else "dot"
    settings = None, None, None, pairs, 4, 4, False, kind, 0.2, 0.0, None, None
    given = (*x, vector, *settings, 1.5)
    ops = torch.ops.attn_core
    torch.library.opcheck(ops.edge_entmax.default, given)
    output, thresholds = ops.edge_entmax(*(t.detach() if i < 3 else t for i, t in enumerate(given)))
    needed = [True] * 3 + [name == "gat"] + [False] * 3
    torch.library.opcheck(
        ops.edge_entmax_backward.default,
        (torch.randn_like(output), thresholds.detach(), needed, *given),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiles_without_a_graph_break() -> None:
    arguments = problem(
        "gatv2", "1.3", graph(30, 200), 30, 2, 4, options="loops bias", dtype=DOUBLE
    )

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(query: Tensor) -> Tensor:
        return attend(**{**arguments, "query": query}).output

    ours = torch.autograd.grad(run(arguments["query"]).square().sum(), leaves(arguments))
    expected = torch.autograd.grad(attend(**arguments).output.square().sum(), leaves(arguments))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_what_the_kernels_leave_to_plain_torch() -> None:
    arguments = problem("dot", "1.5", graph(10, 20), 10, 2, 4, 3, dtype=DOUBLE)
    arguments["query"] = arguments["query"].detach()[..., :0].requires_grad_()
    arguments["key"] = arguments["key"].detach()[..., :0].requires_grad_()
    assert_true(arguments, 1e-12, 1e-12)


def test_the_module_refuses_what_it_cannot_serve() -> None:
    edges = Edges(torch.tensor([[0, 1], [1, 1]]), 2, 2)
    x = torch.zeros(2, 1, 4)
    call = attend(x, x, x, score=Dot(), normalizer=Entmax(), support=edges)
    assert call.output.shape == (2, 1, 4)
    settings: Any = None, None, None, None, edges.pairs, 2, 2, False, "dot", 1.0, 0.0, None, None
    for alpha in (1.0, 0.9, 0.0, -1.0, 2.1, math.nan):
        with pytest.raises(ValueError, match="alpha is"):
            edge_entmax.edge_entmax(x, x, x, *settings, alpha)
