"""AGNN: attention between two linear maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch_geometric.nn.resolver import activation_resolver
from torch_geometric.utils._trim_to_layer import TrimToLayer

from gat.checks import check_probability
from gat.conv import AGNNConv, EdgeAttention
from gat.models.body import of_layer
from gat.sparse import Linear, SparseDropout


class AGNN(nn.Module):
    """A linear map, L layers of attention by the direction of the features, and a linear map.

    Attention has one parameter in each layer, β, which in the first stays 1 (on whose learning
    nothing was gained). Thekumparampil et al., "Attention-based Graph Neural Network for
    Semi-Supervised Learning", 2018.

    Args:
        in_channels: features per node.
        hidden_channels: features per node between the two maps.
        num_layers: L.
        out_channels: what comes out per node, such as the number of classes. Default:
            hidden_channels, and there is no last map.
        dropout: of the input of both maps, in training. Default 0; the paper has 0.5.
        act: the activation behind the first map, by name, a function, a module, or None. Default
            "relu".
        act_kwargs: its arguments.
        add_self_loops: let each node attend to itself. Default True.

    Raises:
        ValueError: fewer than one layer, or a dropout outside [0, 1].

    >>> import torch
    >>> model = AGNN(in_channels=4, hidden_channels=16, num_layers=2, out_channels=3)
    >>> model(torch.randn(3, 4), torch.tensor([[0, 1], [1, 2]])).shape
    torch.Size([3, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_layers: int,
        out_channels: int | None = None,
        dropout: float = 0.0,
        act: str | Callable[..., Any] | None = "relu",
        *,
        act_kwargs: dict[str, Any] | None = None,
        add_self_loops: bool = True,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers is {num_layers}; a network needs at least one")
        check_probability("dropout", dropout)
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "out_channels": out_channels,
            "dropout": dropout,
            "act": act,
            "act_kwargs": act_kwargs,
            "add_self_loops": add_self_loops,
        }
        self.num_layers = num_layers
        self.dropout = SparseDropout(dropout)
        self.act = activation_resolver(act, **(act_kwargs or {}))
        self.first = Linear(in_channels, hidden_channels, weight_initializer="glorot")
        self.convs = nn.ModuleList(
            AGNNConv(requires_grad=i > 0, add_self_loops=add_self_loops) for i in range(num_layers)
        )
        self.last: nn.Module = nn.Identity()
        if out_channels is not None:
            self.last = Linear(hidden_channels, out_channels, weight_initializer="glorot")
        self._trim = TrimToLayer()

    def reset_parameters(self) -> None:
        """Draw the parameters of all layers anew."""
        for part in (self.first, *self.convs, self.last):
            if not isinstance(part, nn.Identity):
                part.reset_parameters()

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_weight: None = None,
        edge_attr: None = None,
        batch: Tensor | None = None,
        batch_size: int | None = None,
        num_sampled_nodes_per_hop: list[int] | None = None,
        num_sampled_edges_per_hop: list[int] | None = None,
        *,
        return_attention_weights: bool = False,
    ) -> Any:
        """The output of the last map.

        Args:
            x: `[N, in_channels]`, dense or `torch.sparse_csr`.
            edge_index: the edges, in any form that AGNNConv takes; or a list with those of each
                layer, such as the blocks of `gat.loader`.
            edge_weight, edge_attr: must be None; AGNNConv has no use for them.
            batch, batch_size: not used; nothing here depends on which graph a node belongs to.
            num_sampled_nodes_per_hop, num_sampled_edges_per_hop: of a batch of NeighborLoader, so
                that each layer computes what the later ones still need. Default None: everything.
            return_attention_weights: return every layer's attention as well. Default False.

        Returns:
            `[N, out_channels]`; with return_attention_weights, that and a list of one
            `EdgeAttention(edge_index, weights)` per layer.

        Raises:
            ValueError: features of edges are given.
        """
        for name, given in (("edge_weight", edge_weight), ("edge_attr", edge_attr)):
            if isinstance(given, Tensor):
                raise ValueError(
                    f"{name} of shape {list(given.shape)} is given to an AGNN, whose attention "
                    "knows no features of edges: leave it out, or take another model"
                )
        attention: list[EdgeAttention] = []
        x = self._first(x)
        for i, conv in enumerate(self.convs):
            if num_sampled_nodes_per_hop is not None:
                x, edge_index, _ = self._trim(
                    i, num_sampled_nodes_per_hop, num_sampled_edges_per_hop, x, edge_index
                )
            if return_attention_weights is True:
                of_conv = conv.attention(x, of_layer(edge_index, i))  # type: ignore[operator]
                attention.append(of_conv)
            x = conv(x, of_layer(edge_index, i))
        out = self.last(self.dropout(x))
        return (out, attention) if return_attention_weights is True else out

    def embed(self, x: Tensor, edge_index: Any, edge_attr: None = None) -> Tensor:
        """What enters the last map, `[N, hidden_channels]`."""
        x = self._first(x)
        for conv in self.convs:
            x = conv(x, edge_index)
        return x

    joins = False

    def begin(self, x: Tensor) -> Tensor:
        """What enters the first layer: with `step` and `finish`, the steps of evaluation."""
        return self._first(x)

    def step(self, layer: int, x: Tensor, edge_index: Any, edge_attr: Any = None) -> Any:
        """What a layer hands to the next one."""
        return self.convs[layer](x, edge_index)

    def finish(self, outputs: list[Tensor]) -> Tensor:
        """The output of the nodes, made of what the layers gave."""
        out: Tensor = self.last(outputs[-1])
        return out

    def _first(self, x: Tensor) -> Tensor:
        x = self.first(self.dropout(x))
        return x if self.act is None else self.act(x)
