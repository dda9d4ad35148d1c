"""Attention over edges with α-entmax in C++: scores, thresholds, sums and gradients at once.

What is kept of a row for the backward pass are two numbers per head, of which its weights are made
again: no tensor of edges × heads outlives a call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attn_core import compiled
from attn_core.backends.cpu import (
    _arguments,
    _as_given,
    _cut,
    _order,
    _plain,
    _room_for_gradients,
    _up,
    _wide,
)
from attn_core.backends.problem import Problem


def forward(problem: Problem, alpha: float) -> tuple[Tensor, Tensor]:
    """The output `[Nq, H, Dv]`; the largest score of each row and its threshold, `[Nq, 2, H]`."""
    arguments, dtype = _arguments(problem, in_16_bits=False)
    heads, width = problem.value.shape[1:]
    num = problem.edges.num_queries
    output = torch.empty(num, heads, _up(width), dtype=dtype, device="cpu")
    thresholds = torch.empty(num, 2, heads, dtype=torch.float64, device="cpu")
    compiled.call("entmax_forward", *arguments, alpha, output, thresholds)
    return _cut(output, width), thresholds


def backward(
    problem: Problem, alpha: float, grad_output: Tensor, thresholds: Tensor, needed: list[bool]
) -> list[Tensor | None]:
    """Gradients of query, key, value, vector, bias, pair_key and pair_value, where needed."""
    arguments, dtype = _arguments(problem, in_16_bits=False)
    gradients = _room_for_gradients(problem, arguments, needed)
    turned = gradients[1] is not None or gradients[2] is not None
    compiled.call(
        "entmax_backward",
        *arguments,
        alpha,
        thresholds,
        *_order(problem, by_key=turned)[0],
        _plain(_wide(grad_output, 4), dtype),
        *gradients,
    )
    return _as_given(problem, gradients)


__all__ = ["backward", "forward"]
