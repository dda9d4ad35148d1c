"""Labels that are quantities: learned, judged, drawn and predicted in their own unit."""

import csv
import json
import random

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from examples import _nodes, _pictures, node_classification
from examples._baselines import baselines, errors, neighbours_mean, r_squared
from examples._nodes import load_model
from examples._pictures import ranges
from examples.node_classification import main
from examples.shared.files import load_checkpoint
from examples.shared.graphs import standardise_labels

NODES = 40


@pytest.fixture
def graph(tmp_path):
    """Options for a ring of nodes, with labels of 1000 + 50 · (a of it and its neighbours)."""
    rng = random.Random(0)
    a = [rng.gauss(0, 1) for _ in range(NODES)]
    label = [1000 + 50 * (a[n - 1] + a[n] + a[(n + 1) % NODES]) for n in range(NODES)]
    rows = {
        "edges": ["source,target", *(f"n{n},n{(n + 1) % NODES}" for n in range(NODES))],
        "features": ["node,a", *(f"n{n},{a[n]:.4f}" for n in range(NODES))],
        "labels": ["node,label", *(f"n{n},{label[n]:.3f}" for n in range(NODES - 2))],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return [word for name in rows for word in (f"--{name}", str(tmp_path / f"{name}.csv"))]


FAST = ("--epochs", "150", "--runs", "1", "--lr", "0.02")


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(node_classification, "draw", lambda task: None)


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_it_learns_draws_and_predicts_in_the_unit_of_the_labels(
    graph, tmp_path, capsys, monkeypatch
):
    genuine = _pictures.save_figure
    monkeypatch.setattr(_pictures, "save_figure", lambda *args: genuine(*args, dpi=30))
    out = tmp_path / "out"
    assert main([*graph, *FAST, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "--task classification makes a class of each" in said.err  # it was not asked for
    assert "labels from 847.6 to 1106" in said.out and "19 / 6 / 13 nodes" in said.out
    assert {path.stem for path in out.glob("*.png")} == {
        "curves", "embedding", "attention", "predictions",
    }  # fmt: skip

    metrics = read(out)
    assert metrics["score"] == "R²" and metrics["graph"]["classes"] is None
    mean, linear, _ = metrics["baselines"]
    test = metrics["test_of_best_run"]
    assert test["r2"] == pytest.approx(metrics["runs"][0]["test_accuracy"], abs=1e-5)
    assert test["r2"] > 0.9 > linear["test_accuracy"] > mean["test_accuracy"]
    assert test["mae"] < 0.4 * mean["test_errors"]["mae"] and test["mae"] <= test["rmse"]
    assert 30 < mean["test_errors"]["rmse"] < 200  # 50 · √3 in theory, not 1

    output = tmp_path / "p.csv"
    words = ["predict", *graph[:4], "--model", str(out), "--output", str(output)]
    assert main(words) == 0
    with open(output, newline="") as file, open(tmp_path / "labels.csv", newline="") as known:
        found = {row["node"]: float(row["prediction"]) for row in csv.DictReader(file)}
        labels = {row["node"]: float(row["label"]) for row in csv.DictReader(known)}
    assert len(found) == NODES  # those without a label too
    assert r_squared([found[n] for n in labels], [*labels.values()]) > 0.9


def test_resumed_is_bitwise_what_it_would_have_been(graph, tmp_path, no_pictures, monkeypatch):
    words = [*graph, *FAST, "--epochs", "12"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    genuine, calls = _nodes.evaluate, []

    def interrupt(*args):
        calls.append(None)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return genuine(*args)

    broken = tmp_path / "broken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_nodes, "evaluate", interrupt)
        assert main([*words, "--out", str(broken)]) == 130
    assert load_checkpoint(broken / "checkpoint.pt")["run"]["epoch"] == 6
    assert main([*words, "--out", str(broken), "--resume"]) == 0
    for name in ("model.safetensors", "config.json"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_makes_no_sense_is_said(graph, tmp_path, no_pictures, capsys):
    def error(*words):
        assert main([*graph, *FAST, "--out", str(tmp_path / "out"), *words]) == 2
        return capsys.readouterr().err

    assert "--labels-per-class has no meaning where labels are" in error("--labels-per-class", "3")
    path = tmp_path / "labels.csv"
    numbers = path.read_text()
    path.write_text(numbers.replace("n3,", "n3,about "))
    assert "the label of node 'n3' is 'about" in error("--task", "regression")
    path.write_text("node,label\n" + "".join(f"n{n},7\n" for n in range(NODES)))
    assert main([*graph, *FAST, "--task", "regression", "--out", str(tmp_path / "out")]) == 0
    assert "all labels are 7: there is nothing to learn" in capsys.readouterr().err
    assert main(["--dataset", "karate", "--task", "regression"]) == 2
    assert "--task has no meaning for karate" in capsys.readouterr().err


def test_it_says_when_nothing_beats_the_mean(graph, tmp_path, no_pictures, capsys):
    rng = random.Random(1)
    rows = [f"n{n},{rng.random()}" for n in range(NODES)]
    (tmp_path / "labels.csv").write_text("\n".join(["node,label", *rows]))
    main([*graph, *FAST, "--epochs", "3", "--lr", "1e-6", "--out", str(tmp_path / "out")])
    assert "nothing beats the mean of the labels" in capsys.readouterr().out


def test_other_models_and_samples(graph, tmp_path, no_pictures):
    for words in (["--model", "agnn"], ["--model", "transformer", "--sampled", "2", "2"]):
        out = tmp_path / "out"
        assert main([*graph, *FAST, "--epochs", "3", *words, "--out", str(out)]) == 0
        assert load_model(out)[0].config["out_channels"] == 1


def path_graph():
    """A path of seven nodes, of which the two ends train."""
    source = torch.arange(6)
    data = Data(
        x=torch.arange(7.0)[:, None], edge_index=torch.stack([source, source + 1]),
        y=torch.arange(10.0, 80.0, 10.0),
    )  # fmt: skip
    node = torch.arange(7)
    data.train_mask, data.test_mask = (node == 0) | (node == 6), node == 3
    data.val_mask = ~(data.train_mask | data.test_mask)
    data.label_scale = standardise_labels(data)
    return data


def test_baselines_by_hand():
    data = path_graph()
    assert data.label_scale == [40.0, 30.0]
    assert data.y.tolist() == pytest.approx([n / 3 for n in range(-3, 4)])
    mean, linear, _ = baselines(data)
    assert (mean.val_accuracy, mean.test_errors) == (0.0, {"mae": 0.0, "rmse": 0.0})
    assert linear.setting == "penalty 0.01" and linear.val_accuracy == pytest.approx(1, abs=1e-4)
    found = neighbours_mean(data)  # over and over, the path between its ends is a straight line
    assert found.setting == "32 steps" and found.val_accuracy == pytest.approx(1, abs=1e-3)


def test_measures_by_hand():
    assert r_squared([1.0, 2.0, 2.0], [1.0, 2.0, 3.0]) == 0.5
    assert r_squared([3.0], [3.0]) == 1.0 and r_squared([2.0, 4.0], [3.0, 3.0]) == 0.0
    assert errors([1.0, 5.0], [1.0, 3.0], unit=10) == {"mae": 10.0, "rmse": np.sqrt(200)}


def test_ranges_have_as_many_nodes_each():
    y = torch.cat([torch.arange(10.0), torch.tensor([torch.nan])])
    place, names = ranges(y, [100.0, 10.0])
    assert place.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, -1]
    assert names[0] == "100 to 118" and names[-1] == "172 to 190"
    assert ranges(torch.ones(3), [0.0, 1.0])[1] == ["1"]
