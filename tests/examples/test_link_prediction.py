"""Links: which are hidden, how they are judged, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from examples import link_prediction as program
from examples.link_prediction import Links, judged, split_links


def graph() -> Data:
    """Two groups of 20 nodes, with edges inside of each alone."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(20, (2, 150), generator=generator)
    pairs = pairs[:, pairs[0] != pairs[1]]
    pairs = to_undirected(torch.cat([pairs, pairs + 20], dim=1))
    return Data(x=torch.eye(2).repeat_interleave(20, 0), edge_index=pairs, num_nodes=40)


def as_set(pairs: torch.Tensor) -> set[Any]:
    return {tuple(sorted(pair)) for pair in pairs.t().tolist()}


def test_what_is_hidden_is_not_seen_and_each_pair_is_there_once() -> None:
    data = graph()
    every = as_set(data.edge_index)
    split = split_links(data, 0)
    seen, val, test = map(as_set, (split.edges, split.val.edges, split.test.edges))
    assert seen | val | test == every and len(seen) + len(val) + len(test) == len(every)
    assert (len(val), len(test)) == (len(every) // 20, len(every) // 10)
    others = [as_set(links.others) for links in (split.val, split.test)]
    assert list(map(len, others)) == [len(val), len(test)]
    assert not (others[0] & others[1]) and not ((others[0] | others[1]) & every)
    assert all(i != j for pairs in others for i, j in pairs)
    again, another = split_links(data, 0), split_links(data, 1)
    assert torch.equal(again.edges, split.edges) and not torch.equal(another.edges, split.edges)


def test_judged_by_rank_as_worked_out_by_hand() -> None:
    z = torch.tensor([[1.0], [2.0], [3.0], [-1.0]])
    # Products: edges 6 and 2, others 3 and -3; of the four comparisons three are right
    links = Links(torch.tensor([[1, 0], [2, 1]]), torch.tensor([[0, 2], [2, 3]]))
    auc, precision = judged(z, links)
    assert auc == pytest.approx(3 / 4)
    assert precision == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_groups_are_found_printed_and_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "planetoid", lambda name: graph())
    words = ["--runs", "2", "--epochs", "30", "--hidden", "16", "--dropout", "0"]
    assert program.main([*words, "--out", str(tmp_path)]) == 0
    head, _, row, published = capsys.readouterr().out.splitlines()
    assert head.startswith("cora, 2 splits") and row.startswith("GAT")
    assert published.split() == ["GAE,", "as", "published", "91.0", "92.0"]
    found = json.loads((tmp_path / "metrics.json").read_text())["runs"]["gat"]
    assert all(run["auc"] > 0.6 for run in found)  # half of the others lie across the groups
