"""Several processes against one: time, bytes against the formula, memory, and how exact it is.

Each process has a fixed number of threads. One process and several take turns in the same minute,
so that whatever else the machine does hits both.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import gat
from attn_core import Edges, ScaledDot, Softmax
from attn_core.distributed import traffic
from attn_core.ring import Ring
from benchmarks._graphs import band, uniform
from benchmarks._measure import ROOT
from benchmarks._report import Cell, Report, Table
from examples.shared.files import UserError
from gat.distributed import Partition, global_mean, parallelize
from gat.loader import NeighborSampler
from sequence_attn import MultiHead
from sequence_attn.distributed import context_parallel

LIMIT = 1200  # seconds, after which all processes of a measurement are killed
PARTS = ("graphs", "memory", "sequences", "sampler")
CHANNELS, HEADS, WIDTH, OF_EDGES = 64, 4, 16, 4
GRAPHS: dict[str, Callable[..., Tensor]] = {"band": band, "random": uniform}
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "GATConv": lambda: gat.GATConv(CHANNELS, WIDTH, HEADS, edge_dim=OF_EDGES),
    "GATv2Conv": lambda: gat.GATv2Conv(CHANNELS, WIDTH, HEADS, edge_dim=OF_EDGES),
    "TransformerConv": lambda: gat.TransformerConv(CHANNELS, WIDTH, HEADS, edge_dim=OF_EDGES),
}
Made = dict[str, Any]


def rss() -> float:
    """The most memory this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


# --- What runs in the processes -------------------------------------------------------------------


