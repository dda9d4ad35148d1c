"""The attention core: scores, normalisers and supports, and `attend`, which joins them."""

from attn_core import patterns
from attn_core.attend import (
    Attended,
    attend,
    backend,
    hard_log_prob,
    scatter_softmax,
    softmax,
    weights,
)
from attn_core.bounded import Bounded
from attn_core.normalizers import (
    Entmax,
    Hard,
    HardLogProb,
    Identity,
    Normalizer,
    Softmax,
    Sparsemax,
)
from attn_core.scores import (
    Additive,
    Concat,
    Cosine,
    Dot,
    General,
    Location,
    ScaledDot,
    Score,
    Separable,
)
from attn_core.supports import Dense, Edges, PendingEdges, Support, clear_cache
from attn_core.window import Window

__all__ = [
    "Additive",
    "Attended",
    "Bounded",
    "Concat",
    "Cosine",
    "Dense",
    "Dot",
    "Edges",
    "Entmax",
    "General",
    "Hard",
    "HardLogProb",
    "Identity",
    "Location",
    "Normalizer",
    "PendingEdges",
    "ScaledDot",
    "Score",
    "Separable",
    "Softmax",
    "Sparsemax",
    "Support",
    "Window",
    "attend",
    "backend",
    "clear_cache",
    "hard_log_prob",
    "patterns",
    "scatter_softmax",
    "softmax",
    "weights",
]
