"""Softmax attention over edges in C++: what prepares its arguments, and whether it is there.

The kernels compute in float32 or float64, with channels in multiples of 4 (others are padded with
zeros, which change nothing). Rows of queries, keys, values and gradients of the output may be kept
in 16 bits, and become float32 in registers, unless pairs have vectors of their own or query and key
are single numbers. Whatever else there is, `csr` computes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core import compiled
from attn_core.backends.problem import NAMES, VECTOR, Problem
from attn_core.transforms import bare

KINDS = {"dot": 0, "leaky_relu": 1, "tanh": 2}
_LARGEST = 2**31 - 1  # nodes are 32-bit numbers in the kernels
_MOST_HEADS, _WIDEST = 2**16, 2**20
_16_BITS = torch.bfloat16, torch.float16


def available() -> bool:
    """Whether the compiled kernels are there and not switched off."""
    return compiled.is_on()


def description() -> str:
    """What is live on this machine, in words for a bug report."""
    if (cpu := compiled.module) is None:
        return f"not there ({compiled.reason}); plain torch serves"
    chosen = " (forced by GAT_INSTRUCTION_SET)" if compiled.forced else ""
    live = f"{cpu.instruction_set()}{chosen}, threads of {cpu.threading()}"
    return live if available() else f"there ({live}), but switched off; plain torch serves"


def serves(problem: Problem) -> bool:
    """Whether the kernels compute this call."""
    return (
        available()
        and problem.key.device.type == "cpu"
        and 0 < problem.heads <= _MOST_HEADS
        and 0 < problem.key.shape[-1] <= _WIDEST
        and 0 < problem.value.shape[-1] <= _WIDEST
        and max(problem.edges.num_keys, problem.edges.num_queries) < _LARGEST
        and problem.dtype in (torch.float32, torch.float64)
    )


def forward(problem: Problem) -> tuple[Tensor, ...]:
    """The output `[Nq, H, Dv]`; log-sum-exp, maximum and total `[Nq, H]`."""
    output, _, statistics = _forward(problem, problem.dtype)
    assert output is not None
    return output, *statistics


def forward_each(problem: Problem) -> tuple[Tensor, ...]:
    """The same for many states of one graph, `[B, Nq, H, …]`, each written to where it stands."""
    states, width = problem.states(), problem.value.shape[-1]
    shape = len(states), problem.edges.num_queries, problem.heads
    output = torch.empty(*shape, _up(width), dtype=problem.dtype, device="cpu")
    statistics = [torch.empty(shape, dtype=problem.dtype, device="cpu") for _ in range(3)]
    for i, state in enumerate(states):
        compiled.call("forward", *(x[i] for x in statistics), *_arguments(state)[0], output[i])
    return _cut(output, width), *statistics


def forward_rounded(problem: Problem, keep: bool) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The output in the 16 bits of the values; what `forward` returns, its output if to `keep`."""
    output, rounded, statistics = _forward(problem, problem.dtype if keep else None, True)
    assert rounded is not None
    return rounded, (output, *statistics)


def rounds(problem: Problem) -> bool:
    """Whether `forward_rounded` serves: the values have 16 bits."""
    return problem.dtype == torch.float32 and problem.value.dtype in _16_BITS


