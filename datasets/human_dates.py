"""Dates as people write them, and the same dates as machines do: a small task for translation."""

import datetime
import functools
import random
from collections.abc import Sequence

from babel import Locale
from babel.dates import format_date

from .pairs import Pairs, PairSplits
from .tokens import Tokenizer

LOCALES = (
    *("en_US", "en_GB", "en_CA", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "nb", "fi"),
    *("pl", "cs", "hu", "tr", "ru", "el", "ja", "zh", "ko"),
)

# Beside the four formats of each locale that does not write the year first.
SPELT = ("d MMMM y", "d MMM y", "MMMM d, y", "MMM d y", "EEE, d MMM y", "EEEE d MMMM y")
# The same in every locale: the day comes first, unless the year does.
NUMERIC = ("y-MM-dd", "y/MM/dd", "dd.MM.y", "d.M.y", "dd/MM/y", "d/M/y", "dd-MM-y")

FIRST_DAY = datetime.date(1950, 1, 1)
NUM_DAYS = (datetime.date(2050, 1, 1) - FIRST_DAY).days


def human_dates(
    count: int = 10_000,
    seed: int = 0,
    *,
    held_out: int = 1_000,
    locales: Sequence[str] = LOCALES,
) -> PairSplits:
    """Write random dates in many languages and formats, each with its ISO form "YYYY-MM-DD".

    The days lie between 1950 and 2049; a tenth of them is kept for validation, another tenth for
    the test, so no held-out date occurs in training in any form. Names and formats are Babel's
    (Unicode CLDR); all is lower-cased. Tokens are characters.

    Each text stands for one date. The formats of a locale ("full", "long", "medium", "short") take
    part if they write the year with four digits; where such a one has the month as a number, the
    day comes before it, unless the year does: "3/5/2001" is always the 3rd of May. So the medium
    format of German (05.03.2001) and the short one of British English (05/03/2001) are in; the
    short one of American English (3/5/01) is out. To these come formats common to all locales,
    such as "5.3.2001" and "2001/03/05", and, but for the locales that begin with the year
    (Hungarian, Japanese, Chinese, Korean), "5 march 2001" or "mar 5 2001".

    Args:
        count: pairs to train on.
        seed: of everything; with the same release of Babel the same pairs come out.
        held_out: pairs to validate on, and as many again to test on. Both stay the same,
            whatever ``count`` is.
        locales: which of ``LOCALES`` to write in, by default all.

    Returns:
        Splits whose tokens are characters; ``name`` is "human dates".

    Raises:
        ValueError: ``count`` or ``held_out`` is below 1, or a locale is none of ``LOCALES``.

    Example:
        >>> data = human_dates(3, held_out=1, locales=["en_GB"])
        >>> len(data.train), len(data.test), "".join(data.train.target[0]) in data.train.target_text
        (3, 1, True)
        >>> human_dates(0)
        Traceback (most recent call last):
        ValueError: count must be at least 1, got 0
    """
    for name, value in (("count", count), ("held_out", held_out)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    unknown = [locale for locale in locales if locale not in LOCALES]
    if unknown or not locales:
        raise ValueError(f"locales must be some of {', '.join(LOCALES)}; got {list(locales)}")
    tokenizer = Tokenizer("characters", lower=True)
    rng = random.Random(seed)
    days = list(range(NUM_DAYS))
    rng.shuffle(days)
    tenth = NUM_DAYS // 10

    def pairs(days: list[int], count: int) -> Pairs:
        sources, targets = [], []
        for _ in range(count):
            date = FIRST_DAY + datetime.timedelta(rng.choice(days))
            locale = rng.choice(locales)
            sources.append(write_date(date, locale, rng.choice(formats(locale))))
            targets.append(date.isoformat())
        return Pairs.from_text(sources, targets, tokenizer, tokenizer)

    valid = pairs(days[:tenth], held_out)
    test = pairs(days[tenth : 2 * tenth], held_out)
    train = pairs(days[2 * tenth :], count)
    return PairSplits("human dates", train, valid, test, tokenizer, tokenizer)


def write_date(date: datetime.date, locale: str, pattern: str) -> str:
    """Return a date in the words of a locale, lower-cased, with ordinary spaces.

    Args:
        date: the date.
        locale: such as "en_GB".
        pattern: of Babel, such as "d MMMM y".

    Example:
        >>> write_date(datetime.date(2001, 3, 5), "de", "EEEE, d. MMMM y")
        'montag, 5. märz 2001'
    """
    return " ".join(format_date(date, pattern, locale=_locale(locale)).lower().split())


@functools.cache
def formats(locale: str) -> tuple[str, ...]:
    """Return the patterns in which dates of a locale are written, each once.

    Example:
        >>> [pattern for pattern in formats("en_US") if pattern.startswith("M")]
        ['MMMM d, y', 'MMM d, y', 'MMM d y']
    """
    named = _locale(locale).date_formats
    own = [named[name].pattern for name in ("full", "long", "medium", "short")]
    spelt = () if own[0].startswith("y") else SPELT
    full_years = [pattern for pattern in own if "yy" not in pattern]
    return tuple(dict.fromkeys([*full_years, *spelt, *NUMERIC]))


@functools.cache
def _locale(name: str) -> Locale:
    return Locale.parse(name)
