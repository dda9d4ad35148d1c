"""The command line of `examples.link_prediction`."""

from __future__ import annotations

from examples.shared.options import COUNT, RATE, SHARE, Parser, add_run_options

DATASETS = ("cora", "citeseer", "pubmed")


def parser() -> Parser:
    """The options."""
    result = Parser("link_prediction", "Train a network to tell which nodes have an edge.")
    add = result.add_argument
    add("--dataset", choices=DATASETS, default="cora", help="default: cora")
    add("--hidden", type=COUNT, default=64, help="of all 4 heads together; default: 64")
    add("--channels", type=COUNT, default=16, help="that a node comes to; default: 16")
    add("--dropout", type=SHARE, default=0.3, help="default: 0.3")
    add("--lr", type=RATE, default=0.01, help="of Adam; default: 0.01")
    add("--epochs", type=COUNT, default=300, help="default: 300")
    add_run_options(add, "links/DATASET", 10)
    result.set_defaults(out=None)
    return result
