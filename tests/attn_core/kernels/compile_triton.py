"""Compile every Triton kernel for GPUs that need not be there: `compile_triton.py 90 80`.

`test_triton.py` starts this in a process of its own, in which Triton does not interpret. Prints the
name of each kernel and the capabilities of the GPUs, with the registers of a thread.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks._gpu_compile import Compiled, compiling


def tell(compiled: Compiled) -> None:
    print(compiled.kernel, compiled.capability, compiled.registers)


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype, requires_grad=True)


def compile_all(capabilities: list[int]) -> None:
    """One forward and backward pass of each score, with everything and with nothing per pair."""
    from attn_core import Additive, Dot, Edges, Entmax, attend, scatter_softmax
    from attn_core.backends.triton import plan, run
    from attn_core.ops.segments import Segments

    plan.CHUNK, run.WINDOW = 4, 2
    hub = torch.tensor([[0, 1, 2, 1, 0, 3, 3, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    support = Edges.from_edge_index(torch.cat([hub, hub.flip(0)], 1), 4)

    for score, heads, width, dtype, per_pair in (
        ("dot", 8, 16, torch.bfloat16, True),
        ("tanh", 3, 5, torch.float32, True),
        ("leaky_relu", 8, 64, torch.float32, False),
        ("leaky_relu", 8, 1, torch.float16, True),
    ):
        shape, rows = (4, heads, width), (support.num_edges, heads)
        vector = leaf(heads, width, dtype=dtype)
        with compiling(capabilities, tell):
            result = attend(
                leaf(*shape, dtype=dtype),
                leaf(*shape, dtype=dtype),
                leaf(*shape, dtype=dtype),
                score=Dot() if score == "dot" else Additive(vector, score),
                support=support,
                bias=leaf(*rows, dtype=dtype) if per_pair else None,
                pair_key=leaf(*rows, width, dtype=dtype) if per_pair else None,
                pair_value=leaf(*rows, width, dtype=dtype) if per_pair else None,
                dropout=0.5 if per_pair else 0.0,
            )
            result.output.sum().backward()
            tokens = leaf(*shape, dtype=dtype), leaf(*shape, dtype=dtype)
            vector = None if score == "dot" else leaf(heads, width, dtype=dtype)
            pairs = leaf(*rows, width, dtype=dtype) if per_pair else None
            logits = torch.ops.attn_core.edge_scores(
                *tokens, tokens[1], vector, None, pairs, None, support.pairs, 4, 4, False, score,
                0.2, 0.0, None, None,
            )  # fmt: skip
            logits.sum().backward()
    compile_functions(capabilities, support)
    for dtype, columns in ((torch.float16, 300), (torch.float64, 1)):
        x = leaf(support.num_edges, columns, dtype=dtype)
        with compiling(capabilities, tell):
            scatter_softmax(x, support.query_index, 4).sum().backward()
            rows = Segments(support.query_index, 4)
            rows.max(x.detach())
            rows.sum(x)
            for alpha in (1.5, 2.0):
                Entmax(alpha).segment(x, support.query_index, 4).sum().backward()
    for dtype, width, activation in (
        (torch.float32, 64, "tanh"), (torch.bfloat16, 7, "leaky_relu"),
        (torch.float64, 1, "leaky_relu"),
    ):  # fmt: skip
        tokens = leaf(2, 40, width, dtype=dtype), leaf(2, 33, width, dtype=dtype)
        with compiling(capabilities, tell):
            logits = torch.ops.attn_core.additive_scores(
                *tokens, leaf(2, width, dtype=dtype), activation, 0.2
            )
            logits.sum().backward()


def compile_functions(capabilities: list[int], support: Any) -> None:
    """Scores that are functions, with loops, joins and parameters, and a vector for each pair."""
    from attn_core import attend, score_function

    @score_function
    def joined(query, key, pair, matrix, vector):
        x = torch.cat([query, key[..., ::2], pair.flip(-1)], -1)
        hidden = torch.einsum("...hd,de->...he", x, matrix).sigmoid()
        return (hidden * vector).sum(-1) + (query - key).norm(dim=-1)

    @score_function
    def functions(query, key):
        x, y = query * key, query.square() + 1
        x = x.tanh() + x.erf() + x.expm1() + x.sin() + x.cos() + x.floor() + x.sign() + x.abs()
        return (x + y.log() + y.log2() + y.log1p() + y**1.7 + y.sqrt() + x.clamp(0, 1)).sum(-1)

    def tell_of_functions(compiled: Compiled) -> None:
        tell(compiled._replace(kernel=f"function:{compiled.kernel}"))

    num = support.num_edges
    for dtype, score, pair in (
        (torch.bfloat16, joined(leaf(14, 5), leaf(3, 5)), leaf(num, 1, 2)),
        (torch.float64, functions(), None),
    ):
        tokens = (leaf(4, 3, 8, dtype=dtype) for _ in range(3))
        with compiling(capabilities, tell_of_functions):
            output = attend(*tokens, score=score, support=support, pair_key=pair).output
            output.sum().backward()


if __name__ == "__main__":
    compile_all([int(capability) for capability in sys.argv[1:]])
