"""The program as its user meets it, and how it makes and counts sequences."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from datasets import Pairs
from examples import long_sentences as program
from examples.long_sentences import (
    MODELS,
    WITHOUT_ATTENTION,
    Training,
    Widths,
    build,
    fair_widths,
    letters_task,
    main,
    measure,
    parameters,
    scores,
    text_task,
    train,
)
from examples.shared import tables
from sequence_attn.seq2seq import Hypothesis

WIDTHS = Widths(embedding=8, state=16, dropout=0.0)


@pytest.fixture
def fast(tmp_path, monkeypatch):
    monkeypatch.setattr("examples.long_sentences.PER_BUCKET", 4)
    words = ["--length", "3", "--sentences", "20", "--epochs", "2", "--state", "4"]
    return [*words, "--embedding", "4", "--out", str(tmp_path / "out")]


@pytest.fixture
def files(tmp_path):
    """Sentences of 1 to 6 words, and the same in capitals and backwards."""
    rng = np.random.default_rng(0)
    rows = [list(rng.choice(list("abcdefgh"), 1 + i % 6)) for i in range(240)]
    paths = tmp_path / "source.txt", tmp_path / "target.txt"
    paths[0].write_text("".join(" ".join(row) + "\n" for row in rows))
    paths[1].write_text("".join(" ".join(row[::-1]).upper() + "\n" for row in rows))
    return [str(path) for path in paths]


def failure(capsys, words):
    """The message of a call that must end with status 2 and one line on stderr."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


class TestTask:
    def test_targets_are_what_the_task_says(self):
        for kind, expected in {"copy": "dab", "reverse": "bad", "sort": "abd"}.items():
            assert "".join(program.ANSWERS[kind](list("dab"))) == expected
        task = letters_task("reverse", 5, sentences=20, per_bucket=5)
        for part in (task.train, task.test):
            assert part.target == [source[::-1] for source in part.source]

    def test_trains_on_lengths_up_to_l_and_tests_up_to_twice_as_long(self):
        task = letters_task("copy", 5, sentences=20, per_bucket=6)
        lengths = [len(source) for source in task.train.source]
        assert {n: lengths.count(n) for n in range(1, 6)} == {n: 4 for n in range(1, 6)}
        assert {len(source) for source in task.test.source} >= set(range(2, 11))
        assert not set(task.test.source_text) & set(task.train.source_text)

    @pytest.mark.parametrize(
        "length, buckets",
        [
            (12, [(1, 3), (4, 6), (7, 9), (10, 12), (13, 15), (16, 18), (19, 21), (22, 24)]),
            (5, [(1, 2), (3, 4), (5, 5), (6, 7), (8, 9), (10, 10)]),
        ],
    )
    def test_no_bucket_mixes_lengths_that_were_trained_on_with_longer_ones(self, length, buckets):
        assert letters_task("copy", length, 8, 1).buckets == buckets

    def test_sentences_too_long_to_train_on_are_tested_on(self, files):
        task = text_task(*files, 3, "words", lower=False, min_count=1)
        assert {len(source) for source in task.train.source} == {1, 2, 3}
        lengths = [len(source) for source in task.test.source]
        # All 40 sentences of each length above 3, held out or not
        assert [lengths.count(n) for n in (4, 5, 6)] == [40, 40, 40]
        assert not set(task.test.source_text) & set(task.train.source_text)
        pairs = zip(task.test.source, task.test.target, strict=True)
        assert all(target == [s.upper() for s in source[::-1]] for source, target in pairs)


