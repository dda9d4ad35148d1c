"""Graph attention layers and models that drop into torch_geometric code."""

from attn_core import __version__
from gat.collect import LayerAttention, attention_weights
from gat.conv import (
    AGNNConv,
    DenseGATConv,
    EdgeAttention,
    FAConv,
    GATConv,
    GATv2Conv,
    GeneralConv,
    GPSConv,
    GraphAttentionConv,
    HANConv,
    HGTConv,
    HypergraphConv,
    RGATConv,
    SuperGATConv,
    TransformerConv,
)
from gat.models import AGNN, GAT, GATv2, GraphAttention, GraphTransformer
from gat.replace import Replacement, replace
from gat.sparse import Dropout, SparseDropout

__all__ = [
    "AGNN",
    "GAT",
    "AGNNConv",
    "DenseGATConv",
    "Dropout",
    "EdgeAttention",
    "FAConv",
    "GATConv",
    "GATv2",
    "GATv2Conv",
    "GPSConv",
    "GeneralConv",
    "GraphAttention",
    "GraphAttentionConv",
    "GraphTransformer",
    "HANConv",
    "HGTConv",
    "HypergraphConv",
    "LayerAttention",
    "RGATConv",
    "Replacement",
    "SparseDropout",
    "SuperGATConv",
    "TransformerConv",
    "__version__",
    "attention_weights",
    "replace",
]
