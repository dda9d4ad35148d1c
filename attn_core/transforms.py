"""What is watching a computation: torch.compile, torch.func, forward-mode AD, an ONNX export."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attn_core.compat import transform_depth


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work, which plain torch alone can follow."""
    # Of the ways to ask, the depth of the stack is the one that torch.compile understands
    return transform_depth() > 0 or forward_ad._current_level >= 0


def needs_plain_torch() -> bool:
    """Whether none of our ops may run: transforms cannot follow them, and ONNX does not know them.

    ONNX programs are traced by torch.export first, under the exporter's own flag.
    """
    exporting = torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()
    return exporting or is_transformed()


def values_are_visible() -> bool:
    """Whether a check may look at the numbers in a tensor: neither compiled nor transformed."""
    return not torch.compiler.is_compiling() and not is_transformed()


def nobody_watches(*arguments: Any) -> bool:
    """Whether an op on these may be left out: no trace, transform, mode or subclass sees it."""
    if (
        not values_are_visible()  # first: compiled code knows what follows not
        or torch._C._len_torch_dispatch_stack() != 0
        or torch._C._get_tracing_state() is not None
    ):
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor  # by grad(..., is_grads_batched=True)
    for x in arguments:
        if x is None:
            continue
        if type(x) not in _PLAIN:
            if isinstance(x, Tensor):
                return False
        elif (
            x.is_meta
            or batched(x)
            or x.is_neg()  # yet to be negated: an op gets it as numbers
            or x._is_zerotensor()  # without any memory
        ):
            return False
    return True


_PLAIN = {Tensor, torch.nn.Parameter}


def apart(*tensors: Any) -> Any:
    """Tensors as tensors of their own, whose memory is copied as soon as somebody writes to either.

    What an op has saved for its backward pass must not be what its caller holds and may edit in
    place (`F.relu(out, inplace=True)`). A copy would cost as much as the pass itself; as long as
    nobody writes, this one costs nothing. Where somebody watches, torch takes care of edits.
    """
    grad = torch.is_grad_enabled() and tensors[0].requires_grad
    if not grad or not nobody_watches(*tensors):
        return tensors
    return [x if x is None else x._lazy_clone() for x in tensors]


# A tensor without the wrapper that torch.func leaves around what was made, and kept, inside of it
bare: Callable[[Tensor], Tensor] = torch._C._functorch.unwrap_if_dead


def outside_inference() -> AbstractContextManager[object]:
    """Inside, tensors are made that serve training too; entered where inference mode is on alone.

    An interrupt while such a guard is entered or left may leave autograd off for the thread.
    """
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


# Asked once: devices such as "meta" know no autocast, and to ask about them raises
_WITH_AUTOCAST = frozenset(
    device for device in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(device)
)


def is_autocast(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return device in _WITH_AUTOCAST and torch.is_autocast_enabled(device)
