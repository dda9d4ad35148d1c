"""One layer of a Transformer: attention, and the same small network at every position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from attn_core import Normalizer, Score, linear
from sequence_attn.multihead import KeyValueCache, MultiHead
from sequence_attn.positions import RotaryPositions

Activation = str | Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
}


class LayerWeights(NamedTuple):
    """The attention weights of one layer.

    Attributes:
        itself: what each position read from the sequence itself, as `MultiHead` lays weights out.
        memory: what it read from the memory, `[..., H, T, Tm]`; None in an encoder.
    """

    itself: Tensor
    memory: Tensor | None


class LayerCache(NamedTuple):
    """What one layer has projected already.

    Attributes:
        itself: keys and values of the steps so far; None before the first.
        memory: keys and values of the memory; None in an encoder.
    """

    itself: KeyValueCache | None
    memory: KeyValueCache | None


class PositionWise(nn.Module):
    """The same two-layer network at every position: `φ(x W₁ + b₁) W₂ + b₂`.

    Which is what two convolutions of width 1 compute. Vaswani et al., 2017, section 3.3.

    Args:
        size: the width of the input and of the output.
        hidden_size: the width in between.
        activation: φ: "relu" (default), "gelu", "silu", or a function.
        dropout: the probability with which a hidden unit is dropped in training. Default 0.

    Raises:
        ValueError: an unknown activation, a size below 1.

    >>> import torch
    >>> PositionWise(4, 16)(torch.zeros(2, 3, 4)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        size: int,
        hidden_size: int,
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, width in (("size", size), ("hidden_size", hidden_size)):
            if width < 1:
                raise ValueError(f"{name} is {width}; expected at least 1")
        if isinstance(activation, str):
            if activation not in _ACTIVATIONS:
                known = ", ".join(_ACTIVATIONS)
                raise ValueError(
                    f"activation is {activation!r}; known ones are {known}, or pass a function"
                )
            activation = _ACTIVATIONS[activation]
        self.hidden = nn.Linear(size, hidden_size)
        self.output = nn.Linear(hidden_size, size)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., size]` to `[..., size]`."""
        hidden = self.dropout(self.activation(linear.apply(self.hidden, x)))
        return linear.apply(self.output, hidden)


class TransformerLayer(nn.Module):
    """Attention to the sequence itself, to a memory (in a decoder), and a position-wise network.

    Each of them changes its input by addition: `x + f(norm(x))` (norm_first), or
    `norm(x + f(x))` as Vaswani et al., 2017, have it. Where the widths differ, the x that is added
    to is projected first.

    Args:
        size: the width of the output.
        heads: H, the number of attention heads.
        input_size: the width of the input. Default: size.
        memory_size: the width of the memory. Default: none, the layer has no memory (encoder).
        size_per_head: of the attentions. Default: size / heads.
        feed_forward_size: the hidden width of the position-wise network. Default: 4 · size.
        dropout: of the attention weights, of hidden units, and of each change, in training.
            Default 0.1.
        activation: of the position-wise network: "relu" (default), "gelu", "silu", or a function.
        norm_first: normalise the input of each part (default; deep stacks train without a warm-up)
            rather than the sum behind it.
        key_heads: of the attentions, see `MultiHead`. Default: heads.
        window, rotary, score, normalizer: of the attention to the sequence itself, see `MultiHead`.

    Raises:
        ValueError: heads that do not divide size, an unknown name, a size below 1.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        *,
        input_size: int | None = None,
        memory_size: int | None = None,
        size_per_head: int | None = None,
        feed_forward_size: int | None = None,
        dropout: float = 0.1,
        activation: Activation = "relu",
        norm_first: bool = True,
        key_heads: int | None = None,
        window: int | None = None,
        rotary: RotaryPositions | None = None,
        score: str | Score = "scaled_dot",
        normalizer: str | Normalizer = "softmax",
    ) -> None:
        super().__init__()
        if size < 1 or heads < 1:
            raise ValueError(f"size is {size} and heads is {heads}; expected at least 1")
        if size_per_head is None and size % heads:
            raise ValueError(
                f"heads is {heads}, which does not divide size, {size}: choose another number of "
                "heads, or give size_per_head"
            )
        head = size // heads if size_per_head is None else size_per_head
        inner = size if input_size is None else input_size
        shared: dict[str, Any] = {"output_size": size, "bias": True, "dropout": dropout}
        shared["key_heads"] = key_heads
        self.norm_first = norm_first
        self.attention = MultiHead(
            heads,
            head,
            input_size=inner,
            window=window,
            rotary=rotary,
            score=score,
            normalizer=normalizer,
            **shared,
        )
        self.attention_norm = nn.LayerNorm(inner if norm_first else size)
        self.shortcut = nn.Identity() if inner == size else nn.Linear(inner, size, bias=False)
        self.memory_attention = self.memory_norm = None
        if memory_size is not None:
            widths = size, memory_size, memory_size
            self.memory_attention = MultiHead(heads, head, input_size=widths, **shared)
            self.memory_norm = nn.LayerNorm(size)
        hidden = 4 * size if feed_forward_size is None else feed_forward_size
        self.feed_forward = PositionWise(size, hidden, activation, dropout)
        self.feed_forward_norm = nn.LayerNorm(size)
        self.dropout = nn.Dropout(dropout)

    def start(self, memory: Tensor | None) -> LayerCache:
        """The cache before the first step."""
        if self.memory_attention is None or memory is None:
            return LayerCache(None, None)
        return LayerCache(None, self.memory_attention.precompute(memory))

    def forward(
        self,
        x: Tensor,
        cache: LayerCache,
        itself: dict[str, Any],
        memory: dict[str, Any],
        need_weights: bool = False,
    ) -> tuple[Tensor, LayerCache, LayerWeights | None]:
        """Apply the layer.

        Args:
            x: `[..., T, input_size]`.
            cache: what it has projected already, at first what `start` returns.
            itself, memory: which pairs exist in the attention to either, as arguments of
                `MultiHead.forward`.
            need_weights: return the weights as well. Default False.

        Returns:
            `[..., T, size]`, the cache for the next step, and the weights.
        """
        y = self._before(self.attention_norm, x)
        past = self.attention.precompute(y, cache=cache.itself)
        read = self.attention(y, cache=past, need_weights=need_weights, **itself)
        x = self._after(self.attention_norm, self.shortcut(x), read.context)
        weights = LayerWeights(read.weights, None) if need_weights else None
        if self.memory_attention is not None and self.memory_norm is not None:
            y = self._before(self.memory_norm, x)
            read = self.memory_attention(y, cache=cache.memory, need_weights=need_weights, **memory)
            x = self._after(self.memory_norm, x, read.context)
            weights = None if weights is None else LayerWeights(weights.itself, read.weights)
        y = self._before(self.feed_forward_norm, x)
        x = self._after(self.feed_forward_norm, x, self.feed_forward(y))
        return x, LayerCache(past, cache.memory), weights

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.norm_first else x

    def _after(self, norm: nn.Module, x: Tensor, change: Tensor) -> Tensor:
        x = x + self.dropout(change)
        return x if self.norm_first else norm(x)
