"""Graph attention layers."""

from gat.conv.base import EdgeAttention
from gat.conv.gat_conv import GATConv

__all__ = ["EdgeAttention", "GATConv"]