class TestMeasure:
    def test_scores_are_those_worked_out_by_hand(self):
        said = [list("abc"), list("ab"), list("xbcd")]
        true = [list("abc"), list("abc"), list("abc")]
        found = scores(said, true, "characters")
        assert found["exact_match"] == pytest.approx(1 / 3)
        # Of four tokens each (with the end symbol): 4, 2 and 2 stand in their place
        assert found["token_accuracy"] == pytest.approx(8 / 12)

    def test_words_have_a_bleu(self):
        true = [
            ["a", "dog", "runs", "in", "the", "park"],
            ["the", "cat", "sleeps", "on", "a", "mat"],
        ]
        assert scores(true, true, "words")["bleu"] == pytest.approx(1)
        assert scores([["a"], ["b"]], true, "words")["bleu"] < 0.1

    def test_each_sequence_is_counted_in_the_bucket_of_its_length(self, monkeypatch):
        task = letters_task("reverse", 4, sentences=8, per_bucket=3)
        backwards = Pairs(*(side[::-1] for side in vars(task.test).values()))
        task = task._replace(test=backwards)  # the longest first

        def oracle(model, source, lengths, **options):
            """Reverses what has an even length, and forgets the rest."""
            rows = [row[: n - 1].tolist() for row, n in zip(source, lengths, strict=True)]
            return [
                [Hypothesis(row[::-1] if len(row) % 2 == 0 else [], 0.0, 0.0, True)] for row in rows
            ]

        monkeypatch.setattr(program, "generate", oracle)
        buckets = measure(task, build(task, "rnn", WIDTHS))
        assert [bucket["low"] for bucket in buckets] == list(range(1, 9))
        assert sum(bucket["pairs"] for bucket in buckets) == len(task.test)
        for bucket in buckets:
            if bucket["pairs"]:
                assert bucket["exact_match"] == (bucket["low"] % 2 == 0)


class TestModels:
    def test_models_without_attention_are_no_smaller(self):
        task = letters_task("copy", 4, 8, 1)
        sizes = {name: parameters(build(task, name, fair_widths(task, name, WIDTHS)))
                 for name in MODELS}  # fmt: skip
        largest = max(size for name, size in sizes.items() if name not in WITHOUT_ATTENTION)
        for name in WITHOUT_ATTENTION:
            assert largest <= sizes[name] < 1.2 * largest
        assert fair_widths(task, "luong", WIDTHS) == WIDTHS

    @pytest.mark.parametrize("name", ["rnn", "luong"])
    def test_training_gets_beyond_the_frequencies_of_letters(self, name):
        task = letters_task("reverse", 2, sentences=300, per_bucket=10)
        training = Training(epochs=8, batch_size=30, lr=0.02)
        losses = []
        found = train(task, name, Widths(16, 32, 0.0), training, seed=0, progress=losses.append)[0]
        assert len(losses) == 8 and losses[-1] == found["loss"] < 0.5 * losses[0]
        # Without looking at the source: (3 · ln 26) / 5, as 2 of 5 tokens are end symbols
        assert found["loss"] < 1.6 < 3 * math.log(26) / 5


