"""A batch over edges: many states of one graph attend as each of them would alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import (
    Additive,
    Attended,
    Cosine,
    Dot,
    Edges,
    Entmax,
    General,
    Hard,
    Normalizer,
    PendingEdges,
    ScaledDot,
    Score,
    Separable,
    Softmax,
    Sparsemax,
    attend,
    backend,
    hard_log_prob,
    logits,
    weights,
)

B, N, E, H, D = 3, 9, 40, 2, 4


@dataclass(frozen=True, eq=False)
class Distance(Score):
    """`-width ‖q - k‖²`, which no kernel knows, with a width per head."""

    width: Tensor

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        assert query is not None
        return -(query - key).square().sum(-1) * self.width


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


SCORES: dict[str, Callable[[], Score]] = {
    "scaled dot": ScaledDot,
    "cosine": Cosine,
    "general": lambda: General(randn(H, D, D)),
    "gatv2": lambda: Additive(randn(H, D), "leaky_relu"),
    "additive of one vector": lambda: Additive(randn(1, D)),
    "gat": lambda: Separable(randn(H, D), randn(H, D)),
    "of our own": lambda: Distance(randn(H)),
}
NORMALIZERS: dict[str, Callable[[], Normalizer]] = {
    "softmax": Softmax,
    "temperature": lambda: Softmax(torch.tensor([0.5, 2.0], dtype=torch.float64)),
    "sparsemax": Sparsemax,
    "alpha": lambda: Entmax(torch.tensor([1.3, 1.7], dtype=torch.float64)),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["as more heads", "one by one"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of its two ways a batch goes, as large and as small graphs do."""
    enough = 0 if request.param == "one by one" else 2**62
    monkeypatch.setattr("attn_core.call._ENOUGH", enough)


both_ways = pytest.mark.usefixtures("_way")


def graph(edges: int = E) -> Edges:
    return Edges.from_edge_index(torch.randint(0, N, (2, edges)), N)


def results(found: Attended, wanted: list[Tensor]) -> list[Tensor]:
    """What came out, and the gradients of a random function of it."""
    out = [x for x in found if x is not None]
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (x.nan_to_num(neginf=0) * torch.randn(x.shape, generator=generator)).sum() for x in out
    )
    assert isinstance(loss, Tensor)
    return out + list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))


def stacked(each: list[Attended]) -> Attended:
    """The results of the single states, as a batch has them."""
    columns = (None if x[0] is None else torch.stack(x) for x in zip(*each, strict=True))
    return Attended(*columns)


def parameters(*parts: Any) -> list[Tensor]:
    return [x for part in parts for x in vars(part).values() if getattr(x, "requires_grad", False)]


@both_ways
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("using", ["auto", "torch", "reference"])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("score", SCORES)
def test_each_state_attends_as_it_would_alone(
    score: str, normalizer: str, using: str, need_weights: bool
) -> None:
    kind, edges = SCORES[score](), graph()
    query, key, value, bias = (
        randn(B, N, H, D),
        randn(B, N, H, D),
        randn(B, N, H, 3),
        randn(B, E, H),
    )
    bias, shared, own = randn(B, E, H), randn(E, 1, D), randn(B, E, H, 3)
    given: dict[str, Any] = {"score": kind, "normalizer": NORMALIZERS[normalizer]()}
    given |= {"support": edges, "need_weights": need_weights, "need_log_sum_exp": True}
    leaves = [query, key, value, bias, shared, own, *parameters(kind)]
    with backend(using):
        batch = attend(query, key, value, bias=bias, pair_key=shared, pair_value=own, **given)
        alone = [
            attend(q, k, v, bias=b, pair_key=shared, pair_value=p, **given)
            for q, k, v, b, p in zip(query, key, value, bias, own, strict=True)
        ]
    for ours, theirs in zip(results(batch, leaves), results(stacked(alone), leaves), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@both_ways
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 4])
def test_it_is_the_union_of_as_many_graphs(
    width: int, dtype: torch.dtype, need_weights: bool
) -> None:
    edges = graph()
    union = torch.cat([edges.edge_index + N * number for number in range(B)], dim=1)
    query, key, value = (
        torch.randn(B, N, H, width, dtype=dtype, requires_grad=True) for _ in range(3)
    )
    given: dict[str, Any] = {"score": ScaledDot(), "need_weights": need_weights}
    ours = attend(query, key, value, support=edges, **given)
    theirs = attend(
        *(x.flatten(0, 1) for x in (query, key, value)),
        support=Edges.from_edge_index(union, B * N),
        **given,
    )
    torch.testing.assert_close(ours.output.flatten(0, 1), theirs.output)
    assert ours.output.is_contiguous()
    for x in (query, key, value):
        mine, of_union = (
            torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0]
            for y in (ours.output, theirs.output)
        )
        torch.testing.assert_close(mine, of_union)
    if need_weights:
        assert ours.weights is not None
        torch.testing.assert_close(ours.weights.flatten(0, 1), theirs.weights)


