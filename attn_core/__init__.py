"""The attention core: scores, normalisers and supports, and `attend`, which joins them."""

from attn_core.attend import (
    attend,
    backend,
    hard_log_prob,
    logits,
    scatter_softmax,
    softmax,
    weights,
)
from attn_core.bounded import Bounded
from attn_core.call import Attended
from attn_core.graph.known import clear_cache
from attn_core.normalizers import (
    Entmax,
    Hard,
    HardLogProb,
    Identity,
    Normalizer,
    Softmax,
    Sparsemax,
)
from attn_core.score_functions import score_function
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
    Trilinear,
)
from attn_core.supports import Dense, Edges, PendingEdges, Support, Window, patterns

__version__ = "0.1.0"

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
    "Trilinear",
    "Window",
    "__version__",
    "attend",
    "backend",
    "clear_cache",
    "hard_log_prob",
    "logits",
    "patterns",
    "scatter_softmax",
    "score_function",
    "softmax",
    "weights",
]
