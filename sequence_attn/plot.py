"""Pictures of attention between two sequences: which target token looks at which source token.

matplotlib is imported when a picture is asked for, so that `sequence_attn` works without it;
`pip install 'gat-attention[plot]'` brings it. No window is opened: save the figure of the axes that
come back, or call `matplotlib.pyplot.show`. `explorer`, whose page a browser draws, needs none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from attn_core.plotting import COLOURS, Labels, Writer, fit, plot_extra
from sequence_attn.explorer import explorer
from sequence_attn.plotted import as_tokens, as_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.transforms import Bbox
    from numpy.typing import ArrayLike, NDArray

__all__ = ["alignment_flow", "explorer", "heatmap"]

_ROOM = 12.0, 10.0  # inches that the cells of a new figure may take, across and down
_PITCH = 0.2  # inches from token to token that make every token legible
_BAR = 0.18  # inches, the thickness of a colour bar
_LOW = 1.4  # inches, too low for a colour bar to stand


# `| Any`: the shape of weights decides between axes and array, which a type checker cannot see.
def heatmap(
    weights: Tensor | ArrayLike,
    source: Iterable[object] | None = None,
    target: Iterable[object] | None = None,
    *,
    titles: Sequence[str] | None = None,
    vmax: float | None = None,
    cmap: str | None = None,
    colorbar: bool = True,
    ax: Axes | Sequence[Axes] | NDArray[Any] | None = None,
) -> Axes | Any:
    r"""Draws attention as a matrix: a row for each target token, a column for each source token.

    As in figure 3 of "Neural Machine Translation by Jointly Learning to Align and Translate"
    (Bahdanau et al., 2015): the cell in row i and column j is as dark as :math:`\alpha_{ij}`, the
    attention that query i pays to key j. Heads share one colour scale. Where tokens stand too
    close to be read, every n-th is labelled.

    Args:
        weights: `[Tq, Tk]`, or `[H, Tq, Tk]` for one panel per head. Negative numbers, as scores
            and biases have them, are drawn in red.
        source: the Tk tokens of the keys; a str stands for its characters. Default: positions.
        target: the Tq tokens of the queries, likewise.
        titles: one for each head. Default: "head 0", "head 1", …
        vmax: the weight that is drawn darkest; pictures with the same one can be compared.
            Default: the largest there is.
        cmap: the name of a matplotlib colour map. Default: "Blues", or "RdBu" with 0 in the middle
            where there are negative numbers.
        colorbar: draw the colour bar, which `.images[0].colorbar` of the first axes then is.
            Default True.
        ax: the axes to draw in; for `[H, Tq, Tk]`, H of them. A figure of several should have
            `layout="constrained"`, which makes room for the tokens. Default: those of a new figure.

    Returns:
        The axes drawn in: for `[H, Tq, Tk]` an array `[H]` of them.

    Raises:
        ModuleNotFoundError: if matplotlib is missing.
        TypeError: if weights is None, or what a layer returned and not its weights.
        ValueError: if shapes, tokens, titles or axes contradict each other, or weights is empty or
            not finite.

    Warns:
        UserWarning: no installed font has the glyphs of some tokens, which are then written as
            escapes (`\u6ce8`). Matplotlib's configured fonts come first, then any installed ones.

    Example:
        >>> import torch
        >>> source, target = ["the", "red", "house"], ["la", "maison", "rouge"]
        >>> ax = heatmap(torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0]]), source, target)
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['the', 'red', 'house']
        >>> [ax.get_title() for ax in heatmap(torch.rand(2, 3, 4).softmax(-1))]
        ['head 0', 'head 1']
    """
    with plot_extra():
        from matplotlib.colors import Normalize

    weight = as_weights(weights)
    panels = weight if weight.ndim == 3 else weight[None]
    heads, queries, keys = panels.shape
    if titles is None:
        titles = [f"head {h}" for h in range(heads)] if weight.ndim == 3 else [""]
    elif isinstance(titles, str) or len(titles) != heads:
        raise ValueError(f"titles is {titles!r}; expected a list of {heads}, one for each head")
    if vmax is not None and not 0 < vmax < np.inf:
        raise ValueError(f"vmax is {vmax}; expected a finite number above 0")
    below, strongest = bool(weight.min() < 0), float(np.abs(weight).max())
    largest = vmax or strongest or 1.0
    given = None if ax is None else list(np.ravel(np.array(ax, dtype=object)))
    if given is not None and len(given) != heads:
        raise ValueError(f"ax has {len(given)} axes; expected {heads}, one for each head")

    names = as_tokens("source", source, keys), as_tokens("target", target, queries)
    writer = Writer([*(names[0] or ()), *(names[1] or ()), *titles])
    x, y = Labels.write(names[0], keys, writer), Labels.write(names[1], queries, writer)
    axes, size, cell, outer = (
        _grid(heads, x, y) if given is None else _measure(given, keys, queries)
    )
    scale = Normalize(-largest if below else 0.0, largest)
    for panel, drawn, title, (left, bottom) in zip(axes, panels, titles, outer, strict=True):
        panel.imshow(
            drawn,
            cmap=cmap or ("RdBu" if below else "Blues"),
            norm=scale,
            # Said in full, since matplotlibrc can change each of them.
            origin="upper",
            interpolation="auto",
            aspect="equal" if cell[0] == cell[1] else "auto",
        )
        panel.grid(False)
        panel.spines[:].set(linewidth=0.5, color="#888888")
        panel.tick_params(length=2, width=0.5, labelbottom=bottom, labelleft=left)
        _mark(panel.xaxis, np.arange(keys), x, 72 * cell[0], writer, across=True)
        _mark(panel.yaxis, np.arange(queries), y, 72 * cell[1], writer)
        panel.set_xlabel(_side("source", "keys", cell[0] * keys) if bottom else "", fontsize=9)
        panel.set_ylabel(_side("target", "queries", cell[1] * queries) if left else "", fontsize=9)
        panel.set_title(writer.text(title), fontsize=10, **writer.font)
    if colorbar:
        clipped = "both" if below else "max"
        label = "" if below else "attention weight"
        _colour_bar(axes, size, label, clipped if strongest > largest else "neither")
    return np.array(axes, dtype=object) if weight.ndim == 3 else axes[0]


def alignment_flow(
    weights: Tensor | ArrayLike,
    source: Iterable[object] | None = None,
    target: Iterable[object] | None = None,
    *,
    head: int | None = None,
    threshold: float | None = None,
    top: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draws attention as bands between two columns of tokens, the source left, the target right.

    The wider and the darker the band from source token j to target token i, the larger
    :math:`\alpha_{ij}`, the attention that query i pays to key j; a weight of 1 is about as wide as
    a line of text. Several heads have a colour each and lie side by side.

    Args:
        weights: `[Tq, Tk]` or `[H, Tq, Tk]`, not negative.
        source: the Tk tokens of the keys; a str stands for its characters. Default: positions.
        target: the Tq tokens of the queries, likewise.
        head: the head to draw. Default: all.
        threshold: leave out weights below it. Default: 2 % of the largest weight, which would
            hardly be seen.
        top: draw no more than this many bands for each target token and head, the strongest.
            Default: all.
        ax: the axes to draw in. Default: those of a new figure.

    Returns:
        The axes drawn in.

    Raises:
        ModuleNotFoundError: if matplotlib is missing.
        TypeError: if weights is None, or what a layer returned and not its weights.
        ValueError: if shapes and tokens contradict each other, weights is empty, negative or not
            finite, or head, threshold or top is out of its range.

    Warns:
        UserWarning: no installed font has the glyphs of some tokens; as in `heatmap`.

    Example:
        >>> import torch
        >>> weights = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.3, 0.7]])
        >>> ax = alignment_flow(weights, "the red house".split(), "une maison".split(), top=1)
        >>> len(ax.collections[0].get_paths())
        2
    """
    with plot_extra():
        from matplotlib import colormaps, pyplot
        from matplotlib.collections import PathCollection
        from matplotlib.colors import to_rgba_array
        from matplotlib.path import Path

    weight = as_weights(weights)
    weight = weight if weight.ndim == 3 else weight[None]
    heads, queries, keys = weight.shape
    if weight.min() < 0:
        raise ValueError(
            f"weights must not be negative in a flow; the least is {weight.min():g}: use heatmap"
        )
    if head is not None and not 0 <= head < heads:
        raise ValueError(f"head must lie in 0..{heads - 1}, the heads of weights; got {head}")
    if threshold is not None and not 0 <= threshold < np.inf:
        raise ValueError(f"threshold is {threshold}; expected a finite number, at least 0")
    if top is not None and top < 1:
        raise ValueError(f"top is {top}; expected at least 1 band for each target token")
    names = as_tokens("source", source, keys), as_tokens("target", target, queries)
    writer = Writer([*(names[0] or ()), *(names[1] or ())])
    left, right = Labels.write(names[0], keys, writer), Labels.write(names[1], queries, writer)

    lanes = list(range(heads)) if head is None else [head]
    longer = max(queries, keys)
    if ax is None:
        pitch = float(np.clip(5.5 / longer, _PITCH, 0.32))
        high = min(pitch * longer, _ROOM[1])
        text = (left.width + right.width) * fit(left, 72 * high / longer).size / 72
        size = 3.9 + text, high + (0.7 if len(lanes) > 1 else 0.2)
        ax = pyplot.subplots(figsize=size, layout="constrained")[1]
    else:
        high = _inches(ax, ax.get_window_extent())[1]
    places = _two_columns(ax, left, right, high, writer)

    weight = weight[lanes]
    lane, i, j = _strongest(weight, threshold, top)
    strength = weight[lane, i, j] / max(1.0, weight.max())
    if heads <= len(COLOURS):
        colours = to_rgba_array(COLOURS)[lanes]
    else:
        colours = colormaps["turbo"](np.linspace(0.03, 0.97, heads))[lanes]
    colour = colours[lane]
    colour[:, 3] = 0.9 * np.sqrt(strength)
    slot = 0.8 / longer / len(lanes)  # what one head has of the height of a token
    shift = (lane - (len(lanes) - 1) / 2) * slot
    ends = zip(places[0][j] + shift, places[1][i] + shift, strict=True)
    curve = [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4]
    bands = PathCollection(
        [Path([(0, a), (0.5, a), (0.5, b), (1, b)], curve) for a, b in ends],
        facecolors="none",
        edgecolors=colour,
        linewidths=0.3 + 72 * high * slot * strength,
        capstyle="butt",
    )
    ax.add_collection(bands, autolim=False)
    if len(lanes) > 1:
        _legend(ax, {f"head {h}": c for h, c in zip(lanes, colours, strict=True)})
    return ax


