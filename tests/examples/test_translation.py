"""The program as its user meets it, on words of four letters that are to be reversed."""

import io
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import Pairs, PairSplits, Tokenizer, Vocabulary, human_dates
from examples import _translation, translation
from examples._translation import (
    KINDS,
    Architecture,
    Corpus,
    Run,
    Settings,
    load_translator,
    perplexity,
    quality,
)
from examples.shared.files import load_checkpoint
from examples.shared.program import Signals
from examples.translation import main

REPOSITORY = Path(__file__).parents[2]
RESULTS = {"model.safetensors", "config.json", "vocabulary.json", "metrics.json"}
TINY = [
    *("--unit", "characters", "--embedding-size", "16", "--layers", "1", "--min-count", "1"),
    *("--batch-tokens", "120", "--epochs", "2", "--warmup", "2"),
]
RECURRENT = ["--state-size", "16"]
# The program, until the eighth batch would begin
KILLED = """
import os, signal, sys
from examples._translation import Run
from examples.translation import main

genuine, calls = Run.train_batch, []

def train_batch(run):
    calls.append(None)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return genuine(run)

Run.train_batch = train_batch
main(sys.argv[1:])
"""
TRANSFORMER = ["--model", "transformer", "--heads", "2", "--feed-forward-size", "16"]


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    """Pictures take long; returns the function that draws them."""
    genuine = translation.draw
    monkeypatch.setattr(translation, "draw", lambda task, sentences: None)
    return genuine


@pytest.fixture
def files(tmp_path):
    """Two files whose lines are each other's reverse."""
    words = ["".join(letters) for n in (2, 3, 4) for letters in itertools.product("abcd", repeat=n)]
    random.Random(0).shuffle(words)
    paths = tmp_path / "there.txt", tmp_path / "back.txt"
    paths[0].write_text("".join(f"{word}\n" for word in words[:120]))
    paths[1].write_text("".join(f"{word[::-1]}\n" for word in words[:120]))
    return [str(path) for path in paths]


def options(files, out, *more):
    size = [] if "transformer" in more else RECURRENT
    return ["train", "--data", *files, *TINY, *size, "--out", str(out), *more]


@pytest.fixture
def model(files, tmp_path):
    """The folder of a small model that has learned to write something."""
    learning = "--epochs", "8", "--lr", "0.02", "--average", "0", "--dropout", "0"
    assert main(options(files, tmp_path / "model", *learning)) == 0
    return tmp_path / "model"


def names(folder):
    return {path.name for path in folder.iterdir()}


def read(path):
    return json.loads(path.read_text())


def outcome(folder):
    """The weights of a training, and all of its numbers but the time that they took."""
    metrics = read(folder / "metrics.json")
    for result in (metrics, *metrics["history"]):
        for name in ("seconds", "training_seconds", "tokens_per_second"):
            result.pop(name, None)
    return (folder / "model.safetensors").read_bytes(), metrics


def failure(capsys, words):
    """The message of a call that must end with status 2 and one line on stderr."""
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def interrupt_at(monkeypatch, batch, name="train_batch"):
    """Ctrl-C where the n-th batch would begin, counted over all models."""
    genuine, calls = getattr(Run, name), []

    def wrapper(self, *rest):
        calls.append(None)
        if len(calls) == batch:
            raise KeyboardInterrupt
        return genuine(self, *rest)

    monkeypatch.setattr(Run, name, wrapper)


def interrupt():
    raise KeyboardInterrupt


