"""Reductions and weights over groups of entries, as ops that reduce each group in a fixed order.

Entry e of `x` belongs to the group `index[e]`, in any order; in place of an index the ops take the
pairs `[2, E]` that an `Edges` owns, of which it is row 1. Torch's own `index_add` and
`scatter_reduce` add to the groups atomically on a GPU, in whichever order the threads come; here
the entries are sorted by group, once for each index. What runs backward is made of the same ops, so
that they can be differentiated any number of times.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attn_core import gpu, reference
from attn_core.backends.cpu import pairs
from attn_core.compat import LOOKS_EDGES_UP
from attn_core.graph.grouping import grouping_of
from attn_core.normalizers import Entmax, Normalizer, Softmax, entmax_gradient
from attn_core.ops.custom import custom_op
from attn_core.rows import EdgeRows
from attn_core.transforms import needs_plain_torch

_KNOWN = 1, 1.5, 2  # of α-entmax, those that have a kernel on a GPU


def serves(x: Tensor) -> bool:
    """Whether the reductions gain anything for such numbers."""
    return gpu.serves(x) and not needs_plain_torch()


def sums(x: Tensor, index: Tensor, num: int) -> Tensor:
    """The sum of each group, `[num, ...]` of x `[E, ...]`; 0 without entries."""
    return torch.ops.attn_core.segment_sum(_flat(x), index, num).view(num, *x.shape[1:])


def largest(x: Tensor, index: Tensor, num: int) -> Tensor:
    """The largest entry of each group, `[num, ...]`; -inf without entries. No gradients."""
    return torch.ops.attn_core.segment_max(_flat(x), index, num).view(num, *x.shape[1:])


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Row `index[e]` of x `[num, ...]` for each e; gradients are summed in a fixed order."""
    if not serves(x):
        return x.index_select(0, index)
    rows = torch.ops.attn_core.segment_gather(_flat(x), index)
    return rows.view(index.shape[0], *x.shape[1:])


