import pytest

from datasets import Pairs, Tokenizer


def test_text_stays_as_it_was_read_while_tokens_are_lower_cased():
    characters = Tokenizer("characters", lower=True)
    pairs = Pairs.from_text(["Ab", "C"], ["D", "eF"], characters, Tokenizer("characters"))
    assert pairs.source == [["a", "b"], ["c"]]
    assert pairs.target == [["D"], ["e", "F"]]
    assert (pairs.source_text, pairs.target_text) == (["Ab", "C"], ["D", "eF"])
    assert len(pairs) == 2


def test_sides_of_different_length_are_refused():
    with pytest.raises(ValueError, match="got 1, 2, 1, 1 entries"):
        Pairs([["a"]], [["b"], ["c"]], ["a"], ["b"])