class TestTraining:
    @pytest.mark.parametrize(
        "chosen",
        [
            *(["--model", kind, *RECURRENT] for kind in KINDS if kind != "transformer"),
            [*TRANSFORMER, "--positions", "learned"],
            [*TRANSFORMER, "--positions", "rotary", "--normalizer", "entmax"],
            ["--attention", "local-p", "--window", "2", "--cell", "lstm", *RECURRENT],
            ["--attention", "local-m", "--window", "1", *RECURRENT],
            ["--attention", "location", "--input-feeding", *RECURRENT],
            ["--attention", "hard", "--schedule", "inverse-sqrt", *RECURRENT],
            ["--model", "bahdanau", "--attention", "cosine", "--bfloat16", *RECURRENT],
            ["--model", "rnn", "--context", "--sampled-softmax", "3", *RECURRENT],
            ["--model", "grammar", "--reads", "2", "--teacher-forcing", "0.5", *RECURRENT],
        ],
        ids=lambda chosen: "-".join(word for word in chosen if not word.startswith("--")),
    )
    def test_every_model_trains_and_translates(self, files, tmp_path, capsys, chosen):
        out = tmp_path / "deep" / "out"
        words = ["train", "--data", *files, *TINY, "--epochs", "1", "--out", str(out), *chosen]
        assert main(words) == 0, capsys.readouterr().err
        assert names(out) == RESULTS
        metrics = read(out / "metrics.json")
        assert 1 < metrics["test_perplexity"] < 20 and metrics["history"][0]["epoch"] == 1
        capsys.readouterr()
        assert main(["translate", "--model", str(out), "--file", files[0]]) == 0
        assert capsys.readouterr().out.count("\n") == 120

    def test_it_learns(self, files, tmp_path):
        words = options(files, tmp_path / "out", "--epochs", "40", "--lr", "0.02", "--average", "0")
        assert main([*words, "--state-size", "32", "--dropout", "0"]) == 0
        history = read(tmp_path / "out" / "metrics.json")["history"]
        assert history[0]["valid_exact_match"] == 0
        assert history[-1]["valid_exact_match"] >= 0.8

    def test_the_model_that_is_kept_is_that_of_the_best_epoch(self, files, tmp_path, capsys):
        out = tmp_path / "out"
        main(options(files, out, "--epochs", "6", "--lr", "0.5", "--average", "0"))
        metrics = read(out / "metrics.json")
        best = max(
            metrics["history"], key=lambda s: (s["valid_exact_match"], -s["valid_perplexity"])
        )
        assert metrics["best_epoch"] == best["epoch"]
        capsys.readouterr()
        main(["evaluate", "--model", str(out), "--split", "valid", "--beam", "1"])
        assert f"{best['valid_perplexity']:.3f}" in capsys.readouterr().out

    def test_stops_when_nothing_improves(self, files, tmp_path, capsys):
        main(options(files, tmp_path / "out", "--lr", "0", "--epochs", "9", "--patience", "2"))
        assert read(tmp_path / "out" / "metrics.json")["epochs"] == 3
        assert "no better epoch for 2 epochs: stopped early" in capsys.readouterr().out

    def test_a_baseline_takes_as_many_steps(self, files, tmp_path, capsys):
        assert main(options(files, tmp_path / "out", "--baseline", "--average", "0.9")) == 0
        assert names(tmp_path / "out") == RESULTS | {"baseline"}
        ours, baseline = (
            read(tmp_path / "out" / name)
            for name in ("metrics.json", Path("baseline", "metrics.json"))
        )
        assert ours["steps"] == baseline["steps"] > 2
        assert [ours["model"], baseline["model"]] == ["luong", "rnn"]
        table = capsys.readouterr().out.split("\n\n")[-2].splitlines()
        assert [line.split()[0] for line in table] == ["model", "-----", "luong", "rnn"]

    def test_draws_where_each_token_came_from(self, files, tmp_path, monkeypatch, pictures):
        monkeypatch.setattr(translation, "draw", pictures)
        chosen = "--picture", "abcd", *TRANSFORMER, "--layers", "2", "--epochs", "1"
        out = tmp_path / "out"
        assert main(["train", "--data", *files, *TINY, "--out", str(out), *chosen]) == 0
        assert names(out) == RESULTS | {"alignment-1.png"}
        with Image.open(out / "alignment-1.png") as image:
            assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 10

    def test_empty_lines_are_left_out_and_counted(self, files, tmp_path, capsys):
        for path, extra in zip(files, ("\nab\n", "ba\n\n"), strict=True):
            with open(path, "a") as file:
                file.write(extra)
        assert main(options(files, tmp_path / "out", "--epochs", "1")) == 0
        assert "2 pairs with an empty side left out" in capsys.readouterr().out


