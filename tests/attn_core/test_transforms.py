"""Inference mode, and what is made in it."""

from __future__ import annotations

from functools import cached_property

import pytest
import torch
from torch import Tensor

from attn_core.transforms import outside_inference_mode


class Made:
    @classmethod
    @outside_inference_mode
    def at_once(cls) -> Tensor:
        """Its docstring."""
        return torch.ones(2)

    @cached_property
    @outside_inference_mode
    def later(self) -> Tensor:
        return torch.ones(2)


@pytest.mark.parametrize("make", [Made.at_once, lambda: Made().later])
def test_what_is_made_in_inference_mode_serves_training(make) -> None:
    with torch.inference_mode():
        made = make()
        assert torch.is_inference_mode_enabled()
    assert not made.is_inference()
    assert (made * torch.ones(2, requires_grad=True)).requires_grad
    assert Made.at_once.__doc__ == "Its docstring."


def test_the_guard_is_entered_only_where_the_mode_is_on(monkeypatch) -> None:
    """So that an interrupt elsewhere cannot leave anything of it behind."""
    entered = []
    guard = torch.inference_mode

    def watched(mode: bool = True):
        entered.append(mode)
        return guard(mode)

    monkeypatch.setattr(torch, "inference_mode", watched)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            Made.at_once()
            assert torch.is_grad_enabled() is grad
    assert entered == []
    with guard():
        Made.at_once()
    assert entered == [False]


def test_an_error_inside_leaves_the_mode_as_it_was() -> None:
    @outside_inference_mode
    def interrupted() -> None:
        raise KeyboardInterrupt

    with torch.inference_mode():
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert torch.is_inference_mode_enabled()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
