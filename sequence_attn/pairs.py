"""Which pairs of a padded batch exist: padding, causal order and windows, put together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attn_core import Dense, Edges, Window


def check_mask(name: str, mask: Tensor, steps: Tensor, kind: str = "key") -> None:
    """Raise unless this says of each of the keys (or queries) `[..., T, D]` whether it is real."""
    if mask.dtype != torch.bool:
        raise TypeError(
            f"{name} has dtype {mask.dtype}; expected bool, where True is a real {kind}"
        )
    if mask.shape != steps.shape[:-1]:
        raise ValueError(
            f"{name} has shape {list(mask.shape)}; expected {list(steps.shape[:-1])}, one entry "
            f"for each {kind}"
        )
    if mask.device != steps.device:
        raise ValueError(
            f"{name} is on {mask.device}, but {kind} is on {steps.device}: move one of them with "
            ".to()"
        )


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """What two masks allow; None for all."""
    if one is None or other is None:
        return other if one is None else one
    return one & other


_recent: list[Dense] = []


def real_keys(lengths: Tensor | None) -> Dense:
    """All pairs with the keys that are real: one support for the steps that read one memory.

    The last four are kept, by which a decoder's next step finds what was computed of the lengths.
    """
    global _recent
    if torch.compiler.is_compiling():
        return Dense(lengths=lengths)
    recent = _recent
    for support in recent:
        if support.lengths is lengths:
            return support
    support = Dense(lengths=lengths)
    _recent = [support, *recent[:3]]
    return support


def in_window(pairs: Tensor, window: Window, queries: int, keys: int) -> Tensor:
    """What of `[..., H, Tq, Tk]` (any may be 1) lies in a window: `[..., H, Tq, W]`."""
    positions, _ = window.positions(queries, keys, pairs.device)
    if not keys:
        return pairs.new_zeros(*pairs.shape[:-2], *positions.shape[-2:])
    if positions.dim() > 2:  # windows of each sequence's own
        positions = positions.unsqueeze(-3)
    batch = torch.broadcast_shapes(pairs.shape[:-2], positions.shape[:-2])
    positions = positions.clamp(0, max(keys - 1, 0)).expand(*batch, queries, -1)
    return pairs.expand(*batch, queries, keys).gather(-1, positions)


def mask_bias(allowed: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """A bias that is -inf at the pairs that are not allowed."""
    bias = torch.zeros((), dtype=dtype, device=allowed.device) if bias is None else bias
    return torch.where(allowed, bias, -math.inf)


def edge_bias(
    edges: Edges,
    bias: Tensor | None,
    key_mask: Tensor | None,
    key_lengths: Tensor | None,
    like: Tensor,
) -> Tensor | None:
    """A bias `[..., E, 1 or H]` that is -inf at the edges from keys that are not real."""
    real = key_mask
    if key_lengths is not None:
        steps = torch.arange(edges.num_keys, device=like.device)
        real = both(real, steps < key_lengths[..., None])
    if real is None:
        return bias
    if bias is not None and bias.dim() == 1:
        bias = bias.unsqueeze(-1)
    return mask_bias(real.index_select(-1, edges.key_index).unsqueeze(-1), bias, like.dtype)


def places(
    queries: int, keys: int, key_lengths: Tensor | None, query_lengths: Tensor | None = None
) -> Tensor | None:
    """Where among the keys each query of a ragged batch stands, `[..., Tq]`.

    The last query of a sequence stands at its last key: query i at `i + key_length -
    query_length`, all queries being real by default. As many queries as keys are the same steps,
    padding included, unless query_lengths says otherwise. None where that is `i + Tk - Tq`.
    """
    if key_lengths is None:
        return None
    if queries == keys and (query_lengths is None or query_lengths is key_lengths):
        return None
    first = key_lengths - (queries if query_lengths is None else query_lengths)
    return torch.arange(queries, device=first.device) + first[..., None]


def dense(
    mask: Tensor | None,
    key_mask: Tensor | None,
    key_lengths: Tensor | None,
    causal: bool,
    batch_dims: int,
    keys: int,
    where: Tensor | None,
) -> Dense:
    """The dense support of a padded batch.

    Args:
        mask: `[Tq, Tk]`, `[..., Tq, Tk]` or `[..., H, Tq, Tk]`.
        key_mask: `[..., Tk]`, which keys are real.
        key_lengths: `[...]`.
        causal: each query sees the keys up to its place.
        batch_dims, keys: how many batch dimensions and how many keys there are, Tk.
        where: the place of each query, from `places`.
    """
    support = Dense(mask, key_lengths, causal)
    beside = None if key_mask is None else key_mask[..., None, None, :]
    if causal and where is not None:
        order = torch.arange(keys, device=where.device) <= where[..., None]
        beside, causal = both(beside, order.unsqueeze(-3)), False
    if beside is None:
        return support
    return Dense(both(per_head(mask, batch_dims), beside), key_lengths, causal)


def per_head(mask: Tensor | None, batch_dims: int) -> Tensor | None:
    """A mask `[..., Tq, Tk]` with its batch as `[..., 1, Tq, Tk]`, the same for all heads."""
    if mask is not None and mask.dim() == batch_dims + 2:
        return mask.unsqueeze(-3)
    return mask
