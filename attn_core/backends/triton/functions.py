"""What generated scores call: the functions of functions.hpp, of tiles.

Where float32 is not enough on the way, or a GPU's own functions cut corners, float64 is taken.
"""

from __future__ import annotations

import triton
import triton.language as tl

from attn_core.backends.triton.pieces import tanh


@triton.jit
def total(x, there, ROOM: tl.constexpr):
    """The sum over channels `[R, H, 1]`, of those that there are."""
    x = tl.where(there, x, 0.0) if there is not None else x
    return tl.sum(x + tl.zeros([1, 1, ROOM], x.dtype), 2, keep_dims=True)


@triton.jit
def choose(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def inverse(condition):
    return condition == 0


@triton.jit
def larger(x, y):
    return tl.where((x > y) | (x != x), x, y)


@triton.jit
def smaller(x, y):
    return tl.where((x < y) | (x != x), x, y)


@triton.jit
def size(x):
    return tl.abs(x)


@triton.jit
def sign(x):
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def root(x):
    return tl.sqrt(x)


@triton.jit
def logarithm(x):
    return tl.log(x)


@triton.jit
def binary_logarithm(x):
    return tl.log2(x)


@triton.jit
def exponential(x):
    return tl.exp(x)


@triton.jit
def hyperbolic(x):
    return tanh(x, x.dtype)


@triton.jit
def sine(x):
    return tl.sin(x)


@triton.jit
def cosine(x):
    return tl.cos(x)


@triton.jit
def error_function(x):
    return tl.erf(x)


@triton.jit
def rounded_down(x):
    return tl.floor(x)


@triton.jit
def power(x, y):
    """`x^y`, real: NaN for roots of what is negative."""
    exponent = y.to(tl.float64)
    base = tl.abs(x).to(tl.float64)
    found = tl.exp(exponent * tl.log(base))
    found = tl.where((exponent == 0) | (base == 1), 1.0, found)
    half = exponent * 0.5
    whole, even = tl.floor(exponent) == exponent, tl.floor(half) == half
    found = tl.where(x < 0, tl.where(whole, tl.where(even, found, -found), float("nan")), found)
    return found.to(x.dtype)


@triton.jit
def exp_minus_1(x):
    """By Kahan: the error of `e^x - 1` is that of `log e^x`, of which they are the ratio."""
    wide = x.to(tl.float64)
    grown = tl.exp(wide)
    plain = (grown == 1) | (tl.abs(wide) > 1)
    divisor = tl.where(plain, 1.0, tl.log(tl.where(plain, 2.0, grown)))
    found = tl.where(plain, grown - 1, (grown - 1) * wide / divisor)
    return tl.where(grown == 1, wide, found).to(x.dtype)


@triton.jit
def log_plus_1(x):
    """Likewise."""
    wide = x.to(tl.float64)
    more = 1 + wide
    plain = (more == 1) | (tl.abs(wide) > 1)
    found = tl.log(more) * tl.where(plain, 1.0, wide / tl.where(plain, 1.0, more - 1))
    return tl.where(more == 1, wide, found).to(x.dtype)
