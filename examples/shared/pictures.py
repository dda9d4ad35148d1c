"""What the pictures of all programs have in common."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.shared.files import write_atomically


def save_figure(path: Path, figure: Figure, dpi: int = 150, **options: Any) -> None:
    """Writes a picture, atomically."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=dpi, **options))


def apart(nth: int, count: int, width: float = 1.8) -> dict[str, Any]:
    """The style of the nth of several curves that may run into each other.

    The first is the widest and lies below, the last has the width that is given, on top: where they
    coincide, each is seen beside the next.

    >>> [round(apart(nth, 3)["linewidth"], 2) for nth in range(3)]
    [5.4, 3.6, 1.8]
    """
    step = min(1.0, 3 / max(1, count - 1))
    return {"linewidth": width * (1 + step * (count - 1 - nth)), "zorder": 2 + nth / count}


def bare(axes: Axes) -> None:
    """Takes away the upper and the right line of the frame."""
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(figure: Figure, panels: Iterable[Axes], **options: Any) -> None:
    """One legend for all panels, below them; what has the same label is there once."""
    handles = {
        label: handle
        for panel in panels
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(), handles, loc="outside lower center", frameon=False, fontsize=9, **options
    )
