"""The layers by name, in torch_geometric's GraphGym."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data

pytest.importorskip("yacs", reason="GraphGym needs yacs")

from torch_geometric.graphgym.config import cfg, set_cfg
from torch_geometric.graphgym.models.gnn import GNNStackStage
from torch_geometric.graphgym.register import layer_dict

import gat
import gat.graphgym


@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv"])
def test_a_configuration_names_our_layer(name: str) -> None:
    set_cfg(cfg)
    cfg.gnn.layer_type = f"fused_{name.lower()}"
    stage = GNNStackStage(dim_in=4, dim_out=8, num_layers=2)
    ours = [layer for layer in stage.modules() if isinstance(layer, getattr(gat, name))]
    assert len(ours) == 2
    graph = Data(x=torch.randn(3, 4), edge_index=torch.tensor([[0, 1], [1, 2]]))
    assert stage(graph).x.shape == (3, 8)


def test_computes_what_graphgyms_own_layer_does() -> None:
    set_cfg(cfg)
    from torch_geometric.graphgym.models.layer import new_layer_config

    config = new_layer_config(4, 8, 1, has_act=False, has_bias=True, cfg=cfg)
    ours, theirs = (layer_dict[name](config) for name in ("fused_gatconv", "gatconv"))
    ours.load_state_dict(theirs.state_dict())
    x, edge_index = torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]])
    a, b = (layer(Data(x=x, edge_index=edge_index)).x for layer in (ours, theirs))
    torch.testing.assert_close(a, b)
