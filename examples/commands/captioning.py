"""The command line of `examples.captioning`."""

from __future__ import annotations

import argparse
from typing import Annotated, NamedTuple

from examples.shared.options import (
    COUNT,
    Count,
    Factor,
    Parser,
    Rate,
    Share,
    add_model_option,
    add_run_options,
    number,
)

MODELS = {
    "soft": "soft (a mean of all pixels)",
    "reinforce": "hard, REINFORCE",
    "gumbel": "hard, Gumbel straight-through",
    "none": "no attention",
}


class Training(NamedTuple):
    """How a model is trained."""

    epochs: int
    rounds: Annotated[Count, "how often an epoch has each image in every place of a strip"] = 1
    batch_size: Annotated[Count, "strips in a batch"] = 64
    lr: Annotated[Rate, "highest rate of Adam, reached after a tenth of the steps"] = 0.01
    # λ of the doubly stochastic regulariser, `λ Σ_i (1 - Σ_t α_ti)²` (Xu et al., 2015)
    coverage: Annotated[
        Factor, "of soft attention: how much it is asked to look everywhere in the end"
    ] = 0.0
    entropy: Annotated[
        Factor, "of reinforce: how much it is asked to try out other pixels (λ_H)"
    ] = 0.01
    reward: Annotated[Factor, "weight of its loss in reinforce (λ_r)"] = 1.0
    discount: Annotated[
        float, number(float, 0, below=1.001), "of reinforce: how much the letters behind count (γ)"
    ] = 0.8
    # From places drawn at random a decoder hardly learns to read, and REINFORCE then has nothing to
    # go by. (For the same reason the paper reads half of the images softly, throughout.)
    softly: Annotated[
        Share, "of reinforce: the part of the training that it begins with soft attention"
    ] = 0.5


def temperature(words: str) -> float:
    """A type for argparse: a number above 0."""
    value: float = number(float, 0)(words)
    if value == 0:
        raise argparse.ArgumentTypeError(f"must be above 0: {words!r}")
    return value


def parser() -> Parser:
    """The options of the program."""
    parser = Parser("captioning", "Compare soft and hard attention at spelling handwritten digits.")
    add = parser.group("what is learned")
    add("--digits", nargs="+", type=number(int, 1, below=6), default=[1, 2], metavar="N",
        help="digits in a strip, one or several numbers; default: 1 2")  # fmt: skip
    add_model_option(parser, MODELS)
    add = parser.group("model")
    add("--size", type=COUNT, default=32, help="channels of a pixel; default: 32")
    add("--state", type=COUNT, default=64, help="of the decoder; default: 64")
    add("--glance", action="store_true",
        help="let the decoder start from the mean of all pixels, as in the paper")  # fmt: skip
    add("--temperature", type=temperature, default=1.0, help="of gumbel; default: 1")
    add = parser.add_settings("training", Training)
    add("--epochs", type=COUNT, help="default: 40 for single digits, 24 for strips")
    add_run_options(add, "captioning", runs=1)
    return parser
