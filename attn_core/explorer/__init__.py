"""The attention explorer: one HTML file that shows weights as a matrix, as arcs and as a graph.

`sequence_attn.plot.explorer` and `gat.plot.explorer` write one from real weights;
`computing_page` is the one that computes, with scores, normalisers and supports to choose from.
"""

from attn_core.explorer.page import Layer, computing_page, weights_page, write_page

__all__ = ["Layer", "computing_page", "weights_page", "write_page"]
