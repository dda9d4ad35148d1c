"""The Triton kernels against the definition: interpreted on the CPU, as they are on a GPU."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attn_core import (
    Additive,
    Dot,
    Edges,
    PendingEdges,
    Separable,
    attend,
    backend,
    dropout,
    gpu,
)
from attn_core.backends import csr
from attn_core.backends import triton as kernels
from attn_core.backends.problem import Problem
from attn_core.graph.grouping import grouping_of
from attn_core.ops.edge_attention import backend_of

triton = pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")

import triton.language as tl  # noqa: E402

from attn_core import probe  # noqa: E402
from attn_core.backends.triton import plan, run  # noqa: E402
from attn_core.backends.triton.pieces import random_bits, tanh  # noqa: E402

KEYS, QUERIES, HEADS, WIDTH, VALUE_WIDTH = 7, 6, 3, 3, 5
DOUBLE = torch.float64
PER_PAIR = ("bias", "pair_key", "pair_value")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hubs of a few edges are cut already."""
    monkeypatch.setattr(plan, "CHUNK", 4)


def graph() -> Tensor:
    """Duplicates, a query and a key of many edges (1 and 2), and one of none (5 and 6)."""
    some = torch.stack([torch.randint(KEYS - 1, (9,)), torch.randint(QUERIES - 1, (9,))])
    to_hub = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2, 2], [1] * 9])
    from_hub = torch.tensor([[2] * 6, [0, 1, 2, 3, 4, 2]])
    return torch.cat([some, to_hub, from_hub], 1)[:, torch.randperm(24)]


def arguments(
    score: str,
    device: str,
    *,
    pairs: Tensor | None = None,
    per_pair: tuple[str, ...] = (),
    p: float = 0.0,
    self_loops: bool = False,
    edges: bool = False,
    sizes: tuple[int, int] = (KEYS, QUERIES),
    heads: int = HEADS,
    width: int = WIDTH,
    value_width: int = VALUE_WIDTH,
    dtype: torch.dtype = DOUBLE,
) -> dict[str, Any]:
    """A call of `attend`, all of whose tensors are leaves."""

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=DOUBLE).to(device, dtype).requires_grad_()

    pairs = (graph() if pairs is None else pairs).to(device)
    support: Any = PendingEdges(pairs, *sizes, self_loops=self_loops)
    if edges:
        support = Edges.from_edge_index(pairs, sizes, self_loops=self_loops)
    rows = support.num_rows
    has_query = not score.startswith("key")
    given: dict[str, Any] = {
        "query": leaf(sizes[1], heads, width) if has_query else None,
        "key": leaf(sizes[0], heads, width),
        "value": leaf(sizes[0], heads, value_width),
        "bias": leaf(rows, heads) if "bias" in per_pair else None,
        "pair_key": leaf(rows, heads, width) if "pair_key" in per_pair else None,
        "pair_value": leaf(rows, heads, value_width) if "pair_value" in per_pair else None,
    }
    scores = {
        "dot": lambda: Dot(0.4),
        "tanh": lambda: Additive(leaf(heads, width)),
        "leaky_relu": lambda: Additive(leaf(heads, width), "leaky_relu", 0.3),
        "gat": lambda: Separable(leaf(heads, width), leaf(heads, width), "leaky_relu", 0.3),
        "key, relu": lambda: Additive(leaf(heads, width), "relu"),
        "key, identity, no vector": lambda: Additive(activation="identity"),
        "tanh, no vector": lambda: Additive(),
    }  # fmt: skip
    return {**given, "score": scores[score](), "support": support, "dropout": p}


def leaves(given: dict[str, Any]) -> list[Tensor]:
    tensors = [*given.values(), *vars(given["score"]).values()]
    return [x for x in tensors if isinstance(x, Tensor)]


def everything(given: dict[str, Any]) -> dict[str, Tensor]:
    """Output, log-sum-exp and all gradients."""
    torch.manual_seed(1)
    result = attend(**given, need_log_sum_exp=True)
    torch.manual_seed(2)
    assert result.log_sum_exp is not None
    lse = torch.where(result.log_sum_exp.isfinite(), result.log_sum_exp, 0)
    parts = [x * torch.randn(x.shape, dtype=DOUBLE).to(x) for x in (result.output, lse)]
    grads = torch.autograd.grad(parts[0].sum() + parts[1].sum().to(parts[0]), leaves(given))
    found = {"output": result.output, "log_sum_exp": result.log_sum_exp}
    return found | {f"gradient {i} of {list(x.shape)}": x for i, x in enumerate(grads)}


