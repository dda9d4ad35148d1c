"""What counts as an explanation, whether the judge is just, and how the program behaves."""

import json

import pytest
import torch
from PIL import Image
from torch_geometric.data import Data

from datasets import karate_club
from examples import _reasons
from examples import explain as program
from examples._reasons import MEASURES, METHODS, explain, neighbourhood
from examples.explain import choose, layout, main, table
from examples.shared.files import load_checkpoint
from gat import GAT, GATv2, GraphTransformer

FEW = ["--dataset", "karate", "--epochs", "10", "--judge", "3", "--top", "4"]


@pytest.fixture(scope="module")
def club():
    return karate_club()


@pytest.fixture
def hasty(monkeypatch):
    """GNNExplainer learns for a moment, where what it finds does not matter."""
    make = lambda: _reasons.GNNExplainer(epochs=3)  # noqa: E731
    monkeypatch.setitem(METHODS, "GNNExplainer", make)


def network(kind, data):
    torch.manual_seed(0)
    return kind(data.num_features, 16, 2, 2, heads=2).eval()


@pytest.mark.parametrize("kind", [GAT, GATv2, GraphTransformer])
@pytest.mark.parametrize("node", [0, 11, 33])
def test_a_prediction_depends_on_its_neighbourhood_alone(club, kind, node):
    model, around = network(kind, club), neighbourhood(club, node, 2)
    assert around.names[around.node] == node
    expected = model(club.x, club.edge_index)[node]
    torch.testing.assert_close(
        model(around.graph.x, around.graph.edge_index)[around.node], expected
    )


def test_edges_that_come_too_late_are_left_out():
    triangle = torch.tensor(
        [[1, 2, 2, 0], [0, 1, 0, 2]]
    )  # 0 hears from 1 and 2, 1 from 2, 2 from 0
    data = Data(x=torch.eye(3), edge_index=triangle)
    around = neighbourhood(data, 0, 1)
    assert around.names[around.graph.edge_index].t().tolist() == [[1, 0], [2, 0]]


@pytest.mark.parametrize("kind", [GAT, GATv2, GraphTransformer])
def test_every_method_names_edges_of_the_graph_and_leaves_the_model_as_it_was(club, kind, hasty):
    model, around = network(kind, club), neighbourhood(club, 4, 2)
    before = model(club.x, club.edge_index)
    parameters = len(list(model.parameters()))
    reasons = list(explain(model, around, 5))
    assert [reason.method for reason in reasons] == list(METHODS)
    edges = set(map(tuple, club.edge_index.t().tolist()))
    for reason in reasons:
        assert 1 <= reason.edges.shape[1] <= 5
        assert {tuple(edge) for edge in reason.edges.t().tolist()} <= edges
        torch.testing.assert_close(reason.weights.sum(), torch.tensor(1.0))
        assert reason.probability == pytest.approx(float(before[4].detach().softmax(0).max()))
        for value in (reason.alone, reason.without, reason.unfaithfulness):
            assert 0 <= value <= 1
        assert {reason.fidelity_plus, reason.fidelity_minus} <= {0.0, 1.0}
    assert torch.equal(model(club.x, club.edge_index), before)
    assert len(list(model.parameters())) == parameters


class Listener(torch.nn.Module):
    """A model whose class for node 0 is decided by the edge from node 1 alone."""

    def __new__(cls):
        model = GAT(4, 2, 1, 2, add_self_loops=False).eval()
        conv = model.convs[0]
        with torch.no_grad():
            conv.lin.weight.copy_(torch.tensor([[0.0, 9.0, 0.0, 0.0], [0.0, 0.0, 0.1, 0.1]]))
            conv.att_src.zero_(), conv.att_dst.zero_(), conv.bias.zero_()
        return model


