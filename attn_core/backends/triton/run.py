"""The host side of the kernels: the tensors they get, the tiles they are cut in, their order."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from attn_core.backends.problem import Problem
from attn_core.backends.triton.backward import by_key, by_query, mean_rows
from attn_core.backends.triton.forward import attend_rows, combine_rows
from attn_core.backends.triton.plan import Side, side_of
from attn_core.backends.triton.tiles import ACC, padded

TILE = 1024  # numbers in a tile of rows × heads × channels: 8 for each of 128 threads
_MOST_ROWS = 16
_MOST_PARTS = 16


class Laid(Problem):
    """A problem whose tensors keep their dtypes, and their strides but the last."""

    @classmethod
    def of(cls, problem: Problem) -> Laid:
        """The same problem with the tensors as the kernels want them."""
        p = problem.laid(cls, _packed)
        p.vector = None if p.vector is None else p.vector.contiguous()
        return p

    def of_pairs(self, side: Side, by: str) -> tuple[Any, ...]:
        """What the kernels that walk through pairs have in common."""
        items, per_pair = side.items, (self.bias, self.pair_key, self.pair_value)
        place = None
        if any(x is not None for x in per_pair):
            place = items.place if self.pair_row is None else side.source
        edge_id, threshold, keep_scale = None, 0, 1.0
        if self.seed is not None:
            edge_id, (threshold, keep_scale) = side.source, _dropout(self.dropout)
            if self.pair_id is not None and self.pair_id is not self.edges.source_id:
                order = self.edges.by_query if by == "query" else self.edges.by_key
                edge_id = self.pair_id.index_select(0, order.permutation)
        return (
            *items[:4], len(items.row), side.other, place, edge_id, self.seed, threshold,
            keep_scale, *strided(self.query), *strided(self.key), *strided(self.value),
            self.vector, *strided(self.bias), *strided(self.pair_key), *strided(self.pair_value),
        )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """The constants that a kernel is compiled for."""
        widths = self.key.shape[2], self.value.shape[2]
        heads, rows = _tile(self.heads, max(widths), _MOST_ROWS)
        return {
            "heads": self.heads, "width": widths[0], "value_width": widths[1], "KIND": self.kind,
            "CONSTANT": float(self.constant), "ACC": ACC[self.dtype], "ROWS": rows, "HEADS": heads,
            "WIDTH": padded(widths[0]), "VALUE_WIDTH": padded(widths[1]),
        }  # fmt: skip


def forward(problem: Problem) -> tuple[Tensor, ...]:
    """The output `[Nq, H, Dv]` in the values' dtype; log-sum-exp, maximum and total `[Nq, H]`."""
    with torch.cuda.device_of(problem.value):  # Triton launches on the current device
        return _forward(Laid.of(problem))


def _forward(p: Laid) -> tuple[Tensor, ...]:
    nodes, width = p.edges.num_queries, p.value.shape[2]
    output = p.value.new_empty(nodes, p.heads, width)
    statistics = [p.value.new_empty(nodes, p.heads, dtype=p.dtype) for _ in range(3)]
    if not statistics[0].numel():
        return output, *statistics
    side = side_of(p.edges, "query")
    parts, of_parts = parts_of(p, side, width), (parts_of(p, side), parts_of(p, side))
    settings = p.settings()
    attend_rows[grid_of(side, settings)](
        *p.of_pairs(side, "query"), output, *statistics, parts, *of_parts, **settings
    )
    combine(side, parts, output, of_parts, statistics)
    return output, *statistics


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
    with torch.cuda.device_of(problem.value):
        p = Laid.of(problem)
        return _backward(p, grad_output, grad_log_sum_exp, output, maximum, total, needed)


