"""Dense softmax attention with a product score: torch's scaled_dot_product_attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core.call import Attended, Call
from attn_core.normalizers import Softmax
from attn_core.supports.dense import Dense


def is_softmax(call: Call) -> bool:
    """Whether a call is a plain softmax of scores, with nothing but a bias per pair."""
    normalizer = call.normalizer
    return (
        isinstance(normalizer, Softmax)
        and not isinstance(normalizer.temperature, Tensor)
        and call.pair_key is None
        and call.pair_value is None
        and call.key.shape[-3] > 0
    )


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
    return not call.need_weights and not call.need_log_sum_exp and is_product(call)


def run(call: Call) -> Attended:
    """The output `[..., Tq, H, Dv]`."""
    assert isinstance(call.support, Dense) and call.query is not None
    query, key, value = (x.movedim(-2, -3) for x in (call.query, call.key, call.value))
    *batch, heads, queries, _ = query.shape  # [..., H, T, D]
    keys = key.shape[-2]
    support = call.support
    plain = support.mask is None and support.lengths is None and call.bias is None
    # A branch, not the comparison itself: torch.compile makes that a symbol, which SDPA refuses
    triangle = True if support.causal and plain and queries == keys else False  # noqa: SIM210
    mask = None
    if not triangle:
        mask = support.allowed(tuple(batch), heads, queries, keys, query.device)
    scale, temperature = factors(call)
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
    grouped = query.shape[-3] != key.shape[-3] or query.shape[-3] != value.shape[-3]
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        dropout,
        is_causal=triangle,
        scale=scale / temperature,
        **({"enable_gqa": True} if grouped else {}),
    )
    return output if empty is None else output.masked_fill(empty, 0)
