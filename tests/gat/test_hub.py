"""Models in a folder or on a hub: parameters, settings, and a card."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

import gat

pytest.importorskip("huggingface_hub", reason="needs the extra gat-attention[hub]")

from gat import hub

X, EDGES = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]])
OPTIONS = {
    "GAT": {"negative_slope": 0.1, "heads": 2},
    "GATv2": {"norm": "layer_norm", "residual": True},
    "GraphTransformer": {"jk": "cat", "feed_forward": 16},
    "AGNN": {"dropout": 0.5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_comes_back_with_its_settings_and_numbers(name: str, tmp_path: Path) -> None:
    model = getattr(hub, name)(4, 8, 2, 3, **OPTIONS[name]).eval()
    model.save_pretrained(tmp_path)
    again = getattr(hub, name).from_pretrained(tmp_path)
    assert isinstance(again, getattr(gat, name)) and again.config == model.config
    assert torch.equal(again(X, EDGES), model(X, EDGES))
    assert json.loads((tmp_path / "config.json").read_text()).items() >= OPTIONS[name].items()


def test_the_parameters_are_those_of_the_plain_model(tmp_path: Path) -> None:
    model, plain = hub.GAT(4, 8, 2, 3).eval(), gat.GAT(4, 8, 2, 3).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(X, EDGES), model(X, EDGES))


def test_the_card_gives_data_settings_and_scores(tmp_path: Path) -> None:
    told = {"data": "Cora, public split", "scores": {"test accuracy": "83.0 ± 0.4 %"}}
    hub.GAT(4, 8, 2, 3, heads=2).save_pretrained(tmp_path, model_card_kwargs=told)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    for line in (
        "- **Data**: Cora, public split",
        "  - test accuracy: 83.0 ± 0.4 %",
        "  - heads: 2",
        "  - hidden_channels: 8",
        "library_name: gat-attention",
        "model = GAT.from_pretrained(",
    ):
        assert line in card


def test_parameters_of_another_model_are_an_error(tmp_path: Path) -> None:
    hub.GAT(4, 8, 2, 3).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"loading state_dict for AGNN(.|\n)*Missing key"):
        hub.AGNN.from_pretrained(tmp_path)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "gat.hub")
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'gat-attention\[hub\]'"):
        importlib.import_module("gat.hub")
