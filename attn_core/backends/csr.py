"""Softmax attention over edges in plain torch, on pairs sorted by query (CSR).

What serves where no compiled kernel does. It goes through the pairs in blocks that fit the cache,
so that no tensor of E × H × D is ever made, sums the pairs of a node with torch's embedding_bag and
segment_reduce, and recomputes weights in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core.activations import activate, slope_of
from attn_core.backends.problem import Problem
from attn_core.dropout import dropout_scale
from attn_core.normalizers import finite

_CHUNK = 1024  # pairs that are summed one by one: the longer a sum, the more it rounds
_MANY = 1024  # heads, which are then not summed one by one
_BLOCK = 2**18  # numbers in a block of pairs × heads × channels: 1 MiB of float32


class Sorted(Problem):
    """A problem in one dtype, with its pairs sorted by query.

    Attributes:
        to_query, to_key: the two ends of each sorted pair, int64 `[E]`.
        pair: where it stands in bias, pair_key and pair_value.
        keep: what dropout multiplies its weight with, `[E, H]`; None without dropout.
    """

    to_query: Tensor
    to_key: Tensor
    pair: Tensor
    keep: Tensor | None

    @classmethod
    def of(cls, problem: Problem) -> Sorted:
        """Sort, cast and draw the dropout mask."""
        dtype, edges = problem.dtype, problem.edges
        p = problem.laid(cls, lambda x: x.to(dtype))
        order = edges.by_query.permutation
        p.to_query = edges.query_index.index_select(0, order)
        p.to_key = edges.key_index.index_select(0, order)
        p.pair = order if p.pair_row is None else p.pair_row.index_select(0, order)
        p.keep = None
        if p.seed is not None:
            ids = (edges.source_id if p.pair_id is None else p.pair_id).index_select(0, order)
            p.keep = dropout_scale(p.seed, ids, p.heads, p.dropout).to(dtype)
        return p

    def blocks(self, width: int) -> Iterator[slice]:
        """Slices of the sorted pairs, each of about `_BLOCK` numbers at this width per head."""
        step = max(1, _BLOCK // max(1, self.value.shape[1] * width))
        for start in range(0, len(self.pair), step):
            yield slice(start, start + step)

    def keys(self, block: slice) -> Tensor:
        """The key of each pair, `[b, H, D]`."""
        keys = self.key.index_select(0, self.to_key[block])
        if self.pair_key is not None:
            keys += self.pair_key.index_select(0, self.pair[block])
        return keys

    def hidden(self, block: slice) -> Tensor:
        """q + k of an additive score, `[b, H, D]`."""
        hidden = self.keys(block)
        if self.query is not None:
            hidden += self.query.index_select(0, self.to_query[block])
        return hidden

    def logits(self) -> Tensor:
        """The logit of each sorted pair, `[E, H]`."""
        logits = self.value.new_empty(len(self.pair), self.value.shape[1])
        for block in self.blocks(self.key.shape[-1]):
            if self.kind == "dot":
                assert self.query is not None
                product = self.keys(block).mul_(self.query.index_select(0, self.to_query[block]))
                torch.sum(product, -1, out=logits[block])
                logits[block] *= self.constant
            else:
                hidden = activate(self.hidden(block), self.kind, self.constant)
                if self.vector is not None:
                    hidden *= self.vector
                torch.sum(hidden, -1, out=logits[block])
        if self.bias is not None:
            logits += self.bias.index_select(0, self.pair)
        return logits


def forward(problem: Problem) -> tuple[Tensor, ...]:
    """The output `[Nq, H, Dv]`; log-sum-exp, maximum and total `[Nq, H]`."""
    p = Sorted.of(problem)
    pointer = p.edges.by_query.pointer
    logits = p.logits()
    maximum = finite(_segments(logits, "max", pointer))
    weights = logits.sub_(maximum.index_select(0, p.to_query)).exp_()
    total = _sums(weights, pointer)
    weights /= divisor(total).index_select(0, p.to_query)
    if p.keep is not None:
        weights *= p.keep
    output = weighted_sums(weights, p.value, p.to_key, pointer)
    if p.pair_value is not None:
        for block in p.blocks(output.shape[-1]):
            of_pair = p.pair_value.index_select(0, p.pair[block])
            of_pair *= weights[block].unsqueeze(-1)
            output.index_add_(0, p.to_query[block], of_pair)
    return output, maximum + total.log(), maximum, total


def backward(
    problem: Problem,
    grad_output: Tensor,
    grad_log_sum_exp: Tensor,
    output: Tensor,
    maximum: Tensor,
    total: Tensor,
    needed: list[bool],
) -> list[Tensor | None]:
    """Gradients of query, key, value, vector, bias, pair_key and pair_value, where needed."""
    p = Sorted.of(problem)
    dtype = p.dtype
    grad_output, output = grad_output.to(dtype), output.to(dtype)
    need_query, need_key, need_value, need_vector, need_bias, *need_pairs = needed
    need_pair_key, need_pair_value = need_pairs
    weights = p.logits()  # with the bits of the forward pass: none exceeds its row's maximum
    weights -= maximum.index_select(0, p.to_query)
    weights.exp_()
    weights /= divisor(total).index_select(0, p.to_query)
    dropped = weights if p.keep is None else weights * p.keep

    # d loss / d weight = keep · (grad_output · value); the softmax takes off each row's mean
    grad_logits = torch.empty_like(weights)
    for block in p.blocks(output.shape[-1]):
        of_pair = p.value.index_select(0, p.to_key[block])
        if p.pair_value is not None:
            of_pair += p.pair_value.index_select(0, p.pair[block])
        of_pair *= grad_output.index_select(0, p.to_query[block])
        torch.sum(of_pair, -1, out=grad_logits[block])
    if p.keep is not None:
        grad_logits *= p.keep
    mean = (grad_output * output).sum(-1) - grad_log_sum_exp
    grad_logits -= mean.index_select(0, p.to_query)
    grad_logits *= weights
    # A row's sum to that of its log-sum-exp. What they miss it by is the error of the mean, which
    # is made of a rounded output: it counts where scores are large.
    missed = _sums(grad_logits, p.edges.by_query.pointer) - grad_log_sum_exp
    grad_logits.addcmul_(weights, missed.index_select(0, p.to_query), value=-1)

    grad_value = _to_keys(p, dropped, grad_output) if need_value else None
    grad_pair_value = None
    if need_pair_value:
        assert p.pair_value is not None
        grad_pair_value = p.value.new_zeros(p.num_rows, *p.value.shape[1:])
        for block in p.blocks(output.shape[-1]):
            of_pair = grad_output.index_select(0, p.to_query[block])
            grad_pair_value[p.pair[block]] = of_pair.mul_(dropped[block].unsqueeze(-1))
    grad_bias = None
    if need_bias:
        grad_bias = grad_logits.new_zeros(p.num_rows, grad_logits.shape[1])
        grad_bias[p.pair] = grad_logits

    grad_query, grad_key, grad_vector, grad_pair_key = _score_backward(
        p, grad_logits, need_query, need_key, need_vector, need_pair_key
    )
    return [
        grad_query, grad_key, grad_value, grad_vector, grad_bias, grad_pair_key, grad_pair_value,
    ]  # fmt: skip


def scores(problem: Problem) -> Tensor:
    """The logit of each pair `[E, H]`, in the order of the pairs."""
    p = Sorted.of(problem)
    ordered = p.logits()
    logits = torch.empty_like(ordered)
    logits[p.pair] = ordered
    return logits


def scores_backward(problem: Problem, grad: Tensor, needed: list[bool]) -> list[Tensor | None]:
    """From those of the logits, gradients as `backward` returns them."""
    p = Sorted.of(problem)
    need_query, need_key, _, need_vector, _, need_pair_key, _ = needed
    grad_query, grad_key, grad_vector, grad_pair_key = _score_backward(
        p, grad.index_select(0, p.pair), need_query, need_key, need_vector, need_pair_key
    )
    return [grad_query, grad_key, None, grad_vector, None, grad_pair_key, None]


def _score_backward(p: Sorted, grad: Tensor, *needed: bool) -> tuple[Tensor | None, ...]:
    """From those of the sorted logits, gradients of query, key, vector, pair_key where needed."""
    of_score = _dot_backward if p.kind == "dot" else _additive_backward
    return of_score(p, grad, *needed)


def _dot_backward(
    p: Sorted, grad: Tensor, need_query: bool, need_key: bool, _: bool, need_pair_key: bool
) -> tuple[Tensor | None, ...]:
    assert p.query is not None
    grad = grad * p.constant
    grad_query = grad_key = grad_pair_key = None
    if need_query:
        grad_query = weighted_sums(grad, p.key, p.to_key, p.edges.by_query.pointer)
    if need_key:
        grad_key = _to_keys(p, grad, p.query)
    if need_pair_key:
        grad_pair_key = p.key.new_zeros(p.num_rows, *p.key.shape[1:])
    if p.pair_key is not None and (need_query or need_pair_key):
        for block in p.blocks(p.key.shape[-1]):
            rows, of_pair = p.pair[block], grad[block].unsqueeze(-1)
            if grad_query is not None:
                part = p.pair_key.index_select(0, rows).mul_(of_pair)
                grad_query.index_add_(0, p.to_query[block], part)
            if grad_pair_key is not None:
                grad_pair_key[rows] = p.query.index_select(0, p.to_query[block]).mul_(of_pair)
    return grad_query, grad_key, None, grad_pair_key


def _additive_backward(
    p: Sorted,
    grad: Tensor,
    need_query: bool,
    need_key: bool,
    need_vector: bool,
    need_pair_key: bool,
) -> tuple[Tensor | None, ...]:
    width = p.key.shape[1:]
    grad_query = p.key.new_zeros(p.edges.num_queries, *width) if need_query else None
    grad_key = p.key.new_zeros(p.key.shape) if need_key else None
    grad_vector = p.key.new_zeros(width) if need_vector else None
    grad_pair_key = p.key.new_zeros(p.num_rows, *width) if need_pair_key else None
    for block in p.blocks(width[-1]):
        hidden = p.hidden(block)
        of_pair = grad[block].unsqueeze(-1)
        if grad_vector is not None:
            grad_vector += (activate(hidden, p.kind, p.constant) * of_pair).sum(0)
        grad_hidden = slope_of(hidden, p.kind, p.constant).mul_(of_pair)
        if p.vector is not None:
            grad_hidden *= p.vector
        if grad_query is not None:
            grad_query.index_add_(0, p.to_query[block], grad_hidden)
        if grad_key is not None:
            grad_key.index_add_(0, p.to_key[block], grad_hidden)
        if grad_pair_key is not None:
            grad_pair_key[p.pair[block]] = grad_hidden
    return grad_query, grad_key, grad_vector, grad_pair_key


def _to_keys(p: Sorted, weights: Tensor, per_query: Tensor) -> Tensor:
    """For each key, the weighted sum over the queries that see it: the transposed product."""
    slots = p.edges.slots_by_key
    return weighted_sums(
        weights.index_select(0, slots),
        per_query,
        p.to_query.index_select(0, slots),
        p.edges.by_key.pointer,
    )


def weighted_sums(weights: Tensor, value: Tensor, index: Tensor, pointer: Tensor) -> Tensor:
    """`Σ_e weights[e] value[index[e]]` over each segment of pairs, `[len(pointer) - 1, H, D]`."""
    chunks, rows = _cut(pointer)
    output = value.new_zeros(len(chunks) - 1, *value.shape[1:])
    heads, width = value.shape[1:]
    if not len(index) or not output.numel():
        pass
    elif heads > _MANY:
        step = max(1, _BLOCK // (len(index) * width))
        for some in (slice(head, head + step) for head in range(0, heads, step)):
            of_pair = value[:, some].index_select(0, index) * weights[:, some, None]
            output[:, some] = _segments(of_pair, "sum", chunks)
    else:
        for head in range(heads):
            output[:, head] = F.embedding_bag(
                index,
                value[:, head].contiguous(),
                chunks,
                mode="sum",
                per_sample_weights=weights[:, head].contiguous(),
                include_last_offset=True,
            )
    return output if rows is None else _segments(output, "sum", rows)


def divisor(total: Tensor) -> Tensor:
    """The sum of each row's exponentials, but not 0: those of a row without pairs are 0 too."""
    return total.clamp(min=torch.finfo(total.dtype).tiny)


