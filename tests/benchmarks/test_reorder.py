"""The benchmark of gat.transforms.Reorder: what is timed gives each node the same."""

from __future__ import annotations

import json
from pathlib import Path

import benchmarks.__main__ as program
from benchmarks.reorder import METHODS


def test_every_method_is_timed_on_the_same_graph(tmp_path: Path) -> None:
    assert program.main(["reorder", "--tiny", "--out", str(tmp_path)]) == 0
    (table,) = json.loads((tmp_path / "reorder.json").read_text())["tables"]
    assert [row[0] for row in table["rows"]] == ["grid, as it comes", "grid, drawn"]
    assert len(table["columns"]) == 4 + 2 * len(METHODS)
    assert all(number > 0 for row in table["rows"] for number in row[1:])
