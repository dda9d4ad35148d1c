"""Every pattern of `attn_core.patterns`: a graph, a mask, and the support that is fastest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from attn_core import Dense, Edges, ScaledDot, attend, patterns
from attn_core.supports.base import Support

TOKENS, HEADS, SIZE = 24, 2, 8


class Shown(NamedTuple):
    """A pattern over some tokens.

    Attributes:
        name: what it is called.
        edges: the pairs as a graph, `edges.edge_index` for a graph layer.
        support: the support that computes them fastest; the graph itself where no other does.
    """

    name: str
    edges: Edges
    support: Support

    @property
    def mask(self) -> Tensor:
        """Which query sees which key, bool `[T, T]`."""
        seen = torch.zeros(self.edges.num_queries, self.edges.num_keys, dtype=torch.bool)
        key, query = self.edges.edge_index
        seen[query, key] = True
        return seen


def gallery(seed: int = 0) -> list[Shown]:
    """Each pattern once, over about as many tokens."""
    drawn = torch.Generator().manual_seed(seed)
    by_distance = {
        "window": patterns.local(2),
        "window, causal": patterns.local(4, causal=True),
        "atrous": patterns.atrous(3),
        "atrous, 2 steps": patterns.atrous(3, radius=2),
        "strided": patterns.strided(5),
    }
    found = [
        Shown(name, pattern.edges(TOKENS), pattern.support(TOKENS))
        for name, pattern in by_distance.items()
    ]
    points = torch.rand(TOKENS, 2, generator=drawn)
    cu_seqlens = torch.tensor([0, 9, 14, TOKENS])
    graphs = {
        "global tokens": patterns.with_global(patterns.local(1).edges(TOKENS), [0, 12]),
        "BigBird": patterns.big_bird(TOKENS, 2, random=2, generator=drawn),
        "blocks (cu_seqlens)": patterns.full().edges(cu_seqlens.diff()),
        "4 × 6, neighbours 3 × 3": patterns.neighborhood((4, 6), 3),
        "4 × 6, cut at the border": patterns.neighborhood((4, 6), 3, clamped=False),
        "3 × 4 × 4, neighbours 1 × 3 × 3": patterns.neighborhood((3, 4, 4), (1, 3, 3)),
        "3 × 4 × 4, cut at the border": patterns.neighborhood((3, 4, 4), 3, clamped=False),
        "5 nearest points": patterns.nearest(points, 5),
    }
    return found + [Shown(name, edges, edges) for name, edges in graphs.items()]


def differences(shown: Shown, seed: int = 0) -> dict[str, float]:
    """How far its support and its graph are from all pairs with a mask: outputs and gradients.

    In float64, as shares of the largest number.
    """
    torch.manual_seed(seed)
    tokens = shown.edges.num_queries
    given = [torch.randn(tokens, HEADS, SIZE, dtype=torch.float64).requires_grad_() for _ in "qkv"]

    def outcome(support: Support) -> Tensor:
        output = attend(*given, score=ScaledDot(), support=support).output
        gradients = torch.autograd.grad(output.sin().sum(), given)
        return torch.cat([x.detach().flatten() for x in (output, *gradients)])

    expected = outcome(Dense(shown.mask))
    return {
        name: float((outcome(support) - expected).abs().max() / expected.abs().max())
        for name, support in (("support", shown.support), ("graph", shown.edges))
    }


def table(rows: Sequence[tuple[Shown, dict[str, float]]]) -> str:
    """A row for each pattern: its pairs, what computes it, and how far that is from a mask."""
    line = "{:33}{:>7}{:>7}{:>8}  {:9}{:>9}{:>9}".format
    lines = [line("pattern", "tokens", "pairs", "of all", "computed", "support", "graph")]
    for shown, off in rows:
        tokens, pairs = shown.edges.num_queries, shown.edges.num_edges
        share, name = f"{pairs / tokens**2:.0%}", type(shown.support).__name__
        apart = (f"{off[way]:.0e}" for way in ("support", "graph"))
        lines.append(line(shown.name, tokens, pairs, share, name, *apart))
    return "\n".join(lines)


def draw(figure: Figure, shown: Sequence[Shown], columns: int = 5) -> None:
    """Each pattern as a matrix, a row for each query."""
    panels = list(figure.subplots(math.ceil(len(shown) / columns), columns, squeeze=False).flat)
    for panel, one in zip(panels, shown, strict=False):
        panel.imshow(one.mask.numpy(), cmap="Blues", vmin=0, vmax=1.3, interpolation="nearest")
        panel.set_title(f"{one.name}\n{one.edges.num_edges} pairs", fontsize=9)
        panel.set(xticks=[], yticks=[])
    for panel in panels[len(shown) :]:
        panel.remove()
    figure.supxlabel("keys", fontsize=9)
    figure.supylabel("queries", fontsize=9)
