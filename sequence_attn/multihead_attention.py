"""A drop-in replacement for torch.nn.MultiheadAttention on the attention core."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_core import Dense, ScaledDot, Support, Window
from attn_core.linear import linear
from sequence_attn.checks import check_tokens, check_window
from sequence_attn.multihead import KeyValueCache
from sequence_attn.pairs import both, in_window, mask_bias, places
from sequence_attn.shards import attend, refuse, split


class MultiHeadAttention(nn.MultiheadAttention):
    """Multi-head attention with the interface of `torch.nn.MultiheadAttention`.

    `MultiHead(Q, K, V) = Concat(head_1, …, head_H) W^O`, with `head_h = softmax(Q_h K_hᵀ / √D) V_h`
    over the projections of each head. Vaswani et al., "Attention Is All You Need", 2017.

    It is a subclass: constructor, parameters, `state_dict` keys, initial values for a given seed,
    argument names and the polarity of the masks (**True forbids**, unlike in the rest of this
    library) are torch's, and so are the numbers that come out, except for what
    docs/compatibility.md lists. What it has beyond torch's: `window`, `causal`, `cache` and masks
    per head `[B, H, Tq, Tk]`.

    Inside `torch.nn.TransformerEncoderLayer` it is called in training and in evaluation alike:
    torch's fused inference path would compute from its weights without calling it, which leaves a
    window out and gives NaN where a query may attend to nothing. The module declines that path by
    having False in `_qkv_same_embed_dim`, where torch's layers ask, whatever the widths are
    (`torch.nn.TransformerEncoder` then warns that it makes no nested tensors; build it with
    `enable_nested_tensor=False`). If it was built before the module was put in and hands it a
    padded batch as a nested tensor, that is padded again here.

    Args:
        embed_dim: E, the width of the queries and of the output.
        num_heads: H; it divides embed_dim, and a head has E / H channels.
        dropout: the probability with which a weight is dropped in training. Default 0.
        bias: learn biases in the projections. Default True.
        add_bias_kv: append one learned key and value to every sequence. Default False.
        add_zero_attn: append a key and value of zeros to every sequence. Default False.
        kdim: the width of the keys. Default: embed_dim.
        vdim: the width of the values. Default: embed_dim.
        batch_first: sequences are `[B, T, E]` rather than `[T, B, E]`. Default False.
        device, dtype: of the parameters.
        window: a query sees the keys at most this many positions away, in O(T · window) time and
            memory. Default: all.

    Raises:
        ValueError: a width or number of heads below 1, heads that do not divide the width, a
            dropout outside [0, 1], a window below 0 or together with an appended key.

    >>> attention = MultiHeadAttention(64, 8, batch_first=True)
    >>> x = torch.randn(2, 10, 64)
    >>> padding = torch.arange(10) >= torch.tensor([[10], [4]])  # True: ignore
    >>> output, weights = attention(x, x, x, key_padding_mask=padding)
    >>> output.shape, weights.shape
    (torch.Size([2, 10, 64]), torch.Size([2, 10, 10]))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        window: int | None = None,
    ) -> None:
        sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "kdim": kdim, "vdim": vdim}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size}; expected at least 1")
        if embed_dim % num_heads:
            raise ValueError(
                f"num_heads is {num_heads}, which does not divide embed_dim, {embed_dim}: choose "
                "another number of heads, or MultiHead, whose widths are free"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}; a probability lies between 0 and 1")
        check_window(window)
        if window is not None and (add_bias_kv or add_zero_attn):
            raise ValueError(
                f"window is {window}, but the key of add_bias_kv or add_zero_attn has no position "
                "that a window could contain: leave one of them out"
            )
        super().__init__(
            embed_dim,
            num_heads,
            dropout,
            bias,
            add_bias_kv,
            add_zero_attn,
            kdim,
            vdim,
            batch_first,
            device,
            dtype,
        )
        self.window = window

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self.in_proj_weight is not None  # torch's initialisation asks
        super()._reset_parameters()
        self._qkv_same_embed_dim = False  # torch's layers ask: no fused path past forward

    def precompute(
        self, key: Tensor, value: Tensor | None = None, *, cache: KeyValueCache | None = None
    ) -> KeyValueCache:
        """Project keys and values once, for many queries to come.

        Args:
            key: `[Tk, B, kdim]`, `[B, Tk, kdim]` with batch_first, or `[Tk, kdim]`.
            value: likewise, of width vdim. Default: the keys.
            cache: what came before, in time. Default: nothing.

        Returns:
            A new cache, to be passed to `forward`; the one that was given is left as it is.

        >>> attention = MultiHeadAttention(8, 2).eval()
        >>> x, cache = torch.randn(5, 1, 8), None
        >>> for step in x.split(1):
        ...     cache = attention.precompute(step, cache=cache)
        ...     last, _ = attention(step, cache=cache)
        >>> torch.allclose(last, attention(x, x, x, causal=True)[0][-1:], atol=1e-6)
        True
        """
        value = key if value is None else value
        self._check_keys(key, value, dims=(3, 2))
        new = KeyValueCache(*self._project(1, key, value))
        return new if cache is None else cache.followed_by(new)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
        *,
        causal: bool = False,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            query: `[Tq, B, E]`, `[B, Tq, E]` with batch_first, or `[Tq, E]` without a batch.
            key: `[Tk, B, kdim]`, `[B, Tk, kdim]` or `[Tk, kdim]`.
            value: the same with vdim.
            key_padding_mask: `[B, Tk]`, or `[Tk]` without a batch: bool, **True = ignore** the key;
                or floating point, added to the scores. Default: none.
            need_weights: return the weights as well. Default True.
            attn_mask: `[Tq, Tk]`, `[B · H, Tq, Tk]` or `[B, H, Tq, Tk]` (`[H, Tq, Tk]` without a
                batch): bool, **True = may not attend**; or floating point, added to the scores.
                Default: none.
            average_attn_weights: return the mean of the heads' weights. Default True.
            is_causal: a hint that attn_mask, which must be given, is the causal mask of equally
                many queries and keys; the mask need not be read then. Default False.
            causal: query i sees the keys up to i + Tk - Tq, without any mask; with a
                key_padding_mask and Tq other than Tk, the last query stands at the last key of its
                sequence that is not ignored, and so do the windows. Default False.
            cache: keys and values from `precompute`, in place of key and value. Default: none.

        Returns:
            The output, laid out as the query, and the weights (None unless need_weights):
            `[B, Tq, Tk]`, or `[B, H, Tq, Tk]` unless they are averaged; without B for inputs
            without a batch. With a window, W = 2 · window + 1 (window + 1 if causal) stands for Tk,
            see `attn_core.Window`. A query that may attend to no key gets the weights zero and for
            its output the bias of the output projection.

        Raises:
            ValueError, TypeError: arguments that do not fit each other.
        """
        if query.is_nested:
            if key_padding_mask is not None or attn_mask is not None or is_causal or causal:
                raise ValueError(_NESTED)
            return self._forward_nested(query, key, value, need_weights, average_attn_weights)
        self._check("query", query, self.embed_dim, dims=(3, 2))
        if is_causal and attn_mask is None:
            raise ValueError(
                "is_causal is True without attn_mask: it is a hint about that mask, as in torch. "
                "Pass the mask too, or causal=True instead"
            )
        if cache is None:
            if key is None or value is None:
                raise ValueError("key and value are needed, unless cache holds them")
            self._check_keys(key, value, dims=(query.dim(),))
            heads, keys, values = self._project(0, query, key, value)
        elif key is not None or value is not None:
            raise ValueError(
                "key or value are given beside cache: put them behind it first, with "
                "cache = attention.precompute(key, value, cache=cache)"
            )
        else:
            (heads,), (keys, values) = self._project(0, query), cache
        if heads.shape[0] != keys.shape[0]:
            raise ValueError(
                f"query has batch size {heads.shape[0]}, but the keys have {keys.shape[0]} "
                f"(batch_first is {self.batch_first})"
            )
        shape = heads.shape[0], self.num_heads, heads.shape[1], keys.shape[1]
        hint = is_causal and key_padding_mask is None and not need_weights
        if hint and shape[2] == shape[3] and not self._appended:
            attn_mask, causal = None, True
        if split() is not None:
            refuse(attn_mask=attn_mask, key_padding_mask=key_padding_mask)
            refuse(add_bias_kv=self.bias_k, add_zero_attn=self.add_zero_attn, cache=cache)
        given = {"attn_mask": attn_mask, "key_padding_mask": key_padding_mask}
        support, bias = self._pairs(given, shape, causal, query.dim() == 3, heads)
        if self._appended:
            keys, values = self._append(keys, self.bias_k), self._append(values, self.bias_v)
        output, weights, _ = attend(
            heads,
            keys,
            values,
            score=ScaledDot(),
            support=support,
            bias=bias,
            dropout=self.dropout if self.training else 0.0,
            need_weights=need_weights,
        )
        output = self.out_proj(output.flatten(-2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if query.dim() == 2:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _project(self, first: int, *inputs: Tensor) -> list[Tensor]:
        """The inputs, from queries (first = 0) or keys (1) on, as heads `[B, T, H, D]`."""
        last = first + len(inputs)
        if self.in_proj_weight is not None and all(x is inputs[0] for x in inputs):
            # The same input throughout: one matrix product
            part = slice(first * self.embed_dim, last * self.embed_dim)
            bias = None if self.in_proj_bias is None else self.in_proj_bias[part]
            projected = linear(inputs[0], self.in_proj_weight[part], bias).chunk(len(inputs), -1)
        else:
            weights = (
                self.in_proj_weight.chunk(3)
                if self.in_proj_weight is not None
                else (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            )
            biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            projected = tuple(map(linear, inputs, weights[first:last], biases[first:last]))
        heads = (x.unflatten(-1, (self.num_heads, self.head_dim)) for x in projected)
        if inputs[0].dim() == 2:
            return [x.unsqueeze(0) for x in heads]
        return [x if self.batch_first else x.transpose(0, 1) for x in heads]

    @property
    def _appended(self) -> int:
        """How many keys are appended to every sequence."""
        return (self.bias_k is not None) + self.add_zero_attn

    def _append(self, tokens: Tensor, learned: Tensor | None) -> Tensor:
        """Append what add_bias_kv and add_zero_attn say to keys or values `[B, T, H, D]`."""
        batch, _, *head = tokens.shape
        if learned is not None:
            learned = learned.to(tokens.dtype).view(1, 1, *head).expand(batch, 1, *head)
            tokens = torch.cat([tokens, learned], 1)
        return F.pad(tokens, (0, 0, 0, 0, 0, 1)) if self.add_zero_attn else tokens

    def _pairs(
        self,
        masks: dict[str, Tensor | None],
        shape: tuple[int, int, int, int],
        causal: bool,
        batched: bool,
        like: Tensor,
    ) -> tuple[Support, Tensor | None]:
        """Which pairs exist, and what is added to their scores, `shape` being `[B, H, Tq, Tk]`."""
        allowed: Tensor | None = None
        bias: Tensor | None = None
        for name, mask in masks.items():
            if mask is None:
                continue
            mask = _shaped(name, mask, shape, batched)
            if mask.device != like.device:
                raise ValueError(
                    f"{name} is on {mask.device}, but query is on {like.device}: move one of them "
                    "with .to()"
                )
            if mask.dtype == torch.bool:
                allowed = ~mask if allowed is None else allowed & ~mask
            else:
                bias = mask.to(like.dtype) if bias is None else bias + mask.to(like.dtype)
        where = None
        if causal or self.window is not None:
            where = _places(masks["key_padding_mask"], *shape[2:])
        if self.window is not None:
            window = Window(self.window, causal=causal, centre=where)
            allowed, bias = (
                None if x is None else in_window(x, window, *shape[2:]) for x in (allowed, bias)
            )
            return window, bias if allowed is None else mask_bias(allowed, bias, like.dtype)
        if causal and where is not None:
            order = torch.arange(shape[3], device=where.device) <= where[..., None]
            allowed, causal = both(allowed, order.unsqueeze(-3)), False
        if self._appended:  # everything may attend to what is appended
            allowed = Dense(allowed, causal=causal).allowed(*_split(shape), like.device)
            allowed = None if allowed is None else F.pad(allowed, (0, self._appended), value=True)
            bias = None if bias is None else F.pad(bias, (0, self._appended))
            causal = False
        return Dense(allowed, causal=causal), bias

    def _check_keys(self, key: Tensor, value: Tensor, dims: tuple[int, ...]) -> None:
        self._check("key", key, self.kdim, dims)
        self._check("value", value, self.vdim, dims=(key.dim(),))
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"value has shape {list(value.shape)}; expected {[*key.shape[:-1], self.vdim]}, "
                "one for each key"
            )

    def _check(self, name: str, x: Tensor, width: int, dims: tuple[int, ...]) -> None:
        if x.is_nested:
            raise ValueError(_NESTED)
        if x.dim() not in dims:
            layout = "[B, T, E]" if self.batch_first else "[T, B, E]"
            layouts = " or ".join(layout if n == 3 else "[T, E] without a batch" for n in dims)
            raise ValueError(f"{name} has shape {list(x.shape)}; expected {layouts}")
        check_tokens(name, x, self.out_proj, width)

    def _forward_nested(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        need_weights: bool,
        average_attn_weights: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Self-attention over what nn.TransformerEncoder makes of a padded batch: pad, then cut."""
        if query.layout != torch.strided or not self.batch_first or not query is key is value:
            raise ValueError(_NESTED)
        lengths = [len(sequence) for sequence in query.unbind()]
        padded = query.to_padded_tensor(0.0)
        steps = torch.arange(padded.shape[1], device=padded.device)
        ignore = steps >= torch.tensor(lengths, device=padded.device)[:, None]
        output, weights = self(
            padded,
            padded,
            padded,
            ignore,
            need_weights=need_weights,
            average_attn_weights=average_attn_weights,
        )
        cut = [sequence[:length] for sequence, length in zip(output, lengths, strict=True)]
        return torch.nested.as_nested_tensor(cut), weights


