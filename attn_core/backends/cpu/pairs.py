"""Scores of pairs, sums over pairs, and weights over the pairs of each row, in C++.

What attention over edges is made of, one step at a time, for what no fused kernel serves. Per-pair
tensors lie in the order of the edges' pairs.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_core import compiled
from attn_core.backends.cpu import KINDS, _cut, _plain, _wide, available
from attn_core.backends.problem import Problem
from attn_core.graph.read import Order
from attn_core.supports import Edges
from attn_core.transforms import bare

_DTYPES = torch.float32, torch.float64
_WIDEST = 2**16  # numbers in a row: each thread holds some hundred rows


def serves(edges: Edges, x: Tensor) -> bool:
    """Whether the kernels compute scores of, or sums over, pairs of these tokens."""
    return serves_rows(x) and max(edges.num_keys, edges.num_queries) < 2**31 - 1


def serves_rows(x: Tensor) -> bool:
    """Whether the kernels compute weights from such scores `[E, ...]`."""
    return serves_numbers(x) and 0 < math.prod(x.shape[1:]) <= _WIDEST


def serves_numbers(x: Tensor) -> bool:
    """Whether the kernels compute with such numbers, however they are laid out."""
    return (
        available()
        and x.device.type == "cpu"
        and x.dtype in _DTYPES
        and (torch.compiler.is_compiling() or x.numel() > 0)  # asked again in the op's body
    )


def scores(
    edges: Edges,
    query: Tensor | None,
    key: Tensor,
    vector: Tensor | None,
    pair: Tensor | None,
    kind: str,
    constant: float,
) -> Tensor:
    """The logit of each pair, `[E, H]`."""
    step = _step(key, kind)
    out = key.new_empty(edges.num_edges, key.shape[1])
    if query is None:
        query = key.new_zeros(1, *key.shape[1:]).expand(edges.num_queries, -1, -1)
    row, other, vector, pair = _laid(step, query, key, _vector(vector, key, kind), pair)
    compiled.call(
        "pair_scores",
        row,
        other,
        vector,
        pair,
        *_pairs(edges, False),
        *_settings(kind, constant),
        out,
    )
    return out


class Sums(NamedTuple):
    """What `sums` returns; None where it was not asked for."""

    rows: Tensor | None
    vector: Tensor | None
    pair: Tensor | None


def sums(
    edges: Edges,
    given: Tensor,
    row: Tensor | None,
    other: Tensor,
    vector: Tensor | None = None,
    pair: Tensor | None = None,
    *,
    kind: str = "dot",
    constant: float = 1.0,
    by_key: bool = False,
    need_rows: bool = True,
    need_vector: bool = False,
    need_pair: bool = False,
) -> Sums:
    """The derivatives of the scores, each times the number given for its pair.

    Those of the tokens at one end are summed over their pairs: the queries, or with `by_key` the
    keys. For a dot product that is `Σ_e given_e other_e`.

    Args:
        given: `[E, H]`.
        row: the tokens at the end that is summed over; only the dot product does without.
        other: those at the other end.
        vector, pair, kind, constant: as in `edge_scores`.
        need_rows, need_vector, need_pair: what to return.
    """
    step, num = _step(other, kind), edges.num_keys if by_key else edges.num_queries
    if row is None and (kind != "dot" or need_pair):
        row = other.new_zeros(1, *other.shape[1:]).expand(num, -1, -1)
    width = other.shape[-1]
    vector = _vector(vector, other, kind)
    row, other, vector, pair = _laid(step, row, other, vector, pair)
    shape = other.shape[1:]
    of_rows = other.new_empty(num, *shape) if need_rows else None
    of_vector = other.new_empty(shape) if need_vector else None
    of_pair = other.new_empty(edges.num_edges, *shape) if need_pair else None
    compiled.call(
        "pair_sums", _plain(given, other.dtype), row, other, vector, pair, *_pairs(edges, by_key),
        *_settings(kind, constant), of_rows, of_vector, of_pair,
    )  # fmt: skip
    return Sums(*(None if x is None else _cut(x, width) for x in (of_rows, of_vector, of_pair)))


def scores_backward(p: Problem, grad: Tensor, needed: list[bool]) -> list[Tensor | None]:
    """From those of the logits, gradients of all that the logits depend on, where needed."""
    need_query, need_key, _, need_vector, _, need_pair_key, _ = needed
    query, key = p.query, p.key
    if query is None:
        query = key.new_zeros(1, *key.shape[1:]).expand(p.edges.num_queries, -1, -1)
    settings: dict[str, Any] = {"kind": p.kind, "constant": p.constant}
    of_query = of_vector = of_pair = of_key = None
    if need_query or need_vector or need_pair_key:
        of_query, of_vector, of_pair = sums(
            p.edges, grad, query, key, p.vector, p.pair_key, **settings,
            need_rows=need_query, need_vector=need_vector, need_pair=need_pair_key,
        )  # fmt: skip
    if need_key:
        of_key, _, _ = sums(
            p.edges, grad, key, query, p.vector, p.pair_key, **settings, by_key=True
        )
    return [of_query, of_key, None, of_vector, None, of_pair, None]


def product(values: Tensor, order: Order, column: Tensor, dense: Tensor) -> Tensor:
    """A sparse matrix `[n, m]`, whose entries are sorted by row, times a dense one `[m, k]`.

    Args:
        values: `[E]`, in any order.
        order: of the rows: where the entries of each begin, and which of `values` they are.
        column: int32 `[E]`, of the sorted entries.
        dense: k is a multiple of 4.
    """
    out = dense.new_empty(len(order.pointer) - 1, dense.shape[1])
    compiled.call(
        "multiply", values.contiguous(), order.pointer, column, order.permutation,
        dense.contiguous(), torch.get_num_threads(), out,
    )  # fmt: skip
    return out


def softmax(given: Tensor, order: Order) -> tuple[Tensor, Tensor]:
    """Softmax of scores `[E, H]` over each row, and the log-sum-exp of each row, `[num, H]`."""
    given = _plain(given, given.dtype)
    out = torch.empty_like(given)
    log_sum_exp = given.new_empty(len(order.pointer) - 1, given.shape[1])
    compiled.call(
        "segment_softmax", given, *_order(order), torch.get_num_threads(), out, log_sum_exp
    )
    return out, log_sum_exp


def entmax(given: Tensor, order: Order, alpha: float) -> Tensor:
    """α-entmax of scores `[E, H]` over each row, for any α > 0 but 1."""
    given = _plain(given, given.dtype)
    out = torch.empty_like(given)
    threads = torch.get_num_threads()
    compiled.call("segment_entmax", given, *_order(order), alpha, threads, out)
    return out


def gradient(grad: Tensor, found: Tensor, order: Order, alpha: float) -> Tensor:
    """The gradient of the scores from that of the weights that were found."""
    dtype = found.dtype
    out = torch.empty(found.shape, dtype=dtype, device="cpu")
    compiled.call(
        "segment_gradient", _plain(grad, dtype), _plain(found, dtype), *_order(order),
        alpha, torch.get_num_threads(), out,
    )  # fmt: skip
    return out


def _step(x: Tensor, kind: str) -> int:
    return 1 if kind != "dot" and x.shape[-1] == 1 else 4


def _vector(vector: Tensor | None, like: Tensor, kind: str) -> Tensor | None:
    return like.new_ones(like.shape[1:]) if vector is None and kind != "dot" else vector


def _laid(step: int, row: Tensor | None, other: Tensor, *more: Tensor | None) -> tuple[Any, ...]:
    """All of them as the kernels take them."""
    given = row, other, *more
    return tuple(None if x is None else _plain(_wide(x, step), other.dtype) for x in given)


def _pairs(edges: Edges, by_key: bool) -> tuple[Tensor, Tensor, Tensor]:
    side = edges.by_key if by_key else edges.by_query
    return bare(side.pointer), bare(side.columns), bare(side.permutation)


def _order(order: Order) -> tuple[Tensor, Tensor]:
    return bare(order.pointer), bare(order.permutation)


def _settings(kind: str, constant: float) -> tuple[int, float, int]:
    return KINDS[kind], float(constant), torch.get_num_threads()
