"""Axis 1, scores: how well does a query match a key?

A score is a small immutable object that is handed its parameters; the layer that calls it owns
them. `pair` is the definition, written once for tensors that broadcast against each other.
`prepare` does once per token what need not be done once per pair, and returns the simpler score
that is left: every score but Location comes down to a dot product or to an additive one, so two
kernels serve them all. All scores stand in this one file, each in one place, which therefore has
more than 500 lines.

Shapes: queries `[..., Tq, H, D]`, keys `[..., Tk, H, D]` (`[N, H, D]` on a graph), logits
`[..., H, Tq, Tk]` over dense supports and `[E, H]` over edges; `H` heads, `D` channels per head.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core.activations import ACTIVATIONS, Activation, activate
from attn_core.compat import ABCMeta, fields_of
from attn_core.registry import register

_Self = TypeVar("_Self", bound="Score")


class Prepared(NamedTuple):
    """What is left to do once per pair: a score and the tensors it takes."""

    score: Score
    query: Tensor | None
    key: Tensor
    pair_key: Tensor | None


class Formula(NamedTuple):
    """A score as kernels know it.

    Attributes:
        kind: "dot" for `constant · q·k`, "leaky_relu" and "tanh" for `vᵀ φ(q + k)`.
        constant: the factor of "dot", the slope of "leaky_relu" below zero.
        vector: v, `[H, D]`; None stands for ones.
    """

    kind: str
    constant: float
    vector: Tensor | None

    def of_heads(self, heads: int) -> Formula:
        """The same for kernels, which want a vector for each head."""
        vector = self.vector
        if vector is None or vector.shape[0] == heads:
            return self
        return Formula(self.kind, self.constant, vector.expand(heads, -1).contiguous())


@dataclass(frozen=True, eq=False)
class Score(metaclass=ABCMeta):
    """How a query matches a key: one logit per (query, key) pair and head.

    A subclass is a frozen dataclass whose fields are its parameters. It gives `pair`, the formula;
    it may shorten `prepare` and `dense`. With a name, `class Mine(Score, name="mine")`, and the
    shapes of its parameters, every layer takes it by that name and owns fresh parameters.

    >>> @dataclass(frozen=True, eq=False)
    ... class Distance(Score):
    ...     "`-width ‖q - k‖²`, with a width per head."
    ...     width: Tensor
    ...     def pair(self, query, key):
    ...         return -(query - key).square().sum(-1) * self.width
    ...     @classmethod
    ...     def parameter_shapes(cls, heads, size, max_length):
    ...         return {"width": (heads,)}
    >>> Distance(torch.ones(1)).pair(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]))
    tensor([-5.])
    """

    named: ClassVar[dict[str, type[Score]]] = {}
    needs_max_length: ClassVar[bool] = False
    #: Whether `of_pairs` is compiled over edges (`attn_core.score_function`).
    compiles: ClassVar[bool] = False

    def __init_subclass__(cls, name: str | None = None, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        register(Score.named, name, cls)
        if "formula" not in cls.__dict__ and {"pair", "dense"} & cls.__dict__.keys():
            cls.formula = Score.formula  # type: ignore[method-assign]  # a parent's is not its own

    @classmethod
    def parameter_shapes(
        cls, heads: int, size: int, max_length: int | None
    ) -> dict[str, tuple[int, ...]]:
        """The parameters of a fresh score for queries and keys of one size per head."""
        return {}

    def formula(self) -> Formula | None:
        """What kernels compute in place of `pair`, if there is such a thing."""
        return None

    @property
    def heads(self) -> int:
        """For how many heads the parameters are; 1 is for any number."""
        return 1

    @abstractmethod
    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        """Logits `[..., H]` of queries and keys `[..., H, D]` that broadcast together."""

    def of_pairs(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Tensor:
        """The same of pairs that may have a vector of their own, which is added to the key."""
        return self.pair(query, key if pair_key is None else key + pair_key)

    def pair_width(self, key: Tensor, pair_key: Tensor) -> int:
        """How many channels a pair's own vector must have."""
        return key.shape[-1]

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        """Do the work of each token once; the score that is returned does the rest per pair.

        `pair_key` holds one vector per pair, which is added to the key of that pair.
        """
        return Prepared(self, query, key, pair_key)

    def dense(self, query: Tensor | None, key: Tensor) -> Tensor:
        """Logits `[..., H, Tq, Tk]` of every query with every key (without a query, Tq = 1)."""
        query = None if query is None else query.unsqueeze(-3)
        return self.pair(query, key.unsqueeze(-4)).movedim(-1, -3)

    def to(self: _Self, dtype: torch.dtype) -> _Self:
        """The same score with its parameters in `dtype`."""
        tensors: dict[str, Tensor] = {}
        for name, value in fields_of(self).items():
            if isinstance(value, Tensor) and value.dtype != dtype:
                tensors[name] = value.to(dtype)
        return dataclasses.replace(self, **tensors) if tensors else self


