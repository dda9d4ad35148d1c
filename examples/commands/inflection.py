"""The command line of `examples.inflection`."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from examples.shared.options import (
    Count,
    Parser,
    Rate,
    Share,
    add_model_option,
    add_run_options,
    existing_file,
    number,
)

LANGUAGES = ("finnish", "german", "russian", "spanish", "turkish")
MODELS = {
    "soft": "soft attention, Luong et al.",
    "reinforce": "hard attention by samples, Xu et al.",
    "exact": "exact hard attention, Wu et al.",
    "monotonic": "exact and monotonic, Wu and Cotterell",
}


class Settings(NamedTuple):
    """How large the models are, and how they are trained."""

    embedding: Annotated[Count, "the width of an embedded character"] = 64
    state: Annotated[int, number(int, 2), "of the decoder; each direction of the encoder: half"] = (
        192
    )
    dropout: Annotated[Share, "of embeddings and outputs"] = 0.3
    epochs: Annotated[Count, "at most"] = 60
    patience: Annotated[Count, "epochs without a better validation, after which to stop"] = 15
    batch_size: Annotated[Count, "words in a batch"] = 20
    lr: Annotated[Rate, "the learning rate of Adam"] = 1e-3


def parser() -> Parser:
    """The options of the program."""
    parser = Parser("inflection", "Compare soft, sampled and exact hard attention on words.")
    add = parser.group("words")
    add("--language", choices=LANGUAGES, default="finnish", help="default: finnish")
    add("--data", nargs=3, type=existing_file, metavar=("TRAIN", "VALID", "TEST"),
        help="your own: lines of lemma, form, features, separated by tabs")  # fmt: skip
    add("--words", type=number(int, 1), metavar="N", help="to train on, at most; default: all")
    add_model_option(parser, MODELS)
    add = parser.add_settings("models, training", Settings)
    add_run_options(add, "inflection", runs=3)
    return parser
