"""AGNN: attention between two linear maps."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from gat.checks import check_probability
from gat.conv import AGNNConv, EdgeAttention
from gat.sparse import Linear, SparseDropout


class AGNN(nn.Module):
    """A linear map, L layers of attention by the direction of the features, and a linear map.

    Attention has one parameter in each layer, β, which in the first stays 1 (on whose learning
    nothing was gained). Thekumparampil et al., "Attention-based Graph Neural Network for
    Semi-Supervised Learning", 2018.

    Args:
        in_channels: features per node.
        hidden_channels: features per node between the two maps.
        out_channels: what comes out per node, such as the number of classes.
        num_layers: L. Default 2.
        dropout: of the input of both maps, in training. Default 0.5.
        add_self_loops: let each node attend to itself. Default True.

    Raises:
        ValueError: fewer than one layer, or a dropout outside [0, 1].

    >>> import torch
    >>> model = AGNN(in_channels=4, hidden_channels=16, out_channels=3)
    >>> model(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]])).shape
    torch.Size([3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 2,
        dropout: float = 0.5,
        add_self_loops: bool = True,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; a network needs at least one")
        check_probability("dropout", dropout)
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "out_channels": out_channels,
            "num_layers": num_layers,
            "dropout": dropout,
            "add_self_loops": add_self_loops,
        }
        self.drop = SparseDropout(dropout)
        self.first = Linear(in_channels, hidden_channels, weight_initializer="glorot")
        self.convs = nn.ModuleList(
            AGNNConv(requires_grad=i > 0, add_self_loops=add_self_loops) for i in range(num_layers)
        )
        self.last = Linear(hidden_channels, out_channels, weight_initializer="glorot")

    def reset_parameters(self) -> None:
        """Draw the parameters of all layers anew."""
        for part in (self.first, *self.convs, self.last):
            part.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool = False,
    ) -> Any:
        """The output of the last map.

        Args:
            x: `[N, in_channels]`, dense or `torch.sparse_csr`.
            edge_index: the edges, in any form that AGNNConv takes.
            edge_attr: must be None; AGNNConv has no use for them.
            return_attention_weights: return every layer's attention as well. Default False.

        Returns:
            `[N, out_channels]`; with return_attention_weights, that and a list of one
            `EdgeAttention(edge_index, weights)` per layer.
        """
        if edge_attr is not None:
            raise ValueError(
                f"edge_attr of shape {list(edge_attr.shape)} is given to an AGNN, whose attention "
                "knows no features of edges: leave it out, or take another model"
            )
        attention: list[EdgeAttention] | None = [] if return_attention_weights else None
        out = self.last(self.drop(self._hidden(x, edge_index, attention)))
        return out if attention is None else (out, attention)

    def embed(self, x: Tensor, edge_index: Any, edge_attr: Tensor | None = None) -> Tensor:
        """What enters the last map, `[N, hidden_channels]`."""
        return self._hidden(x, edge_index, None)

    def _hidden(self, x: Tensor, edge_index: Any, attention: list[EdgeAttention] | None) -> Tensor:
        """What the layers make of x; their attention joins the list."""
        x = F.relu(self.first(self.drop(x)))
        for conv in self.convs:
            if attention is not None:
                attention.append(conv.attention(x, edge_index))  # type: ignore[operator]
            x = conv(x, edge_index)
        return x
