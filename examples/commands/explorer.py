"""The command line of `examples.explorer`."""

from __future__ import annotations

from examples.shared.options import Parser

# As in attn_core.explorer.page, which is not imported before the options are right
EXAMPLES = ("sentence", "decoder", "graph", "dictionary")
LANGUAGES = ("en", "zh")


def parser() -> Parser:
    """The options of the program."""
    options = Parser("explorer", "Write a page that computes attention in the browser.")
    add = options.add_argument
    add(
        "--example", choices=EXAMPLES, default="sentence",
        help="what it begins with; default: sentence",
    )  # fmt: skip
    add("--language", choices=LANGUAGES, help="default: that of the browser")
    add(
        "--out", metavar="FILE", default="runs/explorer.html",
        help="default: runs/explorer.html",
    )  # fmt: skip
    return options
