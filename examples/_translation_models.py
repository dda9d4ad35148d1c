"""Translation models from plain settings, and their files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from datasets import Tokenizer, Vocabulary, VocabularyError
from datasets.vocabulary import BOS, EOS, PAD
from examples._files import UserError, save_model, write_json
from sequence_attn import Attention, HardAttention, LocalAttention
from sequence_attn.seq2seq import (
    AttentionDecoder,
    EncoderDecoder,
    RecurrentEncoder,
    Seq2Seq,
    Transformer,
    bahdanau,
    context_only,
    grammar,
    luong,
    plain,
)

KINDS = ("bahdanau", "luong", "context_only", "grammar", "rnn", "transformer")
SCORES = (
    *("additive", "concat", "general", "dot", "scaled_dot", "cosine", "separable", "location"),
    *("local-m", "local-p", "hard"),
)
Model = EncoderDecoder[Any]


@dataclass(frozen=True)
class Architecture:
    """What a model is built from: plain values, which are saved beside its weights.

    Args:
        kind: one of `KINDS`; "rnn" has no attention.
        source_size: how many tokens the source's vocabulary has.
        target_size: that of the target.
        embedding_size: the width of both embeddings; of a Transformer the width of all.
        state_size: of the recurrent decoder; each direction of the encoder has half of it.
        layers: of the encoder, and as many of the decoder.
        cell: "gru", "lstm" or "rnn".
        attention: the score of a recurrent decoder ("general", …), "local-m", "local-p" or "hard";
            of a Transformer the score of the attention of a sequence to itself. Default: the
            paper's.
        normalizer: how scores become weights: "softmax", "sparsemax" or "entmax".
        window: of a local attention.
        input_feeding: of "luong".
        context: whether "rnn" gets the encoder's last state at every step.
        reads: of "grammar".
        heads, feed_forward_size, positions: of a Transformer.
        max_length: the longest sequence that "learned" positions, or the longest source that the
            score "location", can serve; else None.
        dropout: of embeddings, between layers and of outputs; of a Transformer everywhere.
        tie: the output matrix is the target's embedding.
    """

    kind: str
    source_size: int
    target_size: int
    embedding_size: int = 256
    state_size: int = 512
    layers: int = 1
    cell: str = "gru"
    attention: str | None = None
    normalizer: str = "softmax"
    window: int = 10
    input_feeding: bool = False
    context: bool = False
    reads: int = 1
    heads: int = 8
    feed_forward_size: int = 512
    positions: str = "sinusoidal"
    max_length: int | None = None
    dropout: float = 0.0
    tie: bool = False

    @property
    def source_limit(self) -> int | None:
        """The longest source, with its end symbol, that the model can read; None for any."""
        bounded = self.positions == "learned" if self.kind == "transformer" else self.located
        return self.max_length if bounded else None

    @property
    def target_limit(self) -> int | None:
        """The longest target, with its begin symbol, that the model can write; None for any."""
        return self.source_limit if self.kind == "transformer" else None

    @property
    def located(self) -> bool:
        return self.kind != "transformer" and self.attention == "location"

    def build(self) -> Model:
        """A new model, its weights drawn from torch's generator.

        Raises:
            UserError: settings that do not fit each other.
        """
        try:
            return self._transformer() if self.kind == "transformer" else self._recurrent()
        except ValueError as error:
            raise UserError(f"such a model cannot be built: {error}") from error

    def _transformer(self) -> Transformer:
        options: dict[str, Any] = {} if self.attention is None else {"score": self.attention}
        return Transformer(
            self.source_size,
            self.target_size,
            size=self.embedding_size,
            heads=self.heads,
            layers=self.layers,
            feed_forward_size=self.feed_forward_size,
            dropout=self.dropout,
            positions=self.positions,
            max_length=self.target_limit,
            tie="output" if self.tie else "none",
            normalizer=self.normalizer,
            pad=PAD,
            bos=BOS,
            eos=EOS,
            **options,
        )

    def _recurrent(self) -> Seq2Seq:
        if self.state_size % 2:
            raise ValueError(
                f"the state has width {self.state_size}; each direction of the encoder has half of "
                "it, so it must be even"
            )
        encoder = RecurrentEncoder(
            self.embedding_size,
            self.state_size // 2,
            self.cell,
            bidirectional=True,
            layers=self.layers,
            dropout=self.dropout if self.layers > 1 else 0.0,
        )
        return Seq2Seq(
            encoder,
            self._decoder(),
            source_size=self.source_size,
            target_size=self.target_size,
            dropout=self.dropout,
            tie_output=self.tie,
            pad=PAD,
            bos=BOS,
            eos=EOS,
        )

    def _decoder(self) -> AttentionDecoder:
        width, state = self.embedding_size, self.state_size  # the memory is as wide as the state
        options: dict[str, Any] = {
            "cell": self.cell,
            "layers": self.layers,
            "dropout": self.dropout,
        }
        # What the output matrix reads is as wide as an embedding: most of the work lies there
        match self.kind:
            case "bahdanau":
                return bahdanau(
                    width, state, state // 2, attention=self._read("additive"), output_size=width,
                    **options,
                )  # fmt: skip
            case "luong":
                return luong(
                    width, state, state, attention=self._read("general"), output_size=width,
                    input_feeding=self.input_feeding, **options,
                )  # fmt: skip
            case "context_only":
                return context_only(
                    width, state, state, attention=self._read("additive"), **options
                )
            case "grammar":
                if self.attention not in (None, "additive") or self.normalizer != "softmax":
                    raise ValueError("'grammar' has an additive score and softmax of its own")
                return grammar(width, state, state, reads=self.reads, output_size=width, **options)
            case "rnn":
                if self.attention is not None:
                    raise ValueError(f"'rnn' has no attention; got {self.attention!r}")
                return plain(width, state, state, context=self.context, **options)
        raise ValueError(f"{self.kind!r} is no model; known ones are {', '.join(KINDS)}")

    def _read(self, default: str) -> Attention:
        name = self.attention or default
        sizes: dict[str, Any] = {"query_size": self.state_size, "key_size": self.state_size}
        local = {"local-m": "monotonic", "local-p": "predictive"}
        if name in local:
            return LocalAttention(local[name], self.window, normalizer=self.normalizer, **sizes)
        if name == "hard":
            # Straight-through needs no loss of its own, as REINFORCE does
            return HardAttention(estimator="gumbel", **sizes)
        limit = self.max_length if name == "location" else None
        return Attention(name, self.normalizer, max_length=limit, **sizes)


def hidden_outputs(model: Model, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    """What a recurrent model's output matrix would read, `[B, T, output_size]`."""
    assert isinstance(model, Seq2Seq)
    inputs = model.dropout(model.target_embedding(target))
    output: Tensor = model.decoder(inputs, model.encode(source, lengths)).output
    return output


