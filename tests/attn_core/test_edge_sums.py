"""Sums over edges and products at edges: the definition's numbers, without its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attn_core import (
    Edges,
    Entmax,
    Hard,
    Identity,
    ScaledDot,
    Sparsemax,
    attend,
    backend,
    clear_cache,
    compiled,
)
from attn_core.backends import cpu, csr
from attn_core.ops import edge_sums

DOUBLE = torch.float64
BACKENDS = ["auto", "torch"]
OPS = torch.ops.attn_core


def graph(nodes: int, others: int, num_edges: int) -> Edges:
    pairs = torch.stack([torch.randint(nodes, (num_edges,)), torch.randint(others, (num_edges,))])
    return Edges.from_edge_index(pairs, (nodes, others))


def leaf(*shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE).to(dtype).requires_grad_()


def expected_sum(edges: Edges, weights: Tensor, value: Tensor, pair: Tensor | None) -> Tensor:
    of_pair = value[edges.key_index]
    of_pair = (of_pair if pair is None else of_pair + pair) * weights.unsqueeze(-1)
    return value.new_zeros(edges.num_queries, *value.shape[1:]).index_add(
        0, edges.query_index, of_pair
    )


@pytest.mark.parametrize("implementation", BACKENDS)
@given(
    nodes=st.integers(1, 9),
    others=st.integers(1, 9),
    num_edges=st.integers(0, 70),
    heads=st.integers(1, 5),
    width=st.integers(0, 20),
    with_pair=st.booleans(),
    dtype=st.sampled_from([torch.float32, DOUBLE]),
    strided=st.booleans(),
)
def test_equals_plain_torch(
    implementation: str,
    nodes: int,
    others: int,
    num_edges: int,
    heads: int,
    width: int,
    with_pair: bool,
    dtype: torch.dtype,
    strided: bool,
) -> None:
    edges = graph(nodes, others, num_edges)
    weights, value = leaf(num_edges, heads), leaf(nodes, heads, width)
    pair = leaf(num_edges, heads, width) if with_pair else None
    left = leaf(others, heads, width)
    leaves = [x for x in (weights, value, pair, left) if x is not None]
    sizes = edges.pairs, nodes, others

    def lay(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = x.to(dtype)
        return torch.stack([x, x], -1)[..., 0] if strided else x

    laid = lay(weights), lay(value), lay(pair)
    right = (
        expected_sum(edges, weights, value, pair),
        ((value[edges.key_index] + (0 if pair is None else pair)) * left[edges.query_index]).sum(
            -1
        ),
        value.new_zeros(value.shape).index_add(
            0, edges.key_index, left[edges.query_index] * weights.unsqueeze(-1)
        ),
    )
    with backend(implementation):
        found = (
            OPS.edge_sum(*laid, *sizes, False),
            OPS.edge_dot(lay(left), *laid[1:], *sizes),
            OPS.edge_sum(laid[0], lay(left), None, *sizes, True),
        )
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        for ours, theirs in zip(found, right, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)
        if any(x.numel() == 0 for x in leaves):
            return
        pick = [torch.randn(x.shape, dtype=DOUBLE) for x in right]
        ours, theirs = (
            torch.autograd.grad(sum((x * p).sum() for x, p in zip(xs, pick, strict=True)), leaves)
            for xs in (found, right)
        )
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_differentiable_twice(implementation: str) -> None:
    edges = graph(4, 3, 9)
    weights, value, pair, left = leaf(9, 2), leaf(4, 2, 3), leaf(9, 2, 3), leaf(3, 2, 3)
    sizes = edges.pairs, 4, 3
    with backend(implementation):
        for function, inputs in (
            (lambda w, v, p: OPS.edge_sum(w, v, p, *sizes, False), (weights, value, pair)),
            (lambda w, v: OPS.edge_sum(w, v, None, *sizes, True), (weights, left)),
            (lambda a, b, p: OPS.edge_dot(a, b, p, *sizes), (left, value, pair)),
        ):
            assert torch.autograd.gradcheck(function, inputs, nondet_tol=0.0)
            assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_the_ops_keep_their_contract_with_torch(implementation: str) -> None:
    edges = graph(4, 3, 9)
    weights, value, pair, left = leaf(9, 2), leaf(4, 2, 3), leaf(9, 2, 3), leaf(3, 2, 3)
    sizes = edges.pairs, 4, 3
    with backend(implementation):
        torch.library.opcheck(OPS.edge_sum.default, (weights, value, pair, *sizes, False))
        torch.library.opcheck(OPS.edge_sum.default, (weights, left, None, *sizes, True))
        torch.library.opcheck(OPS.edge_dot.default, (left, value, pair, *sizes))


@pytest.mark.parametrize("normalizer", [Sparsemax(), Entmax(), Hard("gumbel"), Identity()])
@pytest.mark.parametrize("implementation", BACKENDS)
def test_normalisers_without_a_fused_kernel(normalizer: Any, implementation: str) -> None:
    edges = graph(20, 15, 150)
    pair = leaf(150, 2, 5)
    leaves = [leaf(15, 2, 5), leaf(20, 2, 5), leaf(20, 2, 5), leaf(150, 2), pair]
    query, key, value, bias, _ = leaves

    def outcome() -> list[Tensor]:
        torch.manual_seed(1)
        result = attend(
            query, key, value, score=ScaledDot(), normalizer=normalizer, support=edges,
            bias=bias, pair_key=pair, pair_value=pair, dropout=0.3,
        )  # fmt: skip
        gradients = torch.autograd.grad(result.output.square().sum(), leaves)
        return [result.output, *gradients]

    with backend("reference"):
        expected = outcome()
    with backend(implementation):
        for ours, right in zip(outcome(), expected, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-11)


class Largest(TorchDispatchMode):
    """The largest tensor that any operator makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            made = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
            self.numel = max(self.numel, *made, 0)
        return out


