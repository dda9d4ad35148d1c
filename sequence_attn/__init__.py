"""Sequence attention layers on the attention core."""

from sequence_attn.attention import Attention, SequenceAttention
from sequence_attn.multihead import KeyValueCache, MultiHead
from sequence_attn.multihead_attention import MultiHeadAttention
from sequence_attn.positions import (
    ALiBi,
    LearnedPositions,
    RelativeBias,
    RotaryPositions,
    SinusoidalPositions,
    T5RelativeBias,
)
from sequence_attn.transformer import (
    LayerCache,
    LayerWeights,
    PositionWise,
    Transformed,
    TransformerCache,
    TransformerDecoder,
    TransformerEncoder,
    TransformerLayer,
)

__all__ = [
    "ALiBi",
    "Attention",
    "KeyValueCache",
    "LayerCache",
    "LayerWeights",
    "LearnedPositions",
    "MultiHead",
    "MultiHeadAttention",
    "PositionWise",
    "RelativeBias",
    "RotaryPositions",
    "SequenceAttention",
    "SinusoidalPositions",
    "T5RelativeBias",
    "Transformed",
    "TransformerCache",
    "TransformerDecoder",
    "TransformerEncoder",
    "TransformerLayer",
]
