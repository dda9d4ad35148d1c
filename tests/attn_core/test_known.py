"""What is known of a caller's tensor never outlives what the tensor holds."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attn_core import Dot, Edges, PendingEdges, attend, clear_cache, compiled, scatter_softmax
from attn_core.graph.grouping import grouping_of
from attn_core.graph.known import _KNOWN, known, owner_of
from attn_core.supports.edges import edges_of

PAIRS = torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]])
needs_module = pytest.mark.skipif(
    compiled.module is None, reason="the compiled module has the checksum"
)


def through_numpy(pairs: Tensor) -> None:
    pairs.numpy()[0, 0] = 4


def through_data(pairs: Tensor) -> None:
    pairs.data[0, 0] = 4


def through_a_second_tensor(pairs: Tensor) -> None:
    torch.empty(0, dtype=pairs.dtype).set_(pairs.untyped_storage())[0] = 4  # type: ignore[call-overload]


def swapping_two(pairs: Tensor) -> None:
    pairs.numpy()[1, :2] = pairs.numpy()[1, 1::-1].copy()


def swapping_the_rows(pairs: Tensor) -> None:
    pairs.numpy()[:] = pairs.numpy()[::-1].copy()


EDITS = [
    through_numpy, through_data, through_a_second_tensor, swapping_two, swapping_the_rows,
]  # fmt: skip


@needs_module
class TestEditsThatTorchDoesNotCount:
    """NumPy arrays, `.data`, other tensors over the same memory: no version tells of them."""

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
    @pytest.mark.parametrize("edit", EDITS)
    def test_give_new_edges(self, edit: Callable[[Tensor], None], dtype: torch.dtype) -> None:
        pairs = PAIRS.to(dtype, copy=True)
        old, version = edges_of(pairs, 5, 5), pairs._version
        assert edges_of(pairs, 5, 5) is old
        edit(pairs)
        assert pairs._version == version
        assert torch.equal(edges_of(pairs, 5, 5).edge_index, pairs.long())

    @pytest.mark.parametrize("layout", ["by edge", "every seventh"])
    def test_are_seen_in_any_layout(self, layout: str) -> None:
        whole = torch.zeros(2, 40, dtype=torch.int64)
        pairs = {
            "by edge": whole.view(40, 2).t(),
            "every seventh": whole[:, ::7],
        }[layout]
        for i in range(pairs.shape[1]):
            before = edges_of(pairs, 5, 5)
            pairs.data[i % 2, i] = 3
            assert edges_of(pairs, 5, 5) is not before

    def test_any_number_of_a_large_graph(self) -> None:
        pairs = torch.randint(1000, (2, 150_001))
        array, before = pairs.numpy(), edges_of(pairs, 1000, 1000)
        for row, place in ((0, 0), (0, 65535), (0, 65536), (1, 77777), (1, 150_000)):
            array[row, place] ^= 1
            after = edges_of(pairs, 1000, 1000)
            assert after is not before and edges_of(pairs, 1000, 1000) is after
            before = after

    def test_are_checked_again(self) -> None:
        pairs = PAIRS.clone()
        x = torch.randn(5, 1, 2)
        support = PendingEdges(pairs, 5, 5)
        attend(x, x, x, score=Dot(), support=support)
        pairs.numpy()[0, 0] = 10**6
        with pytest.raises(IndexError, match="the node 1000000"):
            attend(x, x, x, score=Dot(), support=support)

    def test_of_any_index(self) -> None:
        scores, index = torch.zeros(4), torch.tensor([0, 0, 1, 1])
        scatter_softmax(scores, index, 2)
        index.numpy()[:] = [0, 1, 1, 1]
        assert scatter_softmax(scores, index, 2).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])

    @pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
    def test_of_the_indices_of_a_sparse_matrix(self, layout: torch.layout) -> None:
        matrix = torch.eye(3).to_sparse(layout=layout)
        before = edges_of(matrix, 3, 3).edge_index
        indices = {
            torch.sparse_coo: lambda: matrix._indices()[1],
            torch.sparse_csr: matrix.col_indices,
            torch.sparse_csc: matrix.row_indices,
        }[layout]()
        indices.copy_(indices.flip(0))  # counts as an edit of the indices alone
        after = edges_of(matrix, 3, 3).edge_index
        assert torch.equal(after[0], before[0].flip(0)) or torch.equal(after[1], before[1].flip(0))


def test_clear_cache_makes_anew_what_was_known() -> None:
    pairs = PAIRS.clone()
    before = edges_of(pairs, 5, 5)
    clear_cache()
    assert edges_of(pairs, 5, 5) is not before


def test_an_edit_between_forward_and_backward_differentiates_what_was_computed() -> None:
    x = torch.randn(5, 1, 2, requires_grad=True)
    gradients = []
    for edited in (False, True):
        pairs = PAIRS.clone()
        output = attend(x, x, x, score=Dot(), support=PendingEdges(pairs, 5, 5)).output
        if edited:
            pairs.numpy()[:] = 0
            clear_cache()
        gradients += torch.autograd.grad(output.square().sum(), x)
    assert torch.equal(*gradients)


def test_an_edit_that_torch_counts_between_forward_and_backward_raises() -> None:
    x, pairs = torch.randn(5, 1, 2, requires_grad=True), PAIRS.clone()
    output = attend(x, x, x, score=Dot(), support=PendingEdges(pairs, 5, 5)).output
    pairs[0, 0] = 4
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_the_last_two_sizes_are_kept() -> None:
    pairs = PAIRS.clone()
    found = [edges_of(pairs, n, n) for n in range(5, 105)]
    assert len(_KNOWN[pairs][1]) == 2
    assert edges_of(pairs, 104, 104) is found[-1] and edges_of(pairs, 103, 103) is found[-2]
    assert edges_of(pairs, 5, 5) is not found[0]
    for n in range(5, 105):
        grouping_of(pairs[1].clone(), n)
        edges_of(pairs, n, n, self_loops=True)
        known(pairs, ("another kind", n), lambda: None)
    kinds = [what[0] for what in _KNOWN[pairs][1]]
    assert len(kinds) == 6 and len(set(kinds)) == 3


def test_edges_of_a_callers_tensor_are_a_copy_that_no_look_up_finds() -> None:
    pairs = PAIRS.clone()
    small = edges_of(pairs, 5, 5)
    mine = Edges(pairs, 7, 6)
    assert owner_of(pairs) is None and owner_of(mine.pairs) is mine
    assert mine.pairs.data_ptr() != pairs.data_ptr()
    assert edges_of(pairs, 5, 5) is small
    assert edges_of(pairs, 7, 6) is not mine
    mine.pairs.fill_(0)  # against all advice
    assert torch.equal(edges_of(pairs, 7, 6).edge_index, PAIRS)
    with pytest.raises(IndexError, match="the node 4"):
        Edges(pairs, 4, 5)


def test_a_copy_of_edges_is_these_edges() -> None:
    edges = Edges(PAIRS.clone())
    other = copy.copy(edges)
    assert other is edges
    apart = [copy.deepcopy(edges), pickle.loads(pickle.dumps(edges))]
    assert all(owner_of(x.pairs) is x for x in apart)
    del other, apart
    gc.collect()
    assert owner_of(edges.pairs) is edges


@pytest.mark.parametrize("end", ["by_query", "by_key"])
@pytest.mark.parametrize("without_module", [False, True])
def test_edges_that_were_overwritten_are_not_counted(
    end: str, without_module: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without_module:
        monkeypatch.setattr(compiled, "wanted", False)
    for number in (10**9, -1):
        edges, _ = Edges(PAIRS.clone(), 5, 5).of_queries(torch.arange(5))  # not sorted yet
        edges.pairs.data.fill_(number)
        with pytest.raises(IndexError, match=f"the entry {number}"):
            _ = getattr(edges, end).order


def test_what_has_no_numbers_is_named() -> None:
    meta = PAIRS.to("meta")
    with pytest.raises(ValueError, match="edge_index is on the device meta"):
        Edges(meta)
    x = torch.randn(5, 1, 2)
    with pytest.raises(ValueError, match="edge_index is on meta"):
        attend(x, x, x, score=Dot(), support=PendingEdges(meta, 5, 5))
    shape = attend(*[x.to("meta")] * 3, score=Dot(), support=PendingEdges(meta, 5, 5)).output.shape
    assert shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_too_few(dtype: torch.dtype) -> None:
    x = torch.randn(5, 1, 2).to(dtype)
    with pytest.raises(TypeError, match="query has dtype"):
        attend(x, x, x, score=Dot(), support=Edges(PAIRS))
    with pytest.raises(TypeError, match="scores has dtype"):
        scatter_softmax(x[:, 0, 0], PAIRS[1, :5], 5)
    with pytest.raises(TypeError, match="edge_index has dtype"):
        Edges(x[:2, 0])