class TestInterruption:
    def test_killed_in_the_middle_of_an_epoch_it_goes_on_bit_for_bit(self, files, tmp_path):
        more = "--average", "0.9", "--checkpoint-minutes", "0", "--lr", "0.01"
        words = options(files, tmp_path / "killed", *more)
        command = [sys.executable, "-c", KILLED, *words]
        process = subprocess.run(command, cwd=REPOSITORY, capture_output=True)
        assert process.returncode == -signal.SIGKILL, process.stderr.decode()
        state = load_checkpoint(tmp_path / "killed" / "checkpoint.pt")
        assert (state["epoch"], state["steps"]) == (1, 7) and state["batch"] > 0
        assert main([*words, "--resume"]) == 0
        assert main(options(files, tmp_path / "steady", *more)) == 0
        assert outcome(tmp_path / "killed") == outcome(tmp_path / "steady")

    @pytest.mark.parametrize(
        ("place", "name", "chosen"),
        [
            (3, "train_batch", ["--cell", "lstm"]),
            (3, "train_batch", [*TRANSFORMER, "--epochs", "1"]),
            (13, "train_batch", ["--baseline"]),
            (2, "validate", []),
        ],
        ids=["lstm", "transformer", "baseline", "validation"],
    )
    def test_after_ctrl_c_it_goes_on_bit_for_bit(
        self, files, tmp_path, monkeypatch, capsys, place, name, chosen
    ):
        chosen = [*chosen, "--average", "0.9", "--label-smoothing", "0.1"]
        assert main(options(files, tmp_path / "steady", *chosen)) == 0
        words = options(files, tmp_path / "stopped", *chosen)
        with monkeypatch.context() as patch:
            interrupt_at(patch, place, name)
            assert main(words) == 130
        assert "--resume" in capsys.readouterr().err
        assert main([*words, "--resume"]) == 0
        for part in ("", "baseline") if "--baseline" in chosen else ("",):
            folders = [tmp_path / name / part for name in ("stopped", "steady")]
            assert outcome(folders[0])[0] == outcome(folders[1])[0]
        assert not list((tmp_path / "stopped").rglob("checkpoint.pt"))

    def test_stopped_before_the_model_is_written(self, files, tmp_path, monkeypatch):
        words = options(files, tmp_path, "--epochs", "1", "--lr", "0.01")
        with monkeypatch.context() as patch:
            patch.setattr(translation, "save_translator", lambda *_: interrupt())
            assert main(words) == 130
        assert "model.safetensors" not in names(tmp_path)
        assert main([*words, "--resume"]) == 0
        assert names(tmp_path) >= RESULTS

    def test_a_signal_waits_for_the_end_of_the_batch(self):
        signals, done = Signals(), []
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), signals.caught(), signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(True)
        assert done and signal.getsignal(signal.SIGINT) is before

    def test_an_unfinished_training_is_not_overwritten(self, files, tmp_path, monkeypatch, capsys):
        words = options(files, tmp_path / "out")
        with monkeypatch.context() as patch:
            interrupt_at(patch, 3)
            assert main(words) == 130
        assert "holds an unfinished training" in failure(capsys, words)
        assert main([*words, "--restart"]) == 0

    def test_it_goes_on_only_with_the_same_settings_and_pairs(
        self, files, tmp_path, monkeypatch, capsys
    ):
        words = options(files, tmp_path / "out")
        with monkeypatch.context() as patch:
            interrupt_at(patch, 3)
            main(words)
        other = failure(capsys, [*words, "--resume", "--lr", "0.5"])
        assert "lr was 0.005, is now 0.5" in other
        with open(files[0], "a") as there, open(files[1], "a") as back:
            there.write("e\n")
            back.write("e\n")
        assert "the sentence pairs" in failure(capsys, [*words, "--resume"])
        for path in files:  # the same letters in another order
            lines = Path(path).read_text().splitlines()[:-1]
            Path(path).write_text("".join(f"{line}\n" for line in lines[::-1]))
        assert "the sentence pairs" in failure(capsys, [*words, "--resume"])

    def test_nothing_to_resume(self, files, tmp_path, capsys):
        assert "nothing to resume" in failure(capsys, [*options(files, tmp_path), "--resume"])


