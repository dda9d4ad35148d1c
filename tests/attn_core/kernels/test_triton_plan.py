"""What a graph costs on a GPU: launches, levels of hubs, memory of parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import Additive, Dot, Edges, Entmax, Sparsemax, attend, backend, scatter_softmax
from attn_core.ops import edge_scores, edge_sums, segments
from attn_core.rows import EdgeRows

triton = pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")

import triton.language as tl  # noqa: E402

from attn_core.backends.triton import plan, run  # noqa: E402
from attn_core.backends.triton.pieces import heads_at, kernel  # noqa: E402
from attn_core.backends.triton.run import Laid  # noqa: E402

DOUBLE = torch.float64
Launches = Callable[[], AbstractContextManager["Counter[str]"]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hubs of a few edges are cut already, and their parts merged in two levels."""
    monkeypatch.setattr(plan, "CHUNK", 2)
    monkeypatch.setattr(run, "WINDOW", 4)
    monkeypatch.setattr(run, "_MOST_PARTS", 2)
    monkeypatch.setattr(edge_scores, "SMALL", 0)


def hubs(device: str, num_edges: int = 50) -> Tensor:
    """Edges of 6 nodes: most into 1, many into 3, and so from them; none into 5."""
    pairs = torch.randint(5, (2, num_edges))
    pairs[1, ::2], pairs[1, 1::6] = 1, 3
    pairs[0, ::3], pairs[0, 1::4] = 2, 4
    return pairs.to(device)


def leaf(*shape: int, device: str) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE).to(device).requires_grad_()


# --- Hubs ---


@pytest.mark.parametrize("score", ["dot", "tanh"])
def test_parts_are_merged_in_two_levels(score: str, device: str, launches: Launches) -> None:
    edges = Edges.from_edge_index(hubs(device), 6)
    query, key, value = (leaf(6, 2, 3, device=device) for _ in range(3))
    made: Any = Dot(0.5) if score == "dot" else Additive(leaf(2, 3, device=device), score)
    leaves = [query, key, value, *([] if score == "dot" else [made.vector])]

    def everything() -> list[Tensor]:
        result = attend(query, key, value, score=made, support=edges, need_log_sum_exp=True)
        lse = result.log_sum_exp
        assert lse is not None
        loss = result.output.cos().sum() + lse[lse.isfinite()].sin().sum()
        return [result.output, lse, *torch.autograd.grad(loss, leaves)]

    with launches() as found:
        ours = everything()
    # Output, query, key and value, and what the gradients of a row's logits sum to
    assert found["merge_windows"] == found["combine_rows"] == 5
    with backend("reference"):
        torch.testing.assert_close(ours, everything())


@pytest.mark.parametrize("what", ["sum", "max", "softmax"])
@pytest.mark.parametrize("columns", [1, 3])
def test_groups_are_merged_in_two_levels(
    what: str, columns: int, device: str, launches: Launches
) -> None:
    index = hubs(device)[1].contiguous()
    x = torch.randn(len(index), columns, dtype=DOUBLE, device=device)
    x[index.tolist().index(3), 0] = torch.nan
    rows = segments.Segments(index, 6)
    of_softmax = what == "softmax"
    ours = scatter_softmax(x, index, 6) if of_softmax else getattr(rows, what)(x)
    with backend("reference"):
        plain = EdgeRows(index, 6)
        expected = scatter_softmax(x, index, 6) if of_softmax else getattr(plain, what)(x)
    torch.testing.assert_close(ours, expected, equal_nan=True)
    assert ours.isnan().any()
    with launches() as found:
        segments.segment_sum._init_fn(x, index, 6)
    assert found["merge_windows"] == found["combine_rows"] == 1