@dataclass(frozen=True, eq=False)
class Dot(Score, name="dot"):
    """`scale · q·k` (Luong et al., 2015, "dot").

    Args:
        scale: a number that multiplies the product. Default 1.

    Raises:
        ValueError: no query, or one of another width than the key (when it is used).

    >>> Dot().pair(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([11.])
    """

    scale: float = 1.0

    def formula(self) -> Formula:
        return Formula("dot", self.scale, None)

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        query = _same_width(self, query, key)
        return (query * key).sum(-1) * self.scale

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        return Prepared(self, _same_width(self, query, key), key, pair_key)

    def dense(self, query: Tensor | None, key: Tensor) -> Tensor:
        query = _same_width(self, query, key)
        return (query * self.scale).movedim(-2, -3) @ key.movedim(-2, -3).mT


@dataclass(frozen=True, eq=False)
class ScaledDot(Score, name="scaled_dot"):
    """`q·k / √D` (Vaswani et al., 2017): the variance of the logits does not grow with D.

    Raises:
        ValueError: no query, or one of another width than the key (when it is used).

    >>> ScaledDot().pair(torch.ones(1, 4), torch.ones(1, 4))
    tensor([2.])
    """

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        score, query, key, _ = self.prepare(query, key, None)
        return score.pair(query, key)

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        query = _same_width(self, query, key)
        return Prepared(Dot(1 / math.sqrt(max(key.shape[-1], 1))), query, key, pair_key)


@dataclass(frozen=True, eq=False)
class Cosine(Score, name="cosine"):
    """`q·k / (‖q‖ ‖k‖)`, the match of content addressing (Graves et al., 2014) and of AGNN.

    Args:
        eps: the smallest length that a vector is divided by. Default 1e-8.

    Raises:
        ValueError: no query, or one of another width than the key (when it is used).

    >>> Cosine().pair(torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0]]))
    tensor([1.])
    """

    eps: float = 1e-8

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        query = _same_width(self, query, key)
        return Dot().pair(self.unit(query), self.unit(key))

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        query = _same_width(self, query, key)
        if pair_key is not None:  # the length of key + pair_key is the pair's own
            return Prepared(self, query, key, pair_key)
        return Prepared(Dot(), self.unit(query), self.unit(key), None)

    def unit(self, vector: Tensor) -> Tensor:
        """The vector divided by its length."""
        # In float16 eps would be 0, and the square of a length overflows
        half = vector.dtype in (torch.float16, torch.bfloat16)
        unit = F.normalize(vector.float() if half else vector, dim=-1, eps=self.eps)
        return unit.to(vector.dtype)


@dataclass(frozen=True, eq=False)
class General(Score, name="general"):
    """`qᵀ W k + b` (Luong et al., 2015, "general"), a bilinear form; q and k may differ in width.

    Args:
        weight: `[H, Dq, Dk]`, one matrix per head.
        bias: b, `[H]`, which a softmax does not see, but an identity or a sigmoid of the scores.
            Default: none, as in the paper.

    Raises:
        ValueError: no query, or widths that do not fit the weight (when it is used).

    >>> General(torch.eye(2)[None]).pair(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([11.])
    """

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def parameter_shapes(
        cls, heads: int, size: int, max_length: int | None
    ) -> dict[str, tuple[int, ...]]:
        return {"weight": (heads, size, size)}

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        score, query, key, _ = self.prepare(query, key, None)
        return score.pair(query, key)

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        if key.shape[-1] != self.weight.shape[-1]:
            raise ValueError(
                f"weight of General has shape {list(self.weight.shape)}; its last dimension must "
                f"be the width of the key, {key.shape[-1]}"
            )
        query = _per_head("weight of General", self.weight, _needs_query(self, query), axis=1)
        if self.bias is not None:  # one more channel, which is 1 in every key
            query = torch.cat([query, self.bias.unsqueeze(-1).expand(*query.shape[:-1], 1)], -1)
            key = F.pad(key, (0, 1), value=1.0)
            pair_key = None if pair_key is None else F.pad(pair_key, (0, 1))
        return Prepared(Dot(), query, key, pair_key)


