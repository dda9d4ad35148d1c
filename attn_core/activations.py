"""The activations of additive scores: the one table from which every kernel reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = str | Callable[[Tensor], Tensor]

# Each by its name as what kernels know: "leaky_relu" with the factor below zero (None: the
# `negative_slope` that is given), or "tanh".
ACTIVATIONS: dict[str, tuple[str, float | None]] = {
    "identity": ("leaky_relu", 1.0),
    "leaky_relu": ("leaky_relu", None),
    "relu": ("leaky_relu", 0.0),
    "tanh": ("tanh", None),
}


def activate(hidden: Tensor, activation: Activation, negative_slope: float) -> Tensor:
    """Apply an activation given by name, or by a function."""
    if callable(activation):
        return activation(hidden)
    kind, factor = ACTIVATIONS[activation]
    if kind == "tanh":
        return torch.tanh(hidden)
    factor = negative_slope if factor is None else factor
    if factor == 1:
        return hidden
    return torch.relu(hidden) if factor == 0 else F.leaky_relu(hidden, factor)


def slope_of(hidden: Tensor, kind: str, constant: float) -> Tensor:
    """The derivative of "tanh", or of "leaky_relu" with this factor below zero; a new tensor."""
    if kind == "tanh":
        return 1 - hidden.tanh().square()
    return torch.full_like(hidden, constant).masked_fill_(hidden > 0, 1.0)