@pytest.mark.parametrize("programs", [1, 2, 100])
def test_the_parts_of_a_vector_are_bounded(
    programs: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TILE", 16)
    monkeypatch.setattr(run, "MOST_BYTES", programs * 6 * 8)  # of 2 × 3 numbers in float64
    edges = Edges.from_edge_index(hubs(device), 6)
    query, key, vector = (leaf(*size, device=device) for size in ((6, 2, 3), (6, 2, 3), (2, 3)))
    rooms: list[Any] = []
    real = run.by_query

    class Spy:
        def __getitem__(self, grid: Any) -> Any:
            def launch(**given: Any) -> None:
                if given["part_vector"] is not None:  # else the sums of rows are looked at
                    rooms.append((len(given["part_vector"]), given["turns"]))
                real[grid](**given)

            return launch

    monkeypatch.setattr(run, "by_query", Spy())

    def gradient() -> Tensor:
        made = Additive(vector, "tanh")
        output = attend(query, key, key, score=made, support=edges).output
        return torch.autograd.grad(output.cos().sum(), vector)[0]

    found = gradient()
    ((room, turns),) = rooms
    items = len(plan.side_of(edges, "query").table)
    assert room <= programs and room * turns >= items / 2  # ROWS is 2
    with backend("reference"):
        torch.testing.assert_close(found, gradient())


# --- Launches ---


@pytest.mark.parametrize(("self_loops", "most"), [(False, 18), (True, 25)])
def test_a_new_graph_is_few_launches(
    self_loops: bool, most: int, device: str, launches: Launches
) -> None:
    """Checked, its self-loops replaced, sorted and planned both ways."""
    pairs = hubs(device)
    with launches() as found:
        edges = Edges.from_edge_index(pairs, 6, self_loops=self_loops)
        sides = [plan.side_of(edges, by) for by in ("query", "key")]
    assert sum(found.values()) <= most, found
    assert found["cut_rows"] == found["put_in_order"] == 2
    for items in sides:
        assert items.place.dtype == items.source.dtype == torch.int32
    assert edges.by_query.permutation.dtype == torch.int32  # nor is another order kept


def test_a_plan_that_was_made_for_sums_serves_edges(device: str) -> None:
    edges = Edges.from_edge_index(hubs(device), 6, self_loops=True)
    items = plan.items_of(edges.by_key)
    found = plan.side_of(edges, "key")
    assert found.table is items.table
    assert found.source.tolist() == edges.source_id[edges.by_key.permutation].tolist()


def test_sums_and_products_over_edges_are_few_launches(device: str, launches: Launches) -> None:
    edges = Edges.from_edge_index(hubs(device), 6)
    graph = edges.pairs, 6, 6
    value, weights = torch.randn(6, 2, 3, device=device), torch.rand(50, 2, device=device)
    pair = torch.randn(50, 2, 3, device=device)
    for by in ("query", "key"):
        plan.side_of(edges, by)
    for run_it in (
        lambda: edge_sums.edge_sum._init_fn(weights, value, pair, *graph, False),
        lambda: edge_sums.edge_sum._init_fn(weights, value, None, *graph, True),
        lambda: edge_sums.edge_dot._init_fn(value, value, pair, *graph),
        lambda: segments.segment_entmax._init_fn(weights, edges.pairs, 6, 1.5),
        lambda: segments.segment_entmax_backward._init_fn(weights, weights, edges.pairs, 6, 1.5),
        lambda: segments.segment_sum._init_fn(weights, edges.pairs, 6),
    ):
        with launches() as found:
            run_it()
        assert 0 < sum(found.values()) <= 3, found


@pytest.mark.parametrize("normalizer", [Sparsemax(), Entmax()])
def test_a_sparse_normaliser_is_few_launches(
    normalizer: Any, device: str, launches: Launches
) -> None:
    """Scores, weights and sums of a whole call, whatever the number of edges."""
    edges = Edges.from_edge_index(hubs(device), 6)
    x = torch.randn(6, 2, 3, device=device)
    for by in ("query", "key"):
        plan.side_of(edges, by)

    def call() -> Tensor:
        return attend(x, x, x, score=Dot(), normalizer=normalizer, support=edges).output

    with pytest.MonkeyPatch.context() as patch:  # the bodies of ops, which a mode cannot look into
        for module, name in (
            (edge_sums, "edge_sum"), (edge_sums, "edge_dot"), (segments, "segment_entmax"),
        ):  # fmt: skip
            patch.setattr(torch.ops.attn_core, name, getattr(module, name)._init_fn)
        with torch.no_grad(), launches() as found:
            call()
    assert found["score_rows"] == 1 and found["entmax_rows"] == 2 and found["by_query"] == 1
    assert sum(found.values()) <= 10, found


# --- Entmax ---


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_entmax_and_its_gradient(alpha: float, scale: float, device: str) -> None:
    index = hubs(device)[1].contiguous()
    x = (scale * torch.randn(50, 3, dtype=DOUBLE, device=device)).requires_grad_()
    grad = torch.randn(50, 3, dtype=DOUBLE, device=device)

    def everything() -> tuple[Tensor, Tensor]:
        weights = Entmax(alpha).segment(x, index, 6)
        return weights, torch.autograd.grad(weights, x, grad)[0]

    ours = everything()
    with backend("reference"):
        expected = everything()
    torch.testing.assert_close(ours, expected)
    totals = torch.zeros(6, 3, dtype=DOUBLE, device=device).index_add_(0, index, ours[0].detach())
    torch.testing.assert_close(totals[index], torch.ones_like(totals[index]))


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_entmax_of_what_is_not_a_number(alpha: float, device: str) -> None:
    index = torch.tensor([0, 0, 1, 1, 1, 2, 2, 4, 4], device=device)
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([1.0, nan, inf, 0.0, 1.0, -inf, -inf, -inf, 3.0], device=device)
    found = Entmax(alpha).segment(x[:, None], index, 5)[:, 0]
    expected = [nan] * 5 + [0.0, 0.0, 0.0, 1.0]
    torch.testing.assert_close(found, torch.tensor(expected, device=device), equal_nan=True)


def test_many_equal_scores_share_alike(device: str) -> None:
    """Where Newton's method begins farthest from its end."""
    num = 600 if device == "cpu" else 5000  # the interpreter is slow
    x = torch.zeros(num, 1, device=device)
    index = torch.zeros(num, dtype=torch.int64, device=device)
    for alpha in (1.5, 2.0):
        found = Entmax(alpha).segment(x, index, 1)
        torch.testing.assert_close(found, torch.full_like(x, 1 / num), rtol=1e-3, atol=0)


# --- What kernels are compiled for ---


@kernel
def _offsets(out, STRIDE, HEADS, BLOCK):  # type: ignore[no-untyped-def]
    head = heads_at(HEADS, BLOCK)
    first = tl.program_id(1).to(tl.int64) * BLOCK
    tl.store(out + first + tl.arange(0, BLOCK), head * STRIDE)


def test_strides_are_multiplied_in_64_bits(device: str) -> None:
    out = torch.zeros(8, dtype=torch.int64, device=device)
    _offsets[1, 2](out, STRIDE=2**30, HEADS=8, BLOCK=4)
    assert out.tolist() == [head * 2**30 for head in range(8)]


def test_no_constant_depends_on_the_number_of_nodes_or_edges(device: str) -> None:
    """Or a kernel would be compiled for each graph."""

    def constants(nodes: int, num_edges: int) -> dict[str, Any]:
        pairs = torch.stack([torch.arange(num_edges) % nodes] * 2).to(device)
        edges = Edges.from_edge_index(pairs, nodes)
        x = torch.randn(2, 3, nodes, device=device).permute(2, 0, 1)  # channels are far apart
        y = torch.randn(2, nodes, 3, device=device).transpose(0, 1)  # heads are
        bias = torch.randn(2, num_edges, device=device).T
        shared = torch.randn(nodes, 1, 3, device=device).expand(-1, 2, -1)
        settings: Any = "dot", 1.0, 0.0, None, None
        p = Laid.of(
            Laid(x, y, shared, None, bias, None, None, edges.pairs, nodes, nodes, False, *settings)
        )
        assert p.value.stride() == shared.stride()  # what is expanded is not copied
        return {**p.strides, **p.settings}

    assert constants(5, 11) == constants(8, 17)
