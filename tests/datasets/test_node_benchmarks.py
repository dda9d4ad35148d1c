"""The graphs of tuned baselines: their sizes, splits and features, as published."""

import os
from pathlib import Path

import pytest
import torch

from datasets import gnn_benchmark, heterophilous, tudataset

needs_data = pytest.mark.skipif(
    not Path(os.environ.get("GAT_DATA", ""), "heterophilous").is_dir(),
    reason="reads the files: set GAT_DATA to a folder that has them in heterophilous/ and others",
)


@needs_data
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "channels", "classes"),
    [
        ("minesweeper", 10_000, 39_402, 7, 2),
        ("squirrel-filtered", 2_223, 46_998, 2_089, 5),
        ("chameleon-filtered", 890, 8_854, 2_325, 5),
    ],
)
def test_heterophilous_graphs_are_those_published(name, nodes, edges, channels, classes):
    data = heterophilous(name)
    assert (data.num_nodes, data.num_edges, data.num_features) == (nodes, 2 * edges, channels)
    assert data.is_undirected() and not data.has_self_loops()
    assert len(data.class_names) == classes == int(data.y.max()) + 1
    masks = [data[f"{split}_mask"] for split in ("train", "val", "test")]
    assert torch.equal(sum(mask.int() for mask in masks), torch.ones(nodes, 10).int())
    shares = [mask.float().mean().item() for mask in masks]
    assert shares == pytest.approx((0.5, 0.25, 0.25) if nodes == 10_000 else (0.48, 0.32, 0.20),
                                   abs=0.03)  # fmt: skip


@needs_data
@pytest.mark.parametrize(
    ("name", "nodes", "edges", "channels", "classes"),
    [("computers", 13_752, 245_861, 767, 10), ("coauthor-cs", 18_333, 81_894, 6_805, 15)],
)
def test_graphs_of_products_and_authors_are_those_published(name, nodes, edges, channels, classes):
    data = gnn_benchmark(name)
    assert (data.num_nodes, data.num_edges, data.num_features) == (nodes, 2 * edges, channels)
    assert len(data.class_names) == classes == int(data.y.max()) + 1
    sums = data.x.sum(1)
    torch.testing.assert_close(sums[sums > 0], torch.ones(int((sums > 0).sum())))
    masks = torch.cat([data[f"{split}_mask"] for split in ("train", "val", "test")], dim=1)
    assert masks.int().sum(1).tolist() == [1] * nodes
    assert masks.float().mean(0).tolist() == pytest.approx([0.6, 0.2, 0.2], abs=0.001)


@needs_data
@pytest.mark.parametrize(
    ("name", "graphs", "tags", "classes", "edges"),
    [
        ("PROTEINS", 1_113, 3, [663, 450], 72.82),
        ("ENZYMES", 600, 3, [100] * 6, 62.14),
        ("NCI1", 4_110, 37, [2_053, 2_057], 32.30),
    ],
)
def test_collections_of_graphs_are_those_published(name, graphs, tags, classes, edges):
    found = tudataset(name)
    assert len(found) == graphs
    assert torch.cat([graph.y for graph in found]).bincount().tolist() == classes
    assert sum(graph.num_edges for graph in found) / 2 / graphs == pytest.approx(edges, abs=0.01)
    for graph in found[:50]:
        assert graph.is_undirected() and graph.num_features == tags
        assert torch.equal(graph.x.sum(1), torch.ones(graph.num_nodes))


def test_names_that_are_not_known_are_told():
    for load, name in ((heterophilous, "actor"), (gnn_benchmark, "photo"), (tudataset, "MUTAG")):
        with pytest.raises(ValueError, match=f"name is '{name}'; expected one of '"):
            load(name)
