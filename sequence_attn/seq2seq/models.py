"""Whole models, from tokens to tokens: the recurrent encoder–decoder and the Transformer.

Both are an `EncoderDecoder`: `forward` scores known targets (teacher forcing), `encode`, `start`
and `step` decode one token at a time, and `generate` searches (`sequence_attn.seq2seq.search`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from attn_core import linear
from sequence_attn.positions import LearnedPositions, RotaryPositions, SinusoidalPositions
from sequence_attn.relative import ALiBi, T5RelativeBias
from sequence_attn.seq2seq.decoder import AttentionDecoder
from sequence_attn.seq2seq.encoder import Encoded, RecurrentEncoder
from sequence_attn.seq2seq.search import generate
from sequence_attn.seq2seq.state import DecoderState
from sequence_attn.transformer import TransformerCache, TransformerDecoder, TransformerEncoder

POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "t5")
_Self = TypeVar("_Self")


class _Reorderable(Protocol):
    def select(self: _Self, index: Tensor, *, memory: bool = True) -> _Self: ...


State = TypeVar("State", bound=_Reorderable)


class Predicted(NamedTuple):
    """What a model says of a batch of known targets.

    Attributes:
        logits: of the token behind each target token, `[B, T, V]`.
        weights: of the attention to the source, for every output token: `[B, reads, T, Ts]`, of a
            Transformer `[B, layers, H, T, Ts]`; None unless asked for.
        log_prob: of the choices of hard attention in training, `[B, hard reads, T]`; None
            otherwise, and where targets were not fully known (teacher_forcing below 1).
        entropy: of what they were drawn from, likewise.
    """

    logits: Tensor
    weights: Tensor | None
    log_prob: Tensor | None = None
    entropy: Tensor | None = None


class EncoderDecoder(nn.Module, ABC, Generic[State]):
    """A model that reads a source and predicts a target, one token after another.

    Args:
        source_size, target_size: how many tokens either vocabulary has.
        pad, bos, eos: the numbers of the symbols for padding, begin and end. Default 0, 2, 3.

    Raises:
        ValueError: a vocabulary without room for the symbols.
    """

    def __init__(self, source_size: int, target_size: int, pad: int, bos: int, eos: int) -> None:
        super().__init__()
        for name, size in (("source_size", source_size), ("target_size", target_size)):
            if size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        for name, symbol in (("pad", pad), ("bos", bos), ("eos", eos)):
            if not 0 <= symbol < target_size:
                raise ValueError(
                    f"{name} is {symbol}; expected a token of the target, 0 to {target_size - 1}"
                )
        self.source_size, self.target_size = source_size, target_size
        self.longest_target: int | None = None  # how many tokens decoding can go on for; None: any
        self.pad, self.bos, self.eos = pad, bos, eos

    @abstractmethod
    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Encoded:
        """Read the sources `[B, Ts]`, of which `source_lengths` `[B]` are real (default: all)."""

    @abstractmethod
    def start(self, encoded: Encoded) -> State:
        """Where decoding stands before the first token; what can be projected once is."""

    @abstractmethod
    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """The logits `[B, V]` of what follows the tokens `[B]`, and the next state."""

    @abstractmethod
    def decode(self, target: Tensor, encoded: Encoded, *, need_weights: bool = False) -> Predicted:
        """The logits of what follows each token of known targets `[B, T]`, all at once."""

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        *,
        source_lengths: Tensor | None = None,
        teacher_forcing: float = 1.0,
        need_weights: bool = False,
    ) -> Predicted:
        """Predict each token of a target from those before it.

        Args:
            source: int64 `[B, Ts]`.
            target: int64 `[B, T]`, from the begin symbol on and without the last token: what is
                predicted is the target one step later.
            source_lengths: integers `[B]`: how many tokens of each source are real. Default: all.
            teacher_forcing: how likely the true token before is what a step gets, in [0, 1];
                otherwise it gets the model's own best guess, drawn for each token (Bengio et al.,
                "Scheduled Sampling", 2015). Default 1, always.
            need_weights: return the weights as well; needs teacher_forcing=1. Default False.

        Returns:
            Predicted(logits, weights, log_prob, entropy).

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        if not 0 <= teacher_forcing <= 1:
            raise ValueError(
                f"teacher_forcing is {teacher_forcing}; a probability lies between 0 and 1"
            )
        _check_tokens("target", target, self.target_size)
        encoded = self.encode(source, source_lengths)
        if source.shape[0] != target.shape[0]:
            raise ValueError(
                f"source has batch size {source.shape[0]}, but target {target.shape[0]}"
            )
        if teacher_forcing == 1:
            return self.decode(target, encoded, need_weights=need_weights)
        if need_weights:
            raise ValueError(
                f"need_weights with teacher_forcing={teacher_forcing}: the weights belong to known "
                "targets, so use teacher_forcing=1"
            )
        if not target.shape[1]:
            return self.decode(target, encoded)
        state = self.start(encoded)
        logits: list[Tensor] = []
        for t, token in enumerate(target.unbind(1)):
            if t > 0:
                true = torch.rand(target.shape[0], device=target.device) < teacher_forcing
                token = torch.where(true, token, logits[-1].detach().argmax(-1))
            scores, state = self.step(token, state)
            logits.append(scores)
        return Predicted(torch.stack(logits, 1), None)

    @torch.no_grad()
    def generate(self, source: Tensor, source_lengths: Tensor | None = None, **options: Any) -> Any:
        """Write the targets of some sources; see `sequence_attn.seq2seq.generate`."""
        return generate(self, source, source_lengths, **options)

    def _check_source(self, source: Tensor) -> None:
        _check_tokens("source", source, self.source_size)


