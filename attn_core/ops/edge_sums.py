"""Sums over edges and products at edges, as two ops that are each other's derivatives.

`edge_sum`: `out_i = Σ_e weight_e (value_j + pair_e)` over the edges e from j to i, or the reverse,
to the nodes j of what the nodes i have. `edge_dot`: `out_e = left_i · (right_j + pair_e)`. Nothing
of edges × heads × channels is made but the gradient of `pair`, and both can be differentiated as
often as one likes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_core.backends import csr, triton
from attn_core.backends.cpu import pairs
from attn_core.backends.problem import Problem
from attn_core.compat import LOOKS_EDGES_UP
from attn_core.ops.custom import custom_op
from attn_core.supports.edges import Edges, edges_of

_BLOCK = 2**18  # numbers in a block of pairs × heads × channels


@custom_op("attn_core::edge_sum", **LOOKS_EDGES_UP)
def edge_sum(
    weights: Tensor,
    value: Tensor,
    pair: Tensor | None,
    edge_index: Tensor,
    num_keys: int,
    num_queries: int,
    to_keys: bool,
) -> Tensor:
    """The weighted sum of the values over the edges of each node.

    Args:
        weights: `[E, H]`.
        value: `[Nk, H, D]`, or of the queries `[Nq, H, D]` with to_keys.
        pair: `[E, H, D]`, added to the value of each edge. None, and always so with to_keys.
        edge_index: `[2, E]`, the pairs that an Edges owns.
        num_keys, num_queries: Nk, Nq.
        to_keys: sum at the keys what the queries have, instead of the reverse.

    Returns:
        `[Nq, H, D]`, or `[Nk, H, D]` with to_keys.
    """
    edges = edges_of(edge_index, num_keys, num_queries)
    if triton.serves(value, weights):
        from attn_core.backends.triton import scores  # which imports Triton

        return scores.weighted_sums(
            _product(value if to_keys else None, value, pair, edges), weights, to_keys
        )
    if pairs.serves(edges, value):
        found = pairs.sums(edges, weights, None, value, None, pair, by_key=to_keys).rows
        assert found is not None
        return found
    side = edges.by_key if to_keys else edges.by_query
    pointer, permutation = side.order
    sorted_weights = weights.index_select(0, permutation)
    out = csr.weighted_sums(sorted_weights, value, side.other[permutation], pointer)
    for block in _blocks(edges, value) if pair is not None else ():
        assert pair is not None
        of_pair = pair.index_select(0, permutation[block])
        of_pair *= sorted_weights[block].unsqueeze(-1)
        out.index_add_(0, side.index[permutation[block]], of_pair)
    return out


@edge_sum.register_fake
def _(weights: Tensor, value: Tensor, *rest: Any) -> Tensor:
    _, _, num_keys, num_queries, to_keys = rest
    return value.new_empty(num_keys if to_keys else num_queries, *value.shape[1:])


@custom_op("attn_core::edge_dot", **LOOKS_EDGES_UP)
def edge_dot(
    left: Tensor,
    right: Tensor,
    pair: Tensor | None,
    edge_index: Tensor,
    num_keys: int,
    num_queries: int,
) -> Tensor:
    """The product of what the two ends of each edge have.

    Args:
        left: of the queries, `[Nq, H, D]`.
        right: of the keys, `[Nk, H, D]`.
        pair: `[E, H, D]`, added to that of the key. None: nothing is.
        edge_index, num_keys, num_queries: as in `edge_sum`.

    Returns:
        `[E, H]`.
    """
    edges = edges_of(edge_index, num_keys, num_queries)
    if triton.serves(right, left):
        from attn_core.backends.triton import scores

        return scores.forward(_product(left, right, pair, edges)).to(right.dtype)
    if pairs.serves(edges, right):
        return pairs.scores(edges, left, right, None, pair, "dot", 1.0)
    out = right.new_empty(edges.num_edges, right.shape[1])
    for block in _blocks(edges, right):
        product = right.index_select(0, edges.key_index[block])
        if pair is not None:
            product += pair[block]
        product *= left.index_select(0, edges.query_index[block])
        torch.sum(product, -1, out=out[block])
    return out


@edge_dot.register_fake
def _(left: Tensor, right: Tensor, pair: Tensor | None, edge_index: Tensor, *_: int) -> Tensor:
    return right.new_empty(edge_index.shape[1], right.shape[1])


def _product(left: Tensor | None, right: Tensor, pair: Tensor | None, edges: Edges) -> Problem:
    """The product at edges as a problem of logits; without its left side, for its gradient."""
    graph = edges.pairs, edges.num_keys, edges.num_queries
    settings: Any = *graph, False, "dot", 1.0, 0.0, None, None
    p = Problem(left, right, right, None, None, pair, None, *settings)
    p.edges = edges  # which need not be looked up again
    return p


def _blocks(edges: Edges, like: Tensor) -> list[slice]:
    step = max(1, _BLOCK // max(1, like.shape[1:].numel()))
    return [slice(start, start + step) for start in range(0, edges.num_edges, step)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[4:]


def _sum_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weights, value, pair, edge_index = ctx.saved_tensors
    *sizes, to_keys = ctx.settings
    need_weights, need_value, need_pair = ctx.needs_input_grad[:3]
    of_weights = of_value = of_pair = None
    if need_weights:
        ends = (value, grad) if to_keys else (grad, value)
        of_weights = torch.ops.attn_core.edge_dot(*ends, pair, edge_index, *sizes)
    if need_value:
        of_value = torch.ops.attn_core.edge_sum(
            weights, grad, None, edge_index, *sizes, not to_keys
        )
    if pair is not None and need_pair:
        of_pair = weights.unsqueeze(-1) * grad.index_select(0, edge_index[1])
    return of_weights, of_value, of_pair, *[None] * 4


def _dot_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    left, right, pair, edge_index = ctx.saved_tensors
    need_left, need_right, need_pair = ctx.needs_input_grad[:3]
    of_left = of_right = of_pair = None
    if need_left:
        of_left = torch.ops.attn_core.edge_sum(grad, right, pair, edge_index, *ctx.settings, False)
    if need_right:
        of_right = torch.ops.attn_core.edge_sum(grad, left, None, edge_index, *ctx.settings, True)
    if pair is not None and need_pair:
        of_pair = grad.unsqueeze(-1) * left.index_select(0, edge_index[1])
    return of_left, of_right, of_pair, *[None] * 3


edge_sum.register_autograd(_sum_backward, setup_context=_setup)
edge_dot.register_autograd(_dot_backward, setup_context=_setup)
