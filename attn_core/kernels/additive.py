"""Additive scores over dense supports, block by block, recomputed in the backward pass.

`vᵀ φ(q_i + k_j)` for all pairs takes a hidden vector per pair. Here they are made a block at a
time, small enough for the cache, and made again when gradients are asked for: what is kept is the
queries, the keys and the logits, O((Tq + Tk) · D + Tq · Tk) in all. On a GPU the same ops are
Triton kernels, in which hidden vectors never leave the registers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attn_core import gpu
from attn_core.kernels.call import Call
from attn_core.scores import ACTIVATIONS, Additive, activate
from attn_core.supports import Dense
from attn_core.transforms import is_transformed

BLOCK = 2**20  # numbers in a block of pairs × channels: 4 MiB of float32


@dataclass(frozen=True, eq=False)
class BlockedAdditive(Additive):
    """The same score, whose dense form never holds the hidden vectors of all pairs."""

    def dense(self, query: Tensor | None, key: Tensor) -> Tensor:
        assert query is not None and self.vector is not None
        heads, width = key.shape[-2:]
        *batch, queries, _, _ = query.shape
        query, key = (x.movedim(-2, -3).reshape(-1, x.shape[-3], width) for x in (query, key))
        vector = self.vector.expand(heads, width).repeat(query.shape[0] // max(heads, 1), 1)
        logits = torch.ops.attn_core.additive_scores(
            query, key, vector, str(self.activation), self.negative_slope
        )
        return logits.view(*batch, heads, queries, key.shape[1])


def in_blocks(call: Call) -> Call:
    """The same call with a score that works in blocks, if there is something to gain."""
    score, query = call.score, call.query
    if (
        type(score) is not Additive
        or score.activation not in ACTIVATIONS
        or score.vector is None
        or query is None
        or call.pair_key is not None
        or not isinstance(call.support, Dense)
        or is_transformed()
        or query.numel() * call.num_keys <= BLOCK
    ):
        return call
    blocked = BlockedAdditive(score.vector, score.activation, score.negative_slope)
    return dataclasses.replace(call, score=blocked)


@torch.library.custom_op("attn_core::additive_scores", mutates_args=())
def additive_scores(
    query: Tensor, key: Tensor, vector: Tensor, activation: str, negative_slope: float
) -> Tensor:
    """Logits `[B, Tq, Tk]` of queries `[B, Tq, D]` and keys `[B, Tk, D]` with vectors `[B, D]`."""
    if gpu.serves(query, key, vector):
        from attn_core.kernels.triton import additive

        return additive.forward(query, key, vector, activation, negative_slope)
    logits = query.new_empty(query.shape[0], query.shape[1], key.shape[1])
    hidden = _choose(query, key, vector, activation, negative_slope)
    for b in range(query.shape[0]):
        hidden.begin(query[b], key[b])
        scaled = vector[b] * hidden.scale
        shift = vector[b].sum() * hidden.shift if hidden.shift else 0.0  # 0 · inf is NaN
        for rows, columns in _blocks(query, key):
            active = hidden.block(rows, columns)  # [rows, columns, D]
            product = torch.bmm(scaled.expand(len(active), 1, -1), active.mT)
            torch.add(product.squeeze(1), shift, out=logits[b, rows, columns])
    return logits


@additive_scores.register_fake
def _(query, key, vector, activation, negative_slope):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape[0], query.shape[1], key.shape[1])


@torch.library.custom_op("attn_core::additive_scores_backward", mutates_args=())
def additive_scores_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    vector: Tensor,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and vector."""
    if gpu.serves(query, key, vector, grad):
        from attn_core.kernels.triton import additive

        return additive.backward(grad, query, key, vector, activation, negative_slope)
    grads = [x.new_zeros(x.shape) for x in (query, key, vector)]
    of_query, of_key, of_vector = grads
    hidden = _choose(query, key, vector, activation, negative_slope)
    for b in range(query.shape[0]):
        hidden.begin(query[b], key[b])
        for rows, columns in _blocks(query, key):
            share = grad[b, rows, columns].contiguous()
            of_vector[b] += (share.unsqueeze(1) @ hidden.block(rows, columns)).sum((0, 1))
            slope = hidden.slope()  # [rows, columns, D]
            of_query[b, rows] += (share.unsqueeze(1) @ slope).squeeze(1)
            if len(share) > share.shape[1]:
                of_key[b, columns] += (share.T.unsqueeze(1) @ slope.transpose(0, 1)).squeeze(1)
            else:  # a few long rows: faster one by one
                for row, slopes in zip(share, slope, strict=True):
                    of_key[b, columns].addcmul_(row.unsqueeze(1), slopes)
    of_vector *= hidden.scale
    if hidden.shift:
        of_vector += hidden.shift * grad.sum((1, 2)).unsqueeze(1)
    of_query *= vector.unsqueeze(1) * hidden.steepness
    of_key *= vector.unsqueeze(1) * hidden.steepness
    return of_query, of_key, of_vector


