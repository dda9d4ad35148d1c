"""A model over the parts of a graph: the same numbers as over the whole, in several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch_geometric.nn.conv import MessagePassing

from attn_core.distributed import (
    is_on,
    make_alike,
    mean_over,
    sum_over,
    summed_gradients,
    world_size,
)
from gat.conv import (
    AGNNConv,
    FAConv,
    GATConv,
    GATv2Conv,
    GeneralConv,
    GraphAttentionConv,
    RGATConv,
    SuperGATConv,
    TransformerConv,
)
from gat.distributed.partition import Partition
from gat.models.body import AttentionNetwork
from gat.sparse import Dropout

# What looks at all nodes of a graph, of which a process sees its own alone
_ACROSS_NODES = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    torch_geometric.nn.BatchNorm,
    torch_geometric.nn.DiffGroupNorm,
    torch_geometric.nn.GraphNorm,
    torch_geometric.nn.GraphSizeNorm,
    torch_geometric.nn.InstanceNorm,
    torch_geometric.nn.MeanSubtractionNorm,
    torch_geometric.nn.PairNorm,
)
# Those that ask their Edges for the rows of all sources
_FETCHING = (
    AGNNConv,
    FAConv,
    GATConv,
    GATv2Conv,
    GeneralConv,
    GraphAttentionConv,
    RGATConv,
    SuperGATConv,
    TransformerConv,
)
_NEVER: dict[type[nn.Module], str] = {
    torch_geometric.nn.GPSConv: "which attends to all nodes of the graph, of which a process has "
    "some: take the layer of message passing inside of it alone",
    nn.MultiheadAttention: "which attends to all rows it is given, of which a process has some: "
    "take a layer over edges",
    torch_geometric.nn.DenseGATConv: "which takes a whole adjacency matrix: take GATConv, which "
    "takes the edges of a part",
    torch_geometric.nn.HGTConv: "which takes nodes of several types, and a partition has one: give "
    "all types one width, and take RGATConv, which takes types of edges",
    torch_geometric.nn.HANConv: "which takes nodes of several types, and weighs types of edges by "
    "a mean over all nodes: give all types one width, and take RGATConv",
    torch_geometric.nn.HypergraphConv: "whose hyperedges join nodes of several processes there and "
    "back, where a partition knows edges between nodes alone: run it in one process",
}


def parallelize(model: nn.Module, partition: Partition) -> Parallel:
    """Run a model of our layers over a partitioned graph, as if it were over the whole.

    Every layer fetches the rows of foreign nodes before it attends, `partition.edges` takes care of
    that; here the parameters are made those of the first process, and their gradients are summed
    over all. So a loss must be the whole graph's, as `global_mean` and `global_sum` make it, and is
    differentiated by all processes together. (torch's DistributedDataParallel would average the
    gradients, which is for processes with a loss each.)

    torch's random numbers continue in all processes as in the first one, from which attention
    dropout and the dropout of our models then draw what one process would.

    Args:
        model: a layer, one of our models, or a module that contains them, alike in all processes.
        partition: this process's part.

    Returns:
        A module with the model as `module`, to be called with the rows of this process's nodes and
        `partition.edges` in place of an edge_index.

    Raises:
        ValueError: as many processes as the partition has parts are not there; or the model has a
            part that needs all nodes at once, such as batch normalisation.

    >>> import gat
    >>> x, edge_index = torch.randn(4, 8), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    >>> (part,) = Partition.split(edge_index, parts=1)  # in each process its own
    >>> model = parallelize(gat.GAT(8, 16, num_layers=2, out_channels=3), part)
    >>> loss = global_mean(model(part.rows(x), part.edges).square())
    >>> loss.backward()
    """
    return Parallel(model, partition)


class Parallel(nn.Module):
    """What `parallelize` returns.

    Attributes:
        module: the model; its parameters are what an optimiser takes, its `state_dict` what is
            saved.
        partition: this process's part.
    """

    def __init__(self, module: nn.Module, partition: Partition) -> None:
        super().__init__()
        processes = world_size(partition.group)
        if processes != partition.num_parts:
            raise ValueError(
                f"partition has {partition.num_parts} parts, but there are {processes} processes: "
                "start one for each part, after torch.distributed.init_process_group"
            )
        for name, part in module.named_modules():
            if (why := _refusal(part)) is not None:
                raise ValueError(f"{name or 'the model'} is a {type(part).__name__}, {why}")
        self.module, self.partition = module, partition
        group = partition.group
        make_alike(module, group)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for the nodes of this process; the arguments are the model's."""
        with _rows_of(self.module, self.partition.nodes):
            if not (is_on(self.partition.group) and torch.is_grad_enabled()):
                return self.module(*args, **kwargs)
            with summed_gradients(self.module, self.partition.group):
                return self.module(*args, **kwargs)


def _refusal(part: nn.Module) -> str | None:
    """Why a module cannot be served; None if it can."""
    if any(is_lazy(p) for p in part.parameters(recurse=False)):
        return "whose parameters have no shape yet: call it once on a small graph first"
    for never, why in _NEVER.items():
        if isinstance(part, never):
            return why
    if isinstance(part, FAConv) and part.normalize and part.cached:
        return "which keeps one graph for all calls: build it with cached=False"
    if isinstance(part, MessagePassing) and not isinstance(part, _FETCHING):
        known = ", ".join(layer.__name__ for layer in _FETCHING)
        return f"which looks at this process's nodes alone: take {known} (see gat.replace)"
    if isinstance(part, _FETCHING) and part.flow != "source_to_target":
        return f"whose flow is {part.flow!r}: build it with 'source_to_target'"
    if isinstance(part, AttentionNetwork) and part.level != "node":
        return (
            f"whose level is {part.level!r}, where nodes of several processes are joined: build it "
            "with level='node', and join what it gives"
        )
    by_graph = isinstance(part, torch_geometric.nn.LayerNorm) and part.mode == "graph"
    if by_graph or isinstance(part, _ACROSS_NODES):
        return (
            "which looks at all nodes at once, of which a process has some: normalise each node "
            "alone, such as by norm='layer_norm' with norm_kwargs={'mode': 'node'}"
        )
    return None


@contextmanager
def _rows_of(model: nn.Module, nodes: Tensor) -> Iterator[None]:
    """Inside, features are dropped by the numbers of the nodes in the whole graph."""
    parts = [part for part in model.modules() if isinstance(part, Dropout)]
    for part in parts:
        part.rows = nodes
    try:
        yield
    finally:
        for part in parts:
            part.rows = None


def global_sum(values: Tensor, partition: Partition | None = None) -> Tensor:
    """The sum of all processes' values: the same number in each, a loss or a metric.

    Its gradient in a process is that of the process's own values, so that the gradients of
    parameters, summed by `parallelize`, are those of the whole sum.

    Args:
        values: of any shape; empty where a process has none.
        partition: whose processes. Default: all.

    Returns:
        `[]`.

    >>> global_sum(torch.tensor([1.0, 2.0]))
    tensor(3.)
    """
    return sum_over(values.sum(), None if partition is None else partition.group)


def global_mean(
    values: Tensor, partition: Partition | None = None, *, weights: Tensor | None = None
) -> Tensor:
    """The mean over all processes' values, see `global_sum`; NaN where there is none at all.

    Args:
        values: of any shape; empty where a process has none.
        partition: whose processes. Default: all.
        weights: of the values, of their shape. Default: all alike.

    Returns:
        `[]`.

    >>> global_mean(torch.tensor([True, False]).float())  # an accuracy
    tensor(0.5000)
    """
    return mean_over(values, weights, None if partition is None else partition.group)
