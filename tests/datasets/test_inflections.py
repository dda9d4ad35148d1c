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
