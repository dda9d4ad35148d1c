"""The command line of `examples.tagging`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from examples.shared.options import (
    COUNT,
    Commands,
    Count,
    Natural,
    Parser,
    Rate,
    Share,
    add_model_option,
    add_run_options,
    existing_file,
)

MODELS = (
    "attention", "sinusoidal", "rotary", "relative", "causal", "window", "window+relative", "cnn",
    "bilstm",
)  # fmt: skip
LETTERS = 20  # of a word that are looked at, the last ones


class Widths(NamedTuple):
    """How large a model is."""

    size: Annotated[Count, "channels of the embedding and between layers; 2 · heads divides it"]
    layers: Annotated[Count, "of a Transformer; the others have about as many parameters"]
    heads: Annotated[Count, "of the attention"]
    window: Annotated[Natural, "words to either side that attention in a window sees"]
    dropout: Annotated[Share, "of embeddings, hidden units and attention weights"]
    letters: Annotated[Natural, "of --conllu: channels of a word's spelling; 0: none"] = 0


class Training(NamedTuple):
    """How a model is trained."""

    epochs: Annotated[Count, "how many times every training sentence is seen"]
    batch_size: Annotated[Count, "sentences in a batch"]
    lr: Annotated[Rate, "the highest rate of Adam: it rises for a tenth of the steps, then falls"]
    device: Annotated[str, "as torch names it"] = "cpu"
    patience: Annotated[
        Count, "of --conllu: epochs without a new best, on a tenth that is held out"
    ] = 1_000


def parser() -> Commands:
    """The commands of the program."""
    commands = {"train": training_parser, "predict": prediction_parser}
    return Commands("tagging", commands, default="train")


def prediction_parser() -> Parser:
    """The options of a prediction."""
    parser = Parser("tagging predict", "Tag the words of a file.")
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="the --out of a training with --conllu")
    add("--file", required=True, type=existing_file, metavar="FILE",
        help="CoNLL-U, or text with a sentence on each line")  # fmt: skip
    add("--output", metavar="FILE", help="CoNLL-U; default: the screen")
    add("--language", default="en", help="of text, a two-letter code: where its words end")
    return parser


def training_parser() -> Parser:
    """The options of a training."""
    parser = Parser("tagging", "Compare attention, convolutions and recurrent networks at tagging.")
    add = parser.group("sentences")
    add(
        "--conllu",
        nargs=2,
        type=existing_file,
        metavar=("TRAIN", "TEST"),
        help="your own; default: generated ones",
    )
    add("--column", help="of --conllu: upos (default), xpos, …")
    add(
        "--min-count",
        type=COUNT,
        help="rarer words of --conllu count as unknown; default: 2",
    )
    add("--sentences", type=COUNT, help="generated to train on; default: 800")
    add_model_option(parser, MODELS)
    parser.add_settings("models (defaults: small; --conllu has its own)", Widths, lazy=True)
    add = parser.add_settings("training (defaults: as above)", Training, lazy=True)
    add_run_options(add, "tagging", runs=3)
    return parser
