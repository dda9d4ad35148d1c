"""The command line of `examples.sentiment`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from examples.shared.options import (
    COUNT,
    SEED,
    Commands,
    Count,
    Parser,
    existing_file,
)

ENCODERS = ("attention", "lstm", "cnn", "lstm+attention", "cnn+attention")
POSITIONS = ("none", "sinusoidal", "learned")


class Settings(NamedTuple):
    """What a `Classifier` is made of, beside the number of words."""

    length: Annotated[Count, "last words of a review that are kept"] = 80
    encoder: Annotated[str, ENCODERS, "what reads them"] = "attention"
    positions: Annotated[str, POSITIONS, "what is added to their embedding"] = "none"
    mask: Annotated[
        bool, "keep padding out; default: with --data; of films it is a word like others"
    ] = False


def training_parser() -> Parser:
    """The options of a training."""
    parser = Parser(
        "sentiment",
        "Train a classifier of reviews on attention, or on what it is compared with.",
        epilog="'python -m examples.sentiment predict --help': judge a text of your own.",
    )
    add = parser.group("reviews")
    add("--data", type=existing_file, metavar="CSV",
        help="your own: columns text, label (two or more); a fifth is held out to validate on."
        " Default: 50,000 reviews of films, from $GAT_DATA/imdb or downloaded")  # fmt: skip
    add("--vocabulary", type=COUNT, default=20_000, help="words; default: 20000")
    parser.add_settings("model", Settings, lazy=True)
    add = parser.group("training")
    add("--epochs", type=COUNT, default=5, help="default: 5")
    add("--seeds", type=SEED, nargs="+", default=[0], metavar="S", help="default: 0")
    add("--device", default="cpu", help="as torch names it; default: cpu")
    add("--out", metavar="DIR", help="default: runs/<reviews>-<encoder>…")
    add("--restart", action="store_true", help="give up the scores in --out, if any")
    return parser


def prediction_parser() -> Parser:
    """The options of a prediction."""
    parser = Parser(
        "sentiment predict", "Judge a text, and show the attention that its words receive."
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="in quotes; one or several")
    parser.add_argument("--file", type=existing_file, metavar="FILE",
        help="texts to judge: csv with a column text, or a text on each line")  # fmt: skip
    parser.add_argument("--output", metavar="CSV", help="for all probabilities; default: none")
    parser.add_argument("--model", required=True, metavar="DIR", help="the --out of a training")
    return parser


def parser() -> Commands:
    """The commands of the program."""
    commands = {"train": training_parser, "predict": prediction_parser}
    return Commands("sentiment", commands, default="train")
