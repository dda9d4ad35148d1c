"""The program as its user meets it, on a handful of made-up reviews."""

import csv
import json
import random
import statistics

import pytest
import torch

from datasets import LabelledReviews, Reviews, Vocabulary, last_words, split_words
from examples import sentiment
from examples.sentiment import (
    ENCODERS,
    POSITIONS,
    Classifier,
    Encoded,
    load_classifier,
    main,
    train,
)

FILLING = ["the", "a", "film", "plot", "it", "was", "scene", "with", "and", "of"]


def made_up(count, seed):
    """Reviews in which one word of two tells the class, somewhere among words that do not."""
    rng = random.Random(seed)
    labels = [n % 2 for n in range(count)]
    texts = []
    for label in labels:
        words = [*rng.choices(FILLING, k=rng.randrange(1, 7)), ["awful", "lovely"][label]]
        rng.shuffle(words)
        texts.append(" ".join(words))
    return Reviews(texts, labels)


@pytest.fixture(autouse=True)
def films(monkeypatch):
    """The reviews that stand in for those of imdb()."""
    reviews = LabelledReviews(made_up(128, 0), made_up(60, 1), "imdb", ["negative", "positive"])
    monkeypatch.setattr(sentiment, "imdb", lambda: reviews)
    return reviews


@pytest.fixture
def fast(tmp_path):
    return ["--epochs", "2", "--length", "8", "--out", str(tmp_path / "out")]


def read(path):
    return json.loads(path.read_text())


