"""Graph attention layers and models that drop into torch_geometric code."""

from gat.conv import AGNNConv, EdgeAttention, GATConv, GATv2Conv, TransformerConv
from gat.models import GAT
from gat.sparse import SparseDropout

__all__ = [
    "GAT",
    "AGNNConv",
    "EdgeAttention",
    "GATConv",
    "GATv2Conv",
    "SparseDropout",
    "TransformerConv",
]
