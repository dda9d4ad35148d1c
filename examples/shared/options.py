"""The command line of a program, and the settings that it names."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

from examples.shared.errors import UserError

T = TypeVar("T")


def number(
    kind: Callable[[str], Any], lowest: float, *, below: float | None = None
) -> Callable[[str], Any]:
    """A type for argparse: a number that is at least `lowest` and, where given, below `below`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not lowest <= value < (float("inf") if below is None else below):
            what = "a whole number" if kind is int else "a number"
            end = "" if below is None else f" and below {below}"
            raise argparse.ArgumentTypeError(f"must be {what}, at least {lowest:g}{end}: {text!r}")
        return value

    return parse


def at_least(lowest: int) -> Callable[[str], Any]:
    """A type for argparse: a whole number that is at least `lowest`."""
    return number(int, lowest)


NATURAL, COUNT, FACTOR = at_least(0), at_least(1), number(float, 0)
SHARE = number(float, 0, below=1)
RATE = number(float, 0, below=1000)
SEED = number(int, 0, below=2**31)  # every generator takes such a seed, and those of further runs


def existing_file(text: str) -> str:
    """A type for argparse: the path of a file that is there."""
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"cannot be read, for there is no file {text!r}")
    return text


GRAPHS = ("digits", "karate", "cora", "citeseer", "pubmed", "ppi")  # that have a name
# For the fields of settings, see `Parser.add_settings`
Natural = Annotated[int, NATURAL]
Count = Annotated[int, COUNT]
Factor = Annotated[float, FACTOR]
Share = Annotated[float, SHARE]
Rate = Annotated[float, RATE]


class Parser(argparse.ArgumentParser):
    """Reports errors like all that the user can mend: one line, status 2."""

    def __init__(self, program: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=f"python -m examples.{program}", description=description, allow_abbrev=False,
            **options,
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see --help)")

    def group(self, title: str) -> Callable[..., argparse.Action]:
        """Starts a group of options; what is returned adds one."""
        return self.add_argument_group(title).add_argument

    def add_settings(
        self, title: str, *settings: Any, lazy: bool = False
    ) -> Callable[..., argparse.Action]:
        """Adds an option for each field that has a help text, and the field's default.

        A field is annotated with `Annotated[type, …]`: texts are the help, a tuple is what there
        is to choose from, a function is argparse's type, a dict are further arguments of
        `add_argument`. Where the options are `lazy`, what is not given is None, and a bool can be
        denied as well: `--no-…`.
        """
        add = self.group(title)
        for kind in settings:
            defaults = getattr(kind, "_field_defaults", vars(kind))
            for name, hint in get_type_hints(kind, include_extras=True).items():
                parts = getattr(hint, "__metadata__", ())
                words = [part for part in parts if isinstance(part, str)]
                if not words:
                    continue
                options: dict[str, Any] = {"default": defaults.get(name)}
                if hint.__origin__ is bool:
                    options["action"] = argparse.BooleanOptionalAction if lazy else "store_true"
                for part in parts:
                    if isinstance(part, tuple):
                        options["choices"] = part
                    elif isinstance(part, dict):
                        options |= part
                    elif callable(part):
                        options["type"] = part
                if options["default"] not in (None, False):
                    words.append(f"; default: {options['default']}")
                if lazy:
                    options["default"] = None
                flag = options.pop("flag", name.replace("_", "-"))
                add(f"--{flag}", dest=name, help="".join(words), **options)
        return add

    def add_resumption(self, add: Callable[..., argparse.Action]) -> None:
        """Adds --resume and --restart, which exclude each other."""
        group = add.__self__.add_mutually_exclusive_group()  # type: ignore[attr-defined]
        group.add_argument("--resume", action="store_true", help="go on with the training in --out")
        group.add_argument(
            "--restart", action="store_true", help="give up the one in --out, if any"
        )


