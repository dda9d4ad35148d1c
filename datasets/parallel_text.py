"""A reader's own sentence pairs from two text files, with errors that name file and line."""

import codecs
import gzip
import os
import random
import zlib
from pathlib import Path

from .pairs import Pairs, PairSplits
from .tokens import Tokenizer, Unit

MAX_UNPACKED = 2**30  # bytes of a compressed file: a few hundred KB can unpack to as many MB


class TextFileError(ValueError):
    """A file cannot be read as text; the message names the file, the line and a mend."""


def parallel_text(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    languages: tuple[str, str] = ("en", "en"),
    unit: Unit = "words",
    lower: bool = False,
    subwords: int | None = None,
    held_out: int | None = None,
    seed: int = 0,
) -> PairSplits:
    """Read two UTF-8 files whose n-th lines belong together, and split the pairs at random.

    A pair of which one side is empty is left out and counted in ``dropped``. Pairs with the same
    source sentence go to the same split: no held-out sentence occurs in training.

    Args:
        source: path of the source sentences, plain or gzip-compressed, one per line.
        target: path of the target sentences, line by line those of ``source``.
        languages: two-letter codes of source and target, for the word tokeniser.
        unit: tokens are "words" (default), "characters", or "subwords" that are learned from the
            training sentences of each side; see `Tokenizer`.
        lower: lower-case the tokens; by default they stay as they are.
        subwords: how many of each side at most; see `Tokenizer.learned` for the default.
        held_out: pairs to validate on, and as many again to test on (a few more where a source
            sentence occurs several times). By default a twentieth of all, 1 to 1,000.
        seed: of the split.

    Returns:
        Splits in which the pairs keep the order of the files; ``name`` joins the file names.

    Raises:
        TextFileError: a file is missing, damaged, empty or not UTF-8, unpacks to more than 1 GiB,
            or the files differ in length.
        ValueError: too few pairs remain to train on, ``held_out`` is below 1, or there is no room
            for all characters among the ``subwords``.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     numbers, names = Path(folder, "a.txt"), Path(folder, "b.txt")
        ...     _ = numbers.write_text("1\\n2\\n\\n3\\n4\\n")
        ...     _ = names.write_text("one\\ntwo\\nnone\\nthree\\nfour\\n")
        ...     data = parallel_text(numbers, names, unit="characters")
        >>> len(data.train), len(data.valid), len(data.test), data.dropped
        (2, 1, 1, 1)
    """
    if held_out is not None and held_out < 1:
        raise ValueError(
            f"held_out must be at least 1, got {held_out}; leave it out for a twentieth"
        )
    paths = Path(source), Path(target)
    texts = read_lines(paths[0]), read_lines(paths[1])
    counts = len(texts[0]), len(texts[1])
    if counts[0] != counts[1]:
        longer = int(counts[1] > counts[0])
        line = min(counts)
        raise _error(
            paths[longer],
            line + 1,
            f"{texts[longer][line]!r} has no counterpart: {paths[0]} has {counts[0]} lines, "
            f"{paths[1]} has {counts[1]}",
            "find the line from which on they differ, and give both the same number of lines",
        )

    kept = [i for i in range(counts[0]) if _has_text(texts[0][i]) and _has_text(texts[1][i])]
    size = held_out if held_out is not None else min(1000, max(1, len(kept) // 20))
    train, valid, test = _split([texts[0][i] for i in kept], size, seed)
    if not train or not valid:
        raise ValueError(
            f"{paths[0]} and {paths[1]} have {len(kept)} pairs without an empty side, too few to "
            f"hold out twice {size} and to train on the rest; give more lines or a smaller held_out"
        )

    def of(chosen: list[int], side: int) -> list[str]:
        return [texts[side][kept[i]] for i in chosen]

    def tokenizer(side: int) -> Tokenizer:
        language = languages[side]
        if unit != "subwords":
            return Tokenizer(unit, language, lower)
        return Tokenizer.learned(of(train, side), size=subwords, language=language, lower=lower)

    tokenizers = tokenizer(0), tokenizer(1)

    def pairs(chosen: list[int]) -> Pairs:
        return Pairs.from_text(of(chosen, 0), of(chosen, 1), *tokenizers)

    return PairSplits(
        f"{paths[0].name}-{paths[1].name}",
        pairs(train),
        pairs(valid),
        pairs(test),
        *tokenizers,
        dropped=counts[0] - len(kept),
    )


def read_lines(path: Path, entry: str = "sentence") -> list[str]:
    """Return the stripped lines of a UTF-8 text file, plain or gzip-compressed; each is an entry.

    Only a line feed (perhaps after a carriage return) ends a line: other separators that Unicode
    knows would shift the lines of one file against those of the other. A compressed file may
    unpack to 1 GiB.

    Raises:
        TextFileError: the file is missing, damaged, empty or not UTF-8, or unpacks to more.
    """
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = gzip.GzipFile(fileobj=file).read(MAX_UNPACKED + 1) if compressed else file.read()
        if compressed and len(data) > MAX_UNPACKED:
            problem = f"unpacks to more than {MAX_UNPACKED} bytes"
            raise _error(path, None, problem, "give the file as it is, not compressed, or a part")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        mend = "compress or download the file again"
        raise _error(path, None, f"damaged gzip file ({error})", mend) from error
    except OSError as error:
        mend = "give the path of a text file, plain or .gz"
        raise _error(path, None, f"cannot be read ({error.strerror})", mend) from error
    mend = "save it as UTF-8, for instance with iconv -f ENCODING -t utf-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _error(path, 1, "this is UTF-16 text, not UTF-8", mend)
    data = data.removeprefix(codecs.BOM_UTF8)
    if (place := data.find(b"\0")) >= 0:  # UTF-16 and UTF-32 without a mark, or no text at all
        raise _error(path, data.count(b"\n", 0, place) + 1, "not UTF-8 text (a zero byte)", mend)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = f"not UTF-8 text (byte 0x{data[error.start]:02x}: {error.reason})"
        raise _error(path, line, problem, mend) from error
    if not text.strip():
        raise _error(path, None, "the file is empty", f"write one {entry} per line")
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def _error(path: Path, line: int | None, problem: str, mend: str) -> TextFileError:
    where = path if line is None else f"{path}, line {line}"
    return TextFileError(f"{where}: {problem}; {mend}")


def _has_text(line: str) -> bool:
    return any(letter.isprintable() and not letter.isspace() for letter in line)


def _split(sentences: list[str], size: int, seed: int) -> tuple[list[int], list[int], list[int]]:
    """Return train, valid and test positions; equal sentences never part."""
    places: dict[str, list[int]] = {}
    for place, sentence in enumerate(sentences):
        places.setdefault(sentence, []).append(place)
    groups = list(places.values())
    random.Random(seed).shuffle(groups)
    train: list[int] = []
    valid: list[int] = []
    test: list[int] = []
    for group in groups:
        next((part for part in (test, valid) if len(part) < size), train).extend(group)
    return sorted(train), sorted(valid), sorted(test)