def _mark(
    axis: Axis,
    places: NDArray[Any],
    labels: Labels,
    pitch: float,
    writer: Writer,
    across: bool = False,
) -> None:
    """Labels the places along an axis, which lie `pitch` points apart."""
    size, turn, step = fit(labels, pitch, across)
    style: dict[str, Any] = {"fontsize": size, "rotation": turn, **writer.font}
    if turn == 45:
        style |= {"ha": "right", "va": "top", "rotation_mode": "anchor"}
    # A token may be "$" or "_".
    axis.set_ticks(
        places[::step], labels=labels.texts[::step], parse_math=False, usetex=False, **style
    )


def _two_columns(
    ax: Axes, left: Labels, right: Labels, high: float, writer: Writer
) -> list[NDArray[np.float64]]:
    """Sets up the axes, `high` inches high, with labels left and right; returns their heights."""
    ax.set(xlim=(0, 1), ylim=(1, 0))  # the first token on top
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.xaxis.set_visible(False)
    other = ax.secondary_yaxis("right")
    other.spines[:].set_visible(False)
    places = []
    for side, labels in ((ax, left), (other, right)):
        # Both take the whole height, so that a monotone alignment runs straight across.
        count = len(labels.texts)
        places.append((np.arange(count) + 0.5) / count)
        side.tick_params(axis="y", length=0)
        _mark(side.yaxis, places[-1], labels, 72 * high / count, writer)
    ax.set_ylabel(_side("source", "keys", high), fontsize=9)
    other.set_ylabel(_side("target", "queries", high), fontsize=9)
    return places


