"""What the layers with linear maps share: their arguments, heads, and features of edges."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.utils import is_torch_sparse_tensor, scatter

from attn_core import Edges, PendingEdges, compiled
from attn_core.compat import any_global_hook, is_untouched
from attn_core.ops import edge_layer
from attn_core.ops.edge_layer import Mapped
from attn_core.scores import Formula
from attn_core.supports.base import broadcasts_to
from attn_core.transforms import is_transformed, values_are_visible
from gat.checks import check_probability
from gat.conv.base import AttentionConv, check_features, is_autocast, is_ours, width_of
from gat.dropout import drop
from gat.sparse import Linear

# Maps beyond are not left to the one step that attends, as torch's products take less time:
_WIDEST_MAPPED, _MOST_MAPPED = 256, 2**18  # features of a node, and of all


class ProjectingConv(AttentionConv):
    """The base of the layers that map features before they attend; abstract.

    The arguments are those of each layer; kwargs go to torch_geometric's MessagePassing.
    """

    bias: Parameter | None
    lin_edge: Linear | None
    value_dropout: float = 0.0
    """The probability with which a number that a node hands on is dropped in training; to be set
    on a layer, since torch_geometric's have no such argument. Scores see all numbers."""

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int,
        concat: bool,
        dropout: float,
        edge_dim: int | None,
        **kwargs: Any,
    ) -> None:
        _check_arguments(in_channels, out_channels, heads, dropout)
        super().__init__(node_dim=0, **kwargs)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.concat = concat
        self.dropout = dropout
        self.edge_dim = edge_dim

    def _hands_all_on(self) -> bool:
        """Whether nothing of what a node hands on is dropped."""
        return not self.training or self.value_dropout == 0

    def _drop_values(self, value: Tensor, edge_index: Any = None) -> Tensor:
        """What the nodes hand on, after value_dropout."""
        if self._hands_all_on():
            return value
        known = isinstance(edge_index, Edges) and value.dim() == 3
        nodes = edge_index.source_nodes if known else None
        return drop(value, self.value_dropout, nodes)

    def _in_one_step(
        self,
        query: Tensor | Mapped | None,
        key: Tensor | Mapped | None,
        value: Tensor | Mapped,
        formula: Formula,
        support: Edges | PendingEdges,
        add: Tensor | Mapped | None,
        **given: Any,
    ) -> Tensor | None:
        """The attention with its heads merged, plus `add`; None where it must be step by step."""
        if len(value.shape) > 3:  # a batch
            return None
        dropout = self.dropout if self.training else 0.0
        return edge_layer.attend(
            query, key, value, formula, support, add=add, dropout=dropout, concat=self.concat,
            **given,
        )  # fmt: skip

    def _merge_heads(self, out: Tensor) -> Tensor:
        """`[..., N, H, C]` with the heads concatenated, or averaged."""
        if out.shape[-2:] != (self.heads, self.out_channels):
            raise ValueError(
                f"aggr is {self.aggr}, which leaves {list(out.shape[1:])} heads and channels, but "
                f"{type(self).__name__} has {[self.heads, self.out_channels]}: choose one "
                "aggregation, or join several by aggr_kwargs={'mode': 'sum'}"
            )
        return out.flatten(-2) if self.concat else out.mean(dim=-2)

    def _by_head(self, linear: Any, x: Tensor) -> Tensor:
        """What a map makes of `[..., N, F]` (or of N numbers, an embedding), `[..., N, H, C]`."""
        rows = x.shape[:-1] if x.dim() > 1 else x.shape
        mapped: Tensor = linear(x)
        return mapped.view(*rows, self.heads, self.out_channels)

    def _may_wait(self, linears: Sequence[Any], *x: Any) -> bool:
        """Whether these maps of x are better left to the one step that attends."""
        return (
            not torch.compiler.is_compiling()  # first: no guard on what follows
            and compiled.is_on()
            and self.out_channels % 4 == 0
            and self._hands_all_on()
            and not any_global_hook()
            and all(is_plain(linear) and _is_made(linear) for linear in linears)
            and all(
                one.layout is torch.strided
                and one.dim() == 2
                and 0 < one.shape[1] <= _WIDEST_MAPPED
                and (one.numel() <= _MOST_MAPPED or compiled.module.instruction_set() != "baseline")
                for one in x
            )
        )

    def _is_apart(self, need_weights: bool | Tensor, x: Any) -> bool:
        """Whether the output is computed without the weights that are asked for beside it.

        In a small graph one step attends and maps, which rounds otherwise than one after the other:
        to look at the weights should change no bit of what comes out.
        """
        given = [one for one in (x if isinstance(x, (tuple, list)) else (x,)) if one is not None]
        maps = [part for part in self.children() if part is not self.aggr_module]
        return (
            need_weights is not False
            and values_are_visible()
            and self._is_fused()
            and all(isinstance(one, Tensor) for one in given)
            and self._may_wait(maps, *given)
        )

    def _mapped(self, linear: Any, x: Tensor) -> Mapped:
        """What `_by_head` makes, yet to be computed."""
        own = linear._parameters  # which is found sooner than linear.weight
        return Mapped(x, own["weight"], own["bias"], self.heads)

    def _finish(
        self, out: Tensor, residual: Tensor | None, dtype: torch.dtype, own: bool = False
    ) -> Tensor:
        """Heads merged, plus residual and bias; `own`: nobody else holds `out`."""
        # Autocast's dtype in every case: what is summed in float32 comes in it, and so is the bias
        out = self._merge_heads(out).to(dtype)
        add = add_to if own and not torch.is_grad_enabled() else torch.add
        if residual is not None:
            out = add(out, residual)
        return out if self.bias is None else add(out, self.bias.to(dtype))

    def _project_edges(self, edge_attr: Tensor) -> Tensor:
        """What the linear map makes of the features of each edge, `[..., E, H, C]`."""
        assert self.lin_edge is not None
        if edge_attr.dim() == 1:
            edge_attr = edge_attr.unsqueeze(1)
        return self._by_head(self.lin_edge, edge_attr)

    def _edge_features(
        self, edge_attr: Tensor | None, edge_index: Any, x: Tensor | Mapped
    ) -> Tensor | None:
        """The features of the caller's edges, `[E, edge_dim]`, or None if there are none to use.

        Those of the states of a batch may differ, `[..., E, edge_dim]`. x are projected nodes,
        `[..., N, H, C]`. A lazy layer takes any number of features; integers come out in the dtype
        of x.
        """
        edge_dim = None if self.lin_edge is None else width_of(self.lin_edge)
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
        batch, own = x.shape[:-3], edge_attr.shape[:-2]
        if edge_attr.shape[-2:] != (edges, width) or not broadcasts_to(own, batch):
            raise ValueError(
                f"edge_attr has shape {given}; with the {edges} edges of edge_index and "
                f"edge_dim={edge_dim}, {type(self).__name__} expects [{edges}, {width}], one row "
                "of features for each edge"
                + (f", or {[*batch, edges, width]}, of each in the batch" if batch else "")
            )
        if edge_attr.device != x.device:
            raise ValueError(
                f"edge_attr is on {edge_attr.device}, but x is on {x.device}: move one of them "
                "with .to()"
            )
        if not is_ours(self.lin_edge):
            return edge_attr
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
            added, source, target = support.adds_loops, given.key_index, given.query_index
        if not added:
            return edge_attr
        num_loops = min(support.num_keys, support.num_queries)
        if isinstance(fill_value, str):
            # Self-loops, which are about to be replaced, go to a node that does not exist
            target = torch.where(source == target, support.num_queries, target).long()
            loop_attr = scatter(edge_attr, target, -2, support.num_queries + 1, fill_value)
            loop_attr = loop_attr.narrow(-2, 0, num_loops)
        else:
            fill = torch.as_tensor(fill_value, dtype=edge_attr.dtype, device=edge_attr.device)
            loop_attr = fill.expand(*edge_attr.shape[:-2], num_loops, edge_attr.shape[-1])
        edge_attr = torch.cat([edge_attr, loop_attr], dim=-2)
        if isinstance(support, PendingEdges):
            return edge_attr
        return edge_attr.index_select(-2, support.source_id)


