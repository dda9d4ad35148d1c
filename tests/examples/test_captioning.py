"""The program as its user meets it, and the images, models and measures that it is made of."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from datasets.vocabulary import EOS
from examples import captioning
from examples.captioning import (
    LETTERS,
    REACH,
    SIDE,
    Digits,
    Speller,
    Training,
    classify,
    discounted,
    losses_of,
    main,
    measure,
    reinforce_losses,
    spell,
    split_digits,
    strips,
    together,
    train,
)
from sequence_attn.seq2seq import Hypothesis

PICTURES = {"letters-1.png", "letters-2.png", "curves.png"}


@pytest.fixture(scope="module")
def parts():
    return split_digits()


@pytest.fixture
def fast(parts, tmp_path, monkeypatch):
    """Options for a run on few images, among them one of each digit."""
    few = {}
    for name, part in parts.items():
        order = torch.sort(part.labels, stable=True).indices.view(-1)
        chosen = order[:: len(order) // 30]
        few[name] = Digits(part.images[chosen], part.labels[chosen])
    monkeypatch.setattr(captioning, "split_digits", lambda: few)
    monkeypatch.setattr(captioning, "TEST_ROUNDS", 1)
    sizes = ["--epochs", "2", "--size", "4", "--state", "8", "--batch-size", "32"]
    return [*sizes, "--out", str(tmp_path / "out")]


def training(**options):
    known = {
        "epochs": 1, "rounds": 1, "batch_size": 16, "lr": 0.01, "coverage": 0.0, "entropy": 0.0,
        "reward": 1.0, "discount": 1.0, "softly": 0.0,
    }  # fmt: skip
    return Training(**known | options)


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def failure(capsys, words):
    """The message of a call that must end with status 2 and one line on stderr."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


class TestImages:
    def test_no_image_is_in_two_parts_and_each_has_its_share_of_every_digit(self, parts):
        assert {name: len(part.labels) for name, part in parts.items()} == {
            "train": 1197, "valid": 240, "test": 360,
        }  # fmt: skip
        rows = [bytes(row) for part in parts.values() for row in part.images.flatten(1).byte()]
        assert len(set(rows)) == len(rows) == 1797
        for part in parts.values():
            shares = torch.bincount(part.labels).double() / len(part.labels)
            assert ((shares - 0.1).abs() < 0.01).all()

    def test_a_strip_holds_its_images_side_by_side(self, parts):
        digits = parts["test"]
        strip = together(digits, torch.tensor([[5, 9], [0, 5]]))
        image = strip.pixels[0].view(SIDE, 2 * SIDE)
        assert torch.equal(image[:, :SIDE], digits.images[5])
        assert torch.equal(image[:, SIDE:], digits.images[9])
        assert strip.labels.tolist() == [[digits.labels[i].item() for i in row] for row in
                                         ([5, 9], [0, 5])]  # fmt: skip
        for row, labels in zip(strip.target, strip.labels.tolist(), strict=True):
            assert "".join(LETTERS.decode(row)) == spell(labels)
            assert EOS in row

    def test_each_round_has_every_image_once_in_every_place(self, parts):
        found = strips(parts["valid"], 2, 3, torch.Generator().manual_seed(1))
        for place in range(2):
            images = found.pixels.view(-1, SIDE, 2, SIDE)[:, :, place].flatten(1)
            rows = [bytes(row) for row in images.byte()]
            for nth in range(3):
                assert len(set(rows[240 * nth : 240 * (nth + 1)])) == 240
        left, right = found.pixels.view(-1, SIDE, 2, SIDE).unbind(2)
        assert not torch.equal(left, right)

    def test_the_classifier_is_right_about_a_strip_if_it_knows_all_of_its_digits(self, parts):
        single = strips(parts["valid"], 1, 1, torch.Generator())
        pairs = together(parts["valid"], torch.arange(240).view(-1, 1).expand(-1, 2))
        alone = classify(parts, single)
        assert 0.95 < alone < 1
        assert classify(parts, pairs) == alone  # the same digit twice


