"""The body of the models: torch_geometric's, of our layers, with what is needed beyond it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_geometric.nn.models.basic_gnn import BasicGNN
from torch_geometric.nn.resolver import normalization_resolver
from torch_geometric.utils import scatter

from attn_core import scatter_softmax
from gat.checks import check_probability
from gat.conv.projecting import ProjectingConv, warn_caller
from gat.sparse import Linear, SparseDropout

LEVELS = ("node", "edge", "graph")
POOLS = ("mean", "attention")
JUMPING = ("last", "cat", "max", "lstm")


class AttentionNetwork(BasicGNN):
    r"""The body of the models: L layers of graph attention, and what comes after them; abstract.

    .. math::
        h^{(l)} = \mathrm{dropout}\, \mathrm{act}\, \mathrm{norm}\, \mathrm{conv}(h^{(l-1)})

    Up to `jk` and in `**kwargs` the arguments are those of `torch_geometric.nn.GAT`, in its order
    and with its meaning; so are names in `state_dict` and methods, such as `inference` layer by
    layer.

    With feed_forward, a small network of each node alone comes before the dropout,
    `h ← norm(h + network(h))`, as in the Transformer. At the node level without jumping knowledge
    the last layer averages its heads, and that is the output; otherwise all layers are hidden, and
    what follows makes the output of what they leave: a linear map of each node or of the mean over
    each graph, or a network with one hidden layer for each pair of nodes.

    Args:
        in_channels: features per node; -1 to take it from the first call.
        hidden_channels: features per node of the hidden layers, of all heads together.
        num_layers: L.
        out_channels: what comes out per node, pair or graph, such as the number of classes.
            Default: hidden_channels, and all layers are hidden ones.
        dropout: of what hidden layers give, and of the attention weights, in training. Default 0.
        act: the activation by name, a function, a module, or None. Default "relu".
        act_first: activate before the normalisation. Default False.
        act_kwargs: arguments of the activation.
        norm: of each hidden layer, by torch_geometric's name or as a module. Default None.
        norm_kwargs: its arguments. "layer_norm" treats each node alone with `{"mode": "node"}`.
        jk: combine the output of all layers: "last", "cat", "max" or "lstm". Xu et al.,
            "Representation Learning on Graphs with Jumping Knowledge Networks", ICML 2018.
            Default None: go on with the last one.
        heads: H of the hidden layers, which share hidden_channels out. Default 1.
        out_heads: heads of the last layer where it makes the output. Default: the same.
        attention_dropout: of the attention weights, in training. Default: as dropout.
        input_dropout: of the features that come in, in training. Default 0.
        value_dropout: of what each node hands on, in training, scores excepted. Default 0.
        feed_forward: hidden width of the feed-forward networks, as a multiple of their input's.
            Default 0: none.
        level: what there is an output for: each "node", each "edge" of edge_label_index, or each
            "graph" of a batch. Default "node".
        input_projection: map the features to hidden_channels before the first layer, with dropout
            behind. Default False.
        linear_residual: add a linear map of what enters a hidden layer to what its attention gives,
            before the normalisation. Default False.
        pool: of the graph level: the "mean" over the nodes (default), or their weighted sum by
            "attention", a softmax over each graph of one learned number per node.
        **kwargs: of the layers, such as edge_dim or add_self_loops.

    Raises:
        ValueError: fewer than one layer or head, hidden_channels that are no multiple of heads, a
            dropout outside [0, 1], a negative feed_forward, a jk or level that does not exist.
        TypeError: an argument that the layers do not have.
    """

    supports_edge_weight = False
    supports_edge_attr = True
    conv: Callable[..., ProjectingConv]  # builds a layer
    lin: Any  # makes the output, where a layer does not
    projection: nn.Module | None  # of the features that come in
    gate: nn.Module | None  # how much a node counts in its graph
    skips: nn.ModuleList  # past each hidden layer
    _is_conv_to_out = False

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
        norm: str | Callable[..., Any] | None = None,
        norm_kwargs: dict[str, Any] | None = None,
        jk: Literal["last", "cat", "max", "lstm"] | None = None,
        *,
        heads: int = 1,
        out_heads: int | None = None,
        attention_dropout: float | None = None,
        input_dropout: float = 0.0,
        value_dropout: float = 0.0,
        feed_forward: int = 0,
        level: Literal["node", "edge", "graph"] = "node",
        input_projection: bool = False,
        linear_residual: bool = False,
        pool: Literal["mean", "attention"] = "mean",
        **kwargs: Any,
    ) -> None:
        given = {"heads": heads, "out_heads": out_heads, "num_layers": num_layers}
        for name, number in given.items():
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}; a network needs at least one")
        for name, p in {
            "dropout": dropout,
            "attention_dropout": attention_dropout,
            "input_dropout": input_dropout,
            "value_dropout": value_dropout,
        }.items():
            if p is not None:
                check_probability(name, p)
        if jk not in (None, *JUMPING):
            raise ValueError(f"jk is {jk!r}; expected None or one of {_listed(JUMPING)}")
        if level not in LEVELS:
            raise ValueError(f"level is {level!r}; expected one of {_listed(LEVELS)}")
        if pool not in POOLS:
            raise ValueError(f"pool is {pool!r}; expected one of {_listed(POOLS)}")
        if feed_forward < 0:
            raise ValueError(f"feed_forward is {feed_forward}; give the factor of the width, or 0")
        of_layers = {
            "heads": heads,
            "out_heads": out_heads,
            "attention_dropout": attention_dropout,
            "value_dropout": value_dropout,
            **kwargs,
        }
        super().__init__(
            hidden_channels if input_projection else in_channels,
            hidden_channels,
            num_layers,
            out_channels,
            dropout,
            act,
            act_first,
            act_kwargs,
            norm,
            norm_kwargs,
            "last" if jk is None and level != "node" else jk,
            **of_layers,
        )
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "out_channels": out_channels,
            "dropout": dropout,
            "act": act,
            "act_first": act_first,
            "act_kwargs": act_kwargs,
            "norm": norm,
            "norm_kwargs": norm_kwargs,
            "jk": jk,
            "input_dropout": input_dropout,
            "feed_forward": feed_forward,
            "level": level,
            "input_projection": input_projection,
            "linear_residual": linear_residual,
            "pool": pool,
            **of_layers,
        }
        self.dropout = SparseDropout(dropout)
        self.extend(input_dropout, feed_forward, level)
        if (input_projection or linear_residual) and not isinstance(in_channels, int):
            raise ValueError(
                f"in_channels is {in_channels}; with input_projection or linear_residual all nodes "
                "have one number of features"
            )
        width = in_channels  # of what enters a layer
        if input_projection:
            self.projection = Linear(in_channels, hidden_channels)
            self.in_channels, width = in_channels, hidden_channels
        for _ in range(self._num_hidden() if linear_residual else 0):
            self.skips.append(Linear(width, hidden_channels))
            width = hidden_channels
        if pool == "attention" and level == "graph":
            self.gate = nn.Linear(self.lin.in_features, 1)
        if feed_forward and norm is not None:
            made = normalization_resolver(norm, hidden_channels, **(norm_kwargs or {}))
            self.network_norms.extend(copy.deepcopy(made) for _ in self.networks)

    def extend(
        self, input_dropout: float = 0.0, feed_forward: int = 0, level: str = "node"
    ) -> None:
        """Add what torch_geometric's model has not, by default nothing that is felt."""
        self.level = level
        self.input_dropout = SparseDropout(input_dropout)
        width, p = self.hidden_channels, self.dropout.p
        self.networks = nn.ModuleList(
            _network(width, feed_forward * width, width, p)
            for _ in range(self._num_hidden() if feed_forward else 0)
        )
        self.projection, self.gate, self.skips = None, None, nn.ModuleList()
        self.network_norms = nn.ModuleList()
        if level == "edge":
            self.lin = _network(2 * self.lin.in_features, width, self.out_channels, p)

    def init_conv(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        *,
        heads: int,
        out_heads: int | None,
        attention_dropout: float | None,
        value_dropout: float,
        concat: bool = True,
        **kwargs: Any,
    ) -> ProjectingConv:
        """A layer; torch_geometric calls this for each."""
        if self._is_conv_to_out:
            heads, concat = heads if out_heads is None else out_heads, False
        if concat and out_channels % heads:
            raise ValueError(
                f"hidden_channels is {out_channels}, which {heads} heads cannot share: give a "
                f"multiple of {heads}"
            )
        p = self.dropout.p if attention_dropout is None else attention_dropout
        width = out_channels // heads if concat else out_channels
        layer = self.conv(in_channels, width, heads=heads, concat=concat, dropout=p, **kwargs)
        layer.value_dropout = value_dropout
        return layer

    def reset_parameters(self) -> None:
        """Draw the parameters of all layers anew."""
        for part in self.children():
            _reset(part)

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        edge_weight: Tensor | None = None,
        edge_attr: Tensor | None = None,
        batch: Tensor | None = None,
        batch_size: int | None = None,
        num_sampled_nodes_per_hop: list[int] | None = None,
        num_sampled_edges_per_hop: list[int] | None = None,
        *,
        edge_label_index: Tensor | None = None,
        return_attention_weights: bool = False,
    ) -> Any:
        """The output for each node, edge or graph.

        Args:
            x: `[N, in_channels]`, dense or `torch.sparse_csr`.
            edge_index: the edges, in any form that the layers take; or a list with those of each
                layer, such as the blocks of `gat.loader`, of which the first targets are left.
            edge_weight: not used, as in torch_geometric; it warns.
            edge_attr: `[E, edge_dim]`, or a list of one for each layer. Default None.
            batch: int64 `[N]`, the graph of each node: for the graph level, and for normalisations
                that look at whole graphs. Default: all in one.
            batch_size: the number of graphs. Default: as batch tells.
            num_sampled_nodes_per_hop, num_sampled_edges_per_hop: of a batch of NeighborLoader, so
                that each layer computes what the later ones still need. Default None: everything.
            edge_label_index: at the edge level, int64 `[2, P]`, the pairs of nodes that are asked
                about.
            return_attention_weights: return every layer's attention as well. Default False.

        Returns:
            `[N, out_channels]`, `[P, out_channels]` or `[graphs, out_channels]`; with
            return_attention_weights, that and a list of one `EdgeAttention(edge_index, weights)`
            per layer, the first layer first.

        Raises:
            ValueError: edge_label_index at another level, or none at the edge level; one, or a
                batch, of another shape.
            IndexError: edge_label_index names a node that x does not have.
        """
        # What is no tensor may be a placeholder of torch.fx, as in to_hetero: let it pass
        if isinstance(edge_weight, Tensor) and not torch.compiler.is_compiling():
            warn_caller(
                f"edge_weight of shape {list(edge_weight.shape)} is not used by "
                f"{type(self).__name__}: give numbers of edges as edge_attr=, and build the model "
                "with edge_dim"
            )
        if isinstance(x, Tensor):
            self._check_level(x.shape[0], batch, edge_label_index)
        attention: list[Any] | None = [] if return_attention_weights is True else None
        outputs = []
        x = self._enter(x)
        for i, conv in enumerate(self.convs):
            if num_sampled_nodes_per_hop is not None:
                x, edge_index, edge_attr = self._trim(
                    i,
                    num_sampled_nodes_per_hop,
                    num_sampled_edges_per_hop,
                    x,
                    edge_index,
                    edge_attr,
                )
            entering = x
            edges, attr = of_layer(edge_index, i), of_layer(edge_attr, i)
            if attention is None:
                x = conv(x, edges, edge_attr=attr)
            else:
                x, weights = conv(x, edges, edge_attr=attr, return_attention_weights=True)
                attention.append(weights)
            if self._is_hidden(i):
                x = self._past(i, x, entering)
                x = self.dropout(self._after(i, x, batch, batch_size))
                outputs.append(x)
        x = self._out(outputs, batch, batch_size, edge_label_index) if self._has_lin() else x
        return x if attention is None else (x, attention)

    def embed(self, x: Tensor, edge_index: Any, edge_attr: Tensor | None = None) -> Tensor:
        """What enters the last layer, or the linear map where there is one, `[N, width]`.

        The arguments are those of `forward`; without hidden layers, x itself comes back.
        """
        outputs = []
        x = self._enter(x)
        for i in range(self._num_hidden()):
            x = self.dropout(self.step(i, x, of_layer(edge_index, i), of_layer(edge_attr, i)))
            outputs.append(x)
        return self._joined(outputs) if self._has_lin() else x

    @property
    def joins(self) -> bool:
        """Whether the output is made of what all layers give, not of the last one's alone."""
        return self.jk_mode not in (None, "last")

    def begin(self, x: Tensor) -> Tensor:
        """What enters the first layer: with `step` and `finish`, the steps of evaluation."""
        return self._enter(x)

    def step(self, layer: int, x: Tensor, edge_index: Any, edge_attr: Tensor | None = None) -> Any:
        """What a layer hands to the next one, dropout aside."""
        out = self.convs[layer](x, edge_index, edge_attr=edge_attr)
        return self._after(layer, self._past(layer, out, x)) if self._is_hidden(layer) else out

    def finish(self, outputs: list[Tensor]) -> Tensor:
        """The output of the nodes, made of what the layers gave."""
        out: Tensor = self.lin(self._joined(outputs)) if self._has_lin() else outputs[-1]
        return out

    def inference_per_layer(
        self, layer: int, x: Tensor, edge_index: Any, batch_size: int
    ) -> Tensor:
        """The first nodes after one layer, for `inference`."""
        if self.level != "node":
            raise ValueError(
                f"level is {self.level!r}; inference layer by layer is for models of level='node'"
            )
        with torch.no_grad():
            entering = self._enter(x) if layer == 0 else x
            x = self.convs[layer](entering, edge_index)[:batch_size]
            if self._is_hidden(layer):
                x = self._after(layer, self._past(layer, x, entering))
            return self.lin(x) if self._has_lin() and layer == self.num_layers - 1 else x

    def _enter(self, x: Tensor) -> Tensor:
        """What the first layer is given."""
        x = self.input_dropout(x)
        return x if self.projection is None else self.dropout(self.projection(x))

    def _num_hidden(self) -> int:
        """How many layers are hidden ones."""
        return self.num_layers if self._has_lin() else self.num_layers - 1

    def _has_lin(self) -> bool:
        """Whether a map behind the layers makes the output."""
        return self.jk_mode is not None

    def _is_hidden(self, layer: int) -> bool:
        return self._has_lin() or layer < self.num_layers - 1

    def _past(self, layer: int, x: Tensor, entering: Tensor) -> Tensor:
        """What a hidden layer gives, and a linear map of what entered it, the targets first."""
        if not self.skips:
            return x
        if entering.layout == torch.strided:  # a sparse matrix cannot be cut
            entering = entering[: x.shape[0]]
        found: Tensor = x + self.skips[layer](entering)[: x.shape[0]]
        return found

    def _after(
        self, layer: int, x: Tensor, batch: Tensor | None = None, batch_size: int | None = None
    ) -> Tensor:
        """What follows a hidden layer, but for dropout."""

        def normalize(norm: nn.Module, x: Tensor) -> Tensor:
            return norm(x, batch, batch_size) if self.supports_norm_batch else norm(x)

        if self.act is not None and self.act_first:
            x = self.act(x)
        x = normalize(self.norms[layer], x)
        if self.act is not None and not self.act_first:
            x = self.act(x)
        if self.networks:
            x = x + self.networks[layer](x)
        return normalize(self.network_norms[layer], x) if self.network_norms else x

    def _joined(self, outputs: list[Tensor]) -> Tensor:
        targets = outputs[-1].shape[0]  # of blocks, the first rows of what each layer gave
        return self.jk([x[:targets] for x in outputs]) if hasattr(self, "jk") else outputs[-1]

    def _out(
        self,
        outputs: list[Tensor],
        batch: Tensor | None,
        batch_size: int | None,
        edge_label_index: Tensor | None,
    ) -> Tensor:
        """What the map behind the layers makes of their outputs."""
        x = self._joined(outputs)
        if self.level == "graph":
            graph = x.new_zeros(len(x), dtype=torch.long) if batch is None else batch
            number = 1 if batch is None and batch_size is None else batch_size
            if self.gate is None:
                x = scatter(x, graph, dim=0, dim_size=number, reduce="mean")
            else:
                x = x * scatter_softmax(self.gate(x), graph, number)
                x = scatter(x, graph, dim=0, dim_size=number, reduce="sum")
        elif self.level == "edge":
            assert edge_label_index is not None
            x = torch.cat([x[end] for end in edge_label_index], dim=-1)
        out: Tensor = self.lin(x)
        return out

    def _check_level(
        self, num_nodes: int, batch: Tensor | None, edge_label_index: Tensor | None
    ) -> None:
        if self.level == "edge":
            _check_pairs(edge_label_index, num_nodes)
        elif isinstance(edge_label_index, Tensor):
            raise ValueError(
                f"edge_label_index is given to a model of level={self.level!r}: leave it out, or "
                "build the model with level='edge'"
            )
        if isinstance(batch, Tensor) and batch.shape != (num_nodes,):
            raise ValueError(
                f"batch has shape {[*batch.shape]}, but there are {num_nodes} nodes: give each the "
                "number of its graph"
            )


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


def of_layer(given: Any, layer: int) -> Any:
    """What is given for all layers together, or for each."""
    return given[layer] if isinstance(given, (list, tuple)) else given


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
        nn.Linear(inputs, hidden), nn.ELU(), SparseDropout(dropout), nn.Linear(hidden, outputs)
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names))
