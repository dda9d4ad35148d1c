"""Biases by relative position, which go into `attn_core.attend(bias=...)`, over any support."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from attn_core import Support
from sequence_attn.positions import full_precision


class RelativeBias(nn.Module, ABC):
    """What `ALiBi` and `T5RelativeBias` share: one number per pair and head, by their distance.

    A subclass gives `per_head`, the numbers; they are handed to `attn_core.attend(bias=...)`.

    Args:
        heads: how many heads the attention has; at least 1.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads is {heads}; expected at least 1")
        self.heads = heads

    @abstractmethod
    def per_head(self, relative: Tensor) -> Tensor:
        """The bias `[H, ...]` of relative positions `[...]`."""

    def forward(self, relative: Tensor) -> Tensor:
        """The bias of pairs whose relative positions are given.

        Args:
            relative: position of the key minus position of the query: `[..., Tq, Tk]` for a grid
                (over a window `[..., Tq, W]`), `[E]` for a list of pairs.

        Returns:
            `[..., H, Tq, Tk]` (`[..., H, Tq, W]`), or `[E, H]`, as `attn_core.attend` takes it.

        Raises:
            ValueError: relative without a dimension.
        """
        if relative.dim() == 0:
            raise ValueError("relative has shape []; expected [..., Tq, Tk], or [E] over edges")
        bias = self.per_head(relative)
        return bias.t() if relative.dim() == 1 else bias.movedim(0, -3)

    def between(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """The bias of all pairs of tokens whose positions are given, one row per sequence or one.

        Args:
            query_positions: `[..., Tq]`.
            key_positions: `[..., Tk]`.

        Returns:
            `[..., H, Tq, Tk]`.

        >>> of_two = ALiBi(1).between(torch.tensor([[4], [9]]), torch.tensor([[3, 4], [0, 9]]))
        >>> (of_two * 256).flatten(1)
        tensor([[-1.,  0.],
                [-9.,  0.]])
        """
        return self(key_positions[..., None, :] - query_positions[..., :, None])

    def of(
        self, support: Support, queries: int, keys: int, device: torch.device | None = None
    ) -> Tensor:
        """The bias of all pairs of a support.

        Args:
            support: Dense, Window or Edges; nodes of a graph stand in the order of their numbers.
            queries: how many queries there are, Tq.
            keys: how many keys there are, Tk.
            device: where the keys are. Default: that of the module's parameters, if it has any.

        Returns:
            `[..., H, Tq, Tk]`, `[..., H, Tq, W]` over a window, `[E, H]` over edges.
        """
        if device is None:
            device = next((parameter.device for parameter in self.parameters()), None)
        return self(support.relative_positions(queries, keys, device))


class ALiBi(RelativeBias):
    """A bias against distant keys: `-slope_h · |j - i|` for query i and key j.

    The slopes of H heads are `2^(-8h / H)`, h = 1 … H. If H is not a power of two, they are those
    of the next smaller power of two n, then every other one of those of 2n, as in the authors'
    code. Press, Smith and Lewis, "Train Short, Test Long", 2022 (for causal attention; here
    distance counts in both directions alike, which serves encoders too).

    The bias is float32, as half types cannot tell distant positions apart (float64 for float64
    positions or parameters). `attend` computes in the widest dtype that it is handed: cast the bias
    where a kernel for half types should run.

    Args:
        heads: how many heads the attention has; at least 1.
        learned: whether the slopes `[H]` are a parameter, which starts with the values above, or
            constants (default).

    Raises:
        ValueError: heads below 1.

    >>> ALiBi(2)(torch.tensor([[0, 1, 2], [-1, 0, 1]]))
    tensor([[[ 0.0000, -0.0625, -0.1250],
             [-0.0625,  0.0000, -0.0625]],
    <BLANKLINE>
            [[ 0.0000, -0.0039, -0.0078],
             [-0.0039,  0.0000, -0.0039]]])
    """

    def __init__(self, heads: int, *, learned: bool = False) -> None:
        super().__init__(heads)
        self.learned = learned
        if learned:
            self.slopes = nn.Parameter(torch.empty(heads))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Give learned slopes their first values again."""
        if self.learned:
            with torch.no_grad():
                self.slopes.copy_(_alibi_slopes(self.heads, self.slopes))

    def per_head(self, relative: Tensor) -> Tensor:
        slopes = self.slopes if self.learned else _alibi_slopes(self.heads, relative)
        slopes = slopes.to(full_precision(slopes))
        return slopes.view(-1, *(1,) * relative.dim()) * -relative.abs()

    def extra_repr(self) -> str:
        return f"{self.heads}, learned={self.learned}"


class T5RelativeBias(RelativeBias):
    """A learned bias per head and bucket of distances.

    Short distances have a bucket each, longer ones share buckets that widen with the logarithm of
    the distance; from max_distance on all share the last. Raffel et al., "Exploring the Limits of
    Transfer Learning with a Unified Text-to-Text Transformer", 2020.

    `weight` is `[num_buckets, H]`, drawn from a normal distribution of standard deviation 0.02. A
    layer that calls this module `relative_attention_bias` has the key of T5's checkpoints.

    Args:
        heads: how many heads the attention has; at least 1.
        num_buckets: how many buckets there are, for both directions together. Default 32.
        max_distance: the distance from which on all share a bucket. Default 128.
        bidirectional: half of the buckets are for keys behind the query (default; encoders).
            Otherwise all are for keys up to the query, and those behind it have distance 0
            (decoders, whose causal support leaves them out).

    Raises:
        ValueError: heads below 1; buckets too few or not to be halved; a max_distance within the
            distances that have a bucket each.

    >>> bias = T5RelativeBias(heads=8)
    >>> bias.buckets(torch.tensor([-200, -20, -2, 0, 2, 20, 200]))
    tensor([15, 10,  2,  0, 18, 26, 31])
    >>> bias(torch.zeros(5, 7, dtype=torch.int64)).shape
    torch.Size([8, 5, 7])
    """

    def __init__(
        self,
        heads: int,
        *,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
    ) -> None:
        super().__init__(heads)
        if num_buckets < 2 or (bidirectional and (num_buckets < 4 or num_buckets % 2)):
            wanted = "an even number from 4 on, half for each direction" if bidirectional else "2"
            raise ValueError(f"num_buckets is {num_buckets}; expected at least {wanted}")
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.bidirectional = bidirectional
        if max_distance <= self._exact:
            raise ValueError(
                f"max_distance is {max_distance}; expected more than {self._exact}, the number of "
                f"distances that have one of the {num_buckets} buckets each"
            )
        self.weight = nn.Parameter(torch.empty(num_buckets, heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the biases anew."""
        nn.init.normal_(self.weight, std=0.02)

    @property
    def _of_direction(self) -> int:
        return self.num_buckets // 2 if self.bidirectional else self.num_buckets

    @property
    def _exact(self) -> int:
        return self._of_direction // 2

    def buckets(self, relative: Tensor) -> Tensor:
        """The bucket of each relative position, int64 of the same shape.

        Raises:
            TypeError: relative positions that are not integers.
        """
        if relative.is_floating_point():
            raise TypeError(
                f"relative has dtype {relative.dtype}; buckets need whole positions: convert it "
                "with .long()"
            )
        exact, last = self._exact, self._of_direction - 1
        distance = relative.abs() if self.bidirectional else (-relative).clamp(min=0)
        widening = (last + 1 - exact) / math.log(self.max_distance / exact)
        steps = (distance.clamp(min=exact).double() / exact).log() * widening
        # Where a bucket begins, steps is whole; rounding, on any device, must not take it below
        far = (exact + (steps + 1e-9).long()).clamp(max=last)
        bucket = torch.where(distance < exact, distance, far)
        return bucket + (last + 1) * (relative > 0) if self.bidirectional else bucket

    def per_head(self, relative: Tensor) -> Tensor:
        # Columns are picked, not rows, so that the pairs of a head come out one behind the other
        biases = self.weight.t().index_select(1, self.buckets(relative).flatten())
        return biases.view(self.heads, *relative.shape)

    def extra_repr(self) -> str:
        return (
            f"{self.heads}, num_buckets={self.num_buckets}, max_distance={self.max_distance}, "
            f"bidirectional={self.bidirectional}"
        )


def _alibi_slopes(heads: int, like: Tensor) -> Tensor:
    """The slopes `[H]` on the device of a tensor; float64 if it is, otherwise float32."""
    head = torch.arange(heads, dtype=full_precision(like), device=like.device)
    power = 2 ** (heads.bit_length() - 1)  # the largest power of two that is not above heads
    between = (head - power + 0.5) / power
    return torch.exp2(-8 * torch.where(head < power, (head + 1) / power, between))
