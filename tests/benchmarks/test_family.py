"""The benchmark of the whole family: every layer is compared with its equal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as program
from benchmarks import family


def test_writes_a_row_for_each_layer(tmp_path: Path) -> None:
    assert program.main(["family", "--tiny", "--out", str(tmp_path)]) == 0
    (table,) = json.loads((tmp_path / "family.json").read_text())["tables"]
    assert [row[0] for row in table["rows"]] == list(family._CASES)
    for _, ours, theirs, times in table["rows"]:
        assert ours > 0 < theirs and times == pytest.approx(theirs / ours)  # of one round


def test_layers_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    import gat

    forward = gat.FAConv.forward
    monkeypatch.setattr(gat.FAConv, "forward", lambda *a: forward(*a) + 1)
    with pytest.raises(AssertionError, match="not close"):
        family._times("FAConv", family.TINY)


def test_graphs_of_20_types_of_edges_lead_to_every_type_of_nodes() -> None:
    torch.manual_seed(0)
    _, (_, _, (names, types), _), _, (x, pairs) = family._CASES["HGTConv"](family.TINY)
    assert len(types) == len(set(types)) == 20 == len(pairs)
    assert {kind[-1] for kind in types} == {kind[0] for kind in types} == set(names) == set(x)
