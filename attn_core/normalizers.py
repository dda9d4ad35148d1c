"""Axis 2, normalisers: how do the scores of one query become its weights?

Each normaliser is written once, in terms of rows (`attn_core.rows`): a row is the scores of one
query and head, over a dense support or over edges.

A pair that is masked, or whose score is -inf, gets the weight zero. So does every pair of a row
that has no others: there is no NaN and no uniform average. A score of NaN or +inf, in turn, stays
visible: all weights of its row are NaN, in every normaliser but `Identity`, which looks at no
other score.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeGuard

import torch
from torch import Tensor

from attn_core.compat import ABCMeta
from attn_core.gpu import DTYPES
from attn_core.graph.grouping import limits
from attn_core.registry import register
from attn_core.rows import DenseRows, EdgeRows, Rows
from attn_core.transforms import apart, values_are_visible


class Normalizer(metaclass=ABCMeta):
    """How the scores of one query become its weights.

    A subclass gives `normalize`, in terms of rows, and so works over every support. With a name,
    `class Mine(Normalizer, name="mine")`, every layer takes it by that name too.

    >>> class Ratio(Normalizer):
    ...     "Each positive score as a share of their sum."
    ...     def normalize(self, scores, rows):
    ...         positive = scores.clamp(min=0)
    ...         total = rows.sum(positive)
    ...         return positive / rows.spread(torch.where(total == 0, 1, total))
    >>> Ratio().dense(torch.tensor([3.0, -1.0, 1.0]))
    tensor([0.7500, 0.0000, 0.2500])
    """

    named: ClassVar[dict[str, type[Normalizer]]] = {}
    # Within which a layer takes a parameter that it learns, by field
    bounds: ClassVar[dict[str, tuple[float, float]]] = {}

    def __init_subclass__(cls, name: str | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        register(Normalizer.named, name, cls)
        # What is told of the weights of a class holds not of a subclass that makes others
        if "normalize" in vars(cls) and "entmax_alpha" not in vars(cls):
            cls.entmax_alpha = Normalizer.entmax_alpha  # type: ignore[method-assign]

    @abstractmethod
    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        """Weights of the shape of `scores`, whose rows are `rows`; scores at least float32."""

    def entmax_alpha(self) -> float | None:
        """The α of which this is α-entmax, where that is a known number from 1 to 2; else None.

        Such weights w have one derivative: with `u = w^(2 - α)`, that of the scores is
        `u (g - Σ u g / Σ u)`.
        """
        return None

    def cooled(self, scores: Tensor, rows: Rows) -> Tensor:
        """The scores of which `entmax_alpha` tells: divided by a temperature, if there is one."""
        return scores

    def dense(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights over the last axis.

        Args:
            scores: `[..., H, Tq, Tk]`, or `[..., Tk]` where no parameter is per head.
            mask: bool, broadcasts against scores; True where the query may attend. Default: all.

        Returns:
            Weights of the shape and dtype of `scores`.

        >>> Softmax().dense(torch.zeros(2, 2), torch.tensor([[True, True], [False, False]]))
        tensor([[0.5000, 0.5000],
                [0.0000, 0.0000]])
        """
        _check_dtype(scores)
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"mask has dtype {mask.dtype}; expected bool, True = may attend")
        rows = DenseRows(mask)
        weights = _weights(self, rows.allow(at_least_float32(scores)), rows)
        return apart(weights.to(scores.dtype))[0]

    def segment(self, scores: Tensor, index: Tensor, num: int | None = None) -> Tensor:
        """Weights over the edges of each query.

        Args:
            scores: `[E, ...]`, `[E, H]` where a parameter is per head.
            index: int64 `[E]`, the query that each edge belongs to, in any order.
            num: the number of queries. Default: the largest index plus 1.

        Returns:
            Weights of the shape and dtype of `scores`, in the same order.

        Raises:
            TypeError, ValueError, IndexError: an index of another dtype or length, or out of range.

        >>> Softmax().segment(torch.zeros(3, 1), torch.tensor([0, 1, 0]), num=3).flatten()
        tensor([0.5000, 1.0000, 0.5000])
        """
        rows = EdgeRows(index, _check_index(scores, index, num))
        return apart(_weights(self, at_least_float32(scores), rows).to(scores.dtype))[0]


def _plainly(normalizer: Normalizer, scores: Tensor, rows: Rows) -> Tensor:
    return normalizer.normalize(scores, rows)


_weights: Callable[[Normalizer, Tensor, Rows], Tensor] = _plainly


