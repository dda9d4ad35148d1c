"""attend(): the same pairs give the same attention, however they are written down."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from attn_core import (
    Additive,
    Attended,
    Concat,
    Cosine,
    Dense,
    Dot,
    Edges,
    Entmax,
    General,
    Identity,
    Location,
    Normalizer,
    PendingEdges,
    ScaledDot,
    Score,
    Separable,
    Softmax,
    Sparsemax,
    Trilinear,
    attend,
    backend,
    weights,
)

INF = math.inf
DOUBLE = torch.float64
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def randn(*shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


# A score, given its parameters; and the shapes of these, of the query and of the key, which name
# H heads, D channels, C other channels and A hidden ones.
SCORES: dict[str, tuple[Callable[..., Score], list[str], str, str]] = {
    "dot": (lambda: Dot(0.6), [], "D", "D"),
    "scaled dot": (ScaledDot, [], "D", "D"),
    "cosine": (Cosine, [], "D", "D"),
    "general": (General, ["HCD"], "C", "D"),
    "concat": (Concat, ["HAS", "HA"], "C", "D"),
    "additive": (Additive, ["HD"], "D", "D"),
    "additive of ones": (lambda: Additive(activation="relu"), [], "D", "D"),
    "gatv2": (lambda v: Additive(v, "leaky_relu"), ["HD"], "D", "D"),
    "sigmoid": (lambda v: Additive(v, torch.sigmoid), ["HD"], "D", "D"),
    "gat": (Separable, ["HC", "HD"], "C", "D"),
    "trilinear": (Trilinear, ["HD", "HD", "HD"], "D", "D"),
    "gat, identity": (lambda a, b: Separable(a, b, "identity"), ["HC", "HD"], "C", "D"),
}
# A normaliser, given its parameters, and how many it has per head
NORMALIZERS: dict[str, tuple[Callable[..., Normalizer], bool]] = {
    "softmax": (Softmax, False),
    "cooled": (lambda: Softmax(0.5), False),
    "temperature": (Softmax, True),
    "sparsemax": (Sparsemax, False),
    "entmax 1.5": (Entmax, False),
    "alpha": (Entmax, True),
    "identity": (Identity, False),
}
each_score = pytest.mark.parametrize("score", SCORES)
each_normalizer = pytest.mark.parametrize("normalizer", NORMALIZERS)


@dataclass
class Problem:
    """Queries and keys, which of their pairs exist, and everything that attention may take."""

    leaves: dict[str, Tensor]
    build: Callable[[dict[str, Tensor]], tuple[Score, Normalizer]]
    mask: Tensor  # [Nq, Nk]
    pairs: Tensor  # [2, E], the same, in no order

    def dense(self, **changes: Any) -> dict[str, Tensor]:
        """All tensors that gradients are asked of, and the weights as `[H, Nq, Nk]`."""
        return self._run(Dense(self.mask), self.leaves, lambda w: w, **changes)

    def edges(self, pairs: Tensor | None = None, **changes: Any) -> dict[str, Tensor]:
        pairs = self.pairs if pairs is None else pairs
        key, query = pairs
        leaves = dict(self.leaves)
        if "bias" in leaves:
            leaves["bias"] = leaves["bias"][:, query, key].T
        for name in ("pair_key", "pair_value"):
            if name in leaves:
                leaves[name] = leaves[name][query, key]
        support = Edges.from_edge_index(pairs, tuple(self.mask.shape[::-1]))

        def as_dense(weights: Tensor) -> Tensor:
            dense = weights.new_zeros(*self.mask.shape, weights.shape[1])
            return dense.index_put((query, key), weights).movedim(-1, 0)

        return self._run(support, leaves, as_dense, **changes)

    def _run(
        self,
        support: Any,
        tensors: dict[str, Tensor],
        as_dense: Callable[[Tensor], Tensor],
        need_weights: bool = True,
        using: str = "auto",
    ) -> dict[str, Tensor]:
        score, normalizer = self.build(tensors)
        arguments = {n: tensors.get(n) for n in ("query", "key", "value", "bias", *PAIR_TENSORS)}
        arguments |= {"score": score, "normalizer": normalizer, "support": support}
        with backend(using):
            result = attend(**arguments, need_weights=need_weights, need_log_sum_exp=need_weights)
        if not need_weights:
            return results(Attended(result.output, None, None), self.leaves)
        lse = result.log_sum_exp
        lse = lse.T if lse is not None and isinstance(support, Edges) else lse  # [H, Nq]
        return results(Attended(result.output, as_dense(result.weights), lse), self.leaves)


PAIR_TENSORS = ("pair_key", "pair_value")


def results(result: Attended, leaves: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """What came out, and the gradients of a random function of it."""
    generator = torch.Generator().manual_seed(seed)
    out = {n: x for n, x in result._asdict().items() if x is not None}
    loss = torch.zeros((), dtype=DOUBLE)
    for x in out.values():
        direction = torch.randn(x.shape, generator=generator, dtype=DOUBLE)
        loss = loss + (torch.where(x.isfinite(), x, 0) * direction).sum()
    wanted = [x for x in leaves.values() if x.requires_grad]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    names = [n for n, x in leaves.items() if x.requires_grad]
    return out | {f"gradient of {n}": g for n, g in zip(names, gradients, strict=True)}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@st.composite
def problems(draw: Any, score: str, normalizer: str, pair_tensors: bool = True) -> Problem:
    queries, keys = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    heads, dk = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    size = {"H": heads, "D": dk, "C": draw(st.integers(1, 3)), "A": 2}
    size["S"] = size["C"] + size["D"]
    density = draw(st.sampled_from([0.2, 0.7, 1.0]))
    build_score, of_score, for_query, for_key = SCORES[score]
    build_normalizer, learned = NORMALIZERS[normalizer]
    leaves = {
        "query": randn(queries, heads, size[for_query]),
        "key": randn(keys, heads, size[for_key]),
        "value": randn(keys, heads, draw(st.integers(1, 3))),
    }
    for number, shape in enumerate(of_score):
        leaves[f"parameter {number}"] = randn(*(size[letter] for letter in shape))
    if learned:
        leaves["per head"] = torch.tensor([1.4, 2.2, 1.7], dtype=DOUBLE)[:heads]
    if draw(st.booleans()):
        leaves["bias"] = randn(heads, queries, keys)
    for name in PAIR_TENSORS:
        if pair_tensors and draw(st.booleans()):
            width = leaves["key" if name == "pair_key" else "value"].shape[-1]
            leaves[name] = randn(queries, keys, heads, width)

    def build(leaves: dict[str, Tensor]) -> tuple[Score, Normalizer]:
        parameters = [leaves[f"parameter {number}"] for number in range(len(of_score))]
        per_head = [leaves["per head"]] if learned else []
        return build_score(*parameters), build_normalizer(*per_head)

    mask = torch.rand(queries, keys) < density
    pairs = mask.nonzero().T.flip(0)
    pairs = pairs[:, torch.randperm(pairs.shape[1])].contiguous()
    return Problem({n: x.requires_grad_() for n, x in leaves.items()}, build, mask, pairs)


@pytest.mark.parametrize("using", ["auto", "reference"])
@settings(max_examples=10)
@given(problems("additive", "cooled"))
def test_attention_is_what_it_is_defined_to_be(using: str, problem: Problem) -> None:
    """One query, one head and one pair at a time."""
    leaves = {n: x.detach() for n, x in problem.leaves.items()}
    vector, num_queries, heads = leaves["parameter 0"], *leaves["query"].shape[:2]
    output = torch.zeros(num_queries, heads, leaves["value"].shape[-1], dtype=DOUBLE)
    for i, h in itertools.product(range(num_queries), range(heads)):
        exponentials, values = [], []
        for j in problem.mask[i].nonzero().flatten().tolist():
            key, value, score = leaves["key"][j, h], leaves["value"][j, h], 0.0
            if "pair_key" in leaves:
                key = key + leaves["pair_key"][i, j, h]
            if "pair_value" in leaves:
                value = value + leaves["pair_value"][i, j, h]
            if "bias" in leaves:
                score = float(leaves["bias"][h, i, j])
            score += float(vector[h] @ torch.tanh(leaves["query"][i, h] + key))
            exponentials.append(math.exp(score / 0.5))
            values.append(value)
        for exponential, value in zip(exponentials, values, strict=True):
            output[i, h] += exponential / sum(exponentials) * value
    for form in (problem.edges, problem.dense):
        torch.testing.assert_close(form(using=using)["output"], output)


@each_score
@each_normalizer
def test_edges_are_dense_attention_with_a_mask(score: str, normalizer: str) -> None:
    """A complete graph is attention without one; forward and all gradients."""

    @settings(max_examples=6)
    @given(problems(score, normalizer))
    def check(problem: Problem) -> None:
        assert_same(problem.edges(), problem.dense())
        assert_same(problem.edges(need_weights=False), problem.dense(need_weights=False))

    check()


@each_score
@pytest.mark.parametrize("normalizer", ["softmax", "cooled", "alpha"])
def test_the_fast_paths_compute_what_the_reference_defines(score: str, normalizer: str) -> None:
    @settings(max_examples=6)
    @given(problems(score, normalizer), st.booleans())
    def check(problem: Problem, need_weights: bool) -> None:
        for form in (problem.dense, problem.edges):
            fast = form(need_weights=need_weights)
            assert_same(fast, form(need_weights=need_weights, using="reference"))

    check()


@each_score
@each_normalizer
def test_a_padded_batch_is_the_union_of_its_graphs(score: str, normalizer: str) -> None:
    @settings(max_examples=3)
    @given(problems(score, normalizer, pair_tensors=False), st.lists(st.integers(0, 3), min_size=1))
    def check(problem: Problem, lengths: list[int]) -> None:
        leaves, longest = problem.leaves, max(lengths)
        heads = leaves["key"].shape[1]
        union = {}  # the tokens of all graphs, one after the other
        for name in ("query", "key", "value"):
            union[name] = randn(sum(lengths), heads, leaves[name].shape[-1]).requires_grad_()
        real = torch.arange(longest) < torch.tensor(lengths)[:, None]
        padded = {}
        for name, tensor in union.items():
            rows = randn(len(lengths), longest, *tensor.shape[1:]) * 100  # what padding holds
            padded[name] = rows.index_put(tuple(real.nonzero().T), tensor)
        graph = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        pairs = (graph[:, None] == graph).nonzero().T.flip(0)

        parameters = {n: x for n, x in leaves.items() if n not in union and n != "bias"}
        of_score, of_normalizer = problem.build(leaves)
        arguments = {"score": of_score, "normalizer": of_normalizer, "need_weights": True}
        arguments["need_log_sum_exp"] = True
        by_edges = attend(**union, **arguments, support=Edges.from_edge_index(pairs, len(graph)))
        arguments |= {"support": Dense(lengths=torch.tensor(lengths))}
        by_batch = attend(**padded, **arguments)
        assert by_batch.weights is not None
        dense = by_batch.weights.movedim(1, -1)[real]  # [N, Tk, H]
        position = torch.cat([torch.arange(length) for length in lengths])
        lse = by_batch.log_sum_exp
        by_batch = Attended(
            by_batch.output[real],
            dense[pairs[1], position[pairs[0]]],
            None if lse is None else lse.movedim(1, -1)[real],
        )
        everything = union | parameters
        assert_same(results(by_edges, everything), results(by_batch, everything))

    check()


@each_score
@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax", "alpha"])
def test_the_order_of_edges_does_not_matter(score: str, normalizer: str) -> None:
    @settings(max_examples=4)
    @given(problems(score, normalizer))
    def check(problem: Problem) -> None:
        shuffled = problem.pairs[:, torch.randperm(problem.pairs.shape[1])]
        assert_same(problem.edges(shuffled), problem.edges())

    check()


@each_score
@pytest.mark.parametrize("normalizer", ["softmax", "entmax 1.5"])
def test_relabelled_nodes_and_moved_keys_carry_their_attention_along(
    score: str, normalizer: str
) -> None:
    @settings(max_examples=4)
    @given(problems(score, normalizer))
    def check(problem: Problem) -> None:
        queries, keys = (torch.randperm(num) for num in problem.mask.shape)
        leaves = {}
        for name, tensor in problem.leaves.items():
            tensor = tensor.detach()
            if name == "query":
                tensor = tensor[queries]
            elif name in ("key", "value"):
                tensor = tensor[keys]
            elif name == "bias":
                tensor = tensor[:, queries][:, :, keys]
            elif name in PAIR_TENSORS:
                tensor = tensor[queries][:, keys]
            leaves[name] = tensor.clone().requires_grad_()
        pairs = torch.stack([keys.argsort()[problem.pairs[0]], queries.argsort()[problem.pairs[1]]])
        mask = problem.mask[queries][:, keys]
        moved = Problem(leaves, problem.build, mask, pairs)
        for form in ("edges", "dense"):
            before, after = getattr(problem, form)(), getattr(moved, form)()
            torch.testing.assert_close(after["output"], before["output"][queries])
            torch.testing.assert_close(after["weights"], before["weights"][:, queries][:, :, keys])

    check()


@each_score
@pytest.mark.parametrize("normalizer", ["softmax", "sparsemax"])
@pytest.mark.parametrize("self_loops", [False, True])
def test_pending_edges_are_the_edges_they_stand_for(
    score: str, normalizer: str, self_loops: bool
) -> None:
    """Also with duplicates; what is given per pair: a row per column, then one per self-loop."""

    @settings(max_examples=4)
    @given(problems(score, normalizer), st.integers(0, 10), st.sampled_from([0.0, 0.5]))
    def check(problem: Problem, edges: int, dropout: float) -> None:
        queries, keys = problem.mask.shape
        edges = edges if queries and keys else 0
        pairs = torch.stack([torch.randint(max(n, 1), (edges,)) for n in (keys, queries)])
        pending = PendingEdges(pairs, keys, queries, self_loops)
        resolved = Edges.from_edge_index(pairs, (keys, queries), self_loops=self_loops)
        heads = problem.leaves["key"].shape[1]
        leaves = {n: x for n, x in problem.leaves.items() if n not in ("bias", *PAIR_TENSORS)}
        for name in ("bias", *PAIR_TENSORS):
            if name in problem.leaves:
                width = problem.leaves[name].shape[3:]
                leaves[name] = randn(pending.num_rows, heads, *width).requires_grad_()
        of_score, of_normalizer = problem.build(leaves)
        found = []
        for support, using in itertools.product((pending, resolved), ("auto", "reference")):
            tensors = {
                n: leaves[n][resolved.source_id]
                if n in ("bias", *PAIR_TENSORS) and support is resolved and n in leaves
                else leaves.get(n)
                for n in ("query", "key", "value", "bias", *PAIR_TENSORS)
            }
            torch.manual_seed(5)
            with backend(using):
                result = attend(
                    **tensors, score=of_score, normalizer=of_normalizer, support=support,
                    dropout=dropout, need_weights=True, need_log_sum_exp=True,
                )  # fmt: skip
            found.append(results(result, leaves))
        for other in found[1:]:
            assert_same(found[0], other)

    check()


def test_an_empty_query_attends_by_the_key_alone() -> None:
    """Over a dense support there is one query then; over edges, every target is one."""
    key, value = randn(4, 2, 3), randn(4, 2, 5)
    score = Additive(randn(2, 3))
    dense = attend(None, key, value, score=score, support=Dense(), need_weights=True)
    assert dense.output.shape == (1, 2, 5) and dense.weights.shape == (2, 1, 4)
    complete = torch.cartesian_prod(torch.arange(4), torch.arange(3)).T
    support = Edges.from_edge_index(complete, (4, 3))
    for using in ("auto", "reference"):
        with backend(using):
            edges = attend(None, key, value, score=score, support=support)
        torch.testing.assert_close(edges.output, dense.output.expand(3, 2, 5))
    padded = Dense(lengths=torch.tensor([4, 2]))
    batch = attend(None, key.expand(2, 4, 2, 3), value, score=score, support=padded)
    torch.testing.assert_close(batch.output[0], dense.output)
    half = attend(None, key[:2], value[:2], score=score, support=Dense())
    torch.testing.assert_close(batch.output[1], half.output)


def test_location_attends_to_positions() -> None:
    weight = randn(2, 6, 3).requires_grad_()
    query, value = randn(4, 5, 2, 3), randn(4, 6, 2, 2)
    expected = torch.einsum("hld,bqhd->bhql", weight, query).softmax(-1)
    result = attend(query, value, value, score=Location(weight), support=Dense(), need_weights=True)
    torch.testing.assert_close(result.weights, expected)
    expected = torch.einsum("bhql,blhd->bqhd", expected, value)
    torch.testing.assert_close(result.output, expected)
    shorter = Dense(lengths=torch.tensor([1, 6, 3, 0]))
    result = attend(query, value, value, score=Location(weight), support=shorter, need_weights=True)
    assert result.weights[0, ..., 0].eq(1).all() and not result.weights[3].any()
    x = randn(4, 2, 3)
    edges = Edges.from_edge_index(torch.tensor([[0], [1]]), 4)
    for support in (edges, PendingEdges(torch.tensor([[0], [1]]), 4, 4)):
        with pytest.raises(ValueError, match=r"score Location.*use support Dense"):
            attend(x, x, x, score=Location(weight), support=support)


@given(st.lists(st.sampled_from(["query", "key", "bias", *PAIR_TENSORS])), st.booleans())
def test_batch_dimensions_and_heads_broadcast(shared: list[str], no_heads: bool) -> None:
    batch, heads, queries, keys = (2, 3), 4, 5, 6
    full = {
        "query": (*batch, queries, heads, 2),
        "key": (*batch, keys, heads, 2),
        "value": (*batch, keys, heads, 3),
        "bias": (*batch, heads, queries, keys),
        "pair_key": (*batch, queries, keys, heads, 2),
        "pair_value": (*batch, queries, keys, heads, 3),
    }
    tensors = {}
    for name, shape in full.items():
        if name in shared:
            shape = (1, *shape[1:]) if no_heads else shape[2:]
        if no_heads and name != "query":
            at = -3 if name == "bias" else -2
            shape = (*shape[:at], 1, *shape[at + 1 :])
        tensors[name] = randn(*shape).requires_grad_()
    whole = {n: x.expand(full[n]) for n, x in tensors.items()}
    support = Dense(lengths=torch.tensor([[6, 2, 0], [1, 3, 5]]), causal=True)
    for dropped in ((), PAIR_TENSORS):
        few, many = ({n: x for n, x in d.items() if n not in dropped} for d in (tensors, whole))
        assert_same(
            results(attend(**few, score=ScaledDot(), support=support), tensors),
            results(attend(**many, score=ScaledDot(), support=support), tensors),
        )


@pytest.mark.parametrize("using", ["auto", "reference"])
def test_one_head_may_serve_all_over_edges(using: str) -> None:
    pairs = torch.tensor([[0, 1, 2, 3, 1], [1, 1, 0, 0, 2]])
    edges = Edges.from_edge_index(pairs, 4)
    query, key, value = randn(4, 3, 2), randn(4, 1, 2), randn(4, 1, 3)
    leaves = {"query": query, "key": key, "value": value, "bias": randn(5)}
    leaves |= {"pair_key": randn(5, 1, 2), "pair_value": randn(5, 1, 3)}
    leaves = {n: x.requires_grad_() for n, x in leaves.items()}
    whole = {n: x.expand(-1, 3, -1) if x.dim() == 3 else x[:, None].expand(-1, 3)
             for n, x in leaves.items()}  # fmt: skip
    with backend(using):
        few = attend(**leaves, score=Dot(), support=edges)
        many = attend(**whole, score=Dot(), support=edges)
        assert_same(results(few, leaves), results(many, leaves))
        vector = randn(3, 2)  # heads that only the score has
        few = attend(key, key, value, score=Additive(vector), support=edges)
        many = attend(*(x.expand(-1, 3, -1) for x in (key, key, value)), score=Additive(vector),
                      support=edges)  # fmt: skip
        torch.testing.assert_close(few.output, many.output)


class TestNoPairs:
    """A query without any pair: zeros, and gradients that are finite."""

    PAIRS = torch.tensor([[0, 1, 2, 0], [1, 1, 3, 3]])  # nothing leads to 0 and 2
    EMPTY = torch.tensor([0, 2])

    def support(self, kind: str) -> tuple[Any, Tensor | None]:
        mask = torch.zeros(4, 4, dtype=torch.bool)
        mask[self.PAIRS[1], self.PAIRS[0]] = True
        minus = torch.where(mask, 0.3, -INF).expand(2, 4, 4)
        complete = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
        match kind:
            case "mask":
                return Dense(mask), None
            case "mask and bias":
                return Dense(mask), torch.zeros(2, 4, 4)
            case "bias":
                return Dense(), minus
            case "edges":
                return Edges.from_edge_index(self.PAIRS, 4), None
            case "edges and bias":
                edges = Edges.from_edge_index(complete, 4)
                return edges, minus[:, complete[1], complete[0]].T
        return PendingEdges(self.PAIRS, 4, 4), None

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("score", ["scaled dot", "gatv2", "gat"])
    @pytest.mark.parametrize(
        "kind", ["mask", "mask and bias", "bias", "edges", "edges and bias", "pending"]
    )
    def test_rows(self, kind: str, score: str, dtype: torch.dtype) -> None:
        build, of_score, *_ = SCORES[score]
        size = {"H": 2, "D": 3, "C": 3}
        parameters = [randn(*(size[letter] for letter in shape), dtype=dtype) for shape in of_score]
        query, key, value = (randn(4, 2, 3, dtype=dtype) for _ in range(3))
        support, bias = self.support(kind)
        bias = None if bias is None else bias.to(dtype).clone()
        leaves = [x.requires_grad_() for x in (query, key, value, *parameters)]
        if bias is not None:
            leaves.append(bias.requires_grad_())
        normalizers = [Softmax(), Softmax(0.5), Sparsemax(), Entmax(), Entmax(1.3)]
        for normalizer, need_weights, using, dropout in itertools.product(
            normalizers, (False, True), ("auto", "reference"), (0.0, 0.4)
        ):
            with backend(using):
                result = attend(
                    query, key, value, score=build(*parameters), normalizer=normalizer,
                    support=support, bias=bias, need_weights=need_weights, dropout=dropout,
                )  # fmt: skip
            assert not result.output[self.EMPTY].any()
            assert result.output.isfinite().all() and result.output.dtype == dtype
            if result.log_sum_exp is not None:
                lse = (
                    result.log_sum_exp
                    if "dg" in kind or kind == "pending"
                    else result.log_sum_exp.T
                )
                assert (lse[self.EMPTY] == -INF).all() and lse[[1, 3]].isfinite().all()
            if result.weights is not None:
                assert result.weights.isfinite().all()
                if isinstance(support, Dense):
                    assert not result.weights[:, self.EMPTY].any()
            gradients = torch.autograd.grad(
                result.output.square().sum(), leaves, allow_unused=True, materialize_grads=True
            )
            assert all(gradient.isfinite().all() for gradient in gradients)
            assert not gradients[0][self.EMPTY].any()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_lengths_of_zero(self, dtype: torch.dtype) -> None:
        x = randn(3, 4, 2, 3, dtype=dtype).requires_grad_()
        support = Dense(lengths=torch.tensor([0, 4, 2]), causal=True)
        for need_weights in (False, True):
            result = attend(x, x, x, score=ScaledDot(), support=support, need_weights=need_weights)
            assert not result.output[0].any() and result.output[1:].abs().sum(-1).all()
            (gradient,) = torch.autograd.grad(result.output.sum(), x)
            assert gradient.isfinite().all() and not gradient[0].any()

    def test_causal_queries_before_the_first_key(self) -> None:
        query, key = randn(5, 1, 2), randn(3, 1, 2)
        for need_weights in (False, True):
            result = attend(query, key, key, score=Dot(), support=Dense(causal=True),
                            need_weights=need_weights)  # fmt: skip
            assert not result.output[:2].any()
            torch.testing.assert_close(result.output[2], key[0])

    @pytest.mark.parametrize("using", ["auto", "reference"])
    def test_sizes_of_zero(self, using: str) -> None:
        none = torch.zeros(2, 0, dtype=torch.int64)
        for keys, queries, heads, width in itertools.product((0, 3), (0, 3), (0, 2), (0, 2)):
            query, key = (randn(n, heads, width).requires_grad_() for n in (queries, keys))
            value = randn(keys, heads, 3).requires_grad_()
            for support, score in itertools.product(
                (Dense(), Dense(causal=True), Edges.from_edge_index(none, (keys, queries)),
                 PendingEdges(none, keys, queries, True)),
                (ScaledDot(), Cosine(), Additive(), Additive(torch.ones(heads, width))),
            ):  # fmt: skip
                with backend(using):
                    result = attend(query, key, value, score=score, support=support)
                assert result.output.shape == (queries, heads, 3)
                if isinstance(support, Edges) or keys == 0:
                    assert not result.output.any()
                result.output.sum().backward()


class TestPrecision:
    """Against the truth, which is the reference in float64."""

    SCORES = ("scaled dot", "cosine", "additive", "gatv2", "gat")

    def case(self, score: str, hub: bool) -> tuple[dict[str, Tensor], Edges, Callable[..., Score]]:
        build, of_score, *_ = SCORES[score]
        heads, width, keys, queries = 2, 8, 300, 40
        size = {"H": heads, "D": width, "C": width}
        leaves = {
            "query": randn(queries, heads, width),
            "key": randn(keys, heads, width),
            "value": randn(keys, heads, width),
        }
        for number, shape in enumerate(of_score):
            leaves[f"parameter {number}"] = randn(*(size[letter] for letter in shape))
        many = 100_000 if hub else 4000
        target = torch.zeros(many, dtype=torch.int64) if hub else torch.randint(queries, (many,))
        edges = Edges.from_edge_index(
            torch.stack([torch.randint(keys, (many,)), target]), (keys, queries)
        )
        return leaves, edges, build

    def run(
        self,
        case: tuple[dict[str, Tensor], Edges, Callable[..., Score]],
        dtype: torch.dtype,
        using: str,
    ) -> dict[str, Tensor]:
        leaves, edges, build = case
        leaves = {n: x.to(dtype).requires_grad_() for n, x in leaves.items()}
        parameters = [x for n, x in leaves.items() if n.startswith("parameter")]
        with backend(using):
            result = attend(
                *(leaves[n] for n in ("query", "key", "value")), score=build(*parameters),
                support=edges, need_log_sum_exp=True,
            )  # fmt: skip
        assert result.output.dtype == dtype
        assert result.log_sum_exp is not None
        assert result.log_sum_exp.dtype == torch.promote_types(dtype, torch.float32)
        return {n: x.to(DOUBLE) for n, x in results(result, leaves).items()}

    @staticmethod
    def error(ours: Tensor, truth: Tensor) -> float:
        """In proportion to the largest number, -inf where it belongs."""
        finite = truth.isfinite()
        assert torch.equal(ours.isfinite(), finite)
        ours, truth = ours.detach()[finite], truth.detach()[finite]
        return float((ours - truth).abs().max() / truth.abs().max().clamp(min=1e-300))

    @pytest.mark.parametrize("hub", [False, True])
    @pytest.mark.parametrize("using", ["auto", "reference"])
    @pytest.mark.parametrize("score", SCORES)
    def test_float32(self, score: str, using: str, hub: bool) -> None:
        case = self.case(score, hub)
        case = ({n: x.float() for n, x in case[0].items()}, *case[1:])
        truth, ours = self.run(case, DOUBLE, "reference"), self.run(case, torch.float32, using)
        # The reference adds up a hub one edge after the other, as torch.index_add does
        slack = 10 if hub and using == "reference" else 1
        for name, value in ours.items():
            limit = 1e-4 if "gradient" in name else 1e-5
            assert self.error(value, truth[name]) <= slack * limit, name

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("using", ["auto", "reference"])
    @pytest.mark.parametrize("score", SCORES)
    def test_hub_of_100000_in_half_precision(
        self, score: str, using: str, dtype: torch.dtype
    ) -> None:
        case = self.case(score, hub=True)
        case = ({n: x.to(dtype) for n, x in case[0].items()}, *case[1:])
        truth, ours = self.run(case, DOUBLE, "reference"), self.run(case, dtype, using)
        eps = torch.finfo(dtype).eps
        assert self.error(ours["output"], truth["output"]) <= 8 * eps
        for name, value in ours.items():
            assert self.error(value, truth[name]) <= 64 * eps, name

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("using", ["auto", "reference"])
    def test_hub_of_equal_scores_is_the_mean(self, using: str, dtype: torch.dtype) -> None:
        """Whose divisor, 100,000, is beyond the largest float16."""
        many = 100_000
        hub = torch.stack([torch.arange(many), torch.zeros(many, dtype=torch.int64)])
        value = (torch.arange(many) % 4).to(dtype)[:, None, None]
        with backend(using):
            result = attend(
                None, torch.zeros(many, 1, 1, dtype=dtype), value, score=Additive(),
                support=Edges.from_edge_index(hub, (many, 1)), need_weights=True,
                need_log_sum_exp=True,
            )  # fmt: skip
        limit = 1e-3 if using == "reference" else 1e-5
        assert abs(float(result.output) - 1.5) < 4 * torch.finfo(dtype).eps + limit
        assert result.log_sum_exp is not None and result.weights is not None
        assert float(result.log_sum_exp) == pytest.approx(math.log(many), rel=1e-6)
        assert float(result.weights.double().sum()) == pytest.approx(1, abs=0.005)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("support", ["dense", "edges"])
    @pytest.mark.parametrize("using", ["auto", "reference"])
    def test_large_logits(self, using: str, support: str, dtype: torch.dtype) -> None:
        """Products beyond the largest float16, of which one wins."""
        x = torch.eye(4, dtype=dtype)[:, None] * 300
        complete = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
        pairs = Dense() if support == "dense" else Edges.from_edge_index(complete, 4)
        with backend(using):
            result = attend(x, x, x, score=Dot(), support=pairs)
        torch.testing.assert_close(result.output, x)

    @pytest.mark.parametrize("using", ["auto", "reference"])
    def test_a_bias_that_float16_cannot_hold(self, using: str) -> None:
        x = randn(5, 2, 3, dtype=torch.float16)
        bias = torch.full((2, 5, 5), -1e5)  # the same for all keys: as if there were none
        with backend(using):
            ours = attend(x, x, x, score=Dot(), support=Dense(), bias=bias).output
            expected = attend(x, x, x, score=Dot(), support=Dense()).output
        torch.testing.assert_close(ours, expected, rtol=1e-2, atol=1e-2)


def triangle(dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Edges]:
    pairs = torch.tensor([[0, 1, 2, 0, 3, 3], [1, 2, 0, 2, 0, 0]])
    return randn(4, 2, 3, dtype=dtype).requires_grad_(), Edges.from_edge_index(pairs, 4)


class TestWeights:
    @pytest.mark.parametrize("score", ["scaled dot", "additive", "gat"])
    def test_they_carry_gradients_after_the_fast_path(self, score: str) -> None:
        """Tested against the reference above; here: that the loss sees nothing but weights."""
        x, edges = triangle()
        build, of_score, *_ = SCORES[score]
        parameters = [randn(*({"H": 2}.get(c, 3) for c in shape)) for shape in of_score]
        found = []
        for using in ("auto", "reference"):
            with backend(using):
                result = attend(x, x, x, score=build(*parameters), support=edges, need_weights=True)
            direction = torch.arange(12.0, dtype=DOUBLE).view(6, 2)
            found.append(torch.autograd.grad((result.weights * direction).sum(), x)[0])
        torch.testing.assert_close(*found)
        assert found[0].abs().sum() > 0.01

    @pytest.mark.parametrize("support", ["edges", "dense"])
    def test_they_are_those_before_dropout(self, support: str) -> None:
        x, edges = triangle()
        pairs = edges if support == "edges" else Dense()
        arguments = {"score": Dot(), "support": pairs, "need_weights": True}
        kept = attend(x, x, x, **arguments)
        dropped = attend(x, x, x, **arguments, dropout=0.7)
        torch.testing.assert_close(dropped.weights, kept.weights)
        assert not torch.allclose(dropped.output, kept.output)

    @pytest.mark.parametrize("using", ["auto", "reference"])
    def test_chosen_pairs_by_their_log_sum_exp(self, using: str) -> None:
        x, edges = triangle()
        bias = randn(6, 2)
        with backend(using):
            result = attend(x, x, x, score=ScaledDot(), support=edges, bias=bias, need_weights=True,
                            need_log_sum_exp=True)  # fmt: skip
        chosen = torch.tensor([4, 1, 5])
        some = Edges.from_edge_index(edges.edge_index[:, chosen], 4)
        few = weights(x, x, score=ScaledDot(), support=some, bias=bias[chosen],
                      log_sum_exp=result.log_sum_exp)  # fmt: skip
        torch.testing.assert_close(few, result.weights[chosen])
        ours, theirs = (torch.autograd.grad(w.square().sum(), x, retain_graph=True)[0]
                        for w in (few, result.weights[chosen]))  # fmt: skip
        torch.testing.assert_close(ours, theirs)
        cooled = Softmax(0.5)
        result = attend(x, x, x, score=Dot(), normalizer=cooled, support=edges, need_weights=True)
        few = weights(x, x, score=Dot(), normalizer=cooled, support=some,
                      log_sum_exp=result.log_sum_exp)  # fmt: skip
        torch.testing.assert_close(few, result.weights[chosen])

    def test_chosen_keys_over_a_dense_support(self) -> None:
        query, key = randn(2, 3, 2, 4), randn(2, 5, 2, 4)
        result = attend(
            query, key, key, score=Dot(), support=Dense(), need_weights=True, need_log_sum_exp=True
        )
        few = weights(query, key[:, 1:3], score=Dot(), support=Dense(),
                      log_sum_exp=result.log_sum_exp)  # fmt: skip
        torch.testing.assert_close(few, result.weights[..., 1:3])

    @each_normalizer
    def test_alone_they_are_those_that_attend_returns(self, normalizer: str) -> None:
        x, edges = triangle()
        build, learned = NORMALIZERS[normalizer]
        of_rows = build(torch.tensor([1.4, 2.0], dtype=DOUBLE)) if learned else build()
        for support in (edges, Dense(torch.rand(4, 4) < 0.7)):
            arguments = {"score": Dot(), "normalizer": of_rows, "support": support}
            result = attend(x, x, x[..., :1], **arguments, need_weights=True)
            torch.testing.assert_close(weights(x, x, **arguments), result.weights)

    def test_log_sum_exp_alone_is_differentiable(self) -> None:
        x, edges = triangle()
        bias = randn(6, 2).requires_grad_()
        found = []
        for using in ("auto", "reference"):
            with backend(using):
                given = {"score": ScaledDot(), "support": edges, "bias": bias}
                lse = attend(x, x, x, **given, need_log_sum_exp=True).log_sum_exp
            assert torch.equal(lse == -INF, torch.tensor([0, 0, 0, 1]).bool()[:, None].expand(4, 2))
            loss = torch.where(lse.isfinite(), lse, 0).square().sum()
            found.append(torch.autograd.grad(loss, (x, bias)))
        torch.testing.assert_close(*found)

    def test_log_sum_exp_belongs_to_softmax(self) -> None:
        x, edges = triangle()
        with pytest.raises(ValueError, match=r"log_sum_exp belongs to Softmax.*Sparsemax"):
            weights(x, x, score=Dot(), normalizer=Sparsemax(), support=edges,
                    log_sum_exp=torch.zeros(4, 2))  # fmt: skip
        assert (
            attend(x, x, x, score=Dot(), normalizer=Sparsemax(), support=edges).log_sum_exp is None
        )


class TestDropout:
    SUPPORTS = ("edges", "edges with self-loops", "pending", "dense", "dense, masked")

    def run(
        self,
        x: Tensor,
        kind: str,
        dropout: float,
        seed: int | None = None,
        score: Score | None = None,
    ) -> Tensor:
        pairs = torch.tensor([[0, 1, 2, 0, 3, 3, 1], [1, 2, 0, 2, 0, 0, 1]])
        support = {
            "edges": lambda: Edges.from_edge_index(pairs, 4),
            # nothing but the call holds these Edges: backward has to do without
            "edges with self-loops": lambda: Edges.from_edge_index(pairs, 4, self_loops=True),
            "pending": lambda: PendingEdges(pairs, 4, 4, True),
            "dense": Dense,
            "dense, masked": lambda: Dense(torch.ones(4, 4).tril().bool()),
        }[kind]()
        if seed is not None:
            torch.manual_seed(seed)
        return attend(x, x, x, score=score or Dot(), support=support, dropout=dropout).output

    @pytest.mark.parametrize("using", ["auto", "reference"])
    @pytest.mark.parametrize("kind", SUPPORTS)
    def test_the_ends_the_mean_and_the_seed(self, kind: str, using: str) -> None:
        x = randn(4, 2, 3).requires_grad_()
        with backend(using):
            whole = self.run(x, kind, 0.0)
            nothing = self.run(x, kind, 1.0)
            assert not nothing.any()
            (gradient,) = torch.autograd.grad(nothing.sum(), x)
            assert not gradient.any()
            first, again, other = (self.run(x, kind, 0.5, seed) for seed in (1, 1, 2))
            torch.testing.assert_close(first, again)
            assert not torch.allclose(first, other)
            with torch.no_grad():
                torch.manual_seed(0)
                samples = torch.stack([self.run(x, kind, 0.3) for _ in range(400)])
        error = (samples.mean(0) - whole) / (samples.std(0) / 20 + 1e-12)
        assert error.abs().max() < 5

    @pytest.mark.parametrize("kind", ["edges", "edges with self-loops", "pending"])
    def test_every_path_over_edges_drops_the_same(self, kind: str) -> None:
        x = randn(4, 2, 3).requires_grad_()
        found = []
        for using in ("auto", "reference"):
            with backend(using):
                output = self.run(x, kind, 0.5, seed=3)
            found += [output, torch.autograd.grad(output.square().sum(), x)[0]]
        torch.testing.assert_close(found[:2], found[2:])

    @pytest.mark.parametrize("score", [Dot(), Additive(activation="leaky_relu")])
    @pytest.mark.parametrize("using", ["auto", "reference"])
    @pytest.mark.parametrize("kind", SUPPORTS)
    def test_backward_drops_what_forward_did(self, kind: str, using: str, score: Score) -> None:
        x = randn(4, 2, 3).requires_grad_()
        with backend(using):
            assert torch.autograd.gradcheck(lambda x: self.run(x, kind, 0.5, 3, score), [x])

    def test_self_loops_have_numbers_of_their_own(self) -> None:
        """Equal graphs drop equally, whether their self-loops were there or are added."""
        x = randn(4, 2, 3)
        pairs = torch.tensor([[0, 1, 2, 0], [1, 2, 0, 2]])
        added = Edges.from_edge_index(pairs, 4, self_loops=True)
        present = Edges.from_edge_index(added.edge_index, 4)
        outputs = []
        for support in (added, present, PendingEdges(pairs, 4, 4, True)):
            torch.manual_seed(0)
            outputs.append(attend(x, x, x, score=Dot(), support=support, dropout=0.5).output)
        for other in outputs[1:]:
            torch.testing.assert_close(other, outputs[0])

    def test_tensors_that_backward_gets_back_as_copies(self) -> None:
        """As from saved-tensor hooks that keep them elsewhere."""
        x = randn(4, 2, 3).requires_grad_()
        found = []
        for hooks in (
            nullcontext(),
            torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
        ):
            with hooks:
                output = self.run(x, "edges with self-loops", 0.5, seed=3)
            found.append(torch.autograd.grad(output.square().sum(), x)[0])
        torch.testing.assert_close(*found)

    @pytest.mark.parametrize("dropout", [-0.1, 1.1, math.nan])
    def test_only_a_probability_will_do(self, dropout: float) -> None:
        with pytest.raises(ValueError, match=f"dropout is {dropout}; a probability"):
            self.run(randn(4, 2, 3), "edges", dropout)


# Calls that differ in the path they take, as functions of query, key and value
PATHS: dict[str, dict[str, Any]] = {
    "edges, dot": {"score": ScaledDot(), "support": "edges"},
    "edges, additive": {"score": Additive(torch.ones(2, 3, dtype=DOUBLE)), "support": "edges"},
    "pending": {"score": Additive(activation="leaky_relu"), "support": "pending"},
    "dense, dot": {"score": ScaledDot(), "support": Dense(torch.ones(4, 4).tril(-1).bool())},
    "dense, causal": {"score": ScaledDot(), "support": Dense(causal=True)},
    "dense, entmax": {"score": Dot(), "support": Dense(), "normalizer": Entmax()},
}
each_path = pytest.mark.parametrize("path", PATHS)


def path_function(path: str, **more: Any) -> tuple[Callable[..., Tensor], list[Tensor]]:
    arguments = {**PATHS[path], **more}
    _, edges = triangle()
    if isinstance(arguments["support"], str):
        pairs = edges.edge_index
        pending = PendingEdges(pairs, 4, 4, True)
        arguments["support"] = edges if arguments["support"] == "edges" else pending

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, **arguments).output

    return run, [randn(4, 2, 3).requires_grad_() for _ in range(3)]


class TestTransforms:
    """Every way that torch has to differentiate, to map and to save memory."""

    @each_path
    def test_gradcheck(self, path: str) -> None:
        run, inputs = path_function(path)
        assert torch.autograd.gradcheck(run, inputs)

    @each_path
    def test_vmap(self, path: str) -> None:
        run, _ = path_function(path)
        batch = [randn(5, 4, 2, 3) for _ in range(3)]
        expected = torch.stack([run(*each) for each in zip(*batch, strict=True)])
        torch.testing.assert_close(torch.func.vmap(run)(*batch), expected)
        one = batch[0][0]
        shared = torch.func.vmap(run, in_dims=(0, None, None))(batch[0], one, one)
        torch.testing.assert_close(shared[1], run(batch[0][1], one, one))

    @each_path
    def test_functional_gradients(self, path: str) -> None:
        run, inputs = path_function(path)

        def loss(*inputs: Tensor) -> Tensor:
            return run(*inputs).square().sum()

        expected = torch.autograd.grad(loss(*inputs), inputs)
        primals = [x.detach() for x in inputs]
        ours = torch.func.grad(loss, argnums=(0, 1, 2))(*primals)
        torch.testing.assert_close(ours, expected)
        per_sample = torch.func.vmap(torch.func.grad(loss))(
            *(x.expand(2, 4, 2, 3) for x in primals)
        )
        torch.testing.assert_close(per_sample[1], expected[0])

    @each_path
    def test_forward_mode(self, path: str) -> None:
        run, inputs = path_function(path)
        inputs, tangents = [x.detach() for x in inputs], [randn(4, 2, 3) for _ in range(3)]
        reverse = torch.func.jacrev(run, argnums=(0, 1, 2))(*inputs)
        expected = sum(
            torch.einsum("nhdmgc,mgc->nhd", jacobian, tangent)
            for jacobian, tangent in zip(reverse, tangents, strict=True)
        )
        output, tangent = torch.func.jvp(run, tuple(inputs), tuple(tangents))
        torch.testing.assert_close(tangent, expected)
        torch.testing.assert_close(output, run(*inputs))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
            torch.testing.assert_close(forward_ad.unpack_dual(run(*duals)).tangent, expected)
        torch.testing.assert_close(torch.func.jacfwd(run)(*inputs), reverse[0])

    @pytest.mark.parametrize("path", ["edges, additive", "dense, dot"])
    def test_hessian(self, path: str) -> None:
        run, inputs = path_function(path)
        key, value = inputs[1].detach(), inputs[2].detach()

        def loss(query: Tensor) -> Tensor:
            return run(query, key, value).square().sum()

        hessian = torch.func.hessian(loss)(inputs[0].detach()).reshape(24, 24)
        torch.testing.assert_close(hessian, hessian.T)
        with backend("reference"):
            slope = torch.autograd.grad(loss(inputs[0]), inputs[0], create_graph=True)[0]
            direction = randn(4, 2, 3)
            product = torch.autograd.grad((slope * direction).sum(), inputs[0])[0]
        torch.testing.assert_close(hessian @ direction.flatten(), product.flatten())

    @each_path
    def test_double_backward_of_the_reference(self, path: str) -> None:
        run, inputs = path_function(path)
        with backend("reference"):
            assert torch.autograd.gradgradcheck(run, inputs)

    @each_path
    def test_double_backward_of_the_fast_paths(self, path: str) -> None:
        run, inputs = path_function(path, dropout=0.5)

        def seeded(*inputs: Tensor) -> Tensor:
            torch.manual_seed(3)  # the same dropout each time
            return run(*inputs)

        first = torch.autograd.grad(seeded(*inputs).square().sum(), inputs, create_graph=True)
        plain = torch.autograd.grad(seeded(*inputs).square().sum(), inputs)
        torch.testing.assert_close(first, plain)
        assert torch.autograd.gradgradcheck(seeded, inputs)

    @each_path
    def test_batched_gradients(self, path: str) -> None:
        run, inputs = path_function(path)
        output = run(*inputs)
        directions = torch.randn(3, *output.shape, dtype=output.dtype)
        together = torch.autograd.grad(
            output, inputs, directions, is_grads_batched=True, retain_graph=True
        )
        apart = [torch.autograd.grad(output, inputs, d, retain_graph=True) for d in directions]
        torch.testing.assert_close(
            together, tuple(torch.stack(found) for found in zip(*apart, strict=True))
        )
        jacobian = torch.autograd.functional.jacobian
        torch.testing.assert_close(
            jacobian(run, tuple(inputs), vectorize=True), jacobian(run, tuple(inputs))
        )

    @each_path
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_activation_checkpointing(self, path: str, reentrant: bool) -> None:
        run, inputs = path_function(path, dropout=0.5)
        found = []
        for wrapped in (run, lambda *x: checkpoint(run, *x, use_reentrant=reentrant)):
            torch.manual_seed(2)
            output = wrapped(*inputs)
            found.append((output, *torch.autograd.grad(output.square().sum(), inputs))
                         if not reentrant else backward(output, inputs))  # fmt: skip
        torch.testing.assert_close(*found)

    @each_path
    def test_backward_twice(self, path: str) -> None:
        run, inputs = path_function(path, dropout=0.5)
        loss = run(*inputs).square().sum()
        first = torch.autograd.grad(loss, inputs, retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(loss, inputs), first)

    @each_path
    def test_only_some_inputs_need_gradients(self, path: str) -> None:
        run, inputs = path_function(path)
        whole = torch.autograd.grad(run(*inputs).sum(), inputs)
        for needed in itertools.product((False, True), repeat=3):
            if not any(needed):
                continue
            some = [x.detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)]
            wanted = [x for x in some if x.requires_grad]
            gradients = iter(torch.autograd.grad(run(*some).sum(), wanted))
            for expected, need in zip(whole, needed, strict=True):
                if need:
                    torch.testing.assert_close(next(gradients), expected)

    @each_path
    def test_memory_layout_does_not_matter(self, path: str) -> None:
        run, inputs = path_function(path)
        expected = run(*inputs)
        gradients = torch.autograd.grad(expected.square().sum(), inputs)
        layouts: Iterable[Callable[[Tensor], Tensor]] = (
            lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
            lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
            lambda x: torch.stack([x, x], -1)[..., 0],
        )
        for layout in layouts:
            odd = [layout(x.detach()).requires_grad_() for x in inputs]
            assert not odd[0].is_contiguous()
            output = run(*odd)
            torch.testing.assert_close(output, expected)
            torch.testing.assert_close(
                torch.autograd.grad(output.square().sum(), odd), gradients, check_stride=False
            )
        one = inputs[0][:1].detach().requires_grad_()
        spread = run(one.expand(4, 2, 3), *inputs[1:])
        repeated = run(one.repeat(4, 1, 1), *inputs[1:])
        torch.testing.assert_close(spread, repeated)
        torch.testing.assert_close(
            *(torch.autograd.grad(output.square().sum(), one) for output in (spread, repeated))
        )


def backward(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """As torch.autograd.grad, which reentrant checkpoints do not know."""
    for x in inputs:
        x.grad = None
    output.square().sum().backward()
    gradients = [x.grad for x in inputs]
    assert all(gradient is not None for gradient in gradients)
    return (output, *gradients)  # type: ignore[arg-type]


class TestDtypes:
    @pytest.mark.parametrize("support", ["edges", "dense"])
    @pytest.mark.parametrize("score", SCORES)
    def test_autocast_takes_mixed_dtypes(self, score: str, support: str) -> None:
        """As layers get them: activations in bfloat16, parameters and inputs in float32."""
        build, of_score, *_ = SCORES[score]
        size = {"H": 2, "D": 3, "C": 3, "A": 4, "S": 6}
        parameters = [
            torch.randn([size[letter] for letter in shape]).requires_grad_() for shape in of_score
        ]
        x, edges = triangle(torch.float32)
        pairs: Any = edges if support == "edges" else Dense()
        expected = attend(x, x, x, score=build(*parameters), support=pairs, need_weights=True)
        with torch.autocast("cpu", torch.bfloat16):
            half = x.bfloat16()
            result = attend(half, x, half, score=build(*parameters), support=pairs,
                            need_weights=True)  # fmt: skip
            alone = weights(half, x, score=build(*parameters), support=pairs)
        assert result.output.dtype == result.weights.dtype == alone.dtype == torch.bfloat16
        if support == "edges":
            assert result.log_sum_exp.dtype == torch.float32
        torch.testing.assert_close(result.output.float(), expected.output, rtol=0.05, atol=0.05)
        torch.testing.assert_close(result.weights.float(), expected.weights, rtol=0.05, atol=0.05)
        result.output.float().square().sum().backward()
        for leaf in (x, *parameters):
            assert leaf.grad is not None and leaf.grad.dtype == torch.float32

    def test_autocast_computes_in_the_precision_of_its_inputs(self) -> None:
        x, edges = triangle(torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            ours = attend(x, x, x, score=Dot(), support=edges).output
        assert torch.equal(ours, attend(x, x, x, score=Dot(), support=edges).output.bfloat16())

    def test_autocast_leaves_float64_alone(self) -> None:
        x, edges = triangle()
        with torch.autocast("cpu", torch.bfloat16):
            for support in (edges, Dense()):
                result = attend(x, x, x, score=Dot(), support=support, need_weights=True)
                with torch.autocast("cpu", enabled=False):
                    expected = attend(x, x, x, score=Dot(), support=support, need_weights=True)
                torch.testing.assert_close(result.output, expected.output)
                torch.testing.assert_close(result.weights, expected.weights)
                assert result.output.dtype == DOUBLE

    @pytest.mark.parametrize("using", ["auto", "reference"])
    def test_tensors_without_data_have_shapes(self, using: str) -> None:
        x = torch.empty(2, 5, 3, 4, device="meta", dtype=torch.float16)
        for score, support in itertools.product((Dot(), Additive()), (Dense(), Dense(causal=True))):
            with backend(using):
                result = attend(x, x, x, score=score, support=support, need_weights=True)
            assert result.output.shape == x.shape and result.output.is_meta
            assert result.weights.shape == (2, 3, 5, 5) and result.weights.dtype == torch.float16

    @pytest.mark.parametrize("using", ["auto", "reference"])
    @pytest.mark.parametrize("support", ["edges", "dense"])
    def test_mixed_dtypes_are_computed_in_the_widest(self, support: str, using: str) -> None:
        x, edges = triangle()
        pairs: Any = edges if support == "edges" else Dense()
        query, key, value = x.half(), x.float(), x.bfloat16()
        wide = [y.double() for y in (query, key, value)]
        bias = randn(6, 2) if support == "edges" else randn(2, 4, 4)
        with backend(using):
            result = attend(query, key, value, score=Dot(), support=pairs, bias=bias)
            truth = attend(*wide, score=Dot(), support=pairs, bias=bias)
        assert result.output.dtype == torch.bfloat16
        half_a_step = torch.finfo(torch.bfloat16).eps / 2  # one rounding, at the very end
        torch.testing.assert_close(
            result.output.double(), truth.output, rtol=1.01 * half_a_step, atol=1e-6
        )
        for leaf in (query, key, value):
            (gradient,) = torch.autograd.grad(result.output.sum(), leaf, retain_graph=True)
            assert gradient.dtype == leaf.dtype


class TestBadInput:
    def refuse(self, error: type[Exception], message: str, **changes: Any) -> None:
        for using in ("auto", "reference"):
            x, edges = triangle(torch.float32)
            arguments = {"query": x, "key": x, "value": x, "score": Dot(), "support": edges}
            with pytest.raises(error, match=message), backend(using):
                attend(**{**arguments, **changes})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"query": torch.ones(3, 2, 3)}, r"query has shape \[3, 2, 3\].*N = 4.*targets"),
            ({"key": torch.ones(5, 2, 3)}, r"key has shape \[5, 2, 3\].*N = 4.*sources"),
            ({"value": torch.ones(4, 3)}, r"value has shape \[4, 3\].*\[..., N, H, D\]"),
            ({"query": torch.ones(4, 2, 5)}, "query has width 5 and key 3"),
            ({"query": torch.ones(4, 3, 3)}, "key has 2 heads, but query has 3"),
            ({"value": torch.ones(4, 3, 3)}, "query has 2 heads, but value has 3"),
            ({"query": None}, "score Dot needs a query"),
            ({"score": Additive(torch.ones(3, 3))}, "heads, but the score has 3"),
            ({"bias": torch.ones(5, 2)}, r"bias has shape \[5, 2\]; expected \[6, 2\]"),
            ({"bias": torch.ones(1, 2)}, r"bias has shape \[1, 2\]; expected \[6, 2\]"),
            ({"bias": torch.ones(6, 3)}, r"bias has shape \[6, 3\]; expected \[6, 2\]"),
            ({"bias": torch.ones(6, 2, 1)}, r"bias has shape \[6, 2, 1\]"),
            ({"pair_key": torch.ones(6, 2, 1)}, r"pair_key has shape.*expected \[6, 2, 3\]"),
            ({"pair_key": torch.ones(5, 2, 3)}, r"pair_key has shape.*expected \[6, 2, 3\]"),
            ({"pair_value": torch.ones(6, 3)}, r"pair_value has shape.*expected \[6, 2, 3\]"),
        ],
    )
    def test_shapes_over_edges(self, changes: dict[str, Any], message: str) -> None:
        self.refuse(ValueError, message, **changes)

    @pytest.mark.parametrize("rows", [6, 9, 11])
    def test_rows_of_pending_edges(self, rows: int) -> None:
        pending = PendingEdges(torch.tensor([[0, 1, 2, 0, 3, 3], [1, 2, 0, 2, 0, 0]]), 4, 4, True)
        message = rf"bias has shape \[{rows}, 2\]; expected \[10, 2\].*one for each self-loop"
        self.refuse(ValueError, message, support=pending, bias=torch.ones(rows, 2))

    @pytest.mark.parametrize(
        ("pairs", "error", "message"),
        [
            (torch.tensor([[0, 4], [1, 1]]), IndexError, r"node 4 in row 0 \(sources\)"),
            (torch.tensor([[0, 1], [1, -1]]), IndexError, r"node -1 in row 1 \(targets\)"),
            (torch.ones(2, 3), TypeError, r"edge_index has dtype torch.float32"),
            (torch.ones(3, 2).long(), ValueError, r"edge_index has shape \[3, 2\].*t\(\)"),
            (
                torch.ones(2, 3, device="meta").long(),
                ValueError,
                "edge_index is on meta, but query",
            ),
        ],
    )
    def test_pairs(self, pairs: Tensor, error: type[Exception], message: str) -> None:
        self.refuse(error, message, support=PendingEdges(pairs, 4, 4))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"query": torch.ones(4, 3)}, r"query has shape \[4, 3\].*\[..., T, H, D\]"),
            ({"value": torch.ones(5, 2, 3)}, "value has 5 positions and key 4"),
            ({"query": torch.ones(4, 2, 5)}, "query has width 5 and key 3"),
            ({"query": None}, "score Dot needs a query"),
            ({"key": torch.ones(4, 3, 3)}, "query has 2 heads, but key has 3"),
            ({"key": torch.ones(2, 4, 2, 3), "value": torch.ones(3, 4, 2, 3)}, "do not broadcast"),
            ({"bias": torch.ones(2, 4, 5)}, r"bias has shape \[2, 4, 5\]; expected \[2, 4, 4\]"),
            ({"bias": torch.ones(3, 2, 4, 4)}, r"bias has shape \[3, 2, 4, 4\]"),
            ({"pair_key": torch.ones(4, 4, 2, 2)}, r"pair_key.*expected \[4, 4, 2, 3\]"),
            ({"pair_value": torch.ones(4, 3, 2, 3)}, r"pair_value.*expected \[4, 4, 2, 3\]"),
        ],
    )  # fmt: skip
    def test_shapes_over_dense(self, changes: dict[str, Any], message: str) -> None:
        self.refuse(ValueError, message, support=Dense(), **changes)

    @pytest.mark.parametrize("name", ["query", "key", "value", "bias", "pair_key", "pair_value"])
    @pytest.mark.parametrize("support", ["edges", "dense"])
    def test_devices_and_dtypes(self, name: str, support: str) -> None:
        shape = {"bias": (6, 2), "pair_key": (6, 2, 3), "pair_value": (6, 2, 3)}.get(
            name, (4, 2, 3)
        )
        changes: dict[str, Any] = {"support": Dense()} if support == "dense" else {}
        elsewhere = torch.ones(shape, device="meta")
        message = f"{name} is on meta, but key is on cpu"
        if name == "key":  # then the query is what differs from it
            message = "query is on cpu, but key is on meta"
        self.refuse(ValueError, rf"{message}: .*\.to\(\)", **{name: elsewhere}, **changes)
        integers = torch.ones(shape, dtype=torch.int64)
        message = rf"{name} has dtype torch.int64.*\.float\(\)"
        self.refuse(TypeError, message, **{name: integers}, **changes)

    def test_masks_on_another_device(self) -> None:
        mask = torch.ones(4, 4, dtype=torch.bool, device="meta")
        self.refuse(ValueError, "mask is on meta, but key is on cpu", support=Dense(mask))
        lengths = torch.ones((), dtype=torch.int64, device="meta")
        self.refuse(ValueError, "lengths is on meta", support=Dense(lengths=lengths))


class TestBackend:
    def test_it_is_restored(self) -> None:
        x, edges = triangle()

        def is_fused() -> bool:
            node = attend(x, x, x, score=Dot(), support=edges).output.grad_fn
            return "_Straight" in type(node.next_functions[0][0]).__name__

        assert is_fused()
        with backend("reference"):
            assert not is_fused()
            with backend("auto"):
                assert is_fused()
            assert not is_fused()
        with pytest.raises(KeyError), backend("reference"):
            raise KeyError
        assert is_fused()

    def test_only_known_names(self) -> None:
        message = "backend is 'fast'; expected 'auto', 'torch' or 'reference'"
        with pytest.raises(ValueError, match=message), backend("fast"):
            pass


@pytest.mark.parametrize(
    ("given", "wanted"), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)]
)
def test_autocast_to_the_other_half_type_rounds_once(
    given: torch.dtype, wanted: torch.dtype
) -> None:
    edges = Edges.from_edge_index(torch.randint(12, (2, 100)), 12)
    query, key, value = (torch.randn(12, 2, 8).to(given) for _ in range(3))
    expected = attend(
        query.float(), key.float(), value.float(), score=ScaledDot(), support=edges
    ).output
    with torch.autocast("cpu", wanted):
        found = attend(query, key, value, score=ScaledDot(), support=edges).output
    assert found.dtype == wanted
    torch.testing.assert_close(found, expected.to(wanted), rtol=0, atol=0)
