"""Dense softmax attention with a product score: torch's scaled_dot_product_attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from attn_core.call import Attended, Call
from attn_core.normalizers import Softmax
from attn_core.supports.dense import Dense
from attn_core.transforms import is_autocast, nobody_watches


def is_softmax(call: Call) -> bool:
    """Whether a call is a plain softmax of scores, with nothing but a bias per pair."""
    normalizer = call.normalizer
    return (
        Softmax.is_one(normalizer)
        and not isinstance(normalizer.temperature, Tensor)
        and call.pair_key is None
        and call.pair_value is None
        and not _is_empty(call)
    )


def _is_empty(call: Call) -> bool:
    """Whether there is nothing to attend to, or nobody who does: the definition serves.

    What is given has a gradient there as well, of zeros; and torch's kernel divides by the number
    of heads.
    """
    query = () if call.query is None else call.query.shape
    return 0 in (*query, *call.key.shape, *call.value.shape)


def is_product(call: Call) -> bool:
    """Whether it is one of products, of which torch's kernels know."""
    return call.formula is not None and call.formula.kind == "dot" and is_softmax(call)


def factors(call: Call) -> tuple[float, float]:
    """The factor of the products, and the temperature."""
    assert isinstance(call.normalizer, Softmax)
    formula = call.formula
    return 1.0 if formula is None else formula.constant, float(call.normalizer.temperature)


def serves(call: Call) -> bool:
    """Whether torch's kernel computes this call, of which it gives the output alone."""
    if call.need_weights or call.need_log_sum_exp or _is_one_row(call):
        return False
    return is_product(call)


def _is_one_row(call: Call) -> bool:
    """Whether a product of matrices takes less than torch's kernel: a decoder's one query.

    Its scores are fewer numbers than its keys, and one head is no copy.
    """
    query, key = call.query, call.key
    return (
        call.heads == 1
        and query is not None
        and query.shape[-3] == 1
        and key.device.type == "cpu"
        and query.dtype == key.dtype == call.value.dtype
        and key.dtype in (torch.float32, torch.float64)
    )


def run(call: Call) -> Attended:
    """The output `[..., Tq, H, Dv]`."""
    assert isinstance(call.support, Dense) and call.query is not None
    query, key, value = (x.movedim(-2, -3) for x in (call.query, call.key, call.value))
    *batch, heads, queries, _ = query.shape  # [..., H, T, D]
    keys = key.shape[-2]
    support = call.support
    scale, temperature = factors(call)
    if support.is_padded and call.bias is None:
        dtype = torch.promote_types(query.dtype, torch.promote_types(key.dtype, value.dtype))
        added, empty = support.padding(tuple(batch), keys, dtype)
        query, key, value = (x.to(dtype) for x in (query, key, value))
        output = _kernel(query, key, value, added, empty, call.dropout, scale / temperature, False)
        return Attended(output.movedim(-3, -2), None, None)
    plain = support.mask is None and support.lengths is None and call.bias is None
    # A branch, not the comparison itself: torch.compile makes that a symbol, which SDPA refuses
    triangle = True if support.causal and plain and queries == keys else False  # noqa: SIM210
    mask = None
    if not triangle:
        mask = support.allowed(tuple(batch), heads, queries, keys, query.device)
    output = masked(
        query,
        key,
        value,
        mask,
        call.bias,
        dropout=call.dropout,
        scale=scale,
        temperature=temperature,
        triangle=triangle,
    )
    return Attended(output.movedim(-3, -2), None, None)


def masked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    *,
    dropout: float,
    scale: float,
    temperature: float,
    triangle: bool = False,
    never_empty: bool = False,
) -> Tensor:
    """Torch's kernel on `[..., H, T, D]`, but with zeros for a query that has no key.

    `never_empty` says that there is no such query, which saves looking for it.
    """
    dtype = torch.promote_types(query.dtype, key.dtype)
    for given in (value, bias):  # a bias of float32 may be too large for float16
        dtype = dtype if given is None else torch.promote_types(dtype, given.dtype)
    query, key, value = (x.to(dtype) for x in (query, key, value))
    empty = None
    # Torch's kernels give NaN for a query without keys: let it attend to all, then erase it.
    if bias is not None:
        bias = bias.to(dtype) / temperature
        mask = bias if mask is None else bias.masked_fill(~mask, -math.inf)
        empty = (mask == -math.inf).all(-1, keepdim=True)
        mask = mask.masked_fill(empty, 0)
    elif mask is not None and not never_empty:
        empty = ~mask.any(-1, keepdim=True)
        mask = mask | empty
    return _kernel(query, key, value, mask, empty, dropout, scale / temperature, triangle)


def _kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    empty: Tensor | None,
    dropout: float,
    scale: float,
    triangle: bool,
) -> Tensor:
    """Torch's kernel on tensors of one dtype, with zeros in the rows that are `empty`."""
    heads = query.shape[-3]
    grouped = heads != key.shape[-3] or heads != value.shape[-3]
    if _is_flash(query, key, value, mask, dropout, triangle):
        if grouped:
            key, value = (x.repeat_interleave(heads // x.shape[-3], -3) for x in (key, value))
        output = _Flash.apply(query, key, value, mask, triangle, scale)
    else:
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            mask,
            dropout,
            is_causal=triangle,
            scale=scale,
            **({"enable_gqa": True} if grouped else {}),
        )
    return output if empty is None else output.masked_fill(empty, 0)


def _is_flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, triangle: bool
) -> bool:
    """Whether torch takes its CPU kernel, whose gradients have no derivative, for gradients."""
    return (
        torch.is_grad_enabled()
        and query.device.type == "cpu"
        and query.dim() == 4
        and (query.requires_grad or key.requires_grad or value.requires_grad)
        and nobody_watches(query, key, value, mask)
        and not is_autocast("cpu")
        and torch._fused_sdp_choice(
            query, key, value, mask, dropout, triangle, enable_gqa=query.shape[1] != key.shape[1]
        )
        == SDPBackend.FLASH_ATTENTION.value
    )


class _Flash(torch.autograd.Function):
    """Torch's kernel for CPUs, with gradients that can be differentiated any number of times."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        triangle: bool,
        scale: float,
    ) -> Tensor:
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, -math.inf).to(query.dtype)
        output, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, triangle, attn_mask=mask, scale=scale
        )
        ctx.save_for_backward(query, key, value, mask, output, log_sum_exp)
        ctx.settings = triangle, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output, log_sum_exp = ctx.saved_tensors
        triangle, scale = ctx.settings
        if torch.is_grad_enabled():
            grads = _gradients(grad, query, key, value, mask, triangle, scale)
        else:
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad, query, key, value, output, log_sum_exp, 0.0, triangle, attn_mask=mask,
                scale=scale,
            )  # fmt: skip
        return *grads, None, None, None


def _gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    triangle: bool,
    scale: float,
) -> tuple[Tensor, ...]:
    """Gradients of query, key and value `[..., T, D]` by their formula."""
    scores = query @ key.mT * scale  # [..., Tq, Tk]
    if triangle:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    of_weights = grad @ value.mT
    of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) * scale
    return of_scores @ key, of_scores.mT @ query, weights.mT @ grad
