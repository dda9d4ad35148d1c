"""Restricted self-attention: each position reads its neighbourhood."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from attn_core import Location, Normalizer, Score, Window
from attn_core.supports.base import broadcasts_to
from sequence_attn.checks import real_steps
from sequence_attn.scored import Parts, ScoredAttention, SequenceAttention


class RestrictedSelfAttention(ScoredAttention):
    """Self-attention of each position to its neighbourhood, in O(T · radius) time and memory.

    `context_i = Σ_{|i-j| ≤ radius · dilation} weight_ij x_j`. Vaswani et al., 2017, section 4; with
    a dilation, "atrous" self-attention. For several heads with projections of their own, use
    `MultiHead(window=radius)`.

    Args:
        radius: how many positions it reaches to either side; at least 0.
        dilation: look at every so many-th position only. Default 1.
        size: the width of the input; an `attn_core.Score` may leave it open.
        score: as in `Attention`, but "location". Default "scaled_dot".
        causal: look at the past and the present only. Default False.
        attention_size, normalizer, activation, dropout: as in `Attention`.

    Raises:
        ValueError: a negative radius, a dilation below 1, the score "location".

    >>> import torch
    >>> attention = RestrictedSelfAttention(radius=1, size=4)
    >>> context, weights = attention(torch.randn(2, 6, 4), need_weights=True)
    >>> weights.shape  # of the left neighbour, itself, the right neighbour
    torch.Size([2, 6, 3])
    """

    def __init__(
        self,
        radius: int,
        dilation: int = 1,
        *,
        size: int | None = None,
        score: str | Score = "scaled_dot",
        causal: bool = False,
        attention_size: int | None = None,
        normalizer: str | Normalizer = "softmax",
        activation: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        if score == "location" or isinstance(score, Location):
            raise ValueError(
                "score is 'location', which looks at no key and cannot follow a window: use "
                "'scaled_dot', 'additive' or another one"
            )
        super().__init__(
            score,
            normalizer,
            query_size=size,
            attention_size=attention_size,
            activation=activation,
            dropout=dropout,
        )
        self.pattern = Window(radius, dilation, causal)

    def forward(
        self,
        x: Tensor,
        *,
        lengths: Tensor | None = None,
        bias: Tensor | None = None,
        need_weights: bool = False,
    ) -> SequenceAttention:
        """Attend.

        Args:
            x: `[B, T, D]`.
            lengths: integers `[B]`: how many positions of each sequence are real; those behind
                them count as zeros. Default: all.
            bias: added to the scores, `[B, T, W]` or `[T, W]`, with an entry for each of the W
                offsets of the window. Default: none.
            need_weights: return the weights as well. Default False.

        Returns:
            SequenceAttention(context, weights): `[B, T, D]`, and `[B, T, W]` before dropout.

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        return self._read(x, self._around(x, lengths, bias), need_weights)

    def weights(
        self, x: Tensor, *, lengths: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """The weights alone, `[B, T, W]`; arguments as in `forward`."""
        return self._match(x, self._around(x, lengths, bias))

    def _around(self, x: Tensor, lengths: Tensor | None, bias: Tensor | None) -> Parts:
        self._check("x", x, self.query_size, dims=(3,))
        if lengths is not None:
            x = real_steps(x, lengths)
        window = dataclasses.replace(self.pattern, lengths=lengths)
        if bias is not None:
            shape = (*x.shape[:2], window.width)
            if bias.dim() not in (2, 3) or not broadcasts_to(bias.shape, shape):
                raise ValueError(
                    f"bias has shape {list(bias.shape)}; expected [B, T, W] = {list(shape)} or "
                    f"[T, W] = {list(shape[1:])}"
                )
            bias = bias.unsqueeze(-3)
        query, key = self._project_query(x), self._project_keys(x)
        return Parts(query, key, x, self.score, window, bias, self.normalizer)

    def extra_repr(self) -> str:
        radius, dilation, causal = self.pattern.radius, self.pattern.dilation, self.pattern.causal
        return f"radius={radius}, dilation={dilation}, causal={causal}, {super().extra_repr()}"
