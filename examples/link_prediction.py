"""Trains a graph attention network to tell which papers cite each other, and prints a table.

    python -m examples.link_prediction                   # Cora, 10 splits
    python -m examples.link_prediction --dataset citeseer --runs 3

A tenth of the edges is hidden for the test and a twentieth for validation, each beside as many
pairs without an edge; what is learned sees neither (Kipf, Welling, "Variational Graph
Auto-Encoders", 2016). The encoder is a GAT; a pair is scored by the product of what its two ends
come to. Stopped, the same command goes on.
"""

from __future__ import annotations

from examples.commands.link_prediction import parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch_geometric.data import Data
from torch_geometric.utils import negative_sampling, to_undirected

from attn_core import Edges
from datasets import planetoid
from examples.shared.files import prepare_folder
from examples.shared.graphs import with_sparse_features
from examples.shared.program import exit_status
from examples.shared.runner import Results, run_all
from examples.shared.tables import aligned, percent
from examples.shared.trainer import seed_everything
from gat import GAT

# AUC and AP in % of Kipf and Welling (2016), table 1: the graph auto-encoder (GAE)
PUBLISHED = {"cora": (91.0, 92.0), "citeseer": (89.5, 89.9), "pubmed": (96.4, 96.5)}
# What `train` returns
RESULT = {**dict.fromkeys(("auc", "ap", "val", "seconds"), float), "epoch": int}


class Links(NamedTuple):
    """Pairs of nodes `[2, P]`: with an edge between them, and as many without."""

    edges: Tensor
    others: Tensor


class Split(NamedTuple):
    """What a training sees, and what it is judged by.

    Attributes:
        edges: those that are not hidden, each once.
        val, test: what is hidden.
    """

    edges: Tensor
    val: Links
    test: Links


def split_links(data: Data, seed: int) -> Split:
    """Hides a twentieth of the edges for validation, a tenth for the test."""
    generator = torch.Generator().manual_seed(seed)
    source, target = data.edge_index
    edges = data.edge_index[:, source < target]  # each once
    edges = edges[:, torch.randperm(edges.shape[1], generator=generator)]
    num_val, num_test = edges.shape[1] // 20, edges.shape[1] // 10
    hidden = num_val + num_test
    nodes = data.num_nodes
    known = set((edges[0] * nodes + edges[1]).tolist())
    others: list[int] = []
    while len(others) < hidden:
        low, high = torch.randint(nodes, (2, 2 * hidden), generator=generator).sort(0).values
        for pair in (low * nodes + high)[low < high].tolist():
            if pair not in known and len(others) < hidden:
                known.add(pair)
                others.append(pair)
    drawn = torch.tensor(others)
    pairs = torch.stack([drawn // nodes, drawn % nodes])
    val = Links(edges[:, :num_val], pairs[:, :num_val])
    return Split(edges[:, hidden:], val, Links(edges[:, num_val:hidden], pairs[:, num_val:]))


def scores(z: Tensor, pairs: Tensor) -> Tensor:
    """The logit of an edge between the two nodes of each pair, `[P]`."""
    return (z[pairs[0]] * z[pairs[1]]).sum(-1)


def judged(z: Tensor, links: Links) -> tuple[float, float]:
    """The area under the ROC curve, and the average precision."""
    found = torch.cat([scores(z, links.edges), scores(z, links.others)]).numpy()
    truth = [1] * links.edges.shape[1] + [0] * links.others.shape[1]
    return float(roc_auc_score(truth, found)), float(average_precision_score(truth, found))


def train(
    args: argparse.Namespace, data: Data, seed: int, step: Callable[[float], None]
) -> dict[str, Any]:
    """One training: the scores of the epoch whose AUC is best in validation."""
    seed_everything(seed)
    split = split_links(data, seed)
    pairs = to_undirected(split.edges, num_nodes=data.num_nodes)
    graph = Edges(pairs, data.num_nodes, data.num_nodes)
    model = GAT(
        data.num_features, args.hidden, 2, args.channels, dropout=args.dropout,
        attention_dropout=0.0, act="elu", heads=4, out_heads=1,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    best = {"val": -1.0, "auc": 0.0, "ap": 0.0, "epoch": 0}
    started = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        optimizer.zero_grad()
        z = model(data.x, graph)
        others = negative_sampling(pairs, data.num_nodes, split.edges.shape[1])
        logits = torch.cat([scores(z, split.edges), scores(z, others)])
        truth = torch.zeros_like(logits)
        truth[: split.edges.shape[1]] = 1
        loss = binary_cross_entropy_with_logits(logits, truth)
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            z = model(data.x, graph)
        val, _ = judged(z, split.val)
        if val > best["val"]:
            auc, ap = judged(z, split.test)
            best = {"val": val, "auc": auc, "ap": ap, "epoch": epoch}
        step(loss.item())
    return {**best, "seconds": time.perf_counter() - started}


def run(args: argparse.Namespace) -> int:
    """Trains from seed after seed, then prints the table."""
    args.out = args.out or f"runs/links/{args.dataset}"
    prepare_folder(Path(args.out))
    data = with_sparse_features(planetoid(args.dataset))

    def work(name: str, seed: int, step: Callable[[float], None]) -> tuple[dict[str, Any], None]:
        return train(args, data, seed, step), None

    found = run_all(args, {"gat": args.epochs}, work, RESULT, metrics)
    print(table(args.dataset, found.results["gat"]))
    return 0 if found.complete else 130


def metrics(results: Results) -> dict[str, Any]:
    """What metrics.json says."""
    return {"runs": results}


def table(dataset: str, results: Sequence[dict[str, Any]]) -> str:
    """AUC and AP on the hidden edges, over the splits."""
    splits = f"{len(results)} split{'s' * (len(results) > 1)}"
    auc, ap = PUBLISHED[dataset]
    found = [percent([r[name] for r in results]) for name in ("auc", "ap")]
    return aligned([
        [f"{dataset}, {splits}", "AUC, %", "AP, %"],
        ["GAT", *found],
        ["GAE, as published", f"{auc:.1f}", f"{ap:.1f}"],
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)), flush_denormal=True)


if __name__ == "__main__":
    sys.exit(main())
