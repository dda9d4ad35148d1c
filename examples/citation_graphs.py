"""Trains each model on each citation graph from many seeds, and prints one table.

    python -m examples.citation_graphs                     # 20 seeds each, models one by one
    python -m examples.citation_graphs --models gat --runs 3 --out runs/short

Each training is one of `examples.node_classification`, with its defaults, in a folder of its own
below --out. Stopped, the same command goes on where it was; what is complete is not done again.
"""

from __future__ import annotations

from examples.commands.citation_graphs import parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples import node_classification
from examples.commands.node_classification import NAMES
from examples.shared.program import exit_status
from examples.shared.tables import percent

# Test accuracy in % of "Graph Attention Networks" (Veličković et al., 2018), table 2.
PAPER = {"cora": 83.0, "citeseer": 72.5, "pubmed": 79.0}


def run(args: argparse.Namespace) -> int:
    """Trains what is not complete, one after another, and prints the table."""
    for model in args.models:
        for dataset in args.datasets:
            folder = Path(args.out, f"{dataset}-{model}")
            if is_complete(folder, args.runs):
                continue
            words = ["--dataset", dataset, "--model", model, "--runs", str(args.runs)]
            resume = ["--resume"] if (folder / "checkpoint.pt").exists() else []
            status = node_classification.main([*words, "--out", str(folder), *resume])
            if status:
                return status
    print(table(args))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)))


def metrics(folder: Path) -> dict[str, Any]:
    """What a training wrote; empty where there is nothing to read."""
    try:
        found: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return found
    except (OSError, ValueError):
        return {}


def is_complete(folder: Path, runs: int) -> bool:
    """Whether that many runs are done, and nothing is left to resume."""
    done = len(metrics(folder).get("runs", [])) >= runs
    return done and not (folder / "checkpoint.pt").exists()


def table(args: argparse.Namespace) -> str:
    """Test accuracies, mean ± standard deviation over the seeds, in Markdown."""
    rows = [["test accuracy in %", *(name.capitalize() for name in args.datasets)]]
    rows += [["---", *("---" for _ in args.datasets)]]
    rows += [["GAT, as published", *(f"{PAPER[name]:.1f}" for name in args.datasets)]]
    for model in args.models:
        rows.append([f"{NAMES[model]}, {args.runs} seed{'s' * (args.runs > 1)}"])
        for dataset in args.datasets:
            runs = metrics(Path(args.out, f"{dataset}-{model}"))["runs"][: args.runs]
            rows[-1].append(percent([run["test_accuracy"] for run in runs]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
