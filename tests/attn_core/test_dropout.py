"""Attention dropout: golden vectors that every backend must meet, and what makes it random."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attn_core.dropout import draw_seed, dropout_scale, random_bits

# For each seed the bits of the edges 0, 1 and 2³² + 5, in the heads 0 and 1
GOLDEN = {
    0: [[0xCA4E970F, 0x12C95CAD], [0x7B9128B7, 0xC2901668], [0x9CF23680, 0xF2A9069E]],
    7: [[0x27072220, 0x4D223271], [0xD6D34C39, 0xF7C75848], [0x2D8D874C, 0xE1E90F2D]],
    -1: [[0x134F94C4, 0x04CE301F], [0x6A5E9DB0, 0x578E02EE], [0x9576634E, 0x21F511B6]],
    2**63 - 1: [[0x0C0DC65C, 0x80C95B00], [0x4D004180, 0x94259529], [0xA84A9878, 0x28E809B5]],
    0x0123456789ABCDEF: [
        [0x06AFB3D4, 0x39BAC7F2],
        [0x488B13CB, 0x56BE1750],
        [0x2398CB93, 0xAD599262],
    ],
}


def mix(x: int) -> int:
    """The finaliser "lowbias32", in the integers of Python."""
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def bits(seed: int, edge: int, head: int) -> int:
    state = mix(seed % 2**32 ^ 0x9E3779B9)
    for word in ((seed >> 32) % 2**32, edge % 2**32, edge >> 32, head):
        state = mix((state + word * 0x85EBCA6B) % 2**32 ^ 0xC2B2AE35)
    return state


def drawn(seed: int, edges: int, heads: int) -> Tensor:
    return random_bits(torch.tensor(seed), torch.arange(edges)[:, None], torch.arange(heads))


@pytest.mark.parametrize("seed", GOLDEN)
def test_golden_vectors(seed: int) -> None:
    edge = torch.tensor([0, 1, 2**32 + 5])
    assert random_bits(torch.tensor(seed), edge[:, None], torch.arange(2)).tolist() == GOLDEN[seed]


@pytest.mark.parametrize("seed", GOLDEN)
def test_bits_are_those_of_32_bit_arithmetic(seed: int) -> None:
    edges, heads = [0, 3, 2**31, 2**32 - 1, 2**40 + 7], [0, 1, 1023]
    ours = random_bits(torch.tensor(seed), torch.tensor(edges)[:, None], torch.tensor(heads))
    assert ours.tolist() == [[bits(seed, edge, head) for head in heads] for edge in edges]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_what_is_kept_is_scaled_so_that_the_mean_stays(p: float) -> None:
    scale = dropout_scale(torch.tensor(3), torch.arange(50_000), 4, p)
    assert scale.dtype == torch.float32 and scale.shape == (50_000, 4)
    torch.testing.assert_close(scale.unique(), torch.tensor([0, 1 / (1 - p)]))
    kept = (scale > 0).double().mean(0)
    assert (abs(kept - (1 - p)) < 5 * math.sqrt(p * (1 - p) / 50_000)).all()


def test_the_threshold_is_the_floor_of_p_times_2_to_the_32() -> None:
    seed, edge = torch.tensor(7), torch.tensor([0])
    at = GOLDEN[7][0][0]
    assert dropout_scale(seed, edge, 1, at / 2**32) > 0  # r ≥ threshold is kept
    assert dropout_scale(seed, edge, 1, (at + 0.5) / 2**32) > 0
    assert dropout_scale(seed, edge, 1, (at + 1) / 2**32) == 0


def test_the_ends_keep_all_and_nothing() -> None:
    edge = torch.arange(100_000)
    assert (dropout_scale(torch.tensor(1), edge, 3, 0.0) == 1).all()
    assert not dropout_scale(torch.tensor(1), edge, 3, 1.0).any()
    assert dropout_scale(torch.tensor(1), edge[:0], 3, 0.5).shape == (0, 3)


def test_edges_heads_and_seeds_are_independent() -> None:
    edges, heads = 20_000, 8
    streams = [*drawn(0, edges, heads).T, *drawn(1, edges, heads).T, *drawn(2**32, edges, heads).T]
    streams += [streams[0].roll(1), streams[0].roll(64)]
    signs = torch.stack(
        [((stream >> bit) & 1) * 2.0 - 1 for stream in streams for bit in (31, 7, 0)]
    )
    assert (signs.mean(1).abs() < 5 / math.sqrt(edges)).all()
    correlation = (signs @ signs.T / edges).fill_diagonal_(0)
    assert correlation.abs().max() < 5.5 / math.sqrt(edges)


def test_every_bit_is_set_half_of_the_time() -> None:
    stream = drawn(12345, 20_000, 1)
    ones = torch.stack([((stream >> bit) & 1).double().mean() for bit in range(32)])
    assert (abs(ones - 0.5) < 2.5 / math.sqrt(20_000)).all()
    assert stream.min() >= 0 and stream.max() < 2**32


def test_seeds_follow_torch_manual_seed() -> None:
    device = torch.device("cpu")
    torch.manual_seed(5)
    first, second = draw_seed(device), draw_seed(device)
    torch.manual_seed(5)
    assert draw_seed(device) == first != second
    assert first.shape == () and first.dtype == torch.int64
