"""Sequence attention: windows, additive scores and heads against their peers, and a cost table.

What is compared is first shown to compute the same, then takes turns in one run.
"""

from __future__ import annotations

import argparse
import importlib
import math
import tempfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from attn_core import (
    Additive,
    Dense,
    Entmax,
    ScaledDot,
    Softmax,
    Sparsemax,
    Window,
    attend,
    patterns,
    weights,
)
from benchmarks._measure import Timings, assert_agree, peak_memory, take_turns, with_backward
from benchmarks._processes import Task, python_with, started
from benchmarks._report import Cell, Report, Table
from benchmarks._worker import Contender, of_attention
from benchmarks.baselines import (
    LoopedHeads,
    additive_attention,
    blocked_window,
    score_pair_by_pair,
)
from sequence_attn import MultiHead, MultiHeadAttention

MIB = 2**20
PASSES = "forward", "forward and backward"
LARGEST_DENSE = 64  # pixels along an image of which torch is handed a mask of all pairs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark takes to its command line."""
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"which tables to make, of {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--natten-python", metavar="PATH", default=None,
        help="the python of a virtual environment that has NATTEN; it need not have this library "
        "(default: this one, if it has NATTEN)",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> Report:
    """Make the tables that were asked for."""
    torch.manual_seed(0)
    report = Report("Sequence attention, measured")
    for part in arguments.only:
        PARTS[part](report, arguments)
    return report


# --- Windows ---


def measure_window(report: Report, arguments: argparse.Namespace) -> None:
    """Windowed self-attention against torch's dense kernel with a band mask."""
    length, radius, rounds = (256, 4, 2) if arguments.tiny else (8192, 16, 15)
    query, key, value = _tokens(1, length, 4, 32)
    heads = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    position = torch.arange(length)
    band = (position - position[:, None]).abs() <= radius
    added = torch.zeros(band.shape).masked_fill_(~band, -math.inf)

    def torch_dense(mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2)

    contenders: dict[str, Callable[[], Any]] = {
        "torch, dense, bool mask": lambda: torch_dense(band),
        "torch, dense, float mask": lambda: torch_dense(added),
        "blocks in plain torch": lambda: blocked_window(query, key, value, radius),
        "Window": lambda: in_window(query, key, value, radius),
    }
    peers = list(contenders)[:2]
    if not arguments.tiny:  # it is compiled for a quarter of a minute
        blocks = create_block_mask(
            lambda _batch, _head, i, j: (i - j).abs() <= radius, None, None, length, length, "cpu"
        )
        flex = partial(torch.compile(flex_attention), *heads, block_mask=blocks)
        contenders["torch, FlexAttention, compiled"] = lambda: flex().transpose(1, 2)
    with torch.no_grad():
        assert_agree(contenders)
        timings = take_turns(contenders, rounds)
    fastest = min(timings.ratio(name, "Window") for name in peers)
    report.add(
        Table(
            f"Windowed self-attention, n = {length}, radius {radius}, 4 heads × 32, batch 1",
            ["forward", "ms, median", "ms, fastest", "times Window"],
            _rows(timings, to="Window"),
            "float32, without gradients, of which FlexAttention has none on CPUs. Masks are made "
            "beforehand.",
            findings={"the faster dense kernel takes × as long as Window": fastest},
        )
    )
    for leaf in (query, key, value):
        leaf.requires_grad_()
    sparse = {name: contenders[name] for name in ("blocks in plain torch", "Window")}
    timings = take_turns(with_backward(sparse), rounds)
    report.add(
        Table(
            "The same, with gradients",
            ["forward and backward", "ms, median", "ms, fastest", "times Window"],
            _rows(timings, to="Window"),
        )
    )


def in_window(query: Tensor, key: Tensor, value: Tensor, radius: int) -> Tensor:
    """Ours, `[B, T, H, D]`."""
    return attend(query, key, value, score=ScaledDot(), support=Window(radius)).output