@dataclass(frozen=True, eq=False)
class Additive(Score, name="additive"):
    """`vᵀ φ(q + k)` for q and k already projected to one width.

    With φ = tanh, the score of Bahdanau et al. (2015); with φ = LeakyReLU, GATv2 (Brody et al.,
    2022).

    Args:
        vector: v, `[H, D]`. None stands for ones, and is the cheaper way to say so.
        activation: φ: "tanh" (default), "leaky_relu", "relu", "identity", or a function.
        negative_slope: of "leaky_relu". Default 0.2.

    Raises:
        ValueError: an activation that is not known; widths that do not fit (when it is used).
        TypeError: a vector that is no tensor.

    >>> Additive(torch.ones(1, 2)).pair(torch.zeros(1, 2), torch.tensor([[0.0, 20.0]]))
    tensor([1.])
    """

    vector: Tensor | None = None
    activation: Activation = "tanh"
    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.vector, Tensor) or self.activation not in ACTIVATIONS:
            _check_parameters(self, "vector")

    @classmethod
    def parameter_shapes(
        cls, heads: int, size: int, max_length: int | None
    ) -> dict[str, tuple[int, ...]]:
        return {"vector": (heads, size)}

    def formula(self) -> Formula | None:
        if callable(self.activation):
            return None
        kind, slope = ACTIVATIONS[self.activation]
        return Formula(kind, self.negative_slope if slope is None else slope, self.vector)

    @property
    def heads(self) -> int:
        return 1 if self.vector is None else self.vector.shape[0]

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        hidden = key if query is None else _same_width(self, query, key) + key
        hidden = activate(hidden, self.activation, self.negative_slope)
        return (hidden if self.vector is None else hidden * self.vector).sum(-1)

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        query = None if query is None else _same_width(self, query, key)
        if self.vector is not None and self.vector.shape[-1] != key.shape[-1]:
            raise ValueError(
                f"vector of Additive has shape {list(self.vector.shape)}, but the key has width "
                f"{key.shape[-1]}: give it the shape [heads, {key.shape[-1]}]"
            )
        return Prepared(self, query, key, pair_key)


@dataclass(frozen=True, eq=False)
class Concat(Score, name="concat"):
    """`vᵀ φ(W [q; k])` (Luong et al., 2015, "concat").

    `W [q; k] = W₁ q + W₂ k`: this is Additive with W split in two, and computed so.

    Args:
        weight: W, `[H, A, Dq + Dk]`.
        vector: v, `[H, A]`.
        activation, negative_slope: as in Additive.

    Raises:
        ValueError: no query, an activation that is not known, or widths that do not fit the weight
            (when it is used).

    >>> weight = torch.tensor([[[1.0, 0.0, 1.0, 0.0]]])  # adds the first channels of q and k
    >>> score = Concat(weight, torch.ones(1, 1), activation="identity")
    >>> score.pair(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([4.])
    """

    weight: Tensor
    vector: Tensor
    activation: Activation = "tanh"
    negative_slope: float = 0.2

    @classmethod
    def parameter_shapes(
        cls, heads: int, size: int, max_length: int | None
    ) -> dict[str, tuple[int, ...]]:
        return {"weight": (heads, size, 2 * size), "vector": (heads, size)}

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        score, query, key, _ = self.prepare(query, key, None)
        return score.pair(query, key)

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        query = _needs_query(self, query)
        if query.shape[-1] + key.shape[-1] != self.weight.shape[-1]:
            raise ValueError(
                f"weight of Concat has shape {list(self.weight.shape)}; its last dimension must be "
                f"the width of the query plus that of the key, {query.shape[-1]} + {key.shape[-1]}"
            )
        for_query, for_key = self.weight.split([query.shape[-1], key.shape[-1]], dim=-1)
        query = _per_head("weight of Concat", for_query, query, axis=2)
        key = _for_each_head(key, self.weight.shape[0])
        key = _per_head("weight of Concat", for_key, key, axis=2)
        if pair_key is not None:
            pair_key = _per_head("weight of Concat", for_key, pair_key, axis=2)
        score = Additive(self.vector, self.activation, self.negative_slope)
        return Prepared(score, query, key, pair_key)


