"""One call of `attend`, as an object that its implementations pass around."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from attn_core.normalizers import Normalizer
from attn_core.scores import Score
from attn_core.supports import Dense, PendingEdges, Support


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of `attend`; see there."""

    score: Score
    normalizer: Normalizer
    support: Support | PendingEdges
    query: Tensor | None
    key: Tensor
    value: Tensor
    bias: Tensor | None
    pair_key: Tensor | None
    pair_value: Tensor | None
    dropout: float

    def check(self) -> None:
        """Raise if an argument does not fit the others."""
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout is {self.dropout}; a probability lies between 0 and 1")
        for name in ("query", "key", "value", "bias", "pair_key", "pair_value"):
            tensor = getattr(self, name)
            if tensor is not None and not tensor.is_floating_point():
                raise TypeError(
                    f"{name} has dtype {tensor.dtype}; attention needs floating point: convert it "
                    "with .float()"
                )
        self.support.check(self.query, self.key, self.value)

    def prepared(self) -> Call:
        """The work of each token done; over edges, what is given per pair has all its heads."""
        score, query, key, pair_key = self.score.prepare(self.query, self.key, self.pair_key)
        call = dataclasses.replace(self, score=score, query=query, key=key, pair_key=pair_key)
        if isinstance(self.support, Dense):
            return call
        heads = self.value.shape[1]
        bias = self.bias
        if bias is not None:
            bias = (bias if bias.dim() > 1 else bias[:, None]).expand(-1, heads)
        pairs = {
            name: None if (x := getattr(call, name)) is None else x.expand(-1, heads, -1)
            for name in ("pair_key", "pair_value")
        }
        return dataclasses.replace(call, bias=bias, **pairs)

    def in_full_precision(self) -> Call:
        """All tensors in one dtype, float32 at least."""
        tensors = {
            name: tensor
            for name in ("query", "key", "value", "bias", "pair_key", "pair_value")
            if (tensor := getattr(self, name)) is not None
        }
        dtype = torch.float32
        for tensor in tensors.values():
            dtype = torch.promote_types(dtype, tensor.dtype)
        cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return dataclasses.replace(self, score=self.score.to(dtype), **cast)

    def on_resolved_support(self) -> Call:
        """The same call over `Edges` where the support was pending."""
        if not isinstance(self.support, PendingEdges):
            return self
        edges = self.support.resolve()
        given = {
            name: tensor.index_select(0, edges.source_id)
            for name in ("bias", "pair_key", "pair_value")
            if (tensor := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, support=edges, **given)

    def scores(self) -> Tensor:
        """The logits of all pairs, bias included."""
        assert not isinstance(self.support, PendingEdges)
        scores = self.support.scores(self.score, self.query, self.key, self.pair_key)
        return scores if self.bias is None else scores + self.bias
