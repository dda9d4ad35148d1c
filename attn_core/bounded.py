"""A learned number that cannot leave its range: the temperature of a softmax, the α of entmax."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def within(x: Tensor, low: float, high: float) -> Tensor:
    """The number cut to its range, with the gradient of the number itself, which leads back.

    What layers do with a learned temperature or α of theirs: its name and value in `state_dict` are
    those of the parameter.

    >>> x = torch.tensor([-3.0, 0.5], requires_grad=True)
    >>> within(x, 0.1, 10)
    tensor([0.1000, 0.5000], grad_fn=<AddBackward0>)
    >>> within(x, 0.1, 10).sum().backward()
    >>> x.grad
    tensor([1., 1.])
    """
    return x.detach().clamp(low, high) + (x - x.detach())


class Bounded(nn.Module):
    r"""A parametrisation that keeps a parameter between two bounds, whatever an optimiser does.

    .. math::
        p = \exp\big(\ln a + (\ln b - \ln a)\, \sigma(r)\big)

    What is learned is r, which may take any value; p lies between a and b, in steps that are alike
    in proportion. For `torch.nn.utils.parametrize`, which goes on from the value that is there: for
    bounds of one's own. Without it, a layer that learns its temperature or α takes it within wide
    bounds (`Normalizer.bounds`), so that no step of gradient descent stops training.

    Args:
        low, high: the bounds a and b, 0 < a < b.

    Raises:
        ValueError: other bounds; a value outside of them, when it is registered.

    >>> from torch.nn.utils.parametrize import register_parametrization
    >>> layer = nn.Module()
    >>> layer.temperature = nn.Parameter(torch.tensor(2.0))
    >>> _ = register_parametrization(layer, "temperature", Bounded(0.01, 100))
    >>> round(float(layer.temperature), 4)
    2.0
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        if not 0 < low < high < math.inf:
            raise ValueError(f"bounds are {low} and {high}; expected 0 < low < high")
        self.low, self.high = low, high

    def forward(self, raw: Tensor) -> Tensor:
        """The bounded value of what is learned."""
        span = math.log(self.high) - math.log(self.low)
        value = torch.exp(math.log(self.low) + span * raw.sigmoid())
        return value.clamp(self.low, self.high)  # which rounding may have passed

    def right_inverse(self, value: Tensor) -> Tensor:
        """What must be learned for this value."""
        if not bool(((value > self.low) & (value < self.high)).all()):
            raise ValueError(
                f"the parameter is {value.tolist()}; expected a start between {self.low} and "
                f"{self.high}"
            )
        span = math.log(self.high) - math.log(self.low)
        return torch.logit((value.log() - math.log(self.low)) / span)

    def extra_repr(self) -> str:
        return f"{self.low}, {self.high}"
