"""Exact inference over graphs of any size: layer by layer, chunk by chunk."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch_geometric.nn
from torch import Tensor

from attn_core import Edges
from gat.loader.block import block_of
from gat.models import AGNN, AttentionNetwork


@torch.no_grad()
def infer(
    model: AttentionNetwork | AGNN,
    features: Any,
    edges: Any,
    *,
    edge_attr: Any = None,
    chunk: int = 65536,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The output of a model for every node, exactly, without ever holding all features.

    Each layer is computed for all nodes before the next, for `chunk` targets at a time, from all
    their neighbours. In memory are the edges, the numbers between two layers, and the sources of
    one chunk; none is computed twice, where sampled neighbourhoods would overlap.

    Args:
        model: one of our models at the level of nodes; it is run in evaluation mode, and left as it
            was.
        features: `[N, in_channels]`, a tensor or an array, such as a `numpy.memmap` of float16.
        edges: `attn_core.Edges`, or what `Edges.from_edge_index` takes.
        edge_attr: `[E, edge_dim]`, likewise. Default: none.
        chunk: how many targets at once. Default 65536.
        dtype: to compute in. Default: that of the model's parameters.
        progress: called with the number of chunks that are done and of all there are. Default: no.

    Returns:
        `[N, out_channels]`.

    Raises:
        ValueError: another level of the model, features of another length, a chunk below 1, or
            edge_attr for edges to which self-loops were added by hand.

    >>> import gat
    >>> model = gat.GAT(4, 8, num_layers=2, out_channels=3)
    >>> x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2], [1, 2, 4]])
    >>> torch.allclose(infer(model, x, edge_index, chunk=2), model.eval()(x, edge_index), atol=1e-6)
    True
    """
    if not isinstance(edges, Edges):
        edges = Edges.from_edge_index(edges, len(features))
    nodes = edges.num_queries
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 node at a time")
    if len(features) != nodes or edges.num_keys != nodes:
        raise ValueError(
            f"features has {len(features)} rows, but edges go from {edges.num_keys} to {nodes} "
            "nodes: give one row for each node"
        )
    if edges.adds_loops and edge_attr is None:
        edges = Edges(edges.pairs, nodes, nodes)  # of which none is left out of a block
    elif edges.adds_loops and not all(conv.add_self_loops for conv in model.convs):
        raise ValueError(
            "edges has self-loops that were added, and edge_attr no features for these: build the "
            "Edges with self_loops=False"
        )
    if isinstance(model, AttentionNetwork) and model.level != "node":
        raise ValueError(f"level is {model.level!r}; inference by nodes is for level='node'")
    for part in model.modules():
        if type(part) in _ACROSS_NODES or getattr(part, "mode", None) == "graph":
            raise ValueError(
                f"the model has a {type(part).__name__}, which looks at all nodes at once: "
                "inference goes by chunks of nodes"
            )
    dtype = next(model.parameters()).dtype if dtype is None else dtype
    chunks = torch.arange(nodes).split(chunk)
    layers = range(model.num_layers)
    begins = not isinstance(model, AttentionNetwork) or model.projection is not None
    passes = begins + len(layers) + 1
    done = 0

    def over_chunks(compute: Callable[[Tensor], Tensor]) -> Tensor:
        """What is computed for the targets of each chunk, for all nodes."""
        nonlocal done
        out: Tensor | None = None
        for targets in chunks:
            found = compute(targets)
            out = found.new_empty(nodes, *found.shape[1:]) if out is None else out
            out[targets] = found
            done += 1
            if progress is not None:
                progress(done, passes * len(chunks))
        assert out is not None  # there is a chunk, if only of no nodes
        return out

    def layer(i: int, x: Any, targets: Tensor) -> Tensor:
        block = block_of(edges, targets)
        attr = None if edge_attr is None else rows_of(edge_attr, block.edge_ids, dtype)
        return model.step(i, rows_of(x, block.sources, dtype), block.edges, attr)

    x, training = features, [part for part in model.modules() if part.training]
    model.eval()
    try:
        if begins:
            x = over_chunks(lambda targets: model.begin(rows_of(features, targets, dtype)))
        outputs: list[Tensor] = []
        for i in layers:
            x = over_chunks(functools.partial(layer, i, x))
            outputs = [*outputs, x] if model.joins else [x]
        return over_chunks(lambda targets: model.finish([out[targets] for out in outputs]))
    finally:
        for part in training:  # parts that were frozen stay so
            part.training = True


# Where a chunk would be normalised in the place of the graph
_ACROSS_NODES = (
    torch_geometric.nn.DiffGroupNorm,
    torch_geometric.nn.GraphNorm,
    torch_geometric.nn.GraphSizeNorm,
    torch_geometric.nn.InstanceNorm,
    torch_geometric.nn.MeanSubtractionNorm,
    torch_geometric.nn.PairNorm,
)


def rows_of(x: Any, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Some rows of a tensor or array; of a file that is mapped, nothing else is kept.

    Args:
        x: `[N, ...]`, a tensor, or what NumPy indexes, such as a `numpy.memmap`.
        rows: int64 `[n]`.
        dtype: of the result. Default: that of x.

    >>> rows_of(np.eye(3, dtype=np.float16), torch.tensor([2]), torch.float32)
    tensor([[0., 0., 1.]])
    """
    if isinstance(x, Tensor):
        return x.index_select(0, rows.to(x.device)).to(dtype)
    found = torch.from_numpy(np.ascontiguousarray(x[rows.numpy()])).to(dtype)
    if isinstance(x, np.memmap) and x.mode in ("r", "r+") and hasattr(mmap, "MADV_DONTNEED"):
        getattr(x, "_mmap").madvise(mmap.MADV_DONTNEED)  # noqa: B009  # what was read would count as this process's memory
    return found
