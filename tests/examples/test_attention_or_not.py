"""One body with each kind of attention: what it hears, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from attn_core import Edges
from examples import attention_or_not as program
from examples import tuned_tables
from examples.attention_or_not import NAMES, Network, setting
from gat.models import preset
from tests.examples.test_tuned_tables import graph

EDGES = torch.tensor([[0, 1, 2, 0, 1, 2], [1, 0, 1, 0, 1, 2]])


@pytest.mark.parametrize("kind", NAMES)
def test_only_the_mlp_hears_nothing(kind: str) -> None:
    network = Network(kind, 4, 3, 8, 2, 0.0, None, True)
    x = torch.randn(3, 4)
    other = x.clone()
    other[2] += 1  # a neighbour of 1, not of 0
    edges = Edges(EDGES, 3, 3)
    network.eval()
    changed = (network(x, edges) - network(other, edges)).abs().amax(1) > 1e-6
    assert changed.tolist() == ([False, False, True] if kind == "mlp" else [True, True, True])
    network.train()
    (network(x, edges).sum() + network.auxiliary_loss()).backward()
    unused = "lin_skip"  # TransformerConv has it even where it adds nothing
    assert all(p.grad is not None for n, p in network.named_parameters() if unused not in n)


@pytest.mark.parametrize("name", ["minesweeper", "roman-empire"])
def test_gat_in_this_body_is_the_tuned_gat(name: str) -> None:
    settings = preset("tuned-gat", name)
    ours, tuned = (made.build(4, 3).eval() for made in (setting("gat", settings), settings))
    names = {"lins": "skips", "out": "lin"}
    state = {}
    for name, value in ours.state_dict().items():
        part, _, rest = name.partition(".")
        rest = rest.replace(".", ".module.", 1) if part == "norms" else rest
        state[f"{names.get(part, part)}.{rest}"] = value
    tuned.load_state_dict(state)
    x, edges = torch.randn(3, 4), Edges(EDGES, 3, 3)
    torch.testing.assert_close(ours(x, edges), tuned(x, edges))


def test_the_mean_of_gcn_is_that_of_its_paper() -> None:
    network = Network("gcn", 4, 3, 8, 1, 0.0, None, False).eval()
    x, (j, i) = torch.randn(3, 4), EDGES
    h, degree = network.convs[0].lin(x), torch.tensor([2.0, 3.0, 1.0])
    norm = (degree[i] * degree[j]).rsqrt()
    heard = torch.zeros_like(h).index_add(0, i, norm[:, None] * h[j])
    torch.testing.assert_close(network(x, Edges(EDGES, 3, 3)), network.out(F.relu(heard)))


def test_a_table_of_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "load", lambda *_: graph())
    seen = []
    monkeypatch.setattr(program, "train", lambda settings, *rest: seen.append(settings.name) or
                        tuned_tables.train(settings, *rest))  # fmt: skip
    words = ["--models", "supergat", "gcn", "mlp", "--runs", "2", "--epochs", "2"]
    assert program.main([*words, "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == ["SuperGAT", "GCN", "MLP"]
    assert seen == ["supergat", "gcn", "mlp"] * 2
    found = json.loads((tmp_path / "metrics.json").read_text())["runs"]
    assert {name: len(runs) for name, runs in found.items()} == dict.fromkeys(seen, 2)
