"""The attentions of the literature that differ in their score, with their papers' conventions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_core import Additive, Dot, Normalizer, Score, Softmax
from attn_core.bounded import within
from attn_core.normalizers import at_least_float32
from sequence_attn.attention import Attention, Memory
from sequence_attn.scored import Parts, SequenceAttention


class BahdanauAttention(Attention):
    """`score(s, h) = vᵀ tanh(W s + U h)`: "additive" attention.

    The query is the decoder's state *before* its cell runs, s_{i-1}. Bahdanau, Cho, Bengio, "Neural
    Machine Translation by Jointly Learning to Align and Translate", 2015.

    Args:
        query_size: the width of the decoder's state.
        key_size: the width of an encoded step (twice the encoder's, if it runs both ways). Default:
            query_size.
        attention_size: the width of v. Default: key_size.
        normalize: the vector is `g v / ‖v‖` with a learned length g, which starts at
            1 / √attention_size (Salimans and Kingma, "Weight Normalization", 2016); with `bias` the
            normalised Bahdanau attention of TensorFlow's decoders. Default False.
        normalizer, bias, dropout: as in `Attention`.

    >>> attention = BahdanauAttention(query_size=8, key_size=12)
    >>> attention(torch.randn(2, 8), torch.randn(2, 5, 12)).context.shape
    torch.Size([2, 12])
    """

    def __init__(
        self,
        query_size: int,
        key_size: int | None = None,
        attention_size: int | None = None,
        *,
        normalize: bool = False,
        normalizer: str | Normalizer = "softmax",
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            "additive",
            normalizer,
            query_size=query_size,
            key_size=key_size,
            attention_size=attention_size,
            bias=bias,
            dropout=dropout,
        )
        length = torch.tensor(len(self.vector) ** -0.5)
        self.length = nn.Parameter(length) if normalize else None

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if getattr(self, "length", None) is not None:  # the first call precedes it
            nn.init.constant_(self.length, len(self.vector) ** -0.5)  # type: ignore[arg-type]

    @property
    def score(self) -> Score:
        vector = self.vector
        if self.length is not None:
            vector = self.length * F.normalize(vector, dim=0)
        return Additive(vector[None], self.activation)


class LuongAttention(Attention):
    """`score(h_t, h_s)` is `h_t·h_s`, `h_tᵀ W h_s`, `vᵀ tanh(W [h_t; h_s])` or `W h_t`.

    The query is the decoder's state *after* its cell has run, h_t. Luong, Pham, Manning, "Effective
    Approaches to Attention-based Neural Machine Translation", 2015.

    Args:
        score: "dot", "general" (default), "concat" or "location"; or a `attn_core.Score` in their
            place.
        query_size: the width of the decoder's state.
        key_size: the width of an encoded step. Default: query_size.
        attention_size: the width of v in "concat". Default: key_size.
        max_length: the longest source that "location" can serve; needed for it alone.
        scale: multiply the scores by a learned number that starts at 1, as the scaled Luong
            attention of TensorFlow's decoders does. Default False.
        normalizer, dropout: as in `Attention`.

    Raises:
        ValueError: another name.

    >>> attention = LuongAttention("general", query_size=8, key_size=12)
    >>> attention(torch.randn(2, 3, 8), torch.randn(2, 5, 12)).context.shape
    torch.Size([2, 3, 12])
    """

    def __init__(
        self,
        score: str | Score = "general",
        *,
        query_size: int | None = None,
        key_size: int | None = None,
        attention_size: int | None = None,
        max_length: int | None = None,
        scale: bool = False,
        normalizer: str | Normalizer = "softmax",
        dropout: float = 0.0,
    ) -> None:
        if isinstance(score, str) and score not in ("dot", "general", "concat", "location"):
            raise ValueError(
                f"score is {score!r}; Luong's are 'dot', 'general', 'concat' and 'location'"
            )
        if scale and score not in ("dot", "general", "location"):
            raise ValueError(
                f"scale goes with 'dot', 'general' and 'location', whose score is linear in the "
                f"query; got score={score!r}"
            )
        super().__init__(
            score,
            normalizer,
            query_size=query_size,
            key_size=key_size,
            attention_size=attention_size,
            max_length=max_length,
            dropout=dropout,
        )
        self.scale = nn.Parameter(torch.ones(())) if scale else None

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if getattr(self, "scale", None) is not None:  # the first call precedes it
            nn.init.ones_(self.scale)  # type: ignore[arg-type]

    def _project_query(self, query: Tensor) -> Tensor:
        query = super()._project_query(query)
        return query if self.scale is None else query * self.scale


class CosineAttention(Attention):
    """`score(q, k) = q·k / (‖q‖ ‖k‖)`: the match by direction alone, in [-1, 1].

    Args:
        size: the width of queries and keys.
        temperature: τ of `softmax(score / τ)`. Since the scores differ by 2 at most, τ = 1 spreads
            the weights wide; a number below 1 narrows them. Default 1.
        learn_temperature: learn log τ, from that value on, so that steps are alike in proportion;
            τ is taken within the bounds of `Softmax`. Default False.
        dropout: as in `Attention`.

    Raises:
        ValueError: a temperature that is not above 0.

    >>> attention = CosineAttention(4, temperature=0.1)
    >>> attention(torch.randn(2, 4), torch.randn(2, 5, 4)).context.shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        size: int,
        *,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__("cosine", Softmax(temperature), query_size=size, dropout=dropout)
        if learn_temperature:
            logarithm = torch.tensor(math.log(temperature))
            self.normalizer_log_temperature = nn.Parameter(logarithm)
        self.learn_temperature = learn_temperature

    @property
    def normalizer(self) -> Normalizer:
        if self.learn_temperature:
            logarithm = at_least_float32(self.normalizer_log_temperature)
            return Softmax(within(logarithm, *map(math.log, Softmax.bounds["temperature"])).exp())
        return self._normalizer

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        # Earlier checkpoints hold τ itself
        old = f"{prefix}normalizer_temperature"
        if self.learn_temperature and old in state_dict:
            temperature = state_dict.pop(old)
            state_dict[f"{prefix}normalizer_log_temperature"] = temperature.log()
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ContentAddressing(Attention):
    """A differentiable memory read: look the query up among the keys, get the value beside it.

    `w_i ∝ exp(β cos(q, k_i))`, sharpened to `w_i^γ / Σ_j w_j^γ`; what is read is `Σ_i w_i v_i`. As
    β or γ grow, the read becomes a look-up of the one best match. Graves, Wayne, Danihelka, "Neural
    Turing Machines", 2014, equations 5, 6 and 9.

    Args:
        size: the width of queries and keys.
        strength: β > 0, unless `forward` is given one. Default 1.
        sharpening: γ ≥ 1. Default 1: none.
        dropout: as in `Attention`.

    Raises:
        ValueError: a strength that is not above 0, a sharpening below 1.

    >>> memory = ContentAddressing(2, strength=50.0)
    >>> keys, values = torch.eye(2)[None], torch.tensor([[[10.0], [20.0]]])
    >>> memory(torch.tensor([[0.1, 0.9]]), keys, values).context.round()
    tensor([[20.]])
    """

    def __init__(
        self, size: int, *, strength: float = 1.0, sharpening: float = 1.0, dropout: float = 0.0
    ) -> None:
        if not strength > 0:
            raise ValueError(f"strength is {strength}; the strength of a key is above 0")
        if not sharpening >= 1:
            raise ValueError(
                f"sharpening is {sharpening}; it is at least 1, which leaves all as is"
            )
        super().__init__("cosine", query_size=size, dropout=dropout)
        self.strength, self.sharpening = strength, sharpening

    @property
    def score(self) -> Score:
        # (softmax(β s))^γ, normalised, is softmax(γ β s)
        return Dot(self.strength * self.sharpening)

    def forward(
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
        strength: Tensor | None = None,
    ) -> SequenceAttention:
        """Read; arguments as in `Attention.forward`.

        Args:
            strength: β of each query, `[B, Tq]` or `[B]`, in place of the layer's: a controller may
                learn to give it. Default: the layer's.

        Returns:
            SequenceAttention(context, weights).

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        masks = mask, key_mask, query_mask
        parts = self._parts(query, keys, values, *masks, lengths, causal, bias, step)
        return self._read(query, self._strengthened(parts, query, strength), need_weights)

    def weights(
        self,
        query: Tensor,
        keys: Tensor | Memory,
        *,
        mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        lengths: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        step: int = 0,
        strength: Tensor | None = None,
    ) -> Tensor:
        """The weights alone, without values; arguments and layout as in `forward`."""
        masks = mask, key_mask, query_mask
        parts = self._parts(query, keys, None, *masks, lengths, causal, bias, step)
        return self._match(query, self._strengthened(parts, query, strength))

    def _strengthened(self, parts: Parts, query: Tensor, strength: Tensor | None) -> Parts:
        if strength is None:
            return parts
        if strength.shape != query.shape[:-1]:
            raise ValueError(
                f"strength has shape {list(strength.shape)}; expected {list(query.shape[:-1])}, "
                "one for each query"
            )
        times = (strength / self.strength).reshape(*parts.query.shape[:-1], 1)
        return dataclasses.replace(parts, query=parts.query * times)