def _forward(
    problem: Problem, dtype: torch.dtype | None, rounded: bool = False
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """The output in either dtype, and the rest."""
    arguments, wide = _arguments(problem)
    heads, width = problem.value.shape[1:]
    shape = problem.edges.num_queries, heads
    outputs = [
        None if kept is None else torch.empty(*shape, _up(width), dtype=kept, device="cpu")
        for kept in (dtype, problem.value.dtype if rounded else None)
    ]
    statistics = [torch.empty(shape, dtype=wide, device="cpu") for _ in range(3)]
    compiled.call("forward", *statistics, *arguments, *outputs)
    output, in_16_bits = (None if x is None else _cut(x, width) for x in outputs)
    return output, in_16_bits, statistics


def backward(
    problem: Problem,
    grad_output: Tensor,
    grad_log_sum_exp: Tensor,
    output: Tensor,
    maximum: Tensor,
    total: Tensor,
    needed: list[bool],
) -> list[Tensor | None]:
    """Gradients of query, key, value, vector, bias, pair_key and pair_value, where needed."""
    arguments, dtype = _arguments(problem)
    gradients = _room_for_gradients(problem, arguments, needed)
    given = grad_output, grad_log_sum_exp, output, maximum, total
    _differentiate(problem, arguments, dtype, gradients, *given)
    return _as_given(problem, gradients)


def backward_each(
    problem: Problem, given: tuple[Tensor, ...], needed: list[bool]
) -> list[Tensor | None]:
    """The same for many states of one graph; `given` is what `backward` takes in between."""
    states = problem.states()
    gradients: list[Tensor | None] = []
    for i, state in enumerate(states):
        arguments, dtype = _arguments(state)
        if not gradients:
            gradients = _room_for_gradients(state, arguments, needed, len(states))
        room = [None if x is None else x[i] for x in gradients]
        _differentiate(state, arguments, dtype, room, *(x[i] for x in given))
    if (of_vector := gradients[VECTOR]) is not None:
        gradients[VECTOR] = of_vector.sum(0)
    return _as_given(problem, gradients)


def _differentiate(
    problem: Problem,
    arguments: tuple[Any, ...],
    dtype: torch.dtype,
    gradients: list[Tensor | None],
    grad_output: Tensor,
    grad_log_sum_exp: Tensor,
    output: Tensor,
    maximum: Tensor,
    total: Tensor,
) -> None:
    """Writes the gradients that there is room for."""
    numbers = problem.kind != "dot" and problem.key.shape[-1] == 1  # these need the pairs by key
    turned = numbers or gradients[1] is not None or gradients[2] is not None
    kept = dtype if problem.pair_value is not None else _kept(grad_output, dtype)
    compiled.call(
        "backward",
        _plain(_wide(output, 4), dtype),
        _plain(maximum, dtype),
        _plain(total, dtype),
        *arguments,
        *_order(problem, by_key=turned)[0],
        _plain(_wide(grad_output, 4), kept),
        _plain(grad_log_sum_exp, dtype),
        *gradients,
    )


def _room_for_gradients(
    problem: Problem, arguments: tuple[Any, ...], needed: list[bool], *states: int
) -> list[Tensor | None]:
    """Memory for the gradients of the tensors, as wide as the kernels take these."""
    pairs = problem.edges.num_edges
    gradients: list[Tensor | None] = []
    for i, (need, like) in enumerate(zip(needed, arguments[: len(NAMES)], strict=True)):
        if not need or like is None:
            gradients.append(None)
        elif i < 4 or problem.num_rows == pairs:
            gradients.append(compiled.empty(like, *states, *like.shape))
        else:  # rows of self-loops that were replaced
            gradients.append(torch.zeros(*states, *like.shape, dtype=like.dtype, device="cpu"))
    return gradients


def _as_given(problem: Problem, gradients: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients as wide as the tensors that were given."""
    return [
        None if grad is None or given is None else _cut(grad, given.shape[-1])
        for grad, given in zip(gradients, problem.tensors, strict=True)
    ]


def _arguments(problem: Problem, in_16_bits: bool = True) -> tuple[tuple[Any, ...], torch.dtype]:
    """What both kernels are told, and the dtype they compute in; rows may stay `in_16_bits`."""
    edges, dtype, kind = problem.edges, problem.dtype, problem.kind
    by_query, pair_id, num_rows = _order(problem)
    step = 1 if kind != "dot" and problem.key.shape[-1] == 1 else 4
    query, vector = problem.query, problem.vector
    if query is None:
        query = problem.key.new_zeros(1, *problem.key.shape[1:]).expand(edges.num_queries, -1, -1)
    if vector is None and kind != "dot":
        vector = problem.key.new_ones(problem.key.shape[1:])
    steps = step, step, 4, step, 1, step, 4
    given = (query, *problem.tensors[1:3], vector, *problem.tensors[4:])
    in_16_bits = in_16_bits and problem.pair_key is None and problem.pair_value is None
    rows = in_16_bits and step > 1
    dtypes = [
        dtype if x is None or not may else _kept(x, dtype)
        for x, may in zip(given, (rows, rows, in_16_bits, *[False] * 4), strict=True)
    ]
    tensors = [
        None if x is None else _plain(x if x.shape[-1] % step == 0 else _wide(x, step), dtype)
        for x, step, dtype in zip(given, steps, dtypes, strict=True)
    ]
    seed = problem.seed
    return (
        *tensors,
        *by_query,
        pair_id,
        KINDS[kind],
        float(problem.constant),
        0.0 if seed is None else float(problem.dropout),
        0 if seed is None else int(seed),
        num_rows,
        torch.get_num_threads(),
    ), dtype


def _order(problem: Problem, by_key: bool = False) -> tuple[tuple[Tensor, ...], Tensor | None, int]:
    """The sorted pairs; by which ids dropout knows the rows of their places; how many these are.

    Places are source ids, by which dropout knows pairs anyway; they are positions in the list of
    pairs where something is given for each of these, and some were left out.
    """
    edges, ids = problem.edges, problem.pair_id
    by_position = edges.adds_loops and not problem.self_loops and (
        ids is not None or any(x is not None for x in problem.tensors[4:])
    )  # fmt: skip
    if not by_position:
        return tuple(map(bare, edges.sorted(by_key=by_key))), ids, edges.num_places
    side = edges.by_key if by_key else edges.by_query
    ids = edges.source_id if ids is None and problem.seed is not None else ids
    order = bare(side.pointer), bare(side.columns), bare(side.permutation)
    return order, None if ids is None else bare(ids), edges.num_edges


def _kept(x: Tensor, dtype: torch.dtype) -> torch.dtype:
    """What the kernels read rows in, if they compute in this dtype."""
    return x.dtype if dtype == torch.float32 and x.dtype in _16_BITS else dtype


def _up(width: int) -> int:
    return (width + 3) // 4 * 4


def _wide(x: Tensor, step: int) -> Tensor:
    """With zeros behind the channels, up to a multiple of `step`."""
    missing = -x.shape[-1] % step
    return F.pad(x, (0, missing)) if missing else x


def _plain(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As the kernels take it: in their dtype, each row packed."""
    x = bare(x)
    if x.dtype != dtype:
        x = x.to(dtype)
    packed = x.stride(-1) == 1 and (x.dim() < 3 or x.stride(1) == x.shape[2])
    return x if packed else x.contiguous()


def _cut(x: Tensor, width: int) -> Tensor:
    return x if x.shape[-1] == width else x[..., :width].contiguous()


__all__ = [
    "available",
    "backward",
    "backward_each",
    "description",
    "forward",
    "forward_each",
    "forward_rounded",
    "rounds",
    "serves",
]