def add_to(out: Tensor, more: Tensor) -> Tensor:
    """out + more, in the memory of `out`, which must be nobody else's.

    Memory as large as a layer's output takes longer to be handed out than to be filled. But the
    gradient of what was added to a view, as a map of states gives, is copied three times.
    """
    if torch.compiler.is_compiling() or is_transformed() or out.dtype != more.dtype:
        return out + more
    if torch.is_grad_enabled() and out._is_view():
        return out + more
    return out.add_(more)


def is_plain(linear: Any) -> bool:
    """Whether a linear map is no more than its weight and bias: nobody watches or replaced it."""
    return is_untouched(linear, Linear)


def has_no_bias(linear: Any) -> bool:
    """Whether a plain map, if there is one, may be given another's bias: whether it has none."""
    return linear is None or linear._parameters["bias"] is None


def _is_made(linear: Any) -> bool:
    """Whether a map's parameters are in their place: those of a lazy one are not there yet."""
    own = linear._parameters
    return type(own.get("weight")) is Parameter and "bias" in own


def widths_of(in_channels: int | tuple[int, int]) -> tuple[int, int]:
    """The features of sources and of targets."""
    return (in_channels, in_channels) if isinstance(in_channels, int) else in_channels


def both_sides(
    layer: str,
    x: Tensor | tuple[Tensor, Tensor],
    linears: tuple[Any, Any],
    first: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The features of sources and of targets, checked against the linear map of each.

    Targets are those of x, or its `first` ones.
    """
    given = isinstance(x, Tensor)
    if not given and not (isinstance(x, (tuple, list)) and len(x) == 2):
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
        check_features(layer, name, side, linear, batched=True)
    return sides[0], sides[1] if first is None else sides[1].narrow(-2, 0, first)


def check_fill_value(fill_value: float | Tensor | str | None) -> float | Tensor | str:
    """A known way to fill in the features of self-loops; None stands for ones."""
    known = ("add", "max", "mean", "min", "mul", "sum")
    if fill_value is None:
        return 1.0
    if not isinstance(fill_value, (float, int, Tensor)) and fill_value not in known:
        raise ValueError(
            f"fill_value is {fill_value!r}; expected a number, a tensor, or one of "
            f"{', '.join(map(repr, known))}"
        )
    return fill_value


def warn_caller(message: str) -> None:
    """Warn, and point at the line outside torch and this package that called the layer."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INNER_PACKAGES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


_INNER_PACKAGES = {__name__.partition(".")[0], "torch", "torch_geometric"}


def _check_arguments(
    in_channels: int | tuple[int, int], out_channels: int, heads: int, dropout: float
) -> None:
    """Raise unless a layer can be built with these."""
    pair = isinstance(in_channels, (tuple, list)) and len(in_channels) == 2
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
