"""The tables of published settings: splits, how an epoch is chosen, and what is printed."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from examples import tuned_tables
from examples.tuned_tables import main, split_by_class
from gat.models import preset


def graph(splits: int = 2) -> Data:
    """Two classes that features tell apart, in a ring."""
    y = torch.arange(40) % 2
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    ring = torch.stack([torch.arange(40), (torch.arange(40) + 2) % 40])
    masks = torch.arange(40)[:, None].expand(40, splits) % 4
    return Data(
        x=x + y[:, None], y=y, edge_index=torch.cat([ring, ring.flip(0)], dim=1),
        train_mask=masks < 2, val_mask=masks == 2, test_mask=masks == 3,
    )  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned_tables, "load", lambda *_: graph())


def test_a_row_is_trained_printed_and_kept(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--graph", "chameleon-filtered", "--runs", "2", "--epochs", "3"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert "test accuracy, %" in head and "seconds a run" in head
    assert row.startswith("tuned-gat, chameleon-filtered") and "44.13 ± 4.17" in row
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["complete"] and len(found["runs"]["tuned-gat"]) == 2


def test_what_was_interrupted_goes_on(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds, train = [], tuned_tables.train

    def once(settings: Any, data: Any, split: int, seed: int, *rest: Any) -> Any:
        if seed == 1 and seeds == [0]:
            seeds.append(-1)
            raise KeyboardInterrupt
        seeds.append(seed)
        return train(settings, data, split, seed, *rest)

    monkeypatch.setattr(tuned_tables, "train", once)
    words = ["--graph", "chameleon-filtered", "--runs", "2", "--epochs", "2", "--out",
             str(tmp_path)]  # fmt: skip
    assert main(words) == 130
    assert main(words) == 0
    assert seeds == [0, -1, 1]  # the first is not done again


def test_the_epoch_that_is_best_on_the_validation_nodes_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter([[0.5, 0.1], [0.9, 0.2], [0.9, 0.3], [0.7, 0.4]])
    monkeypatch.setattr(tuned_tables, "evaluate", lambda *_: next(scores))
    settings = preset("tuned-gat", "chameleon-filtered")
    found = tuned_tables.train(settings, graph(), 0, 0, lambda _: None, 4)
    assert (found["val"], found["test"], found["epoch"]) == (0.9, 0.2, 1)


def test_a_setting_that_is_not_there_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "gat-sep", "--graph", "cora"]) == 2
    assert "there is no preset 'gat-sep' for 'cora'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--graph", "roman-empire"],
            "get it from github.com/yandex-research/heterophilous-graphs",
        ),
        (["--graph", "photo"], "get it from github.com/shchur/gnn-benchmark"),
        (["--graph", "cora", "--data", "nothing.npz"], "nothing.npz: no readable npz file"),
    ],
)
def test_a_graph_that_is_not_there_is_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("program", ["tuned_tables", "attention_or_not"])
def test_another_graph_takes_the_place_of_the_settings_own(
    program: str, classes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    y = np.arange(60) % classes
    ring = np.stack([np.arange(60), (np.arange(60) + classes) % 60], axis=1)
    path = tmp_path / "mine.npz"
    np.savez(path, node_features=np.eye(3)[y], node_labels=y, edges=ring)
    main = import_module(f"examples.{program}").main
    words = ["--graph", "minesweeper", "--data", str(path), "--runs", "2", "--epochs", "2",
             "--out", str(tmp_path / "out")]  # fmt: skip
    if program == "attention_or_not":
        words += ["--models", "gat", "mlp"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "mine" in out and "97.73" not in out and "minesweeper" not in out
    assert ("test roc_auc, %" if classes == 2 else "test accuracy, %") in out


def test_the_split_is_that_of_the_authors_code() -> None:
    """Classes in order, each shuffled, the first of each to train on; the rest shuffled once."""
    y = torch.tensor([1, 0, 1, 0, 1, 0, 0])
    torch.manual_seed(5)
    zeros, ones = (
        torch.tensor([1, 3, 5, 6])[torch.randperm(4)],
        torch.tensor([0, 2, 4])[torch.randperm(3)],
    )
    rest = torch.cat([zeros[1:], ones[1:]])[torch.randperm(5)]
    train, val, test = split_by_class(y, 5, labels=1, num_val=2, num_test=2)
    assert train.nonzero().flatten().tolist() == sorted([int(zeros[0]), int(ones[0])])
    assert val.nonzero().flatten().tolist() == sorted(rest[:2].tolist())
    assert test.nonzero().flatten().tolist() == sorted(rest[2:4].tolist())


@pytest.mark.skipif(
    not Path(os.environ.get("GAT_DATA", ""), "heterophilous").is_dir(), reason="needs GAT_DATA"
)
@pytest.mark.parametrize("name", ["cora", "chameleon-filtered"])
def test_real_graphs_are_learned_from(name: str, tmp_path: Path) -> None:
    assert main(["--graph", name, "--runs", "1", "--epochs", "2", "--out", str(tmp_path)]) == 0
    (found,) = json.loads((tmp_path / "metrics.json").read_text())["runs"]["tuned-gat"]
    assert found["val"] > 0.2
