"""Linear maps of dense rows: `torch.nn.functional.linear`, sooner and closer where torch is not.

torch multiplies float32 matrices by MKL, which keeps to AVX2 on AMD's processors. Where those have
AVX-512, oneDNN, which torch brings as well, takes 0.4 of the time. And MKL adds up the gradient of
a weight over all rows in one chain: over 500,000 rows of 4 numbers it is off by 10⁻⁵.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core import compiled
from attn_core.compat import any_global_hook, is_untouched
from attn_core.transforms import is_autocast, nobody_watches

_LEAST = 2**22  # multiplications from which on oneDNN is sooner, whose call takes 10 µs
_NARROW = 16  # rows or outputs, a vector of them, below which MKL rounds less
_MANY, _BLOCK = 2**15, 2**9  # rows from which on a gradient is summed in blocks, and those of one
_RUN = 2**14  # rows that oneDNN sums at once: the longer its sums, the more they round
_PLAIN = Tensor, torch.nn.Parameter


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x Wᵀ + b` and its gradients.

    Args:
        x: `[..., F]`.
        weight: `[O, F]`.
        bias: `[O]`. Default None.

    Returns:
        `[..., O]`.

    >>> linear(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([[1.0, 10.0]]))
    tensor([[20.],
            [ 1.]])
    """
    if not _serves(x, weight, bias):
        return F.linear(x, weight, bias)
    rows = x if x.dim() == 2 else x.flatten(0, -2)
    needs = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and needs:
        out: Tensor = _Linear.apply(rows, weight, bias)
    else:
        out = _product(rows, weight, bias)
    return out if rows is x else out.view(*x.shape[:-1], weight.shape[0])


def apply(module: Any, x: Tensor) -> Tensor:
    """`module(x)`, whatever stands there; by `linear`, if it is torch's map as it came."""
    plain = is_untouched(module, torch.nn.Linear) and not any_global_hook()
    if torch.compiler.is_compiling() or not plain:
        out: Tensor = module(x)
        return out
    return linear(x, module.weight, module.bias)


def _serves(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether there is more to it than torch's own product."""
    return (
        not torch.compiler.is_compiling()  # first: no guard on what follows
        and type(x) in _PLAIN
        and not x.is_nested
        and x.dim() > 1
        and (_is_large(x, weight) or _is_long(x))
        and x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and weight.is_cpu
        and x.layout == weight.layout == torch.strided
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and (
            bias is None
            or (
                bias.dtype == torch.float32
                and bias.is_cpu
                and bias.shape == weight.shape[:1]
                and bias.is_contiguous()
            )
        )
        and x.is_contiguous()
        and weight.is_contiguous()
        and not is_autocast("cpu")
        and nobody_watches(x, weight, bias)
    )


def _is_large(x: Tensor, weight: Tensor) -> bool:
    outputs, numbers = weight.shape[0], x.numel()
    return (
        numbers * outputs >= _LEAST
        and outputs >= _NARROW
        and numbers >= _NARROW * x.shape[-1]
        and has_faster()
    )


def _is_long(x: Tensor) -> bool:
    return x.dim() == 2 and x.shape[0] >= _MANY


@cache
def _is_slow_with_mkl() -> bool:
    return (
        compiled.module is not None
        and compiled.module.is_amd()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def has_faster() -> bool:
    """Whether oneDNN multiplies float32 sooner than what torch takes, on this processor."""
    on: bool = torch._C._get_mkldnn_enabled()  # by `torch.backends.mkldnn.flags`
    return on and compiled.is_on() and _is_slow_with_mkl()


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # What no gradient needs may be edited before the backward pass
        need = ctx.needs_input_grad
        ctx.save_for_backward(x if need[1] else None, weight if need[0] else None)
        ctx.width = weight.shape[0]
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x, weight), (grad,), need = ctx.saved_tensors, grads, ctx.needs_input_grad
        of_x = of_weight = None
        if torch.is_grad_enabled() or not nobody_watches(grad):  # somebody differentiates this
            of_x = grad @ weight if need[0] else None
            of_weight = grad.t() @ x if need[1] else None
        else:
            grad = grad.contiguous()
            of_x = _product(grad, weight.t()) if need[0] else None
            of_weight = _of_weight(grad, x) if need[1] else None
        return of_x, of_weight, grad.sum(0) if need[2] else None


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x Wᵀ + b` of two matrices."""
    if not _is_large(x, weight):
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return out


def _of_weight(grad: Tensor, x: Tensor) -> Tensor:
    """gradᵀ x: sums over all rows."""
    (rows, width), size = grad.shape, x.shape[1]
    if width < size:
        return _of_weight(x, grad).t()  # the narrower one second
    tall = torch.get_num_threads() > 1 and rows >= 4 * width
    narrow = size < _NARROW and not tall
    if narrow or grad.numel() * size < _LEAST or not has_faster():
        return _by_blocks(grad, x) if rows >= _MANY else grad.t() @ x
    total: Tensor | None = None
    for part, other in zip(grad.split(_RUN), x.split(_RUN), strict=True):
        found = _as_convolution(part, other) if tall else _product(other.t(), part.t()).t()
        total = found if total is None else total.add_(found)
    assert total is not None
    return total


def _as_convolution(grad: Tensor, x: Tensor) -> Tensor:
    """oneDNN's gradient of a kernel of one pixel, whose rows are shared out to the threads."""
    images = (y.view(1, len(y), 1, -1).permute(0, 3, 1, 2) for y in (grad, x))
    kernel = x.new_empty(grad.shape[1], x.shape[1], 1, 1)  # of which the shape alone is read
    found: Tensor = torch.ops.aten.convolution_backward(
        *images, kernel, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1]
    return found.view(grad.shape[1], x.shape[1])


def _by_blocks(grad: Tensor, x: Tensor) -> Tensor:
    """In blocks of rows, whose product has no more numbers than a block has rows."""
    rows = max(_BLOCK, grad.shape[1] * x.shape[1])
    blocks = x.shape[0] // rows
    end = blocks * rows
    of_block = torch.bmm(
        grad[:end].view(blocks, rows, grad.shape[1]).transpose(1, 2),
        x[:end].view(blocks, rows, x.shape[1]),
    )
    return of_block.sum(0) + grad[end:].t() @ x[end:]
