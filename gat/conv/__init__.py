"""Graph attention layers."""

from gat.conv.agnn_conv import AGNNConv
from gat.conv.dense_gat_conv import DenseGATConv
from gat.conv.fa_conv import FAConv
from gat.conv.gat_conv import GATConv
from gat.conv.gatv2_conv import GATv2Conv
from gat.conv.general_conv import GeneralConv
from gat.conv.gps_conv import GPSConv
from gat.conv.graph_attention_conv import GraphAttentionConv
from gat.conv.han_conv import HANConv
from gat.conv.hgt_conv import HGTConv
from gat.conv.hypergraph_conv import HypergraphConv
from gat.conv.rgat_conv import RGATConv
from gat.conv.supergat_conv import SuperGATConv
from gat.conv.transformer_conv import TransformerConv
from gat.edge_attention import EdgeAttention

__all__ = [
    "AGNNConv",
    "DenseGATConv",
    "EdgeAttention",
    "FAConv",
    "GATConv",
    "GATv2Conv",
    "GPSConv",
    "GeneralConv",
    "GraphAttentionConv",
    "HANConv",
    "HGTConv",
    "HypergraphConv",
    "RGATConv",
    "SuperGATConv",
    "TransformerConv",
]
