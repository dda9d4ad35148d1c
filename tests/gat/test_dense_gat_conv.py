"""DenseGATConv: torch_geometric's numbers over all options, and GATConv's."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch_geometric.nn

from attn_core import backend
from gat import DenseGATConv, GATConv
from tests.gat.conftest import TOLERANCE, assert_same_calls

CLASSES = DenseGATConv, torch_geometric.nn.DenseGATConv


@pytest.mark.parametrize("path", ["fused", "reference"])
@pytest.mark.parametrize("loop", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_agrees_over_the_product_of_options(
    twins: Any, path: str, loop: bool, shared: bool
) -> None:
    flags = itertools.product((1, 3), (True, False), (True, False), (True, False), TOLERANCE)
    for heads, concat, bias, masked, dtype in flags:
        layers = twins(4, 3, heads, concat, bias=bias, classes=CLASSES, dtype=dtype)
        adj = (torch.rand(5, 5) < 0.5) | torch.eye(5).roll(1, 0).bool()
        adj = adj.to(dtype) if shared else torch.stack([adj, adj.t()]).to(dtype)
        mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]).bool() if masked else None
        x = torch.randn(2, 5, 4, dtype=dtype)
        assert_same_calls(
            *layers, lambda layer, x, adj=adj, mask=mask: layer(x, adj, mask, loop), x, path=path
        )
        if shared:
            assert_same_calls(*layers, lambda layer, x, adj=adj: layer(x, adj, None, loop), x[0])


def test_the_same_graph_as_edges_gives_the_same() -> None:
    dense, sparse = DenseGATConv(4, 3, 2).double(), GATConv(4, 3, 2).double()
    dense.load_state_dict({
        name: value.view(dense.state_dict()[name].shape)
        for name, value in sparse.state_dict().items()
    })  # fmt: skip
    x, edges = torch.randn(5, 4).double(), torch.tensor([[0, 1, 2, 4], [1, 0, 3, 3]])
    adj = torch.zeros(5, 5).index_put((edges[1], edges[0]), torch.ones(4))
    out, weights = dense(x, adj, return_attention_weights=True)
    torch.testing.assert_close(out[0], sparse(x, edges))
    attention = sparse(x, edges, return_attention_weights=True)[1]
    torch.testing.assert_close(weights[0], attention.to_dense())


@pytest.mark.parametrize("path", ["auto", "reference"])
def test_a_node_that_attends_to_nobody_gets_the_bias(path: str) -> None:
    layer = DenseGATConv(4, 3)
    torch.nn.init.ones_(layer.bias)
    x = torch.randn(1, 2, 4, requires_grad=True)
    with backend(path):
        out = layer(x, torch.tensor([[0.0, 1.0], [0.0, 0.0]]), add_loop=False)
    assert torch.equal(out[0, 1], torch.ones(3))  # theirs gives NaN
    out.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_matrix_of_another_size_is_told_what_is_expected() -> None:
    with pytest.raises(ValueError) as raised:
        DenseGATConv(4, 3)(torch.ones(2, 5, 4), torch.ones(3, 5, 5))
    assert str(raised.value) == (
        "adj has shape [3, 5, 5]; with x of shape [2, 5, 4] expected [2, 5, 5]"
    )
