"""Attention between two sequences as a page for the browser."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from attn_core.explorer import Layer, weights_page, write_page
from sequence_attn.plotted import as_tokens, as_weights

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def explorer(
    weights: Tensor | ArrayLike,
    source: Iterable[object] | None = None,
    target: Iterable[object] | None = None,
    *,
    path: str | os.PathLike[str],
    title: str | None = None,
    language: str | None = None,
) -> Path:
    r"""Writes attention as one HTML file to explore in a browser, without a server or a network.

    The same :math:`\alpha_{ij}`, the attention that query i pays to key j, stand in it as a matrix,
    as arcs between the words and as a graph, and step by step as a decoder takes them: pointing at
    a weight, or walking to it with the arrow keys, marks it in all of them. The page is in English
    and Chinese, and has a table for whoever sees no picture.

    Args:
        weights: `[Tq, Tk]` or `[H, Tq, Tk]`, not negative. The file has at most 500 kB, some 65,000
            weights in float32.
        source: the Tk tokens of the keys; a str stands for its characters. Default: positions.
        target: the Tq tokens of the queries, likewise. Default: where Tq = Tk, those of `source`,
            and the sequence reads itself; else positions.
        path: the file to write; what was there is replaced in one step.
        title: the heading. Default: "Attention explorer", in the reader's language.
        language: "en" or "zh", which the page begins with. Default: that of the browser.

    Returns:
        The path.

    Raises:
        TypeError: if weights is None, or what a layer returned and not its weights.
        ValueError: if shapes and tokens contradict each other, weights is empty, negative or not
            finite, the language is another, or the file would be larger than 500 kB.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> weights = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.3, 0.7]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = explorer(
        ...         weights, "the red house".split(), "une maison".split(), path=f"{folder}/a.html"
        ...     )
        ...     page.stat().st_size < 500_000
        True
    """
    weight = as_weights(weights)
    weight = weight if weight.ndim == 3 else weight[None]
    if weight.min() < 0:
        raise ValueError(
            f"weights must not be negative in an explorer; the least is {weight.min():g}: use"
            " heatmap"
        )
    _, queries, keys = weight.shape
    sources = as_tokens("source", source, keys) or [str(j) for j in range(keys)]
    targets = as_tokens("target", target, queries)
    if targets is None and queries == keys:
        targets = sources
    targets = targets or [str(i) for i in range(queries)]
    text = weights_page(
        [Layer("", weight)],
        targets,
        None if targets == sources else sources,
        title=title,
        language=language,
    )
    return write_page(path, text)
