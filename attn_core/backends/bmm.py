"""Dense softmax attention whose weights are asked for: two matrix products around torch's softmax.

The reference path makes half a dozen tensors of all pairs, this one makes two.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core.backends.sdpa import factors, is_product
from attn_core.call import Attended, Call
from attn_core.supports.dense import Dense
from attn_core.transforms import values_are_visible


def serves(call: Call) -> bool:
    """Whether these products compute this call."""
    return isinstance(call.support, Dense) and is_product(call)


def run(call: Call) -> Attended:
    """The output `[..., Tq, H, Dv]` and the weights `[..., H, Tq, Tk]`."""
    call = call.in_full_precision()
    assert isinstance(call.support, Dense) and call.query is not None
    scale, temperature = factors(call)
    query, key, value = (x.movedim(-2, -3) for x in (call.query, call.key, call.value))
    *batch, heads, queries, _ = query.shape  # [..., H, T, D]
    keys = key.shape[-2]
    flat = math.prod(batch) * heads
    query, key, value = (x.reshape(flat, *x.shape[-2:]) for x in (query, key, value))
    added, empty = _added(call, (*batch, heads, queries, keys), temperature)
    scores = torch.baddbmm(
        query.new_zeros(()) if added is None else added,
        query,
        key.mT,
        beta=0 if added is None else 1,
        alpha=scale / temperature,
    )
    log_sum_exp = scores.logsumexp(-1) if call.need_log_sum_exp else None  # [B H, Tq]
    if values_are_visible() and scores.device.type == "cpu" and not scores.requires_grad:
        weights = torch.softmax(scores, -1, out=scores)  # fresh memory costs as much as the softmax
    else:
        weights = scores.softmax(-1)
    if empty is not None:
        weights = weights.masked_fill(empty, 0)
        if log_sum_exp is not None:
            log_sum_exp = log_sum_exp.masked_fill(empty.squeeze(-1), -math.inf)
    output = torch.bmm(F.dropout(weights, call.dropout), value)
    output, weights = (x.view(*batch, heads, *x.shape[1:]) for x in (output, weights))
    if log_sum_exp is not None:
        log_sum_exp = log_sum_exp.view(*batch, heads, queries)
    return Attended(output.movedim(-3, -2), weights, log_sum_exp)


def _added(
    call: Call, shape: tuple[int, ...], temperature: float
) -> tuple[Tensor | None, Tensor | None]:
    """Bias and mask as one, which broadcasts to `[B H, Tq, Tk]`, and the rows that have no key."""
    assert isinstance(call.support, Dense) and call.query is not None
    *batch, heads, queries, keys = shape
    mask = call.support.allowed(tuple(batch), heads, queries, keys, call.query.device)
    if mask is None and call.bias is None:
        return None, None
    bias = call.query.new_zeros(()) if call.bias is None else call.bias / temperature
    added = bias if mask is None else torch.where(mask, bias, -math.inf)
    added = added.reshape((1,) * (len(shape) - added.dim()) + added.shape)
    if math.prod(added.shape[:-2]) > 1:
        added = added.expand(*batch, heads, -1, -1)
    added = added.reshape(math.prod(added.shape[:-2]), *added.shape[-2:])
    empty = (added == -math.inf).all(-1, keepdim=True)
    # A look at the rows costs less than another tensor of all pairs, but would stall a GPU
    if values_are_visible() and added.device.type == "cpu" and not empty.any():
        return added, None
    return added.masked_fill(empty, 0), empty
