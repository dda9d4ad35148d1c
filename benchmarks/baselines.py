"""Attention as a textbook would write it: what the library is compared with.

Nothing here uses the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def blocked_window(
    query: Tensor, key: Tensor, value: Tensor, radius: int, block: int = 64
) -> Tensor:
    """Each query sees the keys at most `radius` positions away; block after block of queries.

    Args:
        query, key, value: `[B, T, H, D]`.
        radius: how far a query sees.
        block: how many queries are computed at once. Default 64.

    Returns:
        `[B, T, H, D]`.

    >>> x = torch.randn(1, 5, 1, 4)
    >>> torch.allclose(blocked_window(x, x, x, radius=0), x)  # each sees itself alone
    True
    """
    length, width = query.shape[1], query.shape[-1]
    outputs = []
    for start in range(0, length, block):
        stop = min(start + block, length)
        low, high = max(0, start - radius), min(length, stop + radius)
        scores = torch.einsum("bqhd,bkhd->bhqk", query[:, start:stop], key[:, low:high])
        distance = torch.arange(low, high) - torch.arange(start, stop)[:, None]
        scores = (scores / math.sqrt(width)).masked_fill(distance.abs() > radius, -math.inf)
        weights = scores.softmax(-1)
        outputs.append(torch.einsum("bhqk,bkhd->bqhd", weights, value[:, low:high]))
    return torch.cat(outputs, 1)


def additive_attention(query: Tensor, key: Tensor, value: Tensor, vector: Tensor) -> Tensor:
    """`softmax(vᵀ tanh(q + k))`, with the hidden vectors of all pairs at once.

    Args:
        query, key, value: `[B, Tq, D]`, `[B, Tk, D]`, `[B, Tk, Dv]`.
        vector: `[D]`.

    Returns:
        `[B, Tq, Dv]`.
    """
    hidden = torch.tanh(query.unsqueeze(2) + key.unsqueeze(1))  # [B, Tq, Tk, D]
    return (hidden @ vector).softmax(-1) @ value


def score_pair_by_pair(
    query: Tensor, key: Tensor, score: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The scores of all pairs by two nested loops, `[Tq, Tk]`.

    Args:
        query, key: `[Tq, D]`, `[Tk, D]`.
        score: the score of one query and one key, `[D]` each.
    """
    return torch.stack([torch.stack([score(q, k) for k in key]) for q in query])


class LoopedHeads(nn.Module):
    """Multi-head self-attention as the formulas have it: one head after the other.

    Args:
        heads: H.
        width: of the inputs and of the output; a head has width / H channels.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        size = width // heads
        self.query, self.key, self.value = (
            nn.ModuleList(nn.Linear(width, size, bias=False) for _ in range(heads))
            for _ in range(3)
        )
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, T, width]` to `[B, T, width]`."""
        contexts = []
        for of_query, of_key, of_value in zip(self.query, self.key, self.value, strict=True):
            query, key = of_query(x), of_key(x)
            weights = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
            contexts.append(weights @ of_value(x))
        return self.output(torch.cat(contexts, -1))
