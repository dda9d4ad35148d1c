"""Attention over padded batches of sequences, with any score and any normaliser of the core."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_core import (
    Additive,
    Cosine,
    Dense,
    Dot,
    General,
    Location,
    Normalizer,
    ScaledDot,
    Score,
    Separable,
    Support,
    attend,
)
from attn_core import weights as attention_weights
from attn_core.parameters import named_normalizer, register, with_own
from attn_core.scores import ACTIVATIONS
from sequence_attn.checks import check_tokens, real_steps


class SequenceAttention(NamedTuple):
    """What an attention layer returns.

    Attributes:
        context: what each query read from the values: `[B, Tq, Dv]`, or `[B, Dv]` for `[B, Dq]`.
        weights: `[B, Tq, Tk]` (`[B, Tk]`), before dropout; None unless asked for.
    """

    context: Tensor
    weights: Tensor | None


class Memory(NamedTuple):
    """Keys that are projected already, for many queries to come; nothing ever changes one.

    Attributes:
        key: what the score still needs of each key, `[B, Tk, …]`.
        value: `[B, Tk, Dv]`.
        lengths: how many keys of each sequence are real, `[B]`; None for all.
    """

    key: Tensor
    value: Tensor
    lengths: Tensor | None

    def select(self, index: Tensor) -> Memory:
        """The memories of the sequences `index` `[n]`, in that order; one may occur often."""
        lengths = None if self.lengths is None else self.lengths[index]
        return Memory(self.key[index], self.value[index], lengths)

    def repeat(self, times: int) -> Memory:
        """Each sequence so many times in a row, for as many hypotheses about it."""
        each = torch.arange(len(self.key), device=self.key.device)
        return self.select(each.repeat_interleave(times))


@dataclass(frozen=True)
class _Parts:
    """What one call comes down to: projected queries `[B, Tq, …]` and keys, and their pairs."""

    query: Tensor
    memory: Memory
    score: Score
    support: Support
    bias: Tensor | None
    normalizer: Normalizer

    def of_scores(self) -> dict[str, Any]:
        """The arguments of `attn_core.weights`, with one head."""
        return {
            "query": self.query.unsqueeze(2),
            "key": self.memory.key.unsqueeze(2),
            "score": self.score,
            "support": self.support,
            "bias": self.bias,
            "normalizer": self.normalizer,
        }


class Attention(nn.Module):
    """One attention of queries over keys: the layer behind the classical mechanisms.

    `context_i = Σ_j weight_ij value_j`, with `weight_i = normalizer(score(query_i, key_j))`. The
    layer owns the parameters of its score and nothing else: queries, keys and values are not
    projected beyond what the score's formula says.

    Args:
        score: which score matches queries with keys (`attn_core.scores` gives the formulas):
            "additive" (default; Bahdanau et al., 2015), "concat", "general", "dot", "location"
            (Luong et al., 2015), "scaled_dot" (Vaswani et al., 2017), "cosine" (Graves et al.,
            2014), "separable" (Veličković et al., 2018).
        normalizer: how scores become weights: "softmax" (default), "sparsemax", "entmax",
            "hard", "identity", or a `attn_core.Normalizer`; an `nn.Parameter` in it, such as the
            temperature of Softmax or the alpha of Entmax, is learned with the layer.
        query_size: Dq, the width of a query.
        key_size: Dk, the width of a key. Default: query_size.
        attention_size: the width of the hidden layer of "additive" and "concat". Default: key_size.
        max_length: the longest sequence of keys that "location" can serve; needed for it alone.
        activation: of "additive", "concat" (default "tanh") and "separable" (default
            "leaky_relu"): "tanh", "leaky_relu", "relu" or "identity".
        bias: learn a bias in the hidden layer of "additive". Default False, as in the paper.
        dropout: the probability with which a weight is dropped in training. Default 0.

    Raises:
        ValueError: an unknown name, a size below 1, a missing or needless argument.

    >>> attention = Attention("additive", query_size=4, key_size=6)
    >>> encoded, state = torch.randn(2, 5, 6), torch.randn(2, 4)
    >>> context, weights = attention(
    ...     state, encoded, lengths=torch.tensor([5, 3]), need_weights=True
    ... )
    >>> context.shape, weights.shape
    (torch.Size([2, 6]), torch.Size([2, 5]))
    >>> weights[1, 3:]
    tensor([0., 0.], grad_fn=<SliceBackward0>)

    In a decoding loop, project the keys once:

    >>> memory = attention.precompute(encoded, lengths=torch.tensor([5, 3]))
    >>> for _ in range(3):
    ...     state = attention(state, memory).context[:, :4]
    """

    # Which of these there are depends on the score
    weight: Tensor
    vector: Tensor
    query_weight: Tensor
    key_weight: Tensor
    query_vector: Tensor
    key_vector: Tensor

    def __init__(
        self,
        score: str = "additive",
        normalizer: str | Normalizer = "softmax",
        *,
        query_size: int,
        key_size: int | None = None,
        attention_size: int | None = None,
        max_length: int | None = None,
        activation: str | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        key_size = query_size if key_size is None else key_size
        hidden = key_size if attention_size is None else attention_size
        sizes = {"query_size": query_size, "key_size": key_size, "attention_size": hidden}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}; a probability lies between 0 and 1")
        if score in ("dot", "scaled_dot", "cosine") and query_size != key_size:
            raise ValueError(
                f"score {score!r} needs queries and keys of one width, but query_size is "
                f"{query_size} and key_size {key_size}: use 'general', 'concat' or 'additive'"
            )
        if (score == "location") != (max_length is not None):
            needs = "needs" if max_length is None else "has no use for"
            raise ValueError(f"score {score!r} {needs} max_length; got max_length={max_length}")
        shapes = _parameter_shapes(score, query_size, key_size, hidden, max_length or 0)
        self.score_name = score
        self.query_size, self.key_size, self.dropout = query_size, key_size, dropout
        default = "leaky_relu" if score == "separable" else "tanh"
        self.activation = default if activation is None else activation
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}; known ones are {', '.join(ACTIVATIONS)}"
            )
        self._normalizer = named_normalizer(normalizer)
        register(self, "normalizer", self._normalizer)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        use_bias = bias and score == "additive"
        self.hidden_bias = nn.Parameter(torch.empty(hidden)) if use_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters of the score anew: uniform, of variance 1 / (3 · inputs)."""
        for name, parameter in self.named_parameters(recurse=False):
            if name == "hidden_bias":
                nn.init.zeros_(parameter)
            elif not name.startswith("normalizer_"):
                bound = 1 / math.sqrt(parameter.shape[-1])
                nn.init.uniform_(parameter, -bound, bound)

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser with its parameters, for `attn_core.attend`."""
        return with_own(self, "normalizer", self._normalizer)

    def score(self) -> Score:
        """The score of projected queries and keys, for `attn_core.attend` (one head)."""
        match self.score_name:
            case "dot" | "cosine":
                return Dot()
            case "scaled_dot":
                return ScaledDot()
            case "general":
                return General(self.weight[None])
            case "location":
                return Location(self.weight[None])
            case "separable":
                return Separable(activation=self.activation)
        return Additive(self.vector[None], self.activation)

    def precompute(
        self, keys: Tensor, values: Tensor | None = None, *, lengths: Tensor | None = None
    ) -> Memory:
        """Do once what the score does to each key, however many queries are to come.

        Args:
            keys: `[B, Tk, Dk]`.
            values: `[B, Tk, Dv]`. Default: the keys.
            lengths: integers `[B]`: how many keys of each sequence are real; what stands behind
                them may be anything, NaN included. Default: all.

        Returns:
            A memory, which `forward` and `weights` take in place of keys.

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        self._check("keys", keys, self.key_size, dims=(3,))
        values = keys if values is None else values
        if values.dim() != 3 or values.shape[:2] != keys.shape[:2]:
            raise ValueError(
                f"values has shape {list(values.shape)}; expected {[*keys.shape[:2], 'Dv']}, one "
                "for each key"
            )
        if lengths is not None:
            same = values is keys
            keys = real_steps(keys, lengths)
            values = keys if same else real_steps(values, lengths)
        return Memory(self._project_keys(keys), values, lengths)

    def forward(
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
    ) -> SequenceAttention:
        """Attend.

        Args:
            query: `[B, Tq, Dq]`, or `[B, Dq]` for one query per sequence.
            keys: `[B, Tk, Dk]`, or what `precompute` returned.
            values: `[B, Tk, Dv]`. Default: the keys.
            mask: bool, True where a query may attend to a key: `[B, Tk]` or `[B, Tq, Tk]`.
            lengths: integers `[B]`: how many keys of each sequence are real. Default: all.
            causal: query i sees the keys up to i + Tk - Tq. Default False.
            bias: added to the scores, `[B, Tk]` or `[B, Tq, Tk]`. Default: none.
            step: how many queries of the same sequence came before, in earlier calls; only
                attentions that move along the keys look at it (`LocalAttention`). Default 0.
            need_weights: return the weights as well. Default False.

        Returns:
            SequenceAttention(context, weights). A query that may attend to no key reads zeros.

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        parts = self._parts(query, keys, values, mask, lengths, causal, bias, step)
        return self._read(query, parts, need_weights)

    def _read(self, query: Tensor, parts: _Parts, need_weights: bool) -> SequenceAttention:
        result = attend(
            value=parts.memory.value.unsqueeze(2),
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
            **parts.of_scores(),
        )
        context = result.output.squeeze(2)
        context = context.squeeze(1) if query.dim() == 2 else context
        if result.weights is None:
            return SequenceAttention(context, None)
        return SequenceAttention(context, self._of_keys(result.weights, query, parts))

    def weights(
        self,
        query: Tensor,
        keys: Tensor | Memory,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        step: int = 0,
    ) -> Tensor:
        """The weights alone, without values; arguments and layout as in `forward`."""
        parts = self._parts(query, keys, None, mask, lengths, causal, bias, step)
        return self._match(query, parts)

    def _match(self, query: Tensor, parts: _Parts) -> Tensor:
        return self._of_keys(attention_weights(**parts.of_scores()), query, parts)

    def _parts(
        self,
        query: Tensor,
        keys: Tensor | Memory,
        values: Tensor | None,
        mask: Tensor | None,
        lengths: Tensor | None,
        causal: bool,
        bias: Tensor | None,
        step: int,
    ) -> _Parts:
        self._check("query", query, self.query_size, dims=(2, 3))
        if isinstance(keys, Memory):
            for name, given in (("values", values), ("lengths", lengths)):
                if given is not None:
                    raise ValueError(
                        f"{name} is given beside a memory, which holds its own: hand it to "
                        "precompute()"
                    )
            memory = keys
        else:
            memory = self.precompute(keys, values, lengths=lengths)
        if query.shape[0] != memory.key.shape[0]:
            raise ValueError(
                f"query has batch size {query.shape[0]}, but keys {memory.key.shape[0]}"
            )
        if query.device != memory.key.device:
            raise ValueError(
                f"query is on {query.device}, but keys are on {memory.key.device}: move one of "
                "them with .to()"
            )
        query = query.unsqueeze(1) if query.dim() == 2 else query
        shape = (*query.shape[:2], memory.key.shape[1])
        mask, bias = _of_pairs("mask", mask, shape), _of_pairs("bias", bias, shape)
        bias = None if bias is None else bias.unsqueeze(1)  # [B, 1, Tq, Tk]
        pairs = self._pairs(query, memory, mask, causal, bias, step)
        return _Parts(self._project_query(query), memory, self.score(), *pairs)

    def _pairs(
        self,
        query: Tensor,
        memory: Memory,
        mask: Tensor | None,
        causal: bool,
        bias: Tensor | None,
        step: int,
    ) -> tuple[Support, Tensor | None, Normalizer]:
        """The support, the bias over its pairs, and the normaliser."""
        return Dense(mask, memory.lengths, causal), bias, self.normalizer

    def _of_keys(self, weights: Tensor, query: Tensor, parts: _Parts) -> Tensor:
        """The weights of one head over all keys, `[B, Tq, Tk]`, or `[B, Tk]` for one query."""
        weights = weights.squeeze(1)
        return weights.squeeze(1) if query.dim() == 2 else weights

    def _project_query(self, query: Tensor) -> Tensor:
        match self.score_name:
            case "additive":
                return F.linear(query, self.query_weight, self.hidden_bias)
            case "concat":  # W [q; k] = W₁ q + W₂ k
                return F.linear(query, self.weight[:, : self.query_size])
            case "separable":
                return F.linear(query, self.query_vector[None])
            case "cosine":
                return Cosine().unit(query)
        return query

    def _project_keys(self, keys: Tensor) -> Tensor:
        match self.score_name:
            case "additive":
                return F.linear(keys, self.key_weight)
            case "concat":
                return F.linear(keys, self.weight[:, self.query_size :])
            case "separable":
                return F.linear(keys, self.key_vector[None])
            case "cosine":
                return Cosine().unit(keys)
        return keys

    def _check(self, name: str, x: Tensor, width: int, dims: tuple[int, ...]) -> None:
        if x.dim() not in dims or x.shape[-1] != width:
            shapes = " or ".join(
                "[B, Dq]" if n == 2 else f"[B, T, {'Dq' if name == 'query' else 'Dk'}]"
                for n in dims
            )
            raise ValueError(
                f"{name} has shape {list(x.shape)}; expected {shapes} of width {width}"
            )
        parameters = [p for n, p in self.named_parameters() if not n.startswith("normalizer_")]
        if parameters:
            check_tokens(name, x, parameters[0], width)
        elif not x.is_floating_point():
            raise TypeError(
                f"{name} has dtype {x.dtype}; attention needs floating point: use .float()"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.score_name!r}, {self.normalizer}, query_size={self.query_size}, "
            f"key_size={self.key_size}, dropout={self.dropout}"
        )


def _parameter_shapes(
    score: str, query: int, key: int, hidden: int, length: int
) -> dict[str, tuple[int, ...]]:
    """The parameters of each score; the last dimension is what a number is summed over."""
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "dot": {},
        "scaled_dot": {},
        "cosine": {},
        "general": {"weight": (query, key)},
        "location": {"weight": (length, query)},
        "concat": {"weight": (hidden, query + key), "vector": (hidden,)},
        "additive": {
            "query_weight": (hidden, query),
            "key_weight": (hidden, key),
            "vector": (hidden,),
        },
        "separable": {"query_vector": (query,), "key_vector": (key,)},
    }
    if score not in shapes:
        raise ValueError(f"score is {score!r}; known scores are {', '.join(sorted(shapes))}")
    return shapes[score]


def _of_pairs(name: str, x: Tensor | None, shape: tuple[int, int, int]) -> Tensor | None:
    """A mask or bias `[B, Tk]` or `[B, Tq, Tk]` as the latter; size 1 is repeated."""
    if x is None:
        return None
    pairs = x.unsqueeze(1) if x.dim() == 2 else x
    if pairs.dim() != 3 or any(a not in (1, b) for a, b in zip(pairs.shape, shape, strict=True)):
        batch, queries, keys = shape
        raise ValueError(
            f"{name} has shape {list(x.shape)}; expected [B, Tk] = [{batch}, {keys}] or "
            f"[B, Tq, Tk] = [{batch}, {queries}, {keys}]"
        )
    return pairs
