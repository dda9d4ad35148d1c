import random
from itertools import pairwise

import pytest
import torch

from datasets import EncodedPairs, Pairs, bucketed, encode_pairs, in_order
from datasets.vocabulary import Vocabulary


@pytest.fixture
def pairs():
    """1,000 pairs whose sources and targets are of related, but different lengths."""
    rng = random.Random(0)
    sizes = [(n := rng.randint(1, 30), max(2, n + rng.randint(-4, 4))) for _ in range(1000)]
    return EncodedPairs(
        [[4 + (i + j) % 50 for j in range(ns)] for i, (ns, _) in enumerate(sizes)],
        [[2, *(4 + (i * j) % 50 for j in range(nt - 2)), 3] for i, (_, nt) in enumerate(sizes)],
    )


def order(batches):
    return [batch.index.tolist() for batch in batches]


def same(left, right):
    return all(
        torch.equal(a, b) for a, b in zip(vars(left).values(), vars(right).values(), strict=True)
    )


def test_batch_by_hand():
    vocabulary = Vocabulary(["a", "b"])
    text = Pairs([["a"], ["b", "a", "z"]], [["b", "b"], []], ["", ""], ["", ""])
    encoded = encode_pairs(text, vocabulary, vocabulary)
    batch = in_order(encoded, batch_size=2)[0]
    assert batch.source.tolist() == [[4, 3, 0, 0], [5, 4, 1, 3]]
    assert batch.target.tolist() == [[2, 5, 5, 3], [2, 3, 0, 0]]
    assert batch.source_lengths.tolist() == [2, 4]
    assert batch.target_lengths.tolist() == [4, 2]
    assert batch.index.tolist() == [0, 1]
    assert (len(batch), batch.num_predictions) == (2, 4)
    assert {tensor.dtype for tensor in vars(batch).values()} == {torch.int64}


def test_begin_and_end_of_sources_are_a_choice():
    vocabulary = Vocabulary(["a"])
    text = Pairs([["a"]], [["a"]], [""], [""])
    both = encode_pairs(text, vocabulary, vocabulary, source_bos=True, source_eos=True)
    none = encode_pairs(text, vocabulary, vocabulary, source_eos=False)
    assert (both.source, none.source) == ([[2, 4, 3]], [[4]])
    assert both.target == none.target == [[2, 4, 3]]


@pytest.mark.parametrize("limit", [{"batch_size": 32}, {"tokens": 500}])
def test_an_epoch_has_every_pair_once_and_unchanged(pairs, limit):
    batches = bucketed(pairs, **limit, seed=0, epoch=0, pool=300)
    assert sorted(i for batch in order(batches) for i in batch) == list(range(1000))
    for batch in batches:
        for row, i in enumerate(batch.index.tolist()):
            for ids, lengths, data in (
                (batch.source, batch.source_lengths, pairs.source),
                (batch.target, batch.target_lengths, pairs.target),
            ):
                size = int(lengths[row])
                assert ids[row, :size].tolist() == data[i]
                assert not ids[row, size:].any()
        assert batch.source.shape[1] == batch.source_lengths.max()
        assert batch.target.shape[1] == batch.target_lengths.max()


def test_batch_size_holds_but_for_the_last_of_a_pool(pairs):
    sizes = [len(batch) for batch in bucketed(pairs, batch_size=32, seed=0, epoch=0, pool=320)]
    # 1000 pairs are three pools of ten batches and one of 40 pairs.
    assert sorted(sizes) == [8] + [32] * 31


def test_tokens_bound_the_padded_size_and_batches_are_filled(pairs):
    batches = bucketed(pairs, tokens=300, seed=0, epoch=0)
    cost = [len(b) * max(b.source.shape[1], b.target.shape[1]) for b in batches]
    assert max(cost) <= 300
    assert sum(cost) / len(cost) > 250


def test_pair_longer_than_tokens_has_a_batch_of_its_own():
    data = EncodedPairs([[5] * 50, [5] * 3, [5] * 3, [5] * 60], [[2, 3]] * 4)
    for batches in (in_order(data, tokens=6), bucketed(data, tokens=6, seed=0, epoch=0)):
        assert sorted(map(sorted, order(batches))) == [[0], [1, 2], [3]]


