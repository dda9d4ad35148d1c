"""The ops of the library, and the choice of the fastest implementation that serves a call.

An op takes plain tensors and finds what is known of their edges in its body; one file holds a
family of ops with their schema, fakes, gradients and route to a backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from attn_core import compiled
from attn_core.backends import bmm, sdpa, window
from attn_core.call import Attended, Call
from attn_core.ops import additive, edge_attention, edge_entmax, edge_function, edge_sums
from attn_core.ops.steps import OpSteps
from attn_core.reference import Steps
from attn_core.supports import Dense, Edges, PendingEdges, Window
from attn_core.transforms import needs_plain_torch

_REFERENCE, _OPS = Steps(), OpSteps()
# What computes calls over each kind of support: the first that serves one
_KERNELS: dict[type, tuple[Any, ...]] = {
    Dense: (sdpa, bmm),
    Window: (window,),
    Edges: (edge_attention, edge_entmax, edge_function),
    PendingEdges: (edge_attention, edge_entmax, edge_function),
}

_FOLDED = Dense, Window

__all__ = ["attend", "attend_states", "edge_sums", "fastest", "steps", "weights"]


def steps() -> Steps:
    """The three steps, one by one: by ops, or by the definition where nothing else may run."""
    return _REFERENCE if compiled.is_reference() or needs_plain_torch() else _OPS


def fastest(call: Call) -> Callable[[Call], Attended]:
    """The fastest implementation that serves a prepared call."""
    ways = steps()
    for kernel in _KERNELS.get(type(call.support), ()) if ways is _OPS else ():
        if kernel.serves(call):
            found: Callable[[Call], Attended] = kernel.run
            return found
    return ways.attend


def attend(call: Call) -> Attended:
    """A prepared call by the fastest implementation that serves it."""
    temperature = getattr(call.normalizer, "temperature", None)
    if isinstance(temperature, Tensor) and steps() is _OPS and isinstance(call.support, _FOLDED):
        call = call.without_temperature()  # which would keep the scores of all pairs
    run = fastest(call)
    if run is sdpa.run:  # which alone takes keys that several heads share as they are
        return run(call)
    if run is bmm.run and additive.serves(call):
        call = call.with_score(additive.in_blocks(call.score))
    return run(call.ungrouped())


def attend_states(call: Call) -> Attended | None:
    """All states of a stacked call in one step; None where that is not served."""
    if fastest(call) is not edge_attention.run:
        return None
    return edge_attention.run_states(call.ungrouped())


def weights(call: Call, log_sum_exp: Tensor | None = None) -> Tensor:
    """The weights of a prepared call alone."""
    return steps().weights(call.ungrouped(), log_sum_exp)
