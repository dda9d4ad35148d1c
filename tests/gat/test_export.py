"""torch.export and ONNX: one program for graphs of all sizes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gat import (
    AGNN,
    GAT,
    AGNNConv,
    GATConv,
    GATv2,
    GATv2Conv,
    GraphAttention,
    GraphAttentionConv,
    GraphTransformer,
    TransformerConv,
)

SIZES = (10, 41), (13, 48), (5, 3)  # nodes, edges: few enough for nodes without any
Case = tuple[Callable[[], nn.Module], bool, bool]  # makes it; with edge_attr; with weights


def case(make: Callable[..., nn.Module], *args: Any, weights: bool = False, **options: Any) -> Case:
    return lambda: make(*args, **options), "edge_dim" in options, weights


def layer(conv: Any, **options: Any) -> Case:
    return case(conv, 4, 3, heads=2, **options)


def model(network: Any, **options: Any) -> Case:
    return case(network, 4, 6, 2, 3, heads=2, **options)


CASES: dict[str, Case] = {
    **{
        f"{conv.__name__}, {name}": layer(conv, **options)
        for conv in (GATConv, GATv2Conv, GraphAttentionConv)
        for name, options in {
            "no self-loops, weights": {"add_self_loops": False, "weights": True},
            "edge_attr": {"edge_dim": 2},
        }.items()
    },
    "TransformerConv": layer(TransformerConv, beta=True),
    "TransformerConv, edge_attr and weights": layer(TransformerConv, edge_dim=2, weights=True),
    "GraphAttentionConv, sparsemax": layer(
        GraphAttentionConv, score="dot", normalizer="sparsemax", weights=True
    ),
    "AGNNConv": case(AGNNConv),
    "GAT": model(GAT, edge_dim=2, weights=True),
    "GATv2": model(GATv2, norm="batch_norm", jk="cat"),
    "GraphTransformer": model(GraphTransformer, edge_dim=2),
    "GraphAttention": model(GraphAttention),
    "AGNN": case(AGNN, 4, 6, 2, 3),
}


def inputs(name: str, nodes: int, edges: int) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    _, edge_attr, weights = CASES[name]
    given: dict[str, Any] = {"edge_attr": torch.randn(edges, 2)} if edge_attr else {}
    if weights:
        given["return_attention_weights"] = True
    return (torch.randn(nodes, 4), torch.randint(nodes, (2, edges))), given


# Models have the layers in them
@pytest.mark.parametrize(
    ("name", "strict"),
    [(name, False) for name in CASES] + [(name, True) for name in CASES if "Conv" not in name],
)
def test_exports_with_any_number_of_nodes_and_edges(
    name: str, strict: bool, check_export: Any
) -> None:
    check_export(CASES[name][0]().eval(), *(inputs(name, *n) for n in SIZES), strict=strict)


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_gives_the_same_with_any_number_of_nodes_and_edges(
    name: str, check_onnx: Any
) -> None:
    check_onnx(CASES[name][0]().eval(), *(inputs(name, *n) for n in SIZES))


@pytest.mark.parametrize("conv", [GATConv, GATv2Conv, TransformerConv])
def test_a_program_is_saved_and_loaded(conv: Any) -> None:
    layer, (args, _) = conv(4, 3), inputs("AGNNConv", 10, 41)
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, args), file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(*args), layer(*args))
