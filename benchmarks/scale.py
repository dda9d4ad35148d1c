"""Several processes against one: time, bytes against the formula, memory, and how exact it is.

Each process has a fixed number of threads. One process and several take turns in the same minute,
so that whatever else the machine does hits both.
"""

from __future__ import annotations

import argparse
import json
import os
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
from attn_core import Edges, ScaledDot, Softmax, backend
from attn_core.distributed import leave, traffic
from attn_core.ring import Ring
from benchmarks._graphs import band, uniform
from benchmarks._measure import ROOT
from benchmarks._report import Cell, Report, Table
from benchmarks._worker import resident_peak
from examples.shared.files import UserError
from gat.distributed import Partition, global_mean, parallelize
from gat.loader import NeighborSampler
from sequence_attn import MultiHead
from sequence_attn.distributed import context_parallel

LIMIT = 1200  # seconds, after which all processes of a measurement are killed
PARTS = ("times", "errors", "memory", "sequences", "sampler")
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
    # Not getrusage's: a new process begins with what its parent had
    return resident_peak() / 2**20


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


def of_layer(
    rank: int, layer: str, part: Partition, given: tuple[Tensor, ...], whole: Any, turns: int
) -> Made:
    """Times of both, errors against one process, bytes and their formula."""
    _, x, edge_attr = given
    torch.manual_seed(1)
    model = LAYERS[layer]().to(x.dtype)
    alone = LAYERS[layer]().to(x.dtype)
    alone.load_state_dict(model.state_dict())
    parallel = parallelize(model, part)
    rows, of_edges = part.rows(x), part.edge_rows(edge_attr)
    times: dict[str, list[float]] = {"one": [], "several": [], "exchanges": []}
    found = truth = step(parallel, rows, part.edges, of_edges)
    if rank == 0:
        truth = single(alone, x, whole, edge_attr)  # both are warm now
    for _ in range(turns):
        dist.barrier()
        if rank == 0:
            started = time.perf_counter()
            single(alone, x, whole, edge_attr)
            times["one"].append(time.perf_counter() - started)
        dist.barrier()
        started = time.perf_counter()
        with traffic() as sent:
            step(parallel, rows, part.edges, of_edges)
        times["several"].append(time.perf_counter() - started)
        times["exchanges"].append(sent.seconds)
    with traffic() as sent:
        again = step(parallel, rows, part.edges, of_edges)
    assert all(torch.equal(again[name], value) for name, value in found.items())
    of_rows = "out", "x"
    found = {n: part.collect(x) if n in of_rows else x for n, x in found.items()}
    error = of_one = 0.0
    if rank == 0:  # the only one that knows the truth
        error = farthest(found, truth)
        if turns == 0 and x.dtype == torch.float32:
            exact = single(alone.double(), x.double(), whole, edge_attr.double())
            of_one = farthest(truth, exact)
    route = part.edges.route
    formula = sum(
        counted(CHANNELS, x.element_size()) for counted in (route.bytes_sent, route.bytes_returned)
    )
    return {"error": error, "of one": of_one, "sent": sent.rows, "formula": formula, **times}


