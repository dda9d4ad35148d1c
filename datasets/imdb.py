"""Reviews that say whether their writer liked something, and the words they are made of."""

import gzip
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .fetch import fetch
from .files import _error, _read_csv, _sorted_names
from .vocabulary import PAD, Vocabulary

URL = "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"
ARCHIVE = "aclImdb_v1.tar.gz"
ARCHIVE_SHA256 = "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe"
# The same reviews without the 50,000 unlabelled ones, one json object per line.
LINES = "imdb50k.jsonl.gz"
LINES_SHA256 = "7ad028ba27c3a96a7596928b6677fee05ca4c037f35f561c4ee8721fe7879fb6"

_MEMBER = re.compile(r"aclImdb/(train|test)/(neg|pos)/(\d+)_\d+\.txt")
_NO_WORD = str.maketrans(dict.fromkeys('!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n', " "))


class Reviews(NamedTuple):
    """Texts and what they are labelled with.

    Attributes:
        texts: as they were written.
        labels: for each text the number of its class, from 0.
    """

    texts: list[str]
    labels: list[int]


class LabelledReviews(NamedTuple):
    """Reviews to train on and others to test on.

    Attributes:
        train: reviews.
        test: reviews.
        name: of the whole.
        class_names: of class 0, class 1 and so on.
    """

    train: Reviews
    test: Reviews
    name: str
    class_names: list[str]


def imdb() -> LabelledReviews:
    """Return the 25,000 training and 25,000 test reviews of films by Maas et al.

    Half of each are positive (7 to 10 stars of 10), half negative (1 to 4); no film is in both.
    The positive ones come first, each class in the order of its file numbers. (Data: Maas, Daly,
    Pham, Huang, Ng, Potts, Learning Word Vectors for Sentiment Analysis, 2011.)

    The reviews come from the authors' archive of 84 MB, which is read without being unpacked to
    disk. Where the environment variable ``GAT_DATA`` is set, that archive is looked for in
    ``$GAT_DATA/imdb``, or instead of it ``imdb50k.jsonl.gz``, which has the same reviews.

    Returns:
        LabelledReviews with the classes "negative" and "positive".

    Raises:
        DataFileError: the file is missing, cannot be downloaded, or has another hash.

    Example:
        >>> reviews = imdb()  # doctest: +SKIP
        >>> len(reviews.train.texts), sum(reviews.train.labels)  # doctest: +SKIP
        (25000, 12500)
        >>> reviews.train.texts[0][:34]  # doctest: +SKIP
        'Bromwell High is a cartoon comedy.'
    """
    local = os.environ.get("GAT_DATA")
    if local and Path(local, "imdb", LINES).expanduser().is_file():
        entries = _read_lines(fetch(LINES, URL, LINES_SHA256, "imdb"))
    else:
        entries = _read_archive(fetch(ARCHIVE, URL, ARCHIVE_SHA256, "imdb"))
    parts = {"train": Reviews([], []), "test": Reviews([], [])}
    # The archive lists its files in the order in which a disk happened to hold them.
    for split, label, _, text in sorted(entries, key=lambda entry: (-entry[1], entry[2])):
        parts[split].texts.append(text)
        parts[split].labels.append(label)
    return LabelledReviews(**parts, name="imdb", class_names=["negative", "positive"])


def _read_lines(path: Path) -> Iterator[tuple[str, int, int, str]]:
    """Yield split, label, number and text of each review."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            review = json.loads(line)
            number = int(review["id"].partition("_")[0])
            yield review["split"], review["label"], number, review["text"]


def _read_archive(path: Path) -> Iterator[tuple[str, int, int, str]]:
    """Yield split, label, number and text of each labelled review."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            if found := _MEMBER.fullmatch(member.name):
                split, label, number = found.groups()
                file = archive.extractfile(member)
                assert file is not None  # a link, which a file with this hash has not
                yield split, int(label == "pos"), int(number), file.read().decode("utf-8")


