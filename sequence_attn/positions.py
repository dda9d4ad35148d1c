"""Positions: attention itself does not know the order of its keys.

It is told the order in one of three places: `SinusoidalPositions` and `LearnedPositions` mark the
input of a layer, `RotaryPositions` turns queries and keys, and the biases of
`sequence_attn.relative` go into `attn_core.attend(bias=...)`, over any support and with any score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attn_core.supports.base import broadcasts_to
from attn_core.transforms import values_are_visible


class SinusoidalPositions(nn.Module):
    """Sines and cosines of the position, in wavelengths that form a geometric progression.

    `angle(t, i) = t / base^(i / n)` with n = size / 2 waves i = 0, …, n - 1, whose lengths go from
    2π to `base^((n - 1) / n)` · 2π: the longest falls short of base · 2π by one step of the
    progression. With `reach_base`, n - 1 stands for n, and they go from 2π to base · 2π. No
    parameters, no longest sequence. Vaswani et al., "Attention Is All You Need", 2017.

    Args:
        size: how many channels the code of a position has; at least 2. The last channel of an odd
            size is zero.
        layout: "interleaved" (default, as in the paper): channel 2i is the sine of wave i, channel
            2i + 1 its cosine; or "blocked" (as in tensor2tensor and fairseq): first all sines, then
            all cosines.
        merge: "add" the code to the input (default), whose width must be `size`, or "concat" it.
        base: see above. Default 10,000.
        reach_base: put the last wave at base · 2π. With layout="blocked" these are the numbers of
            tensor2tensor's `get_timing_signal_1d` and of fairseq's (whose positions begin behind
            its padding symbol: pass them, or an offset). Default False, as in the paper.

    Raises:
        ValueError: a size below 2, a name that is not known, a base below 1.

    >>> SinusoidalPositions(4)(torch.zeros(1, 2, 4))
    tensor([[[0.0000, 1.0000, 0.0000, 1.0000],
             [0.8415, 0.5403, 0.0100, 0.9999]]])
    """

    def __init__(
        self,
        size: int,
        *,
        layout: str = "interleaved",
        merge: str = "add",
        base: float = 1e4,
        reach_base: bool = False,
    ) -> None:
        super().__init__()
        if size < 2:
            raise ValueError(f"size is {size}; expected at least 2, a sine and a cosine")
        _check_waves(layout, base)
        _check_merge(merge)
        self.size, self.layout, self.merge, self.base = size, layout, merge, base
        self.reach_base = reach_base

    def encode(self, positions: Tensor) -> Tensor:
        """The codes `[..., size]` of any positions `[...]`, whole or not, negative or not.

        Float32, or float64 for float64 positions.
        """
        waves = self.size // 2
        steps = max(waves - 1, 1) if self.reach_base else waves
        angles = _angles(positions, waves, steps, self.base)
        both = angles.sin(), angles.cos()
        if self.layout == "blocked":
            code = torch.cat(both, -1)
        else:
            code = torch.stack(both, -1).flatten(-2)
        return nn.functional.pad(code, (0, 1)) if self.size % 2 else code

    def forward(
        self, x: Tensor, *, offset: int | Tensor = 0, positions: Tensor | None = None
    ) -> Tensor:
        """Mark each time step with its position.

        Args:
            x: `[..., T, D]`.
            offset: the position of the first step, one for all or integers `[...]`, one for each
                sequence; for decoding step by step, and for batches padded on the left. Default 0.
            positions: the position of each step, `[T]` or `[..., T]`, in place of offset. Default:
                offset, offset + 1, …

        Returns:
            `[..., T, D]`, or `[..., T, D + size]` with merge="concat", in the dtype of x.

        Raises:
            ValueError: x without a time dimension, or of another width than size where it is added;
                positions of another shape, or beside an offset.
        """
        _check_marked(x, self.size, self.merge)
        steps = _positions(x.shape[:-1], offset, positions, x.device)
        return _merge(x, self.encode(steps.to(full_precision(x))), self.merge)

    def extra_repr(self) -> str:
        return (
            f"{self.size}, layout={self.layout!r}, merge={self.merge!r}, base={self.base:g}, "
            f"reach_base={self.reach_base}"
        )


class LearnedPositions(nn.Module):
    """One learned vector per position, up to a longest sequence.

    Gehring et al., "Convolutional Sequence to Sequence Learning", 2017. `weight` is
    `[max_length, size]`, drawn from a normal distribution of standard deviation 0.02.

    Args:
        max_length: how many positions there are; at least 1.
        size: how many channels the vector of a position has; at least 1.
        merge: "add" the vector to the input (default), whose width must be `size`, or "concat" it.

    Raises:
        ValueError: a max_length or size below 1, a merge that is not known.

    >>> positions = LearnedPositions(10, 4)
    >>> torch.equal(positions(torch.zeros(1, 3, 4), offset=2)[0], positions.weight[2:5])
    True
    """

    def __init__(self, max_length: int, size: int, *, merge: str = "add") -> None:
        super().__init__()
        for name, number in (("max_length", max_length), ("size", size)):
            if number < 1:
                raise ValueError(f"{name} is {number}; expected at least 1")
        _check_merge(merge)
        self.max_length, self.size, self.merge = max_length, size, merge
        self.weight = nn.Parameter(torch.empty(max_length, size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors anew."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(
        self, x: Tensor, *, offset: int | Tensor = 0, positions: Tensor | None = None
    ) -> Tensor:
        """Mark each time step with its position.

        Args:
            x: `[..., T, D]`.
            offset: the position of the first step, one for all or integers `[...]`, one for each
                sequence; for decoding step by step, and for batches padded on the left. Default 0.
            positions: integers, the position of each step, `[T]` or `[..., T]`, in place of offset.
                A negative one gets zeros, as padding on the left has it. Default: offset,
                offset + 1, …

        Returns:
            `[..., T, D]`, or `[..., T, D + size]` with merge="concat", in the dtype of x.

        Raises:
            ValueError: x without a time dimension, of another width than size where it is added, or
                with steps before position 0 (one offset for all) or from max_length on; positions
                of another shape, or beside an offset.
        """
        _check_marked(x, self.size, self.merge)
        if positions is None and isinstance(offset, int):
            end = offset + x.shape[-2]
            if offset < 0 or end > self.max_length:
                raise ValueError(
                    f"x has {x.shape[-2]} time steps and offset is {offset}; {self._mend}"
                )
            return _merge(x, self.weight[offset:end], self.merge)
        steps = _positions(x.shape[:-1], offset, positions, x.device)
        if steps.is_floating_point():
            raise TypeError(
                f"positions has dtype {steps.dtype}; learned ones are whole: use .long()"
            )
        if values_are_visible() and steps.numel() and (last := int(steps.max())) >= self.max_length:
            raise ValueError(f"positions has the entry {last}; {self._mend}")
        codes = nn.functional.embedding(steps.clamp(min=0), self.weight)
        return _merge(x, codes.masked_fill((steps < 0)[..., None], 0), self.merge)

    @property
    def _mend(self) -> str:
        return (
            f"positions were learned from 0 to {self.max_length - 1}: shorten the sequence, or "
            f"build LearnedPositions with a max_length above {self.max_length}"
        )

    def extra_repr(self) -> str:
        return f"{self.max_length}, {self.size}, merge={self.merge!r}"


class RotaryPositions(nn.Module):
    """Turn queries and keys by angles that grow with the position.

    Channels are taken in pairs, each a point in the plane, and pair i at position t is turned by
    `angle(t, i) = t / base^(2i / size)`. The product of a query and a key that were both turned
    depends on their positions through the difference alone; their lengths stay as they were. Su et
    al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

    No parameters, no longest sequence. Half types are turned in float32.

    Args:
        size: how many channels are turned, the first ones of each head; even. The others stay.
        layout: which channels make a pair: "interleaved" (default, as in the paper) neighbours 2i
            and 2i + 1, "blocked" (as in GPT-NeoX and Llama) i and i + size / 2.
        base: the last pair turns `base^(1 - 2 / size)` times as slowly as the first. Default
            10,000.

    Raises:
        ValueError: a size that is odd or below 2, a layout that is not known, a base below 1.

    >>> query = torch.tensor([1.0, 0.0]).expand(3, 1, 2)  # three steps, one head
    >>> RotaryPositions(2)(query)[:, 0]
    tensor([[ 1.0000,  0.0000],
            [ 0.5403,  0.8415],
            [-0.4161,  0.9093]])
    """

    def __init__(self, size: int, *, layout: str = "interleaved", base: float = 1e4) -> None:
        super().__init__()
        if size < 2 or size % 2:
            raise ValueError(
                f"size is {size}; channels are turned in pairs, so it must be even and above 0"
            )
        _check_waves(layout, base)
        self.size, self.layout, self.base = size, layout, base

    def forward(
        self, x: Tensor, *, offset: int | Tensor = 0, positions: Tensor | None = None
    ) -> Tensor:
        """Turn each time step by its position.

        Args:
            x: queries or keys, `[..., T, H, D]` with D of at least `size`.
            offset: the position of the first step, one for all or `[...]`, one for each sequence;
                for decoding step by step, and for batches padded on the left. Default 0.
            positions: the position of each step, `[T]` or one row per sequence `[..., T]`, in place
                of offset. Default: offset, offset + 1, …

        Returns:
            `[..., T, H, D]`, in the dtype of x.

        Raises:
            ValueError: an x or positions of another shape, or both positions and an offset.
        """
        self._check("x", x)
        return self._turn(x, self._angles(x, offset, positions))

    def both(
        self,
        query: Tensor,
        key: Tensor,
        *,
        offset: int | Tensor = 0,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Turn queries and keys that end at the same step.

        The last query stands where the last key does, as in the causal order of the dense support.

        Args:
            query: `[..., Tq, H, D]`.
            key: `[..., Tk, H, D]`.
            offset: the position of the first step of the longer one, as in forward. Default 0.
            positions: the position of each step of the longer one, in place of offset.

        Returns:
            The query and the key, turned.

        Raises:
            ValueError: as forward.

        >>> query, key = RotaryPositions(2).both(torch.ones(1, 1, 2), torch.ones(5, 1, 2))
        >>> torch.equal(query[0], key[4])
        True
        """
        self._check("query", query)
        self._check("key", key)
        longer = query if query.shape[-3] > key.shape[-3] else key
        angles = self._angles(longer, offset, positions)
        first_query, first_key = (longer.shape[-3] - x.shape[-3] for x in (query, key))
        return (
            self._turn(query, angles[..., first_query:, :]),
            self._turn(key, angles[..., first_key:, :]),
        )

    def _angles(self, x: Tensor, offset: int | Tensor, positions: Tensor | None) -> Tensor:
        """Angles `[..., T, size / 2]`, float32 at least."""
        steps = _positions(x.shape[:-2], offset, positions, x.device)
        steps = steps.double() if x.dtype == torch.float64 else steps
        return _angles(steps, self.size // 2, self.size // 2, self.base)

    def _turn(self, x: Tensor, angles: Tensor) -> Tensor:
        angles = angles.unsqueeze(-2)  # [..., T, 1, size / 2], the same for all heads
        cos, sin = angles.cos(), angles.sin()
        # The two channels of a pair lie side by side, or one half of the channels apart
        dim, shape = (-1, (-1, 2)) if self.layout == "interleaved" else (-2, (2, -1))
        a, b = x[..., : self.size].to(cos.dtype).unflatten(-1, shape).unbind(dim)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim).flatten(-2).to(x.dtype)
        if x.shape[-1] == self.size:
            return turned
        return torch.cat([turned, x[..., self.size :]], -1)

    def _check(self, name: str, x: Tensor) -> None:
        if x.dim() < 3 or x.shape[-1] < self.size:
            raise ValueError(
                f"{name} has shape {list(x.shape)}; expected [..., T, H, D] with D of at least "
                f"{self.size}, the size that is turned"
            )

    def extra_repr(self) -> str:
        return f"{self.size}, layout={self.layout!r}, base={self.base:g}"


