"""FAConv: attention whose weights may be negative."""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm

from attn_core import Edges, Identity, PendingEdges, Separable, attend, logits
from gat.checks import check_probability
from gat.conv.base import (
    AttentionConv,
    check_features,
    pairs_of_chosen,
    trusted,
)
from gat.conv.drop_in import (
    attend_by,
    check_unwatched,
    dtype_of,
    listed,
    plain_index,
    with_sparse_linears,
)


@trusted
class FAConv(AttentionConv, torch_geometric.nn.FAConv):
    r"""Each neighbour is added or subtracted, as the features of both ends say.

    .. math::
        x'_i = \epsilon\, x^{(0)}_i + \sum_{j \in N(i) \cup \{i\}}
        \frac{\alpha_{ij}}{\sqrt{d_i d_j}} x_j, \qquad
        \alpha_{ij} = \tanh(a_l^T x_j + a_r^T x_i)

    The weights are not normalised: a difference, of high frequency in the graph, can be passed on
    as well as an average. Bo et al., "Beyond Low-Frequency Information in Graph Convolutional
    Networks", AAAI 2021. A drop-in for `torch_geometric.nn.FAConv`: the same arguments,
    parameters, `state_dict` and numbers.

    Args:
        channels: features per node, which come out too.
        eps: ε, how much of the first features is added. Default 0.1.
        dropout: the probability with which an attention weight is dropped in training. Default 0.
        cached: keep the graph of the first call, with its degrees, for all later ones. Default
            False (the order of an edge_index is kept in any case).
        add_self_loops: give each node exactly one edge to itself. Default True.
        normalize: divide by the degrees. Otherwise `edge_weight` is given to each call, and no
            self-loops are added. Default True.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `aggr` or `flow`.

    Raises:
        ValueError: a dropout that is no probability.

    >>> conv = FAConv(4)
    >>> x = torch.randn(3, 4)
    >>> conv(x, x, torch.tensor([[0, 1, 2], [1, 2, 0]])).shape
    torch.Size([3, 4])
    """

    _cached_edge_index: tuple[Tensor, Tensor] | None

    def __init__(
        self,
        channels: int,
        eps: float = 0.1,
        dropout: float = 0.0,
        cached: bool = False,
        add_self_loops: bool = True,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        check_probability("dropout", dropout)
        super().__init__(channels, eps, dropout, cached, add_self_loops, normalize, **kwargs)
        with_sparse_linears(self)

    def forward(
        self,
        x: Tensor,
        x_0: Tensor,
        edge_index: Any,
        edge_weight: Tensor | None = None,
        return_attention_weights: bool | Tensor | None = None,
    ) -> Any:
        """Attend over the edges.

        Args:
            x: `[N, channels]`.
            x_0: `[N, channels]`, the features of the first layer.
            edge_index: int64 `[2, E]` (sources, targets), a `torch_geometric.EdgeIndex`, a sparse
                matrix as in torch_geometric (transposed: rows are targets), or
                `attn_core.Edges`.
            edge_weight: `[E]`, only with normalize=False.
            return_attention_weights: also return α of all edges (True, and, as in torch_geometric,
                False), or of those into some targets alone. Default None.

        Returns:
            `[N, channels]`; with return_attention_weights, that and (edge_index `[2, E']`, α
            `[E']`), or the sparse matrix that torch_geometric returns.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other.
        """
        name = type(self).__name__
        for argument, features in (("x", x), ("x_0", x_0)):
            check_features(name, argument, features)  # which are handed on as they are
            check_features(name, argument, features, self.att_l)
        if self.normalize and edge_weight is not None:
            raise ValueError(
                f"edge_weight was given, but {name} was built with normalize=True, which makes the "
                "weights of the degrees: build it with normalize=False, or drop edge_weight"
            )
        asked = self.weights_for(return_attention_weights)
        dense = isinstance(edge_index, Edges) or (
            isinstance(edge_index, Tensor) and edge_index.layout == torch.strided
        )
        if not self.normalize and edge_weight is None and dense:
            raise ValueError(
                f"edge_weight is None, but {name} was built with normalize=False: give each edge "
                "its weight, or build it with normalize=True"
            )
        # A sparse matrix brings the weights of its edges along, and takes those of attention back
        loops = self.normalize and self.add_self_loops
        x, first = self._sources(x, edge_index)
        check_unwatched(self, edge_index, first)
        if not (self._is_fused() and dense):
            # propagate_type: (x: Tensor, alpha: tuple[Tensor, Tensor], edge_weight: Tensor | None)
            given = x, x_0, plain_index(edge_index, loops), edge_weight
            if asked is False:
                return super().forward(*given)
            out, attention = super().forward(*given, True)
            if isinstance(asked, Tensor) and isinstance(attention, tuple):
                support = self._support(edge_index, x, x.shape[0], loops)
                pairs, alpha = attention
                attention = self._chosen(pairs, alpha, support, asked)
            return out, attention

        targets = x if first is None else x[:first]
        if self.normalize and self.cached:
            if first is not None or (isinstance(edge_index, Edges) and edge_index.is_part):
                raise ValueError(
                    f"edge_index is {edge_index}, a block or a part of a graph, but {name} was "
                    "built with cached=True, to keep one graph for all calls: build it without"
                )
            edge_index, edge_weight = self._first_graph(edge_index, x)
            loops = False
        support = self._support(edge_index, x, targets.shape[0], loops)
        query, key = self.att_r(targets).unsqueeze(1), self.att_l(x).unsqueeze(1)  # [N, 1, 1]
        score, value = Separable(activation="tanh"), x.unsqueeze(1)
        dropout = self.dropout if self.training else 0.0
        if edge_weight is None:
            scale = _degrees(support, x.dtype).rsqrt()
            scale = scale.masked_fill(scale == torch.inf, 0).view(-1, 1, 1)
            of_sources = edge_index.all_sources(scale) if isinstance(edge_index, Edges) else scale
            if of_sources.shape[0] != x.shape[0]:
                raise ValueError(
                    f"edge_index is {edge_index}, a block, which does not know the degrees of its "
                    f"sources in the whole graph: build {name} with normalize=False, and give "
                    "edge_weight"
                )
            out, alpha, _ = attend(
                query, key, value * of_sources, score=score, normalizer=Identity(), support=support,
                dropout=dropout, need_weights=asked is not False,
            )  # fmt: skip
            out = out * scale
        else:
            pairs = listed(support)
            alpha = logits(query, key, score=score, support=pairs)
            weighted = alpha * edge_weight.view(-1, 1)
            out = attend_by(weighted, value, pairs, Identity(), dropout=dropout).output
        out = out.squeeze(1).to(dtype_of(x))
        if self.eps != 0:
            out = out + self.eps * (x_0 if first is None else x_0[:first]).to(out.dtype)
        if asked is False:
            return out
        every = pairs_of_chosen(support, True)
        assert every is not None and alpha is not None
        return out, self._chosen(every, alpha.squeeze(1).to(out.dtype), support, asked)

    def weights_for(self, asked: bool | Tensor | None) -> bool | Tensor:
        """As in torch_geometric, forward returns a tuple for False too in this layer."""
        return isinstance(asked, bool) or super().weights_for(asked)

    def _first_graph(self, edge_index: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs and normalised weights of the graph that is kept."""
        kept: tuple[Tensor, Tensor] | None = self._cached_edge_index
        if kept is None:
            given, loops = plain_index(edge_index, self.add_self_loops), self.add_self_loops
            kept = gcn_norm(given, None, x.shape[0], False, loops, self.flow, dtype=x.dtype)
            self._cached_edge_index = kept
        return kept


def _degrees(support: Edges | PendingEdges, dtype: torch.dtype) -> Tensor:
    """How many pairs each target has, `[N]`."""
    pairs = listed(support)
    if isinstance(pairs, Edges):
        return pairs.by_query.pointer.diff().to(dtype)
    exists = torch.ones_like(pairs.query_index) if pairs.exists is None else pairs.exists
    zeros = torch.zeros(pairs.num_queries, dtype=dtype, device=exists.device)
    return zeros.index_add(0, pairs.query_index, exists.to(dtype))
