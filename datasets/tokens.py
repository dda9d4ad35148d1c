"""How a line of text becomes tokens, and tokens become text again."""

import base64
import functools
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Unit = Literal["words", "characters", "subwords"]


@dataclass(frozen=True)
class Tokenizer:
    """Splits text into words, characters or subwords, and joins them again.

    Words are those of the Moses tokeniser (Koehn et al., 2007) as in sacremoses, without its
    escapes: punctuation stands alone, ``'s`` and the like are cut off where the language does so,
    hyphenated words, numbers and abbreviations stay whole. The Multi30k data set publishes its own
    tokens in this form. For writing without spaces between words, take characters or subwords.

    Subwords are learned from text (`learned`): frequent words are whole, rare ones fall into
    pieces, down to the bytes of a character that was never seen. (Byte pair encoding: Sennrich et
    al., 2016, by SentencePiece: Kudo and Richardson, 2018.)

    First of all the text is put into Unicode's composed form (NFC) and each run of white space
    becomes one space, so that a character looks the same however it was typed. The settings are
    plain values: ``dataclasses.asdict`` saves them beside a model, ``Tokenizer(**saved)`` is back.

    Args:
        unit: "words" (default), "characters" (spaces are characters too) or "subwords".
        language: two-letter code, by default "en": chooses the abbreviations that keep their dot
            and where an apostrophe splits. Unknown languages get common rules.
        lower: lower-case all tokens; by default they stay as they are.
        pieces: SentencePiece's model in base 64, for subwords; see `learned`.

    Raises:
        ValueError: ``unit`` is none of the three, or ``pieces`` are missing or of no use.

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
    pieces: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            names = "'words', 'characters' or 'subwords'"
            raise ValueError(f"unit must be {names}, got {self.unit!r}")
        if (self.unit == "subwords") != (self.pieces is not None):
            raise ValueError(
                f"unit {self.unit!r} with{'out' * (self.pieces is None)} pieces; they are of"
                " subwords, and Tokenizer.learned makes both"
            )

    @classmethod
    def learned(
        cls,
        lines: Sequence[str],
        *,
        size: int | None = None,
        language: str = "en",
        lower: bool = False,
    ) -> "Tokenizer":
        """Return a tokeniser of the subwords of some lines.

        Args:
            lines: text to learn from; the training sentences alone.
            size: how many subwords at most, the 256 bytes included. By default 40 for each root of
                a line, 500 to 16,000, and no fewer than twice the characters there are.
            language: two-letter code, see above.
            lower: lower-case all text.

        Raises:
            ValueError: ``size`` has no room for the characters of the lines, or they are empty.

        Example:
            >>> tokenizer = Tokenizer.learned(["the cat sat on the mat", "the hat"], size=280)
            >>> tokenizer.tokenize("the cat"), tokenizer.detokenize(tokenizer.tokenize("a Ж"))
            (['▁the', '▁cat'], 'a Ж')
        """
        # Imported here, as is sacremoses: those who read graphs need not wait.
        from sentencepiece import SentencePieceTrainer

        lines = [_composed(line, lower) for line in lines]
        least = 256 + 2 * len(set().union(*lines)) + 4
        if size is None:
            size = max(least, min(16_000, max(500, round(40 * len(lines) ** 0.5))))
        model = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_writer=model, model_type="bpe",
                vocab_size=size, hard_vocab_limit=False, byte_fallback=True,
                character_coverage=0.9995, normalization_rule_name="identity",
                max_sentence_length=2**16, minloglevel=2,
            )  # fmt: skip
        except RuntimeError as error:
            raise ValueError(
                f"no {size} subwords can be learned from {len(lines)} lines ({error}); choose"
                f" {least} or more, or give more text"
            ) from error
        return cls("subwords", language, lower, base64.b64encode(model.getvalue()).decode())

    @property
    def name(self) -> str:
        """What a report says beside a BLEU on tokens, such as "Moses words (en), lower-cased"."""
        kind = f"Moses words ({self.language})" if self.unit == "words" else self.unit
        return kind + (", lower-cased" if self.lower else "")

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a line; none for white space alone."""
        if self.pieces is not None:
            subwords: list[str] = _pieces(self.pieces).encode(
                _composed(text, self.lower), out_type=str
            )
            return subwords
        text = _composed(text)
        if self.unit == "characters":
            return list(text.lower() if self.lower else text)
        # Before lower-casing: "Dr." is known as an abbreviation, "dr." is not.
        tokens: list[str] = _moses(self.language)[0].tokenize(text, escape=False)
        return [token.lower() for token in tokens] if self.lower else tokens

    def detokenize(self, tokens: Sequence[str]) -> str:
        """Return text with the spaces where a writer would put them; what was lower stays so."""
        if self.unit == "characters":
            return "".join(tokens)
        if self.pieces is not None:
            return str(_pieces(self.pieces).decode(list(tokens)))
        text: str = _moses(self.language)[1].detokenize(tokens, unescape=False)
        return text


def _composed(text: str, lower: bool = False) -> str:
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text.lower() if lower else text


@functools.lru_cache(maxsize=8)
def _pieces(model: str) -> Any:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=base64.b64decode(model))


@functools.cache
def _moses(language: str) -> tuple[Any, Any]:
    # Imported here, since it takes a third of a second, which those who read graphs need not wait.
    from sacremoses import MosesDetokenizer, MosesTokenizer

    return MosesTokenizer(language), MosesDetokenizer(language)
