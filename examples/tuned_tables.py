"""Trains a published setting on its graph, run by run, and prints a row of the table.

    python -m examples.tuned_tables --graph cora                   # the tuned GAT, all its runs
    python -m examples.tuned_tables --graph minesweeper --runs 1
    python -m examples.tuned_tables --preset gat-sep --graph minesweeper
    python -m examples.tuned_tables --graph roman-empire --data roman_empire.npz
    python -m examples.tuned_tables --graph minesweeper --data my_own.npz    # with its settings

Settings are `gat.models.preset`'s; splits, epochs and how the best epoch is found are those of
their authors: the one that is best on the validation nodes. Stopped, the same command goes on.
"""

from __future__ import annotations

from examples.commands.tuned_tables import parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data
from torch_geometric.utils import add_self_loops, index_to_mask

from attn_core import Edges
from datasets import GraphFileError, from_npz, gnn_benchmark, heterophilous, planetoid
from datasets.node_benchmarks import GNN_BENCHMARK, HETEROPHILOUS
from examples.shared.files import UserError, prepare_folder
from examples.shared.graphs import fingerprint, with_sparse_features
from examples.shared.program import exit_status
from examples.shared.runner import Results, run_all
from examples.shared.tables import aligned, spread
from examples.shared.trainer import seed_everything
from gat.models import Preset, preset
from gat.models.presets import TUNED

PLANETOID = ("cora", "citeseer", "pubmed")
HETERO = "github.com/yandex-research/heterophilous-graphs, folder data,"
SHCHUR = "github.com/shchur/gnn-benchmark, folder data/npz,"
ORIGINS = {  # of graphs that are not downloaded
    "photo": SHCHUR,
    "coauthor-physics": SHCHUR,
    "wikics": "torch_geometric.datasets.WikiCS, write it with numpy.savez",
}
SPLIT_SEED = 123  # of the split that the authors of the tuned GAT drew for these
# What `train` returns
RESULT = {**dict.fromkeys(("val", "test", "seconds"), float), "epoch": int}


def load(graph: str, path: str | None = None) -> Data:
    """The graph, with masks `[N, splits]`; features as the authors of its settings have them.

    Args:
        graph: its name.
        path: of an npz file with it, or with another that takes its place (`datasets.from_npz`).

    Raises:
        UserError: the file cannot be read; or there is none, and the graph is not downloaded.
    """
    if path is not None:
        try:
            return from_npz(path)
        except GraphFileError as error:
            raise UserError(str(error)) from error
    if graph not in (*PLANETOID, *GNN_BENCHMARK, *HETEROPHILOUS):
        raise UserError(
            f"{graph} is not downloaded by this program: get it from {ORIGINS.get(graph, HETERO)} "
            "and name it with --data"
        )
    if graph in PLANETOID:
        data = planetoid(graph, normalize_features=False)
        masks = split_by_class(data.y, SPLIT_SEED)
        data.train_mask, data.val_mask, data.test_mask = (mask.unsqueeze(1) for mask in masks)
        return data
    return gnn_benchmark(graph) if graph in GNN_BENCHMARK else heterophilous(graph)


def on_its_graph(settings: Preset, data: Data, path: str | None) -> Preset:
    """The settings, with another graph in the place of theirs where a file was named."""
    if path is None:
        return settings
    two = int(data.y.max()) == 1
    return replace(
        settings, graph=data.name, published=None, deviation=None,
        metric=settings.metric if two else "accuracy",
    )  # fmt: skip


