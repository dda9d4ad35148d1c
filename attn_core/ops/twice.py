"""Gradients of gradients: by the formula in plain torch, which autograd can follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiated(
    formula: Callable[..., Any],
    tensors: Sequence[Tensor | None],
    grads: Sequence[Tensor],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of what a formula makes of some tensors, with a graph of their own.

    Args:
        formula: returns one tensor, or as many as there are grads.
        tensors: its arguments.
        grads: the gradients of what it returns.
        needed: of which arguments to return the gradient; None for the others.
    """
    apart = [None if x is None else x.view_as(x) for x in tensors]  # one may be given twice
    wanted = [x for x, need in zip(apart, needed, strict=True) if need]
    made = formula(*apart)
    found = iter(
        torch.autograd.grad(
            made,
            wanted,  # type: ignore[arg-type]
            tuple(grads),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    )
    return [next(found) if need else None for need in needed]
