"""Softmax attention over edges as one differentiable op: `torch.ops.attn_core.edge_attention`.

The op takes plain tensors (`attn_core.backends.problem.Problem` lists them). In its body, out of
sight of torch.compile, it finds the `Edges` of the `edge_index` that it was given; forward and
backward do so alike, and no sort is done twice. What it saves for the backward pass are its inputs,
the output, and the maximum and the sum of each row's exponentials. Weights are recomputed of these
two: made of their log-sum-exp, one number, they would be off by as much as the scores are large.
Every backend computes a score by the same arithmetic in each pass, so that no score exceeds the
maximum. Backends differ in the body only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attn_core.backends import blocks, cpu, csr, generated, triton
from attn_core.backends.problem import NAMES, SCHEMA, VECTOR, Problem
from attn_core.call import Attended, Call
from attn_core.compat import LOOKS_EDGES_UP
from attn_core.dropout import dropout_scale
from attn_core.normalizers import Normalizer, Softmax
from attn_core.ops.custom import custom_op
from attn_core.ops.twice import differentiated
from attn_core.score_functions import FUNCTION
from attn_core.scores import Additive, Dot, Score
from attn_core.supports.base import Support
from attn_core.supports.edges import Edges, PendingEdges
from attn_core.transforms import nobody_watches

_GRADIENTS = ", ".join(["Tensor"] * len(NAMES))
_REST = [None] * (len(Problem.__dataclass_fields__) - len(NAMES))


def serves(call: Call) -> bool:
    """Whether the fused op computes this call."""
    return (
        isinstance(call.support, (Edges, PendingEdges))
        and Softmax.is_one(call.normalizer)
        and call.formula is not None
    )


def run(call: Call) -> Attended:
    """The output `[Nq, H, Dv]` and the log-sum-exp `[Nq, H]`."""
    return attended(problem_of(call), call.support)  # type: ignore[arg-type]


def run_states(call: Call) -> Attended | None:
    """The same for all states of one graph, `[B, …]`, none of which is copied; None where that is
    not served."""
    p, support = problem_of(call), call.support
    if p.kind not in cpu.KINDS or not nobody_watches(*p.tensors, p.edge_index):
        return None
    assert isinstance(support, (Edges, PendingEdges))
    p.edges = support.resolve() if isinstance(support, PendingEdges) else support
    if not cpu.serves(p) or cpu.rounds(p):
        return None
    output, log_sum_exp, *_ = _Straight.apply(p, torch.is_grad_enabled(), *p.tensors)
    return Attended(output, None, log_sum_exp)


def attended(problem: Problem, support: Edges | PendingEdges) -> Attended:
    """What the op makes of a problem over this support."""
    tensors = problem.tensors
    if nobody_watches(*tensors, problem.edge_index):
        edges = support.resolve() if isinstance(support, PendingEdges) else support
        problem.edges = edges  # which are checked with the call
        output, log_sum_exp, *_ = _Straight.apply(problem, torch.is_grad_enabled(), *tensors)
    else:
        if isinstance(support, PendingEdges) and not torch.compiler.is_compiling():
            support.look_at_order()
        name_pairs(problem, support)
        output, log_sum_exp, *_ = torch.ops.attn_core.edge_attention(*problem.arguments)
    return Attended(output, None, log_sum_exp)


def problem_of(call: Call) -> Problem:
    """A prepared call as the kernels know it: without a list of pairs where Edges are given."""
    call = call.without_temperature()
    assert call.formula is not None
    return problem_with(call, *call.formula)


def problem_with(call: Call, kind: str, constant: float, vector: Tensor | None) -> Problem:
    """The same, with a score that kernels know by these three."""
    support = call.support
    assert isinstance(support, (Edges, PendingEdges))
    edge_index: Any = None
    self_loops = False
    if isinstance(support, PendingEdges):
        edge_index, self_loops = support.plain(), support.self_loops
    # Of Edges, source_id says it, but not of those that are part of others
    told = type(support) is not Edges and isinstance(support, Edges) and call.dropout > 0
    pair_id = support.pair_id if told else None  # type: ignore[union-attr]
    return Problem(
        call.query, call.key, call.value, vector, call.bias, call.pair_key, call.pair_value,
        edge_index, support.num_keys, support.num_queries, self_loops, kind, constant, call.dropout,
        call.seed, pair_id,
    )  # fmt: skip


def name_pairs(p: Problem, support: Support | None) -> None:
    """Give a problem over Edges their list of pairs, by which an op finds them again."""
    given: Any = p.edge_index
    if given is None and isinstance(support, Edges):
        p.edge_index = support.pairs
        # The Edges may be gone when backward looks for them, and new ones would not know this
        p.pair_id = support.pair_id if p.dropout > 0 else None


def plainly(p: Problem) -> tuple[Tensor, Tensor]:
    """The same in plain torch, which can be differentiated any number of times."""
    return plain_output(p, Softmax())  # type: ignore[return-value]


def plain_output(p: Problem, normalizer: Normalizer) -> tuple[Tensor, Tensor | None]:
    """The output with any normaliser, and the log-sum-exp of a softmax, in plain torch."""
    edges, log_sum_exp = p.edges, None
    scores = logits(p)
    rows = edges.rows(scores, p.num_keys)
    if Softmax.is_one(normalizer):
        weights, log_sum_exp = normalizer.with_log_sum_exp(scores, rows)
    else:
        weights = normalizer.normalize(scores, rows)
    if p.seed is not None:
        ids = edges.source_id if p.pair_id is None else p.pair_id
        weights = weights * dropout_scale(p.seed, ids, p.heads, p.dropout).to(weights.dtype)
    value = p.value.to(p.dtype)
    output = edges.aggregate(weights, value, of_pairs(p, p.pair_value))
    return output, log_sum_exp


def logits(p: Problem) -> Tensor:
    """The logits of all pairs in plain torch, bias included."""
    score: Score = Dot(p.constant)
    if p.kind.startswith(FUNCTION):
        score = blocks.score_of(p, None if p.vector is None else p.vector.to(p.dtype))
    elif p.kind != "dot":
        score = Additive(p.vector, p.kind, p.constant).to(p.dtype)
    query = None if p.query is None else p.query.to(p.dtype)
    scores = p.edges.scores(score, query, p.key.to(p.dtype), of_pairs(p, p.pair_key))
    bias = of_pairs(p, p.bias)
    return scores if bias is None else scores + bias


def of_pairs(p: Problem, rows: Tensor | None) -> Tensor | None:
    """The row of each pair, in the dtype to compute in."""
    if rows is None:
        return None
    rows = rows.to(p.dtype)
    return rows if p.pair_row is None else rows.index_select(0, p.pair_row)


def backend_of(p: Problem) -> Any:
    """The module whose kernels serve this problem; plain torch does where none are compiled."""
    function = p.kind.startswith(FUNCTION)
    if function and not generated.serves(p):
        return blocks
    if triton.serves(p.key, p.value):
        from attn_core.backends.triton import run  # which imports Triton

        return run
    if function:
        return generated
    return cpu if cpu.serves(p) else csr


def _forward(p: Problem) -> tuple[Tensor, ...]:
    results: tuple[Tensor, ...] = cpu.forward_each(p) if p.holds_states else _run(p, "forward")
    return results


def _run(p: Problem, name: str, *rest: Any) -> Any:
    """What serves a problem runs it, forward or backward."""
    backend = backend_of(p)
    try:
        return getattr(backend, name)(p, *rest)
    except Exception as error:
        if not (p.kind.startswith(FUNCTION) and triton.refuses(error)):
            raise
        generated.refuse(p, error)
    return getattr(backend_of(p), name)(p, *rest)


def _gradients(p: Problem, results: tuple[Tensor, ...], needed: list[bool]) -> tuple[Tensor, ...]:
    """Gradients of the tensors; those that are not needed are empty."""
    if p.holds_states:
        gradients = cpu.backward_each(p, results, needed)
    else:
        gradients = _run(p, "backward", *results, needed)
    return tuple(
        results[0].new_empty(0) if g is None or x is None else g.to(x.dtype)
        for g, x in zip(gradients, p.tensors, strict=True)
    )


@custom_op(
    "attn_core::edge_attention",
    **LOOKS_EDGES_UP,
    schema=f"({SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def edge_attention(*arguments: Any) -> tuple[Tensor, ...]:
    """Output `[Nq, H, Dv]` and log-sum-exp `[Nq, H]` of a `Problem`, float32 at least.

    Backward takes the mean gradient of a row from the output, for which 16 bits are too few. And,
    without gradients, the maximum of each row's scores and the sum of `exp(score - maximum)`.
    """
    return _forward(Problem(*arguments))


@edge_attention.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    p = Problem(*arguments)
    output = p.value.new_empty(p.num_queries, *p.value.shape[1:], dtype=p.dtype)
    return output, *(output.new_empty(output.shape[:2]) for _ in range(3))


@custom_op(
    "attn_core::edge_attention_backward",
    **LOOKS_EDGES_UP,
    schema="(Tensor grad_output, Tensor grad_log_sum_exp, Tensor output, Tensor maximum, "
    f"Tensor total, bool[] needed, {SCHEMA}) -> ({_GRADIENTS})",
)
def edge_attention_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of query, key, value, vector, bias, pair_key and pair_value."""
    return _gradients(Problem(*arguments[6:]), arguments[:5], arguments[5])


