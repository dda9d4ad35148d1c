"""What the graph attention layers share: how they stand inside torch_geometric."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter
from torch_geometric import EdgeIndex
from torch_geometric.nn.aggr import SumAggregation
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.utils import is_torch_sparse_tensor, scatter

from attn_core import Edges, PendingEdges
from attn_core.supports import as_plain
from attn_core.transforms import is_transformed
from gat.checks import check_probability
from gat.edge_attention import EdgeAttention
from gat.sparse import Linear

_HOOKS = tuple(
    f"_{step}_forward_{when}hooks"
    for step in ("propagate", "message", "aggregate", "message_and_aggregate", "edge_update")
    for when in ("pre_", "")
)
_STEPS = ("message", "edge_update", "aggregate", "update", "message_and_aggregate")


class AttentionConv(MessagePassing):
    """The base of the graph attention layers; abstract, and never instantiated itself.

    torch_geometric generates `propagate` for each class, from its `message` and `edge_update`. A
    layer runs through it only when somebody watches or changes these steps; otherwise it calls
    `attn_core.attend` on its nodes and edges.
    """

    in_channels: int | tuple[int, int]
    out_channels: int
    heads: int
    concat: bool
    dropout: float
    bias: Parameter | None
    value_dropout: float = 0.0
    """The probability with which a number that a node hands on is dropped in training; to be set
    on a layer, since torch_geometric's have no such argument. Scores see all numbers."""

    def _set_jittable_templates(self, raise_on_error: bool = False) -> None:
        """Generate `propagate` for the class, as torch_geometric does."""
        super()._set_jittable_templates(raise_on_error)
        cls: Any = type(self)
        parent: Any = next((c for c in cls.__mro__[1:] if "_orig_propagate" in c.__dict__), None)
        # What explainers go back to: not the code that was generated for a parent, as it knows of
        # no edge masks
        if parent is not None and cls._orig_propagate is parent._jinja_propagate:
            cls._orig_propagate = parent._orig_propagate

    def returns_weights(self, asked: bool | None) -> bool:
        """Whether forward returns a tuple for this `return_attention_weights`."""
        return bool(asked)

    def _is_fused(self) -> bool:
        """Whether nobody watches or changes message passing, so that it need not take place."""
        return (
            not self.explain
            and type(self.aggr_module) is SumAggregation
            and self.flow == "source_to_target"
            and self.decomposed_layers == 1
            and not any(getattr(self, hooks) for hooks in _HOOKS)
            and all(self._has_own(step) for step in _STEPS)
            and type(self)._has_own_propagate()
        )

    def _has_own(self, step: str) -> bool:
        """Whether a step of message passing is the layer's, replaced in no subclass or instance."""
        owner = next(cls for cls in type(self).__mro__ if step in cls.__dict__)
        return owner in _TRUSTED and step not in self.__dict__

    @classmethod
    def _has_own_propagate(cls) -> bool:
        """Whether no subclass has a `propagate` but the one that is generated for it."""
        first = next(c for c in cls.__mro__ if "propagate" in c.__dict__)
        made, before = (first.__dict__.get(f"_{kind}_propagate") for kind in ("jinja", "orig"))
        return first is MessagePassing or made is not before

    def _drop_values(self, value: Tensor) -> Tensor:
        """What the nodes hand on, after value_dropout."""
        if not self.training or self.value_dropout == 0:
            return value
        return F.dropout(value, self.value_dropout)

    def _finish(
        self, out: Tensor, residual: Tensor | None, dtype: torch.dtype, own: bool
    ) -> Tensor:
        """Heads merged, plus residual and bias; `own`: nobody else holds or saves `out`."""
        # Autocast's dtype in every case: its sums are float32, and so is the bias
        out = self._merge_heads(out).to(dtype)
        add = add_to if own and not torch.is_grad_enabled() else torch.add
        if residual is not None:
            out = add(out, residual)
        return out if self.bias is None else add(out, self.bias.to(dtype))

    def _merge_heads(self, out: Tensor) -> Tensor:
        """`[N, H, C]` with the heads concatenated, or averaged."""
        return out.flatten(1) if self.concat else out.mean(dim=1)

    def _support(
        self, edge_index: Any, x: Tensor, num_targets: int, self_loops: bool
    ) -> Edges | PendingEdges:
        """The pairs of an edge_index of any kind, from the nodes of x to the targets."""
        if isinstance(edge_index, Tensor | Edges) and edge_index.device != x.device:
            raise ValueError(
                f"edge_index is on {edge_index.device}, but x is on {x.device}: move one of them "
                "with .to()"
            )
        sizes = x.shape[0], num_targets
        if self.flow == "target_to_source":  # then row 0 names the targets
            sizes = num_targets, x.shape[0]
        if isinstance(edge_index, Edges):
            _check_sizes(edge_index, *sizes)
            if not self_loops or edge_index.given is not edge_index:
                return edge_index
            if torch.compiler.is_compiling():  # the op finds these Edges by the pairs they own
                return PendingEdges(edge_index.pairs, *sizes, self_loops=True)
            return edge_index.with_self_loops()
        if isinstance(edge_index, EdgeIndex) and _leaves_out_nodes(edge_index, sizes):
            edge_index = edge_index.as_tensor()
        pending = PendingEdges(edge_index, *sizes, self_loops)
        if isinstance(edge_index, Tensor) and not is_torch_sparse_tensor(edge_index):
            if edge_index.device.type != "meta" and not torch.compiler.is_compiling():
                edges = pending.resolve()  # a wrong edge_index should be the first complaint
                if as_plain(edge_index).is_inference():  # which no cache keeps
                    return edges
            return pending
        return pending.resolve()

    def _edge_features(
        self, edge_attr: Tensor | None, edge_index: Any, edge_dim: int | None, x: Tensor
    ) -> Tensor | None:
        """The features of the caller's edges, `[E, edge_dim]`, or None if there are none to use.

        An edge_dim of -1 stands for any; integers come out in the dtype of x.
        """
        if edge_attr is None:
            edge_attr = _stored_features(edge_index)
            if edge_attr is None and edge_dim is not None and not torch.compiler.is_compiling():
                warn_caller(
                    f"edge_attr is None, but {type(self).__name__} was built with "
                    f"edge_dim={edge_dim}, and attends as if all features of edges were zero: give "
                    "it edge_attr, or build it with edge_dim=None"
                )
            if edge_attr is None or edge_dim is None:
                return None
        given = list(edge_attr.shape)
        if edge_dim is None:
            if not torch.compiler.is_compiling():
                warn_caller(
                    f"edge_attr of shape {given} is not used, because {type(self).__name__} was "
                    "built with edge_dim=None: build it with "
                    f"edge_dim={1 if edge_attr.dim() == 1 else given[-1]}, or drop edge_attr"
                )
            return None
        if edge_attr.dim() == 1:
            edge_attr = edge_attr.unsqueeze(1)
        edges = _number_of_edges(edge_index)
        width = edge_attr.shape[-1] if edge_dim < 0 else edge_dim
        if edge_attr.shape != (edges, width):
            raise ValueError(
                f"edge_attr has shape {given}; with the {edges} edges of edge_index and "
                f"edge_dim={edge_dim}, {type(self).__name__} expects [{edges}, {width}], one row "
                "of features for each edge"
            )
        if edge_attr.device != x.device:
            raise ValueError(
                f"edge_attr is on {edge_attr.device}, but x is on {x.device}: move one of them "
                "with .to()"
            )
        if not edge_attr.is_floating_point():
            return edge_attr.to(x.dtype)
        if edge_attr.dtype != x.dtype and not is_autocast(x):
            raise TypeError(
                f"edge_attr has dtype {edge_attr.dtype}, but the parameters of "
                f"{type(self).__name__} have {x.dtype}: convert one of them with .to()"
            )
        return edge_attr

    def _with_loop_features(
        self,
        edge_attr: Tensor,
        support: Edges | PendingEdges,
        fill_value: float | Tensor | str,
    ) -> Tensor:
        """The features of each pair of the support, those of added self-loops filled in.

        Over PendingEdges, a row for each of the caller's edges, then one for each self-loop.
        """
        if isinstance(support, PendingEdges):
            added, (source, target) = support.self_loops, support.edge_index
        else:
            given = support.given
            added, source, target = given is not support, given.key_index, given.query_index
        if not added:
            return edge_attr
        num_loops = min(support.num_keys, support.num_queries)
        if isinstance(fill_value, str):
            # Self-loops, which are about to be replaced, go to a node that does not exist
            target = torch.where(source == target, support.num_queries, target).long()
            loop_attr = scatter(edge_attr, target, 0, support.num_queries + 1, fill_value)
            loop_attr = loop_attr[:num_loops]
        else:
            fill = torch.as_tensor(fill_value, dtype=edge_attr.dtype, device=edge_attr.device)
            loop_attr = fill.expand(num_loops, edge_attr.shape[-1])
        edge_attr = torch.cat([edge_attr, loop_attr])
        if isinstance(support, PendingEdges):
            return edge_attr
        return edge_attr.index_select(0, support.source_id)