def window_once(length: int, radius: int, backward: bool) -> Callable[[], Any]:
    """One windowed attention, for a process of its own."""
    query, key, value = _tokens(1, length, 4, 32, grad=backward)
    few = query[:, :100].detach()
    in_window(few, few, few, radius)  # loads what any call loads
    run: dict[str, Callable[[], Any]] = {"": lambda: in_window(query, key, value, radius)}
    return (with_backward(run) if backward else run)[""]


def dense_once(length: int, radius: int) -> Callable[[], Any]:
    """One dense attention with a band mask, for a process of its own; the mask is part of it."""
    query, key, value = (x.transpose(1, 2) for x in _tokens(1, length, 4, 32))
    position = torch.arange(length)

    def attention() -> Tensor:
        band = (position - position[:, None]).abs() <= radius
        return F.scaled_dot_product_attention(query, key, value, band)

    return attention


def measure_memory(report: Report, arguments: argparse.Namespace) -> None:
    """Memory of windowed attention from a thousand to a million positions."""
    radius, lengths = 16, [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
    if arguments.tiny:
        lengths = lengths[:1]
    longest_dense, longest_backward = 10_000, 300_000  # beyond, they may not fit
    peaks: dict[str, list[tuple[int, int, float]]] = {
        "forward": [], "forward and backward": [], "torch, dense, band mask": [],
    }  # fmt: skip
    here = f"{__name__}:"
    for n in lengths:
        task = here + "window_once"
        shape = {"length": n, "radius": radius}
        peaks["forward"].append((n, *peak_memory(task, **shape, backward=False)))
        if n <= longest_backward:
            peaks["forward and backward"].append((n, *peak_memory(task, **shape, backward=True)))
        if n <= longest_dense:
            dense = peak_memory(here + "dense_once", **shape)
            peaks["torch, dense, band mask"].append((n, *dense))
    rows: list[list[Cell]] = []
    for i, n in enumerate(lengths):
        row: list[Cell] = [f"{n:,}"]
        for found in peaks.values():
            row += [found[i][1] / MIB, found[i][1] / n] if i < len(found) else [None, None]
        rows.append([*row, peaks["forward"][i][2] * 1e3])
    report.add(
        Table(
            f"Memory of windowed attention, radius {radius}, 4 heads × 32",
            ["n", *(f"{name}, {unit}" for name in peaks for unit in ("MiB", "bytes per position")),
             "first forward, ms"],
            rows,
            "What the process held at most beyond the inputs; each row in processes of its own.",
            picture="window_memory.png",
        )
    )  # fmt: skip
    report.pictures["window_memory.png"] = lambda path: _draw_memory(path, peaks)


def _draw_memory(path: Path, peaks: dict[str, list[tuple[int, int, float]]]) -> None:
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, found), marker in zip(peaks.items(), "os^", strict=True):
        label = name if "dense" in name else f"Window, {name}"
        axes.plot([n for n, *_ in found], [x / MIB for _, x, _ in found], marker=marker,
                  label=label)  # fmt: skip
    axes.set(
        xscale="log", yscale="log", xlabel="positions n", ylabel="peak memory beyond inputs, MiB",
        title="Windowed attention: memory grows with n, not with n²",
    )  # fmt: skip
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


# --- Neighbourhoods ---


