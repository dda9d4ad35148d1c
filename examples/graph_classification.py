"""Trains a graph attention network to classify whole graphs, over ten folds.

    python -m examples.graph_classification                       # PROTEINS
    python -m examples.graph_classification --collection NCI1 --layers 4
    python -m examples.graph_classification --pool mean --runs 3

Each fold tests on a tenth of the graphs, of which no choice depends: a tenth of the others says
which epoch counts (Errica, Podda, Bacciu, Micheli, "A Fair Comparison of Graph Neural Networks for
Graph Classification", ICLR 2020; their folds are others, and they also choose settings in each).
Beside it stand a bag of node labels, which sees no edges, and numbers of that paper. Stopped, the
same command goes on.
"""

from __future__ import annotations

from examples.commands.graph_classification import FOLDS, parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import cross_entropy

from attn_core import Edges
from datasets import tudataset
from examples.shared.files import prepare_folder
from examples.shared.program import exit_status
from examples.shared.runner import Results, run_all
from examples.shared.tables import aligned, percent
from examples.shared.trainer import seed_everything
from gat import GAT

# Test accuracy in %, Errica et al. (2020): without edges, and GIN. On ENZYMES they have 18 numbers
# for each node beside its label, which are not in this file.
PUBLISHED = {"PROTEINS": (75.8, 73.3), "NCI1": (69.8, 80.0), "ENZYMES": (65.2, 59.6)}
# What `train` returns
RESULT = {**dict.fromkeys(("test", "val", "bag", "seconds"), float), "epoch": int}


class Graph(NamedTuple):
    """A graph; its edges are sorted once, when it is read."""

    x: Tensor
    edges: Edges
    y: int


class Joined(NamedTuple):
    """A batch of graphs as one without edges between them."""

    x: Tensor
    edges: Edges
    y: Tensor
    graph: Tensor  # of each node

    @classmethod
    def of(cls, graphs: Sequence[Graph]) -> Joined:
        sizes = torch.tensor([len(graph.x) for graph in graphs])
        return cls(
            torch.cat([graph.x for graph in graphs]),
            Edges.join([graph.edges for graph in graphs]),
            torch.tensor([graph.y for graph in graphs]),
            torch.arange(len(graphs)).repeat_interleave(sizes),
        )


def read(collection: str) -> list[Graph]:
    """The graphs of a collection, with their edges sorted."""
    return [
        Graph(data.x, Edges(data.edge_index, len(data.x), len(data.x)), int(data.y))
        for data in tudataset(collection)
    ]


def batches(graphs: Sequence[Graph], size: int, shuffle: bool = False) -> Iterator[Joined]:
    """The graphs in batches, in their order or in another each time."""
    order = torch.randperm(len(graphs)) if shuffle else torch.arange(len(graphs))
    for chosen in order.split(size):
        yield Joined.of([graphs[i] for i in chosen.tolist()])


def split(graphs: Sequence[Graph], fold: int) -> tuple[list[Graph], list[Graph], list[Graph]]:
    """The graphs to train on, to validate on and to test on: classes have their shares in each."""
    y = [graph.y for graph in graphs]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(y, y)
    rest, test = list(folds)[fold % FOLDS]
    train, val = train_test_split(
        rest, test_size=1 / FOLDS, random_state=0, stratify=[y[i] for i in rest]
    )
    return tuple([graphs[i] for i in part] for part in (train, val, test))  # type: ignore[return-value]


@torch.no_grad()
def accuracy(model: GAT, graphs: Sequence[Graph]) -> float:
    """The share of graphs that are classified right."""
    model.eval()
    right = sum(
        int((model(b.x, b.edges, batch=b.graph, batch_size=len(b.y)).argmax(-1) == b.y).sum())
        for b in batches(graphs, 256)
    )
    return right / len(graphs)


def bag_of_labels(train: Sequence[Graph], test: Sequence[Graph]) -> float:
    """The accuracy of a logistic regression on how many nodes of each label there are."""

    def counts(graphs: Sequence[Graph]) -> Any:
        return torch.stack([graph.x.sum(0) for graph in graphs]).numpy()

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(counts(train), [graph.y for graph in train])
    return float(model.score(counts(test), [graph.y for graph in test]))


def build(args: argparse.Namespace, channels: int, classes: int) -> GAT:
    """The model."""
    return GAT(
        channels, args.hidden, args.layers, classes, dropout=args.dropout, attention_dropout=0.0,
        norm="batch_norm", heads=4, linear_residual=True, level="graph", pool=args.pool,
    )  # fmt: skip


def train(
    args: argparse.Namespace, graphs: Sequence[Graph], fold: int, step: Callable[[float], None]
) -> dict[str, Any]:
    """One fold: the test accuracy of the epoch that is best in validation."""
    seed_everything(fold)
    parts = split(graphs, fold)
    classes = max(graph.y for graph in graphs) + 1
    model = build(args, graphs[0].x.shape[1], classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    best = {"val": -1.0, "test": 0.0, "epoch": 0}
    started = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        losses = []
        for batch in batches(parts[0], args.batch, shuffle=True):
            optimizer.zero_grad()
            out = model(batch.x, batch.edges, batch=batch.graph, batch_size=len(batch.y))
            loss = cross_entropy(out, batch.y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        val = accuracy(model, parts[1])
        if val > best["val"]:
            best = {"val": val, "test": accuracy(model, parts[2]), "epoch": epoch}
        step(sum(losses) / len(losses))
    bag = bag_of_labels([*parts[0], *parts[1]], parts[2])
    return {**best, "bag": bag, "seconds": time.perf_counter() - started}


def run(args: argparse.Namespace) -> int:
    """Trains fold after fold, then prints the table."""
    args.out = args.out or f"runs/graphs/{args.collection}"
    prepare_folder(Path(args.out))
    graphs = read(args.collection)

    def work(name: str, fold: int, step: Callable[[float], None]) -> tuple[dict[str, Any], None]:
        return train(args, graphs, fold, step), None

    found = run_all(args, {"gat": args.epochs}, work, RESULT, metrics)
    print(table(args.collection, found.results["gat"]))
    return 0 if found.complete else 130


def metrics(results: Results) -> dict[str, Any]:
    """What metrics.json says."""
    return {"folds": results}


def table(collection: str, results: Sequence[dict[str, Any]]) -> str:
    """Test accuracies over the folds that were run."""
    without, gin = PUBLISHED[collection]
    folds = f"{len(results)} fold{'s' * (len(results) > 1)}"
    rows = [[f"{collection}, {folds}", "test accuracy, %"]]
    rows += [["GAT", percent([r["test"] for r in results])]]
    rows += [["bag of node labels", percent([r["bag"] for r in results])]]
    rows += [["published: without edges", f"{without:.1f}"], ["published: GIN", f"{gin:.1f}"]]
    return aligned(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)), flush_denormal=True)


if __name__ == "__main__":
    sys.exit(main())
