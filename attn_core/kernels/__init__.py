"""The fast paths of `attend`, and the choice among them.

A kernel takes a prepared `Call` and returns the output, the log-sum-exp and the weights, the last
two if it makes them. `choose` finds one that serves the call; where there is none, the reference
path does.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from attn_core.kernels import bmm, edges, entmax, sdpa, window
from attn_core.kernels.additive import in_blocks
from attn_core.kernels.call import Call
from attn_core.kernels.cpu import available
from attn_core.kernels.edge_scores import scores as scores_in_blocks
from attn_core.kernels.edge_sums import aggregate
from attn_core.transforms import is_transformed

Kernel = Callable[[Call], tuple[Tensor, Tensor | None, Tensor | None]]

__all__ = [
    "Call",
    "Kernel",
    "aggregate",
    "available",
    "choose",
    "entmax",
    "in_blocks",
    "scores_in_blocks",
]


def choose(call: Call, need_weights: bool) -> Kernel | None:
    """The kernel that serves this call, if one does."""
    if is_transformed():
        return None
    if edges.serves(call):
        return edges.run
    if sdpa.serves(call):
        return bmm.run if need_weights else sdpa.run
    if not need_weights and window.serves(call):
        return window.run
    return None
