"""GeneralConv: the layer of a design space, whose messages attention may weigh."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor

from attn_core import Dot, Edges, PendingEdges, logits
from attn_core.supports.pairs import Pairs
from gat.conv.base import (
    AttentionConv,
    pairs_of,
    pairs_of_chosen,
    trusted,
    weights_like_input,
)
from gat.conv.drop_in import attend_by, check_choice, listed, plain_index, with_sparse_linears
from gat.conv.projecting import both_sides


@trusted
class GeneralConv(AttentionConv, torch_geometric.nn.GeneralConv):
    r"""Messages of the neighbours, of the node itself and of the edge, weighed by attention.

    .. math::
        x'_i = U x_i + \mathrm{mean}_h \sum_{j \in N(i)} \alpha_{ij} m_{ij}, \qquad
        m_{ij} = W x_j\, (+\, V x_i) + E e_{ij}

    with :math:`\alpha_{ij} = \mathrm{softmax}_j\, \mathrm{LeakyReLU}(a^T m_{ij})` ("additive") or
    :math:`\mathrm{softmax}_j\, \mathrm{LeakyReLU}(m_{ij} \cdot m_{ji} / \sqrt{C})`
    ("dot_product"); without attention, all α are 1.

    You, Ying, Leskovec, "Design Space for Graph Neural Networks", NeurIPS 2020. A drop-in for
    `torch_geometric.nn.GeneralConv`: the same arguments, parameters, `state_dict` and numbers.
    Without attention and for other aggregations than the sum, torch_geometric's own steps run.

    Args:
        in_channels: features per node; a pair for bipartite graphs (sources, targets); -1 to take
            it from the first call.
        out_channels: features per node that come out, which are those of each head too.
        in_edge_channels: features per edge. Default None: edges have none.
        aggr: "add" (default), "mean", "max".
        skip_linear: U is a linear map even where widths are equal; it is the identity then
            otherwise. Default False.
        directed_msg: messages are of the neighbour alone (True, default), or also of the node.
        heads: H, how many attentions run side by side, whose results are averaged. Default 1.
        attention: weigh messages. Default False, as in torch_geometric.
        attention_type: "additive" (default) or "dot_product".
        l2_normalize: scale what comes out to length 1. Default False.
        bias: of the linear maps. Default True.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `flow`.

    Raises:
        ValueError: an attention_type that is not known.

    >>> conv = GeneralConv(4, 8, heads=2, attention=True)
    >>> conv(torch.randn(3, 4), torch.tensor([[0, 1, 2], [1, 2, 0]])).shape
    torch.Size([3, 8])
    """

    _own_steps = ("message_basic",)

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        in_edge_channels: int | None = None,
        aggr: str = "add",
        skip_linear: bool = False,
        directed_msg: bool = True,
        heads: int = 1,
        attention: bool = False,
        attention_type: str = "additive",
        l2_normalize: bool = False,
        bias: bool = True,
        **kwargs: Any,
    ) -> None:
        check_choice("attention_type", attention_type, ("additive", "dot_product"))
        super().__init__(
            in_channels, out_channels, in_edge_channels, aggr, skip_linear, directed_msg, heads,
            attention, attention_type, l2_normalize, bias, **kwargs,
        )  # fmt: skip
        with_sparse_linears(self)

    def forward(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        edge_index: Any,
        edge_attr: Tensor | None = None,
        size: Any = None,
        return_attention_weights: bool | Tensor | None = None,
    ) -> Any:
        """Attend over the edges.

        Args:
            x: `[N, in_channels]`, or a pair of source and target features.
            edge_index: int64 `[2, E]` (sources, targets), a `torch_geometric.EdgeIndex`, a sparse
                matrix as in torch_geometric (transposed: rows are targets), or
                `attn_core.Edges`.
            edge_attr: `[E, in_edge_channels]`, in the order of edge_index.
            size: the numbers of sources and targets. Default: those of x.
            return_attention_weights: also return the weights, with their edges: of all (True), or
                of the edges into some targets alone. Default None.

        Returns:
            `[N, out_channels]`; with return_attention_weights, that and
            `EdgeAttention(edge_index [2, E], weights [E, H])`.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other; weights where
                there is no attention.
        """
        name = type(self).__name__
        x, first = self._sources(x, edge_index)
        x_src, x_dst = both_sides(name, x, (self.lin_msg, self.lin_self), first)
        if edge_attr is not None and self.in_edge_channels is None:
            raise ValueError(
                f"edge_attr has shape {list(edge_attr.shape)}, but {name} was built with "
                "in_edge_channels=None: build it with the features per edge, or drop edge_attr"
            )
        need_weights = self.weights_for(return_attention_weights)
        if need_weights is not False and not self.attention:
            raise ValueError(
                f"return_attention_weights was asked for, but {name} was built with "
                "attention=False: build it with attention=True"
            )
        if not (self._is_fused() and self.attention):
            # propagate_type: (x: tuple[Tensor, Tensor | None], edge_attr: Tensor | None)
            given = plain_index(edge_index)
            both = x if first is None else (x_src, x_dst)
            out = super().forward(both, given, edge_attr, size)
            if need_weights is False:
                return out
        support = self._support(edge_index, x_src, x_dst.shape[0], self_loops=False)
        message, own = self._of_nodes(x_src, x_dst)
        of_edge = self._split(self.lin_edge(edge_attr)) if edge_attr is not None else None
        if not self._is_fused():
            pairs, _ = pairs_of(support)
            turned = pairs if self.flow == "source_to_target" else pairs.flip(0)
            as_edges = Edges(turned, x_src.shape[0], x_dst.shape[0])
            scores = self._scores(x_src, x_dst, message, own, of_edge, as_edges)
            weights = attend_by(scores, message, as_edges, need_weights=True).weights
            assert weights is not None
            pairs, weights = self._chosen(pairs, weights, support, need_weights)
            return out, weights_like_input(edge_index, support, pairs, weights)
        edges = listed(support)
        out, weights, _ = attend_by(
            self._scores(x_src, x_dst, message, own, of_edge, edges),
            message,
            edges,
            pair_value=of_edge,
            need_weights=need_weights,
        )
        if own is not None:  # the weights of a node that has edges sum to 1
            out = out + own * _has_edges(edges).to(own.dtype)
        out = out.mean(dim=1) + self.lin_self(x_dst)
        if self.normalize_l2:
            out = F.normalize(out, p=2, dim=-1)
        if weights is None:
            return out
        chosen = pairs_of_chosen(support, need_weights)
        assert chosen is not None
        return out, weights_like_input(edge_index, support, chosen, weights)

    def _split(self, projected: Tensor) -> Tensor:
        return projected.view(-1, self.heads, self.out_channels)

    def _of_nodes(self, x_src: Tensor, x_dst: Tensor) -> tuple[Tensor, Tensor | None]:
        """The parts of messages that are of the source, and of the target."""
        own = None if self.directed_msg else self._split(self.lin_msg_i(x_dst))
        return self._split(self.lin_msg(x_src)), own

    def _scores(
        self,
        x_src: Tensor,
        x_dst: Tensor,
        message: Tensor,
        own: Tensor | None,
        of_edge: Tensor | None,
        pairs: Pairs | PendingEdges,
    ) -> Tensor:
        """The logits of the pairs, `[E, H]`."""
        assert isinstance(pairs, Pairs)
        source, target = pairs.key_index, pairs.query_index
        if self.attention_type == "additive":
            scores = (message * self.att_msg).sum(-1).index_select(0, source)
            if own is not None:
                scores = scores + (own * self.att_msg).sum(-1).index_select(0, target)
            if of_edge is not None:
                scores = scores + (of_edge * self.att_msg).sum(-1)
            return F.leaky_relu(scores, 0.2)
        back = message if x_src is x_dst else self._split(self.lin_msg(x_dst))
        if own is None and of_edge is None:
            product = logits(back, message, score=Dot(), support=pairs)
        else:  # m_ij · m_ji, both of which are vectors of the pair's own
            there, here = message.index_select(0, source), back.index_select(0, target)
            if own is not None:
                own_src = own if x_src is x_dst else self._split(self.lin_msg_i(x_src))
                there = there + own.index_select(0, target)
                here = here + own_src.index_select(0, source)
            if of_edge is not None:
                there, here = there + of_edge, here + of_edge
            product = (there * here).sum(-1)
        return F.leaky_relu(product / self.scaler.to(product.dtype), 0.2)


def _has_edges(pairs: Pairs) -> Tensor:
    """Which targets have any, bool `[N, 1, 1]`."""
    found = torch.zeros(pairs.num_queries, dtype=torch.bool, device=pairs.query_index.device)
    return found.index_fill(0, pairs.query_index, True).view(-1, 1, 1)
