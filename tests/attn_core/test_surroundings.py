"""Whatever else is at work in the process: interrupts, default devices, lazy bits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import (
    Additive,
    Concat,
    Cosine,
    Dense,
    Dot,
    Edges,
    Entmax,
    General,
    Hard,
    Identity,
    PendingEdges,
    ScaledDot,
    Separable,
    Softmax,
    Sparsemax,
    Window,
    attend,
    backend,
    clear_cache,
    scatter_softmax,
    weights,
)
from attn_core.supports.edges import edges_of

HEADS, WIDTH, NODES = 2, 4, 6
PAIRS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 5], [1, 2, 3, 4, 0, 2, 1, 5]])

SCORES: dict[str, Callable[[], Any]] = {
    "dot": Dot,
    "scaled": ScaledDot,
    "cosine": lambda: Cosine(torch.tensor(2.0)),
    "general": lambda: General(torch.ones(HEADS, WIDTH, WIDTH) / 8),
    "additive": lambda: Additive(torch.ones(HEADS, WIDTH) / 2),
    "gatv2": lambda: Additive(torch.ones(HEADS, WIDTH) / 2, "leaky_relu"),
    "separable": lambda: Separable(torch.ones(HEADS, WIDTH), torch.ones(HEADS, WIDTH)),
    "concat": lambda: Concat(torch.ones(HEADS, WIDTH, 2 * WIDTH) / 8, torch.ones(HEADS, WIDTH)),
}
NORMALIZERS: dict[str, Callable[[], Any]] = {
    "softmax": Softmax,
    "cooler": lambda: Softmax(torch.tensor([0.5, 2.0])),
    "sparsemax": Sparsemax,
    "entmax": Entmax,
    "entmax 1.3": lambda: Entmax(1.3),
    "learned entmax": lambda: Entmax(torch.tensor([1.2, 1.7])),
    "hard": Hard,
    "sample": lambda: Hard("sample"),
    "gumbel": lambda: Hard("gumbel"),
    "identity": Identity,
}
SUPPORTS: dict[str, Callable[[], Any]] = {
    "dense": Dense,
    "causal": lambda: Dense(causal=True, lengths=torch.tensor(4)),
    "masked": lambda: Dense(torch.ones(NODES, NODES, dtype=torch.bool).tril(1)),
    "window": lambda: Window(1),
    "window at centres": lambda: Window(1, centre=torch.linspace(0, 5, NODES)),
    "causal window": lambda: Window(1, causal=True, lengths=torch.tensor(5)),
    "edges": lambda: Edges(PAIRS),
    "loops": lambda: Edges.from_edge_index(PAIRS, self_loops=True),
    "pending": lambda: PendingEdges(PAIRS, NODES, NODES, self_loops=True),
}


class TestADefaultDeviceThatIsNotTheCPU:
    """Under `with torch.device("meta"):`, what is on the CPU stays there."""

    @pytest.mark.parametrize("name", ["auto", "torch", "reference"])
    @pytest.mark.parametrize("support", SUPPORTS)
    def test_attend(self, support: str, name: str) -> None:
        given = SUPPORTS[support](), *torch.randn(3, NODES, HEADS, WIDTH)
        over = [(score, "softmax") for score in SCORES] + [("additive", n) for n in NORMALIZERS]
        for score, normalizer in over:
            axes = SCORES[score](), NORMALIZERS[normalizer]()
            expected = self.gradients(*given, *axes)
            clear_cache()
            with torch.device("meta"), backend(name):
                found = self.gradients(*given, *axes)
            drawn = normalizer in ("sample", "gumbel")
            for x, y in zip(found, expected, strict=True):
                assert x.device.type == "cpu" and x.shape == y.shape
                assert drawn or torch.allclose(x, y, atol=1e-5)

    @staticmethod
    def gradients(
        support: Any, query: Tensor, key: Tensor, value: Tensor, score: Any, normalizer: Any
    ) -> tuple[Tensor, ...]:
        given = [x.detach().clone().requires_grad_() for x in (query, key, value)]
        axes: Any = {"score": score, "normalizer": normalizer, "support": support}
        output = attend(*given, **axes, need_weights=True)
        alone = attend(*given, **axes)
        dropped = attend(*given, **axes, dropout=0.5)
        assert output.weights is not None
        (output.output.sum() + alone.output.square().sum() + 0 * dropped.output.sum()).backward()
        found = [x.grad for x in given if x.grad is not None]
        return output.output, output.weights, weights(*given[:2], **axes), *found

    def test_weights_of_groups(self) -> None:
        scores, index = torch.randn(6, HEADS, requires_grad=True), PAIRS[1, :6]
        expected = scatter_softmax(scores, index)
        for name in ("auto", "torch", "reference"):
            with torch.device("meta"), backend(name):
                found = scatter_softmax(scores, index)
                assert torch.allclose(found, expected)
                assert torch.autograd.grad(found[0].sum(), scores)[0].device.type == "cpu"

    def test_edges(self) -> None:
        with torch.device("meta"):
            edges = Edges.from_edge_index(PAIRS, self_loops=True)
            chosen, positions = edges.of_queries(PAIRS[0, :2])
            made = chosen.edge_index, positions, edges.source_id, edges.slots_by_key
            tensors = *made, *edges.by_query.order, *edges.by_key.order, edges.by_key.columns
        assert all(x.device.type == "cpu" for x in tensors)


@contextmanager
def interrupted_at(line: int, names: tuple[str, ...]) -> Iterator[list[int]]:
    """KeyboardInterrupt at the n-th line run in these files; yields how many lines there were."""
    seen = [0]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith(names):
            return None
        if event == "line":
            seen[0] += 1
            if seen[0] == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


class TestInterrupts:
    """Ctrl-C at any line leaves autograd as it was."""

    FILES = (
        "transforms.py", "grad_mode.py", "known.py", "grouping.py", "read.py", "edges.py",
        "contextlib.py",
    )  # fmt: skip

    @staticmethod
    def build() -> None:
        x = torch.ones(NODES, 1, 2, requires_grad=True)
        pairs = PAIRS.clone()
        edges = edges_of(pairs, NODES, NODES, True)
        edges.of_queries(PAIRS[0])
        _ = edges.slots_by_key, edges.by_key.columns
        attend(x, x, x, score=Dot(), support=PendingEdges(pairs, NODES, NODES)).output.sum()

    def test_at_every_line(self) -> None:
        with interrupted_at(0, self.FILES) as lines:
            self.build()
        assert lines[0] > 100
        for line in range(1, lines[0] + 1):
            with pytest.raises(KeyboardInterrupt), interrupted_at(line, self.FILES):
                self.build()
            assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), line
        self.build()

    def test_no_guard_is_entered_outside_of_inference_mode(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entered = []
        monkeypatch.setattr(torch, "inference_mode", lambda *given: entered.append(given))
        self.build()
        assert entered == []  # an interrupt there may leave autograd off


LAZY: dict[str, Callable[[Tensor], Tensor]] = {
    "negated": lambda x: torch._neg_view(x.neg()),
    "zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "imaginary": lambda x: torch.complex(x, x.neg()).conj().imag,
    "real": lambda x: torch.complex(x, x).conj().real,
}


class TestLazyBits:
    """What torch has yet to negate, or to fill with zeros, is what it will be."""

    @pytest.mark.parametrize("name", LAZY)
    @pytest.mark.parametrize("score", ["dot", "additive", "separable"])
    @pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
    def test_of_what_is_given(self, name: str, score: str, normalizer: str) -> None:
        x, grad = torch.randn(2, NODES, HEADS, WIDTH)
        bias = torch.randn(PAIRS.shape[1], HEADS)
        found = []
        for make in (LAZY[name], lambda x: LAZY[name](x).clone()):
            lazy, leaf = make(x), x.clone().requires_grad_()
            axes: Any = {
                "score": SCORES[score](), "normalizer": NORMALIZERS[normalizer](),
                "support": Edges(PAIRS), "bias": make(bias),
            }  # fmt: skip
            outputs = attend(lazy, lazy, lazy, **axes), attend(leaf, leaf, leaf, **axes)
            of_leaf = torch.autograd.grad(outputs[1].output, leaf, make(grad))
            found.append((outputs[0].output, *of_leaf, scatter_softmax(make(bias), PAIRS[1])))
        for a, b in zip(*found, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_of_an_index(self) -> None:
        lazy = torch._neg_view(PAIRS.neg())
        assert torch.equal(Edges(lazy).edge_index, PAIRS)
        assert torch.equal(
            edges_of(lazy, NODES, NODES).by_query.pointer, Edges(PAIRS).by_query.pointer
        )
        scores = torch.randn(PAIRS.shape[1])
        assert torch.equal(scatter_softmax(scores, lazy[1]), scatter_softmax(scores, PAIRS[1]))