class TestProgram:
    def test_leaves_metrics_and_a_picture(self, fast, tmp_path, capsys):
        assert main([*fast, "--models", "context", "bahdanau", "--runs", "2"]) == 0
        out = tmp_path / "out"
        assert {path.name for path in out.iterdir()} == {
            "metrics.json",
            "length.png",
            "context",
            "bahdanau",
        }
        with Image.open(out / "length.png") as image:
            assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 10
        metrics = json.loads((out / "metrics.json").read_text())
        assert metrics["complete"] is True
        for name, found in metrics["models"].items():
            assert [result["seed"] for result in found] == [0, 1]
            last = [result["buckets"][-1]["token_accuracy"] for result in found]
            mean = metrics["summary"][name][-1]["token_accuracy"]["mean"]
            assert mean == pytest.approx(np.mean(last))
        said = capsys.readouterr().out
        assert "exact match in %, by length" in said and "6 to 6  (longer)" in said

    def test_translates_files(self, fast, files, tmp_path, capsys):
        words = [word for word in fast if word not in ("--sentences", "20")]
        assert main([*words, "--data", *files, "--models", "luong", "--runs", "1"]) == 0
        assert "BLEU of the tokens, by length" in capsys.readouterr().out
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics["measures"] == ["bleu", "exact_match"]

    def test_the_same_seed_gives_the_same_numbers(self, fast, tmp_path):
        found = []
        for _ in range(2):
            assert main([*fast, "--models", "luong", "--runs", "1"]) == 0
            result = json.loads((tmp_path / "out" / "metrics.json").read_text())["models"]["luong"]
            found.append((result[0]["loss"], result[0]["buckets"]))
        assert found[0] == found[1]

    def test_an_interruption_keeps_what_there_is(self, fast, tmp_path, capsys, monkeypatch):
        genuine = train

        def interrupted(task, name, *rest):
            if name == "luong":
                raise KeyboardInterrupt
            return genuine(task, name, *rest)

        monkeypatch.setattr("examples.long_sentences.train", interrupted)
        assert main([*fast, "--models", "rnn", "luong", "--runs", "1"]) == 130
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics["complete"] is False
        assert len(metrics["models"]["rnn"]) == 1 and metrics["models"]["luong"] == []
        assert "loss of a token" in capsys.readouterr().out
        assert main([*fast, "--models", "luong"]) == 130  # before there is anything to keep

    @pytest.mark.parametrize(
        "words, message",
        [
            (["--state", "5"], "--state 5 is odd"),
            (["--unit", "words"], "--unit has no meaning for letters; give --data"),
            (["--length", "1"], "at least 2"),
            (["--models", "lstm"], "invalid choice"),
        ],
    )
    def test_options_that_make_no_sense(self, fast, capsys, words, message):
        assert message in failure(capsys, [*fast, *words])

    def test_files_that_make_no_sense(self, fast, files, tmp_path, capsys):
        words = [word for word in fast if word not in ("--sentences", "20")]
        assert "--task has no meaning for text" in failure(
            capsys, [*words, "--data", *files, "--task", "sort"]
        )
        missing = str(tmp_path / "none.txt")
        assert "none.txt" in failure(capsys, [*words, "--data", missing, files[1]])
        message = failure(capsys, [*words, "--data", *files, "--length", "9"])
        assert "choose another --length" in message

    def test_a_loss_that_is_not_finite_ends_the_program(self, fast, capsys, monkeypatch):
        def broken(task, name, widths, training, seed, progress):
            progress(float("nan"))

        monkeypatch.setattr("examples.long_sentences.train", broken)
        assert main([*fast, "--models", "rnn"]) == 2
        last = capsys.readouterr().err.splitlines()[-1]  # the progress bar stands above it
        assert last == "error: the loss of rnn (seed 0) became nan: lower --lr"


class TestComparison:
    def test_shares_become_percents(self):
        assert tables.percent([0.5, None, 0.75]) == "62.5 ± 17.7"
        assert tables.percent([None]) == "–"

    def test_a_summary_leaves_out_what_is_missing(self):
        found = [{"a": 1.0}, {"a": None}, {"a": 3.0}]
        assert tables.summary(found, ["a"])["a"]["mean"] == 2


def test_what_was_trained_can_be_asked(fast, tmp_path, capsys):
    words = [*fast, "--task", "copy", "--sentences", "400", "--epochs", "30", "--state", "32"]
    assert main([*words, "--embedding", "16", "--models", "rnn", "luong", "--runs", "1"]) == 0
    capsys.readouterr()
    assert main(["ask", "ab", "b", "--model", str(tmp_path / "out")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in rows] == [
        ["rnn", "ab", "→"], ["rnn", "b", "→"], ["luong", "ab", "→"], ["luong", "b", "→"],
    ]  # fmt: skip
    assert rows[3][3:] == ["b"]  # one letter is easy to copy
    assert main(["ask", "ab", "--model", str(tmp_path)]) == 2
    assert "--model must name a training's --out" in capsys.readouterr().err
