"""Patterns of restricted attention, each a support and a graph.

In a pattern of this file a token sees others by their distance alone; grids, global tokens, random
blocks and points in space stand in `layouts`, and are reached from here. `Pattern.allowed` is the
definition; `support` and `edges` hold the same pairs, for kernels over sequences and over graphs.

>>> local(1).allowed(torch.arange(4), torch.arange(4)).int()
tensor([[1, 1, 0, 0],
        [1, 1, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 1, 1]], dtype=torch.int32)
>>> local(1).support(4)
Window(radius=1, dilation=1, causal=False, centre=None, lengths=None)
>>> local(1).edges(4)
Edges(num_keys=4, num_queries=4, num_edges=10, device='cpu')
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attn_core.supports.base import check_lengths_dtype
from attn_core.supports.dense import Dense
from attn_core.supports.edges import Edges
from attn_core.supports.layouts import big_bird, nearest, neighborhood, with_global
from attn_core.supports.window import Window

__all__ = [
    "Pattern", "atrous", "big_bird", "causal", "full", "local", "nearest", "neighborhood", "sparse",
    "strided", "with_global",
]  # fmt: skip


@dataclass(frozen=True)
class Pattern:
    """The keys at certain distances from the query, which always sees itself.

    A key at the distance d is seen if `|d| ≤ radius`, or if d is a multiple of `rate` (at most
    `steps` times it).

    Args:
        radius: up to which distance all keys are seen; at least 0. Default 0: the query itself.
        rate: the multiples of which distance are seen too; at least 1. Default: none.
        steps: how many multiples to either side; at least 0. Default: all.
        causal: no key behind the query. Default False.

    Raises:
        TypeError: a number that is not whole.
        ValueError: a number below its bound, or steps without a rate.

    >>> Pattern(radius=1, rate=3, causal=True).distances(7)
    tensor([-6, -3, -1,  0])
    """

    radius: int = 0
    rate: int | None = None
    steps: int | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        _check_number("radius", self.radius, 0)
        if self.rate is not None:
            _check_number("rate", self.rate, 1)
        if self.steps is not None:
            _check_number("steps", self.steps, 0)
            if self.rate is None:
                raise ValueError(f"steps is {self.steps}, but steps of what? Give rate as well")

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Which queries see which keys.

        Args:
            query_positions: integers `[..., Tq]`.
            key_positions: integers `[..., Tk]`.

        Returns:
            bool `[..., Tq, Tk]`, True where the query may attend to the key.

        >>> sparse(2).allowed(torch.tensor([4]), torch.arange(9)).int()
        tensor([[1, 0, 1, 1, 1, 1, 1, 0, 1]], dtype=torch.int32)
        """
        distance = key_positions[..., None, :] - query_positions[..., :, None]
        seen = distance.abs() <= self.radius
        if self.rate is not None:
            multiple = distance % self.rate == 0
            if self.steps is not None:
                multiple &= distance.abs() <= self.steps * self.rate
            seen |= multiple
        return seen & (distance <= 0) if self.causal else seen

    def distances(self, longest: int, device: torch.device | None = None) -> Tensor:
        """The distances at which keys are seen, up to the longest one, ascending: int64 `[O]`."""
        radius = min(self.radius, longest)
        seen = torch.arange(-radius, radius + 1, device=device)
        if self.rate is not None:
            steps = longest // self.rate
            steps = steps if self.steps is None else min(steps, self.steps)
            multiples = self.rate * torch.arange(-steps, steps + 1, device=device)
            seen = torch.cat([seen, multiples]).unique()
        return seen[seen <= 0] if self.causal else seen

    def support(
        self,
        queries: int,
        keys: int | None = None,
        *,
        lengths: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Window | Dense:
        """The pattern as a support for tokens `[..., T, H, D]`.

        A `Window` where the keys seen are evenly spaced and limited in number, which takes time and
        memory O(T · radius); else `Dense`, with a mask `[Tq, Tk]` unless all keys (up to the query)
        are seen.

        Args:
            queries: Tq.
            keys: Tk. The last query stands at the last key. Default: Tq.
            lengths: integers, of the shape of the batch dimensions: how many keys of each sequence
                are real. Default: all.
            device: where the mask shall be. Default: where the lengths are, else torch's default.

        Raises:
            TypeError, ValueError: numbers that are not whole, or below 0.

        >>> atrous(3, radius=2).support(100)
        Window(radius=2, dilation=3, causal=False, centre=None, lengths=None)
        >>> strided(2).support(4).mask.int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0],
                [0, 1, 1, 1]], dtype=torch.int32)
        """
        keys = queries if keys is None else keys
        _check_number("queries", queries, 0)
        _check_number("keys", keys, 0)
        if self.rate is None:
            return Window(self.radius, causal=self.causal, lengths=lengths)
        if self.steps is not None and self.radius == 0:
            return Window(self.steps, self.rate, self.causal, lengths=lengths)
        if self.rate == 1 and self.steps is None:
            return Dense(lengths=lengths, causal=self.causal)
        if device is None and lengths is not None:
            device = lengths.device
        positions = torch.arange(keys, device=device)
        here = torch.arange(keys - queries, keys, device=device)
        return Dense(self.allowed(here, positions), lengths)

    def edges(
        self,
        lengths: int | Sequence[int] | Tensor,
        *,
        padded_to: int | None = None,
        device: torch.device | None = None,
    ) -> Edges:
        """The pattern as a graph over the tokens of one or more sequences, one node per token.

        Time and memory are those of the pairs that there are, never all pairs.

        Args:
            lengths: n, the number of tokens of one sequence; or integers `[B]`, one for each of
                several sequences, which form one graph without an edge between them (their
                disjoint union). The tokens of each sequence follow those of the one before.
            padded_to: T, where the nodes are those of a padded batch, `tokens.flatten(0, 1)` of
                `[B, T, H, D]`; padding then has no edges. Default: there is no padding, which is
                `tokens[real]` with `real` bool `[B, T]`.
            device: where the edges shall be. Default: where the lengths are, else torch's default.

        Returns:
            Edges, sorted by query.

        Raises:
            TypeError: lengths that are not integers.
            ValueError: a length below 0 or above `padded_to`.

        >>> local(1).edges([2, 1]).edge_index
        tensor([[0, 1, 0, 1, 2],
                [0, 0, 1, 1, 2]])
        >>> local(1).edges([2, 1], padded_to=3).edge_index
        tensor([[0, 1, 0, 1, 3],
                [0, 0, 1, 1, 3]])
        """
        length = _check_each_length(lengths, padded_to, device)  # [B]
        device = length.device
        tokens = int(length.sum())
        first = length.cumsum(0) - length  # of each sequence, among the tokens
        sequence = torch.arange(len(length), device=device).repeat_interleave(length)
        place = torch.arange(tokens, device=device) - first[sequence]
        node = torch.arange(tokens, device=device)
        if padded_to is not None:
            node = sequence * padded_to + place
            tokens = len(length) * padded_to

        # The distances that stay inside the sequence of a query are neighbours in this list
        distances = self.distances(max(int(length.max()) - 1, 0) if len(length) else 0, device)
        low = torch.searchsorted(distances, -place)
        count = torch.searchsorted(distances, length[sequence] - place) - low
        query = torch.arange(len(node), device=device).repeat_interleave(count)  # [E]
        shift = low - (count.cumsum(0) - count)  # from the number of a pair to that of its distance
        distance = distances[torch.arange(len(query), device=device) + shift[query]]
        query = node[query]
        return Edges.from_edge_index(torch.stack([query + distance, query]), size=tokens)


def local(radius: int, causal: bool = False) -> Pattern:
    """The keys at most `radius` positions away.

    Args:
        radius: at least 0, in positions.
        causal: only those up to the query. Default False.

    Raises:
        ValueError: a radius below 0.

    >>> local(2).distances(9)
    tensor([-2, -1,  0,  1,  2])
    """
    return Pattern(radius=radius, causal=causal)


def atrous(rate: int, radius: int | None = None, causal: bool = False) -> Pattern:
    """The keys at multiples of `rate` positions, as in a dilated convolution.

    Args:
        rate: the length of a step in positions; at least 1.
        radius: how many steps it reaches to either side; at least 0. Default: to the ends.
        causal: only those up to the query. Default False.

    Raises:
        ValueError: a rate below 1, a radius below 0.

    >>> atrous(3).distances(9), atrous(3, radius=1).distances(9)
    (tensor([-9, -6, -3,  0,  3,  6,  9]), tensor([-3,  0,  3]))
    """
    if radius is not None:
        _check_number("radius", radius, 0)
    return Pattern(rate=rate, steps=radius, causal=causal)


def sparse(rate: int, causal: bool = False) -> Pattern:
    """The keys at most `rate` positions away, and all at multiples of `rate`: local plus atrous.

    Args:
        rate: in positions; at least 1.
        causal: only those up to the query. Default False.

    Raises:
        ValueError: a rate below 1.

    >>> sparse(3).distances(9)
    tensor([-9, -6, -3, -2, -1,  0,  1,  2,  3,  6,  9])
    """
    _check_number("rate", rate, 1)
    return Pattern(radius=rate, rate=rate, causal=causal)


def strided(stride: int) -> Pattern:
    """The previous `stride` positions, and every stride-th before them (Child et al., 2019).

    This is the union of the two patterns that the Sparse Transformer gives to different heads or
    layers, and the causal form of `sparse`.

    Args:
        stride: in positions; at least 1. The paper takes about the square root of the length.

    Raises:
        ValueError: a stride below 1.

    >>> strided(3).distances(9)
    tensor([-9, -6, -3, -2, -1,  0])
    """
    _check_number("stride", stride, 1)
    return sparse(stride, causal=True)


def causal() -> Pattern:
    """Every key up to the query.

    >>> causal().distances(3)
    tensor([-3, -2, -1,  0])
    """
    return Pattern(rate=1, causal=True)


def full() -> Pattern:
    """Every key: over several sequences, each its own block of pairs.

    The lengths of a packed batch with `cu_seqlens` are `cu_seqlens.diff()`.

    >>> full().edges(torch.tensor([0, 2, 3]).diff()).edge_index
    tensor([[0, 1, 0, 1, 2],
            [0, 0, 1, 1, 2]])
    """
    return Pattern(rate=1)


def _check_number(name: str, number: int, lowest: int) -> None:
    if not hasattr(number, "__index__"):
        raise TypeError(f"{name} is {number!r}; expected a whole number")
    if number < lowest:
        raise ValueError(f"{name} is {number}; expected a whole number of at least {lowest}")


def _check_each_length(
    lengths: int | Sequence[int] | Tensor, padded_to: int | None, device: torch.device | None
) -> Tensor:
    """Lengths as int64 `[B]`, each in 0 … padded_to."""
    if padded_to is not None:
        _check_number("padded_to", padded_to, 0)
    if isinstance(lengths, Sequence) and len(lengths) == 0:
        return torch.zeros(0, dtype=torch.int64, device=device)
    length = torch.as_tensor(lengths, device=device)
    check_lengths_dtype(length)
    if length.dim() > 1:
        raise ValueError(f"lengths has shape {list(length.shape)}; expected a number, or [B]")
    length = length.reshape(-1).long()
    low, high = (int(x) for x in torch.aminmax(length)) if len(length) else (0, 0)
    if low < 0:
        raise ValueError(f"lengths has the entry {low}; a sequence has 0 tokens or more")
    if padded_to is not None and high > padded_to:
        raise ValueError(
            f"lengths has the entry {high}, but padded_to is {padded_to}: give the padded length "
            "of the batch"
        )
    return length