class Commands:
    """A program's commands, of which the command line names one before its options.

    Args:
        program: its name.
        parsers: of each command, made when it is named.
        default: the command where none is named. Default: one must be.
    """

    def __init__(
        self,
        program: str,
        parsers: Mapping[str, Callable[[], Parser]],
        default: str | None = None,
    ) -> None:
        self.name, self.parsers, self.default = f"python -m examples.{program}", parsers, default

    def parse_args(self, words: Sequence[str] | None = None) -> argparse.Namespace:
        """The options; `command` says of which command."""
        words = list(sys.argv[1:] if words is None else words)
        if self.default is None and words[:1] in ([], ["-h"], ["--help"]):
            print(f"usage: {self.name} {{{','.join(self.parsers)}}} …\n")
            for name, parser in self.parsers.items():
                print(f"  {name:12}{parser().description}")
            print(f"\nEach explains its options: {self.name} {next(iter(self.parsers))} --help")
            raise SystemExit(0 if words else 2)
        command = self.default
        if words and words[0] in self.parsers:
            command = words.pop(0)
        if command is None:
            raise UserError(f"{words[0]!r} is none of {', '.join(self.parsers)}; begin with one")
        return self.parsers[command]().parse_args(words, argparse.Namespace(command=command))


def answer_first(parser: Callable[[], Parser | Commands]) -> None:
    """Ends the program at once if its command line asks for help or makes no sense.

    Programs call this before they import torch, which takes seconds.
    """
    try:
        parser().parse_args()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def pick(args: argparse.Namespace, kind: type[T], /, **others: Any) -> T:
    """The settings of a kind that the options name; `others` are no options."""
    given = {name: getattr(args, name, None) for name in get_type_hints(kind)} | others
    return kind(**{name: value for name, value in given.items() if value is not None})


def fill_in(
    args: argparse.Namespace, kind: str, defaults: Mapping[str, dict[str, Any]], other: str = ""
) -> None:
    """Sets the options that were not given to the defaults of a kind of data.

    Raises:
        UserError: an option was given that only other kinds have; `other` makes it one of these.
    """
    for option in set().union(*defaults.values()) - defaults[kind].keys():
        if getattr(args, option) is not None:
            mend = f"give {other}, or leave it out" if other else "leave it out"
            flag = option.replace("_", "-")
            raise UserError(f"--{flag} has no meaning for {kind}; {mend}")
    for option, value in defaults[kind].items():
        if getattr(args, option) is None:
            setattr(args, option, value)


def add_run_options(add: Callable[..., Any], out: str, runs: int, seed: str = "first run") -> None:
    """Adds --runs, --seed, --out and --restart."""
    add("--runs", type=COUNT, default=runs, help=f"each from another seed; default: {runs}")
    add("--seed", type=SEED, default=0, help=f"of the {seed}")
    add("--out", metavar="DIR", default=f"runs/{out}", help=f"default: runs/{out}")
    add("--restart", action="store_true", help="give up the trainings in --out, if any are left")


def add_model_option(parser: Parser, models: Iterable[str]) -> None:
    """Adds --models."""
    parser.group("what is compared")(
        "--models", nargs="+", choices=models, default=list(models), metavar="MODEL",
        help=f"of {', '.join(models)}; default: all",
    )  # fmt: skip


def add_graph_options(parser: Parser) -> None:
    """Adds the options that `examples.shared.graphs.load_graph` understands."""
    add = parser.group("graph")
    add("--dataset", choices=GRAPHS, help="default: digits, unless --edges is given")
    add("--edges", type=existing_file, metavar="CSV",
        help="your own graph: columns source, target (or src, dst, …, or no header); numbers in"
        " further columns are features of the edges")  # fmt: skip
    add("--features", type=existing_file, metavar="FILE",
        help="csv with a column node and numbers; npz with arrays x and perhaps node, or of"
        " scipy.sparse.save_npz; libsvm (.svm); default: one-hot")  # fmt: skip
    add("--labels", type=existing_file, metavar="CSV",
        help="columns node, label and perhaps split: train, val, test or empty")  # fmt: skip
    add("--directed", action="store_true", default=None, help="keep the edges of --edges as listed")
    add("--neighbours", type=int, metavar="K", help="of each digit; default: 20")
    add("--labels-per-class", type=int, metavar="N",
        help="to train on, of each class; default: digits 5, karate 1, your own 20")  # fmt: skip
    add("--split-seed", type=SEED, metavar="S", help="of the split, where it is drawn; default: 0")
