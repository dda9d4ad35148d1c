"""GeneralConv: torch_geometric's numbers over all options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_geometric.nn

from attn_core import Edges
from gat import GeneralConv
from tests.gat.conftest import (
    EDGES,
    KINDS,
    PATHS,
    SIMPLE,
    TOLERANCE,
    assert_same_calls,
    pairwise,
)

CLASSES = GeneralConv, torch_geometric.nn.GeneralConv


@pytest.mark.parametrize("kind", ["additive", "dot_product", None])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("directed", [True, False])
def test_agrees_over_the_product_of_options(
    twins: Any, kind: str | None, path: str, directed: bool
) -> None:
    flags = pairwise((1, 3), (None, 2), (True, False), (True, False), (3, 4), TOLERANCE)
    for heads, edges, skip, normalize, out, dtype in flags:
        options = {"heads": heads, "in_edge_channels": edges, "directed_msg": directed}
        options |= {"skip_linear": skip, "l2_normalize": normalize, "bias": skip}
        options |= {} if kind is None else {"attention": True, "attention_type": kind}
        layers = twins(4, out, classes=CLASSES, dtype=dtype, **options)
        x, attr = torch.randn(6, 4, dtype=dtype), torch.randn(8, 2, dtype=dtype)
        attr = [] if edges is None else [attr]
        assert_same_calls(*layers, lambda layer, x, *e: layer(x, EDGES, *e), x, *attr, path=path)


@pytest.mark.parametrize("kind", ["additive", "dot_product"])
@pytest.mark.parametrize("aggr", ["add", "mean", "max"])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_agrees_for_other_aggregations_flows_and_bipartite_graphs(
    twins: Any, kind: str, aggr: str, flow: str
) -> None:
    layers = twins((4, 4), 3, None, aggr, heads=2, attention=True, attention_type=kind, flow=flow,
                   classes=CLASSES)  # fmt: skip
    # Where messages flow to the sources, theirs has a skip connection from the targets all the same
    x = torch.randn(6 if flow == "source_to_target" else 5, 4).double(), torch.randn(5, 4).double()
    edges = EDGES.clamp(max=4)
    assert_same_calls(*layers, lambda layer, *x: layer(x, edges), *x)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "Edges with self-loops"])
def test_every_form_of_an_edge_index_gives_the_same(kind: str) -> None:
    layer = GeneralConv(4, 3, heads=2, attention=True)
    x, edges = torch.randn(6, 4), KINDS[kind](SIMPLE.clone())
    torch.testing.assert_close(layer(x, edges), layer(x, SIMPLE))


@pytest.mark.parametrize("kind", ["additive", "dot_product"])
@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_weights_are_those_that_make_the_output(kind: str, flow: str) -> None:
    layer = GeneralConv(4, 4, heads=2, attention=True, attention_type=kind, flow=flow).double()
    x = torch.randn(6, 4).double()
    for watched in (False, True):
        if watched:
            layer.register_message_forward_hook(lambda *_: None)
        out, (pairs, weights) = layer(x, EDGES, return_attention_weights=True)
        j, i = pairs if flow == "source_to_target" else pairs.flip(0)
        messages = weights[..., None] * layer.lin_msg(x).view(6, 2, 4)[j]
        expected = torch.zeros(6, 2, 4).double().index_add(0, i, messages).mean(1) + x
        torch.testing.assert_close(out, expected)
        some = layer(x, Edges(EDGES, 6, 6), return_attention_weights=torch.tensor([0]))[1]
        assert torch.equal(some.edge_index, pairs[:, i == 0])


def test_what_a_subclass_makes_of_messages_counts() -> None:
    class Doubled(GeneralConv):
        def message_basic(self, x_i: Any, x_j: Any, edge_attr: Any) -> Any:
            return 2 * super().message_basic(x_i, x_j, edge_attr)

    layer, other = GeneralConv(4, 3, attention=True), Doubled(4, 3, attention=True)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(6, 4)
    assert layer._is_fused() and not other._is_fused()
    assert not torch.allclose(layer(x, EDGES), other(x, EDGES))


@pytest.mark.parametrize(("options", "given", "message"), [
    ({"attention": True}, (torch.ones(8, 2),),
     "edge_attr has shape [8, 2], but GeneralConv was built with in_edge_channels=None: build it "
     "with the features per edge, or drop edge_attr"),
    ({}, (None, None, True),
     "return_attention_weights was asked for, but GeneralConv was built with attention=False: "
     "build it with attention=True"),
    ({"attention_type": "cosine"}, (),
     "attention_type is 'cosine'; expected one of 'additive', 'dot_product'"),
])  # fmt: skip
def test_bad_input_is_told_what_is_wrong(options: Any, given: Any, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        GeneralConv(4, 3, **options)(torch.ones(6, 4), EDGES, *given)
    assert str(raised.value) == message
