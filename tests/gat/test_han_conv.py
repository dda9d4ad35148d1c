"""HANConv: torch_geometric's numbers over all options, in one call of attend."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn

from gat import HANConv
from tests.gat.conftest import PATHS, TOLERANCE, assert_same_calls
from tests.gat.test_hgt_conv import EDGES, METADATA, features

CLASSES = HANConv, torch_geometric.nn.HANConv


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("width", [4, {"author": 3, "paper": 8, "venue": 2}])
def test_agrees_over_the_product_of_options(twins: Any, path: str, width: Any) -> None:
    for heads, slope, dtype in itertools.product((1, 2, 4), (0.2, 0.0), TOLERANCE):
        layers = twins(
            width, 8, METADATA, heads, negative_slope=slope, classes=CLASSES, dtype=dtype
        )
        assert_same_calls(
            *layers,
            lambda layer, x: layer(x, EDGES, return_semantic_attention_weights=True),
            features(width, dtype),
            path=path,
        )


def test_weights_sum_to_one_within_each_type_of_edges() -> None:
    layer, x = HANConv(4, 8, METADATA, 2), features(4, torch.float32)
    out, attention = layer(x, EDGES, return_attention_weights=True)
    for edge_type, (pairs, weights) in attention.items():
        assert torch.equal(pairs, EDGES[edge_type])
        totals = torch.zeros(5, 2).index_add(0, pairs[1], weights)
        torch.testing.assert_close(totals[pairs[1]], torch.ones_like(weights))
    everything = layer(x, EDGES, True, True)
    assert len(everything) == 3
    torch.testing.assert_close(everything[1]["paper"].sum(), torch.tensor(1.0))
    assert everything[1]["venue"] is None and out["venue"] is None
    layer.register_message_forward_hook(lambda *_: None)
    watched, same = layer(x, EDGES, return_attention_weights=True)
    torch.testing.assert_close(watched["paper"], out["paper"])
    for edge_type in same:
        torch.testing.assert_close(same[edge_type].weights, attention[edge_type].weights)


def test_dropped_weights_leave_nothing_to_hand_on() -> None:
    layer = HANConv(4, 8, METADATA, 2, dropout=1.0)
    assert not layer(features(4, torch.float32), EDGES)["paper"].any()
    assert layer.eval()(features(4, torch.float32), EDGES)["paper"].any()


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="out_channels is 8, which heads=3 do not divide"):
        HANConv(4, 8, METADATA, 3)
