"""Additive scores of all pairs: the definition's numbers and gradients, without its memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attn_core import Additive, Concat, Dense, Entmax, Softmax, attend, backend, compiled, weights
from attn_core.activations import activate
from attn_core.backends import additive
from attn_core.backends.cpu import additive as kernels
from attn_core.ops import additive as ops
from attn_core.ops.additive import additive_scores, additive_scores_backward

F64 = torch.float64


needs_kernels = pytest.mark.skipif(compiled.module is None, reason="no compiled kernels")


@pytest.fixture(params=["blocks", pytest.param("kernels", marks=needs_kernels)])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of plain torch, or the compiled kernels."""
    if request.param == "blocks":
        monkeypatch.setattr(compiled, "module", None)


@pytest.fixture
def served(either: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of any size go to blocks, small ones, or to the compiled kernels."""
    monkeypatch.setattr(additive, "BLOCK", 24)
    monkeypatch.setattr(ops, "LEAST", 0)


INSTRUCTION_SETS = compiled.module.instruction_sets() if compiled.module is not None else []


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    before = compiled.module.instruction_set()
    compiled.module.choose_instruction_set(request.param)
    yield request.param
    compiled.module.choose_instruction_set(before)


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("normalizer", [Softmax(), Entmax()])
@pytest.mark.parametrize("activation", ["tanh", "leaky_relu", "relu", "identity"])
@pytest.mark.parametrize("shared_vector", [True, False])
@given(
    batch=st.sampled_from([(), (2,), (2, 3)]),
    queries=st.integers(1, 9),
    keys=st.integers(1, 9),
    width=st.integers(1, 30),
    causal=st.booleans(),
)
@settings(max_examples=8)
def test_equals_the_definition(
    normalizer: Any, activation: str, shared_vector: bool, batch: tuple[int, ...], queries: int,
    keys: int, width: int, causal: bool,
) -> None:  # fmt: skip
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, requires_grad=True)

    query, key = draw(*batch, queries, 2, width), draw(*batch, keys, 2, width)
    value, vector = draw(*batch, keys, 2, 3), draw(1 if shared_vector else 2, width)
    score, support = Additive(vector, activation), Dense(causal=causal)

    def outcome(name: str) -> list[Tensor]:
        with backend(name):
            result = attend(
                query, key, value, score=score, normalizer=normalizer, support=support,
                need_weights=True,
            )  # fmt: skip
            alone = weights(query, key, score=score, normalizer=normalizer, support=support)
        loss = result.output.cos().sum() + alone.square().sum()
        gradients = torch.autograd.grad(loss, [query, key, value, vector])
        return [result.output, result.weights, alone, *gradients]

    torch.testing.assert_close(outcome("auto"), outcome("reference"))


SIZES = {
    "of 0.001": (0.0, 0.001),
    "of 0.04": (0.0, 0.04),
    "of 1": (0.0, 1.0),
    "of 10": (0.0, 10.0),
    "of 30": (0.0, 30.0),
    "of 60": (0.0, 60.0),
    "of 10,000": (0.0, 1e4),
    "near 30 and -30": (30.0, 1.0),
    "near 38 and -38": (38.0, 0.1),
    "near 60 and -60": (60.0, 1.0),
    "near 10,000 and -10,000": (1e4, 1.0),
}


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("size", SIZES)
def test_is_as_exact_as_the_formula_whatever_the_size_of_the_inputs(size: str) -> None:
    """Logits and gradients of float32 against the truth of float64, beside those of the formula."""
    middle, spread = SIZES[size]
    query, key, vector = torch.randn(2, 20, 37), torch.randn(2, 30, 37), torch.randn(2, 37)
    inputs = [query * spread + middle, key * spread - middle, vector]
    direction = torch.randn(2, 20, 30)

    def outcome(score: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        logits = score(*leaves)
        loss = (logits * direction.to(dtype)).sum()
        return [logits.detach(), *torch.autograd.grad(loss, leaves)]

    def formula(query: Tensor, key: Tensor, vector: Tensor) -> Tensor:
        return torch.einsum("bijd,bd->bij", (query[:, :, None] + key[:, None]).tanh(), vector)

    def blocked(query: Tensor, key: Tensor, vector: Tensor) -> Tensor:
        return torch.ops.attn_core.additive_scores(query, key, vector, "tanh", 0.2)

    truth, direct = outcome(formula, F64), outcome(formula, torch.float32)
    torch.testing.assert_close(outcome(blocked, F64), truth)
    shares = direction.abs()
    sums = [  # of the absolute values of what is added up; a tanh that is 1 is rounded in each
        vector.abs().sum(-1).max(),
        shares.sum(2).max() * vector.abs().max(),
        shares.sum(1).max() * vector.abs().max(),
        shares.sum((1, 2)).max(),
    ]
    found = zip(outcome(blocked, torch.float32), direct, truth, sums, strict=True)
    for ours, theirs, true, total in found:
        assert ours.isfinite().all()
        rounding = torch.finfo(torch.float32).eps * (total if middle + spread > 0.01 else 0)
        assert (ours - true).abs().max() <= 4 * (theirs - true).abs().max() + rounding


def test_exponentials_are_taken_apart_where_they_can_be() -> None:
    """Else they would overflow, or a tiny tanh would drown in 1 - 2h."""
    vector = torch.ones(1, 2)
    for query, key, dtype, apart in (
        (1.0, 1.0, torch.float32, True),
        (40.0, -40.0, torch.float32, True),
        (41.0, -41.0, torch.float32, False),
        (41.0, -41.0, F64, True),
        (0.0, 301.0, F64, False),
        (0.03, 0.04, torch.float32, True),
        (0.03, -0.03, torch.float32, False),
        (float("inf"), 0.0, torch.float32, False),
        (float("nan"), 0.0, torch.float32, False),
        (1.0, 1.0, torch.bfloat16, False),
    ):
        inputs = torch.full((1, 1, 2), query, dtype=dtype), torch.full((1, 1, 2), key, dtype=dtype)
        chosen = additive._choose(*inputs, vector.to(dtype), "tanh", 0.2)
        assert isinstance(chosen, additive._FactoredTanh) == apart, (query, key, dtype)
    endless = torch.full((1, 2), torch.inf)
    one = torch.ones(1, 1, 2)
    assert not isinstance(additive._choose(one, one, endless, "tanh", 0.2), additive._FactoredTanh)


@pytest.mark.usefixtures("served")
def test_an_infinite_vector_gives_infinite_logits() -> None:
    query, key = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[0.5, 0.5], [-1.0, 1.0]]])
    vector = torch.tensor([[torch.inf, 1.0]])
    logits = additive_scores(query, key, vector, "tanh", 0.2)
    assert logits[0, 0].tolist() == [torch.inf, -torch.inf]


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("large", [torch.inf, -torch.inf, 3e38])
def test_the_infinite_saturates(large: float) -> None:
    query, key = torch.randn(2, 3, 1, 4), torch.randn(2, 5, 1, 4)
    key[0, 2, 0, 1] = large
    query[0, 1, 0, 1] = abs(large) if large == 3e38 else 0.0  # 6e38 is beyond float32
    inputs = [x.requires_grad_() for x in (query, key, torch.randn(2, 5, 1, 4))]
    score = Additive(torch.randn(1, 4))
    found = []
    for name in ("auto", "reference"):
        with backend(name):
            output = attend(*inputs, score=score, support=Dense()).output
        found.append([output, *torch.autograd.grad(output.sin().sum(), inputs)])
    assert all(x.isfinite().all() for x in found[0])
    torch.testing.assert_close(*found)


def hidden_numbers(run: Any) -> int:
    """How many numbers the largest tensor holds that any operation makes."""

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            sizes = [x.numel() for x in tree_leaves(result) if isinstance(x, Tensor)]
            self.numbers = max(self.numbers, *sizes, 0)
            return result

    with Largest() as largest:
        run()
    return largest.numbers


@pytest.mark.parametrize("score", ["additive", "concat"])
def test_never_makes_the_hidden_vectors_of_all_pairs(
    score: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(additive, "BLOCK", 2**12)
    monkeypatch.setattr(compiled, "module", None)
    inputs = [torch.randn(2, 40, 1, 64, requires_grad=True) for _ in range(3)]
    vector = torch.randn(1, 64, requires_grad=True)
    match = Additive(vector)
    if score == "concat":
        match = Concat(torch.randn(1, 64, 128), vector)
    numbers = hidden_numbers(
        lambda: attend(*inputs, score=match, support=Dense()).output.sum().backward()
    )
    assert numbers < 2 * 40 * 64 * 4 < 2 * 40 * 40 * 64


@pytest.mark.usefixtures("served")
def test_ops_are_sound() -> None:
    query, key, vector = (
        torch.randn(*s, requires_grad=True) for s in ((2, 3, 5), (2, 4, 5), (2, 5))
    )
    for activation in ("tanh", "leaky_relu"):
        torch.library.opcheck(additive_scores, (query, key, vector, activation, 0.2))
    plain = [x.detach() for x in (query, key, vector)]
    gradient = torch.randn(2, 3, 4)
    torch.library.opcheck(additive_scores_backward, (gradient, *plain, "tanh", 0.2))


@pytest.mark.usefixtures("served")
def test_second_derivatives_and_forward_mode() -> None:
    inputs = [torch.randn(3, 1, 4, dtype=F64, requires_grad=True) for _ in range(3)]
    score = Additive(torch.randn(1, 4, dtype=F64))

    def run(*inputs: Tensor) -> Tensor:
        return attend(*inputs, score=score, support=Dense()).output

    assert torch.autograd.gradgradcheck(run, inputs)
    direction = tuple(map(torch.randn_like, inputs))
    _, tangent = torch.func.jvp(run, tuple(inputs), direction)
    steps = [1e-6 * x for x in direction]
    further = run(*(x + step for x, step in zip(inputs, steps, strict=True)))
    before = run(*(x - step for x, step in zip(inputs, steps, strict=True)))
    torch.testing.assert_close(tangent, (further - before) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("served")
def test_compiles_without_graph_break() -> None:
    inputs = [torch.randn(2, 5, 1, 6, requires_grad=True) for _ in range(3)]
    score = Additive(torch.randn(1, 6))

    def run(*inputs: Tensor) -> Tensor:
        return attend(*inputs, score=score, support=Dense()).output

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), run(*inputs))
    compiled(*inputs).sum().backward()
    assert all(x.grad is not None for x in inputs)


def formula(query: Tensor, key: Tensor, vector: Tensor, kind: str) -> Tensor:
    hidden = activate(query[:, :, None] + key[:, None], kind, 0.2)
    return (hidden * vector[:, None, None]).sum(-1)


@pytest.mark.parametrize("kind", ["tanh", "leaky_relu"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "width"),
    [(2, 1, 5, 3), (3, 1, 70, 33), (1, 2, 40, 7), (3, 9, 70, 33), (1, 70, 100, 64), (20, 5, 3, 16),
     (1, 300, 33, 5)],
)  # fmt: skip
def test_kernels_give_the_formulas_numbers_and_gradients(
    instruction_set: str, kind: str, dtype: torch.dtype, batch: int, queries: int, keys: int,
    width: int,
) -> None:  # fmt: skip
    """Whole vectors and less, whole tiles and less, one span of pairs and several."""
    shapes = (batch, queries, width), (batch, keys, width), (batch, width), (batch, queries, keys)
    *inputs, grad = (torch.randn(s, dtype=F64) for s in shapes)
    leaves = [x.clone().requires_grad_() for x in inputs]
    logits = formula(*leaves, kind)
    truth = [logits.detach(), *torch.autograd.grad(logits, leaves, grad)]
    given = [x.to(dtype) for x in inputs]
    found = kernels.forward(*given, kind, 0.2), *kernels.backward(grad.to(dtype), *given, kind, 0.2)
    for ours, true in zip(found, truth, strict=True):
        close = 1e-6 if dtype == torch.float32 else 1e-14
        assert ours.dtype == dtype
        assert (ours - true).abs().max() <= close * true.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_tanh_is_exact_to_its_last_digits(instruction_set: str, dtype: torch.dtype) -> None:
    """In units in the last place, from the smallest number there is to where tanh is 1."""
    smallest = -149.0 if dtype == torch.float32 else -1074.0
    size = torch.cat(
        [
            torch.linspace(0, 22, 100_001, dtype=F64),
            2 ** torch.linspace(smallest, 8, 100_001, dtype=F64),
        ]
    ).to(dtype)
    x = torch.cat([size, -size])
    found = _tanh(x)
    true = x.double().tanh() if dtype == torch.float32 else x.tanh()
    above = torch.nextafter(true.to(dtype).abs(), x.new_tensor(2.0))
    unit = above.double() - true.to(dtype).abs().double()
    assert ((found.double() - true).abs() / unit).max() <= 2.5
    assert found.abs().max() == 1
    torch.testing.assert_close(found[: len(size)], -found[len(size) :], rtol=0, atol=0)
    special = x.new_tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, torch.finfo(dtype).max])
    expected = x.new_tensor([1.0, -1.0, torch.nan, 0.0, -0.0, 1.0])
    torch.testing.assert_close(_tanh(special), expected, rtol=0, atol=0, equal_nan=True)


def _tanh(x: Tensor) -> Tensor:
    """By a step of decoding: a query 0, a vector 1."""
    return kernels.forward(x.new_zeros(1, 1, 1), x.view(1, -1, 1), x.new_ones(1, 1), "tanh", 0.0)[
        0, 0
    ]


@pytest.mark.parametrize("shape", [(1, 130, 150, 40), (5, 40, 33, 20), (3, 1, 200, 17)])
def test_kernels_give_the_same_bits_with_any_number_of_threads(
    instruction_set: str, shape: tuple[int, ...]
) -> None:
    batch, queries, keys, width = shape
    query, key = torch.randn(batch, queries, width), torch.randn(batch, keys, width)
    arguments = query, key, torch.randn(batch, width), "tanh", 0.0
    grad, before = torch.randn(batch, queries, keys), torch.get_num_threads()
    found = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        found.append([kernels.forward(*arguments), *kernels.backward(grad, *arguments)])
    torch.set_num_threads(before)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=0)


@needs_kernels
def test_a_sequence_does_not_depend_on_its_batch() -> None:
    """A neighbour whose numbers rule out what is fastest changes nothing."""
    query, key, vector = torch.randn(2, 9, 20), torch.randn(2, 40, 20), torch.randn(2, 20)
    query[1] *= 1e3
    key[1, 3, 2] = torch.nan
    both = kernels.forward(query, key, vector, "tanh", 0.0)
    alone = kernels.forward(query[:1], key[:1], vector[:1], "tanh", 0.0)
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=0)
    assert both[1].isnan().nonzero()[:, 1].unique().tolist() == [3]


@needs_kernels
def test_kernels_read_vectors_where_they_lie() -> None:
    """Any step between vectors, keys that all sequences share; channels that are not packed."""
    query, key = torch.randn(2, 30, 40)[:, ::2, 3:27], torch.randn(1, 50, 24).expand(2, -1, -1)
    vector, grad = torch.randn(1, 24).expand(2, -1), torch.randn(2, 50, 15).mT
    arguments = query, key, vector
    copies = [x.contiguous() for x in arguments]
    torch.testing.assert_close(
        kernels.backward(grad, *arguments, "tanh", 0.0),
        kernels.backward(grad.contiguous(), *copies, "tanh", 0.0), rtol=0, atol=0,
    )  # fmt: skip
    crossed = query.mT.contiguous().mT, key, vector
    torch.testing.assert_close(
        kernels.forward(*crossed, "tanh", 0.0),
        kernels.forward(*copies, "tanh", 0.0),
        rtol=0,
        atol=0,
    )