def _check_waves(layout: str, base: float) -> None:
    if layout not in ("interleaved", "blocked"):
        raise ValueError(f"layout is {layout!r}; expected 'interleaved' or 'blocked'")
    if base < 1:
        raise ValueError(f"base is {base}; expected at least 1")


def _check_merge(merge: str) -> None:
    if merge not in ("add", "concat"):
        raise ValueError(f"merge is {merge!r}; expected 'add' or 'concat'")


def _check_marked(x: Tensor, size: int, merge: str) -> None:
    if x.dim() < 2 or (merge == "add" and x.shape[-1] != size):
        raise ValueError(
            f"x has shape {list(x.shape)}; expected [..., T, D]"
            + (f" with D = {size}, the size of the codes" if merge == "add" else "")
        )


def _merge(x: Tensor, codes: Tensor, merge: str) -> Tensor:
    """Add the codes `[..., T, size]` to x `[..., T, D]`, or append them, in the dtype of x."""
    codes = codes.to(x.dtype)
    if merge == "add":
        return x + codes
    return torch.cat([x, codes.expand(*x.shape[:-1], -1)], -1)


def full_precision(like: Tensor) -> torch.dtype:
    """Float64 for float64, otherwise float32: half types do not hold long positions."""
    return torch.float64 if like.dtype == torch.float64 else torch.float32