class Seq2Seq(EncoderDecoder[DecoderState]):
    """A recurrent encoder–decoder over two vocabularies, with any `AttentionDecoder`.

    Args:
        encoder: reads embedded sources; its input_size is the width of their embedding.
        decoder: writes; its input_size is the width of the target's embedding.
        source_size, target_size: how many tokens either vocabulary has.
        dropout: of the embeddings, in training. Default 0.
        tie_output: the output matrix is the target's embedding, which needs output_size =
            input_size of the decoder. Default False.
        pad, bos, eos: the numbers of the symbols. Default 0, 2, 3.

    Raises:
        ValueError: sizes that do not fit.

    >>> from sequence_attn.seq2seq import luong
    >>> encoder = RecurrentEncoder(8, 16, bidirectional=True)
    >>> decoder = luong(8, 32, encoder.output_size, input_feeding=False)
    >>> model = Seq2Seq(encoder, decoder, source_size=50, target_size=40)
    >>> source, target = torch.randint(4, 50, (2, 7)), torch.randint(4, 40, (2, 5))
    >>> model(source, target, source_lengths=torch.tensor([7, 3])).logits.shape
    torch.Size([2, 5, 40])
    """

    def __init__(
        self,
        encoder: RecurrentEncoder,
        decoder: AttentionDecoder,
        *,
        source_size: int,
        target_size: int,
        dropout: float = 0.0,
        tie_output: bool = False,
        pad: int = 0,
        bos: int = 2,
        eos: int = 3,
    ) -> None:
        super().__init__(source_size, target_size, pad, bos, eos)
        self.encoder, self.decoder, self.dropout = encoder, decoder, nn.Dropout(dropout)
        self.source_embedding = nn.Embedding(source_size, encoder.input_size)
        self.target_embedding = nn.Embedding(target_size, decoder.input_size)
        self.output = nn.Linear(decoder.output_size, target_size)
        if tie_output:
            if decoder.output_size != decoder.input_size:
                raise ValueError(
                    f"tie_output needs a decoder whose output_size, {decoder.output_size}, is its "
                    f"input_size, {decoder.input_size}"
                )
            self.output.weight = self.target_embedding.weight
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=embedding.embedding_dim**-0.5)

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Encoded:
        self._check_source(source)
        return self.encoder(self.dropout(self.source_embedding(source)), source_lengths)

    def start(self, encoded: Encoded) -> DecoderState:
        return self.decoder.start(encoded)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        output, state, _ = self.decoder.step(self._embed(token), state)
        return linear.apply(self.output, output), state

    def decode(self, target: Tensor, encoded: Encoded, *, need_weights: bool = False) -> Predicted:
        decoded = self.decoder(self._embed(target), encoded, need_weights=need_weights)
        logits = linear.apply(self.output, decoded.output)
        return Predicted(logits, decoded.weights, decoded.log_prob, decoded.entropy)

    def feed_previous(
        self,
        source: Tensor,
        first: Tensor,
        steps: int,
        *,
        source_lengths: Tensor | None = None,
        update_embedding_for_previous: bool = True,
    ) -> Predicted:
        """Predict `steps` tokens, each from the model's own best guess before it.

        Args:
            source: int64 `[B, Ts]`.
            first: int64 `[B]`, what the first step gets: the begin symbol, say.
            steps: how many tokens to predict.
            source_lengths: integers `[B]`: how many tokens of each source are real. Default: all.
            update_embedding_for_previous: whether gradients reach the embeddings of the guesses;
                if not, only that of the first symbol learns from the target's side. Default True.

        Returns:
            Predicted(logits, weights, …), logits `[B, steps, V]`.

        Raises:
            ValueError: arguments that do not fit each other.
        """
        _check_tokens("first", first, self.target_size, dims=1)
        if first.shape[0] != source.shape[0]:
            raise ValueError(f"first has batch size {first.shape[0]}, but source {source.shape[0]}")
        if steps < 0:
            raise ValueError(f"steps is {steps}; expected 0 or more")
        encoded = self.encode(source, source_lengths)

        def loop(previous: Tensor, step: int) -> Tensor:
            x = self._embed(linear.apply(self.output, previous).argmax(-1))
            return x if update_embedding_for_previous else x.detach()

        inputs = self._embed(first).unsqueeze(1).expand(-1, steps, -1)
        decoded = self.decoder(inputs, encoded, feed_previous=True, loop_function=loop)
        logits = linear.apply(self.output, decoded.output)
        return Predicted(logits, None, decoded.log_prob, decoded.entropy)

    def _embed(self, token: Tensor) -> Tensor:
        return self.dropout(self.target_embedding(token))


