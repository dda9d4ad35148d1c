"""AGNNConv: attention by the direction of the features alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from attn_core import Cosine, Dot, Edges, PendingEdges, attend, scatter_softmax, weights
from gat.conv.base import (
    AttentionConv,
    check_features,
    is_autocast,
    pairs_of,
    pairs_of_chosen,
    trusted,
)
from gat.edge_attention import EdgeAttention


@trusted
class AGNNConv(AttentionConv):
    r"""Each node averages its neighbours by how much their features point the same way.

    .. math::
        x'_i = \sum_{j \in N(i) \cup \{i\}} \alpha_{ij} x_j, \qquad
        \alpha_{ij} = \mathrm{softmax}_j\, \beta \cos(x_i, x_j)

    The one parameter is :math:`\beta`. Thekumparampil et al., "Attention-based Graph Neural Network
    for Semi-Supervised Learning", 2018. A drop-in for `torch_geometric.nn.AGNNConv`.

    Args:
        requires_grad: learn β, which starts at 1; otherwise it stays there. Default True.
        add_self_loops: give each node exactly one edge to itself. Default True.
        **kwargs: of `torch_geometric.nn.MessagePassing`, such as `aggr` or `flow`.

    >>> conv = AGNNConv()
    >>> conv(torch.randn(3, 4), torch.tensor([[0, 1, 2], [1, 2, 0]])).shape
    torch.Size([3, 4])
    """

    beta: Tensor

    def __init__(
        self, requires_grad: bool = True, add_self_loops: bool = True, **kwargs: Any
    ) -> None:
        kwargs.setdefault("aggr", "add")
        super().__init__(**kwargs)
        self.requires_grad = requires_grad
        self.add_self_loops = add_self_loops
        if requires_grad:
            self.beta = Parameter(torch.empty(1))
        else:
            self.register_buffer("beta", torch.ones(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set a learned β back to 1."""
        super().reset_parameters()
        if self.requires_grad:
            torch.nn.init.ones_(self.beta)

    def forward(self, x: Tensor, edge_index: Any) -> Tensor:
        """Attend over the edges.

        Args:
            x: `[N, channels]`; `[..., N, channels]` are states of one graph, such as steps of time,
                each of which attends as it would alone.
            edge_index: int64 `[2, E]` (sources, targets), a `torch_geometric.EdgeIndex`, a sparse
                matrix as in torch_geometric (transposed: rows are targets), or
                `attn_core.Edges`. After an edit that torch does not count (by NumPy, `.data`) call
                `attn_core.clear_cache()`, on GPUs and without the compiled kernels; elsewhere it is
                seen.

        Returns:
            As x.

        Raises:
            ValueError, TypeError, IndexError: arguments that do not fit each other.
        """
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}; AGNNConv expects a tensor [N, channels]")
        check_features(type(self).__name__, "x", x, batched=True)
        x, first = self._sources(x, edge_index)
        targets = x.shape[-2] if first is None else first
        support = self._support(edge_index, x, targets, self.add_self_loops, dim=-2)
        unit = _unit(x)
        if not self._is_fused():
            self._one_state(x.shape[:-2])
            pairs, _ = pairs_of(support)
            both, norms = (x, unit) if first is None else ((x, x[:first]), (unit, unit[:first]))
            # propagate_type: (x: Tensor, x_norm: Tensor)
            out = self.propagate(pairs, x=both, x_norm=norms)
            return out.to(torch.get_autocast_dtype(x.device.type) if is_autocast(x) else x.dtype)
        query = (self.beta * unit.narrow(-2, 0, targets)).unsqueeze(-2)
        key, value = unit.unsqueeze(-2), x.unsqueeze(-2)
        return attend(query, key, value, score=Dot(), support=support).output.squeeze(-2)

    def attention(self, x: Tensor, edge_index: Any, nodes: Tensor | None = None) -> EdgeAttention:
        """The weights `[..., E', 1]` with their edges, or those of some targets alone.

        Args:
            x, edge_index: as in `forward`.
            nodes: integers `[n]`, or bool `[N]`. Default: all.
        """
        check_features(type(self).__name__, "x", x, batched=True)
        x, first = self._sources(x, edge_index)
        targets = x.shape[-2] if first is None else first
        support = self._support(edge_index, x, targets, self.add_self_loops, dim=-2)
        unit = _unit(x).unsqueeze(-2)
        edges = support.resolve() if isinstance(support, PendingEdges) else support
        if turned := self.flow == "target_to_source":  # row 0 names who attends
            edges = Edges(edges.pairs.flip(0), edges.num_queries, edges.num_keys)
        query = self.beta * unit.narrow(-3, 0, targets)
        found = weights(query, unit, score=Dot(), support=edges, queries=nodes)
        pairs = pairs_of_chosen(edges, True if nodes is None else nodes)
        assert pairs is not None
        return EdgeAttention(pairs.flip(0) if turned else pairs, found)

    def message(
        self,
        x_j: Tensor,
        x_norm_i: Tensor,
        x_norm_j: Tensor,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        """What an edge carries to its target, `[E, C]`; the arguments are torch_geometric's."""
        logits = self.beta * (x_norm_i * x_norm_j).sum(-1)
        return x_j * scatter_softmax(logits, index, size_i).unsqueeze(-1)


def _unit(x: Tensor) -> Tensor:
    """As F.normalize, but in float16, where 1e-12 would be 0, features of 0 are no NaN."""
    return Cosine(eps=max(1e-12, torch.finfo(x.dtype).tiny)).unit(x)
