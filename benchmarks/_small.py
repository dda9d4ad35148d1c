"""Small graphs, and graphs that are new at every step: what torch_geometric takes of our time.

All contenders run in this process, in turns, with one thread; what counts is the time of the
process, which others on the machine leave alone.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

import gat
from benchmarks._contenders import FORWARD, LAYERS, OURS, PEER
from benchmarks._measure import Timings, assert_agree, take_turns, with_backward
from benchmarks._report import Cell, Report, Table
from datasets import DataFileError
from datasets.tudataset import tudataset

SIZES = (50, 200), (1_000, 5_000)
IN_CHANNELS, HEADS, CHANNELS = 32, 4, 8
LINEAR = "nn.Linear alone"
INFERENCE, STEP, NEW = "without gradients", "step", "step on a new graph"
RUNS = INFERENCE, FORWARD, STEP, NEW
_NEW = 64  # graphs that are new in turn


def measure_small(report: Report, arguments: Namespace) -> None:
    """Layers on small graphs, known and new, and training of graph classification."""
    with _one_thread():
        report.add(_layers(tiny=arguments.tiny))
        report.add(_epoch(tiny=arguments.tiny))


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _layers(*, tiny: bool) -> Table:
    rows: list[list[Cell]] = []
    findings: dict[str, float] = {}
    for nodes, edges in SIZES:
        for layer in LAYERS:
            timings = _of_layer(layer, nodes, edges, tiny=tiny)
            ratios = {run: timings[run].ratio(PEER, to=OURS) for run in RUNS}
            mine = [1e3 * timings[run].milliseconds(OURS) for run in RUNS]
            floor = 1e3 * timings[STEP].milliseconds(LINEAR)
            rows.append([f"{nodes:,} / {edges:,}", layer, *ratios.values(), *mine, floor])
            findings |= {f"{nodes:,} / {edges:,}, {layer}, {k}": ratios[k] for k in (STEP, NEW)}
    columns = ["nodes / edges", "layer", *(f"{run} ×" for run in RUNS)]
    columns += [*(f"ours, {run}, µs" for run in RUNS), f"{LINEAR}, {STEP}, µs"]
    return Table(
        "Small and new graphs",
        columns,
        rows,
        f"{PEER} ÷ ours: time of the process with one thread, {IN_CHANNELS} channels to {HEADS} × "
        f"{CHANNELS}, medians over rounds in which the two take turns. A new graph is a tensor "
        "that the layer has not seen. With equal parameters both were shown to compute the same. "
        "The last column is what torch takes for a step of one linear map of as many numbers.",
        findings=findings,
    )


def _of_layer(name: str, nodes: int, edges: int, *, tiny: bool) -> dict[str, Timings]:
    torch.manual_seed(0)
    x = torch.randn(nodes, IN_CHANNELS)
    graphs = [torch.randint(nodes, (2, edges)) for _ in range(_NEW)]
    theirs = getattr(torch_geometric.nn, name)(IN_CHANNELS, CHANNELS, HEADS)
    ours = getattr(gat, name)(IN_CHANNELS, CHANNELS, HEADS)
    ours.load_state_dict(theirs.state_dict())
    layers: dict[str, nn.Module] = {PEER: theirs, OURS: ours}
    known: dict[str, Callable[[], Any]] = {
        who: partial(layer, x, graphs[0]) for who, layer in layers.items()
    }
    assert_agree(known)

    def new(layer: nn.Module) -> Callable[[], Any]:
        turn = iter(range(2**62))
        return lambda: layer(x, graphs[next(turn) % _NEW].clone())

    def without_gradients(layer: nn.Module) -> Any:
        with torch.no_grad():
            return layer(x, graphs[0])

    runs: dict[str, dict[str, Callable[[], Any]]] = {
        INFERENCE: {who: partial(without_gradients, layer) for who, layer in layers.items()},
        FORWARD: known,
        STEP: with_backward(
            {**known, LINEAR: partial(nn.Linear(IN_CHANNELS, HEADS * CHANNELS), x)}
        ),
        NEW: with_backward({who: new(layer) for who, layer in layers.items()}),
    }
    times, rounds = (2, 2) if tiny else (max(4, 3000 // (nodes + edges)), 25)
    return {
        run: take_turns(
            {who: partial(_again, call, times) for who, call in contenders.items()},
            rounds,
            timer=partial(_process_time, times=times),
        )
        for run, contenders in runs.items()
    }


def _again(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def _process_time(call: Callable[[], Any], times: int = 1) -> float:
    start = time.process_time()
    call()
    return (time.process_time() - start) / times


# --- Graph classification ---


class _Classifier(nn.Module):
    """Layers of one of the two libraries, the mean over each graph, a linear map."""

    def __init__(self, layer: Any, channels: int, classes: int) -> None:
        super().__init__()
        width = HEADS * CHANNELS
        self.layers = nn.ModuleList(
            layer(inputs, CHANNELS, HEADS) for inputs in (channels, width, width)
        )
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, graphs: int) -> Tensor:
        for layer in self.layers:
            x = F.elu(layer(x, edge_index))
        return self.out(torch_geometric.nn.global_mean_pool(x, batch, graphs))


def _epoch(*, tiny: bool) -> Table:
    title = "An epoch of graph classification on ENZYMES"
    try:
        graphs = tudataset("ENZYMES")
    except DataFileError as error:
        print(f"{title}: {error}", file=sys.stderr)  # names folders of this machine
        return Table(title, [], [], "Skipped, for want of the data: the file of ENZYMES is neither "
                     "in the folder GAT_DATA nor to be downloaded.")  # fmt: skip
    rows: list[list[Cell]] = []
    findings = {}
    for layer in LAYERS:
        timings = _train(layer, graphs[:32] if tiny else graphs, rounds=1 if tiny else 7)
        for what, timing in timings.items():
            ratio = timing.ratio(PEER, to=OURS)
            rows.append([layer, what, *map(timing.milliseconds, (PEER, OURS)), ratio])
            findings[f"{layer}, {what}"] = ratio
    return Table(
        title,
        ["layer", "", f"{PEER}, ms", "ours, ms", "×"],
        rows,
        "Three layers of 4 × 8, the mean over each graph, a linear map; batches of 32 graphs, "
        "shuffled anew by torch_geometric's DataLoader, Adam; time of the process with one thread. "
        "In the second row of each layer the batches were put together before.",
        findings=findings,
    )


def _train(name: str, graphs: list[Data], rounds: int) -> dict[str, Timings]:
    channels, classes = graphs[0].x.shape[1], 1 + max(int(graph.y) for graph in graphs)
    loader = DataLoader(graphs, batch_size=32, shuffle=True)
    kept = list(loader)
    models = {
        who: _Classifier(getattr(library, name), channels, classes)
        for who, library in ((PEER, torch_geometric.nn), (OURS, gat))
    }
    models[OURS].load_state_dict(models[PEER].state_dict())
    first = kept[0]
    given = first.x, first.edge_index, first.batch, first.num_graphs
    assert_agree({who: partial(model, *given) for who, model in models.items()})

    def epoch(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Any) -> None:
        for batch in batches:
            edge_index = batch.edge_index.clone()  # one that nothing is known of
            optimizer.zero_grad()
            out = model(batch.x, edge_index, batch.batch, batch.num_graphs)
            F.cross_entropy(out, batch.y).backward()
            optimizer.step()

    return {
        what: take_turns(
            {
                who: partial(epoch, model, torch.optim.Adam(model.parameters(), 1e-3), batches)
                for who, model in models.items()
            },
            rounds,
            warm_up=1,
            timer=_process_time,
        )
        for what, batches in (("end to end", loader), ("with batches at hand", kept))
    }
