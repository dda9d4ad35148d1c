"""What the layers share that inherit torch_geometric's parameters, and its messages where watched.

Such a layer is torch_geometric's own class with another `forward`: it attends over the edges as
long as nobody watches message passing, and hands over to the `forward` it inherits where somebody
does. (torch_geometric looks for the comment `propagate_type` in the source of a class, which it
knows by its name alone: so it stands in ours as in theirs.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch_geometric.nn.dense.linear
from torch import Tensor, nn

from attn_core import Additive, Attended, Edges, PendingEdges, Softmax, attend
from attn_core.normalizers import Normalizer
from attn_core.supports.pairs import Pairs
from gat.conv.base import AttentionConv, is_autocast
from gat.sparse import Linear


def with_sparse_linears(layer: nn.Module) -> None:
    """Let the linear maps of a layer take sparse features too."""
    for module in layer.modules():
        if type(module) is torch_geometric.nn.dense.linear.Linear:
            module.__class__ = Linear


def listed(support: Edges | PendingEdges) -> Pairs:
    """The pairs themselves, of which tensors per pair have one row for each.

    In code that is traced, the self-loops that are replaced are among them, and masked.
    """
    if isinstance(support, Edges):
        return support
    return support.traced(exact=False) if torch.compiler.is_compiling() else support.resolve()


def attend_by(
    scores: Tensor,
    value: Tensor,
    support: Pairs | PendingEdges,
    normalizer: Normalizer | None = None,
    *,
    pair_value: Tensor | None = None,
    dropout: float = 0.0,
    need_weights: bool | Tensor = False,
) -> Attended:
    """Attend by scores `[E, H]` that are there already; see `attn_core.attend`."""
    zeros = scores.new_zeros(value.shape[0], scores.shape[1], 1)
    return attend(
        None,
        zeros,
        value,
        score=Additive(activation="identity"),
        normalizer=Softmax() if normalizer is None else normalizer,
        support=support,
        bias=scores,
        pair_value=pair_value,
        dropout=dropout,
        need_weights=need_weights,
    )


def plain_index(edge_index: Any, self_loops: bool = False) -> Any:
    """An edge_index as torch_geometric's `forward` takes it, which knows nothing of `Edges`.

    `self_loops`: that adds some itself, so those that were added before are left out.
    """
    if not isinstance(edge_index, Edges):
        return edge_index
    return (edge_index.given if self_loops else edge_index).edge_index


def check_unwatched(layer: AttentionConv, edge_index: Any, first: int | None) -> None:
    """Raise where torch_geometric's steps would be taken, which know no targets among sources."""
    if first is not None and not layer._is_fused():
        raise ValueError(
            f"edge_index is {edge_index}, a block or a part of a graph, whose messages "
            f"{type(layer).__name__} cannot show to hooks, an explainer or a subclass: take these "
            "away, or give it the whole graph"
        )


def merge_heads(out: Tensor, concat: bool, bias: Tensor | None) -> Tensor:
    """`[N, H, C]` with the heads concatenated or averaged, plus the bias."""
    out = out.flatten(1) if concat else out.mean(dim=1)
    return out if bias is None else out + bias.to(out.dtype)


def dtype_of(x: Tensor) -> torch.dtype:
    """The dtype of what is made of x: its own, or that which autocast chooses."""
    return torch.get_autocast_dtype(x.device.type) if is_autocast(x) else x.dtype


def check_choice(name: str, given: Any, known: tuple[Any, ...]) -> None:
    """Raise ValueError, which names the argument and what it may be."""
    if given not in known:
        raise ValueError(f"{name} is {given!r}; expected one of {', '.join(map(repr, known))}")