@dataclass(frozen=True, eq=False)
class Separable(Score, name="separable"):
    """`φ(aᵀq + bᵀk)`, the score of GAT (Veličković et al., 2018): φ = LeakyReLU.

    Each token gives one number, so that a pair costs one addition. (With φ = identity the softmax
    weights do not depend on the query at all.)

    Args:
        query_vector: a, `[H, Dq]`. None: the query is aᵀq already, of width 1.
        key_vector: b, `[H, Dk]`. None: the key is bᵀk already, of width 1.
        activation: φ: "leaky_relu" (default), "tanh", "relu", "identity", or a function.
        negative_slope: of "leaky_relu". Default 0.2.

    Raises:
        ValueError: an activation that is not known; widths that do not fit (when it is used).
        TypeError: a vector that is no tensor.

    >>> score = Separable(torch.ones(1, 2), torch.ones(1, 2), "identity")
    >>> score.pair(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([10.])
    """

    query_vector: Tensor | None = None
    key_vector: Tensor | None = None
    activation: Activation = "leaky_relu"
    negative_slope: float = 0.2

    def __post_init__(self) -> None:
        _check_parameters(self, "query_vector", "key_vector")

    @classmethod
    def parameter_shapes(
        cls, heads: int, size: int, max_length: int | None
    ) -> dict[str, tuple[int, ...]]:
        return {"query_vector": (heads, size), "key_vector": (heads, size)}

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        score, query, key, _ = self.prepare(query, key, None)
        return score.pair(query, key)

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        return Prepared(
            Additive(None, self.activation, self.negative_slope),  # of two numbers
            None if query is None else self._reduce("query", query, self.query_vector),
            self._reduce("key", self._of_heads(key), self.key_vector),
            None if pair_key is None else self._reduce("pair_key", pair_key, self.key_vector),
        )

    def _of_heads(self, key: Tensor) -> Tensor:
        vector = self.key_vector
        return key if vector is None else _for_each_head(key, vector.shape[0])

    @staticmethod
    def _reduce(name: str, token: Tensor, vector: Tensor | None) -> Tensor:
        width = 1 if vector is None else vector.shape[-1]
        if token.shape[-1] != width:
            raise ValueError(
                f"{name} has width {token.shape[-1]}, but Separable expects {width}: pass the "
                f"{name.replace('pair_', '')}_vector of shape [heads, {token.shape[-1]}]"
            )
        return token if vector is None else (token * vector).sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class Trilinear(Score, name="trilinear"):
    """`aᵀq + bᵀk + cᵀ(q ∘ k)`, a linear map of `[q; k; q ∘ k]` (Seo et al., 2017).

    It is the dot product of `[c ∘ q; 1; aᵀq]` and `[k; bᵀk; 1]`, and computed so.

    Args:
        query_vector, key_vector, product_vector: a, b and c, `[H, D]`.

    Raises:
        ValueError: no query, or widths that do not fit (when it is used).

    >>> score = Trilinear(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([[1.0, 0.0]]))
    >>> score.pair(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor([13.])
    """

    query_vector: Tensor
    key_vector: Tensor
    product_vector: Tensor

    @classmethod
    def parameter_shapes(
        cls, heads: int, size: int, max_length: int | None
    ) -> dict[str, tuple[int, ...]]:
        names = "query_vector", "key_vector", "product_vector"
        return dict.fromkeys(names, (heads, size))

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        score, query, key, _ = self.prepare(query, key, None)
        return score.pair(query, key)

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        query = _same_width(self, query, key)
        if self.product_vector.shape[-1] != key.shape[-1]:
            raise ValueError(
                f"product_vector of Trilinear has shape {list(self.product_vector.shape)}, but the "
                f"key has width {key.shape[-1]}: give it the shape [heads, {key.shape[-1]}]"
            )
        of_query = (query * self.query_vector).sum(-1, keepdim=True)
        query = torch.cat([query * self.product_vector, torch.ones_like(of_query), of_query], -1)
        pair_key = None if pair_key is None else self._beside(pair_key, 0)
        return Prepared(Dot(), query, self._beside(key, 1), pair_key)

    def _beside(self, key: Tensor, constant: float) -> Tensor:
        """`[k; bᵀk; constant]`."""
        key = _for_each_head(key, self.key_vector.shape[0])
        of_key = (key * self.key_vector).sum(-1, keepdim=True)
        parts = key.expand(*of_key.shape[:-1], -1), of_key, torch.full_like(of_key, constant)
        return torch.cat(parts, -1)


