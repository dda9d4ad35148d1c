"""The Triton kernels for the logits of edges, against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import Additive, Dot, Edges, Softmax, Sparsemax, attend, backend
from attn_core.backends import csr
from attn_core.ops import edge_scores

pytest.importorskip("triton", reason="needs the extra gat-attention[gpu]")

from attn_core.backends.triton import plan, run

KEYS, QUERIES, HEADS = 7, 6, 3
DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def served(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call goes through the kernels, its hubs in parts."""
    monkeypatch.setattr(edge_scores, "SMALL", 0)
    monkeypatch.setattr(plan, "CHUNK", 4)
    monkeypatch.setattr(csr.Sorted, "of", lambda *_: pytest.fail("plain torch was called"))


def graph() -> Tensor:
    """A query and a key of many pairs (1 and 2), and one of none (5 and 6)."""
    pairs = torch.stack([torch.randint(KEYS - 1, (24,)), torch.randint(QUERIES - 1, (24,))])
    pairs[1, :8], pairs[0, 8:14] = 1, 2
    return pairs[:, torch.randperm(24)]


@pytest.mark.parametrize("per_pair", [False, True])
@pytest.mark.parametrize(
    ("kind", "width"),
    [("dot", 3), ("tanh", 5), ("leaky_relu", 2), ("key, relu", 3), ("tanh, no vector", 37)],
)
def test_weights_output_and_every_gradient(
    kind: str, width: int, per_pair: bool, device: str
) -> None:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=DOUBLE).to(device).requires_grad_()

    edges = Edges.from_edge_index(graph().to(device), (KEYS, QUERIES))
    query = None if kind.startswith("key") else leaf(QUERIES, HEADS, width)
    key, value, vector = leaf(KEYS, HEADS, width), leaf(KEYS, HEADS, 2), leaf(HEADS, width)
    pair_key = leaf(24, HEADS, width) if per_pair else None
    bias = leaf(24, HEADS) if per_pair else None
    score: Any = Dot(0.4)
    if kind != "dot":
        activation = kind.removeprefix("key, ").removesuffix(", no vector")
        score = Additive(None if "no vector" in kind else vector, activation)
    leaves = [x for x in (query, key, value, vector, pair_key, bias) if x is not None]

    def everything() -> list[Tensor]:
        result = attend(
            query, key, value, score=score, normalizer=Softmax(0.5), support=edges, bias=bias,
            pair_key=pair_key, need_weights=True, need_log_sum_exp=True,
        )  # fmt: skip
        assert result.weights is not None
        loss = result.output.square().sum() + result.weights.cos().sum()
        return [*result, *torch.autograd.grad(loss, leaves, materialize_grads=True)]

    found = everything()
    with backend("reference"):
        torch.testing.assert_close(found, everything())


def test_strides_tiles_and_what_is_not_asked_for(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = Edges.from_edge_index(graph().to(device), (KEYS, QUERIES))
    query = torch.randn(5, QUERIES, HEADS, dtype=DOUBLE, device=device).movedim(0, -1)
    key = torch.randn(KEYS, 1, 5, dtype=DOUBLE, device=device).expand(-1, HEADS, -1)
    vector = torch.randn(5, HEADS, dtype=DOUBLE, device=device).T

    def gradient(wanted: Tensor) -> Tensor:
        wanted.requires_grad_()
        logits = torch.ops.attn_core.edge_scores(
            query, key, key, vector, None, None, None, edges.pairs, KEYS, QUERIES, False, "tanh",
            0.2, 0.0, None, None,
        )  # fmt: skip
        (found,) = torch.autograd.grad(logits.sin().sum(), wanted)
        wanted.requires_grad_(False)
        return found

    whole = [gradient(x) for x in (query, key, vector)]
    monkeypatch.setattr(run, "TILE", 128)
    torch.testing.assert_close([gradient(x) for x in (query, key, vector)], whole)
    with backend("reference"):
        hidden = query[edges.query_index] + key[edges.key_index]
        leaf = vector.clone().requires_grad_()
        (expected,) = torch.autograd.grad((hidden.tanh() * leaf).sum(-1).sin().sum(), leaf)
    torch.testing.assert_close(whole[2], expected)


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (3, 3)])
def test_without_edges(sizes: tuple[int, int], device: str) -> None:
    none = torch.zeros(2, 0, dtype=torch.int64, device=device)
    key = torch.ones(sizes[0], 1, 2, device=device, requires_grad=True)
    query = torch.ones(sizes[1], 1, 2, device=device, requires_grad=True)
    edges = Edges.from_edge_index(none, sizes)
    output = attend(query, key, key, score=Dot(), normalizer=Sparsemax(), support=edges).output
    output.sum().backward()
    assert not output.any() and key.grad is not None and not key.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype, device: str) -> None:
    edges = Edges.from_edge_index(graph().to(device), (KEYS, QUERIES))
    key, query = (torch.randn(n, HEADS, 4, device=device, dtype=dtype) for n in (KEYS, QUERIES))
    low, high = (
        attend(q, k, k, score=Dot(), normalizer=Sparsemax(), support=edges).output
        for q, k in ((query, key), (query.double(), key.double()))
    )
    assert low.dtype == dtype
    torch.testing.assert_close(low.double(), high, rtol=2e-2, atol=2e-2)
