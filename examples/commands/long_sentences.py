"""The command line of `examples.long_sentences`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from examples.shared.options import (
    COUNT,
    Commands,
    Count,
    Parser,
    Rate,
    Share,
    add_model_option,
    add_run_options,
    existing_file,
    number,
)

TASKS = ("copy", "reverse", "sort")
MODELS = {
    "rnn": "no attention: the last state starts the decoder",
    "context": "no attention: the last state enters every step",
    "bahdanau": "attention, Bahdanau et al.",
    "luong": "attention, Luong et al.",
}


class Widths(NamedTuple):
    """How large the models are."""

    embedding: Annotated[Count, "the width of an embedded token"]
    state: Annotated[int, number(int, 2), "the width of decoders with attention; others are wider"]
    dropout: Annotated[Share, "of embeddings and outputs"]


class Training(NamedTuple):
    """How every model is trained."""

    epochs: Annotated[Count, "how often each pair is seen"]
    batch_size: Annotated[Count, "pairs in a batch"]
    lr: Annotated[Rate, "the highest rate of Adam, reached after a tenth of the steps"]


def parser() -> Commands:
    """The commands of the program."""
    commands = {"train": training_parser, "ask": asking_parser}
    return Commands("long_sentences", commands, default="train")


def asking_parser() -> Parser:
    """The options of a question."""
    parser = Parser("long_sentences ask", "What trained models make of sentences.")
    parser.add_argument("sentences", nargs="+", metavar="SENTENCE", help="or letters, in quotes")
    parser.add_argument("--model", required=True, metavar="DIR", help="the --out of a training")
    return parser


def training_parser() -> Parser:
    """The options of a training."""
    parser = Parser("long_sentences", "Compare encoder–decoders on long sentences.")
    add = parser.group("sequences (defaults: small; --data has its own)")
    add("--task", choices=TASKS, help="of random letters; default: reverse")
    add(
        "--data",
        nargs=2,
        type=existing_file,
        metavar=("SRC", "TGT"),
        help="your own: two files, line by line",
    )
    add("--length", type=number(int, 2),
        help="L: train up to it, test to twice as much; default: 12, or 15 of --data")  # fmt: skip
    add("--sentences", type=COUNT, help="generated to train on; default: 8000")
    add("--unit", choices=("words", "characters"), help="of --data; default: words")
    add("--lower", action="store_true", default=None, help="lower-case --data")
    add("--min-count", type=COUNT, help="rarer tokens of --data count as unknown; default: 2")
    add_model_option(parser, MODELS)
    parser.add_settings("models (defaults: small; --data has its own)", Widths)
    add = parser.add_settings("training (defaults: as above)", Training)
    add_run_options(add, "long_sentences", runs=2)
    return parser
