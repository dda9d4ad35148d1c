"""Edges joined without sorting, and turned round."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from attn_core import Edges, ScaledDot, attend
from attn_core.graph import grouping


@st.composite
def parts(draw: st.DrawFn) -> list[tuple[Tensor, int, int]]:
    """A few graphs: pairs in any order, the numbers of keys and queries."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        keys, queries = draw(st.integers(0, 4)), draw(st.integers(0, 4))
        pair = st.tuples(st.integers(0, max(keys - 1, 0)), st.integers(0, max(queries - 1, 0)))
        pairs = draw(st.lists(pair, max_size=8)) if keys and queries else []
        found.append((torch.tensor(pairs, dtype=torch.int64).view(-1, 2).t(), keys, queries))
    return found


@given(drawn=parts(), loops=st.booleans())
def test_joined_edges_are_those_of_the_joined_list(drawn: list, loops: bool) -> None:
    edges = [Edges.from_edge_index(p, (k, q), self_loops=loops) for p, k, q in drawn]
    joined = Edges.join(edges)
    offset, listed = torch.zeros(2, 1, dtype=torch.int64), []
    for pairs, keys, queries in drawn:
        listed.append(pairs + offset)
        offset = offset + torch.tensor([[keys], [queries]])
    sizes = int(offset[0]), int(offset[1])
    if loops and sizes[0] != sizes[1]:
        return  # which loops there are depends on where the nodes of a graph begin
    if loops and any(k != q for _, k, q in drawn):
        return
    expected = Edges.from_edge_index(torch.cat(listed, dim=1), sizes, self_loops=loops)
    assert torch.equal(joined.pairs, expected.pairs)
    assert (joined.num_keys, joined.num_queries) == sizes
    for side in ("by_key", "by_query"):
        one, other = getattr(joined, side), getattr(expected, side)
        assert torch.equal(one.pointer, other.pointer)
        assert torch.equal(one.permutation, other.permutation)
        assert torch.equal(one.columns, other.columns)


def test_nothing_is_sorted_and_attention_is_that_of_each_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edges = [Edges(torch.randint(5, (2, 9)), 5, 5) for _ in range(3)]
    x = torch.randn(15, 2, 4)
    outputs = [
        attend(y, y, y, score=ScaledDot(), support=e).output
        for y, e in zip(x.split(5), edges, strict=True)
    ]
    for e in edges:
        _ = e.by_key.order
    monkeypatch.setattr(grouping, "sort_pairs", lambda *_: pytest.fail("sorted"))
    x.requires_grad_()
    out = attend(x, x, x, score=ScaledDot(), support=Edges.join(edges)).output
    torch.testing.assert_close(out, torch.cat(outputs))
    out.sum().backward()


def test_what_cannot_be_joined_is_told() -> None:
    pairs = torch.tensor([[0, 1], [1, 0]])
    mixed = [Edges(pairs), Edges.from_edge_index(pairs, self_loops=True)]
    with pytest.raises(ValueError, match="self-loops that were replaced in some of them alone"):
        Edges.join(mixed)
    with pytest.raises(ValueError, match="parts is empty"):
        Edges.join([])


@given(drawn=parts(), sorted_before=st.booleans())
def test_turned_round_each_key_is_a_query(drawn: list, sorted_before: bool) -> None:
    pairs, keys, queries = drawn[0]
    edges = Edges(pairs, keys, queries)
    if sorted_before:
        _ = edges.by_key.order, edges.by_query.order
    turned = edges.transposed
    assert turned is edges.transposed
    assert torch.equal(turned.pairs, pairs.flip(0))
    assert (turned.num_keys, turned.num_queries) == (queries, keys)
    expected = Edges(pairs.flip(0), queries, keys)
    for side in ("by_key", "by_query"):
        assert torch.equal(getattr(turned, side).pointer, getattr(expected, side).pointer)
        assert torch.equal(getattr(turned, side).permutation, getattr(expected, side).permutation)
