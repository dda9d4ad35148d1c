"""Writes the attention explorer: one HTML file that computes attention in the browser.

    python -m examples.explorer                          # runs/explorer.html
    python -m examples.explorer --example dictionary     # GAT against GATv2

Open the file: choose score, normaliser, support, temperature, mask and heads; click a weight to see
its arithmetic; drag a point and watch. It needs no server and no network. `gat.plot.explorer` and
`sequence_attn.plot.explorer` show the weights of a model of your own.
"""

from __future__ import annotations

from examples.commands.explorer import parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import sys
from collections.abc import Sequence
from pathlib import Path

from attn_core.explorer import computing_page
from examples.shared.files import prepare_folder, write_text
from examples.shared.program import exit_status


def run(path: Path, example: str, language: str | None) -> int:
    """Writes the page."""
    prepare_folder(path.parent)
    write_text(path, computing_page(example, language))
    print(f"wrote {path}: open it in a browser")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""

    def work() -> int:
        args = parser().parse_args(argv)
        return run(Path(args.out), args.example, args.language)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