@additive_scores_backward.register_fake
def _(grad, query, key, vector, activation, negative_slope):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (query, key, vector))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, activation, negative_slope = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = activation, negative_slope


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    gradients = torch.ops.attn_core.additive_scores_backward(
        grad, *ctx.saved_tensors, *ctx.settings
    )
    return *gradients, None, None


def _refuse(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "additive scores in blocks can be differentiated once: run the forward pass inside "
        'attn_core.backend("reference") to differentiate twice'
    )


additive_scores.register_autograd(_backward, setup_context=_setup_context)
additive_scores_backward.register_autograd(_refuse)


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut the pairs of a sequence into blocks of about BLOCK numbers: their queries, their keys."""
    rows, columns = _block_size(query, key)
    for i in range(0, query.shape[1], rows):
        for j in range(0, key.shape[1], columns):
            yield slice(i, i + rows), slice(j, j + columns)


def _block_size(query: Tensor, key: Tensor) -> tuple[int, int]:
    width = max(query.shape[-1], 1)
    columns = max(1, min(key.shape[1], BLOCK // width))
    return min(query.shape[1], max(1, BLOCK // (width * columns))), columns


class _Hidden:
    """The hidden numbers of one block of pairs after another: `φ(q_i + k_j) = shift + scale · h`.

    All blocks use the same memory, and so do the slopes of a block, `φ′ = steepness · slope`: each
    lives until the next is made.
    """

    shift, scale, steepness = 0.0, 1.0, 1.0

    def __init__(self, query: Tensor, key: Tensor, activation: str, negative_slope: float) -> None:
        rows, columns = _block_size(query, key)
        self.memory = query.new_empty(rows * columns * query.shape[-1])
        self.one = query.new_ones(())
        self.activation, self.negative_slope = activation, negative_slope

    def begin(self, query: Tensor, key: Tensor) -> None:
        """Turn to the queries `[Tq, D]` and keys `[Tk, D]` of another sequence."""
        self.query, self.key = query, key

    def block(self, rows: slice, columns: slice) -> Tensor:
        """The numbers h, `[rows, columns, D]`."""
        query, key = self.query[rows].unsqueeze(1), self.key[columns]
        shape = len(query), *key.shape
        self.last = self.memory[: math.prod(shape)].view(shape)
        return self.fill(query, key)

    def fill(self, query: Tensor, key: Tensor) -> Tensor:
        """Compute the block `last` for queries `[rows, 1, D]` and keys `[columns, D]`."""
        torch.add(query, key, out=self.last)
        return activate(self.last, self.activation, self.negative_slope)

    def slope(self) -> Tensor:
        """The slopes of the last block."""
        below = {"leaky_relu": self.negative_slope, "relu": 0.0, "identity": 1.0}[self.activation]
        return (self.last > 0).to(self.last.dtype).mul_(1 - below).add_(below)


class _Tanh(_Hidden):
    """`h = tanh(q_i + k_j)`."""

    def fill(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.add(query, key, out=self.last).tanh_()

    def slope(self) -> Tensor:
        return torch.addcmul(self.one, self.last, self.last, value=-1, out=self.last)


class _FactoredTanh(_Hidden):
    """`tanh(q + k) = 1 - 2h` with `h = 1 / (1 + e^2q e^2k)`, whose slope is `4 (h - h²)`.

    The exponentials are taken once for each query and each key. What is left for each pair, a
    product and a reciprocal, costs about a tenth of a tanh.
    """

    shift, scale, steepness = 1.0, -2.0, 4.0

    def begin(self, query: Tensor, key: Tensor) -> None:
        super().begin((2 * query).exp_(), (2 * key).exp_())

    def fill(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.addcmul(self.one, query, key, out=self.last).reciprocal_()

    def slope(self) -> Tensor:
        return torch.addcmul(self.last, self.last, self.last, value=-1, out=self.last)


# Up to here e^2q and e^2k are neither zero nor infinite: their product may be, but is never NaN
_LARGEST = {torch.float32: 40.0, torch.float64: 300.0}
# Below, 1 - 2h has lost too many digits to cancellation
_SMALLEST = 2.0**-4


def _choose(
    query: Tensor, key: Tensor, vector: Tensor, activation: str, negative_slope: float
) -> _Hidden:
    kind = _Hidden
    if activation == "tanh":
        kind = _Tanh
        # A GPU would have to wait for a look at the numbers, and tanh is not what takes its time
        if query.device.type == "cpu" and query.dtype in _LARGEST:
            largest = _largest(query), _largest(key)
            if (
                all(x <= _LARGEST[query.dtype] for x in largest)
                and sum(largest) >= _SMALLEST
                and bool(vector.sum(-1).isfinite().all())
            ):
                kind = _FactoredTanh
    return kind(query, key, activation, negative_slope)


def _largest(x: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    return float(torch.linalg.vector_norm(x, math.inf)) if x.numel() else 0.0
