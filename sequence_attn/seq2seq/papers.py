"""The decoders of the literature, each with its paper's order of operations."""

from __future__ import annotations

from typing import Any

from attn_core import Score
from sequence_attn.attention import Attention
from sequence_attn.classical import BahdanauAttention, LuongAttention
from sequence_attn.local import LocalAttention
from sequence_attn.seq2seq.decoder import AttentionDecoder


def bahdanau(
    input_size: int,
    state_size: int,
    encoder_size: int,
    *,
    attention: Attention | Score | None = None,
    attention_size: int | None = None,
    output: str = "deep",
    output_size: int | None = None,
    **options: Any,
) -> AttentionDecoder:
    """RNNsearch: attend with the previous state, then run the cell on embedding and context.

    `c_i = read(s_{i-1})`, `s_i = GRU([y_{i-1}; c_i], s_{i-1})`; the first state is
    `tanh(W ←h_1)`, from the backward half of a bidirectional encoder. The output is the paper's
    maxout layer over `U s_{i-1} + V y_{i-1} + C c_i`: its appendix A.2.2 has the state *before* the
    cell there, which most programs overlook. Bahdanau, Cho, Bengio, "Neural Machine Translation by
    Jointly Learning to Align and Translate", 2015. (The gated unit is torch's, which applies the
    reset gate behind the matrix product.)

    Args:
        input_size: the width of an embedding.
        state_size: of the decoder's cell.
        encoder_size: H, of one direction of the encoder; the memory is 2 · H wide.
        attention: which attention, in place of the paper's.
        attention_size: of the paper's. Default: state_size.
        output: "deep" (default), or another readout of `AttentionDecoder`, which then sees the new
            state.
        output_size: the width of the output. Default: state_size.
        options: of `AttentionDecoder`.

    >>> import torch
    >>> from sequence_attn.seq2seq import RecurrentEncoder
    >>> encoder, decoder = RecurrentEncoder(8, 16, bidirectional=True), bahdanau(8, 20, 16)
    >>> decoder(torch.randn(3, 4, 8), encoder(torch.randn(3, 7, 8))).output.shape
    torch.Size([3, 4, 20])
    """
    if attention is None:
        hidden = state_size if attention_size is None else attention_size
        attention = BahdanauAttention(state_size, 2 * encoder_size, hidden)
    first: dict[str, Any] = {"initial": "backward", "bidirectional": True}
    return AttentionDecoder(
        attention,
        input_size=input_size,
        state_size=state_size,
        memory_size=2 * encoder_size,
        attend="before",
        inputs="both",
        readout=output,
        readout_state="previous" if output == "deep" else "new",
        output_size=output_size,
        encoder_size=encoder_size,
        **first | options,
    )


def luong(
    input_size: int,
    state_size: int,
    memory_size: int,
    *,
    attention: Attention | Score | str = "general",
    window: int = 10,
    max_length: int | None = None,
    input_feeding: bool = True,
    **options: Any,
) -> AttentionDecoder:
    """Run the cell, attend with its new state, and put both together in the attentional state.

    `h_t = cell([y_{t-1}; h̃_{t-1}], h_{t-1})`, `c_t = read(h_t)`, `h̃_t = tanh(W_c [c_t; h_t])`;
    h̃_{t-1} is left out without input feeding. Luong, Pham, Manning, "Effective Approaches to
    Attention-based Neural Machine Translation", 2015.

    Args:
        input_size: the width of an embedding.
        state_size: of the decoder's cell.
        memory_size: the width of an encoded step.
        attention: the score of a global attention, "dot", "general" (default), "concat" or
            "location"; "local-m" or "local-p"; or any `Attention` or `attn_core.Score`.
        window: of a local attention. Default 10, as in the paper.
        max_length: the longest source that "location" can serve; needed for it alone.
        input_feeding: give the attentional state to the next step (default). Without it, known
            targets are decoded in one call of the cell and one product.
        options: of `AttentionDecoder`. The paper has cell="lstm", layers=4.

    >>> import torch
    >>> from sequence_attn.seq2seq import RecurrentEncoder
    >>> encoder, decoder = RecurrentEncoder(8, 16, "lstm"), luong(8, 16, 16, cell="lstm")
    >>> decoder(torch.randn(3, 4, 8), encoder(torch.randn(3, 7, 8))).output.shape
    torch.Size([3, 4, 16])
    """
    if isinstance(attention, str):
        sizes: dict[str, Any] = {"query_size": state_size, "key_size": memory_size}
        local = {"local-m": "monotonic", "local-p": "predictive"}
        if attention in local:
            attention = LocalAttention(local[attention], window, **sizes)
        else:
            attention = LuongAttention(attention, max_length=max_length, **sizes)
    return AttentionDecoder(
        attention,
        input_size=input_size,
        state_size=state_size,
        memory_size=memory_size,
        attend="after",
        feed="attentional" if input_feeding else None,
        readout="attentional",
        **options,
    )


