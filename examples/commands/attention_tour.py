"""The command line of `examples.attention_tour`."""

from __future__ import annotations

from examples.shared.options import (
    Parser,
)


def parser() -> Parser:
    """The options of the program."""
    options = Parser("attention_tour", "Draw every attention mechanism at work on one sentence.")
    options.add_argument(
        "--out", metavar="DIR", default="runs/tour", help="for the pictures; default: runs/tour"
    )
    return options
