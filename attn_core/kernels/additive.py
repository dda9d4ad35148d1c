"""Additive scores over dense supports, block by block, recomputed in the backward pass.

`vᵀ φ(q_i + k_j)` for all pairs takes a hidden vector per pair. Here they are made a block at a
time, small enough for the cache, and made again when gradients are asked for: what is kept is the
queries, the keys and the logits, O((Tq + Tk) · D + Tq · Tk) in all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attn_core.kernels.call import Call
from attn_core.scores import ACTIVATIONS, Additive, activate
from attn_core.supports import Dense
from attn_core.transforms import is_transformed

BLOCK = 2**19  # numbers in a block of pairs × channels: 2 MiB of float32


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
    logits = query.new_empty(query.shape[0], query.shape[1], key.shape[1])
    for b, rows, columns in _blocks(query, key):
        hidden = query[b, rows, None] + key[b, columns]
        hidden = _activate_(hidden, activation, negative_slope)
        logits[b, rows, columns] = hidden @ vector[b]
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
    grads = [x.new_zeros(x.shape) for x in (query, key, vector)]
    of_query, of_key, of_vector = grads
    for b, rows, columns in _blocks(query, key):
        share = grad[b, rows, columns].contiguous()
        hidden = query[b, rows, None] + key[b, columns]
        if activation == "tanh":
            hidden.tanh_()
            of_vector[b].addmv_(hidden.flatten(0, 1).T, share.flatten())
            slope = hidden.square_().neg_().add_(1)
        else:
            active = activate(hidden, activation, negative_slope)
            of_vector[b].addmv_(active.flatten(0, 1).T, share.flatten())
            below = {"leaky_relu": negative_slope, "relu": 0.0, "identity": 1.0}[activation]
            slope = (hidden > 0).to(hidden.dtype).mul_(1 - below).add_(below)
        of_query[b, rows] += (share.unsqueeze(1) @ slope).squeeze(1)
        for row, slopes in zip(share, slope, strict=True):
            of_key[b, columns].addcmul_(row.unsqueeze(1), slopes)
    of_query *= vector.unsqueeze(1)
    of_key *= vector.unsqueeze(1)
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


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Cut all pairs into blocks of about BLOCK numbers: the sequence, its queries, its keys."""
    width = max(query.shape[-1], 1)
    columns = max(1, min(key.shape[1], BLOCK // width))
    rows = max(1, BLOCK // (width * columns))
    for b in range(query.shape[0]):
        for i in range(0, query.shape[1], rows):
            for j in range(0, key.shape[1], columns):
                yield b, slice(i, i + rows), slice(j, j + columns)


def _activate_(hidden: Tensor, activation: str, negative_slope: float) -> Tensor:
    return hidden.tanh_() if activation == "tanh" else activate(hidden, activation, negative_slope)