def use_for_weights(way: Callable[[Normalizer, Tensor, Rows], Tensor]) -> None:
    """Have `dense` and `segment` take another way than the definition, which this file holds."""
    global _weights
    _weights = way


@dataclass(frozen=True, eq=False)
class Softmax(Normalizer, name="softmax"):
    """`exp(s/τ) / Σ exp(s/τ)`.

    Args:
        temperature: τ > 0, a number or a tensor `[]` or `[H]`; below 1 it sharpens. A layer that
            learns it (an `nn.Parameter`) takes it within 1e-4 and 1e4. Default 1.

    Raises:
        ValueError: a temperature that is not above 0.

    >>> Softmax(temperature=0.5).dense(torch.tensor([0.0, 1.0]))
    tensor([0.1192, 0.8808])
    """

    temperature: float | Tensor = 1.0
    bounds: ClassVar = {"temperature": (1e-4, 1e4)}

    def __post_init__(self) -> None:
        if not _is_above(self.temperature, 0):
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")

    def entmax_alpha(self) -> float:
        return 1.0

    def cooled(self, scores: Tensor, rows: Rows) -> Tensor:
        if isinstance(self.temperature, Tensor):
            return scaled(scores, 1 / rows.per_head(self.temperature).to(scores.dtype))
        return scores if self.temperature == 1 else scores / self.temperature

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        return self.with_log_sum_exp(scores, rows)[0]

    def with_log_sum_exp(self, scores: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The weights, and `log Σ exp(s/τ)` of each row; -inf where there is no pair."""
        scores = self.cooled(scores, rows)
        largest = _largest(scores, rows)
        exponentials = (scores - rows.spread(largest)).exp()
        total = rows.sum(exponentials)
        divisor = torch.where(total == 0, 1, total)
        log_sum_exp = torch.where(total == 0, -math.inf, largest + divisor.log())
        return exponentials / rows.spread(divisor), rows.per_query(log_sum_exp)

    @staticmethod
    def is_one(normalizer: Normalizer) -> TypeGuard[Softmax]:
        """Whether this is a softmax, and no subclass with weights of its own."""
        return isinstance(normalizer, Softmax) and normalizer.entmax_alpha() == 1

    def log_sum_exp(self, scores: Tensor, rows: Rows) -> Tensor:
        """`log Σ exp(s/τ)` of each row; -inf where there is no pair."""
        return self.with_log_sum_exp(scores, rows)[1]

    def from_log_sum_exp(self, scores: Tensor, log_sum_exp: Tensor, rows: Rows) -> Tensor:
        """Weights of any of the pairs of rows whose `log_sum_exp` is known.

        Right to about `ε |log_sum_exp|`: one number cannot tell the maximum from the sum.
        """
        per_pair = rows.spread(rows.from_query(log_sum_exp))
        log_weights = self.cooled(scores, rows) - finite(per_pair)
        # None is above 0 but by rounding, which is taken off as a constant: gradients stay
        return (log_weights - log_weights.detach().clamp(min=0)).exp()


@dataclass(frozen=True, eq=False)
class Sparsemax(Normalizer, name="sparsemax"):
    """The Euclidean projection of the scores onto the simplex (Martins and Astudillo, 2016).

    `max(s - τ, 0)`, with τ such that the row sums to 1; low scores get exactly zero.

    >>> Sparsemax().dense(torch.tensor([1.0, 0.8, -1.0]))
    tensor([0.6000, 0.4000, 0.0000])
    """

    def entmax_alpha(self) -> float:
        return 2.0

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        z = scores - rows.spread(_largest(scores, rows))
        # Sorted, z_1 ≥ z_2 ≥ …; the support is the longest head of the row with 1 + k z_k > Σ z_i
        support = _support(z, rows, lambda z, k, total, _: 1 + k * z > total)
        size = rows.sum(support.to(z.dtype)).clamp(min=1)
        tau = (rows.sum(torch.where(support, z, 0)) - 1) / size
        return torch.where(support, z - rows.spread(tau), 0)


@dataclass(frozen=True, eq=False)
class Entmax(Normalizer, name="entmax"):
    """`max((α-1) s - τ, 0)^(1/(α-1))` (Peters et al., 2019), between Softmax (α = 1) and Sparsemax.

    α = 1.5 is solved exactly by sorting, α = 1 is Softmax, α = 2 Sparsemax; any other is solved by
    bisection. Below 1 no weight is zero, and low scores get more than Softmax gives them.

    Args:
        alpha: α > 0, a number, or a tensor `[]` or `[H]`. A layer that learns it (an
            `nn.Parameter`) takes it within 0.1 and 10. Default 1.5.

    Raises:
        ValueError: an alpha that is not above 0.

    >>> Entmax().dense(torch.tensor([1.0, 1.0, -2.0]))
    tensor([0.5000, 0.5000, 0.0000])
    """

    alpha: float | Tensor = 1.5
    bounds: ClassVar = {"alpha": (0.1, 10.0)}

    def __post_init__(self) -> None:
        if not _is_above(self.alpha, 0):
            raise ValueError(f"alpha is {self.alpha}; it must be above 0 (1 is Softmax)")

    def entmax_alpha(self) -> float | None:
        # Above 2, a weight w near 0 changes by w^(2 - α) times its score: no threshold is so exact
        known = not isinstance(self.alpha, Tensor) and 1 <= self.alpha <= 2
        return float(self.alpha) if known else None

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        if isinstance(self.alpha, Tensor):
            return _bisect(scores, rows, rows.per_head(self.alpha))
        if self.alpha == 1.5:
            return _entmax15(scores, rows)
        if self.alpha in (1, 2):
            return (Softmax() if self.alpha == 1 else Sparsemax()).normalize(scores, rows)
        return _bisect(scores, rows, scores.new_tensor(self.alpha, dtype=torch.float64))


class HardLogProb(NamedTuple):
    """How likely the choices of hard attention were.

    Attributes:
        log_prob: `log p` of the pair that each query chose, `[..., H, Tq]` or `[Nq, H]`, at least
            float32, with gradients; 0 for a query without any pair, which had no choice.
        entropy: `-Σ p log p` of the distribution that it was drawn from, likewise, in nats.
    """

    log_prob: Tensor
    entropy: Tensor


@dataclass(frozen=True, eq=False)
class Hard(Normalizer, name="hard"):
    """All the weight on one pair of each query: hard attention (Xu et al., 2015).

    Args:
        choose: how the pair is chosen: "argmax" (default) takes the largest score, the first of
            equals; "sample" draws from the softmax of the scores; "gumbel" draws likewise.
        temperature: τ > 0 of the softmax that is drawn from, in the gradients of "gumbel".
            Default 1.

    The weights of "argmax" and "sample" have no gradients: the latter is trained by REINFORCE,
    which needs the `log_prob` of the choices. Those of "gumbel" pass on the gradients of
    `softmax((s + g) / τ)` with the Gumbel noise g they were drawn with (straight-through; Jang et
    al., 2017), so that any loss trains them.

    Raises:
        ValueError: another way to choose, or a temperature that is not above 0.

    >>> Hard().dense(torch.tensor([[0.3, 0.9, 0.9], [0.1, 0.0, -1.0]]))
    tensor([[0., 1., 0.],
            [1., 0., 0.]])
    """

    choose: str = "argmax"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.choose not in ("argmax", "sample", "gumbel"):
            raise ValueError(f"choose is {self.choose!r}; expected 'argmax', 'sample' or 'gumbel'")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        if self.choose != "argmax":
            # The largest of s + g is distributed as the softmax of s
            uniform = torch.rand_like(scores).clamp(min=torch.finfo(scores.dtype).tiny)
            scores = scores - (-uniform.log()).log()
        place = rows.places(scores).to(torch.float64)
        largest = (scores == rows.spread(rows.max(scores.detach()))) & (scores > -math.inf)
        first = rows.spread(rows.max(torch.where(largest, -place, -math.inf)))
        chosen = (largest & (-place == first)).to(scores.dtype)
        chosen = chosen + 0 * rows.spread(_largest(scores, rows))  # NaN stays visible
        if self.choose != "gumbel":
            return chosen
        soft = Softmax(self.temperature).normalize(scores, rows)
        return chosen + soft - soft.detach()

    def log_prob(self, scores: Tensor, drawn: Tensor, rows: Rows) -> HardLogProb:
        """The log-probability of what was drawn, and the entropy of what it was drawn from.

        Both belong to `p = softmax(scores)`, from which "sample" and "gumbel" draw.

        Args:
            scores: of all pairs, -inf where a pair does not exist, float32 at least.
            drawn: the weights that `normalize` returned, of the shape of scores.
            rows: the pairs of each query, `DenseRows` or `EdgeRows`.

        Returns:
            HardLogProb(log_prob, entropy), one number per query and head.

        Raises:
            ValueError: drawn weights of another shape.

        >>> scores, drawn = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> Hard("sample").log_prob(scores, drawn, DenseRows())
        HardLogProb(log_prob=tensor([-0.6931]), entropy=tensor([0.6931]))
        """
        if drawn.shape != scores.shape:
            raise ValueError(
                f"drawn has shape {list(drawn.shape)}; expected {list(scores.shape)}, the weights "
                "of the same pairs"
            )
        total = finite(rows.from_query(Softmax().with_log_sum_exp(scores, rows)[1]))
        # Pairs that do not exist count as p log p = 0, without gradients
        log_p = torch.where(scores == -math.inf, 0, scores - rows.spread(total))
        chosen = rows.sum(torch.where(drawn > 0.5, log_p, 0))  # those of "gumbel" are 1 but for ε
        return HardLogProb(rows.per_query(chosen), rows.per_query(-rows.sum(log_p.exp() * log_p)))


@dataclass(frozen=True, eq=False)
class Identity(Normalizer, name="identity"):
    """The scores themselves: unnormalised attention, as in linear attention without its divisor.

    >>> Identity().dense(torch.tensor([1.0, -2.0]), torch.tensor([True, False]))
    tensor([1., 0.])
    """

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        return torch.where(scores == -math.inf, 0, scores)


def entmax_gradient(grad: Tensor, weights: Tensor, rows: Rows, alpha: float) -> Tensor:
    """The gradient of the scores whose α-entmax the weights are, which has one of its own."""
    inside = ~(weights <= 0)
    u = torch.where(inside, torch.where(inside, weights, 1) ** (2 - alpha), 0)
    total = rows.sum(u)
    mean = rows.sum(u * grad) / torch.where(total == 0, 1, total)
    return u * (grad - rows.spread(mean))


def _is_above(parameter: float | Tensor, bound: float) -> bool:
    """Whether a parameter is above its bound, as far as its values may be looked at."""
    if not isinstance(parameter, Tensor):
        return parameter > bound
    return not values_are_visible() or bool((parameter > bound).all())


def _check_dtype(scores: Tensor) -> None:
    if scores.dtype not in DTYPES:
        raise TypeError(f"scores has dtype {scores.dtype}; convert it with .float()")


def _check_index(scores: Tensor, index: Tensor, num: int | None) -> int:
    """Raise unless every entry of scores belongs to one of `num` rows; returns num."""
    _check_dtype(scores)
    if index.dtype != torch.int64:
        raise TypeError(f"index has dtype {index.dtype}; expected torch.int64: use .long()")
    if index.dim() != 1 or index.shape[0] != scores.shape[0]:
        raise ValueError(
            f"index has shape {list(index.shape)}; expected [{scores.shape[0]}], one row number "
            "for each entry of scores"
        )
    if num is not None and not values_are_visible():
        return num
    low, high = limits(index)
    if low < 0 or (num is not None and high >= num):
        raise IndexError(
            f"index has the entry {low if low < 0 else high}; expected 0 to "
            f"{'num - 1' if num is None else num - 1}"
        )
    return high + 1 if num is None else num


def at_least_float32(x: Tensor) -> Tensor:
    """Statistics of half types are kept in float32, so that a hub neither overflows nor rounds."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def finite(largest: Tensor) -> Tensor:
    """With 0 in place of -inf, which stands for a row without pairs."""
    return torch.where(largest == -math.inf, 0, largest)


def _largest(scores: Tensor, rows: Rows) -> Tensor:
    """The largest score of each row as a constant: 0 where there is none, NaN where it is +inf."""
    largest = finite(rows.max(scores.detach()))
    return torch.where(largest == math.inf, math.nan, largest)


@torch.no_grad()
def _support(z: Tensor, rows: Rows, inside: Callable[..., Tensor]) -> Tensor:
    """Which scores get a weight: those not below the last one that is `inside`.

    `z` has the maximum 0 in each row, so that nothing below -1 can be in the support of Sparsemax
    or of 1.5-entmax: cutting there keeps -inf out of the sums.
    """
    ordered, rank, ordered_rows = rows.descending(z.double().nan_to_num(nan=-1).clamp(min=-1))
    total, squares = (ordered_rows.running_sum(x) for x in (ordered, ordered.square()))
    kept = inside(ordered, rank, total, squares)
    lowest = -ordered_rows.max(torch.where(kept, -ordered, -math.inf))
    return ~(z < rows.spread(lowest).to(z.dtype))  # NaN is let in, so that it is seen


def _entmax15(scores: Tensor, rows: Rows) -> Tensor:
    """Entmax with α = 1.5: with the support known, τ solves a quadratic equation."""
    z = (scores - rows.spread(_largest(scores, rows))) / 2

    def inside(z: Tensor, k: Tensor, total: Tensor, squares: Tensor) -> Tensor:
        spread = (1 - squares + total.square() / k) / k
        return total / k - spread.clamp(min=0).sqrt() <= z

    support = _support(z, rows, inside)
    size = rows.sum(support.to(z.dtype)).clamp(min=1)
    mean = rows.sum(torch.where(support, z, 0)) / size
    around = torch.where(support, z - rows.spread(mean), 0)
    tau = mean - ((1 - rows.sum(around.square())) / size).sqrt()
    return torch.where(support, z - rows.spread(tau), 0).square()


def _bisect(scores: Tensor, rows: Rows, alpha: Tensor) -> Tensor:
    """Entmax with any α > 0: bisection finds the threshold λ, Newton steps carry the gradients.

    `p = exp(t · r(u))` with `t = s - λ`, `u = (α-1) t` and `r(u) = log(1 + u) / u`, which is
    `(1 + u)^(1/(α-1))` without the division that loses all digits near α = 1. Where u ≤ -1, p = 0.

    With λ₀ the solution, a constant, `λ₀ - f(λ₀) / f'(λ₀)` has the derivatives that the implicit
    function theorem gives to λ; a second step makes the second derivatives right too. Their values
    are λ₀'s own: above α = 2 weights rise from 0 with a slope without bound, and a step lands
    beyond the edge of the smallest.

    All in float64: above α = 2 small weights are roots of 1 + u, where float32 has few digits.
    Above α = 4 float64 has few as well: from one λ to the next number such a weight jumps, and what
    it is between the two follows from the sum, which is 1.
    """
    dtype, scores, alpha = scores.dtype, scores.double(), alpha.double()
    exists = scores != -math.inf
    largest = rows.spread(_largest(scores, rows))
    z = torch.where(exists, scores - largest, 0)
    less_one = alpha - 1

    def lift(lam: Tensor, ratio: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The weights p, and their slopes `dp/dt = p^(2-α)`."""
        t = z - rows.spread(lam)
        u = less_one * t
        inside = exists & ~(u <= -1)  # NaN is let in, so that it is seen
        log_p = torch.where(inside, t * ratio(torch.where(inside, u, 0)), -1)
        return (
            torch.where(inside, log_p.exp(), 0),
            torch.where(inside, ((1 - less_one) * log_p).exp(), 0),
        )

    with torch.no_grad():
        # No weight is above 1, and the largest of n is at least 1/n: λ is in [0, most]
        log_n = rows.sum(exists.to(z.dtype)).clamp(min=1).log()
        v = less_one * log_n
        most = log_n * torch.where(v == 0, 1, -torch.expm1(-v) / torch.where(v == 0, 1, v))
        lam = torch.zeros_like(most)
        for step in range(1, 61):
            width = most * 0.5**step
            lam = torch.where(rows.sum(lift(lam + width, _log_ratio)[0]) >= 1, lam + width, lam)
        next_lam = lam + torch.maximum(width, lam * torch.finfo(lam.dtype).eps)
        below, above = (lift(x, _log_ratio)[0] for x in (next_lam, lam))
        short, rest = 1 - rows.sum(below), rows.sum(above - below)
        share = torch.where(rest == 0, 1, short / torch.where(rest == 0, 1, rest))
        solution = below + rows.spread(share.clamp(0, 1)) * (above - below)
    for _ in range(2):
        weights, slopes = lift(lam, _smooth_log_ratio)
        slope = rows.sum(slopes)
        excess = rows.sum(weights)
        newton = (excess - excess.detach()) / torch.where(slope == 0, 1, slope)
        lam = lam + torch.where(slope == 0, 0, newton)
    weights = lift(lam, _smooth_log_ratio)[0]
    weights = solution + (weights - weights.detach())
    weights = weights + 0 * largest  # NaN of a row, at all its pairs
    return weights.to(dtype)


def _log_ratio(u: Tensor) -> Tensor:
    """`log(1 + u) / u`, which is 1 at 0."""
    return torch.where(u == 0, 1, torch.log1p(u) / torch.where(u == 0, 1, u))


def _smooth_log_ratio(u: Tensor) -> Tensor:
    """The same by its series near 0, where the derivative of the quotient cancels."""
    near = u.abs() < 0.1
    small, large = torch.where(near, u, 0), torch.where(near, 1, u)
    series = torch.zeros_like(small)
    for power in range(16, 0, -1):  # Σ (-u)^(k-1) / k
        series = 1 / power - small * series
    return torch.where(near, series, torch.log1p(large) / large)


def scaled(scores: Tensor, factor: Tensor | float) -> Tensor:
    """`scores * factor`, in which scores of -inf stay and give the factor no gradient."""
    absent = scores == -math.inf
    return torch.where(absent, -math.inf, torch.where(absent, 0, scores) * factor)