class TestTranslation:
    def test_lines_of_both_files_belong_together(self, model, tmp_path, capsys):
        (tmp_path / "in.txt").write_text("abcd\n\nba\n   \nd\n")
        output = tmp_path / "new" / "out.txt"
        words = ["translate", "--model", str(model), "--file", str(tmp_path / "in.txt")]
        assert main([*words, "--output", str(output)]) == 0
        lines = output.read_text().split("\n")
        assert [bool(line) for line in lines] == [True, False, True, False, True, False]

    def test_a_sentence_is_translated_alike_alone_and_in_a_file(
        self, model, tmp_path, capsys, monkeypatch
    ):
        sentences = ["abcd", "ba", "dcab", "c"]
        (tmp_path / "in.txt").write_text("\n".join(sentences))
        capsys.readouterr()
        main(["translate", "--model", str(model), "--file", str(tmp_path / "in.txt")])
        of_file = capsys.readouterr().out
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(sentences) + "\n"))
        assert main(["translate", "--model", str(model)]) == 0
        assert capsys.readouterr().out == of_file

    def test_unknown_tokens_are_named(self, model, capsys, monkeypatch):
        monkeypatch.setattr(sys, "stdin", io.StringIO("axb\n"))
        assert main(["translate", "--model", str(model), "--beam", "2"]) == 0
        assert "unknown to the model: x" in capsys.readouterr().err

    def test_draws_the_alignment_of_a_line(self, model, tmp_path):
        (tmp_path / "in.txt").write_text("\nabc\n")
        words = ["translate", "--model", str(model), "--file", str(tmp_path / "in.txt")]
        assert main([*words, "--pictures", str(tmp_path / "drawn")]) == 0
        assert names(tmp_path / "drawn") == {"alignment-2.png"}

    def test_input_longer_than_the_positions(self, files, tmp_path, capsys, monkeypatch):
        out = tmp_path / "out"
        chosen = [*TRANSFORMER, "--positions", "learned", "--max-length", "6", "--epochs", "1"]
        assert main(["train", "--data", *files, *TINY, "--out", str(out), *chosen]) == 0
        (tmp_path / "in.txt").write_text("abcd\nabcdabcd\n")
        words = ["translate", "--model", str(out)]
        error = failure(capsys, [*words, "--file", str(tmp_path / "in.txt")])
        assert "in.txt, line 2 has 8 tokens" in error and "end at 6" in error
        # At the prompt nothing is lost: the next sentence is translated
        monkeypatch.setattr(sys, "stdin", io.StringIO("abcdabcd\nabcda\n"))
        assert main(words) == 0
        said = capsys.readouterr()
        assert "the sentence has 8 tokens" in said.err and said.out.count("\n") == 1

    def test_sentences_too_long_for_the_positions_in_training(self, files, tmp_path, capsys):
        chosen = [*TRANSFORMER, "--positions", "learned", "--max-length", "4"]
        error = failure(capsys, ["train", "--data", *files, *TINY, *chosen])
        assert "has 4 tokens, but the model's positions end at 4" in error
        # Said before the training, not behind it
        chosen = [*chosen[:-1], "6", "--picture", "abcdabcd"]
        error = failure(capsys, ["train", "--data", *files, *TINY, *chosen])
        assert "--picture 'abcdabcd' has 8 tokens" in error