@both_ways
def test_what_all_states_share_is_given_once() -> None:
    edges = graph()
    query, key, value = randn(N, H, D), randn(2, 1, N, 1, D), randn(B, N, H, D)
    ours = attend(query, key, value, score=Dot(), support=edges, bias=torch.ones(E).double())
    assert ours.output.shape == (2, B, N, H, D)
    for outer in range(2):
        for inner in range(B):
            theirs = attend(query, key[outer, 0], value[inner], score=Dot(), support=edges)
            torch.testing.assert_close(ours.output[outer, inner], theirs.output)


@both_ways
@pytest.mark.parametrize("batch", [(0,), (2, 0), (1,), (1, 1)])
def test_empty_and_single_batches(batch: tuple[int, ...]) -> None:
    x, edges = torch.randn(*batch, N, H, D, requires_grad=True), graph()
    found = attend(x, x, x, score=ScaledDot(), support=edges, need_weights=True)
    assert found.weights is not None and found.log_sum_exp is not None
    assert found.output.shape == x.shape
    for y, out in zip(x.flatten(0, -4), found.output.flatten(0, -4), strict=True):
        alone = attend(y, y, y, score=ScaledDot(), support=edges).output
        torch.testing.assert_close(out, alone)
    assert found.weights.shape == (*batch, E, H)
    assert found.log_sum_exp.shape == (*batch, N, H)
    found.output.sum().backward()
    assert x.grad is not None and x.grad.shape == x.shape


def test_weights_of_some_queries_and_of_chosen_pairs() -> None:
    edges, x = graph(), torch.randn(B, N, H, D)
    found = attend(x, x, x, score=ScaledDot(), support=edges, need_weights=True)
    assert found.weights is not None
    chosen = torch.tensor([2, 5])
    some, positions = edges.of_queries(chosen)
    of_chosen = found.weights[:, positions]
    few = attend(x, x, x, score=ScaledDot(), support=edges, need_weights=chosen).weights
    torch.testing.assert_close(few, of_chosen)
    torch.testing.assert_close(
        weights(x, x, score=ScaledDot(), support=edges, queries=chosen), of_chosen
    )
    known = weights(x, x, score=ScaledDot(), support=some, log_sum_exp=found.log_sum_exp)
    torch.testing.assert_close(known, of_chosen)


@pytest.mark.parametrize("score", SCORES)
def test_the_scores_alone(score: str) -> None:
    kind, edges, bias = SCORES[score](), graph(), randn(B, E, H)
    query, key = randn(B, N, H, D), randn(B, N, H, D)
    ours = logits(query, key, score=kind, support=edges, bias=bias)
    assert ours.shape == (B, E, H)
    for number in range(B):
        alone = logits(query[number], key[number], score=kind, support=edges, bias=bias[number])
        torch.testing.assert_close(ours[number], alone)


def test_the_log_probability_of_what_was_drawn() -> None:
    edges, x = graph(), torch.randn(B, N, H, D)
    drawn = attend(
        x, x, x, score=ScaledDot(), normalizer=Hard("sample"), support=edges, need_weights=True
    ).weights
    assert drawn is not None and drawn.shape == (B, E, H)
    ours = hard_log_prob(x, x, drawn, score=ScaledDot(), support=edges)
    for number in range(B):
        alone = hard_log_prob(x[number], x[number], drawn[number], score=ScaledDot(), support=edges)
        torch.testing.assert_close(ours.log_prob[number], alone.log_prob)
        torch.testing.assert_close(ours.entropy[number], alone.entropy)


