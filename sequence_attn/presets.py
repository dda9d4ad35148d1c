"""The attentions of the literature, by the names and with the conventions of their papers.

Each is an `Attention` with its settings fixed; `LocalAttention` adds where to look, `HardAttention`
how the choice is drawn and trained, `ContentAddressing` how sharp the read is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attn_core import Dense, Dot, Hard, Normalizer, Score, Softmax, Support, Window, hard_log_prob
from attn_core.normalizers import Rows, at_least_float32
from attn_core.supports.base import broadcasts_to
from sequence_attn.attention import Attention, Memory, SequenceAttention, _Parts
from sequence_attn.checks import check_lengths, real_steps
from sequence_attn.multihead import in_window, mask_bias


class BahdanauAttention(Attention):
    """`score(s, h) = vᵀ tanh(W s + U h)`: "additive" attention.

    The query is the decoder's state *before* its cell runs, s_{i-1}. Bahdanau, Cho, Bengio, "Neural
    Machine Translation by Jointly Learning to Align and Translate", 2015.

    Args:
        query_size: the width of the decoder's state.
        key_size: the width of an encoded step (twice the encoder's, if it runs both ways). Default:
            query_size.
        attention_size: the width of v. Default: key_size.
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


class LuongAttention(Attention):
    """`score(h_t, h_s)` is `h_t·h_s`, `h_tᵀ W h_s`, `vᵀ tanh(W [h_t; h_s])` or `W h_t`.

    The query is the decoder's state *after* its cell has run, h_t. Luong, Pham, Manning, "Effective
    Approaches to Attention-based Neural Machine Translation", 2015.

    Args:
        score: "dot", "general" (default), "concat" or "location".
        query_size: the width of the decoder's state.
        key_size: the width of an encoded step. Default: query_size.
        attention_size: the width of v in "concat". Default: key_size.
        max_length: the longest source that "location" can serve; needed for it alone.
        normalizer, dropout: as in `Attention`.

    Raises:
        ValueError: another score.

    >>> attention = LuongAttention("general", query_size=8, key_size=12)
    >>> attention(torch.randn(2, 3, 8), torch.randn(2, 5, 12)).context.shape
    torch.Size([2, 3, 12])
    """

    def __init__(
        self,
        score: str = "general",
        *,
        query_size: int,
        key_size: int | None = None,
        attention_size: int | None = None,
        max_length: int | None = None,
        normalizer: str | Normalizer = "softmax",
        dropout: float = 0.0,
    ) -> None:
        if score not in ("dot", "general", "concat", "location"):
            raise ValueError(
                f"score is {score!r}; Luong's are 'dot', 'general', 'concat' and 'location'"
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


class CosineAttention(Attention):
    """`score(q, k) = q·k / (‖q‖ ‖k‖)`: the match by direction alone, in [-1, 1].

    Args:
        size: the width of queries and keys.
        temperature: τ of `softmax(score / τ)`. Since the scores differ by 2 at most, τ = 1 spreads
            the weights wide; a number below 1 narrows them. Default 1.
        learn_temperature: learn τ, from that value on. Default False.
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
        softmax = Softmax(temperature)
        if learn_temperature:
            softmax = Softmax(nn.Parameter(torch.tensor(float(temperature))))
        super().__init__("cosine", softmax, query_size=size, dropout=dropout)


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
        score: "dot", "general" (default), "concat", or another one but "location".
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
        score: str = "general",
        query_size: int,
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
        if score == "location":
            raise ValueError(
                "score is 'location', which looks at no key and cannot follow a window: use 'dot', "
                "'general', 'concat' or 'additive'"
            )
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
        if align == "predictive":
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
        if mask is not None:
            allowed = Dense(mask).allowed((len(query),), 1, queries, keys)
            assert allowed is not None
            bias = mask_bias(in_window(allowed, window, queries, keys), bias, query.dtype)
        normalizer: Normalizer = self.normalizer
        if self.sigma is not None:
            positions, _ = window.positions(queries, keys)
            distance = positions - centre[..., None]
            gaussian = torch.exp(-(distance**2) / (2 * self.sigma**2))  # [B, Tq, W]
            normalizer = _Times(normalizer, gaussian.unsqueeze(1))
        return window, bias, normalizer

    def _of_keys(self, weights: Tensor, query: Tensor, parts: _Parts) -> Tensor:
        assert isinstance(parts.support, Window)
        keys = parts.memory.key.shape[1]
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


class RestrictedSelfAttention(Attention):
    """Self-attention of each position to its neighbourhood, in O(T · radius) time and memory.

    `context_i = Σ_{|i-j| ≤ radius · dilation} weight_ij x_j`. Vaswani et al., 2017, section 4; with
    a dilation, "atrous" self-attention. For several heads with projections of their own, use
    `MultiHead(window=radius)`.

    Args:
        radius: how many positions it reaches to either side; at least 0.
        dilation: look at every so many-th position only. Default 1.
        size: the width of the input.
        score: as in `Attention`, but "location". Default "scaled_dot".
        causal: look at the past and the present only. Default False.
        attention_size, normalizer, activation, dropout: as in `Attention`.

    Raises:
        ValueError: a negative radius, a dilation below 1, the score "location".

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
        size: int,
        score: str = "scaled_dot",
        causal: bool = False,
        attention_size: int | None = None,
        normalizer: str | Normalizer = "softmax",
        activation: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        if score == "location":
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

    def forward(  # type: ignore[override]
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

    def weights(  # type: ignore[override]
        self, x: Tensor, *, lengths: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """The weights alone, `[B, T, W]`; arguments as in `forward`."""
        return self._match(x, self._around(x, lengths, bias))

    def _around(self, x: Tensor, lengths: Tensor | None, bias: Tensor | None) -> _Parts:
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
        memory = Memory(self._project_keys(x), x, lengths)
        return _Parts(self._project_query(x), memory, self.score(), window, bias, self.normalizer)

    def extra_repr(self) -> str:
        radius, dilation, causal = self.pattern.radius, self.pattern.dilation, self.pattern.causal
        return f"radius={radius}, dilation={dilation}, causal={causal}, {super().extra_repr()}"


class HardContext(NamedTuple):
    """What `HardAttention` returns.

    Attributes:
        context: the chosen value, `[B, Tq, Dv]`, or `[B, Dv]` for `[B, Dq]`.
        weights: 1 at the chosen key and 0 elsewhere, `[B, Tq, Tk]` (`[B, Tk]`); None unless asked
            for.
        log_prob: the logarithm of the probability of that choice, `[B, Tq]` (`[B]`), with
            gradients, for `HardAttentionLoss`; None in evaluation, where nothing is drawn.
        entropy: of the distribution that was drawn from, likewise, in nats.
    """

    context: Tensor
    weights: Tensor | None
    log_prob: Tensor | None
    entropy: Tensor | None


class HardAttention(Attention):
    """Attention to one key at a time: drawn in training, the best one in evaluation.

    In training the key j is drawn with probability `softmax(score(q, k))_j`. The choice has no
    gradient; it is trained by REINFORCE, with `HardAttentionLoss` on the `log_prob` and `entropy`
    that are returned, or by Gumbel straight-through, in which any loss reaches the scores through
    `softmax((score + g) / τ)`. Xu et al., "Show, Attend and Tell", 2015; Jang, Gu, Poole,
    "Categorical Reparameterization with Gumbel-Softmax", 2017.

    Args:
        score: as in `Attention`. Default "additive".
        estimator: "reinforce" (default) or "gumbel".
        temperature: τ of "gumbel"; lower is closer to the choice, and noisier. Default 1.
        query_size, key_size, attention_size, max_length, activation, bias: as in `Attention`.

    Raises:
        ValueError: another estimator, a temperature that is not above 0.

    >>> attention = HardAttention(query_size=4, key_size=6)
    >>> read = attention(torch.randn(2, 3, 4), torch.randn(2, 5, 6), need_weights=True)
    >>> read.weights.sum(-1)[0], read.log_prob.shape
    (tensor([1., 1., 1.]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        score: str = "additive",
        estimator: str = "reinforce",
        temperature: float = 1.0,
        *,
        query_size: int,
        key_size: int | None = None,
        attention_size: int | None = None,
        max_length: int | None = None,
        activation: str | None = None,
        bias: bool = False,
    ) -> None:
        if estimator not in ("reinforce", "gumbel"):
            raise ValueError(f"estimator is {estimator!r}; expected 'reinforce' or 'gumbel'")
        super().__init__(
            score,
            Hard("sample" if estimator == "reinforce" else "gumbel", temperature),
            query_size=query_size,
            key_size=key_size,
            attention_size=attention_size,
            max_length=max_length,
            activation=activation,
            bias=bias,
        )

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        keys: Tensor | Memory,
        values: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        step: int = 0,
        need_weights: bool = False,
    ) -> HardContext:
        """Attend; arguments as in `Attention.forward`."""
        parts = self._parts(query, keys, values, mask, lengths, causal, bias, step)
        read = self._read(query, parts, need_weights=True)
        weights = read.weights if need_weights else None
        if not self.training:
            return HardContext(read.context, weights, None, None)
        assert read.weights is not None
        of_scores = parts.of_scores()
        del of_scores["normalizer"]
        drawn = read.weights if query.dim() == 3 else read.weights.unsqueeze(1)
        choice = hard_log_prob(drawn=drawn.unsqueeze(1), **of_scores)
        shape = query.shape[:-1]
        return HardContext(
            read.context, weights, choice.log_prob.reshape(shape), choice.entropy.reshape(shape)
        )

    def _pairs(
        self,
        query: Tensor,
        memory: Memory,
        mask: Tensor | None,
        causal: bool,
        bias: Tensor | None,
        step: int,
    ) -> tuple[Support, Tensor | None, Normalizer]:
        support, bias, normalizer = super()._pairs(query, memory, mask, causal, bias, step)
        return support, bias, normalizer if self.training else Hard()


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

    def score(self) -> Score:
        # (softmax(β s))^γ, normalised, is softmax(γ β s)
        return Dot(self.strength * self.sharpening)

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        keys: Tensor | Memory,
        values: Tensor | None = None,
        *,
        strength: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        step: int = 0,
        need_weights: bool = False,
    ) -> SequenceAttention:
        """Read.

        Args:
            query: `[B, Tq, D]`, or `[B, D]` for one query per sequence.
            keys: `[B, Tk, D]`, or what `precompute` returned.
            values: `[B, Tk, Dv]`. Default: the keys.
            strength: β of each query, `[B, Tq]` or `[B]`, in place of the layer's: a controller may
                learn to give it. Default: the layer's.
            mask, lengths, step, need_weights: as in `Attention`.

        Returns:
            SequenceAttention(context, weights).

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        parts = self._addressed(query, keys, values, strength, mask, lengths)
        return self._read(query, parts, need_weights)

    def weights(  # type: ignore[override]
        self,
        query: Tensor,
        keys: Tensor | Memory,
        *,
        strength: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """The weights alone, without values; arguments and layout as in `forward`."""
        return self._match(query, self._addressed(query, keys, None, strength, mask, lengths))

    def _addressed(
        self,
        query: Tensor,
        keys: Tensor | Memory,
        values: Tensor | None,
        strength: Tensor | None,
        mask: Tensor | None,
        lengths: Tensor | None,
    ) -> _Parts:
        parts = self._parts(query, keys, values, mask, lengths, False, None, 0)
        if strength is not None:
            if strength.shape != query.shape[:-1]:
                raise ValueError(
                    f"strength has shape {list(strength.shape)}; expected "
                    f"{list(query.shape[:-1])}, one for each query"
                )
            queries = query.shape[1:-1] or (1,)
            times = (strength / self.strength).reshape(len(query), *queries, 1)
            parts = dataclasses.replace(parts, query=parts.query * times)
        return parts