def test_an_edge_that_decides_is_found_and_judged_by_hand():
    star = Data(x=torch.eye(4), edge_index=torch.tensor([[1, 2, 3], [0, 0, 0]]))
    found = {r.method: r for r in explain(Listener(), neighbourhood(star, 0, 1), 1)}
    for method in ("saliency", "GNNExplainer"):
        reason = found[method]
        assert reason.edges.tolist() == [[1], [0]]
        # Each message weighs a third: scores are (3, 1/15), with the edge alone (3, 0), without it
        # (0, 1/15), which is another class
        expected = [
            torch.tensor(s).softmax(0)[0].item() for s in ([3, 1 / 15], [3.0, 0], [0, 1 / 15])
        ]
        assert [reason.probability, reason.alone, reason.without] == pytest.approx(expected)
        assert (reason.fidelity_plus, reason.fidelity_minus) == (1, 0)


def test_the_surest_right_and_the_surest_wrong_prediction_are_chosen():
    y = torch.tensor([0, 0, 1, 1, 0, 0])
    scores = torch.tensor([[9.0, 0], [2, 0], [3, 0], [1, 0], [5, 0], [8, 0]])
    data = Data(
        x=torch.eye(6), y=y, edge_index=torch.arange(5).repeat(2, 1),  # node 5 hears from nobody
        test_mask=torch.tensor([False, True, True, True, True, True]),
    )  # fmt: skip
    assert choose(lambda x, edge_index: scores, data) == [4, 2]
    data.y = torch.zeros(6, dtype=torch.long)  # nothing is wrong
    assert choose(lambda x, edge_index: scores, data) == [4]


def test_nodes_lie_on_rings_by_their_distance():
    edge_index = torch.tensor([[1, 2, 3, 4], [0, 0, 1, 2]])
    data = Data(x=torch.eye(5), edge_index=edge_index, y=torch.zeros(5, dtype=torch.long))
    place = layout(data, 0, [edge_index[:, :2], edge_index[:, 2:]], 2)
    radius = {node: (x**2 + y**2) ** 0.5 for node, (x, y) in place.items()}
    assert radius == pytest.approx({0: 0, 1: 0.55, 2: 0.55, 3: 1.1, 4: 1.1})
    for outer, inner in ((3, 1), (4, 2)):  # each behind the node it speaks to
        assert place[outer] == pytest.approx([2 * value for value in place[inner]])


def test_the_table_has_means():
    row = dict(zip(MEASURES, (1.0, 0.0, 0.3, 0.5, 0.2, 0.1), strict=True))
    lines = table({"a": [row, {**row, "fidelity_plus": 0.0, "alone": 0.7}]}).splitlines()
    assert lines[-1].split() == ["a", "0.50", "0.00", "0.30", "0.60", "0.20", "0.10"]


@pytest.mark.parametrize("model", ["gat", "transformer"])
def test_it_trains_explains_draws_and_judges(model, tmp_path, capsys, hasty):
    words = [*FEW, "--nodes", "4", "11", "--model", model, "--out", str(tmp_path)]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "test accuracy" in out and "node 4, node 11 are in" in out and "3 test nodes" in out
    with Image.open(tmp_path / "explanations.png") as picture:
        assert min(picture.size) > 800
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics["summary"]) == list(METHODS) and metrics["nodes"] == 3


