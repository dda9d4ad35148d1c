"""Multi30k: descriptions of photographs, in German and in English."""

from .fetch import fetch
from .pairs import Pairs, PairSplits
from .parallel_text import read_lines
from .tokens import Tokenizer, Unit

URL = (
    "https://raw.githubusercontent.com/multi30k/dataset/"
    "c40b37b23d6387214f8ab37335b5a8672b9745f2/data/task1/raw/"
)

SHA256 = {
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
}

LANGUAGES = ("de", "en")


def multi30k(
    source: str = "de", target: str = "en", *, unit: Unit = "words", lower: bool = True
) -> PairSplits:
    """Return Multi30k's sentence pairs: 29,000 to train on, 1,014 to validate, 1,000 to test.

    The English sentences describe photographs of Flickr30k; professional translators put them
    into German. The test set is the one of 2016, on which papers report. (Elliott et al.,
    Multi30K: Multilingual English-German Image Descriptions, 2016.)

    The raw text comes from the data set's repository, or from ``$GAT_DATA/multi30k`` where the
    environment variable ``GAT_DATA`` is set.

    Args:
        source: "de" (default) or "en".
        target: the other one, by default "en".
        unit: tokens are "words" (default; Moses tokenisation, see `Tokenizer`) or "characters".
        lower: lower-case the tokens (default), or leave them; the raw text is left as it is.

    Returns:
        Splits without dropped pairs; ``name`` is "multi30k de-en" or "multi30k en-de".

    Raises:
        ValueError: ``source`` and ``target`` are not the two languages.
        DataFileError: a file is missing, cannot be downloaded, or has another hash.

    Example:
        >>> data = multi30k("de", "en")  # doctest: +SKIP
        >>> data.test.source[0][:6], data.test.target[0][:6]  # doctest: +SKIP
        (['ein', 'mann', 'mit', 'einem', 'orangefarbenen', 'hut'],
         ['a', 'man', 'in', 'an', 'orange', 'hat'])
        >>> multi30k("de", "fr")
        Traceback (most recent call last):
        ValueError: source and target must be 'de' and 'en' or 'en' and 'de', got 'de' and 'fr'
    """
    if sorted((source, target)) != sorted(LANGUAGES):
        raise ValueError(
            "source and target must be 'de' and 'en' or 'en' and 'de', got "
            f"{source!r} and {target!r}"
        )
    tokenizers = Tokenizer(unit, source, lower), Tokenizer(unit, target, lower)

    def pairs(part: str) -> Pairs:
        names = [f"{part}.{language}.gz" for language in (source, target)]
        texts = [read_lines(fetch(name, URL + name, SHA256[name], "multi30k")) for name in names]
        return Pairs.from_text(texts[0], texts[1], *tokenizers)

    train, valid, test = (pairs(part) for part in ("train", "val", "test_2016_flickr"))
    return PairSplits(f"multi30k {source}-{target}", train, valid, test, *tokenizers)
