import pytest
import torch
from sklearn.datasets import load_digits
from torch_geometric.utils import contains_isolated_nodes, contains_self_loops, is_undirected

from datasets import digits_graph


@pytest.fixture(scope="module")
def data():
    return digits_graph()


def test_nodes_are_the_digits_of_scikit_learn(data):
    digits = load_digits()
    assert data.x.shape == (1797, 64)
    assert (float(data.x.min()), float(data.x.max())) == (0.0, 1.0)
    assert torch.equal(data.x.double() * 16, torch.from_numpy(digits.data))
    assert torch.equal(data.images.flatten(1), data.x)
    assert data.y.tolist() == digits.target.tolist()
    assert data.class_names == [str(digit) for digit in range(10)]
    assert data.name == "digits"


def test_dtypes_and_masks(data):
    assert (data.x.dtype, data.edge_index.dtype, data.y.dtype) == (
        torch.float32,
        torch.int64,
        torch.int64,
    )
    assert data.y[data.train_mask].bincount().tolist() == [5] * 10
    assert (int(data.val_mask.sum()), int(data.test_mask.sum())) == (500, 1000)
    assert not (data.train_mask & data.val_mask).any()
    assert not ((data.train_mask | data.val_mask) & data.test_mask).any()


def test_edges_are_mutual_nearest_neighbours(data):
    pixels = (data.x.double() * 16).round()
    distance = torch.stack([(pixels - row).square().sum(dim=1) for row in pixels])
    distance.fill_diagonal_(torch.inf)
    # rank[i, j]: how many nodes are nearer to i than j is; a tie goes to the lower number
    order = distance.sort(dim=1, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(1797).expand(1797, 1797))
    for k in (1, 7, 20):
        expected = (rank < k) & (rank.t() < k)
        assert torch.equal(digits_graph(k).edge_index, expected.nonzero().t())


def test_graph_is_simple_undirected_and_nearly_connected(data):
    assert is_undirected(data.edge_index)
    assert not contains_self_loops(data.edge_index)
    assert data.num_edges == 2 * 11794
    assert contains_isolated_nodes(data.edge_index, num_nodes=1797)
    degree = data.edge_index[1].bincount(minlength=1797)
    assert int((degree == 0).sum()) == 3
    assert int(degree.max()) <= 20


def test_neighbours_mostly_show_the_same_digit(data):
    source, target = data.edge_index
    assert (data.y[source] == data.y[target]).float().mean() > 0.96


def test_seed_moves_the_masks_and_nothing_else(data):
    again, other = digits_graph(), digits_graph(seed=1)
    for mask in ("train_mask", "val_mask", "test_mask"):
        assert torch.equal(again[mask], data[mask])
        assert not torch.equal(other[mask], data[mask])
    assert torch.equal(other.edge_index, data.edge_index)


def test_the_test_set_takes_what_remains():
    data = digits_graph(labels_per_class=50)
    assert int(data.test_mask.sum()) == 1797 - 500 - 500


@pytest.mark.parametrize("k", [0, 1797])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"k must lie between 1 and 1796, got {k}"):
        digits_graph(k)
