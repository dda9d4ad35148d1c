"""Graph attention on the CPU: ours beside its peers, each contender in a process of its own.

The bound is what it takes to read the row of every neighbour once, with nothing computed but sums.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from attn_core import kernels
from benchmarks._contenders import (
    BACKENDS,
    COMPILED,
    LAYERS,
    PEER,
    SCORES,
    save_inputs,
)
from benchmarks._measure import Timings
from benchmarks._processes import Group, Task, started
from benchmarks._report import Cell, Report, Table
from datasets import DataFileError, planetoid
from examples._files import UserError

OURS, DGL = "ours", "DGL"
CONTENDERS = (*BACKENDS, PEER, COMPILED, DGL)
GRAPHS = ("uniform", "power law", "one hub")
SHAPES = ((1, 7), (1, 64), (4, 8), (8, 8), (8, 16), (4, 32), (8, 64))  # heads × channels
SWEEP = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)  # edges
PEER_EDGES = 1_000_000  # more edges × channels than these would not fit everywhere
HUGE = 100_000_000
DEGREE = 10  # edges per node, in the sweep over edges
FORWARD, BOTH = "forward", "forward and backward"
MIB, GIB = 2**20, 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark takes to its command line."""
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"which parts to measure, of {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, default=None, metavar="NAME",
        help=f"which layers to run, of {', '.join(map(repr, CONTENDERS))} (default: all that are "
        "there)",
    )  # fmt: skip
    parser.add_argument(
        "--dgl-python", metavar="PATH", default=None,
        help="the python of a virtual environment that has DGL; it need not have this library "
        "(default: this one, if it has DGL)",
    )  # fmt: skip
    parser.add_argument(
        "--huge", action="store_true",
        help=f"go on with the sweep over edges to {HUGE:,}, which takes up to 24 GB of memory",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> Report:
    """Make the tables that were asked for."""
    if not kernels.available():
        raise UserError("the compiled kernels are not live: see `python -m attn_core.info`")
    arguments.dgl_python = _find_dgl(arguments)
    if arguments.contenders is None:
        arguments.contenders = [x for x in CONTENDERS if x != DGL or arguments.dgl_python]
    report = Report("Graph attention, measured")
    for part in arguments.only:
        PARTS[part](report, arguments)
    return report


def _find_dgl(arguments: argparse.Namespace) -> str | None:
    """The python that has DGL."""
    python = arguments.dgl_python
    if python is None and importlib.util.find_spec("dgl") is not None:
        python = sys.executable
    if python is None:
        if DGL in (arguments.contenders or ()):
            raise UserError(
                "DGL is not installed here: name the python of a virtual environment that has it, "
                "--dgl-python PATH"
            )
        return None
    asked = f"--dgl-python {python}"
    try:
        # Absolute, but not resolved: where a virtual environment's python links to says nothing
        python = str(Path(python).absolute())
        done = subprocess.run([python, "-c", "import dgl.nn"], capture_output=True, text=True)
    except OSError as error:
        raise UserError(
            f"{asked} cannot be run ({error.strerror}): give the python of a virtual environment "
            "that has DGL, such as path/to/venv/bin/python"
        ) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"{asked} cannot import DGL ({said[-1]}): install it in that environment, or name "
            "another"
        )
    return str(python)


# --- Layers ---


def measure_layers(report: Report, arguments: argparse.Namespace) -> None:
    """Whole layers: time forward, forward and backward, and peak memory."""
    nodes, edges = (200, 2000) if arguments.tiny else (50_000, 800_000)
    features, heads, width = 64, 8, 16
    size = f"{nodes:,} nodes, {edges:,} edges, {features} features, {heads} × {width}"
    with tempfile.TemporaryDirectory() as folder:
        inputs = str(Path(folder, "inputs.pt"))
        save_inputs(inputs, nodes, edges, features, heads, width)
        tasks = {
            name: Task("benchmarks._contenders:layers", {"contender": name, "inputs": inputs})
            for name in arguments.contenders
            if name != DGL
        }
        if DGL in arguments.contenders:
            assert arguments.dgl_python is not None
            tasks[DGL] = Task("benchmarks._dgl:layers", {"inputs": inputs}, arguments.dgl_python)
        with started(tasks, needed=BACKENDS) as group:
            group.assert_agree()
            runs = [f"{layer}, {what}" for layer in LAYERS for what in (FORWARD, BOTH)]
            timings = group.time(runs, rounds=2 if arguments.tiny else 7)
            peaks = {
                layer: {
                    name: found[0] if found else None
                    for name, found in group.ask("memory", f"{layer}, {BOTH}").items()
                }
                for layer in LAYERS
            }
            note = _layers_note(group, arguments)
    if OURS in group.processes:
        report.add(_at_a_glance(timings, peaks, group, size))
    for layer in LAYERS:
        report.add(_of_layer(layer, timings, peaks[layer], group, f"{layer}, {size}", note))
        note = ""


