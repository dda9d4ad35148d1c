"""The command line of `examples.sequence_as_graph`."""

from __future__ import annotations

from examples.shared.options import (
    NATURAL,
    SEED,
    Parser,
)

SENTENCES = (
    "a Transformer is a graph network on a complete graph",
    "each word listens to every word",
    "so do nodes",
)


def parser() -> Parser:
    """The options of the program."""
    parser = Parser(
        "sequence_as_graph", "Run one Transformer on sentences as sequences and as graphs."
    )
    add = parser.add_argument
    add("sentences", nargs="*", default=list(SENTENCES), metavar="SENTENCE",
        help="words between spaces; default: three examples")  # fmt: skip
    add("--window", type=NATURAL, default=2, help="words to either side; default: 2")
    add("--seed", type=SEED, default=1, help="of the weights; default: 1")
    add("--out", metavar="DIR", default="runs/sequence_as_graph", help="default: %(default)s")
    return parser