def measure_neighborhood(report: Report, arguments: argparse.Namespace) -> None:
    """Neighbourhood attention on images, the window moved inwards at borders, beside NATTEN's."""
    python = python_with("natten.functional", "NATTEN", "--natten-python", arguments.natten_python)
    sizes = ((8, 3),) if arguments.tiny else ((32, 7), (64, 7), (64, 13), (128, 7))
    rows: list[list[Cell]] = []
    left_out = " NATTEN is not among them: --natten-python names an environment that has it."
    facts: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = str(Path(folder) / "inputs.pt")
        for size, kernel in sizes:
            tensors = torch.randn(4, size * size, 4, 32).unbind()
            torch.save(dict(zip(("query", "key", "value", "grad"), tensors, strict=True)), inputs)
            given = {"inputs": inputs, "size": size, "kernel": kernel}
            tasks = {"ours": Task(f"{__name__}:in_neighborhood", given)}
            if size <= LARGEST_DENSE:
                tasks["torch, dense, float mask"] = Task(f"{__name__}:in_masked_image", given)
            if python is not None:
                tasks["NATTEN"] = Task("benchmarks._natten:attention", given, python)
                left_out = ""
            with started(tasks, needed=tasks) as group:
                group.assert_agree(1e-5)
                timings = group.time(PASSES, rounds=2 if arguments.tiny else 7)
                for name, memory in group.ask("memory", PASSES[-1]).items():
                    row: list[Cell] = [f"{size} × {size}, {kernel} × {kernel}", name]
                    for timing in timings.values():
                        row += [timing.milliseconds(name), timing.ratio(name, "ours")]
                    rows.append([*row, memory[0] / MIB if memory else None])
                facts |= group.ask("about").get("NATTEN", {})
    units = [f"{what}, {unit}" for what in PASSES for unit in ("ms", "times ours")]
    versions = "".join(f" {name} {number}." for name, number in facts.items())
    report.add(
        Table(
            "Neighbourhood attention on an image, 4 heads × 32, batch 1",
            ["size, kernel", "", *units, "memory of both, MiB"],
            rows,
            "Ours: the graph of `patterns.neighborhood`, made beforehand, as are torch's mask and "
            f"the layouts that each wants.{versions}{left_out}",
        )
    )


def in_neighborhood(inputs: str, size: int, kernel: int) -> Contender:
    """Ours."""
    support = patterns.neighborhood((size, size), kernel)

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, score=ScaledDot(), support=support).output

    return of_attention(call, inputs)


def in_masked_image(inputs: str, size: int, kernel: int) -> Contender:
    """torch's dense kernel, which is handed a mask of all pairs."""
    key, query = patterns.neighborhood((size, size), kernel).edge_index
    mask = torch.full((size * size, size * size), -math.inf)
    mask[query, key] = 0

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask)

    return of_attention(
        call, inputs, lambda x: x.transpose(0, 1)[None], lambda x: x[0].transpose(0, 1)
    )


# --- Normalisers ---


def measure_normalizers(report: Report, arguments: argparse.Namespace) -> None:
    """Sparse weights of dense rows beside those of the package entmax, and torch's softmax."""
    rows, keys, rounds = (4, 8, 2) if arguments.tiny else (4096, 512, 15)
    logits = torch.randn(rows, keys, requires_grad=True)
    grad = torch.randn(rows, keys)
    softmax = "torch, softmax"
    contenders: dict[str, Callable[[], Tensor]] = {softmax: lambda: logits.softmax(-1)}
    ours = {"softmax": Softmax(), "sparsemax": Sparsemax(), "1.5-entmax": Entmax(),
            "1.3-entmax": Entmax(1.3)}  # fmt: skip
    pairs = []
    for name, normalizer in ours.items():
        contenders[f"ours, {name}"] = partial(normalizer.dense, logits)
    note = "The package entmax is not among them: it is not installed."
    if find_spec("entmax") is not None:
        theirs: Any = importlib.import_module("entmax")
        note = (
            "k: how many of the largest scores the package entmax sorts at first; one row has 512."
        )
        peers: dict[str, Callable[[], Tensor]] = {
            "1.3-entmax": partial(theirs.entmax_bisect, logits, 1.3)
        }
        for k in (None, 64):
            suffix = "" if k is None else f", k = {k}"
            peers[f"sparsemax{suffix}"] = partial(theirs.sparsemax, logits, k=k)
            peers[f"1.5-entmax{suffix}"] = partial(theirs.entmax15, logits, k=k)
        for name, run in peers.items():
            contenders[f"entmax, {name}"] = run
            pairs.append((f"entmax, {name}", f"ours, {name.partition(',')[0]}"))
            assert_agree({one: contenders[one] for one in pairs[-1]}, tolerance=1e-5)

    def step(run: Callable[[], Tensor]) -> None:
        torch.autograd.grad(run(), logits, grad)

    steps = {name: partial(step, run) for name, run in contenders.items()}
    with torch.no_grad():
        forward = take_turns(contenders, rounds)
    both = take_turns(steps, rounds)
    report.add(
        Table(
            f"Weights of {rows:,} rows of {keys}, which nothing masks",
            ["", *(f"{what}, {unit}" for what in PASSES for unit in ("ms", "times softmax"))],
            [
                [name, *(x for t in (forward, both)
                         for x in (t.milliseconds(name), t.ratio(name, softmax)))]
                for name in contenders
            ],
            f"float32; scores drawn from a normal distribution. {note}",
            findings={
                f"{theirs} × ours, {what}": timings.ratio(theirs, to=mine)
                for theirs, mine in pairs
                for what, timings in zip(PASSES, (forward, both), strict=True)
            },
        )
    )  # fmt: skip


