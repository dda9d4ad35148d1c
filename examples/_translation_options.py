"""The options of the translation example, and what they stand for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples._files import UserError
from examples._graphs import SEED, number
from examples._program import Parser
from examples._translation_data import Data
from examples._translation_models import KINDS, SCORES, Architecture
from examples._translation_training import SCHEDULES, Corpus, Settings
from sequence_attn.seq2seq.models import POSITIONS

PROGRAM = "python -m examples.translation"
# What suits the data; chosen on its validation pairs. Files are taken to be like Multi30k.
DATES: dict[str, Any] = {
    "embedding_size": 64, "state_size": 128, "layers": 1, "heads": 4, "feed_forward_size": 256,
    "dropout": 0.1, "min_count": 1, "epochs": 20, "patience": 20, "batch_tokens": 1500,
    "lr": 3e-3, "warmup": 100, "label_smoothing": 0.0, "average": 0.99, "beam": 1, "alpha": 1.0,
}  # fmt: skip
RECURRENT: dict[str, Any] = {
    "embedding_size": 256, "state_size": 512, "layers": 1, "heads": 8, "feed_forward_size": 512,
    "dropout": 0.3, "min_count": 2, "epochs": 10, "patience": 5, "batch_tokens": 2500,
    "lr": 1e-3, "warmup": 200, "label_smoothing": 0.1, "average": 0.995, "beam": 5, "alpha": 1.0,
}  # fmt: skip
TRANSFORMER = {**RECURRENT, "dropout": 0.15, "epochs": 14, "warmup": 400, "alpha": 1.5}
# Which options a model has no use for
USELESS: dict[str, tuple[str, ...]] = {
    "input_feeding": ("luong",),
    "context": ("rnn",),
    "reads": ("grammar",),
    "cell": tuple(kind for kind in KINDS if kind != "transformer"),
    "state_size": tuple(kind for kind in KINDS if kind != "transformer"),
    "heads": ("transformer",),
    "feed_forward_size": ("transformer",),
    "positions": ("transformer",),
}


def chosen_data(args: argparse.Namespace) -> Data:
    """The data that the options of a training name."""
    names = tuple(args.data)
    if names in (("dates",), ("multi30k",)):
        for option in ("unit", "lower"):
            if getattr(args, option) is not None:
                raise UserError(f"--{option} is for files of your own; leave it out")
    elif len(names) == 2:
        missing = [name for name in names if name in ("dates", "multi30k")]
        if missing:
            raise UserError(f"--data {' '.join(names)!r}: give {missing[0]!r} alone, or two files")
    return Data(
        names=names,
        languages=tuple(args.languages),
        unit=args.unit or "words",
        lower=bool(args.lower),
        min_count=args.min_count,
        vocabulary_size=args.vocabulary,
        seed=args.data_seed,
    )


def set_defaults(args: argparse.Namespace) -> None:
    """Fills in what was left open, according to the data and the model."""
    for option, kinds in USELESS.items():
        if getattr(args, option) is not None and args.model not in kinds:
            flag = option.replace("_", "-")
            raise UserError(
                f"--{flag} is for --model {' and '.join(kinds)}; {args.model!r} has no use for it"
            )
    transformer = args.model == "transformer"
    defaults = DATES if args.data == ["dates"] else TRANSFORMER if transformer else RECURRENT
    for option, value in defaults.items():
        if getattr(args, option) is None:
            setattr(args, option, value)
    if args.cell is None:
        args.cell = "lstm" if args.model == "grammar" else "gru"


def chosen_architecture(args: argparse.Namespace, corpus: Corpus) -> Architecture:
    """The model that the options name.

    Raises:
        UserError: options that exclude each other, or sentences too long for --max-length.
    """
    tied = ("luong", "bahdanau", "grammar", "transformer")
    architecture = Architecture(
        kind=args.model,
        source_size=len(corpus.source),
        target_size=len(corpus.target),
        embedding_size=args.embedding_size,
        state_size=args.state_size,
        layers=args.layers,
        cell=args.cell,
        attention=args.attention,
        normalizer=args.normalizer,
        window=args.window,
        input_feeding=bool(args.input_feeding),
        context=bool(args.context),
        reads=args.reads or 1,
        heads=args.heads,
        feed_forward_size=args.feed_forward_size,
        positions=args.positions or "sinusoidal",
        max_length=args.max_length,
        dropout=args.dropout,
        tie=args.model in tied if args.tie is None else args.tie,
    )
    return with_limit(architecture, corpus)


def with_limit(architecture: Architecture, corpus: Corpus) -> Architecture:
    """The same with a limit of length, if the model needs one and the options gave none.

    Raises:
        UserError: sentences are longer than the limit, or a limit is of no use.
    """
    needed = dataclasses.replace(architecture, max_length=1).source_limit is not None
    if architecture.max_length is not None and not needed:
        raise UserError(
            "--max-length is for --positions learned and --attention location; leave it out, since"
            " this model has no limit"
        )
    if needed and architecture.max_length is None:
        longest = max(map(len, [*corpus.splits.train.source, *corpus.splits.train.target]))
        # Twice the longest sentence: learned positions that training never saw are of little use
        architecture = dataclasses.replace(architecture, max_length=2 * longest + 2)
    check_lengths(corpus, architecture, ["train", "valid", "test"])
    return architecture


def check_lengths(corpus: Corpus, architecture: Architecture, splits: Sequence[str]) -> None:
    """Refuses sentences that are longer than the positions of a model."""
    limits = {"source": architecture.source_limit, "target": architecture.target_limit}
    for split in splits:
        for side, limit in limits.items():
            sentences = getattr(getattr(corpus.splits, split), side)
            longest = max(map(len, sentences), default=0)
            if limit is not None and longest + 1 > limit:
                raise UserError(
                    f"a {side} sentence ({split}) has {longest} tokens, but the model's positions"
                    f" end at {limit}, one of which a special symbol takes: leave such sentences"
                    " out, or train with a larger --max-length"
                )


def chosen_settings(args: argparse.Namespace) -> Settings:
    """How the options say to train."""
    if args.sampled_softmax:
        if args.model == "transformer":
            raise UserError("--sampled-softmax is for recurrent models; leave it out")
        if args.teacher_forcing != 1:
            raise UserError(
                "--sampled-softmax draws among a few tokens, and --teacher-forcing below 1 needs"
                " the best of all: leave one out"
            )
        args.label_smoothing = 0.0  # which is over all tokens as well
    names = [field.name for field in dataclasses.fields(Settings)]
    return Settings(**{name: getattr(args, name) for name in names})


def default_name(args: argparse.Namespace) -> str:
    """The folder of a training without --out."""
    data = args.data[0] if len(args.data) == 1 else Path(args.data[0]).stem
    return "dates" if (data, args.model) == ("dates", "luong") else f"{data}-{args.model}"


def wants_baseline(args: argparse.Namespace) -> bool:
    """Whether a model without attention is trained too: by default beside the quick example."""
    if args.baseline is None:
        return args.data == ["dates"] and args.model != "rnn"
    return bool(args.baseline)


def probability(text: str) -> float:
    """A type for argparse: a number from 0 to 1."""
    value: float = number(float, 0)(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1: {text!r}")
    return value


def training_parser() -> argparse.ArgumentParser:
    """The options of a training."""
    parser = Parser(
        prog=f"{PROGRAM} train",
        description="Train a translation model.",
        epilog="Defaults that are not named depend on data and model; metrics.json tells them.",
        allow_abbrev=False,
    )
    count, share = number(int, 1), number(float, 0, below=1)
    yes_no = argparse.BooleanOptionalAction
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data", nargs="+", default=["dates"], metavar="NAME",
        help="'dates' (default; generated), 'multi30k' (from $GAT_DATA/multi30k or downloaded), or"
        " two UTF-8 files, whose n-th lines belong together",
    )  # fmt: skip
    group.add_argument(
        "--languages", nargs=2, default=["de", "en"], metavar=("SRC", "TGT"),
        help="two-letter codes; default: de en",
    )  # fmt: skip
    group.add_argument("--unit", choices=("words", "characters"), help="of files; default: words")
    group.add_argument("--lower", action=yes_no, help="lower-case the tokens of files")
    group.add_argument("--min-count", type=count, help="of a token of the vocabulary")
    group.add_argument("--vocabulary", type=number(int, 5), help="tokens on either side at most")
    group.add_argument("--data-seed", type=SEED, default=0, help="of the dates or of the split")

    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=KINDS, default="luong", help="default: luong")
    group.add_argument(
        "--attention", choices=SCORES, help="the score, or a local or a hard attention"
    )
    group.add_argument("--normalizer", choices=("softmax", "sparsemax", "entmax"),
                       default="softmax")  # fmt: skip
    group.add_argument("--window", type=number(int, 1), default=10, help="of a local attention")
    group.add_argument("--input-feeding", action=yes_no, help="of luong; default: no")
    group.add_argument("--context", action=yes_no, help="of rnn; default: no")
    group.add_argument("--reads", type=count, help="of grammar; default: 1")
    group.add_argument("--cell", choices=("gru", "lstm", "rnn"))
    group.add_argument("--embedding-size", type=count, help="of a Transformer the width of all")
    group.add_argument("--state-size", type=count, help="of the recurrent decoder; even")
    group.add_argument("--layers", type=count, help="of encoder and decoder each")
    group.add_argument("--heads", type=count)
    group.add_argument("--feed-forward-size", type=count)
    group.add_argument("--positions", choices=POSITIONS, help="default: sinusoidal")
    group.add_argument("--max-length", type=number(int, 2), metavar="TOKENS",
                       help="of learned positions and of the score 'location'")  # fmt: skip
    group.add_argument("--dropout", type=share)
    group.add_argument("--tie", action=yes_no, help="one matrix for target embedding and output")

    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=count, help="at most")
    group.add_argument("--patience", type=count, help="epochs without a new best before stopping")
    group.add_argument("--batch-tokens", type=count, help="padded size of a batch at most")
    group.add_argument("--lr", type=number(float, 0, below=1000), help="the highest learning rate")
    group.add_argument("--schedule", choices=SCHEDULES, default="cosine", help="default: cosine")
    group.add_argument("--warmup", type=number(int, 0), help="steps")
    group.add_argument("--clip", type=number(float, 0), default=1.0, help="gradient norm at most")
    group.add_argument("--label-smoothing", type=share)
    group.add_argument("--sampled-softmax", type=number(int, 0), default=0, metavar="CLASSES",
                       help="drawn in each step in place of all; default: 0, all")  # fmt: skip
    group.add_argument("--teacher-forcing", type=probability, default=1.0,
                       help="how likely a step gets the true token before; default: 1")  # fmt: skip
    group.add_argument("--average", type=share, metavar="DECAY",
                       help="of the average of the weights that is kept; 0: none")  # fmt: skip
    group.add_argument("--bfloat16", action="store_true", help="for the products in training")
    group.add_argument("--baseline", action=yes_no,
                       help="train a model without attention too; default: with dates")  # fmt: skip
    group.add_argument("--seed", type=SEED, default=0)
    group.add_argument("--device", default="cpu", help="as torch names it; default: cpu")

    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", help="default: runs/<data>…")
    group.add_argument("--beam", type=count, help="of the test; 1 is greedy")
    group.add_argument("--alpha", type=number(float, 0), help="of the test's length penalty")
    group.add_argument("--picture", action="append", metavar="SENTENCE",
                       help="draw its alignment; may be given often")  # fmt: skip
    group.add_argument("--checkpoint-minutes", type=number(float, 0), default=5.0,
                       metavar="N", help="default: 5")  # fmt: skip
    group = group.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on with the training in --out")
    group.add_argument("--restart", action="store_true", help="give up the one in --out, if any")
    return parser


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """What translation and evaluation have in common."""
    parser.add_argument("--model", required=True, metavar="DIR", help="the --out of a training")
    parser.add_argument("--beam", type=number(int, 1), help="1 is greedy; default: as in training")
    parser.add_argument("--alpha", type=number(float, 0),
                        help="of the length penalty; default: as in training")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="as torch names it; default: cpu")


def translation_parser() -> argparse.ArgumentParser:
    """The options of a translation."""
    parser = Parser(
        prog=f"{PROGRAM} translate",
        description="Translate a file, or what is typed.",
        allow_abbrev=False,
    )
    add_search_options(parser)
    parser.add_argument("--file", metavar="FILE", help="UTF-8, a sentence on each line")
    parser.add_argument("--output", metavar="FILE", help="default: the screen")
    parser.add_argument("--pictures", metavar="DIR", help="draw the alignment of each sentence")
    return parser


def evaluation_parser() -> argparse.ArgumentParser:
    """The options of an evaluation."""
    parser = Parser(
        prog=f"{PROGRAM} evaluate",
        description="Print perplexity, exact match and BLEU of a trained model.",
        allow_abbrev=False,
    )
    add_search_options(parser)
    parser.add_argument("--data", nargs="+", metavar="NAME", help="default: that of the training")
    parser.add_argument("--split", choices=("train", "valid", "test"), default="test")
    parser.add_argument("--output", metavar="FILE", help="write the translations")
    return parser
