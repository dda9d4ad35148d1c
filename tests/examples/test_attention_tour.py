"""What the pictures of the tour show, and how the program behaves."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from examples import attention_tour
from examples.attention_tour import (
    ALIGNED,
    GOALS,
    LENGTH,
    PANELS,
    PICTURES,
    QUESTION,
    SENTENCE,
    SPOKEN,
    Picture,
    draw_picture,
    embed,
    main,
    run_tour,
)

DISTANCE = torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]  # key minus query


@pytest.fixture(scope="module")
def tour():
    return run_tour()


def test_every_softmax_panel_is_a_distribution(tour):
    for name, weights in tour.weights.items():
        if name != "local-p":  # whose Gaussian takes away from the sum
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


def test_soft_and_hard_find_the_same_words_one_by_weight_and_one_alone(tour):
    soft, hard = tour.weights["soft"], tour.weights["hard"]
    torch.testing.assert_close(soft.argmax(-1), ALIGNED[SPOKEN])
    assert (soft > 0).all()
    torch.testing.assert_close(hard, torch.eye(LENGTH)[ALIGNED[SPOKEN]])


def test_the_root_of_d_keeps_weights_spread(tour):
    def entropy(name):
        return torch.special.entr(tour.weights[name]).sum(-1).mean()

    assert entropy("without √d") < 0.7 < 1.7 < entropy("with √d")


def test_local_attention_stays_near_its_centre(tour):
    positions = torch.arange(LENGTH)
    for name, window in (("local-m", 2), ("local-p", 3)):
        near = (positions - tour.centres[name][:, None]).abs() <= window
        assert torch.equal(tour.weights[name] > 0, near)
    assert torch.equal(tour.centres["local-m"], positions)


def test_where_the_clauses_are_swapped_the_predicted_window_finds_them_and_the_monotone_misses(
    tour,
):
    for name in ("global", "local-p"):
        assert torch.equal(tour.weights[name].argmax(-1), ALIGNED)
    assert not tour.weights["local-m"].gather(-1, ALIGNED[:, None]).any()


def test_patterns_are_the_same_scores_over_fewer_pairs(tour):
    full = tour.weights["self"]
    expected = {
        "causal": DISTANCE <= 0,
        "restricted": DISTANCE.abs() <= 2,
        "atrous": (DISTANCE % 3 == 0) & (DISTANCE.abs() <= 6),
        "sparse": (DISTANCE % 3 == 0) | (DISTANCE.abs() <= 3),
        "strided": ((DISTANCE % 3 == 0) | (DISTANCE >= -3)) & (DISTANCE <= 0),
        "lengths": torch.arange(LENGTH).expand(LENGTH, LENGTH) < 7,
        "both": (torch.arange(LENGTH) < 7) & (DISTANCE <= 0),
    }
    for name, pairs in expected.items():
        among_them = full * pairs / (full * pairs).sum(-1, keepdim=True)
        torch.testing.assert_close(tour.weights[name], among_them)


def test_like_words_find_each_other(tour):
    cross = tour.weights["cross"]
    best = cross.topk(2).indices.tolist()
    found = {q: [SENTENCE[j] for j in two] for q, two in zip(QUESTION, best, strict=True)}
    assert set(found["who"]) == {"animal", "it"}
    assert found["why"][0] == "because"
    of_it = tour.weights["self"][SENTENCE.index("it")]
    assert [SENTENCE[j] for j in of_it.topk(2).indices] == ["it", "animal"]
    assert torch.equal(embed(["the"]), embed(SENTENCE)[:, 5:6])


def test_each_head_reaches_its_goal_also_as_a_graph(tour):
    heads = tour.weights["heads"]
    assert torch.equal(heads.argmax(-1), torch.tensor(list(GOALS.values())))
    torch.testing.assert_close(tour.weights["as a graph"], heads)


def test_a_stronger_look_up_is_sharper(tour):
    it = SENTENCE.index("it")
    weak, medium, strong = (tour.weights[f"strength {beta}"][0, it] for beta in (1, 4, 16))
    assert weak < 0.25 < medium < 0.9 < strong


def test_the_tour_is_the_same_each_time_and_leaves_the_random_numbers_alone(tour):
    torch.manual_seed(5)
    again = run_tour()
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    for name, weights in tour.weights.items():
        assert torch.equal(weights, again.weights[name]), name


def test_pictures_hold_every_panel_and_the_titles_tell_them_apart(tour):
    shown = {name for picture in PICTURES.values() for row in picture.rows.values() for name in row}
    assert shown == set(PANELS)
    figure = draw_picture(
        Picture({"a heading": ["global", "cross"], "b": ["head 1", "graph"]}), tour
    )
    assert [text.get_text() for text in figure.texts] == ["a heading", "b"]
    assert [ax.get_title("left") for ax in figure.axes[:3]] == [
        PANELS[name].note for name in ("global", "cross", "head 1")
    ]
    drawn = figure.axes[0].images[0].get_array()
    torch.testing.assert_close(torch.tensor(drawn).float(), tour.weights["global"])
    assert len(figure.axes) == 5  # one colour bar for all
    assert figure.axes[4].get_xlabel().startswith("attention weight")
    (legend,) = figure.legends
    told = [text.get_text() for text in legend.get_texts()]
    sides = "Mr. Hi's", "the officer's"
    assert told[-2:] == [f"club member on {side} side" for side in sides]


def test_a_legend_tells_grey_pairs_and_dots(tour):
    legends = {
        name: [text.get_text() for text in figure.legends[0].get_texts()] if figure.legends else []
        for name in ("global", "causal", "local-p", "dot")
        if (figure := draw_picture(Picture({"": [name]}), tour))
    }
    assert legends == {
        "global": [], "causal": ["no such pair"], "dot": [],
        "local-p": ["no such pair", "centre of the window"],
    }  # fmt: skip


def test_it_writes_the_pictures_and_says_so(tmp_path, monkeypatch, capsys):
    few = {name: PICTURES[name] for name in ("tour_bottleneck", "tour_scores", "tour_positions")}
    monkeypatch.setattr(attention_tour, "PICTURES", few)
    assert main(["--out", str(tmp_path / "new" / "folder")]) == 0
    paths = [tmp_path / "new" / "folder" / f"{name}.png" for name in few]
    assert capsys.readouterr().out.splitlines() == [f"wrote {path}" for path in paths]
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    assert all(Image.open(path).width > 400 for path in paths)


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--out", "{tmp}/file"], "error: cannot create the folder .*file.*choose another folder"),
        (["--output", "x"], "error: unrecognized arguments: --output x"),
        (["--out"], "error: argument --out: expected one argument"),
    ],
)
def test_bad_arguments(tmp_path, capsys, words, complaint):
    (tmp_path / "file").write_text("in the way")
    assert main([word.format(tmp=tmp_path) for word in words]) == 2
    captured = capsys.readouterr()
    assert re.match(complaint, captured.err) and captured.err.count("\n") == 1
    assert captured.out == ""


def test_the_document_shows_every_picture_of_its_own():
    page = (Path(__file__).parents[2] / "docs" / "from-formula-to-code.md").read_text("utf-8")
    shown = re.findall(r"\(images/(\w+)\.png\)", page)
    assert shown == [name for name in PICTURES if name != "attention_tour"]
