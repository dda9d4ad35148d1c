"""What is plotted: edges and weights as checked arrays, and the part of a graph that is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

WHOLE_GRAPH_LIMIT = 300  # nodes; beyond that a drawing of the whole graph is a ball of wool


def as_array(values: Any) -> NDArray[Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return values.numpy() if values.dtype != torch.bfloat16 else values.float().numpy()
    return np.asarray(values)


def as_labels(labels: Tensor | ArrayLike) -> NDArray[np.int64]:
    array = as_array(labels)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
        raise ValueError(
            f"labels must be integers of shape [N]; got {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.int64)


def as_edges(
    edge_index: Tensor | ArrayLike, weights: Tensor | ArrayLike, num_nodes: int | None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The ends `[2, E]` and the weights `[E, H]` as checked arrays."""
    ends, weight = as_array(edge_index), as_array(weights).astype(np.float64)
    if ends.ndim != 2 or ends.shape[0] != 2:
        raise ValueError(f"edge_index must have shape [2, E]; got {ends.shape}")
    if ends.size and not np.issubdtype(ends.dtype, np.integer):
        raise ValueError(f"edge_index must hold integers; got {ends.dtype}")
    if weight.ndim not in (1, 2) or len(weight) != ends.shape[1] or weight.shape[1:] == (0,):
        raise ValueError(
            f"weights must have shape [E, H] or [E] with E = {ends.shape[1]}, the edges of"
            f" edge_index; got {weight.shape}: pass the edge_index that was returned with them"
        )
    if not (np.isfinite(weight).all() and (weight >= 0).all()):
        raise ValueError("weights must be finite and not negative")
    if ends.min(initial=0) < 0:
        raise ValueError(f"edge_index must not be negative; got {ends.min()}")
    if num_nodes is not None and ends.max(initial=-1) >= num_nodes:
        raise ValueError(f"edge_index must lie in 0..{num_nodes - 1}; got {ends.max()}")
    return ends.astype(np.int64), weight if weight.ndim == 2 else weight[:, None]


def merge_parallel(
    ends: NDArray[np.int64], weight: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Adds up the weights of edges with the same ends."""
    pair, inverse = np.unique(ends, axis=1, return_inverse=True)
    return pair, np.bincount(inverse.ravel(), weight, minlength=pair.shape[1])


def neighbourhood(
    pair: NDArray[np.int64], weight: NDArray[Any], node: int, hops: int, limit: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_], int]:
    """The nodes to draw, a mask over the edges to draw, and how many neighbours there are."""
    by_weight = np.argsort(-weight, kind="stable")
    source, target = pair[:, by_weight]
    near = frontier = np.array([node])  # nearest first, then the most attended to
    inner = near
    for _ in range(hops):
        inner = near
        heard = source[np.isin(target, frontier) & ~np.isin(source, near)]
        frontier = heard[np.sort(np.unique(heard, return_index=True)[1])]
        near = np.concatenate([near, frontier])
    drawn = near[: limit + 1]
    kept = np.isin(pair[0], drawn) & np.isin(pair[1], drawn) & np.isin(pair[1], inner)
    return drawn, kept, len(near) - 1
