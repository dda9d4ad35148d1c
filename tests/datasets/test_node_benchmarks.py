"""The graphs of tuned baselines: their sizes, splits and features, as published."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from datasets import GraphFileError, from_npz, gnn_benchmark, heterophilous, tudataset

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


def written(path, **changes):
    """A file as Platonov et al. have it, of five nodes; what is None is left out."""
    arrays = {
        "node_features": np.eye(5), "node_labels": np.array([0, 1, 0, 1, -1]),
        "edges": np.array([[0, 1], [1, 0], [2, 2], [3, 4]]),
        "train_masks": np.array([[1, 1, 0, 0, 1], [0, 1, 1, 0, 0]], bool),
        "val_masks": np.array([[0, 0, 1, 0, 0], [1, 0, 0, 0, 0]], bool),
        "test_masks": np.array([[0, 0, 0, 1, 0], [0, 0, 0, 1, 0]], bool),
        "names": np.array(["a", None], object),  # which is not read
    }  # fmt: skip
    kept = {name: x for name, x in {**arrays, **changes}.items() if x is not None}
    np.savez(path, **kept)
    return path


def test_a_graph_of_ones_own_in_the_layout_of_heterophilous_graphs(tmp_path):
    data = from_npz(written(tmp_path / "own.npz"))
    assert data.name == "own" and data.x.dtype == torch.float32
    assert data.edge_index.t().tolist() == [[0, 1], [1, 0], [3, 4], [4, 3]]
    assert data.y.tolist() == [0, 1, 0, 1, -1] and data.class_names == ["0", "1"]
    assert data.train_mask.t().int().tolist() == [[1, 1, 0, 0, 0], [0, 1, 1, 0, 0]]  # not the last
    assert data.val_mask.shape == data.test_mask.shape == (5, 2)


def test_a_graph_of_ones_own_in_the_layout_of_shchur(tmp_path):
    adjacency = csr_matrix(np.array([[0, 1, 0], [0, 1, 1], [0, 0, 0]], np.float32))
    features = csr_matrix(np.array([[1, 3], [0, 0], [2, 0]], np.float32))
    parts = {
        f"{kind}_{part}": getattr(matrix, part)
        for kind, matrix in (("adj", adjacency), ("attr", features))
        for part in ("data", "indices", "indptr", "shape")
    }
    many = 10  # copies beside each other
    np.savez(tmp_path / "small.npz", labels=np.array([1, -1, 2]), **parts)
    with pytest.raises(GraphFileError, match="no node with a label is in val_masks"):
        from_npz(tmp_path / "small.npz")
    large = {"adj": np.kron(np.eye(many), adjacency.toarray()),
             "attr": np.tile(features.toarray(), (many, 1))}  # fmt: skip
    for kind, matrix in large.items():
        parts.update({f"{kind}_{p}": getattr(csr_matrix(matrix), p)
                      for p in ("data", "indices", "indptr", "shape")})  # fmt: skip
    np.savez(tmp_path / "large.npz", labels=np.tile([1, 0, 2], many), **parts)
    data = from_npz(tmp_path / "large.npz", splits=4)
    assert data.x[:3].tolist() == [[0.25, 0.75], [0, 0], [1, 0]]
    assert data.edge_index[:, :4].t().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1]]
    masks = [data[f"{split}_mask"] for split in ("train", "val", "test")]
    assert [mask.sum(0).tolist() for mask in masks] == [[18] * 4, [6] * 4, [6] * 4]
    assert torch.equal(sum(mask.int() for mask in masks), torch.ones(30, 4).int())
    assert not torch.equal(data.train_mask[:, 0], data.train_mask[:, 1])
    again = from_npz(tmp_path / "large.npz", splits=4)
    assert torch.equal(again.train_mask, data.train_mask)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"edges": None}, "it has the arrays names, node_features, .*; save node_features, node_l"),
        ({"edges": np.array([[0, 5]])}, "edges are int64, 0 to 5; number the 5 nodes from 0"),
        ({"edges": np.array([[-1, 0]])}, "edges are int64, -1 to 0"),
        ({"edges": np.zeros((0, 2))}, "edges are float64; number"),
        ({"edges": np.array([0, 1])}, r"edges have shape \[2\]; save one row per edge"),
        ({"node_labels": np.array([0.0, 1, 0, 1, 2])}, r"labels are float64 of shape \[5\]"),
        ({"node_features": np.eye(4)}, r"features of shape \[4, 4\] for 5 labels"),
        ({"node_features": np.full((5, 1), np.nan)}, "or not finite; save"),
        ({"node_features": np.array([[None]] * 5)}, "no readable npz file"),
        ({"val_masks": None}, r"of train_masks, test_masks, train_masks has shape .*all three"),
        ({"val_masks": np.ones((1, 5), bool)}, r"val_masks has shape \[1, 5\]; save all three as"),
        ({"val_masks": np.zeros((2, 5), bool)}, "no node with a label is in val_masks; label more"),
    ],
)
def test_what_is_wrong_in_a_file_is_told(changes, told, tmp_path):
    with pytest.raises(GraphFileError, match=rf"own\.npz: .*{told}"):
        from_npz(written(tmp_path / "own.npz", **changes))


def test_splits_are_drawn_at_least_once(tmp_path):
    with pytest.raises(ValueError, match="splits is 0; draw one at least"):
        from_npz(tmp_path / "own.npz", splits=0)
