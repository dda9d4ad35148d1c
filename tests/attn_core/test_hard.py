"""Hard attention: one pair for each query."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attn_core import Dense, Edges, Hard, ScaledDot, Softmax, attend


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
