"""The fused op over edges: its contract with torch, its blocks, its bits and its memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attn_core import (
    Additive,
    Dense,
    Dot,
    Edges,
    Entmax,
    PendingEdges,
    Score,
    Softmax,
    Sparsemax,
    Window,
    attend,
    backend,
)
from attn_core.backends import bmm, cpu, csr, sdpa, window
from attn_core.call import Call
from attn_core.graph.known import owner_of
from attn_core.ops import edge_attention as edges
from attn_core.ops import edge_entmax, fastest

OP = torch.ops.attn_core.edge_attention.default
BACKWARD = torch.ops.attn_core.edge_attention_backward.default
HEADS, WIDTH, NODES = 2, 3, 6
DOUBLE = torch.float64


def randn(*shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def graph(num_edges: int = 9) -> Tensor:
    return torch.randint(NODES, (2, num_edges))


def op_inputs(
    kind: str,
    *,
    pairs: Tensor | None = None,
    self_loops: bool = False,
    per_pair: bool = False,
    dropout: float = 0.0,
    query: bool = True,
    vector: bool = False,
    dtype: torch.dtype = DOUBLE,
    need: bool = True,
) -> tuple[Any, ...]:
    pairs = graph() if pairs is None else pairs
    rows = pairs.shape[1] + NODES * self_loops

    def leaf(*shape: int) -> Tensor:
        return randn(*shape, dtype=dtype).requires_grad_(need)

    return (
        leaf(NODES, HEADS, WIDTH) if query else None,
        leaf(NODES, HEADS, WIDTH),
        leaf(NODES, HEADS, 4),
        leaf(HEADS, WIDTH) if vector else None,
        leaf(rows, HEADS) if per_pair else None,
        leaf(rows, HEADS, WIDTH) if per_pair else None,
        leaf(rows, HEADS, 4) if per_pair else None,
        pairs,
        NODES,
        NODES,
        self_loops,
        kind,
        0.3,
        dropout,
        torch.tensor(5) if dropout else None,
        torch.arange(pairs.shape[1]) if dropout and not self_loops else None,
    )


OPTIONS: dict[str, dict[str, Any]] = {
    "dot": {"kind": "dot"},
    "dot, all of it": {"kind": "dot", "per_pair": True, "self_loops": True, "dropout": 0.5},
    "tanh": {"kind": "tanh", "vector": True},
    "leaky_relu, all of it": {"kind": "leaky_relu", "vector": True, "per_pair": True,
                              "self_loops": True, "dropout": 0.5},
    "tanh, the key alone": {"kind": "tanh", "query": False, "dropout": 0.5},
    "bfloat16": {"kind": "leaky_relu", "dtype": torch.bfloat16, "per_pair": True},
    "no edges": {"kind": "tanh", "pairs": torch.zeros(2, 0, dtype=torch.int64), "per_pair": True},
    "int32": {"kind": "dot", "pairs": torch.tensor([[0, 1], [1, 0]], dtype=torch.int32)},
}  # fmt: skip
each_option = pytest.mark.parametrize("option", OPTIONS)


each_backend = pytest.mark.parametrize("name", ["auto", "torch"])


@pytest.fixture
def chosen_backend(name: str) -> Iterator[None]:
    with backend(name):
        yield


@each_option
@each_backend
@pytest.mark.usefixtures("chosen_backend")
def test_the_op_keeps_its_contract_with_torch(option: str) -> None:
    torch.library.opcheck(
        OP, op_inputs(**OPTIONS[option]), rtol=1e-2 if "bfloat16" in option else None,
        atol=1e-2 if "bfloat16" in option else None,
    )  # fmt: skip


def permuted(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same numbers, in tensors whose dimensions lie the other way round in memory."""
    return tuple(
        x.detach().transpose(0, -1).contiguous().transpose(0, -1)
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for x in inputs
    )


@each_option
@each_backend
@pytest.mark.usefixtures("chosen_backend")
@pytest.mark.parametrize("layout", [lambda x: x, permuted])
def test_the_backward_op_keeps_its_contract_with_torch(
    option: str, layout: Callable[[tuple[Any, ...]], tuple[Any, ...]]
) -> None:
    inputs = layout(op_inputs(**OPTIONS[option], need=False))
    output, log_sum_exp, *statistics = OP(*inputs)
    given = [x is not None for x in inputs[:7]]
    for needed in (given, [have and i % 2 == 0 for i, have in enumerate(given)]):
        arguments = torch.randn_like(output), torch.randn_like(log_sum_exp), output, *statistics
        torch.library.opcheck(
            BACKWARD, (*arguments, needed, *inputs),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )  # fmt: skip


