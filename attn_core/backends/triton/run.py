"""The host side of the kernels: the tensors they get, the tiles they are cut in, their order."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from attn_core.backends import generated
from attn_core.backends.problem import Problem
from attn_core.backends.triton.backward import by_key, by_query, mean_rows
from attn_core.backends.triton.forward import attend_rows, combine_rows, merge_windows
from attn_core.backends.triton.plan import Items, side_of
from attn_core.backends.triton.tiles import ACC, padded
from attn_core.score_functions import FUNCTION

TILE = 1024  # numbers in a tile of rows × heads × channels: 8 for each of 128 threads
WARPS = 4
_MOST_ROWS = 16
_MOST_PARTS = 16
WINDOW = 128  # parts of a row that are merged first, side by side with other windows
LARGE = 32.0  # a score of which the mean gradient is looked at, as in attn_core/backends/cpu
_WIDE = 4  # times wider than all else, the gradients of parameters have tiles of their own
MOST_BYTES = 2**26  # of the gradients of a vector, one from each program


class Laid(Problem):
    """A problem whose tensors keep their dtypes, and their strides if heads lie within rows."""

    @classmethod
    def of(cls, problem: Problem) -> Laid:
        """The same problem with the tensors as the kernels want them."""
        p = problem.laid(cls, _packed)
        p.vector = None if p.vector is None else p.vector.contiguous()
        return p

    @cached_property
    def function(self) -> generated.Function | None:
        """The Triton of a score that is a function."""
        return generated.function_of(self) if self.kind.startswith(FUNCTION) else None

    @cached_property
    def value_is_key(self) -> bool:
        """Whether keys and values are the same numbers, which need not be read twice."""
        key, value = self.key, self.value
        return (
            self.function is None  # which reads what it needs of a key
            and key.data_ptr() == value.data_ptr()
            and key.dtype == value.dtype
            and key.shape == value.shape
            and key.stride() == value.stride()
        )

    def of_pairs(self, items: Items, by: str, scored: bool = False) -> dict[str, Any]:
        """What the kernels that walk through pairs have in common.

        Args:
            items: the work by query or by key.
            by: "query" or "key".
            scored: whether they know what is said of scores by pair, so that values are not read.
        """
        place = None
        if scored or any(x is not None for x in (self.bias, self.pair_key, self.pair_value)):
            place = items.place if self.pair_row is None else items.source
        edge_id, threshold, keep_scale = None, 0, 1.0
        if self.seed is not None:
            edge_id, (threshold, keep_scale) = items.source, _dropout(self.dropout)
            if self.pair_id is not None and self.pair_id is not self.edges.source_id:
                order = self.edges.by_query if by == "query" else self.edges.by_key
                edge_id = self.pair_id.index_select(0, order.permutation)
        value = None if scored or self.value_is_key else self.value
        return {
            "items": items.table, "num_items": len(items.table), "other": items.other,
            "place": place, "edge_id": edge_id, "seed": self.seed, "threshold": threshold,
            "keep_scale": keep_scale, "query": self.query, "key": self.key, "value": value,
            "vector": self.vector, "bias": self.bias, "pair_key": self.pair_key,
            "pair_value": self.pair_value, **self.strides, **self.settings,
        }  # fmt: skip

    @cached_property
    def strides(self) -> dict[str, int]:
        """Those of rows and heads of each tensor."""
        found = {}
        for name in ("query", "key", "value", "bias", "pair_key", "pair_value"):
            x = getattr(self, name)
            found[f"{name}_row".upper()] = 0 if x is None else x.stride(0)
            found[f"{name}_head".upper()] = 0 if x is None or x.shape[1] == 1 else x.stride(1)
        return found

    @property
    def widest(self) -> int:
        """Channels of the widest tile, but those of the parameters of a function."""
        widest = max(self.key.shape[2], self.value.shape[2])
        return widest if self.function is None else max(widest, self.function.widest)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What else a kernel is compiled for."""
        width, value_width = self.key.shape[2], self.value.shape[2]
        function = self.function
        block, rows = _tile(self.heads, self.widest, _MOST_ROWS)
        return {
            "KIND": self.kind if function is None else "function",
            "FUNCTION": None if function is None else function.score,
            "CONSTANT": float(self.constant), "HEADS": self.heads,
            "WIDTH": width, "VALUE_WIDTH": value_width, "ACC": ACC[self.dtype], "ROWS": rows,
            "BLOCK": block, "PAD": padded(width), "VALUE_PAD": padded(value_width),
            "num_warps": WARPS,
        }  # fmt: skip

    @cached_property
    def of_query(self) -> dict[str, int]:
        """What the kernel of gradients by query is compiled for besides."""
        pair_width = vector_width = self.key.shape[2]
        if self.pair_key is not None:
            pair_width = self.pair_key.shape[2]
        if self.function is not None:
            vector_width = self.function.width
        return {
            "PAIR_WIDTH": pair_width, "PAIR_PAD": padded(pair_width), "PAIR_HEADS": self.pair_heads,
            "VECTOR_WIDTH": vector_width, "VECTOR_PAD": padded(vector_width),
        }  # fmt: skip

    @property
    def pair_heads(self) -> int:
        """Of the gradient of `pair_key`: where all heads share one, each program sums its own."""
        shared = self.pair_key is not None and self.pair_key.shape[1] < self.heads
        return triton.cdiv(self.heads, self.settings["BLOCK"]) if shared else self.heads

    def with_tiles_for(self, width: int) -> Laid:
        """The same with smaller tiles, of wider vectors."""
        alike = copy(self)
        block, rows = _tile(self.heads, width, _MOST_ROWS)
        alike.settings = {**self.settings, "BLOCK": block, "ROWS": rows}
        alike.__dict__.pop("of_query", None)
        return alike

    def grid(self, items: Items) -> tuple[int, int]:
        """The programs: items by heads."""
        rows, block = self.settings["ROWS"], self.settings["BLOCK"]
        return triton.cdiv(len(items.table), rows), triton.cdiv(self.heads, block)

    def parts(self, items: Items, *width: int) -> Tensor | None:
        """Room for partial results `[parts, H, *width]`; None if no row was cut."""
        if not len(items.parts):
            return None
        return self.value.new_empty(len(items.parts), self.heads, *width, dtype=self.dtype)


