"""The Window support: each query sees the keys near one position."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core.rows import DenseRows, Rows
from attn_core.scores import Score
from attn_core.supports.base import (
    Support,
    check_lengths,
    check_lengths_dtype,
    check_tokens,
    first_place,
)


@dataclass(frozen=True, eq=False)
class Window(Support):
    """The keys at most `radius` steps away from a centre; time and memory are O(T · radius).

    What is given or returned per pair lies along the W offsets of the window, W = 2 · radius + 1
    (radius + 1 if causal): weights and `bias` are `[..., H, Tq, W]`, `pair_key` and `pair_value`
    `[..., Tq, W, H, D]`.

    Args:
        radius: how many steps the window reaches to either side; at least 0.
        dilation: the length of a step in positions. Default 1.
        causal: keys up to the centre only. Default False.
        centre: the position `[..., Tq]` at which each query looks. One in floating point, such as
            a predicted one, has the positions p with `|p - centre| ≤ radius · dilation` in its
            window. Default: query i looks at i + Tk - Tq, so that the last looks at the last key.
        lengths: integers, of the shape of the batch dimensions: how many keys of each sequence
            are real. Without a centre the last query then looks at the last of these, query i at
            i + length - Tq (but as many queries as keys are the same steps). Default: all.

    Raises:
        ValueError: a radius below 0, a dilation below 1.

    >>> positions, exists = Window(1).positions(queries=3, keys=3)
    >>> positions
    tensor([[-1,  0,  1],
            [ 0,  1,  2],
            [ 1,  2,  3]])
    >>> exists
    tensor([[False,  True,  True],
            [ True,  True,  True],
            [ True,  True, False]])
    """

    radius: int
    dilation: int = 1
    causal: bool = False
    centre: Tensor | None = None
    lengths: Tensor | None = None

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ValueError(f"radius is {self.radius}; a window reaches 0 steps or more")
        if self.dilation < 1:
            raise ValueError(f"dilation is {self.dilation}; a step is at least 1 position long")
        check_lengths_dtype(self.lengths)

    @property
    def width(self) -> int:
        """W, the number of offsets."""
        return self.radius + 1 if self.causal else 2 * self.radius + 1

    def columns(self, keys: int) -> int:
        """How many pairs each query has, those that do not exist included: W."""
        return self.width

    def num_queries(self, query: Tensor | None, keys: int) -> int:
        """Tq; without a query there is one at each centre."""
        if query is not None:
            return query.shape[-3]
        return keys if self.centre is None else self.centre.shape[-1]

    @property
    def reach(self) -> int:
        """How many positions the window reaches to one side."""
        return self.radius * self.dilation

    def positions(
        self, queries: int, keys: int, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """The positions that each query looks at, and which of them exist.

        Args:
            queries, keys: Tq and Tk.
            device: where the result shall be, if there is no centre. Default: the CPU.

        Returns:
            int64 and bool, `[Tq, W]`, with the batch dimensions of centre and lengths before.
        """
        centre = self.centre
        centre = (self._here(queries, keys, device) if centre is None else centre)[..., None]
        first = centre - self.reach
        first = first.ceil().long() if first.is_floating_point() else first.long()
        steps = torch.arange(self.width, device=first.device)
        positions = first + self.dilation * steps
        exists = (positions >= 0) & (positions < keys)
        if centre.is_floating_point():
            exists &= positions <= (centre if self.causal else centre + self.reach)
        if self.lengths is not None:
            exists = exists & (positions < self.lengths[..., None, None])
        return positions, exists

    def relative_positions(
        self, queries: int, keys: int, device: torch.device | None = None
    ) -> Tensor:
        """Position of the key minus position of the query for each pair, int64 `[..., Tq, W]`."""
        positions, _ = self.positions(queries, keys, device)
        return positions - self._here(queries, keys, positions.device)[..., None]

    def lie_alike(self, queries: int, keys: int) -> bool:
        """Whether the windows of all sequences lie one step after the other, at the same places."""
        first = first_place(queries, keys, self.lengths)
        return self.centre is None and not isinstance(first, Tensor)

    def _here(self, queries: int, keys: int, device: torch.device | None) -> Tensor:
        """Where the queries stand, `[Tq]`, or `[..., Tq]` in each sequence."""
        first = first_place(queries, keys, self.lengths)
        if isinstance(first, Tensor):
            first, device = first[..., None], first.device
        return torch.arange(queries, device=device) + first

    def check(self, query: Tensor | None, key: Tensor, value: Tensor) -> None:
        check_tokens(query, key, value, centre=self.centre, lengths=self.lengths)
        batch = key.shape[:-3]
        if self.lengths is not None:
            check_lengths(self.lengths, batch, key.shape[-3])
        if self.centre is not None and query is not None:
            queries = query.shape[-3]
            if self.centre.shape not in ((queries,), (*batch, queries)):
                raise ValueError(
                    f"centre has shape {list(self.centre.shape)}; expected {[*batch, queries]}, "
                    f"one position for each query, or [{queries}]"
                )

    def scores(
        self, score: Score, query: Tensor | None, key: Tensor, pair_key: Tensor | None
    ) -> Tensor:
        queries = self.num_queries(query, key.shape[-3])
        keys = self.read(key, queries)  # [..., Tq, W, H, D]
        formula = score.formula()
        if formula is not None and formula.kind == "dot" and pair_key is None and query is not None:
            product = query.unsqueeze(-2) @ keys.movedim(-3, -1)  # [..., Tq, H, 1, W]
            return product.squeeze(-2).transpose(-3, -2) * formula.constant
        query = None if query is None else query.unsqueeze(-3)
        return score.of_pairs(query, keys, pair_key).movedim(-1, -3)

    def rows(self, scores: Tensor, num_keys: int) -> Rows:
        _, exists = self.positions(scores.shape[-2], num_keys, scores.device)
        return DenseRows(exists.unsqueeze(-3))

    def drop(self, weights: Tensor, p: float, seed: Tensor | None = None) -> Tensor:
        return F.dropout(weights, p)

    def aggregate(self, weights: Tensor, value: Tensor, pair_value: Tensor | None) -> Tensor:
        values = self.read(value, weights.shape[-2])
        if pair_value is not None:
            values = values + pair_value
        per_query = weights.transpose(-3, -2).unsqueeze(-2)  # [..., Tq, H, 1, W]
        return (per_query @ values.transpose(-3, -2)).squeeze(-2)

    def read(self, tokens: Tensor, queries: int) -> Tensor:
        """What each query sees of `[..., Tk, H, D]`: `[..., Tq, W, H, D]`.

        Where all windows lie alike this is a view. Positions that do not exist hold zeros or other
        tokens.
        """
        keys = tokens.shape[-3]
        if not keys or not queries:  # there is nothing to gather, nor to cut windows from
            none = tokens.flatten()[:0].sum()  # so that they have a gradient, as everywhere
            shape = *tokens.shape[:-3], queries, self.width, *tokens.shape[-2:]
            return tokens.new_zeros(shape) + none
        if self.lie_alike(queries, keys):
            after = 0 if self.causal else self.reach
            padded = F.pad(tokens, (0, 0, 0, 0, self.reach - (keys - queries), after))
            span = (self.width - 1) * self.dilation + 1
            return padded.unfold(-3, span, 1)[..., :: self.dilation].movedim(-1, -3)
        positions, _ = self.positions(queries, keys)
        positions = positions.clamp(0, max(keys - 1, 0)).flatten(-2)
        if positions.dim() == 1:
            found = tokens.index_select(-3, positions)
        else:
            positions = positions[..., None, None].expand(*positions.shape, *tokens.shape[-2:])
            found = tokens.gather(-3, positions)
        return found.unflatten(-3, (queries, self.width))
