"""The command line of `examples.citation_graphs`."""

from __future__ import annotations

from examples.commands.node_classification import CHOICES
from examples.shared.options import (
    COUNT,
    Parser,
)

DATASETS = ("cora", "citeseer", "pubmed")


def parser() -> Parser:
    """The options."""
    result = Parser(
        "citation_graphs", "Train models on the citation graphs from many seeds; print one table."
    )
    models, add = ("gat", "gatv2", "transformer"), result.add_argument
    add("--models", nargs="+", choices=CHOICES, default=models, metavar="MODEL",
        help=f"of {', '.join(CHOICES)}; default: {' '.join(models)}")  # fmt: skip
    add("--datasets", nargs="+", choices=DATASETS, default=DATASETS, metavar="DATASET",
        help=f"default: {' '.join(DATASETS)}")  # fmt: skip
    add("--runs", type=COUNT, default=20, help="seeds each; default: 20")
    add("--out", metavar="DIR", default="runs/citation", help="default: %(default)s")
    return result