_NESTED = (
    "a nested tensor is served for self-attention alone (one strided nested tensor for query, key "
    "and value, batch_first=True, no mask): pad it with .to_padded_tensor(0.0) and pass "
    "key_padding_mask"
)


def _places(padding: Tensor | None, queries: int, keys: int) -> Tensor | None:
    """Where each query stands, `[B, Tq]`, if the last stands at the last key that is real."""
    if padding is None or queries == keys or not keys:
        return None
    ignored = padding if padding.dtype == torch.bool else padding == -math.inf
    steps = torch.arange(1, keys + 1, device=padding.device)
    lengths = steps.masked_fill(ignored.view(-1, keys), 0).amax(-1)
    return places(queries, keys, lengths)


def _split(shape: tuple[int, int, int, int]) -> tuple[tuple[int, ...], int, int, int]:
    batch, heads, queries, keys = shape
    return (batch,), heads, queries, keys


def _shaped(name: str, mask: Tensor, shape: tuple[int, int, int, int], batched: bool) -> Tensor:
    """A mask in any of torch's shapes as one that broadcasts to `shape`, `[B, H, Tq, Tk]`."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"{name} has dtype {mask.dtype}; expected bool, where True forbids, or floating point, "
            "which is added to the scores"
        )
    batch, heads, queries, keys = shape
    given = list(mask.shape)
    if name == "key_padding_mask":
        expected = [[batch, keys] if batched else [keys]]
        if given in expected:
            return mask.view(batch, 1, 1, keys)
    else:
        expected = [[queries, keys], [batch * heads, queries, keys], [batch, heads, queries, keys]]
        if given in expected:
            return mask.unflatten(0, (batch, heads)) if mask.dim() == 3 else mask
    raise ValueError(f"{name} has shape {given}; expected {' or '.join(map(str, expected))}")
