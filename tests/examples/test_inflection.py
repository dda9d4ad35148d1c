"""Inflection: four attentions on words of one's own."""

import json

import pytest
from PIL import Image

from examples.commands.inflection import MODELS
from examples.inflection import distance, main

SMALL = ["--embedding", "8", "--state", "8", "--epochs", "1", "--runs", "1", "--batch-size", "8"]


@pytest.fixture
def words(tmp_path):
    """Three files: a plural is the word with an s behind it, a past has a d."""
    names = []
    for number, name in enumerate(("train", "valid", "test")):
        lines = []
        for i in range(24):
            lemma = "".join("abcdefg"[(i * k + number) % 7] for k in (1, 3, 5))
            lines += [f"{lemma}\t{lemma}s\tN;PL", f"{lemma}\t{lemma}d\tV;PST"]
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        names.append(str(path))
    return names


def test_it_compares_all_models_and_draws_them(words, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["--data", *words, *SMALL, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "48 words to train on, 48 to validate, 48 to test on" in said
    lines = said.splitlines()
    assert next(line for line in lines if "as it is" in line).split()[-2:] == ["0.0", "1.00"]
    for title in MODELS.values():
        assert any(line.startswith(title) for line in lines)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["complete"] is True and list(metrics["models"]) == list(MODELS)
    for (found,) in metrics["models"].values():
        assert 0 <= found["accuracy"] <= 1 and found["epoch"] == 1
    with Image.open(out / "alignments.png") as picture:
        assert picture.size[0] > 2 * picture.size[1]


def test_what_was_trained_is_not_trained_again(words, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--data", *words, *SMALL, "--models", "monotonic", "--out", str(out)]
    tables = []
    for _ in range(2):
        assert main(options) == 0
        tables.append(json.loads((out / "metrics.json").read_text())["models"])
        capsys.readouterr()
    for first, again in zip(*(one["monotonic"] for one in tables), strict=True):
        first.pop("seconds"), again.pop("seconds")
        assert first == again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--state", "7"], "--state 7 is odd"),
        (["--data", "{bad}", "{bad}", "{bad}"], "line 2: has 2 columns"),
        (["--data", "{bad}", "{bad}", "{bad}.missing"], "there is no file"),
        (["--language", "klingon"], "klingon"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(options, message, tmp_path, capsys):
    bad = tmp_path / "bad"
    bad.write_text("go\twent\tV;PST\ngo\twent\n")
    words = [word.format(bad=bad) for word in options]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_edit_distance():
    assert distance("kitten", "sitting") == 3
    assert distance("", "") == 0