@dataclass(frozen=True)
class Translator:
    """A trained model and all that it takes to use it.

    Args:
        model: in evaluation mode.
        architecture: of the model.
        source, target: the vocabularies it was trained with.
        source_tokenizer, target_tokenizer: how text becomes tokens, and tokens text.
        config: all of config.json.
    """

    model: Model
    architecture: Architecture
    source: Vocabulary
    target: Vocabulary
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    config: dict[str, Any]


def save_translator(
    folder: Path,
    architecture: Architecture,
    weights: dict[str, Tensor],
    vocabularies: tuple[Vocabulary, Vocabulary],
    tokenizers: tuple[Tokenizer, Tokenizer],
    about: dict[str, Any],
) -> None:
    """Writes vocabulary.json, model.safetensors and config.json, which names the other two."""
    sides = dict(zip(("source", "target"), vocabularies, strict=True))
    write_json(folder / "vocabulary.json", {side: v.to_dict() for side, v in sides.items()})
    config = {
        "model": dataclasses.asdict(architecture),
        "vocabularies": {side: vocabulary.fingerprint for side, vocabulary in sides.items()},
        "tokenizers": [dataclasses.asdict(tokenizer) for tokenizer in tokenizers],
        **about,
    }
    save_model(folder, weights, config)


def own_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Every weight once, also where two modules share it; copies on the CPU."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    state = model.state_dict()
    return {name: x.detach().cpu().clone() for name, x in tensors.items() if name in state}


def load_weights(model: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    """Puts what `own_weights` returned into a model.

    Raises:
        RuntimeError: names or shapes differ.
    """
    wanted, found = set(own_weights(model)), set(weights)
    if wanted != found:
        raise RuntimeError(f"weights are missing or too many: {sorted(wanted ^ found)}")
    model.load_state_dict(weights, strict=False)  # a shared weight has two names, and comes once


def load_translator(folder: Path, device: str = "cpu") -> Translator:
    """Reads what `save_translator` wrote.

    Raises:
        UserError: a file is missing or damaged, or they do not belong together.
    """
    paths = [folder / name for name in ("config.json", "vocabulary.json", "model.safetensors")]
    try:
        config = json.loads(paths[0].read_text(encoding="utf-8"))
        saved = json.loads(paths[1].read_text(encoding="utf-8"))
        if hashlib.sha256(paths[2].read_bytes()).hexdigest() != config["weights_sha256"]:
            raise UserError(
                f"{paths[2]} is damaged or belongs to another model: its sha256 is not the one in"
                " config.json; train again, or copy all files together"
            )
        source, target = (Vocabulary.from_dict(saved[side]) for side in ("source", "target"))
        for side, vocabulary in (("source", source), ("target", target)):
            vocabulary.check(config["vocabularies"][side], f"{side} vocabulary in {paths[1]}")
        if missing := {"data", "search"} - config.keys():
            raise ValueError(f"without {' and '.join(sorted(missing))}")
        architecture = Architecture(**config["model"])
        if (architecture.source_size, architecture.target_size) != (len(source), len(target)):
            raise ValueError("the sizes of model and vocabularies differ")
        read, written = (Tokenizer(**settings) for settings in config["tokenizers"])
        model = architecture.build()
        load_weights(model, load_file(paths[2]))
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename}: {error.strerror}; --model must name the --out folder"
            " of a training"
        ) from error
    except VocabularyError as error:
        raise UserError(str(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(
            f"{paths[0]} is damaged or not a translation model's ({error!r}); train again"
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{paths[2]} does not fit config.json: {reason}") from error
    return Translator(model.to(device).eval(), architecture, source, target, read, written, config)
