"""On a GPU the host must not wait: not at all once a graph is known, once when it is new."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import gat
from attn_core import Edges, Entmax, ScaledDot, Sparsemax, backend, scatter_softmax
from attn_core.ops import edge_scores

pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")

from triton.runtime.interpreter import GridExecutor

from attn_core.backends.triton import plan, run

# What looks at the numbers, or makes tensors whose sizes depend on them
OF_TENSORS = {
    "tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__contains__", "nonzero",
    "unique", "unique_consecutive", "masked_select", "argwhere", "equal", "allclose", "bincount",
    "is_nonzero", "cpu", "numpy", "__getitem__", "__setitem__", "repeat_interleave",
}  # fmt: skip
OF_TORCH = {
    "nonzero", "bincount", "unique", "unique_consecutive", "masked_select", "argwhere", "equal",
    "allclose", "is_nonzero", "repeat_interleave",
}  # fmt: skip


def waits(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of that name does; an index waits if it is a mask."""
    if name == "":
        return False
    if name == "repeat_interleave":
        return "output_size" not in kwargs
    if name in ("__getitem__", "__setitem__"):
        indices = args[1] if isinstance(args[1], tuple) else (args[1],)
        return any(isinstance(i, Tensor) and i.dtype == torch.bool for i in indices)
    return True


@contextmanager
def watch() -> Iterator[list[str]]:
    """Every call inside that makes the host wait for a GPU, wherever it is made.

    The methods themselves are watched, for the bodies of ops and backward passes run out of sight
    of torch's modes. Kernels do not count: the interpreter looks at the numbers for them.
    """
    found: list[str] = []
    silent = 0

    def watched(name: str, real: Any) -> Any:
        @functools.wraps(real)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal silent
            if not silent and waits(name, args, kwargs):
                found.append(name)
            silent += 1  # what it calls itself is no wait of its own
            try:
                return real(*args, **kwargs)
            finally:
                silent -= 1

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, names in ((Tensor, OF_TENSORS), (torch, OF_TORCH)):
            for name in names:
                patch.setattr(owner, name, watched(name, getattr(owner, name)))
        patch.setattr(GridExecutor, "__call__", watched("", GridExecutor.__call__))
        yield found


@contextmanager
def watched(device: str) -> Iterator[list[str]]:
    """What waits inside; on a GPU, torch raises as well."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        with watch() as found:
            yield found
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


SEEN = {
    "__bool__": lambda x: bool(x.any()),
    "__int__": lambda x: int(x.max()),
    "item": lambda x: x.max().item(),
    "tolist": lambda x: x.tolist(),
    "nonzero": lambda x: x.nonzero(),
    "__getitem__": lambda x: x[x > 0],
    "bincount": lambda x: torch.bincount(x),
    "repeat_interleave": lambda x: torch.repeat_interleave(x),
}


@torch.library.custom_op("tests::look", mutates_args=())
def look(x: Tensor, how: str) -> Tensor:
    SEEN[how](x)
    return x.clone()


@pytest.mark.parametrize("how", SEEN)
@pytest.mark.parametrize("in_an_op", [False, True])
def test_the_watch_sees(how: str, in_an_op: bool) -> None:
    x = torch.tensor([1, 0])
    with watch() as found:
        x[0], x.view(1, 2)[:, torch.tensor([0])], torch.repeat_interleave(x, x, output_size=1)
        look(x, how) if in_an_op else SEEN[how](x)
    assert found == [how]


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


def test_plain_torch_would_wait(device: str) -> None:
    """What the kernels are there for: it looks how long the longest row is, in each of its sums."""
    pairs, conv = a_graph(device), LAYERS["entmax"]().to(device)
    x = torch.randn(6, 4, device=device)
    with backend("torch"), watch() as found:
        conv(x, pairs).sum().backward()
    assert "__int__" in found


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
    with watch() as found:
        new = Edges.from_edge_index(pairs, 6, self_loops=self_loops)
    assert found == ["tolist"]
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
