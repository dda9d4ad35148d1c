"""The benchmark of graph attention: it compares equals, by turns, and says where it ran."""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_core import backend
from attn_core.backends import cpu, csr
from benchmarks import __main__ as program
from benchmarks import _contenders, _dgl, _processes, _small, graph
from benchmarks._processes import Group
from benchmarks._report import Report
from benchmarks._sweeps import GRAPHS, STEPS
from tests.benchmarks.conftest import InThisProcess

needs_kernels = pytest.mark.skipif(not cpu.available(), reason="no compiled kernels")
needs_data = pytest.mark.skipif(
    not os.environ.get("GAT_DATA"),
    reason="reads Cora: set GAT_DATA to a folder that has it in planetoid/",
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("inputs") / "inputs.pt")
    _contenders.save_inputs(path, nodes=30, edges=200, features=6, heads=2, width=4)
    return path


# --- Small graphs ---


@needs_kernels
def test_small_graphs_are_compared_with_a_peer_that_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_small, "SIZES", ((6, 10), (9, 20)))
    found = made_by(tmp_path, "--only", "small")
    layers, epoch = found["tables"]
    assert [row[:2] for row in layers["rows"]] == [
        [size, name] for size in ("6 / 10", "9 / 20") for name in _contenders.LAYERS
    ]
    assert all(number > 0 for row in layers["rows"] for number in row[2:])
    assert layers["findings"]["9 / 20, GATConv, step on a new graph"] > 0
    if os.environ.get("GAT_DATA"):
        assert [row[0] for row in epoch["rows"]] == [n for n in _contenders.LAYERS for _ in "12"]
    else:
        assert not epoch["rows"]


# --- The whole of it ---


def made_by(folder: Path, *arguments: str) -> dict[str, Any]:
    assert program.main(["graph", "--tiny", "--out", str(folder), *arguments]) == 0
    return json.loads((folder / "graph.json").read_text(encoding="utf-8"))


