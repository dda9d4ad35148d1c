"""Sequence attention layers on the attention core."""

from attn_core import __version__
from sequence_attn.attention import Attention, Memory
from sequence_attn.classical import (
    BahdanauAttention,
    ContentAddressing,
    CosineAttention,
    LuongAttention,
)
from sequence_attn.hard import HardAttention, HardAttentionLoss, HardContext
from sequence_attn.local import LocalAttention
from sequence_attn.monotonic import MonotonicAttention, MonotonicContext
from sequence_attn.multihead import KeyValueCache, MultiHead
from sequence_attn.multihead_attention import MultiHeadAttention
from sequence_attn.positions import LearnedPositions, RotaryPositions, SinusoidalPositions
from sequence_attn.relative import ALiBi, RelativeBias, T5RelativeBias
from sequence_attn.restricted import RestrictedSelfAttention
from sequence_attn.scored import ScoredAttention, SequenceAttention
from sequence_attn.transformer import (
    Transformed,
    TransformerCache,
    TransformerDecoder,
    TransformerEncoder,
)
from sequence_attn.transformer_layer import (
    LayerCache,
    LayerWeights,
    PositionWise,
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
    "MonotonicAttention",
    "MonotonicContext",
    "MultiHead",
    "MultiHeadAttention",
    "PositionWise",
    "RelativeBias",
    "RestrictedSelfAttention",
    "RotaryPositions",
    "ScoredAttention",
    "SequenceAttention",
    "SinusoidalPositions",
    "T5RelativeBias",
    "Transformed",
    "TransformerCache",
    "TransformerDecoder",
    "TransformerEncoder",
    "TransformerLayer",
    "__version__",
]
