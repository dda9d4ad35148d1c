"""The smallest Triton kernel, to see whether any is compiled and launched; imports Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def write_one(x):
    tl.store(x, 1.0)


def launch(device: torch.device) -> None:
    """Launch it on a device, without waiting for it."""
    x = torch.zeros(1, device=device)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        write_one[(1,)](x)