def forward(problem: Problem) -> tuple[Tensor, ...]:
    """The output `[Nq, H, Dv]`, and log-sum-exp, maximum and total `[Nq, H]`, float32 at least."""
    with torch.cuda.device_of(problem.value):  # Triton launches on the current device
        return _forward(Laid.of(problem))


def _forward(p: Laid) -> tuple[Tensor, ...]:
    nodes, width = p.edges.num_queries, p.value.shape[2]
    output = p.value.new_empty(nodes, p.heads, width, dtype=p.dtype)
    statistics = [p.value.new_empty(nodes, p.heads, dtype=p.dtype) for _ in range(3)]
    if not statistics[0].numel():
        return output, *statistics
    items = side_of(p.edges, "query")
    parts, of_parts = p.parts(items, width), (p.parts(items), p.parts(items))
    attend_rows[p.grid(items)](
        **p.of_pairs(items, "query"), output=output,
        **dict(zip(("log_sum_exp", "maximum", "total_of"), statistics, strict=True)),
        part_output=parts, part_maximum=of_parts[0], part_total=of_parts[1],
    )  # fmt: skip
    combine(items, parts, output, of_parts, statistics)
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
        if not total.numel():
            return grads_of(p, needed, torch.zeros)
        grad_output, grad_log_sum_exp, output, maximum, total = (
            x.contiguous() for x in (grad_output, grad_log_sum_exp, output, maximum, total)
        )
        mean = torch.empty_like(total)
        width = p.value.shape[2]
        block, rows = _tile(p.heads, width, _MOST_ROWS)
        mean_rows[triton.cdiv(len(mean), rows), triton.cdiv(p.heads, block)](
            grad_output, output, grad_log_sum_exp, mean, len(mean), HEADS=p.heads, WIDTH=width,
            ACC=ACC[p.dtype], ROWS=rows, BLOCK=block, PAD=padded(width),
        )  # fmt: skip
        given = {
            "grad_output": grad_output, "maximum": maximum, "total": total, "mean": mean,
            "grad_score": None,
        }  # fmt: skip
        grads = grads_of(p, needed, torch.empty)
        rest = _missed(p, given) - grad_log_sum_exp
        rest = torch.where(_is_large(maximum, total), rest, 0)
        differentiate(p, grads, rest=rest, **given)
        return grads


