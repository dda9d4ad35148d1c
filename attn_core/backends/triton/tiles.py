"""The sizes of tiles."""

from __future__ import annotations

import torch
import triton.language as tl

ACC = {torch.float32: tl.float32, torch.float64: tl.float64}


def padded(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()
