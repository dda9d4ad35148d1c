"""What the graph attention layers share: how they stand inside torch_geometric."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.utils import is_torch_sparse_tensor, scatter

from attn_core import Edges, PendingEdges

_HOOKS = tuple(
    f"_{step}_forward_{when}hooks"
    for step in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for when in ("pre_", "")
)
_STEPS = ("message", "edge_update", "aggregate", "update", "message_and_aggregate")


class EdgeAttention(NamedTuple):
    """Attention weights with the edges that they belong to.

    Attributes:
        edge_index: int64 `[2, E']`, sources and targets; self-loops that a layer added come last.
        weights: `[E', H]`, before dropout; those of one target and head sum to 1.
    """

    edge_index: Tensor
    weights: Tensor


class AttentionConv(MessagePassing):
    """The base of the graph attention layers; abstract, and never instantiated itself.

    torch_geometric generates `propagate` for each class, from its `message` and `edge_update`. A
    layer runs through it only when somebody watches or changes these steps; otherwise it calls
    `attn_core.attend` on its nodes and edges.
    """

    in_channels: int | tuple[int, int]

    def _is_fused(self) -> bool:
        """Whether nobody watches or changes message passing, so that it need not take place."""
        return (
            not self.explain
            and self.aggr in ("add", "sum")
            and self.flow == "source_to_target"
            and self.decomposed_layers == 1
            and not any(getattr(self, hooks) for hooks in _HOOKS)
            and all(_owner(type(self), step) in _TRUSTED for step in _STEPS)
        )

    def _support(
        self, edge_index: Any, num_sources: int, num_targets: int, self_loops: bool
    ) -> Edges | PendingEdges:
        """The pairs of an edge_index of any kind."""
        if isinstance(edge_index, Edges):
            edges = edge_index.with_self_loops() if self_loops else edge_index
            return _check_sizes(edges, num_sources, num_targets)
        pending = PendingEdges(edge_index, num_sources, num_targets, self_loops)
        plain = isinstance(edge_index, Tensor) and not is_torch_sparse_tensor(edge_index)
        return pending if plain else pending.resolve()

    def _edge_features(
        self, edge_attr: Tensor | None, edge_index: Any, edge_dim: int | None
    ) -> Tensor | None:
        """The features of the caller's edges, `[E, edge_dim]`, or None if there are none to use."""
        if edge_attr is None and edge_dim is not None:
            edge_attr = _stored_values(edge_index)  # as torch_geometric does
        if edge_attr is None:
            return None
        if edge_dim is None:
            if not torch.compiler.is_compiling():
                warnings.warn(
                    f"edge_attr of shape {list(edge_attr.shape)} is not used: "
                    f"{type(self).__name__} was built with edge_dim=None; give it edge_dim="
                    f"{1 if edge_attr.dim() == 1 else edge_attr.shape[-1]}",
                    stacklevel=3,
                )
            return None
        if edge_attr.dim() == 1:
            edge_attr = edge_attr.unsqueeze(1)
        edges = _number_of_edges(edge_index)
        if edge_attr.shape[0] != edges:
            raise ValueError(
                f"edge_attr has {edge_attr.shape[0]} rows, but edge_index has {edges} edges; give "
                "each edge its features"
            )
        if edge_attr.shape[-1] != edge_dim:
            raise ValueError(
                f"edge_attr has {edge_attr.shape[-1]} features per edge, but "
                f"{type(self).__name__} was built with edge_dim={edge_dim}"
            )
        return edge_attr

    def _with_loop_features(
        self,
        edge_attr: Tensor,
        support: Edges | PendingEdges,
        fill_value: float | Tensor | str,
    ) -> Tensor:
        """The features of each pair of the support, those of added self-loops filled in."""
        pending = isinstance(support, PendingEdges)
        if pending and not support.self_loops or not pending and support.given is support:
            return edge_attr
        num_loops = min(support.num_keys, support.num_queries)
        if isinstance(fill_value, str):
            source, target = support.edge_index if pending else support.given.edge_index
            # Self-loops, which are about to be replaced, go to a node that does not exist
            target = torch.where(source == target, support.num_queries, target).long()
            loop_attr = scatter(edge_attr, target, 0, support.num_queries + 1, fill_value)
            loop_attr = loop_attr[:num_loops]
        else:
            fill = torch.as_tensor(fill_value, dtype=edge_attr.dtype, device=edge_attr.device)
            loop_attr = fill.expand(num_loops, edge_attr.shape[-1])
        edge_attr = torch.cat([edge_attr, loop_attr])
        return edge_attr if pending else edge_attr.index_select(0, support.source_id)


def weights_like_input(edge_index: Any, attention: EdgeAttention) -> Any:
    """Weights in the form that torch_geometric returns for this kind of edge_index."""
    if isinstance(edge_index, Tensor) and is_torch_sparse_tensor(edge_index):
        (source, target), weights = attention
        sparse = torch.sparse_coo_tensor(
            torch.stack([target, source]),
            weights,
            (*edge_index.shape, weights.shape[-1]),
            check_invariants=False,
        ).coalesce()
        if edge_index.layout == torch.sparse_coo:
            return sparse, sparse.values()
        row, column = sparse.indices()
        pointer = torch._convert_indices_from_coo_to_csr(row, edge_index.shape[0])
        values = sparse.values()
        return torch.sparse_csr_tensor(pointer, column, values, check_invariants=False), values
    if not isinstance(edge_index, Tensor | Edges):  # torch_sparse.SparseTensor
        (source, target), weights = attention
        sizes = edge_index.size(0), edge_index.size(1)
        return type(edge_index)(row=target, col=source, value=weights, sparse_sizes=sizes)
    return attention


def check_features(layer: str, name: str, x: Tensor, channels: int) -> None:
    """Raise unless x holds node features `[N, channels]`."""
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; expected floating point: use .float()")
    if x.dim() != 2 or (channels > 0 and x.shape[1] != channels):  # -1: not known yet
        width = "channels" if channels < 0 else channels
        raise ValueError(
            f"{name} has shape {list(x.shape)}; {layer} expects [nodes, {width}], one row of "
            "features for each node"
        )


def _owner(cls: type, step: str) -> type:
    """The class that defines a step of message passing."""
    return next(base for base in cls.__mro__ if step in base.__dict__)


_TRUSTED: set[type] = {*MessagePassing.__mro__}


def trusted(layer: type[AttentionConv]) -> type[AttentionConv]:
    """Class decorator: what this layer defines is what its fused path computes."""
    _TRUSTED.add(layer)
    return layer


def _check_sizes(edges: Edges, num_sources: int, num_targets: int) -> Edges:
    for name, have, need in (
        ("source", num_sources, edges.num_keys),
        ("target", num_targets, edges.num_queries),
    ):
        if have != need:
            raise ValueError(
                f"x has {have} {name} nodes, but the Edges were built for {need}: build them with "
                f"size=({num_sources}, {num_targets})"
            )
    return edges


def _number_of_edges(edge_index: Any) -> int:
    if isinstance(edge_index, Edges):
        return edge_index.given.num_edges
    if isinstance(edge_index, Tensor):
        return edge_index._nnz() if is_torch_sparse_tensor(edge_index) else edge_index.shape[1]
    return int(edge_index.nnz())


def _stored_values(edge_index: Any) -> Tensor | None:
    if isinstance(edge_index, Tensor):
        if edge_index.layout == torch.sparse_coo:
            return edge_index._values()
        return edge_index.values() if is_torch_sparse_tensor(edge_index) else None
    return None if isinstance(edge_index, Edges) else edge_index.coo()[2]
