"""Additive scores in blocks: the definition's numbers and gradients, without its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attn_core import Additive, Concat, Dense, Entmax, Softmax, attend, backend, weights
from attn_core.kernels import additive

F64 = torch.float64


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(additive, "BLOCK", 24)


@pytest.mark.usefixtures("small_blocks")
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
    inputs = [torch.randn(2, 40, 1, 64, requires_grad=True) for _ in range(3)]
    vector = torch.randn(1, 64, requires_grad=True)
    match = Additive(vector)
    if score == "concat":
        match = Concat(torch.randn(1, 64, 128), vector)
    numbers = hidden_numbers(
        lambda: attend(*inputs, score=match, support=Dense()).output.sum().backward()
    )
    assert numbers < 2 * 40 * 64 * 4 < 2 * 40 * 40 * 64


@pytest.mark.usefixtures("small_blocks")
def test_ops_are_sound() -> None:
    query, key, vector = (
        torch.randn(*s, requires_grad=True) for s in ((2, 3, 5), (2, 4, 5), (2, 5))
    )
    for activation in ("tanh", "leaky_relu"):
        torch.library.opcheck(additive.additive_scores, (query, key, vector, activation, 0.2))
    plain = [x.detach() for x in (query, key, vector)]
    gradient = torch.randn(2, 3, 4)
    torch.library.opcheck(additive.additive_scores_backward, (gradient, *plain, "tanh", 0.2))


@pytest.mark.usefixtures("small_blocks")
def test_second_derivatives_are_refused_or_taken_by_the_reference() -> None:
    inputs = [torch.randn(3, 1, 4, dtype=F64, requires_grad=True) for _ in range(3)]
    score = Additive(torch.randn(1, 4, dtype=F64))

    def run(*inputs: Tensor) -> Tensor:
        return attend(*inputs, score=score, support=Dense()).output

    (first,) = torch.autograd.grad(run(*inputs).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match=r'attn_core.backend\("reference"\)'):
        first.sum().backward()
    with backend("reference"):
        assert torch.autograd.gradgradcheck(run, inputs)
    _, tangent = torch.func.jvp(run, tuple(inputs), tuple(torch.ones_like(x) for x in inputs))
    assert tangent.isfinite().all()


@pytest.mark.usefixtures("small_blocks")
def test_compiles_without_graph_break() -> None:
    inputs = [torch.randn(2, 5, 1, 6, requires_grad=True) for _ in range(3)]
    score = Additive(torch.randn(1, 6))

    def run(*inputs: Tensor) -> Tensor:
        return attend(*inputs, score=score, support=Dense()).output

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), run(*inputs))
    compiled(*inputs).sum().backward()
    assert all(x.grad is not None for x in inputs)
