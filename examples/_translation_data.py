"""Which sentence pairs a translation model learns from, as the options name them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from datasets import PairSplits, Vocabulary, human_dates, multi30k, parallel_text
from datasets.tokens import Unit
from examples._files import UserError
from examples._translation_training import Corpus


@dataclass(frozen=True)
class Data:
    """A choice of sentence pairs: plain values, which are saved beside a model.

    Args:
        names: "dates", "multi30k", or two files of source and target sentences.
        languages: two-letter codes of source and target.
        unit: "words" or "characters" (files only; dates are characters, Multi30k words).
        lower: lower-case the tokens of files; those of dates and Multi30k are.
        min_count: how often a token must occur in training to have a place in the vocabulary.
        vocabulary_size: how many tokens either vocabulary has at most; None for any number.
        seed: of the dates, or of the split of files.
    """

    names: tuple[str, ...]
    languages: tuple[str, str] = ("de", "en")
    unit: Unit = "words"
    lower: bool = False
    min_count: int = 1
    vocabulary_size: int | None = None
    seed: int = 0

    def pairs(self) -> PairSplits:
        """Reads or generates the pairs.

        Raises:
            UserError: names or languages that make no sense.
            TextFileError, DataFileError: files that cannot be read.
        """
        try:
            match self.names:
                case ("dates",):
                    return human_dates(seed=self.seed)
                case ("multi30k",):
                    return multi30k(*self.languages)
                case (source, target):
                    return parallel_text(
                        source, target, languages=self.languages, unit=self.unit,
                        lower=self.lower, seed=self.seed,
                    )  # fmt: skip
        except ValueError as error:
            raise UserError(str(error)) from error
        raise UserError(
            f"--data {' '.join(self.names)!r} is neither 'dates' nor 'multi30k' nor two files:"
            " name one file with the source sentences and one with the target sentences"
        )

    def corpus(self) -> Corpus:
        """The pairs with the vocabularies of the training sentences."""
        pairs = self.pairs()
        source, target = (
            Vocabulary.build(side, min_count=self.min_count, max_size=self.vocabulary_size)
            for side in (pairs.train.source, pairs.train.target)
        )
        return Corpus(pairs, source, target)


def describe(corpus: Corpus) -> str:
    """What there is to learn from, in one or two lines."""
    pairs = corpus.splits
    sizes = ", ".join(
        f"{len(getattr(pairs, name)):,} {name}" for name in ("train", "valid", "test")
    )
    dropped = f"; {pairs.dropped:,} pairs with an empty side left out" if pairs.dropped else ""
    return (
        f"{pairs.name}: {sizes} pairs{dropped}\n"
        f"tokens: {pairs.source_tokenizer.name} → {pairs.target_tokenizer.name};"
        f" vocabularies of {len(corpus.source):,} and {len(corpus.target):,}"
    )


def fingerprint(corpus: Corpus) -> str:
    """A hash of all pairs and vocabularies: equal for equal data."""
    content: list[Any] = [corpus.source.fingerprint, corpus.target.fingerprint]
    for name in ("train", "valid", "test"):
        part = getattr(corpus.splits, name)
        content += [part.source_text, part.target_text]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
