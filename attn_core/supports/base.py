"""What every support is asked, and what all of them check."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_core.rows import Rows
from attn_core.scores import Score
from attn_core.transforms import values_are_visible


class Support:
    """Which (query, key) pairs exist.

    A support lays out the scores of its pairs, names the rows that a normaliser reduces, and
    carries the values back to the queries. `attend` needs nothing else of it, so that every score
    and every normaliser works over each.

    Most sets of pairs need no class of their own: a mask is `Dense(mask=…)`, a list of pairs is
    `Edges(…)`. One that has a name is a subclass of these, which makes the mask or the list; only
    another layout of the scores, as `Window` has it, gives all the methods below.

    >>> import torch
    >>> from attn_core import Dense, Dot, weights
    >>> class Chessboard(Dense):
    ...     "A query hears from the keys of its own colour."
    ...     def __init__(self, queries, keys):
    ...         places = torch.arange(queries)[:, None] + torch.arange(keys)
    ...         super().__init__(mask=places % 2 == 0)
    >>> tokens = torch.zeros(3, 1, 8)  # [T, H, D]
    >>> weights(tokens, tokens, score=Dot(), support=Chessboard(3, 3))  # [H, Tq, Tk]
    tensor([[[0.5000, 0.0000, 0.5000],
             [0.0000, 1.0000, 0.0000],
             [0.5000, 0.0000, 0.5000]]])
    """

    def scores(
        self, score: Score, query: Tensor | None, key: Tensor, pair_key: Tensor | None
    ) -> Tensor:
        """The logit of each pair and head."""
        raise NotImplementedError

    def rows(self, scores: Tensor, num_keys: int) -> Rows:
        """The pairs of each query."""
        raise NotImplementedError

    def drop(self, weights: Tensor, p: float, seed: Tensor | None = None) -> Tensor:
        """The weights after attention dropout; its mask may be a function of the seed."""
        raise NotImplementedError

    def aggregate(self, weights: Tensor, value: Tensor, pair_value: Tensor | None) -> Tensor:
        """The weighted sum of the values, for each query and head."""
        raise NotImplementedError

    def check(self, query: Tensor | None, key: Tensor, value: Tensor) -> None:
        """Raise if the tensors do not fit this support."""
        raise NotImplementedError

    def relative_positions(
        self, queries: int, keys: int, device: torch.device | None = None
    ) -> Tensor:
        """Position of the key minus position of the query, int64, for each pair."""
        raise NotImplementedError


def check_tokens(query: Tensor | None, key: Tensor, value: Tensor, **beside: Tensor | None) -> None:
    """Raise unless these are tokens `[..., T, H, D]`, and what is given beside on their device."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor is not None and tensor.dim() < 3:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; expected [..., T, H, D]: time, heads "
                "and channels last"
            )
    if value.shape[-3] != key.shape[-3]:
        raise ValueError(
            f"value has {value.shape[-3]} positions and key {key.shape[-3]}; each key needs "
            "its value"
        )
    for name, tensor in beside.items():
        if tensor is not None and tensor.device != key.device:
            raise ValueError(
                f"{name} is on {tensor.device}, but key is on {key.device}: move one of them "
                "with .to()"
            )


def check_lengths_dtype(lengths: Tensor | None) -> None:
    """Raise unless lengths are integers, or None."""
    if lengths is not None and (lengths.is_floating_point() or lengths.dtype == torch.bool):
        raise TypeError(f"lengths has dtype {lengths.dtype}; expected integers")


def check_lengths(lengths: Tensor, batch: tuple[int, ...], keys: int) -> None:
    """Raise unless there is one length per sequence, each at most the number of keys."""
    if lengths.shape != batch:
        raise ValueError(
            f"lengths has shape {list(lengths.shape)}; expected {list(batch)}, one "
            "length per sequence of the batch"
        )
    if lengths.numel() == 0 or not values_are_visible():
        return
    low, high = torch.stack(torch.aminmax(lengths)).tolist()
    if low < 0 or high > keys:
        raise ValueError(
            f"lengths has the entry {low if low < 0 else high}; expected 0 to {keys}, the number "
            "of keys"
        )


def first_place(queries: int, keys: int, lengths: Tensor | None) -> int | Tensor:
    """Where among the keys the first query stands, if the last stands at the last real key.

    Of each sequence, `[...]`, where lengths are given. As many queries as keys are the same steps,
    padding included.
    """
    return keys - queries if lengths is None or queries == keys else lengths - queries


def broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can be expanded to the target shape."""
    more = len(target) - len(shape)
    return more >= 0 and all(
        have in (1, want) for have, want in zip(shape, target[more:], strict=True)
    )
