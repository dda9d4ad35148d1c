"""`python -m benchmarks NAME`: run one of the benchmarks, print its tables and write them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import family, gpu, graph, scale, scales, seq2seq, sequence
from benchmarks._report import Report, write
from examples.shared.files import UserError, prepare_folder
from examples.shared.options import number

# Each module has `add_arguments(parser)` and `run(arguments) -> Report`
BENCHMARKS = {
    "sequence": sequence,
    "seq2seq": seq2seq,
    "graph": graph,
    "family": family,
    "gpu": gpu,
    "scales": scales,
    "scale": scale,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").splitlines()[0]
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
        module.add_arguments(one)
    given = parser.parse_args(arguments)
    command = command_line(sys.argv[1:] if arguments is None else arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        prepare_folder(given.out)
        report: Report = BENCHMARKS[given.name].run(given)
        paths = write(report, given.out, given.name, command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("wrote", ", ".join(map(str, paths)))
    return 0


def command_line(arguments: Sequence[str]) -> str:
    """How to call it again, for a report that others read: without paths of this machine.

    >>> command_line(["graph", "--only", "layers", "--dgl-python=/opt/dgl/bin/python"])
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
