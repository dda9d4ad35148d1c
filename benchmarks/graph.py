"""Graph attention on the CPU: ours beside its peers, each contender in a process of its own."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from attn_core import info
from attn_core.backends import cpu
from benchmarks._contenders import (
    BACKENDS,
    BOTH,
    COMPILED,
    FORWARD,
    LAYERS,
    OURS,
    PEER,
    save_inputs,
)  # fmt: skip
from benchmarks._halves import measure_halves
from benchmarks._measure import Timings
from benchmarks._normalizers import measure_normalizers
from benchmarks._processes import Group, Task, python_with, started
from benchmarks._report import Cell, Report, Table
from benchmarks._small import measure_small
from benchmarks._sweeps import HUGE, sweep_edges, sweep_shapes, sweep_skew
from datasets import DataFileError, planetoid
from examples.shared.files import UserError

DGL = "DGL"
CONTENDERS = (*BACKENDS, PEER, COMPILED, DGL)
MIB = 2**20


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
    if not cpu.available():
        raise UserError("the compiled kernels are not live: see `python -m attn_core.info`")
    arguments.dgl_python = _find_dgl(arguments)
    if arguments.contenders is None:
        arguments.contenders = [x for x in CONTENDERS if x != DGL or arguments.dgl_python]
    print(info.report(), end="\n\n", flush=True)
    report = Report("Graph attention, measured")
    for part in arguments.only:
        PARTS[part](report, arguments)
    return report


def _find_dgl(arguments: argparse.Namespace) -> str | None:
    """The python that has DGL."""
    found = python_with("dgl.nn", "DGL", "--dgl-python", arguments.dgl_python)
    if found is None and DGL in (arguments.contenders or ()):
        raise UserError(
            "DGL is not installed here: name the python of a virtual environment that has it, "
            "--dgl-python PATH"
        )
    return found


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
    return note + group.left_out()


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
        print(f"{title}: {error}", file=sys.stderr)  # names folders of this machine
        report.add(Table(title, [], [], "Skipped, for want of the data: the files of Cora are "
                         "neither in the folder GAT_DATA nor to be downloaded."))  # fmt: skip
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
            "attention; torch's fused Adam. With equal parameters, and without dropout, all were "
            f"shown to compute the same.{group.left_out()}",
            findings=findings,
        )
    )


# --- Sweeps ---


def measure_sweeps(report: Report, arguments: argparse.Namespace) -> None:
    """The neighbourhood step against the bound, over sizes, shapes and skew."""
    sweep_edges(report, tiny=arguments.tiny, huge=arguments.huge)
    sweep_shapes(report, tiny=arguments.tiny)
    sweep_skew(report, tiny=arguments.tiny)


PARTS: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "small": measure_small,
    "layers": measure_layers,
    "cora": measure_training,
    "sweep": measure_sweeps,
    "normalisers": measure_normalizers,
    "halves": measure_halves,
}