class TestSpeller:
    @pytest.mark.parametrize("read", ["soft", "reinforce", "gumbel"])
    def test_weights_are_over_all_pixels(self, parts, read):
        images = strips(parts["valid"], 2, 1, torch.Generator())
        model = Speller(2, read, 4, 8).eval()
        predicted = model(images.pixels[:3], images.target[:3, :-1], need_weights=True)
        assert predicted.weights.shape == (3, 1, images.target.shape[1] - 1, 2 * SIDE * SIDE)
        torch.testing.assert_close(
            predicted.weights.sum(-1), torch.ones(3, 1, len(predicted.weights[0, 0]))
        )
        if read != "soft":
            assert ((predicted.weights == 0) | (predicted.weights == 1)).all()

    def test_hard_attention_sees_what_is_in_its_frame_and_nothing_else(self, parts):
        images = strips(parts["valid"], 1, 1, torch.Generator())
        model = Speller(1, "reinforce", 4, 8).eval()
        torch.nn.init.zeros_(model.decoder.reads[0].vector)  # all scores equal: the first pixel

        def logits(pixels):
            return model(pixels, images.target[:1, :-1]).logits

        before, reach = images.pixels[:1], REACH // 2
        for row, column in ((0, reach + 1), (reach + 1, 0), (7, 7)):
            after = before.clone()
            after.view(SIDE, SIDE)[row, column] = 16 - after.view(SIDE, SIDE)[row, column]
            assert torch.equal(logits(after), logits(before))
        torch.manual_seed(0)
        assert not torch.equal(logits(torch.randint(0, 17, (1, 64))), logits(before))

    def test_without_attention_it_sees_the_mean(self, parts):
        images = strips(parts["valid"], 1, 1, torch.Generator())
        model = Speller(1, "none", 4, 8).eval()
        encoded = model.encode(images.pixels[:2])
        torch.testing.assert_close(model.start(encoded).summary, encoded.output.mean(1))
        assert model.generate(images.pixels[:2], return_attention=True)[0][0].weights is None

    def test_a_glance_shows_the_image_to_the_first_state(self, parts):
        pixels = parts["valid"].images.flatten(1)[:2]
        for glance in (False, True):
            model = Speller(1, "soft", 4, 8, glance=glance)
            first = model.start(model.encode(pixels)).cell[0]
            assert torch.equal(first[:, 0], first[:, 1]) is not glance

    def test_another_way_to_read_is_refused(self):
        with pytest.raises(ValueError, match="read is 'firm'; expected 'soft'"):
            Speller(1, "firm")


