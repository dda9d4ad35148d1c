"""Patterns that are more than a distance: grids, global tokens, random blocks, points in space.

Each is a graph, `Edges`, whose time and memory are those of the pairs that there are; a batch of
sequences or images, `[B, N, H, D]`, shares one. They are reached as `attn_core.patterns.…`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from attn_core.supports.edges import Edges

_BLOCK = 2**22  # distances between points that are held at a time


def neighborhood(
    shape: Sequence[int],
    kernel: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    clamped: bool = True,
    device: torch.device | None = None,
) -> Edges:
    """Neighbourhood attention over a grid: a sequence, an image, a video (Hassani et al., 2023).

    A token sees the `kernel` nearest along each axis, itself in the middle.

    Args:
        shape: the sizes of the grid, `(T,)`, `(height, width)` or `(time, height, width)`. Nodes
            are its cells in row-major order, as `image.flatten(-3, -2)` has them.
        kernel: how many keys along each axis, odd, and with dilation at most the axis; one number
            for all axes, or one for each.
        dilation: the step between neighbours, likewise. Default 1.
        causal: no key behind the query along an axis, likewise. Default False.
        clamped: at a border the window moves inwards, so that every token has equally many keys,
            as in NATTEN (Hassani et al.); False cuts it off, as a convolution with padding does.
            A causal axis is cut in either case. Default True.
        device: where the edges shall be. Default: torch's default.

    Returns:
        Edges, sorted by query.

    Raises:
        ValueError: a kernel that is even, or larger than the grid; numbers below 1; not as many
            numbers as axes.

    >>> neighborhood((3, 3), 3, clamped=False).num_edges, neighborhood((3, 3), 3).num_edges
    (49, 81)
    >>> neighborhood((4,), 3).edge_index[0].view(4, 3)
    tensor([[0, 1, 2],
            [0, 1, 2],
            [1, 2, 3],
            [1, 2, 3]])
    """
    sizes = [int(size) for size in shape]
    keys = torch.zeros(1, 1, dtype=torch.int64, device=device)
    exists = torch.ones(1, 1, dtype=torch.bool, device=device)
    each = [
        _per_axis(n, given, len(sizes))
        for n, given in (("kernel", kernel), ("dilation", dilation), ("causal", causal))
    ]
    for size, width, step, one_way in zip(sizes, *each, strict=True):
        _check_axis(size, width, step, clamped and not one_way)
        near, real = _along_axis(size, width, step, bool(one_way), clamped, device)
        # The cells so far times those of this axis: queries [n size, …], keys […, k width]
        keys = (keys[:, None, :, None] * size + near[None, :, None, :]).flatten(2).flatten(0, 1)
        exists = (exists[:, None, :, None] & real[None, :, None, :]).flatten(2).flatten(0, 1)
    queries = torch.arange(len(keys), device=device)[:, None].expand_as(keys)
    return Edges.from_edge_index(torch.stack([keys[exists], queries[exists]]), size=len(keys))


def with_global(edges: Edges, tokens: Tensor | Sequence[int]) -> Edges:
    """The same pairs, and global tokens that see all and are seen by all (Beltagy et al., 2020).

    Args:
        edges: over one set of tokens.
        tokens: the numbers of the global ones.

    Returns:
        Edges, sorted by query, each pair once.

    Raises:
        ValueError: edges between two different sets.
        IndexError: a token that there is not.

    >>> from attn_core import patterns
    >>> with_global(patterns.local(0).edges(3), [0]).edge_index
    tensor([[0, 1, 2, 0, 1, 0, 2],
            [0, 0, 0, 1, 1, 2, 2]])
    """
    if edges.num_keys != edges.num_queries:
        raise ValueError(
            f"edges go from {edges.num_keys} tokens to {edges.num_queries}; global tokens need one "
            "set, whose tokens are queries and keys"
        )
    every = torch.arange(edges.num_queries, device=edges.device)
    chosen = torch.as_tensor(tokens, device=edges.device).long().reshape(-1)
    seeing = torch.cartesian_prod(every, chosen).T
    return _union(edges.num_queries, edges.pairs, seeing, seeing.flip(0))


def big_bird(
    length: int,
    block: int,
    *,
    window: int = 3,
    random: int = 3,
    global_blocks: int = 1,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
) -> Edges:
    """BigBird's pattern: a window, global tokens and random keys, by blocks (Zaheer et al., 2020).

    Args:
        length: T, the number of tokens; the last block may be shorter.
        block: how many tokens form a block, of which all see the same keys.
        window: how many blocks, odd, around its own a block sees. Default 3.
        random: how many blocks beside these it sees, drawn without replacement. Default 3.
        global_blocks: how many blocks at the start see all, and are seen by all. Default 1.
        generator: what the random blocks are drawn with. Default: torch's.
        device: where the edges shall be. Default: torch's default.

    Returns:
        Edges, sorted by query, each pair once.

    Raises:
        ValueError: an even window, or numbers below their bounds.

    >>> edges = big_bird(64, 4, generator=torch.Generator().manual_seed(0))
    >>> edges.query_index.bincount()[::4]  # keys of a token of each block
    tensor([64, 24, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 28, 24])
    """
    for name, number, lowest in (
        ("length", length, 0),
        ("block", block, 1),
        ("window", window, 1),
        ("random", random, 0),
        ("global_blocks", global_blocks, 0),
    ):
        if number < lowest:
            raise ValueError(f"{name} is {number}; expected at least {lowest}")
    if window % 2 == 0:
        raise ValueError(
            f"window is {window} blocks; expected an odd number, its own in the middle"
        )
    blocks = -(-length // block)
    here = torch.arange(blocks, device=device)
    seen = (here[:, None] - here).abs() <= window // 2  # [query block, key block]
    seen[:global_blocks] = True
    seen[:, :global_blocks] = True
    drawn = torch.rand(blocks, blocks, generator=generator).to(seen.device).masked_fill(seen, -1)
    best = drawn.topk(min(random, blocks), dim=1)
    seen.scatter_(1, best.indices, seen.gather(1, best.indices) | (best.values >= 0))
    query, key = seen.nonzero().T  # pairs of blocks
    within = torch.arange(block, device=device)
    of_key = (key[:, None, None] * block + within).expand(-1, block, -1)
    of_query = (query[:, None, None] * block + within[:, None]).expand(-1, -1, block)
    real = (of_key < length) & (of_query < length)
    return _union(length, torch.stack([of_key[real], of_query[real]]))


def nearest(
    points: Tensor, k: int, *, lengths: Tensor | Sequence[int] | None = None, itself: bool = True
) -> Edges:
    """Each point sees the k that lie nearest to it, by Euclidean distance.

    Args:
        points: `[N, D]`.
        k: how many keys each query sees, or as many as there are.
        lengths: integers `[B]`, where the points are several sets one after the other, none of
            which sees another. Default: one set.
        itself: count the point itself, which is its own nearest. Default True.

    Returns:
        Edges, sorted by query.

    Raises:
        ValueError: k below 1, points of another shape, or lengths that do not sum to N.

    >>> nearest(torch.tensor([[0.0], [1.0], [5.0]]), 2).edge_index
    tensor([[0, 1, 0, 1, 1, 2],
            [0, 0, 1, 1, 2, 2]])
    """
    if points.dim() != 2:
        raise ValueError(f"points has shape {list(points.shape)}; expected [N, D]")
    if k < 1:
        raise ValueError(f"k is {k}; expected at least 1 neighbour")
    sizes = [len(points)] if lengths is None else [int(n) for n in lengths]
    if sum(sizes) != len(points) or min(sizes, default=0) < 0:
        raise ValueError(
            f"lengths are {sizes}, {sum(sizes)} points in all, but points has {len(points)}"
        )
    found = [torch.empty(2, 0, dtype=torch.int64, device=points.device)]
    first = 0
    for part in points.detach().split(sizes):
        every = torch.arange(len(part), device=part.device)
        for rows in every.split(max(1, _BLOCK // max(len(part), 1))):
            # Without the product of matrices, which would tell points apart worse than they are
            far = torch.cdist(part[rows], part, compute_mode="donot_use_mm_for_euclid_dist")
            far[torch.arange(len(rows), device=part.device), rows] = -1 if itself else torch.inf
            number = max(min(k, len(part) - (not itself)), 0)
            near = far.topk(number, largest=False).indices.sort(1).values
            found.append(torch.stack([near, rows[:, None].expand_as(near)]).flatten(1) + first)
        first += len(part)
    return Edges.from_edge_index(torch.cat(found, 1), size=len(points))


def _union(tokens: int, *pairs: Tensor) -> Edges:
    """All of these pairs, each once, sorted by query."""
    keys, queries = torch.cat(pairs, 1)
    if len(keys) and not min(int(keys.min()), int(queries.min())) >= 0:
        raise IndexError(f"a token is below 0; expected 0 to {tokens - 1}")
    if len(keys) and max(int(keys.max()), int(queries.max())) >= tokens:
        raise IndexError(
            f"a token is {max(int(keys.max()), int(queries.max()))}; expected 0 to {tokens - 1}"
        )
    number = (queries * tokens + keys).unique()
    rest = number % max(tokens, 1), number.div(max(tokens, 1), rounding_mode="floor")
    return Edges.from_edge_index(torch.stack(rest), size=tokens)


def _per_axis(name: str, given: int | Sequence[int], axes: int) -> Sequence[int]:
    numbers = [given] * axes if isinstance(given, int) else list(given)
    if len(numbers) != axes:
        raise ValueError(f"{name} is {given}; expected one number, or one for each of {axes} axes")
    return numbers


def _check_axis(size: int, width: int, step: int, whole: bool) -> None:
    if width < 1 or width % 2 == 0:
        raise ValueError(f"kernel is {width}; expected an odd number, the token in the middle")
    if step < 1:
        raise ValueError(f"dilation is {step}; expected at least 1")
    if whole and width * step > size:
        raise ValueError(
            f"kernel {width} with dilation {step} needs an axis of {width * step}, but that of the "
            f"grid is {size}: take a smaller one, or clamped=False"
        )


def _along_axis(
    size: int, width: int, step: int, causal: bool, clamped: bool, device: torch.device | None
) -> tuple[Tensor, Tensor]:
    """The keys `[size, width]` that each place of one axis sees, and which of them there are."""
    place = torch.arange(size, device=device)
    group, within = place % step, place.div(step, rounding_mode="floor")
    length = (size - 1 - group).div(step, rounding_mode="floor") + 1  # of its group
    first = within - (width - 1 if causal else width // 2)
    if clamped and not causal:
        first = first.clamp(min=0).minimum(length - width)
    near = first[:, None] + torch.arange(width, device=device)
    real = (near >= 0) & (near < length[:, None])
    return near * step + group[:, None], real
