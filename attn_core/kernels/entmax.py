"""Weights over groups of scores as differentiable ops: softmax, 1.5-entmax and sparsemax.

All three are α-entmax, with α = 1, 1.5 and 2, and their derivatives have one form: with
`u = w^(2 - α)` of the weights w, that of the scores is `u (g - Σ u g / Σ u)`.

The groups are given by `index`, an int64 `[E]`, or by the pairs `[2, E]` that an `Edges` owns, of
which it is row 1: their order is known. That of another index is kept as long as the index lives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_core.edge_index import Order
from attn_core.kernels.cpu import pairs
from attn_core.normalizers import EdgeRows, Entmax, Normalizer, Softmax
from attn_core.supports import cached_order, handled_edges


class _PlainRows(EdgeRows):
    """Rows for plain torch."""

    def weights(self, scores: Tensor, alpha: float) -> None:
        return None

    def log_sum_exp(self, scores: Tensor) -> None:
        return None


@torch.library.custom_op("attn_core::segment_entmax", mutates_args=())
def segment_entmax(scores: Tensor, index: Tensor, num: int, alpha: float) -> Tensor:
    """α-entmax of scores `[E, ...]` over the entries of each group, for α = 1, 1.5 and 2."""
    if pairs.serves_rows(scores):
        return pairs.weights(_flat(scores), _order(index, num), alpha).view(scores.shape)
    normalizer: Normalizer = Softmax() if alpha == 1 else Entmax(alpha)
    return normalizer.normalize(scores, _PlainRows(_groups(index), num)).contiguous()


@segment_entmax.register_fake
def _(scores: Tensor, index: Tensor, num: int, alpha: float) -> Tensor:
    return scores.new_empty(scores.shape)


@torch.library.custom_op("attn_core::segment_entmax_backward", mutates_args=())
def segment_entmax_backward(
    grad: Tensor, weights: Tensor, index: Tensor, num: int, alpha: float
) -> Tensor:
    """The gradient of the scores."""
    if pairs.serves_rows(weights):
        order = _order(index, num)
        return pairs.gradient(_flat(grad), _flat(weights), order, alpha).view(weights.shape)
    return _gradient(grad, weights, index, num, alpha).contiguous()


@segment_entmax_backward.register_fake
def _(grad: Tensor, weights: Tensor, index: Tensor, num: int, alpha: float) -> Tensor:
    return weights.new_empty(weights.shape)


def _gradient(grad: Tensor, weights: Tensor, index: Tensor, num: int, alpha: float) -> Tensor:
    """The same in plain torch, which can be differentiated again."""
    rows = _PlainRows(_groups(index), num)
    if alpha == 1:  # the weights sum to 1, or there are none
        return weights * (grad - rows.spread(rows.sum(weights * grad)))
    inside = weights > 0
    u = torch.where(inside, torch.where(inside, weights, 1) ** (2 - alpha), 0)
    total = rows.sum(u)
    mean = rows.sum(u * grad) / torch.where(total == 0, 1, total)
    return u * (grad - rows.spread(mean))


def _setup_weights(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, num, alpha = inputs
    ctx.save_for_backward(output, index)
    ctx.settings = num, alpha


def _weights_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weights, index = ctx.saved_tensors
    twice = torch.is_grad_enabled()
    gradient = _gradient if twice else torch.ops.attn_core.segment_entmax_backward
    return gradient(grad, weights, index, *ctx.settings), None, None, None


segment_entmax.register_autograd(_weights_backward, setup_context=_setup_weights)


@torch.library.custom_op("attn_core::segment_log_sum_exp", mutates_args=())
def segment_log_sum_exp(scores: Tensor, index: Tensor, num: int) -> Tensor:
    """`log Σ exp` of scores `[E, ...]` over the entries of each group; -inf of none."""
    shape = num, *scores.shape[1:]
    if pairs.serves_rows(scores):
        return pairs.log_sum_exp(_flat(scores), _order(index, num)).view(shape)
    return Softmax().log_sum_exp(scores, _PlainRows(_groups(index), num)).contiguous()


@segment_log_sum_exp.register_fake
def _(scores: Tensor, index: Tensor, num: int) -> Tensor:
    return scores.new_empty(num, *scores.shape[1:])


def _setup_log_sum_exp(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    scores, index, num = inputs
    ctx.save_for_backward(scores, index)
    ctx.num = num


def _log_sum_exp_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    scores, index = ctx.saved_tensors
    weights = torch.ops.attn_core.segment_entmax(scores, index, ctx.num, 1.0)
    return weights * grad.index_select(0, _groups(index)), None, None


segment_log_sum_exp.register_autograd(_log_sum_exp_backward, setup_context=_setup_log_sum_exp)


def _groups(index: Tensor) -> Tensor:
    return index if index.dim() == 1 else index[1]


def _order(index: Tensor, num: int) -> Order:
    edges = handled_edges(index) if index.dim() == 2 else None
    return cached_order(_groups(index), num) if edges is None else edges.by_query


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)
