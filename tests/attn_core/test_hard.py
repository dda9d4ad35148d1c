"""Hard attention: one pair for each query."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attn_core import (
    Dense,
    Edges,
    Hard,
    PendingEdges,
    ScaledDot,
    Softmax,
    Window,
    attend,
    hard_log_prob,
    weights,
)
from attn_core.rows import DenseRows, EdgeRows

F64 = torch.float64


def test_argmax_takes_the_first_of_the_largest() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0], [-1.0, -5.0, -1.0]])
    expected = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert torch.equal(Hard().dense(scores), expected)
    index = torch.tensor([1, 0, 1, 1])
    chosen = Hard().segment(torch.tensor([[2.0, 0.0], [7.0, 7.0], [2.0, 5.0], [1.0, 5.0]]), index)
    assert torch.equal(chosen, torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]))


@pytest.mark.parametrize("choose", ["argmax", "sample", "gumbel"])
@given(queries=st.integers(0, 5), keys=st.integers(0, 6), data=st.data())
def test_one_pair_of_each_query_that_has_any(
    choose: str, queries: int, keys: int, data: st.DataObject
) -> None:
    rows = [[data.draw(st.booleans()) for _ in range(keys)] for _ in range(queries)]
    mask = torch.tensor(rows, dtype=torch.bool).view(queries, keys)
    scores = torch.randn(2, queries, keys)
    weights = Hard(choose).dense(scores, mask)
    torch.testing.assert_close(weights.sum(-1), mask.any(-1).float().expand(2, queries))
    assert ((weights == 0) | mask).all() and ((weights.abs() < 1e-6) | (weights > 0.999)).all()
    query, key = mask.nonzero().T
    of_edges = Hard(choose).segment(scores[:, query, key].T, query, queries)
    total = torch.zeros(queries, 2).index_add(0, query, of_edges)
    torch.testing.assert_close(total, mask.any(-1).float()[:, None].expand(queries, 2))


@pytest.mark.parametrize("choose", ["sample", "gumbel"])
def test_pairs_are_drawn_as_often_as_softmax_says(choose: str) -> None:
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0])
    drawn = Hard(choose).dense(scores.expand(20_000, 4)).mean(0)
    torch.testing.assert_close(drawn, scores.softmax(0), rtol=0, atol=0.015)
    index = torch.arange(20_000).repeat_interleave(4)
    drawn = Hard(choose).segment(scores.repeat(20_000), index).view(-1, 4).mean(0)
    torch.testing.assert_close(drawn, scores.softmax(0), rtol=0, atol=0.015)


def test_gradients_are_none_or_those_of_the_soft_draw() -> None:
    scores = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert not Hard("argmax").dense(scores).requires_grad
    assert not Hard("sample").dense(scores).requires_grad
    aim = torch.randn(3, 5, dtype=torch.float64)
    torch.manual_seed(3)
    (straight,) = torch.autograd.grad((Hard("gumbel", 0.7).dense(scores) * aim).sum(), scores)
    torch.manual_seed(3)
    noise = -(-torch.rand_like(scores).log()).log()
    soft = Softmax(0.7).dense(scores + noise)
    (expected,) = torch.autograd.grad((soft * aim).sum(), scores)
    torch.testing.assert_close(straight, expected)


def test_attention_reads_one_value() -> None:
    tokens = torch.randn(4, 2, 3)
    dense = attend(tokens, tokens, tokens, score=ScaledDot(), normalizer=Hard(), support=Dense())
    best = torch.einsum("qhd,khd->hqk", tokens, tokens).argmax(-1)  # [H, Tq]
    expected = torch.stack([tokens[best[head], head] for head in range(2)], 1)
    torch.testing.assert_close(dense.output, expected)
    everyone = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    on_graph = attend(
        tokens, tokens, tokens, score=ScaledDot(), normalizer=Hard(),
        support=Edges.from_edge_index(everyone, size=4),
    )  # fmt: skip
    torch.testing.assert_close(on_graph.output, expected)


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"choose is 'best'; expected 'argmax', 'sample' or"):
        Hard("best")
    with pytest.raises(ValueError, match=r"temperature is 0\.0; it must be above 0"):
        Hard("gumbel", 0.0)


def test_log_probability_and_entropy_by_hand() -> None:
    # p = (1/2, 1/4, 1/4) and (1/4, 3/4, masked); the third query sees nothing
    scores = torch.tensor([[2.0, 1.0, 1.0], [1.0, 3.0, 9.0], [5.0, 5.0, 5.0]], dtype=F64).log()
    mask = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
    drawn = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=F64)
    log_prob = torch.tensor([1 / 4, 3 / 4, 1], dtype=F64).log()
    entropy = torch.tensor([1.5 * math.log(2), 2 * math.log(2) - 0.75 * math.log(3), 0], dtype=F64)
    rows = DenseRows(mask)
    dense = Hard("sample").log_prob(rows.allow(scores), drawn, rows)
    torch.testing.assert_close(dense.log_prob, log_prob)
    torch.testing.assert_close(dense.entropy, entropy)
    query, key = mask.nonzero().T
    segment = Hard("sample").log_prob(
        scores[query, key, None], drawn[query, key, None], EdgeRows(query, 3)
    )
    torch.testing.assert_close(segment.log_prob, log_prob[:, None])
    torch.testing.assert_close(segment.entropy, entropy[:, None])


def test_gradients_of_log_probability_and_entropy_by_hand() -> None:
    scores = torch.tensor([2.0, 1.0, 1.0], dtype=F64).log().requires_grad_()
    drawn, p = torch.tensor([0.0, 1.0, 0.0], dtype=F64), torch.tensor([0.5, 0.25, 0.25])
    log_prob, entropy = Hard("sample").log_prob(scores[None], drawn[None], DenseRows())
    (slope,) = torch.autograd.grad(log_prob.sum(), scores, retain_graph=True)
    torch.testing.assert_close(slope, drawn - p.double())  # ∂ log p_j / ∂s = 1_j - p
    (slope,) = torch.autograd.grad(entropy.sum(), scores)
    torch.testing.assert_close(slope, -p * (p.double().log() + entropy.detach()))  # -p (log p + H)


def test_masked_rows_and_far_scores_keep_gradients_finite() -> None:
    scores = torch.tensor([[500.0, -500.0], [0.0, 0.0]], requires_grad=True)
    rows = DenseRows(torch.tensor([[True, True], [False, False]]))
    drawn = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    result = Hard("sample").log_prob(rows.allow(scores), drawn, rows)
    assert result.log_prob.tolist() == [-1000.0, 0.0] and result.entropy.tolist() == [0.0, 0.0]
    (slope,) = torch.autograd.grad(result.log_prob.sum() + result.entropy.sum(), scores)
    assert torch.equal(slope, torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))


SUPPORTS = {
    "dense": Dense(causal=True),
    "window": Window(4, causal=True),
    "edges": Edges.from_edge_index(torch.tril_indices(5, 5).flip(0), size=5),
    "pending": PendingEdges(torch.tril_indices(5, 5).flip(0), 5, 5),
}


@pytest.mark.parametrize("choose", ["sample", "gumbel"])
@pytest.mark.parametrize("support", SUPPORTS)
def test_log_probability_over_every_support(support: str, choose: str) -> None:
    """It is the logarithm of the soft weight of the pair that was drawn, bias included.

    Gradients take no way through the draw, not even through that of "gumbel", which has some.
    """
    query, key = (torch.randn(5, 2, 3, dtype=F64, requires_grad=True) for _ in range(2))
    shape = {"dense": (2, 5, 5), "window": (2, 5, 5)}.get(support, (15, 2))
    given: dict[str, Any] = dict(
        score=ScaledDot(), support=SUPPORTS[support], bias=torch.randn(shape, dtype=F64)
    )
    drawn = weights(query, key, normalizer=Hard(choose), **given)
    result = hard_log_prob(query, key, drawn, **given)
    drawn = drawn.detach()
    soft = weights(query, key, **given)
    surprise = torch.special.entr(torch.where(soft > 0, soft, 1))  # -p log p, with a slope at p = 0
    if support in ("dense", "window"):
        expected = (drawn * soft).sum(-1).log(), surprise.sum(-1)
    else:
        index = torch.tril_indices(5, 5)[0]
        zero = torch.zeros(5, 2, dtype=F64)
        expected = (
            zero.index_add(0, index, drawn * soft).log(),
            zero.index_add(0, index, surprise),
        )
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(
            torch.autograd.grad(ours.sin().sum(), (query, key), retain_graph=True),
            torch.autograd.grad(theirs.sin().sum(), (query, key), retain_graph=True),
        )


def test_half_types_and_autocast_keep_float32() -> None:
    query, key = torch.randn(3, 1, 4).bfloat16(), torch.randn(6, 1, 4).bfloat16()
    drawn = weights(query, key, score=ScaledDot(), normalizer=Hard("sample"), support=Dense())
    result = hard_log_prob(query, key, drawn, score=ScaledDot(), support=Dense())
    exact = hard_log_prob(query.double(), key.double(), drawn, score=ScaledDot(), support=Dense())
    assert result.log_prob.dtype == result.entropy.dtype == torch.float32
    torch.testing.assert_close(result.log_prob.double(), exact.log_prob)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = hard_log_prob(
            query.float(), key.float(), drawn, score=ScaledDot(), support=Dense()
        )
    torch.testing.assert_close(inside, result)


@pytest.mark.parametrize("support", ["dense", "edges"])
def test_expected_reinforce_gradient_is_that_of_the_expected_reward(support: str) -> None:
    """Summed over all joint choices of three queries, and with any baseline."""
    query, key = (torch.randn(3, 1, 2, dtype=F64, requires_grad=True) for _ in range(2))
    everyone = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T  # (query, key), by query
    on = {"dense": Dense(), "edges": Edges.from_edge_index(everyone.flip(0), size=3)}[support]
    given: dict[str, Any] = dict(score=ScaledDot(), support=on)
    rewards = torch.randn(3, 3, 3, dtype=F64)
    p = weights(query, key, score=ScaledDot(), support=Dense())[0]
    mean = torch.einsum("a,b,c,abc->", *p, rewards)
    expected = torch.autograd.grad(mean, (query, key), retain_graph=True)
    for baseline in (0.0, 3.0):
        total = torch.zeros((), dtype=F64)
        for choice in torch.cartesian_prod(*[torch.arange(3)] * 3):
            one_hot = torch.nn.functional.one_hot(choice, 3).double()
            drawn = one_hot[None] if support == "dense" else one_hot.reshape(9, 1)
            log_prob = hard_log_prob(query, key, drawn, **given).log_prob.sum()
            chance = p.detach()[torch.arange(3), choice].prod()
            total = total + chance * (rewards[tuple(choice)] - baseline) * log_prob
        torch.testing.assert_close(torch.autograd.grad(total, (query, key)), expected)


def test_refuses_weights_of_other_pairs() -> None:
    x = torch.zeros(4, 1, 2)
    with pytest.raises(ValueError, match=r"drawn has shape \[4, 4\]; expected \[1, 4, 4\]"):
        hard_log_prob(x, x, torch.eye(4), score=ScaledDot(), support=Dense())
