"""One Transformer as a sequence model and as a graph network."""

import pytest
import torch
from PIL import Image

from attn_core import patterns
from examples import sequence_as_graph
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
    with Image.open(tmp_path / "sequence_as_graph.png") as picture:
        assert min(picture.size) > 500


def test_the_program_notices_a_way_that_differs(tmp_path, capsys, monkeypatch):
    def deaf(encoder, batch, pattern):
        return one_graph(encoder, batch, patterns.local(0))

    monkeypatch.setitem(WAYS, "graph: without edges", deaf)
    monkeypatch.setattr(sequence_as_graph, "draw", lambda *args: None)
    assert main(["a b c", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "graph: without edges" in printed.err and "All are the same" not in printed.out


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
