"""A score of one's own over edges: compiled, beside the built-in kernel for the same formula.

Forward pass, training step and peak memory of `attend` with two scores that have a kernel of their
own, each written as a function too; then of four that are not built in, which plain torch computes
block by block where there is no compiler.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core import Additive, Edges, ScaledDot, attend, backend, score_function
from attn_core.backends import generated
from benchmarks._measure import peak_memory, take_turns
from benchmarks._report import Report, Table
from examples.shared.files import UserError

SIZES = {False: (50_000, 800_000, 8, 16), True: (200, 2_000, 2, 4)}
MIB = 2**20
BLOCKS = "torch, in blocks"
BUILT_IN = "scaled dot", "additive"
OTHERS = "distance", "radial", "rotary", "gated"


@score_function
def product(query: Tensor, key: Tensor) -> Tensor:
    return (query * key).sum(-1) / query.shape[-1] ** 0.5


@score_function
def additive(query: Tensor, key: Tensor, vector: Tensor) -> Tensor:
    return (F.leaky_relu(query + key, 0.2) * vector).sum(-1)


@score_function
def distance(query: Tensor, key: Tensor, width: Tensor) -> Tensor:
    return -width * (query - key).square().sum(-1)


@score_function
def radial(
    query: Tensor, key: Tensor, query_position: Tensor, key_position: Tensor, width: Tensor
) -> Tensor:
    far = (query_position - key_position).square().sum(-1)
    return (query * key).sum(-1) - width * far


@score_function
def rotary(query: Tensor, key: Tensor, pair: Tensor) -> Tensor:
    (q, r), (k, j), (cos, sin) = (x.chunk(2, -1) for x in (query, key, pair))
    return ((q * k + r * j) * cos + (q * j - r * k) * sin).sum(-1)


@score_function
def gated(query: Tensor, key: Tensor, gate: Tensor, vector: Tensor) -> Tensor:
    return (torch.sigmoid(gate * key) * F.leaky_relu(query + key, 0.2) * vector).sum(-1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--no-memory", action="store_true", help="leave peak memory out, each a process of its own"
    )


class Case:
    """One score, built in or a function, and the tensors that it attends over."""

    def __init__(self, name: str, tiny: bool) -> None:
        torch.manual_seed(0)
        nodes, edges, heads, width = SIZES[tiny]
        kind, self.way = name.split(", ", 1)
        pairs = torch.randint(nodes, (2, edges))
        self.edges = Edges(pairs, nodes, nodes)
        self.edges.sorted(by_key=False), self.edges.sorted(by_key=True)
        self.tensors = [torch.randn(nodes, heads, width, requires_grad=True) for _ in range(3)]
        self.pair: Tensor | None = None
        vectors = [torch.randn(heads, width, requires_grad=True) for _ in range(2)]
        scale = torch.rand(heads, requires_grad=True)
        used: list[Tensor] = []
        if kind == "scaled dot":
            self.score: Any = ScaledDot() if self.way == "built in" else product()
        elif kind == "additive":
            used = vectors[:1]
            built = self.way == "built in"
            self.score = Additive(vectors[0], "leaky_relu") if built else additive(vectors[0])
        elif kind == "distance":
            used, self.score = [scale], distance(scale)
        elif kind == "radial":
            used, self.score = [scale], radial(scale, position=torch.randn(nodes, 3))
        elif kind == "rotary":
            angle = torch.rand(edges, 1, width // 2)
            self.pair, self.score = torch.cat([angle.cos(), angle.sin()], -1), rotary()
        else:
            used, self.score = vectors, gated(*vectors)
        self.leaves = self.tensors + used
        self.grad = torch.randn(nodes, heads, width)

    def on_some(self, nodes: int) -> Case:
        """The same score among the first nodes."""
        other = copy.copy(self)
        other.edges = Edges(torch.randint(nodes, (2, 2 * nodes)), nodes, nodes)
        other.tensors = [x[:nodes].detach().requires_grad_() for x in self.tensors]
        other.leaves = other.tensors + self.leaves[3:]
        other.grad = self.grad[:nodes]
        other.pair = None if self.pair is None else self.pair[: 2 * nodes]
        if "position" in vars(self.score):
            other.score = dataclasses.replace(self.score, position=self.score.position[:nodes])
        return other

    def forward(self) -> Tensor:
        """The output, without gradients."""
        with torch.no_grad():
            return self._attend()

    def step(self) -> tuple[Tensor, ...]:
        """All gradients."""
        return torch.autograd.grad(self._attend(), self.leaves, self.grad)

    def _attend(self) -> Tensor:
        with backend("torch" if self.way == BLOCKS else "auto"):
            return attend(
                *self.tensors, score=self.score, support=self.edges, pair_key=self.pair
            ).output


def step_of(name: str, tiny: bool) -> Callable[[], Any]:
    """For a process that measures memory: a training step, its kernel built and loaded."""
    case = Case(name, tiny)
    case.on_some(64).step()
    return case.step


def run(arguments: argparse.Namespace) -> Report:
    tiny = arguments.tiny
    nodes, edges, heads, width = SIZES[tiny]
    report = Report("Scores of one's own over edges")
    columns = ["score", "forward, ms", "step, ms", "memory, MiB"]
    ratios = ["forward ×", "step ×", "memory ×"]
    size = f"{nodes:,} nodes, {edges:,} edges, {heads} × {width}, float32"
    for title, kinds, ways in (
        ("Built in and compiled", BUILT_IN, ("built in", "compiled")),
        ("Not built in", OTHERS, ("compiled", BLOCKS)),
    ):
        rows: list[list[Any]] = []
        for kind in kinds:
            names = [f"{kind}, {way}" for way in ways]
            cases = {name: Case(name, tiny) for name in names}
            results = {name: (case.forward(), *case.step()) for name, case in cases.items()}
            _check(kind, cases, results)
            slow = BLOCKS in ways
            rounds = 1 if tiny else 3 if slow else 7
            forward = take_turns({n: c.forward for n, c in cases.items()}, rounds, 1)
            step = take_turns({n: c.step for n, c in cases.items()}, rounds, 1)
            memory = {name: _memory(name, arguments) for name in names}
            for name in names:
                first, mine = memory[names[0]], memory[name]
                rows.append([
                    name, forward.milliseconds(name), step.milliseconds(name),
                    None if mine is None else mine / MIB,
                    forward.ratio(name, to=names[0]), step.ratio(name, to=names[0]),
                    None if not first or mine is None else mine / first,
                ])  # fmt: skip
        note = (
            "Medians over rounds, by turns; ratios to the first line of each score. Memory is what "
            "a step takes at most beyond its inputs and the sorted graph."
        )
        report.add(Table(f"{title}: {size}", [*columns, *ratios], rows, note))
    return report


def _check(kind: str, cases: dict[str, Case], results: dict[str, tuple[Tensor, ...]]) -> None:
    """Both compute the same, and the compiled one is compiled."""
    first, second = results.values()
    for x, y in zip(first, second, strict=True):
        error = (x - y).norm() / x.norm()
        if not error < 1e-4:
            raise AssertionError(f"{' and '.join(cases)} do not compute the same: {error}")
    if not generated.kernels():
        raise UserError(f"the score {kind} was not compiled: see the warning above")


def _memory(name: str, arguments: argparse.Namespace) -> int | None:
    if arguments.no_memory:
        return None
    task = f"{__name__}:{step_of.__name__}"
    return peak_memory(task, name=name, tiny=arguments.tiny)[0]
