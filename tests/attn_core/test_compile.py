"""torch.compile: one graph, few recompilations, no sort of a graph already seen."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attn_core import (
    Additive,
    Cosine,
    Dense,
    Dot,
    Edges,
    General,
    PendingEdges,
    ScaledDot,
    Separable,
    Softmax,
    Sparsemax,
    attend,
    backend,
    clear_cache,
)
from attn_core.graph import grouping

HEADS, WIDTH = 2, 4


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    clear_cache()
    yield
    torch._dynamo.reset()


@pytest.fixture
def sorts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one entry with every sort of pairs."""
    seen: list[int] = []
    sort_pairs = grouping.sort_pairs

    def counted(nodes: Tensor, num: int, others: Tensor) -> Any:
        seen.append(num)
        return sort_pairs(nodes, num, others)

    monkeypatch.setattr(grouping, "sort_pairs", counted)
    return seen


def graph(nodes: int, edges: int) -> tuple[Tensor, Tensor]:
    """Node features and edges, of which none is a self-loop: their number is known."""
    x = torch.randn(nodes, HEADS, WIDTH, requires_grad=True)
    source = torch.randint(nodes, (edges,))
    return x, torch.stack([source, (source + torch.randint(1, nodes, (edges,))) % nodes])


def step(run: Callable[..., Tensor], x: Tensor, *rest: Any) -> list[Tensor]:
    """The output, and the gradient of a function of it."""
    output = run(x, *rest)
    return [output, torch.autograd.grad(output.square().sum(), x)[0]]


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="inductor needs a C++ compiler"
)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_graphs_of_different_sizes(backend: str, sorts: list[int]) -> None:
    """One graph without a break, and one more for sizes that vary; what is seen stays sorted."""
    vector = torch.randn(HEADS, WIDTH, requires_grad=True)

    def run(x: Tensor, edge_index: Tensor, edge_bias: Tensor) -> Tensor:
        nodes = x.shape[0]
        support = PendingEdges(edge_index, nodes, nodes, self_loops=True)
        bias = torch.cat([edge_bias, edge_bias.new_zeros(nodes, HEADS)])
        score = Additive(vector, "leaky_relu")
        return attend(x, x, x, score=score, support=support, bias=bias).output

    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    graphs = [graph(nodes=10 + i, edges=40 + 3 * i) for i in range(10)]
    graphs = [(*each, torch.randn(each[1].shape[1], HEADS)) for each in graphs]
    if backend == "inductor":  # it takes ten seconds for a graph, so that one serves all sizes
        for tensor, dim in zip(graphs[0], (0, 1, 0), strict=True):
            torch._dynamo.maybe_mark_dynamic(tensor, dim)
    for each in graphs:
        torch.testing.assert_close(step(compiled, *each), step(run, *each))
    assert counter.frame_count <= 2
    sorted_once = len(sorts)
    for each in graphs:
        step(compiled, *each)
    assert len(sorts) == sorted_once
    assert counter.frame_count <= 2

    x, edge_index, bias = graphs[0]
    before = step(compiled, x, edge_index, bias)
    edge_index[0] = (edge_index[0] + 1) % x.shape[0]  # edited in place: the new edges count
    after = step(compiled, x, edge_index, bias)
    torch.testing.assert_close(after, step(run, x, edge_index, bias))
    assert not torch.allclose(before[0], after[0])


def test_edges_in_place_of_an_edge_index(sorts: list[int]) -> None:
    def run(x: Tensor, edges: Edges) -> Tensor:
        return attend(x, x, x, score=ScaledDot(), support=edges).output

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    graphs = []
    for i in range(10):
        x, pairs = graph(10 + i, 40 + 3 * i)
        graphs.append((x, Edges.from_edge_index(pairs, x.shape[0], self_loops=True)))
    for each in graphs:
        torch.testing.assert_close(step(compiled, *each), step(run, *each))
    sorted_once = len(sorts)
    for each in graphs:
        step(compiled, *each)
    assert len(sorts) == sorted_once
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "view",
    [
        lambda pairs: pairs.t().contiguous().t(),
        lambda pairs: pairs[:, 5:],
        lambda pairs: pairs.int(),
    ],
)
def test_an_edge_index_of_any_layout(view: Callable[[Tensor], Tensor]) -> None:
    def run(x: Tensor, edge_index: Tensor) -> Tensor:
        support = PendingEdges(edge_index, x.shape[0], x.shape[0], True)
        return attend(x, x, x, score=Dot(), support=support).output

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    x, pairs = graph(10, 40)
    torch.testing.assert_close(step(compiled, x, view(pairs)), step(run, x, view(pairs)))


