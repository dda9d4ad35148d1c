"""The compiled kernels over edges: against the definition in float64, bit by bit, in threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attn_core import (
    Additive,
    Dot,
    Edges,
    Entmax,
    Normalizer,
    PendingEdges,
    ScaledDot,
    Separable,
    Softmax,
    attend,
    backend,
    compiled,
)
from attn_core.backends import cpu
from attn_core.graph.grouping import sort_pairs

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")

SETS = ["avx512", "avx2", "baseline"]
SCORES = ["gat", "gatv2", "tanh", "dot", "scaled", "identity", "relu"]
DOUBLE = torch.float64


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    before = compiled.module.instruction_set()
    if not compiled.module.choose_instruction_set(name):
        pytest.skip(f"this machine has no {name}")
    try:
        yield
    finally:
        compiled.module.choose_instruction_set(before)


def problem(
    name: str,
    pairs: Tensor,
    nodes: int,
    heads: int = 2,
    width: int = 4,
    value_width: int | None = None,
    options: str = "",
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
) -> dict[str, Any]:
    """The arguments of attend; `options` names what is given per pair, "loops" and "dropout"."""
    value_width = width if value_width is None else value_width
    rows = pairs.shape[1] + nodes * ("loops" in options)

    def leaf(*shape: int) -> Tensor:
        return (scale * torch.randn(*shape, dtype=DOUBLE)).to(dtype).requires_grad_()

    vectors = leaf(heads, width), leaf(heads, width)
    score: Any = {
        "gat": Separable(*vectors),
        "gatv2": Additive(vectors[0], "leaky_relu"),
        "tanh": Additive(vectors[0]),
        "identity": Additive(vectors[0], "identity"),
        "relu": Additive(vectors[0], "relu"),
        "dot": Dot(0.3),
        "scaled": ScaledDot(),
    }[name]
    return {
        "query": leaf(nodes, heads, width),
        "key": leaf(nodes, heads, width),
        "value": leaf(nodes, heads, value_width),
        "score": score,
        "bias": leaf(rows, heads) if "bias" in options else None,
        "pair_key": leaf(rows, heads, width) if "pair_key" in options else None,
        "pair_value": leaf(rows, heads, value_width) if "pair_value" in options else None,
        "support": PendingEdges(pairs, nodes, nodes, "loops" in options),
        "dropout": 0.4 if "dropout" in options else 0.0,
    }


def leaves(arguments: dict[str, Any]) -> list[Tensor]:
    found = [x for x in arguments.values() if isinstance(x, Tensor)]
    score = arguments["score"]
    for name in ("vector", "query_vector", "key_vector"):
        if getattr(score, name, None) is not None:
            found.append(getattr(score, name))
    return found


def everything(arguments: dict[str, Any]) -> list[Tensor]:
    """Output, log-sum-exp and the gradients of all leaves."""
    torch.manual_seed(1)
    result = attend(**arguments, need_log_sum_exp=True)
    assert result.log_sum_exp is not None
    torch.manual_seed(2)
    lse = torch.where(result.log_sum_exp.isfinite(), result.log_sum_exp, 0)
    weights = torch.randn(result.output.shape, dtype=DOUBLE), torch.randn(lse.shape, dtype=DOUBLE)
    loss = (result.output.double() * weights[0]).sum() + (lse.double() * weights[1]).sum()
    gradients = torch.autograd.grad(loss, leaves(arguments), allow_unused=True)
    return [result.output, result.log_sum_exp, *(g for g in gradients if g is not None)]


def doubled(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same numbers in float64."""

    def double(x: Any) -> Any:
        return x.detach().double().requires_grad_() if isinstance(x, Tensor) else x

    more = {name: double(x) for name, x in arguments.items()}
    score = arguments["score"]
    more["score"] = type(score)(**{k: double(v) for k, v in vars(score).items()})
    return more


def truth(arguments: dict[str, Any]) -> list[Tensor]:
    with backend("reference"):
        return everything(doubled(arguments))


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    if not expected.numel():
        return 0.0
    equal = found.double() == expected  # infinities
    off = torch.where(equal, 0, found.double() - expected).abs().max().item()
    size = torch.where(expected.isfinite(), expected, 0).abs().max().item()
    return off / max(size, 1e-3)


