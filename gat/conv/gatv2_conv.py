"""GATv2Conv: graph attention whose ranking of the neighbours depends on who asks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn.inits import glorot, zeros

from attn_core import Additive, attend, scatter_softmax
from attn_core.ops.edge_layer import Mapped
from attn_core.scores import Formula
from gat.conv.base import pairs_of_chosen, pairs_with, trusted, weights_like_input
from gat.conv.projecting import ProjectingConv, both_sides, check_fill_value, has_no_bias, widths_of
from gat.sparse import Linear


@trusted
class GATv2Conv(ProjectingConv):
    r"""Graph attention with the activation *inside* the score: Bahdanau's, with LeakyReLU.

    .. math::
        x'_i = \sum_{j \in N(i) \cup \{i\}} \alpha_{ij} W_l x_j, \qquad
        \alpha_{ij} = \mathrm{softmax}_j\, a^T \mathrm{LeakyReLU}
        (W_r x_i + W_l x_j + W_{edge} e_{ij})

    In GATConv all nodes rank their neighbours alike; here each has a ranking of its own. Brody,
    Alon, Yahav, "How Attentive are Graph Attention Networks?", ICLR 2022. A drop-in for
    `torch_geometric.nn.GATv2Conv`: the same arguments, parameters, `state_dict` and numbers. What
    differs on purpose is listed in `docs/compatibility.md`.

    Args:
        in_channels: features per node; a pair for bipartite graphs (sources, targets); -1 to take
            it from the first call.
        out_channels: features per node and head that come out.
        heads: H, how many attentions run side by side. Default 1.
        concat: concatenate the heads (True, default) or average them.
        negative_slope: of LeakyReLU. Default 0.2.
        dropout: the probability with which an attention weight is dropped in training. Default 0.
        add_self_loops: give each node exactly one edge to itself. Default True.
        edge_dim: features per edge. Default None: edges have none.
        fill_value: the features of self-loops: a number, a tensor, or how to reduce those of the
            node's incoming edges: "mean" (default), "add", "min", "max", "mul". None: ones.
        bias: learn additive biases, of the projections and of the output. Default True.
        share_weights: one projection for sources and targets, W_r = W_l. Default False.
        residual: add a linear map of the node's own features. Default False.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `aggr` or `flow`.

    Raises:
        ValueError: in_channels that are no number or pair, out_channels or heads below 1, a dropout
            outside [0, 1], a fill_value that is not known.
        TypeError: out_channels or heads that are no whole numbers.

    >>> conv = GATv2Conv(4, 8, heads=2)
    >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    >>> conv(torch.randn(3, 4), edge_index).shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str | None = "mean",
        bias: bool = True,
        share_weights: bool = False,
        residual: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(in_channels, out_channels, heads, concat, dropout, edge_dim, **kwargs)
        self.negative_slope = negative_slope
        self.add_self_loops = add_self_loops
        self.fill_value = check_fill_value(fill_value)
        self.residual = residual
        self.share_weights = share_weights

        def linear(inputs: int, outputs: int, bias: bool) -> Linear:
            return Linear(inputs, outputs, bias=bias, weight_initializer="glorot")

        of_sources, of_targets = widths_of(in_channels)
        width = heads * out_channels
        self.lin_l = linear(of_sources, width, bias)
        self.lin_r = self.lin_l if share_weights else linear(of_targets, width, bias)
        self.att = Parameter(torch.empty(1, heads, out_channels))
        self.lin_edge = None if edge_dim is None else linear(edge_dim, width, False)
        width = width if concat else out_channels
        self.res = linear(of_targets, width, False) if residual else None
        self.register_parameter("bias", Parameter(torch.empty(width)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: Glorot's initialisation, biases zero."""
        super().reset_parameters()
        for linear in (self.lin_l, self.lin_r, self.lin_edge, self.res):
            if linear is not None:
                linear.reset_parameters()
        glorot(self.att)
        zeros(self.bias)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | Tensor | None = None,
    ) -> Any:
        """Attend over the edges.

        Args:
            x: `[N, in_channels]`, dense or `torch.sparse_csr`, or a pair of source and target
                features for bipartite graphs. `[..., N, in_channels]` are states of one graph, such
                as steps of time, each of which attends as it would alone.
            edge_index: int64 `[2, E]` (sources, targets), a `torch_geometric.EdgeIndex`, a sparse
                matrix as in torch_geometric (transposed: rows are targets), or
                `attn_core.Edges`, which are sorted once and for all. After an edit that torch does
                not count (by NumPy, `.data`) call `attn_core.clear_cache()`, on GPUs and without
                the compiled kernels; elsewhere it is seen.
            edge_attr: `[E, edge_dim]` or `[E]`, in the order of edge_index; `[..., E, edge_dim]`
                where the states differ in it.
            return_attention_weights: also return the weights, with their edges: of all (True), or
                of the edges into some targets alone (integers `[n]`, or bool `[N]`). Default None.

        Returns:
            `[..., N, heads * out_channels]` (`out_channels` where heads are averaged); with
            return_attention_weights, that and `EdgeAttention(edge_index [2, E'], weights
            [..., E', H])`, or, for a sparse edge_index, what torch_geometric returns.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other.
        """
        need_weights = self.weights_for(return_attention_weights)
        apart = None
        if self._is_apart(need_weights, x):
            apart = GATv2Conv.forward(self, x, edge_index, edge_attr)
        x, first = self._sources(x, edge_index)
        fused = self._is_fused()
        in_one = fused and need_weights is False
        h_l, h_r, residual = self._project(x, first, in_one)
        support = self._support(edge_index, h_l, h_r.shape[-3], self.add_self_loops, dim=-3)
        edge_attr = self._edge_features(edge_attr, edge_index, h_l)
        if edge_attr is not None:
            edge_attr = self._with_loop_features(edge_attr, support, self.fill_value)

        if in_one:
            score = Formula("leaky_relu", self.negative_slope, self.att)
            out = self._in_one_step(
                h_r, h_l, self._drop_values(h_l, edge_index), score, support,
                self.bias if residual is None else residual,
                pair_key=None if edge_attr is None else self._project_edges(edge_attr),
            )  # fmt: skip
            if out is not None:
                if residual is None or isinstance(residual, Mapped) or self.bias is None:
                    return out
                return out + self.bias
            if isinstance(h_l, Mapped):
                h_l, h_r, residual = self._project(x, first)
        if fused:
            out, weights, _ = attend(
                h_r,
                h_l,
                self._drop_values(h_l, edge_index),
                score=Additive(self.att.squeeze(0), "leaky_relu", self.negative_slope),
                support=support,
                pair_key=None if edge_attr is None else self._project_edges(edge_attr),
                dropout=self.dropout if self.training and apart is None else 0.0,
                need_weights=need_weights,
            )
            pairs = pairs_of_chosen(support, need_weights)
        else:
            self._one_state(h_l.shape[:-3])
            pairs, edge_attr = pairs_with(support, edge_attr)
            out, weights = self._pass_messages(pairs, (h_l, h_r), edge_attr)
            pairs, weights = self._chosen(pairs, weights, support, need_weights)

        out = self._finish(out, residual, h_l.dtype, fused) if apart is None else apart
        if need_weights is False:
            return out
        assert pairs is not None and weights is not None
        return out, weights_like_input(edge_index, support, pairs, weights.to(h_l.dtype))

    def _project(
        self, x: Tensor | tuple[Tensor, Tensor], first: int | None, may_wait: bool = False
    ) -> tuple[Any, Any, Any]:
        """Sources and targets as `[..., N, H, C]`, and the residual of the targets.

        They may wait for the one step that attends; the residual then has the bias in it.
        """
        # As in torch_geometric, a pair of features does not share its results, only the weights
        shared = self.share_weights and isinstance(x, Tensor)
        x_l, x_r = both_sides(type(self).__name__, x, (self.lin_l, self.lin_r), first)
        linears = [one for one in (self.lin_l, self.lin_r, self.res) if one is not None]
        by_head: Any = self._by_head
        residual: Any = None
        may_wait = may_wait and not (shared and first is not None)
        if may_wait and self._may_wait(linears, x_l, x_r) and has_no_bias(self.res):
            by_head = self._mapped
            if self.res is not None:
                residual = self._mapped(self.res, x_r)._replace(bias=self.bias)
        elif self.res is not None:
            residual = self.res(x_r)
        h_l = by_head(self.lin_l, x_l)
        if not shared:
            return h_l, by_head(self.lin_r, x_r), residual
        return h_l, h_l if first is None else h_l.narrow(-3, 0, first), residual

    def _pass_messages(
        self, pairs: Tensor, x: tuple[Tensor, Tensor], edge_attr: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The same through torch_geometric's steps, for those who watch or replace them."""
        # edge_updater_type: (x: tuple[Tensor, Tensor], edge_attr: Tensor | None)
        dropped = self.edge_updater(pairs, x=x, edge_attr=edge_attr)
        # propagate_type: (x: tuple[Tensor, Tensor], alpha: Tensor)
        values = self._drop_values(x[0]), self._drop_values(x[1])
        out = self.propagate(pairs, x=values, alpha=dropped)
        if not (self.training and self.dropout > 0 and self._has_own("edge_update")):
            return out, dropped
        i, j = (1, 0) if self.flow == "source_to_target" else (0, 1)
        x_j, x_i = x[j].index_select(0, pairs[j]), x[i].index_select(0, pairs[i])
        return out, self._weights(x_j, x_i, edge_attr, pairs[i], out.shape[0])

    def edge_update(
        self,
        x_j: Tensor,
        x_i: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        dim_size: int | None,
    ) -> Tensor:
        """The weight of each edge, `[E, H]`, after dropout; the arguments are torch_geometric's."""
        weights = self._weights(x_j, x_i, edge_attr, index, dim_size)
        return F.dropout(weights, p=self.dropout, training=self.training)

    def _weights(
        self,
        x_j: Tensor,
        x_i: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        dim_size: int | None,
    ) -> Tensor:
        """The weight of each edge among those of the same index, `[E, H]`."""
        hidden = x_i + x_j
        if edge_attr is not None and self.lin_edge is not None:
            hidden = hidden + self._project_edges(edge_attr)
        logits = (F.leaky_relu(hidden, self.negative_slope) * self.att).sum(-1)
        return scatter_softmax(logits, index, dim_size)

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        """What an edge carries to its target, `[E, H, C]`."""
        return alpha.unsqueeze(-1) * x_j

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})"
