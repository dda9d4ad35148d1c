"""What is measured on graphs: our layers and torch_geometric's, and the steps inside ours.

Each function makes one contender, in a process of its own (`_worker`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor, nn

import gat
from attn_core import (
    Additive,
    Edges,
    ScaledDot,
    Separable,
    attend,
    backend,
    clear_cache,
)
from attn_core.backends import cpu
from benchmarks._graphs import make_graph
from benchmarks._worker import Contender, of_layers

FORWARD, BOTH = "forward", "forward and backward"
OURS, PEER, COMPILED = "ours", "torch_geometric", "torch_geometric, compiled"
BACKENDS = {
    OURS: "auto",
    "ours, graph sorted anew": "auto",
    "ours, plain torch": "torch",
    "ours, reference": "reference",
}
LAYERS: dict[str, dict[str, Any]] = {
    "GATConv": {"add_self_loops": False},
    "GATv2Conv": {"add_self_loops": False},
    "TransformerConv": {},
}
SCORES = ("gat", "gatv2", "scaled dot")


def save_inputs(path: str, nodes: int, edges: int, features: int, heads: int, width: int) -> None:
    """Write what all layers are given: a graph without self-loops, features, and parameters."""
    torch.manual_seed(0)
    edge_index, _ = make_graph("uniform", edges, nodes=nodes)
    parameters = {
        name: getattr(torch_geometric.nn, name)(features, width, heads, **more).state_dict()
        for name, more in LAYERS.items()
    }
    given = {"x": torch.randn(nodes, features), "edge_index": edge_index, "parameters": parameters}
    torch.save({**given, "size": (features, width, heads)}, path)


def layers(contender: str, inputs: str) -> Contender:
    """Whole layers, of ours or of torch_geometric's, with the inputs that `save_inputs` wrote."""
    given = torch.load(inputs, weights_only=True)
    made = {name: _layer(contender, name, *given["size"]) for name in given["parameters"]}
    for name, layer in made.items():
        layer.load_state_dict(given["parameters"][name])
    calls = {name: _call(contender, layer, given["edge_index"]) for name, layer in made.items()}
    return of_layers(calls, made, given["x"], clear_cache, _within(contender))


def gatv2_on_graph(contender: str, nodes: int, edges: int, heads: int, width: int) -> Contender:
    """One GATv2 layer on a graph that need not fit into memory twice."""
    _refuse_fallback(contender)
    graph: Any = make_graph("uniform", edges, nodes=nodes)[0]
    if contender in BACKENDS:
        graph = Edges.from_edge_index(graph, nodes)
    layer = _layer(contender, "GATv2Conv", heads * width, width, heads)
    call = _call(contender, layer, graph)
    x = torch.randn(nodes, heads * width)
    return of_layers({"GATv2Conv": call}, {"GATv2Conv": layer}, x, within=_within(contender))


def _layer(contender: str, name: str, features: int, width: int, heads: int) -> nn.Module:
    _refuse_fallback(contender)
    home: Any = gat if contender in BACKENDS else torch_geometric.nn
    layer: nn.Module = getattr(home, name)(features, width, heads, **LAYERS[name])
    return layer


def _refuse_fallback(contender: str) -> None:
    if contender in BACKENDS and not cpu.available():
        raise RuntimeError("the compiled kernels are not live: see `python -m attn_core.info`")


def _call(contender: str, layer: nn.Module, graph: Any) -> Callable[[Tensor], Tensor]:
    """The layer as a function of the features, as this contender computes it."""
    apply: Callable[..., Tensor] = torch.compile(layer) if contender == COMPILED else layer

    def call(x: Tensor) -> Tensor:
        if contender == "ours, graph sorted anew":
            clear_cache()
        return apply(x, graph)

    return call


def _within(contender: str) -> Callable[[], AbstractContextManager[None]]:
    """The context that makes our layers the contender; torch_geometric's do not mind."""
    return partial(backend, BACKENDS.get(contender, "auto"))


