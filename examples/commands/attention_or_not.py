"""The command line of `examples.attention_or_not`."""

from __future__ import annotations

from examples.commands.tuned_tables import DATA, GRAPHS
from examples.shared.options import COUNT, Parser, add_run_options

NAMES = {
    "gat": "GAT", "gatv2": "GATv2", "transformer": "graph Transformer", "agnn": "AGNN",
    "supergat": "SuperGAT", "sparsemax": "GAT with sparsemax", "gcn": "GCN", "mlp": "MLP",
}  # fmt: skip


def parser() -> Parser:
    """The options."""
    result = Parser("attention_or_not", "Train one body with each kind of attention, and without.")
    add = result.add_argument
    add("--graph", choices=GRAPHS, default="chameleon-filtered", help="default: chameleon-filtered")
    add("--data", metavar="NPZ", default=None, help=DATA)
    add("--models", nargs="+", choices=NAMES, default=list(NAMES), metavar="MODEL",
        help=f"of {', '.join(NAMES)}; default: all")  # fmt: skip
    add("--epochs", type=COUNT, default=None, help="of each; default: the tuned GAT's")
    add_run_options(add, "attention/GRAPH", 5, "first run, and its split")
    result.set_defaults(out=None)
    return result
