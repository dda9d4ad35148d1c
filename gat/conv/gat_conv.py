"""GATConv: the layer of graph attention networks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn.inits import glorot, zeros

from attn_core import Separable, attend, scatter_softmax
from attn_core.ops.edge_layer import Mapped
from attn_core.scores import Formula
from gat.conv.base import (
    check_features,
    is_autocast,
    pairs_of_chosen,
    pairs_with,
    targets_of,
    trusted,
    weights_like_input,
)
from gat.conv.projecting import ProjectingConv, check_fill_value, has_no_bias, is_plain, widths_of
from gat.sparse import Linear

_FEW = 16  # heads: so much more than need be may a product compute that does them all at once


@trusted
class GATConv(ProjectingConv):
    r"""Graph attention: each node averages its neighbours with weights that it learns to give.

    .. math::
        x'_i = \sum_{j \in N(i) \cup \{i\}} \alpha_{ij} W x_j, \qquad
        \alpha_{ij} = \mathrm{softmax}_j\, \mathrm{LeakyReLU}
        (a_{dst}^T W x_i + a_{src}^T W x_j + a_{edge}^T W_{edge} e_{ij})

    Veličković et al., "Graph Attention Networks", ICLR 2018. A drop-in for
    `torch_geometric.nn.GATConv`: the same arguments, parameters, `state_dict` and numbers. What
    differs on purpose is listed in `docs/compatibility.md`: returned weights are those before
    dropout, and the softmax of half types is kept in float32.

    Args:
        in_channels: features per node; a pair for bipartite graphs (sources, targets), which then
            get a projection each; -1 to take it from the first call.
        out_channels: features per node and head that come out.
        heads: H, how many attentions run side by side. Default 1.
        concat: concatenate the heads (True, default) or average them.
        negative_slope: of LeakyReLU. Default 0.2.
        dropout: the probability with which an attention weight is dropped in training. Default 0.
        add_self_loops: give each node exactly one edge to itself. Default True.
        edge_dim: features per edge. Default None: edges have none.
        fill_value: the features of self-loops: a number, a tensor, or how to reduce those of the
            node's incoming edges: "mean" (default), "add", "min", "max", "mul". None: ones.
        bias: learn an additive bias. Default True.
        residual: add a linear map of the node's own features. Default False.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `aggr` or `flow`.

    Raises:
        ValueError: in_channels that are no number or pair, out_channels or heads below 1, a dropout
            outside [0, 1], a fill_value that is not known.
        TypeError: out_channels or heads that are no whole numbers.

    >>> conv = GATConv(4, 8, heads=2)
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
        residual: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("aggr", "add")
        super().__init__(in_channels, out_channels, heads, concat, dropout, edge_dim, **kwargs)
        self.negative_slope = negative_slope
        self.add_self_loops = add_self_loops
        self.fill_value = check_fill_value(fill_value)
        self.residual = residual

        def linear(inputs: int, outputs: int) -> Linear:
            return Linear(inputs, outputs, bias=False, weight_initializer="glorot")

        width = heads * out_channels
        self.lin: Linear | None = None
        self.lin_src: Linear | None = None
        self.lin_dst: Linear | None = None
        if isinstance(in_channels, int):
            self.lin = linear(in_channels, width)
        else:
            self.lin_src, self.lin_dst = (linear(channels, width) for channels in in_channels)
        self.att_src = Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = Parameter(torch.empty(1, heads, out_channels))
        self.lin_edge: Linear | None = None
        self.register_parameter("att_edge", None)
        if edge_dim is not None:
            self.lin_edge = linear(edge_dim, width)
            self.att_edge = Parameter(torch.empty(1, heads, out_channels))
        width = width if concat else out_channels
        self.res = linear(widths_of(in_channels)[1], width) if residual else None
        self.register_parameter("bias", Parameter(torch.empty(width)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew: Glorot's initialisation, biases zero."""
        super().reset_parameters()
        for linear in (self.lin, self.lin_src, self.lin_dst, self.lin_edge, self.res):
            if linear is not None:
                linear.reset_parameters()
        glorot(self.att_src)
        glorot(self.att_dst)
        glorot(self.att_edge)
        zeros(self.bias)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor | None],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        size: tuple[int, int] | None = None,
        return_attention_weights: bool | Tensor | None = None,
    ) -> Any:
        """Attend over the edges.

        Args:
            x: `[N, in_channels]`, dense or `torch.sparse_csr`, or a pair of source and target
                features for bipartite graphs; the target's may be None, and the score then depends
                on the sources alone. `[..., N, in_channels]` are states of one graph, such as
                steps of time, each of which attends as it would alone.
            edge_index: int64 `[2, E]` (sources, targets), a `torch_geometric.EdgeIndex`, a sparse
                matrix as in torch_geometric (transposed: rows are targets), or
                `attn_core.Edges`, which are sorted once and for all. After an edit that torch does
                not count (by NumPy, `.data`) call `attn_core.clear_cache()`, on GPUs and without
                the compiled kernels; elsewhere it is seen.
            edge_attr: `[E, edge_dim]` or `[E]`, in the order of edge_index; `[..., E, edge_dim]`
                where the states differ in it.
            size: the numbers of source and target nodes. Default: those of x; where it has no
                targets, what edge_index knows (a sparse matrix, Edges, an EdgeIndex with
                sparse_size), else as many as sources.
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
        if isinstance(x, Tensor) and self._is_apart(need_weights, x):
            apart = GATConv.forward(self, x, edge_index, edge_attr, size)
        x, first = self._sources(x, edge_index)
        fused = self._is_fused()
        in_one = fused and need_weights is False and self._hands_all_on()
        h_src, h_dst, residual = self._project(x, first, in_one)
        of_scores = h_src, h_dst
        if first is not None and h_dst is not None:
            h_dst = h_dst.narrow(-3, 0, first)
        known = None if h_dst is not None else targets_of(edge_index)
        num_targets = _num_targets(size, h_src, h_dst, known)
        support = self._support(edge_index, h_src, num_targets, self.add_self_loops, dim=-3)
        edge_attr = self._edge_features(edge_attr, edge_index, h_src)
        if edge_attr is not None:
            edge_attr = self._with_loop_features(edge_attr, support, self.fill_value)

        if in_one and h_dst is h_src:
            out = self._in_one_step(
                None, None, h_src, Formula("leaky_relu", self.negative_slope, None), support,
                self.bias if residual is None else residual, ends=(self.att_dst, self.att_src),
                pair_key=None if edge_attr is None else self._score_edges(edge_attr).unsqueeze(-1),
            )  # fmt: skip
            if out is not None:
                if residual is None or isinstance(residual, Mapped) or self.bias is None:
                    return out
                return out + self.bias
            if isinstance(h_src, Mapped):
                h_src, h_dst, residual = self._project(x, first)
                of_scores = h_src, h_dst
        alpha_src, alpha_dst = self._node_scores(x, *of_scores)
        if first is not None and alpha_dst is not None:
            alpha_dst = alpha_dst.narrow(-2, 0, first)
        if fused:
            out, weights, _ = attend(
                None if alpha_dst is None else alpha_dst.unsqueeze(-1),
                alpha_src.unsqueeze(-1),
                self._drop_values(h_src, edge_index),
                score=Separable(activation="leaky_relu", negative_slope=self.negative_slope),
                support=support,
                pair_key=None if edge_attr is None else self._score_edges(edge_attr).unsqueeze(-1),
                dropout=self.dropout if self.training and apart is None else 0.0,
                need_weights=need_weights,
            )
            pairs = pairs_of_chosen(support, need_weights)
        else:
            self._one_state(h_src.shape[:-3])
            pairs, edge_attr = pairs_with(support, edge_attr)
            if h_dst is None:  # which otherwise tells it
                size = support.num_keys, support.num_queries
            out, weights = self._pass_messages(
                pairs, (h_src, h_dst), (alpha_src, alpha_dst), edge_attr, size
            )
            pairs, weights = self._chosen(pairs, weights, support, need_weights)

        out = self._finish(out, residual, h_src.dtype, fused) if apart is None else apart
        if need_weights is False:
            return out
        assert pairs is not None and weights is not None
        return out, weights_like_input(edge_index, support, pairs, weights.to(h_src.dtype))

    def _project(
        self, x: Tensor | tuple[Tensor, Tensor | None], first: int | None, may_wait: bool = False
    ) -> tuple[Any, Any, Any]:
        """Sources and targets as `[..., N, H, C]`, and the residual of the (first) targets.

        They may wait for the one step that attends; the residual then has the bias in it.
        """
        if not isinstance(x, Tensor) and not (isinstance(x, (tuple, list)) and len(x) == 2):
            raise TypeError(
                f"x is a {type(x).__name__}; expected a tensor of features [nodes, channels], or a "
                "pair of them (sources, targets)"
            )
        x_src, x_dst = (x, x) if isinstance(x, Tensor) else x
        lin = self.lin
        lin_src, lin_dst = (self.lin_src, self.lin_dst) if lin is None else (lin, lin)
        assert lin_src is not None and lin_dst is not None
        name, layer = "x" if isinstance(x, Tensor) else "x[0]", type(self).__name__
        check_features(layer, name, x_src, lin_src, batched=True)
        if x_dst is not None and not (x_dst is x_src and lin_dst is lin_src):
            check_features(layer, "x[1]", x_dst, lin_dst, batched=True)
        residual: Any = None
        if may_wait and first is None and x_dst is x_src and lin_dst is lin_src:
            linears = [one for one in (lin_src, self.res) if one is not None]
            if self._may_wait(linears, x_src) and has_no_bias(self.res):
                h = self._mapped(lin_src, x_src)
                if self.res is not None:
                    residual = self._mapped(self.res, x_src)._replace(bias=self.bias)
                return h, h, residual
        if self.res is not None and x_dst is not None:
            residual = self.res(x_dst if first is None else x_dst.narrow(-2, 0, first))
        h_src = self._by_head(lin_src, x_src)
        if x_dst is x_src and lin_dst is lin_src:
            return h_src, h_src, residual
        return h_src, None if x_dst is None else self._by_head(lin_dst, x_dst), residual

    def _node_scores(
        self, x: Tensor | tuple[Tensor, Tensor | None], h_src: Tensor, h_dst: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """aᵀ W x of each node and head, of sources and of targets, `[..., N, H]`."""
        one = isinstance(x, Tensor) and h_dst is h_src and not is_autocast(h_src)
        narrow = one and self._is_narrow(x)
        if not (narrow or (one and self.heads <= _FEW)):
            alpha_src = (h_src * self.att_src).sum(-1)
            return alpha_src, None if h_dst is None else (h_dst * self.att_dst).sum(-1)
        # One product for both, which writes nothing as large as h
        att = torch.stack([self.att_src[0], self.att_dst[0]])  # [2, H, C]
        if narrow:  # Wᵀa first, as x has fewer numbers than h
            assert self.lin is not None
            weight = self.lin.weight.view(self.heads, self.out_channels, -1)
            alpha = x @ (att.unsqueeze(2) @ weight).flatten(0, 2).t()
        else:  # a block of the matrix for each head
            blocks = torch.diag_embed(att.permute(2, 0, 1)).permute(2, 0, 1, 3)  # [H, C, 2, H]
            alpha = h_src.flatten(-2) @ blocks.reshape(-1, 2 * self.heads)
        alpha_src, alpha_dst = alpha.split(self.heads, -1)
        return alpha_src, alpha_dst

    def _is_narrow(self, x: Any) -> bool:
        """Whether x has fewer numbers than Wx, and the linear map is no more than its weight."""
        return (
            is_plain(self.lin)
            and x.layout == torch.strided
            and x.shape[-1] <= self.heads * self.out_channels
        )

    def _score_edges(self, edge_attr: Tensor) -> Tensor:
        """What the features of each edge add to its score, `[E, H]`."""
        return (self._project_edges(edge_attr) * self.att_edge).sum(-1)

    def _pass_messages(
        self,
        pairs: Tensor,
        x: tuple[Tensor, Tensor | None],
        alpha: tuple[Tensor, Tensor | None],
        edge_attr: Tensor | None,
        size: tuple[int, int] | None,
    ) -> tuple[Tensor, Tensor]:
        """The same through torch_geometric's steps, for those who watch or replace them."""
        # edge_updater_type: (alpha: tuple[Tensor, Tensor | None], edge_attr: Tensor | None)
        dropped = self.edge_updater(pairs, alpha=alpha, edge_attr=edge_attr, size=size)
        # propagate_type: (x: tuple[Tensor, Tensor | None], alpha: Tensor)
        values = self._drop_values(x[0]), None if x[1] is None else self._drop_values(x[1])
        out = self.propagate(pairs, x=values, alpha=dropped, size=size)
        if not (self.training and self.dropout > 0 and self._has_own("edge_update")):
            return out, dropped
        i, j = (1, 0) if self.flow == "source_to_target" else (0, 1)
        alpha_j = alpha[0].index_select(0, pairs[j])
        alpha_i = None if alpha[1] is None else alpha[1].index_select(0, pairs[i])
        return out, self._weights(alpha_j, alpha_i, edge_attr, pairs[i], out.shape[0])

    def edge_update(
        self,
        alpha_j: Tensor,
        alpha_i: Tensor | None,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        dim_size: int | None,
    ) -> Tensor:
        """The weight of each edge, `[E, H]`, after dropout; the arguments are torch_geometric's."""
        weights = self._weights(alpha_j, alpha_i, edge_attr, index, dim_size)
        return F.dropout(weights, p=self.dropout, training=self.training)

    def _weights(
        self,
        alpha_j: Tensor,
        alpha_i: Tensor | None,
        edge_attr: Tensor | None,
        index: Tensor,
        dim_size: int | None,
    ) -> Tensor:
        """The weight of each edge among those of the same index, `[E, H]`."""
        alpha = alpha_j if alpha_i is None else alpha_j + alpha_i
        if edge_attr is not None and self.lin_edge is not None:
            alpha = alpha + self._score_edges(edge_attr)
        return scatter_softmax(F.leaky_relu(alpha, self.negative_slope), index, dim_size)

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        """What an edge carries to its target, `[E, H, C]`."""
        return alpha.unsqueeze(-1) * x_j

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})"


def _num_targets(
    size: tuple[int, int] | None, x_src: Tensor, x_dst: Tensor | None, known: int | None
) -> int:
    """The number of target nodes; `size` tells it where x does not, and must not contradict x.

    `known` is what edge_index tells, where neither does.
    """
    given = (None, None) if size is None else size
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise ValueError(f"size is {size}; expected a pair (number of sources, number of targets)")
    sources, targets = x_src.shape[-3], given[1] if x_dst is None else x_dst.shape[-3]
    if given[0] not in (None, sources) or given[1] not in (None, targets):
        raise ValueError(
            f"size is {tuple(given)}, but x has {sources} source and {targets} target nodes: leave "
            "size out, or give x a row for each node"
        )
    if targets is None:
        targets = sources if known is None else known
    return targets
