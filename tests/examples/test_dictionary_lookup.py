"""What the program claims of static and dynamic attention, and how it behaves."""

import json
import re

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from datasets import LookupGraphs, dictionary_lookup
from examples import dictionary_lookup as program
from examples.dictionary_lookup import (
    MODELS,
    Lookup,
    Settings,
    accuracy,
    begin,
    disagreement,
    main,
    train,
)

SMALL = Settings(
    k=4, graphs=24, size=16, heads=1, self_loops=False, epochs=1, starts=2, batch_size=8, lr=0.01
)
FEW = ["--k", "4", "--size", "8", "--epochs", "1", "--runs", "1", "--starts", "1"]


@pytest.mark.parametrize("self_loops", [False, True])
@pytest.mark.parametrize("heads", [1, 2])
def test_no_two_queries_of_gat_ever_disagree_and_those_of_gatv2_do(self_loops, heads):
    graphs = dictionary_lookup(6, max_graphs=30).train
    settings = SMALL._replace(k=6, self_loops=self_loops, heads=heads)
    static, dynamic = (Lookup(name, settings) for name in MODELS)
    if heads == 1:  # the mean of several static heads need not be static
        assert disagreement(static, graphs) == 0
    assert disagreement(dynamic, graphs) > 0.5


def test_disagreement_is_counted_by_hand(monkeypatch):
    graphs = LookupGraphs(torch.tensor([[0, 1, 2]]))
    paid = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.3, 0.5, 0.2]])
    model = Lookup("gat", SMALL._replace(k=3))
    monkeypatch.setattr(model, "attention", lambda graphs, index: paid)
    # The third ranks keys 0 and 1 the other way round than both others, which agree
    assert disagreement(model, graphs) == pytest.approx(2 / 3)
    monkeypatch.setattr(model, "attention", lambda graphs, index: torch.full((3, 3), 1 / 3))
    assert disagreement(model, graphs) == 0


def test_attention_is_a_matrix_of_queries_and_keys():
    graphs = LookupGraphs(torch.tensor([[2, 0, 1]]))
    model = Lookup("gatv2", SMALL._replace(k=3))
    found = model.attention(graphs, 0)
    x = model.embed(graphs[0])
    hidden = model.conv.lin_l(x)
    for query in range(3):
        score = (
            torch.nn.functional.leaky_relu(hidden[query] + hidden[3:], 0.2) @ model.conv.att[0, 0]
        )
        torch.testing.assert_close(found[query], score.softmax(0))


def test_a_self_loop_is_the_last_column():
    model = Lookup("gat", SMALL._replace(self_loops=True, heads=2))
    found = model.attention(dictionary_lookup(4).train, 0)
    assert found.shape == (4, 5)
    torch.testing.assert_close(found.sum(1), torch.ones(4))


def test_accuracy_counts_queries():
    graphs = LookupGraphs(torch.tensor([[0, 1, 2], [1, 2, 0], [1, 0, 2]]).repeat(300, 1))

    class SaysItsOwnName(torch.nn.Module):
        def forward(self, graph):
            return torch.eye(3)[graph.x[graph.query_mask, 0]]

    assert accuracy(SaysItsOwnName(), graphs) == pytest.approx(4 / 9)


def test_of_several_first_weights_the_best_is_trained_on(monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    made = []

    class Fake:
        def __init__(self, name, settings):
            self.loss = next(losses)
            made.append(self)

        def step(self, graph):
            return self.loss

    monkeypatch.setattr(program, "Learner", Fake)
    chosen = begin("gatv2", SMALL._replace(starts=3), dictionary_lookup(4).train)
    assert len(made) == 3 and chosen is made[1]


@pytest.mark.slow
def test_gatv2_learns_to_look_up_and_gat_does_not():
    settings = SMALL._replace(
        k=5, graphs=120, size=128, epochs=30, starts=12, batch_size=32, lr=3e-3
    )
    found = {name: train(name, settings, seed=0)[1] for name in MODELS}
    assert found["gatv2"]["train_accuracy"] == 1 and found["gatv2"]["test_accuracy"] > 0.95
    assert found["gatv2"]["disagreement"] == 1
    assert found["gat"]["train_accuracy"] < 0.5 and found["gat"]["disagreement"] == 0


def test_two_of_k_answers_are_right_where_all_listen_to_one_key():
    """What the docstring says, by counting: the others guess among the values that are left."""
    k = 5
    right = torch.zeros(())
    for heard in range(k):  # the key that all listen to; by symmetry any dictionary will do
        chance = torch.full((k,), 1 / (k - 1))
        chance[heard] = 1
        right += chance.mean() / k
    torch.testing.assert_close(right, torch.tensor(2 / k))


def test_it_prints_a_table_and_draws_both_matrices(tmp_path, capsys, monkeypatch):
    drawn = []
    genuine = program.draw
    monkeypatch.setattr(
        program, "draw", lambda figure, *rest: (genuine(figure, *rest), drawn.append(figure))
    )
    assert main([*FEW, "--out", str(tmp_path), "--self-loops"]) == 0
    out = capsys.readouterr().out
    assert "of 4 keys to train on" in out and "1 of 16 pairs unseen" in out
    assert next(line for line in out.splitlines() if "one key" in line).split()[5:] == [
        *("50.0", "50.0", "0"),
    ]
    (figure,) = drawn
    assert isinstance(figure, Figure)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0].startswith("GAT: ") and titles[1].startswith("GATv2: ")
    assert titles[2].endswith("listen most to the same key")
    assert figure.axes[0].images[0].get_array().shape == (4, 5)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels[0].startswith("key 0 = ") and labels[-1] == "itself"
    with Image.open(tmp_path / "attention.png") as picture:
        assert min(picture.size) > 800
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["complete"] is True and metrics["settings"]["k"] == 4
    for found in metrics["models"].values():
        assert [result["seed"] for result in found] == [0]


