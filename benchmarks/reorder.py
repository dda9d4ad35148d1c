"""What another order of the nodes gains: GATConv before and after gat.transforms.Reorder.

Graphs in the order in which they come, and with their nodes drawn at random: files have either.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch_geometric.data import Data
from torch_geometric.utils import grid

import datasets
import gat
from attn_core import Edges
from benchmarks._measure import assert_agree, stopwatch, take_turns
from benchmarks._report import Report, Table
from gat.transforms import Reorder

HEADS, WIDTH, ROUNDS = 8, 16, 15
METHODS = "rcm", "degree", "community"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=list(_GRAPHS), default=None, help="one graph alone")
    parser.add_argument("--skip", choices=METHODS, nargs="*", default=[], help="methods left out")


def run(arguments: argparse.Namespace) -> Report:
    names = list(_GRAPHS) if arguments.only is None else [arguments.only]
    names = ["grid"] if arguments.tiny else names
    methods = [method for method in METHODS if method not in arguments.skip]
    rows: list[list[str | float | None]] = []
    for name in names:
        given = _GRAPHS[name](10 if arguments.tiny else 400)
        data = Data(edge_index=given.edge_index, num_nodes=given.num_nodes)
        for order, graph in (("as it comes", data), ("drawn", _shuffled(data))):
            rows.append(
                [f"{name}, {order}", *_row(graph, methods, 1 if arguments.tiny else ROUNDS)]
            )
    columns = ["graph and its order", "nodes", "edges", "ms"]
    columns += [
        f"{method}: {what}" for method in methods for what in ("times as fast", "s to order")
    ]
    report = Report("What another order of the nodes gains")
    report.add(
        Table(
            f"GATConv, {HEADS} × {WIDTH}, forward and backward, float32",
            columns,
            rows,
            f"Edges are sorted before. Medians of {ROUNDS} rounds, by turns; ratios are medians of "
            "the rounds' own. Random features of the layer's width: only the graph is theirs.",
        )
    )
    return report


def _row(data: Data, methods: list[str], rounds: int) -> list[float | None]:
    torch.manual_seed(0)
    conv = gat.GATConv(HEADS * WIDTH, WIDTH, heads=HEADS)
    data.x = torch.randn(data.num_nodes, HEADS * WIDTH)
    found: dict[str, Data] = {}
    seconds = {name: stopwatch(partial(_into, found, name, data)) for name in methods}
    runs = {"before": partial(_step, conv, data)}
    runs |= {name: partial(_step, conv, graph) for name, graph in found.items()}
    for name, graph in found.items():
        again = partial(Reorder.original, _step(conv, graph)[0], graph)
        assert_agree({"before": lambda: _step(conv, data)[0], name: again})
    times = take_turns(runs, rounds)
    row: list[float | None] = [data.num_nodes, data.num_edges, times.milliseconds("before")]
    for name in methods:
        row += [times.ratio("before", to=name), seconds[name]]
    return row


def _into(found: dict[str, Data], name: str, data: Data) -> None:
    found[name] = Reorder(name)(data)


def _step(conv: gat.GATConv, data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    if "edges" not in data:
        data.edges = Edges.from_edge_index(data.edge_index, data.num_nodes)
    x = data.x.detach().requires_grad_()
    out = conv(x, data.edges)
    out.backward(data.x)
    assert x.grad is not None
    return out.detach(), x.grad


def _shuffled(data: Data) -> Data:
    drawn = torch.randperm(data.num_nodes, generator=torch.Generator().manual_seed(0))
    return Data(edge_index=drawn[data.edge_index], num_nodes=data.num_nodes)


def _grid(side: int) -> Data:
    edge_index, _ = grid(side, side)
    return Data(edge_index=edge_index, num_nodes=side * side)


_GRAPHS: dict[str, Callable[[int], Data]] = {
    "Amazon Computers": lambda _: datasets.gnn_benchmark("computers"),
    "Coauthor CS": lambda _: datasets.gnn_benchmark("coauthor-cs"),
    "grid": _grid,
}
