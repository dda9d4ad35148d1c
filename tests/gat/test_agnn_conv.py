"""AGNNConv itself: values worked out by hand, and what it does in extreme cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from attn_core import backend
from gat import AGNNConv

EDGES = torch.tensor([[1, 2], [0, 0]])


def test_output_is_that_worked_out_by_hand() -> None:
    # Node 0 looks along the first axis: cosines 1 (itself), 1 and 0, whatever the lengths
    x = torch.tensor([[1.0, 0.0], [5.0, 0.0], [0.0, 3.0]])
    layer = AGNNConv()
    with torch.no_grad():
        layer.beta.fill_(math.log(2))
    expected = torch.stack([torch.tensor([2 * 1 + 2 * 5, 3.0]) / 5, x[1], x[2]])
    torch.testing.assert_close(layer(x, EDGES), expected)
    alone = AGNNConv(add_self_loops=False, requires_grad=False)  # β is 1
    expected = torch.tensor([[5 * math.e, 3.0]]) / (math.e + 1)
    torch.testing.assert_close(alone(x, EDGES)[:1], expected)
    assert not alone(x, EDGES)[1:].any()


def test_only_the_direction_of_the_one_who_asks_counts() -> None:
    x = torch.randn(3, 4)
    layer = AGNNConv(add_self_loops=False)
    longer = torch.cat([7 * x[:1], x[1:]])
    torch.testing.assert_close(layer(longer, EDGES), layer(x, EDGES))


def test_beta_is_learned_or_fixed() -> None:
    layer, fixed = AGNNConv(), AGNNConv(requires_grad=False)
    layer(torch.randn(3, 4), EDGES).square().sum().backward()
    assert layer.beta.grad.any()
    assert not list(fixed.parameters())
    for one in (layer, fixed):
        assert one.state_dict()["beta"].tolist() == [1]


@pytest.mark.parametrize("path", ["fused", "reference", "messages"])
def test_a_node_whose_scores_are_all_minus_infinity_attends_to_nothing(path: str) -> None:
    layer = AGNNConv()
    torch.nn.init.constant_(layer.beta, -math.inf)
    if path == "messages":
        layer.register_message_forward_hook(lambda *_: None)
    with backend("reference" if path == "reference" else "auto"):
        assert not layer(torch.rand(3, 4) + 1, EDGES).any()  # theirs gives NaN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_of_zero_or_of_great_length_are_no_nan_in_half_types(dtype: torch.dtype) -> None:
    """As relu makes them; in float16, the smallest length to divide by would be 0."""
    layer = AGNNConv().to(dtype)
    x = torch.tensor([[0.0] * 4, [3e4] * 4, [1.0] * 4], dtype=dtype)
    out = layer(x, EDGES)
    torch.testing.assert_close(out[0], x[1:].sum(0) / 3)  # all cosines with zeros are 0
    torch.testing.assert_close(out[1:], x[1:])
    x = torch.eye(3, 4, dtype=dtype).index_fill(0, torch.tensor([1]), 0).requires_grad_()
    layer(x, EDGES).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_dtype_of_the_features_comes_out(dtype: torch.dtype, watched: bool) -> None:
    """Also where β has kept its own."""
    layer = AGNNConv()
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    assert layer(torch.randn(3, 4).to(dtype), EDGES).dtype == dtype


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ((torch.ones(3, 4), torch.ones(3, 4)), TypeError,
         "x is a tuple; AGNNConv expects a tensor [N, channels]"),
        (torch.ones(3, 4).long(), TypeError,
         "x has dtype torch.int64; convert it with .float()"),
        (torch.ones(4), ValueError,
         "x has shape [4]; AGNNConv expects [nodes, channels], one row of features for each node "
         "(graphs of a batch are joined into one; states of one graph are [batch, nodes, "
         "channels])"),
    ],
)  # fmt: skip
def test_bad_input_is_told_what_is_wrong(x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        AGNNConv()(x, EDGES)
    assert str(raised.value) == message
