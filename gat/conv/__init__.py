"""Graph attention layers."""

from gat.conv.agnn_conv import AGNNConv
from gat.conv.gat_conv import GATConv
from gat.conv.gatv2_conv import GATv2Conv
from gat.conv.graph_attention_conv import GraphAttentionConv
from gat.conv.transformer_conv import TransformerConv
from gat.edge_attention import EdgeAttention

__all__ = [
    "AGNNConv",
    "EdgeAttention",
    "GATConv",
    "GATv2Conv",
    "GraphAttentionConv",
    "TransformerConv",
]
