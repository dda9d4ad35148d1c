"""Softmax attention over edges as one differentiable op: `torch.ops.attn_core.edge_attention`.

The op takes plain tensors. In its body, out of sight of torch.compile, it finds the `Edges` of the
`edge_index` that it was given; forward and backward do so alike, and no sort is done twice. What
it saves for the backward pass are its inputs, the output and the log-sum-exp: weights are
recomputed. Backends differ in the body only.

Two scores are left after `Score.prepare`, "dot" (`constant · q·k`) and additive ones named by their
activation (`vᵀ φ(q + k)`; `constant` is the slope of "leaky_relu").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_core.dropout import draw_seed
from attn_core.kernels import cpu, csr, triton
from attn_core.kernels.call import Call, compute_dtype
from attn_core.kernels.request import Request
from attn_core.normalizers import Softmax
from attn_core.scores import ACTIVATIONS, Additive, Dot
from attn_core.supports import Edges, PendingEdges, as_plain, cached_edges, handled_edges
from attn_core.transforms import nobody_watches


def serves(call: Call) -> bool:
    """Whether the fused op computes this call."""
    score, normalizer = call.score, call.normalizer
    return (
        isinstance(call.support, Edges | PendingEdges)
        and isinstance(normalizer, Softmax)
        and not isinstance(normalizer.temperature, Tensor)
        and normalizer.temperature == 1
        and (
            isinstance(score, Dot)
            or (isinstance(score, Additive) and score.activation in ACTIVATIONS)
        )
    )


def run(call: Call) -> tuple[Tensor, Tensor, None]:
    """The output `[Nq, H, Dv]` and the log-sum-exp `[Nq, H]`."""
    support, score = call.support, call.score
    if isinstance(support, PendingEdges):
        edge_index, self_loops = as_plain(support.edge_index), support.self_loops
        if edge_index is not support.edge_index and not torch.compiler.is_compiling():
            support.resolve()  # while there is the EdgeIndex, which knows its order
        pair_id = None
    else:
        assert isinstance(support, Edges)
        edge_index, self_loops = support.pairs, False
        # The Edges may be gone when backward looks for them, and new ones would not know this
        pair_id = None if support.given is support else support.source_id
    kind, constant, vector = "dot", 1.0, None
    if isinstance(score, Dot):
        constant = score.scale
    elif isinstance(score, Additive):
        kind, constant, vector = str(score.activation), score.negative_slope, score.vector
    seed = draw_seed(call.value.device) if call.dropout > 0 else None
    arguments = (
        call.query,
        call.key,
        call.value,
        vector,
        call.bias,
        call.pair_key,
        call.pair_value,
        edge_index,
        support.num_keys,
        support.num_queries,
        self_loops,
        kind,
        constant,
        call.dropout,
        seed,
        pair_id if call.dropout > 0 else None,
    )
    if nobody_watches(*arguments):
        output, log_sum_exp = _Straight.apply(*arguments)
    else:
        output, log_sum_exp = torch.ops.attn_core.edge_attention(*arguments)
    return output, log_sum_exp, None


def _attend(
    query: Tensor | None,
    key: Tensor,
    value: Tensor,
    vector: Tensor | None,
    bias: Tensor | None,
    pair_key: Tensor | None,
    pair_value: Tensor | None,
    edge_index: Tensor,
    num_keys: int,
    num_queries: int,
    self_loops: bool,
    kind: str,
    constant: float,
    dropout: float,
    seed: Tensor | None,
    pair_id: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output `[Nq, H, Dv]` and log-sum-exp `[Nq, H]` of softmax attention over edges.

    Args:
        query: `[Nq, H, D]`, or None for an additive score of the key alone.
        key, value: `[Nk, H, D]`, `[Nk, H, Dv]`.
        vector: v of an additive score, `[H, D]`; None stands for ones.
        bias, pair_key, pair_value: `[P, H]`, `[P, H, D]`, `[P, H, Dv]`, with a row for each column
            of edge_index, then (with self_loops) one for each node that gets a self-loop.
        edge_index: integer `[2, E]`, the caller's or that of an Edges.
        num_keys, num_queries: Nk, Nq.
        self_loops: replace self-loops by one for each node that is both source and target.
        kind: "dot" or the activation of an additive score.
        constant: the factor of "dot", the slope of "leaky_relu".
        dropout, seed: the probability, and the seed of the mask (`attn_core.dropout`).
        pair_id: int64 `[E]`, by which the mask knows the columns of edge_index. None: by their
            numbers, and an added self-loop by E + node.
    """
    request = _request(
        query, key, value, vector, bias, pair_key, pair_value, edge_index, num_keys, num_queries,
        self_loops, kind, constant, dropout, seed, pair_id,
    )  # fmt: skip
    if (compiled := _compiled(request)) is not None:
        output, log_sum_exp = compiled.forward(request)
    else:
        output, log_sum_exp = csr.forward(csr.Problem.of(request))
    return output.to(value.dtype), log_sum_exp


edge_attention = torch.library.custom_op("attn_core::edge_attention", _attend, mutates_args=())


