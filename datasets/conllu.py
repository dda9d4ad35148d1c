"""A reader's own text with a tag for each word, from a file in the CoNLL-U format."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .parallel_text import _error, read_lines

COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_WORD = re.compile(r"[1-9][0-9]*")
# A range stands before the words that one written word consists of ("we've" is "we" and "'ve"); an
# empty node is a word that was left out, which only the enhanced dependencies know of.
_NO_WORD = re.compile(r"[1-9][0-9]*-[1-9][0-9]*|[0-9]+\.[1-9][0-9]*")


class TaggedSentences(NamedTuple):
    """Sentences, and what each of their words is labelled with.

    Attributes:
        words: of each sentence, as they were written.
        tags: of each sentence, one for each of its words.
    """

    words: list[list[str]]
    tags: list[list[str]]

    def only(self, places: Iterable[int]) -> "TaggedSentences":
        """Return the sentences of these places."""
        chosen = list(places)
        return TaggedSentences([self.words[n] for n in chosen], [self.tags[n] for n in chosen])


def read_conllu(path: str | os.PathLike[str], *, column: str = "upos") -> TaggedSentences:
    """Read the words of a CoNLL-U file and the tag that each has in one column.

    Each line is a word with ten fields, separated by tabs; an empty line ends a sentence. Comments
    (``#``) are skipped, and so are ranges (``1-2``) and empty nodes (``1.1``): the words are the
    syntactic ones, which the tags belong to. (Format: universaldependencies.org/format.html)

    Args:
        path: of the file, UTF-8, plain or gzip-compressed.
        column: which field is the tag: "upos" (default), "xpos", or another of ``COLUMNS``.

    Returns:
        TaggedSentences.

    Raises:
        TextFileError: the file is missing, damaged, not UTF-8 or without words; a line has another
            number of fields; a word has no form, no tag (``_``), or not the number that is its
            place in the sentence.
        ValueError: ``column`` is unknown.

    Example:
        >>> import tempfile
        >>> line = "{}\\t{}\\t_\\t{}\\t_\\t_\\t_\\t_\\t_\\t_\\n".format
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "tiny.conllu")
        ...     _ = path.write_text(
        ...         "# text = It's hot\\n" + line("1-2", "It's", "_") + line(1, "It", "PRON")
        ...         + line(2, "'s", "AUX") + line(3, "hot", "ADJ") + "\\n"
        ...     )
        ...     read_conllu(path)
        TaggedSentences(words=[['It', "'s", 'hot']], tags=[['PRON', 'AUX', 'ADJ']])
    """
    if column not in COLUMNS:
        raise ValueError(f"column is {column!r}; a CoNLL-U file has {', '.join(COLUMNS)}")
    path = Path(path)
    words: list[list[str]] = []
    tags: list[list[str]] = []
    inside = False  # a sentence that has begun
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            inside = False
            continue
        if line.startswith("#"):
            continue
        if not inside:
            words.append([])
            tags.append([])
            inside = True
        if (entry := _read_line(path, number, line, len(words[-1]) + 1)) is None:
            continue
        if (tag := entry[column]) in ("", "_"):
            problem = f"the word {entry['form']!r} has no tag in the column {column!r}"
            raise _error(path, number, problem, "write one, or choose another column")
        words[-1].append(entry["form"])
        tags[-1].append(tag)
    if not any(words):
        raise _error(path, None, "no words", "give a CoNLL-U file with at least one sentence")
    kept = [place for place, sentence in enumerate(words) if sentence]
    return TaggedSentences([words[place] for place in kept], [tags[place] for place in kept])


def _read_line(path: Path, number: int, line: str, expected: int) -> dict[str, str] | None:
    """Return the fields of a word; None for a range and an empty node."""
    fields = line.split("\t")
    if len(fields) != len(COLUMNS):
        problem = f"{len(fields)} fields, where CoNLL-U has {len(COLUMNS)}: {line[:60]!r}"
        raise _error(path, number, problem, "separate the fields by one tab each, `_` if empty")
    entry = dict(zip(COLUMNS, fields, strict=True))
    if _NO_WORD.fullmatch(entry["id"]):
        return None
    if not _WORD.fullmatch(entry["id"]):
        mend = "write a number, a range such as 1-2, or an empty node such as 1.1"
        raise _error(path, number, f"{entry['id']!r} is no number of a word", mend)
    if int(entry["id"]) != expected:
        problem = f"word {entry['id']} stands where word {expected} of its sentence belongs"
        mend = "number the words from 1, and put an empty line between sentences"
        raise _error(path, number, problem, mend)
    if not entry["form"].strip():
        raise _error(path, number, "the word is empty", "write it in the second field")
    return entry
