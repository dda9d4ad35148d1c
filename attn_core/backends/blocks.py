"""Softmax attention over edges with any score, in plain torch, block by block of sorted pairs.

What serves a score function where no compiler does. A block's scores are computed by the function
as it is written, and again in the backward pass, so that besides the nodes' own tensors there is
never more than a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attn_core.backends.csr import divisor
from attn_core.backends.problem import Problem
from attn_core.batched import Repeated
from attn_core.dropout import dropout_scale
from attn_core.score_functions import known
from attn_core.scores import Score

# Numbers in a block of pairs × heads × channels: 1 MiB of float32 in a CPU's cache; on a GPU one
# launch takes as long as some millions of them
_BLOCK, _GPU_BLOCK = 2**18, 2**24


def score_of(p: Problem, vector: Tensor | None) -> Score:
    """The score of a problem, with these parameters, for all of its heads."""
    found = known(p.kind)
    score = found.score(found.parts(vector))
    return score if p.heads == found.heads else Repeated(score, p.heads // found.heads)


class _Blocks(Problem):
    """A problem in one dtype, whose pairs come sorted by query, some at a time."""

    to_query: Tensor
    to_key: Tensor
    pair: Tensor

    @classmethod
    def of(cls, problem: Problem) -> _Blocks:
        dtype, edges = problem.dtype, problem.edges
        p = problem.laid(cls, lambda x: x.to(dtype))
        order = edges.by_query.permutation
        p.to_query = edges.query_index.index_select(0, order)
        p.to_key = edges.key_index.index_select(0, order)
        p.pair = order
        return p

    def slices(self) -> Iterator[slice]:
        assert self.query is not None
        widths = (x.shape[-1] for x in (self.query, self.key, self.value))
        most = _BLOCK if self.key.is_cpu else _GPU_BLOCK
        step = max(1, most // max(1, self.heads * max(widths)))
        for start in range(0, len(self.pair), step):
            yield slice(start, start + step)

    def rows(self, block: slice) -> Tensor:
        """Where the pairs of a block stand in what is given per pair."""
        return self.pair[block] if self.pair_row is None else self.pair_row[self.pair[block]]

    def tokens(self, block: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Query, key and own vector of each pair."""
        assert self.query is not None
        query = self.query.index_select(0, self.to_query[block])
        key = self.key.index_select(0, self.to_key[block])
        if self.pair_key is None:
            return query, key, None
        return query, key, self.pair_key.index_select(0, self.rows(block))

    def logits(self, block: slice, score: Score) -> Tensor:
        return self.biased(block, score.of_pairs(*self.tokens(block)))

    def biased(self, block: slice, logits: Tensor) -> Tensor:
        return logits if self.bias is None else logits + self.bias[self.rows(block)]

    def keep(self, block: slice) -> Tensor | None:
        """What dropout multiplies the weights of a block with."""
        if self.seed is None:
            return None
        ids = self.edges.source_id if self.pair_id is None else self.pair_id
        ids = ids.index_select(0, self.pair[block])
        return dropout_scale(self.seed, ids, self.heads, self.dropout).to(self.dtype)


def forward(problem: Problem) -> tuple[Tensor, ...]:
    """The output `[Nq, H, Dv]`; log-sum-exp, maximum and total `[Nq, H]`."""
    p = _Blocks.of(problem)
    score = score_of(p, p.vector)
    num, heads = p.edges.num_queries, p.heads
    maximum = p.value.new_full((num, heads), -math.inf)
    for block in p.slices():
        index = p.to_query[block, None].expand(-1, heads)
        maximum.scatter_reduce_(0, index, p.logits(block, score), "amax")
    maximum.masked_fill_(maximum == -math.inf, 0)
    total = torch.zeros_like(maximum)
    output = p.value.new_zeros(num, *p.value.shape[1:])
    for block in p.slices():
        row = p.to_query[block]
        weights = (p.logits(block, score) - maximum.index_select(0, row)).exp_()
        total.index_add_(0, row, weights)
        if (keep := p.keep(block)) is not None:
            weights = weights * keep
        of_pair = p.value.index_select(0, p.to_key[block]).mul_(weights.unsqueeze(-1))
        output.index_add_(0, row, of_pair)
    output /= divisor(total).unsqueeze(-1)
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
    p = _Blocks.of(problem)
    grad_output, output = grad_output.to(p.dtype), output.to(p.dtype)
    grads: list[Tensor | None] = []
    for i, (x, need) in enumerate(zip(p.tensors, needed, strict=True)):
        rows = p.num_rows if i >= 4 and x is not None else None
        shape = () if x is None else x.shape if rows is None else (rows, *x.shape[1:])
        grads.append(p.value.new_zeros(shape) if need and x is not None else None)
    of_query, of_key, of_value, of_vector, of_bias, of_pair, _ = grads
    mean = (grad_output * output).sum(-1) - grad_log_sum_exp
    sums, score = divisor(total), score_of(p, p.vector)

    def of_logits(block: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Dropped weights and gradients of logits."""
        row = p.to_query[block]
        weights = (logits - maximum.index_select(0, row)).exp_().div_(sums.index_select(0, row))
        grad = p.value.index_select(0, p.to_key[block]).mul_(grad_output.index_select(0, row))
        of_weights, keep = grad.sum(-1), p.keep(block)
        if keep is not None:
            of_weights *= keep
        found = of_weights.sub_(mean.index_select(0, row)).mul_(weights)
        return weights if keep is None else weights * keep, found

    # A row's sum to that of its log-sum-exp. What they miss it by is the error of the mean, which
    # is made of a rounded output: it counts where scores are large.
    missed = -grad_log_sum_exp.to(p.dtype, copy=True)
    for block in p.slices():
        missed.index_add_(0, p.to_query[block], of_logits(block, p.logits(block, score))[1])
    mean = mean + missed
    for block in p.slices():
        tokens = tuple(x for x in p.tokens(block) if x is not None)

        def logits_of(*given: Tensor, block: slice = block, count: int = len(tokens)) -> Tensor:
            vector = given[count] if len(given) > count else None
            query, key, *pair = given[:count]
            logits = score_of(p, vector).of_pairs(query, key, pair[0] if pair else None)
            return p.biased(block, logits)

        given = tokens if p.vector is None else (*tokens, p.vector)
        made: Any = torch.func.vjp(logits_of, *given)
        weights, of_block = of_logits(block, made[0])
        found = made[1](of_block)
        if of_vector is not None:
            of_vector += found[-1]
        if of_query is not None:
            of_query.index_add_(0, p.to_query[block], found[0])
        if of_key is not None:
            of_key.index_add_(0, p.to_key[block], found[1])
        if of_pair is not None:
            of_pair[p.rows(block)] = found[2]
        if of_bias is not None:
            of_bias[p.rows(block)] = of_block
        if of_value is not None:
            of_pairs = grad_output.index_select(0, p.to_query[block]).mul_(weights.unsqueeze(-1))
            of_value.index_add_(0, p.to_key[block], of_pairs)
    return grads
