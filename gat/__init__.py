"""Graph attention layers and models that drop into torch_geometric code."""

from attn_core import __version__
from gat.collect import LayerAttention, attention_weights
from gat.conv import (
    AGNNConv,
    EdgeAttention,
    GATConv,
    GATv2Conv,
    GraphAttentionConv,
    TransformerConv,
)
from gat.models import AGNN, GAT, GATv2, GraphAttention, GraphTransformer
from gat.replace import Replacement, replace
from gat.sparse import Dropout, SparseDropout

__all__ = [
    "AGNN",
    "GAT",
    "AGNNConv",
    "Dropout",
    "EdgeAttention",
    "GATConv",
    "GATv2",
    "GATv2Conv",
    "GraphAttention",
    "GraphAttentionConv",
    "GraphTransformer",
    "LayerAttention",
    "Replacement",
    "SparseDropout",
    "TransformerConv",
    "__version__",
    "attention_weights",
    "replace",
]
