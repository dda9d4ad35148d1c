"""Dense softmax attention whose weights are asked for: two matrix products around torch's softmax.

The reference path makes half a dozen tensors of all pairs, this one makes two.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core.kernels import sdpa
from attn_core.kernels.call import Call
from attn_core.normalizers import Softmax
from attn_core.scores import Dot
from attn_core.supports import Dense
from attn_core.transforms import values_are_visible

serves = sdpa.serves


def run(call: Call) -> tuple[Tensor, None, Tensor]:
    """The output `[..., Tq, H, Dv]` and the weights `[..., H, Tq, Tk]`."""
    call = call.in_full_precision()
    assert isinstance(call.support, Dense) and isinstance(call.score, Dot)
    assert isinstance(call.normalizer, Softmax) and call.query is not None
    temperature = float(call.normalizer.temperature)
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
        alpha=call.score.scale / temperature,
    )
    if values_are_visible() and scores.device.type == "cpu" and not scores.requires_grad:
        weights = torch.softmax(scores, -1, out=scores)  # fresh memory costs as much as the softmax
    else:
        weights = scores.softmax(-1)
    if empty is not None:
        weights = weights.masked_fill(empty, 0)
    output = torch.bmm(F.dropout(weights, call.dropout), value)
    output, weights = (x.view(*batch, heads, *x.shape[1:]) for x in (output, weights))
    return output.movedim(-3, -2), None, weights


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
