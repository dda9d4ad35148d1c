"""Score functions over edges by the op of attention over edges, which knows a score by its name."""

from __future__ import annotations

from attn_core import gpu
from attn_core.batched import Repeated
from attn_core.call import Attended, Call
from attn_core.normalizers import Softmax
from attn_core.ops.edge_attention import attended, problem_with
from attn_core.score_functions import name_of
from attn_core.scores import Score
from attn_core.supports.edges import Edges, PendingEdges


def serves(call: Call) -> bool:
    """Whether the op computes this call: softmax of a score that is to be compiled."""
    normalizer = call.normalizer
    return (
        _of_one_state(call.score)[0].compiles
        and isinstance(call.support, (Edges, PendingEdges))
        and Softmax.is_one(normalizer)
        and isinstance(normalizer.temperature, (int, float))
        and normalizer.temperature == 1
        and call.query is not None
        and call.pair_value is None
        and (call.key.device.type == "cpu" or gpu.serves(call.key, call.value))
        and name_of(*_heads_of(call)) is not None
    )


def run(call: Call) -> Attended:
    """The output `[Nq, H, Dv]` and the log-sum-exp `[Nq, H]`."""
    found = name_of(*_heads_of(call))
    assert found is not None and isinstance(call.support, (Edges, PendingEdges))
    name, vector = found
    return attended(problem_with(call, name, 0.0, vector), call.support)


def _of_one_state(score: Score) -> tuple[Score, int]:
    """The score of one state of a batch, and how many these are."""
    return (score.score, score.times) if isinstance(score, Repeated) else (score, 1)


def _heads_of(call: Call) -> tuple[Score, int]:
    score, times = _of_one_state(call.score)
    return score, call.heads // times
