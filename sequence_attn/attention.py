"""Attention over padded batches of sequences, with any score and any normaliser of the core."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attn_core import Dense, Normalizer, Score, Support
from sequence_attn.checks import chosen, real_steps
from sequence_attn.pairs import both, check_mask, dense, places, real_keys
from sequence_attn.scored import Parts, ScoredAttention, SequenceAttention


class Memory(NamedTuple):
    """Keys that are projected already, for many queries to come; nothing ever changes one.

    Attributes:
        key: what the score still needs of each key, `[B, Tk, …]`.
        value: `[B, Tk, Dv]`.
        lengths: how many keys of each sequence are real, `[B]`; None for all.
        stands: where the last query stands, a weight for each key, `[B, Tk]`, in attentions that
            move along the keys (`MonotonicAttention`); None before the first one, and in others.
    """

    key: Tensor
    value: Tensor
    lengths: Tensor | None
    stands: Tensor | None = None

    def select(self, index: Tensor) -> Memory:
        """The memories of the sequences `index` `[n]`, in that order; one may occur often."""
        return Memory(*(chosen(x, index) for x in self))

    def moved(self, index: Tensor) -> Memory:
        """The same memories, with where the sequences `index` `[B]` stand in them."""
        if self.stands is None:
            return self
        return self._replace(stands=chosen(self.stands, index))

    def repeat(self, times: int) -> Memory:
        """Each sequence so many times in a row, for as many hypotheses about it."""
        each = torch.arange(self.key.shape[0], device=self.key.device)
        return self.select(each.repeat_interleave(times))


class Attention(ScoredAttention):
    """One attention of queries over keys: the layer behind the classical mechanisms.

    `context_i = Σ_j weight_ij value_j`, with `weight_i = normalizer(score(query_i, key_j))`. The
    layer owns the parameters of its score and nothing else: queries, keys and values are not
    projected beyond what the score's formula says.

    Args:
        score: which score matches queries with keys (`attn_core.scores` gives the formulas):
            "additive" (default; Bahdanau et al., 2015), "concat", "general", "dot", "location"
            (Luong et al., 2015), "scaled_dot" (Vaswani et al., 2017), "cosine" (Graves et al.,
            2014), "separable" (Veličković et al., 2018), "trilinear" (Seo et al., 2017); or a
            `attn_core.Score` for one head, whose parameters are learned with the layer.
        normalizer: how scores become weights: "softmax" (default), "sparsemax", "entmax",
            "hard", "identity", or a `attn_core.Normalizer`; an `nn.Parameter` in it, such as the
            temperature of Softmax or the alpha of Entmax, is learned with the layer.
        query_size: Dq, the width of a query; a Score of one's own may leave it open.
        key_size: Dk, the width of a key. Default: query_size.
        attention_size: the width of the hidden layer of "additive" and "concat". Default: key_size.
        max_length: the longest sequence of keys that "location" can serve; needed for it alone.
        activation: of "additive", "concat" (default "tanh") and "separable" (default
            "leaky_relu"): "tanh", "leaky_relu", "relu" or "identity".
        bias: learn a bias in the hidden layer of "additive". Default False, as in the paper.
        dropout: the probability with which a weight is dropped in training. Default 0.

    Raises:
        ValueError: an unknown name, a size below 1, a missing or needless argument.
        TypeError: a score or normaliser that is neither a name nor an instance.

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

    def __init__(
        self,
        score: str | Score = "additive",
        normalizer: str | Normalizer = "softmax",
        *,
        query_size: int | None = None,
        key_size: int | None = None,
        attention_size: int | None = None,
        max_length: int | None = None,
        activation: str | None = None,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            score,
            normalizer,
            query_size=query_size,
            key_size=key_size,
            attention_size=attention_size,
            max_length=max_length,
            activation=activation,
            bias=bias,
            dropout=dropout,
        )

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
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
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
            mask: bool, True where a query may attend to a key: `[Tq, Tk]` or `[B, Tq, Tk]`; a
                dimension of size 1 is repeated. Default: all.
            key_mask: bool `[B, Tk]`, True where a key is real. Default: all.
            query_mask: bool `[B, Tq]`, or `[B]` for one query, True where a query is real; the
                others read zeros, whatever stands in them. Default: all.
            lengths: integers `[B]`: how many keys of each sequence are real. Default: all.
            causal: query i sees the keys up to i + Tk - Tq; where lengths are given and Tq is not
                Tk, the last query of a sequence stands at its last real key. Default False.
            bias: added to the scores, `[Tq, Tk]` or `[B, Tq, Tk]`. Default: none.
            step: how many queries of the same sequence came before, in earlier calls; only
                attentions that move along the keys look at it (`LocalAttention`). Default 0.
            need_weights: return the weights as well. Default False.

        Returns:
            SequenceAttention(context, weights). A query that may attend to no key reads zeros.

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        masks = mask, key_mask, query_mask
        parts = self._parts(query, keys, values, *masks, lengths, causal, bias, step)
        return self._read(query, parts, need_weights)

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
    ) -> Tensor:
        """The weights alone, without values; arguments and layout as in `forward`."""
        masks = mask, key_mask, query_mask
        parts = self._parts(query, keys, None, *masks, lengths, causal, bias, step)
        return self._match(query, parts)

    def _parts(
        self,
        query: Tensor,
        keys: Tensor | Memory,
        values: Tensor | None,
        mask: Tensor | None,
        key_mask: Tensor | None,
        query_mask: Tensor | None,
        lengths: Tensor | None,
        causal: bool,
        bias: Tensor | None,
        step: int,
    ) -> Parts:
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
        if query_mask is not None:
            check_mask("query_mask", query_mask, query, "query")
            query = query.masked_fill(~query_mask.unsqueeze(-1), 0)
        query = query.unsqueeze(1) if query.dim() == 2 else query
        if mask is not None:
            mask = _of_pairs("mask", mask, query, memory)
        if query_mask is not None:
            mask = both(mask, query_mask.reshape(*query.shape[:2], 1))
        if key_mask is not None:
            check_mask("key_mask", key_mask, memory.value, "key")
        if bias is not None:
            bias = _of_pairs("bias", bias, query, memory).unsqueeze(1)  # [B, 1, Tq, Tk]
        pairs = self._pairs(query, memory, mask, key_mask, causal, bias, step)
        projected = self._project_query(query)
        return Parts(projected, memory.key, memory.value, self.score, *pairs)

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
        """The support, the bias over its pairs, and the normaliser."""
        lengths = memory.lengths
        if key_mask is None and (lengths is None or not causal):
            plain = mask is None and not causal
            support = real_keys(lengths) if plain else Dense(mask, lengths, causal)
            return support, bias, self.normalizer
        keys = memory.key.shape[1]
        where = places(query.shape[1], keys, lengths)
        support = dense(mask, key_mask, lengths, causal, 1, keys, where)
        return support, bias, self.normalizer


def _of_pairs(name: str, x: Tensor, query: Tensor, memory: Memory) -> Tensor:
    """A mask or bias `[Tq, Tk]` or `[B, Tq, Tk]` as the latter; size 1 is repeated."""
    shape = (*query.shape[:2], memory.key.shape[1])
    pairs = x.unsqueeze(0) if x.dim() == 2 else x
    if pairs.dim() != 3 or any(a not in (1, b) for a, b in zip(pairs.shape, shape, strict=True)):
        batch, queries, keys = shape
        mend = "key_mask= or lengths=" if name == "mask" else f"{name}.unsqueeze(1)"
        raise ValueError(
            f"{name} has shape {list(x.shape)}; expected [Tq, Tk] = [{queries}, {keys}] or "
            f"[B, Tq, Tk] = [{batch}, {queries}, {keys}]; what is said of each key [B, Tk] goes "
            f"into {mend}"
        )
    return pairs
