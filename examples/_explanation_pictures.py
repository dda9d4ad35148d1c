"""The pictures of `examples.explain`: the edges that each method names, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import k_hop_subgraph

from examples._explaining import Reason

Place = tuple[float, float]


@torch.no_grad()
def draw(
    figure: Figure,
    model: nn.Module,
    data: Data,
    explained: Mapping[int, Sequence[Reason]],
    hops: int,
) -> None:
    """Draws a row for each node and a panel for each method, but for the last, random edges.

    An arrow is as thick and as dark as the edge weighs; nodes have the same places in all panels of
    a row: round the node in question those one hop away, round these the next. Images are drawn as
    such, others as discs in the colour of their class.
    """
    predicted = model(data.x, data.edge_index).argmax(dim=1)
    methods = [reason.method for reason in next(iter(explained.values()))[:-1]]
    heights = [5.0] * len(explained) + [0.5]
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)
    *rows, below = parts[:, 0]
    shown: set[int] = set()
    for row, (node, reasons) in zip(rows, explained.items(), strict=True):
        panels = row.subplots(1, len(methods))
        place = layout(data, node, [reason.edges for reason in reasons[:-1]], hops)
        shown.update(place)
        for ax, reason in zip(panels, reasons, strict=False):
            _draw_edges(ax, reason, place)
            _draw_nodes(ax, data, node, place)
            ax.text(
                0.5, 0.0,
                f"{reason.method}\np = {reason.alone:.2f} with these edges alone,"
                f" {reason.without:.2f} without",
                transform=ax.transAxes, ha="center", va="bottom", fontsize=10,
            )  # fmt: skip
            ax.set(xlim=(-1.4, 1.4), ylim=(-1.6, 1.25), aspect="equal")
            ax.set_axis_off()
        names, truth, said = data.class_names, int(data.y[node]), int(predicted[node])
        verdict = "rightly" if said == truth else f"wrongly: it is {names[truth]}"
        row.suptitle(
            f"node {node} is taken for {names[said]} (p = {reasons[0].probability:.2f}), {verdict}",
            fontsize=13, fontweight="bold",
        )  # fmt: skip
    classes = sorted({int(data.y[node]) for node in shown})
    handles = [
        Line2D([], [], ls="", marker="o", ms=9, color=_colour(c), label=data.class_names[c])
        for c in classes
    ]
    below.legend(handles=handles, loc="center", ncols=10, frameon=False, title="class")


def layout(data: Data, node: int, edges: Sequence[Tensor], hops: int) -> dict[int, Place]:
    """Where the ends of the edges lie: the node in the middle, rings round it by distance."""
    drawn = torch.cat([edge.flatten() for edge in edges]).unique().tolist()
    distance = {node: 0}
    for hop in range(1, hops + 1):
        near = k_hop_subgraph(node, hop, data.edge_index, num_nodes=data.num_nodes)[0]
        for other in near.tolist():
            distance.setdefault(other, hop)
    target: dict[int, list[int]] = {}
    for source, end in torch.cat(list(edges), dim=1).t().tolist():
        target.setdefault(source, []).append(end)
    angle: dict[int, float] = {}
    place: dict[int, Place] = {node: (0.0, 0.0)}
    for hop in range(1, hops + 1):
        ring = [other for other in drawn if distance.get(other) == hop]

        def key(other: int) -> tuple[float, float, int]:
            """Behind the nodes that it speaks to, the same class together."""
            heard = [angle[end] for end in target.get(other, []) if end in angle]
            toward = math.atan2(sum(map(math.sin, heard)), sum(map(math.cos, heard)))
            return (toward if heard else math.pi, float(data.y[other]), other)

        ring.sort(key=key)
        for i, other in enumerate(ring):
            angle[other] = -math.pi + 2 * math.pi * (i + 0.5) / len(ring)
            radius = hop / hops * 1.1
            place[other] = (radius * math.cos(angle[other]), radius * math.sin(angle[other]))
    return place


def _colour(label: int) -> tuple[float, float, float, float]:
    return colormaps["tab10"](label % 10)


def _draw_edges(ax: Axes, reason: Reason, place: Mapping[int, Place]) -> None:
    largest = float(reason.weights.max()) if len(reason.weights) else 1.0
    order = reason.weights.argsort()  # the heaviest on top
    for i in order.tolist():
        source, end = reason.edges[:, i].tolist()
        share = float(reason.weights[i]) / max(largest, 1e-12)
        ax.annotate(
            "", place[end], place[source], zorder=2,
            arrowprops={
                "arrowstyle": "-|>", "linewidth": 0.6 + 2.6 * share, "shrinkA": 11, "shrinkB": 13,
                "color": str(0.75 - 0.65 * share), "connectionstyle": "arc3,rad=0.1",
            },
        )  # fmt: skip


def _draw_nodes(ax: Axes, data: Data, node: int, place: Mapping[int, Place]) -> None:
    for other, (x, y) in place.items():
        colour = _colour(int(data.y[other]))
        if "images" in data:
            zoom = 3.2 if other == node else 2.3
            picture = OffsetImage(
                data.images[other].numpy(), zoom=zoom, cmap="gray_r", norm=Normalize(0, 1)
            )
            style = {"edgecolor": colour, "linewidth": 2.4 if other == node else 1.6}
            box = AnnotationBbox(picture, (x, y), pad=0.08, bboxprops=style)
            box.set_zorder(3)
            ax.add_artist(box)
        else:
            size = 620 if other == node else 380
            ax.scatter(x, y, s=size, color=[colour], edgecolors="black",
                       linewidths=2.0 if other == node else 0.6, zorder=3)  # fmt: skip
            ax.text(x, y, str(other), size=7.5, ha="center", va="center", color="white", zorder=4)
