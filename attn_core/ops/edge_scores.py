"""Scores of edges, block by block, recomputed in the backward pass.

Weights that are asked for, and normalisers without a fused kernel, need the logit of each pair. A
score that is wider than one number would make vectors of E × H × D on the way, several of them with
gradients; here they live for a block of pairs at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_core.backends import csr, triton
from attn_core.backends.cpu import pairs
from attn_core.backends.problem import NAMES, SCHEMA, Problem
from attn_core.compat import LOOKS_EDGES_UP
from attn_core.ops.custom import custom_op
from attn_core.ops.edge_attention import empty_gradients, logits, twice
from attn_core.scores import Score

SMALL = 2**20  # numbers in all pairs × heads × channels, below which blocks gain nothing


def scores(
    score: Score, query: Tensor | None, key: Tensor, pair_key: Tensor | None, graph: tuple[Any, ...]
) -> Tensor | None:
    """The logits `[E, H]` of an additive score of many edges; None where that gains nothing."""
    formula, edge_index = score.formula(), graph[0]
    if formula is None or formula.kind == "dot":
        return None
    traced = torch.compiler.is_compiling()  # which may not know how many edges there are
    if not traced and edge_index.shape[1] * key.shape[1:].numel() <= SMALL:
        return None
    kind, constant, vector = formula.of_heads(key.shape[1])
    rest: Any = *graph, False, kind, constant, 0.0, None, None
    p = Problem(query, key, key, vector, None, pair_key, None, *rest)
    found: Tensor = torch.ops.attn_core.edge_scores(*p.arguments)
    return found


@custom_op("attn_core::edge_scores", **LOOKS_EDGES_UP, schema=f"({SCHEMA}) -> Tensor")
def edge_scores(*arguments: Any) -> Tensor:
    """Logits `[E, H]` of a `Problem` in the order of its edge_index, without the bias."""
    p = Problem(*arguments)
    if triton.serves(p.key, p.key):
        from attn_core.backends.triton import scores  # which imports Triton

        return scores.forward(p)
    if pairs.serves(p.edges, p.key):
        return pairs.scores(p.edges, p.query, p.key, p.vector, p.pair_key, p.kind, p.constant)
    return csr.scores(p)


@edge_scores.register_fake
def _(*arguments: Any) -> Tensor:
    p = Problem(*arguments)
    return p.key.new_empty(p.edge_index.shape[1], p.key.shape[1])


@custom_op(
    "attn_core::edge_scores_backward",
    **LOOKS_EDGES_UP,
    schema=f"(Tensor grad, bool[] needed, {SCHEMA}) -> ({', '.join(['Tensor'] * len(NAMES))})",
)
def edge_scores_backward(grad: Tensor, needed: list[bool], *arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of query, key, vector and pair_key in their places; the others are empty."""
    p = Problem(*arguments)
    backend: Any = csr
    if triton.serves(p.key, grad):
        from attn_core.backends.triton import scores

        gradients = scores.backward(p, grad, needed)
    else:
        backend = pairs if pairs.serves(p.edges, p.key) else csr
        gradients = backend.scores_backward(p, grad, needed)
    return tuple(grad.new_empty(0) if g is None else g for g in gradients)


@edge_scores_backward.register_fake
def _(grad: Tensor, needed: list[bool], *arguments: Any) -> tuple[Tensor, ...]:
    return empty_gradients(grad, needed, arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    p = Problem(*inputs)
    ctx.save_for_backward(p.query, p.key, p.vector, p.pair_key, p.edge_index)
    ctx.settings = p.num_keys, p.num_queries, False, p.kind, p.constant, 0.0, None, None


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    query, key, vector, pair_key, edge_index = ctx.saved_tensors
    p = Problem(query, key, key, vector, None, pair_key, None, edge_index, *ctx.settings)
    depends = query, key, None, vector, None, pair_key, None
    needed = [x is not None and n for x, n in zip(depends, ctx.needs_input_grad, strict=False)]
    if torch.is_grad_enabled():
        found: Any = twice(logits, p, (grad,), needed)
    else:
        found = torch.ops.attn_core.edge_scores_backward(grad, needed, *p.arguments)
    wanted = [g if need else None for g, need in zip(found, needed, strict=True)]
    return *wanted, *[None] * (len(p.arguments) - len(NAMES))


edge_scores.register_autograd(_backward, setup_context=_setup_context)
