"""Monotonic attention: each query goes on from the key where the one before it stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_core import Normalizer, Score, Support
from attn_core.compat import renewed
from attn_core.rows import Rows
from sequence_attn.attention import Attention, Memory

_LEAST = -1e4  # log(1 - p) of a key that is surely stopped at, whose exponential is 0


class MonotonicContext(NamedTuple):
    """What `MonotonicAttention` returns.

    Attributes:
        context: `[B, Tq, Dv]`, or `[B, Dv]` for `[B, Dq]`.
        weights: `[B, Tq, Tk]` (`[B, Tk]`); None unless asked for.
        memory: the keys, and where the last query stands: what the queries to come are handed.
    """

    context: Tensor
    weights: Tensor | None
    memory: Memory


class MonotonicAttention(Attention):
    r"""Attention that moves along the keys, never back.

    A query looks at one key after the other, from where the query before it stopped, and stops at
    key j with probability :math:`p_{ij} = \sigma(\mathrm{score}(q_i, k_j) + r)`. In training the
    weights are the probabilities of stopping,

    .. math::
        \alpha_{ij} = p_{ij} \sum_{k \le j} \alpha_{i-1,k} \prod_{l=k}^{j-1} (1 - p_{il}),

    with gradients; in evaluation a key is stopped at where p is above 1/2. A query that runs past
    the last key reads zeros, as do all after it, so that weights may sum to less than 1. Raffel,
    Luong, Liu, Weiss, Eck, "Online and Linear-Time Attention by Enforcing Monotonic Alignments",
    ICML 2017.

    Args:
        score: as in `Attention`. Default "additive"; the paper's is the normalised one of
            `BahdanauAttention(normalize=True)`, whose `score_scale` keeps scores small.
        offset: what r, which is learned, starts at: below 0, so that at first keys far ahead are
            reached. Default -1.
        noise: the standard deviation of what is added to scores in training, which drives p to 0
            or 1, as evaluation takes it. Default 1, as in the paper.
        query_size, key_size, attention_size, max_length, activation, bias, dropout: as in
            `Attention`.

    Raises:
        ValueError: noise below 0; else as `Attention`.

    A query takes numbers for all pairs of keys, `[B, Tk, Tk]`, in training and in evaluation.

    >>> attention = MonotonicAttention("dot", query_size=4, noise=0)
    >>> query, keys = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    >>> read = attention(query, keys, need_weights=True)
    >>> read.weights.shape, bool((read.weights.sum(-1) <= 1).all())
    (torch.Size([2, 3, 5]), True)

    In a decoding loop, hand the memory on:

    >>> memory = attention.precompute(keys)
    >>> for step in range(3):
    ...     one = attention(query[:, step], memory)
    ...     memory = one.memory
    >>> torch.allclose(one.context, read.context[:, -1])
    True
    """

    def __init__(
        self,
        score: str | Score = "additive",
        *,
        offset: float = -1.0,
        noise: float = 1.0,
        query_size: int | None = None,
        key_size: int | None = None,
        attention_size: int | None = None,
        max_length: int | None = None,
        activation: str | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if not noise >= 0:
            raise ValueError(f"noise is {noise}; a standard deviation is 0 or more")
        super().__init__(
            score,
            query_size=query_size,
            key_size=key_size,
            attention_size=attention_size,
            max_length=max_length,
            activation=activation,
            bias=bias,
            dropout=dropout,
        )
        self.noise = noise
        self.first_offset = offset
        self.offset = nn.Parameter(torch.tensor(float(offset)))

    def reset_parameters(self) -> None:
        """Draw the parameters of a score given by name anew, and set r back."""
        super().reset_parameters()
        if hasattr(self, "offset"):
            nn.init.constant_(self.offset, self.first_offset)

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        keys: Tensor | Memory,
        values: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        lengths: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        step: int = 0,
        need_weights: bool = False,
    ) -> MonotonicContext:
        """Attend; arguments as in `Attention.forward`, queries in the order of time.

        A query that is not real (query_mask) stops nowhere, and ends the way of those after it:
        padding comes last.
        """
        memory = keys
        if not isinstance(memory, Memory):
            memory, values, lengths = self.precompute(memory, values, lengths=lengths), None, None
        masks = mask, key_mask, query_mask
        parts = self._parts(query, memory, values, *masks, lengths, causal, bias, step)
        read = self._read(query, parts, need_weights)
        moved = parts.normalizer
        assert isinstance(moved, _Moving)
        return MonotonicContext(*read, renewed(memory, stands=moved.stands[0]))

    def _pairs(
        self,
        query: Tensor,
        memory: Memory,
        mask: Tensor | None,
        key_mask: Tensor | None,
        causal: bool,
        bias: Tensor | None,
        step: int,
    ) -> tuple[Support, Tensor | None, Normalizer]:
        support, bias, _ = super()._pairs(query, memory, mask, key_mask, causal, bias, step)
        noise = self.noise if self.training else 0.0
        return support, bias, _Moving(self.offset, noise, not self.training, memory.stands)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, noise={self.noise}"


@dataclass(frozen=True, eq=False)
class _Moving(Normalizer):
    """The probability of each key to be stopped at, query after query; `stands` keeps the last."""

    offset: Tensor
    noise: float
    hard: bool
    before: Tensor | None
    stands: list[Tensor] = field(default_factory=list)

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        logits = scores + self.offset
        if self.noise:
            logits = logits + self.noise * torch.randn_like(logits)
        if self.hard:
            sure = torch.where(logits > 0, torch.inf, -torch.inf).to(logits.dtype)
            logits = torch.where(logits.isnan(), logits, sure)
        at = self.before
        if at is None:  # before the first query, at the first key
            at = logits.new_zeros(logits.shape[0], logits.shape[-1])
            at[:, :1] = 1
        found = []
        for one in logits.squeeze(1).unbind(1):  # [B, Tk] for each query
            at = alignment(one, at.to(one.dtype))
            found.append(at)
        self.stands.append(at)
        return torch.stack(found, 1).unsqueeze(1) if found else torch.zeros_like(scores)


def alignment(logits: Tensor, before: Tensor) -> Tensor:
    """The probability of each key to be stopped at next.

    Args:
        logits: `[..., Tk]`, whose sigmoid is the probability of stopping at a key that is reached;
            -inf for keys that do not exist.
        before: `[..., Tk]`, that of each key to be where the query before stopped.

    Returns:
        `[..., Tk]`; with gradients.

    >>> alignment(torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]))
    tensor([0.5000, 0.2500, 0.1250])
    """
    # Sums of logarithms, whose differences are the products: exact to double precision
    passed = F.logsigmoid(-logits.double()).clamp(min=_LEAST)
    passed = F.pad(passed.cumsum(-1), (1, 0))[..., :-1]  # [..., Tk], over the keys before each
    between = passed.unsqueeze(-2) - passed.unsqueeze(-1)  # from key k (rows) to key j
    number = logits.shape[-1]
    back = torch.ones(number, number, dtype=torch.bool, device=logits.device).tril(-1)
    reached = between.masked_fill(back, -torch.inf).exp().to(logits.dtype)
    return logits.sigmoid() * (before.unsqueeze(-2) @ reached).squeeze(-2)
