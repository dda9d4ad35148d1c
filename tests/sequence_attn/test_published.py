"""Numbers that the tests of AllenNLP and Joey NMT publish for the same formulas.

AllenNLP: tests/modules/attention/*_test.py (release 2.10). Joey NMT: test/unit/test_attention.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attn_core import Dot
from sequence_attn import Attention

KEYS = torch.arange(1.0, 13.0).view(2, 2, 3)
QUERY = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])


def with_parameters(layer: Attention, **given: Tensor) -> Attention:
    layer.load_state_dict(given)
    return layer


def test_additive_scores_of_allennlp() -> None:
    layer = with_parameters(
        Attention("additive", "identity", query_size=2, key_size=3, attention_size=2),
        query_weight=torch.tensor([[-0.2, 0.3], [-0.5, 0.5]]).t(),
        key_weight=torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, -1.0]]).t(),
        vector=torch.tensor([1.0, -1.0]),
    )
    query = torch.tensor([[0.7, -0.8], [0.4, 0.9]])
    keys = torch.tensor(
        [
            [[1.0, -1.0, 3.0], [0.5, -0.3, 0.0], [0.2, -1.0, 1.0], [0.7, 0.8, -1.0]],
            [[-2.0, 3.0, -3.0], [0.6, 0.2, 2.0], [0.5, -0.4, -1.0], [0.2, 0.2, 0.0]],
        ]
    )
    expected = torch.tensor(
        [
            [1.975072, -0.04997836, 1.2176098, -0.9205586],
            [-1.4851665, 1.489604, -1.890285, -1.0672251],
        ]
    )
    torch.testing.assert_close(layer.weights(query, keys), expected, rtol=1e-6, atol=1e-6)


def test_bilinear_scores_of_allennlp() -> None:
    layer = with_parameters(
        Attention("general", "identity", query_size=2),
        weight=torch.tensor([[-0.3, 0.5], [2.0, -1.0]]),
    )
    bias = torch.full((1, 2), 0.1)  # which theirs has as a parameter
    found = layer(torch.ones(1, 2), torch.eye(2)[None], bias=bias, need_weights=True).weights
    torch.testing.assert_close(found, torch.tensor([[1.8, -0.4]]))


def test_cosine_scores_of_allennlp() -> None:
    """A query of zeros matches nothing."""
    found = Attention("cosine", "identity", query_size=3).weights(QUERY, KEYS)
    torch.testing.assert_close(
        found, torch.tensor([[0.0, 0.0], [0.9948, 0.9973]]), rtol=0, atol=5e-5
    )


def test_linear_weights_of_allennlp() -> None:
    """`w · [q; k]`: a separable score without a bend, whose query moves no weight."""
    layer = with_parameters(
        Attention("separable", query_size=3, activation="identity"),
        query_vector=torch.tensor([-0.3, 0.5, 2.0]),
        key_vector=torch.tensor([-1.0, 1.0, 1.0]),
    )
    found = layer.weights(torch.tensor([[-7.0, -8.0, -9.0]]), KEYS[:1])
    torch.testing.assert_close(found, torch.tensor([[0.0474, 0.9526]]), rtol=0, atol=5e-5)


def test_scaled_products_of_allennlp() -> None:
    """Its factor is a number of one's own: 9, by whose root products are divided."""
    layer = Attention(Dot(9**-0.5), "identity")
    found = layer.weights(QUERY.expand(2, 2, 3), KEYS)
    torch.testing.assert_close(
        found, torch.tensor([[[0.0, 0.0], [2.0, 5.0]], [[0.0, 0.0], [8.0, 11.0]]])
    )


# Of the first two sequences, whose last three and last two keys are padding
JOEY = {
    "additive": (
        [
            [[0.4904, 0.5096, 0, 0, 0], [0.4859, 0.5141, 0, 0, 0],
             [0.4871, 0.5129, 0, 0, 0], [0.4906, 0.5094, 0, 0, 0]],
            [[0.3314, 0.3278, 0.3408, 0, 0], [0.3337, 0.3230, 0.3433, 0, 0],
             [0.3301, 0.3297, 0.3402, 0, 0], [0.3312, 0.3275, 0.3413, 0, 0]],
        ],
        [
            [[0.5080, 0.5832, 0.5614], [0.5096, 0.5816, 0.5596],
             [0.5092, 0.5820, 0.5601], [0.5079, 0.5833, 0.5615]],
            [[0.4709, 0.5817, 0.3091], [0.4720, 0.5793, 0.3063],
             [0.4704, 0.5825, 0.3102], [0.4709, 0.5814, 0.3090]],
        ],
    ),
    "general": (
        [
            [[0.3238, 0.6762, 0, 0, 0], [0.4090, 0.5910, 0, 0, 0],
             [0.4367, 0.5633, 0, 0, 0], [0.3319, 0.6681, 0, 0, 0]],
            [[0.2483, 0.3291, 0.4226, 0, 0], [0.2353, 0.3474, 0.4174, 0, 0],
             [0.2725, 0.3322, 0.3953, 0, 0], [0.2803, 0.3476, 0.3721, 0, 0]],
        ],
        [
            [[0.5347, 0.2918, 0.4707], [0.5062, 0.2657, 0.4117],
             [0.4969, 0.2572, 0.3926], [0.5320, 0.2893, 0.4651]],
            [[0.5210, 0.6707, 0.4343], [0.5111, 0.6809, 0.4274],
             [0.5156, 0.6622, 0.4274], [0.5046, 0.6634, 0.4175]],
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("score", JOEY)
def test_joey_nmts_bahdanau_and_luong(score: str) -> None:
    """Queries of width 5, keys of width 3; parameters and inputs drawn in the order of its test."""
    torch.manual_seed(42)
    shapes = ((3, 7), (5, 7), (7, 1)) if score == "additive" else ((3, 5),)
    drawn = [nn.Linear(*shape, bias=False).weight for shape in shapes]
    queries, keys = torch.rand(6, 4, 5), torch.rand(6, 5, 3)
    if score == "additive":
        layer = with_parameters(
            Attention("additive", query_size=5, key_size=3, attention_size=7),
            key_weight=drawn[0], query_weight=drawn[1], vector=drawn[2][0],
        )  # fmt: skip
    else:
        layer = with_parameters(Attention("general", query_size=5, key_size=3), weight=drawn[0])
    real = torch.ones(6, 5, dtype=torch.bool)
    real[0, -3:], real[1, -2:], real[4, -1:] = False, False, False
    weights, context = JOEY[score]
    found = layer(queries, keys, key_mask=real, need_weights=True)
    torch.testing.assert_close(found.weights[:2], torch.tensor(weights), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.context[:2], torch.tensor(context), rtol=0, atol=1e-4)
