"""Graph attention layers on a GPU: ours, torch_geometric's, and what memory could carry at best.

What is compared is first shown to compute what float64 computes on the CPU. Times are medians, by
the GPU's own clock.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch_geometric import nn as theirs

import gat
from attn_core import clear_cache
from attn_core.backends import triton as kernels
from benchmarks._gpu import (
    COMPILED,
    OURS,
    PEER,
    columns,
    copy_bandwidth,
    errors,
    measure,
    timer,
)
from benchmarks._gpu_pieces import measure_new_graphs, measure_piece_errors, measure_pieces
from benchmarks._graphs import GRAPHS, make_graph
from benchmarks._measure import take_turns
from benchmarks._report import Cell, Report, Table
from examples.shared.files import UserError

LAYERS = ("GATConv", "GATv2Conv", "TransformerConv")
EAGER = "torch_geometric"
FOR_PIECES = 0.2  # of the time


@dataclass(frozen=True)
class Case:
    """One layer on one graph."""

    layer: str
    graph: str = "uniform"
    edges: int = 10**7
    heads: int = 8
    channels: int = 16
    dtype: torch.dtype = torch.float32
    compiled: bool = False  # whether to compile torch_geometric's layer, which takes long

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.layer}, {self.graph}, {self.edges:,} edges, "
            f"{self.heads} × {self.channels}, {dtype}"
        )


def cases() -> list[Case]:
    """What to measure, the most important first: time may run out."""
    found = [
        Case(layer, graph, compiled=True) for graph in ("uniform", "power law") for layer in LAYERS
    ]
    found += [Case(layer, graph) for graph in ("one hub", "band") for layer in LAYERS]
    found += [Case(layer, dtype=torch.bfloat16, compiled=True) for layer in LAYERS]
    found += [Case(layer, edges=10**6, compiled=True) for layer in LAYERS]
    shapes = (1, 64), (4, 32), (8, 64)
    found += [
        Case(layer, heads=heads, channels=channels)
        for heads, channels in shapes
        for layer in LAYERS
    ]
    found += [Case(layer, edges=10**8) for layer in LAYERS]
    found += [Case(layer, graph, edges=10**6) for graph in GRAPHS for layer in LAYERS]
    return list(dict.fromkeys(found))


def tiny_cases() -> list[Case]:
    """Every layer, graph and dtype once, and nothing that takes time."""
    layers = itertools.cycle(LAYERS)
    found = [Case(next(layers), graph, edges=32, heads=2, channels=4) for graph in GRAPHS]
    return [*found, replace(found[0], dtype=torch.bfloat16)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark takes to its command line."""
    parser.add_argument(
        "--minutes", type=float, default=7.0, metavar="M",
        help="begin nothing new after this time; what is left out is named (default: %(default)s)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> Report:
    """Check, then measure as long as there is time."""
    started = time.monotonic()
    device, context = _device(arguments.tiny)
    torch.manual_seed(0)
    report = Report("Graph attention on a GPU, measured")
    with context:
        _refuse_fallback(device)
        tiny, deadline = arguments.tiny, started + 60 * arguments.minutes
        bandwidth = copy_bandwidth(device, 2**20 if tiny else 2**30)
        measure_errors(report, device, tiny)
        measure_piece_errors(report, device)
        measure_steps(report, device, tiny)
        measure_new_graphs(report, device, tiny)
        for_layers = deadline - 60 * FOR_PIECES * arguments.minutes
        planned = tiny_cases() if tiny else cases()
        measure_layers(report, planned, device, bandwidth, tiny, for_layers)
        measure_pieces(report, device, bandwidth, tiny, deadline)
    return report


def _device(tiny: bool) -> tuple[str, AbstractContextManager[object]]:
    if importlib.util.find_spec("triton") is None:
        raise UserError("this needs Triton: pip install 'gat-attention[gpu]'")
    if torch.cuda.is_available():
        return "cuda", nullcontext()
    if not tiny:
        raise UserError(
            "torch finds no CUDA device here; run it where there is one, or with --tiny to see on "
            "the CPU that everything runs"
        )
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError("--tiny interprets the kernels on the CPU: set TRITON_INTERPRET=1")
    return "cpu", kernels.on_cpu()


def _refuse_fallback(device: str) -> None:
    x = torch.empty(1, 1, 1, device=device)
    if not kernels.serves(x, x):
        raise UserError(f"the Triton kernels do not serve the device {device}: nothing to measure")


# --- The contenders ---


def make_layers(case: Case, device: str) -> tuple[nn.Module, nn.Module]:
    """Ours and torch_geometric's, with the same parameters."""
    size = case.heads * case.channels
    more = {} if case.layer == "TransformerConv" else {"add_self_loops": False}
    if case.layer == "GATv2Conv":
        more["share_weights"] = False
    peer = getattr(theirs, case.layer)(size, case.channels, heads=case.heads, **more)
    ours = getattr(gat, case.layer)(size, case.channels, heads=case.heads, **more)
    ours.load_state_dict(peer.state_dict())
    return ours.to(device, case.dtype), peer.to(device, case.dtype)


# --- Correctness ---


def measure_errors(report: Report, device: str, tiny: bool) -> None:
    """The largest differences from torch_geometric's layers in float64 on the CPU."""
    edges, heads, channels = (32, 2, 4) if tiny else (20_000, 4, 16)
    rows: list[list[Cell]] = []
    for layer, dtype in itertools.product(LAYERS, (torch.float32, torch.bfloat16)):
        for graph in ("uniform",) if tiny else ("uniform", "one hub"):
            case = Case(layer, graph, edges, heads, channels, dtype)
            found = max_errors(case, device)
            allowed = 1e-4 if dtype == torch.float32 else 5e-2
            if not max(found) <= allowed:
                raise AssertionError(f"{case}: errors {found} exceed {allowed}")
            rows.append([str(case), *found])
    report.add(
        Table(
            "Differences from torch_geometric in float64 on the CPU",
            ["", "output", "gradient of x", "gradients of parameters"],
            rows,
            "The largest difference over the largest number, of the same (rounded) parameters and "
            "features.",
        )
    )


def max_errors(case: Case, device: str) -> list[float]:
    """Relative errors of the output, of the gradient of x, and of those of the parameters."""
    pairs, nodes = make_graph(case.graph, case.edges, "cpu")
    ours, peer = make_layers(case, device)
    peer = copy.deepcopy(peer).to("cpu", torch.float64)
    x = torch.randn(nodes, case.heads * case.channels).to(case.dtype)
    grad = torch.randn(x.shape).to(case.dtype)
    results = []
    for layer, where, dtype in ((ours, device, case.dtype), (peer, "cpu", torch.float64)):
        features = x.clone().to(where, dtype).requires_grad_()
        output = layer(features, pairs.to(where))
        output.backward(grad.to(where, dtype))
        of_parameters = [p.grad.flatten() for p in layer.parameters() if p.grad is not None]
        assert features.grad is not None
        all_of_it = output.detach(), features.grad, torch.cat(of_parameters)
        results.append(all_of_it)
    return errors(*results)


# --- Layers ---


def measure_layers(
    report: Report,
    planned: list[Case],
    device: str,
    bandwidth: float,
    tiny: bool,
    deadline: float,
) -> None:
    """Time and memory of each case, beside the copy that no kernel can beat."""
    rows: list[list[Cell]] = []
    left_out = []
    for case in planned:
        if time.monotonic() > deadline:
            left_out.append(str(case))
            continue
        rows += measure_case(case, device, bandwidth, rounds=1 if tiny else 7)
        clear_cache()
        if device == "cuda":
            torch.cuda.empty_cache()
    note = (
        f"A copy on this device moves {bandwidth / 1e9:.0f} GB/s. The bound is what must move at "
        "that speed: for each edge its index and the rows of its neighbour, none of which is taken "
        "to be in a cache (so that a kernel may beat it on a band); for each node its rows once. "
        "Memory is beyond the inputs, with the graph sorted already. An empty cell: not measured, "
        "or out of memory."
    )
    if left_out:
        note += f" Left out for lack of time: {'; '.join(left_out)}."
    report.add(
        Table("Layers", columns(EAGER), rows, note, picture="gpu.png", findings=_findings(rows))
    )
    report.pictures["gpu.png"] = lambda path: _draw(path, rows)


def measure_case(case: Case, device: str, bandwidth: float, rounds: int) -> list[list[Cell]]:
    """A row for the forward pass, and one for both passes."""
    pairs, nodes = make_graph(case.graph, case.edges, device)
    ours, peer = make_layers(case, device)
    layers: dict[str, Callable[..., Tensor]] = {OURS: ours, PEER: peer}
    if case.compiled and device == "cuda":
        torch.compiler.reset()
        layers[COMPILED] = torch.compile(copy.deepcopy(peer))
    contenders = {who: partial(_on, pairs, layer) for who, layer in layers.items()}
    forward, both = (
        1e3 * bytes_moved(case, nodes, backward) / bandwidth for backward in (False, True)
    )
    shape = nodes, case.heads * case.channels
    return measure(str(case), contenders, [shape], case.dtype, (forward, both), device, rounds)


def _on(pairs: Tensor, layer: Callable[..., Tensor], x: Tensor) -> Tensor:
    return layer(x, pairs)


def bytes_moved(case: Case, nodes: int, backward: bool) -> int:
    """What must move through memory at least, if no row of a neighbour stays in a cache.

    >>> bytes_moved(Case("TransformerConv", edges=10, heads=1, channels=1), 0, backward=False)
    120
    """
    row = case.heads * case.channels * case.dtype.itemsize
    per_head = case.heads * 4
    # Rows of projections: those gathered for each edge, those of the query, all that are made
    gathered, queries, made = {
        "GATConv": (row + per_head, per_head, row + 2 * per_head),
        "GATv2Conv": (row, row, 2 * row),
        "TransformerConv": (2 * row, row, 4 * row),
    }[case.layer]
    of_edge, of_node = 4 + gathered, row + made + queries + row + per_head
    if backward:
        # by query: the same again; by key: the query, the output's gradient and two numbers
        of_edge += 4 + gathered + 4 + queries + row + 2 * per_head
        of_node += 3 * row + 2 * made + 2 * row
    return case.edges * of_edge + nodes * of_node


def _findings(rows: list[list[Cell]]) -> dict[str, float]:
    """The numbers that the table was made for."""

    def least(column: int, *words: str) -> float | None:
        chosen = [row for row in rows if all(word in f"{row[0]}, {row[1]}" for word in words)]
        return min((x for row in chosen if isinstance(x := row[column], float)), default=None)

    both, size = "forward and backward", f"{10**7:,} edges"
    wanted: dict[str, tuple[int, tuple[str, ...]]] = {
        f"torch_geometric × ours, least, {both}, uniform, {size}": (6, (both, "uniform", size)),
        f"torch_geometric × ours, least, {both}, power law, {size}": (6, (both, "power law", size)),
        f"compiled × ours, least, {both}, {size}": (7, (both, size)),
        f"memory × ours, least, {both}, {size}": (11, (both, size)),
        "torch_geometric × ours, least of all": (6, ()),
    }
    found = {name: least(column, *words) for name, (column, words) in wanted.items()}
    return {name: number for name, number in found.items() if number is not None}


def _draw(path: Path, rows: list[list[Cell]]) -> None:
    shown = [row for row in rows if row[1] == "forward and backward"]
    figure = Figure(figsize=(9, 1.5 + 0.28 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(shown))
    for column, name, marker in (
        (5, "bandwidth bound", "|"), (2, "ours", "o"), (4, f"{EAGER}, compiled", "^"),
        (3, EAGER, "s"),
    ):  # fmt: skip
        points = [(row[column], place) for row, place in zip(shown, places, strict=True)]
        known = [(x, y) for x, y in points if isinstance(x, float)]
        if known:
            axes.plot(*zip(*known, strict=True), marker, label=name)
    axes.set_yticks(list(places), [str(row[0]) for row in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="ms, forward and backward")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


# --- Training steps ---


def measure_steps(report: Report, device: str, tiny: bool) -> None:
    """A training step of the network of the GAT paper, on random graphs of known sizes."""
    sizes = {"like Cora": (2708, 10_556, 1433, 7), "like Pubmed": (19_717, 88_648, 500, 3)}
    if tiny:
        sizes = {"like Cora": (20, 60, 6, 3)}
    rows: list[list[Cell]] = []
    for name, size in sizes.items():
        runs = {
            EAGER: training_step(theirs.GATConv, *size, device),
            OURS: training_step(gat.GATConv, *size, device),
        }
        timings = take_turns(
            runs, rounds=1 if tiny else 50, warm_up=0 if tiny else 10,
            timer=timer(device),
        )  # fmt: skip
        rows.append([
            name, *(timings.milliseconds(who) for who in (OURS, EAGER)), timings.ratio(EAGER, OURS)
        ])  # fmt: skip
    report.add(
        Table(
            "Training steps",
            ["", "ms, ours", "ms, torch_geometric", "torch_geometric × ours"],
            rows,
            "Two layers (8 heads × 8, then 1), dropout 0.6, Adam; random graphs and dense random "
            "features of the size of the data set; eager.",
        )
    )


def training_step(
    conv: Any, nodes: int, edges: int, features: int, classes: int, device: str
) -> Callable[[], None]:
    """One step of training on a fixed random graph."""
    torch.manual_seed(0)
    heads, channels = 8, 8
    first = conv(features, channels, heads=heads, dropout=0.6).to(device)
    second = conv(heads * channels, classes, heads=1, dropout=0.6).to(device)
    optimizer = torch.optim.Adam([*first.parameters(), *second.parameters()], lr=0.005)
    x = torch.rand(nodes, features, device=device)
    pairs = torch.randint(nodes, (2, edges), device=device)
    labels = torch.randint(classes, (nodes,), device=device)

    def once() -> None:
        optimizer.zero_grad()
        hidden = F.elu(first(F.dropout(x, 0.6), pairs))
        output = second(F.dropout(hidden, 0.6), pairs)
        F.cross_entropy(output[:140], labels[:140]).backward()
        optimizer.step()

    return once
