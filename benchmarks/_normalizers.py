"""The neighbourhood step with each normaliser beside softmax: what exact zeros cost."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attn_core import (
    Additive,
    Edges,
    Entmax,
    Normalizer,
    ScaledDot,
    Separable,
    Softmax,
    Sparsemax,
    attend,
)
from attn_core.backends import cpu
from benchmarks._contenders import BOTH, FORWARD, OURS, SCORES
from benchmarks._graphs import make_graph
from benchmarks._processes import Task, own_clocks, started
from benchmarks._report import Cell, Report, Table
from benchmarks._worker import Contender

SOFTMAX = "softmax"
NORMALIZERS: dict[str, Normalizer] = {
    SOFTMAX: Softmax(),
    "sparsemax": Sparsemax(),
    "1.5-entmax": Entmax(),
    "1.3-entmax": Entmax(1.3),
}


def steps(graph: str, nodes: int, edges: int, heads: int, width: int) -> Contender:
    """Attention over edges without projections, for each score and normaliser."""
    if not cpu.available():
        raise RuntimeError("the compiled kernels are not live: see `python -m attn_core.info`")
    support = Edges.from_edge_index(make_graph(graph, edges, nodes=nodes)[0], nodes)
    leaves = [torch.randn(nodes, heads, width, requires_grad=True) for _ in range(3)]
    halves = [torch.randn(nodes, heads, 1, requires_grad=True) for _ in range(2)]
    query, key, value = leaves
    cases: dict[str, tuple[Tensor, Tensor, Any]] = {
        "gat": (halves[0], halves[1], Separable()),
        "gatv2": (query, key, Additive(torch.randn(heads, width) / width, "leaky_relu")),
        "scaled dot": (query, key, ScaledDot()),
    }

    def forward(score: str, normalizer: str) -> Tensor:
        of_query, of_key, given = cases[score]
        chosen = NORMALIZERS[normalizer]
        return attend(
            of_query, of_key, value, score=given, normalizer=chosen, support=support
        ).output

    def without_gradients(score: str, normalizer: str) -> None:
        with torch.no_grad():
            forward(score, normalizer)

    def both(score: str, normalizer: str) -> None:
        for x in (*leaves, *halves):
            x.grad = None
        output = forward(score, normalizer)
        output.backward(output.detach())

    runs: dict[str, Callable[[], Any]] = {}
    for score in SCORES:
        for normalizer in NORMALIZERS:
            runs[f"{score}, {normalizer}, {FORWARD}"] = partial(
                without_gradients, score, normalizer
            )
            runs[f"{score}, {normalizer}, {BOTH}"] = partial(both, score, normalizer)
    return Contender(runs)


def measure_normalizers(report: Report, arguments: Any) -> None:
    """Milliseconds of each score with each normaliser, and how many times softmax's these are."""
    nodes, edges = (200, 2000) if arguments.tiny else (50_000, 800_000)
    heads, width = 8, 16
    shape = {"graph": "uniform", "nodes": nodes, "edges": edges, "heads": heads, "width": width}
    task = Task("benchmarks._normalizers:steps", shape)
    rows: list[list[Cell]] = []
    findings: dict[str, float] = {}
    with started({OURS: task}, needed=[OURS]) as group:
        process = group.processes[OURS]
        for score in SCORES:
            for what in (FORWARD, BOTH):
                names = {name: f"{score}, {name}, {what}" for name in NORMALIZERS}
                for run in names.values():
                    process("warm", run)
                turns = {name: partial(process, "time", run) for name, run in names.items()}
                found = own_clocks(turns, rounds=2 if arguments.tiny else 7)
                ratios = {name: found.ratio(name, to=SOFTMAX) for name in NORMALIZERS}
                times = [found.milliseconds(name) for name in NORMALIZERS]
                rows.append([f"{score}, {what}", *times, *list(ratios.values())[1:]])
                findings |= {
                    f"{score}, {name} × softmax, {what}": ratio
                    for name, ratio in ratios.items()
                    if name != SOFTMAX
                }
    columns = ["", *(f"{x}, ms" for x in NORMALIZERS), *list(NORMALIZERS)[1:]]
    columns[-3:] = [f"{name} × softmax" for name in columns[-3:]]
    report.add(
        Table(
            f"Normalisers: {nodes:,} nodes, {edges:,} edges, {heads} × {width}",
            columns,
            rows,
            "Attention over edges alone, without a layer's projections; random numbers, so that "
            "sparsemax gives some four of sixteen neighbours a weight.",
            findings=findings,
        )
    )
