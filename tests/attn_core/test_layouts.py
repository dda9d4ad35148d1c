"""Grids, global tokens, random blocks and points: the pairs are those that were promised."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import Dense, Edges, ScaledDot, attend, patterns


def as_mask(edges: Edges) -> Tensor:
    """bool `[Nq, Nk]`; no pair may stand twice."""
    mask = torch.zeros(edges.num_queries, edges.num_keys, dtype=torch.int64)
    mask.index_put_((edges.query_index, edges.key_index), torch.tensor(1), accumulate=True)
    assert not mask.numel() or mask.max() <= 1
    return mask.bool()


def seen(
    place: int, size: int, kernel: int, dilation: int, causal: bool, clamped: bool
) -> set[int]:
    """The keys of one place on one axis, by the words of the paper."""
    group = [x for x in range(size) if x % dilation == place % dilation]
    here = group.index(place)
    if causal:
        return set(group[max(0, here - kernel + 1) : here + 1])
    if not clamped:
        return set(group[max(0, here - kernel // 2) : here + kernel // 2 + 1])
    first = min(max(here - kernel // 2, 0), len(group) - kernel)
    return set(group[first : first + kernel])


@pytest.mark.parametrize("clamped", [True, False])
@pytest.mark.parametrize(
    ("shape", "kernel", "dilation", "causal"),
    [
        ((7,), 3, 1, False),
        ((9,), 3, 2, True),
        ((5, 7), 3, 1, False),
        ((6, 9), (5, 3), (1, 3), False),
        ((4, 5, 6), (1, 3, 5), 1, (True, False, False)),
        ((1, 1), 1, 1, False),
    ],
)
def test_neighborhood(shape: Any, kernel: Any, dilation: Any, causal: Any, clamped: bool) -> None:
    edges = patterns.neighborhood(shape, kernel, dilation=dilation, causal=causal, clamped=clamped)
    axes = [x if isinstance(x, tuple) else (x,) * len(shape) for x in (kernel, dilation, causal)]
    cells = list(itertools.product(*map(range, shape)))
    expected = torch.tensor(
        [
            [
                all(
                    k in seen(q, size, *settings, clamped)
                    for q, k, size, *settings in zip(query, key, shape, *axes, strict=True)
                )
                for key in cells
            ]
            for query in cells
        ]
    )
    assert torch.equal(as_mask(edges), expected)


def test_a_sequence_is_a_grid_of_one_axis() -> None:
    cut = patterns.neighborhood((9,), 5, clamped=False)
    assert torch.equal(as_mask(cut), as_mask(patterns.local(2).edges(9)))


def test_a_batch_of_images_attends_as_by_its_mask() -> None:
    edges = patterns.neighborhood((4, 5), 3)
    x = torch.randn(3, 20, 2, 8)
    ours = attend(x, x, x, score=ScaledDot(), support=edges).output
    theirs = attend(x, x, x, score=ScaledDot(), support=Dense(as_mask(edges))).output
    torch.testing.assert_close(ours, theirs)


def test_global_tokens_see_all_and_are_seen_by_all() -> None:
    local = patterns.local(1).edges(6)
    mask = as_mask(patterns.with_global(local, torch.tensor([0, 4])))
    expected = as_mask(local)
    expected[[0, 4]] = True
    expected[:, [0, 4]] = True
    assert torch.equal(mask, expected)
    assert torch.equal(as_mask(patterns.with_global(local, [])), as_mask(local))


@pytest.mark.parametrize("length", [0, 1, 5, 32, 35])
def test_big_bird(length: int) -> None:
    generator = torch.Generator().manual_seed(1)
    edges = patterns.big_bird(length, 4, random=2, generator=generator)
    mask, blocks = as_mask(edges), -(-length // 4)
    block = torch.arange(length) // 4
    promised = (block[:, None] - block).abs() <= 1
    promised |= (block[:, None] == 0) | (block == 0)
    assert mask[promised].all()
    drawn = (mask & ~promised)[::4, ::4].sum(1)  # random blocks of each block
    left = blocks - promised[::4, ::4].sum(1)
    assert torch.equal(drawn, left.clamp(max=2))
    again = patterns.big_bird(length, 4, random=2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.edge_index, edges.edge_index)


@pytest.mark.parametrize("itself", [True, False])
def test_nearest(itself: bool) -> None:
    torch.manual_seed(0)
    points = torch.randn(30, 3)
    mask = as_mask(patterns.nearest(points, 4, itself=itself))
    far = (points[:, None] - points).norm(dim=-1)
    assert (mask.sum(1) == 4).all()
    assert torch.equal(mask.diagonal(), torch.full((30,), itself))
    others = ~torch.eye(30, dtype=torch.bool)
    for query in range(30):
        inside, outside = mask[query], ~mask[query] & others[query]
        assert far[query][inside].max() <= far[query][outside].min()


def test_points_of_several_sets_and_points_far_from_zero() -> None:
    points = torch.arange(9.0)[:, None] + 1e6  # whose squares float32 cannot tell apart
    mask = as_mask(patterns.nearest(points, 2, lengths=[5, 0, 3, 1], itself=False))
    assert (mask.sum(1) == torch.tensor([2] * 8 + [0])).all()
    assert not mask[:5, 5:].any() and not mask[5:, :5].any()
    assert mask[2].nonzero().flatten().tolist() == [1, 3]
    twice = as_mask(patterns.nearest(torch.zeros(4, 2), 1))
    assert torch.equal(twice, torch.eye(4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: patterns.neighborhood((8,), 4), ValueError, "kernel is 4; expected an odd"),
        (lambda: patterns.neighborhood((8,), 3, dilation=3), ValueError, "an axis of 9, .* is 8"),
        (lambda: patterns.neighborhood((8, 8), (3, 3, 3)), ValueError, "for each of 2 axes"),
        (lambda: patterns.with_global(patterns.local(1).edges(3), [3]), IndexError, "token is 3"),
        (lambda: patterns.with_global(patterns.local(1).edges(3), [-1]), IndexError, "below 0"),
        (lambda: patterns.big_bird(8, 2, window=2), ValueError, "window is 2 blocks"),
        (lambda: patterns.big_bird(8, 0), ValueError, "block is 0; expected at least 1"),
        (lambda: patterns.nearest(torch.zeros(3), 1), ValueError, r"points has shape \[3\]"),
        (lambda: patterns.nearest(torch.zeros(3, 1), 0), ValueError, "k is 0"),
        (lambda: patterns.nearest(torch.zeros(3, 1), 1, lengths=[2]), ValueError, "2 points in"),
    ],
)
def test_what_cannot_be_is_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
