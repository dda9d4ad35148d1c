"""Axis 2, normalisers: how do the scores of one query become its weights?

Each normaliser is written once, in terms of rows: a row is the scores of one query (and head).
Over a dense support the rows lie along the last axis; over edges a row is scattered through a list
of pairs. `DenseRows` and `EdgeRows` know how to reduce either, so `Normalizer.normalize` need not.

A pair that is masked, or whose score is -inf, gets the weight zero. So does every pair of a row
that has no others: there is no NaN and no uniform average.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attn_core import compiled, segments
from attn_core.transforms import apart, is_transformed, values_are_visible


class Rows(Protocol):
    """The scores of each query, as something that can be reduced."""

    def allow(self, scores: Tensor) -> Tensor:
        """The scores, with -inf at the pairs that do not exist."""

    def max(self, x: Tensor) -> Tensor:
        """The largest entry of each row."""

    def sum(self, x: Tensor) -> Tensor:
        """The sum of each row."""

    def spread(self, per_row: Tensor) -> Tensor:
        """Hand each pair the number of its row."""

    def per_query(self, per_row: Tensor) -> Tensor:
        """The numbers of the rows, one per query and head, for the caller."""

    def from_query(self, per_query: Tensor) -> Tensor:
        """The reverse of `per_query`."""

    def per_head(self, parameter: Tensor) -> Tensor:
        """Shape a parameter `[]` or `[H]` so that it broadcasts against the scores."""

    def places(self, x: Tensor) -> Tensor:
        """A number for each entry of x that grows along its row."""

    def descending(self, x: Tensor) -> tuple[Tensor, Tensor, Rows]:
        """Each row sorted downwards, the rank 1, 2, … of each entry, and the sorted rows."""

    def running_sum(self, x: Tensor) -> Tensor:
        """For each entry, the sum of its row up to and with it."""


class DenseRows:
    """Rows along the last axis of scores `[..., H, Tq, Tk]`, with an optional mask.

    Args:
        mask: bool, broadcasts against the scores; True where the query may attend to the key.
    """

    def __init__(self, mask: Tensor | None = None) -> None:
        self.mask = mask

    def allow(self, scores: Tensor) -> Tensor:
        return scores if self.mask is None else scores.masked_fill(~self.mask, -math.inf)

    def max(self, x: Tensor) -> Tensor:
        if x.shape[-1] == 0:
            return x.new_full((*x.shape[:-1], 1), -math.inf)
        return x.amax(-1, keepdim=True)

    def sum(self, x: Tensor) -> Tensor:
        return x.sum(-1, keepdim=True)

    def spread(self, per_row: Tensor) -> Tensor:
        return per_row

    def per_query(self, per_row: Tensor) -> Tensor:
        return per_row.squeeze(-1)

    def from_query(self, per_query: Tensor) -> Tensor:
        return per_query.unsqueeze(-1)

    def per_head(self, parameter: Tensor) -> Tensor:
        return parameter[..., None, None] if parameter.dim() else parameter

    def places(self, x: Tensor) -> Tensor:
        return torch.arange(x.shape[-1], device=x.device)

    def descending(self, x: Tensor) -> tuple[Tensor, Tensor, Rows]:
        rank = torch.arange(1, x.shape[-1] + 1, device=x.device)
        return x.sort(-1, descending=True).values, rank, self

    def running_sum(self, x: Tensor) -> Tensor:
        return x.cumsum(-1)


class EdgeRows:
    """Rows scattered over a list of pairs, scores `[E, ...]`: pair e belongs to row `index[e]`.

    Args:
        index: int64 `[E]`, each in 0 … num - 1.
        num: how many rows there are, the empty ones included.
        pairs: those that an Edges owns, if the index is theirs, for what has sorted them already.
    """

    def __init__(self, index: Tensor, num: int, pairs: Tensor | None = None) -> None:
        self.index, self.num = index, num
        self._handle = index if pairs is None else pairs

    def weights(self, scores: Tensor, alpha: float) -> Tensor | None:
        """α-entmax of each row by a compiled kernel; None where there is none."""
        if not _is_compiled(scores):
            return None
        return torch.ops.attn_core.segment_entmax(scores, self._handle, self.num, alpha)

    def log_sum_exp(self, scores: Tensor) -> Tensor | None:
        """`log Σ exp` of each row by a compiled kernel; None where there is none."""
        if not _is_compiled(scores):
            return None
        return torch.ops.attn_core.segment_log_sum_exp(scores, self._handle, self.num)

    def allow(self, scores: Tensor) -> Tensor:
        return scores

    def max(self, x: Tensor) -> Tensor:
        if segments.serves(x) and not (x.requires_grad and torch.is_grad_enabled()):
            return segments.largest(x, self.index, self.num)
        index = self.index.view(-1, *[1] * (x.dim() - 1)).expand_as(x)
        lowest = x.new_full((self.num, *x.shape[1:]), -math.inf)
        return lowest.scatter_reduce(0, index, x, "amax")

    def sum(self, x: Tensor) -> Tensor:
        if segments.serves(x):
            return segments.sums(x, self.index, self.num)
        return x.new_zeros(self.num, *x.shape[1:]).index_add(0, self.index, x)

    def spread(self, per_row: Tensor) -> Tensor:
        return segments.gather(per_row, self.index)

    def per_query(self, per_row: Tensor) -> Tensor:
        return per_row

    def from_query(self, per_query: Tensor) -> Tensor:
        return per_query

    def per_head(self, parameter: Tensor) -> Tensor:
        return parameter

    def places(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[0], device=x.device)
        return places.view(-1, *[1] * (x.dim() - 1))

    def descending(self, x: Tensor) -> tuple[Tensor, Tensor, Rows]:
        # Sort by value, then stably by row: rows keep their places, which are the same in each head
        by_value = x.argsort(0, descending=True)
        by_row = self.index[by_value].argsort(dim=0, stable=True)
        order = by_value.gather(0, by_row)
        rows = EdgeRows(self.index.sort().values, self.num)
        # Of the shape: len() would ask torch.compile for a number that depends on the data
        rank = torch.arange(1, self.index.shape[0] + 1, device=x.device)
        rank = rank - rows.spread(rows.starts())
        return x.gather(0, order), rank.view(-1, *[1] * (x.dim() - 1)), rows

    def running_sum(self, x: Tensor) -> Tensor:
        total = torch.cat([x.new_zeros(1, *x.shape[1:]), x.cumsum(0)])
        return total[1:] - self.spread(total[self.starts()])

    def starts(self) -> Tensor:
        """Where each row begins, once the pairs are sorted by row."""
        return torch.searchsorted(self.index, torch.arange(self.num, device=self.index.device))


class Normalizer(ABC):
    """How the scores of one query become its weights."""

    @abstractmethod
    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        """Weights of the shape of `scores`, whose rows are `rows`; scores at least float32."""

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
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"mask has dtype {mask.dtype}; expected bool, True = may attend")
        rows = DenseRows(mask)
        return self.normalize(rows.allow(at_least_float32(scores)), rows).to(scores.dtype)

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
        return apart(self.normalize(at_least_float32(scores), rows).to(scores.dtype))


@dataclass(frozen=True, eq=False)
class Softmax(Normalizer):
    """`exp(s/τ) / Σ exp(s/τ)`.

    Args:
        temperature: τ > 0, a number or a tensor `[]` or `[H]`; below 1 it sharpens. Default 1.

    Raises:
        ValueError: a temperature that is not above 0.

    >>> Softmax(temperature=0.5).dense(torch.tensor([0.0, 1.0]))
    tensor([0.1192, 0.8808])
    """

    temperature: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if not _is_above(self.temperature, 0):
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        scores = self._cool(scores, rows)
        if isinstance(rows, EdgeRows) and segments.serves(scores):
            return segments.softmax(scores, rows.index, rows.num)[0]
        if (weights := _by_kernel(scores, rows, 1)) is not None:
            return weights
        exponentials = (scores - _shift(scores, rows)).exp()
        total = rows.sum(exponentials)
        return exponentials / rows.spread(torch.where(total == 0, 1, total))

    def log_sum_exp(self, scores: Tensor, rows: Rows) -> Tensor:
        """`log Σ exp(s/τ)` of each row; -inf where there is no pair."""
        scores = self._cool(scores, rows)
        if isinstance(rows, EdgeRows):
            if segments.serves(scores):
                return segments.softmax(scores, rows.index, rows.num)[1]
            if (found := rows.log_sum_exp(scores)) is not None:
                return found
        largest = finite(rows.max(scores.detach()))
        total = rows.sum((scores - rows.spread(largest)).exp())
        logarithm = largest + torch.where(total == 0, 1, total).log()
        return rows.per_query(torch.where(total == 0, -math.inf, logarithm))

    def from_log_sum_exp(self, scores: Tensor, log_sum_exp: Tensor, rows: Rows) -> Tensor:
        """Weights of any of the pairs of rows whose `log_sum_exp` is known."""
        per_pair = rows.spread(rows.from_query(log_sum_exp))
        return (self._cool(scores, rows) - finite(per_pair)).exp()

    def _cool(self, scores: Tensor, rows: Rows) -> Tensor:
        if isinstance(self.temperature, Tensor):
            return _scale(scores, 1 / rows.per_head(self.temperature))
        return scores if self.temperature == 1 else scores / self.temperature


@dataclass(frozen=True, eq=False)
class Sparsemax(Normalizer):
    """The Euclidean projection of the scores onto the simplex (Martins and Astudillo, 2016).

    `max(s - τ, 0)`, with τ such that the row sums to 1; low scores get exactly zero.

    >>> Sparsemax().dense(torch.tensor([1.0, 0.8, -1.0]))
    tensor([0.6000, 0.4000, 0.0000])
    """

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        if (weights := _by_kernel(scores, rows, 2)) is not None:
            return weights
        z = scores - _shift(scores, rows)
        # Sorted, z_1 ≥ z_2 ≥ …; the support is the longest head of the row with 1 + k z_k > Σ z_i
        support = _support(z, rows, lambda z, k, total, _: 1 + k * z > total)
        size = rows.sum(support.to(z.dtype)).clamp(min=1)
        tau = (rows.sum(torch.where(support, z, 0)) - 1) / size
        return torch.where(support, z - rows.spread(tau), 0)


@dataclass(frozen=True, eq=False)
class Entmax(Normalizer):
    """`max((α-1) s - τ, 0)^(1/(α-1))` (Peters et al., 2019), between Softmax (α → 1) and Sparsemax.

    α = 1.5 is solved exactly by sorting, α = 2 is Sparsemax; any other is solved by bisection.

    Args:
        alpha: α > 1, a number, or a tensor `[]` or `[H]` (which may be learned). Default 1.5.

    Raises:
        ValueError: an alpha that is not above 1.

    >>> Entmax().dense(torch.tensor([1.0, 1.0, -2.0]))
    tensor([0.5000, 0.5000, 0.0000])
    """

    alpha: float | Tensor = 1.5

    def __post_init__(self) -> None:
        if not _is_above(self.alpha, 1):
            raise ValueError(f"alpha is {self.alpha}; it must be above 1 (Softmax is the limit 1)")

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        if isinstance(self.alpha, Tensor):
            return _bisect(scores, rows, rows.per_head(self.alpha.to(scores.dtype)))
        if self.alpha == 1.5:
            return _entmax15(scores, rows)
        if self.alpha == 2:
            return Sparsemax().normalize(scores, rows)
        return _bisect(scores, rows, scores.new_tensor(self.alpha))


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
class Hard(Normalizer):
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
        total = finite(rows.from_query(Softmax().log_sum_exp(scores, rows)))
        # Pairs that do not exist count as p log p = 0, without gradients
        log_p = torch.where(scores == -math.inf, 0, scores - rows.spread(total))
        chosen = rows.sum(torch.where(drawn > 0.5, log_p, 0))  # those of "gumbel" are 1 but for ε
        return HardLogProb(rows.per_query(chosen), rows.per_query(-rows.sum(log_p.exp() * log_p)))


@dataclass(frozen=True, eq=False)
class Identity(Normalizer):
    """The scores themselves: unnormalised attention, as in linear attention without its divisor.

    >>> Identity().dense(torch.tensor([1.0, -2.0]), torch.tensor([True, False]))
    tensor([1., 0.])
    """

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        return torch.where(scores == -math.inf, 0, scores)


def _by_kernel(scores: Tensor, rows: Rows, alpha: float) -> Tensor | None:
    if not isinstance(rows, EdgeRows) or segments.serves(scores):
        return None
    return rows.weights(scores, alpha)


def _is_compiled(scores: Tensor) -> bool:
    """Whether the compiled kernels serve these scores."""
    return compiled.is_on() and scores.device.type == "cpu" and not is_transformed()


def _is_above(parameter: float | Tensor, bound: float) -> bool:
    """Whether a parameter is above its bound, as far as its values may be looked at."""
    if not isinstance(parameter, Tensor):
        return parameter > bound
    return not values_are_visible() or bool((parameter > bound).all())


def _check_index(scores: Tensor, index: Tensor, num: int | None) -> int:
    """Raise unless every entry of scores belongs to one of `num` rows; returns num."""
    if not scores.is_floating_point():
        raise TypeError(f"scores has dtype {scores.dtype}; convert it with .float()")
    if index.dtype != torch.int64:
        raise TypeError(f"index has dtype {index.dtype}; expected torch.int64: use .long()")
    if index.dim() != 1 or index.shape[0] != scores.shape[0]:
        raise ValueError(
            f"index has shape {list(index.shape)}; expected [{scores.shape[0]}], one row number "
            "for each entry of scores"
        )
    if num is not None and not values_are_visible():
        return num
    low, high = segments.limits(index)
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


def _shift(scores: Tensor, rows: Rows) -> Tensor:
    """The largest score of each row (0 where there is none), as a constant."""
    return rows.spread(finite(rows.max(scores.detach())))


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
    if (weights := _by_kernel(scores, rows, 1.5)) is not None:
        return weights
    z = (scores - _shift(scores, rows)) / 2

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
    """Entmax with any α: bisection finds τ, and Newton steps from there carry the gradients.

    With τ₀ the solution, a constant, `τ₀ - f(τ₀) / f'(τ₀)` equals τ₀ and has the derivatives that
    the implicit function theorem gives to τ; a second step makes the second derivatives right too.
    """
    power = 1 / (alpha - 1)
    centred = scores - _shift(scores, rows)
    z = torch.where(centred == -math.inf, -2, _scale(centred, alpha - 1))  # τ is in [-1, 0]

    def lift(tau: Tensor) -> tuple[Tensor, Tensor]:
        above = z - rows.spread(tau)
        inside = above > 0
        above = torch.where(inside, above, 1)  # keeps the derivatives of pow finite outside
        return torch.where(inside, above**power, 0), torch.where(inside, above ** (power - 1), 0)

    with torch.no_grad():
        tau = rows.max(z).clamp(min=0) - 1  # -1, for a row without pairs too
        for step in range(1, 60 if z.dtype == torch.float64 else 30):
            middle = tau + 0.5**step
            tau = torch.where(rows.sum(lift(middle)[0]) >= 1, middle, tau)
    for _ in range(2):
        weights, slopes = lift(tau)
        slope = rows.sum(slopes) * power
        newton = (rows.sum(weights) - 1) / torch.where(slope == 0, 1, slope)
        tau = tau + torch.where(slope == 0, 0, newton)
    return lift(tau)[0]


def _scale(scores: Tensor, factor: Tensor | float) -> Tensor:
    """`scores * factor`, in which scores of -inf stay and give the factor no gradient."""
    absent = scores == -math.inf
    return torch.where(absent, -math.inf, torch.where(absent, 0, scores) * factor)
