"""Encoder–decoders: the recurrent ones that made attention famous, and the Transformer."""

from sequence_attn.seq2seq.decoder import AttentionDecoder
from sequence_attn.seq2seq.encoder import Encoded, RecurrentEncoder
from sequence_attn.seq2seq.exact import ExactHardSeq2Seq, ExactState
from sequence_attn.seq2seq.losses import entmax_loss, sampled_softmax_loss
from sequence_attn.seq2seq.models import (
    EncoderDecoder,
    Predicted,
    Seq2Seq,
    Transformer,
    TransformerState,
)
from sequence_attn.seq2seq.papers import bahdanau, context_only, grammar, luong, plain
from sequence_attn.seq2seq.search import Hypothesis, generate, length_penalty
from sequence_attn.seq2seq.state import Decoded, DecoderState, Read

__all__ = [
    "AttentionDecoder",
    "Decoded",
    "DecoderState",
    "Encoded",
    "EncoderDecoder",
    "ExactHardSeq2Seq",
    "ExactState",
    "Hypothesis",
    "Predicted",
    "Read",
    "RecurrentEncoder",
    "Seq2Seq",
    "Transformer",
    "TransformerState",
    "bahdanau",
    "context_only",
    "entmax_loss",
    "generate",
    "grammar",
    "length_penalty",
    "luong",
    "plain",
    "sampled_softmax_loss",
]
