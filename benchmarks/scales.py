"""Right whatever the scale of the scores: errors of each graph layer, beside torch_geometric's.

The same layer on the same graph in float64 is the truth. One raw feature is multiplied by a scale
from 1 to 1e9, as one that nobody has normalised; for AGNNConv, which divides by the norms of the
features, its temperature is.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch_geometric.nn
from torch import Tensor, nn

import gat
from attn_core import backend
from benchmarks._report import Cell, Report, Table

SCALES = tuple(10.0**power for power in range(10))
INPUTS, ORDERS = 6, 3
NODES, EDGES, CHANNELS, WIDTH, HEADS, EDGE_CHANNELS = 1000, 8000, 16, 8, 4, 3


class Errors(NamedTuple):
    """Of one layer in float32.

    Attributes:
        excess: how far the largest weight is above 1.
        row_sum: how far the weights of a node are from summing to 1.
        output, weights: how far they are from the truth, as a share of it (Euclidean norms).
        gradients: the same of the gradients of the features and of all parameters, each times what
            it belongs to. So all have the unit of the loss, whatever the scale of the features, and
            one that vanishes counts as far as its error moves the loss.
    """

    excess: float
    row_sum: float
    output: float
    weights: float
    gradients: float


@dataclass(frozen=True)
class Case:
    """A layer of ours, and torch_geometric's with the same parameters; None: the definition."""

    build: Callable[[], nn.Module]
    peer: Callable[[], nn.Module] | None = None
    edge_features: bool = False

    def twins(self) -> tuple[nn.Module, nn.Module]:
        ours = self.build()
        if self.peer is None:
            return ours, ours
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


def measure(
    name: str, scale: float, inputs: int = INPUTS, orders: int = ORDERS
) -> tuple[Errors, Errors]:
    """The errors of a layer of ours, and of its peer: root mean squares over some inputs.

    Each input is taken in several orders of its channels and edges, which change nothing but what
    is rounded: at large scales few rows make the error, and in one order chance decides it.
    """
    draws = [(seed, order) for seed in range(inputs) for order in range(orders)]
    both = zip(*(_measure(name, scale, *draw) for draw in draws), strict=True)
    ours, theirs = (
        Errors(*(math.hypot(*x) / len(draws) ** 0.5 for x in zip(*e, strict=True))) for e in both
    )
    return ours, theirs


def weights_of(name: str, scale: float, seed: int = 0) -> Tensor:
    """The weights `[E, H]` of a layer of ours."""
    ours, _, given = _drawn(name, scale, seed)
    return _results(ours, given, torch.float32)["weights"]


def _measure(name: str, scale: float, seed: int, order: int = 0) -> tuple[Errors, Errors]:
    ours, theirs, given = _drawn(name, scale, seed)
    if order:
        torch.manual_seed(order)
        given = _in_another_order(ours, theirs, given)
    with backend("reference") if CASES[name].peer is None else nullcontext():
        truth, peer = (_results(theirs, given, dtype) for dtype in (torch.float64, torch.float32))
    return tuple(_errors(found, truth) for found in (_results(ours, given, torch.float32), peer))  # type: ignore[return-value]


def _drawn(name: str, scale: float, seed: int) -> tuple[nn.Module, nn.Module, tuple[Any, ...]]:
    """The two layers and what they are called with."""
    case = CASES[name]
    torch.manual_seed(seed)
    # No pair twice: two that differ in their edge features alone would tie in float32
    pairs = torch.randperm(NODES * NODES)[:EDGES]
    x, edge_index = torch.randn(NODES, CHANNELS), torch.stack([pairs // NODES, pairs % NODES])
    ours, theirs = case.twins()
    if isinstance(ours, gat.AGNNConv):
        for layer in (ours, theirs):
            nn.init.constant_(layer.beta, scale)  # type: ignore[arg-type]
    else:
        x[:, 0] *= scale
    return ours, theirs, (x, edge_index, *[torch.randn(EDGES, EDGE_CHANNELS)] * case.edge_features)


def _in_another_order(
    ours: nn.Module, theirs: nn.Module, given: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The same input with its channels and edges in a drawn order, as the layers take it then."""
    x, edge_index, *edge_attr = given
    channels, edges = torch.randperm(CHANNELS), torch.randperm(EDGES)
    for weight in {id(p): p for layer in (ours, theirs) for p in layer.parameters()}.values():
        if weight.dim() == 2 and weight.shape[1] == CHANNELS:
            weight.data = weight.data[:, channels]
    return x[:, channels], edge_index[:, edges], *(attr[edges] for attr in edge_attr)


def _results(layer: nn.Module, given: tuple[Any, ...], dtype: torch.dtype) -> dict[str, Tensor]:
    """What comes out, and the gradients, each times what it belongs to."""
    layer, (x, edge_index, *edge_attr) = copy.deepcopy(layer).to(dtype), given
    x, asked = x.to(dtype).requires_grad_(), hasattr(layer, "heads")  # AGNNConv returns no weights
    options = {"return_attention_weights": True} if asked else {}
    found = layer(x, edge_index, *(attr.to(dtype) for attr in edge_attr), **options)
    output, (with_loops, weights) = found if asked else (found, (edge_index, None))
    torch.manual_seed(0)
    loss = (output * torch.randn(output.shape, dtype=torch.float64).to(dtype)).sum()
    of = {"x": x, **dict(layer.named_parameters())}
    grads = torch.autograd.grad(loss, list(of.values()))
    made = {f"gradient of {name}": g * of[name] for name, g in zip(of, grads, strict=True)}
    made |= {"output": output, "targets": with_loops[1]}
    return {k: x.detach() for k, x in (made | ({"weights": weights} if asked else {})).items()}


def _errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> Errors:
    excess = row_sum = of_weights = 0.0
    if "weights" in found:
        weights, targets = found["weights"].double(), found["targets"]
        sums = weights.new_zeros(NODES, HEADS).index_add_(0, targets, weights)[targets]
        row_sum, of_weights = float((sums - 1).abs().max()), _difference(weights, truth["weights"])
        excess = max(0.0, float(weights.max()) - 1)
    names = [name for name in truth if name.startswith("gradient")]
    largest = max(float(truth[name].norm()) for name in names)
    off = max(float((found[name] - truth[name]).norm()) for name in names)
    output = _difference(found["output"], truth["output"])
    return Errors(excess, row_sum, output, of_weights, off / largest)


def _difference(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing beside what all benchmarks take."""


def run(arguments: argparse.Namespace) -> Report:
    """Make the table."""
    report, rows = Report("Errors at every scale of the scores"), list[list[Cell]]()
    scales, inputs, orders = (SCALES[::9], 1, 1) if arguments.tiny else (SCALES, INPUTS, ORDERS)
    for name in CASES:
        for scale in scales:
            ours, theirs = measure(name, scale, inputs, orders)
            pairs = [f"{x:.0e} ({y:.0e})" for x, y in zip(ours[1:], theirs[1:], strict=True)]
            largest = f"{1 + ours.excess:.6g}"
            if name == "AGNNConv":
                largest, pairs[0], pairs[2] = "", "", ""
            rows.append([name, f"{scale:.0e}", largest, *pairs])
    note = (
        f"In brackets torch_geometric's, for GraphAttentionConv those of the definition; root mean "
        f"squares of {inputs} graphs of {NODES} nodes and {EDGES} edges, each in {orders} orders."
    )
    columns = ["layer", "scale", "largest weight", "row sum", "output", "weights", "gradients"]
    report.add(Table("Errors by scale, ours (theirs)", columns, rows, note))
    return report
