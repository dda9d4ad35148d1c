"""The models: one body, and the layer that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gat.conv import GATConv, GATv2Conv, GraphAttentionConv, TransformerConv
from gat.models.body import AttentionNetwork


class GAT(AttentionNetwork):
    """A graph attention network of L layers; a drop-in for `torch_geometric.nn.GAT`.

    Hidden layers concatenate their heads, the last one averages its own. Veličković et al., "Graph
    Attention Networks", ICLR 2018; theirs is `GAT(F, 64, 2, C, dropout=0.6, act="elu", heads=8,
    out_heads=1, input_dropout=0.6)`.

    Args:
        in_channels, hidden_channels, num_layers, out_channels, dropout, act, act_first, act_kwargs,
            norm, norm_kwargs, jk, heads: as in `torch_geometric.nn.GAT`; see
            `gat.models.AttentionNetwork`, also for the further options out_heads,
            attention_dropout, input_dropout, value_dropout, feed_forward and level.
        v2: build it of GATv2Conv. Default False.
        **kwargs: of the layers: negative_slope=0.2, residual=False, add_self_loops=True,
            edge_dim=None, …

    Raises:
        ValueError, TypeError: see `gat.models.AttentionNetwork`.

    >>> import torch
    >>> model = GAT(in_channels=4, hidden_channels=8, num_layers=2, out_channels=3, heads=2)
    >>> x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    >>> model(x, edge_index).shape
    torch.Size([5, 3])
    >>> logits, attention = model(x, edge_index, return_attention_weights=True)
    >>> [layer.weights.shape for layer in attention]  # 4 edges and 5 self-loops
    [torch.Size([9, 2]), torch.Size([9, 2])]
    """

    @staticmethod
    def conv(*args: Any, v2: bool = False, **kwargs: Any) -> GATConv | GATv2Conv:
        """A layer."""
        return (GATv2Conv if v2 else GATConv)(*args, **kwargs)


class GATv2(AttentionNetwork):
    """A graph attention network whose nodes rank their neighbours each in its own way.

    `GAT` with GATv2Conv as its layers. Brody, Alon, Yahav, "How Attentive are Graph Attention
    Networks?", ICLR 2022.

    Args:
        in_channels, hidden_channels, num_layers, …: as in `GAT`, but for v2.
        **kwargs: of the layers: share_weights=False and those of `GAT`.

    Raises:
        ValueError, TypeError: see `gat.models.AttentionNetwork`.

    >>> import torch
    >>> model = GATv2(4, 8, 2, 3, jk="max", level="graph")
    >>> x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 0, 4]])
    >>> model(x, edge_index, batch=torch.tensor([0, 0, 0, 1, 1])).shape
    torch.Size([2, 3])
    """

    conv = GATv2Conv


class GraphTransformer(AttentionNetwork):
    """A Transformer whose attention runs along the edges of a graph.

    TransformerConv as layers, with layer normalisation and feed-forward networks. Shi et al.,
    "Masked Label Prediction: Unified Message Passing Model for Semi-Supervised Classification",
    IJCAI 2021; Vaswani et al., "Attention Is All You Need", NeurIPS 2017.

    Args:
        in_channels, hidden_channels, num_layers, …: as in `GAT`, but for v2.
        norm: Default "layer_norm", of each node alone unless norm_kwargs says otherwise.
        feed_forward: hidden width of the feed-forward networks, as a multiple of their input's; 0
            leaves them out. Default 2.
        **kwargs: of the layers: root_weight=True (add a linear map of the input), beta=False (let a
            gate choose between that and what attention brings), edge_dim=None, …

    Raises:
        ValueError, TypeError: see `gat.models.AttentionNetwork`.

    >>> import torch
    >>> model = GraphTransformer(4, 8, 2, 1, level="edge")
    >>> x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    >>> model(x, edge_index, edge_label_index=torch.tensor([[0, 4], [3, 1]])).shape
    torch.Size([2, 1])
    """

    conv = TransformerConv

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        hidden_channels: int,
        num_layers: int,
        out_channels: int | None = None,
        dropout: float = 0.0,
        act: str | Callable[..., Any] | None = "relu",
        act_first: bool = False,
        act_kwargs: dict[str, Any] | None = None,
        norm: str | Callable[..., Any] | None = "layer_norm",
        norm_kwargs: dict[str, Any] | None = None,
        jk: Any = None,
        *,
        feed_forward: int = 2,
        **kwargs: Any,
    ) -> None:
        if norm == "layer_norm" and norm_kwargs is None:
            norm_kwargs = {"mode": "node"}
        super().__init__(
            in_channels,
            hidden_channels,
            num_layers,
            out_channels,
            dropout,
            act,
            act_first,
            act_kwargs,
            norm,
            norm_kwargs,
            jk,
            feed_forward=feed_forward,
            **kwargs,
        )


class GraphAttention(AttentionNetwork):
    """A graph attention network with a score and a normaliser of your choice.

    `GAT` with GraphAttentionConv as its layers; what they compute is told there.

    Args:
        in_channels, hidden_channels, num_layers, …: as in `GAT`, but for v2.
        **kwargs: of the layers: score="additive" (by name: one of `attn_core`, which every layer
            would share, is better given to the layers of a model of your own),
            normalizer="softmax", activation (the score's own), share_weights=False,
            value_projection=True, residual=False, add_self_loops=True, edge_dim=None, …

    Raises:
        ValueError, TypeError: see `gat.models.AttentionNetwork` and `gat.GraphAttentionConv`.

    >>> import torch
    >>> model = GraphAttention(4, 8, 2, 3, score="cosine", normalizer="sparsemax")
    >>> model(torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])).shape
    torch.Size([5, 3])
    """

    conv = GraphAttentionConv