def softmax(x: Tensor, index: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """The softmax within each group, of the shape of x, and the log-sum-exp `[num, ...]`."""
    weights, log_sum_exp = torch.ops.attn_core.segment_softmax(_flat(x), index, num)
    return weights.view(x.shape), log_sum_exp.view(num, *x.shape[1:])


class Segments(EdgeRows):
    """Rows of edges whose reductions are the ops of this file, where these gain anything.

    Args:
        handle: the pairs that an `Edges` owns, if index is their row 1. Default: the index.
    """

    def __init__(
        self, index: Tensor, num: int, exists: Tensor | None = None, handle: Tensor | None = None
    ) -> None:
        super().__init__(index, num, exists)
        self.handle = index if handle is None else handle

    def max(self, x: Tensor) -> Tensor:
        if serves(x) and not (x.requires_grad and torch.is_grad_enabled()):
            return largest(x, self.index, self.num)
        return super().max(x)

    def sum(self, x: Tensor) -> Tensor:
        return sums(x, self.index, self.num) if serves(x) else super().sum(x)

    def spread(self, per_row: Tensor) -> Tensor:
        return gather(per_row, self.index)


def normalize(
    normalizer: Normalizer, scores: Tensor, rows: EdgeRows, need_log_sum_exp: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The weights over rows of edges, by a kernel where one knows this normaliser.

    The log-sum-exp `[num, H]` comes along where it is asked for, or costs nothing.
    """
    alpha = normalizer.entmax_alpha()
    if not isinstance(rows, Segments):
        rows = Segments(rows.index, rows.num, rows.exists)
    on_gpu = gpu.serves(scores) and alpha in _KNOWN
    if alpha is None or needs_plain_torch() or not (on_gpu or pairs.serves_rows(scores)):
        return reference.normalize(normalizer, scores, rows, need_log_sum_exp)
    scores = normalizer.cooled(scores, rows)
    if alpha == 1:
        return softmax(scores, rows.handle, rows.num)
    return torch.ops.attn_core.segment_entmax(scores, rows.handle, rows.num, alpha), None


# --- The ops ---


@custom_op("attn_core::segment_sum", **LOOKS_EDGES_UP)
def segment_sum(x: Tensor, index: Tensor, num: int) -> Tensor:
    """The sums `[num, C]` of the entries `[E, C]` of each group."""
    if gpu.serves(x):
        return _triton().sums(x, _items(index, num))
    return x.new_zeros(num, x.shape[1]).index_add_(0, _groups(index), x)


@custom_op("attn_core::segment_gather", **LOOKS_EDGES_UP)
def segment_gather(x: Tensor, index: Tensor) -> Tensor:
    """The rows `[E, C]` of x `[num, C]`."""
    return x.index_select(0, _groups(index))


@custom_op("attn_core::segment_max", **LOOKS_EDGES_UP)
def segment_max(x: Tensor, index: Tensor, num: int) -> Tensor:
    """The largest entries `[num, C]`."""
    if gpu.serves(x):
        return _triton().largest(x, _items(index, num))
    return EdgeRows(_groups(index), num).max(x)


@custom_op("attn_core::segment_softmax", **LOOKS_EDGES_UP)
def segment_softmax(x: Tensor, index: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Weights `[E, C]` in the dtype of x, and the log-sum-exp `[num, C]`, float32 at least."""
    if gpu.serves(x):
        return _triton().softmax(x, _groups(index), _items(index, num))
    if pairs.serves_rows(x):
        return pairs.softmax(x, grouping_of(index, num).order)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    weights, log_sum_exp = Softmax().with_log_sum_exp(wide, EdgeRows(_groups(index), num))
    return weights.to(x.dtype), log_sum_exp


@custom_op("attn_core::segment_softmax_backward", **LOOKS_EDGES_UP)
def segment_softmax_backward(
    weights: Tensor, grad_weights: Tensor, grad_log_sum_exp: Tensor, index: Tensor
) -> Tensor:
    """The gradient `[E, C]` of the numbers that the weights were made of.

    `w (g - m)` with, for each group, `m = Σ w g - the gradient of its log-sum-exp`.
    """
    num = grad_log_sum_exp.shape[0]
    if gpu.serves(weights, grad_weights):
        items = _items(index, num)
        return _triton().softmax_backward(
            weights, grad_weights, grad_log_sum_exp, _groups(index), items
        )
    dtype, groups = grad_log_sum_exp.dtype, _groups(index)
    wide, grad = weights.to(dtype), grad_weights.to(dtype)
    if pairs.serves_rows(wide):
        found = pairs.gradient(grad, wide, grouping_of(index, num).order, 1.0)
        found.addcmul_(wide, grad_log_sum_exp.index_select(0, groups))
        return found.to(weights.dtype)
    mean = segment_sum(wide * grad, index, num) - grad_log_sum_exp
    return (wide * (grad - mean.index_select(0, groups))).to(weights.dtype)


@custom_op("attn_core::segment_entmax", **LOOKS_EDGES_UP)
def segment_entmax(scores: Tensor, index: Tensor, num: int, alpha: float) -> Tensor:
    """α-entmax of scores `[E, ...]` over the entries of each group, for any α but 1."""
    if gpu.serves(scores) and alpha in _KNOWN:
        return _triton().entmax(_flat(scores), _items(index, num), alpha).view(scores.shape)
    if pairs.serves_rows(scores):
        order = grouping_of(index, num).order
        return pairs.entmax(_flat(scores), order, alpha).view(scores.shape)
    return Entmax(alpha).normalize(scores, Segments(_groups(index), num)).contiguous()


@custom_op("attn_core::segment_entmax_backward", **LOOKS_EDGES_UP)
def segment_entmax_backward(
    grad: Tensor, weights: Tensor, index: Tensor, num: int, alpha: float
) -> Tensor:
    """The gradient of the scores."""
    if gpu.serves(weights, grad) and alpha in _KNOWN:
        found = _triton().entmax_backward(_flat(weights), _flat(grad), _items(index, num), alpha)
        return found.view(weights.shape)
    if pairs.serves_rows(weights):
        order = grouping_of(index, num).order
        return pairs.gradient(_flat(grad), _flat(weights), order, alpha).view(weights.shape)
    return _entmax_gradient(grad, weights, index, num, alpha).contiguous()


def _triton() -> Any:
    from attn_core.backends.triton import segments  # which imports Triton

    return segments


def _items(index: Tensor, num: int) -> Any:
    """The plan of the kernels for these groups."""
    from attn_core.backends.triton.plan import items_of

    return items_of(grouping_of(index, num))


def _groups(index: Tensor) -> Tensor:
    return index if index.dim() == 1 else index[1]


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


@segment_sum.register_fake
@segment_max.register_fake
def _(x: Tensor, index: Tensor, num: int) -> Tensor:
    return x.new_empty(num, x.shape[1])


@segment_gather.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(index.shape[-1], x.shape[1])


@segment_softmax.register_fake
def _(x: Tensor, index: Tensor, num: int) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty(num, x.shape[1], dtype=wide)


@segment_softmax_backward.register_fake
def _(weights: Tensor, *_: Tensor) -> Tensor:
    return weights.new_empty(weights.shape)


@segment_entmax.register_fake
def _(scores: Tensor, index: Tensor, num: int, alpha: float) -> Tensor:
    return scores.new_empty(scores.shape)


@segment_entmax_backward.register_fake
def _(grad: Tensor, weights: Tensor, index: Tensor, num: int, alpha: float) -> Tensor:
    return weights.new_empty(weights.shape)


# --- Their gradients ---


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, index = inputs[:2]
    ctx.save_for_backward(index)
    ctx.num = x.shape[0]


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return torch.ops.attn_core.segment_gather(grad, ctx.saved_tensors[0]), None, None


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return torch.ops.attn_core.segment_sum(grad, ctx.saved_tensors[0], ctx.num), None


def _keep_softmax(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[0], inputs[1])


def _softmax_backward(ctx: Any, grad_weights: Tensor, grad_log_sum_exp: Tensor) -> tuple[Any, ...]:
    weights, index = ctx.saved_tensors
    grad = torch.ops.attn_core.segment_softmax_backward(
        weights, grad_weights, grad_log_sum_exp, index
    )
    return grad, None, None


def _keep_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _softmax_backward_twice(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The gradients of `w (g - m)`, each from its formula."""
    weights, grad_weights, grad_log_sum_exp, index = ctx.saved_tensors
    num, spread = grad_log_sum_exp.shape[0], torch.ops.attn_core.segment_gather
    total = torch.ops.attn_core.segment_sum(weights * grad, index, num)
    mean = torch.ops.attn_core.segment_sum(weights * grad_weights, index, num) - grad_log_sum_exp
    per_entry = spread(total, index)
    of_weights = grad * (grad_weights - spread(mean, index)) - grad_weights * per_entry
    return of_weights, weights * (grad - per_entry), total, None


def _keep_entmax(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, index, num, alpha = inputs
    ctx.save_for_backward(output, index)
    ctx.settings = num, alpha


def _entmax_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weights, index = ctx.saved_tensors
    twice = torch.is_grad_enabled()
    gradient = _entmax_gradient if twice else torch.ops.attn_core.segment_entmax_backward
    return gradient(grad, weights, index, *ctx.settings), None, None, None


def _entmax_gradient(
    grad: Tensor, weights: Tensor, index: Tensor, num: int, alpha: float
) -> Tensor:
    return entmax_gradient(grad, weights, Segments(_groups(index), num), alpha)


segment_sum.register_autograd(_sum_backward, setup_context=_keep)
segment_gather.register_autograd(_gather_backward, setup_context=_keep)
segment_softmax.register_autograd(_softmax_backward, setup_context=_keep_softmax)
segment_softmax_backward.register_autograd(_softmax_backward_twice, setup_context=_keep_all)
segment_entmax.register_autograd(_entmax_backward, setup_context=_keep_entmax)