@edge_attention_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, ...]:
    return empty_gradients(arguments[0], arguments[5], arguments[6:])


def empty_gradients(
    grad: Tensor, needed: list[bool], arguments: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """The shapes of gradients, for fakes."""
    return tuple(
        x.new_empty(x.shape) if x is not None and need else grad.new_empty(0)
        for x, need in zip(arguments[: len(NAMES)], needed, strict=True)
    )


def twice(formula: Any, p: Problem, grads: tuple[Tensor, ...], needed: list[bool]) -> Any:
    """Gradients of the tensors of a problem by a formula of it, which can be differentiated."""

    def of_tensors(*tensors: Any) -> Any:
        alike = Problem(*tensors, *p.arguments[len(NAMES) :])
        alike.edges = p.edges
        return formula(alike)

    return differentiated(of_tensors, p.tensors, grads, needed)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, Problem(*inputs), output)


def _save(ctx: Any, p: Problem, results: tuple[Any, ...]) -> None:
    output, _, maximum, total = results
    ctx.save_for_backward(*p.tensors, p.edge_index, p.seed, p.pair_id, output, maximum, total)
    ctx.settings = p.num_keys, p.num_queries, p.self_loops, p.kind, p.constant, p.dropout
    ctx.mark_non_differentiable(maximum, total)
    ctx.set_materialize_grads(False)  # of those two: the others are made by _restore


