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
    Dense,
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
from attn_core.backends import cpu, csr
from attn_core.ops import edge_scores, edge_sums

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
@pytest.mark.parametrize("block", [None, 2**18, 12])
def test_equals_the_definition(
    name: str, normalizer: Any, per_pair: bool, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if block is not None:
        for module in (csr, edge_sums):
            monkeypatch.setattr(module, "_BLOCK", block)
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
    with backend("auto" if block is None else "torch"):
        found = outcome()
    for ours, theirs in zip(found, expected, strict=True):
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
    score = Additive(leaf(HEADS, WIDTH))
    drawn = attend(
        x, x, x, score=score, normalizer=Hard("sample"), support=edges, need_weights=True
    ).weights
    assert drawn is not None
    calls: list[int] = []
    real = edge_scores.Problem
    monkeypatch.setattr(edge_scores, "Problem", lambda *a: calls.append(1) or real(*a))
    found = hard_log_prob(x, x, drawn, score=score, support=edges)
    assert calls
    with backend("reference"):
        expected = hard_log_prob(x, x, drawn, score=score, support=edges)
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


@pytest.mark.parametrize("implementation", ["auto", "torch"])
@pytest.mark.parametrize("kind", ["dot", "tanh"])
def test_weights_make_no_tensor_of_pairs_times_heads_times_channels(
    kind: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes, pairs, heads, width = 100, 5000, 2, 64
    edges = Edges.from_edge_index(torch.randint(nodes, (2, pairs)), nodes)
    x = leaf(nodes, heads, width, dtype=torch.float32)
    score = Dot() if kind == "dot" else Additive(leaf(heads, width, dtype=torch.float32))
    spy, saved = Largest(), [0]
    for owner, function in (  # what follows in a body runs below the dispatcher otherwise
        (csr.Sorted, "of"),
        (csr.Sorted, "logits"),
        (csr, "scores_backward"),
        (csr, "weighted_sums"),
        (cpu.pairs, "scores"),
        (cpu.pairs, "sums"),
    ):
        monkeypatch.setattr(owner, function, spied(spy, getattr(owner, function)))

    def pack(tensor: Tensor) -> Tensor:
        saved[0] = max(saved[0], tensor.numel())
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with backend(implementation), spy, hooks:
        found = attend(x, x, x, score=score, support=edges, need_weights=True).weights
    assert found is not None
    with backend(implementation), spy:
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


@pytest.mark.parametrize("implementation", ["auto", "torch"])
@pytest.mark.parametrize("query", [True, False])
def test_the_ops_keep_their_contract_with_torch(query: bool, implementation: str) -> None:
    with backend(implementation):
        opcheck(query)


def opcheck(query: bool) -> None:
    given = leaf(NODES, HEADS, WIDTH) if query else None
    tensors = given, leaf(NODES, HEADS, WIDTH), leaf(HEADS, WIDTH), leaf(9, HEADS, WIDTH)
    query_, key, vector, pair_key = tensors
    settings = PAIRS, NODES, NODES, False, "tanh", 1.0, 0.0, None, None
    everything = query_, key, key.detach(), vector, None, pair_key, None
    torch.library.opcheck(torch.ops.attn_core.edge_scores.default, (*everything, *settings))
    plain = [None if x is None else x.detach() for x in everything]
    needed = [x is not None and i != 2 for i, x in enumerate(plain)]
    torch.library.opcheck(
        torch.ops.attn_core.edge_scores_backward.default,
        (torch.randn(9, HEADS).double(), needed, *plain, *settings),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_second_derivatives() -> None:
    x, edges = leaf(NODES, HEADS, WIDTH), Edges.from_edge_index(PAIRS, NODES)

    def twice(score: Score) -> Tensor:
        found = weights(x, x, score=score, support=edges)
        (first,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    for score in (Additive(leaf(HEADS, WIDTH)), Dot()):
        with backend("reference"):
            expected = twice(score)
        torch.testing.assert_close(twice(score), expected)


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
    """Blocks are for what would not fit the cache."""
    monkeypatch.setattr(edge_scores, "SMALL", PAIRS.shape[1] * HEADS * WIDTH)
    monkeypatch.setattr(edge_scores, "Problem", lambda *_: pytest.fail("in blocks"))
    x, edges = leaf(NODES, HEADS, WIDTH), Edges.from_edge_index(PAIRS, NODES)
    score = Additive(leaf(HEADS, WIDTH))
    weights(x, x, score=score, support=edges)
    monkeypatch.setattr(edge_scores, "SMALL", PAIRS.shape[1] * HEADS * WIDTH - 1)
    with pytest.raises(pytest.fail.Exception, match="in blocks"):
        weights(x, x, score=score, support=edges)


# --- The weights of chosen queries ---------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["auto", "torch", "reference"])
@pytest.mark.parametrize("normalizer", [Softmax(), Softmax(0.5), Sparsemax(), Hard()])
@pytest.mark.parametrize("name", ["scaled dot", "general", "additive", "leaky"])
def test_weights_of_chosen_queries_are_those_among_all(
    name: str, normalizer: Any, implementation: str
) -> None:
    edges = Edges.from_edge_index(PAIRS, NODES, self_loops=True)
    rows = edges.num_edges
    x, vector = leaf(NODES, HEADS, WIDTH), leaf(HEADS, WIDTH)
    leaves = [x, leaf(rows, HEADS), leaf(rows, HEADS, WIDTH)]
    given: dict[str, Any] = {
        "score": SCORES[name](vector), "normalizer": normalizer, "support": edges,
        "bias": leaves[1], "pair_key": leaves[2],
    }  # fmt: skip
    mask = torch.tensor([False, True, False, True, False, False])
    with backend(implementation):
        all_of_them = weights(x, x, **given)
        chosen, positions = edges.of_queries(mask)
        expected = all_of_them[positions]
        assert torch.equal(chosen.pairs, edges.pairs[:, positions])
        assert torch.equal(positions, torch.nonzero(mask[edges.query_index]).squeeze(1))
        for queries in (mask, torch.tensor([3, 1, 3]), torch.tensor([1, 3], dtype=torch.int32)):
            found = weights(x, x, **given, queries=queries)
            torch.testing.assert_close(found, expected)
            if found.requires_grad:
                numbers = torch.arange(found.numel()).view_as(found).cos()
                ours, right = (
                    torch.autograd.grad((w * numbers).sum(), leaves, retain_graph=True)
                    for w in (found, expected)
                )
                torch.testing.assert_close(ours, right)
        if isinstance(normalizer, Softmax) and normalizer.temperature == 1:
            log_sum_exp = attend(x, x, x, **given).log_sum_exp
            found = weights(x, x, **given, queries=mask, log_sum_exp=log_sum_exp)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("implementation", ["auto", "torch", "reference"])
@pytest.mark.parametrize("normalizer", [Softmax(), Softmax(temperature=0.5), Hard("sample")])
def test_attend_returns_the_weights_of_chosen_queries(normalizer: Any, implementation: str) -> None:
    x = leaf(NODES, HEADS, WIDTH)
    bias, pair_key = leaf(PAIRS.shape[1] + NODES, HEADS), leaf(PAIRS.shape[1] + NODES, 1, WIDTH)
    support = PendingEdges(PAIRS, NODES, NODES, self_loops=True)
    given: dict[str, Any] = {
        "score": ScaledDot(), "normalizer": normalizer, "support": support, "bias": bias,
        "pair_key": pair_key,
    }  # fmt: skip
    chosen = torch.tensor([4, 1])
    positions = support.resolve().of_queries(chosen)[1]
    with backend(implementation):
        torch.manual_seed(0)
        expected = attend(x, x, x, **given, need_weights=True)
        torch.manual_seed(0)  # hard attention draws; what it drew is what is returned
        found = attend(x, x, x, **given, need_weights=chosen)
    assert found.weights is not None and expected.weights is not None
    torch.testing.assert_close(found.output, expected.output)
    torch.testing.assert_close(found.weights, expected.weights[positions])
    with pytest.raises(TypeError, match="support is Dense"):
        attend(x, x, x, score=Dot(), support=Dense(), need_weights=chosen)


def test_only_the_pairs_of_chosen_queries_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = Edges.from_edge_index(torch.randint(1000, (2, 100_000)), 1000)
    edges.by_query.order  # noqa: B018  # sorted once for all
    x, spy = leaf(1000, 2, 8), Largest()
    monkeypatch.setattr(edge_sums, "edges_of", spied(spy, edge_sums.edges_of))
    with spy:
        found = weights(x, x, score=ScaledDot(), support=edges, queries=torch.arange(5))
        found.square().sum().backward()
    assert 0 < len(found) < 1000
    assert spy.numel <= x.numel()


def test_queries_without_pairs_and_wrong_ones() -> None:
    edges, x = Edges.from_edge_index(PAIRS, NODES), leaf(NODES, HEADS, WIDTH)

    def choose(queries: Any) -> Tensor:
        return weights(x, x, score=Dot(), support=edges, queries=queries)

    assert choose(torch.tensor([5])).shape == (0, HEADS)
    assert choose(torch.zeros(0, dtype=torch.int64)).shape == (0, HEADS)
    assert choose(torch.zeros(NODES, dtype=torch.bool)).shape == (0, HEADS)
    with pytest.raises(IndexError, match="queries has the entry 6; expected 0 to 5"):
        choose(torch.tensor([0, 6]))
    with pytest.raises(IndexError, match="queries has the entry -1"):
        choose(torch.tensor([-1, 6]))
    with pytest.raises(TypeError, match=r"queries is torch\.float32"):
        choose(torch.tensor([1.0]))
    with pytest.raises(TypeError, match="queries is list"):
        choose([1])
    with pytest.raises(ValueError, match="queries is a mask of shape"):
        choose(torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"queries has shape \[1, 1\]"):
        choose(torch.tensor([[1]]))
    with pytest.raises(TypeError, match="support is Dense"):
        weights(x, x, score=Dot(), support=Dense(), queries=torch.tensor([1]))


@pytest.mark.parametrize("name", ["dot", "leaky"])
@pytest.mark.parametrize("given", ["number", "tensor"])
def test_a_temperature_of_half_types_is_divided_by_in_float32(name: str, given: str) -> None:
    """The op's log-sum-exp and the weights recomputed from it know the same factor."""
    torch.manual_seed(0)
    query, key, value = (10 * torch.randn(3, NODES, HEADS, WIDTH)).bfloat16()
    vector, temperature = torch.randn(HEADS, WIDTH).bfloat16(), torch.tensor([0.7, 1.3]).bfloat16()
    normalizer = Softmax(0.7 if given == "number" else temperature)
    axes: Any = {
        "score": SCORES[name](vector),
        "normalizer": normalizer,
        "support": Edges(PAIRS, NODES, NODES),
    }
    found = attend(query, key, value, **axes, need_weights=True)
    with backend("reference"):
        expected = attend(query, key, value, **axes, need_weights=True)
    assert found.weights is not None and expected.weights is not None
    assert torch.allclose(found.weights, expected.weights, atol=1e-2, rtol=0)
    assert torch.allclose(found.output, expected.output, atol=0.1, rtol=1e-2)