@edge_attention.register_fake
def _(*inputs: Any) -> tuple[Tensor, Tensor]:
    given, value, num_queries = inputs[:7], inputs[2], inputs[9]
    heads, width = value.shape[1:]
    return (
        value.new_empty(num_queries, heads, width),
        value.new_empty(num_queries, heads, dtype=compute_dtype(*given)),
    )


def _differentiate(
    grad_output: Tensor,
    grad_log_sum_exp: Tensor,
    output: Tensor,
    log_sum_exp: Tensor,
    needed: list[bool],
    query: Tensor | None,
    key: Tensor,
    value: Tensor,
    vector: Tensor | None,
    bias: Tensor | None,
    pair_key: Tensor | None,
    pair_value: Tensor | None,
    edge_index: Tensor,
    num_keys: int,
    num_queries: int,
    self_loops: bool,
    kind: str,
    constant: float,
    dropout: float,
    seed: Tensor | None,
    pair_id: Tensor | None,
) -> list[Tensor]:
    """Gradients of query, key, value, vector, bias, pair_key and pair_value; those that are not
    `needed` are empty."""
    request = _request(
        query, key, value, vector, bias, pair_key, pair_value, edge_index, num_keys, num_queries,
        self_loops, kind, constant, dropout, seed, pair_id,
    )  # fmt: skip
    given = (query, key, value, vector, bias, pair_key, pair_value)
    results = grad_output, grad_log_sum_exp, output, log_sum_exp
    if (compiled := _compiled(request)) is not None:
        gradients = compiled.backward(request, *results, needed)
    else:
        gradients = csr.backward(csr.Problem.of(request), *results, needed)
    return [
        grad_output.new_empty(0) if g is None or x is None else g.to(x.dtype)
        for g, x in zip(gradients, given, strict=True)
    ]


edge_attention_backward = torch.library.custom_op(
    "attn_core::edge_attention_backward", _differentiate, mutates_args=()
)


@edge_attention_backward.register_fake
def _(*inputs: Any) -> list[Tensor]:
    needed, given = inputs[4], inputs[5:12]
    return [
        x.new_empty(x.shape) if x is not None and need else inputs[0].new_empty(0)
        for x, need in zip(given, needed, strict=True)
    ]


def _compiled(request: Request) -> Any:
    """The module whose compiled kernels serve this call; None: plain torch does."""
    if triton.serves(request.key, request.value):
        from attn_core.kernels.triton import run  # which imports Triton

        return run
    return cpu if cpu.serves(request) else None


def _request(*arguments: Any) -> Request:
    """Find the Edges, and what else the kernels need to know."""
    given, (edge_index, num_keys, num_queries, self_loops), rest = (
        arguments[:7], arguments[7:11], arguments[11:],
    )  # fmt: skip
    edges = handled_edges(edge_index)
    if edges is None:
        edges = cached_edges(edge_index, num_keys, num_queries, self_loops)
    elif self_loops:
        edges = edges.with_self_loops()
    rows, pair_row = edge_index.shape[1], None
    if self_loops:
        rows, pair_row = rows + min(num_keys, num_queries), edges.source_id
    query, key, value, _, *per_pair = given
    edges.check(query, key, value)
    for name, tensor in zip(("bias", "pair_key", "pair_value"), per_pair, strict=True):
        if tensor is not None and tensor.shape[0] != rows:
            raise ValueError(
                f"{name} has {tensor.shape[0]} rows; expected {rows}, one for each edge"
            )
    return Request(edges, pair_row, rows, *given, *rest)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *given, edge_index = inputs[:8]
    *settings, seed, pair_id = inputs[8:]
    ctx.save_for_backward(*given, edge_index, seed, pair_id, *output)
    ctx.settings = settings
    ctx.set_materialize_grads(True)


def _backward(ctx: Any, grad_output: Tensor, grad_log_sum_exp: Tensor) -> tuple[Any, ...]:
    *given, edge_index, seed, pair_id, output, log_sum_exp = ctx.saved_tensors
    needed = [x is not None and need for x, need in zip(given, ctx.needs_input_grad, strict=False)]
    arguments = (
        grad_output, grad_log_sum_exp, output, log_sum_exp, needed, *given, edge_index,
        *ctx.settings, seed, pair_id,
    )  # fmt: skip
    if not torch.is_grad_enabled() and nobody_watches(*arguments):
        gradients = _differentiate(*arguments)
    else:
        gradients = torch.ops.attn_core.edge_attention_backward(*arguments)
    wanted = [g if need else None for g, need in zip(gradients, needed, strict=True)]
    return *wanted, *[None] * 9


edge_attention.register_autograd(_backward, setup_context=_setup_context)


def _refuse(ctx: Any, *_: Any) -> None:
    raise RuntimeError(
        "the fused edge attention can be differentiated once: run the forward pass inside "
        'attn_core.backend("reference") to differentiate twice'
    )


edge_attention_backward.register_autograd(_refuse)


class _Straight(torch.autograd.Function):
    """The op without torch's way around ops, which takes longer than attention on a small graph."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _attend(*inputs)
        _setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_backward)
