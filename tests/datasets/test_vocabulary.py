import json
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets import VocabularyError
from datasets.vocabulary import BOS, EOS, PAD, SPECIALS, UNK, Vocabulary

SENTENCES = [["b", "a", "c"], ["a", "b"], ["a", "d"]]


def test_special_symbols_have_fixed_numbers():
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    assert Vocabulary(["x"]).tokens == ["<pad>", "<unk>", "<bos>", "<eos>", "x"]


def test_tokens_come_by_frequency_then_alphabet():
    assert Vocabulary.build(SENTENCES).tokens[4:] == ["a", "b", "c", "d"]
    assert Vocabulary.build(SENTENCES) == Vocabulary.build(SENTENCES[::-1])


def test_min_count_and_max_size_leave_out_the_rare():
    assert Vocabulary.build(SENTENCES, min_count=2).tokens[4:] == ["a", "b"]
    assert len(Vocabulary.build(SENTENCES, max_size=7)) == 7
    assert Vocabulary.build(SENTENCES, max_size=7).tokens[4:] == ["a", "b", "c"]


def test_encode_marks_unknown_begin_and_end():
    vocabulary = Vocabulary(["a", "b"])
    assert vocabulary.encode(["b", "z", "a"]) == [5, UNK, 4]
    assert vocabulary.encode(["a"], bos=True, eos=True) == [BOS, 4, EOS]
    assert vocabulary.encode([], eos=True) == [EOS]


@given(st.lists(st.text(max_size=3)))
def test_decode_reverses_encode_but_for_specials(tokens):
    vocabulary = Vocabulary(sorted({"known", *tokens} - set(SPECIALS)))
    numbers = [*vocabulary.encode(tokens, bos=True, eos=True), PAD, PAD]
    assert vocabulary.decode(numbers) == [t if t not in SPECIALS else "<unk>" for t in tokens]


def test_decode_stops_at_the_end_and_reads_tensors():
    vocabulary = Vocabulary(["a", "b"])
    assert vocabulary.decode(torch.tensor([2, 4, 0, 1, 3, 5, 99])) == ["a", "<unk>"]


def test_text_cannot_inject_special_symbols():
    vocabulary = Vocabulary.build([["<eos>", "<pad>", "a"]])
    assert vocabulary.tokens[4:] == ["a"]
    assert vocabulary.encode(["<eos>", "<pad>", "<bos>", "a"]) == [UNK, UNK, UNK, 4]
    assert "<eos>" not in vocabulary and "a" in vocabulary


def test_number_outside_is_refused():
    for number in (6, -1):
        with pytest.raises(ValueError, match=f"numbers must be from 0 to 5, got {number}"):
            Vocabulary(["a", "b"]).decode([4, number])


def test_dict_goes_through_json_and_pickle():
    vocabulary = Vocabulary(["ä", "\n", "日", '"'])
    again = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    for copy in (again, pickle.loads(pickle.dumps(vocabulary))):
        assert copy == vocabulary
        assert copy.fingerprint == vocabulary.fingerprint
        assert copy.encode(["日"]) == [6]


def test_fingerprint_depends_on_tokens_and_order_and_stays_over_time():
    fingerprints = {Vocabulary(t).fingerprint for t in (["a", "b"], ["b", "a"], ["ab"], ["a"])}
    assert len(fingerprints) == 4
    assert Vocabulary(["a", "b"]).fingerprint[:16] == "fbabcf8170114c0b"


def test_other_vocabulary_is_refused_by_name():
    trained, other = Vocabulary(["a", "b"]), Vocabulary(["a", "c"])
    trained.check(Vocabulary(["a", "b"]).fingerprint)
    with pytest.raises(VocabularyError) as error:
        other.check(trained.fingerprint, "source vocabulary")
    for part in ("the source vocabulary has 6 entries", trained.fingerprint[:8], "saved with"):
        assert part in str(error.value)


def test_damaged_dict_is_refused():
    content = Vocabulary(["a", "b"]).to_dict()
    with pytest.raises(VocabularyError, match="saved vocabulary"):
        Vocabulary.from_dict({**content, "tokens": ["a", "x"]})
    with pytest.raises(VocabularyError, match=r"has tokens and fingerprint, got \['tokens'\]"):
        Vocabulary.from_dict({"tokens": ["a"]})
    with pytest.raises(VocabularyError, match="tokens must be text, got 7"):
        Vocabulary.from_dict({**content, "tokens": ["a", 7]})


@pytest.mark.parametrize("tokens, twice", [(["a", "b", "a"], "'a'"), (["<eos>"], "'<eos>'")])
def test_tokens_listed_twice_are_refused(tokens, twice):
    with pytest.raises(VocabularyError, match=f"{twice} is there twice"):
        Vocabulary(tokens)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"min_count": 0}, "min_count must be at least 1, got 0"),
        ({"max_size": 4}, "max_size must be more than the 4 special symbols, got 4"),
        ({"min_count": 4}, "no token of sentences occurs min_count=4 times"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Vocabulary.build(SENTENCES, **arguments)
