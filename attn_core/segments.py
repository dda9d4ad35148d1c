"""Sums, maxima and softmax over groups of entries, as ops that a GPU computes in a fixed order.

Entry e of `x` belongs to the group `index[e]`, in any order. Torch's own `index_add` and
`scatter_reduce` add to the groups atomically there, in whichever order the threads come; here the
entries are sorted by group, once for each index, and each group is summed in that order. What runs
backward is made of the same ops, so that they can be differentiated any number of times.
"""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from attn_core import gpu
from attn_core.edge_index import sort_nodes
from attn_core.transforms import is_transformed


def serves(x: Tensor) -> bool:
    """Whether these ops gain anything for such numbers."""
    return gpu.serves(x) and not is_transformed()


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


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


# --- Who belongs together ---

# The Edges that own an index, and by which end: their pairs are sorted for other purposes too.
_OWNERS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
# Of an index that no Edges own: its version, its smallest and largest entry, and what was planned.
_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_LOCK = threading.RLock()


def own(index: Tensor, owner: Any, by: str) -> None:
    """Let Edges answer for one of their ends, "query" or "key"."""
    _OWNERS[index] = weakref.ref(owner), by


def limits(index: Tensor) -> tuple[int, int]:
    """The smallest and the largest entry; a GPU is asked once, as long as the index is not edited.

    >>> limits(torch.tensor([2, 0])), limits(torch.tensor([], dtype=torch.int64))
    ((0, 2), (0, -1))
    """
    if index.shape[0] == 0:
        return 0, -1
    if not gpu.is_gpu(index.device) or index.is_inference():
        low, high = torch.stack(torch.aminmax(index)).tolist()
        return low, high
    known = _known(index)
    if "limits" not in known:
        known["limits"] = torch.stack(torch.aminmax(index)).tolist()
    low, high = known["limits"]
    return low, high


def forget() -> None:
    """Drop what is known of every index."""
    with _LOCK:
        _KNOWN.clear()


def _known(index: Tensor) -> dict[Any, Any]:
    with _LOCK:
        version, known = _KNOWN.get(index, (None, {}))
        if version != index._version:
            known = {}
            _KNOWN[index] = index._version, known
        return known


def _items(index: Tensor, num: int) -> Any:
    """The plan of the kernels for these groups."""
    from attn_core.kernels.triton import plan

    owner, by = _OWNERS.get(index, (None, ""))
    if owner is not None and (edges := owner()) is not None:
        return plan.side_of(edges, by).items
    with torch.inference_mode(False):
        if index.is_inference():
            return plan.plan(sort_nodes(index.clone(), num))
        known = _known(index)
        if num not in known:
            known[num] = plan.plan(sort_nodes(index, num))
        return known[num]


# --- The ops ---


@torch.library.custom_op("attn_core::segment_sum", mutates_args=())
def segment_sum(x: Tensor, index: Tensor, num: int) -> Tensor:
    """The sums `[num, C]` of the entries `[E, C]` of each group."""
    if gpu.serves(x):
        from attn_core.kernels.triton import segments

        return segments.sums(x, _items(index, num))
    return x.new_zeros(num, x.shape[1]).index_add_(0, index, x)


@torch.library.custom_op("attn_core::segment_gather", mutates_args=())
def segment_gather(x: Tensor, index: Tensor) -> Tensor:
    """The rows `[E, C]` of x `[num, C]`."""
    return x.index_select(0, index)


@torch.library.custom_op("attn_core::segment_max", mutates_args=())
def segment_max(x: Tensor, index: Tensor, num: int) -> Tensor:
    """The largest entries `[num, C]`."""
    if gpu.serves(x):
        from attn_core.kernels.triton import segments

        return segments.largest(x, _items(index, num))
    lowest = x.new_full((num, x.shape[1]), -math.inf)
    return lowest.scatter_reduce_(0, index.unsqueeze(1).expand_as(x), x, "amax")