def _positions(
    shape: Sequence[int], offset: int | Tensor, positions: Tensor | None, device: torch.device
) -> Tensor:
    """The positions of steps `[..., T]`, of which `shape` is the shape: `[T]` or `[..., T]`."""
    if positions is None:
        steps = torch.arange(shape[-1], device=device)
        if not isinstance(offset, Tensor):
            return steps + offset
        if offset.is_floating_point() or not broadcasts_to(offset.shape, tuple(shape[:-1])):
            raise ValueError(
                f"offset has shape {list(offset.shape)} and dtype {offset.dtype}; expected "
                f"integers {list(shape[:-1])}, one for each sequence, or one for all"
            )
        return offset[..., None] + steps
    if isinstance(offset, Tensor) or offset:
        raise ValueError(f"offset is {offset}, but positions are given too: pass one of them")
    if positions.shape[-1:] != shape[-1:] or not broadcasts_to(positions.shape, tuple(shape)):
        raise ValueError(
            f"positions has shape {list(positions.shape)}; expected one for each step, "
            f"{[shape[-1]]} or {list(shape)}"
        )
    return positions


def _angles(positions: Tensor, waves: int, steps: int, base: float) -> Tensor:
    """`angle(t, i) = t / base^(i / steps)` of positions `[...]`, as `[..., waves]`."""
    dtype = full_precision(positions)
    wave = torch.arange(waves, dtype=dtype, device=positions.device)
    return positions.to(dtype)[..., None] * torch.exp(wave * (-math.log(base) / steps))