def by_title(found: dict[str, Any]) -> dict[str, Any]:
    return {table["title"].split(":")[0].split(",")[0]: table for table in found["tables"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parts with many contenders; their processes are those of the layers."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_processes, "Process", InThisProcess)
        made_by(
            folder, "--huge", "--only", "cora", "sweep", "normalisers", "halves", "--contenders",
            "ours", "torch_geometric",
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tables(results: Path) -> dict[str, Any]:
    return by_title(json.loads((results / "graph.json").read_text(encoding="utf-8")))


@pytest.mark.slow
@needs_kernels
def test_layers_with_ratios_to_ours(tmp_path: Path) -> None:
    """In processes of their own, DGL in an environment of its own."""
    python = python_with(tmp_path, STAND_IN)
    found = made_by(
        tmp_path / "out", "--only", "layers", "--dgl-python", python,
        "--contenders", "ours", "torch_geometric", "DGL",
    )  # fmt: skip
    assert found["header"]["command"].endswith(
        "--dgl-python .../python --contenders ours torch_geometric DGL"
    )
    tables = by_title(found)
    for layer in _contenders.LAYERS:
        ours, theirs, dgl = tables[layer]["rows"]
        assert [ours[0], theirs[0], dgl[0]] == ["ours", "torch_geometric", "DGL"]
        assert min(ours[1:4] + theirs[1:4] + dgl[1:]) > 0 and ours[4:] == [1.0, 1.0, 1.0]
        assert theirs[6] == pytest.approx(theirs[3] / ours[3])  # memory is measured once
        assert list(tables[layer]["findings"].values()) == theirs[4:]
    glance = tables["Layers at a glance"]
    assert glance["columns"] == ["", "ours", "torch_geometric", "DGL"] and len(glance["rows"]) == 9
    assert glance["rows"][0][1].endswith(" ms") and glance["rows"][2][1].endswith(" MiB")
    assert all(times.endswith(" ×") for row in glance["rows"] for times in row[2:])
    note = tables["GATConv"]["note"]
    assert "DGL 0.stand-in" in note and "DotGatConv" in note and "Left out" not in note


def test_without_dgl_the_report_says_so() -> None:
    note = graph._layers_note(Group({}, frozenset()), argparse.Namespace(dgl_python=None))
    assert "DGL is not among them" in note


@needs_kernels
def test_training_steps_with_sparse_and_dense_features(tables: dict[str, Any]) -> None:
    table = tables["A training step on Karate"]
    ours, dense, theirs = table["rows"]
    assert [ours[0], dense[0]] == ["ours, sparse features", "ours, dense features"]
    assert ours[1] > 0 and ours[-1] == 1.0 and theirs[-1] > 0
    assert table["findings"] == {"torch_geometric, dense features × ours": theirs[-1]}


@needs_kernels
def test_sweeps(tables: dict[str, Any]) -> None:
    edges = tables["Nanoseconds per edge"]
    assert [row[0] for row in edges["rows"]] == [500, 4000]
    one, huge = (dict(zip(edges["columns"], row, strict=True)) for row in edges["rows"])
    assert all(number > 0 for number in one.values())
    layer = "our GATv2Conv, forward and backward"
    assert {name for name, number in huge.items() if number is not None} == {
        "edges", "bound", layer, f"{layer} × the bound", "GiB of its process",
    }  # fmt: skip
    assert huge[f"{layer} × the bound"] == pytest.approx(huge[layer] / huge["bound"])

    shapes = tables["The neighbourhood step over heads × channels"]
    assert [row[0] for row in shapes["rows"]] == ["1 × 7", "8 × 16"]
    assert list(shapes["findings"].values()) == shapes["rows"][1][-3:]

    skew = tables["Skewed degrees"]
    assert [row[0] for row in skew["rows"]] == [
        "uniform, ms", "power law, ms", "one hub, ms", "power law × uniform", "one hub × uniform",
    ]  # fmt: skip
    assert list(skew["findings"].values()) == [max(row[2:]) for row in skew["rows"][3:]]


@needs_kernels
def test_normalisers_beside_softmax(tables: dict[str, Any]) -> None:
    table = tables["Normalisers"]
    assert len(table["rows"]) == 6 and len(table["columns"]) == 1 + 4 + 3
    assert all(number > 0 for row in table["rows"] for number in row[1:])
    assert list(table["findings"].values()) == [x for row in table["rows"] for x in row[5:]]


@needs_kernels
def test_rows_in_16_bits_beside_float32(tables: dict[str, Any]) -> None:
    table = tables["Rows in 16 bits"]
    assert len(table["rows"]) == 6 and len(table["columns"]) == 2 + 3 + 2 + 3
    assert all(number > 0 for row in table["rows"] for number in row[2:7])
    assert list(table["findings"].values()) == [x for row in table["rows"] for x in row[5:7]]


@needs_kernels
def test_says_where_it_was_measured_without_paths_of_the_machine(results: Path) -> None:
    text = (results / "graph.md").read_text(encoding="utf-8")
    assert f"- CPU kernels: {cpu.description()}\n" in text
    assert f"- threads: {torch.get_num_threads()}\n" in text
    command = f"python -m benchmarks graph --tiny --out .../{results.name} --huge --only cora sweep"
    command += " normalisers halves"
    assert f"- command: {command}" in text
    assert str(results.parent) not in text
    assert "![Nanoseconds per edge, 4 × 8](graph_sweep.png)" in text
    assert (results / "graph_sweep.png").read_bytes().startswith(b"\x89PNG")


def test_refuses_to_measure_plain_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with backend("torch"):
        assert program.main(["graph", "--tiny", "--out", str(tmp_path)]) == 2
    assert "compiled kernels are not live" in capsys.readouterr().err
    with backend("torch"), pytest.raises(RuntimeError, match="not live"):
        _contenders.steps("uniform", 20, 100, 2, 4)


# --- The contenders ---


@needs_kernels
@pytest.mark.parametrize("contender", [*list(_contenders.BACKENDS)[1:], _contenders.PEER])
def test_all_contenders_compute_the_same(contender: str, inputs: str) -> None:
    expected = _contenders.layers("ours", inputs).results()
    found = _contenders.layers(contender, inputs).results()
    assert len(expected) == 6 and found.keys() == expected.keys()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_plain_torch_and_the_kernels_are_measured_where_it_says_so(
    inputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("forward", "backward"):
        plain = getattr(csr, name)
        monkeypatch.setattr(csr, name, lambda *x, n=name, f=plain: calls.append(n) or f(*x))
    run = "GATConv, forward and backward"
    _contenders.layers("ours", inputs).runs[run]()
    _contenders.layers("ours, reference", inputs).runs[run]()
    assert not calls
    _contenders.layers("ours, plain torch", inputs).runs[run]()
    assert calls == ["forward", "backward"]


@needs_kernels
def test_a_graph_sorted_anew_is_sorted_at_every_step(
    inputs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[int] = []
    monkeypatch.setattr(_contenders, "clear_cache", lambda: cleared.append(1))
    _contenders.layers("ours", inputs).runs["GATConv, forward"]()
    assert not cleared
    anew = _contenders.layers("ours, graph sorted anew", inputs)
    anew.runs["GATConv, forward"]()
    anew.runs["GATConv, forward"]()
    assert len(cleared) == 2


@needs_kernels
def test_steps_attend_and_the_bound_adds_up_the_rows() -> None:
    for kind in GRAPHS:
        runs = _contenders.steps(kind, 20, 100, 2, 4).runs
        assert set(STEPS) | {"sorting"} == set(runs)
        runs["sorting"]()
        for score in _contenders.SCORES:
            found = runs[f"{score}, forward"](), runs[f"{score}, forward and backward"]()
            with backend("reference"):
                expected = runs[f"{score}, forward"]()
            torch.testing.assert_close(found, (expected, expected))
    ones = _contenders.steps("uniform", 20, 100, 2, 4)
    assert ones.runs["bound"]().shape == (20, 8)


@needs_kernels
def test_the_bound_reads_every_neighbour_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", lambda *size, **options: torch.ones(*size, **options))
    pairs, _ = _contenders.make_graph("one hub", 100, nodes=20)
    monkeypatch.setattr(_contenders, "make_graph", lambda *_, **__: (pairs, 20))
    sums = _contenders.steps("one hub", 20, 100, 2, 4).runs["bound"]()
    assert sums[:, 0].tolist() == pairs[1].bincount(minlength=20).tolist()


@needs_kernels
def test_layers_on_a_graph_of_their_own_agree() -> None:
    found = []
    for contender in ("ours", "torch_geometric"):
        torch.manual_seed(0)
        found.append(_contenders.gatv2_on_graph(contender, 20, 100, 2, 4).results())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("data", ["karate", pytest.param("cora", marks=needs_data)])
def test_training_steps_learn_and_start_from_the_same_network(data: str) -> None:
    found = []
    for contender, sparse in (("ours", True), ("ours", False), ("torch_geometric", False)):
        torch.manual_seed(0)
        one = _contenders.training(contender, sparse, data)
        found.append(one.results()["logits without dropout"])
        one.runs["step"]()
        assert not torch.allclose(one.results()["logits without dropout"], found[-1])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], found[2], rtol=1e-4, atol=1e-4)


def test_without_cora_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GAT_DATA", str(tmp_path))
    report = Report("")
    graph.measure_training(report, argparse.Namespace(tiny=False, contenders=["ours"]))
    text = report.tables[0].markdown()
    assert text.startswith("## A training step on Cora\n\nSkipped, for want of the data: ")
    assert "|" not in text and str(tmp_path) not in text
    assert f"{tmp_path}/planetoid/ind.cora.x does not exist" in capsys.readouterr().err


def test_a_peer_without_a_training_step_is_skipped() -> None:
    report = Report("")
    graph.measure_training(report, argparse.Namespace(tiny=True, contenders=["DGL"]))
    assert "Skipped" in report.tables[0].markdown()


# --- DGL ---

STAND_IN = '''
"""What the benchmark asks of DGL, in plain torch."""
import sys
import types
import torch

__version__ = "0.stand-in"
for library in ("attn_core", "gat", "sequence_attn", "datasets", "examples", "torch_geometric"):
    sys.modules[library] = None  # none of them is here


class Graph:
    def __init__(self, pairs, num_nodes):
        self.source, self.target, self.num_nodes = *pairs, num_nodes

    def attend(self, scores, values):
        weights = (scores - scores.max()).exp()[..., None]
        zeros = values.new_zeros(self.num_nodes, *values.shape[1:])
        total = zeros[..., :1].index_add(0, self.target, weights)
        summed = zeros.index_add(0, self.target, weights * values[self.source])
        return summed / total.clamp(min=1e-30)


def graph(pairs, num_nodes):
    return Graph(pairs, num_nodes)


class GATConv(torch.nn.Module):
    def __init__(self, features, width, heads, allow_zero_in_degree):
        super().__init__()
        self.shape = -1, heads, width
        self.fc = torch.nn.Linear(features, heads * width, bias=False)
        ones = torch.ones(1, heads, width)
        self.attn_l, self.attn_r = torch.nn.Parameter(ones), torch.nn.Parameter(ones.clone())
        self.bias = torch.nn.Parameter(torch.ones(heads * width))

    def forward(self, graph, x):
        h = self.fc(x).view(self.shape)
        left, right = (h * self.attn_l).sum(-1), (h * self.attn_r).sum(-1)
        scores = torch.nn.functional.leaky_relu(left[graph.source] + right[graph.target], 0.2)
        return graph.attend(scores, h) + self.bias.view(1, *self.shape[1:])


class GATv2Conv(torch.nn.Module):
    def __init__(self, features, width, heads, allow_zero_in_degree):
        super().__init__()
        self.shape = -1, heads, width
        self.fc_src, self.fc_dst = (torch.nn.Linear(features, heads * width) for _ in range(2))
        self.attn = torch.nn.Parameter(torch.ones(1, heads, width))

    def forward(self, graph, x):
        h, query = self.fc_src(x).view(self.shape), self.fc_dst(x).view(self.shape)
        both = torch.nn.functional.leaky_relu(h[graph.source] + query[graph.target], 0.2)
        return graph.attend((both * self.attn).sum(-1), h)


class DotGatConv(torch.nn.Module):
    def __init__(self, features, width, heads, allow_zero_in_degree):
        super().__init__()
        self.shape = -1, heads, width
        self.fc = torch.nn.Linear(features, heads * width, bias=False)

    def forward(self, graph, x):
        h = self.fc(x).view(self.shape)
        return graph.attend((h[graph.source] * h[graph.target]).sum(-1) / h.shape[-1] ** 0.5, h)


sys.modules["dgl.nn"] = sys.modules[__name__].nn = types.SimpleNamespace(
    GATConv=GATConv, GATv2Conv=GATv2Conv, DotGatConv=DotGatConv
)
'''


def python_with(folder: Path, dgl: str) -> str:
    """A python that finds this dgl, as that of a virtual environment would."""
    (folder / "dgl.py").write_text(dgl)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return str(python)


@pytest.mark.slow
@needs_kernels
def test_another_result_than_ours_is_no_contender(tmp_path: Path) -> None:
    python = python_with(tmp_path, STAND_IN.replace("0.2)", "0.3)"))
    arguments = ["graph", "--tiny", "--only", "layers", "--out", str(tmp_path)]
    with pytest.raises(AssertionError, match="DGL and ours do not compute the same output of GAT"):
        program.main([*arguments, "--dgl-python", python, "--contenders", "ours", "DGL"])


@needs_kernels
@pytest.mark.parametrize(
    "path, reason",
    [
        ("nowhere/python", "is no program that can be run: give the python of a virtual"),
        (sys.executable, "cannot import DGL (ModuleNotFoundError: No module named 'dgl'"),
    ],
)
def test_a_wrong_python_for_dgl_is_an_error(
    path: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["graph", "--tiny", "--out", str(tmp_path), "--dgl-python", path]
    assert program.main(arguments) == 2
    assert f"--dgl-python {path} {reason}" in capsys.readouterr().err


@needs_kernels
def test_dgl_without_dgl_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["graph", "--tiny", "--out", str(tmp_path), "--contenders", "ours", "DGL"]
    assert program.main(arguments) == 2
    assert "--dgl-python PATH" in capsys.readouterr().err


def test_parameters_of_dgl_are_all_named(inputs: str) -> None:
    given = torch.load(inputs, weights_only=True)["parameters"]
    for layer, (_, keys) in _dgl.LAYERS.items():
        assert set(keys.values()) <= set(given[layer])
    assert _dgl.LAYERS.keys() == _contenders.LAYERS.keys()
