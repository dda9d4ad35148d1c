"""HypergraphConv: torch_geometric's numbers over all options."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn

from attn_core import Edges
from gat import HypergraphConv
from tests.gat.conftest import PATHS, TOLERANCE, assert_same_calls

CLASSES = HypergraphConv, torch_geometric.nn.HypergraphConv
# Node 4 is in no hyperedge, node 1 twice in one, and hyperedge 2 holds nobody
HOLDS = torch.tensor([[0, 1, 2, 1, 2, 3, 1, 5], [0, 0, 0, 1, 1, 1, 1, 3]])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", ["node", "edge"])
@pytest.mark.parametrize("attention", [True, False])
def test_agrees_over_the_product_of_options(
    twins: Any, path: str, mode: str, attention: bool
) -> None:
    flags = itertools.product((1, 3), (True, False), (True, False), (True, False), TOLERANCE)
    for heads, concat, bias, weighted, dtype in flags:
        if not attention and (heads > 1 or not concat):
            continue
        layers = twins(4, 2, attention, mode, heads, concat, 0.3, bias=bias, classes=CLASSES,
                       dtype=dtype)  # fmt: skip
        x, attr = torch.randn(6, 4, dtype=dtype), torch.randn(4, 4, dtype=dtype)
        weight = torch.rand(4, dtype=dtype) if weighted else None
        assert_same_calls(
            *layers,
            lambda layer, x, attr, weight=weight: layer(x, HOLDS, weight, attr),
            *(x, attr),
            path=path,
        )


def test_weights_of_hyperedges_get_gradients(twins: Any) -> None:
    layers = twins(4, 2, True, classes=CLASSES)
    given = torch.randn(6, 4).double(), torch.rand(4).double() + 0.5, torch.randn(4, 4).double()
    assert_same_calls(*layers, lambda layer, x, w, attr: layer(x, HOLDS, w, attr, 4), *given)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("mode", ["node", "edge"])
def test_weights_sum_to_one_for_those_who_attend(mode: str, watched: bool) -> None:
    layer = HypergraphConv(4, 2, True, mode, 2)
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    x, attr = torch.randn(6, 4), torch.randn(4, 4)
    holds = Edges(HOLDS, 6, 4)
    _, (pairs, weights) = layer(x, holds, hyperedge_attr=attr, return_attention_weights=True)
    assert torch.equal(pairs, HOLDS if mode == "node" else HOLDS.flip(0))
    totals = torch.zeros(6, 2).index_add(0, pairs[1], weights)
    torch.testing.assert_close(totals[pairs[1]], torch.ones_like(weights))
    some = layer(x, holds, None, attr, return_attention_weights=torch.tensor([1]))[1]
    assert torch.equal(some.edge_index, pairs[:, pairs[1] == 1])
    torch.testing.assert_close(some.weights, weights[pairs[1] == 1])


def test_dropped_weights_are_dropped_there_and_back() -> None:
    layer = HypergraphConv(4, 2, True, dropout=1.0, bias=False)
    x, attr = torch.randn(6, 4), torch.randn(4, 4)
    assert not layer(x, HOLDS, hyperedge_attr=attr).any()


def test_attention_needs_features_of_hyperedges() -> None:
    with pytest.raises(ValueError) as raised:
        HypergraphConv(4, 2, use_attention=True)(torch.ones(6, 4), HOLDS)
    assert str(raised.value) == (
        "hyperedge_attr is None, but HypergraphConv was built with use_attention=True, and looks "
        "at the features of hyperedges: give it [hyperedges, in_channels]"
    )
