"""Pictures of what a graph attention network attends to and of the features that it learns.

matplotlib, networkx and scikit-learn are imported when a picture is asked for, so that `gat` works
without them; `pip install 'gat-attention[plot]'` brings them. `explorer`, whose page a browser
draws, needs none of them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from attn_core.plotting import COLOURS, Writer, plot_extra
from gat.explorer import explorer
from gat.plotted import (
    WHOLE_GRAPH_LIMIT,
    as_array,
    as_edges,
    as_labels,
    merge_parallel,
    neighbourhood,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.lines import Line2D
    from numpy.typing import ArrayLike, NDArray

__all__ = ["draw_attention", "draw_embedding", "explorer"]

# Every five classes the marker changes too.
_DARK = (2, 4, 5, 8)  # of these, the ones on which black ink is hard to read
_MARKERS = "os^Dv"
_RING = "ring: attention to itself"
_NUMBERED_LIMIT = 40  # nodes that can carry their number legibly


def draw_attention(
    edge_index: Tensor | ArrayLike,
    weights: Tensor | ArrayLike,
    *,
    labels: Tensor | ArrayLike | None = None,
    node: int | None = None,
    hops: int = 1,
    class_names: Sequence[str] | None = None,
    node_names: Sequence[object] | None = None,
    head: int | None = None,
    max_neighbours: int = 60,
    positions: ArrayLike | None = None,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    r"""Draws nodes coloured by class and, between them, the attention that they pay.

    The arrow j → i is as wide and as dark as :math:`\alpha_{ij}`, the attention that i pays to j,
    averaged over the heads; the ring round a node is the attention that it pays to itself. With
    `node` given, the picture shows what reaches that node through `hops` layers, no more. Parallel
    edges are drawn as one, with the sum of their weights.

    Args:
        edge_index: `[2, E]`, row 0 the sources, row 1 the targets: the edges returned with the
            weights, self-loops included.
        weights: `[E, H]` or `[E]`, attention weights as `return_attention_weights=True` gives them.
        labels: `[N]`, the class of each node; negative where it is unknown. Default: all unknown.
        node: the node whose neighbourhood is drawn. Default: the whole graph, which must then have
            at most 300 nodes.
        hops: how many layers deep the neighbourhood of `node` goes.
        class_names: the name of each class in the legend, in any script. Default: their numbers.
        node_names: `[N]`, the name of each node, likewise. Default: their numbers.
        head: the head to draw. Default: the mean over heads.
        max_neighbours: draw at most this many nodes round `node`: the nearest, of these the most
            attended to. The title says how many there are.
        positions: `[N, 2]`, where the nodes lie. Default: a circle round `node` for one hop, else a
            force-directed layout.
        seed: seed of the force-directed layout.
        ax: the axes to draw in. Default: those of a new figure.

    Returns:
        The axes drawn in.

    Raises:
        ModuleNotFoundError: if matplotlib or networkx is missing.
        ValueError: if shapes or indices contradict each other, or the graph is too large to draw
            whole.

    Warns:
        UserWarning: no installed font has the glyphs of some names, which are then written as
            escapes.

    Example:
        >>> import torch
        >>> edge_index = torch.tensor([[0, 1, 2, 0, 1, 2], [1, 1, 1, 0, 2, 2]])
        >>> weights = torch.tensor([0.7, 0.2, 0.1, 1.0, 0.4, 0.6])
        >>> ax = draw_attention(edge_index, weights, labels=[0, 1, 1], class_names=["cat", "dog"])
        >>> ax.get_title()
        'attention, mean over 1 head'
    """
    with plot_extra():
        import networkx as nx
        from matplotlib.lines import Line2D

    label = None if labels is None else as_labels(labels)
    position = None if positions is None else as_array(positions).astype(float)
    node = None if node is None else operator.index(node)
    known = [len(array) for array in (label, position) if array is not None]
    ends, per_head = as_edges(edge_index, weights, known[0] if known else None)
    num_nodes = known[0] if known else int(ends.max(initial=-1)) + 1
    label = np.full(num_nodes, -1) if label is None else label
    heads = per_head.shape[1]
    if node_names is not None and len(node_names) != num_nodes:
        raise ValueError(
            f"node_names must have one entry per node, {num_nodes}; got {len(node_names)}"
        )
    name_of = [str(n) for n in (range(num_nodes) if node_names is None else node_names)]
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"head must lie in 0..{heads - 1}, the heads of weights; got {head}")
    if position is not None and position.shape != (num_nodes, 2):
        raise ValueError(f"positions must have shape ({num_nodes}, 2); got {position.shape}")
    if position is not None and not np.isfinite(position).all():
        raise ValueError("positions must be finite; got NaN or infinity")
    pair, attention = merge_parallel(
        ends, per_head.mean(axis=1) if head is None else per_head[:, head]
    )

    which = f"mean over {_count(heads, 'head')}" if head is None else f"head {head}"
    title = f"attention, {which}"
    drawn = np.arange(num_nodes)
    if node is not None:
        if not 0 <= node < num_nodes:
            raise ValueError(f"node must lie in 0..{num_nodes - 1}; got {node}")
        if hops < 1 or max_neighbours < 1:
            raise ValueError(
                f"hops and max_neighbours must be at least 1; got {hops} and {max_neighbours}"
            )
        drawn, kept, found = neighbourhood(pair, attention, node, hops, max_neighbours)
        pair, attention = pair[:, kept], attention[kept]
        few = "" if len(drawn) - 1 == found else f"the strongest {len(drawn) - 1} of "
        within = "" if hops == 1 else f" within {hops} hops"
        title += f"\nnode {name_of[node]} and {few}{_count(found, 'neighbour')}{within}"
    elif num_nodes > WHOLE_GRAPH_LIMIT:
        raise ValueError(
            f"a graph of {num_nodes} nodes is too large to draw whole (limit"
            f" {WHOLE_GRAPH_LIMIT}): pass node= to draw the neighbourhood of one node"
        )

    loop = pair[0] == pair[1]
    graph = nx.DiGraph()
    graph.add_nodes_from(drawn.tolist())
    graph.add_weighted_edges_from(zip(*pair[:, ~loop].tolist(), attention[~loop], strict=True))
    ring = dict(zip(pair[0, loop].tolist(), attention[loop], strict=True))

    writer = Writer([*map(str, class_names or ()), *(name_of[n] for n in drawn.tolist())])
    name_of = [writer.token(name) for name in name_of]
    numbered = len(graph) <= _NUMBERED_LIMIT
    size = max(40.0, 9000 / max(len(graph), 1))  # in square points
    if numbered:  # the longest number must fit in
        longest = max((len(name_of[n]) for n in drawn.tolist()), default=0)
        size = (8.0 + 4 * min(6, max(2, longest))) ** 2
    if position is not None:
        place = {n: position[n] for n in graph}
    elif node is not None and hops == 1:
        place = _circle(graph, node, label)
    else:
        place = _forces(graph, seed, apart=size**0.5 / 150)

    ax = _new_axes(figsize=(7, 6.5)) if ax is None else ax
    pen = _Pen(attention.max(initial=0.0), graph.number_of_edges())
    sizes = np.where(drawn == node, 1.6 * size, size)
    _draw_arrows(ax, graph, place, pen, sizes)
    to_itself = np.array([ring.get(n, np.nan) for n in drawn.tolist()])
    handles = _draw_nodes(
        ax,
        np.array([place[n] for n in drawn.tolist()]).reshape(-1, 2),
        label[drawn],
        class_names,
        size=sizes,
        rings=np.where(np.isnan(to_itself), 0.6, pen.width(to_itself)),
        ring_colours=pen.colour(np.nan_to_num(to_itself, nan=0.5 * pen.largest)),
    )
    if ring:
        handles.append(
            Line2D([], [], ls="", marker="o", ms=9, mfc="white", mec="black", mew=2, label=_RING)
        )
    if numbered:
        for n in drawn.tolist():
            ink = "white" if label[n] >= 0 and label[n] % len(COLOURS) in _DARK else "black"
            x, y = place[n]
            ax.text(
                x, y, name_of[n], size=7, color=ink if len(name_of[n]) <= 6 else "black",
                ha="center", va="center", zorder=3, parse_math=False, **writer.font,
            )  # fmt: skip
    ax.set_title(writer.text(title), fontsize=11, parse_math=False, **writer.font)
    ax.set_axis_off()
    ax.set_aspect("equal", adjustable="datalim")
    ax.margins(0.02)
    _legend(ax, handles, writer)
    ax.figure.colorbar(pen.mappable(), ax=ax, shrink=0.6, pad=0.02, label="attention weight")
    return ax


def draw_embedding(
    features: Tensor | ArrayLike,
    *,
    labels: Tensor | ArrayLike | None = None,
    edge_index: Tensor | ArrayLike | None = None,
    weights: Tensor | ArrayLike | None = None,
    top_edges: int = 2000,
    class_names: Sequence[str] | None = None,
    max_nodes: int = 5000,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    r"""Draws hidden features in the plane (t-SNE), over the edges with the strongest attention.

    As in figure 2 of "Graph Attention Networks" (Veličković et al., 2018): a line between i and j
    is as thick as :math:`\sum_k \alpha_{ij}^k + \alpha_{ji}^k`, the attention of all heads in both
    directions. The plane is t-SNE's ("Visualizing Data using t-SNE", van der Maaten and Hinton,
    2008).

    Args:
        features: `[N, D]`, one row per node, as `GAT.embed` gives them.
        labels: `[N]`, the class of each node; negative where it is unknown. Default: all unknown.
        edge_index: `[2, E]`, the edges that `weights` belong to. Default: no edges are drawn.
        weights: `[E, H]` or `[E]`, attention weights. Needed with `edge_index`, and only then.
        top_edges: how many of the strongest node pairs are drawn.
        class_names: the name of each class in the legend. Default: their numbers.
        max_nodes: of a larger graph, draw this many nodes chosen at random; the title says so.
        seed: seed of t-SNE and of that choice.
        ax: the axes to draw in. Default: those of a new figure.

    Returns:
        The axes drawn in.

    Raises:
        ModuleNotFoundError: if matplotlib or scikit-learn is missing.
        ValueError: if shapes or indices contradict each other, or features are not finite.

    Example:
        >>> import torch
        >>> ax = draw_embedding(torch.eye(6), labels=[0, 0, 0, 1, 1, 1], class_names=["cat", "dog"])
        >>> ax.get_title()
        't-SNE of 6 nodes'
    """
    with plot_extra():
        from matplotlib.collections import LineCollection
        from sklearn.manifold import TSNE

    feature = as_array(features)
    if feature.ndim != 2 or (len(feature) and not feature.shape[1]):
        raise ValueError(f"features must have shape [N, D] with D ≥ 1; got {feature.shape}")
    if not np.isfinite(feature).all():
        raise ValueError("features must be finite; got NaN or infinity")
    num_nodes = len(feature)
    label = np.full(num_nodes, -1) if labels is None else as_labels(labels)
    if len(label) != num_nodes:
        raise ValueError(
            f"labels must have one entry per row of features, {num_nodes}; got {len(label)}"
        )
    if (edge_index is None) != (weights is None):
        raise ValueError("edge_index and weights go together: pass both or neither")
    if top_edges < 0 or max_nodes < 1:
        raise ValueError(
            "top_edges must be at least 0 and max_nodes at least 1;"
            f" got {top_edges} and {max_nodes}"
        )

    title = f"t-SNE of {num_nodes:,} nodes"
    drawn = np.arange(num_nodes)
    if num_nodes > max_nodes:
        drawn = np.sort(np.random.default_rng(seed).choice(num_nodes, max_nodes, replace=False))
        title = f"t-SNE of {max_nodes:,} of {num_nodes:,} nodes, chosen at random"
    xy = np.zeros((len(drawn), 2))
    if len(drawn) > 1:
        chosen = feature[drawn].astype(np.float64)
        spread = np.ptp(chosen, axis=0).max()
        # t-SNE knows no scale, but its float32 overflows; and PCA cannot place equal features:
        # it gives NaN, at which scikit-learn crashes the whole process.
        chosen = (chosen - chosen[0]) / (spread or 1.0)
        tsne = TSNE(
            perplexity=min(30.0, (len(drawn) - 1) / 3),
            init="pca" if feature.shape[1] > 1 and spread > 0 else "random",
            random_state=seed,
        )
        xy = tsne.fit_transform(chosen)

    ax = _new_axes(figsize=(8, 7)) if ax is None else ax
    if edge_index is not None and weights is not None:
        ends, per_head = as_edges(edge_index, weights, num_nodes)
        row = np.full(num_nodes, -1)
        row[drawn] = np.arange(len(drawn))
        ends = np.sort(row[ends], axis=0)  # both directions fall on the same pair
        inside = (ends[0] >= 0) & (ends[0] != ends[1])
        pair, strength = merge_parallel(ends[:, inside], per_head[inside].sum(axis=1))
        strongest = np.argsort(strength, kind="stable")[::-1][:top_edges][::-1]
        pair, strength = pair[:, strongest], strength[strongest]
        ax.add_collection(
            LineCollection(
                list(xy[pair.T]),
                linewidths=_width(strength, strength.max(initial=0.0), thickest=2.0),
                colors="#555555",
                alpha=0.3,
                zorder=1,
            )
        )
        title += f"\nlines: the {len(strength):,} node pairs with the most attention"
    size = np.full(len(drawn), float(np.clip(40_000 / max(len(drawn), 1), 12, 80)))
    handles = _draw_nodes(ax, xy, label[drawn], class_names, size=size)
    ax.set_title(title, fontsize=11)
    ax.set_axis_off()
    _legend(ax, handles, Writer(map(str, class_names or ())))
    return ax


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _circle(graph: Any, node: int, label: NDArray[np.int64]) -> dict[int, NDArray[Any]]:
    """`node` in the middle; round it the others by class, within a class by attention."""
    others = sorted(
        (n for n in graph if n != node),
        key=lambda n: (label[n], -graph.edges[n, node]["weight"]),
    )
    angle = np.pi / 2 - 2 * np.pi * np.arange(len(others)) / max(len(others), 1)
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return {node: np.zeros(2), **dict(zip(others, ring, strict=True))}


def _forces(graph: Any, seed: int, apart: float) -> dict[int, NDArray[Any]]:
    """A force-directed layout in a square of side 2, no two nodes nearer than about `apart`."""
    import networkx as nx

    if not len(graph):
        return {}
    if nx.is_weakly_connected(graph):
        place = nx.kamada_kawai_layout(graph.to_undirected(), weight=None)
    else:
        place = nx.spring_layout(graph, weight=None, seed=seed, iterations=300)
    xy = np.array([place[n] for n in graph])
    for _ in range(100):
        gap = xy[:, None] - xy[None, :]
        distance = np.linalg.norm(gap, axis=2)
        push = np.clip(apart - distance, 0, None) / np.maximum(distance, 1e-9)
        np.fill_diagonal(push, 0)
        xy = xy + 0.25 * (push[:, :, None] * gap).sum(axis=1)
    return dict(zip(graph, xy, strict=True))


def _width(weight: NDArray[Any], largest: float, thickest: float) -> NDArray[Any]:
    return 0.3 + (thickest - 0.3) * weight / (largest or 1.0)


class _Pen:
    """Turns attention weights into widths and greys, from 0 to the largest weight in the picture.

    The lightest grey is still seen on white paper, and no grey is taken for a class.
    """

    def __init__(self, largest: float, num_edges: int) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import ListedColormap, Normalize

        self.largest = largest or 1.0
        self.thickest = float(np.clip(20 / max(num_edges, 1) ** 0.5, 1.5, 3.5))
        self._scale = Normalize(0, self.largest)
        self._greys = ListedColormap(colormaps["Greys"](np.linspace(0.25, 1, 256)))

    def width(self, weight: NDArray[Any]) -> NDArray[Any]:
        return _width(weight, self.largest, self.thickest)

    def colour(self, weight: NDArray[Any]) -> Any:
        return self._greys(self._scale(weight))

    def mappable(self) -> ScalarMappable:
        from matplotlib.cm import ScalarMappable

        return ScalarMappable(self._scale, self._greys)


def _draw_arrows(
    ax: Axes, graph: Any, place: dict[int, Any], pen: _Pen, sizes: NDArray[Any]
) -> None:
    import networkx as nx

    edges = sorted(graph.edges(data="weight"), key=lambda edge: edge[2])  # the strongest on top
    weight = np.array([weight for _, _, weight in edges])
    both_ways = any(graph.has_edge(i, j) for j, i, _ in edges)
    nx.draw_networkx_edges(
        graph,
        place,
        ax=ax,
        edgelist=[(j, i) for j, i, _ in edges],
        width=pen.width(weight),
        edge_color=pen.colour(weight),
        arrowstyle="-|>",
        arrowsize=5 + pen.thickest,
        nodelist=list(graph),
        node_size=1.5 * sizes,  # arrows end before the corners of square markers
        # Straight, an arrow and the one that goes back would hide each other.
        connectionstyle=f"arc3,rad={0.12 if both_ways else 0.0}",
    )


def _new_axes(figsize: tuple[float, float]) -> Axes:
    from matplotlib import pyplot

    return pyplot.subplots(figsize=figsize, layout="constrained")[1]


def _draw_nodes(
    ax: Axes,
    xy: NDArray[Any],
    label: NDArray[np.int64],
    class_names: Sequence[str] | None,
    *,
    size: NDArray[Any],
    rings: NDArray[Any] | float = 0.4,
    ring_colours: Any = "white",
) -> list[Line2D]:
    """Scatters the nodes class by class and returns a legend handle for each class."""
    from matplotlib.lines import Line2D

    if class_names is not None and label.max(initial=-1) >= len(class_names):
        raise ValueError(
            f"class_names has {len(class_names)} names but labels go up to {label.max()}"
        )
    handles = []
    for c in np.unique(np.maximum(label, -1)).tolist():
        chosen = np.maximum(label, -1) == c
        if c < 0:
            colour, marker, name = "white", "o", "unknown"
            edge: Any = "#555555" if isinstance(ring_colours, str) else ring_colours[chosen]
        else:
            colour = COLOURS[c % len(COLOURS)]
            marker = _MARKERS[c // 5 % len(_MARKERS)]
            name = str(c) if class_names is None else str(class_names[c])
            name = f"class {name}" if name.isdigit() else name  # not to be taken for a node
            edge = ring_colours if isinstance(ring_colours, str) else ring_colours[chosen]
        ax.scatter(
            xy[chosen, 0],
            xy[chosen, 1],
            s=size[chosen] * (1.0 if marker == "o" else 0.8),  # squares look larger
            c=colour,
            marker=marker,
            linewidths=rings if isinstance(rings, float) else rings[chosen],
            edgecolors=edge,
            label=name,
            zorder=2,
        )
        outline = "#555555" if c < 0 else colour
        handles.append(
            Line2D([], [], ls="", marker=marker, ms=8, color=colour, mec=outline, label=name)
        )
    return handles


def _legend(ax: Axes, handles: list[Line2D], writer: Writer) -> None:
    """Beneath the picture, where it hides no node."""
    for handle in handles:
        handle.set_label(writer.text(str(handle.get_label())))
    widths = [len(str(handle.get_label())) + 6 for handle in handles]
    columns = len(handles) if sum(widths) <= 90 else max(1, 90 // max(widths))
    family = writer.font.get("fontfamily")
    legend = ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=columns,
        frameon=False,
        prop={"size": 9, **({"family": family} if family else {})},
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