class TestLoss:
    @pytest.fixture
    def batch(self, parts):
        images = strips(parts["valid"], 1, 1, torch.Generator().manual_seed(0))
        return images.pixels[:6], images.target[:6]

    def test_coverage_asks_that_every_pixel_is_looked_at_once(self, batch):
        model = Speller(1, "soft", 4, 8)
        torch.nn.init.zeros_(model.decoder.reads[0].vector)  # 1/64 of each letter on each pixel
        plain, covered = (
            losses_of(model, *batch, training(coverage=c), nn.ModuleList())[0] for c in (0, 0.5)
        )
        letters = (batch[1][:, 1:] != 0).sum(1)  # with the end symbol
        expected = 0.5 * (64 * (1 - letters / 64) ** 2).sum() / letters.sum()
        torch.testing.assert_close(covered - plain, expected)

    @pytest.mark.parametrize(
        "read, reward, learns",
        [("soft", 0, True), ("gumbel", 0, True), ("reinforce", 0, False), ("reinforce", 1, True)],
    )
    def test_reinforce_alone_needs_the_reward_to_learn_where_to_look(
        self, batch, read, reward, learns
    ):
        model = Speller(1, read, 4, 8)
        settings = training(reward=reward)
        losses_of(model, *batch, settings, reinforce_losses(model, settings))[0].backward()
        gradient = model.decoder.reads[0].vector.grad
        assert bool(gradient is not None and gradient.abs().max() > 0) is learns

    @pytest.mark.parametrize("read", ["soft", "reinforce", "gumbel"])
    def test_padding_counts_for_nothing(self, batch, read):
        pixels, target = batch
        model = Speller(1, read, 4, 8)
        settings = training(coverage=0.1, entropy=0.1)
        found = []
        for padded in (target, torch.cat([target, target.new_zeros(6, 3)], 1)):
            torch.manual_seed(1)  # the same places are drawn
            losses = reinforce_losses(model, settings)
            found.append(losses_of(model, pixels, padded, settings, losses))
        assert found[0][2] == found[1][2]
        assert found[0][1] == pytest.approx(found[1][1])
        torch.testing.assert_close(found[0][0], found[1][0])

    def test_hard_attention_can_read_softly_to_begin_with(self, batch):
        model, soft = Speller(1, "reinforce", 4, 8), Speller(1, "soft", 4, 8)
        soft.load_state_dict(model.state_dict())
        settings = training()
        found = [
            losses_of(one, *batch, settings, reinforce_losses(one, settings), softly)[0]
            for one, softly in ((model, True), (soft, False))
        ]
        torch.testing.assert_close(found[0], found[1])
        weights = model.eval()(*batch, need_weights=True).weights  # but never when it is judged
        assert ((weights == 0) | (weights == 1)).all()

    @pytest.mark.parametrize(
        "read, softly, epochs",
        [("reinforce", 0.0, 0), ("reinforce", 0.5, 2), ("reinforce", 0.6, 3), ("gumbel", 0.5, 0)],
    )
    def test_reinforce_begins_softly(self, parts, monkeypatch, read, softly, epochs):
        few = {name: Digits(*(x[:10] for x in part)) for name, part in parts.items()}
        found, genuine = [], losses_of

        def watched(*args):
            found.append(args[-1])
            return genuine(*args)

        monkeypatch.setattr(captioning, "losses_of", watched)
        train(few, Speller(1, read, 4, 8), training(epochs=4, softly=softly), 0)
        assert found == [True] * epochs + [False] * (4 - epochs)

    def test_a_choice_is_rewarded_for_the_letters_from_there_on(self):
        rewards = torch.tensor([[-1.0, -2.0, -4.0], [-1.0, 0.0, 0.0]])
        expected = torch.tensor([[-3.0, -4.0, -4.0], [-1.0, 0.0, 0.0]])
        torch.testing.assert_close(discounted(rewards, 0.5), expected)
        torch.testing.assert_close(discounted(rewards, 0.0), rewards)

    def test_each_step_has_a_baseline_of_its_own(self, batch):
        model, settings = Speller(1, "reinforce", 4, 8), training(discount=0.0)
        losses = reinforce_losses(model, settings)
        errors = losses_of(model, *batch, settings, losses)[1]
        letters = (batch[1][:, 1:] != 0).sum(0)
        assert [int(one.updates) for one in losses] == (letters > 0).int().tolist() + [0] * (
            len(losses) - len(letters)
        )
        total = sum(one.baseline * n for one, n in zip(losses, letters, strict=False))
        torch.testing.assert_close(total, torch.tensor(-errors))

    def test_learns_to_spell_what_it_sees(self):
        labels = torch.arange(40) % 2
        images = 16 * labels.view(-1, 1, 1).expand(-1, SIDE, SIDE)  # white is 0, black is 1
        part = Digits(images, labels)
        torch.manual_seed(0)
        model = Speller(1, "soft", 8, 16)
        losses = []
        settings = training(epochs=12, lr=0.03, batch_size=10)
        found = train({"train": part, "valid": part}, model, settings, 0, losses.append)
        assert found["loss"] == losses and len(losses) == 12
        # "zero" and "one" differ in the first letter: a guess costs ln 2 for about 4.5 letters
        assert losses[-1] < 0.1 < math.log(2) / 4.5
        assert found["valid_exact_match"][-1] == 1

    @pytest.mark.parametrize("read", ["reinforce", "gumbel"])
    def test_the_same_seed_gives_the_same_numbers(self, parts, read):
        few = {name: Digits(*(x[:20] for x in part)) for name, part in parts.items()}
        found = []
        for _ in range(2):
            torch.manual_seed(3)
            found.append(train(few, Speller(1, read, 4, 8), training(epochs=2), 3)["loss"])
        assert found[0] == found[1] and len(found[0]) == 2


