"""Reductions over groups in a fixed order: the numbers and gradients of the definition."""

from __future__ import annotations

import copy
import gc
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attn_core import (
    Additive,
    Dot,
    Edges,
    Entmax,
    Hard,
    Identity,
    PendingEdges,
    Softmax,
    Sparsemax,
    attend,
    backend,
    clear_cache,
    scatter_softmax,
    weights,
)
from attn_core.backends import csr
from attn_core.graph import grouping
from attn_core.ops import edge_scores, segments
from attn_core.rows import EdgeRows

pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")

from attn_core.backends.triton import plan
from attn_core.backends.triton import segments as run

DOUBLE = torch.float64
NUM = 6


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of a few entries are cut already."""
    monkeypatch.setattr(plan, "CHUNK", 4)


def groups() -> Tensor:
    """Group 1 is large, group 3 empty, and so is the last."""
    return torch.tensor([0, 1, 4, 1, 1, 2, 1, 4, 1, 1, 2, 1, 1, 1, 1, 4, 1, 1, 0, 1, 1])


def both(function: Callable[[], Any]) -> tuple[Any, Any]:
    """What the kernels find, and the definition."""
    found = function()
    with backend("reference"):
        return found, function()


@pytest.mark.parametrize(
    ("shape", "with_infinity"),
    [((), False), ((2, 3), False), ((2, 3), True), ((0,), False), ((130,), False)],
)
def test_softmax_and_its_gradient(shape: tuple[int, ...], with_infinity: bool, device: str) -> None:
    index = groups().to(device)
    x = torch.randn(len(index), *shape, dtype=DOUBLE, device=device)
    if with_infinity:
        x[index == 4] = -torch.inf
        x[(index == 1).nonzero()[:6]] = -torch.inf  # its first part has nothing else
    x.requires_grad_()
    direction = torch.randn(x.shape, dtype=DOUBLE, device=device)
    of_total = torch.randn(NUM, *shape, dtype=DOUBLE, device=device)

    def everything() -> list[Tensor]:
        rows = EdgeRows(index, NUM)
        total = Softmax().log_sum_exp(x, rows)
        loss = (scatter_softmax(x, index, NUM) * direction).sum()
        loss = loss + torch.where(total == -torch.inf, 0, total * of_total).sum()
        return [scatter_softmax(x, index, NUM), total, *torch.autograd.grad(loss, x)]

    found, expected = both(everything)
    torch.testing.assert_close(found, expected)
    assert all(part.isfinite().all() for part in found[::2])


@pytest.mark.parametrize("reduce", ["sum", "max", "spread"])
def test_reductions(reduce: str, device: str) -> None:
    index = groups().to(device)
    rows = EdgeRows(index, NUM)
    x = torch.randn(NUM if reduce == "spread" else len(index), 2, 3, dtype=DOUBLE, device=device)
    torch.testing.assert_close(*both(lambda: getattr(rows, reduce)(x)))
    if reduce != "max":
        torch.testing.assert_close(*both(lambda: derivatives(getattr(rows, reduce), x)))


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The first derivatives of the function, and those of a product with them."""
    torch.manual_seed(0)
    x = x.detach().requires_grad_()
    found = function(x)
    direction = torch.randn(found.shape, dtype=DOUBLE).to(x).requires_grad_()
    (first,) = torch.autograd.grad((found.sin() * direction).sum(), x, create_graph=True)
    second = torch.autograd.grad((first * torch.randn_like(first)).sum(), (x, direction))
    return [first, *second]


def test_a_maximum_with_gradients_is_torchs(device: str) -> None:
    x = torch.tensor([1.0, 3.0, 2.0], device=device, requires_grad=True)
    rows = EdgeRows(torch.tensor([1, 1, 0], device=device), 2)
    (grad,) = torch.autograd.grad(rows.max(x).sum(), x)
    assert grad.tolist() == [0, 1, 1]