@pytest.mark.parametrize("form", ["pending", "edges"])
def test_dropout_trains(form: str) -> None:
    """A new mask for each call, the same one backward."""
    x, pairs = graph(10, 60)
    edges = Edges.from_edge_index(pairs, 10, self_loops=True)

    def run(x: Tensor, edge_index: Tensor) -> Tensor:
        support: Any = PendingEdges(edge_index, 10, 10, True) if form == "pending" else edges
        return attend(x, x, x, score=Separable(), support=support, dropout=0.5).output

    x = torch.randn(10, HEADS, 1, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    first, second = compiled(x, pairs), compiled(x, pairs)
    assert not torch.allclose(first, second)

    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return compiled(x, pairs)

    assert torch.equal(seeded(x), seeded(x))
    assert torch.autograd.gradcheck(seeded, x)


def test_autocast() -> None:
    weight = torch.randn(HEADS, WIDTH, WIDTH, requires_grad=True)
    projection = torch.randn(WIDTH, WIDTH)

    def run(x: Tensor, edge_index: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            support = PendingEdges(edge_index, 10, 10)
            return attend(x @ projection, x, x, score=General(weight), support=support).output

    x, pairs = graph(10, 40)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    ours, theirs = compiled(x, pairs), run(x, pairs)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    (gradient,) = torch.autograd.grad(ours.float().square().sum(), weight)
    expected = torch.autograd.grad(theirs.float().square().sum(), weight)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-2)


def test_dense_attention() -> None:
    def run(x: Tensor, lengths: Tensor) -> Tensor:
        fast = attend(
            x, x, x, score=ScaledDot(), support=Dense(lengths=lengths, causal=True)
        ).output
        slow = attend(x, x, x, score=Cosine(), support=Dense(causal=True)).output
        return fast + slow

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    for time in range(3, 13):
        x = torch.randn(4, time, HEADS, WIDTH, requires_grad=True)
        lengths = torch.tensor([0, time, 1, 2])
        torch.testing.assert_close(step(compiled, x, lengths), step(run, x, lengths))
    assert counter.frame_count <= 2


def test_the_reference_path_over_edges_is_correct() -> None:
    """In one graph if given Edges; a pending edge_index, which must be read, breaks it."""
    x, pairs = graph(10, 40)

    def of_edges(x: Tensor, edges: Edges) -> Tensor:
        return attend(x, x, x, score=Dot(), normalizer=Sparsemax(), support=edges).output

    def of_pairs(x: Tensor, edge_index: Tensor) -> Tensor:
        support = PendingEdges(edge_index, 10, 10, True)
        return attend(x, x, x, score=Dot(), normalizer=Softmax(0.5), support=support).output

    compiled = torch.compile(of_edges, backend="aot_eager", fullgraph=True)
    edges = Edges.from_edge_index(pairs, 10)
    torch.testing.assert_close(step(compiled, x, edges), step(of_edges, x, edges))
    compiled = torch.compile(of_pairs, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(step(compiled, x, pairs), step(of_pairs, x, pairs))
        pairs[0] = pairs[0].flip(0)


class TestWhoeverWatchesSeesTheOp:
    """Nobody does in most calls, which then go straight to what the op computes."""

    EDGES = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])

    def attend(self, x: Tensor) -> Tensor:
        support = PendingEdges(self.EDGES, 3, 3, self_loops=True)
        return attend(x, x, x, score=ScaledDot(), support=support).output

    def test_make_fx(self) -> None:
        x = torch.randn(3, HEADS, WIDTH, requires_grad=True)
        traced = make_fx(lambda x: self.attend(x))(x)
        targets = [node.target for node in traced.graph.nodes]
        assert torch.ops.attn_core.edge_attention.default in targets
        torch.testing.assert_close(traced(2 * x), self.attend(2 * x))

    @pytest.mark.filterwarnings("ignore:.*torch.jit")
    def test_jit_trace(self) -> None:
        traced = torch.jit.trace(self.attend, (torch.randn(3, HEADS, WIDTH),))
        x = torch.randn(3, HEADS, WIDTH)
        torch.testing.assert_close(traced(x), self.attend(x))

    def test_fake_tensors(self) -> None:
        with FakeTensorMode(allow_non_fake_inputs=True):
            found = self.attend(torch.empty(3, HEADS, WIDTH))
        assert isinstance(found, FakeTensor) and found.shape == (3, HEADS, WIDTH)

    def test_subclasses(self) -> None:
        class Marked(Tensor):
            pass

        assert type(self.attend(torch.randn(3, HEADS, WIDTH).as_subclass(Marked))) is Marked

    def test_the_straight_way_keeps_what_the_op_promises(self) -> None:
        x = torch.randn(3, HEADS, WIDTH, requires_grad=True)

        def second_derivative() -> Tensor:
            (grad,) = torch.autograd.grad(self.attend(x).sin().sum(), x, create_graph=True)
            return torch.autograd.grad(grad.square().sum(), x)[0]

        with backend("reference"):
            expected = second_derivative()
        torch.testing.assert_close(second_derivative(), expected)
        out = self.attend(x)
        with torch.no_grad():
            x.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
        with torch.inference_mode():
            assert not self.attend(x).requires_grad


