import functools
import gzip
import hashlib
import http.server
import importlib
import io
import json
import os
import tarfile
import threading
from collections import Counter

import pytest
import torch

from datasets import (
    DataFileError,
    Vocabulary,
    imdb,
    last_words,
    reviews_from_csv,
    split_words,
)

loader = importlib.import_module("datasets.imdb")  # `datasets.imdb` itself is the function

# Split, class, number and text, in the order that imdb() promises.
REVIEWS = [
    ("train", "pos", 0, "A classic.<br /><br />10/10"),
    ("train", "pos", 2, "Amélie\x96charming"),
    ("train", "pos", 10, " Fine, though long. "),
    ("train", "neg", 1, "Boring"),
    ("test", "pos", 0, "Good"),
    ("test", "neg", 0, "Bad\tbad"),
    ("test", "neg", 11, "Worse"),
]


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive in the authors' layout, its reviews in disorder among other files."""
    path = tmp_path / "www" / loader.ARCHIVE
    path.parent.mkdir()
    files = {
        f"aclImdb/{split}/{name}/{n}_{n + 1}.txt": text for split, name, n, text in REVIEWS[::-1]
    }
    files |= {
        "aclImdb/README": "Large Movie Review Dataset",
        "aclImdb/train/unsup/0_0.txt": "Nobody knows",
        "aclImdb/train/urls_pos.txt": "http://example.org",
    }
    with tarfile.open(path, "w:gz") as tar:
        folder = tarfile.TarInfo("aclImdb/train/pos")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    monkeypatch.setattr(loader, "ARCHIVE_SHA256", sha256(path))
    return path


def expected(split):
    chosen = [(text, int(name == "pos")) for of, name, _, text in REVIEWS if of == split]
    return [text for text, _ in chosen], [label for _, label in chosen]


