"""Axis 3, supports: which (query, key) pairs exist?

`Dense` has all of them, less a mask; `Window` those near one position; `Edges` those of a graph.
"""

from attn_core.supports import patterns
from attn_core.supports.base import Support
from attn_core.supports.dense import Dense
from attn_core.supports.edges import Edges, PendingEdges
from attn_core.supports.window import Window

__all__ = ["Dense", "Edges", "PendingEdges", "Support", "Window", "patterns"]