def failure(capsys, words):
    """The message of a call that must end with status 2 and one line on stderr."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


class TestClassifier:
    @pytest.mark.parametrize("encoder", ENCODERS)
    @pytest.mark.parametrize("positions", POSITIONS)
    def test_with_a_mask_padding_does_not_matter(self, encoder, positions):
        model = Classifier(9, 10, encoder, positions, mask=True).eval()
        words = torch.randint(1, 9, (3, 4))
        short = model(words, need_weights=True)
        padded = model(torch.cat([torch.zeros(3, 6, dtype=torch.long), words], 1), True)
        torch.testing.assert_close(padded.logits, short.logits)
        if "attention" in encoder:
            torch.testing.assert_close(padded.attention[:, 6:], short.attention)
            assert not padded.attention[:, :6].any()
            torch.testing.assert_close(padded.attention.sum(1), torch.ones(3))
        else:
            assert padded.attention is None

    @pytest.mark.parametrize("encoder", ENCODERS)
    def test_without_a_mask_padding_is_a_word_like_others(self, encoder):
        model = Classifier(9, 10, encoder).eval()
        words = torch.randint(1, 9, (3, 4))
        padded = model(torch.cat([torch.zeros(3, 6, dtype=torch.long), words], 1), True)
        assert (padded.logits - model(words).logits).abs().min() > 1e-7
        if padded.attention is not None:
            assert (padded.attention[:, :6] > 0).all()

    @pytest.mark.parametrize("encoder", ENCODERS)
    def test_a_text_without_words_is_harmless_under_a_mask(self, encoder):
        model = Classifier(9, 10, encoder, mask=True)
        logits, _ = model(torch.zeros(2, 10, dtype=torch.long))
        logits.sum().backward()
        assert logits.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    def test_the_order_of_words_matters_only_with_positions(self):
        words = torch.randint(1, 50, (4, 10))
        for positions in POSITIONS:
            model = Classifier(50, 10, positions=positions).eval()
            change = (model(words).logits - model(words.flip(1)).logits).abs().max()
            assert change < 1e-6 if positions == "none" else change > 1e-5

    def test_attention_is_what_the_formula_says(self):
        """Mean over time of softmax(q kᵀ / √16) v, in eight heads, without output projection."""
        model = Classifier(9, 5).eval()
        tokens = torch.randint(0, 9, (2, 5))
        x = model.embedding(tokens)
        maps = model.attention
        q, k, v = (
            (x @ part.weight.T).view(2, 5, 8, 16) for part in (maps.query, maps.key, maps.value)
        )
        weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 4).softmax(-1)
        pooled = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2).mean(1)
        found = model(tokens, need_weights=True)
        torch.testing.assert_close(found.logits, model.output(pooled)[:, 0])
        torch.testing.assert_close(found.attention, weights.mean((1, 2)))
        sizes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        assert sizes == {
            "embedding.weight": (9, 128),
            **{f"attention.{part}.weight": (128, 128) for part in ("query", "key", "value")},
            "output.weight": (1, 128),
            "output.bias": (1,),
        }

    def test_it_starts_as_in_keras(self):
        model = Classifier(5000, 10, "lstm+attention")
        assert model.embedding.weight.abs().max() <= 0.05
        assert model.embedding.weight.std().item() == pytest.approx(0.05 / 3**0.5, rel=0.01)
        glorot = (6 / (128 + 128)) ** 0.5
        assert 0.99 * glorot < model.attention.query.weight.abs().max() <= glorot
        assert model.output.weight.abs().max() <= (6 / 129) ** 0.5
        assert model.lstm.bias_ih_l0.view(4, 128).mean(1).tolist() == [0, 1, 0, 0]
        recurrent = model.lstm.weight_hh_l0.detach()
        torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(128), atol=1e-5, rtol=0)

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="encoder 'gru'"):
            Classifier(9, 10, "gru")


class TestTraining:
    @pytest.mark.parametrize("encoder", ENCODERS)
    def test_every_encoder_learns(self, encoder, films):
        vocabulary = Vocabulary.build(map(split_words, films.train.texts))
        data = Encoded.of(films, vocabulary, 8)
        settings = {"words": len(vocabulary), "length": 8, "encoder": encoder, "mask": True}
        result, weights = train(data, settings, 0, 10, lambda text: None)
        assert result["best"]["val_accuracy"] > 0.95
        assert result["last"]["train_accuracy"] > 0.9 and result["last"]["train_loss"] < 0.4
        model = Classifier(**settings)
        model.load_state_dict(weights)
        best = result["best"]["val_accuracy"], result["best"]["val_loss"]
        assert sentiment.evaluate(model, *data.val) == best
        assert best[0] == max(epoch["val_accuracy"] for epoch in result["history"])

    def test_leaves_scores_of_each_seed_their_mean_and_the_best_model(
        self, fast, tmp_path, films, capsys
    ):
        assert main([*fast, "--seeds", "0", "3", "5"]) == 0
        out = tmp_path / "out"
        assert {path.name for path in out.iterdir()} == {
            "seed-0.json", "seed-3.json", "seed-5.json", "metrics.json", "config.json",
            "model.safetensors",
        }  # fmt: skip
        metrics = read(out / "metrics.json")
        runs = [read(out / f"seed-{seed}.json") for seed in (0, 3, 5)]
        for epoch in ("best", "last"):
            for measure in ("train_accuracy", "train_loss", "val_accuracy", "val_loss"):
                values = [run[epoch][measure] for run in runs]
                found = metrics["summary"][epoch][measure]
                assert found["mean"] == pytest.approx(statistics.mean(values))
                assert found["std"] == pytest.approx(statistics.stdev(values))
        for run in runs:
            assert run["last"] == run["history"][-1] and run["best"] in run["history"]
        assert "60 test reviews, and the best epoch is the one with the highest" in metrics["note"]
        said = capsys.readouterr()
        accuracy = [100 * run["best"]["val_accuracy"] for run in runs]
        assert f"{statistics.mean(accuracy):.2f} ± {statistics.stdev(accuracy):.2f}" in said.out
        assert metrics["note"] in said.out
        assert "run 3/3 (seed 5)" in said.err and "validation" in said.err

        model, vocabulary, class_names = load_classifier(out)
        data = Encoded.of(films, vocabulary, 8)
        best = max((run["best"] for run in runs), key=sentiment.merit)
        assert sentiment.evaluate(model, *data.val) == (best["val_accuracy"], best["val_loss"])
        assert class_names == ["negative", "positive"]

    def test_a_seed_gives_the_same_alone_and_among_others(self, fast, tmp_path):
        for name, seeds in (("a", ["0", "1"]), ("b", ["1"])):
            main(["train", *fast, "--out", str(tmp_path / name), "--seeds", *seeds])
        first, second = (read(tmp_path / name / "seed-1.json") for name in "ab")
        assert first.pop("seconds") > 0 and second.pop("seconds") > 0
        assert first == second

    def test_an_interrupted_sweep_goes_on(self, fast, tmp_path, monkeypatch, capsys):
        main([*fast, "--seeds", "0", "1", "--out", str(tmp_path / "whole")])
        genuine = sentiment.train

        def interrupted(data, model, seed, *rest):
            if seed == 1:
                raise KeyboardInterrupt
            return genuine(data, model, seed, *rest)

        monkeypatch.setattr(sentiment, "train", interrupted)
        assert main([*fast, "--seeds", "0", "1"]) == 130
        assert "goes on" in capsys.readouterr().err
        trained = []
        monkeypatch.setattr(
            sentiment, "train", lambda *args: trained.append(args[2]) or genuine(*args)
        )
        assert main([*fast, "--seeds", "0", "1"]) == 0
        assert trained == [1]
        assert "seed 0): done before" in capsys.readouterr().out
        whole, resumed = (read(tmp_path / name / "metrics.json") for name in ("whole", "out"))
        assert resumed["summary"] == whole["summary"]
        files = [tmp_path / name / "model.safetensors" for name in ("whole", "out")]
        assert files[0].read_bytes() == files[1].read_bytes()

    def test_scores_of_other_settings_are_not_mixed(self, fast, tmp_path, films, capsys):
        main(fast)
        capsys.readouterr()
        error = failure(capsys, [*fast, "--positions", "sinusoidal", "--epochs", "3"])
        assert "--positions was none, is now sinusoidal; --epochs was 2, is now 3" in error
        films.train.labels[0] = 1 - films.train.labels[0]
        assert "other reviews" in failure(capsys, fast)
        assert main([*fast, "--restart"]) == 0
        assert len(read(tmp_path / "out" / "metrics.json")["runs"]) == 1

    def test_default_folders_tell_the_variants_apart(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        main(["--epochs", "1", "--length", "8"])
        main(
            [
                "--epochs",
                "1",
                "--length",
                "8",
                "--encoder",
                "cnn+attention",
                "--positions",
                "learned",
                "--mask",
            ]
        )
        assert {path.name for path in (tmp_path / "runs").iterdir()} == {
            "imdb-attention", "imdb-cnn+attention-learned-masked",
        }  # fmt: skip


class TestOwnReviews:
    def test_any_two_labels(self, fast, tmp_path, capsys):
        path = tmp_path / "tea.csv"
        reviews = made_up(150, 2)
        with open(path, "w", newline="") as file:
            rows = zip(reviews.texts, ["leave", "buy"] * 75, strict=True)
            csv.writer(file).writerows([("text", "label"), *rows])
        assert main([*fast, "--data", str(path), "--epochs", "12"]) == 0
        assert "30 held-out reviews" in capsys.readouterr().out
        for text, label in (("an awful scene", "leave"), ("lovely", "buy")):
            assert main(["predict", text, "--model", str(tmp_path / "out")]) == 0
            assert capsys.readouterr().out.startswith(f"{label}  ")

    @pytest.mark.parametrize(
        "content, problem",
        [
            ("", "the file is empty"),
            ("words,label\na,b\n", "column 'text' is missing"),
            ("text,label\na,x\nb,x\n", "has one label alone"),
            ("text,label\n!,x\n!,x\n?,y\n?,y\n", "have no words"),
            ("text,label\nsch\xf6n,x\n", "not UTF-8 text"),
        ],
    )
    def test_bad_files(self, fast, tmp_path, capsys, content, problem):
        path = tmp_path / "tea.csv"
        path.write_bytes(content.encode("latin-1"))
        error = failure(capsys, [*fast, "--data", str(path)])
        assert problem in error
        assert not (tmp_path / "out").exists()

    def test_no_reviews(self, fast, capsys, monkeypatch, tmp_path):
        from datasets import imdb

        monkeypatch.setattr(sentiment, "imdb", imdb)
        monkeypatch.setenv("GAT_DATA", str(tmp_path))
        assert "does not exist, though GAT_DATA" in failure(capsys, fast)


class TestPrediction:
    @pytest.mark.parametrize("options", [[], ["--mask"]])
    def test_shows_the_attention_of_each_word(self, fast, tmp_path, capsys, options):
        main([*fast, *options])
        capsys.readouterr()
        text = "Zebra: a LOVELY film!"
        assert main(["predict", text, "--model", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out
        assert "read 4 of 4 words, of which 1 unknown" in said
        model, vocabulary, _ = load_classifier(tmp_path / "out")
        logit, attention = model(last_words([text], vocabulary, 8), need_weights=True)
        shares = [line.split() for line in said.split("positions\n")[1].splitlines()]
        assert [words[-1] for words in shares[:4]] == ["[zebra]", "a", "lovely", "film"]
        shown = [words[0] for words in shares[:4]]
        assert shown == [f"{share:.2%}" for share in attention[0, 4:].tolist()]
        assert any("4 positions of padding" in " ".join(words) for words in shares)
        if options:
            assert shares[4][0] == "0.00%"
        probability = torch.sigmoid(logit).item()
        assert f"{max(probability, 1 - probability):.1%}" in said.splitlines()[0]

    def test_only_the_last_words_are_read(self, fast, tmp_path, capsys):
        main(fast)
        capsys.readouterr()
        main(["predict", "zebra " * 5 + "film " * 8, "--model", str(tmp_path / "out")])
        said = capsys.readouterr().out
        assert "read 8 of 13 words, of which 0 unknown" in said and "zebra" not in said

    def test_without_attention(self, fast, tmp_path, capsys):
        main([*fast, "--encoder", "cnn"])
        capsys.readouterr()
        assert main(["predict", "a lovely film", "--model", str(tmp_path / "out")]) == 0
        assert "cnn has no attention to show" in capsys.readouterr().out

    def test_mistakes(self, fast, tmp_path, capsys):
        out = tmp_path / "out"
        predict = ["predict", "film", "--model", str(out)]
        assert "config.json: No such file" in failure(capsys, predict)
        main(fast)
        capsys.readouterr()
        assert "has no words" in failure(capsys, ["predict", "!!", "--model", str(out)])
        weights = (out / "model.safetensors").read_bytes()
        (out / "model.safetensors").write_bytes(weights[:-1] + b"x")
        assert "sha256" in failure(capsys, predict)
        (out / "model.safetensors").unlink()
        assert "model.safetensors: No such file" in failure(capsys, predict)
        (out / "config.json").write_text("{")
        assert "config.json is damaged" in failure(capsys, predict)

    @pytest.mark.parametrize(
        "words, problem",
        [
            (["--encoder", "gru"], "invalid choice: 'gru'"),
            (["--positions", "rotary"], "invalid choice: 'rotary'"),
            (["--seeds", "-1"], "must be a whole number, at least 0"),
            (["--seeds"], "expected at least one argument"),
            (["--epochs", "0"], "at least 1"),
            (["--device", "abacus"], "--device abacus is of no use here"),
            (["predict", "text"], "required: --model"),
        ],
    )
    def test_bad_options(self, capsys, words, problem):
        assert problem in failure(capsys, words)


class TestManyClasses:
    """One word of three tells the class of a text."""

    @pytest.fixture
    def trained(self, tmp_path, capsys):
        rng, path = random.Random(0), tmp_path / "tea.csv"
        rows = [("text", "label")]
        for n in range(240):
            words = [*rng.choices(FILLING, k=4), ["hot", "cold", "warm"][n % 3]]
            rng.shuffle(words)
            rows.append((" ".join(words), ["3 stars", "1 star", "2 stars"][n % 3]))
        with open(path, "w", newline="") as file:
            csv.writer(file, delimiter=";").writerows(rows)
        words = ["--data", str(path), "--epochs", "15", "--length", "12"]
        assert main([*words, "--out", str(tmp_path / "out")]) == 0
        return tmp_path / "out", capsys.readouterr().out

    def test_it_learns_them_beside_a_baseline_and_without_padding(self, trained):
        folder, said = trained
        metrics = read(folder / "metrics.json")
        assert metrics["runs"][0]["best"]["val_accuracy"] > 0.9
        assert metrics["baseline"] == 1.0  # words alone tell the class
        assert "TF-IDF and logistic regression: 100.00% in validation" in said
        model, _, names = load_classifier(folder)
        assert names == ["1 star", "2 stars", "3 stars"]
        assert model.mask  # by default, of a reader's own texts

    def test_several_texts_and_files(self, trained, tmp_path, capsys):
        words = ["predict", "--model", str(trained[0])]
        assert main([*words, "a hot scene", "the cold plot"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[0] for line in said] == ["3 stars", "1 star"]

        (tmp_path / "new.txt").write_text("a hot scene\n\nthe cold plot\n")
        (tmp_path / "new.csv").write_text('text,more\n"a hot, scene",1\nthe cold plot,2\n')
        for name in ("new.txt", "new.csv"):
            output = tmp_path / "judged.csv"
            files = ["--file", str(tmp_path / name), "--output", str(output)]
            assert main([*words, *files]) == 0
            with open(output, newline="") as file:
                found = list(csv.DictReader(file))
            assert [row["prediction"] for row in found] == ["3 stars", "1 star"]
            for row in found:
                shares = {n: float(v) for n, v in row.items() if n.startswith("p(")}
                assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
                assert max(shares, key=shares.get) == f"p({row['prediction']})"

    def test_one_text_shows_no_attention_on_padding(self, trained, capsys):
        assert main(["predict", "a hot scene", "--model", str(trained[0])]) == 0
        said = capsys.readouterr().out
        assert said.startswith("3 stars  ") and "0.00%" in said.splitlines()[-1]

    def test_texts_or_a_file_must_be_given(self, capsys):
        assert "either texts" in failure(capsys, ["predict", "--model", "x"])


def test_it_says_when_words_alone_do_better(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sentiment, "baseline", lambda reviews: 1.0)
    assert main(["--epochs", "1", "--length", "8", "--out", str(tmp_path)]) == 0
    assert "which attention does not exceed" in capsys.readouterr().out
