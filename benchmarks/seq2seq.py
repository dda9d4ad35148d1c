"""Encoder–decoders: training in one call, decoding with caches, and both beside their peers.

The contenders of a table are the same model with the same weights, and are first shown to give the
same numbers.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._measure import Timings, assert_agree, take_turns
from benchmarks._report import Cell, Report, Table
from benchmarks._translators import PEERS, measure_peers
from examples._translation import Architecture
from sequence_attn.seq2seq import (
    Encoded,
    EncoderDecoder,
    Predicted,
    RecurrentEncoder,
    Seq2Seq,
    Transformer,
    generate,
    luong,
)

# As the README's table has them
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"kind": "transformer", "tie": True},
    "bahdanau": {"kind": "bahdanau", "tie": True},
    "luong": {"kind": "luong", "tie": True},
    "rnn, GRU, context": {"kind": "rnn", "context": True},
    "rnn, LSTM, 2 layers": {"kind": "rnn", "cell": "lstm", "layers": 2},
}
Decode = Callable[[Tensor, Encoded], Predicted]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark takes to its command line."""
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
        help=f"which tables to make, of {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    for name, (_, option, _) in PEERS.items():
        parser.add_argument(
            option, metavar="PATH", default=None,
            help=f"the python of a virtual environment that has {name}; it need not have this "
            "library (default: this one, if it has it)",
        )  # fmt: skip


def run(arguments: argparse.Namespace) -> Report:
    """Make the tables that were asked for."""
    torch.manual_seed(0)
    report = Report("Encoder–decoders, measured")
    for part in arguments.only:
        PARTS[part](report, arguments)
    return report


# --- Training ---


