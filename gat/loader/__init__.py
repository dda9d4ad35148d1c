"""Mini-batches of a graph by sampled neighbours, and exact inference over graphs of any size.

`NeighborSampler` works inside torch_geometric's own `NodeLoader` and `LinkLoader`, without any
extension of theirs, and gives blocks, one for each layer; `infer` goes through a graph layer by
layer, chunk by chunk, reading features from wherever they lie. See docs/scaling.md.
"""

from gat.loader.block import Block, block_of
from gat.loader.inference import infer, rows_of
from gat.loader.sampler import NeighborSampler

__all__ = ["Block", "NeighborSampler", "block_of", "infer", "rows_of"]