def _layers_note(group: Group, arguments: argparse.Namespace) -> str:
    note = (
        "float32, medians over rounds in which the contenders take turns; all were first shown to "
        "compute the same outputs and gradients. Memory is what forward and backward take at most "
        "beyond the graph, the features and the parameters, the sorted graph included."
    )
    if DGL in group.processes:
        facts = group.processes[DGL]("about")
        versions = ", ".join(f"{name} {version}" for name, version in facts.items())
        note += (
            f" DGL's environment: {versions}; its layer beside TransformerConv is DotGatConv, with "
            "one projection instead of four."
        )
    elif arguments.dgl_python is None:
        note += " DGL is not among them: --dgl-python names an environment that has it."
    return note + _failures(group)


def _failures(group: Group) -> str:
    return "".join(f" Left out: {reason}." for reason in group.failures.values())


def _of_layer(
    layer: str, timings: Mapping[str, Timings], peaks: Mapping[str, int | None], group: Group,
    title: str, note: str,
) -> Table:  # fmt: skip
    """One layer: all contenders, and how many times as much they take as ours."""
    times = [timings[f"{layer}, {what}"] for what in (FORWARD, BOTH)]
    rows: list[list[Cell]] = []
    for name in group.processes:
        row: list[Cell] = [name, *(one.milliseconds(name) for one in times), _mib(peaks[name])]
        if OURS in group.processes:
            row += [one.ratio(name, to=OURS) for one in times]
            row.append(_ratio(peaks[name], peaks[OURS]))
        rows.append(row)
    columns = ["", "forward, ms", f"{BOTH}, ms", "peak memory, MiB"]
    findings = {}
    if OURS in group.processes:
        columns += ["forward × ours", f"{BOTH} × ours", "memory × ours"]
        peer = next((row for row in rows if row[0] == PEER), None)
        for number, what in enumerate((FORWARD, BOTH, "peak memory"), start=4):
            if peer is not None and isinstance(ratio := peer[number], float):
                findings[f"{PEER} × ours, {what}"] = ratio
    return Table(title, columns, rows, note, findings=findings)


def _at_a_glance(
    timings: Mapping[str, Timings], peaks: Mapping[str, Mapping[str, int | None]], group: Group,
    size: str,
) -> Table:  # fmt: skip
    """The table that the README shows."""
    peers = [name for name in (PEER, COMPILED, DGL) if name in group.processes]
    rows: list[list[Cell]] = []
    for layer in LAYERS:
        for what in (FORWARD, BOTH):
            one = timings[f"{layer}, {what}"]
            ratios = [_times(one.ratio(name, to=OURS)) for name in peers]
            rows.append([f"{layer}, {what}", f"{_digits(one.milliseconds(OURS))} ms", *ratios])
        of, mine = peaks[layer], _mib(peaks[layer][OURS])
        ratios = [_times(_ratio(of[name], of[OURS])) for name in peers]
        shown = None if mine is None else f"{_digits(mine)} MiB"
        rows.append([f"{layer}, peak memory", shown, *ratios])
    return Table(
        f"Layers at a glance: {size}",
        ["", OURS, *peers],
        rows,
        "What ours take, and how many times as much the others do; details below.",
    )


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _times(ratio: float | None) -> str | None:
    return None if ratio is None else f"{_digits(ratio)} ×"


def _ratio(a: int | None, b: int | None) -> float | None:
    return a / b if a is not None and b else None


def _mib(size: int | None) -> float | None:
    return None if size is None else size / MIB


# --- Cora ---


