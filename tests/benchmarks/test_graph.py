"""The benchmark of graph attention: it runs, says where it ran, and refuses the wrong kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attn_core import backend, kernels
from attn_core.kernels import csr
from benchmarks import __main__ as program
from benchmarks.graph import GRAPHS, layer_once, random_graph, step_once


@pytest.mark.slow
@pytest.mark.skipif(not kernels.available(), reason="no compiled kernels")
def test_writes_a_table_of_ratios(tmp_path: Path) -> None:
    arguments = ["graph", "--tiny", "--only", "layers", "--out", str(tmp_path)]
    assert program.main([*arguments, "--contenders", "ours", "torch_geometric"]) == 0
    found = json.loads((tmp_path / "graph.json").read_text(encoding="utf-8"))
    for table in found["tables"]:
        assert [row[0] for row in table["rows"]] == ["ours", "torch_geometric"]
        (_, *ours), (_, *theirs) = table["rows"]
        for ratio, a, b in zip(table["findings"].values(), theirs, ours, strict=True):
            assert ratio == pytest.approx(a / max(b, 1e-9))


def test_refuses_to_measure_plain_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with backend("torch"):
        assert program.main(["graph", "--tiny", "--out", str(tmp_path)]) == 2
    assert "compiled kernels are not live" in capsys.readouterr().err


@pytest.mark.parametrize("kind", GRAPHS)
def test_graphs_have_their_size_and_no_self_loops(kind: str) -> None:
    pairs = random_graph(50, 1000, kind)
    assert pairs.shape == (2, 1000) and pairs.min() >= 0 and pairs.max() < 50
    assert (pairs[0] != pairs[1]).all()
    largest = torch.bincount(pairs[1]).max()
    assert (largest > 150) == (kind != "uniform")


def test_every_step_runs() -> None:
    for score in ("bound", "gat", "gatv2", "scaled dot"):
        step_once(score, "uniform", 20, 100, 2, 4, score != "bound")()
    layer_once("GATv2Conv", "ours", 20, 100, backward=True)()


@pytest.mark.skipif(not kernels.available(), reason="no compiled kernels")
def test_plain_torch_is_measured_where_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, forward = [], csr.forward
    monkeypatch.setattr(csr, "forward", lambda problem: calls.append(1) or forward(problem))
    layer_once("GATConv", "ours", 20, 100, backward=True)()
    assert not calls
    layer_once("GATConv", "ours, plain torch", 20, 100, backward=True)()
    assert len(calls) == 2  # warmed up, and measured
