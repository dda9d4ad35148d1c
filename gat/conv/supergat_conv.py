"""SuperGATConv: graph attention that learns from which edges there are."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor

from attn_core import Dot, Edges, Separable, logits
from attn_core.supports.pairs import Pairs
from gat.checks import check_probability
from gat.conv.base import (
    AttentionConv,
    check_features,
    pairs_of,
    pairs_of_chosen,
    trusted,
    weights_like_input,
)
from gat.conv.drop_in import (
    attend_by,
    check_choice,
    check_unwatched,
    listed,
    merge_heads,
    plain_index,
    with_sparse_linears,
)


@trusted
class SuperGATConv(AttentionConv, torch_geometric.nn.SuperGATConv):
    r"""Graph attention whose scores also have to tell edges from pairs that are none.

    .. math::
        x'_i = \sum_{j \in N(i) \cup \{i\}} \alpha_{ij} W x_j, \qquad
        \alpha_{ij} = \mathrm{softmax}_j\, \mathrm{LeakyReLU}(e_{ij})

    With :math:`d_{ij} = W x_i \cdot W x_j`, "MX" scores by :math:`e_{ij} = (a_l^T W x_j + a_r^T W
    x_i)\, \sigma(d_{ij})` and "SD" by :math:`e_{ij} = d_{ij} / \sqrt{C}`. In training, d (SD:
    :math:`d / \sqrt{C}`) of edges and of sampled pairs without an edge are kept, and
    `get_attention_loss` is their binary cross-entropy, to be added to the loss.

    Kim, Oh, "How to Find Your Friendly Neighborhood: Graph Attention Design with
    Self-Supervision", ICLR 2021. A drop-in for `torch_geometric.nn.SuperGATConv`: the same
    arguments, parameters, `state_dict` and numbers.

    Args:
        in_channels: features per node; -1 to take it from the first call.
        out_channels: features per node and head that come out.
        heads: H, how many attentions run side by side. Default 1.
        concat: concatenate the heads (True, default) or average them.
        negative_slope: of LeakyReLU. Default 0.2.
        dropout: the probability with which an attention weight is dropped in training. Default 0.
        add_self_loops: give each node exactly one edge to itself. Default True.
        bias: learn an additive bias. Default True.
        attention_type: "MX" (default) or "SD".
        neg_sample_ratio: how many pairs are sampled for each edge that the loss sees. Default 0.5.
        edge_sample_ratio: the share of edges that the loss sees. Default 1.
        is_undirected: the graph is known to be undirected; it is looked at otherwise. Default
            False.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `aggr` or `flow`.

    Raises:
        ValueError: an attention_type that is not known, a dropout or ratio out of range.

    >>> conv = SuperGATConv(4, 8, heads=2)
    >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    >>> conv(torch.randn(3, 4), edge_index).shape
    torch.Size([3, 16])
    >>> conv.get_attention_loss().shape
    torch.Size([])
    """

    _own_steps = ("get_attention", "positive_sampling", "negative_sampling")
    att_x: Tensor | None
    att_y: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        add_self_loops: bool = True,
        bias: bool = True,
        attention_type: str = "MX",
        neg_sample_ratio: float = 0.5,
        edge_sample_ratio: float = 1.0,
        is_undirected: bool = False,
        **kwargs: Any,
    ) -> None:
        check_choice("attention_type", attention_type, ("MX", "SD"))
        check_probability("dropout", dropout)
        if neg_sample_ratio <= 0:
            raise ValueError(f"neg_sample_ratio is {neg_sample_ratio}; expected more than 0")
        if not 0 < edge_sample_ratio <= 1:
            raise ValueError(
                f"edge_sample_ratio is {edge_sample_ratio}; expected more than 0, at most 1"
            )
        super().__init__(
            in_channels, out_channels, heads, concat, negative_slope, dropout, add_self_loops, bias,
            attention_type, neg_sample_ratio, edge_sample_ratio, is_undirected, **kwargs,
        )  # fmt: skip
        with_sparse_linears(self)

    def forward(
        self,
        x: Tensor,
        edge_index: Any,
        neg_edge_index: Tensor | None = None,
        batch: Tensor | None = None,
        return_attention_weights: bool | Tensor | None = None,
    ) -> Any:
        """Attend over the edges.

        Args:
            x: `[N, in_channels]`, dense or `torch.sparse_csr`.
            edge_index: int64 `[2, E]` (sources, targets), a `torch_geometric.EdgeIndex`, a sparse
                matrix as in torch_geometric (transposed: rows are targets), or
                `attn_core.Edges`.
            neg_edge_index: `[2, n]`, pairs without an edge for the loss. Default: sampled in
                training, as torch_geometric does.
            batch: `[N]`, the graph of each node: pairs are sampled inside of graphs alone.
            return_attention_weights: also return the weights (before dropout), with their edges:
                of all (True), or of the edges into some targets alone. Default None.

        Returns:
            `[N, heads * out_channels]` (`[N, out_channels]` where heads are averaged); with
            return_attention_weights, that and `EdgeAttention(edge_index [2, E'], weights [E', H])`.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other.
        """
        check_features(type(self).__name__, "x", x, self.lin)
        need_weights = self.weights_for(return_attention_weights)
        x, first = self._sources(x, edge_index)
        check_unwatched(self, edge_index, first)
        if self._is_fused():
            out, attention = self._attend(x, first, edge_index, neg_edge_index, batch, need_weights)
        else:
            given = plain_index(edge_index, self.add_self_loops)
            # propagate_type: (x: Tensor)
            out = super().forward(x, given, neg_edge_index, batch)
            attention = None if need_weights is False else self._watched(x, edge_index)
        if attention is None:
            return out
        support, pairs, weights = attention
        if not self._is_fused():
            pairs, weights = self._chosen(pairs, weights, support, need_weights)
        return out, weights_like_input(edge_index, support, pairs, weights)

    def _attend(
        self,
        x: Tensor,
        first: int | None,
        edge_index: Any,
        neg_edge_index: Tensor | None,
        batch: Tensor | None,
        need_weights: bool | Tensor,
    ) -> tuple[Tensor, Any]:
        """The output, and if asked for: the support, pairs of it, and their weights."""
        h = self.lin(x).view(-1, self.heads, self.out_channels)
        targets = h if first is None else h[:first]
        support = self._support(edge_index, h, targets.shape[0], self.add_self_loops)
        pairs = listed(support)
        product = self._product(h, pairs, targets)
        scores = product
        if self.attention_type == "MX":
            ends = Separable(self.att_r.squeeze(0), self.att_l.squeeze(0), "identity")
            scores = logits(targets, h, score=ends, support=pairs) * product.sigmoid()
        out, weights, _ = attend_by(
            F.leaky_relu(scores, self.negative_slope),
            h,
            pairs,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        whole = first is None and not (isinstance(edge_index, Edges) and edge_index.is_part)
        if not whole and neg_edge_index is not None:
            raise ValueError(
                f"neg_edge_index was given, but edge_index is {edge_index}, a block or a part of "
                "a graph, where there is no loss of pairs: leave it out"
            )
        if not whole:
            self.att_x = self.att_y = None
        elif self.training:
            self._keep_for_loss(h, pairs, product, neg_edge_index, batch)
        out = merge_heads(out, self.concat, self.bias)
        if weights is None:
            return out, None
        return out, (support, pairs_of_chosen(support, need_weights), weights)

    def _product(self, h: Tensor, pairs: Pairs, targets: Tensor | None = None) -> Tensor:
        """What is to tell edges from pairs that are none, `[E, H]`."""
        scale = 1.0 if self.attention_type == "MX" else 1 / math.sqrt(self.out_channels)
        query = h if targets is None else targets
        return logits(query, h, score=Dot(scale), support=pairs)

    def get_attention_loss(self) -> Tensor:
        """How well the layer told edges from other pairs in its last call, in training; else 0.

        Raises:
            ValueError: that call was over a block or a part of a graph, where a pair without an
                edge is not one of the whole graph.
        """
        if self.training and self.att_x is None:
            raise ValueError(
                "there is no loss of pairs: the last call was over a block or a part of a graph, "
                "which does not know what has no edge in the whole graph; train without this loss, "
                "or over the whole graph"
            )
        loss: Tensor = super().get_attention_loss()
        return loss

    def _keep_for_loss(
        self,
        h: Tensor,
        pairs: Pairs,
        product: Tensor,
        neg_edge_index: Tensor | None,
        batch: Tensor | None,
    ) -> None:
        if pairs.exists is not None:
            product = product[pairs.exists]
        edge_index = pairs.pairs if pairs.exists is None else pairs.pairs[:, pairs.exists]
        if self.edge_sample_ratio < 1:
            chosen = self.positive_sampling(edge_index)
            product = self._product(h, Edges(chosen, h.shape[0], h.shape[0]))
        if neg_edge_index is None:
            neg_edge_index = self.negative_sampling(edge_index, h.shape[0], batch)
        others = listed(self._support(neg_edge_index, h, h.shape[0], self_loops=False))
        self.att_x = torch.cat([product, self._product(h, others)])
        self.att_y = self.att_x.new_zeros(self.att_x.shape[0])
        self.att_y[: product.shape[0]] = 1.0

    def _watched(self, x: Tensor, edge_index: Any) -> Any:
        """The weights of all pairs as torch_geometric's steps make them."""
        h = self.lin(x).view(-1, self.heads, self.out_channels)
        support = self._support(edge_index, h, h.shape[0], self.add_self_loops)
        pairs, _ = pairs_of(support)
        j, i = pairs if self.flow == "source_to_target" else pairs.flip(0)
        return support, pairs, self.get_attention(i, h[i], h[j], h.shape[0])
