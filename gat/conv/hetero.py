"""Graphs with several types of nodes and edges, as one list of pairs."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attn_core import Edges, PendingEdges
from attn_core.graph.read import as_plain
from attn_core.supports.edges import edges_of
from gat.edge_attention import EdgeAttention

EdgeType = tuple[str, str, str]

# What was joined: by the first of the Edges, those of the others, the layout, and the Edges made
_JOINED: weakref.WeakKeyDictionary[Edges, list[tuple[Any, Any, Edges]]] = (
    weakref.WeakKeyDictionary()
)
_KEPT = 2  # of those with the same first Edges


def check_types(layer: str, x_dict: Any, edge_index_dict: Any, edge_types: Any) -> None:
    """Raise unless both are dictionaries, and all types of edges are known and have their nodes."""
    for name, given in (("x_dict", x_dict), ("edge_index_dict", edge_index_dict)):
        if not isinstance(given, Mapping):
            raise TypeError(f"{name} is a {type(given).__name__}; expected a dictionary by type")
    for edge_type in edge_index_dict:
        if edge_type not in edge_types:
            raise ValueError(
                f"edge_index_dict has the type {edge_type}, of which {layer} was not told: name it "
                "in metadata"
            )
        for end in (edge_type[0], edge_type[-1]):
            if end not in x_dict:
                raise ValueError(
                    f"edge_index_dict has the type {edge_type}, but x_dict has no {end!r}"
                )


def one_support(
    edge_indices: list[Any],
    sizes: list[tuple[int, int]],
    offsets: list[tuple[int, int]],
    num: tuple[int, int],
) -> tuple[Edges | PendingEdges, list[Tensor]]:
    """The pairs of all types of edges in one list, sorted once, and those of each type.

    Args:
        edge_indices: of each type, in any form.
        sizes: the sources and targets of each type.
        offsets: where these begin among all keys and queries.
        num: how many keys and queries there are.
    """
    if torch.compiler.is_compiling():
        parts = [as_plain(pairs) for pairs in edge_indices]
        return PendingEdges(_shifted(parts, offsets), *num), parts
    edges = [
        given if isinstance(given, Edges) else edges_of(given, *size)
        for given, size in zip(edge_indices, sizes, strict=True)
    ]
    for found, size in zip(edges, sizes, strict=True):
        if (found.num_keys, found.num_queries) != size:
            raise ValueError(f"edge_index is {found}, but x_dict has {size} sources and targets")
    parts = [found.pairs for found in edges]
    if not edges:
        return Edges(torch.empty(2, 0, dtype=torch.int64), *num), parts
    known, layout = _JOINED.setdefault(edges[0], []), (offsets, num)
    for others, of_layout, joined in known:
        same = [other() for other in others] == edges  # which are equal to themselves alone
        if same and of_layout == layout:
            return joined, parts
    joined = Edges(_shifted(parts, offsets), *num)
    known.append(([weakref.ref(e) for e in edges], layout, joined))
    del known[:-_KEPT]
    return joined, parts


def _shifted(parts: list[Tensor], offsets: list[tuple[int, int]]) -> Tensor:
    """All pairs, those of each part moved by its offset."""
    moved = [
        torch.stack([pairs[0] + source, pairs[1] + target])
        for pairs, (source, target) in zip(parts, offsets, strict=True)
    ]
    return torch.cat(moved, dim=1)


def by_type(
    weights: Tensor, edge_types: list[EdgeType], parts: list[Tensor]
) -> dict[EdgeType, EdgeAttention]:
    """The weights `[E, H]` of all pairs, by the type of edge, with the edges of each."""
    of_parts = weights.split([pairs.shape[1] for pairs in parts])
    return {
        edge_type: EdgeAttention(pairs.clone(), found)
        for edge_type, pairs, found in zip(edge_types, parts, of_parts, strict=True)
    }