def measure_training(report: Report, arguments: argparse.Namespace) -> None:
    """Luong's decoder without input feeding: all steps at once, and one after the other."""
    tiny = arguments.tiny
    rows: list[list[Cell]] = []
    findings = {}
    sizes = {"tiny": (8, 6, 16, 50)}
    if not tiny:  # the last two as the translation example trains them
        sizes = {
            "small": (16, 30, 64, 100),
            "dates": (64, 11, 128, 15),
            "Multi30k": (64, 16, 512, 5923),
        }
    for name, (batch, steps, size, words) in sizes.items():
        encoder = RecurrentEncoder(size // 2, size // 2, bidirectional=True)
        decoder = luong(size // 2, size, size, input_feeding=False)
        model = Seq2Seq(encoder, decoder, source_size=words, target_size=words)
        source, target = torch.randint(4, words, (2, batch, steps + 1))
        ways: dict[str, Decode] = {
            "one call": model.decode,
            "loop, logits at the end": partial(step_by_step, model),
            "loop, logits at each step": partial(token_by_token, model),
        }
        learn = {
            way: partial(decoder_gradients, model, decode, source, target)
            for way, decode in ways.items()
        }
        assert_agree(learn)
        timings = take_turns(learn, 2 if tiny else 15)
        for way in learn:
            row = f"{name} (batch {batch}, {steps} steps, state {size}, {words} words): {way}"
            rows.append([row, *_speed(timings, way, batch * steps), timings.ratio(way, "one call")])
        findings[f"{name}: a step-by-step loop takes × as long"] = timings.ratio(
            "loop, logits at each step", "one call"
        )
    report.add(
        Table(
            "Training a decoder (Luong, general, GRU, no input feeding)",
            ["forward and backward", "ms, median", "target tokens/s", "times one call"],
            rows,
            "The decoder with its output layer and loss; the encoder, the same for all, is left "
            "out. The loops, too, project the keys once.",
            findings=findings,
        )
    )


def step_by_step(model: Seq2Seq, target: Tensor, encoded: Encoded) -> Predicted:
    """What `model.decode` computes, one step after the other; the logits of all steps at once."""
    state, outputs = model.start(encoded), []
    for x in model.target_embedding(target).unbind(1):
        output, state, _ = model.decoder.step(x, state)
        outputs.append(output)
    return Predicted(model.output(torch.stack(outputs, 1)), None)


def token_by_token(model: Seq2Seq, target: Tensor, encoded: Encoded) -> Predicted:
    """The same as in decoding: a step from a token to the logits of the next."""
    state, logits = model.start(encoded), []
    for token in target.unbind(1):
        scores, state = model.step(token, state)
        logits.append(scores)
    return Predicted(torch.stack(logits, 1), None)


def decoder_gradients(
    model: Seq2Seq,
    decode: Decode,
    source: Tensor,
    target: Tensor,
) -> list[Tensor]:
    """The loss, and the gradients of decoder, output layer and encoded source."""
    with torch.no_grad():
        encoded = model.encode(source)
    encoded = encoded._replace(output=encoded.output.detach().requires_grad_())
    logits = decode(target[:, :-1], encoded).logits
    loss = F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten())
    leaves = [encoded.output, *model.decoder.parameters(), *model.output.parameters()]
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


def measure_models(report: Report, arguments: argparse.Namespace) -> None:
    """A training step of the models that the translation example trains on Multi30k."""
    tiny = arguments.tiny
    vocabularies, batch, steps = ((40, 40), 4, 5) if tiny else ((7864, 5923), 150, 15)
    sizes: dict[str, Any] = (
        {"embedding_size": 16, "state_size": 16, "feed_forward_size": 16} if tiny else {}
    )
    models = {
        name: Architecture(
            **options, **sizes, source_size=vocabularies[0], target_size=vocabularies[1]
        ).build()
        for name, options in MODELS.items()
    }
    source, target = torch.randint(4, min(vocabularies), (2, batch, steps + 1))
    step = {name: partial(training_step, model, source, target) for name, model in models.items()}
    timings = take_turns(step, 1 if tiny else 7)
    rows: list[list[Cell]] = [
        [name, sum(x.numel() for x in models[name].parameters()) / 1e6,
         *_speed(timings, name, batch * steps)]
        for name in models
    ]  # fmt: skip
    report.add(
        Table(
            "Training the models of the translation example",
            [
                "forward and backward, bfloat16",
                "million parameters",
                "ms, median",
                "target tokens/s",
            ],
            rows,
            f"{batch} sentences of {steps} tokens, products in bfloat16; vocabularies of "
            f"{vocabularies[0]} and {vocabularies[1]} words. Without the optimiser's step.",
        )
    )


def training_step(model: nn.Module, source: Tensor, target: Tensor) -> list[Tensor]:
    """The loss of a batch, whose gradients are left in the parameters."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(source, target[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), target[:, 1:].flatten())
    model.zero_grad()
    loss.backward()
    return [loss.detach()]


# --- Decoding ---


class Prefix(NamedTuple):
    """All tokens so far, to be decoded again from the first at every step."""

    tokens: Tensor
    encoded: Encoded

    def select(self, index: Tensor, *, memory: bool = True) -> Prefix:
        encoded = self.encoded.select(index) if memory else self.encoded
        return Prefix(self.tokens[index], encoded)


class Uncached(EncoderDecoder[Prefix]):
    """The same model, which keeps nothing from one step to the next."""

    def __init__(self, model: Transformer) -> None:
        super().__init__(model.source_size, model.target_size, model.pad, model.bos, model.eos)
        self.model = model

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Encoded:
        return self.model.encode(source, source_lengths)

    def start(self, encoded: Encoded) -> Prefix:
        tokens = torch.empty(len(encoded.output), 0, dtype=torch.int64)
        return Prefix(tokens.to(encoded.output.device), encoded)

    def step(self, token: Tensor, state: Prefix) -> tuple[Tensor, Prefix]:
        tokens = torch.cat([state.tokens, token[:, None]], 1)
        logits = self.decode(tokens, state.encoded).logits[:, -1]
        return logits, Prefix(tokens, state.encoded)

    def decode(self, target: Tensor, encoded: Encoded, *, need_weights: bool = False) -> Predicted:
        return self.model.decode(target, encoded, need_weights=need_weights)


def measure_decoding(report: Report, arguments: argparse.Namespace) -> None:
    """Beam search over many sentences, with and without what was computed before."""
    tiny = arguments.tiny
    sentences, batch, words, size, layers = (
        (20, 10, 50, 16, 1) if tiny else (1000, 100, 6000, 256, 3)
    )
    model = Transformer(words, words, size=size, heads=8, layers=layers, feed_forward_size=2 * size)
    # An untrained model writes on to the end: all sentences are as long as they may be
    with torch.no_grad():
        model.output.bias[model.eos] = -1e4
    lengths = torch.randint(5, 20, (sentences,))
    source = torch.randint(4, words, (sentences, 20))
    models: dict[str, EncoderDecoder[Any]] = {"with caches": model, "without": Uncached(model)}
    longest = 6 if tiny else 25
    rows: list[list[Cell]] = []
    findings = {}
    for beam in (1,) if tiny else (1, 5):
        search = {
            name: partial(translate, one, source, lengths, batch, beam=beam, max_length=longest)
            for name, one in models.items()
        }
        assert_agree(search)
        timings = take_turns(search, rounds=1, warm_up=0)
        for name in search:
            rows.append([f"{name}, beam {beam}", *_speed(timings, name, sentences)])
        findings[f"beam {beam}: without caches takes × as long"] = timings.ratio(
            "without", "with caches"
        )
    report.add(
        Table(
            f"Decoding {sentences} sentences with a Transformer",
            ["search", "ms", "sentences/s"],
            rows,
            f"{layers} layers of width {size}, {words} words, sources of 5 to 19 tokens, targets "
            f"of {longest}, {batch} sentences at a time.",
            findings=findings,
        )
    )


def translate(
    model: EncoderDecoder[Any], source: Tensor, lengths: Tensor, batch: int, **options: Any
) -> list[Tensor]:
    """The tokens and the scores of all sentences."""
    found = []
    for some, their in zip(source.split(batch), lengths.split(batch), strict=True):
        found += [best[0] for best in generate(model, some, their, **options)]
    scores = torch.tensor([one.score for one in found])
    return [torch.tensor([one.tokens for one in found]), scores]


def _speed(timings: Timings, name: str, things: int) -> list[Cell]:
    milliseconds = timings.milliseconds(name)
    return [milliseconds, things / milliseconds * 1e3]


PARTS: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "training": measure_training,
    "models": measure_models,
    "decoding": measure_decoding,
    "peers": measure_peers,
}
