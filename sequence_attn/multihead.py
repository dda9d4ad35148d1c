"""Multi-head attention as the formulas have it, with any score, normaliser and support."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import attn_core
from attn_core import Dense, Edges, Normalizer, Score, Support, Window
from attn_core.linear import linear
from attn_core.parameters import (
    learned,
    named_normalizer,
    named_score,
    redraw,
    register,
    with_own,
)
from attn_core.registry import check_part
from sequence_attn.checks import check_lengths, check_tokens, check_window, chosen, padding
from sequence_attn.pairs import (
    both,
    check_mask,
    dense,
    edge_bias,
    in_window,
    mask_bias,
    per_head,
    places,
)
from sequence_attn.positions import RotaryPositions
from sequence_attn.scored import SequenceAttention
from sequence_attn.shards import attend, refuse, split


class KeyValueCache(NamedTuple):
    """Keys and values that are projected already; nothing ever changes one.

    Attributes:
        key: `[..., T, H, D]`.
        value: `[..., T, H, Dv]`.
    """

    key: Tensor
    value: Tensor

    @property
    def length(self) -> int:
        """T, how many positions it holds."""
        return self.key.shape[-3]

    def followed_by(self, later: KeyValueCache) -> KeyValueCache:
        """A new cache with the positions of `later` behind those of this one."""
        for old, new in zip(self, later, strict=True):
            if old.shape[:-3] != new.shape[:-3] or old.shape[-2:] != new.shape[-2:]:
                raise ValueError(
                    f"cache holds {list(old.shape)}, but what comes behind it is "
                    f"{list(new.shape)}: all but the third-last dimension (time) must agree"
                )
        return KeyValueCache(*(torch.cat(pair, -3) for pair in zip(self, later, strict=True)))

    def select(self, index: Tensor) -> KeyValueCache:
        """The sequences `index` `[n]` of a batch, in that order; one may occur often."""
        return KeyValueCache(chosen(self.key, index), chosen(self.value, index))


class MultiHead(nn.Module):
    """Several attentions side by side, each over its own projection of the input.

    `head_h = attention(x W_h^Q, y W_h^K, z W_h^V)`, and the heads are concatenated; with
    `output_size` a last projection W^O follows. All heads are computed in one tensor. Vaswani et
    al., "Attention Is All You Need", 2017.

    Args:
        heads: H, the number of heads.
        size_per_head: the width of a value, and so of what comes out, per head.
        key_size: the width of a query and of a key, per head. Default: size_per_head.
        input_size: the widths of queries, keys and values before they are projected: one number, or
            three. Default: taken from the first input (until then the parameters have no shape, so
            run it once before they are handed to an optimiser).
        output_size: the width after the output projection. Default: no output projection.
        bias: learn biases in the projections. Default False, as in the formulas.
        score: "scaled_dot" (default), "dot", "cosine", "general", "concat", "additive",
            "separable", "location", or an `attn_core.Score`. Its parameters belong to the layer, a
            set for each head; those of "additive" are v alone, since the projections are its
            matrices.
        normalizer: "softmax" (default), another name that `Attention` knows, or an
            `attn_core.Normalizer`.
        max_length: the longest sequence of keys that "location" can serve; needed for it alone.
        window: a query sees the keys at most this many positions away, in O(T · window) time and
            memory. Default: all.
        key_heads: how many heads keys and values have, a divisor of heads: query head h reads key
            head h // (heads / key_heads), and a cache is smaller by that factor. 1 is multi-query
            attention (Shazeer, 2019), a number between is grouped-query attention (Ainslie et al.,
            2023). Default: heads, each has its own.
        rotary: turns queries and keys by their positions before they are scored, the last query
            standing where the last key does. Default: none.
        dropout: the probability with which a weight is dropped in training. Default 0.

    Raises:
        ValueError: an unknown name, a size below 1, a missing or needless argument, key_heads that
            do not divide heads.
        TypeError: a score or normaliser that is neither a name nor an instance.

    >>> attention = MultiHead(8, 16, input_size=128)
    >>> x = torch.randn(2, 10, 128)
    >>> context, weights = attention(x, key_lengths=torch.tensor([10, 4]), need_weights=True)
    >>> context.shape, weights.shape
    (torch.Size([2, 10, 128]), torch.Size([2, 8, 10, 10]))

    Step by step, without projecting the past again:

    >>> attention, cache = attention.eval(), None
    >>> for step in x.split(1, dim=1):
    ...     cache = attention.precompute(step, cache=cache)
    ...     last = attention(step, cache=cache).context
    >>> torch.allclose(last, attention(x, causal=True).context[:, -1:], atol=1e-6)
    True
    """

    def __init__(
        self,
        heads: int,
        size_per_head: int,
        key_size: int | None = None,
        *,
        input_size: int | tuple[int, int, int] | None = None,
        output_size: int | None = None,
        bias: bool = False,
        score: str | Score = "scaled_dot",
        normalizer: str | Normalizer = "softmax",
        max_length: int | None = None,
        window: int | None = None,
        key_heads: int | None = None,
        rotary: RotaryPositions | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_part("score", score, Score)
        check_part("normalizer", normalizer, Normalizer)
        key_heads = heads if key_heads is None else key_heads
        key_size = size_per_head if key_size is None else key_size
        inputs = input_size if isinstance(input_size, tuple) else (input_size,) * 3
        if len(inputs) != 3:
            raise ValueError(
                f"input_size is {input_size}; expected one width, or those of queries, keys, values"
            )
        sizes = {"heads": heads, "size_per_head": size_per_head, "key_size": key_size}
        sizes["key_heads"] = key_heads
        sizes |= {f"input_size[{i}]": size for i, size in enumerate(inputs) if size is not None}
        sizes |= {"output_size": output_size} if output_size is not None else {}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        if heads % key_heads:
            raise ValueError(
                f"key_heads is {key_heads}, which does not divide heads, {heads}: each key head is "
                "shared by equally many query heads"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}; a probability lies between 0 and 1")
        check_window(window)
        self.key_heads = key_heads
        self.heads, self.size_per_head, self.key_size = heads, size_per_head, key_size
        self.window, self.rotary, self.dropout = window, rotary, dropout
        self.query = _projection(inputs[0], heads * key_size, bias)
        self.key = _projection(inputs[1], key_heads * key_size, bias)
        self.value = _projection(inputs[2], key_heads * size_per_head, bias)
        self.output = (
            None if output_size is None else _projection(heads * size_per_head, output_size, bias)
        )
        self.score_name = score if isinstance(score, str) else None
        if isinstance(score, str):
            score = named_score(score, heads, key_size, max_length)
        elif max_length is not None:
            raise ValueError(f"max_length is {max_length}, but belongs to score='location' alone")
        self._score, self._normalizer = score, named_normalizer(normalizer)
        register(self, "score", self._score)
        register(self, "normalizer", self._normalizer)
        self._learns_score = bool(learned(self._score))
        self._learns_normalizer = bool(learned(self._normalizer))

    # Of a layer that was pickled before it knew: looked up each time
    _learns_score = _learns_normalizer = True

    def reset_parameters(self) -> None:
        """Draw the projections and the parameters of a score given by name anew."""
        for projection in (self.query, self.key, self.value, self.output):
            if projection is not None:
                projection.reset_parameters()
        if self.score_name is not None:
            redraw(self, "score", self._score)

    @property
    def score(self) -> Score:
        """The score with its parameters, for `attn_core.attend`."""
        return with_own(self, "score", self._score) if self._learns_score else self._score

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser with its parameters, for `attn_core.attend`."""
        if self._learns_normalizer:
            return with_own(self, "normalizer", self._normalizer)
        return self._normalizer

    def precompute(
        self, keys: Tensor, values: Tensor | None = None, *, cache: KeyValueCache | None = None
    ) -> KeyValueCache:
        """Project keys and values once, for many queries to come.

        Args:
            keys: `[..., Tk, Dk]`.
            values: `[..., Tk, Dv]`. Default: the keys.
            cache: what came before, in time. Default: nothing.

        Returns:
            A new cache, to be passed to `forward`; the one that was given is left as it is.
        """
        values = keys if values is None else values
        key = self._project("keys", keys, self.key, self.key_heads)
        value = self._project("values", values, self.value, self.key_heads)
        if key.shape[:-2] != value.shape[:-2]:
            raise ValueError(
                f"values has shape {list(values.shape)}; expected {[*keys.shape[:-1], 'Dv']}, one "
                "for each key"
            )
        new = KeyValueCache(key, value)
        return new if cache is None else cache.followed_by(new)

    def forward(
        self,
        query: Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        query_lengths: Tensor | None = None,
        key_lengths: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        support: Support | None = None,
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        need_weights: bool = False,
    ) -> SequenceAttention:
        """Attend.

        Args:
            query: `[..., Tq, Dq]`, with any batch dimensions or none.
            keys: `[..., Tk, Dk]`. Default: the queries.
            values: `[..., Tk, Dv]`. Default: the keys.
            mask: bool, True where a query may attend to a key: `[Tq, Tk]`, `[..., Tq, Tk]` or
                `[..., H, Tq, Tk]`; a dimension of size 1 is repeated. Default: all.
            key_mask: bool `[..., Tk]`, True where a key is real. Default: all.
            query_lengths: integers `[...]`: how many queries are real; what comes out for the
                others is zero. Default: all.
            key_lengths: integers `[...]`: how many keys are real. Default: all.
            causal: query i sees the keys up to i + Tk - Tq; with lengths, the last real query of a
                sequence stands at its last real key (as many queries as keys are the same steps
                unless query_lengths are given). Default False.
            bias: added to the scores: broadcasts to `[..., H, Tq, Tk]` (over a window
                `[..., H, Tq, W]`), or is `[..., E, H]` over edges. Three dimensions are heads
                first, `[H, Tq, Tk]`, where those of a mask are sequences first. Default: none.
            support: which pairs exist, in place of mask, key_mask, key_lengths, causal and the
                layer's window: `attn_core.Edges`, say, which all sequences of a batch share, and
                of which key_mask and key_lengths leave out the pairs with padding. Default: none.
            positions: of the keys, `[Tk]` or `[..., Tk]`, by which `rotary` turns them and the
                queries, which are the last of these steps. Default: 0, 1, …
            cache: keys and values from `precompute`, in place of keys and values. Default: none.
            need_weights: return the weights as well. Default False.

        Returns:
            SequenceAttention(context, weights): `[..., Tq, heads · size_per_head]`, or
            `[..., Tq, output_size]`; and before dropout `[..., H, Tq, Tk]` (over a window
            `[..., H, Tq, W]`, over edges `[..., E, H]`). A query that may attend to no key reads
            zeros, to which the output projection adds its bias.

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        heads = self._project("query", query, self.query, self.heads)
        if cache is None:
            cache = self.precompute(query if keys is None else keys, values)
        elif keys is not None or values is not None:
            raise ValueError(
                "keys or values are given beside cache: put them behind it first, with "
                "cache = attention.precompute(keys, values, cache=cache)"
            )
        if query_lengths is not None:
            check_lengths("query_lengths", query_lengths, query)
        heads, key, support, bias = self._match(
            heads, cache.key, mask, key_mask, query_lengths, key_lengths, causal, bias, support,
            positions,
        )  # fmt: skip
        result = attend(
            heads,
            key,
            cache.value,
            score=self.score,
            normalizer=self.normalizer,
            support=support,
            bias=bias,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        context = result.output.flatten(-2)  # [..., Tq, H Dv]
        context = context if self.output is None else self.output(context)
        if query_lengths is not None:
            context = context.masked_fill(padding(query_lengths, context), 0)
        return SequenceAttention(context, result.weights)

    def weights(
        self,
        query: Tensor,
        keys: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        query_lengths: Tensor | None = None,
        key_lengths: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        support: Support | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The weights alone, without values; arguments and layout as in `forward`."""
        heads = self._project("query", query, self.query, self.heads)
        key = self._project("keys", query if keys is None else keys, self.key, self.key_heads)
        if query_lengths is not None:
            check_lengths("query_lengths", query_lengths, query)
        heads, key, support, bias = self._match(
            heads, key, mask, key_mask, query_lengths, key_lengths, causal, bias, support, positions
        )
        return attn_core.weights(
            heads, key, score=self.score, normalizer=self.normalizer, support=support, bias=bias
        )

    def _project(self, name: str, x: Tensor, projection: nn.Module, heads: int) -> Tensor:
        """`[..., T, D]` as `[..., T, H, D]`, all heads in one matrix product."""
        width = getattr(projection, "in_features", None)
        check_tokens(name, x, projection, width or None)
        return projection(x).unflatten(-1, (heads, -1))

    def _match(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        key_mask: Tensor | None,
        query_lengths: Tensor | None,
        key_lengths: Tensor | None,
        causal: bool,
        bias: Tensor | None,
        support: Support | None,
        positions: Tensor | None,
    ) -> tuple[Tensor, Tensor, Support, Tensor | None]:
        """Queries and keys as they are scored, `[..., T, H, D]`, their support and bias."""
        if (how := split()) is not None:
            refuse(mask=mask, key_mask=key_mask, query_lengths=query_lengths, support=support)
            refuse(positions=positions)
            if self.rotary is not None:
                query, key = (
                    self.rotary(x, positions=how.positions(x.shape[-3], x.device))
                    for x in (query, key)
                )
            if self.window is None:
                return query, key, Dense(causal=causal, lengths=key_lengths), bias
            return query, key, Window(self.window, causal=causal, lengths=key_lengths), bias
        if key_lengths is not None:
            check_lengths("key_lengths", key_lengths, key.flatten(-2))
        if key_mask is not None:
            check_mask("key_mask", key_mask, key.flatten(-2))
        where = places(query.shape[-3], key.shape[-3], key_lengths, query_lengths)
        if self.rotary is not None:
            query, key = self._turn(self.rotary, query, key, positions, where)
        elif positions is not None:
            raise ValueError("positions is given, but the layer has no rotary to turn by them")
        if support is None:
            support, bias = self._pairs(
                query, key, mask, key_mask, key_lengths, causal, bias, where
            )
            return query, key, support, bias
        given = {"mask": mask, "causal": causal or None}
        if isinstance(support, Edges):
            bias = edge_bias(support, bias, key_mask, key_lengths, query)
        else:
            given |= {"key_mask": key_mask, "key_lengths": key_lengths}
        for name, argument in given.items():
            if argument is not None:
                raise ValueError(
                    f"{name} is given beside support, which says by itself which pairs exist"
                )
        return query, key, support, bias

    def _pairs(
        self,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        key_mask: Tensor | None,
        key_lengths: Tensor | None,
        causal: bool,
        bias: Tensor | None,
        where: Tensor | None,
    ) -> tuple[Support, Tensor | None]:
        """The support, and the bias over its pairs."""
        batch, (queries, keys) = tuple(key.shape[:-3]), (query.shape[-3], key.shape[-3])
        if self.window is None:
            return dense(mask, key_mask, key_lengths, causal, len(batch), keys, where), bias
        window = Window(self.window, causal=causal, centre=where, lengths=key_lengths)
        if key_mask is not None:
            mask = both(per_head(mask, len(batch)), key_mask[..., None, None, :])
        if mask is not None:
            allowed = Dense(mask).allowed(batch, self.heads, queries, keys)
            assert allowed is not None
            bias = mask_bias(in_window(allowed, window, queries, keys), bias, query.dtype)
        return window, bias

    def _turn(
        self,
        rotary: RotaryPositions,
        query: Tensor,
        key: Tensor,
        positions: Tensor | None,
        where: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys turned by their positions, the queries standing `where` among them."""
        if where is None:
            return rotary.both(query, key, positions=positions)
        of_query = where
        if positions is not None:
            of_keys = positions.expand(*where.shape[:-1], -1)
            of_query = of_keys.gather(-1, where.clamp(0, key.shape[-3] - 1))
        return rotary(query, positions=of_query), rotary(key, positions=positions)

    def extra_repr(self) -> str:
        score = repr(self.score_name) if self.score_name else type(self._score).__name__
        given = f"{self.heads}, {self.size_per_head}, {self.key_size}, {score}, {self._normalizer}"
        groups = "" if self.key_heads == self.heads else f"key_heads={self.key_heads}, "
        return f"{given}, {groups}window={self.window}, dropout={self.dropout}"


class _Projection(nn.Linear):
    """A linear map that starts as those of torch's multi-head attention do (Glorot, 2010)."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _LazyProjection(nn.LazyLinear):
    cls_to_become = _Projection

    def reset_parameters(self) -> None:
        if not self.has_uninitialized_params() and self.in_features != 0:
            _Projection.reset_parameters(self)  # type: ignore[arg-type]


def _projection(inputs: int | None, outputs: int, bias: bool) -> nn.Linear:
    if inputs is None:
        return _LazyProjection(outputs, bias)
    return _Projection(inputs, outputs, bias)