@both_ways
def test_states_drop_pairs_of_their_own() -> None:
    edges, ones = graph(), torch.ones(B, N, H, 1)
    value = torch.ones(B, N, H, 1, requires_grad=True)
    out = attend(ones, ones, value, score=Dot(), support=edges, dropout=0.5).output
    assert not torch.equal(out[0], out[1])
    # The backward pass drops the same pairs: a value's gradient is the sum of its weights
    (grad,) = torch.autograd.grad(out.sum(), value)
    torch.testing.assert_close(grad.sum((1, 3)), out.sum((1, 3)))
    every = attend(ones, ones, ones, score=Dot(), support=edges, dropout=1.0).output
    assert not every.any()


@both_ways
def test_edges_of_a_kind_of_their_own() -> None:
    class Dropped(Edges):
        def drop(self, weights: Tensor, p: float, seed: Tensor | None = None) -> Tensor:
            return 7 * weights

    pairs, x = torch.randint(0, N, (2, E)), torch.randn(B, N, H, D)
    own, plain = (kind.from_edge_index(pairs, N) for kind in (Dropped, Edges))
    ours = attend(x, x, x, score=Dot(), support=own, dropout=0.5).output
    torch.testing.assert_close(ours, 7 * attend(x, x, x, score=Dot(), support=plain).output)


@both_ways
def test_keys_that_heads_share() -> None:
    edges, query = graph(), torch.randn(B, N, 4, D)
    key, value = torch.randn(B, N, 2, D), torch.randn(B, N, 2, D)
    ours = attend(query, key, value, score=ScaledDot(), support=edges).output
    full = (x.repeat_interleave(2, -2) for x in (key, value))
    torch.testing.assert_close(ours, attend(query, *full, score=ScaledDot(), support=edges).output)


@both_ways
@pytest.mark.parametrize("using", ["auto", "reference"])
def test_it_can_be_differentiated_twice(using: str) -> None:
    edges = graph(12)

    def of(x: Tensor) -> Tensor:
        with backend(using):
            return attend(x, x, x, score=ScaledDot(), support=edges).output

    x = randn(2, N, 1, 2)
    assert torch.autograd.gradcheck(of, (x,))
    assert torch.autograd.gradgradcheck(of, (x,))


def test_gradients_of_many_states_in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`is_grads_batched`, where torch watches the backward pass alone."""
    monkeypatch.setattr("attn_core.call._ENOUGH", 0)
    edges, vector = graph(), randn(H, D)
    x = randn(B, N, H, D)
    score = Additive(vector, "leaky_relu")
    out = attend(x, x, x, score=score, support=edges).output
    grads = torch.randn(2, *out.shape, dtype=out.dtype)
    together = torch.autograd.grad(
        out, [x, vector], grads, retain_graph=True, is_grads_batched=True
    )
    for number, grad in enumerate(grads):
        alone = torch.autograd.grad(out, [x, vector], grad, retain_graph=True)
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[number], theirs)


def test_compiled_in_one_graph() -> None:
    pairs, x = torch.randint(0, N, (2, E)), torch.randn(B, N, H, D)

    def of(x: Tensor, pairs: Tensor) -> Tensor:
        support = PendingEdges(pairs, N, N, self_loops=True)
        return attend(x, x, x, score=ScaledDot(), support=support).output

    compiled = torch.compile(of, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, pairs), of(x, pairs))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.ones(2, N, H, D)}, "batch dimensions .* do not broadcast"),
        ({"key": torch.ones(B, N + 1, H, D)}, rf"key has shape \[3, 10, 2, 4\].*N = {N}"),
        ({"bias": torch.ones(2, E, H)}, r"bias has shape .*for all of the batch \[3\]"),
        ({"pair_key": torch.ones(B, E, D)}, r"pair_key has shape .*expected \[40, 2, 4\]"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Tensor], message: str) -> None:
    x = torch.ones(B, N, H, D)
    given: dict[str, Any] = {"query": x, "key": x, "value": x, **changes}
    with pytest.raises(ValueError, match=message):
        attend(score=Dot(), support=graph(), **given)