def measure_training(report: Report, arguments: argparse.Namespace) -> None:
    """A training step on Cora, with sparse features and with dense ones."""
    data = "karate" if arguments.tiny else "cora"
    title = f"A training step on {data.capitalize()}"
    contenders = {
        "ours, sparse features": (OURS, True),
        "ours, dense features": (OURS, False),
        f"{PEER}, dense features": (PEER, False),
        f"{COMPILED}, dense features": (COMPILED, False),
    }
    tasks = {
        row: Task(
            "benchmarks._contenders:training", {"contender": name, "sparse": sparse, "data": data}
        )
        for row, (name, sparse) in contenders.items()
        if name in arguments.contenders
    }
    if not tasks:
        report.add(Table(title, [], [], "Skipped: none of the contenders has such a row."))
        return
    try:
        if data == "cora":
            planetoid(data)
    except DataFileError as error:
        report.add(Table(title, [], [], f"Skipped, for want of the data: {_without_paths(error)}"))
        return
    with started(tasks, needed=[row for row in tasks if row.startswith(OURS)]) as group:
        group.assert_agree()
        times = group.time(["step"], rounds=2 if arguments.tiny else 15, warm_up=5)["step"]
        memory = group.ask("memory", "step")
    first = "ours, sparse features"
    columns = ["", "ms per step", "peak memory, MiB"]
    rows: list[list[Cell]] = [
        [name, times.milliseconds(name), _mib(memory[name] and memory[name][0])]
        for name in group.processes
    ]
    findings = {}
    if first in group.processes:
        columns.append(f"× {first}")
        for row in rows:
            row.append(times.ratio(str(row[0]), to=first))
        findings = {
            f"{name} × ours": times.ratio(name, to=first)
            for name in group.processes
            if not name.startswith(OURS)
        }
    report.add(
        Table(
            title,
            columns,
            rows,
            "Two layers, 8 heads × 8, then 1; dropout 0.6 of the input of both and of the "
            "attention; Adam. With equal parameters, and without dropout, all were shown to "
            f"compute the same.{_failures(group)}",
            findings=findings,
        )
    )


def _without_paths(error: DataFileError) -> str:
    """The message, with file names for absolute paths: a report is published."""
    return " ".join(Path(x).name if x.startswith("/") else x for x in str(error).split())


# --- Sweeps ---


def measure_sweeps(report: Report, arguments: argparse.Namespace) -> None:
    """The neighbourhood step against the bound, over sizes, shapes and skew."""
    sweep_edges(report, arguments)
    sweep_shapes(report, arguments)
    sweep_skew(report, arguments)


