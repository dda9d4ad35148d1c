"""Positions: attention itself does not know the order of its keys."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the position, in wavelengths from 2π to base · 2π.

    `angle(t, i) = t / base^(2i / size)`, and channel 2i is its sine, channel 2i + 1 its cosine; in
    the blocked layout all sines come first, then all cosines. No parameters, no longest sequence.
    Vaswani et al., "Attention Is All You Need", 2017.

    Args:
        size: how many channels the code of a position has; even.
        layout: "interleaved" (default, as in the paper) or "blocked" (as in tensor2tensor).
        merge: "add" the code to the input (default), whose width must be `size`, or "concat" it.
        base: the ratio of the longest wavelength to the shortest. Default 10,000.

    Raises:
        ValueError: a size that is odd or below 2, a name that is not known, a base below 1.

    >>> SinusoidalPositions(4)(torch.zeros(1, 2, 4))
    tensor([[[0.0000, 1.0000, 0.0000, 1.0000],
             [0.8415, 0.5403, 0.0100, 0.9999]]])
    """

    def __init__(
        self, size: int, *, layout: str = "interleaved", merge: str = "add", base: float = 1e4
    ) -> None:
        super().__init__()
        if size < 2 or size % 2:
            raise ValueError(
                f"size is {size}; sines and cosines come in pairs, so it must be even and above 0"
            )
        if layout not in ("interleaved", "blocked"):
            raise ValueError(f"layout is {layout!r}; expected 'interleaved' or 'blocked'")
        if merge not in ("add", "concat"):
            raise ValueError(f"merge is {merge!r}; expected 'add' or 'concat'")
        if base < 1:
            raise ValueError(f"base is {base}; expected at least 1")
        self.size, self.layout, self.merge, self.base = size, layout, merge, base

    def encode(self, positions: Tensor) -> Tensor:
        """The codes `[..., size]` of any positions `[...]`, whole or not, negative or not.

        Float32, or float64 for float64 positions.
        """
        dtype = torch.float64 if positions.dtype == torch.float64 else torch.float32
        pairs = torch.arange(0, self.size, 2, dtype=dtype, device=positions.device)
        angles = positions.to(dtype)[..., None] * torch.exp(
            pairs * (-math.log(self.base) / self.size)
        )
        waves = angles.sin(), angles.cos()
        if self.layout == "blocked":
            return torch.cat(waves, -1)
        return torch.stack(waves, -1).flatten(-2)

    def forward(self, x: Tensor, *, offset: int = 0) -> Tensor:
        """Mark each time step with its position.

        Args:
            x: `[..., T, D]`.
            offset: the position of the first step; for decoding step by step. Default 0.

        Returns:
            `[..., T, D]`, or `[..., T, D + size]` with merge="concat", in the dtype of x.

        Raises:
            ValueError: x without a time dimension, or of another width than size where it is added.
        """
        if x.dim() < 2 or (self.merge == "add" and x.shape[-1] != self.size):
            raise ValueError(
                f"x has shape {list(x.shape)}; expected [..., T, D]"
                + (f" with D = {self.size}, the size of the codes" if self.merge == "add" else "")
            )
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        steps = torch.arange(offset, offset + x.shape[-2], dtype=dtype, device=x.device)
        codes = self.encode(steps).to(x.dtype)
        if self.merge == "add":
            return x + codes
        return torch.cat([x, codes.expand(*x.shape[:-1], self.size)], -1)

    def extra_repr(self) -> str:
        return f"{self.size}, layout={self.layout!r}, merge={self.merge!r}, base={self.base:g}"
