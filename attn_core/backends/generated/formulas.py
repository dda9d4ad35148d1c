"""Ops that make a number of numbers at the same place, in words of both C++ and Triton.

The functions that they call stand in functions.hpp and in `attn_core.backends.triton.functions`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from attn_core.backends.generated.trace import Unsupported, aten

ZERO = "T(0)"


def number(x: Any) -> str:
    """A Python number."""
    if isinstance(x, bool):
        return f"truth({int(x)})"
    if x == 0:
        return ZERO
    if math.isinf(x):
        return "T(INFINITE)" if x > 0 else "T(-INFINITE)"
    return "T(NOT_A_NUMBER)" if math.isnan(x) else f"T({float(x)!r})"


def _add(of: Any, x: Any, y: Any, *, alpha: Any = 1) -> str:
    a, b = of(x), of(y)
    if b == ZERO:
        return str(a)
    b = b if alpha == 1 else f"{number(alpha)} * {b}"
    return b if a == ZERO else f"{a} + {b}"


def _sub(of: Any, x: Any, y: Any, *, alpha: Any = 1) -> str:
    a, b = of(x), of(y)
    if b == ZERO:
        return str(a)
    b = b if alpha == 1 else f"{number(alpha)} * {b}"
    return f"-{b}" if a == ZERO else f"{a} - {b}"


def _mul(of: Any, x: Any, y: Any) -> str:
    a, b = of(x), of(y)
    # Zeros that derivatives are made of; one that is written in a score makes NaN of the infinite
    if (a == ZERO and isinstance(x, Node)) or (b == ZERO and isinstance(y, Node)):
        return ZERO
    return a if b == "T(1.0)" else b if a == "T(1.0)" else f"{a} * {b}"


def _pow(of: Any, x: Any, y: Any) -> str:
    a = of(x)
    if isinstance(y, Node):
        return f"power({a}, {of(y)})"
    if y == 0:
        return "T(1.0)"
    if y in (1, 2, 3):
        return " * ".join([a] * int(y))
    short = {0.5: f"root({a})", -0.5: f"T(1) / root({a})", -1: f"T(1) / {a}"}
    return short.get(y, f"power({a}, {number(y)})")


def _call(name: str) -> Callable[..., str]:
    return lambda of, *xs, **_: f"{name}({', '.join(of(x) for x in xs)})"


def _between(sign: str) -> Callable[..., str]:
    return lambda of, x, y: f"{of(x)} {sign} {of(y)}"


def _where(of: Any, condition: Any, x: Any, y: Any) -> str:
    a, b = of(x), of(y)
    return a if a == b else f"choose({of(condition)}, {a}, {b})"


def _clamp(of: Any, x: Any, low: Any = None, high: Any = None, **named: Any) -> str:
    a, low, high = of(x), named.get("min", low), named.get("max", high)
    a = a if low is None else f"larger({a}, {of(low)})"
    return a if high is None else f"smaller({a}, {of(high)})"


def _copy(of: Any, x: Any, *, dtype: torch.dtype | None = None, **_: Any) -> str:
    a, given = of(x), x.meta["val"].dtype
    if dtype in (None, given):
        return str(a)
    if dtype == torch.bool:
        return f"{a} != {ZERO}"
    if given == torch.bool:
        return f"as_number({a})"
    if not dtype.is_floating_point or dtype.itemsize < given.itemsize:
        raise Unsupported(f"rounds to {dtype}")
    return str(a)


def _minus(of: Any, x: Any) -> str:
    a = of(x)
    return a if a == ZERO else f"-{a}"


FORMULAS: dict[Any, Callable[..., str]] = {
    aten.neg.default: _minus,
    aten.relu.default: lambda of, x: f"larger({of(x)}, {ZERO})",
    aten.reciprocal.default: lambda of, x: f"T(1) / {of(x)}",
    aten.rsqrt.default: lambda of, x: f"T(1) / root({of(x)})",
    aten.sigmoid.default: lambda of, x: f"T(1) / (T(1) + exponential(-{of(x)}))",
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_min.Tensor: _clamp,
    aten.clamp_max.default: lambda of, x, high: _clamp(of, x, None, high),
    aten.clamp_max.Tensor: lambda of, x, high: _clamp(of, x, None, high),
    aten.maximum.default: _call("larger"),
    aten.minimum.default: _call("smaller"),
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: lambda of, x, where, y: _where(of, where, y, x),
    aten.masked_fill.Tensor: lambda of, x, where, y: _where(of, where, y, x),
    aten.full.default: lambda of, _, x, **__: number(x),
    aten.full_like.default: lambda of, _, x, **__: number(x),
    aten.fill.Scalar: lambda of, _, x: number(x),
    aten.scalar_tensor.default: lambda of, x, **_: number(x),
    aten.zeros.default: lambda of, *_, **__: ZERO,
    aten.zeros_like.default: lambda of, *_, **__: ZERO,
    aten.new_zeros.default: lambda of, *_, **__: ZERO,
    aten.ones.default: lambda of, *_, **__: number(1),
    aten.ones_like.default: lambda of, *_, **__: number(1),
    aten._to_copy.default: _copy,
    aten.clone.default: lambda of, x, **_: of(x),
    aten.logical_not.default: _call("inverse"),
    aten.logical_and.default: _between("&"),
    aten.logical_or.default: _between("|"),
    aten.bitwise_and.Tensor: _between("&"),
    aten.bitwise_or.Tensor: _between("|"),
    aten.bitwise_not.default: _call("inverse"),
}
for _name, _rule in {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _between("/"),
    "gt": _between(">"),
    "ge": _between(">="),
    "lt": _between("<"),
    "le": _between("<="),
    "eq": _between("=="),
    "ne": _between("!="),
}.items():
    for _kind in ("Tensor", "Scalar"):
        FORMULAS[getattr(getattr(aten, _name), _kind)] = _rule
for _kind in ("Tensor_Scalar", "Tensor_Tensor", "Scalar"):
    FORMULAS[getattr(aten.pow, _kind)] = _pow
for _name, _word in {
    "exp": "exponential",
    "tanh": "hyperbolic",
    "log": "logarithm",
    "sqrt": "root",
    "abs": "size",
    "sign": "sign",
    "sgn": "sign",
    "sin": "sine",
    "cos": "cosine",
    "expm1": "exp_minus_1",
    "log1p": "log_plus_1",
    "log2": "binary_logarithm",
    "erf": "error_function",
    "atan": "arctangent",
    "floor": "rounded_down",
}.items():
    FORMULAS[getattr(aten, _name).default] = _call(_word)