class TestEvaluation:
    def test_finds_the_numbers_of_the_training(self, model, capsys):
        metrics = read(model / "metrics.json")
        capsys.readouterr()
        assert main(["evaluate", "--model", str(model), "--beam", str(metrics["beam"])]) == 0
        said = capsys.readouterr().out
        assert f"{metrics['test_perplexity']:8.3f}" in said
        assert f"{metrics['test_exact_match']:8.2%}" in said

    def test_words_are_judged_by_both_bleus(self, tmp_path, capsys):
        rng = random.Random(0)
        lines = [" ".join(rng.choices(["Ein", "Mann", "Hund", "geht"], k=5)) for _ in range(60)]
        for name in ("a", "b"):
            (tmp_path / name).write_text("".join(f"{line}.\n" for line in lines))
        data = [str(tmp_path / "a"), str(tmp_path / "b")]
        tiny = ["--unit", "words", *TINY[2:], *RECURRENT, "--epochs", "1", "--beam", "1", "--lower"]
        assert main(["train", "--data", *data, *tiny, "--out", str(tmp_path / "m")]) == 0
        assert main(["evaluate", "--model", str(tmp_path / "m"), "--split", "valid"]) == 0
        said = capsys.readouterr().out
        assert "of tokens: Moses words (en), lower-cased; sacreBLEU, tokenize=none" in said
        assert "of detokenised text, lower-cased; tokenize=13a" in said

    def test_two_files_are_judged_whole(self, model, files, capsys):
        assert main(["evaluate", "--model", str(model), "--data", *files]) == 0
        assert "on 120 pairs" in capsys.readouterr().out

    def test_quality(self):
        tokenizer = Tokenizer("words", lower=True)
        text = ["The dog sees a red house.", "A man walks home today."]
        pairs = Pairs.from_text(text, text, tokenizer, tokenizer)
        corpus = Corpus(
            PairSplits("", pairs, pairs, pairs, tokenizer, tokenizer),
            Vocabulary(["a"]),
            Vocabulary(["a"]),
        )
        scores = quality(pairs.target, pairs, corpus, full=True)
        assert scores["exact_match"] == 1
        assert scores["bleu"] == pytest.approx(100) and scores["sacrebleu"] == pytest.approx(100)
        worse = [pairs.target[0], pairs.target[1][:-1]]  # 12 of 13 tokens, each n-gram right
        scores = quality(worse, pairs, corpus, full=True)
        assert scores["exact_match"] == 0.5
        assert scores["bleu"] == pytest.approx(100 * math.exp(1 - 13 / 12))

    def test_perplexity_of_a_model_that_knows_nothing(self, files):
        corpus = translation.Data(tuple(files), unit="characters").corpus()
        architecture = Architecture(
            "luong", len(corpus.source), len(corpus.target), embedding_size=8, state_size=8
        )
        model = architecture.build()
        torch.nn.init.zeros_(model.output.weight)
        torch.nn.init.zeros_(model.output.bias)
        found = perplexity(model, corpus.encoded("valid"), "cpu", tokens=50)
        assert found == pytest.approx(len(corpus.target), rel=1e-5)


