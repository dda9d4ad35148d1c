"""The benchmark of graph attention on a GPU: all of it runs, interpreted, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core.backends.additive import BLOCK as SMALLEST
from benchmarks import __main__ as program
from benchmarks._gpu import measure, verdict
from benchmarks._graphs import GRAPHS

pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")

from attn_core.backends.triton import run
from benchmarks import _gpu_compile, _gpu_pieces, gpu

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    assert program.main(["gpu", "--tiny", "--out", str(folder)]) == 0
    return folder


def test_writes_every_table(results: Path) -> None:
    found = json.loads((results / "gpu.json").read_text(encoding="utf-8"))
    assert found["header"]["command"].startswith("python -m benchmarks gpu --tiny")
    assert found["header"]["triton"]
    errors, of_pieces, steps, new, layers, pieces = found["tables"]
    for table in (errors, of_pieces):
        assert table["findings"] == {"rows that are not within": 0.0}, table["rows"]
        assert all(row[-1] == "yes" for row in table["rows"])
    assert len(errors["rows"]) == 6 and len(of_pieces["rows"]) == 5
    assert all(row[1] > 0 < row[2] for row in new["rows"])
    assert len(pieces["rows"]) == 10 and all(row[2] > 0 < row[3] for row in pieces["rows"])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("graph", ["uniform", "one hub"])
@pytest.mark.parametrize("layer", gpu.LAYERS)
def test_the_gate_at_its_real_sizes(layer: str, graph: str, dtype: torch.dtype) -> None:
    """With the kernels of the CPU, which are as right as those of a GPU have to be."""
    case = gpu.Case(layer, graph, 20_000, 4, 16, dtype)
    found, theirs = gpu.errors_of(case, "cpu")
    assert len(found) == len(theirs) == 3
    assert verdict(found, theirs, dtype) == "yes", (found, theirs)


def test_a_failed_gate_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def errors_of(case: gpu.Case, device: str) -> Any:
        if case.layer == "GATConv":
            return [0.0, 0.2, 0.0], [1e-7, 1e-2, 1e-7]
        raise RuntimeError("no kernel | for this")

    monkeypatch.setattr(gpu, "errors_of", errors_of)
    kept: list[int] = []
    report = gpu.Report("", keep=lambda report: kept.append(len(report.tables[0].rows)))
    gpu.measure_errors(report, "cpu", tiny=True)
    (table,) = report.tables
    assert [row[-1] for row in table.rows[:2]] == ["NO", "NO"]
    assert all(row[-1] == "failed: RuntimeError: no kernel / for this" for row in table.rows[2:])
    assert table.findings == {"rows that are not within": 6.0}
    assert kept == [1, 2, 3, 4, 5, 6, 6]  # as they come, and at the end


@no_gpu
def test_a_contender_that_fails_has_the_reason_in_its_cell() -> None:
    def broken(x: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate …")

    contenders = {"ours": torch.exp, "peer": broken}
    rows = list(measure("x", contenders, [(3,)], torch.float32, (1.0, None), "cpu", 1))
    for row in rows:
        assert row[2] > 0 and row[3] == "out of memory" and row[6] is None
    assert rows[0][8] == pytest.approx(rows[0][2] / 1.0) and rows[1][8] is None


@no_gpu
def test_a_run_that_is_cut_is_complete_as_far_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = gpu.measure_case, []

    def interrupted(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)

    for name in ("measure_errors", "measure_piece_errors", "measure_steps", "measure_new_graphs"):
        monkeypatch.setattr(gpu, name, lambda *_: None)
    monkeypatch.setattr(gpu, "measure_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        program.main(["gpu", "--tiny", "--out", str(tmp_path)])
    (table,) = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["tables"]
    assert len(table["rows"]) == 4 and table["findings"]
    assert (tmp_path / "gpu.md").read_text(encoding="utf-8").count("one hub") == 0


@no_gpu
def test_when_time_is_out_what_is_left_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("measured after the deadline")

    monkeypatch.setattr(gpu, "measure_case", never)
    report = gpu.Report("")
    gpu.measure_layers(report, gpu.tiny_cases(), "cpu", 1e9, tiny=True, deadline=0.0)
    assert all(str(case) in report.tables[0].note for case in gpu.tiny_cases())
    _gpu_pieces.measure_pieces(report, "cpu", 1e9, tiny=True, deadline=0.0)
    assert not report.tables[1].rows
    assert all(p.name in report.tables[1].note for p in _gpu_pieces.small("cpu", tokens=8))


@no_gpu
def test_the_cache_is_warmed_by_every_kind_of_case() -> None:
    kinds = {gpu._kind(case) for case in gpu.cases()}
    assert {kind.split(",")[0] for kind in kinds} == set(gpu.LAYERS) and len(kinds) < 20
    gpu.warm(["GATv2Conv,8,8,float32,2"], "cpu", 100)


def test_layers_are_compiled_once_for_graphs_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda layer: made.append(layer) or layer)
    compiler, cases = gpu.Compiler(), [case for case in gpu.cases() if case.compiled]
    for case in cases:
        compiler(case, torch.nn.Identity())
    assert len(made) == 5 and len(cases) == 10  # three layers, two of them with edge features too


@no_gpu
def test_variants_of_tiles(tmp_path: Path) -> None:
    assert program.main(["gpu", "--variants", "--tiny", "--out", str(tmp_path)]) == 0
    (table,) = json.loads((tmp_path / "gpu_variants.json").read_text(encoding="utf-8"))["tables"]
    assert [row[1:3] for row in table["rows"]] == [[1024, 4], [256, 1]]
    assert all(x > 0 for row in table["rows"] for x in row[3:]) and len(table["findings"]) == 2
    assert (run.TILE, run.WARPS) == (1024, 4)


def test_kernels_compiled_for_gpus_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read from what a process printed: to compile takes long, and is tested beside the kernels."""
    lines = [("GATv2Conv 8 × 8", _gpu_compile.Compiled("attend_rows", c, r, 0, 5, 21))
             for c, r in zip(_gpu_compile.CAPABILITIES, (70, 68, 66), strict=True)]  # fmt: skip
    monkeypatch.setattr(_gpu_compile, "in_a_process", lambda *_: iter(lines))
    assert program.main(["gpu", "--compile-only", "--out", str(tmp_path)]) == 0
    (table,) = json.loads((tmp_path / "gpu_compiled.json").read_text(encoding="utf-8"))["tables"]
    assert table["rows"] == [["GATv2Conv 8 × 8", "attend_rows", 70, 68, 66, 5, 5, 5, 21, 0]]


OTHERS = "pooch", "babel", "scipy", "safetensors", "matplotlib"
BLOCK = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def without(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code where there is nothing but torch, Triton and torch_geometric."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(names=OTHERS) + code, *arguments],
        cwd=Path(gpu.__file__).parents[1], capture_output=True, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_it_takes_no_more_than_it_needs(tmp_path: Path) -> None:
    code = "from benchmarks.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = without(code, "gpu", "--tiny", "--minutes", "0", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "gpu.json").exists()


def test_the_tests_of_a_gpu_take_no_more_than_they_need() -> None:
    code = "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = "-m", "gpu", "--co", "-q", "-p", "no:cacheprovider", "tests/attn_core"
    done = without(code, *arguments)
    assert done.returncode == 0 and "error" not in done.stdout, done.stdout
    assert "test_host_sync.py::test_a_training_step_on_a_known_graph" in done.stdout


def test_the_additive_pieces_are_large_enough_for_the_kernels() -> None:
    additive = [piece for piece in _gpu_pieces.small("cpu") if piece.name.startswith("additive")]
    for piece in additive:
        batch, queries, width = piece.shapes[0]
        assert batch * queries * queries * width > SMALLEST
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