def _strongest(
    weight: NDArray[np.float64], threshold: float | None, top: int | None
) -> tuple[NDArray[np.intp], ...]:
    """Where the weights to draw are, as indices (head, query, key), the faintest first."""
    kept = (weight > 0) & (weight >= (0.02 * weight.max() if threshold is None else threshold))
    if top is not None:
        order = np.argsort(-weight, axis=-1, kind="stable")
        kept &= np.argsort(order, axis=-1) < top
    found = np.nonzero(kept)
    order = np.argsort(weight[found], kind="stable")
    return tuple(index[order] for index in found)


def _legend(ax: Axes, colours: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D

    ax.legend(
        handles=[Line2D([], [], color=c, linewidth=4, label=name) for name, c in colours.items()],
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=min(4, len(colours)),
        frameon=False,
        fontsize=8,
        handlelength=1.2,
        columnspacing=1.2,
    )


def _colour_bar(axes: list[Axes], size: tuple[float, float], label: str, clipped: str) -> None:
    """A colour bar beside the axes, which take `size` inches, or above them if they are low."""
    width, height = size
    above = height < _LOW
    along, across = (width, height + 1) if above else (height, width + 1)
    shrink = min(1.0, 4 / along) if above else 1.0
    bar = axes[0].figure.colorbar(
        axes[0].images[-1],
        ax=axes,
        location="top" if above else "right",
        extend=clipped,
        shrink=shrink,
        pad=0.2 if above else 0.05,
        fraction=min(0.5, 2.5 * _BAR / across),  # more than it takes, so that it has full length
        aspect=along * shrink / _BAR,
    )
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8, width=0.5)
    bar.outline.set(linewidth=0.5)


