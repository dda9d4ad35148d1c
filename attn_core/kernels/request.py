"""One attention over edges, as the op hands it to a backend."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from attn_core.kernels.call import compute_dtype
from attn_core.supports import Edges


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of `edges.edge_attention`, with the Edges found.

    Attributes:
        pair_row: which row of bias, pair_key and pair_value belongs to each pair; None: its own.
        num_rows: how many rows these have.
    """

    edges: Edges
    pair_row: Tensor | None
    num_rows: int
    query: Tensor | None
    key: Tensor
    value: Tensor
    vector: Tensor | None
    bias: Tensor | None
    pair_key: Tensor | None
    pair_value: Tensor | None
    kind: str
    constant: float
    dropout: float
    seed: Tensor | None
    pair_id: Tensor | None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return (
            self.query, self.key, self.value, self.vector, self.bias, self.pair_key,
            self.pair_value,
        )  # fmt: skip

    @cached_property
    def dtype(self) -> torch.dtype:
        return compute_dtype(*self.tensors)
