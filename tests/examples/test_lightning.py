"""The LightningModule."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="needs the extra gat-attention[lightning]")

from examples import lightning as example


@pytest.mark.filterwarnings("ignore")
def test_learns_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where Lightning keeps its checkpoints
    assert example.main(epochs=30) > 0.8  # one digit for all: 0.1