def test_softmax_can_be_differentiated_twice(device: str) -> None:
    index = groups().to(device)
    x = torch.randn(len(index), 2, dtype=DOUBLE, device=device)
    rows = EdgeRows(index, NUM)

    def total(x: Tensor) -> Tensor:
        return Softmax().log_sum_exp(x, rows)[index.unique()]

    for function in (lambda x: scatter_softmax(x, index, NUM), total):
        torch.testing.assert_close(*both(lambda function=function: derivatives(function, x)))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_a_number_stays_in_its_group(value: float, device: str) -> None:
    index = groups().to(device)
    x = torch.zeros(len(index), 2, device=device)
    x[3, 0] = value  # in group 1
    for found, expected in (
        both(lambda: scatter_softmax(x, index, NUM)),
        both(lambda: EdgeRows(index, NUM).max(x)),
        both(lambda: EdgeRows(index, NUM).sum(x)),
    ):
        torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision(dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are kept in float32: hundreds of equal shares do not round away."""
    monkeypatch.setattr(plan, "CHUNK", 64)
    index = torch.zeros(300, dtype=torch.int64, device=device)
    x = torch.full((300, 1), 9.0, dtype=dtype, device=device)
    found, total = segments.softmax(x, index, 1)
    assert found.dtype == dtype and total.dtype == torch.float32
    torch.testing.assert_close(found, torch.full_like(x, 1 / 300))
    torch.testing.assert_close(total, torch.full_like(total, 9 + math.log(300)))
    assert scatter_softmax(x, index).dtype == dtype
    torch.testing.assert_close(segments.sums(x, index, 1), torch.full_like(x[:1], 2700))


def test_large_scores_do_not_overflow(device: str) -> None:
    index = torch.tensor([0, 0, 1], device=device)
    found = scatter_softmax(torch.tensor([1e4, 1e4, -1e4], device=device), index)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 1.0], device=device))


def test_no_entries_and_no_groups(device: str) -> None:
    none = torch.zeros(0, dtype=torch.int64, device=device)
    x = torch.zeros(0, 2, device=device, requires_grad=True)
    for num in (0, 3):
        found, total = segments.softmax(x, none, num)
        assert found.shape == (0, 2) and (total == -torch.inf).all() and total.shape == (num, 2)
        found.sum().backward()
        assert segments.sums(x, none, num).tolist() == [[0, 0]] * num
        assert (segments.largest(x.detach(), none, num) == -torch.inf).all()
    assert scatter_softmax(x.detach(), none).shape == (0, 2)


def test_strides_do_not_matter(device: str) -> None:
    index = torch.stack([groups(), groups() + 9], 1).to(device)[:, 0]
    x = torch.randn(3, len(index), dtype=DOUBLE, device=device).T.requires_grad_()
    found, expected = both(
        lambda: [
            scatter_softmax(x, index, NUM),
            *torch.autograd.grad(scatter_softmax(x, index, NUM)[:, ::2].square().sum(), x),
        ]
    )
    torch.testing.assert_close(found, expected)


def test_the_kernels_are_what_runs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, the tests above might compare plain torch with itself."""
    calls = []
    for name in ("sums", "largest", "softmax", "softmax_backward"):
        real = getattr(run, name)
        monkeypatch.setattr(
            run, name, lambda *args, real=real, name=name: calls.append(name) or real(*args)
        )
    index = groups().to(device)
    x = torch.randn(len(index), 2, device=device, requires_grad=True)
    scatter_softmax(x, index, NUM).sum().backward()
    rows = segments.Segments(index, NUM)
    rows.max(x.detach())
    rows.sum(x)
    assert calls == ["softmax", "softmax_backward", "largest", "sums"]
    for name in ("torch", "reference"):
        with backend(name):
            scatter_softmax(x, index, NUM).sum().backward()
    assert len(calls) == 4


@pytest.mark.parametrize(
    "normalizer",
    [Sparsemax(), Entmax(), Hard(), Identity(), Softmax(0.5)],
    ids=lambda normalizer: f"{type(normalizer).__name__} {vars(normalizer)}",
)
def test_every_normaliser_over_edges(normalizer: Any, device: str) -> None:
    pairs = torch.stack([torch.randint(7, (30,)), torch.randint(5, (30,))]).to(device)
    pairs[1, ::2] = 2
    edges = Edges.from_edge_index(pairs, (7, NUM))
    query, key, value = (
        torch.randn(n, 2, 3, dtype=DOUBLE, device=device, requires_grad=True) for n in (NUM, 7, 7)
    )
    vector = torch.randn(2, 3, dtype=DOUBLE, device=device, requires_grad=True)

    def everything() -> list[Tensor]:
        result = attend(
            query, key, value, score=Additive(vector), normalizer=normalizer, support=edges,
            need_weights=True,
        )  # fmt: skip
        loss = result.output.square().sum() + result.weights.cos().sum()
        leaves = (query, key, value, vector)
        return [*result[:2], *torch.autograd.grad(loss, leaves, materialize_grads=True)]

    torch.testing.assert_close(*both(everything))


def test_weights_from_the_log_sum_exp(device: str) -> None:
    pairs = torch.stack([torch.randint(5, (20,)), torch.randint(5, (20,))]).to(device)
    x = torch.randn(5, 1, 2, dtype=DOUBLE, device=device)
    edges = Edges.from_edge_index(pairs, 5)
    result = attend(x, x, x, score=Dot(), support=edges, need_weights=True)
    some = Edges.from_edge_index(pairs[:, 3:7], 5)
    found = weights(x, x, score=Dot(), support=some, log_sum_exp=result.log_sum_exp)
    torch.testing.assert_close(found, result.weights[3:7])


class Operators(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("large", [False, True])
def test_nothing_is_added_atomically(
    large: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither forward nor backward calls what torch sums in whichever order threads come."""
    if large:
        monkeypatch.setattr(edge_scores, "SMALL", 0)
        monkeypatch.setattr(csr.Sorted, "of", lambda *_: pytest.fail("plain torch was called"))
    edges = Edges.from_edge_index(torch.randint(5, (2, 20)).to(device), 5)
    x = torch.randn(5, 2, 3, device=device, requires_grad=True)
    with Operators() as spy:
        for normalizer in (Sparsemax(), Entmax(), Softmax(0.5)):
            output = attend(x, x, x, score=Dot(), normalizer=normalizer, support=edges).output
            output.square().sum().backward()
    assert any("segment_entmax" in name for name in spy.names)
    atomic = ("index_add", "scatter", "index_put", "index_select_backward")
    assert not [name for name in spy.names if any(word in name for word in atomic)]


# --- Sorting once ---


def test_an_index_is_sorted_once_and_again_when_it_is_edited(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sorts = []
    sort = grouping.sort_nodes
    monkeypatch.setattr(grouping, "sort_nodes", lambda *a: sorts.append(1) or sort(*a))
    index = torch.tensor([0, 1, 1], device=device)
    x = torch.zeros(3, device=device)
    for _ in range(3):
        assert scatter_softmax(x, index, 2).tolist() == [1.0, 0.5, 0.5]
    assert len(sorts) == 1
    index[1] = 0
    assert scatter_softmax(x, index, 2).tolist() == [0.5, 0.5, 1.0]
    assert len(sorts) == 2
    clear_cache()
    scatter_softmax(x, index, 2)
    assert len(sorts) == 3
    index[0] = 7
    with pytest.raises(IndexError, match="index has the entry 7"):
        scatter_softmax(x, index, 2)
    with torch.inference_mode():
        inferred = torch.tensor([0, 1, 1], device=device)
        assert scatter_softmax(x, inferred, 2).tolist() == [1.0, 0.5, 0.5]


def test_edges_are_not_sorted_anew(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = torch.randint(5, (2, 20)).to(device)
    edges = Edges.from_edge_index(torch.stack([source, target]), 5)
    _ = edges.by_query.order, edges.by_key.order
    monkeypatch.setattr(grouping, "sort_nodes", lambda *_: pytest.fail("sorts again"))
    monkeypatch.setattr(grouping, "sort_pairs", lambda *_: pytest.fail("sorts again"))
    x = torch.randn(5, 2, 3, device=device, requires_grad=True)
    output = attend(x, x, x, score=Dot(), normalizer=Softmax(0.5), support=edges).output
    found = torch.autograd.grad(output.square().sum(), x)

    def of_node(node: int) -> Tensor:
        seen = x[source[target == node]]
        return (((x[node] * seen).sum(-1) / 0.5).softmax(0)[..., None] * seen).sum(0)

    expected = torch.stack([of_node(node) for node in range(5)])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(found, torch.autograd.grad(expected.square().sum(), x))


def test_copies_of_edges_answer_for_their_pairs(device: str) -> None:
    edges = Edges.from_edge_index(torch.randint(5, (2, 20)).to(device), 5)
    x = torch.randn(5, 2, 3, device=device, dtype=DOUBLE)
    outputs = [
        attend(x, x, x, score=Dot(), normalizer=Sparsemax(), support=support).output
        for support in (edges, copy.deepcopy(edges), pickle.loads(pickle.dumps(edges)))
    ]
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_pending_edges_and_dropout(dtype: torch.dtype, device: str) -> None:
    x = torch.randn(5, 2, 3, device=device, dtype=dtype, requires_grad=True)
    pending = PendingEdges(torch.randint(5, (2, 20)).to(device), 5, 5, self_loops=True)

    def everything() -> list[Tensor]:
        torch.manual_seed(1)
        output = attend(
            x, x, x, score=Dot(), normalizer=Sparsemax(), support=pending, dropout=0.3
        ).output
        return [output, *torch.autograd.grad(output.float().square().sum(), x)]

    torch.testing.assert_close(*both(everything))


def test_transforms_take_the_definition(device: str) -> None:
    index = groups().to(device)
    x = torch.randn(2, len(index), device=device)
    found = torch.func.vmap(lambda y: scatter_softmax(y, index, NUM))(x)
    torch.testing.assert_close(found[1], scatter_softmax(x[1], index, NUM))
    out, tangent = torch.func.jvp(lambda y: scatter_softmax(y, index, NUM), (x[0],), (x[1],))
    mean = torch.zeros(NUM, device=device).index_add(0, index, out * x[1])
    torch.testing.assert_close(tangent, out * (x[1] - mean[index]))


def test_a_backward_pass_after_the_edges_died(device: str) -> None:
    x = torch.randn(5, 1, 3, device=device, dtype=DOUBLE, requires_grad=True)
    pairs = torch.randint(5, (2, 20)).to(device)

    def run(keep: list[Edges]) -> Tensor:
        edges = Edges.from_edge_index(pairs, 5)
        keep.append(edges)
        return attend(x, x, x, score=Dot(), normalizer=Sparsemax(), support=edges).output

    kept: list[Edges] = []
    output = run([])
    gc.collect()
    grads = [torch.autograd.grad(y.square().sum(), x)[0] for y in (output, run(kept))]
    torch.testing.assert_close(*grads)


def test_the_same_bits_again(device: str) -> None:
    num, entries = (3000, 60_000) if device == "cuda" else (5, 60)
    index = torch.randint(num, (entries,)).to(device)
    index[::2] = 0
    x = torch.randn(entries, 3, device=device, requires_grad=True)

    def everything() -> list[Tensor]:
        found = scatter_softmax(x, index, num)
        return [found, *torch.autograd.grad(found.cos().sum(), x)]

    assert all(map(torch.equal, everything(), everything()))


def test_ops_keep_their_contract_with_torch(device: str) -> None:
    index = torch.tensor([0, 2, 2, 1], device=device)
    x = torch.randn(4, 2, dtype=DOUBLE, device=device, requires_grad=True)
    per_group = torch.randn(3, 2, dtype=DOUBLE, device=device, requires_grad=True)
    ops = torch.ops.attn_core
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for op, given in (
        (ops.segment_sum, (x, index, 3)),
        (ops.segment_gather, (per_group, index)),
        (ops.segment_max, (x.detach(), index, 3)),
        (ops.segment_softmax, (x, index, 3)),
        (ops.segment_softmax_backward, (x, x.detach(), per_group, index)),
    ):
        torch.library.opcheck(op.default, given, test_utils=tests)


def test_without_the_kernels_the_ops_fall_back() -> None:
    """As when a backward pass runs where they do not."""
    index = groups()
    x = torch.randn(len(index), 2, dtype=DOUBLE, requires_grad=True)
    rows = EdgeRows(index, NUM)
    loss = torch.ops.attn_core.segment_softmax(x, index, NUM)[0].cos().sum()
    plain = scatter_softmax(x, index, NUM).cos().sum()
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(plain, x))
    for own, theirs in (
        (segments.sums(x, index, NUM), rows.sum(x)),
        (segments.largest(x, index, NUM), rows.max(x)),
        (segments.softmax(x, index, NUM)[1], Softmax().log_sum_exp(x, rows)),
    ):
        torch.testing.assert_close(own, theirs)


def test_compiles_without_a_graph_break(device: str) -> None:
    index = groups().to(device)
    x = torch.randn(len(index), 2, device=device, requires_grad=True)

    def run(x: Tensor) -> Tensor:
        return scatter_softmax(x, index, NUM)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), run(x))
    compiled(x).square().sum().backward()
    assert x.grad is not None
