import gzip
import importlib

import pytest

from datasets import TextFileError, Tokenizer, parallel_text


@pytest.fixture
def files(tmp_path):
    """Write two files and return their paths."""

    def write(source, target, names=("a.de", "b.en")):
        paths = [tmp_path / name for name in names]
        for path, content in zip(paths, (source, target), strict=True):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return paths

    return write


def lines(prefix, count):
    return "".join(f"{prefix}{i}\n" for i in range(count))


def all_pairs(data):
    return [
        pair
        for part in (data.train, data.valid, data.test)
        for pair in zip(part.source_text, part.target_text, strict=True)
    ]


def test_lines_stay_together_and_each_pair_is_in_one_split(files):
    data = parallel_text(*files(lines("a", 100), lines("b", 100)), unit="characters")
    assert (len(data.train), len(data.valid), len(data.test), data.dropped) == (90, 5, 5, 0)
    assert sorted(all_pairs(data)) == sorted((f"a{i}", f"b{i}") for i in range(100))
    assert data.train.source_text == sorted(data.train.source_text, key=lambda text: int(text[1:]))
    assert data.name == "a.de-b.en"


def test_seed_decides_the_split(files):
    paths = files(lines("a", 100), lines("b", 100))
    first = parallel_text(*paths, unit="characters", seed=1)
    assert first == parallel_text(*paths, unit="characters", seed=1)
    assert first.test != parallel_text(*paths, unit="characters", seed=2).test


def test_held_out_sets_the_size_of_both(files):
    data = parallel_text(*files(lines("a", 30), lines("b", 30)), unit="characters", held_out=10)
    assert (len(data.train), len(data.valid), len(data.test)) == (10, 10, 10)


def test_default_holds_out_no_more_than_a_thousand(files):
    data = parallel_text(*files(lines("a", 30_000), lines("b", 30_000)), unit="characters")
    assert (len(data.valid), len(data.test)) == (1_000, 1_000)


@pytest.mark.parametrize("seed", range(5))
def test_equal_sources_never_part(files, seed):
    source = "".join(f"a{i % 10}\n" for i in range(50))
    data = parallel_text(*files(source, lines("b", 50)), unit="characters", seed=seed)
    train, valid, test = (set(p.source_text) for p in (data.train, data.valid, data.test))
    assert not train & valid and not train & test and not valid & test
    assert len(data.train) + len(data.valid) + len(data.test) == 50


def test_empty_lines_are_dropped_as_pairs_and_counted(files):
    source = "one\n\nthree\n \t\nfive\nsix\n"
    target = "eins\nzwei\n\n\nfünf\nsechs\n"
    data = parallel_text(*files(source, target), unit="characters")
    assert data.dropped == 3
    assert sorted(all_pairs(data)) == [("five", "fünf"), ("one", "eins"), ("six", "sechs")]


def test_a_line_that_has_no_word_is_dropped_too(files):
    data = parallel_text(*files("a\nb\n\x01\nc\n", lines("x", 4)), unit="words")
    assert data.dropped == 1


def test_words_follow_the_languages(files):
    paths = files("L'eau.\n" * 3 + "Oui.\nNon.\n", lines("It's ", 5))
    data = parallel_text(*paths, languages=("fr", "en"), lower=True)
    assert dict(zip(data.train.source_text, data.train.source, strict=True)).get(
        "L'eau.", ["l'", "eau", "."]
    ) == ["l'", "eau", "."]
    assert data.train.target[0][:2] == ["it", "'s"]
    assert (data.source_tokenizer.language, data.target_tokenizer.language) == ("fr", "en")


def test_compressed_files_a_byte_order_mark_and_other_line_ends_are_read(files):
    source = gzip.compress("über\r\nb\r\nc\r\n".encode())
    target = b"\xef\xbb\xbf" + "ü\x85x\u2028y\nv\nw".encode()  # no line feed at the end
    data = parallel_text(*files(source, target, ("a.gz", "b.txt")), unit="characters")
    assert sorted(all_pairs(data)) == [("b", "v"), ("c", "w"), ("über", "ü\x85x\u2028y")]