def reviews_from_csv(path: str | os.PathLike[str], *, seed: int = 0) -> LabelledReviews:
    """Read a reader's own texts with their classes, and hold a fifth of each out for testing.

    The file is UTF-8 with a header, separated by commas, semicolons or tabs; it has the columns
    ``text`` and ``label``, and others are ignored. The labels may be any names, two at least.

    Args:
        path: of the csv file.
        seed: of the split; the same seed gives the same split.

    Returns:
        LabelledReviews whose class 0 is the name that comes first (by number if both are whole
        numbers, else by letter), named after the file.

    Raises:
        ValueError: the file cannot be read, is empty, is not UTF-8 or lacks a column; a text or
            label is empty; there is one label alone; a label has one text only.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "tea.csv")
        ...     _ = path.write_text("text,label\\nhot,yes\\ncold,no\\nwarm,yes\\nold,no\\n")
        ...     reviews_from_csv(path).class_names
        ['no', 'yes']
    """
    path = Path(path)
    rows = _read_csv(path, ["text", "label"])
    _, columns = next(rows)
    texts, names = [], []
    for line, fields in rows:
        entry = dict(zip(columns, fields, strict=True))
        for name in ("text", "label"):
            if not entry[name]:
                raise _error(path, line, f"the {name} is empty", "write one, or remove this row")
        texts.append(entry["text"])
        names.append(entry["label"])
    count = Counter(names)
    if not count:
        raise _error(path, None, "a header but no rows", "add one row per text")
    if len(count) == 1:
        problem = f"the column 'label' has one label alone ({names[0]!r})"
        raise _error(path, None, problem, "give each text one of two labels or more")
    if rare := [name for name in count if count[name] < 2]:
        problem = f"only one text is labelled {rare[0]!r}"
        raise _error(path, None, problem, "add more: one to train on and one to test on at least")

    class_names = _sorted_names(set(names))
    labels = [class_names.index(name) for name in names]
    generator = torch.Generator().manual_seed(seed)
    held_out: set[int] = set()
    for label in range(len(class_names)):
        members = [number for number, own in enumerate(labels) if own == label]
        shuffled = torch.randperm(len(members), generator=generator).tolist()
        held_out |= {members[at] for at in shuffled[: max(1, len(members) // 5)]}

    def part(numbers: Iterable[int]) -> Reviews:
        chosen = list(numbers)
        return Reviews([texts[n] for n in chosen], [labels[n] for n in chosen])

    train = part(n for n in range(len(texts)) if n not in held_out)
    return LabelledReviews(train, part(sorted(held_out)), path.stem, class_names)


def split_words(text: str) -> list[str]:
    """Return the words of a text, cut as Keras' tokeniser does.

    Lower-case; ASCII's punctuation, except for the apostrophe, separates words as spaces do. Unlike
    in Keras, so does every kind of white space, and the line break of html is no word "br".

    Args:
        text: any text.

    Returns:
        The words in their order.

    Example:
        >>> split_words("Don't go!<br /><br />A 10-minute film: 2/10.")
        ["don't", 'go', 'a', '10', 'minute', 'film', '2', '10']
    """
    return text.replace("<br />", " ").lower().translate(_NO_WORD).split()


def last_words(texts: Sequence[str], vocabulary: Vocabulary, length: int = 80) -> Tensor:
    """Return the numbers of the last words of each text, padded in front.

    Args:
        texts: B texts.
        vocabulary: gives each word its number.
        length: T, how many words of a text are kept. Default 80.

    Returns:
        int64 ``[B, T]``.

    Raises:
        ValueError: length is below 1.

    Example:
        >>> vocabulary = Vocabulary.build(map(split_words, ["A good film.", "A film"]))
        >>> vocabulary.tokens[4:]
        ['a', 'film', 'good']
        >>> last_words(["Once more a good film", "Good!"], vocabulary, length=4)
        tensor([[1, 4, 6, 5],
                [0, 0, 0, 6]])
    """
    if length < 1:
        raise ValueError(f"length is {length}; keep at least 1 word of each text")
    numbers = torch.full((len(texts), length), PAD)
    for row, text in zip(numbers, texts, strict=True):
        if words := split_words(text)[-length:]:
            row[-len(words) :] = torch.tensor(vocabulary.encode(words))
    return numbers
