"""Edges keep few bytes: pairs sorted in 32 bits, self-loops implied, the rest where it is asked."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attn_core import Additive, Dot, Edges, Separable, attend, backend, compiled
from attn_core.backends import cpu
from attn_core.graph.listing import Listing

needs_kernels = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")
SMALL, MANY = (7, 40), (5000, 200_000)  # the latter is sorted in ranges


def graph(nodes: int, edges: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(nodes, (2, edges), generator=generator)


def orders(edges: Edges) -> list[Tensor]:
    """All that there is to say of sorted pairs."""
    sides = [*edges.by_query.order, *edges.by_key.order]
    return [*sides, edges.by_query.columns, edges.by_key.columns, edges.pairs, edges.source_id]


def assert_same(found: Edges, expected: Edges) -> None:
    assert (found.num_keys, found.num_queries) == (expected.num_keys, expected.num_queries)
    for a, b in zip(orders(found), orders(expected), strict=True):
        assert torch.equal(a, b)
    assert found.adds_loops == expected.adds_loops
    assert torch.equal(found.given.edge_index, expected.given.edge_index)


def in_plain_torch(pairs: Tensor, size: tuple[int, int], self_loops: bool) -> Edges:
    with backend("torch"):
        return Edges.from_edge_index(pairs, size, self_loops=self_loops)


def bytes_of(edges: Edges) -> int:
    """The bytes of all tensors that Edges hold, each memory counted once."""
    gc.collect()
    seen: dict[int, int] = {}

    def look(x: Any, depth: int) -> None:
        if isinstance(x, Tensor):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        elif isinstance(x, (list, tuple)):
            for one in x:
                look(one, depth)
        elif isinstance(x, dict):
            for one in x.values():
                look(one, depth)
        elif depth and hasattr(x, "__dict__"):
            look(x.__dict__, depth - 1)

    look(edges, 3)
    return sum(seen.values())


# --- What is sorted ---


@needs_kernels
@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("size", [SMALL, MANY])
@pytest.mark.parametrize(
    "given",
    ["int64", "int32", "turned", "every second", "sorted", "duplicates", "a hub", "loops alone"],
)
def test_the_order_is_that_of_plain_torch(
    given: str, size: tuple[int, int], self_loops: bool
) -> None:
    nodes, edges = size
    pairs = graph(nodes, edges)
    if given == "int32":
        pairs = pairs.int()
    elif given == "turned":
        pairs = pairs.t().contiguous().t()
    elif given == "every second":
        pairs = pairs.repeat_interleave(2, 1)[:, ::2]
    elif given == "sorted":
        pairs = pairs[:, pairs[1].argsort(stable=True)]
    elif given == "duplicates":
        pairs = pairs[:, :9].repeat(1, edges // 9)
    elif given == "a hub":
        pairs[1, : edges // 2] = 3
    elif given == "loops alone":
        pairs[1] = pairs[0]
    expected = in_plain_torch(pairs, (nodes, nodes + 2), self_loops)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            for grad in (False, True):  # with gradients, both orders at once
                with torch.set_grad_enabled(grad):
                    found = Edges.from_edge_index(pairs, (nodes, nodes + 2), self_loops=self_loops)
                assert found.listing is not None and expected.listing is None
                assert_same(found, expected)
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("size", [(0, 0), (3, 0), (0, 3), (3, 5)])
@pytest.mark.parametrize("self_loops", [False, True])
def test_without_pairs(size: tuple[int, int], self_loops: bool) -> None:
    pairs = torch.zeros(2, 0, dtype=torch.int64)
    found = Edges.from_edge_index(pairs, size, self_loops=self_loops)
    assert_same(found, in_plain_torch(pairs, size, self_loops))
    assert found.num_edges == (min(size) if self_loops else 0)


@needs_kernels
@pytest.mark.parametrize("size", [SMALL, MANY])
@pytest.mark.parametrize("wrong", [-1, -(2**40), 2**31, 2**40])
def test_a_number_out_of_range_is_named_wherever_it_is(size: tuple[int, int], wrong: int) -> None:
    nodes, edges = size
    for row in (0, 1):
        pairs = graph(nodes, edges)
        pairs[row, edges - 2] = wrong
        with pytest.raises(IndexError, match=f"the node {wrong} in row {row}"):
            Edges.from_edge_index(pairs, (nodes, nodes))


# --- What is kept ---


@needs_kernels
@pytest.mark.parametrize("layer", ["gat", "gatv2", "dot"])
def test_a_layer_without_tensors_per_edge_keeps_at_most_20_bytes_of_each(layer: str) -> None:
    nodes, edges = 2_000, 20_000
    x = torch.randn(nodes, 4, 8, requires_grad=True)
    number = torch.randn(nodes, 4, 1)
    query, key, score = {
        "gat": (number, number, Separable()),
        "gatv2": (x, x, Additive(torch.randn(4, 8), "leaky_relu")),
        "dot": (x, x, Dot()),
    }[layer]  # type: ignore[misc]
    support = Edges.from_edge_index(graph(nodes, edges), (nodes, nodes), self_loops=True)
    for _ in range(2):
        attend(query, key, x, score=score, support=support, dropout=0.5).output.sum().backward()
    assert 16 * support.num_edges <= bytes_of(support) <= 20 * edges
    _ = support.pairs
    assert bytes_of(support) > 30 * edges  # so the count does see what is made


@needs_kernels
def test_without_gradients_one_order_is_kept() -> None:
    nodes, edges = 2_000, 20_000
    x = torch.randn(nodes, 1, 4)
    with torch.no_grad():
        support = Edges.from_edge_index(graph(nodes, edges), (nodes, nodes))
        attend(x, x, x, score=Dot(), support=support)
    assert bytes_of(support) == 8 * edges + 8 * (nodes + 1)


# --- CSR ---


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("self_loops", [False, True])
def test_a_matrix_of_compressed_rows(dtype: torch.dtype, self_loops: bool) -> None:
    pairs = graph(*SMALL)
    pairs = pairs[:, pairs[1].argsort(stable=True)]
    pointer = torch.tensor([int((pairs[1] < n).sum()) for n in range(9)]).to(dtype)
    found = Edges.from_csr(pointer, pairs[0].to(dtype), 7, self_loops=self_loops)
    assert_same(found, in_plain_torch(pairs, (7, 8), self_loops))


@needs_kernels
def test_columns_of_32_bits_are_read_where_they_lie(tmp_path: Path) -> None:
    columns = np.array([1, 0, 1], dtype=np.int32)
    np.save(tmp_path / "columns.npy", columns)
    mapped = np.load(tmp_path / "columns.npy", mmap_mode="c")
    edges = Edges.from_csr(np.array([0, 1, 3]), mapped)
    assert edges.by_query.columns.data_ptr() == mapped.ctypes.data
    x = torch.randn(2, 1, 4, requires_grad=True)
    out = attend(x, x, x, score=Dot(), support=edges).output
    expected = attend(x, x, x, score=Dot(), support=Edges(edges.edge_index, 2, 2)).output
    assert torch.equal(out, expected)
    mapped[0] = 7  # against all advice
    with pytest.raises(IndexError, match="by_query has an index out of range"):
        attend(x, x, x, score=Dot(), support=edges)


@pytest.mark.parametrize(
    ("pointer", "columns", "num_keys", "error", "message"),
    [
        ([0, 2, 1], [0], None, ValueError, "pointer of 3 entries does not rise from 0 to 1"),
        ([1, 1], [0], None, ValueError, "does not rise"),
        ([0, 2], [0], None, ValueError, "does not rise"),
        ([], [], None, ValueError, "pointer of 0 entries"),
        ([0, 1], [1], None, IndexError, "columns has the entry 1, but there are only 1 sources"),
        ([0, 1], [-1], 4, IndexError, "columns has the entry -1"),
        ([0, 1], [0.5], None, TypeError, "columns is torch.float32"),
        ([[0, 1]], [0], None, TypeError, r"pointer is torch.int64 of shape \[1, 2\]"),
    ],
)
def test_what_is_wrong_with_it_is_named(
    pointer: Any, columns: Any, num_keys: Any, error: type[Exception], message: str
) -> None:
    dtype = None if columns == [0.5] else torch.int64
    given = torch.tensor(pointer, dtype=torch.int64), torch.tensor(columns, dtype=dtype)
    with pytest.raises(error, match=message):
        Edges.from_csr(*given, num_keys)


# --- Files ---


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("made_by", ["auto", "torch"])
def test_what_is_saved_is_loaded(
    made_by: str, self_loops: bool, mapped: bool, tmp_path: Path
) -> None:
    with backend(made_by):
        edges = Edges.from_edge_index(graph(*SMALL), (7, 9), self_loops=self_loops)
    edges.save(tmp_path / "graphs" / "one")
    assert_same(Edges.load(tmp_path / "graphs" / "one", mapped=mapped), edges)
    assert [x.name for x in (tmp_path / "graphs").iterdir()] == ["one"]


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    Edges(graph(*SMALL), 7, 7).save(tmp_path / "edges")
    other = Edges(graph(5, 10), 5, 5)
    other.save(tmp_path / "edges")
    assert_same(Edges.load(tmp_path / "edges"), other)
    assert [x.name for x in tmp_path.iterdir()] == ["edges"]


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OSError):
        Edges(graph(*SMALL), 7, 7).save(tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert [x.name for x in tmp_path.iterdir()] == ["mine"]


def test_an_error_while_saving_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = Edges(graph(*SMALL), 7, 7)
    edges.save(tmp_path / "edges")

    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="no space left"):
        Edges(graph(5, 10), 5, 5).save(tmp_path / "edges")
    assert_same(Edges.load(tmp_path / "edges"), edges)
    assert [x.name for x in tmp_path.iterdir()] == ["edges"]


def test_files_that_do_not_fit_each_other_are_named(tmp_path: Path) -> None:
    Edges(graph(*SMALL), 7, 7).save(tmp_path / "edges")
    np.save(tmp_path / "edges" / "columns.npy", np.zeros(3, dtype=np.int32))
    with pytest.raises(ValueError, match="do not fit each other"):
        Edges.load(tmp_path / "edges")
    with pytest.raises(FileNotFoundError):
        Edges.load(tmp_path / "nothing")


# --- Copies, and other backends ---


@needs_kernels
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_serves_where_the_module_is_missing(
    copied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():  # so that the order by key is yet to be made
        edges = Edges.from_edge_index(graph(*SMALL), (7, 9), self_loops=True)
    expected = in_plain_torch(graph(*SMALL), (7, 9), True)
    x = torch.randn(7, 2, 4, requires_grad=True)
    query = torch.randn(9, 2, 4)
    attend(query, x, x, score=Dot(), support=edges).output.sum().backward()
    with torch.no_grad():
        edges = Edges.from_edge_index(graph(*SMALL), (7, 9), self_loops=True)
    monkeypatch.setattr(compiled, "module", None)
    twin = copied(edges)
    assert_same(twin, expected)
    other = x.detach().clone().requires_grad_()
    attend(query, other, other, score=Dot(), support=twin).output.sum().backward()
    torch.testing.assert_close(other.grad, x.grad)


@needs_kernels
def test_places_of_64_bits_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from attn_core.graph import listing

    narrow = Edges.from_edge_index(graph(*SMALL), (7, 7), self_loops=True)
    monkeypatch.setattr(listing, "_MOST", 20)  # nodes still fit, pairs do not
    with torch.no_grad():
        wide = Edges.from_edge_index(graph(*SMALL), (7, 7), self_loops=True)
    assert wide.listing is not None and wide.listing.by_query.places.dtype == torch.int64
    assert wide.listing.by_key.places.dtype == torch.int64
    assert_same(wide, narrow)
    x = torch.randn(7, 2, 4, requires_grad=True)
    seeded: list[Tensor] = []
    for edges in (narrow, wide):
        torch.manual_seed(3)
        out = attend(x, x, x, score=Dot(), support=edges, dropout=0.5).output
        seeded += [out, *torch.autograd.grad(out.square().sum(), x)]
    assert torch.equal(seeded[0], seeded[2]) and torch.equal(seeded[1], seeded[3])


@needs_kernels
def test_a_hub_of_100_000_edges() -> None:
    pairs = torch.stack([graph(1000, 100_000)[0], torch.full((100_000,), 5)])
    x = torch.randn(1000, 1, 4, dtype=torch.float64, requires_grad=True)
    found = []
    for name in ("auto", "torch"):
        with backend(name):
            out = attend(x, x, x, score=Dot(), support=Edges(pairs, 1000, 1000)).output
            found += [out, *torch.autograd.grad(out.square().sum(), x)]
    torch.testing.assert_close(found[:2], found[2:])


def test_what_a_listing_is_made_of_is_what_it_tells() -> None:
    listing = Listing.of(graph(*SMALL), (7, 7), True)
    if listing is None:
        pytest.skip("no compiled kernels")
    assert listing.num_pairs + len(listing.left_out[0] if listing.left_out else ()) == 47
