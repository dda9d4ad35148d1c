"""How a line of text becomes tokens, and tokens become text again."""

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Unit = Literal["words", "characters"]


@dataclass(frozen=True)
class Tokenizer:
    """Splits text into words or characters, and joins them again.

    Words are those of the Moses tokeniser (Koehn et al., 2007) as in sacremoses, without its
    escapes: punctuation stands alone, ``'s`` and the like are cut off where the language does so,
    hyphenated words, numbers and abbreviations stay whole. The Multi30k data set publishes its own
    tokens in this form. For writing without spaces between words, take characters.

    First of all the text is put into Unicode's composed form (NFC) and each run of white space
    becomes one space, so that a character looks the same however it was typed. The settings are
    plain values: ``dataclasses.asdict`` saves them beside a model, ``Tokenizer(**saved)`` is back.

    Args:
        unit: "words" (default) or "characters" (spaces are characters too).
        language: two-letter code, by default "en": chooses the abbreviations that keep their dot
            and where an apostrophe splits. Unknown languages get common rules.
        lower: lower-case all tokens; by default they stay as they are.

    Raises:
        ValueError: ``unit`` is neither of the two.

    Example:
        >>> Tokenizer("characters", lower=True).tokenize("5  Mai")
        ['5', ' ', 'm', 'a', 'i']
        >>> tokenizer = Tokenizer(language="en")
        >>> tokenizer.tokenize("The dog's ball, a well-worn one.")
        ['The', 'dog', "'s", 'ball', ',', 'a', 'well-worn', 'one', '.']
        >>> tokenizer.detokenize(["The", "dog", "'s", "ball", "."])
        "The dog's ball."
    """

    unit: Unit = "words"
    language: str = "en"
    lower: bool = False

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"unit must be 'words' or 'characters', got {self.unit!r}")

    @property
    def name(self) -> str:
        """What a report says beside a BLEU on tokens, such as "Moses words (en), lower-cased"."""
        kind = f"Moses words ({self.language})" if self.unit == "words" else "characters"
        return kind + (", lower-cased" if self.lower else "")

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a line; none for white space alone."""
        text = " ".join(unicodedata.normalize("NFC", text).split())
        if self.unit == "characters":
            return list(text.lower() if self.lower else text)
        # Before lower-casing: "Dr." is known as an abbreviation, "dr." is not.
        tokens: list[str] = _moses(self.language)[0].tokenize(text, escape=False)
        return [token.lower() for token in tokens] if self.lower else tokens

    def detokenize(self, tokens: Sequence[str]) -> str:
        """Return text with the spaces where a writer would put them; what was lower stays so."""
        if self.unit == "characters":
            return "".join(tokens)
        text: str = _moses(self.language)[1].detokenize(tokens, unescape=False)
        return text


@functools.cache
def _moses(language: str) -> tuple[Any, Any]:
    # Imported here, since it takes a third of a second, which those who read graphs need not wait.
    from sacremoses import MosesDetokenizer, MosesTokenizer

    return MosesTokenizer(language), MosesDetokenizer(language)
