"""Weights, outputs and gradients are right whatever the scale of the scores, from 1 to 1e9."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import Additive, Dot, Edges, Separable, Softmax, attend, backend, weights
from attn_core.backends import triton as kernels
from attn_core.backends.cpu import available
from benchmarks import scales

each_layer = pytest.mark.parametrize("name", scales.CASES)
each_scale = pytest.mark.parametrize("scale", scales.SCALES)
DOUBLE = torch.float64


@each_layer
@pytest.mark.parametrize("using", ["auto", "torch"])
def test_no_error_is_more_than_four_times_the_peers(name: str, using: str) -> None:
    """At each scale. One input in one order would be chance: few rows make the error there."""
    if using == "torch" and not available():
        pytest.skip("auto is plain torch already")
    for scale in scales.SCALES[::2] if using == "auto" else scales.SCALES[1::4]:
        with backend(using):
            ours, theirs = scales.measure(name, scale, inputs=3)
        assert ours.excess == 0 and ours.row_sum <= 1e-6
        for what in ("output", "weights", "gradients"):
            assert getattr(ours, what) <= 4 * getattr(theirs, what) + 1e-6, (scale, what)


@pytest.mark.parametrize("name", [name for name in scales.CASES if name != "AGNNConv"])
def test_returned_weights_are_probabilities(name: str) -> None:
    for scale in scales.SCALES:
        found = scales.weights_of(name, scale)
        drawn = torch.bernoulli(found)  # which raises above 1
        assert ((drawn == 0) | (found > 0)).all() and ((drawn == 1) | (found < 1)).all()


def arguments(score: str, scale: float, dtype: torch.dtype) -> dict[str, Any]:
    """Two queries, of which one has many pairs with scores next to each other."""
    torch.manual_seed(0)
    pairs = torch.stack([torch.randint(30, (80,)), torch.cat([torch.zeros(60), torch.ones(20)])])

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype).requires_grad_()

    given: dict[str, Any] = {
        "query": leaf(2, 2, 3), "key": leaf(30, 2, 3), "value": leaf(30, 2, 3), "bias": leaf(80, 2),
        "pair_key": leaf(80, 2, 3), "support": Edges.from_edge_index(pairs.long(), (30, 2)),
    }  # fmt: skip
    given["query"].data[..., 0] *= scale
    kinds = {
        "dot": Dot(0.3), "leaky_relu": Additive(leaf(2, 3), "leaky_relu"),
        "tanh": Additive(leaf(2, 3) * scale, "tanh"), "gat": Separable(leaf(2, 3), leaf(2, 3)),
    }  # fmt: skip
    return given | {"score": kinds[score]}


@each_scale
@pytest.mark.parametrize("score", ["dot", "leaky_relu", "tanh", "gat"])
@pytest.mark.parametrize("using", ["auto", "torch", "triton"])
def test_no_backward_pass_sees_a_weight_above_one(score: str, scale: float, using: str) -> None:
    """With one value for all and its gradient, what a key's value gets are its weights."""

    def weights_seen() -> Tensor:
        given = arguments(score, scale, torch.float32)
        edges = given["support"]
        given["value"] = value = torch.zeros(30, 2, 3, requires_grad=True)
        # A key of one pair alone for each: its value's gradient is the weight
        given["pair_value"] = of_pair = torch.zeros(80, 2, 3, requires_grad=True)
        output = attend(**given).output
        of_value, of_pair = torch.autograd.grad(output.sum(), [value, of_pair])
        sums = torch.zeros(30, 2, 3).index_add_(0, edges.key_index, of_pair)
        # By query and by key, the same weights
        torch.testing.assert_close(of_value, sums, rtol=1e-6, atol=1e-6)
        return of_pair[..., 0]

    if using == "triton":
        if scale not in scales.SCALES[3::6]:
            pytest.skip("the interpreter is slow")
        pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")
        with kernels.on_cpu():
            seen = weights_seen()
    else:
        with backend(using):
            seen = weights_seen()
    assert seen.max() <= 1
    index = arguments(score, scale, torch.float32)["support"].query_index
    sums = torch.zeros(2, 2, dtype=DOUBLE).index_add_(0, index, seen.double())
    torch.testing.assert_close(sums, torch.ones(2, 2, dtype=DOUBLE), rtol=0, atol=1e-6)


@each_scale
def test_chosen_weights_are_right_at_every_scale(scale: float) -> None:
    """Whole rows are; single pairs by their log-sum-exp lose digits, but none is above 1."""
    given = arguments("dot", scale, torch.float32)
    edges, value = given.pop("support"), given.pop("value")
    result = attend(**given, value=value, support=edges, need_weights=True)
    assert result.weights is not None and result.log_sum_exp is not None
    row = weights(**given, support=edges, queries=torch.tensor([1]))
    torch.testing.assert_close(row, result.weights[edges.query_index == 1], rtol=1e-5, atol=0)
    few = weights(**given, support=edges, log_sum_exp=result.log_sum_exp)
    assert few.max() <= 1
    off = 4e-7 * max(1, float(result.log_sum_exp.detach().abs().max()))
    assert (few - result.weights).abs().max() <= off


def test_a_log_sum_exp_that_rounding_put_too_low_still_trains() -> None:
    """The weight is cut to 1, its gradient is not."""
    x, star = torch.ones(2, 1, 1), Edges.from_edge_index(torch.tensor([[1], [0]]), size=2)
    bias = torch.full((1, 1), 5.0, requires_grad=True)
    found = weights(
        x, x, score=Dot(), support=star, bias=bias, log_sum_exp=torch.full((2, 1), 5.999)
    )
    (gradient,) = torch.autograd.grad(found.sum(), bias)
    assert found.item() == 1 and gradient.item() == 1


@pytest.mark.parametrize("temperature", [0.1, torch.tensor([0.3, 20.0])])
def test_a_temperature_is_part_of_the_scale(temperature: float | Tensor) -> None:
    for scale in scales.SCALES:
        given = arguments("dot", scale, torch.float32)
        found = attend(**given, normalizer=Softmax(temperature), need_weights=True)
        assert found.weights is not None and found.weights.max() <= 1
        sums = torch.zeros(2, 2, dtype=DOUBLE)
        sums.index_add_(0, given["support"].query_index, found.weights.detach().double())
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-6)
