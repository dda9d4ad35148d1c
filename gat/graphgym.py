"""The layers in torch_geometric's GraphGym: after `import gat.graphgym`, a configuration may say
`gnn.layer_type: fused_gatconv`, `fused_gatv2conv` or `fused_transformerconv`.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch_geometric.graphgym.register import register_layer

from gat.conv import GATConv, GATv2Conv, TransformerConv


class _Layer(nn.Module):
    """A layer that takes a batch and gives it back with new features."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.model = conv

    def forward(self, batch: Any) -> Any:
        batch.x = self.model(batch.x, batch.edge_index)
        return batch


def _register(name: str, conv: type[GATConv | GATv2Conv | TransformerConv]) -> None:
    def build(layer_config: Any, **_: Any) -> _Layer:
        c = layer_config
        return _Layer(conv(c.dim_in, c.dim_out, bias=c.has_bias))

    register_layer(name, build)


_register("fused_gatconv", GATConv)
_register("fused_gatv2conv", GATv2Conv)
_register("fused_transformerconv", TransformerConv)
