"""Ways to train on a graph that is too large for one step of one process.

`Parts`: each process holds a part of the graph, and a step looks at all of it. `Samples`: a step
looks at some nodes and at some of their neighbours, and the processes share the nodes. Either gives
a step's loss, and judges a model on the whole graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Data

from examples.shared.files import UserError
from examples.shared.processes import rank, world_size
from gat.distributed import Partition, global_mean, global_sum, parallelize
from gat.loader import NeighborSampler, infer

Losses = Callable[[Tensor, Tensor], Tensor]  # of logits and labels, one for each node


class Way(Protocol):
    """What a training asks of a way."""

    def batches(self, epoch: int) -> Sequence[Any]:
        """What the steps of an epoch look at."""

    def loss(self, batch: Any, losses: Losses) -> Tensor:
        """The mean loss of a step over all processes; its gradient is this process's share."""

    def judge(self, model: Any) -> Judge:
        """A model as one that is asked about the whole graph."""


class Judge:
    """Logits of the whole graph, in every process, by whatever way."""

    def __init__(self, model: Any, logits: Callable[[Any], Tensor]) -> None:
        self.model, self.logits = model, logits

    def eval(self) -> Judge:
        self.model.eval()
        return self

    def __call__(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None = None) -> Tensor:
        return self.logits(self.model)


def way_of(data: Data, model: nn.Module, sampled: Sequence[int], batch: int) -> Way | None:
    """The way that the options name; None: the whole graph in each step of one process.

    Raises:
        UserError: the data are several graphs, which need none of this.
    """
    if not sampled and world_size() == 1:
        return None
    if "graph" in data:
        raise UserError(
            f"{data.name} is many small graphs, which are not cut: leave out --sampled, and start "
            "one process"
        )
    return Samples(data, model, sampled, batch) if sampled else Parts(data, model)


def _dense(x: Tensor) -> Tensor:
    return x if x.layout == torch.strided else x.to_dense()


class Parts:
    """A part of the graph for each process."""

    def __init__(self, data: Data, model: nn.Module) -> None:
        graph = data.edge_index.cpu()
        part = Partition.split(graph, world_size(), data.num_nodes)[rank()]
        self.part = part = part.to(data.y.device)
        self.model, self.x = parallelize(model, part), part.rows(_dense(data.x))
        self.edge_attr = part.edge_rows(data.edge_attr) if "edge_attr" in data else None
        self.y, self.mask = part.rows(data.y), part.rows(data.train_mask)

    def batches(self, epoch: int) -> Sequence[None]:
        return [None]

    def loss(self, batch: None, losses: Losses) -> Tensor:
        logits = self.model(self.x, self.part.edges, edge_attr=self.edge_attr)
        return global_mean(losses(logits[self.mask], self.y[self.mask]), self.part)

    def judge(self, model: Any) -> Judge:
        def logits(model: Any) -> Tensor:
            return self.part.collect(model(self.x, self.part.edges, edge_attr=self.edge_attr))

        return Judge(model, logits)


class Samples:
    """Some of the training nodes in each step, and drawn neighbours, layer by layer."""

    def __init__(self, data: Data, model: nn.Module, fan_out: Sequence[int], batch: int) -> None:
        layers: Any = model
        if len(fan_out) != layers.num_layers:
            raise UserError(
                f"--sampled has {len(fan_out)} numbers, but the model has {layers.num_layers} "
                "layers: give one for each, the last layer's first"
            )
        self.data, self.batch, self.x = data, batch, _dense(data.x)
        self.edge_attr = data.get("edge_attr")
        self.sampler = NeighborSampler(data.edge_index, fan_out, num_nodes=data.num_nodes, seed=0)
        self.nodes = data.train_mask.nonzero().squeeze(1)
        self.model = DistributedDataParallel(model) if world_size() > 1 else model

    def batches(self, epoch: int) -> Sequence[tuple[int, Tensor]]:
        order = self.nodes[torch.randperm(len(self.nodes))]
        return [(epoch, nodes) for nodes in order.split(self.batch)]

    def loss(self, batch: tuple[int, Tensor], losses: Losses) -> Tensor:
        self.sampler.epoch, nodes = batch
        mine = nodes.tensor_split(world_size())[rank()]
        blocks = self.sampler.blocks(mine)
        attr = None
        if self.edge_attr is not None:
            attr = [self.edge_attr[block.edge_ids] for block in blocks]
        edges = [block.edges for block in blocks]
        logits = self.model(self.x[blocks[0].sources], edges, edge_attr=attr)
        of_nodes = losses(logits, self.data.y[mine])
        of_nodes = of_nodes.mean(1) if of_nodes.dim() == 2 else of_nodes  # over several labels
        share = of_nodes.sum() / len(nodes)
        # DistributedDataParallel takes the mean of what are summands of a mean
        return share * world_size() + (global_sum(share) - share * world_size()).detach()

    def judge(self, model: Any) -> Judge:
        def logits(model: Any) -> Tensor:
            return infer(model, self.x, self.data.edge_index, edge_attr=self.edge_attr)

        return Judge(model, logits)
