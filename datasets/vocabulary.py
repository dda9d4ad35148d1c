"""Tokens as numbers."""

import collections
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

PAD, UNK, BOS, EOS = range(4)
SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>")


class VocabularyError(ValueError):
    """A vocabulary is damaged, or is not the one that a model was trained with."""


class Vocabulary:
    """A list of tokens and the number of each; four special symbols come first.

    The numbers 0 to 3 are padding, unknown token, begin and end (``PAD``, ``UNK``, ``BOS``,
    ``EOS``). A word of the text that happens to be spelt like one of them counts as unknown.

    Args:
        tokens: the tokens from number 4 on.

    Raises:
        VocabularyError: a token is there twice, is a special symbol, or is no text.

    Example:
        >>> vocabulary = Vocabulary.build([["a", "man"], ["a", "dog"]])
        >>> vocabulary.tokens
        ['<pad>', '<unk>', '<bos>', '<eos>', 'a', 'dog', 'man']
        >>> vocabulary.encode(["a", "cat"], bos=True, eos=True)
        [2, 4, 1, 3]
        >>> vocabulary.decode([2, 4, 5, 3, 0, 0])
        ['a', 'dog']
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = [*SPECIALS, *tokens]
        for token in self.tokens:
            if not isinstance(token, str):
                raise VocabularyError(f"tokens must be text, got {token!r}")
        self._index = {token: number for number, token in enumerate(self.tokens)}
        if len(self._index) < len(self.tokens):
            twice = next(token for token, n in collections.Counter(self.tokens).items() if n > 1)
            raise VocabularyError(
                f"tokens must differ from each other and from {SPECIALS}, but "
                f"{twice!r} is there twice; list each once"
            )
        self._known = {token: n for token, n in self._index.items() if n >= len(SPECIALS)}

    @classmethod
    def build(
        cls,
        sentences: Iterable[Sequence[str]],
        *,
        min_count: int = 1,
        max_size: int | None = None,
    ) -> "Vocabulary":
        """Return the vocabulary of some sentences: the most frequent token first.

        Tokens of equal frequency are in alphabetical order, so the same sentences in another
        order give the same vocabulary.

        Args:
            sentences: tokens of each; the training sentences alone.
            min_count: how often a token must occur to be taken in, by default once.
            max_size: number of entries at most, the four special symbols included.

        Raises:
            ValueError: ``min_count`` is below 1, ``max_size`` leaves no room for a token, or no
                token is frequent enough.
        """
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}")
        if max_size is not None and max_size <= len(SPECIALS):
            raise ValueError(
                f"max_size must be more than the {len(SPECIALS)} special symbols, got {max_size}"
            )
        counts = collections.Counter(token for sentence in sentences for token in sentence)
        for special in SPECIALS:
            counts.pop(special, None)
        chosen = [token for token, count in counts.items() if count >= min_count]
        chosen.sort(key=lambda token: (-counts[token], token))
        if not chosen:
            raise ValueError(
                f"no token of sentences occurs min_count={min_count} times; give more sentences "
                "or a smaller min_count"
            )
        return cls(chosen if max_size is None else chosen[: max_size - len(SPECIALS)])

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self._known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.tokens == other.tokens

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} entries, fingerprint {self.fingerprint[:8]})"

    def encode(self, tokens: Iterable[str], *, bos: bool = False, eos: bool = False) -> list[int]:
        """Return the numbers of some tokens, between begin and end symbols if asked for."""
        numbers = [self._known.get(token, UNK) for token in tokens]
        return [BOS] * bos + numbers + [EOS] * eos

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """Return the tokens up to the first end symbol, without begin symbols and padding.

        Args:
            numbers: ints, or a tensor ``[T]`` of them.

        Raises:
            ValueError: a number is none of this vocabulary.
        """
        tokens = []
        for number in map(int, numbers):
            if number == EOS:
                break
            if not 0 <= number < len(self.tokens):
                raise ValueError(
                    f"numbers must be from 0 to {len(self) - 1}, got {number}; decode with the "
                    "vocabulary that the model was trained with"
                )
            if number not in (PAD, BOS):
                tokens.append(self.tokens[number])
        return tokens

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that depend on every token and its number."""
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()

    def check(self, fingerprint: str, name: str = "vocabulary") -> None:
        """Refuse to go on with a vocabulary that a model was not trained with.

        Args:
            fingerprint: of the vocabulary that the model was trained with.
            name: what the message calls this one, such as "source vocabulary".

        Raises:
            VocabularyError: the fingerprints differ.
        """
        if fingerprint != self.fingerprint:
            raise VocabularyError(
                f"the {name} has {len(self)} entries and fingerprint {self.fingerprint[:8]}, but "
                f"the model was trained with {fingerprint[:8]}; use the vocabulary saved with "
                "the model, or train anew with the present data and settings"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return tokens and fingerprint as plain values, to be saved as json with a model."""
        return {"tokens": self.tokens[len(SPECIALS) :], "fingerprint": self.fingerprint}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Vocabulary":
        """Return the vocabulary that `to_dict` described.

        Raises:
            VocabularyError: an entry is missing, or the tokens were changed.
        """
        missing = {"tokens", "fingerprint"} - content.keys()
        if missing:
            raise VocabularyError(
                f"a saved vocabulary has tokens and fingerprint, got {sorted(content)}; save it "
                "with to_dict"
            )
        vocabulary = cls(content["tokens"])
        vocabulary.check(content["fingerprint"], "saved vocabulary")
        return vocabulary
