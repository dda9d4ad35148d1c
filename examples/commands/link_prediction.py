"""The command line of `examples.link_prediction`."""

from __future__ import annotations

from examples.shared.options import COUNT, RATE, SHARE, Parser, add_run_options

DATASETS = ("cora", "citeseer", "pubmed")


def parser() -> Parser:
    """The options."""
    result = Parser("link_prediction", "Train a network to tell which nodes have an edge.")
    add = result.add_argument
    add("--dataset", choices=DATASETS, default="cora", help="default: cora")
    add("--hidden", type=COUNT, default=128, help="of all 4 heads together; default: 128")
    add("--channels", type=COUNT, default=64, help="that a node comes to; default: 64")
    add("--dropout", type=SHARE, default=0.5, help="default: 0.5")
    add("--lr", type=RATE, default=5e-3, help="of Adam; default: 0.005")
    add("--epochs", type=COUNT, default=200, help="default: 200")
    add_run_options(add, "links/DATASET", 10)
    result.set_defaults(out=None)
    return result
