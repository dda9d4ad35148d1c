"""Graph attention: layers against torch_geometric's, each contender in a process of its own.

The bound is what it takes to read the row of every neighbour once, with nothing computed but sums.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn
from matplotlib.figure import Figure
from torch import Tensor

import gat
from attn_core import Additive, Edges, ScaledDot, Separable, attend, backend, kernels
from benchmarks._measure import ROOT, peak_memory
from benchmarks._report import Cell, Report, Table
from examples._files import UserError

LAYERS = ("GATConv", "GATv2Conv", "TransformerConv")
CONTENDERS = ("ours", "ours, plain torch", "torch_geometric", "torch_geometric, compiled")
GRAPHS = ("uniform", "power law", "one hub")
SCORES = ("gat", "gatv2", "scaled dot")
MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark takes to its command line."""
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"which tables to make, of {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME",
        help="which layers to run, of " + ", ".join(map(repr, CONTENDERS)) + " (default: all)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> Report:
    """Make the tables that were asked for."""
    if not kernels.available():
        raise UserError("the compiled kernels are not live: see `python -m attn_core.info`")
    report = Report("Graph attention, measured")
    for part in arguments.only:
        PARTS[part](report, arguments)
    return report


def random_graph(nodes: int, edges: int, kind: str = "uniform") -> Tensor:
    """A random edge_index `[2, E]` without self-loops."""
    torch.manual_seed(0)
    target = torch.randint(nodes, (edges,))
    if kind == "power law":
        target = (nodes * torch.rand(edges).pow(3)).long().clamp(max=nodes - 1)
    elif kind == "one hub":
        target[: edges // 4] = 0
    source = (target + 1 + torch.randint(nodes - 1, (edges,))) % nodes
    return torch.stack([source, target])


# --- What runs in a process of its own ---


def layer_once(
    name: str, contender: str, nodes: int, edges: int, backward: bool, warm: bool = True
) -> Callable[[], Any]:
    """One layer, 64 features to 8 heads × 16, on a random graph."""
    edge_index = random_graph(nodes, edges)
    x = torch.randn(nodes, 64, requires_grad=backward)
    home: Any = gat if contender.startswith("ours") else torch_geometric.nn
    more = {} if name == "TransformerConv" else {"add_self_loops": False}
    layer: Any = getattr(home, name)(64, 16, heads=8, **more)
    call = torch.compile(layer) if contender.endswith("compiled") else layer

    def step() -> None:
        with backend("torch" if contender == "ours, plain torch" else "auto"):
            with torch.set_grad_enabled(backward):
                output = call(x, edge_index)
            if backward:
                output.backward(output.detach())

    if warm:
        step()
    return step


def step_once(score: str, graph: str, nodes: int, edges: int, heads: int, width: int,
              backward: bool) -> Callable[[], Any]:  # fmt: skip
    """The neighbourhood step alone, without projections; score "bound" sums the rows."""
    support = Edges.from_edge_index(random_graph(nodes, edges, graph), nodes)
    value = torch.randn(nodes, heads, width, requires_grad=backward)
    if score == "bound":
        pointer, keys = support.by_query.pointer, support.keys_by_query.long()
        flat = value.detach().view(nodes, -1)
        return lambda: F.embedding_bag(keys, flat, pointer, mode="sum", include_last_offset=True)
    query = torch.randn(nodes, heads, 1 if score == "gat" else width, requires_grad=backward)
    key = torch.randn_like(query) if score == "gat" else value
    one: Any = {"gat": Separable(), "scaled dot": ScaledDot(),
                "gatv2": Additive(torch.randn(heads, width), "leaky_relu")}[score]  # fmt: skip

    def step() -> None:
        with torch.set_grad_enabled(backward):
            output = attend(query, key, value, score=one, support=support).output
        if backward:
            output.backward(output.detach())

    return step


def timed(task: str, rounds: int, threads: int, **arguments: Any) -> float:
    """The median milliseconds of a task in a process of its own, warmed up."""
    command = [sys.executable, "-m", __name__, task, str(rounds), str(threads),
               json.dumps(arguments)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"cannot measure {task} {arguments}: {done.stderr}")
    return float(done.stdout.splitlines()[-1])


def _main(task: str, rounds: str, threads: str, arguments: str) -> None:
    torch.set_num_threads(int(threads))
    step = globals()[task](**json.loads(arguments))
    for _ in range(2):
        step()
    seconds = []
    for _ in range(int(rounds)):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    print(1e3 * statistics.median(seconds))


# --- The tables ---


def measure_layers(report: Report, arguments: argparse.Namespace) -> None:
    """Whole layers: time forward, forward and backward, and peak memory."""
    nodes, edges, rounds = (200, 2000, 2) if arguments.tiny else (50_000, 800_000, 5)
    threads = torch.get_num_threads()
    for name in LAYERS:
        rows: list[list[Cell]] = []
        for contender in arguments.contenders:
            given = {"name": name, "contender": contender, "nodes": nodes, "edges": edges}
            milliseconds = [
                timed("layer_once", rounds, threads, **given, backward=backward)
                for backward in (False, True)
            ]
            peak, _ = peak_memory(f"{__name__}:layer_once", **given, backward=True, warm=False)
            rows.append([contender, *milliseconds, peak / MIB])
        found = {str(row[0]): row for row in rows}
        findings = {}
        if {"ours", "torch_geometric"} <= set(found):
            for column, what in ((1, "forward"), (2, "forward and backward"), (3, "peak memory")):
                theirs, ours = found["torch_geometric"][column], found["ours"][column]
                assert isinstance(theirs, float) and isinstance(ours, float)
                findings[f"torch_geometric takes × ours, {what}"] = theirs / max(ours, 1e-9)
        report.add(
            Table(
                f"{name}, {nodes:,} nodes, {edges:,} edges, 64 features, 8 heads × 16",
                ["", "forward, ms", "forward and backward, ms", "peak memory, MiB"],
                rows,
                "float32, medians. Memory is that of a first forward and backward pass beyond the "
                "inputs, with what torch loads on the way.",
                findings=findings,
            )
        )


def measure_steps(report: Report, arguments: argparse.Namespace) -> None:
    """The neighbourhood step against the bound, over sizes, shapes and skew."""
    rounds, threads = (2 if arguments.tiny else 7), torch.get_num_threads()
    sizes = [2000] if arguments.tiny else [100_000, 800_000, 3_200_000]
    cases: list[tuple[str, int, int, int]] = [("uniform", e, 8, 16) for e in sizes]
    middle = sizes[len(sizes) // 2]
    cases += [("uniform", middle, h, d) for h, d in ((1, 64), (4, 8), (4, 32), (8, 64))]
    cases += [(graph, middle, 8, 16) for graph in GRAPHS[1:]]
    rows: list[list[Cell]] = []
    for graph, edges, heads, width in cases:
        row: list[Cell] = [f"{graph}, {heads} × {width}", edges]
        for score in ("bound", *SCORES):
            for backward in (False,) if score == "bound" else (False, True):
                row.append(
                    timed("step_once", rounds, threads, score=score, graph=graph,
                          nodes=max(2, edges // 16), edges=edges, heads=heads, width=width,
                          backward=backward)
                )  # fmt: skip
        rows.append(row)
    both = [f"{score}, {what}" for score in SCORES for what in ("forward", "with backward")]
    report.add(
        Table(
            "The neighbourhood step, ms",
            ["graph, heads × channels", "edges", "bound, forward", *both],
            rows,
            "16 edges per node on average; one hub has a quarter of all edges. The bound sums the "
            "rows of all neighbours (torch's embedding_bag). With backward: both passes.",
            picture="graph_steps.png",
        )
    )
    sweep = rows[: len(sizes)]
    report.pictures["graph_steps.png"] = lambda path: _draw(path, sweep, both)


def _draw(path: Path, rows: list[list[Any]], names: list[str]) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for column, name in enumerate(["bound", *names], start=2):
        axes.plot([row[1] for row in rows], [row[column] for row in rows], marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="edges", ylabel="milliseconds",
             title="Attention over edges, 8 heads × 16")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


PARTS: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "layers": measure_layers,
    "steps": measure_steps,
}

if __name__ == "__main__":
    _main(*sys.argv[1:])
