"""The benchmark of encoder–decoders: it runs, and compares equals."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import __main__ as program
from benchmarks import _translators, _worker
from benchmarks._translators import KINDS, PEERS
from benchmarks._worker import Contender, fill


def made_by(folder: Path, *parts: str) -> list[dict[str, Any]]:
    assert program.main(["seq2seq", "--tiny", "--only", *parts, "--out", str(folder)]) == 0
    found: list[dict[str, Any]] = json.loads((folder / "seq2seq.json").read_text())["tables"]
    assert all(len(row) == len(table["columns"]) for table in found for row in table["rows"])
    return found


def test_makes_every_table(tmp_path: Path) -> None:
    training, models, decoding = made_by(tmp_path, "training", "models", "decoding")
    assert training["rows"][0][-1] == 1 and len(models["rows"]) == 5
    assert [row[0] for row in decoding["rows"]] == ["with caches, beam 1", "without, beam 1"]


inputs = cache(_translators.inputs)


def beside(folder: Path, maker: str | None) -> dict[str, Any]:
    """The table of peers, of which Joey NMT is made by this, and OpenNMT-py is not there."""
    module, option, _ = PEERS["Joey NMT"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_translators, "inputs", inputs)
        patch.setattr(_worker, "SHORT", 0.0)  # each is timed once
        patch.setattr(_translators, "python_with", lambda asked, *_: (
            sys.executable if maker and asked == module else None
        ))  # fmt: skip
        patch.setitem(PEERS, "Joey NMT", (module, option, maker or ""))
        (table,) = made_by(folder, "peers")
    return table


def same(inputs: str) -> Contender:
    """A peer that computes what it should."""
    contender = _translators.translation(inputs)
    contender.facts = {**contender.facts, "version": "0.stand-in"}
    return contender


def larger(inputs: str) -> Contender:
    """One whose numbers are a little larger."""
    contender = _translators.translation(inputs)
    results = contender.results
    contender.results = lambda: {name: 1.01 * x for name, x in results().items()}
    return contender


@pytest.mark.usefixtures("in_this_process")
def test_says_which_peers_are_left_out(tmp_path: Path) -> None:
    table = beside(tmp_path, None)
    assert [row[:2] for row in table["rows"]] == [[kind, "ours"] for kind in KINDS.values()]
    assert all(number > 0 for row in table["rows"] for number in row[2:])
    for name, (_, option, _) in PEERS.items():
        assert f"{name} is not among them: {option} names" in table["note"]


@pytest.mark.usefixtures("in_this_process")
def test_peers_stand_beside_ours_if_they_compute_the_same(tmp_path: Path) -> None:
    table = beside(tmp_path, f"{__name__}:same")
    names = [[kind, name] for kind in KINDS.values() for name in ("ours", "Joey NMT")]
    assert [row[:2] for row in table["rows"]] == names
    assert all(row[5] == row[8] == 1 for row in table["rows"][::2])
    assert "Joey NMT 0.stand-in. OpenNMT-py is not among them" in table["note"]
    with pytest.raises(AssertionError, match="Joey NMT and ours do not compute the same"):
        beside(tmp_path, f"{__name__}:larger")


def test_a_model_gets_all_parameters_or_none_is_forgotten() -> None:
    model, given = nn.Linear(2, 1), {"map.w": torch.ones(2), "map.bias": torch.zeros(1)}
    fill(model, given, {"weight": "map.w", "bias": "map.bias"})
    assert model(torch.ones(2)).item() == 2
    with pytest.raises(ValueError, match="no place for more"):
        fill(model, {**given, "more": torch.ones(1)}, {"weight": "map.w", "bias": "map.bias"})
    with pytest.raises(KeyError, match="bias"):
        fill(model, {"map.w": torch.ones(2)}, {"weight": "map.w"})
