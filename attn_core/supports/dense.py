"""The Dense support: every query with every key, less a mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core.rows import DenseRows, Rows
from attn_core.scores import Score
from attn_core.supports.base import (
    Support,
    broadcasts_to,
    check_lengths,
    check_lengths_dtype,
    check_tokens,
    first_place,
)
from attn_core.transforms import nobody_watches, outside_inference


class _Padding(NamedTuple):
    """What was computed of the lengths that were, for so many keys."""

    question: tuple[object, ...]
    lengths: Tensor
    added: Tensor
    empty: Tensor | None


@dataclass(frozen=True, eq=False)
class Dense(Support):
    """Every query with every key, less what is masked; queries and keys are `[..., T, H, D]`.

    Args:
        mask: bool, True where the query may attend to the key: `[Tq, Tk]`, `[..., Tq, Tk]` (one
            for all heads) or `[..., H, Tq, Tk]`; a dimension of size 1 is repeated. Default: all.
        lengths: integer, of the shape of the batch dimensions: how many keys of each sequence are
            real; those behind them get no weight. Default: all.
        causal: the last query sees every key, the one before all but the last, and so on: query i
            sees the keys up to i + Tk - Tq; where lengths are given, up to i + length - Tq, so that
            the last query stands at the last key of its own sequence (but as many queries as keys
            are the same steps). Default False.

    Raises:
        TypeError: a mask that is not bool, lengths that are not integers.
        ValueError: shapes that do not fit the queries and keys (when it is used).

    >>> Dense(lengths=torch.tensor([2, 0]), causal=True).allowed((2,), heads=1, queries=2, keys=2)
    tensor([[[[ True, False],
              [ True,  True]]],
    <BLANKLINE>
    <BLANKLINE>
            [[[False, False],
              [False, False]]]])
    """

    mask: Tensor | None = None
    lengths: Tensor | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        for name, given in (("mask", self.mask), ("lengths", self.lengths)):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(f"{name} is a {type(given).__name__}; expected a tensor")
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise TypeError(
                f"mask has dtype {self.mask.dtype}; expected bool, where True means 'may attend'. "
                "A float mask that is added to the scores goes into bias="
            )
        check_lengths_dtype(self.lengths)

    def allowed(
        self,
        batch: tuple[int, ...],
        heads: int,
        queries: int,
        keys: int,
        device: torch.device | None = None,
    ) -> Tensor | None:
        """The mask, lengths and causal order as one bool that broadcasts to `[..., H, Tq, Tk]`.

        None where every query may attend to every key.
        """
        allowed = self._shaped_mask((*batch, heads, queries, keys))
        causal = self.causal and (self.lengths is not None or queries != 1)  # one sees all the keys
        if self.lengths is not None:
            check_lengths(self.lengths, batch, keys)
            real = torch.arange(keys, device=self.lengths.device) < self.lengths[..., None]
            real = real[..., None, None, :]
            allowed = real if allowed is None else allowed & real
        if causal:
            device = device if allowed is None else allowed.device
            first = first_place(queries, keys, self.lengths)
            order: Tensor
            if isinstance(first, Tensor):
                order = self._relative(first[..., None, None, None], queries, keys, device) <= 0
            else:
                order = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(first)
            allowed = order if allowed is None else allowed & order
        return allowed

    @property
    def is_padded(self) -> bool:
        """Whether lengths are all that leaves pairs out."""
        return self.lengths is not None and self.mask is None and not self.causal

    def padding(
        self, batch: tuple[int, ...], keys: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """What lengths add to scores, `[..., 1, 1, Tk]`, and rows without keys, `[..., 1, 1, 1]`.

        The latter, None if there are none, get zeros, and are to be erased. Decoders ask the same
        at every step, so that the answer is remembered: on a CPU, and as long as lengths are what
        they were.
        """
        lengths = self.lengths
        assert lengths is not None
        if not nobody_watches(lengths) or lengths.device.type != "cpu":
            return self._padding(batch, keys, dtype)
        known: _Padding | None = self.__dict__.get("_known")
        question = batch, keys, dtype
        # The numbers themselves: torch does not count what is written by NumPy or through .data
        if known is None or known.question != question or not known.lengths.equal(lengths):
            with outside_inference():
                added, empty = self._padding(batch, keys, dtype)
                some = empty if empty.any() else None
                known = _Padding(question, lengths.clone(), added, some)
            self.__dict__["_known"] = known
        return known.added, known.empty

    def __getstate__(self) -> dict[str, object]:
        return {name: x for name, x in self.__dict__.items() if name != "_known"}

    def _padding(
        self, batch: tuple[int, ...], keys: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        real = self.allowed(batch, 1, 1, keys)
        assert real is not None and self.lengths is not None
        empty = (self.lengths == 0)[..., None, None, None]
        added = torch.zeros(real.shape, dtype=dtype, device=real.device)
        return added.masked_fill(~(real | empty), -math.inf), empty

    def _shaped_mask(self, shape: tuple[int, ...]) -> Tensor | None:
        if self.mask is None:
            return None
        mask = self.mask
        if mask.dim() == len(shape) - 1 and len(shape) > 3:  # no heads
            mask = mask.unsqueeze(-3)
        if mask.dim() not in (2, len(shape)) or not broadcasts_to(mask.shape, shape):
            raise ValueError(
                f"mask has shape {list(self.mask.shape)}; expected [Tq, Tk] = {list(shape[-2:])}, "
                f"the batch before it {[*shape[:-3], *shape[-2:]]}, or heads too {list(shape)}"
            )
        return mask

    def check(self, query: Tensor | None, key: Tensor, value: Tensor) -> None:
        check_tokens(query, key, value, mask=self.mask, lengths=self.lengths)

    def num_queries(self, query: Tensor | None, keys: int) -> int:
        """Tq; without a query there is one, which reads all the keys."""
        return 1 if query is None else query.shape[-3]

    def columns(self, keys: int) -> int:
        """How many pairs each query has, the masked ones included: all the keys."""
        return keys

    def relative_positions(
        self, queries: int, keys: int, device: torch.device | None = None
    ) -> Tensor:
        """Position of the key minus that of the query, `[Tq, Tk]`, or of each sequence.

        The last ones coincide. `[..., Tq, Tk]` where lengths say which these are.
        """
        first = first_place(queries, keys, self.lengths)
        if isinstance(first, Tensor):
            first, device = first[..., None, None], first.device
        return self._relative(first, queries, keys, device)

    @staticmethod
    def _relative(
        first: int | Tensor, queries: int, keys: int, device: torch.device | None
    ) -> Tensor:
        here = torch.arange(queries, device=device)[:, None] + first
        return torch.arange(keys, device=device) - here

    def scores(
        self, score: Score, query: Tensor | None, key: Tensor, pair_key: Tensor | None
    ) -> Tensor:
        if pair_key is None:
            return score.dense(query, key)
        query = None if query is None else query.unsqueeze(-3)
        return score.of_pairs(query, key.unsqueeze(-4), pair_key).movedim(-1, -3)

    def rows(self, scores: Tensor, num_keys: int) -> Rows:
        *batch, heads, queries, keys = scores.shape
        return DenseRows(self.allowed(tuple(batch), heads, queries, keys, scores.device))

    def drop(self, weights: Tensor, p: float, seed: Tensor | None = None) -> Tensor:
        return F.dropout(weights, p)

    def aggregate(self, weights: Tensor, value: Tensor, pair_value: Tensor | None) -> Tensor:
        output = (weights @ value.movedim(-2, -3)).movedim(-3, -2)
        if pair_value is not None:
            pair_value = pair_value[(None,) * (4 - pair_value.dim())]
            output = output + torch.einsum("...hqk,...qkhd->...qhd", weights, pair_value)
        return output
