"""The host side of the kernels over groups: `attn_core.ops.segments` on the GPU."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from attn_core.backends.triton.plan import Items
from attn_core.backends.triton.reduce import (
    entmax_backward_rows,
    entmax_rows,
    reduce_rows,
    softmax_backward_entries,
    softmax_entries,
)
from attn_core.backends.triton.run import combine
from attn_core.backends.triton.tiles import ACC, padded

TILE = 1024  # numbers in a tile of rows × steps × columns
_MOST_COLUMNS = 128
_MOST_STEPS = 8
_MOST_ROWS = 16
_MANY = 4096  # numbers in a tile of a row that was cut


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


def entmax(x: Tensor, items: Items, alpha: float) -> Tensor:
    """The weights of α-entmax, like x, for α = 1.5 and 2."""
    x = x.contiguous()
    return _over_rows(entmax_rows, items, alpha, x, torch.empty_like(x))


def entmax_backward(weights: Tensor, grad: Tensor, items: Items, alpha: float) -> Tensor:
    """The gradient of what α-entmax was taken of."""
    weights, grad = weights.contiguous(), grad.contiguous()
    out = torch.empty_like(weights)
    return _over_rows(entmax_backward_rows, items, alpha, weights, grad, out)


def _over_rows(kernel: Any, items: Items, alpha: float, *tensors: Tensor) -> Tensor:
    """Run a kernel that needs all of a row at once: over rows of one item, then over those cut."""
    *_, out = tensors
    if not out.numel():
        return out
    settings = _settings(out.shape[1], ALPHA=alpha, ACC=ACC[_wide(out)])
    rest = items.place, *tensors
    with torch.cuda.device_of(out):  # Triton launches on the current device
        _launch(kernel, items.table, None, *rest, **settings)
        if len(items.parts):
            settings |= {"ROWS": 1, "STEPS": _MANY // settings["BLOCK"], "num_warps": 8}
            _launch(kernel, items.parts, items.pointer, *rest, **settings)
    return out


def _each(kernel: Any, x: Tensor, *rest: Tensor) -> None:
    """Run a kernel over all entries of x."""
    entries, columns = x.shape
    if not x.numel():
        return
    block = min(padded(columns), _MOST_COLUMNS)
    height = max(1, TILE // block)
    with torch.cuda.device_of(x):
        kernel[triton.cdiv(entries, height), triton.cdiv(columns, block)](
            x, *rest, entries, COLUMNS=columns, ACC=ACC[_wide(x)], ENTRIES=height, BLOCK=block
        )


def _reduce(
    kind: str, x: Tensor, items: Items, factor: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The reduction of each row, `[rows, C]` in full precision, and the total of a softmax."""
    x, factor = x.contiguous(), None if factor is None else factor.contiguous()

    def room(rows: int) -> tuple[Tensor, Tensor | None]:
        made = x.new_empty(rows, x.shape[1], dtype=_wide(x))
        return made, torch.empty_like(made) if kind == "softmax" else None

    out = room(len(items.pointer) - 1)
    if not out[0].numel():
        return out
    parts = room(len(items.parts)) if len(items.parts) else (None, None)
    settings = _settings(x.shape[1], KIND=kind, ACC=ACC[out[0].dtype])
    with torch.cuda.device_of(x):
        _launch(reduce_rows, items.table, items.place, x, factor, *out, *parts, **settings)
        if parts[0] is not None and kind == "sum":
            combine(items, parts[0].unsqueeze(-1), out[0].unsqueeze(-1))
        elif parts[0] is not None:
            combine(items, None, None, parts, (None, *out))
    return out


def _settings(columns: int, **more: Any) -> dict[str, Any]:
    """How a tile of rows × steps × columns is made."""
    block = min(padded(columns), _MOST_COLUMNS)
    steps = min(_MOST_STEPS, TILE // block)
    rows = min(_MOST_ROWS, TILE // (block * steps))
    return {"COLUMNS": columns, "ROWS": rows, "STEPS": steps, "BLOCK": block, **more}


def _launch(kernel: Any, items: Tensor, *rest: Tensor | None, **settings: Any) -> None:
    """The programs: items by columns."""
    number = triton.cdiv(len(items), settings["ROWS"])
    kernel[number, triton.cdiv(settings["COLUMNS"], settings["BLOCK"])](
        items, len(items), *rest, **settings
    )


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
