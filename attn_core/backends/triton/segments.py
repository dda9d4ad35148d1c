"""The host side of the kernels over groups: `attn_core.segments` on the GPU."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from attn_core.backends.triton.plan import Items
from attn_core.backends.triton.reduce import (
    reduce_rows,
    softmax_backward_entries,
    softmax_entries,
)
from attn_core.backends.triton.tiles import ACC, padded

TILE = 1024  # numbers in a tile of rows × steps × columns
_MOST_COLUMNS = 128
_MOST_STEPS = 8
_MOST_ROWS = 16


def sums(x: Tensor, items: Items, factor: Tensor | None = None) -> Tensor:
    """`Σ x`, or `Σ factor · x`, of each row, `[rows, C]` in the dtype of x."""
    return _reduce("sum", x, items, factor)[0].to(x.dtype)


def largest(x: Tensor, items: Items) -> Tensor:
    """The maximum of each row."""
    return _reduce("max", x, items)[0].to(x.dtype)


def softmax(x: Tensor, index: Tensor, items: Items) -> tuple[Tensor, Tensor]:
    """Weights like x, and the log-sum-exp of each row."""
    x = x.contiguous()
    top, total = _reduce("softmax", x, items)
    assert total is not None
    weights = torch.empty_like(x)
    _each(softmax_entries, x, index.contiguous(), top, total, weights)
    log_sum_exp = top + torch.where(total == 0, 1, total).log()
    return weights, torch.where(total == 0, -math.inf, log_sum_exp)


def softmax_backward(
    weights: Tensor, grad: Tensor, grad_log_sum_exp: Tensor, index: Tensor, items: Items
) -> Tensor:
    """The gradient of what the softmax was taken of."""
    weights, grad = weights.contiguous(), grad.contiguous()
    mean = _reduce("sum", weights, items, grad)[0] - grad_log_sum_exp
    out = torch.empty_like(weights)
    _each(softmax_backward_entries, weights, grad, index.contiguous(), mean, out)
    return out


def _each(kernel: object, x: Tensor, *rest: Tensor) -> None:
    """Run a kernel over all entries of x."""
    entries, columns = x.shape
    if not x.numel():
        return
    width = min(padded(columns), _MOST_COLUMNS)
    height = max(1, TILE // width)
    grid = triton.cdiv(entries, height), triton.cdiv(columns, width)
    with torch.cuda.device_of(x):
        kernel[grid](  # type: ignore[index]
            x, *rest, entries, columns, ACC=ACC[_wide(x)], ENTRIES=height, COLUMNS=width
        )


def _reduce(
    kind: str, x: Tensor, items: Items, factor: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The reduction of each row, `[rows, C]` in full precision, and the total of a softmax."""
    x, factor = x.contiguous(), None if factor is None else factor.contiguous()

    def room(rows: int) -> tuple[Tensor, Tensor | None]:
        made = x.new_empty(rows, x.shape[1], dtype=_wide(x))
        return made, torch.empty_like(made) if kind == "softmax" else None

    out = room(items.num_rows)
    if not out[0].numel():
        return out
    parts = room(items.num_parts) if items.num_parts else (None, None)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _launch(kind, items[:4], items.place, x, factor, *out, *parts)
        if parts[0] is not None:  # those of a row follow each other
            number = items.split_pointer.diff().int()
            of_rows = items.split_row, items.split_pointer, number, None
            _launch(kind, of_rows, None, *parts, *out, None, None)
    return out


def _launch(
    kind: str,
    items: tuple[Tensor | None, ...],
    place: Tensor | None,
    x: Tensor,
    factor: Tensor | None,
    out: Tensor,
    *rest: Tensor | None,
) -> None:
    assert items[0] is not None
    number, columns = len(items[0]), x.shape[1]
    width = min(padded(columns), _MOST_COLUMNS)
    steps = min(_MOST_STEPS, TILE // width)
    rows = min(_MOST_ROWS, TILE // (width * steps))
    if place is None:  # a few rows of many parts
        rows, steps = 1, max(1, TILE // width)
    reduce_rows[triton.cdiv(number, rows), triton.cdiv(columns, width)](
        *items, number, place, x, factor, out, *rest, columns,
        KIND=kind, ACC=ACC[out.dtype], ROWS=rows, STEPS=steps, COLUMNS=width,
    )  # fmt: skip


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