def drawn(kind: str, nodes: int, edges: int) -> tuple[Tensor, Tensor, Tensor]:
    """A graph whose last hundredth of the nodes is isolated, features, and features of edges."""
    torch.manual_seed(0)
    edge_index = GRAPHS[kind](edges, nodes - nodes // 100, "cpu")
    x, edge_attr = torch.randn(nodes, CHANNELS), torch.randn(edge_index.shape[1], OF_EDGES)
    return edge_index, x, edge_attr


def step(model: nn.Module, x: Tensor, edges: Any, edge_attr: Tensor) -> dict[str, Tensor]:
    """A training step without the optimiser: the output, and all gradients."""
    leaf = x.detach().requires_grad_()
    model.zero_grad(set_to_none=True)
    out = model(leaf, edges, edge_attr=edge_attr)
    global_mean(out.sin()).backward()
    assert leaf.grad is not None
    grads = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
    return {
        "out": out.detach(),
        "x": leaf.grad,
        **{n: g for n, g in grads.items() if g is not None},
    }


def of_layer(rank: int, layer: str, part: Partition, given: tuple[Tensor, ...], turns: int) -> Made:
    """Times of both, errors against one process, bytes and their formula."""
    edge_index, x, edge_attr = given
    torch.manual_seed(1)
    model = LAYERS[layer]()
    alone = LAYERS[layer]()
    alone.load_state_dict(model.state_dict())
    parallel = parallelize(model, part)
    rows, of_edges = part.rows(x), part.edge_rows(edge_attr)
    whole = Edges(edge_index, len(x), len(x)) if rank == 0 else None
    times: dict[str, list[float]] = {"one": [], "several": []}
    found = truth = step(parallel, rows, part.edges, of_edges)
    for _ in range(turns):
        dist.barrier()
        if rank == 0:
            started = time.perf_counter()
            truth = single(alone, x, whole, edge_attr)
            times["one"].append(time.perf_counter() - started)
        dist.barrier()
        started = time.perf_counter()
        with traffic() as sent:
            found = step(parallel, rows, part.edges, of_edges)
        times["several"].append(time.perf_counter() - started)
    errors: dict[str, float] = {}
    largest = max(float(truth[name].abs().max()) for name in truth if name not in ("out", "x"))
    for name, value in found.items():
        mine = part.collect(value) if name in ("out", "x") else value
        scale = float(truth[name].abs().max()) if name in ("out", "x") else largest
        errors[name] = float((mine - truth[name]).abs().max()) / scale if rank == 0 else 0.0
    again = step(parallel, rows, part.edges, of_edges)
    assert all(torch.equal(again[name], value) for name, value in found.items())
    route = part.edges.route
    formula = route.bytes_sent(CHANNELS, 4) + route.bytes_returned(CHANNELS, 4)
    return {"error": max(errors.values()), "sent": sent.rows, "formula": formula, **times}


def of_layers(rank: int, world: int, sizes: list[int], turns: int, names: list[str]) -> Made:
    """`of_layer` for each layer over each graph, in the same processes."""
    made = {}
    for kind in GRAPHS:
        given = drawn(kind, *sizes)
        part = Partition.split(given[0], world, sizes[0])[rank]
        for layer in names:
            made[f"{kind}, {layer}"] = of_layer(rank, layer, part, given, turns)
    return made


def single(model: nn.Module, x: Tensor, edges: Any, edge_attr: Tensor) -> dict[str, Tensor]:
    """`step` of one process among others, which it does not wait for."""
    leaf = x.detach().requires_grad_()
    model.zero_grad(set_to_none=True)
    out = model(leaf, edges, edge_attr=edge_attr)
    out.sin().mean().backward()
    assert leaf.grad is not None
    grads = {n: p.grad for n, p in model.named_parameters()}
    return {
        "out": out.detach(),
        "x": leaf.grad,
        **{n: g for n, g in grads.items() if g is not None},
    }


def memory(rank: int, world: int, kind: str, sizes: list[int], folder: str) -> Made:
    """The most memory that a step takes beyond what a process has before it loads its part."""
    part = Partition.load(folder, rank)
    before = rss()
    torch.manual_seed(1)
    model = parallelize(LAYERS["GATv2Conv"](), part)
    rows = torch.randn(len(part.nodes), CHANNELS)
    step(model, rows, part.edges, torch.randn(part.pairs.shape[1], OF_EDGES))
    return {"peak": rss() - before}


def of_ring(rank: int, world: int, steps: int) -> Made:
    """Memory beyond queries, keys and values, in shares of these; bytes and their formula."""
    runs = [[(i * 64, 64)] for i in range(world)]
    ring = Ring(ScaledDot(), Softmax(), runs, runs)
    small = [torch.randn(1, 64, 8, 64, requires_grad=True) for _ in range(3)]
    ring.attend(*small).sum().backward()  # what is made once
    runs = [[(i * steps, steps)] for i in range(world)]
    ring = Ring(ScaledDot(), Softmax(), runs, runs)
    q, k, v = (torch.randn(1, steps, 8, 64, requires_grad=True) for _ in range(3))
    before = rss()
    with traffic() as sent:
        out = ring.attend(q, k, v)
        forward = rss()
        out.backward(torch.ones_like(out))
    size = 3 * q.numel() * 4 / 2**20
    formula = ring.bytes_sent(k, v) + ring.bytes_sent(k, v, backward=True)
    return {
        "forward": (forward - before) / size,
        "peak": (rss() - before) / size,
        "sent": sent.rows,
        "formula": formula,
    }


def of_window(rank: int, world: int, steps: int, radius: int) -> Made:
    """Whether a causal window over split sequences is the whole one's to the bit; bytes sent."""
    torch.manual_seed(0)
    layer = MultiHead(2, 8, input_size=16, window=radius)
    model = context_parallel(layer)
    x = torch.randn(1, steps, 16)
    with torch.no_grad():
        with traffic() as sent:
            mine = model(model.shard(x), causal=True).context
        out = model.unshard(mine)
        whole = layer(x, causal=True).context if rank == 0 else out
    halo = radius * 2 * 16 * 4 if rank + 1 < world else 0
    return {
        "equal": torch.equal(out, whole),
        "error": float((out - whole).abs().max()),
        "sent": sent.rows,
        "formula": halo,
    }


def of_sampler(rank: int, world: int, sizes: list[int], batches: int) -> Made:
    """Edges drawn in a second, in blocks with [15, 10] neighbours for 1024 nodes."""
    edge_index, _, _ = drawn("random", *sizes)
    sampler = NeighborSampler(edge_index, [15, 10], num_nodes=sizes[0], seed=0)
    nodes = torch.randperm(sizes[0])
    sampler.blocks(nodes[:1024])
    best = 0.0
    for batch in nodes.split(1024)[:batches]:
        started = time.perf_counter()
        drawn_edges = sum(block.edges.num_edges for block in sampler.blocks(batch))
        best = max(best, drawn_edges / (time.perf_counter() - started))
    return {"edges per second": best}


def worker(arguments: list[str]) -> None:
    """One of the processes."""
    rank, world, threads = map(int, arguments[:3])
    folder, function, given = arguments[3:]
    torch.set_num_threads(threads)
    limit = timedelta(seconds=LIMIT)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=world, timeout=limit
    )
    made = globals()[function](rank, world, **json.loads(given))
    Path(folder, f"{rank}.json").write_text(json.dumps(made))
    dist.barrier()
    dist.destroy_process_group()


# --- What starts them -----------------------------------------------------------------------------


def together(world: int, function: str, threads: int, **given: Any) -> list[Made]:
    """What a function returns in each of `world` processes.

    Raises:
        UserError: one of them failed, or took too long.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.scale"]
        processes = [
            subprocess.Popen(
                [*command, *map(str, (rank, world, threads, folder)), function, json.dumps(given)],
                cwd=ROOT,
                env=environment,
            )
            for rank in range(world)
        ]
        end = time.monotonic() + LIMIT
        try:
            codes = [p.wait(max(0.1, end - time.monotonic())) for p in processes]
        except subprocess.TimeoutExpired:
            codes = [1]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(codes):
            raise UserError(f"{function} in {world} processes failed or took over {LIMIT} s")
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --only."""
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="default: all")


