"""What the graph attention layers share: how they stand inside torch_geometric."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.aggr import SumAggregation
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.nn.dense.linear import Linear
from torch_geometric.utils import is_torch_sparse_tensor

from attn_core import Edges, PendingEdges
from attn_core.graph.read import is_sparse
from attn_core.ops.edge_layer import Mapped
from attn_core.supports.edges import edges_of
from attn_core.supports.pairs import TracedPairs
from attn_core.transforms import is_autocast as of_device
from gat.edge_attention import EdgeAttention

_HOOKS = tuple(
    f"_{step}_forward_{when}hooks"
    for step in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for when in ("pre_", "")
)
_STEPS = "message", "edge_update", "aggregate", "update", "message_and_aggregate"


class AttentionConv(MessagePassing):
    """The base of the graph attention layers; abstract, and never instantiated itself.

    torch_geometric generates `propagate` for each class, from its `message` and `edge_update`. A
    layer runs through it only when somebody watches or changes these steps; otherwise it calls
    `attn_core.attend` on its nodes and edges.
    """

    _own_steps: ClassVar[tuple[str, ...]] = ()
    """Methods of the layer's own that its messages call, which a subclass may replace."""

    def _set_jittable_templates(self, raise_on_error: bool = False) -> None:
        """Generate `propagate` for the class, as torch_geometric does."""
        super()._set_jittable_templates(raise_on_error)
        cls: Any = type(self)
        parent: Any = next((c for c in cls.__mro__[1:] if "_orig_propagate" in c.__dict__), None)
        # What explainers go back to: not the code that was generated for a parent, as it knows of
        # no edge masks
        if parent is not None and cls._orig_propagate is parent._jinja_propagate:
            cls._orig_propagate = parent._orig_propagate

    def weights_for(self, asked: bool | Tensor | None) -> bool | Tensor:
        """What forward returns for this `return_attention_weights`: no weights (then no tuple
        either), all, or those of the in-edges of some targets."""
        return asked if isinstance(asked, Tensor) else bool(asked)

    def _chosen(
        self, pairs: Tensor, weights: Tensor, support: Edges | PendingEdges, chosen: bool | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of all pairs and weights, those that `weights_for` names."""
        if not isinstance(chosen, Tensor):
            return pairs, weights
        size = support.num_keys, support.num_queries
        if self.flow == "source_to_target":
            return of_targets(pairs, weights, size, chosen)
        pairs, weights = of_targets(pairs.flip(0), weights, size[::-1], chosen)  # named in row 0
        return pairs.flip(0), weights

    def _is_fused(self) -> bool:
        """Whether nobody watches or changes message passing, so that it need not take place."""
        own = self.__dict__
        return (
            type(self.aggr_module) is SumAggregation
            and self.flow == "source_to_target"
            and not self.explain
            and self.decomposed_layers == 1
            and not any(map(own.get, _HOOKS))
            and not any(map(own.get, _STEPS + self._own_steps))
            and _are_own(type(self))
        )

    def _has_own(self, step: str) -> bool:
        """Whether a step of message passing is the layer's, replaced in no subclass or instance."""
        return _is_own(type(self), step) and step not in self.__dict__

    def _sources(self, x: Any, edge_index: Any) -> tuple[Any, int | None]:
        """The features of all sources, and how many of them, the first ones, are the targets.

        None: x says by itself who they are. Else edge_index is Edges with fewer targets than
        sources, and x one tensor: the sources of a block, or the nodes of a part of a graph.
        """
        if not (isinstance(edge_index, Edges) and isinstance(x, Tensor)):
            return x, None
        x, targets = edge_index.all_sources(x), edge_index.num_queries
        first = targets < edge_index.num_keys == x.shape[-2] and self.flow == "source_to_target"
        if first and x.layout != torch.strided:
            raise TypeError(
                f"x has layout {x.layout}, and its first {targets} rows are the targets of Edges: "
                "make it dense with x.to_dense()"
            )
        return x, targets if first else None

    def _one_state(self, batch: tuple[int, ...]) -> None:
        """Raise where there are batch dimensions: torch_geometric's steps know of none."""
        if batch:
            raise ValueError(
                f"x has the batch dimensions {list(batch)}, but {type(self).__name__} goes through "
                "message passing here, which takes one state of the nodes (something watches or "
                "changes a step: a hook, an explainer, an own message, aggr, flow or "
                "decomposed_layers): give it one x [nodes, channels] after the other"
            )

    def _support(
        self,
        edge_index: Any,
        x: Tensor | Mapped,
        num_targets: int,
        self_loops: bool,
        dim: int = 0,
    ) -> Edges | PendingEdges:
        """The pairs of any edge_index, from the nodes along `dim` of x to the targets."""
        if isinstance(edge_index, (Tensor, Edges)) and edge_index.device != x.device:
            raise ValueError(
                f"edge_index is on {edge_index.device}, but x is on {x.device}: move one of them "
                "with .to()"
            )
        sizes = x.shape[dim], num_targets
        if self.flow == "target_to_source":  # then row 0 names the targets
            sizes = sizes[::-1]
        if isinstance(edge_index, Edges):
            _check_sizes(edge_index, *sizes)
            if not self_loops or edge_index.adds_loops:
                return edge_index
            if torch.compiler.is_compiling():  # the op finds these Edges by the pairs they own
                return PendingEdges(edge_index.pairs, *sizes, self_loops=True)
            return edge_index.with_self_loops()
        if isinstance(edge_index, EdgeIndex) and _leaves_out_nodes(edge_index, sizes):
            edge_index = edge_index.as_tensor()
        if isinstance(edge_index, Tensor) and edge_index.layout == torch.strided:
            found = None
            if edge_index.device.type != "meta" and not torch.compiler.is_compiling():
                # A wrong edge_index should be the first complaint
                found = edges_of(edge_index, *sizes, self_loops)
            return PendingEdges(edge_index, *sizes, self_loops, found)
        return edges_of(edge_index, *sizes, self_loops)


def pairs_of(support: Edges | PendingEdges) -> tuple[Tensor, Tensor]:
    """The pairs `[2, E']` in torch_geometric's order, and where each comes from, `[E']`.

    The second is the number of the caller's edge, or E + node for a self-loop that was added.
    """
    listed = _listed(support)
    return listed.pairs.clone(), listed.source_id


def _listed(support: Edges | PendingEdges) -> Edges | TracedPairs:
    """The pairs, as code that is being traced knows them where it is."""
    if isinstance(support, Edges):
        return support
    return support.traced(exact=True) if torch.compiler.is_compiling() else support.resolve()


def of_targets(
    pairs: Tensor, weights: Tensor, size: tuple[int, int], nodes: Tensor
) -> tuple[Tensor, Tensor]:
    """The pairs (sources, targets) into some nodes, and their weights, in the order given."""
    positions = Edges(pairs, *size).of_queries(nodes)[1]
    return pairs.index_select(1, positions), weights.index_select(0, positions)


def pairs_of_chosen(support: Edges | PendingEdges, chosen: bool | Tensor) -> Tensor | None:
    """The pairs `[2, E']` whose weights `attend` returns for `need_weights=chosen`."""
    if not isinstance(chosen, Tensor):
        return pairs_of(support)[0] if chosen else None
    return _listed(support).of_queries(chosen)[0].pairs


def pairs_with(support: Edges | PendingEdges, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The pairs `[2, E']` in torch_geometric's order, and the row of each.

    Rows are given as to `attend`: over PendingEdges one for each of the caller's edges, then one
    for each self-loop.
    """
    pairs, source_id = pairs_of(support)
    if rows is not None and isinstance(support, PendingEdges):
        rows = rows.index_select(0, source_id)
    return pairs, rows


def weights_like_input(
    edge_index: Any, support: Edges | PendingEdges, pairs: Tensor, weights: Tensor
) -> Any:
    """The weights of pairs in the form that torch_geometric returns for this kind of edge_index."""
    sources, targets = support.num_keys, support.num_queries
    if weights.dim() > 2 and not (
        isinstance(edge_index, Edges)
        or (isinstance(edge_index, Tensor) and edge_index.layout == torch.strided)
    ):
        raise TypeError(
            f"x has the batch dimensions {list(weights.shape[:-2])}, and a sparse matrix has no "
            "place for the weights of each: give the graph as edge_index [2, edges] or as Edges"
        )
    if isinstance(edge_index, Tensor) and is_torch_sparse_tensor(edge_index):
        size = targets, sources, weights.shape[-1]
        checks: dict[str, Any] = {"device": weights.device, "check_invariants": False}
        matrix = torch.sparse_coo_tensor(pairs.flip(0), weights, size, **checks)
        matrix = matrix.coalesce()
        values = matrix.values()
        if edge_index.layout != torch.sparse_coo:
            row, column = matrix.indices()
            pointer = torch._convert_indices_from_coo_to_csr(row, targets)
            matrix = torch.sparse_csr_tensor(pointer, column, values, size, **checks)
        return matrix, values
    if isinstance(edge_index, EdgeIndex):
        pairs = EdgeIndex(pairs, sparse_size=(sources, targets))
    if isinstance(edge_index, (Tensor, Edges)):
        return EdgeAttention(pairs, weights)
    source, target = pairs  # torch_sparse.SparseTensor
    return type(edge_index)(row=target, col=source, value=weights, sparse_sizes=(targets, sources))


def check_features(
    layer: str, name: str, x: Tensor, linear: Any = None, batched: bool = False
) -> None:
    """Raise unless x holds node features `[N, channels]`, such as a linear map of the layer takes.

    With `batched`, there may be more dimensions before these. Without a map, any number of channels
    will do. A user may have put another module in the place
    of ours (a Sequential, an Embedding, a quantised map): what that takes is its own affair.
    """
    ours = isinstance(linear, Linear)
    if not ours and linear is not None:
        return
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; convert it with .float()")
    if x.dim() < 2 or not (batched or x.dim() == 2):
        raise ValueError(
            f"{name} has shape {list(x.shape)}; {layer} expects [nodes, channels], one row of "
            "features for each node (graphs of a batch are joined into one"
            + ("; states of one graph are [batch, nodes, channels])" if batched else ")")
        )
    if linear is None:
        if x.layout != torch.strided:
            raise TypeError(
                f"{name} has layout {x.layout}, but {layer} has no linear map that would make it "
                f"dense: give it {name}.to_dense(), or what a gat.sparse.Linear makes of it"
            )
        return
    weight = linear._parameters.get("weight")  # found sooner than linear.weight
    channels, dtype = linear.in_channels, (linear.weight if weight is None else weight).dtype
    if channels > 0 and x.shape[-1] != channels:
        raise ValueError(
            f"{name} has shape {list(x.shape)}, but {layer} was built with in_channels={channels}: "
            f"give each node {channels} features, or build it for {x.shape[1]}"
        )
    if x.dtype != dtype and not is_autocast(x):
        raise TypeError(
            f"{name} has dtype {x.dtype}, but the parameters of {layer} have {dtype}: convert one "
            "of them with .to()"
        )


def targets_of(edge_index: Any) -> int | None:
    """The number of target nodes that an edge_index knows itself; None if it does not."""
    if isinstance(edge_index, Edges):
        return edge_index.num_queries
    if isinstance(edge_index, EdgeIndex):
        return edge_index.sparse_size(1)
    return int(edge_index.size(0)) if is_sparse(edge_index) else None  # rows are the targets


def is_autocast(x: Tensor | Mapped) -> bool:
    """Whether autocast chooses the dtypes of what is computed from x; it leaves float64 alone."""
    return x.dtype != torch.float64 and of_device(x.device.type)


def is_ours(linear: Any) -> bool:
    """Whether this is a linear map such as a layer is built with, not what a user put there."""
    return isinstance(linear, Linear)


def width_of(linear: Any) -> int:
    """How many features a linear map takes; -1 where that is not known (yet)."""
    return linear.in_channels if is_ours(linear) else -1


_TRUSTED: set[type] = {*MessagePassing.__mro__}


def _is_own(cls: type, step: str) -> bool:
    """Whether no subclass of ours replaces a step."""
    return next(c for c in cls.__mro__ if step in c.__dict__) in _TRUSTED


@functools.cache  # a class is looked through once: its steps are what they were when it was made
def _seen_own(cls: Any) -> bool:
    first = next(c for c in cls.__mro__ if "propagate" in c.__dict__)
    made, before = (first.__dict__.get(f"_{kind}_propagate") for kind in ("jinja", "orig"))
    generated = first is MessagePassing or made is not before
    return generated and all(_is_own(cls, step) for step in _STEPS + cls._own_steps)


# torch 2.7: Dynamo looks into a class's __dict__. (It looks past functools.cache, hence two.)
@torch.compiler.assume_constant_result
def _are_own(cls: Any) -> bool:
    """Whether all steps are ours, and no subclass has a `propagate` but its generated one."""
    return _seen_own(cls)


def trusted(layer: type[AttentionConv]) -> type[AttentionConv]:
    """Class decorator: what this layer defines or inherits is what its fused path computes."""
    _TRUSTED.update(layer.__mro__)
    return layer


def _check_sizes(edges: Edges, num_sources: int, num_targets: int) -> None:
    if (num_sources, num_targets) != (edges.num_keys, edges.num_queries):
        raise ValueError(
            f"x has {num_sources} source and {num_targets} target nodes, but edge_index is Edges "
            f"from {edges.num_keys} to {edges.num_queries} nodes: build them with "
            f"size=({num_sources}, {num_targets})"
        )


def _leaves_out_nodes(edge_index: EdgeIndex, sizes: tuple[int, int]) -> bool:
    """Whether an EdgeIndex took its sizes from its edges, and so knows of no isolated nodes."""
    known = edge_index.sparse_size()
    return any(k is not None and k < n for k, n in zip(known, sizes, strict=True))