def assert_true(arguments: dict[str, Any], output: float = 1e-5, gradient: float = 1e-4) -> None:
    found, expected = everything(arguments), truth(arguments)
    assert len(found) == len(expected)
    for i, (ours, right) in enumerate(zip(found, expected, strict=True)):
        assert ours.shape == right.shape
        assert error(ours, right) <= (output if i < 2 else gradient), (i, ours, right)


def graph(nodes: int, num_edges: int) -> Tensor:
    """Random pairs with duplicates, self-loops, a hub of 70 edges and isolated nodes."""
    half = torch.randint(max(1, nodes * 2 // 3), (2, num_edges))
    hub = torch.stack([torch.randint(nodes, (70,)), torch.full((70,), nodes - 1)])
    return torch.cat([half, half[:, :3], hub], 1)


ALL = "bias pair_key pair_value loops dropout"


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("variant", SETS)
@pytest.mark.parametrize("options", ["", ALL])
def test_every_instruction_set_equals_the_definition(variant: str, name: str, options: str) -> None:
    with instruction_set(variant):
        for heads, width in ((8, 16), (3, 7), (1, 32), (2, 20), (4, 8)):
            arguments = problem(name, graph(50, 300), 50, heads, width, options=options)
            assert_true(arguments)
            arguments = problem(
                name, graph(50, 300), 50, heads, width, 5, options=options, dtype=DOUBLE
            )
            assert_true(arguments, 1e-13, 1e-12)


@given(
    name=st.sampled_from(SCORES),
    nodes=st.integers(1, 12),
    num_edges=st.integers(0, 60),
    heads=st.integers(1, 5),
    width=st.integers(1, 40),
    value_width=st.integers(1, 40),
    options=st.lists(st.sampled_from(ALL.split()), unique=True),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    variant=st.sampled_from(compiled.module.instruction_sets() if cpu.available() else [""]),
)
def test_any_shape_equals_the_definition(
    name: str,
    nodes: int,
    num_edges: int,
    heads: int,
    width: int,
    value_width: int,
    options: list[str],
    dtype: torch.dtype,
    variant: str,
) -> None:
    torch.manual_seed(0)
    pairs = torch.randint(nodes, (2, num_edges))
    arguments = problem(
        name, pairs, nodes, heads, width, value_width, " ".join(options), dtype, scale=0.7
    )
    with instruction_set(variant):
        assert_true(arguments, *((1e-5, 1e-4) if dtype == torch.float32 else (1e-12, 1e-11)))


@pytest.mark.parametrize("name", ["gat", "gatv2", "tanh", "scaled"])
@pytest.mark.parametrize("options", ["", ALL])
def test_gradcheck(name: str, options: str) -> None:
    arguments = problem(name, graph(8, 20)[:, :30], 8, 2, 3, 5, options, DOUBLE)

    def run(*_: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        result = attend(**arguments)
        assert result.log_sum_exp is not None
        return result.output, torch.where(result.log_sum_exp.isfinite(), result.log_sum_exp, 0)

    assert torch.autograd.gradcheck(run, leaves(arguments), nondet_tol=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype: torch.dtype) -> None:
    arguments = problem("gatv2", graph(30, 200), 30, 4, 8, dtype=dtype, options="bias")
    found = everything(arguments)
    assert found[0].dtype == dtype and found[1].dtype == torch.float32
    for ours, right in zip(found, truth(arguments), strict=True):
        assert error(ours, right) <= 2 * torch.finfo(dtype).eps


HALVES = torch.bfloat16, torch.float16
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])


@contextmanager
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[torch.dtype]]]:
    """The dtypes of what kernels are called with, in their order."""
    found: dict[str, list[torch.dtype]] = {}
    call = compiled.call

    def noted(name: str, *arguments: Any) -> Any:
        found[name] = [x.dtype for x in arguments if isinstance(x, Tensor)]
        return call(name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(compiled, "call", noted)
        yield found


def in_halves_and_singles(
    name: str, pairs: Tensor, nodes: int, dtype: torch.dtype, *shape: int, scale: float = 1.0,
    options: str = "", lay: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Output and gradients of rows in 16 bits, and of the same in float32, rounded."""
    heads, width, value_width = shape
    given = problem(name, pairs, nodes, heads, width, value_width, options, scale=scale)
    narrow = "query", "key", "value"
    if name == "gat":  # whose kernel takes single numbers, in float32
        numbers = [k for k in ("query", "key", "pair_key") if given.get(k) is not None]
        given |= {k: given[k].detach().sum(-1, keepdim=True) for k in numbers}
        given["score"], narrow = Additive(torch.ones(heads, 1), "leaky_relu"), ("value",)
    given |= {k: given[k].detach().to(dtype) for k in narrow}
    grad = (scale * torch.randn(nodes, heads, value_width)).to(dtype)

    def results(wide: bool) -> list[Tensor]:
        tensors = {k: x for k, x in given.items() if isinstance(x, Tensor)}
        if wide:
            tensors = {k: x.float() for k, x in tensors.items()}
        leaves = {k: lay(x.detach()).requires_grad_() for k, x in tensors.items()}
        torch.manual_seed(1)
        output = attend(**{**given, **leaves}).output
        assert output.dtype == (torch.float32 if wide else dtype)
        gradients = torch.autograd.grad(output, [*leaves.values()], lay(grad.to(output.dtype)))
        return [output, *gradients]

    halves, singles = results(False), results(True)
    return halves, [x.to(y.dtype) for x, y in zip(singles, halves, strict=True)]


@pytest.mark.parametrize("name", ["gat", "gatv2", "tanh", "dot"])
@pytest.mark.parametrize("variant", SETS)
@each_half
def test_rows_in_16_bits_have_the_bits_of_single_precision_rounded(
    variant: str, name: str, dtype: torch.dtype
) -> None:
    """In every width; where gradients are too small or too large for 16 bits; in parts of a hub."""
    hub = torch.stack([torch.randint(9, (5000,)), torch.full((5000,), 8)])
    cases: list[tuple[Tensor, int, tuple[int, int, int], float, str]] = [
        (graph(20, 90), 20, (heads, width, value_width), scale, options)
        for heads, width, value_width in (
            (8, 16, 16), (3, 1, 7), (1, 32, 13), (2, 40, 3), (5, 4, 1), (4, 8, 8), (2, 13, 20),
        )
        for scale, options in (
            (0.7, "bias loops dropout"), (1e-3, ""), (0.5, "pair_key pair_value"),
        )
    ]  # fmt: skip
    cases += [(torch.cat([hub, hub.flip(0)], 1), 9, (2, 8, 4), 1.0, "bias")]
    cases += [(graph(20, 90), 20, (2, 16, 16), 300.0, "")]
    with instruction_set(variant):
        for pairs, nodes, shape, scale, options in cases:
            halves, singles = in_halves_and_singles(
                name, pairs, nodes, dtype, *shape, scale=scale, options=options
            )
            for ours, right in zip(halves, singles, strict=True):
                torch.testing.assert_close(ours, right, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["gat", "gatv2", "dot"])
@each_half
def test_rows_in_16_bits_may_lie_anywhere(name: str, dtype: torch.dtype) -> None:
    for lay in (
        lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
        lambda x: torch.stack([x, -x], -1)[..., 0],
        lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),  # misaligned
    ):
        halves, singles = in_halves_and_singles(name, graph(20, 90), 20, dtype, 4, 8, 8, lay=lay)
        for ours, right in zip(halves, singles, strict=True):
            assert torch.equal(ours, right)


@pytest.mark.parametrize("variant", SETS)
@each_half
def test_every_number_of_16_bits_passes_unchanged(variant: str, dtype: torch.dtype) -> None:
    """One pair for each query, of weight 1; small ones, infinite ones and NaN among them."""
    value = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(-1, 1, 4)
    n = len(value)
    alone, numbers = Edges.from_edge_index(torch.arange(n).expand(2, n), n), torch.zeros(n, 1, 1)
    one = torch.ones(1, 1)
    with instruction_set(variant):
        leaf = value.clone().requires_grad_()
        output = attend(numbers, numbers, leaf, score=Additive(one), support=alone).output
        torch.testing.assert_close(output, value, rtol=0, atol=0, equal_nan=True)
        finite = torch.where(value.isfinite(), value, 0)
        (gradient,) = torch.autograd.grad(output, leaf, finite)
        assert torch.equal(gradient, finite)


@each_half
def test_kernels_are_given_16_bits_where_they_read_them(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    single = torch.float32

    def dtypes(name: str, options: str = "") -> dict[str, list[torch.dtype]]:
        with seen(monkeypatch) as found:
            arguments = problem(name, graph(10, 30), 10, dtype=dtype, options=options)
            output = attend(**arguments).output
            output.sum().backward()
        floats = (single, *HALVES)
        return {k: [x for x in found[k] if x in floats] for k in ("forward", "backward")}

    # Statistics; query, key, value; the output for the backward pass, and that of the caller
    assert dtypes("dot")["forward"] == [*[single] * 3, *[dtype] * 3, single, dtype]
    # Output and statistics; the three; the gradients of output, log-sum-exp and the three
    assert dtypes("dot")["backward"] == [*[single] * 3, *[dtype] * 4, single, *[dtype] * 3]
    numbers = dtypes("gat")["forward"]
    assert numbers == [*[single] * 5, dtype, single, single, dtype]
    with torch.no_grad(), seen(monkeypatch) as found:
        attend(**problem("dot", graph(10, 30), 10, dtype=dtype))
    assert found["forward"].count(dtype) == 4 and found["forward"].count(single) == 3
    # With vectors of pairs, all becomes single precision
    assert dtypes("dot", "pair_key")["forward"] == [*[single] * 8, dtype]


@pytest.mark.parametrize("name", ["gatv2", "dot", "gat"])
def test_any_strides(name: str) -> None:
    pairs = graph(20, 90)
    given = problem(name, pairs, 20, 4, 8, options="bias pair_key pair_value")
    expected = everything(given)
    for layout in (
        lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
        lambda x: torch.stack([x, -x], -1)[..., 0],
        lambda x: torch.cat([x, x], 0)[: len(x)],
        lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
        lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
    ):
        strided = {
            k: layout(v.detach()).requires_grad_() if isinstance(v, Tensor) else v
            for k, v in given.items()
        }
        for ours, right in zip(everything(strided), expected, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)
    one_for_all = dict(given, value=given["value"][:, :1])
    assert_true(one_for_all)


def bits(arguments: dict[str, Any], threads: int) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return everything(arguments)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["gat", "gatv2", "scaled"])
def test_same_bits_again_and_for_any_number_of_threads(name: str) -> None:
    hub = torch.stack([torch.randint(500, (30_000,)), torch.full((30_000,), 7)])
    pairs = torch.cat([torch.randint(500, (2, 40_000)), hub, hub.flip(0)], 1)
    arguments = problem(name, pairs, 500, 4, 8, options="bias dropout")
    first = bits(arguments, 1)
    for threads in (1, 2, 3, 8):
        for a, b in zip(bits(arguments, threads), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["gat", "gatv2", "scaled"])
def test_a_hub_is_summed_in_parts(name: str) -> None:
    """More pairs than one task takes, in one row and in one column."""
    many = 20_011
    other = torch.arange(many) % 300
    hub = torch.full_like(other, 5)
    pairs = torch.cat([torch.stack([other, hub]), torch.stack([hub, other])], 1)
    assert_true(problem(name, pairs, 300, 2, 8, options="bias pair_value dropout", scale=0.5))


def test_a_million_pairs_in_one_row_with_large_logits() -> None:
    many = 1_000_000
    x = torch.ones(2, 1, 4)
    pairs = torch.zeros(2, many, dtype=torch.int64)
    bias = torch.full((many, 1), 1000.0)
    result = attend(x, x, x, score=Dot(), support=Edges.from_edge_index(pairs, 2), bias=bias)
    torch.testing.assert_close(result.output[0], torch.ones(1, 4))
    assert result.log_sum_exp is not None
    torch.testing.assert_close(result.log_sum_exp[0, 0].item(), 1004 + math.log(many), rtol=1e-6,
                               atol=0)  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
def test_dropout_masks_are_those_of_plain_torch(name: str) -> None:
    arguments = problem(name, graph(30, 200), 30, 3, 4, options="loops dropout", dtype=DOUBLE)
    found = everything(arguments)
    with backend("torch"):
        assert not cpu.available()
        expected = everything(arguments)
    assert cpu.available()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for p in (1.0, 1 - 1e-12):
        assert not attend(**dict(arguments, dropout=p)).output.any()


def test_infinite_and_missing_numbers_mean_what_they_mean_in_plain_torch() -> None:
    pairs = torch.tensor([[0, 1, 2, 0, 1, 0, 2, 1], [0, 0, 0, 1, 1, 2, 2, 3]])
    arguments = problem("dot", pairs, 5, 1, 4, options="bias")
    inf, nan = math.inf, math.nan
    bias = torch.tensor([-inf, 0, 1, -inf, -inf, inf, 0, nan])[:, None]
    arguments["bias"] = bias.requires_grad_()
    result = attend(**arguments)
    with backend("reference"):
        expected = attend(**arguments)
    torch.testing.assert_close(result.output, expected.output, equal_nan=True)
    assert not result.output[1].any() and not result.output[4].any()
    assert result.output[2].isnan().all() and result.output[3].isnan().all()
    # Infinite only where the numbers are: a graph of the first two queries alone has none
    arguments["support"] = PendingEdges(pairs[:, :5], 5, 5)
    arguments["bias"] = bias[:5].detach().requires_grad_()
    for gradient in everything(arguments)[2:]:
        assert gradient.isfinite().all()


@pytest.mark.parametrize("variant", SETS)
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_tanh_and_exp_to_the_last_digits(variant: str, dtype: torch.dtype) -> None:
    """One pair per query: the log-sum-exp is the logit. Two equal ones: a weight of exp."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.logspace(-30, 0, 100)]).to(dtype)
    n = len(x)
    loop = Edges.from_edge_index(torch.arange(n).expand(2, n), n)
    one = torch.ones(1, 1, dtype=dtype)
    eps = torch.finfo(dtype).eps
    with instruction_set(variant):
        found = attend(None, x[:, None, None], x[:, None, None], score=Additive(one),
                       support=loop).log_sum_exp  # fmt: skip
        assert found is not None
        expected = x.double().tanh()
        off = (found.flatten().double() - expected).abs() / expected.abs().clamp(min=1e-35)
        assert off[x != 0].max() < 4 * eps
        # softmax of (0, -y): exp(-y) / (1 + exp(-y))
        y = torch.linspace(0, 80 if dtype == torch.float32 else 600, 3001, dtype=dtype)
        pairs = torch.stack([torch.tensor([0, 1]).repeat(len(y)),
                             torch.arange(len(y)).repeat_interleave(2)])  # fmt: skip
        bias = torch.stack([torch.zeros_like(y), -y], 1).reshape(-1, 1)
        key = torch.zeros(2, 1, 4, dtype=dtype)
        value = torch.tensor([0.0, 1.0], dtype=dtype).reshape(2, 1, 1)
        query, support = key[:1].expand(len(y), 1, 4), Edges.from_edge_index(pairs, (2, len(y)))
        output = attend(query, key, value, score=Dot(), support=support, bias=bias).output
    right = (-y.double()).exp() / (1 + (-y.double()).exp())
    assert ((output.flatten().double() - right).abs() / right).max() < 8 * eps


def test_several_python_threads_at_once() -> None:
    arguments = [problem("gatv2", graph(300, 5000), 300, 4, 8) for _ in range(4)]

    def run(i: int) -> Tensor:
        return attend(**arguments[i]).output

    expected = [run(i) for i in range(4)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            if not torch.equal(run(i), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_what_the_kernels_leave_to_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda request: calls.append(1) or forward(request))
    pairs = graph(10, 30)
    for name in SCORES:
        calls.clear()
        attend(**problem(name, pairs, 10))
        assert calls
    calls.clear()
    x = torch.zeros(10, 2, 0)
    edges = Edges.from_edge_index(pairs, 10)
    assert attend(x, x, x, score=Dot(), support=edges).output.shape == (10, 2, 0)
    with backend("torch"):
        attend(**problem("dot", pairs, 10))
    assert not calls


def test_the_module_refuses_what_it_cannot_serve() -> None:
    x, ends = torch.zeros(2, 1, 4), torch.tensor([0, 1], dtype=torch.int32)
    pointer, place = torch.tensor([0, 1, 2]), torch.tensor([0, 1])

    def call(**changed: Any) -> None:
        given: dict[str, Any] = {
            "query": x, "key": x, "value": x, "vector": None, "bias": None, "pair_key": None,
            "pair_value": None, "pointer": pointer, "other": ends, "place": place,
            "pair_id": None, "kind": 0, "constant": 1.0, "dropout": 0.0, "seed": 0, "num_rows": 2,
            "threads": 1, "output": torch.zeros(2, 1, 4), "log_sum_exp": torch.zeros(2, 1),
            "maximum": torch.zeros(2, 1), "total": torch.zeros(2, 1),
        }  # fmt: skip
        compiled.module.forward(**{**given, **changed})

    call()
    for bad in (torch.tensor([0, 2]), torch.tensor([-1, 0])):
        with pytest.raises(IndexError, match="by_query has an index out of range"):
            call(other=bad.int())
        for reads_it in ({"dropout": 0.5}, {"bias": torch.zeros(2, 1)}, {"pair_value": x}):
            with pytest.raises(IndexError, match="by_query has an index out of range"):
                call(place=bad, **reads_it)
        call(place=bad)  # which nobody reads
    for bad in (torch.tensor([0, 2, 1]), torch.tensor([1, 1, 2]), torch.tensor([0, 1, 3])):
        with pytest.raises(ValueError, match="pointer that does not rise"):
            call(pointer=bad)
    with pytest.raises(ValueError, match="value has a shape"):
        call(value=torch.zeros(3, 1, 4))
    with pytest.raises(ValueError, match="multiple of 4"):
        call(query=x[..., :3], key=x[..., :3])
    with pytest.raises(ValueError, match="query has rows that are not packed"):
        call(query=torch.zeros(2, 1, 8)[..., ::2])
    with pytest.raises(ValueError, match="vector is missing"):
        call(kind=1)
    with pytest.raises(ValueError, match="fewer rows"):
        call(bias=torch.zeros(1, 1), num_rows=1)
    with pytest.raises(TypeError, match="key has a type"):
        call(key=x.double())
    with pytest.raises(TypeError, match="value has a type"):
        call(value=x.int())
    with pytest.raises(ValueError, match="key or others are kept in 16 bits"):
        call(key=x.half(), pair_key=x)
    with pytest.raises(ValueError, match="output is missing"):
        call(output=None)
    with pytest.raises(ValueError, match="rounded is not of 16 bits"):
        call(rounded=torch.zeros(2, 1, 4))
    with pytest.raises(ValueError, match="rounded shares memory with value"):
        half = x.half()
        call(value=half, rounded=half)
    with pytest.raises(TypeError):
        call(other=ends.long())


def test_products_refuse_what_they_cannot_serve() -> None:
    given: dict[str, Any] = {
        "values": torch.ones(2), "pointer": torch.tensor([0, 1, 2]),
        "column": torch.tensor([2, 0], dtype=torch.int32), "place": torch.tensor([0, 1]),
        "dense": torch.ones(3, 4), "threads": 1, "out": torch.empty(2, 4),
    }  # fmt: skip

    def call(**changed: Any) -> None:
        compiled.module.multiply(**{**given, **changed})

    call()
    assert torch.equal(given["out"], torch.ones(2, 4))
    with pytest.raises(IndexError, match="entries has an index out of range"):
        call(column=torch.tensor([3, 0], dtype=torch.int32))
    with pytest.raises(IndexError, match="entries has an index out of range"):
        call(place=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="pointer that does not rise"):
        call(pointer=torch.tensor([0, 3, 2]))
    with pytest.raises(ValueError, match="values has another length"):
        call(values=torch.ones(1))
    with pytest.raises(ValueError, match="values is not"):
        call(values=torch.ones(4)[::2])
    with pytest.raises(ValueError, match="dense is no matrix of 4n columns"):
        call(dense=torch.ones(3, 6))
    with pytest.raises(ValueError, match="dense has rows that are not packed"):
        call(dense=torch.ones(3, 8)[:, ::2])
    with pytest.raises(ValueError, match="out has a shape"):
        call(out=torch.empty(3, 4))
    with pytest.raises(TypeError):
        call(dense=torch.ones(3, 4, dtype=torch.float64))


@given(
    num=st.integers(1, 9),
    nodes=st.lists(st.integers(0, 8), max_size=40),
    in_order=st.booleans(),
)
def test_sorting_by_counting_is_a_stable_sort(num: int, nodes: list[int], in_order: bool) -> None:
    ends = torch.tensor([n % num for n in nodes], dtype=torch.int64)
    ends = ends.sort().values if in_order else ends
    others = torch.arange(len(nodes)) * 3
    order, sorted_others = sort_pairs(ends, num, others)
    with backend("torch"):
        expected, none = sort_pairs(ends, num, others)
    assert none is None
    assert torch.equal(order.pointer, expected.pointer)
    assert torch.equal(order.permutation, expected.permutation)
    if sorted_others is not None:
        assert sorted_others.dtype == torch.int32
        assert torch.equal(sorted_others.long(), others[order.permutation])


def test_what_is_live_is_told() -> None:
    assert compiled.module.instruction_set() in cpu.description()
    with backend("torch"):
        assert "switched off" in cpu.description()


@pytest.mark.parametrize("normalizer", [Softmax(), Entmax()], ids=["softmax", "entmax"])
@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("kind", ["dot", "leaky_relu", "tanh"])
def test_gradients_of_any_of_the_tensors(kind: str, width: int, normalizer: Normalizer) -> None:
    """Some are frozen: with key alone of them, tanh summed its slopes into no memory."""
    torch.manual_seed(0)
    edges = Edges.from_edge_index(torch.randint(7, (2, 40)), 7)
    shapes = {
        "query": (7, 2, width), "key": (7, 2, width), "value": (7, 2, 4), "vector": (2, width),
        "bias": (40, 2), "pair_key": (40, 2, width), "pair_value": (40, 2, 4),
    }  # fmt: skip
    given = {name: torch.randn(shape, dtype=DOUBLE) for name, shape in shapes.items()}
    if kind == "dot":
        del given["vector"]

    def gradients(wanted: tuple[str, ...], pairs: bool) -> tuple[Tensor, ...]:
        tensors = {name: x.clone().requires_grad_(name in wanted) for name, x in given.items()}
        rest: dict[str, Any] = {n: x for n, x in tensors.items() if pairs or "pair" not in n}
        vector = rest.pop("vector", None)
        score = Dot() if vector is None else Additive(vector, kind)
        out = attend(**rest, score=score, normalizer=normalizer, support=edges).output
        return torch.autograd.grad(out.square().sum(), [tensors[name] for name in wanted])

    for pairs in (False, True):
        names = [name for name in given if pairs or "pair" not in name]
        with backend("reference"):
            expected = dict(zip(names, gradients(tuple(names), pairs), strict=True))
        for count in range(1, len(names) + 1):
            for wanted in combinations(names, count):
                found = gradients(wanted, pairs)
                for name, grad in zip(wanted, found, strict=True):
                    torch.testing.assert_close(grad, expected[name], msg=f"{name} of {wanted}")


def test_an_output_that_the_caller_holds_is_read_where_it_lies() -> None:
    nodes = 4_000
    edges = Edges.from_edge_index(torch.randint(nodes, (2, nodes)), nodes)
    x = torch.randn(nodes, 2, 16, requires_grad=True)
    out = attend(x, x, x, score=ScaledDot(), support=edges).output
    (grad,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True)
    assert torch._C._is_cow_tensor(out)  # nothing has copied it yet
    with torch.no_grad():
        out.zero_()  # which is what the caller may do: what was saved is apart
    again = torch.autograd.grad(
        out, x, 2 * attend(x, x, x, score=ScaledDot(), support=edges).output
    )
    torch.testing.assert_close(again[0], grad)
