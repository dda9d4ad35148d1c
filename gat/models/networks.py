"""The models: one body, and the layer that it is made of."""

from __future__ import annotations

from typing import Any, Unpack

from attn_core import Normalizer
from gat.conv import GATConv, GATv2Conv, GraphAttentionConv, TransformerConv
from gat.models.body import AttentionNetwork, NetworkOptions


class GAT(AttentionNetwork):
    """A graph attention network of L layers, as in the paper that introduced them.

    Dropout and a GATConv in each layer, ELU between them; hidden layers concatenate their heads,
    the last one averages its own. Veličković et al., "Graph Attention Networks", ICLR 2018.

    Args:
        in_channels: features per node.
        hidden_channels: features per head of the hidden layers.
        out_channels: what comes out per node, such as the number of classes.
        negative_slope: of LeakyReLU in the scores. Default 0.2.
        residual: add to each layer a linear map of its input. Default False.
        add_self_loops: let each node attend to itself. Default True.
        **options: of `gat.models.AttentionNetwork`, with its defaults: num_layers=2, heads=8,
            out_heads=1, dropout=0.6, attention_dropout (the same), value_dropout=0, norm=False,
            feed_forward=0, jumping=None, level="node", edge_dim=None.

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
        negative_slope: float = 0.2,
        residual: bool = False,
        add_self_loops: bool = True,
        **options: Unpack[NetworkOptions],
    ) -> None:
        of_conv = {
            "negative_slope": negative_slope,
            "residual": residual,
            "add_self_loops": add_self_loops,
        }
        super().__init__(GATConv, of_conv, in_channels, hidden_channels, out_channels, **options)


class GATv2(AttentionNetwork):
    """A graph attention network whose nodes rank their neighbours each in its own way.

    `GAT` with GATv2Conv as its layers. Brody, Alon, Yahav, "How Attentive are Graph Attention
    Networks?", ICLR 2022.

    Args:
        in_channels, hidden_channels, out_channels, negative_slope, residual, add_self_loops: as in
            `GAT`.
        share_weights: one projection for sources and targets. Default False.
        **options: of `gat.models.AttentionNetwork`, with its defaults.

    Raises:
        ValueError: see `gat.models.AttentionNetwork`.

    >>> import torch
    >>> model = GATv2(4, 8, 3, level="graph", jumping="max")
    >>> x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 0, 4]])
    >>> model(x, edge_index, batch=torch.tensor([0, 0, 0, 1, 1])).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        negative_slope: float = 0.2,
        residual: bool = False,
        add_self_loops: bool = True,
        share_weights: bool = False,
        **options: Unpack[NetworkOptions],
    ) -> None:
        of_conv = {
            "negative_slope": negative_slope,
            "residual": residual,
            "add_self_loops": add_self_loops,
            "share_weights": share_weights,
        }
        super().__init__(GATv2Conv, of_conv, in_channels, hidden_channels, out_channels, **options)


class GraphTransformer(AttentionNetwork):
    """A Transformer whose attention runs along the edges of a graph.

    TransformerConv as layers, with layer normalisation and feed-forward networks. Shi et al.,
    "Masked Label Prediction: Unified Message Passing Model for Semi-Supervised Classification",
    IJCAI 2021; Vaswani et al., "Attention Is All You Need", NeurIPS 2017.

    Args:
        in_channels, hidden_channels, out_channels: as in `GAT`.
        residual: add to each layer a linear map of its input. Default True.
        beta: let a gate choose between that and what attention brings. Default False.
        norm: layer normalisation. Default True.
        feed_forward: hidden width of the feed-forward networks, as a multiple of their input's; 0
            leaves them out. Default 2.
        dropout: of the input of each layer and of the weights. Default 0.1.
        **options: of `gat.models.AttentionNetwork`, with its defaults.

    Raises:
        ValueError: see `gat.models.AttentionNetwork`.

    >>> import torch
    >>> model = GraphTransformer(4, 8, 1, level="edge")
    >>> x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
    >>> model(x, edge_index, edge_label_index=torch.tensor([[0, 4], [3, 1]])).shape
    torch.Size([2, 1])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        residual: bool = True,
        beta: bool = False,
        **options: Unpack[NetworkOptions],
    ) -> None:
        of_conv = {"residual": residual, "beta": beta}
        defaults: NetworkOptions = {"norm": True, "feed_forward": 2, "dropout": 0.1}
        chosen: NetworkOptions = {**defaults, **options}
        super().__init__(
            _transformer_conv, of_conv, in_channels, hidden_channels, out_channels, **chosen
        )


def _transformer_conv(
    in_channels: int, out_channels: int, heads: int, *, residual: bool, **kwargs: Any
) -> TransformerConv:
    return TransformerConv(in_channels, out_channels, heads, root_weight=residual, **kwargs)


class GraphAttention(AttentionNetwork):
    """A graph attention network with a score and a normaliser of your choice.

    `GAT` with GraphAttentionConv as its layers; what they compute is told there.

    Args:
        in_channels, hidden_channels, out_channels, residual, add_self_loops: as in `GAT`.
        score: the name of a score. Default "additive". A score of `attn_core`, which every layer
            would share, is better given to the layers of a model of your own.
        normalizer: the name of a normaliser, or one of `attn_core`. Default "softmax".
        activation: in the score, where it has one. Default: the score's own.
        share_weights: one projection for sources and targets. Default False.
        value_projection: give the values a projection of their own. Default True.
        **options: of `gat.models.AttentionNetwork`, with its defaults.

    Raises:
        ValueError: see `gat.models.AttentionNetwork` and `gat.GraphAttentionConv`.

    >>> import torch
    >>> model = GraphAttention(4, 8, 3, score="cosine", normalizer="sparsemax")
    >>> model(torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])).shape
    torch.Size([5, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        score: str = "additive",
        normalizer: str | Normalizer = "softmax",
        activation: str | None = None,
        share_weights: bool = False,
        value_projection: bool = True,
        residual: bool = False,
        add_self_loops: bool = True,
        **options: Unpack[NetworkOptions],
    ) -> None:
        of_conv = {
            "score": score,
            "normalizer": normalizer,
            "activation": activation,
            "share_weights": share_weights,
            "value_projection": value_projection,
            "residual": residual,
            "add_self_loops": add_self_loops,
        }
        super().__init__(
            GraphAttentionConv, of_conv, in_channels, hidden_channels, out_channels, **options
        )
