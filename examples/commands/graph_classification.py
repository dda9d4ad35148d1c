"""The command line of `examples.graph_classification`."""

from __future__ import annotations

from examples.shared.options import COUNT, RATE, SHARE, Parser, add_run_options

COLLECTIONS = ("PROTEINS", "NCI1", "ENZYMES")
FOLDS = 10


def parser() -> Parser:
    """The options."""
    result = Parser("graph_classification", "Train a network to classify graphs, over folds.")
    add = result.add_argument
    add("--collection", choices=COLLECTIONS, default="PROTEINS", help="default: PROTEINS")
    add("--layers", type=COUNT, default=3, help="default: 3")
    add("--hidden", type=COUNT, default=64, help="of all 4 heads together; default: 64")
    add("--pool", choices=("mean", "attention"), default="attention", help="default: attention")
    add("--dropout", type=SHARE, default=0.2, help="default: 0.2")
    add("--lr", type=RATE, default=2e-3, help="of Adam; default: 0.002")
    add("--batch", type=COUNT, default=64, help="graphs in a batch; default: 64")
    add("--epochs", type=COUNT, default=60, help="default: 60")
    add_run_options(add, "graphs/COLLECTION", FOLDS, "first fold")
    result.set_defaults(out=None)
    return result
