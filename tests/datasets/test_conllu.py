"""Reading tagged words: what is a word, and what the errors say."""

import re

import pytest

from datasets import TextFileError, read_conllu


def line(number, form, upos="_", xpos="_"):
    return f"{number}\t{form}\t_\t{upos}\t{xpos}\t_\t_\t_\t_\t_\n"


TEXT = (
    "# sent_id = 1\n# text = We've moved on\n"
    + line("1-2", "We've")
    + line(1, "We", "PRON", "PRP")
    + line(2, "'ve", "AUX", "VBP")
    + line(3, "moved", "VERB", "VBN")
    + line("3.1", "house", "NOUN", "NN")
    + line(4, "on", "ADV", "RB")
    + "\n\n# sent_id = 2\n"
    + line("0.1", "left out")
    + line(1, "Yes", "INTJ", "UH")
    + "\n"
)


@pytest.fixture
def write(tmp_path):
    def writer(content):
        path = tmp_path / "words.conllu"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return writer


def test_words_are_those_with_a_whole_number(write):
    words, tags = read_conllu(write(TEXT))
    assert words == [["We", "'ve", "moved", "on"], ["Yes"]]
    assert tags == [["PRON", "AUX", "VERB", "ADV"], ["INTJ"]]


def test_the_tag_is_that_of_the_column(write):
    assert read_conllu(write(TEXT), column="xpos").tags == [["PRP", "VBP", "VBN", "RB"], ["UH"]]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.rstrip("\n"),
        lambda text: "\n\n" + text + "\n\n# the end\n",
        lambda text: text.replace("\n\n", "\n \n"),
    ],
    ids=["windows", "byte order mark", "no last line end", "more empty lines", "spaces"],
)
def test_how_the_lines_end_does_not_matter(write, change):
    expected = read_conllu(write(TEXT))
    assert read_conllu(write(change(TEXT))) == expected


@pytest.mark.parametrize("form", ["#", "_", "10 000", "1-2", "½", "a\u2028b", "a\x85b"])
def test_any_form_is_a_word(write, form):
    assert read_conllu(write(line(1, form, "X"))).words == [[form]]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("1\tWe\tPRON\n", "line 1", "3 fields, where CoNLL-U has 10"),
        (TEXT.replace("\t", "  "), "line 3", "1 fields"),
        (line(1, "We", "PRON") + line("two", "go", "VERB"), "line 2", "'two' is no number"),
        (line(1, "We", "PRON") + line(3, "go", "VERB"), "line 2", "word 3 stands where word 2"),
        (line(1, "We", "PRON") + line(1, "Yes", "INTJ"), "line 2", "an empty line between"),
        (line(0, "We", "PRON"), "line 1", "'0' is no number"),
        (line(1, "We"), "line 1", "'We' has no tag in the column 'upos'"),
        (line(1, "", "PRON"), "line 1", "the word is empty"),
        ("", "words.conllu", "empty"),
        ("# text = nothing\n\n", "words.conllu", "no words"),
        (line("1-2", "We've") + "\n", "words.conllu", "no words"),
        (line(1, "é", "X").encode("latin-1"), "words.conllu", "not UTF-8"),
    ],
)
def test_an_error_names_the_file_and_the_line(write, text, where, what):
    path = write(text)
    with pytest.raises(TextFileError, match=re.escape(str(path))) as error:
        read_conllu(path)
    assert where in str(error.value) and what in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TextFileError, match=r"lost\.conllu: cannot be read"):
        read_conllu(tmp_path / "lost.conllu")


def test_columns_that_exist_are_listed(write):
    with pytest.raises(ValueError, match=r"column is 'pos'; .*upos, xpos"):
        read_conllu(write(TEXT), column="pos")
