"""What `sequence_attn.plot` and `gat.plot` share: colours, and text in whatever script.

Nothing of the core imports it, for it needs numpy, and what draws needs matplotlib:
`pip install 'gat-attention[plot]'`.
"""

from __future__ import annotations

import math
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# Petroff (2021), "Accessible Color Sequences for Data Visualization": chosen to stay apart under
# the common colour-vision deficiencies.
COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6",
           "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")  # fmt: skip
_LONGEST = 24  # characters of a token that are shown

# Where to look first for glyphs that the reader's own font lacks. DejaVu Sans comes with
# matplotlib and has the "▁" of subword tokens; the others are what systems bring for Chinese,
# Japanese and Korean.
_FALLBACKS = (
    "DejaVu Sans",
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK TC", "Noto Sans CJK KR", "Noto Sans SC",
    "Source Han Sans SC", "Source Han Sans CN", "Source Han Sans",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic",
    "PingFang SC", "Hiragino Sans GB", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS",
    "IPAexGothic", "IPAGothic", "TakaoGothic", "NanumGothic",
)  # fmt: skip


@contextmanager
def plot_extra() -> Iterator[None]:
    """Names the extra that brings what is imported inside, if it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"drawing needs {error.name}: pip install 'gat-attention[plot]'",
            name=error.name,
        ) from error


class Writer:
    """Writes strings so that every character can be seen in one of the installed fonts."""

    def __init__(self, texts: Iterable[str]) -> None:
        written = "".join(texts)
        family, self._missing = _families(set(written))
        self.font: dict[str, Any] = {"fontfamily": family} if family else {}
        if self._missing:
            from matplotlib import get_cachedir

            first = next(c for c in written if c in self._missing)
            warnings.warn(
                f"no installed font has the glyphs of {len(self._missing)} of the characters, the"
                f" first {first} (U+{ord(first):04X}): they are written as escapes,"
                f" {_escape(first)}. Install a font that has them, such as Noto Sans CJK for"
                " Chinese, Japanese and Korean (package fonts-noto-cjk on Debian and Ubuntu,"
                " google-noto-sans-cjk-fonts on Fedora), and delete matplotlib's list of fonts in"
                f" {get_cachedir()}; or load a font file with"
                " matplotlib.font_manager.fontManager.addfont(path)",
                UserWarning,
                stacklevel=3,
            )

    def text(self, text: str) -> str:
        """The text, with escapes for what no font has."""
        return "".join(_escape(c) if c in self._missing else c for c in text)

    def token(self, token: str) -> str:
        """The token, if need be cut, with escapes for whatever could not be seen."""
        control = {c for c in token if unicodedata.category(c) in ("Cc", "Cs")}
        pieces = [_escape(c) if c in control else self.text(c) for c in token]
        ends = np.cumsum([len(piece) for piece in pieces])
        if len(pieces) and ends[-1] > _LONGEST:
            pieces = [*pieces[: int((ends < _LONGEST).sum())], "…"]
        return "".join(pieces)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def _families(characters: set[str]) -> tuple[list[str] | None, set[str]]:
    """Font families that together have the characters, and those characters that none has.

    None instead of families where matplotlib's configured ones do.
    """
    from matplotlib import rcParams
    from matplotlib.font_manager import fontManager

    missing = {c for c in characters if unicodedata.category(c) not in ("Cc", "Cf", "Cs")}
    configured = list(rcParams["font.family"])
    for family in configured:
        missing -= _glyphs(family, missing)
    # A font of last resort has a box for everything.
    installed = {font.name for font in fontManager.ttflist}
    anywhere = sorted(name for name in installed if "LastResort" not in name.replace(" ", ""))
    others = []
    for family in (*_FALLBACKS, *anywhere):
        if missing and (found := _glyphs(family, missing)):
            others.append(family)
            missing -= found
    return ([*configured, *others] if others else None), missing


def _glyphs(family: str, characters: set[str]) -> set[str]:
    """Those of the characters that the family's regular face has a glyph for; others may not."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    try:
        font = get_font(findfont(FontProperties(family=[family]), fallback_to_default=False))
    except (ValueError, OSError, RuntimeError):  # not installed, deleted or damaged
        return set()
    return {c for c in characters if font.get_char_index(ord(c))}


@dataclass(frozen=True)
class Labels:
    """What stands along one side: the tokens as they are written, or the positions."""

    texts: list[str]
    are_positions: bool

    @classmethod
    def write(cls, tokens: list[str] | None, count: int, writer: Writer) -> Labels:
        if tokens is None:
            return cls([str(n) for n in range(count)], True)
        return cls([writer.token(token) for token in tokens], False)

    @property
    def width(self) -> float:
        """About how wide the widest is, in units of the font size."""
        return max(
            sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in text)
            for text in self.texts
        )


class Fit(NamedTuple):
    size: float  # of the font, in points
    turn: int  # degrees
    step: int  # every step-th is labelled


def fit(labels: Labels, pitch: float, across: bool = False) -> Fit:
    """How labels that stand `pitch` points apart, one below or (across) beside the other, fit."""
    size = float(np.clip(pitch / 1.25, 6, 9))
    turn, need = 0, 1.25 * size
    if across and labels.are_positions:
        need = (labels.width + 0.8) * size
    elif across and (labels.width + 0.3) * size > pitch:
        turn = 45 if pitch >= 1.7 * size else 90
    elif across:
        need = 0.0
    step = max(1, math.ceil(need / pitch - 1e-6))
    if labels.are_positions:  # 1, 2, 5, 10, 20, …
        tens = 10 ** int(math.log10(step))
        step = next(nice * tens for nice in (1, 2, 5, 10) if nice * tens >= step)
    return Fit(size, turn, step)
