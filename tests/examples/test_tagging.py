"""The comparison of taggers: its task, its models, its bound, and the program."""

import contextlib
import io
import json
import random

import pytest
import torch
from PIL import Image

from datasets import TaggedSentences, read_conllu
from examples import tagging
from examples.tagging import (
    MODELS,
    Tagger,
    Task,
    Training,
    Widths,
    commonest_tags,
    main,
    measure,
    order_blind_bound,
    spell,
    train,
)

WIDTHS = Widths(size=16, layers=1, heads=2, window=1, dropout=0.0)
FAST = ["--sentences", "40", "--epochs", "1", "--size", "16", "--runs", "2"]
CONLLU = (
    "1\ta\t_\tDET\tD\t_\t_\t_\t_\t_\n2\tcat\t_\tNOUN\tN\t_\t_\t_\t_\t_\n\n"
    "1\ta\t_\tDET\tD\t_\t_\t_\t_\t_\n2\tdog\t_\tNOUN\tN\t_\t_\t_\t_\t_\n\n"
)


@pytest.fixture(autouse=True)
def few_test_sentences(monkeypatch):
    monkeypatch.setattr(tagging, "TEST_SENTENCES", 30)


def task_of(train_words, train_tags, test_words, test_tags, **options):
    def part(words, tags):
        return TaggedSentences([w.split() for w in words], [t.split() for t in tags])

    return Task.of("x", part(train_words, train_tags), part(test_words, test_tags), **options)


def test_tags_follow_from_what_came_before():
    words, tags = spell(200, seed=3)
    for symbols, facts in zip(words, tags, strict=True):
        for place, fact in enumerate(facts):
            before = symbols[:place]
            near, far = fact.split("|")
            assert near == ("vowel" if before and before[-1] in ("a", "e") else "other")
            assert far == ("open" if before.count("(") > before.count(")") else "closed")
    assert {len(symbols) for symbols in words} == set(range(10, 31))


def test_a_seed_gives_the_same_sentences():
    assert spell(20, seed=5) == spell(20, seed=5) != spell(20, seed=6)


def test_the_bound_is_the_commonest_tag_of_each_word_among_sentences_of_the_same_words():
    # In the first two a is X three times of four, and b is Y or Z. "a b" has other words.
    task = task_of(["a b"], ["X Y"], ["a a b", "b a a", "a b"], ["X X Y", "X X Y", "Y X"])
    assert order_blind_bound(task)["accuracy"] == pytest.approx((3 + 1 + 2) / 8)


def test_a_tag_that_training_lacks_is_never_right():
    task = task_of(["a"], ["X"], ["a a", "b"], ["W W", "X"])
    assert order_blind_bound(task)["accuracy"] == pytest.approx(1 / 3)
    assert commonest_tags(task)["accuracy"] == pytest.approx(1 / 3)


def test_the_commonest_tag_of_a_word_and_of_all_words():
    task = task_of(["a a a b"], ["X Y Y Z"], ["a b c", "a b b"], ["Y Z Y", "X Z X"])
    # a is Y, b is Z, and c, which is unknown, is Y as most words are
    assert commonest_tags(task)["accuracy"] == pytest.approx(4 / 6)


def test_rare_words_share_the_number_of_unknown_ones():
    task = task_of(["a a b c"], ["X X Y Y"], ["a b d"], ["X Y Y"], min_count=2)
    seen = task.lexicon.known
    known, *rare = seen[task.test.source[0]].tolist()
    assert rare == [rare[0]] * 2 and known != rare[0]
    assert seen[task.train.source[0]].tolist() == [known, known, *rare]
    # To the bound and to the baseline they are different words
    assert len({*task.test.source[0]}) == 3


def test_the_aspects_of_a_tag_are_measured_by_themselves():
    task = task_of(
        ["a b"], ["v|open c|open"], ["a b"], ["v|closed c|open"], aspects=("near", "far")
    )
    # The tag "v|closed" is not known, so nothing of it can be right
    assert commonest_tags(task) == {"accuracy": 0.5, "near": 0.5, "far": 0.5}
    task = task_of(["a b"], ["v|open c|shut"], ["a b"], ["v|open v|open"], aspects=("near", "far"))
    assert commonest_tags(task) == {"accuracy": 0.5, "near": 0.5, "far": 0.5}
    task = task_of(["a b"], ["v|open v|shut"], ["a b"], ["v|open v|open"], aspects=("near", "far"))
    assert commonest_tags(task) == {"accuracy": 0.5, "near": 1.0, "far": 0.5}


