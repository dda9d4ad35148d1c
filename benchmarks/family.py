"""The whole family of graph attention: each further layer beside torch_geometric's own.

A training step (forward and backward pass) of both on the same graph with the same parameters, by
turns. The graph with several types has 20 types of edges, as many as knowledge graphs of papers
and products have, over which HGTConv attends in one call.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import gat
from benchmarks._measure import take_turns
from benchmarks._report import Report, Table

NODE_TYPES, EDGE_TYPES = 5, 20
STATES, UNION = "8 states of one graph", "the union of 8 graphs"
RELATIONS = 20


@dataclass(frozen=True)
class Size:
    """Of all graphs: how many nodes and edges, channels per head, heads; rounds that are timed."""

    nodes: int = 20_000
    edges: int = 200_000
    width: int = 16
    heads: int = 4
    rounds: int = 7


TINY = Size(nodes=60, edges=200, width=4, heads=2, rounds=1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=list(_CASES), default=None, help="one layer alone")


def run(arguments: argparse.Namespace) -> Report:
    size = TINY if arguments.tiny else Size()
    names = list(_CASES) if arguments.only is None else [arguments.only]
    rows: list[list[Any]] = []
    for name in names:
        times = _times(name, size)
        speedup = times.ratio("theirs", to="ours")
        rows.append([name, times.milliseconds("ours"), times.milliseconds("theirs"), speedup])
    table = Table(
        f"A training step: {size.nodes} nodes, {size.edges} edges, {size.heads} heads × "
        f"{size.width}, float32",
        ["layer", "ours, ms", "torch_geometric, ms", "times as fast"],
        rows,
        f"HGTConv, HANConv: {NODE_TYPES} types of nodes and {EDGE_TYPES} of edges; RGATConv: "
        f"{RELATIONS} relations, a tenth of the edges. Medians of {size.rounds} rounds, by turns; "
        "the last column is the median of the rounds' own ratios. GPSConv: one graph, of an eighth "
        "of the nodes, whose global attention is quadratic; DenseGATConv: 8 graphs of an eightieth "
        "of them. States, unions: graphs of an eighth of nodes and edges, of which torch_geometric "
        "takes the union in both cases.",
    )
    report = Report("The family of graph attention layers")
    report.add(table)
    return report


def _times(name: str, size: Size) -> Any:
    torch.manual_seed(0)
    kind, arguments, options, inputs = _CASES[name](size)
    alike = _joined(*inputs) if name.endswith(STATES) else inputs
    ours, theirs = (
        getattr(library, kind)(*arguments, **options) for library in (gat, torch_geometric.nn)
    )
    ours.load_state_dict(theirs.state_dict())
    for mine, other in zip(_results(ours, inputs), _results(theirs, alike), strict=True):
        # The same is compared
        torch.testing.assert_close(mine.view(other.shape), other, rtol=1e-3, atol=1e-3)
    contenders = {"ours": partial(_step, ours, inputs), "theirs": partial(_step, theirs, alike)}
    return take_turns(contenders, size.rounds)


def _results(layer: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [x for x in tree_leaves(layer(*inputs)) if isinstance(x, Tensor)]


def _step(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    layer.zero_grad()
    found = [x for x in tree_leaves(layer(*inputs)) if isinstance(x, Tensor)]
    torch.autograd.backward(found, [torch.ones_like(x) for x in found])


Built = tuple[str, tuple[Any, ...], dict[str, Any], tuple[Any, ...]]


def _graph(size: Size) -> tuple[Tensor, Tensor]:
    width = size.heads * size.width
    return torch.randn(size.nodes, width), torch.randint(size.nodes, (2, size.edges))


def _plain(kind: str, options: dict[str, Any], size: Size) -> Built:
    width = size.heads * size.width
    return kind, (width, size.width), {"heads": size.heads, **options}, _graph(size)


def _states(kind: str, size: Size) -> Built:
    """Several states of one graph, of which torch_geometric takes the union of as many graphs."""
    x, edge_index = _graph(replace(size, nodes=size.nodes // 8, edges=size.edges // 8))
    states = torch.randn(8, *x.shape)
    return kind, (x.shape[1], size.width), {"heads": size.heads}, (states, edge_index)


def _joined(states: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    nodes = states.shape[1]
    union = torch.cat([edge_index + nodes * i for i in range(len(states))], dim=1)
    return states.flatten(0, 1), union


def _union(kind: str, size: Size) -> Built:
    kind, arguments, options, inputs = _states(kind, size)
    return kind, arguments, options, _joined(*inputs)


def _fa(size: Size) -> Built:
    x, edge_index = _graph(size)
    return "FAConv", (x.shape[1],), {}, (x, x, edge_index)


def _rgat(size: Size) -> Built:
    x, edge_index = _graph(replace(size, edges=size.edges // 10))  # theirs: a matrix for each edge
    types = torch.randint(RELATIONS, (edge_index.shape[1],))
    arguments = (x.shape[1], size.width, RELATIONS)
    return "RGATConv", arguments, {"heads": size.heads}, (x, edge_index, types)


def _hypergraph(size: Size) -> Built:
    x, holds = _graph(size)
    given = (x, holds, None, torch.randn_like(x))
    options = {"use_attention": True, "heads": size.heads}
    return "HypergraphConv", (x.shape[1], size.width), options, given


def _of_types(kind: str, size: Size) -> Built:
    names = [f"n{i}" for i in range(NODE_TYPES)]
    nodes, edges, width = (
        size.nodes // NODE_TYPES,
        size.edges // EDGE_TYPES,
        size.heads * size.width,
    )
    types = [(names[i % 5], f"r{i}", names[(i + i // 5) % 5]) for i in range(EDGE_TYPES)]
    x = {name: torch.randn(nodes, width) for name in names}
    pairs = {edge_type: torch.randint(nodes, (2, edges)) for edge_type in types}
    return kind, (width, width, (names, types), size.heads), {}, (x, pairs)


def _dense(size: Size) -> Built:
    nodes, width = max(4, size.nodes // 80), size.heads * size.width
    adj = (torch.rand(8, nodes, nodes) < 0.1).float()
    return "DenseGATConv", (width, size.width, size.heads), {}, (torch.randn(8, nodes, width), adj)


def _gps(size: Size) -> Built:
    nodes, width = size.nodes // 8, size.heads * size.width
    x, edge_index = torch.randn(nodes, width), torch.randint(nodes, (2, size.edges // 8))
    return "GPSConv", (width, None, size.heads), {"norm": None}, (x, edge_index)


_CASES: dict[str, Callable[[Size], Built]] = {
    "HGTConv": partial(_of_types, "HGTConv"),
    "HANConv": partial(_of_types, "HANConv"),
    "RGATConv": _rgat,
    "SuperGATConv, MX": partial(_plain, "SuperGATConv", {}),
    "SuperGATConv, SD": partial(_plain, "SuperGATConv", {"attention_type": "SD"}),
    "FAConv": _fa,
    "GeneralConv": partial(_plain, "GeneralConv", {"attention": True}),
    "HypergraphConv": _hypergraph,
    "DenseGATConv": _dense,
    "GPSConv": _gps,
    **{
        f"{kind}, {what}": partial(case, kind)
        for kind in ("GATConv", "GATv2Conv", "TransformerConv")
        for what, case in ((STATES, _states), (UNION, _union))
    },
}
