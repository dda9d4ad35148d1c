"""RGATConv: torch_geometric's numbers over all options."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn

from attn_core import Edges
from gat import RGATConv
from tests.gat.conftest import EDGES, PATHS, TOLERANCE, assert_same_calls, pairwise

CLASSES = RGATConv, torch_geometric.nn.RGATConv
TYPES = torch.tensor([0, 1, 2, 0, 2, 0, 1, 1])
ADDITIVE, MULTIPLICATIVE = "additive-self-attention", "multiplicative-self-attention"
MODES = [(ADDITIVE, 1), (MULTIPLICATIVE, 1), (MULTIPLICATIVE, 2)]
MAPS: list[dict[str, int]] = [{}, {"num_bases": 2}, {"num_blocks": 2}]


def call(layer: Any, x: Any, *edge_attr: Any) -> Any:
    return layer(x, EDGES, TYPES, *edge_attr, return_attention_weights=True)


@pytest.mark.parametrize("mechanism", ["across-relation", "within-relation"])
@pytest.mark.parametrize("mod", [None, "additive", "scaled", "f-additive", "f-scaled"])
@pytest.mark.parametrize(("mode", "dim"), MODES)
def test_agrees_over_the_product_of_options(
    twins: Any, mechanism: str, mod: str | None, mode: str, dim: int
) -> None:
    for heads, concat, edge_dim, i in pairwise((1, 2), (True, False), (None, 3), range(len(MAPS))):
        options = {"attention_mechanism": mechanism, "attention_mode": mode, "mod": mod, "dim": dim}
        options |= {"heads": heads, "concat": concat, "edge_dim": edge_dim, **MAPS[i]}
        layers = twins(4, 2, 3, **options, classes=CLASSES)
        if mod == "scaled":  # theirs leaves this parameter as the memory comes
            for layer in layers:
                torch.nn.init.eye_(layer.l2)
        edge_attr = [] if edge_dim is None else [torch.randn(8, 3).double()]
        assert_same_calls(*layers, call, torch.randn(6, 4).double(), *edge_attr)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("relations", [3, 40])  # more maps than pairs of nodes and relations
def test_agrees_on_every_path_in_both_precisions(
    twins: Any, path: str, dtype: torch.dtype, relations: int
) -> None:
    for mechanism, maps in itertools.product(("across-relation", "within-relation"), MAPS):
        layers = twins(4, 2, relations, heads=2, attention_mechanism=mechanism, bias=False,
                       edge_dim=1, dtype=dtype, classes=CLASSES, **maps)  # fmt: skip
        x, edge_attr = torch.randn(6, 4, dtype=dtype), torch.randn(8, dtype=dtype)
        assert_same_calls(*layers, call, x, edge_attr, path=path)


@pytest.mark.parametrize("relations", [2, 40])
def test_sources_and_targets_and_graphs_without_edges(twins: Any, relations: int) -> None:
    layers = twins(4, 2, relations, heads=2, classes=CLASSES)
    x = torch.randn(6, 4).double(), torch.randn(7, 4).double()
    types = TYPES.clamp(max=1)
    assert_same_calls(*layers, lambda layer, *x: layer(x, EDGES, types, size=(6, 7)), *x)
    none = torch.empty(2, 0, dtype=torch.int64)
    assert_same_calls(*layers, lambda layer, x: layer(x, none, types[:0]), x[0])


def test_types_that_are_edited_are_seen() -> None:
    layer, x, types = RGATConv(4, 2, 40).double(), torch.randn(6, 4).double(), TYPES.clone()
    edges = Edges(EDGES, 6, 6)
    before = layer(x, edges, types)
    types[0] = 2
    expected = layer(x, EDGES, types.clone())
    torch.testing.assert_close(layer(x, edges, types), expected)
    assert not torch.allclose(before, expected)


@pytest.mark.parametrize("watched", [False, True])
def test_weights_of_chosen_targets(watched: bool) -> None:
    layer, x = RGATConv(4, 2, 3, heads=2), torch.randn(6, 4)
    pairs, weights = layer(x, EDGES, TYPES, return_attention_weights=True)[1]
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    found = layer(x, EDGES, TYPES, return_attention_weights=torch.tensor([0]))[1]
    assert torch.equal(found.edge_index, pairs[:, pairs[1] == 0])
    torch.testing.assert_close(found.weights, weights[pairs[1] == 0])


@pytest.mark.parametrize(("options", "given", "error", "message"), [
    ({}, (None,), ValueError,
     "edge_type is None; expected integers [8], the relation of each edge"),
    ({}, (TYPES[:3],), ValueError,
     "edge_type is [3]; expected integers [8], the relation of each edge"),
    ({}, (TYPES + 1,), IndexError,
     "edge_type has the entry 3; expected 0 to 2, as num_relations is 3"),
    ({}, (TYPES.float(),), TypeError,
     "edge_type has dtype torch.float32; convert it with .long()"),
    ({}, (TYPES, torch.ones(8, 2)), ValueError,
     "edge_attr has shape [8, 2], for 8 edges, and RGATConv was built with edge_dim=None: build it "
     "with the features per edge, and give each edge a row"),
    ({"mod": "plus"}, (), ValueError,
     "mod is 'plus'; expected one of None, 'additive', 'scaled', 'f-additive', 'f-scaled'"),
    ({"num_blocks": 3}, (), ValueError, "in_channels is 4, which num_blocks=3 does not divide"),
])  # fmt: skip
def test_bad_input_is_told_what_is_wrong(
    options: Any, given: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        RGATConv(4, 2, 3, **options)(torch.ones(6, 4), EDGES, *given)
    assert str(raised.value) == message


def test_no_parameter_is_left_as_memory_was() -> None:
    conv = RGATConv(4, 3, 2, heads=2, mod="scaled")
    assert bool((conv.l2 == 1 / 3).all())  # what torch_geometric means to write, and does not
    with torch.no_grad():
        conv.l2.fill_(float("nan"))
    conv.reset_parameters()
    assert all(bool(parameter.isfinite().all()) for parameter in conv.parameters())
