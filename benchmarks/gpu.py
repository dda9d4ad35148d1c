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
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric import nn as theirs

import gat
from attn_core import clear_cache
from attn_core.backends import triton as kernels
from benchmarks._gpu import (
    COMPILED,
    OURS,
    PEER,
    attempt,
    columns,
    copy_bandwidth,
    errors,
    measure,
    timer,
    verdict,
)
from benchmarks._gpu_compile import CAPABILITIES, measure_compiled
from benchmarks._gpu_pieces import measure_new_graphs, measure_piece_errors, measure_pieces
from benchmarks._gpu_variants import measure_variants
from benchmarks._graphs import GRAPHS, make_graph
from benchmarks._measure import ROOT, take_turns
from benchmarks._report import Cell, Report, Table
from examples.shared.files import UserError

LAYERS = ("GATConv", "GATv2Conv", "TransformerConv")
EAGER = "torch_geometric"
EDGE_DIM = 4
FOR_PIECES = 0.2  # of the time
GATE = "within twice torch_geometric's"


@dataclass(frozen=True)
class Case:
    """One layer on one graph."""

    layer: str
    graph: str = "uniform"
    edges: int = 10**7
    heads: int = 8
    channels: int = 16
    dtype: torch.dtype = torch.float32
    edge_dim: int | None = None
    compiled: bool = False  # whether to compile torch_geometric's layer, which takes long

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        features = "" if self.edge_dim is None else f", {self.edge_dim} edge features"
        return (
            f"{self.layer}, {self.graph}, {self.edges:,} edges, "
            f"{self.heads} × {self.channels}, {dtype}{features}"
        )

    @property
    def shape(self) -> tuple[Any, ...]:
        """What a compiled layer is compiled for, beside the kind of layer."""
        return self.edges, self.heads, self.channels, self.dtype, self.edge_dim


