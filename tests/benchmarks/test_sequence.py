"""The benchmark of sequence attention: it runs, compares equals, and says where it ran."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import __main__ as program
from benchmarks import _processes, sequence
from benchmarks._measure import Timings, assert_agree, peak_memory, stopwatch, take_turns
from benchmarks.baselines import blocked_window


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "peak_memory", run_here)
        conftest = importlib.import_module("tests.benchmarks.conftest")
        patch.setattr(_processes, "Process", conftest.InThisProcess)
        assert program.main(["sequence", "--tiny", "--out", str(folder)]) == 0
    return folder


def run_here(task: str, **arguments: Any) -> tuple[int, float]:
    """The task in this process; its memory is 1 MiB."""
    module, function = task.split(":")
    run = getattr(importlib.import_module(module), function)(**arguments)
    return 2**20, stopwatch(run)


def test_writes_every_table_with_where_it_was_measured(results: Path) -> None:
    found = json.loads((results / "sequence.json").read_text(encoding="utf-8"))
    assert found["header"]["torch"] == torch.__version__
    assert found["header"]["command"].startswith("python -m benchmarks sequence --tiny")
    text = (results / "sequence.md").read_text(encoding="utf-8")
    for table in found["tables"]:
        assert f"## {table['title']}" in text
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
        numbers = [x for row in table["rows"] for x in row if isinstance(x, float)]
        assert numbers and min(numbers) >= 0
    layers = [row[0] for row in found["tables"][-1]["rows"]]
    assert [name.split()[0] for name in layers] == [
        "recurrent", "convolutional", "self-attention", "restricted",
    ]  # fmt: skip


def test_draws_the_memory(results: Path) -> None:
    assert (results / "window_memory.png").read_bytes().startswith(b"\x89PNG")
    assert "![Memory of windowed attention" in (results / "sequence.md").read_text(encoding="utf-8")


def test_one_part_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sequence", "--tiny", "--only", "costs", "--out", str(tmp_path)]
    assert program.main(arguments) == 0
    assert capsys.readouterr().out.count("## ") == 1
    assert not (tmp_path / "window_memory.png").exists()


def of_natten(scale: float = 1.0) -> SimpleNamespace:
    """What the benchmark asks of NATTEN, in plain torch: images are `[1, H, height, width, D]`."""

    def near(image: Tensor, kernel: int) -> Tensor:  # [1, H, height, width, kernel², D]
        size = image.shape[2]
        first = (torch.arange(size) - kernel // 2).clamp(0, size - kernel)
        seen = first[:, None] + torch.arange(kernel)
        found = image[:, :, seen][..., seen, :]  # [1, H, height, kernel, width, kernel, D]
        return found.transpose(3, 4).flatten(4, 5)

    def na2d_qk(query: Tensor, key: Tensor, kernel: int) -> Tensor:
        return scale * (near(key, kernel) @ query[..., None])[..., 0]

    def na2d_av(weights: Tensor, value: Tensor, kernel: int) -> Tensor:
        return (weights[..., None, :] @ near(value, kernel))[..., 0, :]

    functional = SimpleNamespace(na2d_qk=na2d_qk, na2d_av=na2d_av)
    return SimpleNamespace(__version__="0.stand-in", functional=functional)


def neighborhoods(folder: Path, natten: SimpleNamespace | None) -> Any:
    """The table of neighbourhoods, where NATTEN is this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "python_with", lambda *_: natten and sys.executable)
        for name in ("natten", "natten.functional"):
            patch.setitem(sys.modules, name, natten)
        arguments = ["sequence", "--tiny", "--only", "neighborhood", "--out", str(folder)]
        assert program.main(arguments) == 0
    (table,) = json.loads((folder / "sequence.json").read_text(encoding="utf-8"))["tables"]
    return table


@pytest.mark.usefixtures("in_this_process")
def test_neighborhoods_beside_natten(tmp_path: Path) -> None:
    table = neighborhoods(tmp_path, of_natten())
    assert [row[1] for row in table["rows"]] == ["ours", "torch, dense, float mask", "NATTEN"]
    assert table["rows"][0][3] == 1 and min(table["rows"][2][2:6]) > 0
    assert "NATTEN 0.stand-in" in table["note"] and "not among them" not in table["note"]
    table = neighborhoods(tmp_path, None)
    assert [row[1] for row in table["rows"]] == ["ours", "torch, dense, float mask"]
    assert "NATTEN is not among them: --natten-python" in table["note"]
    with pytest.raises(AssertionError, match="NATTEN and ours do not compute the same output"):
        neighborhoods(tmp_path, of_natten(scale=1.001))


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert program.main(["sequence", "--tiny", "--out", str(tmp_path / "file" / "x")]) == 2
    assert "cannot create the folder" in capsys.readouterr().err


def test_memory_is_that_of_the_run_alone() -> None:
    made, _ = peak_memory("tests.benchmarks.conftest:allocate", megabytes=64)
    assert 60e6 < made < 90e6


def test_contenders_take_turns() -> None:
    order: list[str] = []
    timings = take_turns({name: lambda n=name: order.append(n) for name in "ab"}, 2, warm_up=1)
    assert order == list("ababab") and len(timings.seconds["a"]) == 2


def test_ratios_are_of_neighbours_in_time() -> None:
    timings = Timings({"a": [2.0, 60.0, 8.0], "b": [1.0, 20.0, 4.0]})
    assert timings.ratio("a", to="b") == 2  # the second round was slow for both


def test_only_equals_are_compared() -> None:
    with pytest.raises(AssertionError, match="b and a do not compute the same"):
        assert_agree({"a": lambda: torch.zeros(2), "b": lambda: torch.ones(2)})


def test_the_blocked_baseline_is_attention_with_a_band_mask() -> None:
    query, key, value = (torch.randn(2, 37, 3, 8) for _ in range(3))
    band = (torch.arange(37) - torch.arange(37)[:, None]).abs() <= 5
    heads = (x.transpose(1, 2) for x in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads, band).transpose(1, 2)
    torch.testing.assert_close(blocked_window(query, key, value, 5, block=8), expected)
