"""What is watching a computation: torch.compile, torch.func, forward-mode differentiation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attn_core.compat import transform_depth


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which plain torch alone can follow."""
    # Of the ways to ask, the depth of the stack is the one that torch.compile understands
    return transform_depth() > 0 or forward_ad._current_level >= 0


def values_are_visible() -> bool:
    """Whether a check may look at the numbers in a tensor: neither compiled nor transformed."""
    return not torch.compiler.is_compiling() and not is_transformed()


def nobody_watches(*arguments: object) -> bool:
    """Whether an op on these may be left out: no trace, transform, mode or subclass sees it."""
    return (
        values_are_visible()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and all(_is_bare(x) for x in arguments if isinstance(x, Tensor))
    )


_PLAIN = {Tensor, torch.nn.Parameter}


def _is_bare(x: Tensor) -> bool:
    batched = torch._C._functorch.is_legacy_batchedtensor  # by grad(..., is_grads_batched=True)
    return type(x) in _PLAIN and not x.is_meta and not batched(x)


def apart(x: Tensor) -> Tensor:
    """x as a tensor of its own, whose memory is copied as soon as somebody writes to either.

    What an op has saved for its backward pass must not be what its caller holds and may edit in
    place (`F.relu(out, inplace=True)`). A copy would cost as much as the pass itself; as long as
    nobody writes, this one costs nothing. Where somebody watches, torch takes care of edits.
    """
    return x._lazy_clone() if torch.is_grad_enabled() and nobody_watches(x) else x


def bare(x: Tensor) -> Tensor:
    """x without the wrapper that torch.func leaves around what was made, and kept, inside of it."""
    return torch._C._functorch.unwrap_if_dead(x)


def outside_inference() -> AbstractContextManager[object]:
    """Inside, tensors are made that serve training too; entered where inference mode is on alone.

    An interrupt while such a guard is entered or left may leave autograd off for the thread.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
