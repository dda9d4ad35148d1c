"""What every layer asks of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attn_core.transforms import values_are_visible


def chosen(x: Any, index: Any, dim: int = 0) -> Any:
    """What an index of sequences chooses of a tensor or of None.

    `index_select` copies long rows several times as fast as indexing, which takes masks and lists.
    """
    if x is None:
        return None
    plain = isinstance(index, Tensor) and index.dtype == torch.int64 and index.dim() == 1
    if plain and index.device == x.device:
        return x.index_select(dim, index)
    return x[(slice(None),) * dim + (index,)]


def check_window(window: int | None) -> None:
    """Raise unless this is a radius, or None."""
    if window is not None and window < 0:
        raise ValueError(f"window is {window}; expected a number of positions, 0 or more, or None")


def check_tokens(name: str, x: Tensor, projection: nn.Module | Tensor, width: int | None) -> None:
    """Raise unless a projection, or its weight, takes `x`, `[..., T, width]`.

    What a user put in the place of a linear map (a quantised one, an adapter) checks for itself.
    """
    if not isinstance(projection, (nn.Linear, Tensor)):
        return
    weight = projection if isinstance(projection, Tensor) else projection.weight
    if x.dim() < 2 or (width is not None and x.shape[-1] != width):
        raise ValueError(
            f"{name} has shape {list(x.shape)}; expected [..., T, D]"
            + ("" if width is None else f" of width {width}")
        )
    if x.device != weight.device:
        raise ValueError(
            f"{name} is on {x.device}, but the parameters are on {weight.device}: move one of them "
            "with .to()"
        )
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; attention needs floating point: use .float()")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"{name} has dtype {x.dtype}, but the parameters are {weight.dtype}: convert one of "
            "them with .to(), or run under torch.autocast"
        )


def check_lengths(name: str, lengths: Tensor, x: Tensor) -> None:
    """Raise unless these are lengths of the sequences `x`, `[..., T, D]`."""
    batch, steps = x.shape[:-2], x.shape[-2]
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"{name} has dtype {lengths.dtype}; expected integers")
    if lengths.shape != batch:
        raise ValueError(
            f"{name} has shape {list(lengths.shape)}; expected {list(batch)}, one length per "
            "sequence"
        )
    if lengths.device != x.device:
        raise ValueError(
            f"{name} is on {lengths.device}, but the sequences are on {x.device}: move one of them "
            "with .to()"
        )
    if values_are_visible() and lengths.numel():
        low, high = (int(length) for length in torch.aminmax(lengths))
        if low < 0 or high > steps:
            raise ValueError(
                f"{name} has the entry {low if low < 0 else high}; expected 0 to {steps}, the "
                "length of the longest sequence"
            )


def padding(lengths: Tensor, x: Tensor) -> Tensor:
    """Which steps of `[..., T, D]` lie behind the end of their sequence, bool `[..., T, 1]`."""
    steps = torch.arange(x.shape[-2], device=x.device)
    return (steps >= lengths[..., None])[..., None]


def real_steps(x: Tensor, lengths: Tensor) -> Tensor:
    """`[..., T, D]` with zeros behind the lengths, for zero times NaN is not zero."""
    check_lengths("lengths", lengths, x)
    return x.masked_fill(padding(lengths, x), 0)