def add_to(out: Tensor, more: Tensor) -> Tensor:
    """out + more, in the memory of `out`, which must be nobody else's.

    Memory as large as a layer's output takes longer to be handed out than to be filled.
    """
    if torch.compiler.is_compiling() or is_transformed() or out.dtype != more.dtype:
        return out + more
    return out.add_(more)


def is_plain(linear: Any) -> bool:
    """Whether a linear map is no more than its weight and bias: nobody watches or replaced it."""
    return type(linear) is Linear and not (linear._forward_hooks or linear._forward_pre_hooks)


def pairs_of(support: Edges | PendingEdges) -> tuple[Tensor, Tensor]:
    """The pairs `[2, E']` in torch_geometric's order, and where each comes from, `[E']`.

    The second is the number of the caller's edge, or E + node for a self-loop that was added.
    """
    if isinstance(support, PendingEdges) and torch.compiler.is_compiling():
        # Traced code cannot look into the cache: list the pairs anew
        pairs = support.edge_index.long()
        source_id = torch.arange(pairs.shape[1], device=pairs.device)
        if support.self_loops:
            kept = torch.nonzero(pairs[0] != pairs[1]).squeeze(1)
            loops = min(support.num_keys, support.num_queries)
            loop = torch.arange(loops, device=pairs.device)
            source_id = torch.cat([kept, loop + pairs.shape[1]])
            pairs = torch.cat([pairs.index_select(1, kept), loop.expand(2, -1)], dim=1)
        return pairs, source_id
    edges = support.resolve() if isinstance(support, PendingEdges) else support
    return edges.edge_index, edges.source_id