def context_only(
    input_size: int,
    state_size: int,
    memory_size: int,
    *,
    attention: Attention | Score | None = None,
    initial: str = "learned",
    **options: Any,
) -> AttentionDecoder:
    """The textbook loop z⁰ → match → c⁰ → z¹ → …, in which the context alone drives the decoder.

    `c_t = read(z_t)`, `z_{t+1} = cell(c_t, z_t)`, and the output is `z_{t+1}`. What was written
    before is not looked at: the state has to know it.

    Args:
        input_size: the width of an embedding, which is not used.
        state_size: of the decoder's cell.
        memory_size: the width of an encoded step.
        attention: default: Bahdanau's.
        initial: z⁰. Default "learned".
        options: of `AttentionDecoder`.

    >>> import torch
    >>> from sequence_attn.seq2seq import RecurrentEncoder
    >>> encoder, decoder = RecurrentEncoder(8, 16), context_only(8, 20, 16)
    >>> decoder(torch.randn(3, 4, 8), encoder(torch.randn(3, 7, 8))).output.shape
    torch.Size([3, 4, 20])
    """
    if attention is None:
        attention = BahdanauAttention(state_size, memory_size, state_size)
    return AttentionDecoder(
        attention,
        input_size=input_size,
        state_size=state_size,
        memory_size=memory_size,
        attend="before",
        inputs="context",
        readout="state",
        initial=initial,
        **options,
    )


def grammar(
    input_size: int,
    state_size: int,
    memory_size: int,
    *,
    reads: int = 1,
    attention_size: int | None = None,
    output_size: int | None = None,
    cell: str = "lstm",
    layers: int = 1,
    **options: Any,
) -> AttentionDecoder:
    """The attention decoder of "Grammar as a Foreign Language", and of early TensorFlow.

    `x_t = W [y_{t-1}; c_{t-1}] + b`, `s_t = cell(x_t, s_{t-1})`, `c_t` = several reads with the
    whole of s_t (every layer, both halves), concatenated, and `output_t = W' [h_t; c_t] + b'`,
    where h_t is the top layer's output. Vinyals et al., 2015. Padding of the source is masked,
    which the original did not do. For `feed_previous` and `loop_function` see
    `AttentionDecoder.forward`.

    Args:
        input_size: the width of an embedding.
        state_size: of the decoder's cell.
        memory_size: the width of an encoded step.
        reads: how many attentions read the memory at each step. Default 1.
        attention_size: of each of them. Default: memory_size.
        output_size: the width of the output. Default: state_size.
        cell, layers: of the decoder. Default "lstm", 1.
        options: of `AttentionDecoder`: initial_state_attention, say.

    Raises:
        ValueError: reads below 1.

    >>> import torch
    >>> from sequence_attn.seq2seq import RecurrentEncoder
    >>> encoder, decoder = RecurrentEncoder(8, 16, "lstm"), grammar(8, 16, 16, reads=2)
    >>> decoder(torch.randn(3, 4, 8), encoder(torch.randn(3, 7, 8))).output.shape
    torch.Size([3, 4, 16])
    """
    if reads < 1:
        raise ValueError(f"reads is {reads}; expected at least 1")
    query_size = state_size * layers * (2 if cell == "lstm" else 1)
    # The bias is that of the linear map of the query, which the original has
    attentions = [
        BahdanauAttention(query_size, memory_size, attention_size, bias=True) for _ in range(reads)
    ]
    return AttentionDecoder(
        attentions,
        input_size=input_size,
        state_size=state_size,
        memory_size=memory_size,
        cell=cell,
        layers=layers,
        attend="after",
        query="all",
        merge="linear",
        feed="context",
        readout="linear",
        output_size=output_size,
        **options,
    )


def plain(
    input_size: int,
    state_size: int,
    memory_size: int,
    *,
    context: bool = False,
    **options: Any,
) -> AttentionDecoder:
    """The encoder–decoder without attention: all that is known of the source fits in one vector.

    The encoder's last state starts the decoder (Sutskever, Vinyals, Le, 2014); with `context` it
    also enters every step and the output, much as in Cho et al., 2014 (whose output sees the
    embedding, too).

    Args:
        input_size: the width of an embedding.
        state_size: of the decoder's cell.
        memory_size: the width of an encoded step.
        context: give the encoder's last state to every step. Default False.
        options: of `AttentionDecoder`.

    >>> import torch
    >>> from sequence_attn.seq2seq import RecurrentEncoder
    >>> encoder, decoder = RecurrentEncoder(8, 16), plain(8, 16, 16, context=True)
    >>> decoder(torch.randn(3, 4, 8), encoder(torch.randn(3, 7, 8))).output.shape
    torch.Size([3, 4, 32])
    """
    return AttentionDecoder(
        None,
        input_size=input_size,
        state_size=state_size,
        memory_size=memory_size,
        inputs="both" if context else "embedding",
        readout="join" if context else "state",
        **options,
    )
