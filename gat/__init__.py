"""Graph attention layers and models that drop into torch_geometric code."""

from gat.conv import EdgeAttention, GATConv
from gat.models import GAT

__all__ = ["GAT", "EdgeAttention", "GATConv"]
