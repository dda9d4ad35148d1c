"""One attention over edges: the arguments of its op, from `attend` down to every kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from attn_core.supports.edges import Edges, edges_of

_TYPES = {
    "Tensor": "Tensor",
    "Tensor | None": "Tensor?",
    "int": "SymInt",
    "bool": "bool",
    "str": "str",
    "float": "float",
}
_P = TypeVar("_P", bound="Problem")
NAMES = "query", "key", "value", "vector", "bias", "pair_key", "pair_value"
VECTOR = NAMES.index("vector")


@dataclass(eq=False)
class Problem:
    """Softmax attention over the pairs of an edge_index, or the logits of these pairs.

    Args:
        query: `[Nq, H, D]`, or None for an additive score of the key alone.
        key, value: `[Nk, H, D]`, `[Nk, H, Dv]`.
        vector: v of an additive score, `[H, D]`; None stands for ones.
        bias, pair_key, pair_value: `[P, H]`, `[P, H, D]`, `[P, H, Dv]`, with a row for each column
            of edge_index, then (with self_loops) one for each node that gets a self-loop.
        edge_index: integer `[2, E]`, the caller's or that of an Edges; None where `edges` are set.
        num_keys, num_queries: Nk, Nq.
        self_loops: replace self-loops by one for each node that is both source and target.
        kind, constant: of the score, as in `attn_core.scores.Formula`.
        dropout, seed: the probability, and the seed of the mask (`attn_core.dropout`).
        pair_id: int64 `[E]`, by which the mask knows the columns of edge_index. None: by their
            numbers, and an added self-loop by E + node.

    One for many states of a graph has `[B, …]` tensors and seeds; the vector is that of all.
    """

    query: Tensor | None
    key: Tensor
    value: Tensor
    vector: Tensor | None
    bias: Tensor | None
    pair_key: Tensor | None
    pair_value: Tensor | None
    edge_index: Tensor
    num_keys: int
    num_queries: int
    self_loops: bool
    kind: str
    constant: float
    dropout: float
    seed: Tensor | None
    pair_id: Tensor | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What `Problem(*arguments)` takes, in the order of the op's schema."""
        return tuple(map(self.__dict__.__getitem__, _FIELDS))

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Those that have gradients."""
        return (
            self.query, self.key, self.value, self.vector, self.bias, self.pair_key,
            self.pair_value,
        )  # fmt: skip

    @property
    def holds_states(self) -> bool:
        """Whether it is one for many states of a graph."""
        return self.value.dim() == 4

    def states(self) -> list[Problem]:
        """The problem of each state."""
        rest, found = list(self.arguments[len(NAMES) :]), []
        for i in range(len(self.value)):
            tensors: Any = (
                x if x is None or place == VECTOR else x[i] for place, x in enumerate(self.tensors)
            )
            state = Problem(*tensors, *rest)
            state.seed = None if self.seed is None else self.seed[i]
            state.__dict__.update(edges=self.edges, dtype=self.dtype)
            found.append(state)
        return found

    def laid(self: Problem, cls: type[_P], lay: Callable[[Tensor], Tensor]) -> _P:
        """The same problem with its tensors as a backend wants them."""
        tensors: Any = (None if x is None else lay(x) for x in self.tensors)
        problem = cls(*tensors, *self.arguments[len(NAMES) :])
        problem.__dict__.update(edges=self.edges, dtype=self.dtype)
        return problem

    @cached_property
    def edges(self) -> Edges:
        """The Edges of the edge_index; finding them checks that the tensors fit them."""
        edges = edges_of(self.edge_index, self.num_keys, self.num_queries, self.self_loops)
        edges.check(self.query, self.key, self.value)
        rows = edges.num_places if self.self_loops else edges.num_edges
        for name in NAMES[4:]:
            tensor = getattr(self, name)
            if tensor is not None and tensor.shape[0] != rows:
                raise ValueError(
                    f"{name} has {tensor.shape[0]} rows; expected {rows}, one for each edge"
                )
        return edges

    @property
    def num_rows(self) -> int:
        """How many rows bias, pair_key and pair_value have."""
        return self.edges.num_places if self.self_loops else self.edges.num_edges

    @property
    def pair_row(self) -> Tensor | None:
        """Which row of bias, pair_key and pair_value belongs to each pair; None: its own."""
        return self.edges.source_id if self.self_loops else None

    @property
    def heads(self) -> int:
        return self.value.shape[-2]

    @cached_property
    def dtype(self) -> torch.dtype:
        return compute_dtype(*self.tensors)


_FIELDS = tuple(field.name for field in fields(Problem))
SCHEMA = ", ".join(f"{_TYPES[str(field.type)]} {field.name}" for field in fields(Problem))


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in: the widest that was given, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor is not None and tensor.dtype is not dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
