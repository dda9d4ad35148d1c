"""What every attention with one score owns: the parameters of the score, and its normaliser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_core import (
    Additive,
    Cosine,
    Dot,
    General,
    Location,
    Normalizer,
    Score,
    Separable,
    Support,
    attend,
)
from attn_core import weights as attention_weights
from attn_core.parameters import learned, named_normalizer, named_score, redraw, register, with_own
from attn_core.registry import check_part
from attn_core.scores import ACTIVATIONS
from sequence_attn.checks import check_tokens


class SequenceAttention(NamedTuple):
    """What an attention layer returns.

    Attributes:
        context: what each query read from the values: `[B, Tq, Dv]`, or `[B, Dv]` for `[B, Dq]`.
        weights: `[B, Tq, Tk]` (`[B, Tk]`), before dropout; None unless asked for.
    """

    context: Tensor
    weights: Tensor | None


@dataclass(frozen=True)
class Parts:
    """What one call comes down to: projected queries `[B, Tq, …]` and keys, and their pairs."""

    query: Tensor
    key: Tensor
    value: Tensor
    score: Score
    support: Support
    bias: Tensor | None
    normalizer: Normalizer

    def of_scores(self) -> dict[str, Any]:
        """The arguments of `attn_core.weights`, with one head."""
        return {
            "query": self.query.unsqueeze(2),
            "key": self.key.unsqueeze(2),
            "score": self.score,
            "support": self.support,
            "bias": self.bias,
            "normalizer": self.normalizer,
        }


def _as_it_is(owner: ScoredAttention, x: Tensor) -> Tensor:
    return x


class _Form(NamedTuple):
    """A score whose parameters know the widths of queries and keys apart.

    Attributes:
        shapes: of its parameters, given the widths of a query, of a key, of what is hidden, and the
            longest sequence; the last dimension of each is what a number is summed over.
        score: what is left to do for each pair.
        query, key: what is done once for each of them.
    """

    shapes: Callable[[int, int, int, int], dict[str, tuple[int, ...]]]
    score: Callable[[ScoredAttention], Score]
    query: Callable[[ScoredAttention, Tensor], Tensor] = _as_it_is
    key: Callable[[ScoredAttention, Tensor], Tensor] = _as_it_is


# Scores that are not listed are `attn_core`'s of that name, for one head
_FORMS = {
    "additive": _Form(
        lambda q, k, a, _: {"query_weight": (a, q), "key_weight": (a, k), "vector": (a,)},
        lambda own: Additive(own.vector[None], own.activation),
        lambda own, x: F.linear(x, own.query_weight, own.hidden_bias),
        lambda own, x: F.linear(x, own.key_weight),
    ),
    "concat": _Form(  # W [q; k] = W₁ q + W₂ k
        lambda q, k, a, _: {"weight": (a, q + k), "vector": (a,)},
        lambda own: Additive(own.vector[None], own.activation),
        lambda own, x: F.linear(x, own.weight[:, : own.query_size]),
        lambda own, x: F.linear(x, own.weight[:, own.query_size :]),
    ),
    "cosine": _Form(
        lambda *_: {},
        lambda own: Dot(),
        lambda own, x: Cosine().unit(x),
        lambda own, x: Cosine().unit(x),
    ),
    "general": _Form(
        lambda q, k, *_: {"weight": (q, k)},
        lambda own: General(own.weight[None]),
    ),
    "location": _Form(
        lambda q, k, a, length: {"weight": (length, q)},
        lambda own: Location(own.weight[None]),
    ),
    "separable": _Form(
        lambda q, k, *_: {"query_vector": (q,), "key_vector": (k,)},
        lambda own: Separable(activation=own.activation),
        lambda own, x: F.linear(x, own.query_vector[None]),
        lambda own, x: F.linear(x, own.key_vector[None]),
    ),
}


class ScoredAttention(nn.Module):
    """The owner of one score and one normaliser, whatever is attended to.

    Args:
        score, normalizer, query_size, key_size, attention_size, max_length, activation, bias,
            dropout: see `Attention`.
    """

    # Which of these there are depends on the score
    weight: Tensor
    vector: Tensor
    query_weight: Tensor
    key_weight: Tensor
    query_vector: Tensor
    key_vector: Tensor
    hidden_bias: Tensor | None
    activation: str
    query_size: int | None
    key_size: int | None

    def __init__(
        self,
        score: str | Score,
        normalizer: str | Normalizer,
        *,
        query_size: int | None,
        key_size: int | None = None,
        attention_size: int | None = None,
        max_length: int | None = None,
        activation: str | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_part("score", score, Score)
        check_part("normalizer", normalizer, Normalizer)
        if query_size is None and isinstance(score, str):
            raise ValueError(
                f"query_size is None, but score {score!r} has parameters or checks of that width: "
                "give the width of a query"
            )
        key_size = query_size if key_size is None else key_size
        hidden = key_size if attention_size is None else attention_size
        sizes = {"query_size": query_size, "key_size": key_size, "attention_size": hidden}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}; a probability lies between 0 and 1")
        self.query_size, self.key_size, self.dropout = query_size, key_size, dropout
        self.score_name = score if isinstance(score, str) else None
        default = "leaky_relu" if score == "separable" else "tanh"
        self.activation = default if activation is None else activation
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is {activation!r}; known ones are {', '.join(ACTIVATIONS)}"
            )
        self._normalizer = named_normalizer(normalizer)
        register(self, "normalizer", self._normalizer)
        self._learns_normalizer = bool(learned(self._normalizer))
        self._score = self._built(score, max_length)
        if self._score is not None:
            given = {
                "attention_size": attention_size,
                "activation": activation,
                "bias": bias or None,
            }
            for name, value in (given if isinstance(score, Score) else {}).items():
                if value is not None:
                    raise ValueError(
                        f"{name} is {value!r}, but score is a {type(score).__name__}, which holds "
                        "its own settings: leave it out"
                    )
            register(self, "score", self._score)
        else:
            widths = query_size or 0, key_size or 0, hidden or 0
            shapes = _FORMS[str(score)].shapes(*widths, max_length or 0)
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        use_bias = bias and score == "additive"
        self.hidden_bias = nn.Parameter(torch.empty(hidden or 0)) if use_bias else None
        self.reset_parameters()

    def _built(self, score: str | Score, max_length: int | None) -> Score | None:
        """The score as `attn_core` has it; None for one of the forms above."""
        if (score == "location") != (max_length is not None):
            needs = "needs" if max_length is None else "has no use for"
            raise ValueError(f"score {score!r} {needs} max_length; got max_length={max_length}")
        if isinstance(score, Score):
            return score
        if (
            score in ("dot", "scaled_dot", "cosine", "trilinear")
            and self.query_size != self.key_size
        ):
            raise ValueError(
                f"score {score!r} needs queries and keys of one width, but query_size is "
                f"{self.query_size} and key_size {self.key_size}: use 'general', 'concat' or "
                "'additive'"
            )
        return None if score in _FORMS else named_score(score, 1, self.key_size or 0)

    def reset_parameters(self) -> None:
        """Draw the parameters of a score given by name anew: uniform, of variance 1 / (3 · inputs).

        Those of a score or normaliser that was handed in stay as they are.
        """
        if self._score is not None and self.score_name is not None:
            redraw(self, "score", self._score)
        for name, parameter in self.named_parameters(recurse=False):
            if name == "hidden_bias":
                nn.init.zeros_(parameter)
            elif parameter.dim() and not name.startswith(("normalizer_", "score_")):
                bound = 1 / math.sqrt(parameter.shape[-1])
                nn.init.uniform_(parameter, -bound, bound)

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser with its parameters, for `attn_core.attend`."""
        if self._learns_normalizer:
            return with_own(self, "normalizer", self._normalizer)
        return self._normalizer

    @property
    def score(self) -> Score:
        """The score of projected queries and keys, for `attn_core.attend` (one head)."""
        if self._score is not None:
            return with_own(self, "score", self._score)
        return _FORMS[str(self.score_name)].score(self)

    def _project_query(self, query: Tensor) -> Tensor:
        return query if self._score is not None else _FORMS[str(self.score_name)].query(self, query)

    def _project_keys(self, keys: Tensor) -> Tensor:
        return keys if self._score is not None else _FORMS[str(self.score_name)].key(self, keys)

    def _read(self, query: Tensor, parts: Parts, need_weights: bool) -> SequenceAttention:
        result = attend(
            value=parts.value.unsqueeze(2),
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
            **parts.of_scores(),
        )
        context = result.output.squeeze(2)
        context = context.squeeze(1) if query.dim() == 2 else context
        if result.weights is None:
            return SequenceAttention(context, None)
        return SequenceAttention(context, self._of_keys(result.weights, query, parts))

    def _match(self, query: Tensor, parts: Parts) -> Tensor:
        return self._of_keys(attention_weights(**parts.of_scores()), query, parts)

    def _of_keys(self, weights: Tensor, query: Tensor, parts: Parts) -> Tensor:
        """The weights of one head over all keys, `[B, Tq, Tk]`, or `[B, Tk]` for one query."""
        weights = weights.squeeze(1)
        return weights.squeeze(1) if query.dim() == 2 else weights

    def _check(self, name: str, x: Tensor, width: int | None, dims: tuple[int, ...]) -> None:
        if x.dim() not in dims or (width is not None and x.shape[-1] != width):
            shapes = " or ".join(
                "[B, Dq]" if n == 2 else f"[B, T, {'Dq' if name == 'query' else 'Dk'}]"
                for n in dims
            )
            raise ValueError(
                f"{name} has shape {list(x.shape)}; expected {shapes}"
                + ("" if width is None else f" of width {width}")
            )
        for parameter_name, parameter in self._parameters.items():
            if parameter is not None and not parameter_name.startswith("normalizer_"):
                if x.dtype != parameter.dtype or x.device != parameter.device:
                    check_tokens(name, x, parameter, width)
                return
        if not x.is_floating_point():
            raise TypeError(
                f"{name} has dtype {x.dtype}; attention needs floating point: use .float()"
            )

    def extra_repr(self) -> str:
        score = repr(self.score_name) if self.score_name else type(self._score).__name__
        return (
            f"{score}, {self.normalizer}, query_size={self.query_size}, "
            f"key_size={self.key_size}, dropout={self.dropout}"
        )
