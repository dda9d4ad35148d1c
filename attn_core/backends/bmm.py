"""Dense softmax attention: torch's softmax between the scores and the product with the values.

The reference path makes half a dozen tensors of all pairs, this one makes two.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core.backends.sdpa import factors, is_softmax
from attn_core.call import Attended, Call
from attn_core.supports.dense import Dense
from attn_core.transforms import values_are_visible


def serves(call: Call) -> bool:
    """Whether torch's softmax computes this call."""
    return call.formula is not None and is_softmax(call)  # whose logits are finite


def run(call: Call) -> Attended:
    """The output `[..., Tq, H, Dv]` and the weights `[..., H, Tq, Tk]`."""
    call = call.in_full_precision()
    scale, temperature = factors(call)
    *batch, keys, heads, _ = call.value.shape
    queries = 1 if call.query is None else call.query.shape[-3]
    value = _flat(call.value)
    added, empty = _added(call, (*batch, heads, queries, keys), temperature)
    if call.formula is not None and call.formula.kind == "dot" and call.query is not None:
        query, key = _flat(call.query), _flat(call.key)
        one = queries == 1  # keys first: their gradient is then laid out as they are
        start = query.new_zeros(()) if added is None else added.mT if one else added
        scores = torch.baddbmm(
            start,
            *((key, query.mT) if one else (query, key.mT)),
            beta=0 if added is None else 1,
            alpha=scale / temperature,
        )
        scores = scores.mT if one else scores
    else:
        scores = call.score.dense(call.query, call.key).reshape(-1, queries, keys)
        scores = scores if temperature == 1 else scores / temperature
        scores = scores if added is None else scores + added
    log_sum_exp = scores.logsumexp(-1) if call.need_log_sum_exp else None  # [B H, Tq]
    if values_are_visible() and scores.device.type == "cpu" and not scores.requires_grad:
        weights = torch.softmax(scores, -1, out=scores)  # fresh memory costs as much as the softmax
    else:
        weights = scores.softmax(-1)
    if empty is not None:
        weights = weights.masked_fill(empty, 0)
        if log_sum_exp is not None:
            log_sum_exp = log_sum_exp.masked_fill(empty.squeeze(-1), -math.inf)
    dropped = F.dropout(weights, call.dropout) if call.dropout > 0 else weights
    output = torch.bmm(dropped, value)  # [B H, Tq, Dv]
    weights = weights.view(*batch, heads, queries, keys)
    if log_sum_exp is not None:
        log_sum_exp = log_sum_exp.view(*batch, heads, queries)
    if heads == 1:
        output = output.view(*batch, queries, 1, output.shape[-1])
    else:
        output = output.view(*batch, heads, queries, output.shape[-1]).movedim(-3, -2)
    return Attended(output, weights, log_sum_exp)


def _flat(x: Tensor) -> Tensor:
    """`[..., T, H, D]` as `[B H, T, D]`; no copy of one head."""
    *_, steps, heads, width = x.shape
    return (x if heads == 1 else x.movedim(-2, -3)).reshape(-1, steps, width)


def _added(
    call: Call, shape: tuple[int, ...], temperature: float
) -> tuple[Tensor | None, Tensor | None]:
    """Bias and mask as one, which broadcasts to `[B H, Tq, Tk]`, and the rows that have no key."""
    assert isinstance(call.support, Dense)
    support = call.support
    if call.bias is None and support.mask is support.lengths and not support.causal:  # all pairs
        return None, None
    *batch, heads, queries, keys = shape
    if call.bias is None and support.is_padded:
        of_lengths = support.padding(tuple(batch), keys, call.key.dtype)
        added, empty = (
            None if x is None else x.expand(*batch, heads, 1, -1).flatten(0, -3) for x in of_lengths
        )
        return added, empty
    mask = support.allowed(tuple(batch), heads, queries, keys, call.key.device)
    bias = call.key.new_zeros(()) if call.bias is None else call.bias / temperature
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