@pytest.mark.parametrize("model", MODELS)
def test_only_what_sees_order_tells_equal_words_of_a_sentence_apart(model):
    tagger = Tagger(words=9, tags=4, model=model, widths=WIDTHS).eval().double()
    sentence = torch.tensor([[5, 6, 5, 7, 8, 6, 7, 5]])
    scores = tagger(sentence, torch.tensor([8]))[0]
    shuffled = torch.tensor([3, 7, 0, 5, 2, 6, 1, 4])
    moved = tagger(sentence[:, shuffled], torch.tensor([8]))[0]
    alike = torch.allclose(scores[0], scores[2]) and torch.allclose(scores[0], scores[7])
    assert alike != MODELS[model].sees_order
    assert torch.allclose(moved, scores[shuffled]) != MODELS[model].sees_order


@pytest.mark.parametrize("model", MODELS)
def test_padding_changes_nothing(model):
    tagger = Tagger(words=9, tags=4, model=model, widths=WIDTHS).eval().double()
    sentence = torch.tensor([[5, 6, 7]])
    alone = tagger(sentence, torch.tensor([3]))
    batch = torch.zeros(2, 8, dtype=torch.long)
    batch[0, :3], batch[1] = sentence, torch.arange(8)
    torch.testing.assert_close(tagger(batch, torch.tensor([3, 8]))[:1, :3], alone)


@pytest.mark.parametrize("size", [32, 64])
def test_all_encoders_have_about_as_many_parameters(size):
    widths = Widths(size, 2, 4, 2, 0.0)
    sizes = [sum(p.numel() for p in MODELS[model].build(widths).parameters()) for model in MODELS]
    assert max(sizes) < 1.05 * min(sizes)


def test_what_sees_order_exceeds_the_bound_and_attention_alone_does_not():
    task = Task.of("x", spell(200, 0), spell(60, 1), aspects=("near", "far"))
    bound = order_blind_bound(task)
    training = Training(epochs=6, batch_size=16, lr=1e-2, device="cpu")
    blind, sees = (
        train(task, model, WIDTHS, training, 0)[0]["test"] for model in ("attention", "cnn")
    )
    assert all(blind[name] <= bound[name] for name in bound)
    assert sees["near"] > 0.95 > bound["near"]


def test_a_training_depends_on_its_seed_alone():
    task = Task.of("x", spell(30, 0), spell(10, 1))
    widths = WIDTHS._replace(dropout=0.1)
    training = Training(epochs=1, batch_size=8, lr=1e-2, device="cpu")
    a, b, c = (train(task, "rotary", widths, training, seed)[0]["loss"] for seed in (0, 0, 1))
    assert a == b != c


def test_measures_count_words_and_not_padding():
    task = task_of(["a a a a a b", "b"], ["X X X X X Y", "Y"], ["a a a a", "b"], ["X X X X", "Y"])
    tagger = task.build("bilstm", WIDTHS)
    with torch.no_grad():  # says "X" whatever it sees
        tagger.output.weight.zero_()
        tagger.output.bias.copy_(torch.tensor([1.0, 0.0]))
    assert measure(tagger, task, task.train) == {"accuracy": pytest.approx(5 / 7)}
    assert measure(tagger, task, task.test) == {"accuracy": pytest.approx(4 / 5)}


