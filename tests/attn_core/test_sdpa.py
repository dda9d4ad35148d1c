"""Torch's own attention kernel beneath dense supports and windows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import Dense, ScaledDot, Window, attend, backend

DENSE_OR_WINDOW = {
    "dense": Dense(),
    "causal": Dense(causal=True),
    "mask": Dense(torch.rand(40, 40, generator=torch.Generator().manual_seed(0)) < 0.6),
    "lengths": Dense(lengths=torch.tensor([40, 7]), causal=True),
    "window": Window(2),
    "dilated": Window(2, dilation=2, causal=True),
    "window, lengths": Window(3, lengths=torch.tensor([33, 0])),
}


@pytest.mark.parametrize("key_heads", [2, 1])
@pytest.mark.parametrize("name", DENSE_OR_WINDOW)
def test_torchs_own_kernel_has_second_derivatives(name: str, key_heads: int) -> None:
    """As the definition has them: with create_graph, of a Hessian, and in batches."""
    query, key = torch.randn(2, 40, 2, 3).double(), torch.randn(2, 40, key_heads, 3).double()
    value, support = torch.randn(2, 40, key_heads, 3).double(), DENSE_OR_WINDOW[name]
    found = []
    for using in ("auto", "reference"):
        given = [x.clone().requires_grad_() for x in (query, key, value)]

        def total(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend(q, k, v, score=ScaledDot(), support=support).output.square().sum()

        def shifted(v: Tensor, total: Any = total, given: Any = given) -> Tensor:
            return total(given[0], given[1] + v, given[2])

        with backend(using):
            first = torch.autograd.grad(total(*given), given, create_graph=True)
            second = torch.autograd.grad(sum(x.square().sum() for x in first), given)
            hessian = torch.autograd.functional.hessian(shifted, torch.zeros(3).double())
            output = attend(*given, score=ScaledDot(), support=support).output
            probes = torch.randn(3, *output.shape, generator=torch.Generator().manual_seed(0))
            batched = torch.autograd.grad(output, given, probes.double(), is_grads_batched=True)
        found.append([*first, *second, hessian, *batched])
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("queries", [1, 3])
def test_lengths_that_change_in_place_are_looked_at_again(heads: int, queries: int) -> None:
    query, key = torch.randn(2, queries, heads, 3), torch.randn(2, 5, heads, 3)
    lengths = torch.tensor([5, 2])
    support = Dense(lengths=lengths)
    for now in ([5, 2], [5, 2], [1, 4], [0, 3], [2, 2]):
        if now[0]:
            lengths.copy_(torch.tensor(now))
        else:
            lengths.numpy()[:] = now  # which torch does not count
            support = copy.deepcopy(support)
            lengths = support.lengths
        with torch.inference_mode():  # what is remembered serves training too
            attend(query, key, key, score=ScaledDot(), support=support)
        found = []
        for using in ("auto", "reference"):
            leaf = key.clone().requires_grad_()
            with backend(using):
                output = attend(query, leaf, leaf, score=ScaledDot(), support=support).output
            found.append((output, *torch.autograd.grad(output.square().sum(), leaf)))
        torch.testing.assert_close(*found)