def farthest(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    """The largest difference: of the output and the features' gradient as a share of the largest
    number there, of parameters' gradients as one of the largest in all of these."""
    size = {name: float(x.abs().max()) for name, x in truth.items()}
    largest = max(value for name, value in size.items() if name not in ("out", "x"))
    return max(
        float((x - truth[name]).abs().max()) / (size[name] if name in ("out", "x") else largest)
        for name, x in found.items()
    )


def of_times(rank: int, world: int, sizes: list[int], turns: int) -> Made:
    """`of_layer` for each layer over the band graph, in the same processes."""
    given = drawn("band", *sizes)
    part = Partition.split(given[0], world, sizes[0])[rank]
    whole = Edges(given[0], sizes[0], sizes[0]) if rank == 0 else None
    return {layer: of_layer(rank, layer, part, given, whole, turns) for layer in LAYERS}


def of_errors(rank: int, world: int, sizes: list[int], empty: bool, kind: str) -> Made:
    """`of_layer` over a random graph with self-loops, the last part empty or none."""
    edge_index, x, edge_attr = drawn("random", *sizes)
    edge_index[1, :: sizes[1] // 1000] = edge_index[0, :: sizes[1] // 1000]
    filled = world - empty
    assignment = torch.arange(sizes[0]) * filled // sizes[0]
    part = Partition.split(edge_index, world, sizes[0], assignment=assignment)[rank]
    whole = Edges(edge_index, sizes[0], sizes[0]) if rank == 0 else None
    given = edge_index, *(value.to(getattr(torch, kind)) for value in (x, edge_attr))
    return {layer: of_layer(rank, layer, part, given, whole, 0) for layer in LAYERS}


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
    small = [torch.randn(1, 64, 32, 256, requires_grad=True) for _ in range(3)]
    ring.attend(*small).sum().backward()  # what is made once
    runs = [[(i * steps, steps)] for i in range(world)]
    ring = Ring(ScaledDot(), Softmax(), runs, runs)
    q, k, v = (torch.randn(1, steps, 512, 256, requires_grad=True) for _ in range(3))
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
    """Edges drawn in a second, in blocks with [15, 10] neighbours for 1024 nodes, both ways."""
    edge_index, _, _ = drawn("random", *sizes)
    sampler = NeighborSampler(edge_index, [15, 10], num_nodes=sizes[0], seed=0)
    nodes = torch.randperm(sizes[0])
    best = {"auto": 0.0, "torch": 0.0}
    for batch in nodes.split(1024)[:batches]:
        found = []
        for way in best:  # by turns
            with backend(way):
                started = time.perf_counter()
                blocks = sampler.blocks(batch)
                seconds = time.perf_counter() - started
            best[way] = max(best[way], sum(b.edges.num_edges for b in blocks) / seconds)
            found.append(blocks)
        for one, other in zip(*found, strict=True):
            assert torch.equal(one.edge_ids, other.edge_ids)
    return best


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
    leave()


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
    report = Report("Several processes against one", keep=arguments.keep)
    tables: dict[str, Callable[[], Table]] = {
        "times": lambda: _times(sizes, threads, turns=1 if tiny else 3),
        "errors": lambda: _errors(sizes, threads),
        "memory": lambda: _memory(sizes, threads),
        "sequences": lambda: _sequences(threads, tiny),
        "sampler": lambda: _sampler(sizes, threads, batches=2 if tiny else 20),
    }
    for name in arguments.only:
        report.add(tables[name]())
        report.keep(report)
    return report


def _sampler(sizes: list[int], threads: int, batches: int) -> Table:
    rows: list[list[Cell]] = []
    for number in (threads, 2 * threads):
        found = together(1, "of_sampler", number, sizes=sizes, batches=batches)[0]
        millions = [found[way] / 1e6 for way in ("auto", "torch")]
        rows.append([number, *millions, millions[0] / millions[1]])
    note = (
        f"Blocks for 1024 of {sizes[0]:,} nodes with 15 and 10 neighbours ({sizes[1]:,} edges), "
        "the best of the batches, by turns; both draw the same edges. torch_geometric's sampler "
        "needs pyg-lib or torch-sparse, which are on no index as wheels: plain torch takes its "
        "formula, Floyd's draw without replacement and nodes numbered anew, for all nodes at once."
    )
    columns = ["threads", "compiled, 10⁶ edges/s", "plain torch, 10⁶ edges/s", "ratio"]
    return Table("Sampler", columns, rows, note)


def _times(sizes: list[int], threads: int, turns: int) -> Table:
    rows: list[list[Cell]] = []
    findings = {}
    found = together(2, "of_times", threads, sizes=sizes, turns=turns)
    for name in found[0]:
        each = [of_process[name] for of_process in found]
        one = min(each[0]["one"])
        several = min(map(max, zip(*(e["several"] for e in each), strict=True)))
        waiting = min(min(e["exchanges"]) for e in each)
        rows.append([name, one * 1e3, several * 1e3, several / one, waiting * 1e3])
        if name == "GATv2Conv":
            findings["band, GATv2Conv: time of 2 processes over that of one"] = several / one
    note = (
        f"The band graph. {_of_graph(sizes)} A training step without the optimiser, {threads} "
        f"thread(s) for each process, {os.cpu_count()} cores. The best of {turns} turns; of two "
        "processes the slower. "
        "Exchanges: the shortest time that a process was in those of a step, of rows there and of "
        "gradients back, which is the most that computing beside them could save."
    )
    columns = ["", "one, ms", "two, ms", "two / one", "exchanges, ms"]
    return Table("Two processes against one", columns, rows, note, findings=findings)


def _errors(sizes: list[int], threads: int) -> Table:
    rows: list[list[Cell]] = []
    for world, empty in ((2, False), (4, True)):
        for kind in ("float32", "float64"):
            found = together(world, "of_errors", threads, sizes=sizes, empty=empty, kind=kind)
            for layer in LAYERS:
                each = [of_process[layer] for of_process in found]
                assert all(e["sent"] == e["formula"] for e in each), "not the formula"
                mib = max(e["sent"] for e in each) / 2**20
                parts = f"{world}, one of them empty" if empty else f"{world}"
                of_one = f"{each[0]['of one']:.1e}" if kind == "float32" else "–"
                rows.append([layer, kind, parts, f"{each[0]['error']:.1e}", of_one, mib])
    note = (
        f"The random graph. {_of_graph(sizes)} The last hundredth of the nodes is isolated, a "
        "thousand edges are self-loops. Error: the largest of output and gradients, as a share of "
        "the largest number of the output, the features' gradient and all parameters'; beside it "
        "that of one process against float64; GATv2Conv's is that of pairs at the kink of the "
        "leaky ReLU, which rounding puts on its other side. Repeated steps gave the same bits. "
        "MiB that the process with the longest halo sends in a step, "
        "which is what the formula says, in every process."
    )
    columns = ["", "", "processes", "error", "one process's own", "MiB sent"]
    return Table("A graph in parts: how exact, and what is sent", columns, rows, note)


def _of_graph(sizes: list[int]) -> str:
    return (
        f"{sizes[0]:,} nodes, {sizes[1]:,} edges, {CHANNELS} features, {HEADS} heads × {WIDTH}, "
        f"{OF_EDGES} features of edges."
    )


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
    steps = 32 if tiny else 128
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
        "window forward; equal to the formula. 512 heads × 256 (ring), 2 × 8 (window), float32."
    )
    return Table("Sequences split along time", ["", "processes", "KiB sent", ""], rows, note)


if __name__ == "__main__":
    worker(sys.argv[1:])
