"""Softmax, entmax and sparsemax over groups by the compiled kernels: the definition's numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attn_core import (
    Dense,
    Edges,
    Entmax,
    Normalizer,
    ScaledDot,
    Softmax,
    Sparsemax,
    attend,
    backend,
    compiled,
    scatter_softmax,
)
from attn_core.backends import cpu
from attn_core.graph import grouping
from attn_core.rows import EdgeRows

pytestmark = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")

NORMALIZERS: dict[float, Normalizer] = {
    1.0: Softmax(), 1.5: Entmax(), 2.0: Sparsemax(), 1.3: Entmax(1.3), 0.8: Entmax(0.8),
}  # fmt: skip
SERVED = [alpha for alpha, x in NORMALIZERS.items() if x.entmax_alpha() is not None]
SETS = ["avx512", "avx2", "baseline"]
DOUBLE = torch.float64


def outcome(scores: Tensor, index: Tensor, num: int, alpha: float) -> list[Tensor]:
    """The weights and their gradient; of softmax, the log-sum-exp and its gradient too."""
    found = []
    scores = scores.detach().requires_grad_()
    for x in [NORMALIZERS[alpha].segment(scores, index, num)] + (
        [Softmax().log_sum_exp(scores, EdgeRows(index, num))] if alpha == 1 else []
    ):
        finite = torch.where(x.isfinite(), x, 0)
        numbers = torch.arange(x.numel(), dtype=DOUBLE).view(x.shape).cos()
        found += [x, *torch.autograd.grad((finite * numbers).sum(), scores)]
    return found


def assert_true(scores: Tensor, index: Tensor, num: int, alpha: float) -> None:
    single = scores.dtype == torch.float32
    with backend("reference"):
        expected = outcome(scores.double(), index, num, alpha)
    for ours, right in zip(outcome(scores, index, num, alpha), expected, strict=True):
        assert ours.dtype == scores.dtype
        torch.testing.assert_close(
            ours.double(), right, rtol=1e-5 if single else 1e-11, atol=3e-6 if single else 1e-12
        )


@pytest.mark.parametrize("alpha", NORMALIZERS)
@pytest.mark.parametrize("variant", SETS, indirect=True)
def test_every_instruction_set_equals_the_definition(variant: None, alpha: float) -> None:
    index = torch.cat([torch.randint(40, (300,)), torch.full((70,), 43)])[torch.randperm(370)]
    for columns in (1, 2, 4, 7, 8, 16, 21):
        scores = 2 * torch.randn(370, columns, dtype=DOUBLE)
        assert_true(scores, index, 45, alpha)
        assert_true(scores.float(), index, 45, alpha)


@given(
    alpha=st.sampled_from(list(NORMALIZERS)),
    num=st.integers(1, 9),
    index=st.lists(st.integers(0, 8), max_size=60),
    shape=st.lists(st.integers(0, 9), max_size=2),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    absent=st.floats(0, 1),
    layout=st.sampled_from(["packed", "every second", "columns first", "one for all"]),
)
def test_any_shape_equals_the_definition(
    alpha: float,
    num: int,
    index: list[int],
    shape: list[int],
    dtype: torch.dtype,
    absent: float,
    layout: str,
) -> None:
    group = torch.tensor([i % num for i in index], dtype=torch.int64)
    scores = torch.randn(len(index), *shape, dtype=dtype).mul_(1.5)
    scores[torch.rand(scores.shape) < absent / 2] = -math.inf
    if layout == "every second":
        scores = torch.stack([scores, scores], -1)[..., 0]
        group = torch.stack([group, group], 1)[:, 0]
    elif layout == "columns first":
        scores = scores.movedim(0, -1).contiguous().movedim(-1, 0)
    elif layout == "one for all" and scores.dim() > 1:
        scores = scores[:, :1].expand(scores.shape)
    assert_true(scores, group, num, alpha)


@given(
    alpha=st.sampled_from(list(NORMALIZERS)),
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    absent=st.floats(0, 1),
    layout=st.sampled_from(["packed", "every second", "turned", "one for all"]),
)
def test_dense_rows_equal_the_definition(
    alpha: float, shape: list[int], dtype: torch.dtype, absent: float, layout: str
) -> None:
    scores = torch.randn(shape, dtype=dtype).mul_(1.5)
    if layout == "every second":
        scores = torch.stack([scores, scores], -1)[..., 0]
    elif layout == "turned":
        scores = scores.movedim(0, -1)
    elif layout == "one for all":
        scores = scores[:1].expand(scores.shape)
    assert_dense(scores, torch.rand(scores.shape) >= absent, alpha)


@pytest.mark.parametrize("alpha", NORMALIZERS)
def test_dense_rows_of_more_numbers_than_a_task_takes(alpha: float) -> None:
    assert_dense(torch.randn(2, 10_001), None, alpha)


@pytest.mark.parametrize("alpha", NORMALIZERS)
def test_dense_rows_are_differentiable_twice_and_in_batches(alpha: float) -> None:
    scores = torch.randn(3, 5, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(NORMALIZERS[alpha].dense, scores, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(NORMALIZERS[alpha].dense, scores)


@pytest.mark.parametrize("alpha", NORMALIZERS)
def test_the_weights_of_dense_rows_are_the_callers_to_edit(alpha: float) -> None:
    scores = torch.randn(3, 4, requires_grad=True)
    grads = []
    for edit in (lambda w: w.mul_(2), lambda w: w * 2):
        weights = edit(NORMALIZERS[alpha].dense(scores))
        grads.append(torch.autograd.grad(weights.square().sum(), scores)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("kind", [Softmax, Sparsemax, Entmax])
@pytest.mark.parametrize("support", [Dense(), Edges.from_edge_index(torch.ones(3, 3).nonzero().T)])
def test_a_subclass_has_the_weights_that_it_makes(kind: type[Normalizer], support: Any) -> None:
    class Even(kind):  # type: ignore[misc, valid-type]
        def normalize(self, scores: Tensor, rows: Any) -> Tensor:
            return torch.full_like(scores, 0.25)

    x = torch.randn(3, 1, 2)
    assert Even().entmax_alpha() is None
    assert (Even().dense(torch.randn(2, 4)) == 0.25).all()
    assert (Even().segment(torch.randn(4, 2), torch.tensor([0, 0, 1, 0])) == 0.25).all()
    for weights in (False, True):
        found = attend(
            x, x, x, score=ScaledDot(), normalizer=Even(), support=support, need_weights=weights
        )
        torch.testing.assert_close(found.output, x.sum(0, keepdim=True).expand(3, 1, 2) / 4)


def assert_dense(scores: Tensor, mask: Tensor | None, alpha: float) -> None:
    """Over the last axis, the weights and their gradient are those of the definition in double."""

    def outcome(scores: Tensor) -> tuple[Tensor, Tensor]:
        scores = scores.detach().requires_grad_()
        weights = NORMALIZERS[alpha].dense(scores, mask)
        numbers = torch.arange(weights.numel(), dtype=weights.dtype).view(weights.shape).cos()
        return weights, torch.autograd.grad((weights * numbers).sum(), scores)[0]

    with backend("reference"):
        expected = outcome(scores.double())
    single = scores.dtype == torch.float32
    for ours, right in zip(outcome(scores), expected, strict=True):
        assert ours.dtype == scores.dtype
        torch.testing.assert_close(
            ours.double(), right, rtol=1e-5 if single else 1e-11, atol=3e-6 if single else 1e-12
        )


@pytest.mark.parametrize("alpha", NORMALIZERS)
def test_differentiable_twice(alpha: float) -> None:
    index = torch.tensor([2, 0, 2, 2, 0, 5])
    scores = torch.randn(6, 2, dtype=DOUBLE).requires_grad_()

    def run(scores: Tensor) -> Tensor:
        return NORMALIZERS[alpha].segment(scores, index, 6)

    assert torch.autograd.gradcheck(run, scores, nondet_tol=0.0)
    assert torch.autograd.gradgradcheck(run, scores)
    rows = EdgeRows(index, 6)
    assert torch.autograd.gradgradcheck(lambda x: Softmax().log_sum_exp(x, rows)[[0, 2, 5]], scores)


@pytest.mark.parametrize("alpha", NORMALIZERS)
def test_a_hub_and_the_same_bits_for_any_number_of_threads(alpha: float) -> None:
    index = torch.cat([torch.full((30_001,), 3), torch.randint(900, (20_000,))])
    index = index[torch.randperm(len(index))]
    scores = torch.randn(len(index), 3)
    assert_true(scores, index, 901, alpha)
    before, first = torch.get_num_threads(), outcome(scores, index, 901, alpha)
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            for ours, theirs in zip(outcome(scores, index, 901, alpha), first, strict=True):
                assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


def test_a_group_of_a_million_with_large_scores() -> None:
    many = 1_000_000
    index = torch.zeros(many, dtype=torch.int64)
    weights = scatter_softmax(torch.full((many,), 1000.0), index)
    torch.testing.assert_close(weights, torch.full((many,), 1e-6))
    assert torch.equal(Sparsemax().segment(torch.arange(many) * 2.0, index)[-2:].int(),
                       torch.tensor([0, 1], dtype=torch.int32))  # fmt: skip


def test_very_wide_scores_are_left_to_plain_torch() -> None:
    scores, index = torch.randn(3, 70_000), torch.tensor([0, 1, 0])
    weights = scatter_softmax(scores, index, 2)
    torch.testing.assert_close(weights[1], torch.ones(70_000))
    torch.testing.assert_close(weights[[0, 2]], scores[[0, 2]].softmax(0))


def test_half_types_are_computed_in_float32() -> None:
    index = torch.zeros(70_000, dtype=torch.int64)
    scores = torch.zeros(70_000, dtype=torch.float16)  # their sum exceeds float16
    assert scatter_softmax(scores, index).sum(dtype=torch.float64).item() == pytest.approx(1, 1e-2)


@pytest.mark.parametrize("normalizer", NORMALIZERS.values())
def test_missing_numbers_stay_in_their_group(normalizer: Normalizer) -> None:
    scores = torch.tensor([0.0, math.nan, 1.0, 2.0, -math.inf, -math.inf])
    index = torch.tensor([0, 0, 1, 1, 2, 2])
    for implementation in ("auto", "reference"):
        with backend(implementation):
            weights = normalizer.segment(scores, index, 3)
        assert weights[:2].isnan().all()
        assert weights[2:4].sum().item() == pytest.approx(1)
        assert not weights[4:].any()


def test_an_index_is_sorted_once_until_it_is_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    sorts: list[int] = []
    sort_pairs = grouping.sort_pairs
    monkeypatch.setattr(
        grouping, "sort_pairs", lambda *given: sorts.append(1) or sort_pairs(*given)
    )
    index, scores = torch.tensor([0, 1, 0]), torch.zeros(3, requires_grad=True)
    scatter_softmax(scores, index, 2).square().sum().backward()
    scatter_softmax(scores, index, 2)
    assert len(sorts) == 1
    index[1] = 0
    torch.testing.assert_close(scatter_softmax(scores, index, 2), torch.full((3,), 1 / 3))
    with torch.inference_mode():
        assert scatter_softmax(scores, index.clone(), 2)[0].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("implementation", ["auto", "torch"])
@pytest.mark.parametrize("alpha", SERVED)
def test_the_ops_keep_their_contract_with_torch(alpha: float, implementation: str) -> None:
    index = torch.tensor([2, 0, 2, 1])
    scores = torch.randn(4, 3, dtype=DOUBLE).requires_grad_()
    ops = torch.ops.attn_core
    with backend(implementation):
        if alpha == 1:
            torch.library.opcheck(ops.segment_softmax.default, (scores, index, 4))
            return
        torch.library.opcheck(ops.segment_entmax.default, (scores, index, 4, alpha))
        weights = NORMALIZERS[alpha].segment(scores.detach(), index, 4)
        torch.library.opcheck(
            ops.segment_entmax_backward.default,
            (torch.randn(4, 3, dtype=DOUBLE), weights, index, 4, alpha),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_transforms_take_the_definition() -> None:
    index, scores = torch.tensor([0, 1, 0]), torch.randn(5, 3, dtype=DOUBLE)

    def run(x: Tensor) -> Tensor:
        return scatter_softmax(x, index, 2)

    expected = torch.stack([run(x) for x in scores])
    torch.testing.assert_close(torch.func.vmap(run)(scores), expected)
    tangent = torch.ones(3, dtype=DOUBLE)
    tangent[0] = 0
    _, moved = torch.func.jvp(run, (scores[0],), (tangent,))
    jacobian = torch.autograd.functional.jacobian(run, scores[0])
    torch.testing.assert_close(moved, jacobian @ tangent)


def test_the_module_refuses_what_it_cannot_serve() -> None:
    pointer, place, out = torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.zeros(2, 1)

    def call(**changed: Any) -> None:
        given = {"given": torch.zeros(2, 1), "pointer": pointer, "place": place, **changed}
        compiled.module.segment_entmax(*given.values(), 1.5, 1, out)
        compiled.module.segment_softmax(*given.values(), 1, out, None)

    call()
    with pytest.raises(IndexError, match="index out of range"):
        call(place=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="pointer that does not rise"):
        call(pointer=torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="given has a shape"):
        call(given=torch.zeros(3, 1))
    for alpha in (1.0, 0.9, 0.0, -1.0, 2.1, math.nan):
        with pytest.raises(ValueError, match="alpha is"):
            compiled.module.segment_entmax(torch.zeros(2, 1), pointer, place, alpha, 1, out)
