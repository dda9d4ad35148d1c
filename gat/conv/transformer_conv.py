"""TransformerConv: the Transformer's attention over the edges of a graph."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.utils import is_torch_sparse_tensor

from attn_core import Edges, ScaledDot, attend, scatter_softmax
from attn_core.scores import Formula
from gat.conv.base import pairs_of_chosen, pairs_with, trusted, weights_like_input
from gat.conv.projecting import ProjectingConv, add_to, both_sides, is_plain, widths_of
from gat.sparse import Linear


@trusted
class TransformerConv(ProjectingConv):
    r"""The scaled dot-product attention of the Transformer, among neighbours.

    .. math::
        x'_i = W_{skip} x_i + \sum_{j \in N(i)} \alpha_{ij} (W_v x_j + W_{edge} e_{ij}), \qquad
        \alpha_{ij} = \mathrm{softmax}_j
        \frac{(W_q x_i)^T (W_k x_j + W_{edge} e_{ij})}{\sqrt{C}}

    With beta, a gate :math:`\beta_i` learns how much of the skip connection to take. Shi et al.,
    "Masked Label Prediction: Unified Message Passing Model for Semi-Supervised Classification",
    IJCAI 2021. A drop-in for `torch_geometric.nn.TransformerConv`: the same arguments, parameters,
    `state_dict` and numbers. What differs on purpose is listed in `docs/compatibility.md`.

    Args:
        in_channels: features per node; a pair for bipartite graphs (sources, targets); -1 to take
            it from the first call.
        out_channels: C, features per node and head that come out.
        heads: H, how many attentions run side by side. Default 1.
        concat: concatenate the heads (True, default) or average them.
        beta: gate the skip connection. Default False.
        dropout: the probability with which an attention weight is dropped in training. Default 0.
        edge_dim: features per edge. Default None: edges have none.
        bias: learn additive biases in the projections. Default True.
        root_weight: add the skip connection; without it there is no gate either. Default True.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `aggr` or `flow`.

    Raises:
        ValueError: in_channels that are no number or pair, out_channels or heads below 1, a dropout
            outside [0, 1].
        TypeError: out_channels or heads that are no whole numbers.

    >>> conv = TransformerConv(4, 8, heads=2)
    >>> edge_index = torch.tensor([[0, 1, 2], [1, 2, 0]])
    >>> conv(torch.randn(3, 4), edge_index).shape
    torch.Size([3, 16])
    """

    _alpha: Tensor | None

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        beta: bool = False,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        root_weight: bool = True,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("aggr", "add")
        super().__init__(in_channels, out_channels, heads, concat, dropout, edge_dim, **kwargs)
        self.beta = beta and root_weight
        self.root_weight = root_weight
        self._alpha = None  # torch_geometric's explainers look for it; between calls it is None

        of_sources, of_targets = widths_of(in_channels)
        width = heads * out_channels
        self.lin_key = Linear(of_sources, width, bias=bias)
        self.lin_query = Linear(of_targets, width, bias=bias)
        self.lin_value = Linear(of_sources, width, bias=bias)
        self.lin_edge = None if edge_dim is None else Linear(edge_dim, width, bias=False)
        width = width if concat else out_channels
        self.lin_skip = Linear(of_targets, width, bias=bias)
        self.lin_beta = Linear(3 * width, 1, bias=False) if self.beta else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as torch_geometric's linear maps start."""
        super().reset_parameters()
        for linear in (
            self.lin_key,
            self.lin_query,
            self.lin_value,
            self.lin_edge,
            self.lin_skip,
            self.lin_beta,
        ):
            if linear is not None:
                linear.reset_parameters()

    def weights_for(self, asked: bool | Tensor | None) -> bool | Tensor:
        """As in torch_geometric, forward returns a tuple for False too in this layer."""
        return isinstance(asked, bool) or super().weights_for(asked)

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
            return_attention_weights: also return the weights, with their edges: of all, for True
                *and* for False, as torch_geometric does in this layer, or of the edges into some
                targets alone (integers `[n]`, or bool `[N]`). Default None: the output alone.

        Returns:
            `[..., N, heads * out_channels]` (`out_channels` where heads are averaged); with
            return_attention_weights, that and `EdgeAttention(edge_index [2, E], weights
            [..., E, H])`; for a sparse edge_index, what torch_geometric returns: that matrix
            itself, and the weights in the order of its entries.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other.
        """
        need_weights = self.weights_for(return_attention_weights)
        apart = None
        if self.lin_beta is None and self._is_apart(need_weights, x):
            apart = TransformerConv.forward(self, x, edge_index, edge_attr)
        x, first = self._sources(x, edge_index)
        x_src, x_dst = both_sides(type(self).__name__, x, (self.lin_key, self.lin_query), first)
        fused = self._is_fused()
        in_one = fused and need_weights is False and self.lin_beta is None
        linears = self.lin_query, self.lin_key, self.lin_value
        waits = in_one and self._may_wait((*linears, self.lin_skip), x_src, x_dst)
        project: Any = self._mapped if waits else self._by_head
        query, key, values = map(project, linears, (x_dst, x_src, x_src))
        value: Any = self._drop_values(values, edge_index)
        support = self._support(edge_index, key, query.shape[-3], self_loops=False, dim=-3)
        edge_attr = self._edge_features(edge_attr, edge_index, key)
        if edge_attr is not None and isinstance(support, Edges) and support.adds_loops:
            raise ValueError(
                "edge_index is Edges to which self-loops were added, and edge_attr has no features "
                "for these: build the Edges with self_loops=False"
            )

        of_edges: Tensor | None = None
        skip: Any = None
        if fused and edge_attr is not None:
            of_edges = self._project_edges(edge_attr)
        if in_one:
            if self.root_weight:
                skip = self._mapped(self.lin_skip, x_dst) if waits else self.lin_skip(x_dst)
            out = self._in_one_step(
                query, key, value, Formula("dot", self.out_channels**-0.5, None), support, skip,
                pair_key=of_edges, pair_value=of_edges,
            )  # fmt: skip
            if out is not None:
                return out
            if waits:
                query, key, value = (one.made() for one in (query, key, value))
                skip = None
        if fused:
            out, weights, _ = attend(
                query,
                key,
                value,
                score=ScaledDot(),
                support=support,
                pair_key=of_edges,
                pair_value=of_edges,
                dropout=self.dropout if self.training and apart is None else 0.0,
                need_weights=need_weights,
            )
            pairs = pairs_of_chosen(support, need_weights)
        else:
            self._one_state(key.shape[:-3])
            pairs, edge_attr = pairs_with(support, edge_attr)
            # propagate_type: (query: Tensor, key: Tensor, value: Tensor, edge_attr: Tensor | None)
            out = self.propagate(pairs, query=query, key=key, value=value, edge_attr=edge_attr)
            weights, self._alpha = self._alpha, None
            if weights is not None:
                pairs, weights = self._chosen(pairs, weights, support, need_weights)
            elif need_weights is not False:
                raise ValueError(
                    f"the message of {type(self).__name__} leaves no weights in self._alpha: let "
                    "it put them there, [edges, heads], or ask for none with "
                    "return_attention_weights=None"
                )

        out = self._merge_heads(out) if apart is None else apart
        if self.root_weight and apart is None:
            skip = self.lin_skip(x_dst) if skip is None else skip
            if self.lin_beta is None:  # a plain linear map does not save what it gives
                out = add_to(skip, out) if is_plain(self.lin_skip) else out + skip
            else:
                gate = self.lin_beta(torch.cat([out, skip, out - skip], dim=-1)).sigmoid()
                out = gate * skip + (1 - gate) * out
        if need_weights is False:
            return out
        assert pairs is not None and weights is not None
        if need_weights is True and is_torch_sparse_tensor(edge_index):
            return out, (edge_index, weights)  # which are in the order of its entries
        return out, weights_like_input(edge_index, support, pairs, weights)

    def message(
        self,
        query_i: Tensor,
        key_j: Tensor,
        value_j: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        """What an edge carries to its target, `[E, H, C]`; the arguments are torch_geometric's."""
        if edge_attr is not None and self.lin_edge is not None:
            of_edges = self._project_edges(edge_attr)
            key_j, value_j = key_j + of_edges, value_j + of_edges
        logits = (query_i * key_j).sum(-1) / math.sqrt(self.out_channels)
        weights = scatter_softmax(logits, index, size_i)
        self._alpha = weights
        dropped = F.dropout(weights, p=self.dropout, training=self.training)
        return value_j * dropped.unsqueeze(-1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_channels}, {self.out_channels}, heads={self.heads})"
