"""What is watching a computation: torch.compile, torch.func, forward-mode differentiation."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which plain torch alone can follow."""
    return (
        torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0
    )


def values_are_visible() -> bool:
    """Whether a check may look at the numbers in a tensor: neither compiled nor transformed."""
    return not torch.compiler.is_compiling() and not is_transformed()
