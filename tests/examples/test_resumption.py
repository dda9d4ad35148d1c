"""Programs that are killed while they write, and what they find when they start again."""

import copy
import errno
import json
import os
import random
from pathlib import Path

import pytest
import torch

from examples import (
    captioning,
    dictionary_lookup,
    long_sentences,
    node_classification,
    sentiment,
    tagging,
    translation,
)
from examples.shared import files
from examples.shared.files import UserError, load_checkpoint, save_checkpoint, write_atomically


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Options of a small training of each program that trains, and the program."""
    folder = tmp_path_factory.mktemp("data")
    rng = random.Random(0)
    rows = [" ".join([*rng.choices("abcd", k=4), "xy"[n % 2]]) for n in range(40)]
    csv = "\n".join(["text,label", *(f"{row},{row[-1]}" for row in rows)])
    (folder / "reviews.csv").write_text(csv)
    words = "\n".join(rows) + "\n"
    for name in ("a", "b"):
        (folder / name).write_text(words)
    small = {"--epochs": "1", "--batch-size": "16"}
    options = {
        tagging: {
            **small, "--sentences": "20", "--size": "8", "--heads": "2", "--runs": "1",
            "--models": ["attention", "bilstm"],
        },
        captioning: {
            "--epochs": "1", "--size": "4", "--state": "8", "--digits": "1", "--runs": "1",
            "--batch-size": "400", "--models": ["soft", "reinforce"],
        },
        long_sentences: {
            **small, "--sentences": "20", "--length": "2", "--state": "4", "--embedding": "4",
            "--runs": "1", "--models": ["rnn", "luong"],
        },
        dictionary_lookup: {**small, "--k": "3", "--size": "4", "--starts": "1", "--runs": "1"},
        sentiment: {
            "--data": str(folder / "reviews.csv"), "--epochs": "2", "--length": "6",
            "--seeds": ["0", "1", "2"],
        },
        node_classification: {
            "--dataset": "karate", "--epochs": "2", "--runs": "2", "--checkpoint-every": "1",
        },
        translation: {
            "--data": [str(folder / "a"), str(folder / "b")], "--unit": "characters",
            "--embedding-size": "8", "--state-size": "8", "--min-count": "1", "--layers": "1",
            "--epochs": "2", "--batch-tokens": "200", "--beam": "1", "--checkpoint-minutes": "0",
        },
    }  # fmt: skip
    return {
        program.__name__.split(".")[-1]: (program, flat(words))
        for program, words in options.items()
    }


def flat(options):
    words = ["train"] if "--embedding-size" in options else []
    for name, value in options.items():
        words += [name, *([value] if isinstance(value, str) else value)]
    return words


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What is tested on is small, and nothing is drawn."""
    monkeypatch.setattr(tagging, "TEST_SENTENCES", 5)
    monkeypatch.setattr(long_sentences, "PER_BUCKET", 2)
    genuine = captioning.split_digits
    few = {name: captioning.Digits(*(x[:40] for x in part)) for name, part in genuine().items()}
    monkeypatch.setattr(captioning, "split_digits", lambda: few)
    for program in (captioning, tagging, long_sentences, dictionary_lookup):
        monkeypatch.setattr(program, "save_figure", lambda path, figure, **rest: None)
    monkeypatch.setattr(captioning, "draw_letters", lambda models, images: models)
    monkeypatch.setattr(dictionary_lookup, "draw", lambda *args: None)
    monkeypatch.setattr(node_classification, "save_pictures", lambda *args: None)
    monkeypatch.setattr(translation, "draw", lambda task, sentences: None)


class Killed(BaseException):
    """Stands for SIGKILL: after it nothing is written, and nothing removed."""


def killed_at(number, program, words):
    """Runs a program to the replacement of a file of this number; False if there are fewer."""
    genuine, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == number:
            patch.setattr(Path, "unlink", lambda *args, **options: None)
            raise Killed
        genuine(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "replace", replace)
        try:
            assert program.main(words) == 0
        except Killed:
            return True
    return False