def steps(
    graph: str, nodes: int, edges: int, heads: int, width: int, dtype: str = "float32"
) -> Contender:
    """The neighbourhood step alone, without projections, for each score; and the bound."""
    _refuse_fallback(OURS)
    support = Edges.from_edge_index(make_graph(graph, edges, nodes=nodes)[0], nodes)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape).to(getattr(torch, dtype)).requires_grad_()

    value, query = leaf(nodes, heads, width), leaf(nodes, heads, width)
    halves = [leaf(nodes, heads, 1) for _ in range(2)]
    cases: dict[str, tuple[Tensor, Tensor, Any]] = {
        "gat": (halves[0], halves[1], Separable()),
        "gatv2": (query, value, Additive(leaf(heads, width).detach(), "leaky_relu")),
        "scaled dot": (query, value, ScaledDot()),
    }
    rows, keys = value.detach().view(nodes, -1), support.by_query.columns
    pointer = support.by_query.pointer.to(keys.dtype)

    def bound() -> Tensor:
        return F.embedding_bag(keys, rows, pointer, mode="sum", include_last_offset=True)

    def sort() -> None:
        anew = Edges.from_edge_index(support.pairs, nodes)
        _ = anew.by_query.columns, anew.by_key.columns

    def forward(score: str) -> Tensor:
        query, key, score_of = cases[score]
        return attend(query, key, value, score=score_of, support=support).output

    def without_gradients(score: str) -> Tensor:
        with torch.no_grad():
            return forward(score)

    def both(score: str) -> Tensor:
        for x in (value, query, *halves):
            x.grad = None
        output = forward(score)
        output.backward(output.detach())
        return output

    runs: dict[str, Callable[[], Any]] = {"bound": bound, "sorting": sort}
    for score in SCORES:
        runs[f"{score}, {FORWARD}"] = partial(without_gradients, score)
        runs[f"{score}, {BOTH}"] = partial(both, score)
    return Contender(runs)


class TwoLayers(nn.Module):
    """The network of "Graph Attention Networks" (Veličković et al., 2018) for citation graphs."""

    def __init__(self, conv: Any, drop: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.first = conv(features, 8, heads=8, dropout=0.6)
        self.second = conv(64, classes, heads=1, dropout=0.6)
        self.drop = drop

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = F.elu(self.first(self.drop(x), edge_index))
        output: Tensor = self.second(self.drop(hidden), edge_index)
        return output


def training(contender: str, sparse: bool, data: str) -> Contender:
    """A training step in the configuration of the paper, the optimiser's included."""
    from datasets import karate_club, planetoid  # takes other processes a second

    _refuse_fallback(contender)
    graph = planetoid(data) if data == "cora" else karate_club()
    size = graph.x.shape[1], len(graph.class_names)
    network = TwoLayers(torch_geometric.nn.GATConv, nn.Dropout(0.6), *size)
    if contender in BACKENDS:
        peer, network = network, TwoLayers(gat.GATConv, gat.SparseDropout(0.6), *size)
        network.load_state_dict(peer.state_dict())
    x, mask = (graph.x.to_sparse_csr() if sparse else graph.x), graph.train_mask
    # Fused: the fastest Adam that torch has, for all
    optimizer = torch.optim.Adam(network.parameters(), lr=0.005, weight_decay=5e-4, fused=True)
    call: Callable[..., Tensor] = torch.compile(network) if contender == COMPILED else network
    within = _within(contender)

    def step() -> None:
        optimizer.zero_grad()
        with within():
            F.cross_entropy(call(x, graph.edge_index)[mask], graph.y[mask]).backward()
        optimizer.step()

    def results() -> Mapping[str, Tensor]:
        network.eval()
        with torch.no_grad(), within():
            logits = call(x, graph.edge_index)
        network.train()
        return {"logits without dropout": logits}

    return Contender({"step": step}, clear_cache, results)
