"""The command line of `examples.explain`."""

from __future__ import annotations

from examples.shared.options import (
    COUNT,
    NATURAL,
    SEED,
    Parser,
    add_graph_options,
)

MODELS = ("gat", "gatv2", "transformer")  # AGNN shows its weights to no explainer


def parser() -> Parser:
    """The options of the program."""
    parser = Parser("explain", "Explain predictions of a graph network.")
    add_graph_options(parser)
    add = parser.group("model")
    add("--model", choices=MODELS, default="gat", help="default: gat")
    add("--trained", metavar="DIR",
        help="explain the model in this --out, of this program or of node_classification, and train"
        " none")  # fmt: skip
    add("--epochs", type=COUNT, default=200, help="at most; default: 200")
    add("--seed", type=SEED, default=0, help="default: 0")
    add = parser.group("explanations")
    add("--nodes", type=NATURAL, nargs="+", metavar="NODE",
        help="to explain and draw; default: the surest right and the surest wrong")  # fmt: skip
    add("--top", type=COUNT, default=15, help="edges of each; default: 15")
    add("--judge", type=COUNT, default=20, help="test nodes; default: 20")
    add("--out", metavar="DIR", default="runs/explain", help="default: runs/explain")
    add("--restart", action="store_true", help="give up what is unfinished in --out")
    return parser
