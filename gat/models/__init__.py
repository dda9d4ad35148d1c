"""Models built of graph attention layers."""

from gat.models.agnn import AGNN
from gat.models.body import AttentionNetwork
from gat.models.heterophilous import ResidualAttention
from gat.models.networks import GAT, GATv2, GraphAttention, GraphTransformer
from gat.models.presets import PRESETS, Preset, preset

__all__ = [
    "AGNN",
    "GAT",
    "PRESETS",
    "AttentionNetwork",
    "GATv2",
    "GraphAttention",
    "GraphTransformer",
    "Preset",
    "ResidualAttention",
    "preset",
]
