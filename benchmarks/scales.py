"""Right whatever the scale of the scores: errors of each graph layer, beside torch_geometric's.

The same layer on the same graph in float64 is the truth. One raw feature is multiplied by a scale
from 1 to 1e9, as one that nobody has normalised; for AGNNConv, which divides by the norms of the
features, its temperature is.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch_geometric.nn
from torch import Tensor, nn

import gat
from attn_core import backend
from benchmarks._report import Report

SCALES = tuple(10.0**power for power in range(10))
NODES, EDGES, CHANNELS, WIDTH, HEADS, EDGE_CHANNELS = 200, 600, 16, 8, 4, 3


@dataclass(frozen=True)
class Case:
    """A layer of ours, and torch_geometric's with the same parameters; None: the definition."""

    build: Callable[[], nn.Module]
    peer: Callable[[], nn.Module] | None = None
    features: bool = False  # of edges

    def twins(self) -> tuple[nn.Module, nn.Module]:
        ours = self.build()
        if self.peer is None:
            return ours, copy.deepcopy(ours)
        theirs = self.peer()
        theirs.load_state_dict(ours.state_dict())
        return ours, theirs


def _case(name: str, **options: Any) -> Case:
    def of(library: Any) -> Callable[[], nn.Module]:
        return lambda: getattr(library, name)(CHANNELS, WIDTH, heads=HEADS, **options)

    return Case(of(gat), of(torch_geometric.nn), "edge_dim" in options)


def _own(score: str) -> Case:
    return Case(lambda: gat.GraphAttentionConv(CHANNELS, WIDTH, heads=HEADS, score=score))


CASES = {
    "GATConv": _case("GATConv"),
    "GATConv, edge features": _case("GATConv", edge_dim=EDGE_CHANNELS),
    "GATv2Conv": _case("GATv2Conv"),
    "GATv2Conv, edge features": _case("GATv2Conv", edge_dim=EDGE_CHANNELS),
    "TransformerConv": _case("TransformerConv"),
    "TransformerConv, edge features": _case("TransformerConv", edge_dim=EDGE_CHANNELS),
    "AGNNConv": Case(gat.AGNNConv, torch_geometric.nn.AGNNConv),
    **{
        f"GraphAttentionConv, {score}": _own(score)
        for score in ("additive", "concat", "cosine", "dot", "general", "scaled_dot", "separable")
    },
}


@dataclass(frozen=True)
class Errors:
    """Of one layer in float32.

    Attributes:
        largest: the largest weight; None where the layer returns none.
        row_sum: how far the weights of a node are from summing to 1, at most.
        output, weights, gradients: how far they are from the truth, as shares of its largest
            number: of all gradients that of which it is most.
        weight: the weights themselves, `[E, H]`.
    """

    largest: float | None
    row_sum: float | None
    output: float
    weights: float | None
    gradients: float
    weight: Tensor | None


def measure(name: str, scale: float, seed: int = 0) -> tuple[Errors, Errors]:
    """The errors of a layer of ours, and of its peer, on one input."""
    case = CASES[name]
    torch.manual_seed(seed)
    edge_index = torch.randint(0, NODES, (2, EDGES))
    x = torch.randn(NODES, CHANNELS)
    edge_attr = torch.randn(EDGES, EDGE_CHANNELS) if case.features else None
    ours, theirs = case.twins()
    if name == "AGNNConv":
        for layer in (ours, theirs):
            layer.beta.data.fill_(scale)
    else:
        x[:, 0] *= scale
    asked = name != "AGNNConv"  # torch_geometric's returns no weights

    def results(layer: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
        layer, features = copy.deepcopy(layer).to(dtype), x.to(dtype).requires_grad_()
        attr = () if edge_attr is None else (edge_attr.to(dtype),)
        options = {"return_attention_weights": True} if asked else {}
        found = layer(features, edge_index, *attr, **options)
        torch.manual_seed(seed + 1)
        output, (with_loops, weights) = found if asked else (found, (None, None))
        loss = (output * torch.randn_like(output, dtype=torch.float64).to(output)).sum()
        of = {"x": features, **dict(layer.named_parameters())}
        grads = torch.autograd.grad(loss, list(of.values()))
        made = {"output": output, "weights": weights, "edge_index": with_loops}
        made |= {f"gradient of {name}": g for name, g in zip(of, grads, strict=True)}
        return {name: value.detach() for name, value in made.items() if value is not None}

    if case.peer is not None:
        truth, peer = results(theirs, torch.float64), results(theirs, torch.float32)
    else:
        with backend("reference"):
            truth, peer = results(theirs, torch.float64), results(theirs, torch.float32)
    return _errors(results(ours, torch.float32), truth), _errors(peer, truth)


def _errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> Errors:
    off = {
        name: _difference(value, truth[name])
        for name, value in found.items()
        if name != "edge_index"
    }
    gradients = max(error for name, error in off.items() if name.startswith("gradient"))
    if "weights" not in found:
        return Errors(None, None, off["output"], None, gradients, None)
    weights, targets = found["weights"], found["edge_index"][1]
    sums = torch.zeros(NODES, HEADS, dtype=torch.float64).index_add_(0, targets, weights.double())
    row_sum = float((sums[targets] - 1).abs().max())
    largest = float(weights.max())
    return Errors(largest, row_sum, off["output"], off["weights"], gradients, weights)


def _difference(found: Tensor, truth: Tensor) -> float:
    """As a share of the largest number of the truth."""
    return float((found - truth).abs().max() / truth.abs().max().clamp(min=1e-30))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beside what all benchmarks take."""


def run(arguments: argparse.Namespace) -> Report:
    """Make the table."""
    rows = []
    for name in CASES:
        for scale in (1e0, 1e9) if arguments.tiny else SCALES:
            both = [measure(name, scale)]
            rows.append((name, scale, *both[0]))
    return rows


if __name__ == "__main__":
    for name in CASES:
        for scale in SCALES:
            a, b = measure(name, scale)
            f = lambda v: "   -   " if v is None else f"{v:.1e}"
            print(
                f"{name:32} {scale:.0e} largest {a.largest}",
                *(
                    f"{k} {f(getattr(a, k))}/{f(getattr(b, k))}"
                    for k in ("row_sum", "output", "weights", "gradients")
                ),
                "BAD"
                if any(
                    getattr(a, k) is not None and getattr(a, k) > 4 * getattr(b, k) + 1e-6
                    for k in ("row_sum", "output", "weights", "gradients")
                )
                else "",
            )
