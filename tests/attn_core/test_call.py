"""One call of attend: heads that share keys, the log-sum-exp, what is kept, what compiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import (
    Additive,
    Concat,
    Dense,
    Dot,
    Edges,
    Entmax,
    Hard,
    Identity,
    PendingEdges,
    ScaledDot,
    Score,
    Separable,
    Softmax,
    Sparsemax,
    Window,
    attend,
    backend,
)

N, E, D = 7, 24, 4
EDGES = torch.randint(0, N, (2, E), generator=torch.Generator().manual_seed(1))
VECTOR = torch.linspace(-1, 1, 4 * D).view(4, D).double()


@dataclasses.dataclass(frozen=True, eq=False)
class Distance(Score):
    """A score of one's own."""

    width: Tensor

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        assert query is not None
        return -(query - key).square().sum(-1) * self.width


SUPPORTS: dict[str, Any] = {
    "Dense": lambda edge_index: Dense(),
    "causal": lambda edge_index: Dense(causal=True),
    "Window": lambda edge_index: Window(2),
    "Edges": lambda edge_index: Edges.from_edge_index(EDGES, N),
    "PendingEdges": lambda edge_index: PendingEdges(edge_index, N, N),
    "self-loops": lambda edge_index: PendingEdges(edge_index, N, N, self_loops=True),
}


def tokens(heads: int, support: str) -> Tensor:
    batch = () if "dges" in support or support == "self-loops" else (2,)
    return torch.randn(*batch, N, heads, D, dtype=torch.float64).requires_grad_()


OF_HEADS = Separable(VECTOR, VECTOR), Concat(torch.randn(4, D, 2 * D).double(), VECTOR)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize(
    "score", [ScaledDot(), Additive(VECTOR), Distance(torch.ones(4)), *OF_HEADS]
)
@pytest.mark.parametrize("groups", [(2, 2), (1, 4), (2, 4)])
def test_heads_that_share_a_key_attend_as_if_each_had_its_own(
    support: str, score: Score, groups: tuple[int, int]
) -> None:
    query = tokens(4, support)
    key, value = (tokens(heads, support) for heads in groups)
    for need_weights in (False, True):
        found = attend(
            query, key, value, score=score, support=SUPPORTS[support](EDGES),
            need_weights=need_weights,
        )  # fmt: skip
        own = (x.repeat_interleave(4 // x.shape[-2], dim=-2) for x in (key, value))
        with backend("reference"):
            expected = attend(query, *own, score=score, support=SUPPORTS[support](EDGES))
        torch.testing.assert_close(found.output, expected.output)
        leaves = query, key, value
        torch.testing.assert_close(
            torch.autograd.grad(found.output.square().sum(), leaves),
            torch.autograd.grad(expected.output.square().sum(), leaves),
        )


def test_heads_that_do_not_divide_those_of_the_query_are_refused() -> None:
    with pytest.raises(ValueError, match=r"key has 3 heads, but query has 4.*divides"):
        attend(tokens(4, "Dense"), *(tokens(3, "Dense"),) * 2, score=Dot(), support=Dense())
    with pytest.raises(ValueError, match="query has 2 heads, but key has 4"):
        attend(tokens(2, "Dense"), *(tokens(4, "Dense"),) * 2, score=Dot(), support=Dense())


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("score", [ScaledDot(), Additive(VECTOR), Distance(torch.ones(4))])
@pytest.mark.parametrize("temperature", [1.0, 0.5, torch.tensor(2.0).double()])
def test_the_log_sum_exp_can_be_asked_for_over_every_support(
    support: str, score: Score, temperature: Any
) -> None:
    x = tokens(4, support)
    given: dict[str, Any] = {"score": score, "normalizer": Softmax(temperature)}
    found = []
    for name in ("auto", "torch", "reference"):
        with backend(name):
            result = attend(
                x, x, x, **given, support=SUPPORTS[support](EDGES), need_log_sum_exp=True
            ).log_sum_exp
        assert result is not None
        finite = torch.where(result.isfinite(), result, 0)
        found.append((result, *torch.autograd.grad(finite.sin().sum(), x)))
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[2])


def test_nobody_keeps_a_log_sum_exp_that_nobody_asked_for() -> None:
    """Nor the scores of all pairs for the gradient of a temperature, which scales the query."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.numel() * x.element_size()
        return x

    query, key = (torch.randn(32, 200, 1, 64, requires_grad=True) for _ in range(2))
    temperature = torch.tensor(0.1, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        attend(
            query, key, key, score=ScaledDot(), normalizer=Softmax(temperature), support=Dense()
        ).output.sum()
    assert sum(kept.values()) <= 13 * 2**20


CASES = [  # pairwise: each normaliser over each support, each score, with and without weights
    ("Dense", Softmax(), "user", True),
    ("Dense", Entmax(1.3), "dot", False),
    ("causal", Sparsemax(), "additive", True),
    ("causal", Hard(), "dot", True),
    ("Window", Softmax(torch.tensor(0.5).double()), "user", False),
    ("Window", Sparsemax(), "dot", True),
    ("Edges", Softmax(0.5), "additive", True),
    ("Edges", Entmax(), "user", False),
    ("Edges", Entmax(torch.full((4,), 1.2).double()), "dot", True),
    ("PendingEdges", Softmax(), "dot", True),
    ("PendingEdges", Sparsemax(), "user", True),
    ("PendingEdges", Softmax(torch.tensor(0.5).double()), "additive", False),
    ("self-loops", Softmax(), "user", False),
    ("self-loops", Entmax(), "dot", False),
    ("self-loops", Identity(), "additive", False),
    ("self-loops", Softmax(0.5), "dot", True),
]


@pytest.mark.parametrize(("support", "normalizer", "score", "need_weights"), CASES)
def test_every_part_compiles_as_one_graph(
    support: str, normalizer: Any, score: str, need_weights: bool
) -> None:
    scores = {"dot": ScaledDot(), "additive": Additive(VECTOR), "user": Distance(torch.ones(4))}
    x = tokens(4, support)

    def run(x: Tensor, edge_index: Tensor) -> tuple[Tensor, ...]:
        result = attend(
            x, x, x, score=scores[score], normalizer=normalizer,
            support=SUPPORTS[support](edge_index), need_weights=need_weights,
        )  # fmt: skip
        return tuple(part for part in result if part is not None)

    torch._dynamo.reset()
    if support == "Edges":  # which are built outside
        edges = Edges.from_edge_index(EDGES, N)
        support_of, SUPPORTS["Edges"] = SUPPORTS["Edges"], lambda _: edges
    expected = run(x, EDGES)
    # How many weights there are with self-loops depends on the data
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        found = torch.compile(run, fullgraph=True, backend="aot_eager")(x, EDGES)
    if support == "Edges":
        SUPPORTS["Edges"] = support_of
    torch.testing.assert_close(found, expected)
    if not isinstance(normalizer, Hard):
        gradients = [torch.autograd.grad(out[0].square().sum(), x)[0] for out in (found, expected)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("support", ["Dense", "causal", "Window"])
def test_two_graphs_serve_every_batch_and_length(support: str) -> None:
    """One for the first sizes, and one for all others."""
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    def run(x: Tensor) -> Tensor:
        return attend(x, x, x, score=ScaledDot(), support=SUPPORTS[support](EDGES)).output

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=count)
    for batch, length in ((2, 100), (3, 130), (4, 160), (5, 145), (6, 170), (7, 111)):
        x = torch.randn(batch, length, 2, 4)
        torch.testing.assert_close(compiled(x), run(x))
    assert len(graphs) <= 2
