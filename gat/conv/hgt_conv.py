"""HGTConv: scaled dot-product attention over nodes and edges of several types."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor

from attn_core import ScaledDot, attend
from gat.conv.base import AttentionConv, trusted
from gat.conv.hetero import EdgeType, by_type, check_types, one_support


@trusted
class HGTConv(AttentionConv, torch_geometric.nn.HGTConv):
    r"""A heterogeneous graph transformer: queries, keys and values by type, one softmax for all.

    .. math::
        h_i = \sum_{(j, r) \in N(i)} \alpha^{(r)}_{ij} V_r v_j, \qquad
        \alpha^{(r)}_{ij} = \mathrm{softmax}\, \mu_r \frac{q_i \cdot K_r k_j}{\sqrt{D}}

    where q, k and v are maps of the node's type, :math:`K_r`, :math:`V_r` and :math:`\mu_r` belong
    to the type of edge; :math:`x'_i = s\,W \mathrm{GELU}(h_i) + (1 - s)\,x_i`, s a sigmoid of one
    number for each type of node (without the x where its width is another).

    Hu, Dong, Wang, Sun, "Heterogeneous Graph Transformer", WWW 2020. A drop-in for
    `torch_geometric.nn.HGTConv`: the same arguments, parameters, `state_dict` and numbers. All
    types of edges are attended over in one call, whose pairs are sorted once and for all.

    Args:
        in_channels: features per node, or a dictionary of them by type; -1 to take them from the
            first call.
        out_channels: features per node that come out, of all heads together.
        metadata: the types of nodes, and the types of edges `(source, relation, target)`.
        heads: H, how many attentions run side by side. Default 1.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `flow`.

    Raises:
        ValueError: heads that do not divide out_channels.

    >>> types = ["author", "paper"], [("author", "writes", "paper"), ("paper", "by", "author")]
    >>> conv = HGTConv(4, 8, types, heads=2)
    >>> x = {"author": torch.randn(2, 4), "paper": torch.randn(3, 4)}
    >>> writes = torch.tensor([[0, 1, 1], [0, 1, 2]])
    >>> out = conv(x, {types[1][0]: writes, types[1][1]: writes.flip(0)})
    >>> {name: list(features.shape) for name, features in out.items()}
    {'author': [2, 8], 'paper': [3, 8]}
    """

    def forward(
        self,
        x_dict: dict[str, Tensor],
        edge_index_dict: dict[EdgeType, Any],
        return_attention_weights: bool | None = None,
    ) -> Any:
        """Attend over the edges of all types.

        Args:
            x_dict: `[N, in_channels]` for each type of node.
            edge_index_dict: for each type of edge `[2, E]`, or another form of it.
            return_attention_weights: also return the weights, with their edges. Default None.

        Returns:
            `[N, out_channels]` for each type of node that some type of edge leads to; with
            return_attention_weights, that and `{edge type: EdgeAttention}`, whose weights sum to 1
            over all edges into a node, of whatever type.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other.
        """
        check_types(type(self).__name__, x_dict, edge_index_dict, self.edge_types)
        if not self._is_fused() and not return_attention_weights:
            # propagate_type: (k: Tensor, q: Tensor, v: Tensor, edge_attr: Tensor)
            return super().forward(x_dict, edge_index_dict)
        heads, width = self.heads, self.out_channels // self.heads
        projected = {
            name: found.view(found.shape[0], 3, heads, width).unbind(1)
            for name, found in self.kqv_lin(x_dict).items()
        }
        first, query = _stacked({name: q for name, (_, q, _) in projected.items()})
        keys, values, sizes, offsets = [], [], [], []
        rows = 0
        for edge_type in edge_index_dict:
            source, target = edge_type[0], edge_type[-1]
            k, _, v = projected[source]
            number = self.edge_types_map[edge_type]
            of_key, of_value = (
                rel.weight.unflatten(0, (heads, -1))[:, number] for rel in (self.k_rel, self.v_rel)
            )
            importance = self.p_rel["__".join(edge_type)].view(heads, 1, 1)
            keys.append(torch.einsum("nhd,hde->nhe", k, of_key * importance))
            values.append(torch.einsum("nhd,hde->nhe", v, of_value))
            sizes.append((k.shape[0], projected[target][1].shape[0]))
            offsets.append((rows, first[target]))
            rows += k.shape[0]
        none = query[:0]
        key, value = torch.cat([none, *keys]), torch.cat([none, *values])
        edges, num = list(edge_index_dict.values()), (rows, query.shape[0])
        support, parts = one_support(edges, sizes, offsets, num)
        out, weights, _ = attend(
            query, key, value, score=ScaledDot(), support=support,
            need_weights=bool(return_attention_weights),
        )  # fmt: skip
        found = self._finished(out.flatten(1), x_dict, first)
        if not self._is_fused():
            found = super().forward(x_dict, edge_index_dict)
        if weights is None:
            return found
        return found, by_type(weights, list(edge_index_dict), parts)

    def _finished(
        self, out: Tensor, x_dict: dict[str, Tensor], first: dict[str, int]
    ) -> dict[str, Tensor]:
        """What comes out for each type of node, its own features beside it."""
        attended = {
            name: F.gelu(out[start : start + x_dict[name].shape[0]])
            for name, start in first.items()
            if name in self.dst_node_types
        }
        found: dict[str, Tensor] = self.out_lin(attended)
        for name, features in found.items():
            if features.shape[-1] == x_dict[name].shape[-1]:
                share = self.skip[name].sigmoid()
                found[name] = share * features + (1 - share) * x_dict[name]
        return found


def _stacked(tensors: dict[str, Tensor]) -> tuple[dict[str, int], Tensor]:
    """Where the rows of each type begin, and all rows."""
    first, rows = {}, 0
    for name, tensor in tensors.items():
        first[name] = rows
        rows += tensor.shape[0]
    return first, torch.cat(list(tensors.values()))
