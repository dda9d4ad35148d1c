"""Prints a digest of the bits that the compiled kernels compute, one line to a call.

The same wheel must print the same under every release of torch: `make wheel` compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from attn_core import (
    Additive,
    Edges,
    Entmax,
    ScaledDot,
    Score,
    Separable,
    Sparsemax,
    _cpu,  # type: ignore[attr-defined]
    attend,
    scatter_softmax,
)

NODES, EDGES, HEADS, WIDTH = 300, 5000, 4, 16


def numbers(*shape: int, step: int) -> Tensor:
    """Numbers in [-1, 1) without torch's random numbers or functions, which may change."""
    count = torch.Size(shape).numel()
    return (torch.arange(count).mul(step).remainder(257).float() / 128 - 1).view(shape)


def calls() -> Iterator[tuple[str, list[Tensor]]]:
    """A name, and the output and gradients of a call."""
    sources = torch.arange(EDGES).mul(7919).remainder(NODES)
    targets = torch.arange(EDGES).mul(104729).remainder(1009).remainder(NODES - 10)
    edges = Edges.from_edge_index(torch.stack([sources, targets]), size=NODES)
    vector = numbers(HEADS, WIDTH, step=31).requires_grad_()
    scores: dict[str, tuple[Score, int]] = {
        "GAT": (Separable(activation="leaky_relu"), 1),
        "GATv2": (Additive(vector, "leaky_relu"), WIDTH),
        "Bahdanau": (Additive(vector, "tanh"), WIDTH),
        "Transformer": (ScaledDot(), WIDTH),
    }
    for name, (score, width) in scores.items():
        for dropout in (0.0, 0.5):
            torch.manual_seed(0)
            given = [
                numbers(NODES, HEADS, channels, step=step).requires_grad_()
                for channels, step in ((width, 3), (width, 5), (WIDTH, 11))
            ]
            output = attend(*given, score=score, support=edges, dropout=dropout).output
            output.backward(numbers(*output.shape, step=13))
            yield (
                f"{name}, dropout {dropout}",
                [output, *(x.grad for x in given if x.grad is not None)],
            )
    logits = (8 * numbers(EDGES, HEADS, step=17)).requires_grad_()
    weights = scatter_softmax(logits, targets, NODES)
    weights.backward(numbers(EDGES, HEADS, step=19))
    assert logits.grad is not None
    yield "scatter_softmax", [weights, logits.grad]
    for normalizer in (Sparsemax(), Entmax(1.5)):
        given = [numbers(NODES, HEADS, WIDTH, step=step).requires_grad_() for step in (3, 5, 11)]
        output = attend(*given, score=ScaledDot(), normalizer=normalizer, support=edges).output
        output.backward(numbers(*output.shape, step=13))
        yield repr(normalizer), [output, *(x.grad for x in given if x.grad is not None)]


def main() -> None:
    for instructions in ("avx512", "avx2", "baseline"):
        if not _cpu.choose_instruction_set(instructions):
            continue
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for name, tensors in calls():
                digest = hashlib.sha256()
                for tensor in tensors:
                    digest.update(tensor.detach().numpy().tobytes())
                print(f"{instructions}, {threads} threads, {name}: {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    main()