def _is_large(maximum: Tensor, total: Tensor) -> Tensor:
    """Of which rows the mean gradient is looked at: as on CPUs, see `docs/design.md`."""
    return (maximum.abs() > LARGE) & (total >= 1) & (total < 2)


def _missed(p: Laid, given: dict[str, Tensor | None]) -> Tensor:
    """What the gradients of the logits of each row sum to, where scores are large, `[Nq, H]`."""
    maximum, total = given["maximum"], given["total"]
    assert maximum is not None and total is not None
    items = side_of(p.edges, "query")
    missed, parts = _is_large(maximum, total).to(p.dtype), p.parts(items)
    by_query[p.grid(items)](
        **p.of_pairs(items, "query"), **given, rest=None, missed=missed, part_missed=parts,
        turns=1, MANY=False, grad_query=None, part_query=None, part_vector=None,
        grad_bias=None, grad_pair_key=None, grad_pair_value=None, **p.of_query,
    )  # fmt: skip
    if parts is not None:
        combine(items, parts.unsqueeze(-1), missed.unsqueeze(-1))
    return missed


def grads_of(p: Laid, needed: list[bool], make: Any) -> list[Tensor | None]:
    """Room for the gradients that are needed, made by `make` where every number is written."""
    # The rows of self-loops that were replaced are not written to
    return [
        (torch.zeros if i > 3 else make)(x.shape, dtype=x.dtype, device=x.device)
        if need and x is not None
        else None
        for i, (x, need) in enumerate(zip(p.tensors, needed, strict=True))
    ]


def differentiate(p: Laid, grads: list[Tensor | None], **given: Tensor | None) -> None:
    """Fill in gradients, given those of the output and its statistics, or those of the scores."""
    _, grad_key, grad_value, grad_vector, *_ = grads
    of_query = [None if i in (1, 2) else x for i, x in enumerate(grads)]
    if grad_vector is not None and p.function is not None and p.function.width > _WIDE * p.widest:
        alone = [grad_vector if i == 3 else None for i in range(len(grads))]
        grads[3], _ = _differentiate_by_query(p.with_tiles_for(p.function.width), alone, given)
        of_query[3] = None
    if any(x is not None for x in of_query):
        of_vector, of_pair = _differentiate_by_query(p, of_query, given)
        grads[3], grads[5] = grads[3] if of_vector is None else of_vector, of_pair
    if grad_key is not None or grad_value is not None:
        items, scored = side_of(p.edges, "key"), given["grad_score"] is not None
        part_key = None if grad_key is None else p.parts(items, p.key.shape[2])
        part_value = None if grad_value is None else p.parts(items, p.value.shape[2])
        if len(items.table):
            by_key[p.grid(items)](
                **p.of_pairs(items, "key", scored), **given, grad_key=grad_key, part_key=part_key,
                grad_value=grad_value, part_value=part_value,
            )  # fmt: skip
        combine(items, part_key, grad_key)
        combine(items, part_value, grad_value)


