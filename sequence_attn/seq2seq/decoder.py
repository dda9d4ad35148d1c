"""One recurrent decoder with attention; its switches are what the literature's decoders differ in.

A step has four parts: read the memory, run the cell, put both together for the output, and keep
something for the next step. The papers disagree on their order and on what goes into each:

    attend "before" the cell              attend "after" the cell
    c_t = read(s_{t-1})                   s_t = cell(input_t, s_{t-1})
    s_t = cell(input_t, s_{t-1})          c_t = read(s_t)
    output_t = readout(s_t, c_t, y_{t-1})         (both)

`sequence_attn.seq2seq.papers` builds the well-known ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from attn_core import Score, linear
from attn_core.compat import renewed
from sequence_attn.attention import Attention
from sequence_attn.hard import HardAttention, HardContext
from sequence_attn.monotonic import MonotonicContext
from sequence_attn.seq2seq.encoder import Encoded, recurrent, run
from sequence_attn.seq2seq.state import Decoded, DecoderState, Read, joined, own_inputs

_CHOICES = {
    "attend": ("before", "after"),
    "query": ("top", "all"),
    "inputs": ("embedding", "context", "both"),
    "merge": ("join", "linear"),
    "feed": (None, "context", "attentional"),
    "readout": ("state", "join", "linear", "attentional", "deep"),
    "readout_state": ("new", "previous"),
    "initial": ("last", "bridge", "backward", "learned", "zeros", "random"),
}


class AttentionDecoder(nn.Module):
    """A recurrent decoder that attends to an encoded sequence at every step.

    Args:
        attention: an `Attention` of `sequence_attn`, hard and local ones included, or a Score of
            `attn_core`, which stands for the `Attention` that has it; several of them for as many
            reads per step, whose contexts are concatenated; or None, for the plain encoder–decoder,
            whose context is the encoder's last state at every step.
        input_size: the width of an input, such as an embedding of the token before.
        state_size: S, the width of the cell's state.
        memory_size: D, the width of an encoded step.
        cell: "gru" (default), "lstm" or "rnn".
        layers: how many, one upon the other. Default 1.
        attend: "before" the cell runs, with the state before, or "after" it (default), with the
            new one.
        query: what of the state asks: the hidden state of the "top" layer (default), or "all"
            layers, and both halves of an LSTM's state, concatenated.
        inputs: what enters the cell: the "embedding" (default), the "context" of this step, or
            "both"; the latter two need attend="before", or no attention.
        merge: whether the inputs and what is fed are a "join" (default), or merged by a "linear"
            map to input_size.
        feed: what also enters the cell from the step before: None (default), its "context" (zeros
            at first), or its "attentional" output (zeros at first; Luong's input feeding).
        readout: the output: the "state" s; a "join" [s; c]; its "linear" map, W [s; c] + b; the
            "attentional" state, tanh(W [c; s]) (default); or "deep", a maxout layer over
            U s + V y + C c, where y is the input.
        readout_state: the "new" state (default) or the "previous" one is what the readout sees.
        output_size: of readout "linear", "attentional" and "deep". Default: state_size.
        initial: the first state: the encoder's "last" (default; forwards and backwards
            concatenated), which must have the decoder's layers and width; a "bridge", tanh(W [→h;
            ←h] + b) of the top layer; that of the "backward" encoder alone, tanh(W ←h + b);
            "learned"; "zeros"; or "random", standard normal numbers times 0.1, drawn at each call.
        encoder_size: H of the encoder, for "bridge" and "backward". Default: memory_size divided
            by its directions.
        bidirectional: whether the encoder reads both ways. Default False.
        initial_state_attention: whether the initial state attends. With attend="before", the first
            step reads zeros if it does not (default: it does). With feed="context", the context fed
            to the first step is read with the initial state if it does (default: it does not).
        dropout: of the inputs between layers and of the output, in training. Default 0.

    Raises:
        ValueError: an unknown choice, choices that exclude each other, or an attention whose sizes
            do not fit.

    >>> from sequence_attn import LuongAttention
    >>> from sequence_attn.seq2seq import RecurrentEncoder
    >>> encoder = RecurrentEncoder(8, 16)
    >>> attention = LuongAttention("general", query_size=16)
    >>> decoder = AttentionDecoder(attention, input_size=8, state_size=16, memory_size=16)
    >>> encoded = encoder(torch.randn(3, 7, 8), torch.tensor([7, 2, 5]))
    >>> decoded = decoder(torch.randn(3, 4, 8), encoded, need_weights=True)
    >>> decoded.output.shape, decoded.weights.shape
    (torch.Size([3, 4, 16]), torch.Size([3, 1, 4, 7]))
    """

    def __init__(
        self,
        attention: Attention | Score | Sequence[Attention | Score] | None,
        *,
        input_size: int,
        state_size: int,
        memory_size: int,
        cell: str = "gru",
        layers: int = 1,
        attend: str = "after",
        query: str = "top",
        inputs: str = "embedding",
        merge: str = "join",
        feed: str | None = None,
        readout: str = "attentional",
        readout_state: str = "new",
        output_size: int | None = None,
        initial: str = "last",
        encoder_size: int | None = None,
        bidirectional: bool = False,
        initial_state_attention: bool | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        given = {
            "attend": attend,
            "query": query,
            "inputs": inputs,
            "merge": merge,
            "feed": feed,
            "readout": readout,
            "readout_state": readout_state,
            "initial": initial,
        }
        for name, choice in given.items():
            if choice not in _CHOICES[name]:
                known = ", ".join(map(repr, _CHOICES[name]))
                raise ValueError(f"{name} is {choice!r}; expected one of {known}")
        if attention is None:
            attention = []
        elif isinstance(attention, (nn.Module, Score)):
            attention = [attention]
        reads = [Attention(read) if isinstance(read, Score) else read for read in attention]
        for read in reads:
            if not isinstance(read, Attention):
                raise TypeError(
                    f"attention is {type(read).__name__}; expected an Attention of queries over "
                    "keys, a Score, several of them, or None"
                )
        self.reads = nn.ModuleList(reads)
        if self.reads and attend == "after" and inputs != "embedding":
            raise ValueError(
                f"inputs is {inputs!r}, but with attend='after' this step's context comes after "
                "the cell: use feed='context' for that of the step before, or attend='before'"
            )
        if feed == "attentional" and readout != "attentional":
            raise ValueError(
                f"feed is 'attentional', but readout is {readout!r}, which makes no attentional "
                "state: use readout='attentional'"
            )
        if readout_state == "previous" and attend == "after":
            raise ValueError(
                "readout_state is 'previous', but with attend='after' the context belongs to the "
                "new state: use attend='before'"
            )
        self.attend, self.query, self.inputs, self.feed = attend, query, inputs, feed
        self.readout, self.readout_state, self.initial = readout, readout_state, initial
        self.input_size, self.state_size, self.memory_size = input_size, state_size, memory_size
        self.layers, self.dropout = layers, nn.Dropout(dropout)
        if initial_state_attention is None:
            initial_state_attention = attend == "before"
        self.initial_state_attention = initial_state_attention
        self.halves = 2 if cell == "lstm" else 1
        for name, number in (("memory_size", memory_size), ("output_size", output_size)):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}; expected at least 1")
        context = memory_size * max(len(self.reads), 1)
        self._check_attention()

        joined = {"embedding": input_size, "context": context, "both": input_size + context}[inputs]
        size = {"deep": state_size, "state": state_size, "join": state_size + context}.get(
            readout, state_size
        )
        self.output_size = size if output_size is None else output_size
        if output_size is not None and readout in ("state", "join") and output_size != size:
            raise ValueError(
                f"output_size is {output_size}, but readout {readout!r} has width {size}: leave it "
                "out, or use 'linear'"
            )
        joined += {None: 0, "context": context, "attentional": self.output_size}[feed]
        self.merge = nn.Linear(joined, input_size) if merge == "linear" else nn.Identity()
        enters = input_size if merge == "linear" else joined
        self.cell = recurrent(cell, enters, state_size, layers, dropout)
        if readout in ("linear", "attentional"):
            bias = readout == "linear"  # Luong's attentional state has none
            self.combine = nn.Linear(context + state_size, self.output_size, bias=bias)
        elif readout == "deep":
            self.combine = nn.Linear(state_size + input_size + context, 2 * self.output_size)
        directions = 2 if bidirectional else 1
        encoder_size = memory_size // directions if encoder_size is None else encoder_size
        self.encoder_size, self.directions = encoder_size, directions
        if initial == "learned":
            self.first = nn.Parameter(torch.zeros(self.halves, layers, state_size))
        elif initial in ("bridge", "backward"):
            if initial == "backward" and not bidirectional:
                raise ValueError(
                    "initial is 'backward', but bidirectional is False: use an encoder that reads "
                    "both ways, or another initial state"
                )
            width = encoder_size * (directions if initial == "bridge" else 1)
            self.bridge = nn.Linear(width, layers * state_size)

    @property
    def query_size(self) -> int:
        """The width of a query, which every attention must expect."""
        return self.state_size * (self.layers * self.halves if self.query == "all" else 1)

    @property
    def in_one_call(self) -> bool:
        """Whether known inputs are decoded in one call of the cell and one product of attention.

        They are if no input depends on a context or an output.
        """
        if not self.reads:
            return self.feed is None and self.readout_state == "new"
        hidden = self.query == "top" or (self.layers == 1 and self.halves == 1)
        return self.attend == "after" and self.feed is None and hidden

    def start(self, encoded: Encoded) -> DecoderState:
        """The state before the first step; the keys are projected here, once.

        Raises:
            ValueError: an encoded sequence whose width or state does not fit.
        """
        if encoded.output.shape[-1] != self.memory_size:
            raise ValueError(
                f"the encoder's output has width {encoded.output.shape[-1]}; expected memory_size, "
                f"{self.memory_size}"
            )
        memories = tuple(
            read.precompute(encoded.output, lengths=encoded.lengths) for read in self._attentions
        )
        cell = self._first(encoded)
        state = DecoderState(cell, None, 0, memories, None)
        if not self.reads:
            state = renewed(state, summary=encoded.last())
        if self.feed == "attentional":
            fed = encoded.output.new_zeros(encoded.output.shape[0], self.output_size)
            return renewed(state, fed=fed)
        if self.feed == "context":
            if self.initial_state_attention or not self.reads:
                read = self._read(self._ask(cell), state, False)
            else:
                read = self._read_nothing(state, False)
            return state.after(read, fed=read.context.squeeze(1))
        return state

    def step(
        self, x: Tensor, state: DecoderState, *, need_weights: bool = False
    ) -> tuple[Tensor, DecoderState, Read]:
        """One step: inputs `[B, input_size]` to outputs `[B, output_size]`.

        Returns the output, the next state, and what was read.
        """
        before = state.cell
        x = x.unsqueeze(1)
        if self.attend == "before" and self.reads:
            if state.step == 0 and not self.initial_state_attention:
                read = self._read_nothing(state, need_weights)
            else:
                read = self._read(self._ask(before), state, need_weights)
            top, after = self._run(x, read.context, state.fed, before)
        else:
            summary = None if state.summary is None else state.summary.unsqueeze(1)
            top, after = self._run(x, summary, state.fed, before)
            # What the top layer gave is its new state
            read = self._read(top if self.query == "top" else self._ask(after), state, need_weights)
        seen = before[0][-1].unsqueeze(1) if self.readout_state == "previous" else top
        output = self.dropout(self._combine(x, seen, read.context)).squeeze(1)
        fed = None
        if self.feed is not None:
            fed = output if self.feed == "attentional" else read.context.squeeze(1)
        return output, state.after(read, cell=after, fed=fed, step=state.step + 1), read

    def forward(
        self,
        inputs: Tensor,
        encoded: Encoded | None = None,
        *,
        state: DecoderState | None = None,
        feed_previous: bool | Tensor = False,
        loop_function: Callable[[Tensor, int], Tensor] | None = None,
        need_weights: bool = False,
    ) -> Decoded:
        """Decode known inputs, or one's own.

        Args:
            inputs: `[B, T, input_size]`, shifted by the caller: the first is the start symbol's.
            encoded: what an encoder returned; needed unless there is a state.
            state: from `start` or from the last call; the inputs continue what came before.
                Default: none.
            feed_previous: True (or a bool tensor, `[]`, `[B]` or `[B, T]`, where it is) gives a
                step `loop_function(previous, step)` in place of its input; the first input is
                always the caller's. Default False.
            loop_function: makes the next input `[B, input_size]` from the output before
                `[B, output_size]` and the number of the step; needed for feed_previous.
            need_weights: return the weights as well. Default False.

        Returns:
            Decoded(output, weights, state, log_prob, entropy).

        Raises:
            ValueError: arguments that do not fit each other.
        """
        if inputs.dim() != 3 or inputs.shape[-1] != self.input_size:
            raise ValueError(
                f"inputs has shape {list(inputs.shape)}; expected [B, T, {self.input_size}]"
            )
        if state is None:
            if encoded is None:
                raise ValueError("encoded is needed, unless state holds where to go on from")
            state = self.start(encoded)
        if inputs.shape[0] != state.cell[0].shape[1]:
            raise ValueError(
                f"inputs has batch size {inputs.shape[0]}, but what was encoded "
                f"{state.cell[0].shape[1]}"
            )
        own = own_inputs(feed_previous, inputs)
        if own is not None and loop_function is None:
            raise ValueError(
                "feed_previous needs a loop_function(previous, step), which makes an input of the "
                "output before"
            )
        if own is None and self.in_one_call and inputs.numel():
            return self._decode(inputs, state, need_weights)
        outputs: list[Tensor] = []
        reads: list[Read] = []
        for t, x in enumerate(inputs.unbind(1)):
            if own is not None and loop_function is not None and t > 0:
                x = torch.where(own[:, t, None], loop_function(outputs[-1], t), x)
            output, state, read = self.step(x, state, need_weights=need_weights)
            outputs.append(output)
            reads.append(read)
        if not outputs:
            return Decoded(
                inputs.new_zeros(inputs.shape[0], 0, self.output_size), None, state, None, None
            )
        parts = (joined([getattr(read, name) for read in reads]) for name in Read._fields[1:4])
        weights, log_prob, entropy = parts
        return Decoded(torch.stack(outputs, 1), weights, state, log_prob, entropy)

    def _decode(self, inputs: Tensor, state: DecoderState, need_weights: bool) -> Decoded:
        """All steps at once: the cell in one call, then all queries in one product."""
        summary = None
        if state.summary is not None:
            summary = state.summary.unsqueeze(1).expand(-1, inputs.shape[1], -1)
        top, cell = self._run(inputs, summary, None, state.cell)
        read = self._read(top, state, need_weights)
        output = self.dropout(self._combine(inputs, top, read.context))
        after = state.after(read, cell=cell, step=state.step + inputs.shape[1])
        return Decoded(output, read.weights, after, read.log_prob, read.entropy)

    def _run(
        self,
        x: Tensor,
        context: Tensor | None,
        fed: Tensor | None,
        state: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The cell over steps `[B, T, …]`: the top layer's hidden states, and the last state."""
        parts = []
        if self.inputs != "context":
            parts.append(x)
        if self.inputs != "embedding":
            assert context is not None
            parts.append(context)
        if fed is not None:
            parts.append(fed.unsqueeze(1))
        x = linear.apply(self.merge, torch.cat(parts, -1) if len(parts) > 1 else parts[0])
        state = tuple(half.contiguous() for half in state)
        top, after = run(self.cell, x, state if self.halves == 2 else state[0])
        return top, after if isinstance(after, tuple) else (after,)

    def _ask(self, cell: tuple[Tensor, ...]) -> Tensor:
        """The query of one step, `[B, 1, query_size]`."""
        if self.query == "top":
            return cell[0][-1].unsqueeze(1)
        return torch.cat([layer for half in cell for layer in half], -1).unsqueeze(1)

    def _read(self, query: Tensor, state: DecoderState, need_weights: bool) -> Read:
        if not self.reads:
            assert state.summary is not None
            context = state.summary.unsqueeze(1).expand(-1, query.shape[1], -1)
            return Read(context, None, None, None)
        reads = [
            read(query, memory, step=state.step, need_weights=need_weights)
            for read, memory in zip(self._attentions, state.memories, strict=True)
        ]
        contexts = [read.context for read in reads]
        context = contexts[0] if len(reads) == 1 else torch.cat(contexts, -1)
        weights = torch.stack([read.weights for read in reads], 1) if need_weights else None
        memories = tuple(
            read.memory if isinstance(read, MonotonicContext) else memory
            for read, memory in zip(reads, state.memories, strict=True)
        )
        hard = [read for read in reads if isinstance(read, HardContext)]
        if not hard or hard[0].log_prob is None:
            return Read(context, weights, None, None, memories)
        log_prob, entropy = (
            torch.stack([getattr(read, name) for read in hard], 1)
            for name in HardContext._fields[2:]
        )
        return Read(context, weights, log_prob, entropy, memories)

    def _combine(self, x: Tensor, state: Tensor, context: Tensor) -> Tensor:
        match self.readout:
            case "state":
                return state
            case "join":
                return torch.cat([state, context], -1)
            case "linear":
                return linear.apply(self.combine, torch.cat([state, context], -1))
            case "attentional":
                return torch.tanh(linear.apply(self.combine, torch.cat([context, state], -1)))
        pairs = linear.apply(self.combine, torch.cat([state, x, context], -1))
        return pairs.unflatten(-1, (-1, 2)).amax(-1)

    def _first(self, encoded: Encoded) -> tuple[Tensor, ...]:
        """The initial state, `[layers, B, S]` for each half."""
        like = encoded.output
        shape = self.layers, like.shape[0], self.state_size
        zeros = like.new_zeros(shape)
        match self.initial:
            case "zeros":
                return (zeros,) * self.halves
            case "random":
                return tuple(0.1 * torch.randn_like(zeros) for _ in range(self.halves))
            case "learned":
                return tuple(half.unsqueeze(1).expand(shape) for half in self.first)
        if not encoded.state:
            raise ValueError(
                f"initial is {self.initial!r}, but the encoder has no state: use 'learned', "
                "'zeros' or 'random'"
            )
        if self.initial == "last":
            states = tuple(x.transpose(1, 2).flatten(2) for x in encoded.state)[: self.halves]
            if tuple(states[0].shape) != shape:
                layers, _, width = states[0].shape
                raise ValueError(
                    f"initial is 'last', but the encoder ends with {layers} layers of width "
                    f"{width}, and the decoder starts with {self.layers} of width "
                    f"{self.state_size}: make them equal, or use initial='bridge'"
                )
        else:
            top = encoded.state[0][-1]  # [directions, B, H]
            if self.initial == "backward" and len(top) == 1:
                raise ValueError(
                    "initial is 'backward', but the encoder reads forwards only: build it with "
                    "bidirectional=True, or use another initial state"
                )
            top = top[1] if self.initial == "backward" else torch.cat(list(top), -1)
            if top.shape[-1] != self.bridge.in_features:
                raise ValueError(
                    f"initial is {self.initial!r}, but the encoder's last state has width "
                    f"{top.shape[-1]}; expected {self.bridge.in_features}: see encoder_size and "
                    "bidirectional"
                )
            first = torch.tanh(self.bridge(top)).unflatten(-1, (self.layers, -1))
            states = (first.transpose(0, 1),)
        return states + (zeros,) * (self.halves - len(states))

    def _read_nothing(self, state: DecoderState, need_weights: bool) -> Read:
        """What a step that does not attend has read: zeros."""
        zero = state.cell[0].new_zeros
        batch, keys, _ = state.memories[0].key.shape
        shape = batch, len(self.reads), 1
        context = zero(batch, 1, len(self.reads) * self.memory_size)
        weights = zero(*shape, keys) if need_weights else None
        hard = sum(isinstance(read, HardAttention) for read in self.reads)
        if self.training and hard:
            return Read(context, weights, zero(batch, hard, 1), zero(batch, hard, 1))
        return Read(context, weights, None, None)

    @property
    def _attentions(self) -> list[Attention]:
        return [read for read in self.reads if isinstance(read, Attention)]

    def _check_attention(self) -> None:
        for attention in self._attentions:
            if attention.query_size not in (None, self.query_size):
                raise ValueError(
                    f"attention expects queries of width {attention.query_size}, but query="
                    f"{self.query!r} of this decoder has width {self.query_size}: build it with "
                    f"query_size={self.query_size}"
                )
            if attention.key_size not in (None, self.memory_size):
                raise ValueError(
                    f"attention expects keys of width {attention.key_size}, but memory_size is "
                    f"{self.memory_size}: build it with key_size={self.memory_size}"
                )
