"""Normalisers: values worked out by hand, their definitions, and their derivatives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_geometric.utils
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attn_core import Entmax, Identity, Normalizer, Softmax, Sparsemax, scatter_softmax
from attn_core.normalizers import DenseRows

INF = math.inf
HEADS = 2
# Six queries, of which 1 and 4 have no pair; pairs in no order
INDEX = torch.tensor([2, 0, 3, 2, 5, 0, 2, 3, 2, 0, 5, 3, 3, 3])
MASK = torch.tensor(
    [[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]], dtype=torch.bool
)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


NORMALIZERS: dict[str, Callable[[], Normalizer]] = {
    "softmax": Softmax,
    "softmax, cooled": lambda: Softmax(0.5),
    "softmax, learned": lambda: Softmax(torch.tensor(0.7, dtype=torch.float64)),
    "softmax, per head": lambda: Softmax(torch.tensor([0.5, 2.0], dtype=torch.float64)),
    "sparsemax": Sparsemax,
    "entmax 1.5": Entmax,
    "entmax 1.3": lambda: Entmax(1.3),
    "entmax 3": lambda: Entmax(3.0),
    "entmax, learned": lambda: Entmax(torch.tensor(1.7, dtype=torch.float64)),
    "entmax, per head": lambda: Entmax(torch.tensor([1.2, 2.5], dtype=torch.float64)),
}
every = pytest.mark.parametrize("name", NORMALIZERS)


def alpha_of(normalizer: Normalizer) -> Any:
    if isinstance(normalizer, Sparsemax):
        return 2.0
    return normalizer.alpha if isinstance(normalizer, Entmax) else 1.0


@pytest.mark.parametrize(
    ("normalizer", "scores", "weights"),
    [
        (Softmax(), [0, math.log(3)], [1 / 4, 3 / 4]),
        (Softmax(0.5), [0, math.log(3)], [1 / 10, 9 / 10]),
        (Softmax(torch.tensor(2.0)), [0, math.log(9)], [1 / 4, 3 / 4]),
        (Softmax(), [-INF, 5, 5], [0, 1 / 2, 1 / 2]),
        (Softmax(), [1e4, 1e4, -1e4], [1 / 2, 1 / 2, 0]),
        # τ = (1 + 0.8 - 1) / 2
        (Sparsemax(), [1, 0.8, -1], [0.6, 0.4, 0]),
        (Sparsemax(), [0.3, 0.3, 0.3], [1 / 3, 1 / 3, 1 / 3]),
        (Sparsemax(), [2, 0, 0], [1, 0, 0]),
        (Sparsemax(), [1e4, -1e4, -INF], [1, 0, 0]),
        # (0.5 - τ)² + τ² = 1
        (Entmax(), [1, 0], [(4 + math.sqrt(7)) / 8, (4 - math.sqrt(7)) / 8]),
        (Entmax(), [1, 1, -2], [1 / 2, 1 / 2, 0]),
        (Entmax(), [2, 0, -INF], [1, 0, 0]),
        (Entmax(), [1e4, 1e4, -1e4], [1 / 2, 1 / 2, 0]),
        (Entmax(2), [1, 0.8, -1], [0.6, 0.4, 0]),
        (Entmax(torch.tensor(2.0)), [1, 0.8, -1], [0.6, 0.4, 0]),
        # √(2 - τ) = 1 at τ = 1, where the second has no part
        (Entmax(3.0), [1, 0], [1, 0]),
        # √(0.5 - τ) + √(-τ) = 1 at τ = -1/16
        (Entmax(3.0), [0.25, 0], [3 / 4, 1 / 4]),
        (Entmax(torch.tensor(3.0)), [0.25, 0, -1e4], [3 / 4, 1 / 4, 0]),
        (Identity(), [3, -INF, -2], [3, 0, -2]),
    ],
)
def test_golden_values(normalizer: Normalizer, scores: list[float], weights: list[float]) -> None:
    row, expected = (torch.tensor(x, dtype=torch.float32) for x in (scores, weights))
    torch.testing.assert_close(normalizer.dense(row), expected, atol=1e-6, rtol=1e-5)
    index = torch.full((len(row),), 1)
    torch.testing.assert_close(normalizer.segment(row, index, 3), expected, atol=1e-6, rtol=1e-5)


@every
def test_segments_are_the_rows_of_the_dense_form(name: str) -> None:
    normalizer = NORMALIZERS[name]()
    scores = randn(len(INDEX), HEADS)
    weights = normalizer.segment(scores, INDEX, 6)
    for query in INDEX.unique():
        row = scores[query == INDEX]
        expected = normalizer.dense(row.T.unsqueeze(1)).squeeze(1).T
        torch.testing.assert_close(weights[query == INDEX], expected)
    torch.testing.assert_close(normalizer.segment(scores, INDEX), weights)  # the number is inferred


@every
def test_rows_sum_to_one_or_are_zero(name: str) -> None:
    weights = NORMALIZERS[name]().dense(randn(HEADS, 4, 5), MASK)
    expected = MASK.any(-1).to(weights.dtype).expand(HEADS, 4)
    torch.testing.assert_close(weights.sum(-1), expected)
    assert (weights >= 0).all()
    assert not weights.masked_select(~MASK).any()


@every
def test_scores_of_minus_infinity_are_pairs_that_do_not_exist(name: str) -> None:
    normalizer, scores = NORMALIZERS[name](), randn(HEADS, 4, 5)
    masked = scores.masked_fill(~MASK, -INF)
    torch.testing.assert_close(normalizer.dense(masked), normalizer.dense(scores, MASK))


@every
def test_weights_do_not_change_when_a_row_is_shifted(name: str) -> None:
    normalizer, scores = NORMALIZERS[name](), randn(HEADS, 4, 5)
    shifted = scores + 100 * randn(HEADS, 4, 1)
    torch.testing.assert_close(normalizer.dense(shifted), normalizer.dense(scores))


@every
@settings(max_examples=8)
@given(st.lists(st.floats(-4, 4), min_size=1, max_size=6))
def test_weights_maximise_what_they_are_defined_by(name: str, scores: list[float]) -> None:
    """p = argmax pᵀz + H_α(p): its optimality conditions, and no other point is better."""
    normalizer = NORMALIZERS[name]()
    z = torch.tensor(scores, dtype=torch.float64).expand(HEADS, 1, -1)
    weights = normalizer.dense(z)[:, 0]
    temperature = normalizer.temperature if isinstance(normalizer, Softmax) else 1.0
    for head in range(HEADS):
        alpha, tau = (
            float(x[head] if isinstance(x, Tensor) and x.dim() else x)
            for x in (alpha_of(normalizer), temperature)
        )

        def objective(
            p: Tensor, alpha: float = alpha, tau: float = tau, head: int = head
        ) -> Tensor:
            if alpha == 1:
                entropy = -torch.special.xlogy(p, p).sum(-1)
            else:
                entropy = (p - p**alpha).sum(-1) / (alpha * (alpha - 1))
            return p @ z[head, 0] / tau + entropy

        p = weights[head]
        assert abs(p.sum() - 1) < 1e-9
        others = torch.distributions.Dirichlet(torch.full_like(p, 0.3)).sample((50,))
        others = torch.cat([others, torch.eye(len(p)).double(), 0.99 * p + 0.01 * others])
        assert (objective(p) >= objective(others) - 1e-9).all()
        if alpha > 1:  # the same τ for all that have a weight, and none above it without
            threshold = (alpha - 1) * z[head, 0] - p ** (alpha - 1)
            assert threshold.max() - threshold[p > 0].min() < 1e-6


def projection_onto_simplex(z: Tensor) -> Tensor:
    """The closest point of the simplex, found by trying every set of coordinates."""
    best: tuple[float, Tensor] | None = None
    for size in range(1, len(z) + 1):
        for chosen in itertools.combinations(range(len(z)), size):
            point = torch.zeros_like(z)
            part = list(chosen)
            point[part] = z[part] - (z[part].sum() - 1) / size
            distance = float((point - z).square().sum())
            if (point >= 0).all() and (best is None or distance < best[0]):
                best = distance, point
    assert best is not None
    return best[1]


@settings(max_examples=30)
@given(st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.5]), min_size=1, max_size=6))
def test_sparsemax_is_the_projection_onto_the_simplex(scores: list[float]) -> None:
    z = torch.tensor(scores, dtype=torch.float64)  # with ties
    torch.testing.assert_close(Sparsemax().dense(z), projection_onto_simplex(z))


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_sorting_and_bisection_agree(alpha: float) -> None:
    scores = 3 * randn(HEADS, 40, 7)
    scores[..., 3] = scores[..., 4]
    mask = torch.rand(40, 7) < 0.7
    mask[0] = False
    by_sorting, by_bisection = Entmax(alpha), Entmax(torch.tensor(alpha, dtype=torch.float64))
    expected = by_sorting.dense(scores, mask)
    torch.testing.assert_close(by_bisection.dense(scores, mask), expected)
    if alpha == 2:
        torch.testing.assert_close(Sparsemax().dense(scores, mask), expected)


@pytest.mark.parametrize("alpha", [1.001, torch.tensor(1.001, dtype=torch.float64)])
def test_entmax_approaches_softmax(alpha: Any) -> None:
    scores = randn(5, 6)
    torch.testing.assert_close(
        Entmax(alpha).dense(scores), Softmax().dense(scores), atol=2e-3, rtol=0
    )


# As a function of all that may be learned; the layouts have masks, empty rows and ties.
LEARNED = {
    "softmax": (Softmax, None),
    "temperature": (Softmax, torch.tensor(0.7)),
    "temperature per head": (Softmax, torch.tensor([0.5, 2.0])),
    "sparsemax": (Sparsemax, None),
    "entmax 1.5": (Entmax, None),
    "alpha 1.3": (lambda: Entmax(1.3), None),
    "alpha": (Entmax, torch.tensor(1.6)),
    "alpha per head": (Entmax, torch.tensor([1.4, 2.2])),
    "identity": (Identity, None),
}


def function_of(name: str, layout: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    build, parameter = LEARNED[name]
    if layout == "dense":
        scores = randn(HEADS, 4, 5)
        scores[0, 2] = scores[0, 2, 0]  # a row of ties, all of which get a weight

        def run(scores: Tensor, *learned: Tensor) -> Tensor:
            return build(*learned).dense(scores, MASK)
    else:
        scores = randn(len(INDEX), HEADS)
        scores[INDEX == 0, 1] = 0.3

        def run(scores: Tensor, *learned: Tensor) -> Tensor:
            return build(*learned).segment(scores, INDEX, 7)

    inputs = (scores,) if parameter is None else (scores, parameter.double())
    return run, tuple(x.requires_grad_() for x in inputs)


@pytest.mark.parametrize("layout", ["dense", "segment"])
@pytest.mark.parametrize("name", LEARNED)
def test_first_and_second_derivatives(name: str, layout: str) -> None:
    run, inputs = function_of(name, layout)
    assert torch.autograd.gradcheck(run, inputs)
    if name != "identity":  # a linear function
        assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("layout", ["dense", "segment"])
@pytest.mark.parametrize("name", LEARNED)
def test_gradients_stay_finite_where_scores_are_minus_infinity(name: str, layout: str) -> None:
    run, (scores, *learned) = function_of(name, layout)
    with torch.no_grad():
        scores[0] = -INF
        scores[-1, ..., 0] = -INF
    weights = run(scores, *learned)
    gradients = torch.autograd.grad((weights * randn(*weights.shape)).sum(), [scores, *learned])
    assert weights.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][scores == -INF].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax 1.5", "entmax 1.3"])
def test_huge_scores_do_no_harm(name: str, dtype: torch.dtype) -> None:
    scores = torch.tensor([[1e4, 1e4, -1e4], [-1e4, -6e4, -INF]], dtype=dtype, requires_grad=True)
    weights = NORMALIZERS[name]().dense(scores)
    expected = torch.tensor([[0.5, 0.5, 0], [1, 0, 0]], dtype=dtype)
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=0)
    weights[:, 0].sum().backward()
    assert scores.grad is not None and scores.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["dense", "segment"])
@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax 1.5", "entmax 1.3"])
def test_hub_of_100000_in_half_precision(name: str, form: str, dtype: torch.dtype) -> None:
    many, normalizer = 100_000, NORMALIZERS[name]()
    scores = (torch.rand(many) / 8).to(dtype)

    def run(scores: Tensor) -> Tensor:
        if form == "dense":
            return normalizer.dense(scores)
        return normalizer.segment(scores, torch.zeros(many, dtype=torch.int64), 1)

    truth, weights = run(scores.double()), run(scores)
    assert weights.dtype == dtype
    assert abs(weights.double().sum() - 1) < 0.01
    torch.testing.assert_close(weights.double(), truth, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("name", ["softmax", "sparsemax", "entmax 1.5", "entmax 1.3"])
def test_float32_is_close_to_the_truth(name: str) -> None:
    normalizer, scores = NORMALIZERS[name](), 3 * torch.randn(20, 1000)
    truth = normalizer.dense(scores.double())
    torch.testing.assert_close(normalizer.dense(scores).double(), truth, rtol=1e-5, atol=1e-7)


def test_log_sum_exp_is_the_logarithm_of_the_divisor() -> None:
    scores, rows = randn(HEADS, 4, 5).requires_grad_(), DenseRows(MASK)
    for temperature in (1.0, 0.5, torch.tensor([0.5, 2.0]).double()):
        normalizer = Softmax(temperature)
        allowed = rows.allow(scores)
        log_sum_exp = normalizer.log_sum_exp(allowed, rows)
        cooled = allowed / (
            temperature[:, None, None] if isinstance(temperature, Tensor) else temperature
        )
        torch.testing.assert_close(log_sum_exp, cooled.logsumexp(-1))
        assert (log_sum_exp[:, 1] == -INF).all()
        weights = normalizer.from_log_sum_exp(allowed, log_sum_exp, rows)
        torch.testing.assert_close(weights, normalizer.dense(scores, MASK))
    finite = log_sum_exp[:, [0, 2, 3]].sum()
    (gradient,) = torch.autograd.grad(finite, scores)
    inside = normalizer.dense(scores, MASK) / torch.tensor([0.5, 2.0]).double()[:, None, None]
    torch.testing.assert_close(gradient, inside)


@settings(max_examples=20)
@given(st.data())
def test_scatter_softmax_is_that_of_torch_geometric(data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 6))
    index = torch.tensor(
        data.draw(st.lists(st.integers(0, groups - 1), max_size=20)), dtype=torch.int64
    )
    scores = 10 * torch.randn(len(index), HEADS)
    expected = torch_geometric.utils.softmax(scores, index, num_nodes=groups)
    torch.testing.assert_close(scatter_softmax(scores, index, groups), expected)


def test_scatter_softmax_of_any_shape_and_of_groups_of_minus_infinity() -> None:
    index = torch.tensor([2, 0, 2])
    scores = torch.tensor([-INF, 1.0, -INF])
    assert scatter_softmax(scores, index).tolist() == [0, 1, 0]
    wide = torch.randn(3, 2, 4)
    expected = torch.stack([wide[0].sigmoid(), wide[1], wide[2]])
    expected[0], expected[1] = (wide[0] - wide[2]).sigmoid(), 1
    expected[2] = 1 - expected[0]
    torch.testing.assert_close(scatter_softmax(wide, index), expected)


@every
def test_empty_inputs(name: str) -> None:
    normalizer, none = NORMALIZERS[name](), torch.zeros(0, dtype=torch.int64)
    assert normalizer.segment(torch.zeros(0, HEADS), none, 3).shape == (0, HEADS)
    assert normalizer.segment(torch.zeros(0, HEADS), none).shape == (0, HEADS)
    assert normalizer.dense(torch.zeros(HEADS, 3, 0)).shape == (HEADS, 3, 0)
    assert normalizer.dense(torch.zeros(HEADS, 0, 3)).shape == (HEADS, 0, 3)
    if "per head" not in name:
        assert normalizer.dense(torch.zeros(0, 2, 3)).shape == (0, 2, 3)
        assert normalizer.segment(torch.zeros(4, 0), torch.arange(4), 4).shape == (4, 0)


@pytest.mark.parametrize(
    ("scores", "index", "num", "error", "message"),
    [
        (3, [0, 1, 2], 2, IndexError, "entry 2; expected 0 to 1"),
        (3, [0, -1, 2], 4, IndexError, "entry -1; expected 0 to 3"),
        (3, [0, -1, 2], None, IndexError, "entry -1; expected 0 to num - 1"),
        (3, [0, 1], 2, ValueError, r"shape \[2\]; expected \[3\]"),
        (2, [[0], [1]], 2, ValueError, r"shape \[2, 1\]; expected \[2\]"),
        (2, [0.0, 1.0], 2, TypeError, r"float32; expected torch.int64: use .long\(\)"),
    ],
)
def test_bad_indices(
    scores: int, index: list[Any], num: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"index has.*{message}"):
        scatter_softmax(torch.zeros(scores), torch.tensor(index), num)


def test_bad_parameters() -> None:
    for temperature in (0, -1.0, math.nan, torch.tensor([1.0, 0.0])):
        with pytest.raises(ValueError, match=r"temperature is .*above 0"):
            Softmax(temperature)
    for alpha in (0, -0.5, math.nan, torch.tensor(0.0)):
        with pytest.raises(ValueError, match=r"alpha is .*above 0"):
            Entmax(alpha)
    with pytest.raises(TypeError, match=r"mask has dtype torch.float32; expected bool"):
        Softmax().dense(torch.zeros(2), torch.ones(2))


ALPHAS = (1 + 1e-6, 1.00001, 1.001, 1.1, 1.3, 1.7, 2.5, 4.0)
BELOW = (0.3, 0.5, 0.9, 0.999)


def truth(scores: Tensor, alpha: float) -> Tensor:
    """α-entmax in float64: 200 halvings of an interval for τ, of weights as they are defined."""
    z, power = scores.double(), alpha - 1
    z = z - z.amax(-1, keepdim=True)

    def of(lam: Tensor) -> Tensor:
        u = power * (z - lam)
        return torch.where(u > -1, (torch.log1p(u.clamp(min=-1 + 1e-300)) / power).exp(), 0)

    low = torch.zeros_like(z[..., :1])
    high = low + z.shape[-1]
    while (of(high).sum(-1, keepdim=True) > 1).any():
        high = 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        above = of(middle).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return of(low)


@pytest.mark.parametrize("alpha", ALPHAS + BELOW)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("size", [0.1, 3.0, 100.0])
def test_bisection_is_right_in_float32(alpha: float, learned: bool, size: float) -> None:
    torch.manual_seed(0)
    scores = size * torch.randn(20, 30)
    normalizer = Entmax(torch.tensor(alpha) if learned else alpha)
    expected = truth(scores, float(torch.tensor(alpha)))
    index = torch.arange(20).repeat_interleave(30)
    for found in (normalizer.dense(scores), normalizer.segment(scores.view(-1), index, 20)):
        found = found.view(20, 30).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.sum(-1), torch.ones(20).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [*ALPHAS, *BELOW, 1.0])
def test_gradients_of_bisection_are_right_in_float32(alpha: float) -> None:
    """Those of the scores and of α, which cancels near 1, against differences of the truth."""
    torch.manual_seed(0)
    scores, factor = 2 * torch.randn(5, 8), torch.randn(5, 8)
    given = scores.clone().requires_grad_(), torch.tensor(alpha, requires_grad=True)
    loss = (Entmax(given[1]).dense(given[0]) * factor).sum()
    of_scores, of_alpha = torch.autograd.grad(loss, given)
    exactly = float(given[1].detach())

    def at(scores: Tensor, alpha: float) -> float:
        weights = truth(scores, alpha) if alpha != 1 else scores.double().softmax(-1)
        return float((weights * factor.double()).sum())

    step = 1e-4
    middle = (at(scores, exactly + step) - at(scores, exactly - step)) / (2 * step)
    assert of_alpha.item() == pytest.approx(middle, rel=1e-3, abs=1e-4)
    direction = torch.randn(5, 8).double()
    step = 1e-6
    ends = [at(scores.double() + sign * step * direction, exactly) for sign in (1, -1)]
    slope = float((of_scores.double() * direction).sum())
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [5.0, 6.0, 8.0, 10.0])
def test_large_alphas_where_float64_has_few_digits(alpha: float, dtype: torch.dtype) -> None:
    """The smallest weight of a row jumps between two neighbouring thresholds; the sum tells it."""
    torch.manual_seed(0)
    for size in (1.0, 5.0, 30.0):
        scores = (size * torch.randn(300, 20)).to(dtype).requires_grad_()
        weights = Entmax(alpha).dense(scores)
        factor = torch.randn(300, 20, dtype=dtype)
        (found,) = torch.autograd.grad((weights * factor).sum(), scores)
        p, z, g = (x.detach().double() for x in (weights, scores, factor))
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(p.sum(-1), torch.ones(300).double(), rtol=0, atol=8 * eps)
        # One τ for all that have a weight, and none above it without
        threshold = (alpha - 1) * (z - z.amax(-1, keepdim=True)) - p ** (alpha - 1)
        least = torch.where(p > 0, threshold, torch.inf).amin(-1, keepdim=True)
        most = torch.where(p > 0, threshold, -torch.inf).amax(-1, keepdim=True)
        torch.testing.assert_close(least, most, rtol=0, atol=50 * eps)
        assert torch.where(p > 0, -torch.inf, threshold - most).max() < 50 * eps
        # u_i Σ u_j (g_i - g_j) / Σ u_j, without the cancelling of g_i with a mean
        u = torch.where(p > 0, p.clamp(min=1e-30) ** (2 - alpha), 0)
        between = (u[:, None] * (g[:, :, None] - g[:, None])).sum(-1)
        expected = u / u.sum(-1, keepdim=True) * between
        few = (u.amax(-1) < 1e6)[:, None]  # the slope of the smallest is known
        assert few.float().mean() > 0.5
        torch.testing.assert_close(found.double() * few, expected * few, rtol=1e-4, atol=1e-4)


def test_alpha_of_one_is_softmax() -> None:
    scores = 3 * torch.randn(4, 9)
    for alpha in (1, 1.0, torch.tensor(1.0)):
        torch.testing.assert_close(Entmax(alpha).dense(scores), scores.softmax(-1))