@pytest.mark.parametrize(
    "source, target, longer, line, text",
    [
        ("a\nb\nc\n", "x\ny\n", 0, 3, "'c'"),
        ("a\n", "x\ny\n", 1, 2, "'y'"),
        ("a", "x\n\n", 1, 2, "''"),
    ],
)
def test_files_of_unequal_length_name_the_first_line_too_many(
    files, source, target, longer, line, text
):
    paths = files(source, target)
    with pytest.raises(TextFileError) as error:
        parallel_text(*paths, unit="characters")
    message = str(error.value)
    assert message.startswith(f"{paths[longer]}, line {line}: {text} has no counterpart")
    assert f"{paths[0]} has {source.rstrip().count(chr(10)) + 1} lines" in message


@pytest.mark.parametrize(
    "content, line, problem",
    [
        ("fine\nschön\n".encode("latin-1"), 2, "not UTF-8 text (byte 0xf6"),
        ("fine\nschön\n".encode("utf-16"), 1, "UTF-16"),
        ("ab\ncd\n".encode("utf-16-le"), 1, "zero byte"),
        (b"\xef\xbb\xbfone\ntwo\nthr\xff\n", 3, "byte 0xff"),
        (b"one\ntwo\x00\n", 2, "zero byte"),
    ],
)
def test_other_encodings_name_file_line_and_mend(files, content, line, problem):
    paths = files("one\ntwo\n", content)
    with pytest.raises(TextFileError) as error:
        parallel_text(*paths)
    message = str(error.value)
    assert message.startswith(f"{paths[1]}, line {line}: ")
    assert problem in message and "save it as UTF-8" in message


@pytest.mark.parametrize(
    "content", [b"", b"\n", b" \n\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)]
)
def test_empty_file_is_named(files, content):
    paths = files(content, "x\n")
    with pytest.raises(TextFileError, match=r"a\.de: the file is empty; write one sentence"):
        parallel_text(*paths)


def test_damaged_gzip_file_is_named(files):
    whole = gzip.compress(lines("a", 5_000).encode())
    for damaged in (whole[:-20], whole[:100] + bytes(50) + whole[150:], whole[:5]):
        paths = files(damaged, "x\n")
        with pytest.raises(TextFileError, match=r"a\.de: damaged gzip file"):
            parallel_text(*paths)


def test_a_gzip_bomb_is_stopped_at_the_limit(files, monkeypatch):
    module = importlib.import_module("datasets.parallel_text")  # which a function is named after
    monkeypatch.setattr(module, "MAX_UNPACKED", 1000)
    bomb = gzip.compress(b"\n" * 100_000)
    assert len(bomb) < 1000
    with pytest.raises(
        TextFileError, match=r"a\.de: unpacks to more than 1000 bytes; give the file"
    ):
        parallel_text(*files(bomb, lines("b", 5)))
    source = gzip.compress(lines("a", 5).encode())
    assert len(parallel_text(*files(source, lines("b", 5))).train) == 3


def test_missing_file_and_folder_are_named(files, tmp_path):
    paths = files("a\n", "x\n")
    with pytest.raises(TextFileError, match=r"nowhere\.txt: cannot be read \(No such file"):
        parallel_text(paths[0], tmp_path / "nowhere.txt")
    with pytest.raises(TextFileError, match=r"cannot be read \(Is a directory"):
        parallel_text(tmp_path, paths[1])


@pytest.mark.parametrize("source", ["a\nb\n", "a\na\na\n", "a\n\n\n"])
def test_too_few_different_pairs_are_refused(files, source):
    paths = files(source, source.replace("a", "x") or "x")
    with pytest.raises(ValueError, match=r"have \d pairs without an empty side, too few"):
        parallel_text(*paths, unit="characters")


def test_held_out_below_one_is_refused(files):
    with pytest.raises(ValueError, match="held_out must be at least 1, got 0"):
        parallel_text(*files("a\n", "x\n"), held_out=0)


def test_subwords_are_learned_from_the_training_sentences(files):
    paths = files(lines("word", 40), lines("Wort", 40))
    data = parallel_text(*paths, unit="subwords", subwords=300)
    assert data.source_tokenizer == Tokenizer.learned(data.train.source_text, size=300)
    assert data.target_tokenizer == Tokenizer.learned(data.train.target_text, size=300)
    text = data.test.target_text[0]
    assert data.target_tokenizer.detokenize(data.test.target[0]) == text
