import os
import shutil
from pathlib import Path

import pytest

from datasets import DataFileError, multi30k
from datasets.multi30k import SHA256, URL
from datasets.vocabulary import Vocabulary

needs_data = pytest.mark.skipif(
    not os.environ.get("GAT_DATA"),
    reason="reads the Multi30k files: set GAT_DATA to a folder that has them in multi30k/",
)


@pytest.fixture(scope="module")
def german_english():
    return multi30k("de", "en")


@needs_data
def test_published_sizes(german_english):
    data = german_english
    assert [len(part) for part in (data.train, data.valid, data.test)] == [29_000, 1_014, 1_000]
    assert data.dropped == 0
    assert all(data.train.source) and all(data.train.target)


@needs_data
def test_sentences_are_translations_of_each_other(german_english):
    test = german_english.test
    assert test.source_text[3] == (
        "Fünf Leute in Winterjacken und mit Helmen stehen im Schnee mit Schneemobilen im "
        "Hintergrund."
    )
    assert " ".join(test.target[3]) == (
        "five people wearing winter jackets and helmets stand in the snow , with snowmobiles in "
        "the background ."
    )


@needs_data
def test_vocabularies_have_the_size_known_from_other_tokenisers(german_english):
    # The spaCy tokens of a widely read tutorial leave 7853 German and 5893 English entries.
    train = german_english.train
    sizes = [len(Vocabulary.build(side, min_count=2)) for side in (train.source, train.target)]
    assert sizes == [pytest.approx(7853, rel=0.01), pytest.approx(5893, rel=0.01)]


@needs_data
@pytest.mark.parametrize("side", ["source", "target"])
def test_detokenised_text_is_the_text(german_english, side):
    # Where it is not, the writer has put a space before a comma, or the like.
    tokenizer = getattr(german_english, f"{side}_tokenizer")
    tokens = getattr(german_english.test, side)
    text = getattr(german_english.test, f"{side}_text")
    pairs = zip(tokens, text, strict=True)
    same = sum(tokenizer.detokenize(t) == " ".join(x.lower().split()) for t, x in pairs)
    assert same >= 995


@needs_data
def test_other_direction_swaps_the_sides(german_english):
    swapped = multi30k("en", "de", unit="characters", lower=False)
    assert swapped.name == "multi30k en-de"
    assert swapped.train.source_text == german_english.train.target_text
    assert swapped.test.target_text == german_english.test.source_text
    assert swapped.test.target[0] == list(german_english.test.source_text[0])


@needs_data
def test_changed_file_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "multi30k"
    shutil.copytree(Path(os.environ["GAT_DATA"], "multi30k"), folder)
    path = folder / "train.de.gz"
    path.chmod(0o644)
    path.write_bytes(b"another file")
    monkeypatch.setenv("GAT_DATA", str(tmp_path))
    with pytest.raises(DataFileError) as error:
        multi30k(unit="characters")
    for part in (str(path), SHA256["train.de.gz"], URL + "train.de.gz"):
        assert part in str(error.value)


@pytest.mark.parametrize("languages", [("de", "de"), ("en", "fr"), ("DE", "en")])
def test_other_languages_are_refused(languages):
    with pytest.raises(ValueError, match=f"got '{languages[0]}' and '{languages[1]}'"):
        multi30k(*languages)
