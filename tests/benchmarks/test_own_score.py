"""The benchmark of score functions: only equals are compared, and only what was compiled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as program
from benchmarks import own_score


def test_writes_a_row_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_score, "BUILT_IN", ("additive",))
    monkeypatch.setattr(own_score, "OTHERS", ("distance",))
    assert program.main(["own_score", "--tiny", "--no-memory", "--out", str(tmp_path)]) == 0
    tables = json.loads((tmp_path / "own_score.json").read_text())["tables"]
    names = [[row[0] for row in table["rows"]] for table in tables]
    assert names == [
        ["additive, built in", "additive, compiled"],
        ["distance, compiled", "distance, torch, in blocks"],
    ]
    for table in tables:
        assert all(row[1] > 0 < row[2] for row in table["rows"])