def weights_like_input(
    edge_index: Any, support: Edges | PendingEdges, pairs: Tensor, weights: Tensor
) -> Any:
    """The weights of pairs in the form that torch_geometric returns for this kind of edge_index."""
    sources, targets = support.num_keys, support.num_queries
    if isinstance(edge_index, Tensor) and is_torch_sparse_tensor(edge_index):
        size = targets, sources, weights.shape[-1]
        matrix = torch.sparse_coo_tensor(pairs.flip(0), weights, size, check_invariants=False)
        matrix = matrix.coalesce()
        values = matrix.values()
        if edge_index.layout != torch.sparse_coo:
            row, column = matrix.indices()
            pointer = torch._convert_indices_from_coo_to_csr(row, targets)
            matrix = torch.sparse_csr_tensor(pointer, column, values, size, check_invariants=False)
        return matrix, values
    if isinstance(edge_index, EdgeIndex):
        pairs = EdgeIndex(pairs, sparse_size=(sources, targets))
    if isinstance(edge_index, Tensor | Edges):
        return EdgeAttention(pairs, weights)
    source, target = pairs  # torch_sparse.SparseTensor
    return type(edge_index)(row=target, col=source, value=weights, sparse_sizes=(targets, sources))


def check_arguments(
    in_channels: int | tuple[int, int], out_channels: int, heads: int, dropout: float
) -> None:
    """Raise unless a layer can be built with these."""
    pair = isinstance(in_channels, tuple | list) and len(in_channels) == 2
    if not (isinstance(in_channels, int) or pair):
        raise ValueError(
            f"in_channels is {in_channels}; expected the features per node, or a pair of them "
            "(sources, targets)"
        )
    for name, number in (("out_channels", out_channels), ("heads", heads)):
        if not hasattr(number, "__index__"):
            raise TypeError(f"{name} is {number!r}; expected a whole number, at least 1")
        if number < 1:
            raise ValueError(f"{name} is {number}; an attention layer needs at least one")
    check_probability("dropout", dropout)


