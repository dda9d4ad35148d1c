"""The program as its user meets it: what it writes, what it says, and how it goes on."""

import csv
import errno
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch_geometric.data import Data

from datasets import PPIGraphs, ppi
from examples import _nodes, _pictures, node_classification
from examples._nodes import MODELS, load_model
from examples.commands.node_classification import NAMES, PROGRAM
from examples.node_classification import main
from examples.shared import files
from examples.shared import graphs as shared_graphs
from examples.shared.files import load_checkpoint, save_checkpoint
from tests.datasets.ppi_archive import expect, write

REPOSITORY = Path(__file__).parents[2]
FAST = ["--dataset", "karate", "--epochs", "12", "--runs", "2"]
RESULTS = {"model.safetensors", "config.json", "metrics.json"}
PICTURES = {"curves.png", "embedding.png", "attention.png"}


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(node_classification, "draw", lambda task: None)


@pytest.fixture
def graph(tmp_path):
    """Options for two groups of eight nodes, each a ring, whose first feature tells the group."""
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 8)
    table = {"edges": [("source", "target")], "features": [("node", "a", "b")]}
    table["labels"] = [("node", "label", "split")]
    for n in range(16):
        table["edges"].append((f"n{n}", f"n{n // 8 * 8 + (n + 1) % 8}"))
        table["features"].append((f"n{n}", group[n] + rng.normal(0, 0.1), rng.normal()))
        split = ("train", "train", "val", "val", "test", "test", "test", "")[n % 8]
        table["labels"].append((f"n{n}", ["red", "blue"][group[n]] if split else "", split))
    for name, rows in table.items():
        with open(tmp_path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return [word for name in table for word in (f"--{name}", str(tmp_path / f"{name}.csv"))]


def names(folder):
    return {path.name for path in folder.iterdir()}


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def numbers(folder):
    """Everything in metrics.json but the time it took."""
    metrics = read(folder)
    for result in metrics["runs"]:
        assert result.pop("seconds") > 0
    return metrics


def failure(capsys, words):
    """The message of a call that must end with status 2 and one line on stderr."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def interrupt_at(monkeypatch, epoch, *, halfway=False, error=KeyboardInterrupt):
    """Raises `error` in the given epoch, counted over all runs; `halfway`: after the update."""
    owner = _nodes if halfway else _nodes.Run
    name = "evaluate" if halfway else "step"
    genuine, calls = getattr(owner, name), []

    def wrapper(*args):
        calls.append(None)
        if len(calls) == epoch:
            raise error
        return genuine(*args)

    monkeypatch.setattr(owner, name, wrapper)


class TestTraining:
    def test_leaves_model_metrics_and_pictures(self, tmp_path, capsys):
        out = tmp_path / "deep" / "out"
        assert main([*FAST, "--out", str(out)]) == 0
        assert names(out) == RESULTS | PICTURES
        for picture in PICTURES:
            with Image.open(out / picture) as image:
                assert len(set(np.asarray(image.convert("L")).ravel().tolist())) > 10

        metrics = read(out)
        assert metrics["complete"] is True and metrics["unfinished_run"] is None
        assert metrics["graph"] == {
            "name": "karate", "nodes": 34, "edges": 156, "features": 34, "classes": 2,
            "train": 2, "val": 8, "test": 24,
        }  # fmt: skip
        assert metrics["config"]["lr"] == 0.005 and metrics["config"]["epochs"] == 12
        assert [result["seed"] for result in metrics["runs"]] == [0, 1]
        test = [result["test_accuracy"] for result in metrics["runs"]]
        assert metrics["summary"]["test_accuracy"]["mean"] == pytest.approx(np.mean(test))
        assert metrics["summary"]["test_accuracy"]["std"] == pytest.approx(np.std(test, ddof=1))
        assert [rival["name"].split(",")[0] for rival in metrics["baselines"]] == [
            "majority class", "logistic regression", "label spreading",
        ]  # fmt: skip
        assert metrics["versions"]["torch"] == version("torch")

        said = capsys.readouterr().out
        assert f"GAT {' ' * 31} 2 runs" in said
        assert f"{100 * np.mean(test):.1f} ± {100 * np.std(test, ddof=1):.1f}" in said

    def test_whoever_may_read_one_file_may_read_all(self, tmp_path, no_pictures):
        main([*FAST, "--out", str(tmp_path)])
        assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1

    def test_the_saved_model_is_the_best_run_on_the_validation_nodes(self, tmp_path, no_pictures):
        main([*FAST, "--runs", "4", "--out", str(tmp_path)])
        metrics = read(tmp_path)
        best = max(metrics["runs"], key=lambda run: (run["val_accuracy"], -run["val_loss"]))
        assert metrics["best_seed"] == best["seed"]
        model, _ = load_model(tmp_path)
        args = node_classification.parser().parse_args(["--dataset", "karate"])
        data = node_classification.load_graph(args)
        scores = _nodes.evaluate(model, data, ("val", "test"))
        assert scores["val"] == (best["val_loss"], best["val_accuracy"])
        assert scores["test"] == (best["test_loss"], best["test_accuracy"])

    def test_a_run_depends_on_its_seed_only(self, tmp_path, no_pictures):
        main([*FAST, "--out", str(tmp_path / "both")])
        main([*FAST, "--out", str(tmp_path / "second"), "--runs", "1", "--seed", "1"])
        second = numbers(tmp_path / "both")["runs"][1]
        assert numbers(tmp_path / "second")["runs"] == [second]

    def test_one_run_has_no_deviation(self, tmp_path, no_pictures, capsys):
        main([*FAST, "--runs", "1", "--out", str(tmp_path)])
        assert read(tmp_path)["summary"]["test_accuracy"]["std"] is None
        assert "±" not in capsys.readouterr().out

    def test_progress_shows_loss_and_accuracies(self, tmp_path, no_pictures, capsys):
        main([*FAST, "--out", str(tmp_path)])
        bar = capsys.readouterr().err
        assert "run 2/2 (seed 1)" in bar and "12/12" in bar
        assert "loss 0." in bar and "accuracy" in bar and "validation" in bar

    def test_own_graph_from_files(self, graph, tmp_path, no_pictures):
        assert main([*graph, "--epochs", "60", "--runs", "1", "--out", str(tmp_path / "out")]) == 0
        metrics = read(tmp_path / "out")
        assert metrics["graph"]["name"] == "edges" and metrics["graph"]["edges"] == 32
        assert metrics["summary"]["test_accuracy"]["mean"] == 1.0

    def test_out_is_named_after_the_graph_by_default(self, monkeypatch, tmp_path, no_pictures):
        monkeypatch.chdir(tmp_path)
        assert main(FAST) == 0
        assert names(tmp_path / "runs" / "karate") == RESULTS

    def test_graph_without_edges(self, graph, tmp_path, no_pictures):
        (tmp_path / "edges.csv").write_text("source,target\n")
        assert main([*graph, "--epochs", "3", "--runs", "1", "--out", str(tmp_path / "out")]) == 0

    def test_pictures_of_a_graph_too_large_to_draw_whole(self, tmp_path):
        (tmp_path / "e.csv").write_text(
            "source,target\n" + "".join(f"{n},{n * k % 400}\n" for n in range(400) for k in (3, 7))
        )
        (tmp_path / "l.csv").write_text(
            "node,label\n" + "".join(f"{n},{n % 3}\n" for n in range(400))
        )
        graph = ["--edges", str(tmp_path / "e.csv"), "--labels", str(tmp_path / "l.csv")]
        options = ["--layers", "1", "--epochs", "2", "--runs", "1", "--out", str(tmp_path / "out")]
        assert main([*graph, *options]) == 0
        assert names(tmp_path / "out") == RESULTS | PICTURES

    def test_defaults_are_those_of_the_paper(self):
        for name, rest in {"cora": (1, 0.005, 5e-4), "pubmed": (8, 0.01, 1e-3)}.items():
            defaults = _nodes.DEFAULTS[name]
            assert tuple(defaults[key] for key in ("out_heads", "lr", "weight_decay")) == rest
            assert (defaults["layers"], defaults["heads"], defaults["hidden"]) == (2, 8, 8)
            assert (
                defaults["dropout"] == defaults["value_dropout"] == 0.6
                and defaults["patience"] == 100
            )


class TestModels:
    @pytest.fixture(autouse=True)
    def coarse(self, monkeypatch):
        """Pictures of few pixels, which take less time."""
        genuine = _pictures.save_figure
        monkeypatch.setattr(_pictures, "save_figure", lambda *args: genuine(*args, dpi=30))

    @pytest.mark.parametrize("kind", ["gatv2", "transformer", "agnn"])
    def test_trains_saves_draws_and_predicts(self, tmp_path, capsys, kind):
        out = tmp_path / "out"
        words = [*FAST, "--model", kind, "--epochs", "40", "--runs", "1", "--out", str(out)]
        assert main(words) == 0
        assert names(out) == RESULTS | PICTURES
        assert f"{NAMES[kind]} " in capsys.readouterr().out
        assert all(run["train_accuracy"] == 1 for run in read(out)["runs"])
        model, config = load_model(out)
        assert config["kind"] == kind and type(model) is MODELS[kind]
        predict = ["predict", "--dataset", "karate", "--model", str(out)]
        assert main([*predict, "--output", str(tmp_path / "p.csv")]) == 0

    def test_options_reach_the_model(self, tmp_path, no_pictures):
        words = ["--value-dropout", "0.5", "--norm", "--feed-forward", "3", "--jumping", "cat"]
        main([*FAST, "--epochs", "2", *words, "--residual", "--out", str(tmp_path)])
        config = load_model(tmp_path)[0].config
        expected = {"value_dropout": 0.5, "norm": "layer_norm", "feed_forward": 3, "jk": "cat",
                    "residual": True, "dropout": 0.6, "input_dropout": 0.6}  # fmt: skip
        assert {name: config[name] for name in expected} == expected

    @pytest.mark.parametrize("kind", ["gat", "gatv2", "transformer"])
    @pytest.mark.parametrize("part", [["--score", "cosine"], ["--normalizer", "sparsemax"]])
    def test_other_scores_and_normalisers(self, tmp_path, no_pictures, capsys, kind, part):
        out = tmp_path / "out"
        words = ["--model", kind, *part, "--epochs", "25", "--lr", "0.02", "--dropout", "0.1"]
        assert main([*FAST, *words, "--out", str(out)]) == 0
        assert f"{NAMES[kind]} with {part[1]}  " in capsys.readouterr().out
        assert all(run["train_accuracy"] == 1 for run in read(out)["runs"])
        config = load_model(out)[0].config
        scores = {"gat": "separable", "gatv2": "additive", "transformer": "scaled_dot"}
        expected = (part[1], "softmax") if part[0] == "--score" else (scores[kind], part[1])
        assert (config["score"], config.get("normalizer", "softmax")) == expected

    @pytest.mark.parametrize("kind", ["gat", "gatv2"])
    def test_a_model_as_an_attention_of_parts_is_that_model(self, kind):
        x, edge_index = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 0, 0]])
        plain = MODELS[kind](4, 8, 2, 3).eval()
        parts = MODELS["attention"](4, 8, 2, 3, **_nodes.AS_ATTENTION[kind]).eval()
        for ours, theirs in zip(parts.convs, plain.convs, strict=True):
            if kind == "gat":
                torch.nn.init.zeros_(ours.lin_key.bias)
                ours.lin_key.weight = theirs.lin.weight
                ours.score_query_vector.data = theirs.att_dst.data[0]
                ours.score_key_vector.data = theirs.att_src.data[0]
            else:
                ours.lin_key, ours.lin_query = theirs.lin_l, theirs.lin_r
                ours.score_vector.data = theirs.att.data[0]
        torch.testing.assert_close(parts(x, edge_index), plain(x, edge_index))

    def test_features_that_are_mostly_zero_are_sparse(self, graph):
        def features(words):
            args = node_classification.parser().parse_args(words)
            return node_classification.load_graph(args).x

        assert features(["--dataset", "karate"]).layout == torch.sparse_csr
        assert features(graph).layout == torch.strided

    def test_another_model_cannot_resume(self, tmp_path, no_pictures, capsys, monkeypatch):
        interrupt_at(monkeypatch, 5)
        main([*FAST, "--out", str(tmp_path)])
        error = self.last(capsys, [*FAST, "--model", "gatv2", "--out", str(tmp_path), "--resume"])
        assert "--model was gat, is now gatv2" in error

    def test_what_agnn_does_not_have(self, graph, tmp_path, capsys):
        for words in (["--heads", "2"], ["--norm"], ["--normalizer", "hard"]):
            error = self.last(capsys, [*FAST, "--model", "agnn", *words])
            assert f"{words[0]} has no meaning for --model agnn" in error
        plain = (tmp_path / "edges.csv").read_text().splitlines()
        heavy = [f"{line},{'weight' if n == 0 else n}" for n, line in enumerate(plain)]
        (tmp_path / "edges.csv").write_text("\n".join(heavy))
        error = self.last(capsys, [*graph, "--model", "agnn"])
        assert "edges have 1 numbers each, of which --model agnn makes no use" in error

    def last(self, capsys, words):
        capsys.readouterr()
        return failure(capsys, words)


class TestManyGraphs:
    """Nodes with several labels, on graphs of which some are never trained on."""

    @pytest.fixture
    def graphs(self, monkeypatch):
        """Rings; labels 0 and 1 are the signs of a node's own features, 2 is its neighbour's."""

        def ring(size):
            x = torch.randn(size, 3)
            node = torch.arange(size)
            edge_index = torch.stack([(node + 1) % size, node])
            y = torch.cat([x[:, :2], x[:, 2:].roll(-1, 0)], dim=1) > 0
            return Data(x=x, edge_index=edge_index, y=y.float())

        def several():
            torch.manual_seed(5)
            sizes = (30, 40, 50), (60,), (20, 70)
            return PPIGraphs(*([ring(size) for size in of_split] for of_split in sizes))

        monkeypatch.setattr(shared_graphs, "ppi", several)
        return several()

    SMALL = ("--dataset", "ppi", "--hidden", "8", "--epochs", "60", "--runs", "1", "--lr", "0.02")

    def test_learns_predicts_and_draws(self, graphs, tmp_path, capsys):
        out = tmp_path / "out"
        assert main([*self.SMALL, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert "3 labels; 120 / 60 / 90 nodes" in said and "micro-F1 in %" in said
        metrics = read(out)
        assert metrics["score"] == "micro-F1"
        assert metrics["runs"][0]["test_accuracy"] > 0.9 > metrics["baselines"][1]["test_accuracy"]
        assert [rival["name"] for rival in metrics["baselines"]] == [
            "frequent labels", "logistic regression, features only",
        ]  # fmt: skip
        assert names(out) == RESULTS | PICTURES
        words = ["predict", "--dataset", "ppi", "--model", str(out)]
        assert main([*words, "--output", str(tmp_path / "p.csv")]) == 0
        with open(tmp_path / "p.csv", newline="") as file:
            said = [row["prediction"].split() for row in csv.DictReader(file)]
        truth = torch.cat([graph.y for split in graphs for graph in split])
        found = torch.tensor([[str(label) in labels for label in range(3)] for labels in said])
        assert found.shape == truth.shape and (found == truth.bool()).float().mean() > 0.9

    def test_resumed_is_bitwise_what_it_would_have_been(self, graphs, tmp_path, no_pictures):
        words = [*self.SMALL, "--epochs", "6"]
        main([*words, "--out", str(tmp_path / "whole")])
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, 4, halfway=True)
            assert main([*words, "--out", str(tmp_path / "broken")]) == 130
        assert main([*words, "--out", str(tmp_path / "broken"), "--resume"]) == 0
        assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")

    def test_graphs_of_other_splits_are_neither_seen_nor_trained_on(self, graphs):
        run = _nodes.Run(shared_graphs.joined(graphs), SETTINGS, seed=0)
        assert [graph.num_nodes for graph in run.graphs] == [30, 40, 50]
        for part, graph in zip(run.graphs, graphs.train, strict=True):
            assert torch.equal(part.x, graph.x) and torch.equal(part.y, graph.y)
            assert torch.equal(part.edge_index, graph.edge_index)
        assert sorted(len(batch.x) for batch in run._batches()) in ([30, 90], [40, 80], [50, 70])
        assert {split: len(view.x) for split, view in run.views.items()} == {
            "train": 120, "val": 60, "test": 90,
        }  # fmt: skip

    @pytest.mark.slow
    def test_the_archive_is_trained_on_as_in_the_paper(self, tmp_path, monkeypatch, no_pictures):
        """From the files on, with defaults; interrupted, resumed, stopped early."""

        def signs(rng, feats):
            return (feats[:, np.arange(121) % 50] > 0).astype(int)

        sizes = {"train": [80, 60, 80], "valid": [50], "test": [60]}
        expect(write(sizes, signs), tmp_path, monkeypatch)
        words = ["--dataset", "ppi", "--runs", "1", "--patience", "3"]
        out = tmp_path / "out"
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, 3)
            assert main([*words, "--out", str(out)]) == 130
        assert read(out)["unfinished_run"]["epochs"] == 2
        assert main([*words, "--out", str(out), "--resume"]) == 0
        (run,) = read(out)["runs"]
        assert run["stopped_early"] and run["epochs"] < 1000
        assert run["test_accuracy"] > 0.7 > read(out)["baselines"][0]["test_accuracy"]
        data = shared_graphs.joined(ppi())
        model, _ = load_model(out)
        found = model(data.x, data.edge_index)[data.test_mask] > 0
        truth = data.y[data.test_mask] > 0
        hits = (found & truth).sum().item()
        assert run["test_accuracy"] == pytest.approx(
            2 * hits / (found.sum() + truth.sum()).item(), abs=1e-6
        )
        shapes = [tuple(conv.lin.weight.shape) for conv in model.convs]
        assert shapes == [(4 * 256, 50), (4 * 256, 4 * 256), (6 * 121, 4 * 256)]
        assert [conv.heads for conv in model.convs] == [4, 4, 6]
        assert [conv.concat for conv in model.convs] == [True, True, False]  # averaged at last
        assert all(conv.res is not None for conv in model.convs)
        config = read(out)["config"]
        assert (config["dropout"], config["lr"], config["weight_decay"]) == (0, 0.005, 0)
        assert SETTINGS.batch_graphs == 2

    def test_scores_by_hand(self):
        logits = torch.tensor([[1.0, -1.0], [2.0, 3.0]])
        loss, f1 = _nodes.score(logits, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
        assert f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))  # 2 hits, 1 false alarm, 1 miss
        terms = [math.log1p(math.exp(v)) for v in (-1.0, 1.0, -2.0, 3.0)]
        assert loss == pytest.approx(sum(terms) / 4)


SETTINGS = _nodes.Settings(
    model={"in_channels": 3, "hidden_channels": 4, "num_layers": 2, "out_channels": 3},
    lr=0.01, weight_decay=0, epochs=5, patience=5,
)  # fmt: skip


class TestInterruption:
    @pytest.fixture
    def whole(self, tmp_path, no_pictures):
        """The folder of a training that nothing disturbed."""
        assert main([*FAST, "--out", str(tmp_path / "whole")]) == 0
        return tmp_path / "whole"

    @pytest.mark.parametrize("epoch", [2, 12, 13, 20])
    @pytest.mark.parametrize("halfway", [False, True])
    def test_resumed_is_bitwise_what_it_would_have_been(
        self, whole, tmp_path, capsys, epoch, halfway
    ):
        out = tmp_path / "broken"
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, epoch, halfway=halfway)
            assert main([*FAST, "--out", str(out)]) == 130
        assert names(out) == RESULTS | {"checkpoint.pt"}
        partial = read(out)
        assert partial["complete"] is False
        said = capsys.readouterr().err
        assert f"after {len(partial['runs'])} of 2 runs" in said and str(out) in said

        command = said.split(f"go on with: {PROGRAM} ")[1]
        assert main(shlex.split(command)) == 0
        assert numbers(out) == numbers(whole)
        for name in ("model.safetensors", "config.json"):
            assert (out / name).read_bytes() == (whole / name).read_bytes()
        assert names(out) == RESULTS

    def test_resumed_twice(self, whole, tmp_path):
        out, flag = tmp_path / "broken", []
        for epoch in (5, 4, 9):
            with pytest.MonkeyPatch.context() as patch:
                interrupt_at(patch, epoch)
                assert main([*FAST, "--out", str(out), *flag]) == 130
            flag = ["--resume"]
        assert main([*FAST, "--out", str(out), "--resume"]) == 0
        assert numbers(out) == numbers(whole)

    def test_after_a_crash_the_last_checkpoint_serves(self, whole, tmp_path):
        out = tmp_path / "broken"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
            interrupt_at(patch, 11, error=RuntimeError("power cut"))
            main([*FAST, "--out", str(out), "--checkpoint-every", "4"])
        assert load_checkpoint(out / "checkpoint.pt")["run"]["epoch"] == 8
        assert main([*FAST, "--out", str(out), "--resume"]) == 0
        assert numbers(out) == numbers(whole)

    def test_interrupted_while_drawing(self, whole, tmp_path, monkeypatch):
        out = tmp_path / "broken"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(node_classification, "save_pictures", raise_interrupt)
            patch.setattr(node_classification, "draw", GENUINE_DRAW)
            assert main([*FAST, "--out", str(out)]) == 130
        assert read(out)["complete"] is True
        assert main([*FAST, "--out", str(out), "--resume"]) == 0
        assert numbers(out) == numbers(whole)

    def test_interrupted_before_the_first_epoch(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(node_classification, "baselines", raise_interrupt)
        assert main([*FAST, "--out", str(tmp_path)]) == 130
        assert names(tmp_path) == set()
        assert capsys.readouterr().err == "\ninterrupted\n"

    def test_the_best_so_far_is_kept_and_can_predict(self, tmp_path, monkeypatch, no_pictures):
        interrupt_at(monkeypatch, 9)
        main([*FAST, "--out", str(tmp_path)])
        unfinished = read(tmp_path)["unfinished_run"]
        assert unfinished["epochs"] == 8 and not unfinished["stopped_early"]
        assert read(tmp_path)["best_seed"] == 0
        predictions = str(tmp_path / "p.csv")
        assert main(["predict", "--dataset", "karate", "--model", str(tmp_path),
                     "--output", predictions]) == 0  # fmt: skip

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals(self, tmp_path, no_pictures, capsys, monkeypatch, number):
        genuine, calls = _nodes.Run.step, []

        def step(run):
            calls.append(None)
            if len(calls) == 6:
                os.kill(os.getpid(), number)
            genuine(run)

        before = signal.getsignal(number)
        monkeypatch.setattr(_nodes.Run, "step", step)
        assert main([*FAST, "--out", str(tmp_path)]) == 130
        assert signal.getsignal(number) is before
        assert "go on with" in capsys.readouterr().err
        assert load_checkpoint(tmp_path / "checkpoint.pt")["run"]["epoch"] == 5

    def test_a_polite_kill_of_the_process(self, tmp_path):
        endless = ["--dataset", "karate", "--epochs", "1000000", "--patience", "1000000"]
        process = subprocess.Popen(
            [*PROGRAM.replace("python", sys.executable, 1).split(), *endless,
             "--checkpoint-every", "5", "--out", str(tmp_path)],
            cwd=REPOSITORY, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while not (tmp_path / "checkpoint.pt").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "go on with" in error and "Traceback" not in error
        assert names(tmp_path) == RESULTS | {"checkpoint.pt"}
        epochs = read(tmp_path)["unfinished_run"]["epochs"]
        assert load_checkpoint(tmp_path / "checkpoint.pt")["run"]["epoch"] == epochs >= 5


def raise_interrupt(*args):
    raise KeyboardInterrupt


GENUINE_DRAW = node_classification.draw


class TestResume:
    @pytest.fixture
    def broken(self, tmp_path, no_pictures):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, 5)
            assert main([*FAST, "--out", str(tmp_path)]) == 130
        return tmp_path

    def test_other_settings_are_named(self, broken, capsys):
        capsys.readouterr()
        other = ["--lr", "0.1", "--out-heads", "3", "--labels-per-class", "2"]
        error = failure(capsys, [*FAST, *other, "--out", str(broken), "--resume"])
        assert "--lr was 0.005, is now 0.1" in error
        assert "--out-heads was 1, is now 3" in error
        assert "--labels-per-class was None, is now 2" in error
        assert "--heads" not in error

    def test_another_graph_is_noticed(self, graph, tmp_path, no_pictures, monkeypatch, capsys):
        words = [*graph, "--epochs", "9", "--out", str(tmp_path / "out")]
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, 5)
            main(words)
        capsys.readouterr()
        with open(tmp_path / "edges.csv", "a") as file:
            file.write("n0,n8\n")
        assert "the graph has changed" in failure(capsys, [*words, "--resume"])

    def test_more_runs_are_welcome(self, broken):
        assert main([*FAST, "--runs", "3", "--out", str(broken), "--resume"]) == 0
        assert [result["seed"] for result in read(broken)["runs"]] == [0, 1, 2]

    def test_nothing_to_resume(self, tmp_path, capsys):
        error = failure(capsys, [*FAST, "--out", str(tmp_path), "--resume"])
        assert "nothing to resume" in error and "leave out --resume" in error

    def test_an_unfinished_training_is_not_lost_by_accident(self, broken, capsys):
        before = (broken / "checkpoint.pt").read_bytes()
        capsys.readouterr()
        error = failure(capsys, [*FAST, "--out", str(broken)])
        assert "--resume" in error and "--restart" in error
        assert (broken / "checkpoint.pt").read_bytes() == before
        assert main([*FAST, "--out", str(broken), "--restart"]) == 0
        assert names(broken) == RESULTS

    @pytest.mark.parametrize(
        "damage",
        [
            lambda path: path.write_bytes(path.read_bytes()[:1000]),
            lambda path: path.write_bytes(b""),
            lambda path: path.write_bytes(b"no checkpoint at all"),
            lambda path: torch.save({"weights": torch.ones(3)}, path),
            lambda path: torch.save(["format", 1], path),
            lambda path: torch.save({"format": 99}, path),
            lambda path: torch.save({"format": 1, "model": Path("code that must not run")}, path),
        ],
    )
    def test_damaged_checkpoint(self, broken, capsys, damage):
        damage(broken / "checkpoint.pt")
        capsys.readouterr()
        error = failure(capsys, [*FAST, "--out", str(broken), "--resume"])
        assert "checkpoint.pt is damaged or not a checkpoint" in error and "--restart" in error

    def test_a_flipped_bit_is_noticed(self, broken, capsys):
        path = broken / "checkpoint.pt"
        content = bytearray(path.read_bytes())
        weights = load_checkpoint(path)["run"]["model"]["convs.0.lin.weight"]
        content[content.index(weights.numpy().tobytes()) + 100] ^= 1
        path.write_bytes(content)
        capsys.readouterr()
        assert "is damaged" in failure(capsys, [*FAST, "--out", str(broken), "--resume"])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state["run"]["model"].popitem(), "Missing key"),
            (
                lambda state: state["run"]["model"].update({"convs.0.bias": torch.ones(3)}),
                "size mismatch for convs.0.bias",
            ),
            (lambda state: state["run"].pop("random"), "random"),
            (lambda state: state.update(surprise=1), "is damaged"),
        ],
    )
    def test_checkpoint_of_another_architecture(self, broken, capsys, change, message):
        state = load_checkpoint(broken / "checkpoint.pt")
        change(state)
        save_checkpoint(broken / "checkpoint.pt", state)
        capsys.readouterr()
        error = failure(capsys, [*FAST, "--out", str(broken), "--resume"])
        assert message in error and "--restart" in error


class TestBadInput:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--dataset", "moon"], "argument --dataset: invalid choice: 'moon'"),
            (
                ["--dataset", "karate", "--edges", __file__, "--labels", __file__],
                "exclude each other",
            ),
            (["--features", __file__], "--features and --labels need --edges"),
            (["--edges", __file__], "--edges needs --labels"),
            (["--dataset", "cora", "--split-seed", "1"], "--split-seed has no meaning for cora"),
            (
                ["--dataset", "karate", "--neighbours", "3"],
                "--neighbours has no meaning for karate",
            ),
            (["--neighbours", "0"], "k must lie between 1 and 1796, got 0"),
            (["--dataset", "karate", "--labels-per-class", "99"], "labels_per_class must lie"),
            (["--dropout", "1.5"], "--dropout: must be a number, at least 0 and below 1: '1.5'"),
            (["--dropout", "nan"], "--dropout: must be a number"),
            (["--weight-decay", "-1"], "--weight-decay: must be a number, at least 0: '-1'"),
            (["--lr", "fast"], "--lr: must be a number, at least 0 and below 1000: 'fast'"),
            (["--heads", "0"], "--heads: must be a whole number, at least 1: '0'"),
            (["--runs", "2.5"], "--runs: must be a whole number, at least 1: '2.5'"),
            (
                ["--seed", "-1"],
                "--seed: must be a whole number, at least 0 and below 2147483648: '-1'",
            ),
            (["--seed", "4294967296"], "at least 0 and below 2147483648: '4294967296'"),
            (["--split-seed", "9" * 30], "--split-seed: must be a whole number, at least 0 and"),
            (["--resume", "--restart"], "--restart: not allowed with argument --resume"),
            (["--device", "toaster"], "--device toaster is of no use here"),
            (["--device", "meta:x"], "--device meta:x is of no use here"),
            (["--device", "meta"], "--device meta is of no use here: Cannot copy out of meta"),
            (["--hiden", "8"], "unrecognized arguments: --hiden"),
            (["predict"], "required: --model, --output"),
            (["predict", "--model", "m", "--output", ""], "--output '' names no file"),
        ],
    )
    def test_options(self, capsys, words, message):
        assert message in failure(capsys, words)

    def test_missing_and_broken_files(self, graph, tmp_path, capsys):
        assert "nowhere.csv" in failure(capsys, [*graph, "--edges", str(tmp_path / "nowhere.csv")])
        (tmp_path / "edges.csv").write_text("source,target\nn0,stranger\n")
        error = failure(capsys, graph)
        assert "stranger" in error and "2" in error  # the line

    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_a_split_without_nodes(self, graph, tmp_path, capsys, split):
        path = tmp_path / "labels.csv"
        path.write_text("".join(line for line in path.open() if not line.endswith(f"{split}\n")))
        assert f"no node is in the split '{split}'" in failure(capsys, graph)

    def test_data_that_cannot_be_had(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("GAT_DATA", str(tmp_path))
        assert "GAT_DATA" in failure(capsys, ["--dataset", "cora"])

    def test_a_loss_that_is_no_number(self, graph, tmp_path, no_pictures, capsys):
        rows = [f"n{n},3e38,3e38" for n in range(16)]
        (tmp_path / "features.csv").write_text("\n".join(["node,a,b", *rows]))
        assert main([*graph, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert "the loss became nan in epoch 1" in error and "lower --lr" in error

    def test_help_explains_itself(self, capsys):
        for words in (["--help"], ["predict", "--help"]):
            with pytest.raises(SystemExit, match=r"^0$"):
                main(words)
            assert "--labels-per-class" in capsys.readouterr().out


class TestOutputFolder:
    """Tests may run as root, who ignores permissions; a folder below a file is barred to all."""

    def test_a_folder_that_cannot_be_made(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(node_classification, "baselines", pytest.fail)  # found out before work
        (tmp_path / "file").touch()
        for out in (tmp_path / "file", tmp_path / "file" / "out"):
            error = failure(capsys, [*FAST, "--out", str(out)])
            assert f"cannot create the folder {out}" in error and "choose another" in error

    def test_a_read_only_folder(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(node_classification, "baselines", pytest.fail)
        monkeypatch.setattr(Path, "write_bytes", raise_os_error(errno.EROFS))
        error = failure(capsys, [*FAST, "--out", str(tmp_path)])
        assert "cannot write" in error and "Read-only file system" in error

    def test_a_full_disk_is_noticed_before_training(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(node_classification, "baselines", pytest.fail)
        monkeypatch.setattr(os, "fsync", raise_os_error(errno.ENOSPC))
        error = failure(capsys, [*FAST, "--out", str(tmp_path)])
        assert "No space left on device" in error
        assert names(tmp_path) == set()

    def test_a_disk_that_fills_up_spares_the_last_checkpoint(
        self, tmp_path, no_pictures, monkeypatch, capsys
    ):
        whole, out = tmp_path / "whole", tmp_path / "out"
        main([*FAST, "--out", str(whole)])
        capsys.readouterr()
        genuine, calls = os.replace, []

        def replace(source, target):
            calls.append(target)
            if len(calls) > 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            genuine(source, target)

        words = [*FAST, "--out", str(out), "--checkpoint-every", "2"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files.os, "replace", replace)
            assert main(words) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert names(out) == {"checkpoint.pt"}
        assert load_checkpoint(out / "checkpoint.pt")["run"]["epoch"] == 6  # probe, 2, 4, 6
        assert main([*words, "--resume"]) == 0
        assert numbers(out) == numbers(whole)

    def test_torch_cannot_write(self, tmp_path, monkeypatch, capsys, no_pictures):
        def save(*args):
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

        monkeypatch.setattr(torch, "save", save)
        assert main([*FAST, "--out", str(tmp_path)]) == 2
        assert "checkpoint.pt: PytorchStreamWriter failed" in capsys.readouterr().err


def raise_os_error(number):
    def raiser(*args):
        raise OSError(number, os.strerror(number))

    return raiser


class TestPredict:
    @pytest.fixture
    def trained(self, graph, tmp_path, no_pictures):
        out = tmp_path / "model"
        assert main([*graph, "--epochs", "60", "--runs", "1", "--out", str(out)]) == 0
        return out

    def predict(self, graph, trained, *words):
        output = trained.parent / "predictions.csv"
        assert (
            main(["predict", *graph, "--model", str(trained), "--output", str(output), *words]) == 0
        )
        with open(output, newline="") as file:
            return list(csv.DictReader(file))

    def test_round_trip(self, graph, trained):
        rows = self.predict(graph[:4], trained)  # edges and features; labels are not needed
        names = ["p(blue)", "p(red)"]
        assert list(rows[0]) == ["node", "prediction", "probability", *names]
        for row in rows:  # all probabilities are there, and the largest is the prediction's
            shares = {name: float(row[name]) for name in names}
            assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
            assert max(shares, key=shares.get) == f"p({row['prediction']})"
        assert [row["node"] for row in rows] == [f"n{n}" for n in range(16)]
        assert [row["prediction"] for row in rows] == ["red"] * 8 + ["blue"] * 8

        args = node_classification.parser().parse_args(graph)
        data, (model, _) = node_classification.load_graph(args), load_model(trained)
        probability = model(data.x, data.edge_index).softmax(dim=1).max(dim=1).values.tolist()
        assert [float(row["probability"]) for row in rows] == pytest.approx(probability, abs=1e-6)

    def test_another_graph_with_the_same_features(self, graph, trained, tmp_path):
        (tmp_path / "edges.csv").write_text("source,target\nx,y\n")
        (tmp_path / "features.csv").write_text("node,a,b\nx,0,0\ny,0,0\nz,1,0\n")
        rows = self.predict(graph[:4], trained)
        assert [(row["node"], row["prediction"]) for row in rows] == [
            ("x", "red"), ("y", "red"), ("z", "blue"),
        ]  # fmt: skip

    def test_built_in_graph(self, tmp_path, no_pictures):
        main([*FAST, "--out", str(tmp_path)])
        rows = self.predict(["--dataset", "karate"], tmp_path)
        assert [row["node"] for row in rows] == [str(n) for n in range(34)]
        assert {row["prediction"] for row in rows} <= {"Mr. Hi", "Officer"}

    def test_other_features(self, trained, capsys):
        error = self.refusal(capsys, ["--dataset", "karate"], trained)
        assert "34 features per node" in error and "trained on 2" in error

    def test_edge_attributes(self, graph, tmp_path, no_pictures, capsys):
        plain = (tmp_path / "edges.csv").read_text().splitlines()
        heavy = [f"{line},{'weight' if n == 0 else n}" for n, line in enumerate(plain)]
        (tmp_path / "edges.csv").write_text("\n".join(heavy))
        out = tmp_path / "model"
        main([*graph, "--epochs", "5", "--runs", "1", "--out", str(out)])
        assert load_model(out)[0].config["edge_dim"] == 1
        assert len(self.predict(graph[:4], out)) == 16
        (tmp_path / "edges.csv").write_text("\n".join(plain))
        error = self.refusal(capsys, graph[:4], out)
        assert "0 numbers per edge" in error and "trained on 1" in error

    def test_a_model_without_features_knows_its_own_nodes_only(
        self, graph, tmp_path, no_pictures, capsys
    ):
        own = [*graph[:2], *graph[4:]]
        out = tmp_path / "model"
        main([*own, "--epochs", "5", "--runs", "1", "--out", str(out)])
        assert len(self.predict(own, out)) == 16
        labels = (tmp_path / "labels.csv").read_text().splitlines()
        (tmp_path / "labels.csv").write_text("\n".join([labels[0], *reversed(labels[1:])]))
        error = self.refusal(capsys, own, out)
        assert "trained without --features" in error and "pass the same" in error

    def refusal(self, capsys, graph, trained, output="predictions.csv"):
        capsys.readouterr()
        words = ["--model", str(trained), "--output", str(trained.parent / output)]
        return failure(capsys, ["predict", *graph, *words])

    def test_no_model_there(self, graph, tmp_path, capsys):
        error = self.refusal(capsys, graph, tmp_path / "nothing")
        assert "config.json: No such file" in error and "--model" in error

    @pytest.mark.parametrize("text", ["{", "[]", '{"model": {}}'])
    def test_damaged_config(self, graph, trained, capsys, text):
        (trained / "config.json").write_text(text)
        assert "config.json is damaged" in self.refusal(capsys, graph, trained)

    def test_damaged_weights(self, graph, trained, capsys):
        path = trained / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
        assert "model.safetensors is damaged or belongs" in self.refusal(capsys, graph, trained)

    @pytest.mark.parametrize(
        ("setting", "value", "message"),
        [
            ("heads", 4, "does not fit the architecture in config.json: .* size mismatch"),
            ("num_layers", 3, "does not fit the architecture in config.json"),
            ("heads", 0, "config.json is damaged"),
            ("depth", 3, "config.json is damaged"),
            ("out_channels", 3, "config.json is damaged"),
        ],
    )
    def test_another_architecture(self, graph, trained, capsys, setting, value, message):
        config = json.loads((trained / "config.json").read_text())
        config["model"][setting] = value
        (trained / "config.json").write_text(json.dumps(config))
        error = self.refusal(capsys, graph, trained)
        assert re.search(message, error)

    def test_output_that_cannot_be_written(self, graph, trained, capsys):
        error = self.refusal(capsys, graph, trained, output="edges.csv/predictions.csv")
        assert "cannot create the folder" in error


class TestOwnGraph:
    """What a reader is told of a graph beside accuracies."""

    @pytest.fixture(autouse=True)
    def fast(self, no_pictures):
        pass

    def run(self, graph, tmp_path, *words):
        assert (
            main([*graph, "--epochs", "30", "--runs", "1", "--out", str(tmp_path / "o"), *words])
            == 0
        )
        return read(tmp_path / "o")

    def rewrite(self, tmp_path, name, change):
        path = tmp_path / f"{name}.csv"
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *(",".join(change(*row.split(","))) for row in rows)]))

    def test_macro_f1_roc_auc_and_confusion(self, graph, tmp_path, capsys):
        test = self.run(graph, tmp_path)["test_of_best_run"]
        assert test == {"macro_f1": 1.0, "roc_auc": 1.0, "confusion": [[3, 0], [0, 3]]}
        said = capsys.readouterr().out
        assert "macro-F1 100.0, ROC AUC 100.0" in said
        rows = [line.split() for line in said.splitlines()]
        assert ["blue", "3", "0"] in rows and ["red", "0", "3"] in rows
        assert "nothing beats" not in said

    def test_it_says_when_nothing_beats_the_majority(self, graph, tmp_path, capsys):
        self.rewrite(tmp_path, "features", lambda node, a, b: (node, "1", "1"))
        self.rewrite(tmp_path, "edges", lambda a, b: (a, a))
        test = self.run(graph, tmp_path)["test_of_best_run"]
        assert test["roc_auc"] == pytest.approx(0.5)
        assert "nothing beats the majority class (50.0 %)" in capsys.readouterr().out

    def test_it_says_what_looks_wrong(self, graph, tmp_path, capsys):
        self.rewrite(tmp_path, "features", lambda node, a, b: (node, f"{float(a) * 1e6}", b))
        self.run(graph, tmp_path)
        assert "not on one scale" in capsys.readouterr().err
        self.rewrite(tmp_path, "labels", lambda node, label, split: (node, label and "red", split))
        self.run(graph, tmp_path)
        told = capsys.readouterr()
        assert "one class alone, 'red'" in told.err and "nothing beats" not in told.out
        self.rewrite(
            tmp_path, "labels", lambda node, label, split: (node, label and f"{node[1:]}.5", split)
        )
        self.run(graph, tmp_path, "--task", "classification")
        said = capsys.readouterr().err
        assert "14 different labels for 14 nodes" in said and "--task regression" in said

    def test_standardised_features_are_so_in_a_prediction_too(self, graph, tmp_path, capsys):
        self.rewrite(tmp_path, "features", lambda node, a, b: (node, f"{float(a) * 1e6}", b))
        assert self.run(graph, tmp_path, "--standardise")["test_of_best_run"]["macro_f1"] == 1
        output = tmp_path / "p.csv"
        words = ["predict", *graph[:4], "--model", str(tmp_path / "o"), "--output", str(output)]
        assert main(words) == 0
        with open(output, newline="") as file:
            found = [row["prediction"] for row in csv.DictReader(file)]
        assert found == ["red"] * 8 + ["blue"] * 8
