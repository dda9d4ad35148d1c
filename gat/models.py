"""Models built of graph attention layers: one body, and the layer it is made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import JumpingKnowledge
from torch_geometric.utils import scatter

from attn_core import Normalizer
from gat.checks import check_probability
from gat.conv import (
    AGNNConv,
    EdgeAttention,
    GATConv,
    GATv2Conv,
    GraphAttentionConv,
    TransformerConv,
)
from gat.conv.base import AttentionConv
from gat.sparse import Linear, SparseDropout

LEVELS = ("node", "edge", "graph")
JUMPING = ("cat", "max", "lstm")


class NetworkOptions(TypedDict, total=False):
    """What every `AttentionNetwork` can be told."""

    num_layers: int
    heads: int
    out_heads: int
    dropout: float
    attention_dropout: float | None
    value_dropout: float
    norm: bool
    feed_forward: int
    jumping: Literal["cat", "max", "lstm"] | None
    level: Literal["node", "edge", "graph"]
    edge_dim: int | None


class AttentionNetwork(nn.Module):
    r"""The body of the models: L layers of graph attention, and what comes after them.

    .. math::
        h^{(l)} = \mathrm{ELU}\, \mathrm{norm}\, \mathrm{conv}\, \mathrm{dropout}(h^{(l-1)})

    With feed_forward, a small network of each node alone follows, `h ← norm(h + network(h))`, as in
    the Transformer. Hidden layers concatenate their heads. At the node level without jumping
    knowledge the last layer averages its heads, and that is the output; otherwise all layers are
    hidden, and a head makes the output of what they leave: a linear map of each node or of the mean
    over each graph, or a network with one hidden layer for each pair of nodes.

    Args:
        make_conv: builds a layer; it is given in_channels, out_channels, heads, and by name concat,
            dropout and edge_dim.
        in_channels: features per node; -1 to take it from the first call.
        hidden_channels: features per head of the hidden layers.
        out_channels: what comes out per node, pair or graph, such as the number of classes.
        num_layers: L. Default 2.
        heads: heads of the hidden layers. Default 8.
        out_heads: heads of the last layer where it makes the output. Default 1.
        dropout: of the input of each layer, in training. Default 0.6.
        attention_dropout: of the attention weights, in training. Default: the same.
        value_dropout: of what each node hands on, in training, scores excepted. Default 0.
        norm: layer normalisation after each hidden layer. Ba, Kiros, Hinton, 2016. Default False.
        feed_forward: hidden width of the feed-forward networks, as a multiple of their input's.
            Default 0: none.
        jumping: combine the output of all layers: "cat", "max" or "lstm". Xu et al.,
            "Representation Learning on Graphs with Jumping Knowledge Networks", ICML 2018.
            Default None: go on with the last one.
        level: what there is an output for: each "node", each "edge" of edge_label_index, or each
            "graph" of a batch. Default "node".
        edge_dim: features per edge. Default None.

    Raises:
        ValueError: fewer than one layer or head, a dropout outside [0, 1], a negative feed_forward,
            a jumping or level that does not exist.
    """

    def __init__(
        self,
        make_conv: Callable[..., AttentionConv],
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        num_layers: int = 2,
        heads: int = 8,
        out_heads: int = 1,
        dropout: float = 0.6,
        attention_dropout: float | None = None,
        value_dropout: float = 0.0,
        norm: bool = False,
        feed_forward: int = 0,
        jumping: Literal["cat", "max", "lstm"] | None = None,
        level: Literal["node", "edge", "graph"] = "node",
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
        check_probability("dropout", dropout)
        check_probability("value_dropout", value_dropout)
        if attention_dropout is not None:
            check_probability("attention_dropout", attention_dropout)
        if feed_forward < 0:
            raise ValueError(f"feed_forward is {feed_forward}; give the factor of the width, or 0")
        if jumping not in (None, *JUMPING):
            raise ValueError(f"jumping is {jumping!r}; expected None or one of {_listed(JUMPING)}")
        if level not in LEVELS:
            raise ValueError(f"level is {level!r}; expected one of {_listed(LEVELS)}")
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "out_channels": out_channels,
            "num_layers": num_layers,
            "heads": heads,
            "out_heads": out_heads,
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "value_dropout": value_dropout,
            "norm": norm,
            "feed_forward": feed_forward,
            "jumping": jumping,
            "level": level,
            "edge_dim": edge_dim,
        }
        self.drop = SparseDropout(dropout)
        width = heads * hidden_channels
        shared: dict[str, Any] = {
            "dropout": dropout if attention_dropout is None else attention_dropout,
            "edge_dim": edge_dim,
        }
        has_head = jumping is not None or level != "node"
        num_hidden = num_layers if has_head else num_layers - 1
        widths = [in_channels] + [width] * num_layers
        convs = [
            make_conv(widths[i], hidden_channels, heads, concat=True, **shared)
            for i in range(num_hidden)
        ]
        if not has_head:
            convs.append(make_conv(widths[-2], out_channels, out_heads, concat=False, **shared))
        for conv in convs:
            conv.value_dropout = value_dropout
        self.convs = nn.ModuleList(convs)

        def each(make: Callable[[], nn.Module], wanted: bool) -> nn.ModuleList:
            return nn.ModuleList([make() for _ in range(num_hidden if wanted else 0)])

        self.norms = each(lambda: nn.LayerNorm(width), norm)
        self.networks = each(lambda: _network(width, feed_forward * width, width, dropout),
                             feed_forward > 0)  # fmt: skip
        self.network_norms = each(lambda: nn.LayerNorm(width), norm and feed_forward > 0)
        self.jump = None if jumping is None else JumpingKnowledge(jumping, width, num_layers)
        self.head: nn.Module | None = None
        if has_head:
            seen = width * num_layers if jumping == "cat" else width
            self.head = (
                _network(2 * seen, width, out_channels, dropout)
                if level == "edge"
                else nn.Linear(seen, out_channels)
            )

    @property
    def dropout(self) -> float:
        """The dropout of the input of each layer."""
        return self.drop.p

    def reset_parameters(self) -> None:
        """Draw the parameters of all layers anew."""
        for part in self.children():
            _reset(part)

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool = False,
        *,
        batch: Tensor | None = None,
        batch_size: int | None = None,
        edge_label_index: Tensor | None = None,
    ) -> Any:
        """The output for each node, edge or graph.

        Args:
            x: `[N, in_channels]`, dense or `torch.sparse_csr`.
            edge_index: the edges, in any form that the layers take.
            edge_attr: `[E, edge_dim]`. Default None.
            return_attention_weights: return every layer's attention as well. Default False.
            batch: at the graph level, int64 `[N]`, the graph of each node. Default: all in one.
            batch_size: at the graph level, the number of graphs. Default: as batch tells.
            edge_label_index: at the edge level, int64 `[2, P]`, the pairs of nodes that are asked
                about.

        Returns:
            `[N, out_channels]`, `[P, out_channels]` or `[graphs, out_channels]`; with
            return_attention_weights, that and a list of one `EdgeAttention(edge_index, weights)`
            per layer, the first layer first.

        Raises:
            ValueError: batch or edge_label_index at another level, or none at the edge level; one
                of another shape.
            IndexError: edge_label_index names a node that x does not have.
        """
        self._check_level(x.shape[0], batch, batch_size, edge_label_index)
        attention: list[EdgeAttention] | None = [] if return_attention_weights else None
        out = self._hidden(x, edge_index, edge_attr, attention)
        if self.head is None:
            out = self._attend(self.convs[-1], out, edge_index, edge_attr, attention)
        else:
            if self.config["level"] == "graph":
                graph = out.new_zeros(len(out), dtype=torch.long) if batch is None else batch
                number = 1 if batch is None and batch_size is None else batch_size
                out = scatter(out, graph, dim=0, dim_size=number, reduce="mean")
            elif edge_label_index is not None:
                out = torch.cat([out[end] for end in edge_label_index], dim=-1)
            out = self.head(self.drop(out))
        return out if attention is None else (out, attention)

    def embed(self, x: Tensor, edge_index: Any, edge_attr: Tensor | None = None) -> Tensor:
        """What enters the last layer, or the head where there is one, `[N, width]`.

        The arguments are those of `forward`; without hidden layers, x itself comes back.
        """
        return self._hidden(x, edge_index, edge_attr, None)

    def _hidden(
        self, x: Tensor, edge_index: Any, edge_attr: Tensor | None, attention: list[Any] | None
    ) -> Tensor:
        """What the hidden layers make of x, `[N, width]`."""
        outputs = []
        for i, conv in enumerate(self.convs if self.head is not None else self.convs[:-1]):
            x = self._attend(conv, x, edge_index, edge_attr, attention)
            if self.norms:
                x = self.norms[i](x)
            x = F.elu(x)
            if self.networks:
                x = x + self.networks[i](x)
            if self.network_norms:
                x = self.network_norms[i](x)
            outputs.append(x)
        return x if self.jump is None else self.jump(outputs)

    def _attend(
        self,
        conv: nn.Module,
        x: Tensor,
        edge_index: Any,
        edge_attr: Tensor | None,
        attention: list[Any] | None,
    ) -> Tensor:
        """One layer; its attention joins the list."""
        x = self.drop(x)
        if attention is None:
            return conv(x, edge_index, edge_attr)
        x, weights = conv(x, edge_index, edge_attr, return_attention_weights=True)
        attention.append(weights)
        return x

    def _check_level(
        self,
        num_nodes: int,
        batch: Tensor | None,
        batch_size: int | None,
        edge_label_index: Tensor | None,
    ) -> None:
        level = self.config["level"]
        for name, given, wanted in (
            ("batch", batch, "graph"),
            ("batch_size", batch_size, "graph"),
            ("edge_label_index", edge_label_index, "edge"),
        ):
            if given is not None and level != wanted:
                raise ValueError(
                    f"{name} is given to a model of level={level!r}: leave it out, or build the "
                    f"model with level={wanted!r}"
                )
        if batch is not None and batch.shape != (num_nodes,):
            raise ValueError(
                f"batch has shape {[*batch.shape]}, but there are {num_nodes} nodes: give each the "
                "number of its graph"
            )
        if level == "edge":
            _check_pairs(edge_label_index, num_nodes)


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
        own: dict[str, Any] = {
            "negative_slope": negative_slope,
            "residual": residual,
            "add_self_loops": add_self_loops,
        }
        make_conv = partial(GATConv, **own)
        super().__init__(make_conv, in_channels, hidden_channels, out_channels, **options)
        self.config |= own


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
        own: dict[str, Any] = {
            "negative_slope": negative_slope,
            "residual": residual,
            "add_self_loops": add_self_loops,
            "share_weights": share_weights,
        }
        make_conv = partial(GATv2Conv, **own)
        super().__init__(make_conv, in_channels, hidden_channels, out_channels, **options)
        self.config |= own


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
        make_conv = partial(TransformerConv, root_weight=residual, beta=beta)
        defaults: NetworkOptions = {"norm": True, "feed_forward": 2, "dropout": 0.1}
        chosen: NetworkOptions = {**defaults, **options}
        super().__init__(make_conv, in_channels, hidden_channels, out_channels, **chosen)
        self.config |= {"residual": residual, "beta": beta}


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
        own: dict[str, Any] = {
            "score": score,
            "normalizer": normalizer,
            "activation": activation,
            "share_weights": share_weights,
            "value_projection": value_projection,
            "residual": residual,
            "add_self_loops": add_self_loops,
        }
        make_conv = partial(GraphAttentionConv, **own)
        super().__init__(make_conv, in_channels, hidden_channels, out_channels, **options)
        self.config |= own


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
        x = F.relu(self.first(self.drop(x)))
        attention = []
        for conv in self.convs:
            if return_attention_weights:
                attention.append(conv.attention(x, edge_index))  # type: ignore[operator]
            x = conv(x, edge_index)
        out = self.last(self.drop(x))
        return (out, attention) if return_attention_weights else out

    def embed(self, x: Tensor, edge_index: Any, edge_attr: Tensor | None = None) -> Tensor:
        """What enters the last map, `[N, hidden_channels]`."""
        x = F.relu(self.first(self.drop(x)))
        for conv in self.convs:
            x = conv(x, edge_index)
        return x


def _check_pairs(pairs: Tensor | None, num_nodes: int) -> None:
    if pairs is None or pairs.dim() != 2 or pairs.shape[0] != 2 or pairs.dtype != torch.long:
        found = "None" if pairs is None else f"of shape {[*pairs.shape]} and {pairs.dtype}"
        raise ValueError(
            f"edge_label_index is {found}; a model of level='edge' needs the pairs of nodes to "
            "judge, int64 [2, pairs]"
        )
    if not torch.compiler.is_compiling() and pairs.numel() > 0:  # indexing would take -1 for last
        low, high = (int(end) for end in pairs.aminmax())
        if low < 0 or high >= num_nodes:
            raise IndexError(
                f"edge_label_index names node {low if low < 0 else high}, but x has {num_nodes} "
                "nodes, numbered from 0"
            )


def _reset(module: nn.Module) -> None:
    """Draw the parameters of a module anew, or else those of its parts."""
    reset = getattr(module, "reset_parameters", None)
    if reset is not None:
        reset()
    else:
        for part in module.children():
            _reset(part)


def _network(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Two linear maps with ELU between them."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ELU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))
