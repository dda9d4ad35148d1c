"""The Triton kernels for additive scores over dense supports, against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import Additive, Concat, Dense, Entmax, Softmax, attend, backend
from attn_core.backends import additive
from attn_core.ops.additive import additive_scores

pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")

from attn_core.backends.triton import additive as run

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def served(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call goes through the kernels, and through several tiles."""
    monkeypatch.setattr(additive, "BLOCK", 0)
    monkeypatch.setattr(additive, "_choose", lambda *_: pytest.fail("plain torch was called"))
    monkeypatch.setattr(run, "TILE", 64)
    monkeypatch.setattr(run, "_MOST_ROWS", 4)
    monkeypatch.setattr(run, "_MOST_CHANNELS", 4)


def mask(*shape: int) -> Tensor:
    """True at random, but nowhere in the first row."""
    allowed = torch.rand(shape) < 0.6
    allowed[..., 0, :] = False
    return allowed


# Batch, queries, keys, heads, width; activation; what else is given
CASES: dict[str, tuple[tuple[Any, ...], str, dict[str, Any]]] = {
    "tanh": (((), 5, 7, 1, 6), "tanh", {}),
    "leaky_relu, batch, mask": (((2,), 3, 6, 2, 5), "leaky_relu", {"mask": mask(2, 3, 6)}),
    "tanh, lengths, causal": (
        *(((2,), 5, 6, 1, 3), "tanh"),
        {"lengths": torch.tensor([6, 0]), "causal": True},
    ),
    "leaky_relu, bias": (((2,), 4, 5, 2, 2), "leaky_relu", {"bias": True}),
    # One head, for torch's masks depend on the order of the weights in memory
    "tanh, dropout": (((), 4, 6, 1, 9), "tanh", {"dropout": 0.4}),
    "relu, one query": (((2,), 1, 9, 2, 4), "relu", {}),
    "identity, one key": (((2,), 6, 1, 1, 7), "identity", {}),
    "one channel": (((), 3, 3, 2, 1), "tanh", {}),
    "many channels": (((), 3, 4, 1, 37), "leaky_relu", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_output_weights_and_every_gradient(case: str, device: str) -> None:
    (batch, queries, keys, heads, width), activation, options = CASES[case]
    normalizer = Entmax() if "mask" in options else Softmax()

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=DOUBLE).to(device).requires_grad_()

    query, key = leaf(*batch, queries, heads, width), leaf(*batch, keys, heads, width)
    value, vector = leaf(*batch, keys, heads, 3), leaf(heads, width)
    bias = leaf(*batch, heads, queries, keys) if "bias" in options else None
    support = Dense(
        options["mask"].to(device) if "mask" in options else None,
        options["lengths"].to(device) if "lengths" in options else None,
        options.get("causal", False),
    )
    leaves = [query, key, value, vector, *([] if bias is None else [bias])]

    def everything() -> list[Tensor | None]:
        torch.manual_seed(1)
        result = attend(
            query, key, value, score=Additive(vector, activation, 0.3), normalizer=normalizer,
            support=support, bias=bias, dropout=options.get("dropout", 0.0), need_weights=True,
        )  # fmt: skip
        assert result.weights is not None
        loss = result.output.cos().sum() + result.weights.square().sum()
        return [*result, *torch.autograd.grad(loss, leaves)]

    found = everything()
    with backend("reference"):
        torch.testing.assert_close(found, everything())
    assert all(x is None or x[x != -torch.inf].isfinite().all() for x in found)


def scores(query: Tensor, key: Tensor, vector: Tensor, direction: Tensor) -> list[Tensor]:
    """The logits of the op and the gradients of the three."""
    leaves = [x.detach().requires_grad_() for x in (query, key, vector)]
    logits = torch.ops.attn_core.additive_scores(*leaves, "tanh", 0.2)
    return [logits, *torch.autograd.grad((logits * direction).sum(), leaves)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.01, 50.0])
def test_lower_precision(dtype: torch.dtype, size: float, device: str) -> None:
    """As near to the float64 truth about the same numbers as their dtype allows."""
    shapes = (2, 5, 6), (2, 7, 6), (2, 6), (2, 5, 7)
    query, key, vector, direction = (torch.randn(s).to(device, dtype) for s in shapes)
    given = query * size, key * size, vector, direction
    found, truth = scores(*given), scores(*(x.double() for x in given))
    tolerance = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[dtype]
    for ours, true in zip(found, truth, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), true, rtol=tolerance, atol=tolerance)


def test_strides_and_the_cut_into_tiles_make_no_difference(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = (5, 6, 2), (7, 2, 6), (6, 2), (7, 5, 2)
    query, key, vector, direction = (torch.randn(s, dtype=DOUBLE).to(device) for s in shapes)
    strided = query.movedim(-1, 0), key.movedim(1, 0), vector.T, direction.permute(2, 1, 0)
    whole = scores(*strided)
    monkeypatch.setattr(run, "TILE", 4096)
    monkeypatch.setattr(run, "_MOST_ROWS", 32)
    torch.testing.assert_close(scores(*(x.contiguous() for x in strided)), whole)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_nothing_gives_nothing(shape: tuple[int, int, int, int], device: str) -> None:
    batch, queries, keys, width = shape
    query, key, vector, direction = (
        torch.ones(s, device=device)
        for s in ((batch, queries, width), (batch, keys, width), (batch, width), shape[:3])
    )
    found = scores(query, key, vector, direction)
    for part, like in zip(found, (direction, query, key, vector), strict=True):
        assert part.shape == like.shape and not part.any()


def test_the_infinite_saturates(device: str) -> None:
    x = torch.zeros(1, 2, 2, device=device)
    x[0, 0, 0], x[0, 1, 0] = torch.inf, -torch.inf
    vector = torch.tensor([[2.0, 1.0]], device=device)
    found = scores(x, torch.zeros(1, 3, 2, device=device), vector, torch.ones(1, 2, 3).to(device))
    assert found[0].tolist() == [[[2.0] * 3, [-2.0] * 3]]
    assert found[1][..., 0].tolist() == [[0.0, 0.0]]
    assert found[3].tolist() == [[0.0, 0.0]]


def test_concat_goes_the_same_way(device: str) -> None:
    query, key = (torch.randn(n, 1, 3, dtype=DOUBLE, device=device) for n in (4, 5))
    weight, vector = (torch.randn(s, dtype=DOUBLE, device=device) for s in ((1, 6, 6), (1, 6)))
    score = Concat(weight, vector)
    found = attend(query, key, key, score=score, support=Dense()).output
    with backend("reference"):
        expected = attend(query, key, key, score=score, support=Dense()).output
    torch.testing.assert_close(found, expected)


def test_the_same_bits_again(device: str) -> None:
    size = 300 if device == "cuda" else 6
    given = [torch.randn(s, device=device) for s in ((2, size, 8), (2, size, 8), (2, 8))]
    direction = torch.randn(2, size, size, device=device)
    first, second = (scores(*given, direction) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_the_op_keeps_its_contract_with_torch(device: str) -> None:
    query, key, vector = (
        torch.randn(*s, dtype=DOUBLE, device=device, requires_grad=True)
        for s in ((1, 3, 2), (1, 2, 2), (1, 2))
    )
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(additive_scores, (query, key, vector, "tanh", 0.2), test_utils=tests)
