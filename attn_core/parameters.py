"""Scores and normalisers inside a module that owns their parameters.

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

from attn_core.bounded import within
from attn_core.normalizers import Normalizer
from attn_core.registry import look_up
from attn_core.scores import Score

_Part = TypeVar("_Part", Score, Normalizer)


def named_normalizer(normalizer: str | Normalizer) -> Normalizer:
    """The normaliser of that name; one that is a normaliser already comes back as it is.

    Raises:
        ValueError: another name.
        TypeError: no name, or a class in place of an instance.

    >>> named_normalizer("entmax")
    Entmax(alpha=1.5)
    """
    if isinstance(normalizer, Normalizer):
        return normalizer
    return look_up("normalizer", normalizer, Normalizer)()


def named_score(score: str | Score, heads: int, size: int, max_length: int | None = None) -> Score:
    """A score whose parameters are fresh: a set for each head, for queries and keys of one size.

    Args:
        score: a name in `Score.named`, such as "additive", "dot" or "general". Of "additive" there
            is v alone: projections are its matrices. A Score comes back as it is.
        heads: H, the number of heads.
        size: the width of a query and of a key, per head.
        max_length: the longest sequence that "location" can serve; needed for it alone.

    Raises:
        ValueError: another name, a missing or needless max_length.
        TypeError: no name, or a class in place of an instance.

    >>> named_score("general", heads=2, size=3).weight.shape
    torch.Size([2, 3, 3])
    """
    if isinstance(score, Score):
        return score
    cls = look_up("score", score, Score)
    if cls.needs_max_length != (max_length is not None):
        needs = "needs" if max_length is None else "has no use for"
        raise ValueError(f"score {score!r} {needs} max_length; got max_length={max_length}")
    shapes = cls.parameter_shapes(heads, size, max_length)
    return cls(**{name: _draw(nn.Parameter(torch.empty(s))) for name, s in shapes.items()})


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
    for field, (low, high) in getattr(part, "bounds", {}).items():
        if field in own:  # which a step of gradient descent may have carried out of its range
            own[field] = within(own[field], low, high)
    return dataclasses.replace(part, **own) if own else part  # type: ignore[type-var]


def _draw(parameter: nn.Parameter) -> nn.Parameter:
    bound = 1 / math.sqrt(parameter.shape[-1])
    nn.init.uniform_(parameter, -bound, bound)
    return parameter
