"""The baselines on graphs small enough to work out by hand."""

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from examples._baselines import baselines, label_spreading, logistic_regression, majority


def mask(size, *nodes):
    return torch.isin(torch.arange(size), torch.tensor(nodes))


@pytest.fixture
def two_paths():
    """0-1-2-3 of class 0 and 4-5-6-7 of class 1; the features know nothing of it."""
    return Data(
        x=torch.ones(8, 2),
        edge_index=torch.tensor([[0, 1, 2, 4, 5, 6], [1, 2, 3, 5, 6, 7]]),
        y=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        train_mask=mask(8, 0, 4),
        val_mask=mask(8, 1, 5),
        test_mask=mask(8, 2, 3, 6, 7),
        class_names=["a", "b"],
    )


def test_majority_counts_training_nodes_only(two_paths):
    two_paths.train_mask = mask(8, 0, 4, 5)
    two_paths.val_mask = mask(8, 1, 2)
    assert majority(two_paths)[:4] == ("majority class", "b", 0.0, 0.5)


def test_majority_settles_ties_by_validation(two_paths):
    two_paths.val_mask = mask(8, 1, 5, 6)
    two_paths.test_mask = mask(8, 2, 3, 7)
    name, setting, val, test, _ = majority(two_paths)
    assert (name, setting) == ("majority class", "b")
    assert (val, test) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_label_spreading_follows_the_edges_both_ways(two_paths):
    found = label_spreading(two_paths)
    assert (found.val_accuracy, found.test_accuracy) == (1.0, 1.0)
    two_paths.edge_index = two_paths.edge_index.flip(0)
    assert label_spreading(two_paths) == found


def test_label_spreading_counts_an_edge_once(two_paths):
    # 3 hangs between the classes: two neighbours of class 1, one of class 0 whose edge is listed
    # five times, with a loop.
    copies = torch.tensor([[0, 3, 3, 4, 5], [3, 0, 3, 3, 3]]).repeat(1, 5)
    two_paths.edge_index = copies
    two_paths.train_mask, two_paths.val_mask = mask(8, 0, 4, 5), mask(8, 3)
    two_paths.y[3] = 1
    assert label_spreading(two_paths).val_accuracy == 1.0


@pytest.mark.parametrize(("truth", "setting"), [(0, "alpha = 0.1"), (1, "alpha = 0.99")])
def test_label_spreading_chooses_by_validation(truth, setting):
    # Node 0 has one neighbour of class 0 (node 1), and ten of class 1 two steps away (7 to 16)
    # behind five without a label (2 to 6). A small alpha heeds the nearest, a large one the many.
    between = torch.arange(2, 7)
    edges = [
        torch.tensor([[0], [1]]),
        torch.stack([torch.zeros_like(between), between]),
        torch.stack([between, between + 5]),
        torch.stack([between, between + 10]),
    ]
    data = Data(
        x=torch.ones(17, 1),
        edge_index=torch.cat(edges, dim=1),
        y=torch.tensor([truth, 0] + [1] * 15),
        train_mask=mask(17, 1, *range(7, 17)),
        val_mask=mask(17, 0),
        test_mask=mask(17, 2, 3),
        class_names=["a", "b"],
    )
    found = label_spreading(data)
    assert (found.setting, found.val_accuracy, found.test_accuracy) == (setting, 1.0, 1.0)


def test_label_spreading_without_edges(two_paths):
    two_paths.edge_index = torch.empty(2, 0, dtype=torch.long)
    assert 0 <= label_spreading(two_paths).test_accuracy <= 0.5


def test_logistic_regression_looks_at_features_only(two_paths):
    assert logistic_regression(two_paths).test_accuracy == 0.5
    two_paths.x[:, 0] = two_paths.y
    two_paths.edge_index = torch.tensor([[0], [7]])
    assert logistic_regression(two_paths).test_accuracy == 1.0


def test_logistic_regression_is_regularised_by_validation():
    # One informative feature among forty of noise: the strongest penalty is not the best.
    rng = np.random.default_rng(0)
    y = torch.arange(400) % 2
    x = torch.tensor(rng.normal(size=(400, 40)), dtype=torch.float32)
    x[:, 0] += 4 * y
    data = Data(
        x=x,
        edge_index=torch.empty(2, 0, dtype=torch.long),
        y=y,
        train_mask=torch.arange(400) < 40,
        val_mask=(torch.arange(400) >= 40) & (torch.arange(400) < 200),
        test_mask=torch.arange(400) >= 200,
        class_names=["a", "b"],
    )
    found = logistic_regression(data)
    assert found.setting != "C = 10000" and found.test_accuracy > 0.9


def test_one_class_to_learn_from(two_paths):
    two_paths.train_mask = mask(8, 4)
    assert [found.test_accuracy for found in baselines(two_paths)] == [0.5, 0.5, 0.5]
