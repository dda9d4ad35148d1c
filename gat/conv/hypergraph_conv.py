"""HypergraphConv: from nodes to the hyperedges that hold them, and back."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor

from attn_core import Edges, Identity, PendingEdges, Separable
from attn_core import weights as weights_of
from attn_core.supports.pairs import Pairs
from gat.checks import check_probability
from gat.conv.base import AttentionConv, check_features, trusted
from gat.conv.drop_in import (
    attend_by,
    check_choice,
    listed,
    merge_heads,
    plain_index,
    with_sparse_linears,
)
from gat.edge_attention import EdgeAttention


@trusted
class HypergraphConv(AttentionConv, torch_geometric.nn.HypergraphConv):
    r"""Nodes and hyperedges attend to each other over the incidence of a hypergraph.

    .. math::
        z_m = \frac{1}{|m|} \sum_{i \in m} \alpha_{im} \Theta x_i, \qquad
        x'_i = \frac{1}{D_i} \sum_{m \ni i} \alpha_{im} z_m

    with :math:`\alpha_{im} = \mathrm{softmax}\, \mathrm{LeakyReLU}(a^T \Theta x_i + b^T \Theta
    e_m)` over the nodes of a hyperedge ("node") or the hyperedges of a node ("edge"), where e are
    the features of hyperedges and :math:`D_i` is the sum of the weights of those that hold i.

    Bai, Zhang, Torr, "Hypergraph Convolution and Hypergraph Attention", Pattern Recognition 2021. A
    drop-in for `torch_geometric.nn.HypergraphConv`: the same arguments, parameters, `state_dict`
    and numbers. Without attention, torch_geometric's own steps run.

    Args:
        in_channels: features per node and hyperedge; -1 to take it from the first call.
        out_channels: features per node and head that come out.
        use_attention: attend. Default False, as in torch_geometric.
        attention_mode: "node" (default) or "edge".
        heads: H, how many attentions run side by side. Default 1.
        concat: concatenate the heads (True, default) or average them.
        negative_slope: of LeakyReLU. Default 0.2.
        dropout: the probability with which an attention weight is dropped in training. Default 0.
        bias: learn an additive bias. Default True.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `aggr`.

    Raises:
        ValueError: an attention_mode that is not known, a dropout that is no probability.

    >>> import torch
    >>> conv = HypergraphConv(4, 8, use_attention=True, heads=2)
    >>> holds = torch.tensor([[0, 1, 2, 1, 2, 3], [0, 0, 0, 1, 1, 1]])  # nodes, hyperedges
    >>> conv(torch.randn(4, 4), holds, hyperedge_attr=torch.randn(2, 4)).shape
    torch.Size([4, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        use_attention: bool = False,
        attention_mode: str = "node",
        heads: int = 1,
        concat: bool = True,
        negative_slope: float = 0.2,
        dropout: float = 0,
        bias: bool = True,
        **kwargs: Any,
    ) -> None:
        check_choice("attention_mode", attention_mode, ("node", "edge"))
        check_probability("dropout", dropout)
        super().__init__(
            in_channels, out_channels, use_attention, attention_mode, heads, concat, negative_slope,
            dropout, bias, **kwargs,
        )  # fmt: skip
        with_sparse_linears(self)

    def forward(
        self,
        x: Tensor,
        hyperedge_index: Any,
        hyperedge_weight: Tensor | None = None,
        hyperedge_attr: Tensor | None = None,
        num_edges: int | None = None,
        return_attention_weights: bool | Tensor | None = None,
    ) -> Any:
        """Attend over the incidence.

        Args:
            x: `[N, in_channels]`.
            hyperedge_index: int64 `[2, E]` (nodes, hyperedges), or `attn_core.Edges`.
            hyperedge_weight: `[M]`. Default: ones.
            hyperedge_attr: `[M, in_channels]`, needed for attention.
            num_edges: M. Default: as many as hyperedge_attr has, else the largest number plus 1.
            return_attention_weights: also return the weights, with the pairs (whom, who attends):
                (nodes, hyperedges) in mode "node", (hyperedges, nodes) in mode "edge"; of all
                (True), or of some who attend. Default None.

        Returns:
            `[N, heads * out_channels]` (`[N, out_channels]` where heads are averaged); with
            return_attention_weights, that and `EdgeAttention(pairs [2, E], weights [E, H])`.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other.
        """
        name = type(self).__name__
        check_features(name, "x", x, self.lin)
        asked = self.weights_for(return_attention_weights)
        if not self.use_attention and asked is not False:
            raise ValueError(
                f"return_attention_weights was asked for, but {name} was built with "
                "use_attention=False: build it with use_attention=True"
            )
        if self.use_attention and hyperedge_attr is None:
            raise ValueError(
                f"hyperedge_attr is None, but {name} was built with use_attention=True, and looks "
                "at the features of hyperedges: give it [hyperedges, in_channels]"
            )
        fused = self._is_fused() and self.use_attention
        if not fused:
            # propagate_type: (x: Tensor, norm: Tensor, alpha: Tensor | None)
            given = plain_index(hyperedge_index)
            out = super().forward(x, given, hyperedge_weight, hyperedge_attr, num_edges)
            if asked is False:
                return out
        assert hyperedge_attr is not None
        shape = (-1, self.heads, self.out_channels)
        nodes, hyperedges = self.lin(x).view(shape), self.lin(hyperedge_attr).view(shape)
        support = self._support(hyperedge_index, nodes, hyperedges.shape[0], self_loops=False)
        pairs = listed(support)
        back = _turned(pairs)
        alpha = self._weights(nodes, hyperedges, pairs, back)
        if fused:
            out = self._there_and_back(nodes, alpha, support, pairs, back, hyperedge_weight)
        if asked is False:
            return out
        who = pairs if self.attention_mode == "node" else back
        found, positions = who.pairs.clone(), slice(None)
        if isinstance(asked, Tensor):
            chosen, positions = who.of_queries(asked)  # type: ignore[attr-defined]
            found = chosen.pairs
        return out, EdgeAttention(found, alpha[positions])

    def _weights(self, nodes: Tensor, hyperedges: Tensor, pairs: Pairs, back: Pairs) -> Tensor:
        """α of each pair, `[E, H]`, before dropout."""
        of_node, of_hyperedge = self.att.squeeze(0).chunk(2, dim=-1)
        key = (nodes * of_node).sum(-1, keepdim=True)
        query = (hyperedges * of_hyperedge).sum(-1, keepdim=True)
        score = Separable(negative_slope=self.negative_slope)
        if self.attention_mode == "node":
            return weights_of(query, key, score=score, support=pairs)
        return weights_of(key, query, score=score, support=back)

    def _there_and_back(
        self,
        nodes: Tensor,
        alpha: Tensor,
        support: Edges | PendingEdges,
        pairs: Pairs,
        back: Pairs,
        hyperedge_weight: Tensor | None,
    ) -> Tensor:
        alpha = F.dropout(alpha, self.dropout, self.training)
        held = nodes.new_ones(pairs.num_rows)
        given = held if hyperedge_weight is None else hyperedge_weight[pairs.query_index]
        share = _inverse(nodes.new_zeros(support.num_queries), pairs.query_index, held)
        degree = _inverse(nodes.new_zeros(support.num_keys), pairs.key_index, given.to(held.dtype))
        of_hyperedges = attend_by(alpha, nodes, pairs, Identity()).output * share
        out = attend_by(alpha, of_hyperedges, back, Identity()).output * degree
        return merge_heads(out, self.concat, self.bias)


def _turned(pairs: Pairs) -> Pairs:
    """The same pairs, of which those attend who were attended to."""
    if isinstance(pairs, Edges):
        return pairs.transposed
    return listed(PendingEdges(pairs.pairs.flip(0), pairs.num_queries, pairs.num_keys))


def _inverse(zeros: Tensor, index: Tensor, numbers: Tensor) -> Tensor:
    """One over the sum of each group's numbers, `[N, 1, 1]`, 0 where that is 0."""
    total = zeros.index_add(0, index, numbers)
    inverse = 1 / total
    return inverse.masked_fill(inverse == float("inf"), 0).view(-1, 1, 1)
