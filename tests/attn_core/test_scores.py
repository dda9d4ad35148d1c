"""Scores: values worked out by hand, and the laws that tie their forms together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attn_core import (
    Additive,
    Concat,
    Cosine,
    Dot,
    General,
    Location,
    ScaledDot,
    Score,
    Separable,
    Trilinear,
)

Q, K = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])  # one head, two channels
HEADS, DQ, DK, HIDDEN = 3, 4, 2, 5


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def drawn(name: str) -> tuple[Score, int, int]:
    """A score with random parameters, and the widths of its queries and keys."""
    match name:
        case "dot":
            return Dot(0.7), DK, DK
        case "scaled dot":
            return ScaledDot(), DK, DK
        case "cosine":
            return Cosine(), DK, DK
        case "general":
            return General(randn(HEADS, DQ, DK)), DQ, DK
        case "general with a bias":
            return General(randn(HEADS, DQ, DK), randn(HEADS)), DQ, DK
        case "concat":
            return Concat(randn(HEADS, HIDDEN, DQ + DK), randn(HEADS, HIDDEN)), DQ, DK
        case "additive":
            return Additive(randn(HEADS, DK)), DK, DK
        case "additive of ones":
            return Additive(activation="relu"), DK, DK
        case "gatv2":
            return Additive(randn(HEADS, DK), "leaky_relu", 0.3), DK, DK
        case "additive with a function":
            return Additive(randn(HEADS, DK), torch.sigmoid), DK, DK
        case "separable":
            return Separable(randn(HEADS, DQ), randn(HEADS, DK)), DQ, DK
        case "trilinear":
            return Trilinear(randn(HEADS, DK), randn(HEADS, DK), randn(HEADS, DK)), DK, DK
        case "separable, reduced already":
            return Separable(activation="tanh"), 1, 1
    raise AssertionError(name)


NAMES = [
    "dot",
    "scaled dot",
    "cosine",
    "general",
    "general with a bias",
    "concat",
    "additive",
    "additive of ones",
    "gatv2",
    "additive with a function",
    "separable",
    "separable, reduced already",
    "trilinear",
]


@pytest.mark.parametrize(
    ("score", "logit"),
    [
        (Dot(), 1 * 3 - 2 * 1),
        (Dot(scale=-2.0), -2.0),
        (ScaledDot(), 1 / math.sqrt(2)),
        (Cosine(), 1 / (math.sqrt(5) * math.sqrt(10))),
        # qᵀW = [1, 4]
        (General(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])), 3 - 4),
        (General(torch.tensor([[[1.0, 2.0], [0.0, 1.0]]]), torch.tensor([0.5])), 3 - 4 + 0.5),
        # q + k = [4, 1]
        (Additive(torch.tensor([[1.0, 2.0]])), math.tanh(4) + 2 * math.tanh(1)),
        (Additive(torch.tensor([[1.0, -1.0]]), "identity"), 4 - 1),
        (Additive(activation="relu"), 5),
        # W[q; k] = [1 - 1, 2 + 3]
        (
            Concat(
                torch.tensor([[[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0]]]),
                torch.tensor([[3.0, 1.0]]),
            ),
            math.tanh(5),
        ),
        # aᵀq + bᵀk = 3 - 6
        (Separable(torch.ones(1, 2), torch.tensor([[-2.0, 0.0]])), 0.2 * -3),
        (Separable(torch.ones(1, 2), torch.tensor([[-2.0, 0.0]]), negative_slope=0.5), -1.5),
        (Separable(torch.ones(1, 2), torch.tensor([[-2.0, 0.0]]), "relu"), 0),
    ],
)
def test_golden_values(score: Score, logit: float) -> None:
    torch.testing.assert_close(score.pair(Q, K), torch.tensor([float(logit)]))


def test_location_gives_each_position_its_own_logit() -> None:
    score = Location(torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]]))
    query = Q.expand(2, 1, 2) * torch.tensor([[[1.0]], [[10.0]]])  # two queries
    logits = score.dense(query, torch.zeros(3, 1, 7))
    assert logits.tolist() == [[[1, 2, 3], [10, 20, 30]]]
    assert score.dense(query, torch.zeros(2, 1, 7)).tolist() == [[[1, 2], [10, 20]]]


def test_concat_is_what_its_formula_says() -> None:
    score, dq, dk = drawn("concat")
    assert isinstance(score, Concat)
    query, key = randn(6, HEADS, dq), randn(6, HEADS, dk)
    joined = torch.cat([query, key], dim=-1)  # [6, H, Dq + Dk]
    hidden = torch.stack([joined[:, h] @ score.weight[h].T for h in range(HEADS)], dim=1)
    expected = (torch.tanh(hidden) * score.vector).sum(-1)
    torch.testing.assert_close(score.pair(query, key), expected)


def test_general_is_what_its_formula_says() -> None:
    score, dq, dk = drawn("general")
    assert isinstance(score, General)
    query, key = randn(6, HEADS, dq), randn(6, HEADS, dk)
    expected = torch.einsum("nhi,hij,nhj->nh", query, score.weight, key)
    torch.testing.assert_close(score.pair(query, key), expected)


@pytest.mark.parametrize("name", NAMES)
def test_preparing_leaves_the_logits_as_they_are(name: str) -> None:
    score, dq, dk = drawn(name)
    query, key = randn(6, HEADS, dq), randn(6, HEADS, dk)
    prepared = score.prepare(query, key, None)
    assert prepared.pair_key is None
    logits = prepared.score.pair(prepared.query, prepared.key)
    torch.testing.assert_close(logits, score.pair(query, key))


@pytest.mark.parametrize("name", NAMES)
def test_pair_key_is_added_to_the_key_of_its_pair(name: str) -> None:
    score, dq, dk = drawn(name)
    query, key, pair_key = randn(6, HEADS, dq), randn(6, HEADS, dk), randn(6, HEADS, dk)
    prepared = score.prepare(query, key, pair_key)
    assert prepared.pair_key is not None
    logits = prepared.score.pair(prepared.query, prepared.key + prepared.pair_key)
    torch.testing.assert_close(logits, score.pair(query, key + pair_key))


@pytest.mark.parametrize("name", NAMES)
def test_dense_scores_every_query_with_every_key(name: str) -> None:
    score, dq, dk = drawn(name)
    query, key = randn(2, 4, HEADS, dq), randn(2, 3, HEADS, dk)
    dense = score.dense(query, key)
    assert dense.shape == (2, HEADS, 4, 3)
    for i in range(4):
        for j in range(3):
            torch.testing.assert_close(dense[:, :, i, j], score.pair(query[:, i], key[:, j]))


@pytest.mark.parametrize("name", NAMES)
def test_heads_do_not_see_each_other(name: str) -> None:
    score, dq, dk = drawn(name)
    query, key = randn(6, HEADS, dq), randn(6, HEADS, dk)
    before = score.pair(query, key)
    query[:, 1], key[:, 1] = randn(6, dq), randn(6, dk)
    after = score.pair(query, key)
    torch.testing.assert_close(after[:, [0, 2]], before[:, [0, 2]])
    assert not torch.allclose(after[:, 1], before[:, 1])


@pytest.mark.parametrize("name", ["additive", "gatv2", "separable", "separable, reduced already"])
def test_without_a_query_the_key_alone_is_scored(name: str) -> None:
    score, dq, dk = drawn(name)
    key = randn(6, HEADS, dk)
    logits = score.pair(None, key)
    torch.testing.assert_close(logits, score.pair(torch.zeros(6, HEADS, dq).double(), key))
    dense = score.dense(None, key)
    assert dense.shape == (HEADS, 1, 6)
    torch.testing.assert_close(dense[:, 0].T, logits)


def test_separable_identity_weighs_keys_the_same_for_every_query() -> None:
    score = Separable(randn(HEADS, DQ), randn(HEADS, DK), "identity")
    weights = score.dense(randn(5, HEADS, DQ), randn(7, HEADS, DK)).softmax(-1)
    torch.testing.assert_close(weights, weights[:, :1].expand_as(weights))


def test_cosine_lies_between_minus_one_and_one_and_ignores_length() -> None:
    query, key = randn(50, HEADS, 3), randn(50, HEADS, 3)
    logits = Cosine().pair(query, key)
    assert logits.abs().max() <= 1 + 1e-12
    torch.testing.assert_close(Cosine().pair(query * 1e3, key * 1e-3), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("length", [0.0, 300.0])
def test_cosine_of_zero_and_of_long_vectors_is_finite(dtype: torch.dtype, length: float) -> None:
    """In float16 the default eps is 0, and the square of 300 is too large."""
    query = torch.full((1, 1, 4), length, dtype=dtype, requires_grad=True)
    logits = Cosine().pair(query, torch.ones(1, 1, 4, dtype=dtype))
    expected = torch.tensor([[float(length > 0)]])
    torch.testing.assert_close(logits.float(), expected, atol=1e-2, rtol=0)
    (logits * (length > 0)).sum().backward()  # a zero vector that is masked
    assert query.grad is not None and query.grad.abs().max() < 0.01


def test_parameters_change_dtype_with_the_score() -> None:
    score = General(torch.ones(1, 2, 2)).to(torch.float64)
    assert score.weight.dtype == torch.float64
    same = Dot(3.0)
    assert same.to(torch.float64) is same
    kept = Additive(torch.ones(1, 2), torch.sigmoid, 0.7).to(torch.float64)
    assert (kept.activation, kept.negative_slope) == (torch.sigmoid, 0.7)


def test_weights_and_tokens_may_differ_in_dtype() -> None:
    """As they do under autocast: activations in bfloat16, parameters in float32."""
    query = torch.ones(3, 1, 2, dtype=torch.bfloat16)
    assert General(torch.ones(1, 2, 2)).pair(query, query).dtype == torch.float32
    concat = Concat(torch.ones(1, 2, 4), torch.ones(1, 2), "identity")
    assert concat.pair(query, query).tolist() == [[8], [8], [8]]


def tokens(width: int, heads: int = 1) -> Tensor:
    return torch.ones(3, heads, width)


@pytest.mark.parametrize("method", ["pair", "prepare"])
@pytest.mark.parametrize(
    ("score", "query", "key", "message"),
    [
        (Dot(), None, tokens(2), "score Dot needs a query; got query=None"),
        (ScaledDot(), None, tokens(2), "score ScaledDot needs a query"),
        (Cosine(), None, tokens(2), "score Cosine needs a query"),
        (General(torch.ones(1, 2, 2)), None, tokens(2), "score General needs a query"),
        (
            Concat(torch.ones(1, 2, 4), torch.ones(1, 2)),
            None,
            tokens(2),
            "score Concat needs a query",
        ),
        (Dot(), tokens(2), tokens(3), "query has width 2 and key 3.*General or Concat"),
        (ScaledDot(), tokens(2), tokens(3), "query has width 2 and key 3: score ScaledDot"),
        (Cosine(), tokens(2), tokens(3), "query has width 2 and key 3: score Cosine"),
        (Additive(), tokens(1), tokens(3), "query has width 1 and key 3: score Additive"),
        (
            General(torch.ones(1, 2, 5)),
            tokens(2),
            tokens(3),
            r"weight of General has shape \[1, 2, 5\].*width of the key, 3",
        ),
        (
            General(torch.ones(1, 2, 3)),
            tokens(4),
            tokens(3),
            r"weight of General has shape \[1, 2, 3\].*4 channels each",
        ),
        (
            General(torch.ones(2, 2, 3)),
            tokens(2, heads=3),
            tokens(3, heads=3),
            r"weight of General has shape \[2, 2, 3\].*3 heads",
        ),
        (
            Concat(torch.ones(1, 2, 5), torch.ones(1, 2)),
            tokens(2),
            tokens(2),
            r"weight of Concat has shape \[1, 2, 5\].*2 \+ 2",
        ),
        (
            Separable(torch.ones(1, 2), torch.ones(1, 2)),
            tokens(3),
            tokens(2),
            r"query has width 3, but Separable expects 2.*query_vector of shape \[heads, 3\]",
        ),
        (
            Separable(torch.ones(1, 2)),
            tokens(2),
            tokens(2),
            r"key has width 2, but Separable expects 1.*key_vector of shape \[heads, 2\]",
        ),
    ],
)
def test_misfits_are_named(
    method: str, score: Score, query: Tensor | None, key: Tensor, message: str
) -> None:
    rest: tuple[Any, ...] = () if method == "pair" else (None,)
    with pytest.raises(ValueError, match=message):
        getattr(score, method)(query, key, *rest)


def test_additive_names_a_vector_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"vector of Additive has shape \[1, 4\].*\[heads, 3\]"):
        Additive(torch.ones(1, 4)).prepare(tokens(3), tokens(3), None)


def test_unknown_activation_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"activation is 'swish'.*'leaky_relu'.*'tanh'.*function"):
        Additive(activation="swish").pair(tokens(2), tokens(2))


def test_location_refuses_what_it_cannot_mean() -> None:
    score = Location(torch.ones(1, 4, 2))
    with pytest.raises(ValueError, match="use support Dense"):
        score.pair(tokens(2), tokens(2))
    with pytest.raises(ValueError, match="pair_key must be None"):
        score.prepare(tokens(2), tokens(2), tokens(2))
    with pytest.raises(ValueError, match=r"key has 5 positions.*at most 4"):
        score.dense(tokens(2), torch.ones(5, 1, 2))
    with pytest.raises(ValueError, match="Location needs a query"):
        score.dense(None, tokens(2))
    with pytest.raises(ValueError, match=r"weight of Location.*3 channels"):
        score.dense(tokens(3), tokens(2))