class TransformerState(NamedTuple):
    """Where a Transformer stands between two tokens.

    Attributes:
        cache: what its decoder need not compute again.
    """

    cache: TransformerCache

    def select(self, index: Tensor, *, memory: bool = True) -> TransformerState:
        """The sequences `index` `[n]`, in that order; see `DecoderState.select`."""
        return TransformerState(self.cache.select(index, memory=memory))


class Transformer(EncoderDecoder[TransformerState]):
    """The Transformer: an encoder and a decoder of attention alone.

    Vaswani et al., "Attention Is All You Need", 2017.

    Args:
        source_size, target_size: how many tokens either vocabulary has.
        size: the width of the model. Default 256.
        heads: of each attention. Default 8.
        layers: of the encoder and of the decoder, one number or two. Default 3.
        feed_forward_size: of the position-wise networks. Default 4 · size.
        dropout: everywhere, in training. Default 0.1.
        positions: "sinusoidal" (default), "learned", "rotary", "alibi" or "t5".
        max_length: the longest sequence that "learned" positions can serve; needed for them alone.
        norm_first: see `TransformerLayer`. Default True.
        tie: "none"; "output" (default): the output matrix is the target's embedding; "all": and
            the source's, for one joint vocabulary.
        pad, bos, eos: the numbers of the symbols. Default 0, 2, 3.
        options: of both stacks, see `TransformerEncoder`.

    Raises:
        ValueError: an unknown name, sizes that do not fit.

    >>> model = Transformer(50, 40, size=32, heads=4, layers=2)
    >>> source, target = torch.randint(4, 50, (2, 7)), torch.randint(4, 40, (2, 5))
    >>> predicted = model(source, target, source_lengths=torch.tensor([7, 3]), need_weights=True)
    >>> predicted.logits.shape, predicted.weights.shape
    (torch.Size([2, 5, 40]), torch.Size([2, 2, 4, 5, 7]))
    """

    def __init__(
        self,
        source_size: int,
        target_size: int,
        *,
        size: int = 256,
        heads: int = 8,
        layers: int | tuple[int, int] = 3,
        feed_forward_size: int | None = None,
        dropout: float = 0.1,
        positions: str = "sinusoidal",
        max_length: int | None = None,
        norm_first: bool = True,
        tie: str = "output",
        pad: int = 0,
        bos: int = 2,
        eos: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(source_size, target_size, pad, bos, eos)
        if tie not in ("none", "output", "all"):
            raise ValueError(f"tie is {tie!r}; expected 'none', 'output' or 'all'")
        if tie == "all" and source_size != target_size:
            raise ValueError(
                f"tie is 'all', but the vocabularies have {source_size} and {target_size} tokens: "
                "use one for both"
            )
        if positions not in POSITIONS:
            raise ValueError(f"positions is {positions!r}; known ones are {', '.join(POSITIONS)}")
        if (positions == "learned") != (max_length is not None):
            needs = "need" if max_length is None else "have no use for"
            raise ValueError(f"positions {positions!r} {needs} max_length; got {max_length}")
        self.size, self.dropout = size, nn.Dropout(dropout)
        counts = (layers, layers) if isinstance(layers, int) else tuple(layers)
        if len(counts) != 2:
            raise ValueError(f"layers is {layers}; expected one number, or two (encoder, decoder)")
        if heads < 1:
            raise ValueError(f"heads is {heads}; expected at least 1")
        self.longest_target = max_length
        stacks: list[type[TransformerEncoder] | type[TransformerDecoder]]
        stacks = [TransformerEncoder, TransformerDecoder]
        shared: dict[str, Any] = {
            "feed_forward_size": feed_forward_size,
            "dropout": dropout,
            "norm_first": norm_first,
            **options,
        }
        made: list[Any] = []
        for stack, count in zip(stacks, counts, strict=True):
            causal = stack is TransformerDecoder
            scheme = _scheme(positions, size, heads, max_length, causal)
            made.append(stack(count, size, heads, **scheme, **shared))
        self.encoder: TransformerEncoder = made[0]
        self.decoder: TransformerDecoder = made[1]
        self.source_embedding = nn.Embedding(source_size, size)
        self.target_embedding = nn.Embedding(target_size, size)
        self.output = nn.Linear(size, target_size)
        if tie == "all":
            self.source_embedding.weight = self.target_embedding.weight
        if tie != "none":
            self.output.weight = self.target_embedding.weight
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=size**-0.5)  # times √size: like the positions

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Encoded:
        self._check_source(source)
        x = self._embed(source, self.source_embedding)
        return Encoded(self.encoder(x, lengths=source_lengths).output, source_lengths)

    def start(self, encoded: Encoded) -> TransformerState:
        return TransformerState(self.decoder.start(encoded.output, lengths=encoded.lengths))

    def step(self, token: Tensor, state: TransformerState) -> tuple[Tensor, TransformerState]:
        x = self._embed(token.unsqueeze(1), self.target_embedding)
        output, _, cache = self.decoder(x, cache=state.cache)
        assert cache is not None
        return linear.apply(self.output, output.squeeze(1)), TransformerState(cache)

    def decode(self, target: Tensor, encoded: Encoded, *, need_weights: bool = False) -> Predicted:
        transformed = self.decoder(
            self._embed(target, self.target_embedding),
            encoded.output,
            memory_lengths=encoded.lengths,
            return_attention_weights=need_weights,
        )
        weights = None
        if transformed.weights is not None:
            layers = [layer.memory for layer in transformed.weights if layer.memory is not None]
            weights = torch.stack(layers, 1)
        return Predicted(linear.apply(self.output, transformed.output), weights)

    def _embed(self, tokens: Tensor, embedding: nn.Embedding) -> Tensor:
        return self.dropout(embedding(tokens) * math.sqrt(self.size))


