"""Layers whose linear maps a user put others in the place of, and sizes that edge_index knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_geometric
from torch import Tensor, nn
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

import gat
from attn_core import Edges

THEIRS = torch_geometric.nn
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
# Of each layer, the maps of node features with the number of heads and channels 2 × 3
MAPS = {
    "GATConv": ["lin"],
    "GATv2Conv": ["lin_l", "lin_r"],
    "TransformerConv": ["lin_query", "lin_key", "lin_value", "lin_skip"],
}
OURS = {**MAPS, "GraphAttentionConv": ["lin_query", "lin_key", "lin_value"]}


class Quantised(torch.ao.nn.quantized.dynamic.Linear):
    """Whose weight is no tensor, but a method."""


def quantised() -> nn.Module:
    linear = nn.Linear(4, 6)
    linear.qconfig = torch.ao.quantization.default_dynamic_qconfig
    return Quantised.from_float(linear)


OTHERS: dict[str, Any] = {
    "sequential": lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6)),
    "quantised": quantised,
    "embedding": lambda: nn.Embedding(4, 6),
    "narrower": lambda: nn.Linear(2, 6),
}


def inputs(kind: str, name: str) -> Tensor:
    kinds = torch.tensor([0, 3, 1, 1, 2, 0])
    if name in ("GATConv", "GATv2Conv"):  # torch_geometric's insist on two dimensions
        kinds = kinds.unsqueeze(1)
    return {"embedding": kinds, "narrower": X[:, :2]}.get(kind, X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*quantiz.*:UserWarning")
@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", OURS)
def test_a_map_that_was_replaced_is_called_as_it_is(name: str, kind: str) -> None:
    layers = [getattr(module, name)(4, 3, heads=2) for module in (gat, THEIRS) if name in MAPS]
    layers = layers or [gat.GraphAttentionConv(4, 3, heads=2)]
    layers[-1].load_state_dict(layers[0].state_dict())
    for part in OURS[name]:
        other = OTHERS[kind]()
        for layer in layers:
            setattr(layer, part, other)
    x = inputs(kind, name)
    out = layers[0](x, EDGES)
    assert out.shape == (6, 6)
    torch.testing.assert_close(layers[-1](x, EDGES), out)
    if name != "GATConv":
        torch.testing.assert_close(layers[0]((x, x), EDGES), out)


@pytest.mark.parametrize("fill_value", [2, "max"])
@pytest.mark.parametrize("name", MAPS)
def test_kinds_of_edges_through_an_embedding(name: str, fill_value: Any) -> None:
    options = {} if name == "TransformerConv" else {"fill_value": fill_value}
    ours, theirs = (
        getattr(module, name)(4, 3, heads=2, edge_dim=1, **options) for module in (gat, THEIRS)
    )
    theirs.load_state_dict(ours.state_dict())
    ours.lin_edge = theirs.lin_edge = nn.Embedding(5, 6)
    kinds = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    torch.testing.assert_close(ours(X, EDGES, kinds), theirs(X, EDGES, kinds))


def test_a_map_of_ours_is_still_checked() -> None:
    class Scaled(gat.sparse.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    layer = gat.GATConv(4, 3)
    layer.lin = Scaled(4, 3, bias=False)
    with pytest.raises(ValueError, match=r"x has shape \[6, 2\], but GATConv was built with"):
        layer(X[:, :2], EDGES)


# --- Targets without features ---------------------------------------------------------------------

PAIRS = torch.tensor([[0, 1, 2, 3], [0, 0, 1, 1]])  # from 4 nodes to 2
KNOWS: dict[str, Any] = {
    "COO": lambda: to_torch_coo_tensor(PAIRS, size=(4, 2)).t(),
    "CSR": lambda: to_torch_csr_tensor(PAIRS.flip(0), size=(2, 4)),
    "CSC": lambda: to_torch_csr_tensor(PAIRS, size=(4, 2)).t(),
    "transposed CSC": lambda: to_torch_csc_tensor(PAIRS, size=(4, 2)).t(),
    "EdgeIndex": lambda: torch_geometric.EdgeIndex(PAIRS, sparse_size=(4, 2), sort_order="row"),
    "EdgeIndex by target": lambda: torch_geometric.EdgeIndex(
        PAIRS, sparse_size=(4, 2), sort_order="col"
    ),
    "Edges": lambda: Edges.from_edge_index(PAIRS, size=(4, 2)),
}


@pytest.mark.filterwarnings("ignore:Sparse (CSR|CSC):UserWarning")
@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("kind", KNOWS)
def test_the_targets_are_as_many_as_edge_index_knows(
    kind: str, self_loops: bool, watched: bool
) -> None:
    layer = gat.GATConv((8, 16), 3, heads=2, add_self_loops=self_loops)
    theirs = THEIRS.GATConv((8, 16), 3, heads=2, add_self_loops=self_loops)
    theirs.load_state_dict(layer.state_dict())
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    x = torch.randn(4, 8), None
    expected = theirs(x, PAIRS, size=(4, 2))
    assert expected.shape == (2, 6)
    for given in ({}, {"size": (4, 2)}):
        torch.testing.assert_close(layer(x, KNOWS[kind](), **given), expected)


def test_a_plain_edge_index_knows_no_sizes() -> None:
    layer, theirs = gat.GATConv((8, 16), 3), THEIRS.GATConv((8, 16), 3)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(4, 8), None
    torch.testing.assert_close(layer(x, PAIRS), theirs(x, PAIRS, size=(4, 4)))
