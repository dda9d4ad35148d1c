"""Sampled mini-batches that are shared out to processes are those of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gat
from gat.loader import NeighborSampler

NODES, EDGES, BATCH = 120, 1500, 40


def train(rank: int, world: int) -> list[float]:
    """The losses of three epochs, as one process would see them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NODES, 6, generator=generator, dtype=torch.float64)
    edge_index = torch.randint(0, NODES, (2, EDGES), generator=generator)
    labels = torch.randint(0, 3, (NODES,), generator=generator)
    torch.manual_seed(2)
    model: nn.Module = gat.GATv2(6, 8, 2, 3, heads=2).double()
    if world > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sampler = NeighborSampler(edge_index, [4, 3], num_nodes=NODES, seed=3)
    found = []
    for sampler.epoch in range(3):
        order = torch.randperm(NODES, generator=torch.Generator().manual_seed(sampler.epoch))
        for batch in order.split(BATCH):
            nodes = batch.chunk(world)[rank]
            blocks = sampler.blocks(nodes)
            out = model(x[blocks[0].sources], [block.edges for block in blocks])
            loss = nn.functional.cross_entropy(out, labels[nodes])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


@pytest.mark.parametrize("world", [2, 4])
def test_the_curve_does_not_depend_on_the_number_of_processes(
    in_processes: Any, world: int
) -> None:
    losses = in_processes(__file__, "train", world)
    each = torch.tensor(losses, dtype=torch.float64).mean(0)
    torch.testing.assert_close(each.tolist(), train(0, 1), rtol=1e-10, atol=1e-10)
