"""The Transformer: a stack of attention and position-wise layers, to encode or to decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from attn_core import Dense, Support, Window
from attn_core.compat import renewed
from attn_core.supports.base import broadcasts_to
from sequence_attn.checks import check_lengths, check_tokens, chosen, padding
from sequence_attn.pairs import check_mask, in_window, per_head, real_keys
from sequence_attn.shards import Split, refuse, split
from sequence_attn.transformer_layer import LayerCache, LayerWeights, TransformerLayer


class TransformerCache(NamedTuple):
    """What a Transformer need not compute again at the next step; nothing ever changes one.

    Attributes:
        layers: one for each layer, the first layer first.
        memory_lengths: how much of the memory is real, `[...]`; None for all.
        memory_key_mask: which steps of the memory are real, `[..., Tm]`; None for all.
        positions: of the steps that it holds, int64 `[..., T]`, -1 where one is padding; None where
            all sequences have 0, 1, …
    """

    layers: tuple[LayerCache, ...]
    memory_lengths: Tensor | None
    memory_key_mask: Tensor | None = None
    positions: Tensor | None = None

    @property
    def length(self) -> int:
        """How many steps it holds."""
        itself = self.layers[0].itself
        return 0 if itself is None else itself.length

    def select(self, index: Tensor, *, memory: bool = True) -> TransformerCache:
        """The sequences `index` `[n]` of a batch, in that order; one may occur often.

        With `memory=False` the memory is left as it is: enough where every sequence takes the place
        of one that reads the same memory.
        """
        lengths, mask, positions = self.memory_lengths, self.memory_key_mask, self.positions
        if memory:
            lengths, mask = chosen(lengths, index), chosen(mask, index)
        positions = chosen(positions, index)
        layers = tuple(
            LayerCache(
                None if itself is None else itself.select(index),
                of_memory.select(index) if memory and of_memory is not None else of_memory,
            )
            for itself, of_memory in self.layers
        )
        return TransformerCache(layers, lengths, mask, positions)


class Transformed(NamedTuple):
    """What a Transformer returns.

    Attributes:
        output: `[..., T, size]`; zero behind the length of a sequence, where lengths are given.
        weights: one `LayerWeights` for each layer, the first layer first; None unless asked for.
        cache: for the next steps; None unless one was given for these.
    """

    output: Tensor
    weights: tuple[LayerWeights, ...] | None
    cache: TransformerCache | None


class _Transformer(nn.Module):
    """What encoder and decoder share: positions, the stack of layers, the last normalisation."""

    def __init__(
        self,
        layers: int,
        size: int,
        heads: int,
        *,
        input_size: int | None,
        positions: nn.Module | None,
        relative_bias: Callable[[Tensor], Tensor] | None,
        causal: bool,
        **options: Any,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers is {layers}; expected at least 1")
        self.input_size = size if input_size is None else input_size
        self.size, self.causal = size, causal
        self.positions, self.relative_bias = positions, relative_bias
        widths = [self.input_size] + [size] * (layers - 1)
        self.layers = nn.ModuleList(
            TransformerLayer(size, heads, input_size=width, **options) for width in widths
        )
        self.norm = nn.LayerNorm(size) if self._stack[0].norm_first else nn.Identity()

    @property
    def _stack(self) -> list[TransformerLayer]:
        return cast(list[TransformerLayer], list(self.layers))

    def _run(
        self,
        x: Tensor,
        cache: TransformerCache,
        cached: bool,
        lengths: Tensor | None,
        key_mask: Tensor | None,
        positions: Tensor | None,
        mask: Tensor | None,
        support: Support | None,
        memory: dict[str, Any],
        need_weights: bool,
    ) -> tuple[Tensor, TransformerCache, tuple[LayerWeights, ...] | None]:
        if (how := split()) is not None:
            refuse(key_mask=key_mask, positions=positions, mask=mask, support=support)
            refuse(cache=cached, memory=memory or None, return_attention_weights=need_weights)
            return self._run_split(how, x, cache, lengths)
        here = everywhere = None
        if lengths is not None:
            check_lengths("lengths", lengths, x)
        ragged = key_mask is not None or positions is not None or cache.positions is not None
        if ragged or (cached and lengths is not None):
            here, everywhere = self._places(x, cache, lengths, key_mask, positions)
        if self.positions is not None and here is not None:
            x = self.positions(x, positions=here)
        elif self.positions is not None:
            held = cache.layers[0].itself
            x = self.positions(x) if held is None else self.positions(x, offset=held.length)
        check_tokens("x", x, self._stack[0].attention.query, self.input_size)
        attention = self._stack[0].attention
        places = None if here is None or everywhere is None else (here, everywhere)
        if cached and places and support is None and attention.window is not None:
            support, mask = self._near(attention.window, *places, mask), None
        itself: dict[str, Any] = {"mask": mask, "causal": self.causal}
        if everywhere is None:
            itself["key_lengths"] = lengths
        else:
            itself["positions"] = everywhere if attention.rotary else None
            itself["key_mask"] = None if support is not None else everywhere >= 0
        if support is not None:
            itself |= {"causal": False, "support": support}
        if self.relative_bias is not None:
            itself["bias"] = self.relative_bias(self._relative(x, cache, support, here, everywhere))
        caches, weights = [], []
        for layer, past in zip(self._stack, cache.layers, strict=True):
            x, now, read = layer(x, past, itself, memory, need_weights)
            caches.append(now)
            weights.append(read)
        x = self.norm(x)
        if here is not None:
            x = x.masked_fill((here < 0)[..., None], 0)
        elif lengths is not None:
            x = x.masked_fill(padding(lengths, x), 0)
        after = renewed(cache, layers=tuple(caches), positions=everywhere)
        return x, after, tuple(weights) if need_weights else None

    def _run_split(
        self, how: Split, x: Tensor, cache: TransformerCache, lengths: Tensor | None
    ) -> tuple[Tensor, TransformerCache, None]:
        """The same for some steps of sequences that are split along time."""
        here = how.positions(x.shape[-2], x.device)
        if self.positions is not None:
            x = self.positions(x, positions=here)
        check_tokens("x", x, self._stack[0].attention.query, self.input_size)
        itself: dict[str, Any] = {"causal": self.causal, "key_lengths": lengths}
        itself["bias"] = self.relative_bias
        for layer, past in zip(self._stack, cache.layers, strict=True):
            x, _, _ = layer(x, past, itself, {})
        x = self.norm(x)
        if lengths is not None:
            x = x.masked_fill((here >= lengths[..., None])[..., None], 0)
        return x, cache, None

    def _places(
        self,
        x: Tensor,
        cache: TransformerCache,
        lengths: Tensor | None,
        key_mask: Tensor | None,
        positions: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The positions of the steps x, and of those before too, `[..., T]`; -1 is padding."""
        if lengths is not None and key_mask is not None:
            raise ValueError(
                "key_mask is given beside lengths, which say which steps are real, too: pass one"
            )
        shape, device = x.shape[:-1], x.device
        past = cache.positions
        if past is None:
            past = torch.arange(cache.length, device=device).expand(*shape[:-1], -1)
        real = key_mask
        if real is not None:
            check_mask("key_mask", real, x)
        elif lengths is not None:
            real = ~padding(lengths, x).squeeze(-1)
        else:
            real = torch.ones((), dtype=torch.bool, device=device).expand(shape)
        if positions is None:
            # Each sequence goes on behind its last real step
            first = nn.functional.pad(past, (1, 0), value=-1).amax(-1, keepdim=True) + 1
            positions = first + real.cumsum(-1) - 1
        elif positions.is_floating_point() or not broadcasts_to(positions.shape, shape):
            raise ValueError(
                f"positions has shape {list(positions.shape)} and dtype {positions.dtype}; "
                f"expected integers {list(shape)}, one for each step, or {[shape[-1]]}"
            )
        here = torch.where(real, positions, -1)
        return here, torch.cat([past, here], -1)

    def _near(self, window: int, here: Tensor, everywhere: Tensor, mask: Tensor | None) -> Support:
        """The window of a cache that may hold padding among its steps: it counts positions."""
        relative = everywhere[..., None, :] - here[..., :, None]
        allowed = (relative.abs() <= window) & (everywhere >= 0)[..., None, :]
        if self.causal:
            allowed = allowed & (relative <= 0)
        allowed = allowed.unsqueeze(-3)
        mask = per_head(mask, relative.dim() - 2)
        return Dense(allowed if mask is None else allowed & mask)

    def _relative(
        self,
        x: Tensor,
        cache: TransformerCache,
        support: Support | None,
        here: Tensor | None,
        everywhere: Tensor | None,
    ) -> Tensor:
        """Position of the key minus position of the query, for each pair of the layers' support."""
        window = self._stack[0].attention.window
        pairs = support
        if pairs is None:
            pairs = Dense() if window is None else Window(window, causal=self.causal)
        if here is None or everywhere is None:
            steps = x.shape[-2]
            return pairs.relative_positions(steps, cache.length + steps, x.device)
        if not isinstance(pairs, (Dense, Window)):
            raise ValueError(
                "positions or key_mask are given beside support, over which relative_bias counts "
                "the steps: leave them out"
            )
        relative = everywhere[..., None, :] - here[..., :, None]
        if isinstance(pairs, Window):
            queries, keys = relative.shape[-2:]
            relative = in_window(relative.unsqueeze(-3), pairs, queries, keys).squeeze(-3)
        return relative

    def _check_cached(self, **others: Any) -> None:
        """Raise where an argument is given beside a cache, which contains it."""
        for name, argument in others.items():
            if argument is not None:
                raise ValueError(f"{name} is given beside cache, which holds it already")


