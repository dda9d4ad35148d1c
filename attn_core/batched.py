"""Batch dimensions over one graph, which the kernels see as more heads.

Nodes `[B, N, H, D]` over one list of pairs are nodes `[N, B·H, D]`: a head reads no other, so that
the graph is sorted once, an edge is read once for all of its batch, and every score, normaliser and
backend serves as it is. The copies that this takes are of nodes, not of edges.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from attn_core.compat import fields_of
from attn_core.normalizers import Normalizer
from attn_core.scores import Formula, Score


@dataclasses.dataclass(frozen=True, eq=False)
class Repeated(Score):
    """A score for `times · H` heads, of which each H in a row share the score of H heads."""

    score: Score
    times: int

    def formula(self) -> Formula | None:
        found = self.score.formula()
        if found is None or found.vector is None or found.vector.shape[0] == 1:
            return found
        return Formula(found.kind, found.constant, found.vector.repeat(self.times, 1))

    @property
    def heads(self) -> int:
        return self.score.heads if self.score.heads == 1 else self.times * self.score.heads

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        return self.of_pairs(query, key, None)

    def of_pairs(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Tensor:
        own = key.shape[-2] // self.times if self.times else self.score.heads
        heads = self.times, own
        given = [None if x is None else x.unflatten(-2, heads) for x in (query, pair_key)]
        return self.score.of_pairs(given[0], key.unflatten(-2, heads), given[1]).flatten(-2)

    def pair_width(self, key: Tensor, pair_key: Tensor) -> int:
        return self.score.pair_width(key, pair_key)

    def to(self, dtype: torch.dtype) -> Repeated:
        score = self.score.to(dtype)
        return self if score is self.score else Repeated(score, self.times)


def repeated(normalizer: Normalizer, heads: int, times: int) -> Normalizer:
    """The normaliser with its parameters per head, `[H]`, once for each of `times`."""
    per_head = {
        name: value.repeat(times)
        for name, value in fields_of(normalizer).items()
        if isinstance(value, Tensor) and value.shape == (heads,)
    }
    return dataclasses.replace(normalizer, **per_head) if per_head else normalizer  # type: ignore


def fold(x: Tensor, batch: tuple[int, ...]) -> Tensor:
    """`[..., N, H, …]` with these batch dimensions as `[N, B·H, …]`."""
    return x.flatten(0, len(batch) - 1).transpose(0, 1).flatten(1, 2)


def unfold(x: Tensor, batch: tuple[int, ...], heads: int) -> Tensor:
    """`[N, B·H, …]` as `[..., N, H, …]`, the reverse of `fold`, laid out as it reads."""
    return x.unflatten(1, (*batch, heads)).movedim(0, len(batch)).contiguous()