CALLS = ("dot", "additive", "gatv2", "ones")


def arguments_of(
    name: str,
    nodes: int = 40,
    num_edges: int = 150,
    width: int = WIDTH,
    dtype: torch.dtype = DOUBLE,
) -> dict[str, Any]:
    """A call of attend on a graph with a hub of 60 edges or more."""

    def leaf(*shape: int) -> Tensor:
        return randn(*shape, dtype=dtype).requires_grad_()

    hub = torch.tensor([[1], [2]]).expand(2, max(60, num_edges // 8))
    pairs = torch.cat([torch.randint(nodes, (2, num_edges)), hub], 1)
    vector, rows = leaf(HEADS, width), pairs.shape[1]
    score, has_query = {
        "dot": (Dot(0.4), True),
        "additive": (Additive(vector), True),
        "gatv2": (Additive(vector, "leaky_relu"), True),
        "ones": (Additive(activation="relu"), False),
    }[name]
    return {
        "query": leaf(nodes, HEADS, width) if has_query else None,
        "key": leaf(nodes, HEADS, width),
        "value": leaf(nodes, HEADS, width),
        "bias": leaf(rows, HEADS),
        "pair_key": leaf(rows, HEADS, width) if has_query else None,
        "pair_value": leaf(rows, HEADS, width),
        "score": score,
        "support": Edges.from_edge_index(pairs, nodes),
        "dropout": 0.2,
    }


def everything(arguments: dict[str, Any]) -> list[Tensor]:
    """Output, log-sum-exp and all gradients."""
    torch.manual_seed(1)
    result = attend(**arguments, need_log_sum_exp=True)
    torch.manual_seed(2)
    lse = torch.where(result.log_sum_exp.isfinite(), result.log_sum_exp, 0)
    loss = (result.output * torch.randn_like(result.output)).sum()
    loss = loss + (lse * torch.randn_like(lse)).sum()
    leaves = [x for x in arguments.values() if isinstance(x, Tensor)]
    if isinstance(arguments["score"], Additive) and arguments["score"].vector is not None:
        leaves.append(arguments["score"].vector)
    return [result.output, result.log_sum_exp, *torch.autograd.grad(loss, leaves)]


@pytest.fixture
def without_compiled_kernels() -> Iterator[None]:
    with backend("torch"):
        yield


@pytest.mark.usefixtures("without_compiled_kernels")
@pytest.mark.parametrize("name", CALLS)
def test_blocks_and_chunks_make_no_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = arguments_of(name)
    whole = everything(arguments)
    for block, chunk in ((1, 1), (7, 3), (HEADS * WIDTH * 5, 59), (HEADS * WIDTH * 5, 60)):
        monkeypatch.setattr(csr, "_BLOCK", block)
        monkeypatch.setattr(csr, "_CHUNK", chunk)
        torch.testing.assert_close(everything(arguments), whole)
    with backend("reference"):
        torch.testing.assert_close(everything(arguments), whole)


@pytest.mark.usefixtures("without_compiled_kernels")
@pytest.mark.parametrize("name", CALLS)
def test_the_same_again_and_for_any_number_of_threads(name: str) -> None:
    arguments = arguments_of(name, nodes=3000, num_edges=12_000, width=16, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 1, 2):
            torch.set_num_threads(threads)
            runs.append(everything(arguments))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        torch.testing.assert_close(run, runs[0])


class Largest(TorchDispatchMode):
    """The largest tensor that any operator makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:  # an expanded view takes no memory
            sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
            self.numel = max(self.numel, *sizes, 0)
        return out


@pytest.mark.usefixtures("without_compiled_kernels")
@pytest.mark.parametrize("kind", ["dot", "tanh", "leaky_relu"])
def test_no_tensor_of_pairs_times_heads_times_channels(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, num_edges, heads, width = 100, 5000, 2, 64
    pairs = torch.randint(nodes, (2, num_edges))
    x = torch.randn(nodes, heads, width, requires_grad=True)
    vector = torch.randn(heads, width, requires_grad=True)
    score = Dot() if kind == "dot" else Additive(vector, kind)
    spy = Largest()

    def spied(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with spy:
                return function(*args)

        return run

    for name in ("forward", "backward"):
        monkeypatch.setattr(csr, name, spied(getattr(csr, name)))
    monkeypatch.setattr(csr.Sorted, "of", spied(csr.Sorted.of))
    support = PendingEdges(pairs, nodes, nodes)
    result = attend(x, x, x, score=score, support=support, dropout=0.5)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        result.output.sum().backward()
    assert 0 < spy.numel <= num_edges * heads * width / 2
    with spy, backend("reference"):  # which does make one
        attend(x, x, x, score=score, support=support)
    assert spy.numel == num_edges * heads * width


def test_backward_saves_nothing_of_the_size_of_pairs_times_heads() -> None:
    num_edges = 5000
    x = torch.randn(100, 2, 8, requires_grad=True)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    support = Edges.from_edge_index(torch.randint(100, (2, num_edges)), 100)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        attend(x, x, x, score=Dot(), support=support, dropout=0.5)
    assert max(saved) < num_edges  # not even the pairs, which the Edges have
    assert sorted(saved)[-2] <= x.numel()


def test_which_kernel_serves_which_call() -> None:
    x = randn(4, HEADS, WIDTH)
    support = Edges.from_edge_index(torch.tensor([[0, 1], [1, 2]]), 4)

    def chosen(score: Score, support: Any, need_weights: bool = False, **more: Any) -> Any:
        normalizer = more.pop("normalizer", Softmax())
        pair_key = more.pop("pair_key", None)
        call = Call(score, normalizer, support, x, x, x, pair_key=pair_key)
        way = fastest(dataclasses.replace(call, need_weights=need_weights).prepared())
        return None if way.__name__ == "attend" else way  # by the three steps

    pending = PendingEdges(support.edge_index, 4, 4)
    for score in (Dot(), Additive(), Additive(activation="leaky_relu")):
        assert chosen(score, support) is chosen(score, pending, True) is edges.run
    assert chosen(Additive(activation=torch.sigmoid), support) is None
    assert chosen(Dot(), support, normalizer=Softmax(0.5)) is edges.run
    sparse = chosen(Additive(), support, normalizer=Entmax(1.3))
    assert sparse is (edge_entmax.run if cpu.available() else None)
    assert chosen(Dot(), pending, normalizer=Sparsemax()) is sparse
    assert chosen(Dot(), support, True, normalizer=Sparsemax()) is None  # makes weights anyway
    assert chosen(Dot(), support, normalizer=Entmax(torch.tensor(1.3))) is None
    assert chosen(Dot(), Dense()) is chosen(Dot(), Dense(), normalizer=Softmax(0.5)) is sdpa.run
    assert chosen(Dot(), Dense(), need_weights=True) is bmm.run
    assert chosen(Dot(), Window(1)) is window.run
    assert chosen(Dot(), Window(1), need_weights=True) is None
    assert chosen(Dot(), Window(1, centre=torch.arange(4))) is None
    assert chosen(Dot(), Dense(), normalizer=Softmax(torch.tensor(1.0))) is None
    assert chosen(Dot(), Dense(), pair_key=randn(4, 4, HEADS, WIDTH)) is None
    assert chosen(Additive(), Dense()) is bmm.run
    assert chosen(Additive(activation=torch.sigmoid), Dense()) is None
    assert torch.func.vmap(lambda _: x * (chosen(Dot(), Dense()) is None))(torch.ones(2)).all()


def test_the_op_checks_its_indices_on_its_own() -> None:
    inputs = list(op_inputs("dot", need=False))
    for pairs, message in (
        (torch.tensor([[0, 6], [0, 0]]), "node 6 in row 0"),
        (torch.tensor([[0, 0], [0, -1]]), "node -1 in row 1"),
    ):
        with pytest.raises(IndexError, match=message):
            OP(*inputs[:7], pairs, *inputs[8:])
    with pytest.raises(ValueError, match=r"key has shape \[5, 2, 3\]"):
        OP(inputs[0], inputs[1][:5], *inputs[2:])
    short = op_inputs("dot", per_pair=True, need=False)
    with pytest.raises(ValueError, match="bias has 8 rows; expected 9"):
        OP(*short[:4], short[4][:8], *short[5:])


def test_editing_the_graph_between_forward_and_backward_is_noticed() -> None:
    x, pairs = randn(4, 1, 2).requires_grad_(), torch.tensor([[0, 1], [1, 2]])
    output = attend(x, x, x, score=Dot(), support=PendingEdges(pairs, 4, 4)).output
    pairs[0, 0] = 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_backward_without_the_edges_it_was_given() -> None:
    """They died with the call; their tensor has not."""
    x = randn(4, 1, 2).requires_grad_()
    pairs = torch.tensor([[0, 1, 3], [1, 2, 2]])

    def run(keep: list[Edges]) -> Tensor:
        support = Edges.from_edge_index(pairs, 4, self_loops=True)
        keep.append(support)
        return attend(x, x, x, score=Dot(), support=support).output

    kept: list[Edges] = []
    expected = torch.autograd.grad(run(kept).square().sum(), x)
    assert owner_of(kept[0].pairs) is kept[0]
    torch.testing.assert_close(torch.autograd.grad(run([]).square().sum(), x), expected)
