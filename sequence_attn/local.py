"""Local attention: to the keys around one position, which moves along or is predicted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attn_core import Dense, Location, Normalizer, Score, Support, Window
from attn_core.normalizers import at_least_float32
from attn_core.rows import Rows
from sequence_attn.attention import Attention, Memory
from sequence_attn.checks import check_lengths
from sequence_attn.pairs import both, in_window, mask_bias
from sequence_attn.scored import Parts


class LocalAttention(Attention):
    """Attention to the keys around one position p_t: Luong et al., 2015, local-m and local-p.

    "monotonic": `p_t = t`, at the last key once t is past it. "predictive": `p_t = S · sigmoid(v_pᵀ
    tanh(W_p q_t))`, where S is the true length of the sequence, without padding. The weights are
    the softmax over the keys at most `window` positions from p_t, times the Gaussian
    `exp(-(s - p_t)² / 2σ²)` of their positions s; they are not normalised again, as in the paper,
    and through the Gaussian p_t learns.

    Args:
        align: "monotonic" or "predictive" (default).
        window: D, how many positions the attention reaches to either side; at least 1 (0 if
            monotonic). Default 10.
        sigma: σ of the Gaussian. Default: window / 2 if predictive; no Gaussian if monotonic.
        score: "dot", "general" (default), "concat", or another one but "location", or an
            `attn_core.Score`; "predictive" needs the query_size beside it.
        query_size, key_size, attention_size, normalizer, activation, bias, dropout: as in
            `Attention`.

    Raises:
        ValueError: another align, too small a window, a sigma that is not above 0, or the score
            "location", which looks at no key.

    >>> attention = LocalAttention("predictive", window=2, query_size=8, key_size=12)
    >>> encoded, lengths = torch.randn(2, 9, 12), torch.tensor([9, 6])
    >>> context, weights = attention(
    ...     torch.randn(2, 8), encoded, lengths=lengths, need_weights=True
    ... )
    >>> weights.shape, int((weights > 0).sum(-1).max()) <= 5
    (torch.Size([2, 9]), True)
    """

    def __init__(
        self,
        align: str = "predictive",
        window: int = 10,
        sigma: float | None = None,
        *,
        score: str | Score = "general",
        query_size: int | None = None,
        key_size: int | None = None,
        attention_size: int | None = None,
        normalizer: str | Normalizer = "softmax",
        activation: str | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if align not in ("monotonic", "predictive"):
            raise ValueError(f"align is {align!r}; expected 'monotonic' or 'predictive'")
        # A predicted p_t lies between two positions, which a window of 0 would not reach
        least = 1 if align == "predictive" else 0
        if window < least:
            raise ValueError(
                f"window is {window}; {align} attention reaches {least} or more to either side"
            )
        if score == "location" or isinstance(score, Location):
            raise ValueError(
                "score is 'location', which looks at no key and cannot follow a window: use 'dot', "
                "'general', 'concat' or 'additive'"
            )
        if align == "predictive" and query_size is None:
            raise ValueError("query_size is None, but align 'predictive' predicts p_t from a query")
        super().__init__(
            score,
            normalizer,
            query_size=query_size,
            key_size=key_size,
            attention_size=attention_size,
            activation=activation,
            bias=bias,
            dropout=dropout,
        )
        if sigma is None and align == "predictive":
            sigma = window / 2
        if sigma is not None and not sigma > 0:
            raise ValueError(f"sigma is {sigma}; the width of a Gaussian is above 0")
        self.align, self.window, self.sigma = align, window, sigma
        if query_size is not None and align == "predictive":
            self.position = nn.Sequential(
                nn.Linear(query_size, query_size, bias=False),
                nn.Tanh(),
                nn.Linear(query_size, 1, bias=False),
            )

    def centre(self, query: Tensor, memory: Memory, step: int = 0) -> Tensor:
        """p_t of each query `[B, Tq, Dq]`, in positions of the keys, `[B, Tq]`."""
        batch, queries, _ = query.shape
        lengths = memory.lengths
        if lengths is None:
            lengths = torch.full((batch,), memory.key.shape[1], device=query.device)
        if self.align == "predictive":
            # Half precision cannot tell apart the positions of a long sequence
            share = torch.sigmoid(at_least_float32(self.position(query).squeeze(-1)))
            return lengths[:, None] * share
        steps = torch.arange(step, step + queries, device=query.device)
        return torch.minimum(steps, (lengths[:, None] - 1).clamp(min=0))

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
        if causal:
            raise ValueError(
                "causal is True, but LocalAttention looks around a position that it finds: pass a "
                "mask"
            )
        if step < 0:
            raise ValueError(f"step is {step}; as many queries came before: 0 or more")
        queries, keys = query.shape[1], memory.key.shape[1]
        if memory.lengths is not None:
            check_lengths("lengths", memory.lengths, memory.value)
        centre = self.centre(query, memory, step)
        window = Window(min(self.window, keys), centre=centre, lengths=memory.lengths)
        bias = None if bias is None else in_window(bias, window, queries, keys)
        mask = both(mask, None if key_mask is None else key_mask.unsqueeze(1))
        if mask is not None:
            allowed = Dense(mask).allowed((query.shape[0],), 1, queries, keys)
            assert allowed is not None
            bias = mask_bias(in_window(allowed, window, queries, keys), bias, query.dtype)
        normalizer: Normalizer = self.normalizer
        if self.sigma is not None:
            positions, _ = window.positions(queries, keys)
            distance = positions - centre[..., None]
            gaussian = torch.exp(-(distance**2) / (2 * self.sigma**2))  # [B, Tq, W]
            normalizer = _Times(normalizer, gaussian.unsqueeze(1))
        return window, bias, normalizer

    def _of_keys(self, weights: Tensor, query: Tensor, parts: Parts) -> Tensor:
        assert isinstance(parts.support, Window)
        keys = parts.key.shape[1]
        positions, _ = parts.support.positions(weights.shape[-2], keys)
        of_keys = weights.new_zeros(*weights.shape[:-1], keys)
        places = positions.clamp(0, max(keys - 1, 0)).unsqueeze(1)
        if keys:
            of_keys = of_keys.scatter_add(-1, places, weights)  # 0 where there is no such key
        return super()._of_keys(of_keys, query, parts)

    def extra_repr(self) -> str:
        return f"{self.align!r}, window={self.window}, sigma={self.sigma}, {super().extra_repr()}"


@dataclass(frozen=True, eq=False)
class _Times(Normalizer):
    """The weights of a normaliser, each times a factor of its pair."""

    normalizer: Normalizer
    factor: Tensor

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        return self.normalizer.normalize(scores, rows) * self.factor