class TestRate:
    @pytest.mark.parametrize(
        ("schedule", "expected"),
        [
            ("constant", [0.5, 1.0, 1.0, 1.0]),
            ("inverse-sqrt", [0.5, 1.0, math.sqrt(2 / 3), math.sqrt(2 / 4)]),
            ("cosine", [0.5, 0.75, 0.25, 0.0]),
        ],
    )
    def test_rate_of_each_step(self, schedule, expected):
        run = Run.__new__(Run)
        run.settings = Settings(3, 3, 9, 1.0, schedule, 2, 1.0, 0.0, 0, 1.0, 0.0, False)
        run._planned, run.batch = None, 0
        rates = []
        for step in range(4):
            run.steps, run.epoch = step, step
            run._planned = (step, [None])
            rates.append(run.rate())
        assert rates == pytest.approx(expected)


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["sing"], "'sing' is none of train, translate, evaluate"),
            (["train", "--data", "cats"], "'cats' is neither 'dates' nor 'multi30k' nor a file"),
            (["train", "--data", __file__], "is neither 'dates' nor 'multi30k' nor two files"),
            (["train", "--data", "dates", __file__], "give 'dates' alone, or two files"),
            (["train", "--data", "multi30k", "--lower"], "--lower is for files"),
            (["train", "--model", "rnn", "--reads", "2"], "--reads is for --model grammar"),
            (["train", "--model", "rnn", "--attention", "dot"], "'rnn' has no attention"),
            (["train", "--max-length", "9"], "this model has no limit"),
            (["train", "--state-size", "7"], "must be even"),
            (["train", "--model", "transformer", "--heads", "3"], "cannot be built"),
            (["train", "--device", "moon"], "--device moon is of no use here"),
            (["train", "--sampled-softmax", "9", "--teacher-forcing", "0.5"], "leave one out"),
            (["translate", "--model", "nowhere"], "--model must name the --out folder"),
            (["translate", "--model", "x", "--beam", "0"], "must be a whole number, at least 1"),
            (["evaluate", "--model", "x", "--alpha", "-1"], "must be a number, at least 0"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_is_explained(self, words, message, capsys, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        few = human_dates(9, held_out=2)
        monkeypatch.setattr(_translation, "human_dates", lambda seed: few)
        assert message in failure(capsys, words)

    def test_files_of_unequal_length(self, files, capsys):
        with open(files[0], "a") as file:
            file.write("dd\n")
        error = failure(capsys, ["train", "--data", *files])
        assert "there.txt, line 121" in error and "no counterpart" in error

    def test_another_encoding(self, files, tmp_path, model, capsys):
        Path(files[0]).write_bytes("Tür\n".encode("latin-1"))
        for words in (["train", "--data", *files],
                      ["translate", "--model", str(model), "--file", files[0]]):  # fmt: skip
            error = failure(capsys, words)
            assert "there.txt, line 1: not UTF-8" in error and "iconv" in error

    def test_vocabulary_of_another_model(self, files, model, tmp_path, capsys):
        other = tmp_path / "other"
        for path in files:
            text = Path(path).read_text()
            Path(path).write_text(text.replace("a", "e"))
        main(options(files, other, "--epochs", "1"))
        shutil.copy(other / "vocabulary.json", model)
        error = failure(capsys, ["evaluate", "--model", str(model)])
        assert "source vocabulary" in error and "trained with" in error

    def test_damaged_weights(self, model, capsys):
        path = model / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        assert "is damaged" in failure(capsys, ["evaluate", "--model", str(model)])

    def test_damaged_config(self, model, capsys):
        config = read(model / "config.json")
        del config["search"]
        (model / "config.json").write_text(json.dumps(config))
        error = failure(capsys, ["evaluate", "--model", str(model)])
        assert "config.json is damaged" in error and "without search" in error

    def test_evaluation_on_data_of_another_kind(self, model, capsys):
        error = failure(capsys, ["evaluate", "--model", str(model), "--data", "dates"])
        assert "choose data of the same kind" in error

    def test_no_pictures_without_attention(self, files, tmp_path, capsys):
        out = tmp_path / "out"
        main(options(files, out, "--model", "rnn", "--epochs", "1"))
        words = ["translate", "--model", str(out), "--pictures", str(tmp_path / "p")]
        assert "has no attention to draw" in failure(capsys, words)

    def test_a_loss_that_is_no_number(self, files, tmp_path, capsys, monkeypatch):
        nan = torch.tensor(math.nan, requires_grad=True)
        monkeypatch.setattr(_translation, "cross_entropy", lambda *a, **k: nan * 1)
        assert main(options(files, tmp_path / "out")) == 2
        error = capsys.readouterr().err
        assert "error: the loss became nan" in error and "lower --lr" in error


def test_a_saved_model_is_the_one_that_was_trained(model):
    loaded = load_translator(model)
    assert not loaded.model.training
    # One matrix for embedding and output, as it was trained
    assert loaded.model.output.weight is loaded.model.target_embedding.weight


class TestOwnSentences:
    """A made-up language: each word has another, and the verb goes to the end."""

    NOUNS: ClassVar = {"cat": "Ka", "dog": "Do", "bird": "Vo", "fish": "Fi", "man": "Ma"}
    VERBS: ClassVar = {"sees": "siet", "hears": "hört", "likes": "mag", "finds": "findet"}

    @pytest.fixture
    def pairs(self, tmp_path):
        """Two files of all 100 sentences, with five ends each."""
        rows = [
            (
                f"the {a} {verb} the {b}{end}",
                f"{self.NOUNS[a]} {self.NOUNS[b]} {self.VERBS[verb]}{end}",
            )
            for end in ("!", "!!", "?", ".", "...")
            for a, verb, b in itertools.product(self.NOUNS, self.VERBS, self.NOUNS)
        ]
        random.Random(0).shuffle(rows)
        paths = tmp_path / "there.txt", tmp_path / "here.txt"
        for path, side in zip(paths, zip(*rows, strict=True), strict=True):
            path.write_text("".join(f"{line}\n" for line in side), encoding="utf-8")
        return [str(path) for path in paths]

    def test_with_the_defaults_it_learns_more_than_words(self, pairs, tmp_path, capsys):
        out = tmp_path / "out"
        words = ["train", "--data", *pairs, "--languages", "en", "de", "--epochs", "6"]
        assert main([*words, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        steps = math.ceil(read(out / "metrics.json")["steps"] / 6)
        assert f"{steps:,} steps in an epoch" in said and f"{6 * steps:,} in 6 epochs" in said
        assert said.count(" → ") == 2 * 6 + 1  # two translations an epoch, and the tokens
        lines = said.split("\n\n")[-2].splitlines()
        assert [line.split("  ")[0] for line in lines] == [
            "model",
            "-" * 12,
            "word by word",
            "luong",
        ]
        assert read(out / "metrics.json")["test_sacrebleu"] > 60  # the order of the words is right
        assert "no better than" not in said

        # The subwords are saved with the model: it translates, and judges other files
        Path(tmp_path / "new.txt").write_text("the cat likes the cat!\n")
        assert main(["translate", "--model", str(out), "--file", str(tmp_path / "new.txt")]) == 0
        assert capsys.readouterr().out == "Ka Ka mag!\n"
        assert main(["evaluate", "--model", str(out), "--data", *pairs]) == 0
        assert "sacreBLEU" in capsys.readouterr().out

    def test_it_says_so_when_it_learned_nothing(self, pairs, tmp_path, capsys):
        words = ["train", "--data", *pairs, "--epochs", "1", "--lr", "1e-9", "--average", "0"]
        assert main([*words, "--out", str(tmp_path / "out")]) == 0
        assert "luong translates no better than word by word" in capsys.readouterr().out

    def test_word_by_word_takes_the_word_that_keeps_company(self, pairs):
        splits = translation.Data(tuple(pairs), languages=("en", "de"), unit="words").pairs()
        found = _translation.word_by_word(splits)
        nth = splits.test.source_text.index(next(s for s in splits.test.source_text if "cat" in s))
        assert "Ka" in found[nth].split()

    def test_settings_follow_the_number_of_pairs(self):
        def suited(n, kind="luong", length=16):
            pairs = Pairs([["a"] * length] * n, [["b"] * 6] * n, [""] * n, [""] * n)
            splits = PairSplits("", pairs, pairs, pairs, Tokenizer(), Tokenizer())
            return _translation.suited(kind, splits)

        few, some, many = map(suited, (500, 10_000, 100_000))
        assert few["batch_tokens"] < some["batch_tokens"] < many["batch_tokens"]
        assert few["epochs"] > some["epochs"] > many["epochs"]
        assert few["state_size"] < some["state_size"] < many["state_size"]
        steps = 10_000 / (some["batch_tokens"] / 18) * some["epochs"]
        assert 1000 < steps < 2000 and some["warmup"] < steps / 5
        assert suited(10_000, length=8)["epochs"] == 2 * some["epochs"]  # they take half the time
        assert suited(10_000, "transformer")["embedding_size"] % 16 == 0

    def test_bleu_that_is_noise_does_not_choose_an_epoch(self):
        def scores(bleu, perplexity):
            return {"valid_sacrebleu": bleu, "valid_exact_match": 0, "valid_perplexity": perplexity}

        assert translation.merit(scores(0.1, 50)) > translation.merit(scores(2, 60))
        assert translation.merit(scores(9, 50)) > translation.merit(scores(8, 40))
        assert translation.merit(scores(5, 90)) > translation.merit(scores(4.9, 10))

    def test_bleu_is_of_characters_where_nothing_stands_between_words(self):
        assert _translation.bleu_tokens(["我们是学生。", "你好。"]) == "char"
        assert _translation.bleu_tokens(["We are students.", "Hello."]) == "13a"


def test_a_picture_shows_no_more_than_forty_rows_and_how_even_attention_is(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(translation, "save_figure", lambda path, figure, **_: drawn.append(figure))
    even = _translation.Found(["b"] * 60, ["b"] * 60, torch.full((1, 60, 4), 0.25))
    translation.save_alignment(tmp_path / "x.png", ["a"] * 3, even)
    panel = drawn[0].axes[0]
    assert panel.images[0].get_array().shape == (40, 4)
    assert panel.images[0].get_clim() == (0, 1)  # a quarter is a quarter as dark as can be
    assert panel.get_title() == "attention: rows read columns, the first 40 tokens"