def _restore(
    ctx: Any, grads: tuple[Tensor | None, ...]
) -> tuple[Problem, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The problem, the gradients of output and log-sum-exp, and what else was saved."""
    given: Any
    *given, seed, pair_id, output, maximum, total = ctx.saved_tensors
    settings: Any = *ctx.settings, seed, pair_id
    made = tuple(
        torch.zeros_like(x) if grad is None else grad
        for grad, x in zip(grads, (output, total), strict=False)
    )
    return Problem(*given, *settings), made, (output, maximum, total)


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    p, given, results = _restore(ctx, grads)
    needed = [x is not None and n for x, n in zip(p.tensors, ctx.needs_input_grad, strict=False)]
    return *_differentiate(p, given, results, needed), *_REST


def _differentiate(
    p: Problem, grads: tuple[Tensor, ...], results: tuple[Tensor, ...], needed: list[bool]
) -> list[Tensor | None]:
    alone = not torch.is_grad_enabled() and nobody_watches(*grads, *p.tensors, p.edge_index)
    if p.holds_states and not (alone and cpu.serves(p)):
        return _differentiate_each(p, grads, results, needed)
    if torch.is_grad_enabled():  # of a gradient of a gradient
        return twice(plainly, p, tuple(grad.to(p.dtype) for grad in grads), needed)
    if alone:
        found = _gradients(p, (*grads, *results), needed)
    else:
        name_pairs(p, p.__dict__.get("edges"))  # not to be looked up while they are traced
        found = torch.ops.attn_core.edge_attention_backward(*grads, *results, needed, *p.arguments)
    return [g if need else None for g, need in zip(found, needed, strict=True)]


def _differentiate_each(
    p: Problem, grads: tuple[Tensor, ...], results: tuple[Tensor, ...], needed: list[bool]
) -> list[Tensor | None]:
    """The same state by state."""
    each = [
        _differentiate(state, tuple(x[i] for x in grads), tuple(x[i] for x in results), needed)
        for i, state in enumerate(p.states())
    ]
    found = [None if x[0] is None else torch.stack(x) for x in zip(*each, strict=True)]
    if (of_vector := found[VECTOR]) is not None:
        found[VECTOR] = of_vector.sum(0)
    return found


edge_attention.register_autograd(_backward, setup_context=_setup_context)


class _Straight(torch.autograd.Function):
    """The op without torch's way around ops, which takes longer than attention on a small graph.

    Where values have 16 bits, kernels round the output to these, and take its gradient in them.
    """

    @staticmethod
    def forward(ctx: Any, p: Problem, grad: bool, *tensors: Tensor | None) -> tuple[Any, ...]:
        ctx.edges = p.edges
        if not p.holds_states and backend_of(p) is cpu and cpu.rounds(p):
            output, results = cpu.forward_rounded(p, grad and any(ctx.needs_input_grad))
        else:
            output, *_ = results = _forward(p)
        _save(ctx, p, results)
        return output, *results[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        p, given, results = _restore(ctx, grads)
        p.edges = ctx.edges
        needed = [
            x is not None and n for x, n in zip(p.tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        return None, None, *_differentiate(p, given, results, needed)