@dataclass(frozen=True, eq=False)
class Location(Score, name="location"):
    """`W q`: one logit per key position, from the query alone (Luong et al., 2015, "location").

    Positions have an order, so this score goes with the Dense support only.

    Args:
        weight: W, `[H, L, Dq]`; L is the longest sequence of keys that it can attend to.

    Raises:
        ValueError: no query, more than L keys, a pair_key, or another support (when it is used).

    >>> weight = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> Location(weight).dense(torch.tensor([[[5.0, 7.0]]]), torch.zeros(2, 1, 2))
    tensor([[[5., 7.]]])
    """

    weight: Tensor

    needs_max_length: ClassVar[bool] = True

    @classmethod
    def parameter_shapes(
        cls, heads: int, size: int, max_length: int | None
    ) -> dict[str, tuple[int, ...]]:
        return {"weight": (heads, max_length or 0, size)}

    @property
    def heads(self) -> int:
        return self.weight.shape[0]

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        raise ValueError("score Location has one logit per key position: use support Dense")

    def prepare(self, query: Tensor | None, key: Tensor, pair_key: Tensor | None) -> Prepared:
        if pair_key is not None:
            raise ValueError("score Location does not look at the keys: pair_key must be None")
        return Prepared(self, query, key, None)

    def dense(self, query: Tensor | None, key: Tensor) -> Tensor:
        length, longest = key.shape[-3], self.weight.shape[1]
        if length > longest:
            raise ValueError(
                f"key has {length} positions, but the weight of Location serves at most {longest}: "
                "cut the keys or build the layer for longer ones"
            )
        weight = self.weight[:, :length]
        return _per_head("weight of Location", weight, _needs_query(self, query), 2).movedim(-2, -3)


def _check_parameters(score: Additive | Separable, *vectors: str) -> None:
    """Raise unless the vectors are tensors (or None) and the activation is known."""
    for name in vectors:
        vector = getattr(score, name)
        if vector is not None and not isinstance(vector, Tensor):
            raise TypeError(f"{name} is {vector!r}; expected a tensor [heads, channels], or None")
    if not callable(score.activation) and score.activation not in ACTIVATIONS:
        raise ValueError(
            f"activation is {score.activation!r}; expected "
            f"{', '.join(map(repr, ACTIVATIONS))} or a function"
        )


def _needs_query(score: Score, query: Tensor | None) -> Tensor:
    if query is None:
        raise ValueError(f"score {type(score).__name__} needs a query; got query=None")
    return query


def _same_width(score: Score, query: Tensor | None, key: Tensor) -> Tensor:
    if query is None or query.shape[-1] != key.shape[-1]:
        query = _needs_query(score, query)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query has width {query.shape[-1]} and key {key.shape[-1]}: score "
            f"{type(score).__name__} needs one width; project them, or use General or Concat"
        )
    return query


def _for_each_head(key: Tensor, heads: int) -> Tensor:
    """A key that several heads share, once for each of them, whose parameters differ."""
    own = key.shape[-2]
    if own in (0, 1, heads) or heads % own:
        return key
    return key.repeat_interleave(heads // own, dim=-2)


def _per_head(name: str, weight: Tensor, token: Tensor, axis: int) -> Tensor:
    """Multiply each head of `token` `[..., H, D]` with its own matrix, over the given axis."""
    if token.shape[-1] != weight.shape[axis] or token.shape[-2] not in (1, weight.shape[0]):
        raise ValueError(
            f"{name} has shape {list(weight.shape)}, which does not fit {token.shape[-2]} heads "
            f"with {token.shape[-1]} channels each"
        )
    dtype = torch.promote_types(token.dtype, weight.dtype)  # they differ under autocast
    weight, token = weight.to(dtype), token.to(dtype)
    weight = weight if axis == 1 else weight.mT
    if len(weight) == 1:  # one head is a plain product
        return token @ weight.squeeze(0)
    return torch.einsum("...hi,hij->...hj", token, weight)
