"""Sequence attention layers on the attention core."""

from sequence_attn.attention import Attention, Memory, SequenceAttention
from sequence_attn.hard import HardAttentionLoss
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
from sequence_attn.presets import (
    BahdanauAttention,
    ContentAddressing,
    CosineAttention,
    HardAttention,
    HardContext,
    LocalAttention,
    LuongAttention,
    RestrictedSelfAttention,
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
    "BahdanauAttention",
    "ContentAddressing",
    "CosineAttention",
    "HardAttention",
    "HardAttentionLoss",
    "HardContext",
    "KeyValueCache",
    "LayerCache",
    "LayerWeights",
    "LearnedPositions",
    "LocalAttention",
    "LuongAttention",
    "Memory",
    "MultiHead",
    "MultiHeadAttention",
    "PositionWise",
    "RelativeBias",
    "RestrictedSelfAttention",
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
