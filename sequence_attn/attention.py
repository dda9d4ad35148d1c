"""Attention over padded batches of sequences, with any score and any normaliser of the core."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attn_core import (
    Additive,
    Concat,
    Cosine,
    Dense,
    Dot,
    Entmax,
    General,
    Identity,
    Location,
    Normalizer,
    ScaledDot,
    Score,
    Separable,
    Softmax,
    Sparsemax,
    attend,
)
from attn_core.scores import ACTIVATIONS

_NORMALIZERS: dict[str, type[Normalizer]] = {
    "softmax": Softmax,
    "sparsemax": Sparsemax,
    "entmax": Entmax,
    "identity": Identity,
}


class SequenceAttention(NamedTuple):
    """What an attention layer returns.

    Attributes:
        context: what each query read from the values: `[B, Tq, Dv]`, or `[B, Dv]` for `[B, Dq]`.
        weights: `[B, Tq, Tk]` (`[B, Tk]`), before dropout; None unless asked for.
    """

    context: Tensor
    weights: Tensor | None


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
            "identity", or a `attn_core.Normalizer`; an `nn.Parameter` in it, such as the
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
        self.normalizer = _normalizer(normalizer)
        for field in dataclasses.fields(self.normalizer):  # type: ignore[arg-type]
            if isinstance(value := getattr(self.normalizer, field.name), nn.Parameter):
                self.register_parameter(f"normalizer_{field.name}", value)
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

    def score(self) -> Score:
        """The score with its parameters, for `attn_core.attend` (one head)."""
        match self.score_name:
            case "dot":
                return Dot()
            case "scaled_dot":
                return ScaledDot()
            case "cosine":
                return Cosine()
            case "general":
                return General(self.weight[None])
            case "location":
                return Location(self.weight[None])
            case "concat":
                return Concat(self.weight[None], self.vector[None], self.activation)
            case "separable":
                return Separable(self.query_vector[None], self.key_vector[None], self.activation)
        return Additive(self.vector[None], self.activation)

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        need_weights: bool = False,
    ) -> SequenceAttention:
        """Attend.

        Args:
            query: `[B, Tq, Dq]`, or `[B, Dq]` for one query per sequence.
            keys: `[B, Tk, Dk]`.
            values: `[B, Tk, Dv]`. Default: the keys.
            mask: bool, True where a query may attend to a key: `[B, Tk]` or `[B, Tq, Tk]`.
            lengths: integers `[B]`: how many keys of each sequence are real. Default: all.
            causal: query i sees the keys up to i + Tk - Tq. Default False.
            bias: added to the scores, `[B, Tk]` or `[B, Tq, Tk]`. Default: none.
            need_weights: return the weights as well. Default False.

        Returns:
            SequenceAttention(context, weights). A query that may attend to no key reads zeros.

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        self._check("query", query, self.query_size, dims=(2, 3))
        self._check("keys", keys, self.key_size, dims=(3,))
        values = keys if values is None else values
        if values.dim() != 3 or values.shape[:2] != keys.shape[:2]:
            raise ValueError(
                f"values has shape {list(values.shape)}; expected {[*keys.shape[:2], 'Dv']}, one "
                "for each key"
            )
        if query.shape[0] != keys.shape[0]:
            raise ValueError(f"query has batch size {query.shape[0]}, but keys {keys.shape[0]}")
        single = query.dim() == 2
        query = query.unsqueeze(1) if single else query
        shape = (*query.shape[:2], keys.shape[1])
        support = Dense(_of_pairs("mask", mask, shape), lengths, causal)
        bias = _of_pairs("bias", bias, shape)
        if self.score_name == "additive":
            query = nn.functional.linear(query, self.query_weight, self.hidden_bias)
            keys = nn.functional.linear(keys, self.key_weight)
        result = attend(
            *(x.unsqueeze(2) for x in (query, keys, values)),  # one head
            score=self.score(),
            normalizer=self.normalizer,
            support=support,
            bias=None if bias is None else bias.unsqueeze(1),
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        context = result.output.squeeze(2)
        weights = None if result.weights is None else result.weights.squeeze(1)
        if single:
            context = context.squeeze(1)
            weights = None if weights is None else weights.squeeze(1)
        return SequenceAttention(context, weights)

    def _check(self, name: str, x: Tensor, width: int, dims: tuple[int, ...]) -> None:
        if x.dim() not in dims or x.shape[-1] != width:
            shapes = " or ".join(
                "[B, Dq]" if n == 2 else f"[B, T, {'Dq' if name == 'query' else 'Dk'}]"
                for n in dims
            )
            raise ValueError(
                f"{name} has shape {list(x.shape)}; expected {shapes} of width {width}"
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


def _normalizer(normalizer: str | Normalizer) -> Normalizer:
    if isinstance(normalizer, Normalizer):
        return normalizer
    if normalizer not in _NORMALIZERS:
        raise ValueError(
            f"normalizer is {normalizer!r}; known ones are {', '.join(_NORMALIZERS)}, or pass an "
            "attn_core.Normalizer"
        )
    return _NORMALIZERS[normalizer]()


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
