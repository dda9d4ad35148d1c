"""Supports: which pairs exist, however they are given, and how long they are remembered."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.edge_index
import torch_geometric.utils
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import EdgeIndex

from attn_core import (
    Additive,
    Dense,
    Dot,
    Edges,
    PendingEdges,
    ScaledDot,
    Sparsemax,
    Window,
    attend,
    backend,
    clear_cache,
)
from attn_core.graph import grouping
from attn_core.graph.known import owner_of
from attn_core.supports.edges import edges_of

# Sources in 0 … 3, targets in 0 … 4 (node 3 has no in-edge); a duplicate and two self-loops;
# sorted by target, then by source, so that every format below keeps the order
PAIRS = torch.tensor([[1, 3, 1, 2, 2, 0, 2, 3], [0, 0, 1, 1, 1, 2, 2, 4]])
KEYS, QUERIES = 4, 5


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    clear_cache()
    yield
    clear_cache()


class SparseTensor:
    """What is used of torch_sparse.SparseTensor: rows are targets."""

    def __init__(self, row: Tensor, column: Tensor, size: tuple[int, int]) -> None:
        self.row, self.column, self._size = row, column, size

    def coo(self) -> tuple[Tensor, Tensor, None]:
        return self.row, self.column, None

    def size(self, dim: int) -> int:
        return self._size[dim]


def coo(pairs: Tensor, keys: int, queries: int) -> Tensor:
    ones = torch.ones(pairs.shape[1])
    return torch.sparse_coo_tensor(pairs.flip(0), ones, (queries, keys), check_invariants=False)


def compressed(nodes: Tensor, num: int) -> Tensor:
    """Where the pairs of each node begin, and the last of them end."""
    return torch.cat([torch.tensor([0]), torch.bincount(nodes, minlength=num).cumsum(0)])


def csr(pairs: Tensor, keys: int, queries: int) -> Tensor:
    pointer = compressed(pairs[1], queries)
    return torch.sparse_csr_tensor(
        pointer, pairs[0], torch.ones(pairs.shape[1]), (queries, keys), check_invariants=False
    )


def csc(pairs: Tensor, keys: int, queries: int) -> Tensor:
    pointer = compressed(pairs[0], keys)
    return torch.sparse_csc_tensor(
        pointer, pairs[1], torch.ones(pairs.shape[1]), (queries, keys), check_invariants=False
    )


BY_QUERY, BY_KEY = PAIRS, PAIRS[:, PAIRS[0].argsort(stable=True)]
SIZE = (KEYS, QUERIES)
# How the pairs are given; None where the size is known from them
FORMATS: dict[str, tuple[Any, Tensor, Any]] = {
    "int64": (PAIRS, PAIRS, SIZE),
    "int32": (PAIRS.int(), PAIRS, SIZE),
    "transposed memory": (PAIRS.t().contiguous().t(), PAIRS, SIZE),
    "every second column": (PAIRS.repeat_interleave(2, 1)[:, ::2], PAIRS, SIZE),
    "EdgeIndex": (EdgeIndex(PAIRS, sparse_size=SIZE), PAIRS, None),
    "EdgeIndex of int32": (EdgeIndex(PAIRS.int(), sparse_size=SIZE), PAIRS, SIZE),
    "EdgeIndex by column": (EdgeIndex(PAIRS, sparse_size=SIZE, sort_order="col"), PAIRS, SIZE),
    "EdgeIndex by row": (EdgeIndex(BY_KEY, sparse_size=SIZE, sort_order="row"), BY_KEY, None),
    "EdgeIndex without a size": (EdgeIndex(PAIRS, sort_order="col"), PAIRS, SIZE),
    "COO": (coo(PAIRS, *SIZE), PAIRS, None),
    "CSR": (csr(PAIRS, *SIZE), PAIRS, SIZE),
    "CSC": (csc(BY_KEY, *SIZE), BY_KEY, None),
    "SparseTensor": (SparseTensor(PAIRS[1], PAIRS[0], SIZE[::-1]), PAIRS, None),
}


def assert_sorted(edges: Edges) -> None:
    """Both orders are what a stable sort from scratch gives, and belong together."""
    for order, nodes, num in (
        (edges.by_query, edges.query_index, edges.num_queries),
        (edges.by_key, edges.key_index, edges.num_keys),
    ):
        assert torch.equal(order.permutation, nodes.argsort(stable=True))
        assert torch.equal(order.pointer, compressed(nodes, num))
    by_key = edges.by_query.permutation[edges.slots_by_key]
    assert torch.equal(by_key, edges.by_key.permutation)


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_pairs(name: str, self_loops: bool) -> None:
    given_as, pairs, size = FORMATS[name]
    edges = Edges.from_edge_index(given_as, size, self_loops=self_loops)
    expected = Edges.from_edge_index(pairs, SIZE, self_loops=self_loops)
    assert (edges.num_keys, edges.num_queries) == SIZE
    assert torch.equal(edges.edge_index, expected.edge_index)
    assert edges.edge_index.dtype == torch.int64
    assert torch.equal(edges.source_id, expected.source_id)
    assert torch.equal(torch.stack([edges.key_index, edges.query_index]), edges.edge_index)
    assert_sorted(edges)


def test_sizes_follow_from_the_largest_node() -> None:
    edges = Edges.from_edge_index(PAIRS)
    assert (edges.num_keys, edges.num_queries) == (5, 5)
    assert Edges.from_edge_index(PAIRS, 7).num_keys == 7
    assert Edges.from_edge_index(PAIRS, np.int64(7)).num_queries == 7
    assert Edges.from_edge_index(PAIRS, [4, 9]).num_queries == 9
    assert Edges.from_edge_index(torch.zeros(2, 0, dtype=torch.int64)).num_keys == 0
    half_known = EdgeIndex(PAIRS, sparse_size=(6, None))
    assert Edges.from_edge_index(half_known, (6, 8)).num_queries == 8
    assert repr(edges) == "Edges(num_keys=5, num_queries=5, num_edges=8, device='cpu')"


graphs = st.tuples(st.integers(0, 5), st.integers(0, 5)).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(st.tuples(st.integers(0, size[0] - 1), st.integers(0, size[1] - 1)), max_size=12)
        if min(size)
        else st.just([]),
    )
)


def as_pairs(listed: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(listed, dtype=torch.int64).reshape(-1, 2).t().contiguous()


@given(graphs)
def test_self_loops_are_those_of_torch_geometric(graph: Any) -> None:
    size, listed = graph
    pairs = as_pairs(listed)
    edges = Edges.from_edge_index(pairs, size, self_loops=True)
    expected, _ = torch_geometric.utils.remove_self_loops(pairs)
    expected, _ = torch_geometric.utils.add_self_loops(expected, num_nodes=min(size))
    assert torch.equal(edges.edge_index, expected)
    # where each comes from: its own column, or E + node
    columns = torch.cat([pairs, torch.arange(min(size)).expand(2, -1)], dim=1)
    assert torch.equal(columns[:, edges.source_id], edges.edge_index)
    assert (edges.source_id[len(edges.source_id) - min(size) :] >= len(listed)).all()
    assert_sorted(edges)
    assert edges.with_self_loops() is edges
    assert torch.equal(edges.given.edge_index, pairs)
    again = edges.given.with_self_loops()
    assert torch.equal(again.edge_index, edges.edge_index)
    assert edges.given.with_self_loops() is again


@given(graphs)
def test_orders_that_are_known_take_in_the_self_loops(graph: Any) -> None:
    size, listed = graph
    with backend("torch"):  # the compiled module sorts them anew, which costs less
        plain = Edges.from_edge_index(as_pairs(listed), size)
    assert plain.by_query.order and plain.by_key.order and plain.given is plain
    with_loops = plain.with_self_loops()
    assert all("order" in side.__dict__ for side in (with_loops.by_query, with_loops.by_key))
    assert_sorted(with_loops)


@settings(max_examples=30)
@given(graphs, st.sampled_from(["row", "col"]), st.booleans())
def test_the_order_of_an_edge_index_is_used(graph: Any, order: str, self_loops: bool) -> None:
    size, listed = graph
    pairs = as_pairs(sorted(listed, key=lambda pair: pair[order == "col"]))
    edge_index = EdgeIndex(pairs, sparse_size=size, sort_order=order).fill_cache_()

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("sorted again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "sort_pairs", fail)
        patch.setattr(torch, "argsort", fail)
        patch.setattr(torch, "sort", fail)
        patch.setattr(torch.Tensor, "argsort", fail)
        patch.setattr(torch.Tensor, "sort", fail)
        patch.setattr(torch_geometric.utils, "index_sort", fail)
        edges = Edges.from_edge_index(edge_index, self_loops=self_loops)
        for tensor in (*edges.by_query.order, *edges.by_key.order):
            assert tensor.dtype == torch.int64
    assert_sorted(edges)


def test_an_undirected_edge_index() -> None:
    pairs = torch_geometric.utils.to_undirected(torch.tensor([[0, 1, 4], [1, 3, 3]]))
    edge_index = EdgeIndex(pairs, sparse_size=(6, 6), sort_order="row", is_undirected=True)
    edges = Edges.from_edge_index(edge_index, self_loops=True)
    expected = Edges.from_edge_index(pairs, 6, self_loops=True)
    assert torch.equal(edges.edge_index, expected.edge_index)
    assert_sorted(edges)


def test_an_edge_index_that_lies() -> None:
    for order in ("row", "col"):
        with pytest.raises(ValueError, match=r"says that it is sorted, but it is not.*sort_by"):
            Edges.from_edge_index(EdgeIndex(PAIRS.flip(1), sparse_size=(5, 5), sort_order=order))
    # Its pointer by target is that by source, as if the matrix were symmetric
    edge_index = EdgeIndex(BY_KEY, sparse_size=(5, 5), sort_order="row", is_undirected=True)
    edge_index.get_csr()
    assert_sorted(Edges.from_edge_index(edge_index))


def test_edges_own_their_memory() -> None:
    for dtype in (torch.int64, torch.int32):
        pairs = PAIRS.to(dtype).clone()
        edges = Edges.from_edge_index(pairs, SIZE)
        pairs.zero_()
        assert torch.equal(edges.edge_index, PAIRS)
        edges.edge_index.zero_()
        assert torch.equal(edges.edge_index, PAIRS)
    edge_index = EdgeIndex(PAIRS.clone(), sparse_size=SIZE, sort_order="col").fill_cache_()
    edges = Edges.from_edge_index(edge_index)
    (pointer, row), permutation = edge_index.get_csr()
    for tensor in (pointer, row, permutation, edge_index.get_csc()[0][0], edge_index.as_tensor()):
        tensor.zero_()
    assert torch.equal(edges.edge_index, PAIRS)
    assert_sorted(edges)
    matrix = coo(PAIRS.clone(), *SIZE)
    edges = Edges.from_edge_index(matrix)
    matrix._indices().zero_()
    assert torch.equal(edges.edge_index, PAIRS)


@pytest.mark.parametrize(
    ("edge_index", "size", "error", "message"),
    [
        (PAIRS.float(), 5, TypeError, r"edge_index has dtype torch.float32.*\.long\(\)"),
        (PAIRS > 0, 5, TypeError, "edge_index has dtype torch.bool"),
        (PAIRS.t(), 5, ValueError, r"edge_index has shape \[8, 2\].*edge_index\.t\(\)"),
        (PAIRS[0], 5, ValueError, r"edge_index has shape \[8\]; expected \[2, E\]"),
        ([[0], [1]], 5, TypeError, "edge_index is a list"),
        (PAIRS, (4, 4), IndexError, r"node 4 in row 1 \(targets\), but there are only 4"),
        (PAIRS, (3, 5), IndexError, r"node 3 in row 0 \(sources\), but there are only 3.*0 to 2"),
        (PAIRS - 1, 5, IndexError, r"node -1 in row 0 \(sources\).*numbered from 0"),
        (PAIRS, (4, 5, 6), ValueError, r"size is \(4, 5, 6\)"),
        (PAIRS[:, :0], -1, ValueError, "size is -1"),
        (coo(PAIRS, *SIZE), (5, 5), ValueError, r"size says 5 sources.*\[5, 4\].*has 4"),
        (csr(PAIRS, *SIZE), (4, 4), ValueError, r"size says 4 targets.*\[5, 4\].*has 5"),
        (SparseTensor(PAIRS[1], PAIRS[0], (5, 4)), 4, ValueError, "size says 4 targets"),
        (EdgeIndex(PAIRS, sparse_size=SIZE), (6, 5), ValueError, r"size says 6 sources.*\(4, 5\)"),
        (EdgeIndex(PAIRS, sparse_size=(None, 4)), None, IndexError, "node 4 in row 1"),
        (torch.ones(2, 2, 2).to_sparse(), None, ValueError, r"sparse of shape \[2, 2, 2\]"),
        (coo(PAIRS, 3, 5), None, IndexError, "node 3 in row 0"),
    ],
)  # fmt: skip
def test_bad_pairs_are_named(
    edge_index: Any, size: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Edges.from_edge_index(edge_index, size)


class TestCache:
    """The Edges of a plain tensor are built once, and never outlive it or what it held."""

    def test_the_same_tensor_gives_the_same_edges(self) -> None:
        pairs = PAIRS.clone()
        edges = edges_of(pairs, 5, 5, False)
        assert edges_of(pairs, 5, 5, False) is edges
        assert PendingEdges(pairs, 5, 5).resolve() is edges
        other = [edges_of(pairs, *sizes) for sizes in ((5, 5, True), (4, 5, False))]
        assert [x.num_edges for x in other] == [8 - 2 + 5, 8]
        assert edges_of(pairs, 5, 5, False) is edges
        assert edges_of(pairs, 5, 5, True) is other[0]
        assert edges_of(pairs.clone(), 5, 5, False) is not edges

    def test_an_edit_in_place_gives_new_edges(self) -> None:
        pairs = PAIRS.clone()
        for self_loops in (False, True):
            edges_of(pairs, 5, 5, self_loops)
        view = pairs[0]
        view[0] = 4
        for self_loops in (False, True):
            edges = edges_of(pairs, 5, 5, self_loops)
            assert edges.edge_index[0, 0] == 4
            assert edges_of(pairs, 5, 5, self_loops) is edges

    def test_edges_die_with_their_tensor(self) -> None:
        pairs = PAIRS.clone()
        dead = [weakref.ref(edges_of(pairs, 5, 5, loops)) for loops in (False, True)]
        gc.collect()
        assert all(edges() is not None for edges in dead)
        del pairs
        gc.collect()
        assert all(edges() is None for edges in dead)

    def test_edges_of_an_edited_tensor_die(self) -> None:
        pairs = PAIRS.clone()
        old = weakref.ref(edges_of(pairs, 5, 5, False))
        pairs[0, 0] = 2
        edges_of(pairs, 5, 5, False)
        gc.collect()
        assert old() is None

    def test_attending_keeps_nothing_alive(self) -> None:
        x = torch.randn(5, 1, 2, requires_grad=True)
        pairs = PAIRS.clone()
        support = PendingEdges(pairs, 5, 5, True)
        attend(x, x, x, score=Dot(), support=support, dropout=0.5).output.sum().backward()
        edges, tensor = weakref.ref(support.resolve()), weakref.ref(pairs)
        del pairs, support
        gc.collect()
        assert edges() is None and tensor() is None

    def test_what_has_no_version_is_not_kept(self) -> None:
        with torch.inference_mode():
            pairs = PAIRS.clone()
            assert edges_of(pairs, 5, 5, False) is not edges_of(pairs, 5, 5, False)
            pairs[0, 0] = 4
            assert edges_of(pairs, 5, 5, False).edge_index[0, 0] == 4

    def test_a_failure_is_not_kept(self) -> None:
        pairs = PAIRS.clone()
        for _ in range(2):
            with pytest.raises(IndexError):
                edges_of(pairs, 3, 5, False)
        pairs.clamp_(max=2)
        assert edges_of(pairs, 3, 3, False).num_edges == 8

    @pytest.mark.parametrize("name", ["EdgeIndex by row", "COO", "CSR", "CSC"])
    def test_other_kinds_are_kept_too(self, name: str) -> None:
        given_as = FORMATS[name][0]
        assert edges_of(given_as, *SIZE, True) is edges_of(given_as, *SIZE, True)

    def test_an_edge_index_edited_in_place(self) -> None:
        edge_index = EdgeIndex(PAIRS.clone(), sparse_size=(5, 5), sort_order="col")
        edges_of(edge_index, 5, 5, False)
        edge_index.as_tensor()[0, 0] = 4
        assert edges_of(edge_index, 5, 5, False).edge_index[0, 0] == 4

    def test_threads_share_it(self) -> None:
        graphs = [PAIRS.roll(i, 1) for i in range(20)]
        start = threading.Barrier(8)

        def look_up() -> list[Edges]:
            start.wait()
            return [edges_of(pairs, 5, 5, True) for pairs in graphs for _ in range(3)]

        with ThreadPoolExecutor(8) as pool:
            found = [job.result() for job in [pool.submit(look_up) for _ in range(8)]]
        assert all(a is b for row in found for a, b in zip(row, found[0], strict=True))
        assert len({id(edges) for edges in found[0]}) == 20

    def test_the_owner_of_a_tensor_is_found_while_it_lives(self) -> None:
        edges = Edges.from_edge_index(PAIRS)
        assert owner_of(edges.pairs) is edges
        assert owner_of(PAIRS) is None
        tensor = edges.pairs
        del edges
        gc.collect()
        assert owner_of(tensor) is None


def test_edges_built_in_inference_mode_serve_training() -> None:
    pairs = PAIRS.clone()
    with torch.inference_mode():
        built = Edges.from_edge_index(pairs, 5, self_loops=True)
        from_inference = Edges.from_edge_index(PAIRS.clone(), 5).with_self_loops()
        pending = PendingEdges(pairs, 5, 5, True)
        x = torch.randn(5, 1, 2)
        for support in (built, pending):
            for normalizer in ({}, {"normalizer": Sparsemax()}):
                attend(x, x, x, score=Dot(), support=support, dropout=0.5, **normalizer)
    x = torch.randn(5, 1, 2, requires_grad=True)
    bias = torch.randn(pending.num_rows, 1, requires_grad=True)

    def outcome(support: Any, **given: Any) -> list[Tensor]:
        b = bias if isinstance(support, PendingEdges) else bias[: built.num_edges]
        output = attend(x, x, x, score=Dot(), support=support, bias=b, **given).output
        return [output, *torch.autograd.grad(output.square().sum(), (x, bias))]

    made = Edges.from_edge_index(PAIRS.clone(), 5, self_loops=True)
    anew = PendingEdges(PAIRS.clone(), 5, 5, True)
    for support, same in ((built, made), (from_inference, made), (pending, anew)):
        for normalizer in ({}, {"normalizer": Sparsemax()}):
            with backend("reference"):
                expected = outcome(same, **normalizer)
            torch.testing.assert_close(outcome(support, **normalizer), expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("self_loops", [False, True])
def test_copies_are_as_good(copied: Callable[[Edges], Edges], used: bool, self_loops: bool) -> None:
    edges = Edges.from_edge_index(PAIRS, SIZE, self_loops=self_loops)
    if used:
        assert_sorted(edges)
        edges.with_self_loops()
    twin = copied(edges)
    assert twin is not edges and twin.pairs is not edges.pairs
    assert torch.equal(twin.edge_index, edges.edge_index)
    assert torch.equal(twin.source_id, edges.source_id)
    assert torch.equal(twin.given.edge_index, edges.given.edge_index)
    assert owner_of(twin.pairs) is twin
    assert_sorted(twin)
    assert torch.equal(twin.with_self_loops().edge_index, edges.with_self_loops().edge_index)
    key = torch.randn(4, 1, 2)
    score = Additive(torch.ones(1, 2))
    outputs = [attend(None, key, key, score=score, support=e).output for e in (edges, twin)]
    torch.testing.assert_close(*outputs)


def test_moving() -> None:
    edges = Edges.from_edge_index(PAIRS, SIZE, self_loops=True)
    assert edges.to("cpu") is edges
    assert edges.by_query.order and edges.by_key.order
    moved = edges.to("meta")
    assert moved.device.type == "meta" and moved.given.device.type == "meta"
    assert (moved.num_keys, moved.num_queries, moved.num_edges) == (4, 5, edges.num_edges)
    tensors = [moved.source_id, *moved.by_query.order, *moved.by_key.order]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.with_self_loops() is moved


def allowed_by_hand(
    shape: tuple[int, ...], mask: Tensor | None, lengths: Tensor | None, causal: bool
) -> Tensor:
    """One pair at a time; `mask` has all dimensions already."""
    queries, keys = shape[-2:]
    allowed = torch.zeros(shape, dtype=torch.bool)
    for *batch, head, query, key in torch.ones(shape).nonzero().tolist():
        length = keys if lengths is None else int(lengths[tuple(batch)])
        last = keys if queries == keys else length  # where the last query stands
        yes = mask is None or bool(mask[(*batch, head, query, key)])
        yes &= key < length
        yes &= not causal or key - (last - 1) <= query - (queries - 1)
        allowed[(*batch, head, query, key)] = yes
    return allowed


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(2, 4), (3, 3), (4, 2), (1, 3), (2, 0), (0, 2)])
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_what_dense_allows(
    batch: tuple[int, ...], queries: int, keys: int, padded: bool, causal: bool
) -> None:
    heads = 2
    shape = (*batch, heads, queries, keys)
    lengths = torch.randint(0, keys + 1, batch, dtype=torch.int32) if padded else None
    masks = [None, torch.rand(queries, keys) < 0.5, torch.rand(shape) < 0.5]
    masks += [torch.rand(*batch, 1, 1, keys) < 0.5, torch.rand(*batch, heads, queries, 1) < 0.5]
    full = [mask if mask is None else mask.expand(shape) for mask in masks]
    if batch:  # one for all heads
        masks += [torch.rand(*batch, queries, keys) < 0.5, torch.rand(*batch, 1, keys) < 0.5]
        full += [mask.unsqueeze(-3).expand(shape) for mask in masks[-2:] if mask is not None]
    for mask, whole in zip(masks, full, strict=True):
        allowed = Dense(mask, lengths, causal).allowed(batch, heads, queries, keys)
        expected = allowed_by_hand(shape, whole, lengths, causal)
        in_order = causal and queries > 1  # one query stands at the last key
        assert allowed is not None or (mask is None and not padded and not in_order)
        assert torch.equal(torch.ones(shape).bool() if allowed is None else allowed.expand(shape),
                           expected)  # fmt: skip


def test_causal_order_is_made_where_the_scores_are() -> None:
    rows = Dense(causal=True).rows(torch.zeros(1, 3, 3, device="meta"), num_keys=3)
    assert rows.mask.device.type == "meta"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mask": torch.ones(4, 3)}, TypeError, "mask has dtype torch.float32.*True means.*bias="),
        ({"mask": torch.ones(4, 3).int()}, TypeError, "mask has dtype torch.int32; expected bool"),
        ({"lengths": torch.ones(2)}, TypeError, "lengths has dtype torch.float32.*integers"),
        ({"lengths": torch.ones(2).bool()}, TypeError, "lengths has dtype torch.bool"),
        ({"mask": torch.ones(3, 4).bool()}, ValueError, r"mask has shape \[3, 4\].*\[4, 3\]"),
        ({"mask": torch.ones(5, 4, 3).bool()}, ValueError, r"mask has shape \[5, 4, 3\]"),
        ({"mask": torch.ones(3).bool()}, ValueError, r"mask has shape \[3\]"),
        ({"mask": torch.ones(1, 2, 5, 4, 3).bool()}, ValueError, r"mask has shape \[1, 2, 5, 4"),
        ({"mask": torch.ones(2, 5, 4, 3).bool()}, ValueError, r"heads too \[2, 6, 4, 3\]"),
        ({"lengths": torch.tensor([1, 2, 3])}, ValueError, r"lengths has shape \[3\].*\[2\]"),
        ({"lengths": torch.tensor(2)}, ValueError, r"lengths has shape \[\]"),
        ({"lengths": torch.tensor([1, 4])}, ValueError, "lengths has the entry 4; expected 0 to 3"),
        ({"lengths": torch.tensor([-1, 3])}, ValueError, "lengths has the entry -1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("need_weights", [False, True])
def test_bad_masks_are_named(
    arguments: dict[str, Tensor], error: type[Exception], message: str, need_weights: bool
) -> None:
    query, key = torch.ones(2, 4, 6, 1), torch.ones(2, 3, 6, 1)
    with pytest.raises(error, match=message):
        support = Dense(**arguments)
        attend(query, key, key, score=ScaledDot(), support=support, need_weights=need_weights)


def test_a_mask_for_two_batch_dimensions_is_not_guessed() -> None:
    x = torch.ones(2, 3, 4, 3, 1)  # batch 2 × 3, and as many heads
    with pytest.raises(ValueError, match=r"mask has shape \[3, 4, 4\]"):
        attend(x, x, x, score=Dot(), support=Dense(torch.ones(3, 4, 4).bool()))


def test_a_sparse_matrix_must_be_resolved_first() -> None:
    x = torch.ones(5, 1, 1)
    pending = PendingEdges(coo(PAIRS, 5, 5), 5, 5)
    with pytest.raises(TypeError, match=r"edge_index is a sparse matrix.*resolve\(\)"):
        attend(x, x, x, score=Dot(), support=pending)
    expected = attend(x, x, x, score=Dot(), support=PendingEdges(PAIRS, 5, 5)).output
    torch.testing.assert_close(
        attend(x, x, x, score=Dot(), support=pending.resolve()).output, expected
    )


@pytest.mark.parametrize("using", ["auto", "torch", "reference"])
@pytest.mark.parametrize("queries", [2, 5, 7])
@pytest.mark.parametrize(
    "support",
    [
        lambda **given: Dense(causal=True, **given),
        lambda **given: Window(1, **given),
        lambda **given: Window(3, causal=True, **given),
        lambda **given: Window(2, dilation=2, **given),
    ],
)
@pytest.mark.parametrize("score", [ScaledDot(), Additive(torch.tensor([[0.3, -1.2, 0.5]]), "tanh")])
def test_the_last_query_stands_at_the_last_key_of_its_own_sequence(
    score, support, queries: int, using: str
) -> None:
    """As in a loop over sequences without padding; 5 queries of 5 keys are the same steps."""
    lengths = torch.tensor([5, 3, 1, 0])
    query, key = torch.randn(4, queries, 2, 3), torch.randn(4, 5, 2, 3)
    of_pairs = torch.randn(4, 2, queries, support().columns(5))
    with backend(using):
        found = attend(query, key, key, score=score, support=support(lengths=lengths)).output
        asked = attend(
            query, key, key, score=score, support=support(lengths=lengths), bias=of_pairs,
            need_weights=True,
        )  # fmt: skip
        for i, n in enumerate(lengths.tolist()):
            # Steps behind the last real one stand on, as padding of the query
            real = min(n, queries) if queries == 5 else queries
            if n == 0 or real == 0:
                assert not found[i].any() and not asked.output[i].any()
                continue
            one, keys = query[i, :real], key[i, :n]
            alone = attend(one, keys, keys, score=score, support=support()).output
            torch.testing.assert_close(found[i, :real], alone, rtol=1e-5, atol=1e-5)
            bias = of_pairs[i, :, :real]
            bias = bias[..., :n] if isinstance(support(), Dense) else bias
            alone = attend(
                one, keys, keys, score=score, support=support(), bias=bias, need_weights=True
            )
            torch.testing.assert_close(asked.output[i, :real], alone.output, rtol=1e-5, atol=1e-5)
            assert alone.weights is not None and asked.weights is not None
            weights = asked.weights[i, :, :real, : alone.weights.shape[-1]]
            torch.testing.assert_close(weights, alone.weights, rtol=1e-5, atol=1e-5)


def test_relative_positions_follow_each_sequences_own_last_key() -> None:
    lengths = torch.tensor([4, 2])
    dense = Dense(causal=True, lengths=lengths).relative_positions(2, 4)
    assert dense.tolist() == [[[-2, -1, 0, 1], [-3, -2, -1, 0]], [[0, 1, 2, 3], [-1, 0, 1, 2]]]
    window = Window(1, lengths=lengths).relative_positions(2, 4)
    assert window.tolist() == [[[-1, 0, 1]] * 2] * 2
    assert Dense(lengths=lengths).relative_positions(4, 4).shape == (4, 4)
