"""Additive scores of all pairs in plain torch, block by block: the hidden vectors of one block."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attn_core.activations import activate

BLOCK = 2**20  # numbers in a block of pairs × channels: 4 MiB of float32


def forward(query: Tensor, key: Tensor, vector: Tensor, kind: str, constant: float) -> Tensor:
    """The logits `[B, Tq, Tk]` of queries `[B, Tq, D]`, keys `[B, Tk, D]`, vectors `[B, D]`."""
    logits = query.new_empty(query.shape[0], query.shape[1], key.shape[1])
    hidden = _choose(query, key, vector, kind, constant)
    for b in range(query.shape[0]):
        hidden.begin(query[b], key[b])
        scaled = vector[b] * hidden.scale
        shift = vector[b].sum() * hidden.shift if hidden.shift else 0.0  # 0 · inf is NaN
        for rows, columns in _blocks(query, key):
            active = hidden.block(rows, columns)  # [rows, columns, D]
            product = torch.bmm(scaled.expand(len(active), 1, -1), active.mT)
            torch.add(product.squeeze(1), shift, out=logits[b, rows, columns])
    return logits


def backward(
    grad: Tensor, query: Tensor, key: Tensor, vector: Tensor, kind: str, constant: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and vector."""
    of_query, of_key, of_vector = (torch.zeros_like(x) for x in (query, key, vector))
    hidden = _choose(query, key, vector, kind, constant)
    for b in range(query.shape[0]):
        hidden.begin(query[b], key[b])
        for rows, columns in _blocks(query, key):
            share = grad[b, rows, columns].contiguous()
            of_vector[b] += (share.unsqueeze(1) @ hidden.block(rows, columns)).sum((0, 1))
            slope = hidden.slope()  # [rows, columns, D]
            of_query[b, rows] += (share.unsqueeze(1) @ slope).squeeze(1)
            if len(share) > share.shape[1]:
                of_key[b, columns] += (share.T.unsqueeze(1) @ slope.transpose(0, 1)).squeeze(1)
            else:  # a few long rows: faster one by one
                for row, slopes in zip(share, slope, strict=True):
                    of_key[b, columns].addcmul_(row.unsqueeze(1), slopes)
    of_vector *= hidden.scale
    if hidden.shift:
        of_vector += hidden.shift * grad.sum((1, 2)).unsqueeze(1)
    of_query *= vector.unsqueeze(1) * hidden.steepness
    of_key *= vector.unsqueeze(1) * hidden.steepness
    return of_query, of_key, of_vector


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut the pairs of a sequence into blocks of about BLOCK numbers: their queries, their keys."""
    rows, columns = _block_size(query, key)
    for i in range(0, query.shape[1], rows):
        for j in range(0, key.shape[1], columns):
            yield slice(i, i + rows), slice(j, j + columns)


def _block_size(query: Tensor, key: Tensor) -> tuple[int, int]:
    width = max(query.shape[-1], 1)
    columns = max(1, min(key.shape[1], BLOCK // width))
    return min(query.shape[1], max(1, BLOCK // (width * columns))), columns


class _Hidden:
    """The hidden numbers of one block of pairs after another: `φ(q_i + k_j) = shift + scale · h`.

    All blocks use the same memory, and so do the slopes of a block, `φ′ = steepness · slope`: each
    lives until the next is made.
    """

    shift, scale, steepness = 0.0, 1.0, 1.0

    def __init__(self, query: Tensor, key: Tensor, activation: str, negative_slope: float) -> None:
        rows, columns = _block_size(query, key)
        self.memory = query.new_empty(rows * columns * query.shape[-1])
        self.one = query.new_ones(())
        self.activation, self.negative_slope = activation, negative_slope

    def begin(self, query: Tensor, key: Tensor) -> None:
        """Turn to the queries `[Tq, D]` and keys `[Tk, D]` of another sequence."""
        self.query, self.key = query, key

    def block(self, rows: slice, columns: slice) -> Tensor:
        """The numbers h, `[rows, columns, D]`."""
        query, key = self.query[rows].unsqueeze(1), self.key[columns]
        shape = len(query), *key.shape
        self.last = self.memory[: math.prod(shape)].view(shape)
        return self.fill(query, key)

    def fill(self, query: Tensor, key: Tensor) -> Tensor:
        """Compute the block `last` for queries `[rows, 1, D]` and keys `[columns, D]`."""
        torch.add(query, key, out=self.last)
        return activate(self.last, self.activation, self.negative_slope)

    def slope(self) -> Tensor:
        """The slopes of the last block."""
        below = self.negative_slope
        return (self.last > 0).to(self.last.dtype).mul_(1 - below).add_(below)


class _Tanh(_Hidden):
    """`h = tanh(q_i + k_j)`."""

    def fill(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.add(query, key, out=self.last).tanh_()

    def slope(self) -> Tensor:
        return torch.addcmul(self.one, self.last, self.last, value=-1, out=self.last)


class _FactoredTanh(_Hidden):
    """`tanh(q + k) = 1 - 2h` with `h = 1 / (1 + e^2q e^2k)`, whose slope is `4 (h - h²)`.

    The exponentials are taken once for each query and each key. What is left for each pair, a
    product and a reciprocal, costs about a tenth of a tanh.
    """

    shift, scale, steepness = 1.0, -2.0, 4.0

    def begin(self, query: Tensor, key: Tensor) -> None:
        super().begin((2 * query).exp_(), (2 * key).exp_())

    def fill(self, query: Tensor, key: Tensor) -> Tensor:
        return torch.addcmul(self.one, query, key, out=self.last).reciprocal_()

    def slope(self) -> Tensor:
        return torch.addcmul(self.last, self.last, self.last, value=-1, out=self.last)


# Up to here e^2q and e^2k are neither zero nor infinite: their product may be, but is never NaN
_LARGEST = {torch.float32: 40.0, torch.float64: 300.0}
# Below, 1 - 2h has lost too many digits to cancellation
_SMALLEST = 2.0**-4


def _choose(
    query: Tensor, key: Tensor, vector: Tensor, activation: str, negative_slope: float
) -> _Hidden:
    kind = _Hidden
    if activation == "tanh":
        kind = _Tanh
        # A GPU would have to wait for a look at the numbers, and tanh is not what takes its time
        if query.device.type == "cpu" and query.dtype in _LARGEST:
            largest = _largest(query), _largest(key)
            if (
                all(x <= _LARGEST[query.dtype] for x in largest)
                and sum(largest) >= _SMALLEST
                and bool(vector.sum(-1).isfinite().all())
            ):
                kind = _FactoredTanh
    return kind(query, key, activation, negative_slope)


def _largest(x: Tensor) -> float:
    """The largest absolute value; NaN if there is one."""
    return float(torch.linalg.vector_norm(x, math.inf)) if x.numel() else 0.0
