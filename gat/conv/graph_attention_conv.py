"""GraphAttentionConv: any score and any normaliser of the core on the edges of a graph."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn.inits import zeros

from attn_core import (
    Additive,
    Concat,
    Edges,
    Hard,
    HardLogProb,
    Location,
    Normalizer,
    PendingEdges,
    Score,
    Separable,
    attend,
    hard_log_prob,
)
from attn_core.parameters import named_normalizer, named_score, redraw, register, with_own
from attn_core.scores import ACTIVATIONS
from gat.conv.base import pairs_of_chosen, pairs_with, trusted, weights_like_input
from gat.conv.projecting import ProjectingConv, both_sides, check_fill_value, widths_of
from gat.edge_attention import EdgeAttention
from gat.sparse import Linear


@dataclass(frozen=True)
class _Parts:
    """What one call comes down to."""

    query: Tensor
    key: Tensor
    value: Tensor
    support: Edges | PendingEdges
    pair_key: Tensor | None
    residual: Tensor | None


@trusted
class GraphAttentionConv(ProjectingConv):
    r"""Attention among neighbours with a score and a normaliser of your choice.

    .. math::
        x'_i = \sum_{j \in N(i) \cup \{i\}} \alpha_{ij} W_v x_j, \qquad
        \alpha_{ij} = \mathrm{normalizer}_j\, \mathrm{score}(W_q x_i,\, W_k x_j + W_{edge} e_{ij})

    GATConv, GATv2Conv and TransformerConv are three of its settings: "separable" and "additive"
    (activation "leaky_relu") with share_weights and without value_projection, and "scaled_dot".
    Others are new to graphs: with "sparsemax" or "entmax" a node ignores most of its neighbours
    altogether (Martins and Astudillo, 2016; Peters et al., 2019), with "hard" all but one (Xu et
    al., 2015), and with "identity" weights need not sum to 1, so that degrees can be counted.

    Args:
        in_channels: features per node; a pair for bipartite graphs (sources, targets); -1 to take
            it from the first call.
        out_channels: C, features per node and head that come out.
        heads: H, how many attentions run side by side. Default 1.
        score: "additive" (default), "concat", "cosine", "dot", "general", "scaled_dot",
            "separable", or an `attn_core.Score`. Its parameters belong to the layer, a set for each
            head; those of "additive" are v alone, since W_q and W_k are its matrices.
        normalizer: "softmax" (default), "sparsemax", "entmax", "hard" (the largest score alone),
            "identity", or an `attn_core.Normalizer`, such as `Hard("gumbel")`. An `nn.Parameter`
            in it, such as the alpha of Entmax, is learned with the layer; `attn_core.Bounded` keeps
            it in its range.
        activation: of "additive", "concat" (default "tanh") and "separable" (default
            "leaky_relu"): one of these names, "relu" or "identity".
        concat: concatenate the heads (True, default) or average them.
        dropout: the probability with which an attention weight is dropped in training. Default 0.
        add_self_loops: give each node exactly one edge to itself. Default True.
        edge_dim: features per edge. Default None: edges have none.
        fill_value: the features of self-loops: a number, a tensor, or how to reduce those of the
            node's incoming edges: "mean" (default), "add", "min", "max", "mul". None: ones.
        bias: learn additive biases, of the projections and of the output. Default True.
        share_weights: one projection for sources and targets, W_q = W_k. Default False.
        value_projection: give the values a projection of their own; otherwise they are the keys,
            W_v = W_k. Default True.
        residual: add a linear map of the node's own features. Default False.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `aggr` or `flow`.

    Raises:
        ValueError: an unknown name, in_channels that are no number or pair, out_channels or heads
            below 1, a dropout outside [0, 1], arguments that contradict each other.
        TypeError: a score or normaliser that is neither a name nor an object of the core;
            out_channels or heads that are no whole numbers.

    >>> conv = GraphAttentionConv(4, 8, heads=2, score="general", normalizer="sparsemax")
    >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    >>> out, attention = conv(torch.randn(3, 4), edge_index, return_attention_weights=True)
    >>> out.shape, attention.weights.shape  # with a self-loop for each node
    (torch.Size([3, 16]), torch.Size([6, 2]))
    """

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        *,
        score: str | Score = "additive",
        normalizer: str | Normalizer = "softmax",
        activation: str | None = None,
        concat: bool = True,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        edge_dim: int | None = None,
        fill_value: float | Tensor | str | None = "mean",
        bias: bool = True,
        share_weights: bool = False,
        value_projection: bool = True,
        residual: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("aggr", "add")
        super().__init__(in_channels, out_channels, heads, concat, dropout, edge_dim, **kwargs)
        self.add_self_loops = add_self_loops
        self.fill_value = check_fill_value(fill_value)
        self.share_weights = share_weights
        self.residual = residual
        self.score_name = score if isinstance(score, str) else None
        if score == "location" or isinstance(score, Location):
            raise ValueError(
                "score is location, which has a logit for each position, but nodes have no order: "
                "choose another score"
            )
        self._score = named_score(score, heads, out_channels)
        if activation is not None:
            self._score = _with_activation(self._score, self.score_name, activation)
        self._normalizer = named_normalizer(normalizer)
        register(self, "score", self._score)
        register(self, "normalizer", self._normalizer)

        def linear(inputs: int, outputs: int, bias: bool) -> Linear:
            return Linear(inputs, outputs, bias=bias, weight_initializer="glorot")

        of_sources, of_targets = widths_of(in_channels)
        if share_weights and of_sources != of_targets:
            raise ValueError(
                f"share_weights is True, but in_channels is {in_channels}: sources and targets "
                "must have as many features to share a projection"
            )
        width = heads * out_channels
        self.lin_key = linear(of_sources, width, bias)
        self.lin_query = self.lin_key if share_weights else linear(of_targets, width, bias)
        self.lin_value = linear(of_sources, width, bias) if value_projection else None
        self.lin_edge = None if edge_dim is None else linear(edge_dim, width, False)
        width = width if concat else out_channels
        self.res = linear(of_targets, width, False) if residual else None
        self.register_parameter("bias", Parameter(torch.empty(width)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, but those of a score or normaliser that was handed in."""
        super().reset_parameters()
        for linear in (self.lin_key, self.lin_query, self.lin_value, self.lin_edge, self.res):
            if linear is not None:
                linear.reset_parameters()
        if self.score_name is not None:
            redraw(self, "score", self._score)
        zeros(self.bias)

    @property
    def score(self) -> Score:
        """The score with its parameters, for `attn_core.attend`."""
        return with_own(self, "score", self._score)

    @property
    def normalizer(self) -> Normalizer:
        """The normaliser with its parameters, for `attn_core.attend`."""
        return with_own(self, "normalizer", self._normalizer)

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
            [..., E', H])`, or, for a sparse edge_index, what GATConv returns.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other.
        """
        parts = self._parts(x, edge_index, edge_attr)
        support, dtype = parts.support, parts.key.dtype
        need_weights = self.weights_for(return_attention_weights)
        if self._is_fused():
            out, weights, _ = attend(
                parts.query,
                parts.key,
                parts.value,
                score=self.score,
                normalizer=self.normalizer,
                support=support,
                pair_key=parts.pair_key,
                dropout=self.dropout if self.training else 0.0,
                need_weights=need_weights,
            )
            pairs = pairs_of_chosen(support, need_weights)
        else:
            self._one_state(parts.key.shape[:-3])
            pairs, pair_key = pairs_with(support, parts.pair_key)
            # edge_updater_type: (query: Tensor, key: Tensor, pair_key: Tensor | None)
            weights = self.edge_updater(pairs, query=parts.query, key=parts.key, pair_key=pair_key)
            # propagate_type: (value: Tensor, alpha: Tensor)
            size = support.num_keys, support.num_queries
            out = self.propagate(pairs, value=parts.value, alpha=weights, size=size)
            pairs, weights = self._chosen(pairs, weights, support, need_weights)

        out = self._finish(out, parts.residual, dtype)
        if need_weights is False:
            return out
        assert pairs is not None and weights is not None
        return out, weights_like_input(edge_index, support, pairs, weights.to(dtype))

    def log_prob(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        attention: EdgeAttention,
        edge_attr: Tensor | None = None,
    ) -> HardLogProb:
        """How likely the choices of hard attention were: what REINFORCE trains the scores with.

        Args:
            x, edge_index, edge_attr: as in the call of the layer that chose.
            attention: the weights that it returned; its normaliser is `Hard("sample")` or
                `Hard("gumbel")`.

        Returns:
            HardLogProb(log_prob, entropy), each `[N, H]`, with gradients.

        Raises:
            ValueError: another normaliser, or weights of other edges.

        >>> conv = GraphAttentionConv(4, 8, score="dot", normalizer=Hard("sample"))
        >>> x, edge_index = torch.zeros(2, 4), torch.tensor([[0, 1], [1, 0]])
        >>> _, attention = conv(x, edge_index, return_attention_weights=True)
        >>> conv.log_prob(x, edge_index, attention).log_prob.exp()  # itself or its neighbour
        tensor([[0.5000],
                [0.5000]], grad_fn=<ExpBackward0>)
        """
        if not isinstance(self._normalizer, Hard) or self._normalizer.choose == "argmax":
            raise ValueError(
                f"normalizer is {self._normalizer}, which draws nothing: log_prob belongs to "
                "Hard('sample') and Hard('gumbel')"
            )
        parts = self._parts(x, edge_index, edge_attr)
        return hard_log_prob(
            parts.query,
            parts.key,
            attention.weights,
            score=self.score,
            support=parts.support,
            pair_key=parts.pair_key,
        )

    def _parts(
        self, x: Tensor | tuple[Tensor, Tensor], edge_index: Any, edge_attr: Tensor | None
    ) -> _Parts:
        x, first = self._sources(x, edge_index)
        shared = self.share_weights and isinstance(x, Tensor)
        x_src, x_dst = both_sides(type(self).__name__, x, (self.lin_key, self.lin_query), first)
        residual = None if self.res is None else self.res(x_dst)
        key = self._by_head(self.lin_key, x_src)
        query = key if first is None else key.narrow(-3, 0, first)
        if not shared:
            query = self._by_head(self.lin_query, x_dst)
        value = key if self.lin_value is None else self._by_head(self.lin_value, x_src)
        support = self._support(edge_index, key, query.shape[-3], self.add_self_loops, dim=-3)
        edge_attr = self._edge_features(edge_attr, edge_index, key)
        pair_key = None
        if edge_attr is not None:
            edge_attr = self._with_loop_features(edge_attr, support, self.fill_value)
            pair_key = self._project_edges(edge_attr)
        value = self._drop_values(value, edge_index)
        return _Parts(query, key, value, support, pair_key, residual)

    def edge_update(
        self,
        query_i: Tensor,
        key_j: Tensor,
        pair_key: Tensor | None,
        index: Tensor,
        dim_size: int | None,
    ) -> Tensor:
        """The weight of each edge, `[E, H]`, before dropout."""
        key_j = key_j if pair_key is None else key_j + pair_key
        return self.normalizer.segment(self.score.pair(query_i, key_j), index, dim_size)

    def message(self, value_j: Tensor, alpha: Tensor) -> Tensor:
        """What an edge carries to its target, `[E, H, C]`."""
        return F.dropout(alpha, self.dropout, self.training).unsqueeze(-1) * value_j

    def __repr__(self) -> str:
        score = self.score_name or type(self._score).__name__
        return (
            f"{type(self).__name__}({self.in_channels}, {self.out_channels}, heads={self.heads}, "
            f"score={score}, normalizer={type(self._normalizer).__name__})"
        )


def _with_activation(score: Score, name: str | None, activation: str) -> Score:
    """A score that was made by name, with another activation."""
    if name is None or not isinstance(score, (Additive, Concat, Separable)):
        raise ValueError(
            f"activation is {activation!r}, but belongs to the scores 'additive', 'concat' and "
            f"'separable' by name; score is {name or type(score).__name__}"
        )
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}; known ones are {', '.join(ACTIVATIONS)}")
    return dataclasses.replace(score, activation=activation)
