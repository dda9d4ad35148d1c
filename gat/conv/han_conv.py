"""HANConv: attention over the edges of each type, then over the types."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor

from attn_core import Separable, attend
from gat.checks import check_probability
from gat.conv.base import AttentionConv, trusted
from gat.conv.drop_in import with_sparse_linears
from gat.conv.hetero import EdgeType, by_type, check_types, one_support


@trusted
class HANConv(AttentionConv, torch_geometric.nn.HANConv):
    r"""Graph attention along each type of edge, whose results another attention weighs.

    .. math::
        z^{(r)}_i = \mathrm{ReLU} \sum_{j \in N_r(i)} \alpha^{(r)}_{ij} W x_j, \qquad
        \alpha^{(r)}_{ij} = \mathrm{softmax}_j\,
        \mathrm{LeakyReLU}(a_r^T W x_j + b_r^T W x_i)

    .. math::
        x'_i = \sum_r \beta_r z^{(r)}_i, \qquad
        \beta_r = \mathrm{softmax}_r\, q^T \mathrm{mean}_i \tanh(K z^{(r)}_i)

    W belongs to the type of node. Wang, Ji, Shi, Wang, Ye, Cui, Yu, "Heterogeneous Graph Attention
    Network", WWW 2019. A drop-in for `torch_geometric.nn.HANConv`: the same arguments, parameters,
    `state_dict` and numbers. All types of edges are attended over in one call.

    Args:
        in_channels: features per node, or a dictionary of them by type; -1 to take them from the
            first call.
        out_channels: features per node that come out, of all heads together.
        metadata: the types of nodes, and the types of edges `(source, relation, target)`.
        heads: H, how many attentions run side by side. Default 1.
        negative_slope: of LeakyReLU. Default 0.2.
        dropout: the probability with which an attention weight is dropped in training. Default 0.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `flow`.

    Raises:
        ValueError: heads that do not divide out_channels, a dropout that is no probability.

    >>> types = ["author", "paper"], [("author", "writes", "paper"), ("paper", "by", "author")]
    >>> conv = HANConv(4, 8, types, heads=2)
    >>> x = {"author": torch.randn(2, 4), "paper": torch.randn(3, 4)}
    >>> writes = torch.tensor([[0, 1, 1], [0, 1, 2]])
    >>> out = conv(x, {types[1][0]: writes, types[1][1]: writes.flip(0)})
    >>> {name: list(features.shape) for name, features in out.items()}
    {'author': [2, 8], 'paper': [3, 8]}
    """

    def __init__(
        self,
        in_channels: int | dict[str, int],
        out_channels: int,
        metadata: tuple[list[str], list[EdgeType]],
        heads: int = 1,
        negative_slope: float = 0.2,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_probability("dropout", dropout)
        if out_channels % heads:
            raise ValueError(f"out_channels is {out_channels}, which heads={heads} do not divide")
        super().__init__(
            in_channels, out_channels, metadata, heads, negative_slope, dropout, **kwargs
        )
        with_sparse_linears(self)

    def forward(
        self,
        x_dict: dict[str, Tensor],
        edge_index_dict: dict[EdgeType, Any],
        return_semantic_attention_weights: bool = False,
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Attend over the edges of each type, then over the types.

        Args:
            x_dict: `[N, in_channels]` for each type of node.
            edge_index_dict: for each type of edge `[2, E]`, or another form of it.
            return_semantic_attention_weights: also return β for each type of node. Default False.
            return_attention_weights: also return α, with its edges. Default None.

        Returns:
            `[N, out_channels]` for each type of node, None for one without any type of edge; beside
            it, what was asked for: `{node type: [types of edges]}`, `{edge type: EdgeAttention}`.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other.
        """
        edge_types = self.metadata[1]
        check_types(type(self).__name__, x_dict, edge_index_dict, edge_types)
        if not self._is_fused() and not return_attention_weights:
            # propagate_type: (x: tuple[Tensor, Tensor], alpha: tuple[Tensor, Tensor])
            return super().forward(x_dict, edge_index_dict, return_semantic_attention_weights)
        nodes = {
            name: self.proj[name](x).view(-1, self.heads, self.out_channels // self.heads)
            for name, x in x_dict.items()
        }
        first, rows = {}, 0
        for name, features in nodes.items():
            first[name] = rows
            rows += features.shape[0]
        query, key, sizes, offsets, num = [], [], [], [], 0  # numbers `[N, H, 1]` of each type
        for edge_type in edge_index_dict:
            source, target = nodes[edge_type[0]], nodes[edge_type[-1]]
            name = "__".join(edge_type)
            query.append((target * self.lin_dst[name]).sum(-1, keepdim=True))
            key.append((source * self.lin_src[name]).sum(-1, keepdim=True))
            sizes.append((source.shape[0], target.shape[0]))
            offsets.append((first[edge_type[0]], num))
            num += target.shape[0]
        edges, value = list(edge_index_dict.values()), torch.cat(list(nodes.values()))
        support, parts = one_support(edges, sizes, offsets, (rows, num))
        # Types of edges share their sources, whose values are there once: what differs between the
        # types is a number for each pair and head
        none = value.new_zeros(0, self.heads, 1)
        of_pairs = [k.index_select(0, pairs[0]) for k, pairs in zip(key, parts, strict=True)]
        out, weights, _ = attend(
            torch.cat([none, *query]),
            value.new_zeros(rows, self.heads, 1),
            value,
            score=Separable(negative_slope=self.negative_slope),
            support=support,
            pair_key=torch.cat([none, *of_pairs]),
            dropout=self.dropout if self.training else 0.0,
            need_weights=bool(return_attention_weights),
        )
        given: dict[str, list[Tensor]] = {name: [] for name in x_dict}
        for edge_type, part in zip(
            edge_index_dict, out.flatten(1).relu().split([n for _, n in sizes]), strict=True
        ):
            given[edge_type[-1]].append(part)
        found, shares = {}, {}
        for name, of_types in given.items():
            found[name], shares[name] = self._joined(of_types)
        if not self._is_fused():
            found, shares = super().forward(x_dict, edge_index_dict, True)
        results: list[Any] = [found]
        if return_semantic_attention_weights:
            results.append(shares)
        if return_attention_weights:
            assert weights is not None
            results.append(by_type(weights, list(edge_index_dict), parts))
        return tuple(results) if len(results) > 1 else found

    def _joined(self, parts: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """The results of the types of edges into nodes of one type, weighed; and the weights."""
        if not parts:
            return None, None
        stacked = torch.stack(parts)
        if stacked.numel() == 0:
            return stacked.view(0, stacked.shape[-1]), None
        scores = (self.q * self.k_lin(stacked).tanh().mean(1)).sum(-1)
        shares = F.softmax(scores, dim=0)
        return (shares.view(-1, 1, 1) * stacked).sum(0), shares