# --- Additive scores ---


def measure_additive(report: Report, arguments: argparse.Namespace) -> None:
    """Additive attention against the evaluations of tanh that its formula has, and its memory."""
    batch, steps, width, rounds = (2, 16, 32, 2) if arguments.tiny else (32, 512, 512, 3)
    block = torch.randn(min(2**20, steps * steps * width))
    made = torch.empty_like(block)

    def evaluate_tanh() -> None:
        for _ in range(2 * batch * steps * steps * width // len(block)):
            torch.tanh(block, out=made)

    ours = f"Additive, B = {batch}, T = {steps}, D = {width}"
    tanh = "2 · B · T · T · D times tanh"
    contenders = {tanh: evaluate_tanh, ours: additive_once(batch, steps, width)}
    timings = take_turns(contenders, rounds, warm_up=1)
    peak, _ = peak_memory(
        f"{__name__}:additive_once", batch=batch, steps=steps, width=width, warm=True
    )
    naive = 4 * batch * steps * steps * width
    report.add(
        Table(
            "Additive attention, forward and backward",
            ["", "ms, median", "ms, fastest", "times tanh"],
            _rows(timings, to=tanh),
            "What tanh takes is measured in place, in blocks that fit the cache.",
            findings={
                "Additive takes × as long as 2 · B · T · T · D evaluations of tanh":
                    timings.ratio(ours, tanh),
                "Additive, peak memory beyond the inputs, GB": peak / 1e9,
                "the hidden vectors of all pairs alone would take, GB": naive / 1e9,
            },
        )
    )  # fmt: skip

    batch, steps = (2, 16) if arguments.tiny else (2, 256)
    query, key, value = _tokens(batch, steps, 1, width, grad=True)
    vector = torch.randn(width, requires_grad=True)
    contenders = {
        "all pairs at once": lambda: additive_attention(
            query[:, :, 0], key[:, :, 0], value[:, :, 0], vector
        ),
        "Additive": lambda: attend(
            query, key, value, score=Additive(vector[None]), support=Dense()
        ).output[:, :, 0],
    }
    assert_agree(contenders, tolerance=1e-3)
    timings = take_turns(with_backward(contenders), rounds=2 if arguments.tiny else 7)
    report.add(
        Table(
            f"Additive attention that fits at once, B = {batch}, T = {steps}, D = {width}",
            ["forward and backward", "ms, median", "ms, fastest", "times Additive"],
            _rows(timings, to="Additive"),
        )
    )


def additive_once(batch: int, steps: int, width: int, warm: bool = False) -> Callable[[], Any]:
    """Additive attention forward and backward; `warm` loads what any call loads."""
    inputs = _tokens(batch, steps, 1, width, grad=True)
    score = Additive(torch.randn(1, width, requires_grad=True))

    def step() -> None:
        attend(*inputs, score=score, support=Dense()).output.sum().backward()

    if warm:
        few = _tokens(1, 40, 1, width, grad=True)
        attend(*few, score=score, support=Dense()).output.sum().backward()
    return step


# --- Heads ---


def measure_multihead(report: Report, arguments: argparse.Namespace) -> None:
    """MultiHeadAttention against torch's, and against nothing but the work it must do."""
    batch, steps, width, heads, rounds = (
        (2, 8, 16, 2, 2) if arguments.tiny else (8, 256, 512, 8, 31)
    )
    theirs = nn.MultiheadAttention(width, heads, batch_first=True)
    ours = MultiHeadAttention(width, heads, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(batch, steps, width)

    def least_work() -> Tensor:
        projected = F.linear(x, theirs.in_proj_weight, theirs.in_proj_bias)
        query, key, value = projected.view(batch, steps, 3, heads, -1).permute(2, 0, 3, 1, 4)
        output = F.scaled_dot_product_attention(query, key, value)
        return theirs.out_proj(output.transpose(1, 2).flatten(2))

    without: dict[str, Callable[[], Any]] = {
        "projections and torch's kernel": least_work,
        "torch, without weights": lambda: theirs(x, x, x, need_weights=False)[0],
        "MultiHeadAttention, without weights": lambda: ours(x, x, x, need_weights=False)[0],
    }
    with_weights: dict[str, Callable[[], Any]] = {
        "torch, with weights": lambda: theirs(x, x, x),
        "MultiHeadAttention, with weights": lambda: ours(x, x, x),
    }
    assert_agree(without)
    assert_agree(with_weights)

    contenders = without | with_weights
    least, plain, fast, slow, full = contenders
    rows: list[list[Cell]] = [[name] for name in contenders]
    findings = {}
    for mode in ("training, forward", "training, forward and backward", "evaluation, no gradients"):
        evaluating = mode.startswith("evaluation")
        theirs.train(not evaluating)
        ours.train(not evaluating)
        runs = with_backward(contenders) if "backward" in mode else contenders
        with torch.set_grad_enabled(not evaluating):
            timings = take_turns(runs, rounds)
        for row in rows:
            row.append(timings.milliseconds(str(row[0])))
        findings[f"{mode}: without weights × projections and torch's kernel"] = timings.ratio(
            fast, least
        )
        findings[f"{mode}: without weights × torch's"] = timings.ratio(fast, plain)
        findings[f"{mode}: with weights × torch's"] = timings.ratio(full, slow)
    report.add(
        Table(
            f"Multi-head self-attention, B = {batch}, T = {steps}, {heads} heads, width {width}",
            ["ms, median", "training, forward", "training, forward and backward", "evaluation"],
            rows,
            findings=findings,
        )
    )


def measure_looped(report: Report, arguments: argparse.Namespace) -> None:
    """What is fused against loops in Python: over heads, and over pairs."""
    batch, steps, width, heads, rounds = (
        (2, 8, 16, 2, 2) if arguments.tiny else (8, 256, 512, 8, 11)
    )
    fused = MultiHead(heads, width // heads, input_size=width, output_size=width)
    looped = LoopedHeads(heads, width)
    with torch.no_grad():
        for name in ("query", "key", "value"):
            parts = getattr(fused, name).weight.chunk(heads)
            for one, part in zip(getattr(looped, name), parts, strict=True):
                one.weight.copy_(part)
        assert fused.output is not None
        looped.output.weight.copy_(fused.output.weight)
    x = torch.randn(batch, steps, width)
    contenders: dict[str, Callable[[], Any]] = {
        "a loop over the heads": lambda: looped(x),
        "MultiHead": lambda: fused(x).context,
    }
    assert_agree(contenders)
    shape = f"B = {batch}, T = {steps}, {heads} heads, width {width}"
    for mode in ("forward", "forward and backward"):
        runs = with_backward(contenders) if "backward" in mode else contenders
        timings = take_turns(runs, rounds)
        report.add(
            Table(
                f"Heads looped and fused, {mode}, {shape}",
                ["", "ms, median", "ms, fastest", "times MultiHead"],
                _rows(timings, to="MultiHead"),
            )
        )

    steps, width = (4, 8) if arguments.tiny else (64, 64)
    query, key, _ = _tokens(1, steps, 1, width)
    query, key = query[0], key[0]
    vector = torch.randn(width)
    pairs: dict[str, Callable[[], Any]] = {
        "two loops over the pairs": lambda: score_pair_by_pair(
            query[:, 0], key[:, 0], lambda q, k: vector @ torch.tanh(q + k)
        ).softmax(-1),
        "weights": lambda: weights(
            query, key, score=Additive(vector[None]), support=Dense()
        )[0],
    }  # fmt: skip
    with torch.no_grad():
        assert_agree(pairs)
        timings = take_turns(pairs, rounds)
    report.add(
        Table(
            f"Additive weights of all pairs, T = {steps}, D = {width}",
            ["forward", "ms, median", "ms, fastest", "times weights"],
            _rows(timings, to="weights"),
        )
    )


# --- The cost table ---


def measure_costs(report: Report, arguments: argparse.Namespace) -> None:
    """Recurrent, convolutional, full and restricted layers: formulas and milliseconds."""
    width, heads, taps, radius = (16, 2, 3, 2) if arguments.tiny else (128, 4, 3, 16)
    lengths, rounds = ((16, 32), 2) if arguments.tiny else ((256, 1024, 4096), 7)
    recurrent = nn.LSTM(width, width, batch_first=True)
    convolution = nn.Conv1d(width, width, taps, padding=taps // 2)
    full, restricted = (
        MultiHead(heads, width // heads, input_size=width, output_size=width, window=window)
        for window in (None, radius)
    )
    layers: dict[str, tuple[list[Cell], Callable[[Tensor], Any]]] = {
        "recurrent (LSTM)": (["n · d²", "n", "n"], recurrent),
        f"convolutional (k = {taps})": (
            ["k · n · d²", "1", "n / k; dilated log_k n"],
            lambda x: convolution(x.mT).mT,
        ),
        "self-attention": (["n² · d", "1", "1"], full),
        f"restricted self-attention (r = {radius})": (["r · n · d", "1", "n / r"], restricted),
    }
    rows = [[name, *formulas] for name, (formulas, _) in layers.items()]
    with torch.no_grad():
        for n in lengths:
            x = torch.randn(1, n, width)
            timings = take_turns(
                {name: partial(layer, x) for name, (_, layer) in layers.items()}, rounds
            )
            for row in rows:
                row.append(timings.milliseconds(str(row[0])))
    report.add(
        Table(
            f"What a layer costs: n positions, width d = {width}, batch 1",
            ["layer", "operations", "sequential steps", "longest path",
             *(f"ms, n = {n}" for n in lengths)],
            rows,
            "Orders of growth beside milliseconds of one forward pass. The attention layers are "
            "measured with their projections, another n · d² operations.",
        )
    )  # fmt: skip


def _tokens(batch: int, steps: int, heads: int, width: int, grad: bool = False) -> list[Tensor]:
    """Query, key and value, `[B, T, H, D]`."""
    return [torch.randn(batch, steps, heads, width, requires_grad=grad) for _ in range(3)]


def _rows(timings: Timings, to: str) -> list[list[Cell]]:
    """A row for each contender: its name, median, fastest, and times another's."""
    return [
        [name, timings.milliseconds(name), timings.fastest(name), timings.ratio(name, to)]
        for name in timings.seconds
    ]


PARTS: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "window": measure_window,
    "memory": measure_memory,
    "neighborhood": measure_neighborhood,
    "normalizers": measure_normalizers,
    "additive": measure_additive,
    "multihead": measure_multihead,
    "looped": measure_looped,
    "costs": measure_costs,
}
