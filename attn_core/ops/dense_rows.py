"""Weights of rows along the last axis: torch's softmax, and α-entmax by the kernel for edges.

To that kernel, rows of a dense matrix are those of a graph in which each has as many pairs. It
finds a row's threshold by Newton's steps, in place of a sort of all its scores.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attn_core import reference
from attn_core.backends.cpu import pairs
from attn_core.graph.read import Order
from attn_core.normalizers import Entmax, Normalizer, entmax_gradient
from attn_core.ops.custom import custom_op
from attn_core.rows import DenseRows, Rows
from attn_core.transforms import needs_plain_torch, values_are_visible


def normalize(
    normalizer: Normalizer, scores: Tensor, rows: Rows, need_log_sum_exp: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The weights, -inf being the score of a pair that does not exist.

    The log-sum-exp of a softmax `[..., Tq]` comes along where it is asked for.
    """
    alpha = normalizer.entmax_alpha()
    if alpha == 1 and scores.shape[-1] > 0:
        return softmax(normalizer.cooled(scores, rows), need_log_sum_exp)
    if alpha is None or alpha == 1 or needs_plain_torch() or not pairs.serves_numbers(scores):
        return reference.normalize(normalizer, scores, rows, need_log_sum_exp)
    return torch.ops.attn_core.dense_entmax(normalizer.cooled(scores, rows), alpha), None


def softmax(scores: Tensor, need_log_sum_exp: bool) -> tuple[Tensor, Tensor | None]:
    """Torch's softmax, which keeps nothing but the weights, with zeros in a row without pairs."""
    empty = scores.detach().amax(-1, keepdim=True) == -math.inf
    # A look at the rows costs less than another tensor of all pairs, but would stall a GPU
    if values_are_visible() and scores.device.type == "cpu" and not empty.any():
        return scores.softmax(-1), scores.logsumexp(-1) if need_log_sum_exp else None
    scores = scores.masked_fill(empty, 0)
    log_sum_exp = None
    if need_log_sum_exp:
        log_sum_exp = scores.logsumexp(-1).masked_fill(empty.squeeze(-1), -math.inf)
    return scores.softmax(-1).masked_fill(empty, 0), log_sum_exp


@custom_op("attn_core::dense_entmax")
def dense_entmax(scores: Tensor, alpha: float) -> Tensor:
    """α-entmax over the last axis, for any known α but 1."""
    if not pairs.serves_numbers(scores):
        return Entmax(alpha).normalize(scores, DenseRows()).contiguous()
    return pairs.entmax(scores.reshape(-1, 1), _order(scores), alpha).view(scores.shape)


@custom_op("attn_core::dense_entmax_backward")
def dense_entmax_backward(grad: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """The gradient of the scores."""
    if not pairs.serves_numbers(weights):
        return entmax_gradient(grad, weights, DenseRows(), alpha).contiguous()
    flat = grad.reshape(-1, 1), weights.reshape(-1, 1)
    return pairs.gradient(*flat, _order(weights), alpha).view(weights.shape)


def _order(x: Tensor) -> Order:
    """The rows of a matrix as the kernels know those of a graph."""
    pairs, places = x.numel(), torch.int32 if x.numel() < 2**31 else torch.int64
    pointer = torch.arange(0, pairs + 1, x.shape[-1], device=x.device)
    return Order(pointer, torch.arange(pairs, dtype=places, device=x.device))


@dense_entmax.register_fake
def _(scores: Tensor, alpha: float) -> Tensor:
    return scores.new_empty(scores.shape)


@dense_entmax_backward.register_fake
def _(grad: Tensor, weights: Tensor, alpha: float) -> Tensor:
    return weights.new_empty(weights.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
    ctx.save_for_backward(output)
    ctx.alpha = inputs[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (weights,) = ctx.saved_tensors
    if torch.is_grad_enabled():  # to be differentiated again
        return entmax_gradient(grad, weights, DenseRows(), ctx.alpha), None
    return torch.ops.attn_core.dense_entmax_backward(grad, weights, ctx.alpha), None


dense_entmax.register_autograd(_backward, setup_context=_keep)
