"""Parameters of scores given as functions: of any shape, whichever of their sizes is that of heads.

A kernel sums the gradient of a parameter over pairs for one head at a time. Where a dimension has
as many entries as there are heads, and where the parameter is joined over heads before it is used,
it must not take one for the other.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import Edges, attend, backend, gpu, score_function
from attn_core.backends import generated

N, H = 7, 3
DOUBLE = torch.float64
CASES: dict[str, tuple[Callable[..., Tensor], int, tuple[int, ...]]] = {
    # The function, D, the shape of w; where both are H, any dimension could be that of heads
    "of channels": (lambda query, key, w: (query * key * w).sum(-1), H, (H,)),
    "of channels, one head": (lambda query, key, w: (query * key * w).sum(-1), H, (1, H)),
    "of channels, spread": (lambda query, key, w: (query * key * w).sum(-1), H, (1, 1, H)),
    "of heads and channels": (lambda query, key, w: (query * key * w).sum(-1), H, (H, H)),
    "of heads": (lambda query, key, w: (query * key).sum(-1) * w, H, (H,)),
    "of heads behind channels": (lambda query, key, w: (query * key * w.T).sum(-1), H, (H, H)),
    "a matrix": (
        lambda query, key, w: (query.unsqueeze(-1) * key.unsqueeze(-2) * w).sum((-1, -2)), H, (H, H)
    ),
    "a product": (lambda query, key, w: ((query @ w) * key).sum(-1), H, (H, H)),
    "a matrix of each head": (
        lambda query, key, w: torch.einsum("...hd,hde,...he->...h", query, w, key), H, (H, H, H)
    ),
    "centres": (
        lambda query, key, w: (
            -((query - key).square().sum(-1, keepdim=True) - w).square()
        ).exp().sum(-1), 4, (H,)
    ),
    "the mean over heads": (lambda query, key, w: (query * key * w.mean(0)).sum(-1), 4, (H, 4)),
    "the mean of all": (lambda query, key, w: (query * key).sum(-1) * w.mean(), 4, (H,)),
    "without its mean": (lambda query, key, w: (query * key).sum(-1) * (w - w.mean()), 4, (H,)),
    "of length one": (lambda query, key, w: (query * key * w / w.norm()).sum(-1), 4, (H, 4)),
    "channels joined over heads": (
        lambda query, key, w: (query * key).sum(-1) * w.sum(0), H, (2, H)
    ),
    "heads turned round": (lambda query, key, w: (query * key).sum(-1) * w.flip(0), 4, (H,)),
}  # fmt: skip


@pytest.fixture(params=["C++", "Triton"])
def _kernels(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[None]:
    if request.param == "Triton":
        pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("Triton compiles here, so it cannot interpret")
        with gpu.on_cpu():
            yield
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GAT_CACHE", str(tmp_path))
            yield


@pytest.mark.usefixtures("_kernels")
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_definition(case: str) -> None:
    function, size, shape = CASES[case]
    function.__name__ = case.replace(" ", "_")
    score = score_function(function)
    query, key, value = (torch.randn(N, H, size, dtype=DOUBLE, requires_grad=True) for _ in "qkv")
    w = torch.rand(shape, dtype=DOUBLE).add(0.5).requires_grad_()
    edges = Edges(torch.randint(N, (2, 25)), N, N)

    def everything() -> tuple[Tensor, ...]:
        output = attend(query, key, value, score=score(w), support=edges).output
        return output, *torch.autograd.grad(output.cos().sum(), (query, key, value, w))

    before = len(generated.kernels())
    with warnings.catch_warnings(record=True) as told:
        found = everything()
    compiled = len(generated.kernels()) > before
    # A head's own share of what all heads share is no sum of products: plain torch has it
    assert compiled == (case not in ("without its mean", "of length one", "heads turned round"))
    assert compiled or any("mixes heads" in str(one.message) for one in told)
    with backend("reference"):
        torch.testing.assert_close(found, everything())