def _sums(x: Tensor, pointer: Tensor) -> Tensor:
    """The sum of each segment."""
    chunks, rows = _cut(pointer)
    sums = _segments(x, "sum", chunks)
    return sums if rows is None else _segments(sums, "sum", rows)


def _cut(pointer: Tensor) -> tuple[Tensor, Tensor | None]:
    """Cut long segments into chunks: where these begin, and where each segment's chunks do.

    None in place of the second, if no segment is so long.
    """
    sizes = pointer.diff()
    if not len(sizes) or int(sizes.max()) <= _CHUNK:
        return pointer, None
    number = (sizes + _CHUNK - 1) // _CHUNK
    rows = torch.cat([number.new_zeros(1), number.cumsum(0)])
    row = torch.repeat_interleave(number)
    place = torch.arange(len(row), device=row.device) - rows[row]
    return torch.cat([pointer[row] + place * _CHUNK, pointer[-1:]]), rows


def _segments(x: Tensor, reduce: str, pointer: Tensor) -> Tensor:
    """Reduce the rows of x within each segment."""
    if not len(x):  # torch.segment_reduce wants at least one entry
        return x.new_full((len(pointer) - 1, *x.shape[1:]), -math.inf if reduce == "max" else 0.0)
    return torch.segment_reduce(x, reduce, offsets=pointer, axis=0, unsafe=True)
