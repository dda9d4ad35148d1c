"""Inflections: three columns, of the shared task and of one's own."""

import os

import pytest

from datasets import TextFileError, inflections, read_inflections
from datasets.inflections import LANGUAGES
from examples.commands import inflection


def test_features_are_no_letters(tmp_path):
    path = tmp_path / "words"
    path.write_text("N\tNs\tN;PL\n")
    (source,) = read_inflections(path).source
    assert source == ["N.", "PL", "N"]
    path.write_text("\n")
    with pytest.raises(TextFileError, match="empty"):
        read_inflections(path)
    with pytest.raises(ValueError, match="language must be one of finnish, german"):
        inflections("klingon")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "a\tb\n",
            "line 1: has 2 columns, expected lemma, form and features; separate them by tabs",
        ),
        ("a\tb\tN\n\nword\n", "line 3: has 1 column,"),
        ("a\tb\t\n", "line 1: has 2 columns, .*; write - where there are no features"),
        ("a\t\tN\n", "line 1: has no form; write the form"),
        ("", "the file is empty; write one word per line"),
    ],
)
def test_what_is_wrong_in_a_line_is_told(text, told, tmp_path):
    path = tmp_path / "words"
    path.write_text(text)
    with pytest.raises(TextFileError, match=told):
        read_inflections(path)


def test_empty_lines_are_left_out(tmp_path):
    path = tmp_path / "words"
    path.write_bytes(b"go\twent\tV;PST\r\n\r\na\tb\t-\n\n")
    assert read_inflections(path).source == [["V.", "PST", "g", "o"], ["-.", "a"]]


@pytest.mark.skipif(
    not os.environ.get("GAT_DATA"),
    reason="reads the words: set GAT_DATA to a folder that has them in sigmorphon2017/",
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_words_of_the_shared_task(language):
    found = inflections(language)
    assert (len(found.train), len(found.valid), len(found.test)) == (1000, 1000, 1000)
    assert not set(found.train.source_text) & set(found.test.source_text)
    lemma, form = found.train.source_text[0], found.train.target_text[0]
    assert "".join(found.train.target[0]) == form and lemma.endswith(")")


def test_the_program_knows_the_languages():
    assert inflection.LANGUAGES == LANGUAGES
