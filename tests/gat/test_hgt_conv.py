"""HGTConv: torch_geometric's numbers over all options, in one call of attend."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor

import gat.conv.hgt_conv
from attn_core import Edges
from gat import HGTConv
from tests.gat.conftest import PATHS, TOLERANCE, assert_same_calls

CLASSES = HGTConv, torch_geometric.nn.HGTConv
# Nobody leads to a venue, and no edge of the type "likes" is given
METADATA = (
    ["author", "paper", "venue"],
    [("author", "writes", "paper"), ("paper", "cites", "paper"), ("paper", "by", "author"),
     ("venue", "prints", "paper"), ("author", "likes", "venue")],
)  # fmt: skip
SIZES = {"author": 3, "paper": 5, "venue": 2}
EDGES = {
    METADATA[1][0]: torch.tensor([[0, 1, 2, 2, 0], [4, 0, 1, 1, 4]]),
    METADATA[1][1]: torch.tensor([[0, 1, 2, 3], [1, 0, 2, 1]]),
    METADATA[1][2]: torch.tensor([[4, 0, 1, 1, 3], [0, 1, 2, 2, 2]]),
    METADATA[1][3]: torch.tensor([[1], [0]]),
}


def features(width: int | dict[str, int], dtype: torch.dtype) -> dict[str, Tensor]:
    widths = width if isinstance(width, dict) else dict.fromkeys(SIZES, width)
    return {name: torch.randn(n, widths[name], dtype=dtype) for name, n in SIZES.items()}


def call(layer: Any, x: dict[str, Tensor]) -> Any:
    return layer(x, EDGES)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("width", [4, 8, {"author": 3, "paper": 8, "venue": 2}])
def test_agrees_over_the_product_of_options(twins: Any, path: str, width: Any) -> None:
    for heads, dtype in itertools.product((1, 2, 4), TOLERANCE):
        layers = twins(width, 8, METADATA, heads, classes=CLASSES, dtype=dtype)
        for layer in layers:
            for parameter in (*layer.skip.values(), *layer.p_rel.values()):
                torch.nn.init.uniform_(parameter, 0.5, 1.5, torch.Generator().manual_seed(1))
        assert_same_calls(*layers, call, features(width, dtype), path=path)


def test_the_order_of_the_types_of_edges_does_not_matter() -> None:
    """In torch_geometric 2.8 it does: the maps of relations are then mixed up."""
    layer, x = HGTConv(4, 8, METADATA, 2), features(4, torch.float32)
    expected = layer(x, EDGES)
    for name, out in layer(x, dict(reversed(EDGES.items()))).items():
        torch.testing.assert_close(out, expected[name])


def test_lazy_layers_take_their_widths_from_the_first_call() -> None:
    x = features({"author": 3, "paper": 8, "venue": 2}, torch.float32)
    ours, theirs = (cls(-1, 8, METADATA, 2) for cls in CLASSES)
    for layer in (ours, theirs):
        layer(x, EDGES)
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(x, EDGES)
    for name, out in ours(x, EDGES).items():
        torch.testing.assert_close(out, expected[name])


def test_weights_sum_to_one_over_all_types_of_edges_into_a_node() -> None:
    layer, x = HGTConv(4, 8, METADATA, 2), features(4, torch.float32)
    out, attention = layer(x, EDGES, return_attention_weights=True)
    totals = torch.zeros(5, 2)
    for edge_type, (pairs, weights) in attention.items():
        assert torch.equal(pairs, EDGES[edge_type])
        if edge_type[-1] == "paper":
            totals.index_add_(0, pairs[1], weights)
    torch.testing.assert_close(totals, torch.tensor([1.0, 1, 1, 0, 1])[:, None].expand(5, 2))
    layer.register_message_forward_hook(lambda *_: None)
    watched, same = layer(x, EDGES, return_attention_weights=True)
    for name in out:
        torch.testing.assert_close(watched[name], out[name])
    for edge_type in same:
        torch.testing.assert_close(same[edge_type].weights, attention[edge_type].weights)


def test_all_types_are_attended_over_at_once_and_sorted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer, x = HGTConv(4, 8, METADATA, 2), features(4, torch.float32)
    calls = []
    attend = gat.conv.hgt_conv.attend
    monkeypatch.setattr(
        gat.conv.hgt_conv, "attend", lambda *a, **k: calls.append(k["support"]) or attend(*a, **k)
    )
    kept = {t: Edges(e, SIZES[t[0]], SIZES[t[2]]) for t, e in EDGES.items()}
    expected = layer(x, EDGES)
    assert len(calls) == 1
    for given in (EDGES, kept, kept):
        for name, out in layer(x, given).items():
            torch.testing.assert_close(out, expected[name])
    assert calls[0] is calls[1] and calls[2] is calls[3]
    edited = {t: e.clone() for t, e in EDGES.items()}
    before = layer(x, edited)
    edited[METADATA[1][0]][1, 0] = 3
    assert not torch.allclose(layer(x, edited)["paper"], before["paper"])


@pytest.mark.parametrize(("x", "edges", "error", "message"), [
    ([], EDGES, TypeError, "x_dict is a list; expected a dictionary by type"),
    ({"author": torch.ones(3, 4)}, EDGES, ValueError,
     "edge_index_dict has the type ('author', 'writes', 'paper'), but x_dict has no 'paper'"),
    ({}, {("a", "b", "c"): EDGES}, ValueError,
     "edge_index_dict has the type ('a', 'b', 'c'), of which HGTConv was not told: name it in "
     "metadata"),
])  # fmt: skip
def test_bad_input_is_told_what_is_wrong(
    x: Any, edges: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        HGTConv(4, 8, METADATA)(x, edges)
    assert str(raised.value) == message