def _backward(
    p: Laid,
    grad_output: Tensor,
    grad_log_sum_exp: Tensor,
    output: Tensor,
    maximum: Tensor,
    total: Tensor,
    needed: list[bool],
) -> list[Tensor | None]:
    given = (p.query, p.key, p.value, p.vector, p.bias, p.pair_key, p.pair_value)
    grads: list[Tensor | None] = [None] * 7
    for i, (x, need) in enumerate(zip(given, needed, strict=True)):
        if need and x is not None:
            # The rows of self-loops that were replaced are not written to, and without queries none
            make = torch.zeros if i > 3 or not total.numel() else torch.empty
            grads[i] = make(x.shape, dtype=x.dtype, device=x.device)
    if not total.numel():
        return grads
    grad_output, grad_log_sum_exp, output, maximum, total = (
        x.contiguous() for x in (grad_output, grad_log_sum_exp, output, maximum, total)
    )
    settings = p.settings()
    mean = torch.empty_like(total)
    heads, rows = _tile(p.heads, p.value.shape[2], _MOST_ROWS)
    mean_rows[triton.cdiv(len(mean), rows), triton.cdiv(p.heads, heads)](
        grad_output, output, grad_log_sum_exp, mean, len(mean), p.heads, p.value.shape[2],
        ACC=settings["ACC"], ROWS=rows, HEADS=heads, WIDTH=padded(p.value.shape[2]),
    )  # fmt: skip
    of_rows = grad_output, maximum, total, mean
    grad_query, grad_key, grad_value, grad_vector, *grad_pairs = grads
    if any(grads[i] is not None for i in (0, 3, 4, 5, 6)):
        side = side_of(p.edges, "query")
        grid = grid_of(side, settings)
        part_query = None if grad_query is None else parts_of(p, side, p.key.shape[2])
        part_vector = None
        if grad_vector is not None:
            part_vector = mean.new_empty(grid[0], p.heads, p.key.shape[2])
        by_query[grid](
            *p.of_pairs(side, "query"), *of_rows, grad_query, part_query, part_vector, *grad_pairs,
            **settings,
        )  # fmt: skip
        combine(side, part_query, grad_query)
        if part_vector is not None:
            grads[3] = part_vector.sum(0)
    if grad_key is not None or grad_value is not None:
        side = side_of(p.edges, "key")
        part_key = None if grad_key is None else parts_of(p, side, p.key.shape[2])
        part_value = None if grad_value is None else parts_of(p, side, p.value.shape[2])
        if len(side.items.row):
            by_key[grid_of(side, settings)](
                *p.of_pairs(side, "key"), *of_rows, grad_key, part_key, grad_value, part_value,
                **settings,
            )  # fmt: skip
        combine(side, part_key, grad_key)
        combine(side, part_value, grad_value)
    return grads


def combine(
    side: Side,
    parts: Tensor | None,
    x: Tensor | None,
    of_parts: Sequence[Tensor | None] = (None, None),
    statistics: Sequence[Tensor | None] = (None, None, None),
) -> None:
    """Merge the partial results of rows that were cut: sums, or means and their statistics."""
    if parts is None or x is None:
        return
    _, heads, width = parts.shape
    block, together = _tile(heads, width, _MOST_PARTS)
    items = side.items
    combine_rows[len(items.split_row), triton.cdiv(heads, block)](
        items.split_row, items.split_pointer, parts, *of_parts, x, *statistics, heads, width,
        ACC=ACC[parts.dtype], PARTS=together, HEADS=block, WIDTH=padded(width),
    )  # fmt: skip


def parts_of(p: Laid, side: Side, *width: int) -> Tensor | None:
    """Room for partial results `[parts, H, *width]`; None if no row was cut."""
    if not side.items.num_parts:
        return None
    return p.value.new_empty(side.items.num_parts, p.heads, *width, dtype=p.dtype)


def grid_of(side: Side, settings: dict[str, Any]) -> tuple[int, int]:
    """The programs: items by heads."""
    items = len(side.items.row)
    return triton.cdiv(items, settings["ROWS"]), triton.cdiv(settings["heads"], settings["HEADS"])


def _tile(heads: int, width: int, most: int) -> tuple[int, int]:
    """How many heads, and how many rows of them, make a tile of about TILE numbers."""
    room = max(1, TILE // padded(width))
    block = min(padded(heads), room)
    return block, min(most, max(1, room // block))


def _packed(x: Tensor) -> Tensor:
    """With the channels of a head side by side; heads that are expanded stay so."""
    return x if x.dim() < 3 or x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def strided(x: Tensor | None) -> tuple[Tensor | None, int, int]:
    """A tensor with the strides of its rows and heads."""
    return (None, 0, 0) if x is None else (x, x.stride(0), x.stride(1))


def _dropout(p: float) -> tuple[int, float]:
    """What random bits must reach to be kept, and what the kept weights are multiplied with."""
    if p >= 1:
        return 2**32, 0.0
    (scale,) = struct.unpack("f", struct.pack("f", 1 / (1 - p)))  # in float32, as everywhere
    return int(p * 2**32), scale
