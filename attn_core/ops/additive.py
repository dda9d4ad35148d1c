"""Additive scores over dense supports, block by block, recomputed in the backward pass.

`vᵀ φ(q_i + k_j)` for all pairs takes a hidden vector per pair. Here they are made a block at a
time, small enough for the cache, and made again when gradients are asked for: what is kept is the
queries, the keys and the logits, O((Tq + Tk) · D + Tq · Tk) in all. The same ops are C++ on CPUs
and Triton kernels on a GPU, in which hidden vectors never leave the registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attn_core import compiled, gpu
from attn_core.activations import activate
from attn_core.backends import additive as blocks
from attn_core.backends.cpu import additive as cpu
from attn_core.call import Call
from attn_core.ops.custom import custom_op
from attn_core.ops.twice import differentiated
from attn_core.scores import Additive, Score
from attn_core.transforms import nobody_watches

LEAST = 2**12  # numbers in the hidden vectors of all pairs for which a call of C++ pays


@dataclass(frozen=True, eq=False)
class _Blocked(Additive):
    """An additive score, whose dense form never holds the hidden vectors of all pairs."""

    def dense(self, query: Tensor | None, key: Tensor) -> Tensor:
        assert query is not None and self.vector is not None
        heads, width = key.shape[-2:]
        *batch, queries, _, _ = query.shape
        query, key = (x.movedim(-2, -3).reshape(-1, x.shape[-3], width) for x in (query, key))
        vector = self.vector.expand(heads, width).repeat(query.shape[0] // max(heads, 1), 1)
        arguments = query, key, vector, self.activation, self.negative_slope
        if nobody_watches(query, key, vector):
            logits = _Straight.apply(*arguments)
        else:
            logits = torch.ops.attn_core.additive_scores(*arguments)
        return logits.view(*batch, heads, queries, key.shape[1])


def serves(call: Call) -> bool:
    """Whether there is something to gain: from C++ for all but tiny calls, or from blocks."""
    formula = call.formula
    if (
        formula is None
        or formula.kind == "dot"
        or formula.vector is None
        or call.query is None
        or call.pair_key is not None
    ):
        return False
    here = call.key.device.type == "cpu" and compiled.is_on()
    return call.query.numel() * call.num_keys > (LEAST if here else blocks.BLOCK)


def in_blocks(score: Score) -> Score:
    """The same score in blocks."""
    formula = score.formula()
    assert formula is not None
    return _Blocked(formula.vector, formula.kind, formula.constant)


def _forward(
    query: Tensor, key: Tensor, vector: Tensor, activation: str, negative_slope: float
) -> Tensor:
    if gpu.serves(query, key, vector):
        from attn_core.backends.triton import additive

        return additive.forward(query, key, vector, activation, negative_slope)
    backend = cpu if cpu.serves(query, key, vector) else blocks
    return backend.forward(query, key, vector, activation, negative_slope)


def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    vector: Tensor,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, ...]:
    if gpu.serves(query, key, vector, grad):
        from attn_core.backends.triton import additive

        return additive.backward(grad, query, key, vector, activation, negative_slope)
    backend = cpu if cpu.serves(query, key, vector, grad) else blocks
    return backend.backward(grad, query, key, vector, activation, negative_slope)


@custom_op("attn_core::additive_scores")
def additive_scores(
    query: Tensor, key: Tensor, vector: Tensor, activation: str, negative_slope: float
) -> Tensor:
    """Logits `[B, Tq, Tk]` of queries `[B, Tq, D]` and keys `[B, Tk, D]` with vectors `[B, D]`."""
    return _forward(query, key, vector, activation, negative_slope)


@additive_scores.register_fake
def _(query, key, vector, activation, negative_slope):  # type: ignore[no-untyped-def]
    return query.new_empty(query.shape[0], query.shape[1], key.shape[1])


@custom_op("attn_core::additive_scores_backward")
def additive_scores_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    vector: Tensor,
    activation: str,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and vector."""
    of_query, of_key, of_vector = _gradients(grad, query, key, vector, activation, negative_slope)
    return of_query, of_key, of_vector


@additive_scores_backward.register_fake
def _(grad, query, key, vector, activation, negative_slope):  # type: ignore[no-untyped-def]
    return tuple(x.new_empty(x.shape) for x in (query, key, vector))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, activation, negative_slope = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = activation, negative_slope


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    found: Any
    if torch.is_grad_enabled():
        found = differentiated(
            lambda *tensors: _plainly(*tensors, *ctx.settings),
            ctx.saved_tensors,
            (grad,),
            ctx.needs_input_grad[:3],
        )
    elif nobody_watches(grad, *ctx.saved_tensors):
        found = _gradients(grad, *ctx.saved_tensors, *ctx.settings)
    else:
        found = torch.ops.attn_core.additive_scores_backward(
            grad, *ctx.saved_tensors, *ctx.settings
        )
    return *found, None, None


def _plainly(query: Tensor, key: Tensor, vector: Tensor, kind: str, constant: float) -> Tensor:
    """The same by its formula, which can be differentiated any number of times."""
    hidden = activate(query.unsqueeze(2) + key.unsqueeze(1), kind, constant)  # [B, Tq, Tk, D]
    return (hidden * vector[:, None, None]).sum(-1)


additive_scores.register_autograd(_backward, setup_context=_setup_context)


class _Straight(torch.autograd.Function):
    """The op without torch's way around ops, which takes longer than a step of decoding."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _setup_context(ctx, inputs, inputs[0])
        return _forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _backward(ctx, grads[0])
