"""The notebooks of docs/notebooks run, and what their texts say of the outcome is so."""

from __future__ import annotations

import ast
import csv
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
CELL = re.compile(r"^```\{code-cell\}.*?\n(.*?)^```$", re.S | re.M)
INSTALLED = {"attn_core", "gat", "sequence_attn", "torch", "torch_geometric"}
EXTRA = {"matplotlib", "networkx", "numpy", "sklearn"}  # what gat-attention[plot] brings


def attention_from_scratch(names: dict[str, Any]) -> None:
    assert torch.allclose(names["read"].output.flatten(), names["answer"].flatten())
    assert names["edges"].num_edges == 15
    assert names["gap"] < 1e-6
    assert names["right"] >= 28  # of 32


def own_csv(names: dict[str, Any]) -> None:
    assert names["network"] > 0.9
    assert names["network"] > names["features_only"]
    with open(names["folder"] / "predicted.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 178
    assert {row["label"] for row in rows} == set(names["classes"])


def translate_dates(names: dict[str, Any]) -> None:
    assert names["right"] >= 490  # of 500
    assert names["alignment"].shape == (10, 13)
    year, month, day = names["alignment"][:4], names["alignment"][5:7], names["alignment"][8:]
    assert year[:, 9:].sum(-1).min() > 0.5  # of "09 march 1987"
    assert month[:, 3:9].sum(-1).min() > 0.5
    assert day[:, :2].sum(-1).min() > 0.5


def look_inside(names: dict[str, Any]) -> None:
    gat, gatv2 = names["found"]
    assert gat <= 2
    assert gatv2 == 8
    assert names["both"][0].max() < 0.5  # it prefers none
    given, moved = names["given"], names["moved"]
    assert given.index(max(given)) == moved.index(max(moved))


def from_torch_geometric(names: dict[str, Any]) -> None:
    assert names["gap"] < 1e-5
    assert (names["weights"] == 0).float().mean() > 0.5
    assert torch.equal(names["into"][1].unique(), names["some"])


FACTS: list[Callable[[dict[str, Any]], None]] = [
    attention_from_scratch,
    own_csv,
    translate_dates,
    look_inside,
    from_torch_geometric,
]


def cells(page: Path) -> list[str]:
    return CELL.findall(page.read_text(encoding="utf-8"))


SLOW = {translate_dates}


@pytest.mark.parametrize(
    "facts",
    [pytest.param(f, marks=[pytest.mark.slow] if f in SLOW else [], id=f.__name__) for f in FACTS],
)
def test_a_notebook_runs_and_its_text_is_true(
    facts: Callable[[dict[str, Any]], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    page = FOLDER / f"{facts.__name__.replace('_', '-')}.md"
    names: dict[str, Any] = {}
    try:
        for number, cell in enumerate(cells(page)):
            exec(compile(cell, f"{page.name}, cell {number}", "exec"), names)
    finally:
        plt.close("all")
    facts(names)


def test_every_notebook_is_run_and_needs_only_what_is_installed() -> None:
    pages = {page.stem: cells(page) for page in FOLDER.glob("*.md") if cells(page)}
    assert set(pages) == {facts.__name__.replace("_", "-") for facts in FACTS}
    for code in pages.values():
        imported = set()
        for node in ast.walk(ast.parse("\n".join(code))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
        assert imported <= INSTALLED | EXTRA | set(sys.stdlib_module_names)


def test_a_download_has_the_cells_and_no_dead_links() -> None:
    conf = runpy.run_path(str(FOLDER.parent / "conf.py"))
    for page in FOLDER.glob("*.md"):
        alone = conf["lead"](page.read_text(encoding="utf-8"), page.parent, pages=False)
        assert CELL.findall(alone) == cells(page)
        assert not re.search(r"\]\(\.", alone)
