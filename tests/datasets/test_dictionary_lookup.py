"""The graphs are those of the paper: who is joined to whom, what is asked, what is held out."""

from itertools import permutations

import pytest
import torch
from torch_geometric.loader import DataLoader

from datasets import LookupGraphs, dictionary_lookup


def test_every_query_hears_from_every_key_and_from_nobody_else():
    graph = dictionary_lookup(5).train[0]
    source, target = graph.edge_index
    assert graph.query_mask.tolist() == [True] * 5 + [False] * 5
    assert sorted(zip(target.tolist(), source.tolist(), strict=True)) == [
        (query, key) for query in range(5) for key in range(5, 10)
    ]


def test_the_answer_is_the_value_of_the_key_with_the_attribute_of_the_query():
    data = dictionary_lookup(6, seed=3)
    for graph in (data.train[7], data.test[-1]):
        dictionary = dict(graph.x[~graph.query_mask].tolist())
        assert sorted(dictionary) == sorted(dictionary.values()) == list(range(6))
        asked, unknown = graph.x[graph.query_mask].t().tolist()
        assert asked == list(range(6)) and set(unknown) == {6}
        assert graph.y.tolist() == [dictionary[attribute] for attribute in asked]


def test_small_dictionaries_are_all_there_each_once():
    data = dictionary_lookup(5, seed=1)
    found = data.train.values.tolist() + data.test.values.tolist()
    assert sorted(found) == [list(row) for row in permutations(range(5))]


def test_large_ones_are_as_many_as_the_authors_draw_and_as_evenly_spread():
    data = dictionary_lookup(10)
    values = torch.cat([data.train.values, data.test.values])
    assert values.shape == (32_000, 10)
    for column in values.t():  # 3,200 of each expected, with a standard deviation of 54
        assert (column.bincount(minlength=10) - 3200).abs().max() < 300
    # 97 of 100 pairs are seen; 0.97^10 = 74 %, and a little less where two lie in one row
    assert int(data.seen.sum()) == 97
    assert 0.70 < len(data.train) / 32_000 < 0.75


@pytest.mark.parametrize(("k", "fraction", "pairs"), [(2, 0.8, 3), (4, 0.8, 15), (10, 0.5, 93)])
def test_every_test_graph_has_a_pair_that_training_has_not(k, fraction, pairs):
    data = dictionary_lookup(k, seed=2, train_fraction=fraction)
    keys = torch.arange(k)
    assert int(data.seen.sum()) == pairs
    assert data.seen[keys, data.train.values].all()
    assert not data.seen[keys, data.test.values].all(dim=1).any()


def test_the_seed_decides_everything():
    first, again, other = (dictionary_lookup(10, seed=seed, max_graphs=500) for seed in (0, 0, 1))
    for part in ("train", "test"):
        assert torch.equal(getattr(first, part).values, getattr(again, part).values)
    assert torch.equal(first.seen, again.seen) and not torch.equal(first.seen, other.seen)
    assert not torch.equal(first.train.values[:100], other.train.values[:100])


def test_training_graphs_are_shuffled():
    values = dictionary_lookup(6).train.values.tolist()
    assert values != sorted(values)


def test_a_batch_is_what_torch_geometric_makes_of_the_same_graphs():
    graphs = dictionary_lookup(4).train
    theirs = next(iter(DataLoader(graphs, batch_size=3)))
    ours = graphs.batch(torch.tensor([0, 1, 2]))
    for name in ("x", "edge_index", "y", "query_mask"):
        assert torch.equal(ours[name], theirs[name])
    assert torch.equal(graphs.batch(slice(2, 3)).x, graphs[2].x)


def test_graphs_end_where_they_end():
    graphs = LookupGraphs(torch.tensor([[0, 1], [1, 0]]))
    assert [graph.y.tolist() for graph in graphs] == [[0, 1], [1, 0]]
    assert graphs[-1].y.tolist() == [1, 0]
    with pytest.raises(IndexError):
        graphs[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "k must be at least 2, got 1"),
        ({"train_fraction": 1.0}, "between 0 and 1, got 1.0"),
        ({"train_fraction": 0}, "between 0 and 1, got 0"),
        ({"max_graphs": 1}, "max_graphs must be at least 2, got 1"),
        ({"k": 2, "train_fraction": 0.01}, "0 graphs to train and 2 to test on: .* larger"),
        ({"train_fraction": 1 - 1e-16}, "to train and 0 to test on: .* smaller"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        dictionary_lookup(**options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor([[0, 1], [1, 1]]), r"permutation of 0 … 1, got \[1, 1\]"),
        (torch.tensor([0, 1]), r"int64 of shape \[graphs, k\], got torch.int64 of shape \[2\]"),
        (torch.eye(2), "got torch.float32"),
    ],
)
def test_values_that_are_no_dictionaries(values, message):
    with pytest.raises(ValueError, match=message):
        LookupGraphs(values)