@torch.library.custom_op("attn_core::segment_softmax", mutates_args=())
def segment_softmax(x: Tensor, index: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Weights `[E, C]` in the dtype of x, and the log-sum-exp `[num, C]`, float32 at least."""
    if gpu.serves(x):
        from attn_core.kernels.triton import segments

        return segments.softmax(x, index, _items(index, num))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    top = segment_max(wide, index, num)
    top = torch.where(top == -math.inf, 0, top)
    weights = (wide - top.index_select(0, index)).exp_()
    total = segment_sum(weights, index, num)
    weights /= torch.where(total == 0, 1, total).index_select(0, index)
    return weights.to(x.dtype), torch.where(total == 0, -math.inf, top + total.log())


@torch.library.custom_op("attn_core::segment_softmax_backward", mutates_args=())
def segment_softmax_backward(
    weights: Tensor, grad_weights: Tensor, grad_log_sum_exp: Tensor, index: Tensor
) -> Tensor:
    """The gradient `[E, C]` of the numbers that the weights were made of.

    `w (g - m)` with, for each group, `m = Σ w g - the gradient of its log-sum-exp`.
    """
    if gpu.serves(weights, grad_weights):
        from attn_core.kernels.triton import segments

        items = _items(index, grad_log_sum_exp.shape[0])
        return segments.softmax_backward(weights, grad_weights, grad_log_sum_exp, index, items)
    return _softmax_backward(weights, grad_weights, grad_log_sum_exp, index)


@segment_sum.register_fake
def _(x: Tensor, index: Tensor, num: int) -> Tensor:
    return x.new_empty(num, x.shape[1])


@segment_gather.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(index.shape[0], x.shape[1])


@segment_max.register_fake
def _(x: Tensor, index: Tensor, num: int) -> Tensor:
    return x.new_empty(num, x.shape[1])


@segment_softmax.register_fake
def _(x: Tensor, index: Tensor, num: int) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty(num, x.shape[1], dtype=wide)


@segment_softmax_backward.register_fake
def _(weights: Tensor, *_: Tensor) -> Tensor:
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


def _keep_weights(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[0], inputs[1])


def _backward(ctx: Any, grad_weights: Tensor, grad_log_sum_exp: Tensor) -> tuple[Any, ...]:
    weights, index = ctx.saved_tensors
    grad = torch.ops.attn_core.segment_softmax_backward(
        weights, grad_weights, grad_log_sum_exp, index
    )
    return grad, None, None


def _keep_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _second_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The gradients of `w (g - m)`, each from its formula."""
    weights, grad_weights, grad_log_sum_exp, index = ctx.saved_tensors
    num, gather = grad_log_sum_exp.shape[0], torch.ops.attn_core.segment_gather
    total = torch.ops.attn_core.segment_sum(weights * grad, index, num)
    mean = torch.ops.attn_core.segment_sum(weights * grad_weights, index, num) - grad_log_sum_exp
    spread = gather(total, index)
    of_weights = grad * (grad_weights - gather(mean, index)) - grad_weights * spread
    return of_weights, weights * (grad - spread), total, None


def _softmax_backward(
    weights: Tensor, grad_weights: Tensor, grad_log_sum_exp: Tensor, index: Tensor
) -> Tensor:
    dtype = grad_log_sum_exp.dtype
    wide, grad = weights.to(dtype), grad_weights.to(dtype)
    mean = segment_sum(wide * grad, index, grad_log_sum_exp.shape[0]) - grad_log_sum_exp
    return (wide * (grad - mean.index_select(0, index))).to(weights.dtype)


segment_sum.register_autograd(_sum_backward, setup_context=_keep)
segment_gather.register_autograd(_gather_backward, setup_context=_keep)
segment_softmax.register_autograd(_backward, setup_context=_keep_weights)
segment_softmax_backward.register_autograd(_second_backward, setup_context=_keep_all)
