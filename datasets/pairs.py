"""What every loader of text pairs returns: sentences with their tokens, in three splits."""

from collections.abc import Sequence
from dataclasses import dataclass

from .tokens import Tokenizer


@dataclass(frozen=True)
class Pairs:
    """Sentences and what they become, entry by entry: text as it was read, and its tokens.

    Args:
        source: tokens of each source sentence.
        target: tokens of each target sentence.
        source_text: each source sentence as it was read, in its own case.
        target_text: each target sentence as it was read: the reference of a corpus BLEU.

    Raises:
        ValueError: the four differ in length.

    Example:
        >>> words = Tokenizer("characters")
        >>> pairs = Pairs.from_text(["hi"], ["ho"], words, words)
        >>> len(pairs), pairs.source, pairs.target_text
        (1, [['h', 'i']], ['ho'])
    """

    source: list[list[str]]
    target: list[list[str]]
    source_text: list[str]
    target_text: list[str]

    def __post_init__(self) -> None:
        sizes = [
            len(part) for part in (self.source, self.target, self.source_text, self.target_text)
        ]
        if len(set(sizes)) > 1:
            raise ValueError(
                "source, target, source_text and target_text must have one entry per pair, got "
                f"{', '.join(map(str, sizes))} entries"
            )

    def __len__(self) -> int:
        return len(self.source)

    @classmethod
    def from_text(
        cls,
        source_text: Sequence[str],
        target_text: Sequence[str],
        source_tokenizer: Tokenizer,
        target_tokenizer: Tokenizer,
    ) -> "Pairs":
        """Return the pairs of two lists of lines, with their tokens."""
        return cls(
            [source_tokenizer.tokenize(line) for line in source_text],
            [target_tokenizer.tokenize(line) for line in target_text],
            list(source_text),
            list(target_text),
        )


@dataclass(frozen=True)
class PairSplits:
    """Pairs to train on, to validate on and to test on, and how they were made into tokens.

    Args:
        name: of the data, such as "multi30k de-en".
        train: pairs to train on.
        valid: pairs to choose a model with.
        test: pairs to report on.
        source_tokenizer: made the source tokens; does the same with a new sentence.
        target_tokenizer: made the target tokens; joins those of a translation.
        dropped: pairs left out because one side was empty, by default 0.
    """

    name: str
    train: Pairs
    valid: Pairs
    test: Pairs
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    dropped: int = 0
