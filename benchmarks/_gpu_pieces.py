"""The pieces beside the layers over edges: groups, additive scores, windows, new graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch_geometric.utils import softmax as their_softmax

from attn_core import (
    Additive,
    Dense,
    Edges,
    PendingEdges,
    ScaledDot,
    Window,
    attend,
    clear_cache,
    scatter_softmax,
)
from benchmarks._gpu import (
    COMPILED,
    OURS,
    PEER,
    Function,
    attempt,
    columns,
    errors,
    measure,
    ratio,
    timer,
    verdict,
)
from benchmarks._graphs import make_graph
from benchmarks._measure import take_turns
from benchmarks._report import Cell, Report, Table


@dataclass(frozen=True)
class Piece:
    """One function, ours and that of plain torch or torch_geometric.

    Attributes:
        shapes: of its inputs.
        compiled: a peer that torch.compile made; it does so when it first runs.
        moved: how many bytes must move through memory at least, forward and in both passes; None
            where it is not memory that takes the time.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    ours: Function
    peer: Function
    compiled: Callable[[], Function]
    moved: tuple[int, int] | None


def groups(kind: str, num_edges: int, heads: int, where: str, device: str) -> Piece:
    """The softmax over groups, against torch_geometric's; the graph is made on `where`."""
    pairs, nodes = make_graph(kind, num_edges, where)
    index = pairs[1].to(device, copy=True)

    def peer(x: Tensor) -> Tensor:
        return their_softmax(x, index.to(x.device), num_nodes=nodes)

    of_entry = 4 * heads
    return Piece(
        f"softmax of groups, {kind}, {num_edges:,} × {heads}",
        ((num_edges, heads),),
        lambda x: scatter_softmax(x, index, nodes),
        peer,
        lambda: torch.compile(peer),
        (num_edges * (2 * of_entry + 8), num_edges * (5 * of_entry + 16)),
    )


def neighbourhood(kind: str, num_edges: int, heads: int, width: int, device: str) -> Piece:
    """The step of GATv2 over its neighbours alone, without projections, against its formula."""
    pairs, nodes = make_graph(kind, num_edges, device)

    def ours(query: Tensor, key: Tensor, vector: Tensor) -> Tensor:
        support = PendingEdges(pairs, nodes, nodes)
        return attend(query, key, key, score=Additive(vector, "leaky_relu"), support=support).output

    def peer(query: Tensor, key: Tensor, vector: Tensor) -> Tensor:
        source, target = pairs.to(key.device)
        of_edge = key[source]
        logits = (F.leaky_relu(query[target] + of_edge, 0.2) * vector).sum(-1)
        weights = their_softmax(logits, target, num_nodes=nodes)
        return torch.zeros_like(key).index_add(0, target, weights.unsqueeze(-1) * of_edge)

    row, per_head, tokens = 4 * heads * width, 4 * heads, (nodes, heads, width)
    forward = num_edges * (4 + row) + nodes * (2 * row + 3 * per_head)
    backward = num_edges * (8 + 3 * row + 3 * per_head) + nodes * (5 * row + 6 * per_head)
    return Piece(
        f"step of GATv2 alone, {kind}, {num_edges:,} × {heads} × {width}",
        (tokens, tokens, (heads, width)),
        ours,
        peer,
        lambda: torch.compile(peer),
        (forward, forward + backward),
    )


def additive(activation: str, batch: int, time_steps: int, width: int) -> Piece:
    """Bahdanau's attention, against its formula."""

    def ours(query: Tensor, key: Tensor, value: Tensor, vector: Tensor) -> Tensor:
        score = Additive(vector, activation)
        tokens = (x.unsqueeze(-2) for x in (query, key, value))
        return attend(*tokens, score=score, support=Dense()).output.squeeze(-2)

    def peer(query: Tensor, key: Tensor, value: Tensor, vector: Tensor) -> Tensor:
        hidden = query.unsqueeze(2) + key.unsqueeze(1)
        hidden = hidden.tanh() if activation == "tanh" else F.leaky_relu(hidden, 0.2)
        return torch.softmax(hidden @ vector[0], -1) @ value

    tokens = batch, time_steps, width
    return Piece(
        f"additive, {activation}, {batch} × {time_steps} × {time_steps} × {width}",
        (tokens, tokens, tokens, (1, width)),
        ours,
        peer,
        lambda: torch.compile(peer),
        None,
    )


def window(time_steps: int, heads: int, width: int, radius: int) -> Piece:
    """A window, against a mask over all pairs, and (compiled) torch's FlexAttention."""

    def ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, score=ScaledDot(), support=Window(radius)).output

    def by_heads(function: Function) -> Function:
        def run(*tokens: Tensor) -> Tensor:
            return function(*(x.transpose(-2, -3) for x in tokens)).transpose(-2, -3)

        return run

    def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        at = torch.arange(time_steps, device=query.device)
        mask = (at[:, None] - at).abs() <= radius
        return F.scaled_dot_product_attention(query, key, value, mask)

    def flex() -> Function:
        size = time_steps, time_steps
        blocks = create_block_mask(
            lambda _batch, _head, i, j: (i - j).abs() <= radius, None, None, *size
        )
        return by_heads(partial(torch.compile(flex_attention), block_mask=blocks))

    tokens = 1, time_steps, heads, width
    size = 4 * time_steps * heads * width
    return Piece(
        f"window of {2 * radius + 1}, {time_steps:,} × {heads} × {width}",
        (tokens, tokens, tokens),
        ours,
        by_heads(masked),
        flex,
        (4 * size, 12 * size),
    )