def _scheme(
    name: str, size: int, heads: int, max_length: int | None, causal: bool
) -> dict[str, Any]:
    """The arguments of a stack that give it these positions."""
    match name:
        case "sinusoidal":
            return {"positions": SinusoidalPositions(size)}
        case "learned":
            assert max_length is not None
            return {"positions": LearnedPositions(max_length, size)}
        case "rotary":
            return {"rotary": RotaryPositions(size // heads)}
        case "alibi":
            return {"relative_bias": ALiBi(heads)}
    return {"relative_bias": T5RelativeBias(heads, bidirectional=not causal)}


def _check_tokens(name: str, tokens: Tensor, size: int, dims: int = 2) -> None:
    if tokens.dim() != dims or tokens.dtype != torch.int64:
        raise ValueError(
            f"{name} has shape {list(tokens.shape)} and dtype {tokens.dtype}; expected int64 "
            f"{'[B, T]' if dims == 2 else '[B]'}"
        )
    if not torch.compiler.is_compiling() and tokens.numel():
        low, high = (int(x) for x in torch.aminmax(tokens))
        if low < 0 or high >= size:
            raise ValueError(
                f"{name} has the token {low if low < 0 else high}; expected 0 to {size - 1}: was "
                "it encoded with another vocabulary?"
            )
