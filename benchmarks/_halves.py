"""The neighbourhood step on rows in 16 bits beside float32: what half the bytes are worth."""

from __future__ import annotations

from argparse import Namespace

from benchmarks._contenders import BOTH, FORWARD, SCORES
from benchmarks._processes import Task, started
from benchmarks._report import Cell, Report, Table

SINGLE, HALVES = "float32", ("bfloat16", "float16")
SIZES = (50_000, 800_000), (200_000, 2_000_000)
MIB = 2**20


def measure_halves(report: Report, arguments: Namespace) -> None:
    """Milliseconds and memory of each score in each dtype."""
    dtypes = SINGLE, *HALVES
    heads, width = 8, 16
    rows: list[list[Cell]] = []
    findings: dict[str, float] = {}
    for nodes, edges in ((200, 2000),) if arguments.tiny else SIZES:
        shape = {"graph": "uniform", "nodes": nodes, "edges": edges, "heads": heads, "width": width}
        tasks = {
            dtype: Task("benchmarks._contenders:steps", {**shape, "dtype": dtype})
            for dtype in dtypes
        }
        runs = [f"{score}, {what}" for score in SCORES for what in (FORWARD, BOTH)]
        with started(tasks, needed=dtypes) as group:
            timings = group.time(runs, rounds=2 if arguments.tiny else 5)
            peaks = {run: group.ask("memory", run) for run in runs}
        for run in runs:
            found, size = timings[run], f"{nodes:,} / {edges:,}"
            ratios = {dtype: found.ratio(SINGLE, to=dtype) for dtype in HALVES}
            memory: list[Cell] = [
                None if (peak := peaks[run][dtype]) is None else peak[0] / MIB for dtype in dtypes
            ]
            times = map(found.milliseconds, dtypes)
            rows.append([size, run, *times, *ratios.values(), *memory])
            findings |= {f"{size}, {run}, {SINGLE} ÷ {k}": ratios[k] for k in HALVES}
    report.add(
        Table(
            f"Rows in 16 bits, {heads} × {width}",
            [
                "nodes / edges", "", *(f"{x}, ms" for x in dtypes),
                *(f"{SINGLE} ÷ {x}" for x in HALVES), *(f"{x}, MiB" for x in dtypes),
            ],
            rows,
            "Attention over edges alone, on uniform random graphs, without a layer's projections: "
            "the output, then output and gradients. Memory is what a run takes at most beyond the "
            "graph and the rows that it is given.",
            findings=findings,
        )
    )  # fmt: skip
