"""The command line of `examples.translation`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from examples.shared.options import (
    COUNT,
    FACTOR,
    SEED,
    Commands,
    Count,
    Factor,
    Natural,
    Parser,
    Rate,
    Share,
    at_least,
    existing_file,
)

KINDS = ("bahdanau", "luong", "context_only", "grammar", "rnn", "transformer")
SCORES = (  # of `Score.named`; a local and a hard attention
    "dot", "scaled_dot", "cosine", "general", "additive", "concat", "separable", "trilinear",
    "location",
    "local-m", "local-p", "hard",
)  # fmt: skip
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "t5")
NORMALIZERS = ("softmax", "sparsemax", "entmax")
SCHEDULES = ("constant", "inverse-sqrt", "cosine")


def probability(text: str) -> float:
    """A type for argparse: a number from 0 to 1."""
    value: float = FACTOR(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1: {text!r}")
    return value


def data_name(text: str) -> str:
    """A type for argparse: data that has a name, or the path of a file."""
    if text in ("dates", "multi30k") or Path(text).is_file():
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither 'dates' nor 'multi30k' nor a file")


@dataclass(frozen=True)
class DataOptions:
    """A choice of sentence pairs: plain values, which are saved beside a model.

    `names` are "dates", "multi30k", or two files of source and target sentences. Dates are
    characters and Multi30k words, both lower-cased; `unit` and `lower` are for files, of which
    subwords are learned by default. `seed` is that of the dates, or of the split of files.
    """

    names: tuple[str, ...]
    languages: Annotated[
        tuple[str, str], "two-letter codes", {"nargs": 2, "metavar": ("SRC", "TGT")}
    ] = ("de", "en")
    unit: Annotated[
        Literal["subwords", "words", "characters"], ("subwords", "words", "characters"), "of files"
    ] = "subwords"
    lower: Annotated[bool, "lower-case the tokens of files"] = False
    min_count: Annotated[Count, "of a token in training that has a place in the vocabulary"] = 1
    vocabulary_size: Annotated[
        int | None, at_least(5), "tokens on either side at most", {"flag": "vocabulary"}
    ] = None
    seed: int = 0


@dataclass(frozen=True)
class ArchitectureOptions:
    """What a model is built from: plain values, which are saved beside its weights.

    `kind` is one of `KINDS`, the sizes are those of the vocabularies. An attention of None is the
    paper's; of a Transformer it is that of a sequence to itself.
    """

    kind: str
    source_size: int
    target_size: int
    embedding_size: Annotated[Count, "of both sides; of a Transformer the width of all"] = 256
    state_size: Annotated[Count, "of the recurrent decoder; even, for the encoder's halves"] = 512
    layers: Annotated[Count, "of encoder and decoder each"] = 1
    cell: Annotated[str, ("gru", "lstm", "rnn"), "of recurrent models"] = "gru"
    attention: Annotated[str | None, SCORES, "the score, or a local or a hard attention"] = None
    normalizer: Annotated[str, NORMALIZERS, "how scores become weights"] = "softmax"
    window: Annotated[Count, "of a local attention"] = 10
    input_feeding: Annotated[bool, "of luong"] = False
    context: Annotated[bool, "of rnn: the encoder's last state enters every step"] = False
    reads: Annotated[Count, "of grammar"] = 1
    heads: Annotated[Count, "of a Transformer"] = 8
    feed_forward_size: Annotated[Count, "of a Transformer"] = 512
    positions: Annotated[str, POSITIONS, "of a Transformer"] = "sinusoidal"
    max_length: Annotated[
        int | None, at_least(2), "tokens, of learned positions and of the score 'location'"
    ] = None
    dropout: Annotated[Share, "of embeddings, between layers and of outputs"] = 0.0
    tie: Annotated[bool, "one matrix for target embedding and output"] = False


@dataclass(frozen=True)
class Settings:
    """How a model is trained, by Adam with β = (0.9, 0.98)."""

    epochs: Annotated[Count, "at most"]
    patience: Annotated[Count, "epochs without a new best before stopping"]
    batch_tokens: Annotated[Count, "padded size of a batch at most"]
    lr: Annotated[Rate, "the highest learning rate"]
    schedule: Annotated[str, SCHEDULES, "of the rate behind the warm-up"] = "cosine"
    warmup: Annotated[Natural, "steps in which the rate rises from zero"] = 0
    clip: Annotated[Factor, "gradient norm at most"] = 1.0
    label_smoothing: Annotated[Share, "of the target's probability, spread over all tokens"] = 0.0
    sampled_softmax: Annotated[Natural, "classes drawn in each step in place of all; 0: all"] = 0
    teacher_forcing: Annotated[
        float, probability,
        "how likely a step gets the true token before rather than the model's guess",
    ] = 1.0  # fmt: skip
    average: Annotated[Share, "decay of the average of the weights that is kept; 0: none"] = 0.0
    bfloat16: Annotated[bool, "for the products in training; weights stay float32"] = False


def training_parser() -> Parser:
    """The options of a training."""
    parser = Parser(
        "translation train",
        "Train a translation model.",
        epilog="Many defaults depend on data and model; metrics.json tells them.",
    )
    add = parser.add_settings("data", DataOptions, lazy=True)
    add("--data", nargs="+", type=data_name, default=["dates"], metavar="NAME",
        help="'dates' (default; generated), 'multi30k' (from $GAT_DATA/multi30k or downloaded), or"
        " two UTF-8 files, whose n-th lines belong together")  # fmt: skip
    add("--data-seed", type=SEED, default=0, help="of the dates or of the split")
    add = parser.add_settings("model", ArchitectureOptions, lazy=True)
    add("--model", choices=KINDS, default="luong", help="default: luong")
    add = parser.add_settings("training", Settings, lazy=True)
    add("--baseline", action=argparse.BooleanOptionalAction,
        help="train a model without attention too; default: with dates")  # fmt: skip
    add("--seed", type=SEED, default=0)
    add("--device", default="cpu", help="as torch names it; default: cpu")
    add = parser.group("output")
    add("--out", metavar="DIR", help="default: runs/<data>…")
    add("--beam", type=COUNT, help="of the test; 1 is greedy")
    add("--alpha", type=FACTOR, help="of the test's length penalty")
    add("--picture", action="append", metavar="SENTENCE",
        help="draw its alignment; may be given often")  # fmt: skip
    add("--checkpoint-minutes", type=FACTOR, default=5.0, metavar="N", help="default: 5")
    parser.add_resumption(add)
    return parser


def search_parser(command: str, description: str) -> Parser:
    """What translation and evaluation have in common."""
    parser = Parser(f"translation {command}", description)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="the --out of a training")
    add("--beam", type=COUNT, help="1 is greedy; default: as in training")
    add("--alpha", type=FACTOR, help="of the length penalty; default: as in training")
    add("--device", default="cpu", help="as torch names it; default: cpu")
    return parser


def translation_parser() -> Parser:
    """The options of a translation."""
    parser = search_parser("translate", "Translate a file, or what is typed.")
    parser.add_argument(
        "--file", type=existing_file, metavar="FILE", help="UTF-8, a sentence on each line"
    )
    parser.add_argument("--output", metavar="FILE", help="default: the screen")
    parser.add_argument("--pictures", metavar="DIR", help="draw the alignment of each sentence")
    return parser


def evaluation_parser() -> Parser:
    """The options of an evaluation."""
    parser = search_parser("evaluate", "Print perplexity, exact match and BLEU of a trained model.")
    add = parser.add_argument
    add("--data", nargs="+", type=data_name, metavar="NAME", help="default: that of the training")
    add("--split", choices=("train", "valid", "test"), default="test", help="default: test")
    add("--output", metavar="FILE", help="write the translations")
    return parser


def parser() -> Commands:
    """The commands of the program."""
    return Commands(
        "translation",
        {"train": training_parser, "translate": translation_parser, "evaluate": evaluation_parser},
    )
