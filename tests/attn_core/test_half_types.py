"""In 16 bits backward starts from what the forward pass computed, not from its rounded output."""

import pytest
import torch

from attn_core import Additive, Dot, Edges, PendingEdges, Separable, attend, backend

SCORES = {
    "dot": lambda: Dot(),
    "additive": lambda: Additive(torch.randn(2, 8), "leaky_relu"),
    "separable": lambda: Separable(torch.randn(2, 8), torch.randn(2, 8)),
}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_weight_of_one_has_no_gradient(name: str, dtype: torch.dtype) -> None:
    """Each query has one pair: `w (g · v - g · output)` is 0 where the output is not rounded."""
    index = torch.stack([torch.arange(40) % 7, torch.arange(40)])
    for support in (Edges(index, 7, 40), PendingEdges(index, 7, 40, self_loops=False)):
        query, key, value, pair_value = (
            torch.randn(n, 2, 8).to(dtype).requires_grad_() for n in (40, 7, 7, 40)
        )
        given = {"score": SCORES[name]().to(dtype), "support": support, "pair_value": pair_value}
        attend(query, key, value, **given).output.sin().sum().backward()
        assert value.grad.abs().max() > 0.1
        assert max(float(x.grad.abs().max()) for x in (query, key)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_are_as_near_as_those_of_the_definition(dtype: torch.dtype) -> None:
    """Values that are nearly alike: the gradients of the scores are small differences."""
    index = torch.randint(0, 20, (2, 200))
    edges = Edges(index, 20, 20)
    given = torch.randn(20, 2, 8), torch.randn(20, 2, 8), 5 + 0.1 * torch.randn(20, 2, 8)
    given = tuple(x.to(dtype) for x in given)

    def gradients(name: str, wide: torch.dtype) -> torch.Tensor:
        leaves = [x.to(wide, copy=True).requires_grad_() for x in given]
        with backend(name):
            output = attend(*leaves, score=Dot(0.3), support=edges).output
            (output.double() * torch.linspace(0.5, 1, 8)).sum().backward()
        return torch.cat([x.grad.double().flatten() for x in leaves[:2]])

    truth = gradients("reference", torch.float64)
    of_kernels, of_definition = (
        (gradients(name, dtype) - truth).norm() / truth.norm() for name in ("auto", "reference")
    )
    assert of_kernels < 2 * of_definition
