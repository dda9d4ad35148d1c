"""The command line of `examples.tuned_tables`."""

from __future__ import annotations

from examples.shared.options import COUNT, SEED, Parser

PRESETS = ("tuned-gat", "gat", "gat-sep", "gt", "gt-sep")  # gat.models.PRESETS, without torch
GRAPHS = (
    "cora", "citeseer", "pubmed", "computers", "coauthor-cs", "minesweeper", "squirrel-filtered",
    "chameleon-filtered", "photo", "coauthor-physics", "wikics", "amazon-ratings", "roman-empire",
    "questions",
)  # fmt: skip
DATA = (
    "a graph in one npz file, as Platonov et al. or Shchur et al. have it, for the settings of"
    " --graph: its own, where it is not downloaded, or another"
)


def parser() -> Parser:
    """The options."""
    result = Parser("tuned_tables", "Train a published setting; print its row of the table.")
    add = result.add_argument
    add("--preset", choices=PRESETS, default=PRESETS[0], help=f"default: {PRESETS[0]}")
    add("--graph", choices=GRAPHS, required=True, help=f"of {', '.join(GRAPHS)}")
    add("--data", metavar="NPZ", default=None, help=DATA)
    add("--runs", type=COUNT, default=None, help="default: as many as were published")
    add("--epochs", type=COUNT, default=None, help="of each; default: as published")
    add("--seed", type=SEED, default=0, help="of the first run, and its split; default: 0")
    add("--out", metavar="DIR", default=None, help="default: runs/tuned/PRESET-GRAPH")
    add("--restart", action="store_true", help="give up the trainings in --out, if any are left")
    return result
