"""Attention over keys that other processes hold: their blocks go round in a ring.

Softmax attention over disjoint sets of keys merges exactly by the log-sum-exp of each, so a process
needs one foreign block of keys at a time. The backward pass goes round once more: with the output
and the log-sum-exp of the whole row, each block's share of every gradient is exact by itself.
Liu, Zaharia, Abbeel, "Ring Attention with Blockwise Transformers", ICLR 2024.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from attn_core import ops
from attn_core.call import Call
from attn_core.distributed import Group, exchange, in_place_of, rank, world_size
from attn_core.dropout import random_bits
from attn_core.normalizers import Softmax
from attn_core.ops import additive
from attn_core.scores import Score
from attn_core.supports.dense import Dense

_PARTS = 8  # in which keys and values go round: so little is there twice
Run = tuple[int, int]  # the position of the first step of a run of neighbours, and its length


@dataclass(frozen=True, eq=False)
class Ring:
    """One attention over sequences that are split along time.

    Args:
        score, normalizer: as in `attend`.
        queries, keys: the runs of steps that each process holds, side by side.
        causal: a query sees the keys up to its own position.
        lengths: integers of the shape of the batch: how many keys of each whole sequence are real.
        bias: makes the bias `[H, Tq, Tk]` of position of the key minus position of the query.
        dropout, seed: of the weights, by their positions in the whole.
        group: the processes.
    """

    score: Score
    normalizer: Softmax
    queries: Sequence[Sequence[Run]]
    keys: Sequence[Sequence[Run]]
    causal: bool = False
    lengths: Tensor | None = None
    bias: Callable[[Tensor], Tensor] | None = None
    dropout: float = 0.0
    seed: Tensor | None = None
    group: Group = None

    @property
    def parameters(self) -> list[Tensor]:
        """What else has gradients: tensors of the score and normaliser, parameters of the bias."""
        found = [
            value
            for part in (self.score, self.normalizer)
            for field in dataclasses.fields(part)
            if isinstance(value := getattr(part, field.name), Tensor) and value.requires_grad
        ]
        return [*found, *self._of_bias()]

    def _of_bias(self) -> list[Tensor]:
        if not isinstance(self.bias, nn.Module):
            return []
        return [p for p in self.bias.parameters() if p.requires_grad]

    def with_parameters(self, parameters: Sequence[Tensor]) -> AbstractContextManager[object]:
        """Inside, the bias has the parameters that it had in the forward pass."""
        own = self._of_bias()
        if not own:
            return nullcontext()
        assert isinstance(self.bias, nn.Module)
        return in_place_of(self.bias, own, parameters[-len(own) :])

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The output `[..., Tq, H, Dv]` of this process's queries; all processes call it."""
        out: Tensor = _Ring.apply(self, query, key, value, *self.parameters)
        return out

    def bytes_sent(self, keys: Tensor, values: Tensor, backward: bool = False) -> int:
        """What a process sends: all but one step of keys and values, with gradients one more."""
        size = keys.numel() * keys.element_size() + values.numel() * values.element_size()
        steps = world_size(self.group)
        return size * (2 * steps - 1 if backward else steps - 1) if steps > 1 else 0

    @cached_property
    def parts(self) -> int:
        """How many parts of every process's keys go round, one after the other."""
        return max(1, min(_PARTS, *(length for runs in self.keys for _, length in runs)))

    def pieces(self, source: int, part: int) -> Iterator[tuple[int, Run]]:
        """A part of a process's keys is a piece of each of its runs, lest causal order leave some
        processes idle: where pieces begin among the process's steps, and their runs."""
        begin = 0
        for first, length in self.keys[source]:
            low, high = (length * at // self.parts for at in (part, part + 1))
            yield begin + low, (first + low, high - low)
            begin += length

    def part(self, x: Tensor, part: int) -> Tensor:
        """A part of this process's keys or values, contiguous."""
        pieces = self.pieces(rank(self.group), part)
        return torch.cat([x.narrow(-3, at, size) for at, (_, size) in pieces], -3).contiguous()

    def put(self, whole: Tensor, given: Tensor, part: int) -> None:
        """Writes a part where `part` reads it."""
        begin = 0
        for at, (_, size) in self.pieces(rank(self.group), part):
            whole.narrow(-3, at, size).copy_(given.narrow(-3, begin, size))
            begin += size

    def blocks(self, query: Tensor, source: int, part: int) -> Iterator[tuple[slice, slice, Block]]:
        """Where queries and a part of the keys of a process meet, a few of either at a time.

        At most an eighth of the steps, and so few that there are a sixteenth as many scores as
        queries have numbers: some ten tensors of these sizes are there at one time.
        """
        steps, _, size = query.shape[-3:]
        most = max(4, min(-(-steps // 8), math.isqrt(steps * size // 16)))
        begin = 0
        for first, length in self.queries[rank(self.group)]:
            start = 0
            for _, (key_first, keys) in self.pieces(source, part):
                for cut in range(0, keys, most):
                    end, shift = min(cut + most, keys), key_first - first
                    columns, meet, after = slice(start + cut, start + end), 0, 0
                    if self.causal:  # queries at the places of these keys, and later ones
                        meet, after = (min(max(at + shift, 0), length) for at in (cut, end))
                    found = [(meet, after)] if meet < after else []
                    found += [(at, min(at + most, length)) for at in range(after, length, most)]
                    for at, to in found:
                        block = Block(self, first + at, key_first + cut, at < after)
                        yield slice(begin + at, begin + to), columns, block
                start += keys
            begin += length


@dataclass(frozen=True, eq=False)
class Block:
    """Some neighbouring queries and keys, where they stand, and whether one sees only the past."""

    ring: Ring
    first_query: int
    first_key: int
    diagonal: bool

    def scored(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Call, Tensor]:
        """The call, and its scores `[..., H, Tq, Tk]`, -inf where there is no pair."""
        ring, (queries, keys) = self.ring, (query.shape[-3], key.shape[-3])
        lengths, bias, order = ring.lengths, None, None
        if lengths is not None:
            lengths = (lengths - self.first_key).clamp(0, keys)
            if self.diagonal:  # where the last query stands at the last key, however many are real
                order = torch.ones(queries, keys, dtype=torch.bool, device=key.device)
                order = order.tril(keys - queries)
        if ring.bias is not None:
            bias = ring.bias(self._keys(keys, key) - self._queries(queries, key)[:, None])
        support = Dense(mask=order, lengths=lengths, causal=self.diagonal and order is None)
        call = Call(ring.score, ring.normalizer, support, query, key, value, bias).prepared()
        if additive.serves(call):
            call = call.with_score(additive.in_blocks(call.score))
        call, scores, rows = ops.steps().scored(call.ungrouped())
        return call, ring.normalizer.cooled(scores, rows)

    def dropped(self, weights: Tensor) -> Tensor:
        """The weights after dropout, which knows each by its place in the whole."""
        ring = self.ring
        if ring.seed is None:
            return weights
        *batch, heads, queries, keys = weights.shape
        total = sum(length for runs in ring.keys for _, length in runs)
        sequence = torch.arange(batch_size(batch), device=weights.device).view(*batch, 1, 1)
        row = sequence * total + self._queries(queries, weights)[:, None]
        pair = row * total + self._keys(keys, weights)
        drawn = random_bits(ring.seed, pair.unsqueeze(-3), _heads(heads, weights))
        return weights * ((drawn >= int(ring.dropout * 2**32)) * (1 / (1 - ring.dropout))).to(
            weights.dtype
        )

    def _queries(self, number: int, like: Tensor) -> Tensor:
        return torch.arange(self.first_query, self.first_query + number, device=like.device)

    def _keys(self, number: int, like: Tensor) -> Tensor:
        return torch.arange(self.first_key, self.first_key + number, device=like.device)


def batch_size(batch: Sequence[int]) -> int:
    """How many sequences there are."""
    size = 1
    for length in batch:
        size *= length
    return size


def _heads(heads: int, like: Tensor) -> Tensor:
    return torch.arange(heads, device=like.device)[:, None, None]


def merge(
    output: Tensor, log_sum_exp: Tensor, other: Tensor, other_log_sum_exp: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention over two disjoint sets of keys as attention over both.

    Args:
        output, other: `[..., Tq, H, Dv]`, over either.
        log_sum_exp, other_log_sum_exp: `[..., H, Tq]`; -inf where there was no key.

    Returns:
        The output and the log-sum-exp over both.

    >>> one, two = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    >>> merge(one, torch.zeros(1, 1), two, torch.zeros(1, 1))
    (tensor([[[0.5000]]]), tensor([[0.6931]]))
    """
    total = torch.logaddexp(log_sum_exp, other_log_sum_exp)
    known = torch.where(total == -torch.inf, 0, total)

    def share(part: Tensor) -> Tensor:
        return (part - known).exp().movedim(-1, -2).unsqueeze(-1)

    return output * share(log_sum_exp) + other * share(other_log_sum_exp), total


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ring: Ring, query: Tensor, key: Tensor, value: Tensor, *parameters: Tensor
    ) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        shape = *query.shape[:-1], value.shape[-1]
        output = query.new_zeros(shape, dtype=wide)
        log_sum_exp = output.new_full(shape[:-1], -torch.inf).movedim(-1, -2).contiguous()
        here, processes = rank(ring.group), world_size(ring.group)
        for part, step in itertools.product(range(ring.parts), range(processes)):
            if step == 0:
                blocks = [ring.part(x, part) for x in (key, value)]
            else:
                _pass_on(blocks, ring.group)
            keys, values = blocks
            for rows, columns, block in ring.blocks(query, (here - step) % processes, part):
                own, other = _of(query, rows), (_of(keys, columns), _of(values, columns))
                call, scores = block.scored(own, *other)
                of_block = scores.logsumexp(-1)
                weights = block.dropped((scores - _finite(of_block)).exp())
                found = ops.steps().aggregate(call, weights)
                merged = merge(
                    _of(output, rows), log_sum_exp[..., rows], found.to(wide), of_block.to(wide)
                )
                output[..., rows, :, :], log_sum_exp[..., rows] = merged
                del own, other, call, scores, of_block, weights, found, merged
            del keys, values
        output = output.to(value.dtype)
        ctx.ring, ctx.parameters = ring, parameters
        ctx.save_for_backward(query, key, value, output, log_sum_exp)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ring, parameters = ctx.ring, ctx.parameters
        query, key, value, output, log_sum_exp = ctx.saved_tensors
        wide, grad = log_sum_exp.dtype, grads[0].to(log_sum_exp.dtype)
        mean = torch.einsum("...thd,...thd->...ht", grad, output.to(wide))
        of_query = torch.zeros_like(query, dtype=wide)
        of_parameters = [torch.zeros_like(p) for p in parameters]
        whole = [torch.zeros_like(x) for x in (key, value)]
        here, processes = rank(ring.group), world_size(ring.group)
        for part, step in itertools.product(range(ring.parts), range(processes)):
            if step == 0:
                blocks = [ring.part(x, part) for x in (key, value)]
                blocks += [torch.zeros_like(x, dtype=wide) for x in blocks]
            else:
                _pass_on(blocks, ring.group)
            keys, values, of_keys, of_values = blocks
            for rows, columns, block in ring.blocks(query, (here - step) % processes, part):
                parts = [
                    x.detach().requires_grad_()
                    for x in (_of(query, rows), _of(keys, columns), _of(values, columns))
                ]
                with torch.enable_grad(), ring.with_parameters(parameters):
                    call, scores = block.scored(*parts)
                    weights = (scores - _finite(log_sum_exp[..., rows])).exp()
                    found = ops.steps().aggregate(call, block.dropped(weights))
                    share = (found * _of(grad, rows)).sum()
                    share = share - (weights.sum(-1) * mean[..., rows]).sum()
                given = torch.autograd.grad(share, [*parts, *parameters], allow_unused=True)
                del parts, call, scores, weights, found, share
                for total, more in zip(
                    (_of(of_query, rows), _of(of_keys, columns), _of(of_values, columns)),
                    given,
                    strict=False,
                ):
                    if more is not None:
                        total += more
                for total, more in zip(of_parameters, given[3:], strict=True):
                    if more is not None:
                        total += more
                del given, total, more
            del keys, values, of_keys, of_values
            if step == processes - 1:
                del blocks[:2]
                if processes > 1:  # home again
                    _pass_on(blocks, ring.group)
                for gradient, given in zip(whole, blocks, strict=True):
                    ring.put(gradient, given, part)
        return None, of_query.to(query.dtype), *whole, *of_parameters


def _of(x: Tensor, steps: slice) -> Tensor:
    """Some steps of `[..., T, H, D]`."""
    return x[..., steps, :, :]


def _finite(log_sum_exp: Tensor) -> Tensor:
    """For each pair `[..., H, Tq, 1]`; rows without any have nothing to subtract."""
    return torch.where(log_sum_exp == -torch.inf, 0, log_sum_exp).unsqueeze(-1)


def _pass_on(blocks: list[Tensor], group: Group) -> None:
    """Each process's blocks go to the next one, and those of the one before take their places."""
    here, processes = rank(group), world_size(group)
    for i, block in enumerate(blocks):
        sent, received = [0] * processes, [0] * processes
        sent[(here + 1) % processes] = received[(here - 1) % processes] = block.numel()
        blocks[i] = torch.empty_like(block)
        exchange(block.view(-1), blocks[i].view(-1), sent, received, group)
        del block