def cases() -> list[Case]:
    """What to measure, the most important first: time may run out."""
    two = "uniform", "power law"
    featured = [partial(Case, layer, edge_dim=EDGE_DIM) for layer in LAYERS[1:]]
    found = [Case(layer, graph, compiled=True) for graph in two for layer in LAYERS]
    found += [case(graph=graph, compiled=True) for graph in two for case in featured]
    found += [Case(layer, graph) for graph in ("one hub", "band") for layer in LAYERS]
    found += [Case(layer, dtype=torch.bfloat16) for layer in LAYERS]
    found += [Case(layer, edges=10**6) for layer in LAYERS]
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
    return [*found, replace(found[0], dtype=torch.bfloat16), replace(found[1], edge_dim=2)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark takes to its command line."""
    parser.add_argument(
        "--minutes", type=float, default=5.0, metavar="M",
        help="begin nothing new after this time; what is left out is named (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--variants", action="store_true",
        help="time the kernels in tiles of other sizes and with other numbers of warps instead",
    )  # fmt: skip
    parser.add_argument(
        "--compile-only", action="store_true",
        help="compile the kernels for "
        + ", ".join(f"sm_{c}" for c in CAPABILITIES)
        + " and say how many registers and wide loads they have instead; needs no GPU",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> Report:
    """Check, then measure as long as there is time; whatever is measured is written at once."""
    started = time.monotonic()
    if importlib.util.find_spec("triton") is None:
        raise UserError("this needs Triton: pip install 'gat-attention[gpu]'")
    report = Report("Graph attention on a GPU, measured", keep=arguments.keep)
    deadline = started + 60 * arguments.minutes
    if arguments.compile_only:
        report.title = "The kernels of graph attention, compiled for GPUs"
        report.name = "gpu_compiled"
        measure_compiled(report, arguments.tiny)
        return report
    device, context = _device(arguments.tiny)
    torch.manual_seed(0)
    with context:
        _refuse_fallback(device)
        tiny = arguments.tiny
        if arguments.variants:
            report.title = "Tiles of graph attention on a GPU, measured"
            report.name = "gpu_variants"
            measure_variants(report, device, tiny, deadline)
            return report
        bandwidth = copy_bandwidth(device, 2**20 if tiny else 2**30)
        planned = tiny_cases() if tiny else cases()
        if device == "cuda":
            warm_in_parallel(planned)
        measure_errors(report, device, tiny)
        measure_piece_errors(report, device)
        measure_steps(report, device, tiny)
        measure_new_graphs(report, device, tiny)
        for_layers = deadline - 60 * FOR_PIECES * arguments.minutes
        measure_layers(report, planned, device, bandwidth, tiny, for_layers)
        measure_pieces(report, device, bandwidth, tiny, deadline)
    return report


def _device(tiny: bool) -> tuple[str, AbstractContextManager[object]]:
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
    more: dict[str, Any] = {} if case.layer == "TransformerConv" else {"add_self_loops": False}
    if case.edge_dim is not None:
        more["edge_dim"] = case.edge_dim
    peer = getattr(theirs, case.layer)(size, case.channels, heads=case.heads, **more)
    ours = getattr(gat, case.layer)(size, case.channels, heads=case.heads, **more)
    ours.load_state_dict(peer.state_dict())
    return ours.to(device, case.dtype), peer.to(device, case.dtype)


def warm_in_parallel(planned: list[Case]) -> None:
    """Fill Triton's cache from several processes: to compile takes longer than to measure."""
    number = max(1, min(8, (os.cpu_count() or 1) // 2))
    names = sorted({_kind(case) for case in planned})
    command = [sys.executable, "-c", _WARM]
    processes = [subprocess.Popen([*command, *names[i::number]], cwd=ROOT) for i in range(number)]
    for process in processes:
        process.wait()  # one that failed only leaves more to do


_WARM = "import sys; from benchmarks.gpu import warm; warm(sys.argv[1:])"


def _kind(case: Case) -> str:
    """What kernels are compiled for, as a word for the command line."""
    settings = (
        case.layer, case.heads, case.channels, str(case.dtype).removeprefix("torch."),
        case.edge_dim or 0,
    )  # fmt: skip
    return ",".join(map(str, settings))


def warm(kinds: Iterable[str], device: str = "cuda", edges: int = 10_000) -> None:
    """One training step of each kind of case, on a graph whose hub has many parts."""
    pairs, nodes = make_graph("one hub", edges, device)
    for kind in kinds:
        layer, heads, channels, dtype, edge_dim = kind.split(",")
        case = Case(
            layer, "one hub", edges, int(heads), int(channels), getattr(torch, dtype),
            int(edge_dim) or None,
        )  # fmt: skip
        ours, _ = make_layers(case, device)
        inputs = [torch.randn(s, device=device, dtype=case.dtype) for s in shapes_of(case, nodes)]
        inputs[0].requires_grad_()
        ours(inputs[0], pairs, *inputs[1:]).sum().backward()


def shapes_of(case: Case, nodes: int) -> list[tuple[int, ...]]:
    """Of the features of nodes, and of edges where there are any."""
    of_nodes = nodes, case.heads * case.channels
    return [of_nodes] if case.edge_dim is None else [of_nodes, (case.edges, case.edge_dim)]


# --- Correctness ---


def measure_errors(report: Report, device: str, tiny: bool) -> None:
    """Errors of our layers and of torch_geometric's, against the latter in float64 on the CPU."""
    edges, heads, channels = (32, 2, 4) if tiny else (20_000, 4, 16)
    names = "output", "gradient of x", "gradients of parameters"
    table = Table(
        "Errors against float64 on the CPU",
        ["", *names, *(f"{EAGER}: {name}" for name in names), GATE],
        [],
        "`‖a - b‖ / ‖b‖` of the same (rounded) parameters and features, b by torch_geometric's "
        "layer in float64. An error may be twice that of torch_geometric's layer in the same dtype "
        "on the same device, or what two roundings make.",
    )
    with report.grow(table) as add:
        for layer, dtype in itertools.product(LAYERS, (torch.float32, torch.bfloat16)):
            for graph in ("uniform",) if tiny else ("uniform", "one hub"):
                case = Case(layer, graph, edges, heads, channels, dtype)
                ours = attempt(partial(errors_of, case, device))
                found, theirs = ours if isinstance(ours, tuple) else (ours, [])
                numbers = [*found, *theirs] if isinstance(ours, tuple) else [None] * 6
                add([str(case), *numbers, verdict(found, theirs, dtype)])
        table.findings.update(failed_gates(table))


def failed_gates(table: Table) -> dict[str, float]:
    """How many rows of a table do not say yes at the end."""
    return {"rows that are not within": float(sum(row[-1] != "yes" for row in table.rows))}


def errors_of(case: Case, device: str) -> tuple[list[float], list[float]]:
    """Of our layer and of torch_geometric's: output, gradient of x, gradients of parameters."""
    pairs, nodes = make_graph(case.graph, case.edges, "cpu")
    ours, peer = make_layers(case, device)
    truth = copy.deepcopy(peer).to("cpu", torch.float64)
    x = torch.randn(nodes, case.heads * case.channels).to(case.dtype)
    grad = torch.randn(x.shape).to(case.dtype)
    results = []
    for layer, where, dtype in (
        (truth, "cpu", torch.float64), (ours, device, case.dtype), (peer, device, case.dtype),
    ):  # fmt: skip
        features = x.clone().to(where, dtype).requires_grad_()
        output = layer(features, pairs.to(where))
        output.backward(grad.to(where, dtype))
        of_parameters = [p.grad.flatten() for p in layer.parameters() if p.grad is not None]
        assert features.grad is not None
        results.append((output.detach(), features.grad, torch.cat(of_parameters)))
    return errors(results[1], results[0]), errors(results[2], results[0])


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
    note = (
        f"A copy on this device moves {bandwidth / 1e9:.0f} GB/s. The bound is what must move at "
        "that speed: for each edge its index and the rows of its neighbour, none of which is taken "
        "to be in a cache (so that a kernel may beat it on a band); for each node its rows once. "
        "Memory is beyond the inputs, with the graph sorted already. An empty cell was not "
        "measured."
    )
    table = Table("Layers", columns(EAGER), [], note)
    left_out, compiled = [], Compiler()
    with report.grow(table) as add:
        for case in planned:
            if time.monotonic() > deadline:
                left_out.append(str(case))
                table.note = f"{note} Left out for lack of time: {'; '.join(left_out)}."
                continue
            for row in measure_case(case, device, bandwidth, 1 if tiny else 7, compiled):
                add(row)
            table.findings.update(_findings(table.rows))
            clear_cache()
            if device == "cuda":
                torch.cuda.empty_cache()
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError:  # all numbers are in the table
        return
    table.picture = "gpu.png"
    report.pictures["gpu.png"] = lambda path: _draw(path, table.rows)


class Compiler:
    """torch_geometric's layers, compiled once for all graphs of one size."""

    def __init__(self) -> None:
        self.shape: tuple[Any, ...] = ()
        self.layers: dict[str, Any] = {}

    def __call__(self, case: Case, peer: nn.Module) -> Any:
        if case.shape != self.shape:
            torch.compiler.reset()
            self.shape, self.layers = case.shape, {}
        if case.layer not in self.layers:
            self.layers[case.layer] = torch.compile(copy.deepcopy(peer))
        return self.layers[case.layer]


def measure_case(
    case: Case, device: str, bandwidth: float, rounds: int, compiled: Compiler
) -> Iterator[list[Cell]]:
    """A row for the forward pass, and one for both passes."""

    def make() -> tuple[Tensor, int, dict[str, nn.Module]]:
        pairs, nodes = make_graph(case.graph, case.edges, device)
        ours, peer = make_layers(case, device)
        return pairs, nodes, {OURS: ours, PEER: peer}

    made = attempt(make)
    if isinstance(made, str):  # not even the graph fits
        yield [str(case), "forward", made, *[None] * 9]
        return
    pairs, nodes, layers = made
    if case.compiled and device == "cuda":
        layers[COMPILED] = compiled(case, layers[PEER])
    contenders = {who: partial(_on, pairs, layer) for who, layer in layers.items()}
    forward, both = (
        1e3 * bytes_moved(case, nodes, backward) / bandwidth for backward in (False, True)
    )
    yield from measure(
        str(case), contenders, shapes_of(case, nodes), case.dtype, (forward, both), device, rounds
    )


def _on(pairs: Tensor, layer: Callable[..., Tensor], x: Tensor, *edge_attr: Tensor) -> Tensor:
    return layer(x, pairs, *edge_attr)


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
    if case.edge_dim is not None:  # their projections: made and read, and their gradients
        of_edge += (7 if backward else 2) * row
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
    from matplotlib.figure import Figure

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
    table = Table(
        "Training steps",
        ["", "ms, ours", "ms, torch_geometric", "torch_geometric × ours"],
        [],
        "Two layers (8 heads × 8, then 1), dropout 0.6, Adam; random graphs and dense random "
        "features of the size of the data set; eager.",
    )
    with report.grow(table) as add:
        for name, size in sizes.items():
            runs = {
                EAGER: training_step(theirs.GATConv, *size, device),
                OURS: training_step(gat.GATConv, *size, device),
            }
            timed = partial(
                take_turns, runs, rounds=1 if tiny else 50, warm_up=0 if tiny else 10,
                timer=timer(device),
            )  # fmt: skip
            timings = attempt(timed)
            if isinstance(timings, str):
                add([name, timings, None, None])
                continue
            ms = [timings.milliseconds(who) for who in (OURS, EAGER)]
            add([name, *ms, timings.ratio(EAGER, OURS)])


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
