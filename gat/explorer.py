"""Attention over the edges of a graph as a page for the browser."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from attn_core.explorer import Layer, weights_page, write_page
from attn_core.plotting import COLOURS
from gat.plotted import (
    WHOLE_GRAPH_LIMIT,
    as_array,
    as_edges,
    as_labels,
    merge_parallel,
    neighbourhood,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def explorer(
    attention: Any,
    *,
    path: str | os.PathLike[str],
    labels: Tensor | ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    node_names: Sequence[object] | None = None,
    positions: ArrayLike | None = None,
    node: int | None = None,
    hops: int = 1,
    max_neighbours: int = 60,
    title: str | None = None,
    language: str | None = None,
) -> Path:
    r"""Writes what a graph attention network attends to as one HTML file to explore in a browser.

    No server, no network: the same :math:`\alpha_{ij}`, the attention that node i pays to node j,
    stand in it as a graph, as a matrix and as arcs, for each layer and head; pointing at a weight,
    or walking to it with the arrow keys, marks it in all of them. The page is in English and
    Chinese, and has a table for whoever sees no picture. Parallel edges are drawn as one, with the
    sum of their weights.

    Args:
        attention: `(edge_index, weights)`, as `return_attention_weights=True` gives them: `[2, E]`,
            row 0 the sources, row 1 the targets, and `[E, H]` or `[E]`; or what
            `gat.attention_weights` returns, the `LayerAttention` of each layer, of which the page
            shows one at a time.
        path: the file to write, of at most 500 kB; what was there is replaced in one step.
        labels: `[N]`, the class of each node; negative where it is unknown. Default: all unknown.
        class_names: the name of each class, in any script. Default: none are written.
        node_names: `[N]`, the name of each node, likewise. Default: their numbers.
        positions: `[N, 2]`, where the nodes lie, y upwards. Default: a force-directed layout.
        node: the node whose neighbourhood is shown. Default: the whole graph, which must then have
            at most 300 nodes.
        hops: how many layers deep the neighbourhood of `node` goes.
        max_neighbours: show at most this many nodes round `node`: the nearest, of these the most
            attended to.
        title: the heading. Default: "Attention explorer", in the reader's language.
        language: "en" or "zh", which the page begins with. Default: that of the browser.

    Returns:
        The path.

    Raises:
        ValueError: if shapes or indices contradict each other, layers are over other nodes, the
            graph is too large to show whole, or the file would be larger than 500 kB.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> edge_index = torch.tensor([[0, 1, 2, 0, 1, 2], [1, 1, 1, 0, 2, 2]])
        >>> weights = torch.tensor([0.7, 0.2, 0.1, 1.0, 0.4, 0.6])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = explorer(
        ...         (edge_index, weights), path=f"{folder}/a.html", node_names=["Ada", "Bo", "Cy"]
        ...     )
        ...     "Ada" in page.read_text(encoding="utf-8")
        True
    """
    label = None if labels is None else as_labels(labels)
    place = None if positions is None else as_array(positions).astype(float)
    names = None if node_names is None else [str(name) for name in node_names]
    known = {
        name: len(given)
        for name, given in (("labels", label), ("positions", place), ("node_names", names))
        if given is not None
    }
    layers = _layers(attention, next(iter(known.values()), None))
    count = next(iter(known.values()), None) or 1 + max(
        int(layer.edges.max(initial=-1)) for layer in layers if layer.edges is not None
    )
    for name, length in known.items():
        if length != count:
            raise ValueError(f"{name} must have one entry per node, {count}; got {length}")
    if place is not None and (place.shape != (count, 2) or not np.isfinite(place).all()):
        raise ValueError(f"positions must be finite and of shape ({count}, 2); got {place.shape}")
    names = names or [str(n) for n in range(count)]
    shown = np.arange(count)
    if node is not None:
        shown, layers = _near(layers, operator.index(node), count, hops, max_neighbours)
    elif count > WHOLE_GRAPH_LIMIT:
        raise ValueError(
            f"a graph of {count} nodes is too large to show whole (limit {WHOLE_GRAPH_LIMIT}):"
            " pass node= to show the neighbourhood of one node"
        )
    if not count:
        raise ValueError("attention has no nodes: there is nothing to show")
    text = weights_page(
        layers,
        [names[n] if names[n].strip() else "␣" for n in shown],
        title=title,
        language=language,
        graph=True,
        colours=COLOURS,
        classes=None if label is None else label[shown].tolist(),
        classNames=None if class_names is None else [str(name) for name in class_names],
        positions=None if place is None else (place[shown] * [1, -1]).tolist(),
    )
    return write_page(path, text)


def _layers(attention: Any, num_nodes: int | None) -> list[Layer]:
    """The checked arrays of each layer, which all are over the same nodes."""
    one_pair = isinstance(attention, tuple) and not all(
        isinstance(each, tuple) or hasattr(each, "edge_index") for each in attention
    )
    given = [attention] if one_pair or hasattr(attention, "edge_index") else list(attention)
    if not given:
        raise ValueError("attention is empty: pass (edge_index, weights), or a list of layers")
    layers = []
    for number, each in enumerate(given):
        ends, weights = (each.edge_index, each.weights) if hasattr(each, "edge_index") else each
        name = getattr(each, "name", "") or f"layer {number}"
        size = getattr(each, "size", None)
        if size is not None and len({*size, num_nodes or size[0]}) > 1:
            raise ValueError(
                f"attention of {name!r} is from {size[0]} nodes to {size[1]}; expected one set of"
                f" {num_nodes or size[0]} nodes: pass the layers that are over it"
            )
        num_nodes = num_nodes if size is None else size[0]
        edges, weight = as_edges(ends, weights, num_nodes)
        layers.append(Layer(name, weight, edges))
    return layers


def _near(
    layers: list[Layer], node: int, count: int, hops: int, limit: int
) -> tuple[NDArray[np.int64], list[Layer]]:
    """The nodes round one, and the edges of each layer over which they are reached."""
    if not 0 <= node < count:
        raise ValueError(f"node must lie in 0..{count - 1}; got {node}")
    if hops < 1 or limit < 1:
        raise ValueError(f"hops and max_neighbours must be at least 1; got {hops} and {limit}")
    edges = [layer.edges for layer in layers if layer.edges is not None]
    pair, weight = merge_parallel(
        np.concatenate(edges, axis=1), np.concatenate([x.weights.mean(axis=1) for x in layers])
    )
    shown, kept, _ = neighbourhood(pair, weight, node, hops, limit)
    among = pair[0, kept] * count + pair[1, kept]
    number = np.full(count, -1)
    number[shown] = np.arange(len(shown))
    rest = []
    for layer, ends in zip(layers, edges, strict=True):
        inside = np.isin(ends[0] * count + ends[1], among)
        rest.append(Layer(layer.name, layer.weights[inside], number[ends[:, inside]]))
    return shown, rest