def test_export() -> None:
    """The exported program serves graphs of other sizes."""

    class Layer(torch.nn.Module):
        def forward(self, x: Tensor, edge_index: Tensor, bias: Tensor) -> Tensor:
            support = PendingEdges(edge_index, x.shape[0], x.shape[0])
            return attend(x, x, x, score=Dot(), support=support, bias=bias).output

    def inputs(nodes: int, edges: int) -> tuple[Tensor, Tensor, Tensor]:
        x, pairs = graph(nodes, edges)
        return x.detach(), pairs, torch.randn(edges, HEADS)

    nodes, edges = torch.export.Dim("nodes"), torch.export.Dim("edges")
    shapes = ({0: nodes}, {1: edges}, {0: edges})
    program = torch.export.export(Layer(), inputs(10, 40), dynamic_shapes=shapes).module()
    other = inputs(7, 50)
    torch.testing.assert_close(program(*other), Layer()(*other))


OPS = (
    "edge_attention", "edge_attention_backward", "edge_scores", "edge_scores_backward", "edge_sum",
    "edge_dot", "segment_sum", "segment_gather", "segment_max", "segment_softmax",
    "segment_softmax_backward", "segment_entmax", "segment_entmax_backward",
)  # fmt: skip


@pytest.mark.parametrize("op", OPS)
def test_what_looks_edges_up_stays_out_of_cuda_graphs(op: str) -> None:
    """A graph would replay the edges it was captured with."""
    unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)
    if unsafe is None:
        pytest.skip("this torch has no such tag")
    assert unsafe in getattr(torch.ops.attn_core, op).default.tags


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", ["scaled_dot", "separable"])
def test_no_warning_comes_out_of_traced_code(name: str) -> None:
    scores = {
        "scaled_dot": ScaledDot(),
        "separable": Separable(*torch.randn(2, HEADS, WIDTH), "leaky_relu"),
    }
    x, edge_index = graph(20, 40)

    def run(x: Tensor, edge_index: Tensor) -> Tensor:
        return attend(x, x, x, score=scores[name], support=PendingEdges(edge_index, 20, 20)).output

    torch.testing.assert_close(
        torch.compile(run, backend="eager", fullgraph=True)(x, edge_index), run(x, edge_index)
    )
