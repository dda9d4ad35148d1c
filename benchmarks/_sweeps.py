"""The neighbourhood step against the bound: over edges, over heads × channels, over skew.

The bound is what it takes to read the row of every neighbour once, with nothing computed but sums.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks._contenders import BOTH, FORWARD, OURS, PEER, SCORES
from benchmarks._processes import Task, own_clocks, started
from benchmarks._report import Cell, Report, Table

SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)  # edges
HUGE = 100_000_000
PEER_EDGES = 1_000_000  # from where tensors of edges × channels ask for much memory
DEGREE = 10  # edges per node, over sizes
SHAPES = ((1, 64), (4, 8), (8, 8), (4, 32), (8, 64), (1, 7), (8, 16))  # heads × channels
GRAPHS = ("uniform", "power law", "one hub")
STEPS = ("bound", *(f"{score}, {what}" for score in SCORES for what in (FORWARD, BOTH)))
GIB = 2**30


def sweep_edges(report: Report, *, tiny: bool, huge: bool) -> None:
    """Nanoseconds per edge, from small graphs to large ones."""
    sizes = [*((500,) if tiny else SIZES), *([4000 if tiny else HUGE] if huge else [])]
    heads, width = 4, 8
    layer = f"GATv2Conv, {BOTH}"
    columns = [
        "edges", *STEPS, "sorting", f"our GATv2Conv, {FORWARD}", f"our {layer}",
        f"{PEER}'s {layer}", f"our {layer} × the bound", "GiB of its process",
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    left_out = ""
    for place, edges in enumerate(sizes):
        largest = huge and place == len(sizes) - 1
        shape = {"nodes": edges // DEGREE, "edges": edges, "heads": heads, "width": width}
        names = [OURS, *([PEER] if edges <= PEER_EDGES and not largest else [])]
        layers = {
            name: Task("benchmarks._contenders:gatv2_on_graph", {"contender": name, **shape})
            for name in names
        }
        rounds = 2 if tiny or largest else 5
        ns: dict[tuple[str, str], float] = {}
        resident = None
        # Steps, then layers: both together might not fit
        for tasks, runs in (
            ({"steps": steps_task("uniform", **shape)},
             ["bound"] if largest else [*STEPS, "sorting"]),
            (layers, [layer] if largest else [f"GATv2Conv, {FORWARD}", layer]),
        ):  # fmt: skip
            with started(tasks, needed=() if largest else tasks) as group:
                for run, found in group.time(runs, rounds, warm_up=1).items():
                    for name in group.processes:
                        ns[name, run] = 1e6 * found.milliseconds(name) / edges
                if memory := group.ask("memory", layer).get(OURS) if OURS in tasks else None:
                    resident = memory[1] / GIB
                left_out += group.left_out()
        ours, bound = ns.get((OURS, layer)), ns.get(("steps", "bound"))
        rows.append([
            edges, *(ns.get(("steps", run)) for run in (*STEPS, "sorting")),
            ns.get((OURS, f"GATv2Conv, {FORWARD}")), ours, ns.get((PEER, layer)),
            ours / bound if ours and bound else None, resident,
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
            f"held, all that was loaded included.{left_out}",
            picture="graph_sweep.png",
        )
    )
    report.pictures["graph_sweep.png"] = lambda path: draw(path, columns, rows)


def sweep_shapes(report: Report, *, tiny: bool) -> None:
    """Milliseconds of the steps over heads × channels."""
    nodes, edges = (200, 2000) if tiny else (50_000, 800_000)
    shapes = SHAPES[-2:] if tiny else SHAPES
    rows: list[list[Cell]] = []
    findings: dict[str, float] = {}
    for heads, width in shapes:
        shape = {"nodes": nodes, "edges": edges, "heads": heads, "width": width}
        with started({OURS: steps_task("uniform", **shape)}, needed=[OURS]) as group:
            process = group.processes[OURS]
            for run in STEPS:
                process("warm", run)
            turns = {run: partial(process, "time", run) for run in STEPS}
            found = own_clocks(turns, rounds=2 if tiny else 7)
        ratios = [found.ratio(f"{score}, {FORWARD}", to="bound") for score in SCORES]
        times = [found.milliseconds(name) for name in STEPS]
        rows.append([f"{heads} × {width}", *times, *ratios])
        if (heads, width) == (8, 16):
            findings |= {
                f"{score} × the bound, forward, {heads} × {width}": ratio
                for score, ratio in zip(SCORES, ratios, strict=True)
            }
    report.add(
        Table(
            f"The neighbourhood step over heads × channels, ms: {nodes:,} nodes, {edges:,} edges",
            ["heads × channels", *STEPS, *(f"{s}, forward × bound" for s in SCORES)],
            rows,
            "Keys are values, so that one row is read for each edge.",
            findings=findings,
        )
    )


def sweep_skew(report: Report, *, tiny: bool) -> None:
    """The same number of nodes and edges, differently spread."""
    nodes, edges = (200, 2000) if tiny else (50_000, 800_000)
    shape = {"nodes": nodes, "edges": edges, "heads": 8, "width": 16}
    with started({kind: steps_task(kind, **shape) for kind in GRAPHS}, needed=GRAPHS) as group:
        found = group.time(STEPS, rounds=2 if tiny else 9)
    ratios = {kind: [found[run].ratio(kind, to=GRAPHS[0]) for run in STEPS] for kind in GRAPHS[1:]}
    rows: list[list[Cell]] = [
        [f"{kind}, ms", *(found[run].milliseconds(kind) for run in STEPS)] for kind in GRAPHS
    ]
    rows += [[f"{kind} × uniform", *ratios[kind]] for kind in ratios]
    report.add(
        Table(
            f"Skewed degrees: {nodes:,} nodes, {edges:,} edges, 8 × 16",
            ["", *STEPS],
            rows,
            "Power law: node n has about n^(-2/3) of the edges of node 1, at either end. One hub: "
            "half of all edges end in one node.",
            findings={f"{kind} × uniform, at most": max(ratios[kind][1:]) for kind in ratios},
        )
    )


def steps_task(graph: str, **shape: int) -> Task:
    """A process with the steps, and the bound, on one of GRAPHS."""
    return Task("benchmarks._contenders:steps", {"graph": graph, **shape})


def draw(path: Path, columns: list[str], rows: list[list[Cell]]) -> None:
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
