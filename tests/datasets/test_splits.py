import pytest
import torch

from datasets.splits import few_labels_split, stratified_split


def test_few_labels_split_has_the_sizes_asked_for():
    y = torch.arange(60) % 3
    train, val, test = few_labels_split(y, labels_per_class=4, num_val=10, num_test=20, seed=0)
    assert y[train].bincount().tolist() == [4, 4, 4]
    assert (int(val.sum()), int(test.sum())) == (10, 20)
    assert int((train.int() + val.int() + test.int()).max()) == 1


def test_test_set_takes_what_remains():
    y = torch.arange(30) % 3
    _, _, test = few_labels_split(y, labels_per_class=4, num_val=10, num_test=1000, seed=0)
    assert int(test.sum()) == 30 - 12 - 10


def test_preferred_nodes_are_trained_on_first():
    y = torch.arange(60) % 3
    for seed in range(5):
        train, _, _ = few_labels_split(
            y, labels_per_class=2, num_val=5, num_test=5, seed=seed, first=[57, 58, 59]
        )
        assert train[57:].all()
        assert y[train].bincount().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "sizes, message",
    [
        (dict(labels_per_class=0, num_val=1, num_test=1), "labels_per_class .* 1 and 10.* got 0"),
        (dict(labels_per_class=11, num_val=1, num_test=1), "labels_per_class .* got 11"),
        (dict(labels_per_class=5, num_val=15, num_test=1), "num_val=15 .* 15 nodes"),
        (dict(labels_per_class=5, num_val=-1, num_test=1), "num_val=-1"),
        (dict(labels_per_class=5, num_val=5, num_test=0), "num_test=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        few_labels_split(torch.arange(30) % 3, seed=0, **sizes)


def test_stratified_split_by_hand():
    # 100 nodes: 20 train, 27 val, 53 test. 9 nodes: at most half, 4, then 2 and 3.
    # 2 nodes: 1, 0, 1. 1 node: 1, 0, 0. The 5 unlabelled nodes are nowhere.
    y = torch.tensor([0] * 100 + [1] * 9 + [2] * 2 + [3] + [-1] * 5)
    train, val, test = stratified_split(y, labels_per_class=20, seed=3)
    assert y[train].bincount().tolist() == [20, 4, 1, 1]
    assert y[val].bincount(minlength=4).tolist() == [27, 2, 0, 0]
    assert y[test].bincount(minlength=4).tolist() == [53, 3, 1, 0]
    assert torch.equal(train.int() + val.int() + test.int(), (y >= 0).int())


def test_stratified_split_without_labels_is_empty():
    masks = stratified_split(torch.full((4,), -1), labels_per_class=20, seed=0)
    assert [m.tolist() for m in masks] == [[False] * 4] * 3


def test_stratified_split_refuses_no_labels_per_class():
    with pytest.raises(ValueError, match="labels_per_class must be at least 1, got 0"):
        stratified_split(torch.zeros(4, dtype=torch.long), labels_per_class=0, seed=0)


def test_same_seed_same_split_other_seed_other_split():
    y = torch.arange(60) % 3

    def draw(seed):
        few = few_labels_split(y, labels_per_class=4, num_val=10, num_test=20, seed=seed)
        return torch.stack([*few, *stratified_split(y, labels_per_class=4, seed=seed)])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_the_global_random_state_is_neither_read_nor_moved():
    y = torch.arange(60) % 3
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = stratified_split(y, labels_per_class=4, seed=1)[0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(stratified_split(y, labels_per_class=4, seed=1)[0], first)
