"""Sequence attention layers on the attention core."""

from sequence_attn.attention import Attention, SequenceAttention
from sequence_attn.positions import SinusoidalPositions

__all__ = ["Attention", "SequenceAttention", "SinusoidalPositions"]
