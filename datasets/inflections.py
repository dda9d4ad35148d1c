"""Words and their inflected forms: the shared task of SIGMORPHON 2017, or a file of one's own."""

import os
from pathlib import Path
from typing import NamedTuple

from .fetch import fetch
from .pairs import Pairs
from .parallel_text import _error, read_lines

URL = "https://raw.githubusercontent.com/sigmorphon/conll2017/master/"
LANGUAGES = ("finnish", "german", "russian", "spanish", "turkish")
SHA256 = {
    "finnish-dev": "dd31327aefec2e8862f19df3bc4a083e51f634a5acc599b6683b612528dc4e19",
    "finnish-test": "c8e5fbc56eabab0d304ea7e09cf210a6322296e964f2e5db2365b79d932ddbed",
    "finnish-train-medium": "e6fa59613defc301a19c28eb1a44d920738e513e328c14336979b9d16ca93a84",
    "german-dev": "fdcf14c88f046c2a42933a447c62482c562d76f1fc4f78981ff9b5476fa4ef9a",
    "german-test": "86ab1032c6e45cdbeb6f786aece5360e0687d338eb065e2d5b3a47d4e6bcbd8f",
    "german-train-medium": "bc13a266c7ffe71ff58aa047c430e9e0062bd5e8ae108bffd604a5586e422e73",
    "russian-dev": "e6842eda6612537689724d0561dc46167c589b3185c4684da370b96685944ecf",
    "russian-test": "161ecbf4aaa5516fdada4c074d224c8915ea4fd85aa5a9a3924f82bc7ce4a816",
    "russian-train-medium": "ac4eef045b9a9c7d784da10b500c7424422197d73312a01333ae6b130d00c38d",
    "spanish-dev": "cc753aee03574022f43ac6218ae83cf88420aeb3c5070a6a9fd5529f1f643b77",
    "spanish-test": "e9879722bfed37bd3dc7e8b7da66f08012ab7ecf6b6615c4a61be5e26f3cc376",
    "spanish-train-medium": "a57b487622071a40f4bcf610ba71d0768e480ac452c1969e70ed76e10f8073b8",
    "turkish-dev": "e95f58d34dc49973b26fd9f78d859290917e646ac68536c2b1459711ce4fa42d",
    "turkish-test": "14ef6ff58423de362e49b22661135bd25b4baa5900d85f8ef9bcff40152e6521",
    "turkish-train-medium": "644f104f693f49f6e9fbef677f8ae347aded1b4e984cbf006c44bcbb9329ea35",
}


class Inflections(NamedTuple):
    """Lemmas with features, and their forms: ``name``, and ``Pairs`` of three splits."""

    name: str
    train: Pairs
    valid: Pairs
    test: Pairs


def inflections(language: str) -> Inflections:
    """Return 1,000 pairs to train on ("medium"), 1,000 to validate and 1,000 to test, of task 1.

    The source is the lemma and the morphological features of the form that is wanted, see
    `read_inflections`; the target is that form. (Data: Cotterell et al., CoNLL–SIGMORPHON 2017
    Shared Task: Universal Morphological Reinflection in 52 Languages, 2017.)

    Args:
        language: one of ``LANGUAGES``.

    Raises:
        ValueError: another language.
        DataFileError: a file is missing, cannot be downloaded, or is not the expected one.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
    parts = []
    for split in ("train-medium", "dev", "test"):
        name = f"{language}-{split}"
        path = f"all/task1/{name}"
        if split == "test":
            path = f"answers/task1/{language}-uncovered-test"
        parts.append(read_inflections(fetch(name, URL + path, SHA256[name], "sigmorphon2017")))
    return Inflections(language, *parts)


def read_inflections(path: str | os.PathLike[str]) -> Pairs:
    """Read lines of lemma, form and features, separated by tabs; features by semicolons.

    Empty lines are left out.

    Args:
        path: of the file, UTF-8.

    Returns:
        Pairs: the tokens of a source are its features, then the characters of the lemma; those of
        the target are the characters of the form.

    Raises:
        TextFileError: the file is missing, damaged or empty, or a line has not three columns.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "tiny")
        ...     _ = path.write_text("go\\twent\\tV;PST\\n")
        ...     pairs = read_inflections(path)
        >>> pairs.source, pairs.target
        ([['V.', 'PST', 'g', 'o']], [['w', 'e', 'n', 't']])
    """
    path = Path(path)
    sources, targets, lemmas, forms = [], [], [], []
    for number, line in enumerate(read_lines(path, "word"), start=1):
        if not line:
            continue
        columns = line.split("\t")
        if len(columns) != 3:
            named = "1 column" if len(columns) == 1 else f"{len(columns)} columns"
            mend = "separate them by tabs; write - where there are no features"
            problem = f"has {named}, expected lemma, form and features"
            raise _error(path, number, problem, mend)
        lemma, form, features = columns
        if not form:
            raise _error(path, number, "has no form", "write the form, or leave this line out")
        # A feature that is one letter must not be taken for that letter of a lemma
        tags = [tag if len(tag) > 1 else f"{tag}." for tag in features.split(";")]
        sources.append([*tags, *lemma])
        targets.append(list(form))
        lemmas.append(f"{lemma} ({features})")
        forms.append(form)
    return Pairs(sources, targets, lemmas, forms)
