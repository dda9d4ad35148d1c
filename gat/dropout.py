"""Dropout of features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def drop(x: Tensor, p: float) -> Tensor:
    """x with numbers dropped with probability p, the others divided by 1 - p.

    That is `F.dropout(x, p)`, which on CPUs draws each number's fate in four times the time that a
    uniform number takes.

    >>> drop(torch.ones(3), 1.0)
    tensor([0., 0., 0.])
    """
    if x.device.type != "cpu" or p == 1:
        return F.dropout(x, p)
    drawn = torch.rand(x.shape, dtype=torch.promote_types(x.dtype, torch.float32))
    return x * (drawn >= p).to(x.dtype).mul_(1 / (1 - p))
