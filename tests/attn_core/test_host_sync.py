"""On a GPU the host must not wait: not at all once a graph is known, once when it is new."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import gat
from attn_core import Edges, Entmax, ScaledDot, Sparsemax, scatter_softmax
from attn_core.ops import edge_scores, segments

pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")

from attn_core.backends import problem
from attn_core.backends.triton import plan, run, scores
from attn_core.backends.triton import segments as of_segments

# What looks at the numbers, or makes tensors whose sizes depend on them
WAITS = {
    "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__contains__", "nonzero",
    "bincount", "unique", "unique_consecutive", "masked_select", "argwhere", "equal", "allclose",
    "is_nonzero", "cpu", "numpy",
}  # fmt: skip


class Watch(TorchFunctionMode):
    """Notes every call that makes the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        index = args[1] if name == "__getitem__" else None
        indices = index if isinstance(index, tuple) else (index,)
        by_mask = any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)
        counts = name == "repeat_interleave" and "output_size" not in (kwargs or {})
        if name in WAITS or by_mask or counts:
            self.found.append(name)
        return func(*args, **(kwargs or {}))

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, watched wherever it is called."""

        def run(*args: Any) -> Any:
            with self:
                return function(*args)

        return run


IN_BACKWARD = (
    (problem, "edges_of"),
    (run, "backward"),
    (scores, "backward"),
    (segments, "_items"),
    (of_segments, "sums"),
    (of_segments, "softmax_backward"),
)


@contextmanager
def watched(device: str) -> Iterator[list[str]]:
    """What waits inside; on a GPU, torch raises as well."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    watch = Watch()
    try:
        with pytest.MonkeyPatch.context() as patch, watch:
            for module, name in IN_BACKWARD:  # autograd calls these out of sight
                patch.setattr(module, name, watch.around(getattr(module, name)))
            yield watch.found
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small graphs are treated like large ones."""
    monkeypatch.setattr(plan, "CHUNK", 4)
    monkeypatch.setattr(edge_scores, "SMALL", 0)


def a_graph(device: str) -> Tensor:
    """With a hub and self-loops."""
    pairs = torch.randint(6, (2, 20))
    pairs[1, ::2], pairs[:, 3] = 1, 2
    return pairs.to(device)


@pytest.mark.parametrize("wait", ["bool", "list", "mask", "count"])
def test_the_watch_sees(wait: str) -> None:
    x = torch.tensor([1, 0])
    with Watch() as watch:
        {"bool": lambda: bool(x.any()), "list": x.tolist, "mask": lambda: x[x > 0],
         "count": lambda: torch.bincount(x)}[wait]()  # fmt: skip
    assert len(watch.found) == 1


def test_the_watch_sees_the_backward_pass(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.backward
    monkeypatch.setattr(run, "backward", lambda p, *rest: bool(p.key.any()) and real(p, *rest))
    pairs, conv = a_graph(device), gat.GATConv(4, 3).to(device)
    x = torch.randn(6, 4, device=device)
    conv(x, pairs)
    if device == "cuda":
        with pytest.raises(RuntimeError, match="synchronizing"), watched(device):
            conv(x, pairs).sum().backward()
    else:
        with watched(device) as found:
            conv(x, pairs).sum().backward()
        assert found == ["__bool__"]


LAYERS: dict[str, Any] = {
    "GATConv": lambda: gat.GATConv(4, 3, heads=2, dropout=0.5),
    "GATv2Conv": lambda: gat.GATv2Conv(4, 3, heads=2, edge_dim=2, fill_value=0.0),
    "TransformerConv": lambda: gat.TransformerConv(4, 3, heads=2, dropout=0.5, edge_dim=2),
    "sparsemax": lambda: gat.GraphAttentionConv(
        4, 3, heads=2, score=ScaledDot(), normalizer=Sparsemax()
    ),
    "entmax": lambda: gat.GraphAttentionConv(
        4, 3, heads=2, score=ScaledDot(), normalizer=Entmax(), dropout=0.5
    ),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_training_step_on_a_known_graph_waits_for_nothing(layer: str, device: str) -> None:
    pairs, conv = a_graph(device), LAYERS[layer]().to(device)
    x = torch.randn(6, 4, device=device, requires_grad=True)
    more = (torch.randn(20, 2, device=device),) if getattr(conv, "edge_dim", None) else ()

    def step() -> None:
        conv(x, pairs, *more).square().sum().backward()

    step()
    with watched(device) as found:
        step()
    assert not found


@pytest.mark.parametrize("self_loops", [False, True])
def test_a_new_graph_is_waited_for_once(self_loops: bool, device: str) -> None:
    """For the check of its nodes; what is sorted and planned does not ask."""
    pairs = a_graph(device)
    with Watch() as watch:
        new = Edges.from_edge_index(pairs, 6, self_loops=self_loops)
    assert watch.found == ["tolist"]
    with watched(device) as found:
        new.with_self_loops()
        for by in ("query", "key"):
            plan.side_of(new, by)
            plan.side_of(new.with_self_loops(), by)
    assert not found


def test_self_loops_are_those_of_the_cpu(device: str) -> None:
    pairs = a_graph(device)
    found = Edges.from_edge_index(pairs, (7, 6), self_loops=True)
    sorted_first = Edges.from_edge_index(pairs, (7, 6))
    _ = sorted_first.by_query.order, sorted_first.by_key.order
    # Without the kernels, as on a CPU
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attn_core.gpu._devices", ())
        expected = Edges.from_edge_index(pairs.cpu(), (7, 6), self_loops=True)
        _ = expected.by_query.order, expected.by_key.order
    for built in (found, sorted_first.with_self_loops()):
        for name in ("pairs", "source_id"):
            assert torch.equal(getattr(built, name).cpu(), getattr(expected, name))
        for name in ("by_query", "by_key"):
            orders = getattr(built, name).order, getattr(expected, name).order
            for part, of_cpu in zip(*orders, strict=True):
                assert torch.equal(part.cpu(), of_cpu)


def test_a_known_index_is_not_waited_for(device: str) -> None:
    index = a_graph(device)[1].contiguous()
    x = torch.randn(20, 2, device=device, requires_grad=True)
    scatter_softmax(x, index, 6)
    with watched(device) as found:
        scatter_softmax(x, index, 6).square().sum().backward()
    assert not found
