"""Scores of edges in blocks: what the definition gives, without its memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attn_core import (
    Additive,
    Cosine,
    Dot,
    Edges,
    General,
    Hard,
    PendingEdges,
    ScaledDot,
    Score,
    Softmax,
    Sparsemax,
    attend,
    backend,
    clear_cache,
    hard_log_prob,
    weights,
)
from attn_core.kernels import csr, edge_scores

NODES, HEADS, WIDTH = 6, 2, 3
PAIRS = torch.tensor([[0, 1, 2, 0, 2, 3, 4, 3, 0], [1, 0, 2, 1, 3, 1, 0, 0, 0]])
SCORES: dict[str, Callable[[Tensor], Score]] = {
    "dot": lambda v: Dot(0.7),
    "scaled dot": lambda v: ScaledDot(),
    "general": lambda v: General(v[:, :, None] * v[:, None]),
    "cosine": lambda v: Cosine(),  # with a pair_key, not in blocks
    "additive": lambda v: Additive(v),
    "leaky": lambda v: Additive(v, "leaky_relu"),
    "relu of the keys alone": lambda v: Additive(v, "relu"),
    "without a vector": lambda v: Additive(None, "tanh"),
    "a function": lambda v: Additive(v, torch.sin),  # not in blocks
}


@pytest.fixture(autouse=True)
def _all_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_scores, "SMALL", 0)


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


@pytest.mark.parametrize("per_pair", [False, True])
@pytest.mark.parametrize("normalizer", [Softmax(), Softmax(0.5), Sparsemax()])
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("block", [2**18, 12])
def test_equals_the_definition(
    name: str, normalizer: Any, per_pair: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csr, "_BLOCK", block)
    query = None if "keys alone" in name else leaf(NODES, HEADS, WIDTH)
    key, value, vector = leaf(NODES, HEADS, WIDTH), leaf(NODES, HEADS, 4), leaf(HEADS, WIDTH)
    rows = PAIRS.shape[1] + NODES
    pair_key = leaf(rows, HEADS, WIDTH) if per_pair else None
    bias = leaf(rows, HEADS) if per_pair else None
    leaves = [x for x in (query, key, value, vector, pair_key, bias) if x is not None]
    support = PendingEdges(PAIRS, NODES, NODES, self_loops=True)

    def outcome() -> list[Any]:
        result = attend(
            *(query, key, value),
            score=SCORES[name](vector),
            normalizer=normalizer,
            support=support,
            bias=bias,
            pair_key=pair_key,
            need_weights=True,
        )
        assert result.weights is not None
        tensors = [result.output, result.weights]
        numbers = sum((x * torch.arange(x.numel()).view_as(x).cos()).sum() for x in tensors)
        return tensors + list(torch.autograd.grad(numbers, leaves, allow_unused=True))

    with backend("reference"):
        expected = outcome()
    for ours, theirs in zip(outcome(), expected, strict=True):
        if theirs is None:
            assert ours is None
        else:
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_have_the_dtype_of_the_values(dtype: torch.dtype) -> None:
    x = leaf(NODES, HEADS, WIDTH, dtype=dtype)
    edges = Edges.from_edge_index(PAIRS, NODES)
    found = weights(x, x, score=Dot(), support=edges)
    assert found.dtype == dtype
    found.float().square().sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    with backend("reference"):
        torch.testing.assert_close(found, weights(x, x, score=Dot(), support=edges))


def test_the_log_probability_of_choices_goes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x, edges = leaf(NODES, HEADS, WIDTH), Edges.from_edge_index(PAIRS, NODES)
    drawn = attend(
        x, x, x, score=Dot(), normalizer=Hard("sample"), support=edges, need_weights=True
    ).weights
    assert drawn is not None
    calls: list[int] = []
    logits = csr.Problem.logits
    monkeypatch.setattr(csr.Problem, "logits", lambda self: calls.append(1) or logits(self))
    found = hard_log_prob(x, x, drawn, score=Dot(), support=edges)
    assert calls
    with backend("reference"):
        expected = hard_log_prob(x, x, drawn, score=Dot(), support=edges)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pairs", [torch.zeros(2, 0, dtype=torch.int64), PAIRS[:, :1]])
def test_few_pairs_or_none(pairs: Tensor) -> None:
    x, edges = leaf(NODES, HEADS, WIDTH), Edges.from_edge_index(pairs, NODES)
    found = weights(x, x, score=Additive(leaf(HEADS, WIDTH)), support=edges)
    assert found.tolist() == [[1.0] * HEADS] * pairs.shape[1]
    found.sum().backward()
    assert x.grad is not None and not x.grad.any()


class Largest(TorchDispatchMode):
    """The largest tensor that any operator makes, the ops' bodies included."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
            self.numel = max(self.numel, *sizes, 0)
        return out