@pytest.mark.parametrize("implementation", BACKENDS)
def test_no_tensor_of_pairs_times_heads_times_channels(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = graph(100, 100, 5000)
    x = leaf(100, 2, 64, dtype=torch.float32)
    spy = Largest()

    def spied(owner: Any, name: str) -> None:
        """A mode does not see into the body of an op: enter it there again."""
        function = getattr(owner, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            with spy:
                return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, run)

    for owner, name in ((csr, "weighted_sums"), (cpu.pairs, "scores"), (cpu.pairs, "sums")):
        spied(owner, name)
    monkeypatch.setattr(edge_sums, "_BLOCK", 2**14)
    with backend(implementation), spy:
        attend(x, x, x, score=ScaledDot(), normalizer=Sparsemax(), support=edges).output.square(
        ).sum().backward()  # fmt: skip
    assert 0 < spy.numel <= 5000 * 2 * 64 / 8
    with backend("reference"), spy:  # which does make one
        attend(x, x, x, score=ScaledDot(), normalizer=Sparsemax(), support=edges)
    assert spy.numel == 5000 * 2 * 64


@pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")
def test_a_hub_and_the_same_bits_for_any_number_of_threads() -> None:
    hub = torch.stack([torch.arange(10_000) % 300, torch.full((10_000,), 7)])
    pairs = torch.cat([torch.randint(300, (2, 9000)), hub, hub.flip(0)], 1)
    edges = Edges.from_edge_index(pairs, 300)
    weights, value = (leaf(29_000, 2, dtype=torch.float32), leaf(300, 2, 6, dtype=torch.float32))

    def outcome() -> list[Tensor]:
        out = OPS.edge_sum(weights, value, None, edges.pairs, 300, 300, False)
        return [out, *torch.autograd.grad(out.square().sum(), (weights, value))]

    right = expected_sum(edges, weights.double(), value.double(), None)
    before, first = torch.get_num_threads(), outcome()
    torch.testing.assert_close(first[0].double(), right, rtol=1e-4, atol=1e-4)
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            for ours, theirs in zip(outcome(), first, strict=True):
                assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("implementation", BACKENDS)
def test_backward_without_the_edges_it_was_given(implementation: str) -> None:
    """They died with the call; their pairs have not."""
    pairs = graph(6, 6, 30).pairs
    x = leaf(6, 2, 4)

    def run() -> Tensor:
        edges = Edges.from_edge_index(pairs, 6, self_loops=True)
        out = attend(x, x, x, score=ScaledDot(), normalizer=Entmax(), support=edges).output
        clear_cache()
        return out

    with backend(implementation):
        (found,) = torch.autograd.grad(run().square().sum(), x)
    with backend("reference"):
        (expected,) = torch.autograd.grad(run().square().sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")
def test_the_module_refuses_what_it_cannot_serve() -> None:
    x, out = torch.zeros(2, 1, 4), torch.zeros(2, 1)
    column, place = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 1])
    pointer = torch.tensor([0, 1, 2])

    def scores(**changed: Any) -> None:
        given: dict[str, Any] = {
            "row": x, "other": x, "vector": None, "pair": None, "pointer": pointer,
            "column": column, "place": place, "kind": 0, "constant": 1.0, "threads": 1,
            "scores": out,
        }  # fmt: skip
        compiled.module.pair_scores(**{**given, **changed})

    def sums(**changed: Any) -> None:
        given: dict[str, Any] = {
            "given": out, "row": None, "other": x, "vector": None, "pair": None,
            "pointer": pointer, "column": column, "place": place, "kind": 0, "constant": 1.0,
            "threads": 1, "sums": torch.zeros(2, 1, 4), "of_vector": None, "of_pair": None,
        }  # fmt: skip
        compiled.module.pair_sums(**{**given, **changed})

    for call in (scores, sums):
        call()
        with pytest.raises(IndexError, match="index out of range"):
            call(column=torch.tensor([0, 2], dtype=torch.int32))
        with pytest.raises(IndexError, match="index out of range"):
            call(place=torch.tensor([-1, 0]))
        with pytest.raises(ValueError, match="pointer that does not rise"):
            call(pointer=torch.tensor([0, 3, 2]))
        with pytest.raises(ValueError, match="multiple of 4"):
            call(other=torch.zeros(2, 1, 3))
        with pytest.raises(ValueError, match=r"vector is (not|missing)"):
            call(kind=1)
        with pytest.raises(ValueError, match="pair has a shape"):
            call(pair=torch.zeros(3, 1, 4))
    with pytest.raises(ValueError, match="row is missing"):
        sums(of_pair=torch.zeros(2, 1, 4))
    with pytest.raises(ValueError, match="given has a shape"):
        sums(given=torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"of_vector is (not|asked for)"):
        sums(of_vector=torch.zeros(1, 4))
