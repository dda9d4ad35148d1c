import dataclasses
import pickle
import re

import pytest

from datasets import Tokenizer


def test_moses_words_of_english():
    text = "The man's dog doesn't bark; it's 2.5 years old, well-known (and \"fat\")."
    tokenizer = Tokenizer("words", "en")
    tokens = tokenizer.tokenize(text)
    assert " ".join(tokens) == (
        "The man 's dog doesn 't bark ; it 's 2.5 years old , well-known ( and \" fat \" ) ."
    )
    assert tokenizer.detokenize(tokens) == text


def test_moses_words_of_german():
    text = "Die Größe des „T-Shirts“ ist z.B. 1,5 Meter, sagt Dr. Müller."
    tokenizer = Tokenizer("words", "de")
    tokens = tokenizer.tokenize(text)
    assert " ".join(tokens) == ("Die Größe des „ T-Shirts “ ist z.B. 1,5 Meter , sagt Dr. Müller .")
    assert tokenizer.detokenize(tokens) == text


def test_language_decides_where_an_apostrophe_splits():
    assert Tokenizer("words", "fr").tokenize("l'eau") == ["l'", "eau"]
    assert Tokenizer("words", "en").tokenize("l'eau") == ["l", "'eau"]


def test_nothing_is_escaped():
    tokens = Tokenizer().tokenize("a & b | <c> [d] 'e'")
    assert set("&|<>[]") <= set(tokens)
    assert not any(token.endswith(";") for token in tokens)
    assert Tokenizer().detokenize(["&amp;", "&quot;"]) == "&amp; &quot;"


def test_lower_case_keeps_abbreviations_whole():
    assert Tokenizer(lower=True).tokenize("Dr. Who Runs.") == ["dr.", "who", "runs", "."]


def test_characters_round_trip_and_spaces_are_characters():
    tokenizer = Tokenizer("characters")
    assert tokenizer.tokenize(" 5\u00a0März\t2001 ") == list("5 März 2001")
    assert tokenizer.detokenize(tokenizer.tokenize("5 März 2001")) == "5 März 2001"


@pytest.mark.parametrize("unit", ["words", "characters"])
def test_composed_and_decomposed_umlauts_are_the_same_tokens(unit):
    tokenizer = Tokenizer(unit, "de")
    assert tokenizer.tokenize("fu\u0308r") == tokenizer.tokenize("f\u00fcr")


@pytest.mark.parametrize("unit", ["words", "characters"])
@pytest.mark.parametrize("text", ["", " \t "])
def test_no_text_has_no_tokens(unit, text):
    tokenizer = Tokenizer(unit)
    assert tokenizer.tokenize(text) == []
    assert tokenizer.detokenize([]) == ""


def test_settings_survive_a_dict_and_a_pickle():
    tokenizer = Tokenizer("characters", "de", lower=True)
    assert Tokenizer(**dataclasses.asdict(tokenizer)) == tokenizer
    assert pickle.loads(pickle.dumps(tokenizer)).tokenize("Ab") == ["a", "b"]


def test_name_states_the_tokenisation():
    assert Tokenizer("words", "en", lower=True).name == "Moses words (en), lower-cased"
    assert Tokenizer("characters").name == "characters"


def test_unknown_unit_is_refused():
    with pytest.raises(
        ValueError, match=r"unit must be 'words', 'characters' or 'subwords', got 'bpe'"
    ):
        Tokenizer("bpe")


class TestSubwords:
    LINES = ("the cat sat on the mat", "the hat", "über den Fluss", "我们是学生")

    def test_frequent_words_are_whole_and_text_comes_back(self):
        tokenizer = Tokenizer.learned(self.LINES, size=320)
        assert tokenizer.tokenize("the hat")[0] == "▁the"
        for text in (*self.LINES, "never seen: Ж, 猫 and ☃!"):
            assert tokenizer.detokenize(tokenizer.tokenize(f"  {text} ")) == text

    def test_it_is_learned_the_same_again_and_saved_as_plain_values(self):
        tokenizer = Tokenizer.learned(self.LINES, lower=True)
        assert tokenizer == Tokenizer.learned(self.LINES, lower=True)
        assert Tokenizer(**dataclasses.asdict(tokenizer)) == tokenizer
        assert tokenizer.detokenize(tokenizer.tokenize("Über")) == "über"
        assert "pieces" not in repr(tokenizer)

    def test_too_few_are_refused_with_a_number_that_works(self):
        with pytest.raises(ValueError, match="no 100 subwords") as error:
            Tokenizer.learned(self.LINES, size=100)
        least = int(re.search(r"choose (\d+) or more", str(error.value))[1])
        assert Tokenizer.learned(self.LINES, size=least).tokenize("the")

    def test_they_cannot_be_named_without_having_been_learned(self):
        with pytest.raises(ValueError, match="without pieces"):
            Tokenizer("subwords")
