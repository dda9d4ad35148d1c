"""Scores of edges, block by block, recomputed in the backward pass.

Weights that are asked for, and normalisers without a fused kernel, need the logit of each pair. A
score that is wider than one number would make vectors of E × H × D on the way, several of them with
gradients; here they live for a block of pairs at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_core.kernels import csr, triton
from attn_core.kernels.call import Call
from attn_core.kernels.cpu import pairs
from attn_core.kernels.request import Request
from attn_core.scores import ACTIVATIONS, Additive, Dot
from attn_core.supports import Edges, Support, cached_edges, handled_edges
from attn_core.transforms import is_transformed

SMALL = 2**20  # numbers in all pairs × heads × channels, below which blocks gain nothing


def scores(call: Call, support: Support) -> Tensor:
    """The logits of all pairs, bias included; those of many edges in blocks."""
    score = call.score
    if not isinstance(support, Edges) or is_transformed():
        return call.scores(support)
    graph = support.pairs, support.num_keys, support.num_queries
    if isinstance(score, Dot):
        assert call.query is not None
        query = call.query if score.scale == 1 else call.query * score.scale
        logits = torch.ops.attn_core.edge_dot(query, call.key, call.pair_key, *graph)
    elif (
        isinstance(score, Additive)
        and score.activation in ACTIVATIONS
        and support.num_edges * call.key.shape[1:].numel() > SMALL
    ):
        logits = torch.ops.attn_core.edge_scores(
            call.query,
            call.key,
            score.vector,
            call.pair_key,
            *graph,
            str(score.activation),
            score.negative_slope,
        )
    else:
        return call.scores(support)
    return logits if call.bias is None else logits + call.bias


@torch.library.custom_op("attn_core::edge_scores", mutates_args=())
def edge_scores(
    query: Tensor | None,
    key: Tensor,
    vector: Tensor | None,
    pair_key: Tensor | None,
    edge_index: Tensor,
    num_keys: int,
    num_queries: int,
    kind: str,
    constant: float,
) -> Tensor:
    """Logits `[E, H]` in the order of edge_index; the arguments are those of `edge_attention`."""
    request = _request(
        query, key, vector, pair_key, edge_index, num_keys, num_queries, kind, constant
    )
    if triton.serves(key, key):
        from attn_core.kernels.triton import scores  # which imports Triton

        return scores.forward(request)
    if pairs.serves(request.edges, key, kind):
        return pairs.scores(request.edges, query, key, vector, pair_key, kind, constant)
    problem = csr.Problem.of(request)
    ordered = problem.logits()
    logits = torch.empty_like(ordered)
    logits[problem.pair] = ordered
    return logits


@edge_scores.register_fake
def _(*inputs: Any) -> Tensor:
    key, edge_index = inputs[1], inputs[4]
    return key.new_empty(edge_index.shape[1], key.shape[1])


@torch.library.custom_op("attn_core::edge_scores_backward", mutates_args=())
def edge_scores_backward(
    grad: Tensor,
    needed: list[bool],
    query: Tensor | None,
    key: Tensor,
    vector: Tensor | None,
    pair_key: Tensor | None,
    edge_index: Tensor,
    num_keys: int,
    num_queries: int,
    kind: str,
    constant: float,
) -> list[Tensor]:
    """Gradients of query, key, vector and pair_key; those that are not `needed` are empty."""
    request = _request(
        query, key, vector, pair_key, edge_index, num_keys, num_queries, kind, constant
    )
    if triton.serves(key, grad):
        from attn_core.kernels.triton import scores

        gradients = scores.backward(request, grad, needed)
    elif pairs.serves(request.edges, key, kind):
        gradients = list(_by_kernel(request, grad, *needed))
    else:
        problem = csr.Problem.of(request)
        gradients = list(csr.score_backward(problem, grad.index_select(0, problem.pair), *needed))
    return [grad.new_empty(0) if g is None else g for g in gradients]


@edge_scores_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    grad, needed, given = inputs[0], inputs[1], inputs[2:6]
    return [
        x.new_empty(x.shape) if x is not None and need else grad.new_empty(0)
        for x, need in zip(given, needed, strict=True)
    ]


def _request(
    query: Tensor | None,
    key: Tensor,
    vector: Tensor | None,
    pair_key: Tensor | None,
    edge_index: Tensor,
    num_keys: int,
    num_queries: int,
    kind: str,
    constant: float,
) -> Request:
    # By the pairs that Edges own, unless these Edges are gone by the time of the backward pass
    edges = handled_edges(edge_index) or cached_edges(edge_index, num_keys, num_queries, False)
    return Request(
        edges,
        None,
        edges.num_edges,
        query=query,
        key=key,
        value=key,
        vector=vector,
        bias=None,
        pair_key=pair_key,
        pair_value=None,
        kind=kind,
        constant=constant,
        dropout=0.0,
        seed=None,
        pair_id=None,
    )


def _by_kernel(
    request: Request,
    grad: Tensor,
    need_query: bool,
    need_key: bool,
    need_vector: bool,
    need_pair_key: bool,
) -> tuple[Tensor | None, ...]:
    p, query, key = request, request.query, request.key
    if query is None:
        query = key.new_zeros(1, *key.shape[1:]).expand(p.edges.num_queries, -1, -1)
    settings: dict[str, Any] = {"kind": p.kind, "constant": p.constant}
    of_query = of_vector = of_pair = of_key = None
    if need_query or need_vector or need_pair_key:
        of_query, of_vector, of_pair = pairs.sums(
            p.edges, grad, query, key, p.vector, p.pair_key, **settings,
            need_rows=need_query, need_vector=need_vector, need_pair=need_pair_key,
        )  # fmt: skip
    if need_key:
        of_key, _, _ = pairs.sums(
            p.edges, grad, key, query, p.vector, p.pair_key, **settings, by_key=True
        )
    return of_query, of_key, of_vector, of_pair


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, num_keys, num_queries, kind, constant = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = num_keys, num_queries, kind, constant


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    *given, edge_index = ctx.saved_tensors
    needed = [x is not None and need for x, need in zip(given, ctx.needs_input_grad, strict=False)]
    gradients = torch.ops.attn_core.edge_scores_backward(
        grad, needed, *given, edge_index, *ctx.settings
    )
    wanted = [g if need else None for g, need in zip(gradients, needed, strict=True)]
    return *wanted, *[None] * 5


edge_scores.register_autograd(_backward, setup_context=_setup_context)


def _refuse(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "scores of many edges can be differentiated once: run the forward pass inside "
        'attn_core.backend("reference") to differentiate twice'
    )


edge_scores_backward.register_autograd(_refuse)