def test_the_same_seed_gives_the_same_numbers():
    first, again = (train("gatv2", SMALL, seed=3)[1] for _ in range(2))
    other = train("gatv2", SMALL, seed=4)[1]
    assert first["loss"] == again["loss"] != other["loss"]


def test_an_interruption_keeps_what_there_is(tmp_path, capsys, monkeypatch):
    genuine = train

    def interrupted(name, settings, seed, progress):
        if (name, seed) == stop:
            raise KeyboardInterrupt
        return genuine(name, settings, seed, progress)

    monkeypatch.setattr(program, "train", interrupted)
    for stop, pictures in ((("gatv2", 0), 0), (("gat", 1), 1)):
        out = tmp_path / stop[0]
        assert main([*FEW, "--runs", "2", "--out", str(out)]) == 130
        assert json.loads((out / "metrics.json").read_text())["complete"] is False
        assert (out / "attention.png").exists() == bool(pictures)
        assert "interrupted" in capsys.readouterr().err
    stop = ("gat", 0)  # before there is anything to keep
    assert main([*FEW, "--out", str(tmp_path / "nothing")]) == 130
    assert not (tmp_path / "nothing" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--heads", "3"], "--size 256 is no multiple of --heads 3"),
        (["--k", "1"], "at least 2"),
        (["--k", "8", "--graphs", "2", "--seed", "3"], "2 graphs to train and 0 to test on"),
        (["--lr", "x"], "must be a number"),
        (["--out", "{tmp}/file"], "choose another folder"),
    ],
)
def test_options_that_make_no_sense(words, message, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main([word.format(tmp=tmp_path) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_a_loss_that_is_not_finite_ends_the_program(tmp_path, capsys, monkeypatch):
    def broken(name, settings, seed, progress):
        progress(float("nan"))

    monkeypatch.setattr(program, "train", broken)
    assert main([*FEW, "--out", str(tmp_path)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]  # the progress bar stands above it
    assert last == "error: the loss of GAT (seed 0) became nan: lower --lr"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("lookup")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "draw", lambda *args: None)
        words = ["--k", "4", "--size", "32", "--epochs", "60", "--lr", "0.01", "--runs", "1"]
        assert main([*words, "--batch-size", "8", "--out", str(out)]) == 0
    return out


class TestAsk:
    """What was trained answers again, from its files alone."""

    def test_a_table_of_every_query(self, trained, capsys):
        capsys.readouterr()
        assert main(["ask", "2", "0", "3", "1", "--model", str(trained)]) == 0
        head, _, *rows = capsys.readouterr().out.splitlines()
        assert re.split("  +", head) == [
            "query", "value", "GAT says", "listens most to", "GATv2 says", "listens most to",
        ]  # fmt: skip
        values = [row.split()[1] for row in rows]
        assert values == ["2", "0", "3", "1"]
        columns = [row.split() for row in rows]
        for row in columns:
            assert {row[3], row[8]} <= {"✓", "✗"}
            assert (row[2] == row[1]) == (row[3] == "✓") and (row[7] == row[1]) == (row[8] == "✓")
        assert len({row[5] for row in columns}) == 1  # GAT: all listen to one key
        assert [row[8] for row in columns] == ["✓"] * 4  # GATv2: all are right

    def test_what_cannot_be_asked(self, trained, tmp_path, capsys):
        for words, message in (
            (["0", "1", "2", "--model", str(trained)], "3 values, but the models"),
            (["0", "0", "2", "1", "--model", str(trained)], "must be a permutation"),
            (["0", "1", "--model", str(tmp_path)], "there is no model in"),
        ):
            capsys.readouterr()
            assert main(["ask", *words]) == 2
            error = capsys.readouterr().err
            assert message in error and error.count("\n") == 1
