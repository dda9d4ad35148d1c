"""Models built of graph attention layers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gat.conv import EdgeAttention, GATConv


class GAT(nn.Module):
    """A graph attention network of L layers, as in the paper that introduced them.

    Dropout and a GATConv in each layer, ELU between them; hidden layers concatenate their heads,
    the last one averages its own. Veličković et al., "Graph Attention Networks", ICLR 2018.

    Args:
        in_channels: features per node.
        hidden_channels: features per head of the hidden layers.
        out_channels: what comes out per node, such as the number of classes.
        num_layers: L. Default 2.
        heads: heads of the hidden layers. Default 8.
        out_heads: heads of the last layer. Default 1.
        dropout: of the input of each layer, in training. Default 0.6.
        attention_dropout: of the attention weights, in training. Default: the same.
        negative_slope: of LeakyReLU in the scores. Default 0.2.
        residual: add to each layer a linear map of its input. Default False.
        add_self_loops: let each node attend to itself. Default True.
        edge_dim: features per edge. Default None.

    Raises:
        ValueError: fewer than one layer or head, or a dropout outside [0, 1].

    >>> import torch
    >>> model = GAT(in_channels=4, hidden_channels=8, out_channels=3)
    >>> x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    >>> model(x, edge_index).shape
    torch.Size([5, 3])
    >>> logits, attention = model(x, edge_index, return_attention_weights=True)
    >>> [layer.weights.shape for layer in attention]  # 4 edges and 5 self-loops
    [torch.Size([9, 8]), torch.Size([9, 1])]
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 2,
        heads: int = 8,
        out_heads: int = 1,
        dropout: float = 0.6,
        attention_dropout: float | None = None,
        negative_slope: float = 0.2,
        residual: bool = False,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
    ) -> None:
        super().__init__()
        for name, number in (
            ("num_layers", num_layers),
            ("heads", heads),
            ("out_heads", out_heads),
        ):
            if number < 1:
                raise ValueError(f"{name} is {number}; a network needs at least one")
        for name, p in (("dropout", dropout), ("attention_dropout", attention_dropout)):
            if p is not None and not 0 <= p <= 1:
                raise ValueError(f"{name} is {p}; a probability lies between 0 and 1")
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "out_channels": out_channels,
            "num_layers": num_layers,
            "heads": heads,
            "out_heads": out_heads,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "negative_slope": negative_slope,
            "residual": residual,
            "add_self_loops": add_self_loops,
            "edge_dim": edge_dim,
        }
        self.dropout = dropout
        shared: dict[str, Any] = {
            "negative_slope": negative_slope,
            "dropout": dropout if attention_dropout is None else attention_dropout,
            "add_self_loops": add_self_loops,
            "edge_dim": edge_dim,
            "residual": residual,
        }
        widths = [in_channels] + [hidden_channels * heads] * (num_layers - 1)
        hidden = [GATConv(width, hidden_channels, heads, **shared) for width in widths[:-1]]
        last = GATConv(widths[-1], out_channels, out_heads, concat=False, **shared)
        self.convs = nn.ModuleList([*hidden, last])

    def reset_parameters(self) -> None:
        """Draw the parameters of all layers anew."""
        for conv in self.convs:
            conv.reset_parameters()  # type: ignore[operator]

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool = False,
    ) -> Any:
        """The output of the last layer.

        Args:
            x: `[N, in_channels]`.
            edge_index: the edges, in any form that GATConv takes.
            edge_attr: `[E, edge_dim]`. Default None.
            return_attention_weights: return every layer's attention as well. Default False.

        Returns:
            `[N, out_channels]`; with return_attention_weights, that and a list of one
            `EdgeAttention(edge_index, weights)` per layer, the first layer first.
        """
        attention: list[EdgeAttention] = []
        for layer, conv in enumerate(self.convs):
            x = F.dropout(x if layer == 0 else F.elu(x), self.dropout, self.training)
            x = conv(x, edge_index, edge_attr, return_attention_weights=return_attention_weights)
            if return_attention_weights:
                x, weights = x
                attention.append(weights)
        return (x, attention) if return_attention_weights else x

    def embed(self, x: Tensor, edge_index: Any, edge_attr: Tensor | None = None) -> Tensor:
        """The features that enter the last layer, `[N, heads * hidden_channels]`.

        The arguments are those of `forward`; without hidden layers, x itself comes back.
        """
        for conv in self.convs[:-1]:
            x = F.dropout(x, self.dropout, self.training)
            x = F.elu(conv(x, edge_index, edge_attr))
        return x