def _differentiate_by_query(
    p: Laid, grads: list[Tensor | None], given: dict[str, Tensor | None]
) -> tuple[Tensor | None, Tensor | None]:
    """Fill in those of queries and of pairs; those of the vector and of `pair_key`, which may be
    sums of what is made here."""
    grad_query, _, _, grad_vector, grad_bias, grad_pair_key, grad_pair_value = grads
    items, function = side_of(p.edges, "query"), p.function
    programs, blocks = p.grid(items)
    part_query = None if grad_query is None else p.parts(items, p.key.shape[2])
    part_vector, turns, of_pair = None, 1, grad_pair_key
    if grad_vector is not None:
        shape = grad_vector.shape if function is None else (p.heads, function.width)
        size = math.prod(shape) * p.dtype.itemsize
        turns = triton.cdiv(programs, max(1, MOST_BYTES // max(1, size)))
        programs = triton.cdiv(programs, turns)
        part_vector = p.value.new_empty(programs, *shape, dtype=p.dtype)
    if grad_pair_key is not None and grad_pair_key.shape[1] != p.pair_heads:
        rows, _, width = grad_pair_key.shape
        of_pair = grad_pair_key.new_zeros(rows, p.pair_heads, width, dtype=p.dtype)
    by_query[programs, blocks](
        **p.of_pairs(items, "query", given["grad_score"] is not None), **given, **p.of_query,
        turns=turns, MANY=turns > 1, missed=None, part_missed=None, grad_query=grad_query,
        part_query=part_query, part_vector=part_vector, grad_bias=grad_bias,
        grad_pair_key=of_pair, grad_pair_value=grad_pair_value,
    )  # fmt: skip
    combine(items, part_query, grad_query)
    if of_pair is not None and of_pair is not grad_pair_key:
        of_pair = of_pair.sum(1, keepdim=True)
    if part_vector is None:
        return None, of_pair
    return part_vector.sum(0) if function is None else function.gradient(part_vector), of_pair


def combine(
    items: Items,
    parts: Tensor | None,
    x: Tensor | None,
    of_parts: Sequence[Tensor | None] = (None, None),
    statistics: Sequence[Tensor | None] = (None, None, None),
) -> None:
    """Merge the partial results of rows that were cut: sums, or means and their statistics.

    Args:
        items: whose parts they are.
        parts: sums or means `[parts, H, D]`; None where there are only statistics, or no parts.
        x: where what is merged goes, `[rows, H, D]`.
        of_parts: the maximum and the total of each part, `[parts, H]`.
        statistics: where log-sum-exp, maximum and total go, `[rows, H]`.
    """
    like = parts if parts is not None else of_parts[0]
    if like is None or (x is None and statistics[1] is None):
        return
    number, heads, width = *like.shape[:2], 1 if parts is None else like.shape[2]
    block, together = _tile(heads, width, _MOST_PARTS)
    sizes = {
        "HEADS": heads, "WIDTH": width, "ACC": ACC[like.dtype], "PARTS": together, "BLOCK": block,
        "PAD": padded(width), "WINDOW": 0,
    }  # fmt: skip
    blocks = triton.cdiv(heads, block)
    if number >= 2 * WINDOW:
        sizes["WINDOW"] = WINDOW
        merge_windows[number // WINDOW, blocks](items.parts, parts, *of_parts, **sizes)
    combine_rows[number, blocks](items.parts, parts, *of_parts, x, *statistics, **sizes)


def _tile(heads: int, width: int, most: int) -> tuple[int, int]:
    """How many heads, and how many rows of them, make a tile of about TILE numbers."""
    room = max(1, TILE // padded(width))
    block = min(padded(heads), room)
    return block, min(most, max(1, room // block))


def _packed(x: Tensor) -> Tensor:
    """With the channels of a head side by side, and its heads within a row; one that is expanded
    stays so. Then no stride depends on the number of rows, which a kernel is not compiled for."""
    if x.dim() < 2:  # the parameters of a function
        return x
    channels_apart = x.dim() == 3 and x.shape[-1] > 1 and x.stride(-1) != 1
    heads_apart = x.shape[1] > 1 and x.stride(1) > x.stride(0) > 0
    return x.contiguous() if channels_apart or heads_apart else x


def _dropout(p: float) -> tuple[int, float]:
    """What random bits must reach to be kept, and what the kept weights are multiplied with."""
    if p >= 1:
        return 2**32, 0.0
    (scale,) = struct.unpack("f", struct.pack("f", 1 / (1 - p)))  # in float32, as everywhere
    return int(p * 2**32), scale
