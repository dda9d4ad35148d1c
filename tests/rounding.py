"""How far rounding may take a computation: Monte Carlo arithmetic (Parker, 1997).

Inside `Rounding`, what plain torch computes in float64 is off at random, forward and backward, by
as much as a shorter type would round each step:

- the result of a product, an exponential, a sum of two numbers by some units of its last place;
- a sum of n terms by √n times as many, of the sum of their magnitudes, which is what n roundings
  one after the other come to (Higham and Mary, 2019). Where the terms are alike they add up to n;
  a bound with slack must allow √n for the longest sum.

- what is kept in a still shorter type is a number of that type, some units off.

So a difference of large numbers is off by what these round, wherever in a computation they meet;
what is only moved, compared or chosen stays exact, as it does in every implementation. What this
cannot tell is whether the steps are good ones: tests/attn_core/test_scales.py holds them beside a
peer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

STEPS = {
    "add", "sub", "rsub", "mul", "div", "reciprocal", "exp", "expm1", "log", "log1p", "sqrt", "pow",
    "tanh", "tanh_backward", "leaky_relu", "leaky_relu_backward",
}  # fmt: skip
SUMS = {
    "sum", "cumsum", "mm", "bmm", "index_add", "scatter_add", "unfold_backward",
    "linalg_vector_norm",
}  # fmt: skip


def smallest(dtype: torch.dtype) -> float:
    """The step between the numbers of a type that lie next to zero."""
    limits = torch.finfo(dtype)
    return limits.smallest_normal * limits.eps


class Rounding(TorchDispatchMode):
    """Within it, steps in float64 are rounded at random, to numbers of a shorter type.

    Numbers of that type: two scores that lie near may become one, whose weights are alike.

    Args:
        dtype: that type.
        digits: by how many of its units a step is off at most.
        seed: of what is drawn.
    """

    def __init__(self, dtype: torch.dtype, digits: float, seed: int) -> None:
        super().__init__()
        self.dtype, self.digits, self.active = dtype, digits, True
        self.eps = torch.finfo(dtype).eps
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        plain = name.removesuffix("_")
        if not self.active or plain not in STEPS | SUMS:
            return func(*args, **kwargs)
        size = self._of_sum(func, plain, args, kwargs) if plain in SUMS else None
        result = func(*args, **kwargs)
        if result.dtype == torch.float64 and result.numel():
            off = self.eps * self._drawn(result) * (result if size is None else size)
            kept = (result + off).to(self.dtype).double()
            kept = torch.where(torch.isfinite(result) & torch.isfinite(kept), kept, result)
            result = result.copy_(kept) if name != plain else kept
        return result

    def _of_sum(self, func: Any, plain: str, args: tuple[Any, ...], kwargs: Any) -> Tensor:
        """√n of the terms of each sum, times the sum of their magnitudes."""
        of_magnitudes = getattr(torch.ops.aten, plain)
        of_magnitudes = getattr(of_magnitudes, func._overloadname)
        positive = [x.abs() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
        size = of_magnitudes(*positive, **kwargs)
        if plain == "index_add":  # self, dim, index, source
            terms = 1 + int(args[2].bincount().max()) if args[2].numel() else 1
        elif plain == "scatter_add":
            terms = 1 + args[2].shape[args[1]] if args[2].dim() else 1
        elif plain == "cumsum":
            terms = args[0].shape[args[1]] if args[0].dim() else 1
        elif plain in ("mm", "bmm"):
            terms = args[0].shape[-1]
        else:
            terms = -(-args[0].numel() // max(size.numel(), 1))
        return size * math.sqrt(max(terms, 1))

    def kept(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """A number that is kept in a still shorter type, and whose gradient is."""
        return _Kept.apply(x, self, dtype)  # type: ignore[no-any-return, no-untyped-call]

    def exactly(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, without any rounding: all implementations compute it in float64."""

        def exact(*args: Any) -> Any:
            with self.none():
                return function(*args)

        return exact

    @contextmanager
    def none(self) -> Iterator[None]:
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before

    def _drawn(self, like: Tensor) -> Tensor:
        drawn = torch.rand(like.shape, dtype=torch.float64, generator=self.generator)
        return self.digits * (2 * drawn - 1)

    def off(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """One of the numbers of this type that lie around x: two that are near may become one."""
        eps = torch.finfo(dtype).eps
        with self.none():
            near_zero = torch.where(x == 0, 0.0, smallest(dtype) * self._drawn(x))
            kept = (x * (1 + eps * self._drawn(x)) + near_zero).to(dtype).to(x.dtype)
            return torch.where(kept.isinf() & (x.abs() <= torch.finfo(dtype).max), x, kept)


class _Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Rounding, dtype: torch.dtype) -> Tensor:
        ctx.rounding, ctx.dtype = rounding, dtype
        return rounding.off(x, dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.rounding.off(grad, ctx.dtype), None, None
