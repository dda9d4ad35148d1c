"""Scores and normalisers by name, and the modules that own their parameters.

Scores and normalisers hold no state: whoever calls them hands them their tensors. A layer keeps the
parameters in them under names of its own (`score_vector`, `normalizer_alpha`), and puts them back
in place at every call.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import torch
from torch import nn

from attn_core.normalizers import Entmax, Hard, Identity, Normalizer, Softmax, Sparsemax
from attn_core.scores import (
    Additive,
    Concat,
    Cosine,
    Dot,
    General,
    Location,
    ScaledDot,
    Score,
    Separable,
)

_NORMALIZERS: dict[str, type[Normalizer]] = {
    "softmax": Softmax,
    "sparsemax": Sparsemax,
    "entmax": Entmax,
    "hard": Hard,
    "identity": Identity,
}
_Part = TypeVar("_Part", Score, Normalizer)


def named_normalizer(normalizer: str | Normalizer) -> Normalizer:
    """The normaliser of that name; one that is a normaliser already comes back as it is.

    Raises:
        ValueError: another name.

    >>> named_normalizer("entmax")
    Entmax(alpha=1.5)
    """
    if isinstance(normalizer, Normalizer):
        return normalizer
    if normalizer not in _NORMALIZERS:
        raise ValueError(
            f"normalizer is {normalizer!r}; known ones are {', '.join(_NORMALIZERS)}, or pass an "
            "attn_core.Normalizer"
        )
    return _NORMALIZERS[normalizer]()


def named_score(name: str, heads: int, size: int, max_length: int | None = None) -> Score:
    """A score whose parameters are fresh: a set for each head, for queries and keys of one size.

    Args:
        name: "additive", "concat", "cosine", "dot", "general", "location", "scaled_dot" or
            "separable". Of "additive" there is v alone: projections are its matrices.
        heads: H, the number of heads.
        size: the width of a query and of a key, per head.
        max_length: the longest sequence that "location" can serve; needed for it alone.

    Raises:
        ValueError: another name, a missing or needless max_length.

    >>> named_score("general", heads=2, size=3).weight.shape
    torch.Size([2, 3, 3])
    """
    if (name == "location") != (max_length is not None):
        needs = "needs" if max_length is None else "has no use for"
        raise ValueError(f"score {name!r} {needs} max_length; got max_length={max_length}")

    def drawn(*shape: int) -> nn.Parameter:
        return _draw(nn.Parameter(torch.empty(heads, *shape)))

    match name:
        case "scaled_dot":
            return ScaledDot()
        case "dot":
            return Dot()
        case "cosine":
            return Cosine()
        case "general":
            return General(drawn(size, size))
        case "concat":
            return Concat(drawn(size, 2 * size), drawn(size))
        case "additive":
            return Additive(drawn(size))
        case "separable":
            return Separable(drawn(size), drawn(size))
        case "location":
            return Location(drawn(max_length or 0, size))
    raise ValueError(
        f"score is {name!r}; known scores are additive, concat, cosine, dot, general, location, "
        "scaled_dot, separable, or pass an attn_core.Score"
    )


def learned(part: Score | Normalizer) -> list[str]:
    """The fields of a score or normaliser that are parameters."""
    if not dataclasses.is_dataclass(part):
        return []
    fields = (field.name for field in dataclasses.fields(part))
    return [name for name in fields if isinstance(getattr(part, name), nn.Parameter)]


def register(module: nn.Module, prefix: str, part: Score | Normalizer) -> None:
    """Make the parameters of a score or normaliser the module's, named `prefix_field`."""
    for field in learned(part):
        module.register_parameter(f"{prefix}_{field}", getattr(part, field))


def redraw(module: nn.Module, prefix: str, part: Score) -> None:
    """Draw the registered parameters of a score that was made by name anew."""
    for field in learned(part):
        _draw(getattr(module, f"{prefix}_{field}"))


def with_own(module: nn.Module, prefix: str, part: _Part) -> _Part:
    """The score or normaliser with the parameters that the module has now.

    torch.func, a wrapper or a move to another device may have swapped them for others.
    """
    own: dict[str, Any] = {field: getattr(module, f"{prefix}_{field}") for field in learned(part)}
    return dataclasses.replace(part, **own) if own else part  # type: ignore[type-var]


def _draw(parameter: nn.Parameter) -> nn.Parameter:
    bound = 1 / math.sqrt(parameter.shape[-1])
    nn.init.uniform_(parameter, -bound, bound)
    return parameter
