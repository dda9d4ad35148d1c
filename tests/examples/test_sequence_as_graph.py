"""One Transformer as a sequence model and as a graph network."""

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from attn_core import patterns
from examples import _pattern_gallery, sequence_as_graph
from examples.commands.sequence_as_graph import SENTENCES
from examples.sequence_as_graph import (
    TOLERANCE,
    WAYS,
    build,
    differences,
    embed,
    listening,
    main,
    one_graph,
    padded_batch,
)


@pytest.mark.parametrize(
    ("sentences", "window"),
    [(SENTENCES, 2), (["one"], 0), (["a b c d e f g", "a", "b a"], 1), (["a b", "c d"], 9)],
)
def test_all_ways_agree_in_outputs_and_gradients(sentences, window):
    found = list(differences(sentences, window, seed=0))
    assert len(found) == len(listening(window)) * len(WAYS) * len(TOLERANCE)
    assert not [row for row in found if not row.is_rounding]


def test_each_pattern_gives_other_numbers():
    encoder, batch = build(0, torch.float64), embed(SENTENCES, torch.float64)
    full, window, causal = (
        padded_batch(encoder, batch, pattern) for pattern in listening(1).values()
    )
    for a, b in ((full, window), (full, causal), (window, causal)):
        assert (a - b).abs().max() > 0.1


def test_the_complete_graph_has_an_edge_for_each_pair_of_a_sentence():
    complete = next(iter(listening(2).values()))
    assert complete.edges([3, 1, 2]).num_edges == 9 + 1 + 4


def test_nodes_have_no_order():
    encoder, batch = build(0, torch.float64), embed(["a b c d e"], torch.float64)
    shuffled = torch.tensor([3, 1, 4, 0, 2])
    complete = patterns.atrous(1)
    expected = one_graph(encoder, batch, complete)[shuffled]
    found = one_graph(encoder, batch._replace(x=batch.x[:, shuffled]), complete)
    torch.testing.assert_close(found, expected)


def test_the_same_word_at_two_places_differs_by_its_position_alone():
    x = embed(["a b a"], torch.float64).x[0]
    mark = sequence_as_graph.SinusoidalPositions(sequence_as_graph.SIZE)
    plain = x - mark(torch.zeros_like(x))
    torch.testing.assert_close(plain[0], plain[2])
    assert not torch.equal(x[0], x[2])


def test_the_program_prints_and_draws(tmp_path, capsys):
    assert main(["a b c", "b a", "--window", "1", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "words at most 1 away (a band)" in out and "All are the same but for rounding" in out
    assert all(way in out for way in WAYS)
    for name in ("sequence_as_graph.png", "patterns.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 500
    assert "BigBird" in out and "4 × 6, cut at the border" in out


def test_the_program_notices_a_way_that_differs(tmp_path, capsys, monkeypatch):
    def deaf(encoder, batch, pattern):
        return one_graph(encoder, batch, patterns.local(0))

    monkeypatch.setitem(WAYS, "graph: without edges", deaf)
    monkeypatch.setattr(sequence_as_graph, "draw", lambda *args: None)
    assert main(["a b c", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "graph: without edges" in printed.err and "All are the same" not in printed.out


def seen(name: str) -> torch.Tensor:
    """The mask of a pattern of the gallery."""
    return next(one.mask for one in _pattern_gallery.gallery() if one.name == name)


def test_every_pattern_is_the_same_by_its_support_and_as_a_graph():
    shown = _pattern_gallery.gallery()
    assert len({one.name for one in shown}) == len(shown) == 13
    for one in shown:
        assert one.mask.sum() == one.edges.num_edges  # each pair once
        assert max(_pattern_gallery.differences(one).values()) < TOLERANCE[torch.float64]
    by = {one.name: type(one.support).__name__ for one in shown}
    assert by["window"] == by["window, causal"] == by["atrous, 2 steps"] == "Window"
    assert by["BigBird"] == by["4 × 6, neighbours 3 × 3"] == by["5 nearest points"] == "Edges"


def test_patterns_see_whom_they_say():
    window, strided, blocks = seen("window"), seen("strided"), seen("blocks (cu_seqlens)")
    assert window[12].nonzero().flatten().tolist() == [10, 11, 12, 13, 14]
    assert strided[23].nonzero().flatten().tolist() == [3, 8, 13, 18, 19, 20, 21, 22, 23]
    assert blocks[13].nonzero().flatten().tolist() == [9, 10, 11, 12, 13]
    for one in (seen("global tokens"), seen("BigBird")):
        assert one[0].all() and one[:, 0].all()
    clamped, cut = seen("4 × 6, neighbours 3 × 3"), seen("4 × 6, cut at the border")
    assert (clamped.sum(1) == 9).all() and cut[0].nonzero().flatten().tolist() == [0, 1, 6, 7]
    assert clamped[0].nonzero().flatten().tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]
    frames, cut = seen("3 × 4 × 4, neighbours 1 × 3 × 3"), seen("3 × 4 × 4, cut at the border")
    assert (frames.sum(1) == 9).all() and not frames[:16, 16:].any()
    assert cut[0].nonzero().flatten().tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    nearest = seen("5 nearest points")
    assert (nearest.sum(1) == 5).all() and nearest.diagonal().all()


def test_each_pattern_has_a_picture():
    figure, shown = Figure(), _pattern_gallery.gallery()
    _pattern_gallery.draw(figure, shown)
    assert [panel.get_title().split("\n")[0] for panel in figure.axes] == [x.name for x in shown]


def test_a_pattern_that_differs_is_told(tmp_path, capsys, monkeypatch):
    off = {"support": 0.0, "graph": 0.1}
    monkeypatch.setattr(_pattern_gallery, "differences", lambda *args: off)
    assert main(["a b", "--out", str(tmp_path)]) == 1
    assert "more than rounding: window" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a b", " "], "the sentence ' ' has no words"),
        (["--window", "-1"], "at least 0"),
        (["--seed", "x"], "a whole number"),
    ],
)
def test_bad_options_are_errors_that_say_the_mend(words, message, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
