import networkx as nx
import pytest
import torch
from torch_geometric.utils import is_undirected

from datasets import karate_club


def test_statistics():
    data = karate_club()
    assert (data.num_nodes, data.num_edges) == (34, 2 * 78)
    assert is_undirected(data.edge_index)
    assert data.y.bincount().tolist() == [17, 17]
    assert data.class_names == ["Mr. Hi", "Officer"]
    assert torch.equal(data.x, torch.eye(34))
    assert (data.edge_index.dtype, data.y.dtype) == (torch.int64, torch.int64)


def test_edges_and_labels_are_those_of_networkx():
    data, club = karate_club(), nx.karate_club_graph()
    both = {*club.edges, *((b, a) for a, b in club.edges)}
    assert set(map(tuple, data.edge_index.t().tolist())) == both
    names = [data.class_names[c] for c in data.y.tolist()]
    assert names == [club.nodes[node]["club"] for node in range(34)]


def test_the_leaders_are_the_only_labels_by_default():
    for seed in range(3):
        data = karate_club(seed=seed)
        assert data.train_mask.nonzero().flatten().tolist() == [0, 33]
        assert (int(data.val_mask.sum()), int(data.test_mask.sum())) == (8, 24)
    assert not torch.equal(karate_club(seed=0).val_mask, karate_club(seed=1).val_mask)
    assert torch.equal(karate_club(seed=1).val_mask, karate_club(seed=1).val_mask)


def test_more_labels_keep_the_leaders():
    data = karate_club(labels_per_class=3)
    assert data.y[data.train_mask].bincount().tolist() == [3, 3]
    assert data.train_mask[[0, 33]].all()
    covered = data.train_mask.int() + data.val_mask.int() + data.test_mask.int()
    assert covered.tolist() == [1] * 34


def test_too_many_labels():
    with pytest.raises(ValueError, match=r"labels_per_class .* got 18"):
        karate_club(labels_per_class=18)
