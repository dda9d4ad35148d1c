"""Attention over edges with α-entmax as one differentiable op: `torch.ops.attn_core.edge_entmax`.

What `edge_attention` is to softmax, on CPUs. For the backward pass the op saves its inputs, and of
each row the largest score and the threshold: two numbers per head, of which the weights are made
again. Pairs outside the support add nothing to any gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_core.backends import cpu, triton
from attn_core.backends.cpu import entmax
from attn_core.backends.problem import NAMES, SCHEMA, Problem
from attn_core.call import Attended, Call
from attn_core.compat import LOOKS_EDGES_UP
from attn_core.normalizers import Entmax
from attn_core.ops.custom import custom_op
from attn_core.ops.edge_attention import (
    empty_gradients,
    name_pairs,
    plain_output,
    problem_of,
    twice,
)
from attn_core.supports.edges import Edges, PendingEdges
from attn_core.transforms import nobody_watches

_GRADIENTS = ", ".join(["Tensor"] * len(NAMES))
_REST = [None] * (len(Problem.__dataclass_fields__) - len(NAMES))


def serves(call: Call) -> bool:
    """Whether the op computes this call; where weights are asked for, they are made but once."""
    alpha = call.normalizer.entmax_alpha()
    return (
        isinstance(call.support, (Edges, PendingEdges))
        and alpha is not None
        and alpha != 1
        and call.formula is not None
        and not call.need_weights
        and call.key.device.type == "cpu"
        and cpu.available()
        and not triton.serves(call.key, call.value)
    )


def run(call: Call) -> Attended:
    """The output `[Nq, H, Dv]`."""
    alpha = call.normalizer.entmax_alpha()
    assert alpha is not None
    problem, support = problem_of(call), call.support
    tensors = problem.tensors
    if nobody_watches(*tensors, problem.edge_index):
        edges: Any = support.resolve() if isinstance(support, PendingEdges) else support
        problem.edges = edges  # which are checked with the call
        return Attended(_Straight.apply(problem, alpha, *tensors), None, None)
    if isinstance(support, PendingEdges) and not torch.compiler.is_compiling():
        support.look_at_order()
    name_pairs(problem, support)
    output, _ = torch.ops.attn_core.edge_entmax(*problem.arguments, alpha)
    return Attended(output, None, None)


def _plainly(p: Problem, alpha: float) -> Tensor:
    """The same in plain torch, which can be differentiated any number of times."""
    return plain_output(p, Entmax(alpha))[0]


def _forward(p: Problem, alpha: float) -> tuple[Tensor, Tensor]:
    if not cpu.serves(p):  # no channels, say
        return _plainly(p, alpha), torch.zeros(p.num_queries, 2, p.heads, dtype=torch.float64)
    output, thresholds = entmax.forward(p, alpha)
    return output.to(p.value.dtype), thresholds


def _gradients(
    p: Problem, alpha: float, grad: Tensor, thresholds: Tensor, needed: list[bool]
) -> tuple[Tensor, ...]:
    """Gradients of the tensors; those that are not needed are empty."""
    if cpu.serves(p):
        found = entmax.backward(p, alpha, grad, thresholds, needed)
    else:
        with torch.enable_grad():
            found = _twice(p, alpha, grad, needed)
    return tuple(
        grad.new_empty(0) if g is None or x is None else g.detach().to(x.dtype)
        for g, x in zip(found, p.tensors, strict=True)
    )


def _twice(p: Problem, alpha: float, grad: Tensor, needed: list[bool]) -> Any:
    return twice(lambda alike: _plainly(alike, alpha), p, (grad,), needed)


@custom_op(
    "attn_core::edge_entmax",
    **LOOKS_EDGES_UP,
    schema=f"({SCHEMA}, float alpha) -> (Tensor, Tensor)",
)
def edge_entmax(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Output `[Nq, H, Dv]` of a `Problem` with α-entmax in place of softmax, for α other than 1.

    And, without gradients, the largest score of each row and its threshold, `[Nq, 2, H]`.
    """
    return _forward(Problem(*arguments[:-1]), arguments[-1])


@edge_entmax.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    p = Problem(*arguments[:-1])
    output = p.value.new_empty(p.num_queries, *p.value.shape[1:])
    return output, output.new_empty(p.num_queries, 2, p.heads, dtype=torch.float64)


@custom_op(
    "attn_core::edge_entmax_backward",
    **LOOKS_EDGES_UP,
    schema=f"(Tensor grad, Tensor thresholds, bool[] needed, {SCHEMA}, float alpha) -> "
    f"({_GRADIENTS})",
)
def edge_entmax_backward(
    grad: Tensor, thresholds: Tensor, needed: list[bool], *arguments: Any
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value, vector, bias, pair_key and pair_value."""
    return _gradients(Problem(*arguments[:-1]), arguments[-1], grad, thresholds, needed)


@edge_entmax_backward.register_fake
def _(grad: Tensor, thresholds: Tensor, needed: list[bool], *arguments: Any) -> tuple[Tensor, ...]:
    return empty_gradients(grad, needed, arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _save(ctx, Problem(*inputs[:-1]), inputs[-1], output[1])
    ctx.mark_non_differentiable(output[1])


def _save(ctx: Any, p: Problem, alpha: float, thresholds: Tensor) -> None:
    ctx.save_for_backward(*p.tensors, p.edge_index, p.seed, p.pair_id, thresholds)
    ctx.settings = p.num_keys, p.num_queries, p.self_loops, p.kind, p.constant, p.dropout
    ctx.alpha = alpha


def _restore(ctx: Any) -> tuple[Problem, Tensor]:
    """The problem, and the thresholds that were saved."""
    given: Any
    *given, seed, pair_id, thresholds = ctx.saved_tensors
    settings: Any = *ctx.settings, seed, pair_id
    return Problem(*given, *settings), thresholds


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    p, thresholds = _restore(ctx)
    needed = [x is not None and n for x, n in zip(p.tensors, ctx.needs_input_grad, strict=False)]
    return *_differentiate(p, ctx.alpha, grad, thresholds, needed), *_REST, None


def _differentiate(
    p: Problem, alpha: float, grad: Tensor, thresholds: Tensor, needed: list[bool]
) -> list[Tensor | None]:
    if torch.is_grad_enabled():  # of a gradient of a gradient
        found: Any = _twice(p, alpha, grad, needed)
    elif nobody_watches(grad, *p.tensors, p.edge_index):
        found = _gradients(p, alpha, grad, thresholds, needed)
    else:
        name_pairs(p, p.__dict__.get("edges"))  # not to be looked up while they are traced
        found = torch.ops.attn_core.edge_entmax_backward(
            grad, thresholds, needed, *p.arguments, alpha
        )
    return [g if need else None for g, need in zip(found, needed, strict=True)]


edge_entmax.register_autograd(_backward, setup_context=_setup_context)


class _Straight(torch.autograd.Function):
    """The op without torch's way around ops."""

    @staticmethod
    def forward(ctx: Any, p: Problem, alpha: float, *tensors: Tensor | None) -> Tensor:
        output, thresholds = _forward(p, alpha)
        _save(ctx, p, alpha, thresholds)
        ctx.edges = p.edges
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        p, thresholds = _restore(ctx)
        p.edges = ctx.edges
        needed = [
            x is not None and n for x, n in zip(p.tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        return None, None, *_differentiate(p, ctx.alpha, grad, thresholds, needed)