def sweep_edges(report: Report, arguments: argparse.Namespace) -> None:
    """Nanoseconds per edge, from small graphs to large ones."""
    sizes = (500, 2000) if arguments.tiny else SWEEP
    peer_edges = 500 if arguments.tiny else PEER_EDGES
    huge = (4000 if arguments.tiny else HUGE) if arguments.huge else None
    heads, width = 4, 8
    step_runs = ["bound", *(f"{score}, {what}" for score in SCORES for what in (FORWARD, BOTH))]
    layer_runs = [f"GATv2Conv, {what}" for what in (FORWARD, BOTH)]
    columns = [
        "edges", *step_runs, "sorting", *(f"our {run}" for run in layer_runs),
        f"{PEER}'s {layer_runs[1]}", "our GATv2Conv × the bound", "GiB of its process",
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    failures = ""
    for edges in [*sizes, *([huge] if huge else [])]:
        small, rounds = edges != huge, 2 if arguments.tiny or edges == huge else 5
        shape = {"nodes": edges // DEGREE, "edges": edges, "heads": heads, "width": width}
        ns: dict[str, float] = {}
        # One after the other where both together might not fit
        with started({"steps": _steps("uniform", **shape)}) as group:
            for run, found in group.time(
                [*step_runs, "sorting"] if small else ["bound"], rounds, warm_up=1
            ).items():
                ns |= {run: 1e6 * found.milliseconds("steps") / edges}
            failures += _failures(group)
        names = [OURS, *([PEER] if edges <= peer_edges else [])]
        tasks = {
            name: Task("benchmarks._contenders:gatv2_on_graph", {"contender": name, **shape})
            for name in names
        }
        resident = None
        with started(tasks) as group:
            runs = layer_runs if small else layer_runs[1:]
            for run, found in group.time(runs, rounds, warm_up=1).items():
                for name in group.processes:
                    ns[f"{name}: {run}"] = 1e6 * found.milliseconds(name) / edges
            if memory := group.ask("memory", layer_runs[1]).get(OURS):
                resident = memory[1] / GIB
            failures += _failures(group)
        layer = ns.get(f"{OURS}: {layer_runs[1]}")
        rows.append([
            edges, *(ns.get(run) for run in (*step_runs, "sorting")),
            *(ns.get(f"{OURS}: {run}") for run in layer_runs), ns.get(f"{PEER}: {layer_runs[1]}"),
            layer / ns["bound"] if layer and "bound" in ns else None, resident,
        ])  # fmt: skip
    report.add(
        Table(
            f"Nanoseconds per edge, {heads} × {width}",
            columns,
            rows,
            f"Uniform random graphs, {DEGREE} edges per node, {heads * width} features. The bound "
            "reads the row of every neighbour once and adds the rows up (torch's embedding_bag); "
            "the steps are what a layer does between its projections. Sorting, by both ends, is "
            "done once per graph. The last column is the most memory that the process of our layer "
            f"held while it ran forward and backward, all that was loaded included.{failures}",
            picture="graph_sweep.png",
        )
    )
    report.pictures["graph_sweep.png"] = lambda path: draw_sweep(path, columns, rows)


def sweep_shapes(report: Report, arguments: argparse.Namespace) -> None:
    """Milliseconds of the steps over heads × channels."""
    nodes, edges = (200, 2000) if arguments.tiny else (50_000, 800_000)
    shapes = SHAPES[:2] if arguments.tiny else SHAPES
    names = [f"{score}, {what}" for score in SCORES for what in (FORWARD, BOTH)]
    rows: list[list[Cell]] = []
    findings: dict[str, float] = {}
    for heads, width in shapes:
        shape = {"nodes": nodes, "edges": edges, "heads": heads, "width": width}
        with started({OURS: _steps("uniform", **shape)}, needed=[OURS]) as group:
            # Bound and steps by turns, in the one process of theirs
            found = _by_turns(group, ["bound", *names], rounds=2 if arguments.tiny else 7)
        ratios = [found.ratio(f"{score}, {FORWARD}", to="bound") for score in SCORES]
        times = [found.milliseconds(name) for name in ("bound", *names)]
        rows.append([f"{heads} × {width}", *times, *ratios])
        if (heads, width) in ((8, 16), shapes[-1]):
            findings |= {
                f"{score} × the bound, forward, {heads} × {width}": ratio
                for score, ratio in zip(SCORES, ratios, strict=True)
            }
    report.add(
        Table(
            f"The neighbourhood step over heads × channels, ms: {nodes:,} nodes, {edges:,} edges",
            ["heads × channels", "bound", *names, *(f"{s}, forward × bound" for s in SCORES)],
            rows,
            "Keys are values, so that one row is read for each edge.",
            findings=findings,
        )
    )


def _by_turns(group: Group, runs: list[str], rounds: int) -> Timings:
    """All runs of the one process of a group, by turns."""
    (process,) = group.processes.values()
    seconds: dict[str, list[float]] = {run: [] for run in runs}
    for run in runs:
        process("warm", run)
        process("warm", run)
    for _ in range(rounds):
        for run in runs:
            seconds[run].append(process("time", run))
    return Timings(seconds)


def sweep_skew(report: Report, arguments: argparse.Namespace) -> None:
    """The same number of nodes and edges, differently spread."""
    nodes, edges = (200, 2000) if arguments.tiny else (50_000, 800_000)
    shape = {"nodes": nodes, "edges": edges, "heads": 8, "width": 16}
    runs = ["bound", *(f"{score}, {what}" for score in SCORES for what in (FORWARD, BOTH))]
    with started({kind: _steps(kind, **shape) for kind in GRAPHS}, needed=GRAPHS) as group:
        found = group.time(runs, rounds=2 if arguments.tiny else 9)
    ratios = {kind: [found[run].ratio(kind, to=GRAPHS[0]) for run in runs] for kind in GRAPHS[1:]}
    rows: list[list[Cell]] = [
        [f"{kind}, ms", *(found[run].milliseconds(kind) for run in runs)] for kind in GRAPHS
    ]
    rows += [[f"{kind} × uniform", *ratios[kind]] for kind in ratios]
    report.add(
        Table(
            f"Skewed degrees: {nodes:,} nodes, {edges:,} edges, 8 × 16",
            ["", *runs],
            rows,
            "Power law: node n has about n^(-2/3) of the edges of node 1, at either end. One hub: "
            "half of all edges end in one node.",
            findings={f"{kind} × uniform, at most": max(ratios[kind][1:]) for kind in ratios},
        )
    )


def _steps(graph: str, **shape: int) -> Task:
    return Task("benchmarks._contenders:steps", {"graph": graph, **shape})


def draw_sweep(path: Path, columns: list[str], rows: list[list[Cell]]) -> None:
    """Time per edge against edges, both on logarithmic scales."""
    lines = {
        "bound": ("the bound: every neighbour's row read once", "k--"),
        "gat, forward": ("GAT's step, forward", "C0o-"),
        "gatv2, forward": ("GATv2's step, forward", "C2o-"),
        f"gatv2, {BOTH}": ("GATv2's step, forward and backward", "C2s-"),
        f"our GATv2Conv, {BOTH}": ("GATv2Conv, forward and backward", "C1s-"),
        f"{PEER}'s GATv2Conv, {BOTH}": ("torch_geometric's, forward and backward", "C3^-"),
    }
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for column, (label, style) in lines.items():
        index = columns.index(column)
        points: list[tuple[Any, Any]] = [
            (row[0], row[index]) for row in rows if row[index] is not None
        ]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set(xscale="log", yscale="log", xlabel="edges", ylabel="nanoseconds per edge",
             title=f"4 heads × 8, {torch.get_num_threads()} threads, float32")  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


PARTS: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "layers": measure_layers,
    "cora": measure_training,
    "sweep": measure_sweeps,
}