def _side(name: str, role: str, inches: float) -> str:
    return f"{name} ({role})" if inches >= 1.3 else name


def _cell(width: float, height: float, keys: int, queries: int) -> tuple[float, float]:
    """The size in inches of each cell in a room: square, unless one side became too narrow."""
    square = min(width / keys, height / queries)
    return (
        max(square, min(_PITCH, 1.2 / keys, width / keys)),
        max(square, min(_PITCH, 1.2 / queries, height / queries)),
    )


class _Grid(NamedTuple):
    axes: list[Axes]
    size: tuple[float, float]  # inches that all of them take
    cell: tuple[float, float]  # inches
    outer: list[tuple[bool, bool]]  # does the panel bear the labels of its row, of its column


def _grid(heads: int, x: Labels, y: Labels) -> _Grid:
    """New axes in a figure that grows with the number of tokens, up to a limit."""
    from matplotlib import pyplot

    keys, queries = len(x.texts), len(y.texts)

    def unlike_a_page(columns: int) -> float:
        rows = math.ceil(heads / columns)
        empty = rows * columns - heads
        return abs(math.log(columns * keys / (rows * queries) / 1.5)) + 4 * empty / heads

    columns = min(range(1, heads + 1), key=unlike_a_page)
    rows = math.ceil(heads / columns)
    longer = max(keys, queries)
    pitch = float(np.clip(5.5 / longer, _PITCH, max(0.45, 1.8 / longer)))
    cell = _cell(
        min(_ROOM[0] / columns, pitch * keys), min(_ROOM[1] / rows, pitch * queries), keys, queries
    )
    x_fit, y_fit = fit(x, 72 * cell[0], across=True), fit(y, 72 * cell[1])
    below = max(1.0, x.width * math.sin(math.radians(x_fit.turn))) * x_fit.size / 72
    beside = y.width * y_fit.size / 72
    size = columns * cell[0] * keys, rows * cell[1] * queries
    low = size[1] < _LOW
    _, grid = pyplot.subplots(
        rows,
        columns,
        squeeze=False,
        figsize=(
            size[0] + 0.15 * columns + beside + (0.4 if low else 1.2),
            size[1] + 0.3 * rows + below + (1.1 if low else 0.4),
        ),
        layout="compressed",
    )
    axes = list(grid.flat)
    for spare in axes[heads:]:
        spare.remove()
    for ax in axes[heads - columns : (rows - 1) * columns]:
        ax.xaxis.set_in_layout(False)  # its labels stand in the empty place below
    outer = [(h % columns == 0, h + columns >= heads) for h in range(heads)]
    return _Grid(axes[:heads], size, cell, outer)


def _measure(axes: list[Axes], keys: int, queries: int) -> _Grid:
    """Axes of the caller, all of them labelled, with the size of their cells as they lie now."""
    from matplotlib.transforms import Bbox

    width, height = np.min([_inches(ax, ax.get_window_extent()) for ax in axes], axis=0)
    cell = _cell(width, height, keys, queries)
    if cell[0] != cell[1]:  # then they fill the axes
        cell = width / keys, height / queries
    size = _inches(axes[0], Bbox.union([ax.get_window_extent() for ax in axes]))
    return _Grid(axes, size, cell, [(True, True)] * len(axes))


def _inches(ax: Axes, box: Bbox) -> tuple[float, float]:
    return box.width / ax.figure.dpi, box.height / ax.figure.dpi