def assert_defined(given: dict[str, Any], **tolerance: float) -> None:
    """The kernels compute what the definition does."""
    found = everything(given)
    with backend("reference"):
        torch.testing.assert_close(found, everything(given), **tolerance)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dot": ("dot", {}),
    "dot, all of it": ("dot", {"per_pair": PER_PAIR, "self_loops": True, "p": 0.4}),
    "dot, edges": ("dot", {"edges": True, "self_loops": True, "p": 0.4,
                           "per_pair": ("pair_value",)}),
    "tanh": ("tanh", {"p": 0.4}),
    "tanh, all of it": ("tanh", {"per_pair": PER_PAIR, "p": 0.4, "edges": True}),
    "tanh, no vector": ("tanh, no vector", {"per_pair": ("pair_key",)}),
    "leaky_relu": ("leaky_relu", {"self_loops": True}),
    "leaky_relu, all of it": ("leaky_relu", {"per_pair": PER_PAIR, "self_loops": True,
                                             "p": 0.4}),
    "gat": ("gat", {"self_loops": True, "p": 0.4}),
    "gat, all of it": ("gat", {"per_pair": ("bias", "pair_value"), "edges": True}),
    "key, relu": ("key, relu", {"per_pair": ("bias",)}),
    "key, identity": ("key, identity, no vector", {"p": 0.4}),
    "everything dropped": ("dot", {"p": 1.0}),
    "one head, one channel": ("dot", {"heads": 1, "width": 1, "value_width": 1}),
    "many channels": ("leaky_relu", {"heads": 5, "width": 37, "value_width": 3}),
    "no edges": ("dot", {"pairs": torch.zeros(2, 0, dtype=torch.int64), "per_pair": PER_PAIR}),
    "int32": ("tanh", {"pairs": torch.tensor([[0, 1, 2], [1, 0, 0]], dtype=torch.int32)}),
    "no queries": ("tanh", {"pairs": torch.zeros(2, 0, dtype=torch.int64), "sizes": (3, 0)}),
    "no keys": ("dot", {"pairs": torch.zeros(2, 0, dtype=torch.int64), "sizes": (0, 3)}),
    "no channels": ("dot", {"width": 0, "value_width": 0}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_output_and_every_gradient(case: str, device: str) -> None:
    score, options = CASES[case]
    assert_defined(arguments(score, device, **options))


def test_the_kernels_are_what_runs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, the tests above might compare plain torch with itself."""

    def never(*_: Any) -> Any:
        raise AssertionError("plain torch was called")

    monkeypatch.setattr(csr, "forward", never)
    monkeypatch.setattr(csr, "backward", never)
    everything(arguments("dot", device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("score", ["dot", "tanh", "gat"])
def test_lower_precision(score: str, dtype: torch.dtype, device: str) -> None:
    """As near to the float64 truth about the same numbers as their dtype allows."""
    per_pair = PER_PAIR if score == "tanh" else ()
    given = arguments(score, device, per_pair=per_pair, p=0.4)
    for leaf in leaves(given):
        leaf.data = leaf.data.to(dtype).double()
    with backend("reference"):
        truth = everything(given)
    low = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in given.items()}
    own = {k: v.to(dtype) for k, v in vars(given["score"]).items() if isinstance(v, Tensor)}
    low["score"] = replace(given["score"], **own)
    for leaf in leaves(low):
        leaf.detach_().requires_grad_()
    found = everything(low)
    assert found["log_sum_exp"].dtype == torch.float32 and found["output"].dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    for name, of_truth in truth.items():
        torch.testing.assert_close(
            found[name].double(), of_truth, rtol=tolerance, atol=tolerance, msg=f"{name} differs"
        )


def test_mixed_dtypes_and_strides(device: str) -> None:
    given = arguments("leaky_relu", device, per_pair=("bias", "pair_key"))
    rows = given["support"].num_rows

    def leaf(x: Tensor) -> Tensor:
        return x.to(device).requires_grad_()

    given["query"] = leaf(torch.randn(WIDTH, HEADS, QUERIES, dtype=DOUBLE)).permute(2, 1, 0)
    given["key"] = leaf(torch.randn(KEYS, HEADS, 2 * WIDTH)).split(WIDTH, -1)[1]
    given["value"] = leaf(torch.randn(2 * KEYS, 1, VALUE_WIDTH, dtype=DOUBLE))[::2]
    given["bias"] = leaf(torch.randn(rows))
    given["pair_key"] = leaf(torch.randn(rows, 1, WIDTH, dtype=torch.float16))
    assert_defined(given, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tile", [16, 64])
def test_the_cut_into_tiles_makes_no_difference(
    tile: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments("leaky_relu", device, per_pair=("bias",), heads=5, value_width=2)
    whole = everything(given)
    monkeypatch.setattr(run, "TILE", tile)
    monkeypatch.setattr(run, "_MOST_PARTS", 2)
    torch.testing.assert_close(everything(given), whole)


@pytest.mark.parametrize("score", ["dot", "tanh", "gat"])
def test_large_logits_do_not_overflow(score: str, device: str) -> None:
    given = arguments(score, device, dtype=torch.float32, per_pair=("bias",))
    given["bias"] = (given["bias"].detach() * 1e4).requires_grad_()
    assert_defined(given, rtol=1e-3, atol=1e-3)


def test_gradients_of_a_row_of_large_scores_sum_to_zero(device: str) -> None:
    """Their mean is made of a rounded output; what it is off by would be multiplied by the scores.

    One weight of each row is nearly all, so that gradients are small differences of large numbers.
    """
    pairs = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 1, 2, 3], [0] * 7 + [1] * 3])  # one is cut
    bias = torch.tensor([100.0, *[93.0] * 6, 100.0, 93.0, 92.0]).repeat(2, 1).T.contiguous()
    sums = []
    for seed in range(2):
        torch.manual_seed(seed)
        value, of_output = torch.randn(7, 2, 4) + 1, torch.rand(2, 2, 4)
        zeros, given = torch.zeros(7, 2, 1, device=device), bias.to(device).requires_grad_()
        support = Edges.from_edge_index(pairs.to(device), (7, 2))
        found = attend(
            zeros[:2], zeros, value.to(device), score=Dot(), support=support, bias=given
        ).output
        (grad,) = torch.autograd.grad(found, given, of_output.to(device))
        sums.append(torch.zeros(2, 2, device=device).index_add(0, support.query_index, grad))
    assert torch.stack(sums).abs().max() < 1e-8


@pytest.mark.parametrize("score", ["dot", "tanh", "gat"])
def test_second_derivatives_are_those_of_the_definition(score: str, device: str) -> None:
    """A gradient of a gradient goes by the formula, whatever device the first one came from."""
    given = arguments(score, device, per_pair=PER_PAIR if score != "gat" else ("bias",), p=0.4)
    found = []
    for using in ("auto", "reference"):
        torch.manual_seed(1)
        with backend(using):
            output = attend(**given).output
            first = torch.autograd.grad(output.sin().sum(), leaves(given), create_graph=True)
            total = sum(x.square().sum() for x in first)
            found.append(torch.autograd.grad(total, leaves(given), materialize_grads=True))
    torch.testing.assert_close(*found)


def test_rows_of_minus_infinity_are_like_rows_without_pairs(device: str) -> None:
    given = arguments("dot", device, per_pair=("bias",), edges=True)
    bias = given["bias"].detach().clone()
    bias[given["support"].query_index == 1] = -torch.inf  # the hub, whose parts are all empty
    bias[given["support"].query_index == 2] = -torch.inf
    given["bias"] = bias.requires_grad_()
    found = everything(given)
    assert not found["output"][[1, 2, 5]].any()
    assert (found["log_sum_exp"][[1, 2, 5]] == -torch.inf).all()
    assert all(x.isfinite().all() for name, x in found.items() if name != "log_sum_exp")


def test_nan_is_not_hidden(device: str) -> None:
    given = arguments("tanh", device)
    with torch.no_grad():
        given["key"][2, 0, 1] = torch.nan
    output = attend(**given).output
    assert output[1, 0].isnan().all() and output[:, 1:].isfinite().all()


def test_a_gradient_of_what_is_not_asked_for_is_not_made(device: str) -> None:
    for wanted in ("query", "key", "value"):
        given = arguments("dot", device)
        full = everything(given)
        for leaf in leaves(given):
            leaf.requires_grad_(leaf is given[wanted])
        torch.manual_seed(2)
        output = attend(**given).output
        grad = torch.randn(output.shape, dtype=DOUBLE).to(output)
        (found,) = torch.autograd.grad(output, given[wanted], grad)
        with backend("reference"):
            (expected,) = torch.autograd.grad(attend(**given).output, given[wanted], grad)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(output, full["output"])


def test_a_backward_pass_without_the_edges_it_was_given(device: str) -> None:
    """They died with the call, and took the numbers of the pairs with them."""

    def grads(given: dict[str, Any], keep: bool) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        output = attend(**given).output
        if not keep:
            given["support"] = None
        return torch.autograd.grad(output.square().sum(), (given["query"], given["key"]))

    torch.manual_seed(0)
    given = arguments("dot", device, edges=True, self_loops=True, p=0.4)
    expected = grads(given, keep=True)
    torch.testing.assert_close(grads(given, keep=False), expected)


def test_the_same_bits_again(device: str) -> None:
    nodes, num_edges = (3000, 60_000) if device == "cuda" else (9, 30)
    pairs = torch.randint(nodes, (2, num_edges))
    pairs[1, : num_edges // 4] = 0
    given = arguments(
        "leaky_relu", device, pairs=pairs, sizes=(nodes, nodes), dtype=torch.float32, p=0.4
    )
    first, second = everything(given), everything(given)
    assert all(torch.equal(first[name], second[name]) for name in first)


class Floats(TorchDispatchMode):
    """The most numbers in a floating tensor that any operator makes."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, Tensor) and x.is_floating_point() and not func.is_view:
                self.most = max(self.most, x.numel())
        return made


@pytest.mark.parametrize("score", ["dot", "leaky_relu"])
def test_nothing_is_made_for_each_pair(
    score: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_edges, spy = 100, Floats()
    pairs = torch.stack([torch.randint(KEYS, (num_edges,)), torch.randint(QUERIES, (num_edges,))])
    monkeypatch.setattr(plan, "CHUNK", 16)
    given = arguments(score, device, pairs=pairs, p=0.4)

    def spied(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with spy:
                return function(*args)

        return run

    for name in ("forward", "backward"):
        monkeypatch.setattr(run, name, spied(getattr(run, name)))
    everything(given)
    parts = QUERIES * (-(-num_edges // QUERIES) // 16 + 2)
    assert 0 < spy.most <= parts * HEADS * VALUE_WIDTH < num_edges * HEADS


def test_the_op_keeps_its_contract_with_torch(device: str) -> None:
    x = torch.randn(4, 2, 3, dtype=DOUBLE, device=device, requires_grad=True)
    pairs = torch.tensor([[0, 1, 1], [1, 2, 2]], device=device)
    more = (pairs, 4, 4, True, "dot", 0.3, 0.5, torch.tensor(5, device=device), None)
    torch.library.opcheck(
        torch.ops.attn_core.edge_attention.default, (x, x, x, None, None, None, None, *more)
    )


# --- The hash of dropout ---


@triton.jit
def _bits(seed, edge, out, EDGES: tl.constexpr, HEADS: tl.constexpr):  # type: ignore[no-untyped-def]
    row, head = tl.arange(0, EDGES), tl.arange(0, HEADS)
    bits = random_bits(tl.load(seed), tl.load(edge + row), head)
    tl.store(out + row[:, None] * HEADS + head[None, :], bits.to(tl.int64))


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1, 0x0123456789ABCDEF])
def test_golden_vectors_of_dropout(seed: int, device: str) -> None:
    """The bits of the definition, which test_dropout.py holds to literal numbers; some are here."""
    seed_, edge = torch.tensor(seed), torch.tensor([0, 1, 2**32 + 5, 2**31])
    out = torch.empty(4, 2, dtype=torch.int64, device=device)
    _bits[(1,)](seed_.to(device), edge.to(device), out, EDGES=4, HEADS=2)
    assert out.tolist() == dropout.random_bits(seed_, edge[:, None], torch.arange(2)).tolist()
    if seed == 7:
        assert out[:2].tolist() == [[0x27072220, 0x4D223271], [0xD6D34C39, 0xF7C75848]]


@pytest.mark.parametrize("p", [0.0, 0.3, 0.7, 1 - 2**-32, 1.0])
def test_the_mask_is_that_of_every_backend(p: float, device: str) -> None:
    """One pair per query, with the value 1: what comes out is the mask."""
    num = 40
    pairs = torch.arange(num, device=device).expand(2, -1).contiguous()
    x = torch.ones(num, 2, 1, device=device)
    torch.manual_seed(3)
    output = attend(x, x, x, score=Dot(), support=PendingEdges(pairs, num, num), dropout=p).output
    torch.manual_seed(3)
    seed = torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    expected = (
        dropout.dropout_scale(seed, pairs[0], 2, p) if p else torch.ones(num, 2, device=device)
    )
    torch.testing.assert_close(output.squeeze(-1), expected, rtol=0, atol=0)


@triton.jit
def _tanh(x, out, NUM: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, NUM)
    tl.store(out + at, tanh(tl.load(x + at), tl.float32))


def test_tanh_is_as_exact_as_torchs(device: str) -> None:
    size = torch.logspace(-30, 3, 512, dtype=torch.float32, device=device)
    x = torch.cat([size, -size])
    out = torch.empty_like(x)
    _tanh[(1,)](x, out, NUM=1024)
    exact = 6e-7 if device == "cpu" else 2e-6  # a GPU's exponential and division are rougher
    torch.testing.assert_close(out.double(), x.double().tanh(), rtol=exact, atol=0)
    x = torch.tensor([0.0, torch.inf, -torch.inf, torch.nan], device=device)
    out = torch.empty_like(x)
    _tanh[(1,)](x, out, NUM=4)
    torch.testing.assert_close(out, x.tanh(), equal_nan=True)


# --- The plan ---


@pytest.mark.parametrize("by", ["query", "key"])
def test_the_plan_covers_every_pair_once(by: str, device: str) -> None:
    edges = Edges.from_edge_index(graph().to(device), (KEYS, QUERIES), self_loops=True)
    items = plan.side_of(edges, by)
    assert items is plan.side_of(edges, by)
    lengths = items.table[:, 2].cpu()
    assert lengths.max() <= plan.CHUNK and (lengths.diff() <= 0).all()
    order, nodes, others = (edges.by_query, *edges.pairs.flip(0)) if by == "query" else (
        edges.by_key, *edges.pairs)  # fmt: skip
    assert items.other is not None and torch.equal(items.other, others[order.permutation].int())
    seen, of_part = [], {}
    for row, start, length, part in zip(*(x.tolist() for x in items.table.unbind(1)), strict=True):
        if row < 0:  # room that is not needed
            assert length == 0 and part == -1
            continue
        pairs = order.permutation[start : start + length]
        assert (nodes[pairs] == row).all()
        seen += pairs.tolist()
        alone = len(nodes[nodes == row]) <= plan.CHUNK
        assert alone == (part < 0)
        if not alone:  # the parts of a row follow each other, in the order of its pairs
            number = (start - int(order.pointer[row])) // plan.CHUNK
            chunks = -(-len(nodes[nodes == row]) // plan.CHUNK)
            assert items.parts[part - number].tolist() == [row, chunks]
            of_part[part] = [row, 0 if number else chunks]
    assert sorted(seen) == list(range(edges.num_edges))
    assert of_part and max(of_part) < len(items.parts)
    assert items.parts.tolist() == [of_part.get(n, [-1, 0]) for n in range(len(items.parts))]
    assert items.source.tolist() == edges.source_id[order.permutation].tolist()
    assert (items.parts.dtype, items.place.dtype, items.other.dtype) == (torch.int32,) * 3


def test_chunks_are_small_in_small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "CHUNK", 256)
    sizes = {0: 32, 10_000: 32, 131_072: 32, 200_000: 64, 10**6: 256, 10**7: 256}
    assert {pairs: plan.chunk_of(pairs) for pairs in sizes} == sizes


def test_a_plan_without_rows_or_pairs(device: str) -> None:
    for pairs, nodes in ((0, 0), (0, 3)):
        index = torch.zeros(pairs, dtype=torch.int64, device=device)
        items = plan.items_of(grouping_of(index, nodes))
        assert items.table[:, 0].tolist() == list(range(nodes)) and not len(items.parts)


def test_edges_with_a_plan_are_still_edges(device: str) -> None:
    edges = Edges.from_edge_index(graph().to(device), (KEYS, QUERIES))
    plan.side_of(edges, "query")
    again = pickle.loads(pickle.dumps(edges))
    items, same = (plan.side_of(x, "query") for x in (again, edges))
    assert torch.equal(items.table, same.table)
    moved = edges.to("meta")
    assert not any(name.startswith("_triton") for name in moved.__dict__)


# --- Which kernels serve what ---


def test_who_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    x, edges = torch.randn(3, 1, 2), Edges.from_edge_index(torch.tensor([[0], [1]]), 3)

    def serves(key: Tensor, value: Tensor) -> bool:
        graph = edges.pairs, 3, 3, False
        p = Problem(key, key, value, *(None,) * 4, *graph, "dot", 1.0, 0.0, None, None)
        return backend_of(p) is run

    assert not kernels.serves(x, x) and not serves(x, x)
    with kernels.on_cpu():
        assert serves(x, x)
        wide = torch.empty(3, 1, 5000)
        assert not serves(wide, x) and not serves(x, wide)
        assert not kernels.serves(x, torch.empty(3, 1, 2, dtype=torch.float8_e5m2))
        monkeypatch.setattr(gpu, "installed", False)
        assert not serves(x, x)
    assert not serves(x, x)


@pytest.mark.parametrize("compiled", [False, True])
def test_where_triton_cannot_work_plain_torch_serves_after_one_warning(
    compiled: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in images with torch for CUDA and no C compiler."""

    def broken(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(gpu, "_failures", {})
    monkeypatch.setattr(probe, "launch", broken)
    monkeypatch.setattr(run, "forward", None)
    given = arguments("dot", device, edges=True)
    del given["dropout"]

    def output(value: Tensor) -> Tensor:
        return attend(**{**given, "value": value}).output

    if compiled:
        torch.compiler.reset()
        output = torch.compile(output, backend="aot_eager", fullgraph=True)
    with pytest.warns(UserWarning, match="Triton cannot run on .*Failed to find C compiler.*GAT_K"):
        found = output(given["value"])
    with backend("reference"):
        torch.testing.assert_close(found, attend(**given).output)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(output(given["value"]), found)
        torch.autograd.grad(found.sum(), leaves({**given, "score": Dot(1.0)})[:3])


@pytest.mark.parametrize("score", ["dot", "leaky_relu", "gat"])
def test_compiled_code_calls_the_kernels(
    score: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def watched(name: str) -> Callable[..., Any]:
        kernel = getattr(run, name)
        return lambda *rest: called.append(name) or kernel(*rest)

    for name in ("forward", "backward"):
        monkeypatch.setattr(run, name, watched(name))
    given = arguments(score, device, per_pair=("bias",), edges=True)
    wanted = [x for x in leaves(given) if isinstance(x, Tensor) and x.requires_grad]
    torch.compiler.reset()
    found = torch.compile(attend, backend="aot_eager", fullgraph=True)(**given).output
    gradients = torch.autograd.grad(found.square().sum(), wanted)
    assert called == ["forward", "backward"]
    with backend("reference"):
        expected = attend(**given).output
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        gradients, torch.autograd.grad(expected.square().sum(), wanted), strict=True
    ):
        torch.testing.assert_close(one, other)


COMPILE = Path(__file__).with_name("compile_triton.py")


@pytest.mark.slow
def test_they_compile_for_gpus(tmp_path: Path) -> None:
    """What the interpreter takes, the compiler may not; it needs no GPU to say so.

    One kind of GPU is tried here; `python -m benchmarks gpu --compile-only` compiles for three.
    """
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(COMPILE), "90"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    names = {
        "attend_rows", "combine_rows", "merge_windows", "mean_rows", "by_query", "by_key",
        "reduce_rows", "softmax_entries", "softmax_backward_entries", "entmax_rows",
        "entmax_backward_rows", "additive_logits", "additive_grads", "score_rows",
        "cut_rows", "put_in_order", "write_one",
    }  # fmt: skip
    compiled = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    functions = {"attend_rows", "mean_rows", "by_query", "by_key", "combine_rows", "merge_windows"}
    names |= {f"function:{name}" for name in functions}
    assert compiled == {(name, "90") for name in names}


def test_weights_are_the_same(device: str) -> None:
    given = arguments("tanh", device)
    found = attend(**given, need_weights=True)
    with backend("reference"):
        torch.testing.assert_close(found.weights, attend(**given, need_weights=True).weights)