@pytest.mark.parametrize("kind", ["dot", "tanh"])
def test_weights_make_no_tensor_of_pairs_times_heads_times_channels(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, pairs, heads, width = 100, 5000, 2, 64
    edges = Edges.from_edge_index(torch.randint(nodes, (2, pairs)), nodes)
    x = leaf(nodes, heads, width, dtype=torch.float32)
    score = Dot() if kind == "dot" else Additive(leaf(heads, width, dtype=torch.float32))
    spy, saved = Largest(), [0]
    for owner, function in (  # these run below the dispatcher otherwise, in the bodies of ops
        (edge_scores, "_request"), (csr.Problem, "of"), (csr.Problem, "logits"),
        (csr, "score_backward"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, function, spied(spy, getattr(owner, function)))

    def pack(tensor: Tensor) -> Tensor:
        saved[0] = max(saved[0], tensor.numel())
        return tensor

    with spy, torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        found = attend(x, x, x, score=score, support=edges, need_weights=True).weights
    assert found is not None
    with spy:
        found.square().sum().backward()
    whole = pairs * heads * width
    assert 0 < spy.numel <= whole / 2
    assert saved[0] <= max(x.numel(), 2 * pairs)
    with spy, backend("reference"):  # which does make one
        weights(x, x, score=score, support=edges)
    assert spy.numel == whole


def spied(spy: Largest, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with spy:
            return function(*args, **kwargs)

    return run


@pytest.mark.parametrize("kind", ["dot", "tanh"])
@pytest.mark.parametrize("query", [True, False])
def test_the_ops_keep_their_contract_with_torch(kind: str, query: bool) -> None:
    if kind == "dot" and not query:
        return
    given = leaf(NODES, HEADS, WIDTH) if query else None
    vector = None if kind == "dot" else leaf(HEADS, WIDTH)
    tensors = given, leaf(NODES, HEADS, WIDTH), vector, leaf(9, HEADS, WIDTH)
    settings = PAIRS, NODES, NODES, kind, 1.0
    torch.library.opcheck(torch.ops.attn_core.edge_scores.default, (*tensors, *settings))
    plain = [None if x is None else x.detach() for x in tensors]
    torch.library.opcheck(
        torch.ops.attn_core.edge_scores_backward.default,
        (torch.randn(9, HEADS).double(), [x is not None for x in plain], *plain, *settings),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_second_derivatives_are_refused_or_taken_by_the_reference() -> None:
    x, edges = leaf(NODES, HEADS, WIDTH), Edges.from_edge_index(PAIRS, NODES)

    def twice() -> None:
        found = weights(x, x, score=Dot(), support=edges)
        (first,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
        first.square().sum().backward()

    with pytest.raises(RuntimeError, match=r'attn_core\.backend\("reference"\)'):
        twice()
    with backend("reference"):
        twice()


def test_backward_without_the_edges_it_was_given() -> None:
    """They died with the call; their pairs have not."""
    x = leaf(NODES, HEADS, WIDTH)

    def run() -> Tensor:
        edges = Edges.from_edge_index(PAIRS, NODES, self_loops=True)
        found = weights(x, x, score=Dot(), support=edges)
        clear_cache()
        return found

    (found,) = torch.autograd.grad(run().square().sum(), x)
    with backend("reference"):
        (expected,) = torch.autograd.grad(run().square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_transforms_take_the_definition() -> None:
    x, edges = leaf(NODES, HEADS, WIDTH).detach(), Edges.from_edge_index(PAIRS, NODES)

    def loss(x: Tensor) -> Tensor:
        return weights(x, x, score=Dot(), support=edges).square().sum()

    y = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(y), y)
    torch.testing.assert_close(torch.func.grad(loss)(x), expected)


def test_a_small_graph_takes_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be differentiated twice: blocks are for what would not fit the cache."""
    monkeypatch.setattr(edge_scores, "SMALL", PAIRS.shape[1] * HEADS * WIDTH)
    monkeypatch.setattr(csr.Problem, "logits", lambda self: pytest.fail("in blocks"))
    x, edges = leaf(NODES, HEADS, WIDTH), Edges.from_edge_index(PAIRS, NODES)
    weights(x, x, score=Dot(), support=edges)
    monkeypatch.setattr(edge_scores, "SMALL", PAIRS.shape[1] * HEADS * WIDTH - 1)
    with pytest.raises(pytest.fail.Exception, match="in blocks"):
        weights(x, x, score=Dot(), support=edges)