def small(device: str, tokens: int = 182) -> list[Piece]:
    """What is compared to float64; with so many tokens the kernels take additive scores."""
    pieces = [neighbourhood("one hub", 64, 2, 4, device)]
    pieces += [groups(kind, 64, 3, "cpu", device) for kind in ("uniform", "one hub")]
    activations = ("tanh", "leaky_relu") if device == "cuda" else ("tanh",)  # interpreted: slow
    pieces += [additive(activation, 2, tokens, 16) for activation in activations]
    return [*pieces, window(80, 2, 8, 3)]


def planned(device: str) -> list[Piece]:
    """What is timed."""
    pieces = [neighbourhood(k, 10**7, 8, 16, device) for k in ("uniform", "power law")]
    pieces += [groups(k, 10**7, 8, device, device) for k in ("uniform", "power law", "one hub")]
    pieces += [additive(activation, 8, 512, 128) for activation in ("tanh", "leaky_relu")]
    return [*pieces, window(16_384, 8, 64, 128)]


def measure_piece_errors(report: Report, device: str) -> None:
    """Errors of each piece and of its peer, against the latter in float64 on the CPU."""
    table = Table(
        "Errors of the other pieces against float64 on the CPU",
        ["", "output", "gradients", "peer: output", "peer: gradients", "within twice the peer's"],
        [],
        "`‖a - b‖ / ‖b‖`, b by plain torch in float64; ours and the peer in float32.",
    )
    with report.grow(table) as add:
        for piece in small(device):
            both = attempt(partial(piece_errors, piece, device))
            found, theirs = both if isinstance(both, tuple) else (both, [])
            numbers: list[Cell] = [None] * 4
            if isinstance(both, tuple):
                numbers = [x for side in both for x in (side[0], max(side[1:]))]
            add([piece.name, *numbers, verdict(found, theirs, torch.float32)])
        failed = sum(row[-1] != "yes" for row in table.rows)
        table.findings["rows that are not within"] = float(failed)


def piece_errors(piece: Piece, device: str) -> tuple[list[float], list[float]]:
    """Of ours and of the peer: the errors of the output and of each gradient."""
    given = [torch.randn(shape) for shape in piece.shapes]
    results = []
    for function, where, dtype in (
        (piece.peer, "cpu", torch.float64),
        (piece.ours, device, torch.float32),
        (piece.peer, device, torch.float32),
    ):
        leaves = [x.to(where, dtype, copy=True).requires_grad_() for x in given]
        output = function(*leaves)
        grads = torch.autograd.grad(output.square().sum(), leaves)
        results.append([output.detach(), *grads])
    return errors(results[1], results[0]), errors(results[2], results[0])


def measure_pieces(
    report: Report, device: str, bandwidth: float, tiny: bool, deadline: float
) -> None:
    """Time and memory of each piece."""
    note = (
        "The peer is torch_geometric's softmax for groups, else the formula in plain torch, which "
        "for windows masks all pairs; compiled is the same under torch.compile, for windows "
        "torch's FlexAttention. float32."
    )
    table, left_out = Table("Other pieces", columns("peer"), [], note), []
    with report.grow(table) as add:
        for piece in small(device, tokens=8) if tiny else planned(device):
            if time.monotonic() > deadline:
                left_out.append(piece.name)
                table.note = f"{note} Left out for lack of time: {'; '.join(left_out)}."
                continue
            contenders = {OURS: piece.ours, PEER: piece.peer}
            if device == "cuda":
                torch.compiler.reset()
                made = attempt(piece.compiled)
                contenders |= {} if isinstance(made, str) else {COMPILED: made}
            moved = piece.moved or (None, None)
            bounds = tuple(None if size is None else 1e3 * size / bandwidth for size in moved)
            for row in measure(
                piece.name, contenders, piece.shapes, torch.float32, (bounds[0], bounds[1]),
                device, rounds=1 if tiny else 7,
            ):  # fmt: skip
                add(row)
            clear_cache()


def measure_new_graphs(report: Report, device: str, tiny: bool) -> None:
    """What a graph costs that was never seen: its check, both orders, both plans."""
    from attn_core.backends.triton.plan import side_of  # which imports Triton

    num_edges = 64 if tiny else 10**7
    table = Table(
        "New graphs",
        ["", "ms, checked, sorted and planned both ways", "ms, two sorts alone", "× two sorts"],
        [],
        "Once for each edge_index; a step on a graph that is known does none of it.",
    )
    with report.grow(table) as add:
        for kind in ("uniform", "power law"):
            pairs, nodes = make_graph(kind, num_edges, device)

            def build(pairs: Tensor = pairs, nodes: int = nodes) -> None:
                edges = Edges.from_edge_index(pairs, nodes)
                for by in ("query", "key"):
                    side_of(edges, by)

            def sort(pairs: Tensor = pairs) -> None:
                for nodes in pairs.int():
                    torch.sort(nodes, stable=True)

            timings = take_turns(
                {"build": build, "sort": sort}, rounds=1 if tiny else 7, timer=timer(device)
            )
            ms = [timings.milliseconds(name) for name in ("build", "sort")]
            add([f"{kind}, {num_edges:,} edges", *ms, ratio(*ms)])