def test_the_same_seed_gives_the_same_numbers(tmp_path, capsys, hasty):
    found = []
    for _ in range(2):
        assert main([*FEW, "--nodes", "4", "--out", str(tmp_path)]) == 0
        summary = json.loads((tmp_path / "metrics.json").read_text())["summary"]
        found.append({name: {**row, "seconds": 0} for name, row in summary.items()})
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "34"], "--nodes 34: karate has the nodes 0 to 33"),
        (["--top", "0"], "at least 1"),
        (["--model", "agnn"], "invalid choice"),
        (["--neighbours", "3"], "--neighbours has no meaning for karate"),
        (["--out", "{tmp}/file"], "choose another folder"),
    ],
)
def test_options_that_make_no_sense(words, message, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main([*FEW, *(word.format(tmp=tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_a_node_that_nobody_speaks_to_and_files_without_labels(tmp_path, capsys):
    assert main(["--edges", str(tmp_path / "none.csv"), "--out", str(tmp_path)]) == 2
    (tmp_path / "edges.csv").write_text("source,target\na,b\nb,a\nc,c\n")
    (tmp_path / "labels.csv").write_text("node,label,split\na,x,train\nb,y,val\nc,x,test\n")
    own = ["--edges", str(tmp_path / "edges.csv"), "--labels", str(tmp_path / "labels.csv")]
    assert main([*own, "--nodes", "2", "--epochs", "2", "--out", str(tmp_path)]) == 2
    assert "no edge reaches this node" in capsys.readouterr().err


def numbers(folder):
    """Everything in metrics.json but the time it took."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for row in metrics["summary"].values():
        row["seconds"] = 0
    return metrics


@pytest.mark.parametrize("halfway", ["training", "judging"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])  # asked to stop; a power cut
def test_the_same_command_goes_on_to_the_same_numbers(
    halfway, error, tmp_path, capsys, hasty, monkeypatch
):
    words = [*FEW, "--nodes", "4", "--out"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main([*words, str(whole)]) == 0
    monkeypatch.setattr(program, "CHECKPOINT_EVERY", 2)
    owner, name = (program.Run, "step") if halfway == "training" else (program, "explain")
    genuine, calls = getattr(owner, name), []

    def wrapper(*args):
        calls.append(None)
        if len(calls) == 3 and error is not None:
            raise error
        return genuine(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, wrapper)
        if error is KeyboardInterrupt:
            assert main([*words, str(broken)]) == 130
            assert "the same command goes on" in capsys.readouterr().err
        else:
            with pytest.raises(RuntimeError):
                main([*words, str(broken)])
    state = load_checkpoint(broken / "checkpoint.pt")
    assert state["run"]["epoch"] == (2 if halfway == "training" else 10)
    assert len(state["judged"]["attention"]) == (halfway == "judging")
    with monkeypatch.context() as patch:  # what was done is not done again
        error = None
        calls.clear()
        patch.setattr(owner, name, wrapper)
        assert main([*words, str(broken)]) == 0
    assert len(calls) == (8 if halfway == "training" else 3)
    assert numbers(broken) == numbers(whole)
    assert (broken / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not (broken / "checkpoint.pt").exists()


def test_another_command_does_not_go_on(tmp_path, capsys, hasty, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(program, "judge", interrupted)
        assert main([*FEW, "--out", str(tmp_path)]) == 130
    capsys.readouterr()
    assert main([*FEW, "--seed", "1", "--out", str(tmp_path)]) == 2
    assert "--seed was 0, is now 1" in capsys.readouterr().err
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:900])
    assert main([*FEW, "--out", str(tmp_path)]) == 2
    assert "is damaged" in capsys.readouterr().err
    assert main([*FEW, "--restart", "--out", str(tmp_path)]) == 0


def test_an_interruption_says_so(tmp_path, capsys, monkeypatch, hasty):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "judge", interrupted)
    assert main([*FEW, "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert (tmp_path / "explanations.png").exists()


def test_the_same_network_can_be_asked_again(tmp_path, capsys, hasty):
    first, again = tmp_path / "first", tmp_path / "again"
    assert main([*FEW, "--nodes", "4", "--out", str(first)]) == 0
    words = ["--nodes", "4", "--trained", str(first), "--out", str(again)]
    assert main([*FEW, *words]) == 0
    found = [json.loads((out / "metrics.json").read_text()) for out in (first, again)]
    for metrics in found:
        for row in metrics["summary"].values():
            row["seconds"] = 0
    assert found[0] == found[1]
    assert not (again / "model.safetensors").exists()
    assert main(["--trained", str(first), "--out", str(again)]) == 2
    assert "was trained on another graph" in capsys.readouterr().err
