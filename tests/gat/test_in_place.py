"""Operations in place on what the layers return, as code around torch_geometric's applies them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gat

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
LAYERS: dict[str, Callable[[], torch.nn.Module]] = {
    "AGNNConv": gat.AGNNConv,
    "GATConv": lambda: gat.GATConv(4, 3, heads=2),
    "GATConv, no bias": lambda: gat.GATConv(4, 3, heads=2, bias=False),
    "GATConv, averaged": lambda: gat.GATConv(4, 3, heads=2, concat=False, bias=False),
    "GATConv, one head averaged": lambda: gat.GATConv(4, 3, concat=False, bias=False),
    "GATConv, residual": lambda: gat.GATConv(4, 3, bias=False, residual=True),
    "GATv2Conv, no bias": lambda: gat.GATv2Conv(4, 3, heads=2, bias=False),
    "TransformerConv": lambda: gat.TransformerConv(4, 3, heads=2),
    "TransformerConv, no skip": lambda: gat.TransformerConv(4, 3, heads=2, root_weight=False),
    "TransformerConv, beta": lambda: gat.TransformerConv(4, 3, heads=2, beta=True),
    **{
        f"GraphAttentionConv, {name}": lambda name=name: gat.GraphAttentionConv(
            4, 3, heads=2, normalizer=name, bias=False
        )
        for name in ("softmax", "sparsemax", "entmax", "hard", "identity")
    },
    **{
        f"GraphAttentionConv, {name}": lambda name=name: gat.GraphAttentionConv(
            4, 3, heads=2, score=name, bias=False
        )
        for name in ("cosine", "dot", "general", "concat", "separable")
    },
    "GAT": lambda: gat.GAT(4, 6, 2, heads=2, bias=False),
    "GAT, in place": lambda: gat.GAT(4, 6, 3, act=torch.relu_, bias=False),
    "AGNN": lambda: gat.AGNN(4, 6, 2),
}


def added(x: Tensor) -> Tensor:
    x += 1
    return x


OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "F.relu": (lambda x: F.relu(x, inplace=True), F.relu),
    "relu_": (torch.relu_, F.relu),
    "elu_": (F.elu_, F.elu),
    "dropout": (
        lambda x: F.dropout(x, 0.5, inplace=True),
        lambda x: F.dropout(x, 0.5),
    ),
    "+=": (added, lambda x: x + 1),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("kind", LAYERS)
def test_an_operation_in_place_is_that_operation(kind: str, operation: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    results = []
    for apply in OPERATIONS[operation]:
        layer.zero_grad()
        x = X.clone().requires_grad_()
        torch.manual_seed(1)
        out = apply(layer(x, EDGES))
        out.square().sum().backward()
        results.append([out, x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", [kind for kind in LAYERS if "Conv" in kind and "AGNN" not in kind])
def test_weights_that_were_returned(kind: str) -> None:
    layer = LAYERS[kind]()
    results: list[Any] = []
    for in_place in (True, False):
        x = X.clone().requires_grad_()
        out, (_, weights) = layer(x, EDGES, return_attention_weights=True)
        weights = weights.mul_(2) if in_place else weights * 2
        (out.square().sum() + weights.square().sum()).backward()
        results.append([weights, x.grad])
    torch.testing.assert_close(*results)
