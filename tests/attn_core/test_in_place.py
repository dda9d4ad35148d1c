"""What a caller edits in place is not what the backward pass reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import (
    Additive,
    Dense,
    Dot,
    Edges,
    Entmax,
    Hard,
    Identity,
    PendingEdges,
    Softmax,
    Sparsemax,
    Window,
    attend,
    scatter_softmax,
    weights,
)  # fmt: skip
from attn_core.transforms import apart

PAIRS = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
SUPPORTS: dict[str, Any] = {
    "Edges": lambda: Edges.from_edge_index(PAIRS, 6),
    "PendingEdges": lambda: PendingEdges(PAIRS, 6, 6, self_loops=True),
    "Dense": Dense,
    "Window": lambda: Window(1),
}
SCORES: dict[str, Any] = {"dot": Dot(), "additive": Additive(torch.ones(2, 4))}
NORMALIZERS = {"softmax": Softmax(), "sparsemax": Sparsemax(), "entmax": Entmax(1.3),
               "hard": Hard(), "identity": Identity()}  # fmt: skip


def halve_in_place(*results: Tensor | None) -> Tensor:
    return torch.stack([x.mul_(0.5).square().sum() for x in results if x is not None]).sum()


def halve(*results: Tensor | None) -> Tensor:
    return torch.stack([(x * 0.5).square().sum() for x in results if x is not None]).sum()


def gradients(compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
    h = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = compute(h)
    loss.backward()
    assert h.grad is not None
    return [loss.detach(), h.grad]


@pytest.mark.parametrize("needed", [False, True])
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("support", SUPPORTS)
def test_results_of_attend(support: str, score: str, normalizer: str, needed: bool) -> None:
    def compute(loss: Any) -> Callable[[Tensor], Tensor]:
        def of(h: Tensor) -> Tensor:
            result = attend(
                h, h, h, score=SCORES[score], normalizer=NORMALIZERS[normalizer],
                support=SUPPORTS[support](), need_weights=needed,
            )  # fmt: skip
            return loss(*result)

        return of

    torch.testing.assert_close(gradients(compute(halve_in_place)), gradients(compute(halve)))


@pytest.mark.parametrize("support", ["Edges", "Dense", "Window"])
def test_weights(support: str) -> None:
    def compute(loss: Any) -> Callable[[Tensor], Tensor]:
        return lambda h: loss(weights(h, h, score=Dot(), support=SUPPORTS[support]()))

    torch.testing.assert_close(gradients(compute(halve_in_place)), gradients(compute(halve)))


@pytest.mark.parametrize("normalizer", [Softmax(), Sparsemax(), Entmax(1.5), Entmax(1.2)])
def test_weights_of_groups(normalizer: Any) -> None:
    def compute(loss: Any) -> Callable[[Tensor], Tensor]:
        return lambda h: loss(normalizer.segment(h.flatten(1), PAIRS[1, :6], 6))

    torch.testing.assert_close(gradients(compute(halve_in_place)), gradients(compute(halve)))


def test_a_group_softmax_edited_through_a_view() -> None:
    scores = torch.randn(7, 2, requires_grad=True)
    found = scatter_softmax(scores, PAIRS[1])
    found[:3] = 0
    found.square().sum().backward()
    grad, scores.grad = scores.grad, None
    expected = scatter_softmax(scores, PAIRS[1])
    (expected * (torch.arange(7) >= 3)[:, None]).square().sum().backward()
    torch.testing.assert_close(grad, scores.grad)


def test_apart_shares_its_memory_until_somebody_writes() -> None:
    x = torch.ones(3, requires_grad=True) * 2
    (other,) = apart(x)
    assert torch._C._is_cow_tensor(other)  # type: ignore[attr-defined]
    other.add_(1)
    assert (x.tolist(), other.tolist()) == ([2] * 3, [3] * 3)
    (other * x).sum().backward()  # x is still what it was
    with torch.no_grad():
        assert apart(x)[0] is x


def test_apart_can_be_differentiated_twice() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (first,) = torch.autograd.grad(apart(x**3)[0].sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.tolist() == [6, 12]
