"""Inference mode, and what is made in it."""

from __future__ import annotations

import pytest
import torch

from attn_core.transforms import outside_inference


def test_what_is_made_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        with outside_inference():
            made = torch.ones(2)
        assert torch.is_inference_mode_enabled()
    assert not made.is_inference()
    assert (made * torch.ones(2, requires_grad=True)).requires_grad


def test_the_guard_is_entered_only_where_the_mode_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an interrupt elsewhere cannot leave anything of it behind."""
    entered = []
    guard = torch.inference_mode

    def watched(mode: bool = True) -> torch.inference_mode:
        entered.append(mode)
        return guard(mode)

    monkeypatch.setattr(torch, "inference_mode", watched)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), outside_inference():
            assert torch.is_grad_enabled() is grad
    assert entered == []
    with guard(), outside_inference():
        pass
    assert entered == [False]


def test_an_error_inside_leaves_the_mode_as_it_was() -> None:
    with torch.inference_mode():
        with pytest.raises(KeyboardInterrupt), outside_inference():
            raise KeyboardInterrupt
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