def test_the_program_writes_a_table_the_numbers_and_a_picture(tmp_path, capsys):
    assert main([*FAST, "--models", "attention", "bilstm", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["complete"] and list(metrics["models"]) == ["attention", "bilstm"]
    mean = 100 * metrics["summary"]["bilstm"]["test"]["accuracy"]["mean"]
    row = next(line for line in out.splitlines() if line.startswith("BiLSTM"))
    assert f"{mean:.1f} ±" in row and f"{metrics['models']['bilstm'][0]['parameters']:,}" in row
    bound = 100 * metrics["baselines"]["upper bound without order"]["accuracy"]
    assert f"{bound:.1f}" in next(x for x in out.splitlines() if x.startswith("upper bound"))
    with Image.open(tmp_path / "accuracy.png") as picture:
        assert min(picture.size) > 500


def test_the_program_learns_from_conllu_files(tmp_path, capsys):
    files = [tmp_path / name for name in ("train.conllu", "test.conllu")]
    files[0].write_text(CONLLU * 4)
    files[1].write_text(CONLLU.replace("dog", "emu"))
    options = ["--conllu", *map(str, files), "--size", "16", "--runs", "1", "--epochs", "12"]
    options += ["--lr", "0.02", "--batch-size", "2", "--column", "xpos", "--models", "relative"]
    assert main([*options, "--out", str(tmp_path)]) == 0
    assert (
        "train: 8 sentences (16 words) to train, 2 sentences (4 words)" in capsys.readouterr().out
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["models"]["relative"][0]["train"] == {"accuracy": 1.0}


def test_an_interruption_keeps_what_there_is(tmp_path, capsys, monkeypatch):
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(tagging, "train", interrupted)
    assert main([*FAST, "--models", "attention", "cnn", "--out", str(tmp_path)]) == 130
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert not metrics["complete"]
    assert [len(found) for found in metrics["models"].values()] == [1, 0]
    assert (tmp_path / "accuracy.png").exists()
    assert "attention without positions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "transformer"], "invalid choice: 'transformer'"),
        (["--size", "20", "--heads", "4"], "--size 20 is no multiple of 8"),
        (["--column", "xpos"], "--column has no meaning for generated sentences"),
        (["--conllu", "lost.conllu", "lost.conllu"], "no file 'lost.conllu'"),
        (
            ["--conllu", __file__, __file__, "--sentences", "9"],
            "--sentences has no meaning for conllu",
        ),
        (["--device", "nowhere"], "--device nowhere is of no use"),
    ],
)
def test_bad_options_are_errors_that_say_the_mend(words, message, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_loss_that_is_no_number_ends_the_program(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tagging, "train", lambda *args: args[-1](float("nan")))
    assert main([*FAST, "--models", "cnn", "--out", str(tmp_path)]) == 2
    assert "the loss of cnn (seed 0) became nan: lower --lr" in capsys.readouterr().err


class TestOwnText:
    """Words whose part of speech their last letters tell: -en is a verb, -ung a noun."""

    @pytest.fixture(scope="class")
    def trained(self, tmp_path_factory):
        """The folder of a training on 120 sentences, and what it printed."""
        folder, draw = tmp_path_factory.mktemp("own"), random.Random(0)
        for name, count in (("train", 120), ("test", 30)):
            lines = []
            for _ in range(count):
                for n in range(1, 7):
                    stem = "".join(draw.choices("bdfgklmprst", k=4))
                    end, tag = draw.choice([("en", "VERB"), ("ung", "NOUN"), ("ig", "ADJ")])
                    lines.append(f"{n}\t{stem}{end}\t_\t{tag}" + "\t_" * 6)
                lines.append("")
            (folder / f"{name}.conllu").write_text("\n".join(lines) + "\n")
        files = [str(folder / f"{name}.conllu") for name in ("train", "test")]
        words = ["--conllu", *files, "--models", "bilstm", "--size", "16", "--letters", "16"]
        words += ["--heads", "2", "--lr", "0.01", "--epochs", "12", "--runs", "1"]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main([*words, "--out", str(folder / "out")]) == 0
        return folder, said.getvalue()

    def test_spelling_tells_what_a_new_word_is(self, trained):
        metrics = json.loads((trained[0] / "out/metrics.json").read_text())
        assert metrics["models"]["bilstm"][0]["test"]["accuracy"] > 0.95
        assert metrics["baselines"]["each word's commonest tag"]["accuracy"] < 0.5
        assert "12 sentences (72 words) to stop by" in trained[1]
        assert "not above" not in trained[1]

    def test_it_tags_text(self, trained, tmp_path, capsys):
        (tmp_path / "new.txt").write_text("kupfen bormung.\n\nmorpig\n")
        words = ["--file", str(tmp_path / "new.txt"), "--model", str(trained[0] / "out")]
        assert main(["predict", *words]) == 0
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [(row[0], row[1], row[3]) for row in rows if len(row) == 10][:2] == [
            ("1", "kupfen", "VERB"), ("2", "bormung", "NOUN"),
        ]  # fmt: skip
        assert rows[3:] == [[""], ["1", "morpig", "_", "ADJ", *"_" * 6], [""]]

    def test_it_fills_in_the_tags_of_a_conllu_file_and_keeps_the_rest(self, trained, tmp_path):
        old = "# text = x\n1-2\tab\t" + "\t".join("_" * 8) + "\n"
        old += "1\tlarfen\tx\t_\t_\t_\t2\tobj\t_\t_\n2\tgormung\t_\t_\t_\t_\t0\troot\t_\t_\n\n"
        source, target = tmp_path / "old.conllu", tmp_path / "folder/new.conllu"
        source.write_text(old)
        words = ["predict", "--file", str(source), "--output", str(target)]
        assert main([*words, "--model", str(trained[0] / "out")]) == 0
        new = old.replace("larfen\tx\t_", "larfen\tx\tVERB").replace(
            "gormung\t_\t_", "gormung\t_\tNOUN"
        )
        assert target.read_text() == new
        assert read_conllu(target).tags == [["VERB", "NOUN"]]

    def test_it_says_so_when_a_model_is_of_no_use(self, trained, tmp_path, capsys):
        files = [str(trained[0] / f"{name}.conllu") for name in ("train", "test")]
        words = ["--conllu", *files, "--models", "relative", "--letters", "0", "--epochs", "1"]
        assert main([*words, "--lr", "1e-9", "--runs", "1", "--out", str(tmp_path)]) == 0
        said = capsys.readouterr().out
        assert "attention + relative bias: not above each word's commonest tag" in said
