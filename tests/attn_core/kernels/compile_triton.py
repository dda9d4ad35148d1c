"""Compile every Triton kernel for GPUs that need not be there: `compile_triton.py 90 80`.

The host side runs on tensors of the CPU, and where it would launch a kernel, the kernel is compiled
for the types of its arguments: for the first GPU at every launch, for the others at the kernel's
first. `test_triton.py` starts this in a process of its own, in which Triton does not interpret.
Prints the name of each kernel, the GPU's capability, and the lines of its assembly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TYPES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int32: "i32", torch.int64: "i64",
}  # fmt: skip
LAUNCHED = {
    "attend_rows", "combine_rows", "mean_rows", "by_query", "by_key", "reduce_rows",
    "softmax_entries", "softmax_backward_entries", "additive_logits", "additive_grads",
    "score_rows", "score_grads",
}  # fmt: skip


class Compiling:
    """Stands for a kernel; a launch compiles it, with the hints that a launch would give."""

    def __init__(self, kernel: Any, capabilities: list[int]) -> None:
        self.kernel, self.capabilities = kernel, capabilities

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.launch

    def launch(self, *arguments: Any, **named: Any) -> None:
        from triton import compile as compile_kernel
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
        signature, constants, hints = {}, {}, {}
        for at, parameter in enumerate(self.kernel.params):
            value = given[parameter.name]
            if parameter.is_constexpr or value is None:
                constants[parameter.name] = value
                signature[parameter.name] = "constexpr"
            elif isinstance(value, Tensor):
                signature[parameter.name] = "*" + TYPES[value.dtype]
                hints[at,] = [["tt.divisibility", 16]]
            elif isinstance(value, int):
                signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0:
                    hints[at,] = [["tt.divisibility", 16]]
            else:
                signature[parameter.name] = "fp32"
        source = ASTSource(self.kernel, signature, constants, hints)
        for capability in self.capabilities:
            compiled = compile_kernel(source, target=GPUTarget("cuda", capability, 32))
            print(self.kernel.__name__, capability, compiled.asm["ptx"].count("\n"))
        self.capabilities = self.capabilities[:1]


def compile_all(capabilities: list[int]) -> None:
    """One forward and backward pass of each score, with everything and with nothing per pair."""
    from attn_core import Additive, Dot, Edges, attend, scatter_softmax
    from attn_core.backends import triton as kernels
    from attn_core.backends.triton import additive, plan, run, scores, segments
    from attn_core.ops.segments import Segments

    for module in (run, segments, additive, scores):
        for name, kernel in list(vars(module).items()):
            if type(kernel).__name__ == "JITFunction" and name in LAUNCHED:
                setattr(module, name, Compiling(kernel, capabilities))
    plan.CHUNK = 4
    hub = torch.tensor([[0, 1, 2, 1, 0, 3, 3, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    support = Edges.from_edge_index(torch.cat([hub, hub.flip(0)], 1), 4)

    def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(*shape, dtype=dtype, requires_grad=True)

    for score, heads, width, dtype, per_pair in (
        ("dot", 8, 16, torch.bfloat16, True),
        ("dot", 4, 32, torch.float16, False),
        ("tanh", 3, 5, torch.float32, True),
        ("leaky_relu", 8, 64, torch.float32, False),
        ("leaky_relu", 8, 1, torch.float64, True),
    ):
        shape, rows = (4, heads, width), (support.num_edges, heads)
        vector = leaf(heads, width, dtype=dtype)
        with kernels.on_cpu():
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
    for dtype, columns in ((torch.float32, 8), (torch.float16, 300), (torch.float64, 1)):
        x = leaf(support.num_edges, columns, dtype=dtype)
        with kernels.on_cpu():
            scatter_softmax(x, support.query_index, 4).sum().backward()
            rows = Segments(support.query_index, 4)
            rows.max(x.detach())
            rows.sum(x)
    for dtype, width, activation in (
        (torch.float32, 64, "tanh"), (torch.bfloat16, 7, "leaky_relu"),
        (torch.float64, 1, "leaky_relu"),
    ):  # fmt: skip
        tokens = leaf(2, 40, width, dtype=dtype), leaf(2, 33, width, dtype=dtype)
        with kernels.on_cpu():
            logits = torch.ops.attn_core.additive_scores(
                *tokens, leaf(2, width, dtype=dtype), activation, 0.2
            )
            logits.sum().backward()


if __name__ == "__main__":
    compile_all([int(capability) for capability in sys.argv[1:]])
