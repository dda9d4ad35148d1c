"""The command line of `examples.tagging`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from examples.shared.options import (
    COUNT,
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


class Widths(NamedTuple):
    """How large a model is."""

    size: Annotated[Count, "channels of the embedding and between layers; 2 · heads divides it"]
    layers: Annotated[Count, "of a Transformer; the others have about as many parameters"]
    heads: Annotated[Count, "of the attention"]
    window: Annotated[Natural, "words to either side that attention in a window sees"]
    dropout: Annotated[Share, "of embeddings, hidden units and attention weights"]


class Training(NamedTuple):
    """How a model is trained."""

    epochs: Annotated[Count, "how many times every training sentence is seen"]
    batch_size: Annotated[Count, "sentences in a batch"]
    lr: Annotated[Rate, "the highest rate of Adam: it rises for a tenth of the steps, then falls"]
    device: Annotated[str, "as torch names it"] = "cpu"


def parser() -> Parser:
    """The options of the program."""
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
    parser.add_settings("models (defaults: small; --conllu has its own)", Widths)
    add = parser.add_settings("training (defaults: as above)", Training)
    add_run_options(add, "tagging", runs=3)
    return parser
