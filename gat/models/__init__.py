"""Models built of graph attention layers."""

from gat.models.agnn import AGNN
from gat.models.body import AttentionNetwork
from gat.models.networks import GAT, GATv2, GraphAttention, GraphTransformer

__all__ = [
    "AGNN",
    "GAT",
    "AttentionNetwork",
    "GATv2",
    "GraphAttention",
    "GraphTransformer",
]
