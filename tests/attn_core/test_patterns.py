"""Patterns: the masks they stand for, and the same numbers as a support and as a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attn_core import (
    Additive,
    Dense,
    Edges,
    Entmax,
    ScaledDot,
    Separable,
    Softmax,
    Sparsemax,
    Window,
    attend,
    patterns,
)
from attn_core.supports.patterns import Pattern, atrous, causal, local, sparse, strided

F64 = torch.float64
HEADS, WIDTH = 2, 3

MASKS = {
    "local": (
        local(1),
        """
        ##....
        ###...
        .###..
        ..###.
        ...###
        ....##
        """,
    ),
    "local, causal": (
        local(2, causal=True),
        """
        #.....
        ##....
        ###...
        .###..
        ..###.
        ...###
        """,
    ),
    "atrous": (
        atrous(2),
        """
        #.#.#.
        .#.#.#
        #.#.#.
        .#.#.#
        #.#.#.
        .#.#.#
        """,
    ),
    "atrous with a radius": (
        atrous(2, radius=1),
        """
        #.#...
        .#.#..
        #.#.#.
        .#.#.#
        ..#.#.
        ...#.#
        """,
    ),
    "atrous, causal": (
        atrous(3, causal=True),
        """
        #.....
        .#....
        ..#...
        #..#..
        .#..#.
        ..#..#
        """,
    ),
    "sparse": (
        sparse(2),
        """
        ###.#.
        ####.#
        #####.
        .#####
        #.####
        .#.###
        """,
    ),
    "strided": (
        strided(2),
        """
        #.....
        ##....
        ###...
        .###..
        #.###.
        .#.###
        """,
    ),
    "causal": (
        causal(),
        """
        #.....
        ##....
        ###...
        ####..
        #####.
        ######
        """,
    ),
}


def drawn(picture: str) -> Tensor:
    return torch.tensor([[place == "#" for place in row] for row in picture.split()])


def mask_of(edges: Edges) -> Tensor:
    """How often each (query, key) is among the pairs."""
    count = torch.zeros(edges.num_queries, edges.num_keys, dtype=torch.int64)
    return count.index_put_((edges.query_index, edges.key_index), torch.tensor(1), accumulate=True)


def mask_of_support(support: Window | Dense, queries: int, keys: int) -> Tensor:
    """Which pairs a support has, seen from outside: uniform weights over them."""
    flat = torch.ones(queries, 1, 1), torch.ones(keys, 1, 1), torch.eye(keys)[:, None]
    output = attend(*flat, score=ScaledDot(), support=support).output
    return output[:, 0] > 0


@pytest.mark.parametrize("name", MASKS)
def test_the_mask_drawn_by_hand(name: str) -> None:
    pattern, picture = MASKS[name]
    mask = drawn(picture)
    assert torch.equal(pattern.allowed(torch.arange(6), torch.arange(6)), mask)
    assert torch.equal(mask_of(pattern.edges(6)), mask.long())
    assert torch.equal(mask_of_support(pattern.support(6), 6, 6), mask)
    # The last query stands at the last key
    assert torch.equal(mask_of_support(pattern.support(2, 6), 2, 6), mask[-2:])


def test_each_pattern_is_the_support_that_suits_it() -> None:
    assert isinstance(local(2).support(9), Window)
    assert isinstance(atrous(2, radius=3, causal=True).support(9), Window)
    everything = causal().support(9)
    assert isinstance(everything, Dense) and everything.causal and everything.mask is None
    assert atrous(1).support(9).mask is None  # type: ignore[union-attr]
    assert sparse(2).support(9).mask is not None  # type: ignore[union-attr]
    assert strided(4) == sparse(4, causal=True) == Pattern(radius=4, rate=4, causal=True)


some_patterns = st.one_of(
    st.builds(local, st.integers(0, 9), st.booleans()),
    st.builds(atrous, st.integers(1, 9), st.one_of(st.none(), st.integers(0, 4)), st.booleans()),
    st.builds(sparse, st.integers(1, 9), st.booleans()),
    st.builds(strided, st.integers(1, 9)),
    st.builds(causal),
    st.builds(Pattern, st.integers(0, 3), st.integers(1, 4), st.integers(0, 3), st.booleans()),
)


def tokens(*shape: int) -> list[Tensor]:
    return [torch.randn(*shape, HEADS, WIDTH, dtype=F64, requires_grad=True) for _ in range(3)]


def outcome(inputs: list[Tensor], leaves: list[Tensor], **how: Any) -> list[Tensor]:
    output = attend(*inputs, **how).output
    return [output, *torch.autograd.grad(output.cos().sum(), leaves)]


@pytest.mark.parametrize("normalizer", [Softmax(), Softmax(0.5), Sparsemax(), Entmax()])
@pytest.mark.parametrize("score", ["scaled dot", "additive", "separable"])
@given(pattern=some_patterns, nodes=st.integers(1, 24))
@settings(max_examples=20)
def test_support_and_edges_are_dense_with_the_mask(
    score: str, normalizer: Any, pattern: Pattern, nodes: int
) -> None:
    vector = torch.randn(HEADS, WIDTH, dtype=F64)
    match: Any = {
        "scaled dot": ScaledDot(),
        "additive": Additive(vector),
        "separable": Separable(vector, vector + 1),
    }[score]
    inputs = tokens(nodes)
    how = dict(score=match, normalizer=normalizer)
    mask = pattern.allowed(torch.arange(nodes), torch.arange(nodes))
    expected = outcome(inputs, inputs, support=Dense(mask), **how)
    torch.testing.assert_close(
        outcome(inputs, inputs, support=pattern.support(nodes), **how), expected
    )
    torch.testing.assert_close(
        outcome(inputs, inputs, support=pattern.edges(nodes), **how), expected
    )


@given(
    pattern=some_patterns,
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    longer=st.integers(1, 2),
)
def test_a_padded_batch_is_the_disjoint_union_of_its_sequences(
    pattern: Pattern, lengths: list[int], longer: int
) -> None:
    time = max(lengths, default=0) + longer
    length = torch.tensor(lengths, dtype=torch.int64)
    inputs = tokens(len(lengths), time)
    real = torch.arange(time) < length[:, None]

    def compared(tokens: list[Tensor], support: Any, at: Any) -> list[Tensor]:
        output = attend(*tokens, score=ScaledDot(), support=support).output
        return [output[at], *torch.autograd.grad(output[at].cos().sum(), inputs)]

    batched = compared(inputs, pattern.support(time, lengths=length), real)
    packed = compared([x[real] for x in inputs], pattern.edges(lengths), slice(None))
    torch.testing.assert_close(packed, batched)

    flat, graph = [x.flatten(0, 1) for x in inputs], pattern.edges(length, padded_to=time)
    torch.testing.assert_close(compared(flat, graph, real.flatten()), batched)
    padding = attend(*flat, score=ScaledDot(), support=graph).output[~real.flatten()]
    assert (padding == 0).all()
    alone = [mask_of(pattern.edges(length)) for length in lengths]
    assert torch.equal(mask_of(pattern.edges(lengths)), torch.block_diag(*alone).long())


@given(pattern=some_patterns, longest=st.integers(0, 30))
def test_distances_are_those_that_are_allowed(pattern: Pattern, longest: int) -> None:
    all_of_them = torch.arange(-longest, longest + 1)
    allowed = pattern.allowed(torch.tensor([0]), all_of_them)[0]
    assert torch.equal(pattern.distances(longest), all_of_them[allowed])


@pytest.mark.parametrize("lengths", [0, [], [0, 0]])
def test_no_tokens_have_no_edges(lengths: Any) -> None:
    assert repr(causal().edges(lengths)) == repr(Edges.from_edge_index(torch.empty(2, 0).long(), 0))


def test_pairs_come_sorted_by_query() -> None:
    edges = sparse(3).edges([5, 4], padded_to=6)
    assert torch.equal(edges.by_query.permutation, torch.arange(edges.num_edges))


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def test_a_long_sequence_takes_the_memory_of_its_pairs() -> None:
    nodes = 100_000
    with Largest() as largest:
        edges = local(4).edges(nodes)
    assert edges.num_edges == 9 * nodes - 20
    assert largest.bytes == 2 * 8 * edges.num_edges  # that of the edge_index


def test_edges_made_in_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        edges = local(1).edges(5)
    inputs, steps = tokens(5), torch.arange(5)
    mask = (steps - steps[:, None]).abs() <= 1
    torch.testing.assert_close(
        outcome(inputs, inputs, score=ScaledDot(), support=edges),
        outcome(inputs, inputs, score=ScaledDot(), support=Dense(mask)),
    )


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: local(-1), ValueError, "radius is -1; expected a whole number of at least 0"),
        (lambda: local(1.5), TypeError, r"radius is 1\.5; expected a whole number"),
        (lambda: atrous(0), ValueError, "rate is 0; expected a whole number of at least 1"),
        (lambda: atrous(2, radius=-3), ValueError, "radius is -3; expected"),
        (lambda: sparse(0), ValueError, "rate is 0; expected"),
        (lambda: strided(0), ValueError, "stride is 0; expected"),
        (lambda: Pattern(steps=2), ValueError, "steps is 2, but steps of what"),
        (lambda: Pattern(rate=2, steps=-1), ValueError, "steps is -1; expected"),
        (lambda: local(1).support(-1), ValueError, "queries is -1; expected"),
        (lambda: local(1).support(1, -1), ValueError, "keys is -1; expected"),
        (lambda: local(1).edges(-1), ValueError, "lengths has the entry -1; a sequence has 0"),
        (lambda: local(1).edges(2.0), TypeError, "lengths has dtype torch.float32; expected int"),
        (lambda: local(1).edges([[1]]), ValueError, r"lengths has shape \[1, 1\]; expected"),
        (lambda: local(1).edges([3], padded_to=2), ValueError, "entry 3, but padded_to is 2"),
        (lambda: local(1).edges([3], padded_to=-2), ValueError, "padded_to is -2; expected"),
    ],
)
def test_refuses(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_the_core_exports_the_module() -> None:
    assert patterns.local(3) == local(3)


@pytest.mark.parametrize(
    "pattern", [local(1), atrous(2, radius=1), strided(2), sparse(2), causal()]
)
def test_the_last_query_stands_at_the_last_key_of_its_own_sequence(pattern: Pattern) -> None:
    lengths, (query, key, value) = (
        torch.tensor([6, 4, 3]),
        (torch.randn(3, t, 1, 2) for t in (3, 6, 6)),
    )
    found = attend(
        query, key, value, score=ScaledDot(), support=pattern.support(3, 6, lengths=lengths)
    ).output
    for i, n in enumerate(lengths.tolist()):
        alone = attend(
            query[i], key[i, :n], value[i, :n], score=ScaledDot(), support=pattern.support(3, n)
        ).output
        torch.testing.assert_close(found[i], alone)