def test_buckets_save_most_of_the_padding(pairs):
    def padding(batches):
        total = sum(batch.source.numel() + batch.target.numel() for batch in batches)
        return total - sum(map(len, pairs.source)) - sum(map(len, pairs.target))

    shuffled = bucketed(pairs, batch_size=32, seed=0, epoch=0, pool=32)
    assert padding(bucketed(pairs, batch_size=32, seed=0, epoch=0)) < padding(shuffled) / 5


def test_seed_and_epoch_decide_the_order(pairs):
    first = order(bucketed(pairs, batch_size=16, seed=3, epoch=5))
    assert first == order(bucketed(pairs, batch_size=16, seed=3, epoch=5))
    for seed, epoch in ((3, 6), (4, 5), (5, 3)):
        assert first != order(bucketed(pairs, batch_size=16, seed=seed, epoch=epoch))


def test_order_does_not_touch_the_global_generators(pairs):
    state = torch.get_rng_state()
    order(bucketed(pairs, batch_size=16, seed=0, epoch=0))
    assert torch.equal(state, torch.get_rng_state())


def test_batches_come_in_random_order_of_length(pairs):
    lengths = [batch.source.shape[1] for batch in bucketed(pairs, batch_size=10, seed=0, epoch=0)]
    assert lengths != sorted(lengths)
    rising = sum(a <= b for a, b in pairwise(lengths))
    assert 0.3 < rising / (len(lengths) - 1) < 0.75


def test_pairs_of_equal_length_meet_others_in_each_epoch():
    data = EncodedPairs([[5]] * 100, [[2, 3]] * 100)
    groups = [
        {frozenset(batch) for batch in order(bucketed(data, batch_size=10, seed=0, epoch=epoch))}
        for epoch in (0, 1)
    ]
    assert not groups[0] & groups[1]


def test_training_resumes_at_a_batch(pairs):
    batches = list(bucketed(pairs, batch_size=16, seed=1, epoch=2))
    rest = list(bucketed(pairs, batch_size=16, seed=1, epoch=2)[20:])
    assert len(rest) == len(batches) - 20
    assert all(same(a, b) for a, b in zip(batches[20:], rest, strict=True))
    assert len(bucketed(pairs, batch_size=16, seed=1, epoch=2)[1000:]) == 0


def test_evaluation_keeps_the_order_or_restores_it(pairs):
    plain = in_order(pairs, batch_size=7)
    assert [i for batch in order(plain) for i in batch] == list(range(1000))
    by_length = in_order(pairs, batch_size=7, by_length=True)
    lengths = [n for batch in by_length for n in batch.source_lengths.tolist()]
    assert lengths == sorted(lengths)
    results = [row.tolist() for batch in by_length for row in batch.target]
    for row, target in zip(by_length.restore(results), pairs.target, strict=True):
        assert row[: len(target)] == target


def test_restore_asks_for_one_result_per_pair(pairs):
    with pytest.raises(ValueError, match="one for each of the 1000 pairs, got 3"):
        in_order(pairs, batch_size=7).restore([1, 2, 3])


def test_no_pairs_give_no_batches():
    nothing = EncodedPairs([], [])
    assert len(bucketed(nothing, batch_size=2, seed=0, epoch=0)) == 0
    assert in_order(nothing, tokens=2).restore([]) == []


def test_batch_moves_to_a_device(pairs):
    batch = in_order(pairs, batch_size=3)[0]
    assert same(batch.to("cpu"), batch)
    assert batch.to("meta").source.device.type == "meta"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "either batch_size or tokens, got batch_size=None and tokens=None"),
        ({"batch_size": 2, "tokens": 3}, "either batch_size or tokens, got batch_size=2"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"tokens": 0}, "tokens must be at least 1, got 0"),
        ({"batch_size": 2, "pool": 0}, "pool must be at least 1, got 0"),
        ({"batch_size": 2, "seed": -1}, "seed must be 0 or more, got -1"),
        ({"batch_size": 2, "epoch": -1}, "epoch must be 0 or more, got -1"),
    ],
)
def test_bad_arguments_are_named(pairs, arguments, message):
    with pytest.raises(ValueError, match=message):
        bucketed(pairs, **{"seed": 0, "epoch": 0, **arguments})