def test_the_archive_is_downloaded_once_and_read_in_place(archive, tmp_path, monkeypatch):
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=archive.parent)
    cache = tmp_path / "cache"
    monkeypatch.delenv("GAT_DATA", raising=False)
    monkeypatch.setenv("GAT_CACHE", str(cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        monkeypatch.setattr(loader, "URL", f"http://127.0.0.1:{web.server_port}/{archive.name}")
        found = [imdb(), imdb()]
        web.shutdown()
        thread.join()
    for reviews in found:
        assert tuple(reviews.train) == expected("train")
        assert tuple(reviews.test) == expected("test")
        assert reviews.class_names == ["negative", "positive"]
    assert len(requests) == 1
    assert [path for path in cache.rglob("*") if path.is_file()] == [cache / "imdb" / archive.name]


def test_archive_and_lines_give_the_same(archive, tmp_path, monkeypatch):
    monkeypatch.setenv("GAT_DATA", str(tmp_path))
    folder = tmp_path / "imdb"
    archive.parent.rename(folder)
    from_archive = imdb()
    lines = [
        json.dumps({"split": split, "label": int(name == "pos"), "id": f"{n}_1", "text": text})
        for split, name, n, text in REVIEWS
    ]
    (folder / loader.LINES).write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / archive.name).unlink()
    monkeypatch.setattr(loader, "LINES_SHA256", sha256(folder / loader.LINES))
    assert imdb() == from_archive
    assert tuple(from_archive.test) == expected("test")


@pytest.mark.parametrize("name", [loader.ARCHIVE, loader.LINES])
def test_another_file_of_that_name_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GAT_DATA", str(tmp_path))
    (tmp_path / "imdb").mkdir()
    (tmp_path / "imdb" / name).write_bytes(b"something else")
    with pytest.raises(DataFileError, match=f"{name} is not the expected file"):
        imdb()


def test_missing_local_files(tmp_path, monkeypatch):
    monkeypatch.setenv("GAT_DATA", str(tmp_path))
    with pytest.raises(DataFileError, match=r"aclImdb_v1.tar.gz does not exist.*put the file from"):
        imdb()


@pytest.mark.skipif(
    not os.environ.get("GAT_DATA"),
    reason="reads the reviews: set GAT_DATA to a folder that has them in imdb/",
)
def test_the_published_reviews():
    reviews = imdb()
    for part in (reviews.train, reviews.test):
        assert Counter(part.labels) == {0: 12_500, 1: 12_500}
        assert len(part.texts) == 25_000
    assert reviews.train.texts[0].startswith("Bromwell High is a cartoon comedy. It ran at the")
    assert reviews.train.labels[0] == 1
    assert reviews.train.texts[12_500].startswith("Story of a man who has unnatural feelings for a")
    assert reviews.train.labels[12_500] == 0
    # The order of the word index that Keras publishes, where "br" is between "is" and "in"
    count = Counter(word for text in reviews.train.texts for word in split_words(text))
    words = [word for word, _ in count.most_common(10)]
    assert words == ["the", "and", "a", "of", "to", "is", "in", "it", "i", "this"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("It's GOOD.", ["it's", "good"]),
        ("one<br />two<br /><br />three", ["one", "two", "three"]),
        ('a-b_c/d "e" (f)[g]{h}\ti\nj', list("abcdefghij")),
        ("Œuvre – très bien", ["œuvre", "–", "très", "bien"]),
        ("!?…", ["…"]),  # Keras knows ASCII's punctuation only
        ("one\r\ntwo\xa0three", ["one", "two", "three"]),
        (" \n ", []),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


def test_last_words_are_padded_in_front():
    vocabulary = Vocabulary(["good", "film"])  # numbers 4 and 5; 0 is padding, 1 unknown
    texts = ["A good film", "Film!", "", "film film film good"]
    numbers = last_words(texts, vocabulary, length=3)
    assert numbers.dtype == torch.int64
    assert numbers.tolist() == [[1, 4, 5], [0, 0, 5], [0, 0, 0], [5, 5, 4]]
    assert last_words(texts, vocabulary).shape == (4, 80)
    with pytest.raises(ValueError, match="length is 0"):
        last_words(texts, vocabulary, length=0)


class TestCsv:
    def write(self, folder, content):
        path = folder / "tea.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def test_a_fifth_of_each_class_is_held_out(self, tmp_path):
        rows = [f"t{n},{'no' if n < 10 else 'yes'}" for n in range(35)]
        path = self.write(tmp_path, "text,label\n" + "\n".join(rows))
        reviews = reviews_from_csv(path)
        assert Counter(reviews.train.labels) == {0: 8, 1: 20}
        assert Counter(reviews.test.labels) == {0: 2, 1: 5}
        assert {*reviews.train.texts} | {*reviews.test.texts} == {f"t{n}" for n in range(35)}
        for part in (reviews.train, reviews.test):
            for text, label in zip(*part, strict=True):
                assert label == (int(text[1:]) >= 10)
        assert (reviews.name, reviews.class_names) == ("tea", ["no", "yes"])
        assert reviews_from_csv(path) == reviews
        assert reviews_from_csv(path, seed=1) != reviews

    def test_other_columns_commas_and_lines_in_quotes(self, tmp_path):
        text = 'label,id,text\n2,a,"good, and\ncheap"\n10,b,bad\n2,c,nice\n10,d,awful\n'
        reviews = reviews_from_csv(self.write(tmp_path, text))
        assert reviews.class_names == ["2", "10"]
        assert "good, and\ncheap" in reviews.train.texts + reviews.test.texts

    @pytest.mark.parametrize(
        "content, problem",
        [
            ("", r"the file is empty; its first line must be a header with text, label"),
            ("review,label\na,b\n", r"line 1: column 'text' is missing"),
            ("text,sentiment\na,b\n", r"line 1: column 'label' is missing"),
            ("text,label\n", r"a header but no rows"),
            ("text,label\na,x\nb,x\n", r"has one label alone \('x'\)"),
            ("text,label\na,x\nb,y\nc,z\n", r"only one text is labelled 'x'"),
            ("text,label\na,x\nb,x\nc,y\n", r"only one text is labelled 'y'"),
            ("text,label\na,x\n,y\n", r"line 3: the text is empty"),
            ("text,label\na,x\nb,\n", r"line 3: the label is empty"),
            ("text,label\na,b,x\n", r"line 2: 3 fields, but the header has 2.*put quotes"),
            ("text,label\nschön,x\n".encode("latin-1"), r"not UTF-8 text.*save it as UTF-8"),
            ("text,label\na,x\n".encode("utf-16"), r"not UTF-8 text"),
        ],
    )
    def test_bad_files(self, tmp_path, content, problem):
        with pytest.raises(ValueError, match=rf"(?s)tea\.csv.*{problem}"):
            reviews_from_csv(self.write(tmp_path, content))

    def test_no_file(self, tmp_path):
        with pytest.raises(ValueError, match=r"none\.csv: cannot be read"):
            reviews_from_csv(tmp_path / "none.csv")
