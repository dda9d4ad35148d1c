"""The command line of `examples.dictionary_lookup`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from examples.shared.options import (
    NATURAL,
    Commands,
    Count,
    Parser,
    Rate,
    add_run_options,
    number,
)


class Settings(NamedTuple):
    """What is trained, and how."""

    k: Annotated[int, number(int, 2), "keys of each dictionary"] = 10
    graphs: Annotated[
        int, number(int, 2), "dictionaries in all, to train and to test on, at most"
    ] = 32_000
    size: Annotated[Count, "channels of the embeddings and of all heads together"] = 256
    heads: Annotated[Count, "of the one attention layer, which share them"] = 1
    self_loops: Annotated[bool, "let each query listen to itself too"] = False
    epochs: Annotated[Count, "how often each dictionary is seen"] = 3
    starts: Annotated[Count, "first weights to choose from, see `begin`"] = 10
    batch_size: Annotated[Count, "dictionaries in a batch"] = 128
    lr: Annotated[Rate, "the learning rate of Adam"] = 1e-3


def parser() -> Commands:
    """The commands of the program."""
    commands = {"train": training_parser, "ask": asking_parser}
    return Commands("dictionary_lookup", commands, default="train")


def asking_parser() -> Parser:
    """The options of a question."""
    parser = Parser("dictionary_lookup ask", "What trained models look up in a dictionary.")
    parser.add_argument("values", nargs="+", type=NATURAL, metavar="VALUE",
        help="of key 0, of key 1, …: each of 0 to k - 1 once, in any order")  # fmt: skip
    parser.add_argument("--model", required=True, metavar="DIR", help="the --out of a training")
    return parser


def training_parser() -> Parser:
    """The options of a training."""
    parser = Parser("dictionary_lookup", "Train GAT and GATv2 to look up values in dictionaries.")
    add = parser.add_settings("dictionaries, models, training", Settings)
    add_run_options(add, "dictionary_lookup", runs=3)
    return parser