class TransformerEncoder(_Transformer):
    """A stack of layers, each attending to the sequence itself.

    Vaswani et al., "Attention Is All You Need", 2017. With `causal=True` it is a language model's
    decoder without a memory, and decodes step by step.

    Args:
        layers: how many; at least 1.
        size: the width of the output and between the layers.
        heads: H, the number of attention heads of each layer.
        input_size: the width that enters the first layer, behind `positions`. Default: size.
        positions: marks the input with its positions, such as `SinusoidalPositions`; called with
            `offset=` once there is a cache, `positions=` where sequences differ. Default: none.
        relative_bias: gives a bias of the attention scores for relative positions, such as `ALiBi`;
            all layers share it. Default: none.
        causal: no position sees a later one. Default False.
        options: of each `TransformerLayer`: size_per_head, feed_forward_size, dropout, activation,
            norm_first, key_heads, window, rotary, score, normalizer. All layers share an object.

    Raises:
        ValueError: heads that do not divide size, an unknown name, a size below 1.

    >>> import torch
    >>> encoder = TransformerEncoder(2, 64, 8)
    >>> x = torch.randn(3, 10, 64)
    >>> result = encoder(x, lengths=torch.tensor([10, 7, 2]), return_attention_weights=True)
    >>> result.output.shape, [layer.itself.shape for layer in result.weights]
    (torch.Size([3, 10, 64]), [torch.Size([3, 8, 10, 10]), torch.Size([3, 8, 10, 10])])
    """

    def __init__(
        self,
        layers: int,
        size: int,
        heads: int,
        *,
        input_size: int | None = None,
        positions: nn.Module | None = None,
        relative_bias: Callable[[Tensor], Tensor] | None = None,
        causal: bool = False,
        **options: Any,
    ) -> None:
        if options.get("memory_size") is not None:
            raise ValueError("memory_size is for a TransformerDecoder: an encoder has no memory")
        super().__init__(
            layers,
            size,
            heads,
            input_size=input_size,
            positions=positions,
            relative_bias=relative_bias,
            causal=causal,
            **options,
        )

    def start(self) -> TransformerCache:
        """The cache before the first step; each call of `forward` with it returns the next one."""
        return TransformerCache(tuple(layer.start(None) for layer in self._stack), None)

    def forward(
        self,
        x: Tensor,
        *,
        lengths: Tensor | None = None,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        support: Support | None = None,
        cache: TransformerCache | None = None,
        return_attention_weights: bool = False,
    ) -> Transformed:
        """Encode.

        Args:
            x: `[..., T, D]`, with any batch dimensions or none.
            lengths: integers `[...]`: how many steps of each sequence are real. Default: all.
            key_mask: bool `[..., T]`, in place of lengths: True where a step is real, for batches
                that are padded on the left, say. Default: all.
            positions: integers `[T]` or `[..., T]`, the position of each step of x; a negative one
                is padding. Default: each sequence counts its real steps, from 0 or from where the
                cache ends.
            mask: bool, True where a step may attend to another: `[T, T]`, `[..., T, T]` or
                `[..., H, T, T]` (with a cache, the earlier steps are among the keys). Default: all.
            support: which pairs exist, in place of lengths, mask, causal and window, such as
                `attn_core.Edges`. Default: none.
            cache: from `start` or from the last call; x then continues what came before. Default:
                none.
            return_attention_weights: return the weights of every layer as well. Default False.

        Returns:
            Transformed(output, weights, cache).

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        before, cached = (self.start(), False) if cache is None else (cache, True)
        output, after, weights = self._run(
            x, before, cached, lengths, key_mask, positions, mask, support, {},
            return_attention_weights,
        )  # fmt: skip
        return Transformed(output, weights, None if cache is None else after)


class TransformerDecoder(_Transformer):
    """A stack of layers, each attending to the steps so far and to a memory.

    Vaswani et al., "Attention Is All You Need", 2017.

    Args:
        layers: how many; at least 1.
        size: the width of the output and between the layers.
        heads: H, the number of attention heads of each layer.
        input_size: the width that enters the first layer, behind `positions`. Default: size.
        memory_size: the width of the memory, such as an encoder's output. Default: size.
        positions: marks the input with its positions, such as `SinusoidalPositions`; called with
            `offset=` once there is a cache, `positions=` where sequences differ. Default: none.
        relative_bias: gives a bias of the scores for relative positions, such as `ALiBi`, in the
            attention to the sequence itself; all layers share it. Default: none.
        causal: no position sees a later one. Default True.
        options: of each `TransformerLayer`: size_per_head, feed_forward_size, dropout, activation,
            norm_first, key_heads, window, rotary, score, normalizer. All layers share an object.

    Raises:
        ValueError: heads that do not divide size, an unknown name, a size below 1.

    >>> import torch
    >>> decoder = TransformerDecoder(2, 64, 8).eval()
    >>> memory, x = torch.randn(3, 10, 64), torch.randn(3, 5, 64)
    >>> lengths = torch.tensor([10, 7, 2])
    >>> output = decoder(x, memory, memory_lengths=lengths).output

    Step by step, with the same result:

    >>> cache = decoder.start(memory, lengths=lengths)
    >>> for step in x.split(1, dim=1):
    ...     last, _, cache = decoder(step, cache=cache)
    >>> torch.allclose(last, output[:, -1:], atol=1e-5)
    True
    """

    def __init__(
        self,
        layers: int,
        size: int,
        heads: int,
        *,
        input_size: int | None = None,
        memory_size: int | None = None,
        positions: nn.Module | None = None,
        relative_bias: Callable[[Tensor], Tensor] | None = None,
        causal: bool = True,
        **options: Any,
    ) -> None:
        self_size = size if memory_size is None else memory_size
        super().__init__(
            layers,
            size,
            heads,
            input_size=input_size,
            positions=positions,
            relative_bias=relative_bias,
            causal=causal,
            memory_size=self_size,
            **options,
        )
        self.memory_size = self_size

    def start(
        self, memory: Tensor, *, lengths: Tensor | None = None, key_mask: Tensor | None = None
    ) -> TransformerCache:
        """Project the memory once; each call of `forward` with a cache returns the next one.

        Args:
            memory: `[..., Tm, memory_size]`.
            lengths: integers `[...]`: how much of each memory is real. Default: all.
            key_mask: bool `[..., Tm]`, True where a step of the memory is real. Default: all.

        Returns:
            The cache before the first step.
        """
        check_tokens("memory", memory, self._stack[0].attention.query, self.memory_size)
        if lengths is not None:
            check_lengths("memory_lengths", lengths, memory)
        if key_mask is not None:
            check_mask("memory_key_mask", key_mask, memory)
        layers = tuple(layer.start(memory) for layer in self._stack)
        return TransformerCache(layers, lengths, key_mask)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        memory_lengths: Tensor | None = None,
        memory_key_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: TransformerCache | None = None,
        return_attention_weights: bool = False,
    ) -> Transformed:
        """Decode.

        Args:
            x: `[..., T, D]`, with any batch dimensions or none.
            memory: `[..., Tm, memory_size]`; needed unless there is a cache.
            lengths: integers `[...]`: how many steps of each sequence are real. Default: all.
            key_mask: bool `[..., T]`, in place of lengths: True where a step is real, for batches
                that are padded on the left, say. Default: all.
            positions: integers `[T]` or `[..., T]`, the position of each step of x; a negative one
                is padding. Default: each sequence counts its real steps, from 0 or from where the
                cache ends.
            mask: bool, True where a step may attend to another: `[T, T]`, `[..., T, T]` or
                `[..., H, T, T]` (with a cache, the earlier steps are among the keys). Default: all.
            memory_lengths: integers `[...]`: how much of each memory is real. Default: all.
            memory_key_mask: bool `[..., Tm]`, True where a step of the memory is real. Default:
                all.
            memory_mask: bool, True where a step may attend to the memory: `[T, Tm]`, `[..., T, Tm]`
                or `[..., H, T, Tm]`. Default: all.
            cache: from `start` or from the last call; x then continues what came before, and memory
                is left out. Default: none.
            return_attention_weights: return the weights of every layer as well. Default False.

        Returns:
            Transformed(output, weights, cache).

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        if cache is not None:
            self._check_cached(
                memory=memory, memory_lengths=memory_lengths, memory_key_mask=memory_key_mask
            )
            before = cache
        elif memory is None:
            raise ValueError("memory is needed, unless cache holds it")
        else:
            before = self.start(memory, lengths=memory_lengths, key_mask=memory_key_mask)
        pairs: dict[str, Any] = {"support": real_keys(before.memory_lengths)}
        if memory_mask is not None or before.memory_key_mask is not None:
            pairs = {
                "mask": memory_mask,
                "key_mask": before.memory_key_mask,
                "key_lengths": before.memory_lengths,
            }
        output, after, weights = self._run(
            x, before, cache is not None, lengths, key_mask, positions, mask, None, pairs,
            return_attention_weights,
        )  # fmt: skip
        return Transformed(output, weights, None if cache is None else after)