class TestMeasure:
    def test_tells_where_letters_looked(self, parts, monkeypatch):
        order = [int((parts["test"].labels == digit).nonzero()[0]) for digit in (1, 2)]
        images = together(parts["test"], torch.tensor([order, order, order]))

        def looks(columns, written="one two"):
            weights = torch.zeros(1, len(written) + 1, SIDE, 2 * SIDE)
            for letter, column in enumerate(columns):
                weights[0, letter, 3, column] = 1
            return Hypothesis(LETTERS.encode(written), 0.0, 0.0, True, weights.flatten(2))

        said = [
            looks([0, 1, 2, 0, 8, 9, 15, 0]),  # each letter at its own digit
            looks([0] * 8),  # always at the left one
            looks([0] * 8, "one ten"),  # a mistake, which counts for nothing there
        ]
        monkeypatch.setattr(captioning, "write", lambda *args, **options: said)
        found = measure(Speller(2, "soft"), images)
        assert found["exact_match"] == pytest.approx(2 / 3)
        assert found["on_its_digit"] == pytest.approx((6 + 3) / 12)
        assert found["places"] == pytest.approx(1)

    def test_even_weights_are_at_all_pixels(self, parts):
        images = together(parts["test"], torch.tensor([[0], [1]]))
        model = Speller(1, "soft", 4, 8)
        torch.nn.init.zeros_(model.decoder.reads[0].vector)
        assert measure(model, images)["places"] == pytest.approx(64, rel=1e-4)
        assert measure(Speller(1, "none", 4, 8), images)["places"] is None


class TestProgram:
    def test_leaves_metrics_and_pictures(self, fast, tmp_path, capsys):
        assert main([*fast, "--models", "soft", "gumbel", "none"]) == 0
        out = tmp_path / "out"
        models = {f"{name}-{width}" for name in ("soft", "gumbel", "none") for width in (1, 2)}
        assert {path.name for path in out.iterdir()} == PICTURES | models | {"metrics.json"}
        for picture in PICTURES:
            with Image.open(out / picture) as image:
                assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 10
        metrics = read(out)
        assert metrics["complete"] is True
        assert metrics["tasks"].keys() == {"1", "2"}
        for task in metrics["tasks"].values():
            for name, found in task["models"].items():
                assert len(found) == 1 and len(found[0]["loss"]) == 2
                mean = task["summary"][name]["exact_match"]["mean"]
                assert mean == found[0]["exact_match"]
        said = capsys.readouterr().out
        assert "strips of 2 digits" in said and "weight on its digit" in said
        assert "hard, Gumbel straight-through" in said and "support vector machine" in said

    def test_an_interruption_keeps_what_there_is(self, fast, tmp_path, monkeypatch):
        genuine = train

        def interrupted(parts, model, *rest):
            if model.read == "none":
                raise KeyboardInterrupt
            return genuine(parts, model, *rest)

        monkeypatch.setattr(captioning, "train", interrupted)
        assert main([*fast, "--digits", "1", "--models", "soft", "none"]) == 130
        out = tmp_path / "out"
        assert read(out)["complete"] is False
        assert {path.name for path in out.iterdir()} >= {"letters-1.png", "curves.png"}

    @pytest.mark.parametrize(
        "words, message",
        [
            (["--temperature", "0"], "must be above 0: '0'"),
            (["--digits", "0"], "at least 1 and below 6: '0'"),
            (["--models", "firm"], "invalid choice: 'firm'"),
            (["--coverage", "-1"], "at least 0"),
        ],
    )
    def test_options_that_make_no_sense(self, fast, capsys, words, message):
        assert message in failure(capsys, [*fast, *words])

    def test_a_folder_that_cannot_be_made(self, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert "cannot create the folder" in failure(
            capsys, ["--out", str(tmp_path / "file" / "out")]
        )


def test_what_was_trained_can_be_asked(fast, tmp_path, capsys):
    words = [*fast, "--digits", "2", "--models", "soft", "none"]
    assert main(words) == 0
    capsys.readouterr()
    out, picture = str(tmp_path / "out"), tmp_path / "letters.png"
    assert main(["ask", "4", "7", "--model", out, "--picture", str(picture)]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "soft",
        "none",
    ]
    assert picture.exists()
    assert main(["ask", "4", "--model", out]) == 2
    assert "train with --digits 1" in capsys.readouterr().err
    assert main(["ask", "4", "4", "--nth", "99", "--model", out]) == 2
    assert "test images of one of the digits" in capsys.readouterr().err
