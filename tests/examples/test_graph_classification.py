"""Whole graphs: batches of them, folds, and what is printed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch

from attn_core import Edges
from examples import graph_classification as program
from examples.graph_classification import Graph, Joined, accuracy, bag_of_labels, batches, split


def graphs(number: int = 60) -> list[Graph]:
    """Rings and paths of 4 to 6 nodes: a class that edges alone tell."""
    found = []
    for i in range(number):
        nodes, ring = 4 + i % 3, i % 2
        source = torch.arange(nodes if ring else nodes - 1)
        pairs = torch.stack([source, (source + 1) % nodes])
        edges = Edges(torch.cat([pairs, pairs.flip(0)], dim=1), nodes, nodes)
        found.append(Graph(torch.ones(nodes, 2), edges, ring))
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "read", lambda name: graphs())


def test_a_batch_holds_each_graph_by_itself() -> None:
    found = graphs(5)
    batch = Joined.of(found)
    assert batch.graph.bincount().tolist() == [len(graph.x) for graph in found]
    assert batch.y.tolist() == [0, 1, 0, 1, 0]
    source, target = batch.edges.edge_index
    assert torch.equal(batch.graph[source], batch.graph[target])
    args = argparse.Namespace(hidden=8, layers=2, dropout=0.0, pool="attention")
    model = program.build(args, 2, 2).eval()
    together = model(batch.x, batch.edges, batch=batch.graph)
    alone = torch.cat([model(graph.x, graph.edges) for graph in found])
    torch.testing.assert_close(together, alone)


def test_every_graph_is_tested_on_in_one_fold_and_classes_have_their_shares() -> None:
    found = graphs()
    tested = []
    for fold in range(10):
        train, val, test = split(found, fold)
        parts = [{id(graph.edges) for graph in part} for part in (train, val, test)]
        assert len(set.union(*parts)) == sum(map(len, parts)) == 60
        assert sum(graph.y for graph in test) == 3 and len(test) == 6
        tested += [id(graph.edges) for graph in test]
    assert len(set(tested)) == 60


def test_batches_come_in_another_order_each_time() -> None:
    found = graphs(20)
    first, second = (torch.cat([b.y for b in batches(found, 8, True)]) for _ in range(2))
    assert torch.equal(first.bincount(), second.bincount()) and not torch.equal(first, second)
    assert [len(b.y) for b in batches(found, 8)] == [8, 8, 4]


def test_a_bag_of_labels_sees_no_edges_and_the_network_does() -> None:
    """Each number of nodes is as frequent in both classes, so counts tell nothing."""
    found = graphs()
    assert bag_of_labels(found[:48], found[48:]) <= 0.6
    torch.manual_seed(0)
    args = argparse.Namespace(
        hidden=16, layers=2, dropout=0.0, pool="mean", lr=0.01, batch=16, epochs=1
    )
    losses: list[float] = []
    args.epochs = 12
    result = program.train(args, found, 0, losses.append)
    assert losses[-1] < losses[0] and len(losses) == 12
    assert result["val"] >= 0.5 and 0 <= result["epoch"] < 12


def test_accuracy_is_the_share_of_right_graphs() -> None:
    class Always(torch.nn.Module):
        def forward(self, x, edges, batch, batch_size):  # type: ignore[no-untyped-def]
            return torch.tensor([0.0, 1.0]).expand(batch_size, 2)

    assert accuracy(Always(), graphs(5)) == pytest.approx(2 / 5)  # type: ignore[arg-type]


def test_folds_are_trained_printed_and_kept(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--runs", "2", "--epochs", "2", "--hidden", "8", "--out", str(tmp_path)]
    assert program.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("PROTEINS, 2 folds")
    assert [line.split("  ")[0] for line in lines[2:]] == [
        "GAT", "bag of node labels", "published: without edges", "published: GIN",
    ]  # fmt: skip
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["complete"] and len(found["folds"]["gat"]) == 2
