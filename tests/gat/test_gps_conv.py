"""GPSConv: torch_geometric's numbers, with our attention as the global part."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_geometric.nn

import gat.conv.gps_conv
from gat import GATConv, GPSConv
from tests.gat.conftest import EDGES, TOLERANCE, assert_same_calls

BATCHES = [None, torch.tensor([0, 0, 0, 1, 1, 2])]


def make(cls: type, **options: Any) -> Any:
    conv = GATConv if cls is GPSConv else torch_geometric.nn.GATConv
    return lambda: cls(8, conv(8, 8) if options.pop("local", True) else None, **options)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("options", [
    {}, {"heads": 4}, {"norm": None, "heads": 2}, {"norm": "layer_norm"}, {"norm": "graph_norm"},
    {"act": "elu", "act_kwargs": {"alpha": 0.5}}, {"local": False, "heads": 2},
    {"attn_kwargs": {"bias": False}}, {"attn_kwargs": {"add_bias_kv": True}},
    {"attn_kwargs": {"add_zero_attn": True}},
])  # fmt: skip
def test_agrees_over_options(twins: Any, options: dict[str, Any], batch: Any) -> None:
    for training, dtype in ((t, d) for t in (True, False) for d in TOLERANCE):
        classes = [make(cls, **options) for cls in (GPSConv, torch_geometric.nn.GPSConv)]
        layers = twins(classes=classes, dtype=dtype)
        for layer in layers:
            layer.train(training)
        x = torch.randn(6, 8, dtype=dtype)
        assert_same_calls(*layers, lambda layer, x: layer(x, EDGES, batch), x)


@pytest.mark.parametrize("batch", BATCHES)
def test_performers_are_theirs(twins: Any, batch: Any) -> None:
    options = {"attn_type": "performer", "heads": 2}
    classes = [make(cls, **options) for cls in (GPSConv, torch_geometric.nn.GPSConv)]
    layers = twins(classes=classes, dtype=torch.float32)
    assert_same_calls(*layers, lambda layer, x: layer(x, EDGES, batch), torch.randn(6, 8))


def test_attend_is_what_attends_unless_somebody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, attend = [], gat.conv.gps_conv.attend
    monkeypatch.setattr(
        gat.conv.gps_conv, "attend", lambda *a, **k: calls.append(k) or attend(*a, **k)
    )
    layer, x = GPSConv(8, None, 2).eval(), torch.randn(6, 8)
    out = layer(x, EDGES)
    assert len(calls) == 1
    seen = []
    layer.attn.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(layer(x, EDGES), out)
    assert len(calls) == len(seen) == 1


def test_a_graph_of_a_batch_sees_nothing_of_the_others() -> None:
    layer = GPSConv(8, GATConv(8, 8), 2, norm="layer_norm", norm_kwargs={"mode": "node"}).eval()
    x, batch = torch.randn(6, 8), torch.tensor([0, 0, 0, 1, 1, 1])
    edges = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 0, 4, 3]])
    first = layer(x[:3], edges[:, :3])
    torch.testing.assert_close(layer(x, edges, batch)[:3], first)
