"""`python -m benchmarks NAME`: run one of the benchmarks, print its tables and write them."""

from __future__ import annotations

import argparse
import ast
import importlib
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks._report import Report, write
from examples.shared.files import UserError, prepare_folder
from examples.shared.options import number

# Each module has `add_arguments(parser)` and `run(arguments) -> Report`. Only the chosen one is
# imported, for no machine need have what the others take.
BENCHMARKS = (
    "sequence", "seq2seq", "graph", "family", "reorder", "own_score", "gpu", "scales", "scale",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    words = sys.argv[1:] if arguments is None else arguments
    for name in BENCHMARKS:
        summary = summary_of(name)
        one = names.add_parser(name, help=summary, description=summary)
        one.add_argument(
            "--out", type=Path, default=Path("runs/benchmarks"), metavar="DIR",
            help="where to write the tables (default: %(default)s)",
        )  # fmt: skip
        one.add_argument(
            "--tiny", action="store_true",
            help="small sizes, to see that everything runs: no numbers to quote",
        )  # fmt: skip
        one.add_argument(
            "--threads", type=number(int, 1), default=None, metavar="N",
            help="threads that torch shall use (default: as many as it chooses)",
        )  # fmt: skip
        if name in words[:1]:
            module = importlib.import_module(f"benchmarks.{name}")
            module.add_arguments(one)
    given = parser.parse_args(words)
    command = command_line(words)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        prepare_folder(given.out)
        given.keep = partial(write, folder=given.out, name=given.name, command=command)
        report: Report = module.run(given)
        paths = given.keep(report)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("wrote", ", ".join(map(str, paths)))
    return 0


def summary_of(name: str) -> str:
    """The first line of what a benchmark says of itself."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def command_line(arguments: Sequence[str]) -> str:
    """How to call it again, for a report that others read: without paths of this machine.

    >>> command_line(["graph", "--only", "layers", "--dgl-python=/path/to/python"])
    'python -m benchmarks graph --only layers --dgl-python=.../python'
    """
    words = []
    for word in arguments:
        option, equals, value = word.rpartition("=")
        path = Path(value)
        if path.is_absolute():
            inside = path.is_relative_to(Path.cwd())
            value = str(path.relative_to(Path.cwd()) if inside else Path("...", path.name))
        words.append(option + equals + value)
    return shlex.join(["python", "-m", "benchmarks", *words])


if __name__ == "__main__":
    sys.exit(main())
