"""The body of the models: layers of graph attention, and what comes after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import JumpingKnowledge
from torch_geometric.utils import scatter

from gat.checks import check_probability
from gat.conv import EdgeAttention
from gat.conv.projecting import ProjectingConv
from gat.sparse import SparseDropout

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
        conv: builds a layer; it is given in_channels, out_channels, heads, and by name concat,
            dropout, edge_dim and what is in of_conv.
        of_conv: arguments of each layer, which become part of `config`.
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
        conv: Callable[..., ProjectingConv],
        of_conv: dict[str, Any],
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
            **of_conv,
        }
        self.drop = SparseDropout(dropout)
        width = heads * hidden_channels
        shared = of_conv | {
            "dropout": dropout if attention_dropout is None else attention_dropout,
            "edge_dim": edge_dim,
        }
        has_head = jumping is not None or level != "node"
        num_hidden = num_layers if has_head else num_layers - 1
        widths = [in_channels] + [width] * num_layers
        convs = [
            conv(widths[i], hidden_channels, heads, concat=True, **shared)
            for i in range(num_hidden)
        ]
        if not has_head:
            convs.append(conv(widths[-2], out_channels, out_heads, concat=False, **shared))
        for layer in convs:
            layer.value_dropout = value_dropout
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