def split_by_class(
    y: Tensor, seed: int, labels: int = 20, num_val: int = 500, num_test: int = 1000
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of a split with so many labels of each class, drawn as the tuned GAT's authors do.

    >>> train, val, test = split_by_class(torch.arange(3).repeat(4), 0, 2, 3, 3)
    >>> int(train.sum()), int(val.sum()), int(test.sum())
    (6, 3, 3)
    """
    generator = torch.Generator().manual_seed(seed)
    train, others = [], []
    for label in y.unique():
        of_class = torch.nonzero(y == label).squeeze(1)
        drawn = of_class[torch.randperm(len(of_class), generator=generator)]
        train.append(drawn[:labels])
        others.append(drawn[labels:])
    rest = torch.cat(others)
    rest = rest[torch.randperm(len(rest), generator=generator)]
    parts = torch.cat(train), rest[:num_val], rest[num_val : num_val + num_test]
    of_train, of_val, of_test = (index_to_mask(part, size=len(y)) for part in parts)
    return of_train, of_val, of_test


def train(
    settings: Preset, data: Data, split: int, seed: int, step: Callable[[float], None], epochs: int
) -> dict[str, Any]:
    """One training: the scores of the epoch that is best on the validation nodes."""
    seed_everything(seed)
    x, pairs, y = data.x, data.edge_index, data.y
    if settings.source == TUNED:
        pairs = add_self_loops(pairs, num_nodes=len(y))[0]
    edges = Edges(pairs, len(y), len(y))
    masks = {name: data[f"{name}_mask"][:, split] for name in ("train", "val", "test")}
    model = settings.build(x.shape[1], int(y.max()) + 1)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    best = {"val": -1.0, "test": 0.0, "epoch": 0}
    started = time.perf_counter()
    for epoch in range(epochs):
        model.train()
        optimizer.zero_grad()
        loss = cross_entropy(model(x, edges)[masks["train"]], y[masks["train"]])
        loss = loss + getattr(model, "auxiliary_loss", float)()
        loss.backward()
        optimizer.step()
        val, test = evaluate(model, x, edges, y, (masks["val"], masks["test"]), settings.metric)
        if val > best["val"]:
            best = {"val": val, "test": test, "epoch": epoch}
        step(loss.item())
    return {**best, "seconds": time.perf_counter() - started}


@torch.no_grad()
def evaluate(
    model: nn.Module, x: Tensor, edges: Edges, y: Tensor, masks: Sequence[Tensor], metric: str
) -> list[float]:
    """The accuracy on the nodes of each mask, or the area under the ROC curve."""
    model.eval()
    out = model(x, edges)
    if metric == "roc_auc":
        share = out.softmax(-1)[:, 1]
        return [float(roc_auc_score(y[mask].numpy(), share[mask].numpy())) for mask in masks]
    right = out.argmax(-1) == y
    return [right[mask].double().mean().item() for mask in masks]


def run(args: argparse.Namespace) -> int:
    """Trains run after run, then prints the row."""
    try:
        settings = preset(args.preset, args.graph)
    except ValueError as error:
        raise UserError(str(error)) from error
    data = with_sparse_features(load(args.graph, args.data))
    settings = on_its_graph(settings, data, args.data)
    args.runs = args.runs or settings.runs
    args.out = args.out or f"runs/tuned/{args.preset}-{settings.graph}"
    epochs = args.epochs or settings.epochs
    prepare_folder(Path(args.out))
    splits = data.train_mask.shape[1]

    def work(name: str, seed: int, step: Callable[[float], None]) -> tuple[dict[str, Any], None]:
        return train(settings, data, seed % splits, seed, step, epochs), None

    found = run_all(args, {args.preset: epochs}, work, RESULT, metrics, fingerprint(data))
    print(table(settings, found.results[args.preset]))
    return 0 if found.complete else 130


def metrics(results: Results) -> dict[str, Any]:
    """What metrics.json says."""
    return {"runs": results}


def table(settings: Preset, results: Sequence[dict[str, Any]]) -> str:
    """The row: what was published, what was found here, how long it took."""
    published = "–" if settings.published is None else f"{settings.published:.2f}"
    if settings.deviation is not None:
        published += f" ± {settings.deviation:.2f}"
    head = ["", f"test {settings.metric}, %", "validation", "published", "runs", "seconds a run"]
    test, val = (spread([100 * r[name] for r in results], 2) for name in ("test", "val"))
    seconds = spread([r["seconds"] for r in results], 0)
    name = f"{settings.name}, {settings.graph}"
    return aligned([head, [name, test, val, published, str(len(results)), seconds]])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)), flush_denormal=True)


if __name__ == "__main__":
    sys.exit(main())