def run(arguments: argparse.Namespace) -> Report:
    """All tables."""
    threads, tiny = arguments.threads or 1, arguments.tiny
    sizes = [2_000, 20_000] if tiny else [200_000, 2_000_000]
    report = Report("Several processes against one")
    tables: dict[str, Callable[[], Table]] = {
        "graphs": lambda: _graphs(sizes, threads, turns=1 if tiny else 3),
        "memory": lambda: _memory(sizes, threads),
        "sequences": lambda: _sequences(threads, tiny),
        "sampler": lambda: _sampler(sizes, threads, batches=2 if tiny else 20),
    }
    for name in arguments.only:
        report.add(tables[name]())
    return report


def _sampler(sizes: list[int], threads: int, batches: int) -> Table:
    found = together(1, "of_sampler", threads, sizes=sizes, batches=batches)[0]
    millions = found["edges per second"] / 1e6
    note = "Blocks for 1024 nodes with 15 and 10 neighbours, the best of the batches."
    return Table("Sampler", ["", "10⁶ edges/s"], [["NeighborSampler", millions]], note)


def _graphs(sizes: list[int], threads: int, turns: int) -> Table:
    rows: list[list[Cell]] = []
    findings = {}
    for world in (2, 4):
        given = {"sizes": sizes, "turns": turns if world == 2 else 1, "names": list(LAYERS)}
        found = together(world, "of_layers", threads, **given)
        for name in found[0]:
            each = [of_process[name] for of_process in found]
            assert all(e["sent"] == e["formula"] for e in each), "not the formula"
            one = min(each[0]["one"])
            times = zip(*(e["several"] for e in each), strict=True)
            several = min(map(max, times))
            mib = max(e["sent"] for e in each) / 2**20
            error = f"{each[0]['error']:.1e}"
            rows.append([name, world, one * 1e3, several * 1e3, several / one, mib, error])
            if name == "band, GATv2Conv" and world == 2:
                findings["band, GATv2Conv: time of 2 processes over that of one"] = several / one
    columns = ["", "processes", "one, ms", "several, ms", "several / one", "MiB sent", "error"]
    note = (
        f"{sizes[0]:,} nodes, {sizes[1]:,} edges, {CHANNELS} features, {HEADS} heads × {WIDTH}, "
        f"{OF_EDGES} features of edges; a training step without the optimiser, {threads} thread(s) "
        f"for each process, {os.cpu_count()} cores: more processes than cores say nothing of time. "
        "The best of the turns; of several processes the slowest. MiB that the process with the "
        "longest halo sends in a step, which is what the formula says, in every process. Error: "
        "the largest of output and gradients, as a share of the largest number of the output, the "
        "features' gradient and all parameters'; repeated steps gave the same bits."
    )
    return Table("A graph in parts", columns, rows, note, findings=findings)


def _memory(sizes: list[int], threads: int) -> Table:
    rows: list[list[Cell]] = []
    for world in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            edge_index, _, _ = drawn("band", *sizes)
            for part in Partition.split(edge_index, world, sizes[0]):
                part.save(folder)
            each = together(world, "memory", threads, kind="band", sizes=sizes, folder=folder)
        rows.append([world, max(e["peak"] for e in each)])
    note = "GATv2Conv over the band graph: the most that a step takes beyond the loaded part."
    return Table("Memory of a process", ["processes", "MiB"], rows, note)


def _sequences(threads: int, tiny: bool) -> Table:
    rows: list[list[Cell]] = []
    steps = 128 if tiny else 2048
    each = together(4, "of_ring", threads, steps=steps)
    assert all(e["sent"] == e["formula"] for e in each)
    peak = [max(e[what] for e in each) for what in ("forward", "peak")]
    about = (
        f"memory {peak[0]:.2f} forward, {peak[1]:.2f} with backward, of queries, keys and values"
    )
    rows.append([f"ring, {4 * steps:,} steps", 4, max(e["sent"] for e in each) / 2**10, about])
    for length in (2_000, 4_000) if tiny else (100_000, 1_000_000):
        each = together(2, "of_window", threads, steps=length, radius=32)
        assert all(e["sent"] == e["formula"] for e in each)
        bits = "equal bits" if each[0]["equal"] else f"error {each[0]['error']:.1e}"
        sent = max(e["sent"] for e in each) / 2**10
        rows.append([f"causal window of 32, {length:,} steps", 2, sent, bits])
    note = (
        "KiB that the process that sends most sends: of the ring forward and backward, of the "
        "window forward; equal to the formula. 8 heads × 64 (ring), 2 × 8 (window), float32."
    )
    return Table("Sequences split along time", ["", "processes", "KiB sent", ""], rows, note)


if __name__ == "__main__":
    worker(sys.argv[1:])
