"""Attention dropout on edges as a pure function of a seed, an edge and a head.

A mask that can be computed again need not be kept: the backward pass draws the same one, and so
does every backend, whatever order it visits the edges in.

The hash uses 32-bit unsigned integers alone, so that the same few lines serve torch (here, with
int64 that is cut back to 32 bits), C++ and Triton; `tests/attn_core/test_dropout.py` holds golden
vectors for all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def draw_seed(device: torch.device, *shape: int) -> Tensor:
    """A fresh seed from torch's generator of the device, int64 `[]`, or many of them."""
    return torch.randint(-(2**63), 2**63 - 1, shape, dtype=torch.int64, device=device)


def dropout_scale(seed: Tensor, edge: Tensor, heads: int, p: float) -> Tensor:
    """What each weight is multiplied by: 0 where it is dropped, else 1 / (1 - p).

    An edge is kept in a head when `hash(seed, edge, head) ≥ ⌊p · 2³²⌋`.

    Args:
        seed: int64 `[]`.
        edge: int64 `[E]`, the number of each edge (of a self-loop that was added: E + node).
        heads: H, the number of heads.
        p: the probability of being dropped, in [0, 1]; 1 keeps nothing.

    Returns:
        float32 `[E, H]`.

    >>> dropout_scale(torch.tensor(7), torch.arange(4), heads=2, p=0.5)
    tensor([[0., 0.],
            [2., 2.],
            [2., 0.],
            [2., 0.]])
    """
    if p >= 1:
        return torch.zeros(len(edge), heads, device=edge.device)
    random = random_bits(seed, edge[:, None], torch.arange(heads, device=edge.device))
    return (random >= int(p * 2**32)) * (1 / (1 - p))


def start_of(seed: int, p: float) -> tuple[int, int, float]:
    """What kernels are told of a seed and a probability.

    Returns:
        The state that the hash starts from, what it must reach, and what is kept for it.
    """
    state = (seed & _MASK) ^ 0x9E3779B9
    state = int(_mix(torch.tensor(state, device="cpu")))
    state = (((state + ((seed >> 32) & _MASK) * 0x85EBCA6B) & _MASK) ^ 0xC2B2AE35) & _MASK
    state = int(_mix(torch.tensor(state, device="cpu")))
    return (state, int(p * 2**32), 1 / (1 - p)) if p < 1 else (state, 0, 0.0)


def random_bits(seed: Tensor, edge: Tensor, head: Tensor) -> Tensor:
    """32 random bits for each (edge, head), as int64 in 0 … 2³² - 1.

    The two halves of the seed, the two halves of the edge's number and the head are absorbed one
    after the other, each followed by a bijection of 32-bit integers that mixes every bit.
    """
    state = _mix((seed & _MASK) ^ 0x9E3779B9)
    for word in ((seed >> 32) & _MASK, edge & _MASK, (edge >> 32) & _MASK, head):
        state = _mix(((state + word * 0x85EBCA6B) & _MASK) ^ 0xC2B2AE35)
    return state


def _mix(x: Tensor) -> Tensor:
    """The integer finaliser "lowbias32": xor-shifts and odd multiplications modulo 2³²."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
