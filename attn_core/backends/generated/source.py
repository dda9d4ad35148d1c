"""The C++ of one score: its sizes, what surrounds every score, the functions made of its graph."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import torch

from attn_core.backends.generated.emit import Code, per_pair, sums
from attn_core.backends.generated.trace import Sizes, Traced

_SURROUNDINGS = "functions.hpp", "tasks.hpp", "passes.hpp"
_TYPES = {torch.float32: "float", torch.float64: "double"}


@cache
def _kernel() -> str:
    texts = (Path(__file__).with_name(name).read_text("utf-8") for name in _SURROUNDINGS)
    return "\n".join(texts)


def source(traced: Traced, sizes: Sizes, dtype: torch.dtype) -> str:
    """A whole translation unit.

    Raises:
        Unsupported: an op, or a way to move numbers, that has no C++.
    """
    parameters: dict[str | int, str] = {}
    at = 0
    for number, shape in enumerate(sizes.parameters):
        parameters[number] = f"to_par[{at}]"
        at += math.prod(shape)
    of_key = sums(traced, sizes, {"key": "to_key", **_addresses(parameters)})
    of_query = sums(traced, sizes, {"query": "to_query"})
    of_pair = per_pair(traced, sizes, "pair", "to_pair") if sizes.pair else []
    logits = per_pair(traced, sizes, "logits", "sum")
    constants = {
        "H": sizes.heads, "DQ": sizes.query, "DK": sizes.key, "DV": sizes.value,
        "DP": sizes.pair, "HP": max(sizes.pair_heads, 1), "NP": at,
    }  # fmt: skip
    grad = "const T g = grads[e * H + h];"
    ask = "ask(b.next[e], h, bytes);"
    parts = [
        f"typedef {_TYPES[dtype]} T;",
        f"constexpr int {', '.join(f'{name} = {value}' for name, value in constants.items())};",
        _kernel(),
        "namespace {",
        _function(
            "score(int n, const Block& b, const T* par, int bytes, T* __restrict logits)",
            Code([], [ask, "T sum[1] = {};", *logits, "logits[e * H + h] = sum[0];"], []),
        ),
        _function(
            "of_key(int n, const Block& b, const T* par, const T* __restrict grads,\n"
            "            T* __restrict to_key, T* __restrict to_par)",
            of_key._replace(each=[grad, *of_key.each]),
        ),
        _function(
            "of_query(int n, const Block& b, const T* par, int bytes, const T* __restrict grads,\n"
            "              T* __restrict to_query)",
            of_query._replace(each=[ask, grad, *of_query.each]),
        ),
        _function(
            "of_pair(int n, const Block& b, const T* par, const T* __restrict grads, T* const* to)",
            Code(
                [],
                [grad, "T* __restrict to_pair = to[e] + (HP == 1 ? 0 : h * DP);", *of_pair],
                [],
            ),
        ),
        "}  // namespace",
    ]
    return "\n\n".join(parts) + "\n"


def _addresses(parameters: dict[str | int, str]) -> dict[str | int, str]:
    """Pointers to the first number of each parameter."""
    return {key: f"(&{first})" for key, first in parameters.items()}


def _function(head: str, code: Code) -> str:
    """A function over the pairs of a block, head by head."""
    rows = [
        "const T* const q = b.q[e] + h * DQ;",
        "const T* const k = b.k[e] + h * DK;",
        "const T* const p = DP ? b.p[e] + (HP == 1 ? 0 : h * DP) : nullptr;",
        "(void)q, (void)k, (void)p;",
    ]
    lines = [
        f"APART void {head} {{",
        "  for (int h = 0; h < H; h++) {",
        *_indented(code.before, 4),
        "    for (int e = 0; e < n; e++) {",
        *_indented([*rows, *code.each], 6),
        "    }",
        *_indented(code.after, 4),
        "  }",
        "}",
    ]
    return "\n".join(lines)


def _indented(texts: list[str], spaces: int) -> list[str]:
    lines = (line for text in texts for line in text.split("\n"))
    return [" " * spaces + line for line in lines if line.strip()]
