"""Dropout of features: what torch's does, drawn in another way."""

from __future__ import annotations

import pytest
import torch

from gat.dropout import drop


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_drops_the_share_that_was_asked_for_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    out = drop(torch.ones(200_000), p)
    assert set(out.tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.005)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype_and_passes_gradients_to_what_was_kept(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.full((50, 4), 3.0, dtype=dtype, requires_grad=True)
    out = drop(x, 0.5)
    out.sum().backward()
    assert out.dtype == dtype and 0 < (out == 0).sum() < out.numel()
    assert x.grad is not None and torch.equal(x.grad, torch.where(out == 0, 0, 2).to(dtype))


def test_drops_anew_at_each_call_and_alike_from_the_same_seed() -> None:
    x = torch.ones(100)
    torch.manual_seed(2)
    first, second = drop(x, 0.5), drop(x, 0.5)
    torch.manual_seed(2)
    assert torch.equal(drop(x, 0.5), first) and not torch.equal(first, second)


def test_probability_one_leaves_nothing_and_no_nan() -> None:
    x = torch.ones(3, requires_grad=True)
    drop(x, 1.0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0, 0]


def test_probability_zero_leaves_everything() -> None:
    assert torch.equal(drop(torch.ones(9), 0.0), torch.ones(9))