def outcome(folder):
    """What a training leaves, but for the time that it took."""

    def timeless(value):
        if isinstance(value, dict):
            kept = {k: timeless(v) for k, v in value.items() if "second" not in k}
            return {k: v for k, v in kept.items() if k != "out" and k != "restart"}
        return [timeless(element) for element in value] if isinstance(value, list) else value

    return {
        str(path.relative_to(folder)): timeless(json.loads(path.read_text()))
        if path.suffix == ".json"
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


RESUMED = ("tagging", "captioning", "long_sentences", "dictionary_lookup", "sentiment")


@pytest.mark.parametrize("name", [*RESUMED, "node_classification", "translation"])
def test_wherever_it_is_killed_it_goes_on_to_the_same_results(made, name, tmp_path):
    program, words = made[name]
    assert program.main([*words, "--out", str(tmp_path / "whole")]) == 0
    whole = outcome(tmp_path / "whole")
    assert not any(file.startswith(".") or file == "checkpoint.pt" for file in whole)
    number = 0
    while True:
        number += 1
        folder = tmp_path / str(number)
        own = [*words, "--out", str(folder)]
        if not killed_at(number, program, own):
            break
        assert any(path.name.startswith(".") for path in folder.rglob("*"))
        resume = name not in RESUMED and (folder / "checkpoint.pt").exists()
        assert program.main([*own, *["--resume"] * resume]) == 0
        assert outcome(folder) == whole, number
    assert number > 4


def test_other_settings_do_not_go_on(made, tmp_path, capsys):
    program, words = made["tagging"]
    words = [*words, "--out", str(tmp_path)]
    assert killed_at(4, program, words)
    assert program.main([*words, "--lr", "0.5"]) == 2
    assert "--lr was 0.005, is now 0.5" in capsys.readouterr().err
    assert program.main([*words, "--lr", "0.5", "--restart"]) == 0


def test_sweeping_spares_the_living_and_all_that_is_not_ours(tmp_path):
    mine = [tmp_path / name for name in (".notes-1.txt", ".part-1.pt", "checkpoint.pt")]
    dead = [tmp_path / name for name in (".checkpoint-99.pt", ".metrics.part-7.json")]
    for path in (*mine, *dead):
        path.write_text("")
    swept = []

    def write(temporary):
        temporary.write_text("new")
        files.sweep(tmp_path)
        swept.append(temporary.exists())

    write_atomically(tmp_path / "model.pt", write)
    assert swept == [True] and (tmp_path / "model.pt").read_text() == "new"
    assert set(tmp_path.iterdir()) == {*mine, tmp_path / "model.pt"}


def test_the_first_error_is_the_one_that_is_told(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        write_atomically(tmp_path / "a.txt", full)
    with pytest.raises(UserError, match=r"cannot remove .*a\.txt: Read-only file system"):
        files.remove(tmp_path / "a.txt")


@pytest.mark.parametrize("name", [*RESUMED, "node_classification", "translation"])
def test_a_folder_that_cannot_be_written_is_told_before_work(made, name, tmp_path, capsys):
    program, words = made[name]
    (tmp_path / "file").touch()
    assert program.main([*words, "--out", str(tmp_path / "file" / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot create the folder") and error.count("\n") == 1


def places(value, path=()):
    """Where the parts of a state are; of lists and of tensors' names the first few will do."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in list(value)[:12]:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list | tuple) and value and len(path) < 6:
        yield from places(value[0], (*path, 0))


def changed(state, path, wrong):
    state = copy.deepcopy(state)
    place = state
    for key in path[:-1]:
        place = place[key]
    if isinstance(place, tuple):
        return None
    place[path[-1]] = wrong
    return state


@pytest.mark.parametrize("name", [*RESUMED[:4], "node_classification", "translation"])
def test_wrong_values_in_a_checkpoint_are_told_in_one_line(made, name, tmp_path, capsys):
    program, words = made[name]
    own = [*words, "--out", str(tmp_path)]
    number = {"translation": 5, "node_classification": 6}.get(name, 6)  # a sweep has all results
    assert killed_at(number, program, own)
    path = tmp_path / "checkpoint.pt"
    sound = load_checkpoint(path)
    own += ["--resume"] * (name not in RESUMED)
    told = 0
    everywhere = [place for place in places(sound) if place[0] != "config"]
    for nth, place in enumerate(everywhere):
        wrong = ("x", [1, 2], None, torch.ones(2))[nth % 4]
        if (state := changed(sound, place, wrong)) is None:
            continue
        save_checkpoint(path, state)
        capsys.readouterr()
        status = program.main(own)
        error = capsys.readouterr().err.splitlines()
        assert status in (0, 2), place
        if status == 2:
            told += 1
            assert [line for line in error if "error" in line.lower()] == error[-1:], place
            assert error[-1].startswith("error: ") and "--restart" in error[-1], place
    assert told > 0.7 * len(everywhere)


def test_wrong_values_in_the_scores_of_a_seed(made, tmp_path, capsys):
    program, words = made["sentiment"]
    words = [*words, "--out", str(tmp_path)]
    assert program.main(words) == 0
    path = tmp_path / "seed-0.json"
    sound = json.loads(path.read_text())
    for place in places(sound):
        if place[0] != "config":
            path.write_text(json.dumps(changed(sound, place, "x")))
            capsys.readouterr()
            assert program.main(words) == 2, place
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and "--restart" in error, place