def both_sides(
    layer: str, x: Tensor | tuple[Tensor, Tensor], linears: tuple[Any, Any]
) -> tuple[Tensor, Tensor]:
    """The features of sources and of targets, checked against the linear map of each."""
    given = isinstance(x, Tensor)
    if not given and not (isinstance(x, tuple | list) and len(x) == 2):
        raise TypeError(
            f"x is a {type(x).__name__}; expected a tensor of features [nodes, channels], or a "
            "pair of them (sources, targets)"
        )
    sides = (x, x) if isinstance(x, Tensor) else x
    for i, (side, linear) in enumerate(zip(sides, linears, strict=True)):
        name = "x" if given else f"x[{i}]"
        if side is None:
            raise ValueError(
                f"{name} is None; {layer} looks at both ends of an edge, so give the "
                f"{'targets' if i else 'sources'} features (GATConv can do without the targets')"
            )
        check_features(layer, name, side, linear)
    return sides[0], sides[1]


def check_features(layer: str, name: str, x: Tensor, linear: Any = None) -> None:
    """Raise unless x holds node features `[N, channels]`, such as a linear map of the layer takes.

    Without a map, any number of channels will do.
    """
    if not x.is_floating_point():
        raise TypeError(f"{name} has dtype {x.dtype}; convert it with .float()")
    if x.dim() != 2:
        raise ValueError(
            f"{name} has shape {list(x.shape)}; {layer} expects [nodes, channels], one row of "
            "features for each node (graphs of a batch are joined into one)"
        )
    if linear is None:
        if x.layout != torch.strided:
            raise TypeError(
                f"{name} has layout {x.layout}, but {layer} has no linear map that would make it "
                f"dense: give it {name}.to_dense(), or what a gat.sparse.Linear makes of it"
            )
        return
    channels, dtype = width_of(linear), linear.weight.dtype
    if channels > 0 and x.shape[1] != channels:
        raise ValueError(
            f"{name} has shape {list(x.shape)}, but {layer} was built with in_channels={channels}: "
            f"give each node {channels} features, or build it for {x.shape[1]}"
        )
    if x.dtype != dtype and not is_autocast(x):
        raise TypeError(
            f"{name} has dtype {x.dtype}, but the parameters of {layer} have {dtype}: convert one "
            "of them with .to()"
        )


def is_autocast(x: Tensor) -> bool:
    """Whether autocast chooses the dtypes of what is computed from x; it leaves float64 alone."""
    device = x.device.type
    return (
        x.dtype != torch.float64
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    )


def check_fill_value(fill_value: float | Tensor | str | None) -> float | Tensor | str:
    """A known way to fill in the features of self-loops; None stands for ones."""
    known = ("add", "max", "mean", "min", "mul", "sum")
    if fill_value is None:
        return 1.0
    if not isinstance(fill_value, float | int | Tensor) and fill_value not in known:
        raise ValueError(
            f"fill_value is {fill_value!r}; expected a number, a tensor, or one of "
            f"{', '.join(map(repr, known))}"
        )
    return fill_value


def width_of(linear: Any) -> int:
    """How many features a linear map takes; -1 where that is not known (yet)."""
    return getattr(linear, "in_channels", -1)


def warn_caller(message: str) -> None:
    """Warn, and point at the line outside torch and this package that called the layer."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INNER_PACKAGES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


_INNER_PACKAGES = {__name__.partition(".")[0], "torch", "torch_geometric"}
_TRUSTED: set[type] = {*MessagePassing.__mro__}


def trusted(layer: type[AttentionConv]) -> type[AttentionConv]:
    """Class decorator: what this layer defines is what its fused path computes."""
    _TRUSTED.add(layer)
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


def _number_of_edges(edge_index: Any) -> int:
    if isinstance(edge_index, Edges):
        return edge_index.given.num_edges
    if isinstance(edge_index, Tensor):
        return edge_index._nnz() if is_torch_sparse_tensor(edge_index) else edge_index.shape[1]
    return int(edge_index.nnz())


def _stored_features(edge_index: Any) -> Tensor | None:
    """The features `[E, edge_dim]` in a sparse matrix; as in torch_geometric, a vector is none."""
    if isinstance(edge_index, Edges):
        return None
    if not isinstance(edge_index, Tensor):  # torch_sparse.SparseTensor
        values = edge_index.coo()[2]
    elif is_torch_sparse_tensor(edge_index):
        loose = edge_index.layout == torch.sparse_coo and not edge_index.is_coalesced()
        values = edge_index._values() if loose else edge_index.values()
    else:
        return None
    return None if values is None or values.dim() < 2 else values
