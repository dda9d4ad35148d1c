"""No queries, keys, pairs, batch, heads or channels: no numbers, but zeros for gradients.

A parameter without a gradient is one that an optimiser skips, and that DistributedDataParallel
takes for one that is not used; so an empty batch must not leave any without.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import (
    Additive,
    Dense,
    Dot,
    Edges,
    Entmax,
    PendingEdges,
    Separable,
    Softmax,
    Window,
    attend,
    backend,
)

SIZES = {"batch": 2, "queries": 3, "keys": 4, "heads": 2, "width": 3, "value_width": 5}
EMPTY = [(name,) for name in SIZES] + [("queries", "keys"), ("queries", "heads"), ("pairs",)]
SUPPORTS = "dense", "causal", "window", "dilated", "centre", "edges", "pending"
AXES = (
    ("dot", "softmax"), ("dot", "learned"), ("dot", "entmax"), ("tanh", "softmax"),
    ("tanh", "learned"), ("separable", "entmax"),
)  # fmt: skip
OPTIONS = (), ("bias",), ("bias", "pair_key", "pair_value"), ("weights",)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def drawn(
    kind: str, empty: tuple[str, ...], score: str, normalizer: str, options: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of a call, and all its leaves."""
    size = SIZES | dict.fromkeys(empty, 0)
    queries, keys, heads = size["queries"], size["keys"], size["heads"]
    width, value_width = size["width"], size["value_width"]
    batch = (size["batch"],)
    if kind in ("edges", "pending"):
        pairs = torch.zeros(2, 6 * (queries and keys and size.get("pairs", 1)), dtype=torch.int64)
        support: Any = PendingEdges(pairs, keys, queries, False)
        if kind == "edges":
            support = Edges.from_edge_index(pairs, (keys, queries))
        per_pair: tuple[int, ...] = pairs.shape[1:]
        bias = (*per_pair, heads)
    else:
        support = {
            "dense": Dense(),
            "causal": Dense(causal=True),
            "window": Window(1),
            "dilated": Window(1, dilation=2 if queries == keys else 1, causal=True),
            "centre": Window(1, centre=torch.zeros(queries)),
        }[kind]
        per_pair = (*batch, queries, support.columns(keys))
        bias = (*batch, heads, queries, support.columns(keys))
    given = {
        "query": leaf(*batch, queries, heads, width),
        "key": leaf(*batch, keys, heads, width),
        "value": leaf(*batch, keys, heads, value_width),
    }
    if "bias" in options:
        given["bias"] = leaf(*bias)
    if "pair_key" in options:
        given["pair_key"] = leaf(*per_pair, heads, width)
        given["pair_value"] = leaf(*per_pair, heads, value_width)
    own = {}
    axes: dict[str, Any] = {"score": Dot(), "normalizer": Softmax(), "support": support}
    if score != "dot":
        own = {"vector": leaf(heads, width)}
        axes["score"] = Additive(own["vector"])
    if score == "separable":
        own["of_key"] = leaf(heads, width)
        axes["score"] = Separable(own["vector"], own["of_key"])
    if normalizer == "entmax":
        axes["normalizer"] = Entmax(1.5)
    if normalizer == "learned":
        own["temperature"] = torch.ones(heads, requires_grad=True)
        axes["normalizer"] = Softmax(own["temperature"])
    return {**given, **axes, "need_weights": "weights" in options}, given | own


@pytest.mark.parametrize("using", ["auto", "torch", "reference"])
@pytest.mark.parametrize("kind", SUPPORTS)
@pytest.mark.parametrize("empty", EMPTY, ids=" and ".join)
def test_all_that_is_given_has_gradients_of_zeros(
    empty: tuple[str, ...], kind: str, using: str
) -> None:
    for (score, normalizer), options in itertools.product(AXES, OPTIONS):
        call, leaves = drawn(kind, empty, score, normalizer, options)
        with backend(using):
            found = attend(**call)
        for result in (found.output, found.weights):
            if result is None:
                continue
            total = (result * torch.zeros_like(result)).sum()
            grads = torch.autograd.grad(
                total, list(leaves.values()), retain_graph=True, allow_unused=True
            )
            for (name, x), grad in zip(leaves.items(), grads, strict=True):
                if result is found.weights and "value" in name:
                    continue  # on which weights do not depend
                assert grad is not None, f"{name}: {score}, {normalizer}, {options}"
                assert torch.equal(grad, torch.zeros_like(x))
