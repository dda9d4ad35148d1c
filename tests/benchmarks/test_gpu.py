"""The benchmark of graph attention on a GPU: all of it runs, interpreted, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attn_core.backends.additive import BLOCK
from benchmarks import __main__ as program
from benchmarks import _gpu_pieces, gpu
from benchmarks._graphs import GRAPHS

pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    assert program.main(["gpu", "--tiny", "--out", str(folder)]) == 0
    return folder


def test_writes_every_table(results: Path) -> None:
    found = json.loads((results / "gpu.json").read_text(encoding="utf-8"))
    assert found["header"]["command"].startswith("python -m benchmarks gpu --tiny")
    errors, of_pieces, steps, new, layers, pieces = found["tables"]
    assert len(of_pieces["rows"]) == 4 and all(x <= 1e-4 for r in of_pieces["rows"] for x in r[1:])
    assert all(row[1] > 0 < row[2] for row in new["rows"])
    assert len(pieces["rows"]) == 8 and all(row[2] > 0 < row[3] for row in pieces["rows"])
    assert len(errors["rows"]) == 6 and all(x <= 5e-2 for row in errors["rows"] for x in row[1:])
    assert steps["rows"][0][1] > 0
    assert len(layers["rows"]) == 2 * len(gpu.tiny_cases())
    for row in layers["rows"]:
        ours, peer, _, bound, faster = row[2:7]
        assert ours > 0 < bound and faster == pytest.approx(peer / ours)
    assert {row[0].split(", ")[1] for row in layers["rows"]} == set(GRAPHS)
    assert (results / "gpu.png").read_bytes().startswith(b"\x89PNG")
    assert "![Layers](gpu.png)" in (results / "gpu.md").read_text(encoding="utf-8")


@no_gpu
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["gpu", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "no CUDA device" in error and "--tiny" in error


@no_gpu
def test_without_the_interpreter_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert program.main(["gpu", "--tiny", "--out", str(tmp_path)]) == 2
    assert "set TRITON_INTERPRET=1" in capsys.readouterr().err


def test_without_triton_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert program.main(["gpu", "--tiny", "--out", str(tmp_path)]) == 2
    assert "pip install 'gat-attention[gpu]'" in capsys.readouterr().err


def test_a_wrong_result_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "max_errors", lambda case, device: [0.0, 0.2, 0.0])
    with pytest.raises(AssertionError, match="exceed"):
        gpu.measure_errors(gpu.Report(""), "cpu", tiny=True)


@no_gpu
def test_when_time_is_out_what_is_left_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured after the deadline")

    monkeypatch.setattr(gpu, "measure_case", never)
    report = gpu.Report("")
    gpu.measure_layers(report, gpu.tiny_cases(), "cpu", 1e9, tiny=True, deadline=0.0)
    assert all(str(case) in report.tables[0].note for case in gpu.tiny_cases())


@no_gpu
def test_pieces_are_wrong_or_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu_pieces, "piece_errors", lambda piece, device: [0.0, 0.2])
    with pytest.raises(AssertionError, match="exceed"):
        _gpu_pieces.measure_piece_errors(gpu.Report(""), "cpu")
    report = gpu.Report("")
    _gpu_pieces.measure_pieces(report, "cpu", 1e9, tiny=True, deadline=0.0)
    assert not report.tables[0].rows
    assert all(p.name in report.tables[0].note for p in _gpu_pieces.small("cpu", tokens=8))


def test_the_additive_pieces_are_large_enough_for_the_kernels() -> None:
    additive = [piece for piece in _gpu_pieces.small("cpu") if piece.name.startswith("additive")]
    for piece in additive:
        batch, queries, width = piece.shapes[0]
        assert batch * queries * queries * width > BLOCK
    assert additive


def test_the_most_important_cases_come_first() -> None:
    planned = gpu.cases()
    assert len(set(planned)) == len(planned)
    assert {(c.layer, c.graph) for c in planned[:6]} == {
        (layer, graph) for layer in gpu.LAYERS for graph in ("uniform", "power law")
    }
    assert all(case.edges == 10**7 and case.compiled for case in planned[:6])
    assert {case.graph for case in planned} == set(GRAPHS)
    shapes = {(case.heads, case.channels) for case in planned}
    assert shapes == {(1, 64), (4, 32), (8, 16), (8, 64)}
