"""Layers on the CPU under a default device that is another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gat
from attn_core import backend, clear_cache

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
ATTR = torch.randn(7, 2, generator=torch.Generator().manual_seed(2))
SPARSE = (X * (X > 0)).to_sparse_csr()
ADJACENCY = torch.sparse_coo_tensor(EDGES.flip(0), ATTR, (6, 6, 2)).coalesce()
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "GATConv": lambda: gat.GATConv(4, 3, 2, dropout=0.5, edge_dim=2, fill_value=0.5),
    "GATv2Conv": lambda: gat.GATv2Conv(4, 3, 2, dropout=0.5, edge_dim=2),
    "TransformerConv": lambda: gat.TransformerConv(4, 3, 2, dropout=0.5, edge_dim=2),
    **{
        f"GraphAttentionConv, {part}": lambda part=part: gat.GraphAttentionConv(
            4, 3, 2, dropout=0.5, edge_dim=2, **part
        )
        for part in (
            {"score": "cosine", "normalizer": "sparsemax"},
            {"score": "general", "normalizer": "entmax"},
            {"score": "concat", "normalizer": "hard"},
            {"score": "separable", "normalizer": "identity"},
        )
    },
}


def alike(compute: Callable[[], list[Tensor]]) -> None:
    """The same results, whatever the default device is."""
    results = []
    for default in ("cpu", "meta"):
        clear_cache()
        torch.manual_seed(0)
        with torch.device(default):
            results.append(compute())
    for found, expected in zip(*results, strict=True):
        assert found.device.type == "cpu" and torch.equal(found, expected)


@pytest.mark.parametrize("name", ["auto", "torch", "reference"])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind: str, name: str) -> None:
    layer: Any = LAYERS[kind]()
    layer.value_dropout = 0.3

    def compute() -> list[Tensor]:
        x, layer_input = X.clone().requires_grad_(), EDGES.clone()
        with backend(name):
            out, (pairs, weights) = layer(x, layer_input, ATTR, return_attention_weights=True)
            plain = layer(x, layer_input, ATTR)
            (out.square().sum() + weights.square().sum() + plain.square().sum()).backward()
        assert x.grad is not None
        return [out, pairs, weights, plain, x.grad]

    alike(compute)


@pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant):UserWarning")
@pytest.mark.parametrize("kind", ["GATConv", "GATv2Conv", "TransformerConv"])
def test_sparse_features_and_adjacency(kind: str) -> None:
    layer: Any = LAYERS[kind]()
    csr = torch.sparse_csr_tensor(
        torch.tensor([0, 2, 3, 4, 5, 6, 6]),
        torch.tensor([1, 4, 0, 2, 2, 3]),
        torch.ones(6),
        (6, 6),
    )

    def compute() -> list[Tensor]:
        layer.zero_grad()
        out, (_, weights) = layer(X, ADJACENCY, return_attention_weights=True)
        other, (_, others) = layer(X, csr, ATTR[:6], return_attention_weights=True)
        of_sparse = layer(gat.SparseDropout(0.5)(SPARSE), EDGES, ATTR)
        of_sparse.sum().backward()
        return [out, weights, other, others, of_sparse, *(p.grad for p in layer.parameters())]

    alike(compute)


def test_agnn() -> None:
    layer = gat.AGNNConv()

    def compute() -> list[Tensor]:
        return [layer(X, EDGES), *layer.attention(X, EDGES, torch.tensor([1], device="cpu"))]

    alike(compute)


@pytest.mark.parametrize("kind", [gat.GAT, gat.GATv2, gat.GraphTransformer, gat.AGNN])
def test_models(kind: Any) -> None:
    model = kind(4, 6, 2, 3, dropout=0.5)

    def compute() -> list[Tensor]:
        found = gat.attention_weights(model, X, EDGES)
        top = found[0].top_k(1)
        dense = [layer.to_dense() for layer in found]
        return [model(X, EDGES), model(SPARSE, EDGES), *dense, top.sources, top.weights]

    alike(compute)


@pytest.mark.parametrize("level", ["edge", "graph"])
def test_levels(level: Any) -> None:
    model = gat.GAT(4, 6, 2, 3, level=level)
    given = {"edge_label_index": EDGES} if level == "edge" else {}
    alike(lambda: [model(X, EDGES, **given)])
