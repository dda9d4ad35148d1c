"""The pictures that a training leaves: its curves, the learned features, the attention."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import Tensor
from torch_geometric.data import Data

from examples._baselines import Baseline
from examples.shared.graphs import (
    graphs_of,
    is_multi_label,
    is_regression,
    score_name,
    split_views,
)
from examples.shared.pictures import apart, bare, legend_below, save_figure
from gat.plot import draw_attention, draw_embedding

_SMALL = 60  # nodes; such a graph is drawn whole


def save_pictures(
    folder: Path,
    model: Any,
    data: Data,
    results: Sequence[dict[str, Any]],
    best_seed: int,
    baselines: Sequence[Baseline],
) -> None:
    """Writes curves.png, embedding.png and attention.png; of many graphs, the first test graph.

    Where labels are quantities, predictions.png too, and colours stand for ranges of them.
    """
    score = score_name(data)
    data = graphs_of(split_views(data)["test"])[0]
    labels, names = None if is_multi_label(data) else data.y, data.class_names
    if is_regression(data):
        labels, names = ranges(data.y, data.label_scale)
    with torch.no_grad():
        model.eval()
        graph = {"x": data.x, "edge_index": data.edge_index, "edge_attr": data.get("edge_attr")}
        output, attention = model(**graph, return_attention_weights=True)
        hidden = model.embed(**graph).to_dense()  # of one layer, what comes in
    # The attention that made the features which enter the last layer.
    edge_index, weights = attention[max(len(attention) - 2, 0)]

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    draw_curves(figure, results, best_seed, baselines, score)
    save_figure(folder / "curves.png", figure)

    if is_regression(data):
        figure = Figure(figsize=(6, 5.5), layout="constrained")
        draw_quantities(figure.add_subplot(), output.squeeze(1), data)
        save_figure(folder / "predictions.png", figure)

    figure = Figure(figsize=(8, 7), layout="constrained")
    draw_embedding(
        hidden, max_nodes=2000, labels=labels, edge_index=edge_index, weights=weights,
        class_names=names, ax=figure.add_subplot(),
    )  # fmt: skip
    save_figure(folder / "embedding.png", figure)

    small = data.num_nodes <= _SMALL
    node = None if small else most_selective_node(edge_index, weights, data.num_nodes)
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    draw_attention(
        edge_index, weights, labels=labels, node=node, class_names=names,
        node_names=data.get("node_ids"),
        ax=figure.add_subplot(),
    )  # fmt: skip
    save_figure(folder / "attention.png", figure)


def ranges(y: Tensor, scale: Sequence[float]) -> tuple[Tensor, list[str]]:
    """Five ranges of quantities with as many nodes in each, as classes with names; -1 for none.

    Args:
        y: `[N]`, the quantities, NaN where there is none.
        scale: what to add after what they are multiplied by, as `standardise_labels` returns it.
    """
    mean, deviation = scale
    known = y.isfinite()
    limits = y[known].double().quantile(torch.linspace(0, 1, 6, dtype=torch.float64)).unique()
    place = torch.bucketize(y.nan_to_num().double(), limits[1:-1], right=True)
    told = [f"{mean + deviation * limit:.3g}" for limit in limits.tolist()]
    names = [f"{low} to {high}" for low, high in pairwise(told)] or told
    return torch.where(known, place, -1), names


def draw_quantities(axes: Axes, output: Tensor, data: Data) -> None:
    """What the model says of each test node against what is true, in the unit of the labels."""
    mean, deviation = data.label_scale
    true = mean + deviation * data.y[data.test_mask].double()
    said = mean + deviation * output[data.test_mask].double()
    ends = min(true.min(), said.min()).item(), max(true.max(), said.max()).item()
    axes.plot(ends, ends, color="#717581", linewidth=1, label="said what is true", zorder=1)
    axes.axhline(mean, color="#94a4a2", linewidth=1.2, linestyle="--",
                 label="mean of the training labels")  # fmt: skip
    axes.scatter(true, said, s=18, color="#3f90da", alpha=0.6, linewidths=0, zorder=2,
                 label="test nodes")  # fmt: skip
    axes.set(xlabel="true", ylabel="said by the model",
             title=f"{len(true):,} test nodes, in the unit of the labels")  # fmt: skip
    axes.legend(frameon=False, fontsize=9)
    bare(axes)


def draw_curves(
    figure: Figure,
    results: Sequence[dict[str, Any]],
    best_seed: int,
    baselines: Sequence[Baseline],
    score: str = "accuracy",
) -> None:
    """Loss and accuracy (or another score) over the epochs: the best run bold, the others faint."""
    loss, accuracy = figure.subplots(1, 2)
    colours = {"train": "#e76300", "val": "#3f90da"}
    names = {"train": "training nodes", "val": "validation nodes"}
    for result in sorted(results, key=lambda result: result["seed"] == best_seed):
        bold = result["seed"] == best_seed
        for nth, (split, colour) in enumerate(colours.items()):
            style = apart(nth, len(colours)) if bold else {"linewidth": 0.8, "alpha": 0.35}
            for axes, measure in ((loss, "loss"), (accuracy, "accuracy")):
                curve = result["history"][f"{split}_{measure}"]
                axes.plot(
                    range(1, len(curve) + 1), curve, color=colour,
                    label=names[split] if bold else None, **style,
                )  # fmt: skip
        if bold:
            for axes in (loss, accuracy):
                axes.axvline(result["best_epoch"], color="#717581", linewidth=1, linestyle=":",
                             label=f"weights kept (epoch {result['best_epoch']})")  # fmt: skip
    for baseline, dashes in zip(baselines, ("-", "--", "-."), strict=False):
        accuracy.axhline(baseline.val_accuracy, color="#94a4a2", linewidth=1.2, linestyle=dashes,
                         label=f"{baseline.name} (validation)")  # fmt: skip
    what = "squared error, standardised" if score == "R²" else "cross-entropy"
    loss.set(xlabel="epoch", ylabel=f"{what}, without dropout", ylim=(0, None))
    lowest = min(min(line.get_ydata()) for line in accuracy.lines) if score == "R²" else 0.0
    accuracy.set(xlabel="epoch", ylabel=f"{score}, without dropout",
                 ylim=(max(-1.0, min(0.0, lowest)), 1.02))  # fmt: skip
    if score != "R²":
        accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (loss, accuracy):
        bare(axes)
    title = f"seed {best_seed}, the best on the validation nodes"
    if len(results) > 1:
        title += f"; faint: the other {len(results) - 1}"
    figure.suptitle(title, fontsize=11)
    legend_below(figure, [accuracy], ncols=3)


def most_selective_node(edge_index: Tensor, weights: Tensor, num_nodes: int) -> int:
    """The node with 10 to 30 in-edges whose attention is furthest from an even average.

    "Furthest" is the Kullback-Leibler divergence of its weights (mean over heads) from 1 / degree.
    """
    weight, target = weights.mean(dim=1), edge_index[1]
    degree = torch.bincount(target, minlength=num_nodes)
    surprise = torch.zeros(num_nodes).index_add_(
        0, target, torch.special.xlogy(weight, weight * degree[target]).float()
    )
    suitable = (degree >= 10) & (degree <= 30)
    if not suitable.any():
        suitable = degree == degree.max()
    return int(surprise.masked_fill(~suitable, -torch.inf).argmax())
