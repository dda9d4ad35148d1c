"""A score and a normaliser of one's own, in every layer that takes one."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from attn_core import Dot, Normalizer, Score, Softmax
from sequence_attn import (
    Attention,
    HardAttention,
    LocalAttention,
    LuongAttention,
    MultiHead,
    RestrictedSelfAttention,
    TransformerEncoder,
)
from sequence_attn.seq2seq import RecurrentEncoder, Transformer, context_only, luong

B, T, D = 2, 5, 4
scored: list[type] = []


@dataclass(frozen=True, eq=False)
class Distance(Score):
    """`-scale · ‖q - k‖²`"""

    scale: Tensor

    def pair(self, query, key):
        scored.append(Distance)
        return -self.scale * (query - key).square().sum(-1)


class Halves(Normalizer):
    """Softmax at half the score."""

    def normalize(self, scores, rows):
        return Softmax(2.0).normalize(scores, rows)


def distance() -> Distance:
    return Distance(nn.Parameter(torch.tensor(0.5, dtype=torch.float64)))


def sequence(steps: int = T) -> Tensor:
    return torch.randn(B, steps, D, dtype=torch.float64)


def by_hand(query: Tensor, keys: Tensor) -> Tensor:
    return -0.5 * torch.cdist(query, keys).square()


OVER_KEYS = {
    "Attention": lambda **given: Attention(distance(), **given),
    "Attention, sizes": lambda **given: Attention(distance(), query_size=D, **given),
    "LuongAttention": lambda **given: LuongAttention(distance(), **given),
    "LocalAttention": lambda **given: LocalAttention("monotonic", 9, score=distance(), **given),
}


@pytest.mark.parametrize("name", OVER_KEYS)
def test_attention_over_keys_takes_a_score_of_ones_own(name: str) -> None:
    query, keys = sequence(3), sequence()
    attention = OVER_KEYS[name]()
    assert isinstance(attention.score, Distance) and attention.score_name is None
    context, weights = attention(query, keys, need_weights=True)
    expected = by_hand(query, keys).softmax(-1)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(context, expected @ keys)
    torch.testing.assert_close(attention(query, attention.precompute(keys)).context, context)
    torch.testing.assert_close(attention.weights(query, keys), weights)
    context.square().sum().backward()
    assert attention.score_scale.grad.abs() > 0  # a parameter of the layer, learned with it
    state = attention.state_dict()
    assert list(state) == ["score_scale"]
    other = OVER_KEYS[name]()
    other.score_scale.data.fill_(3.0)
    other.load_state_dict(state)
    torch.testing.assert_close(copy.deepcopy(other)(query, keys).context, context)
    halved = OVER_KEYS[name](normalizer=Halves())
    torch.testing.assert_close(halved.weights(query, keys), (by_hand(query, keys) / 2).softmax(-1))


def test_restricted_self_attention_takes_a_score_of_ones_own() -> None:
    x = sequence()
    layer = RestrictedSelfAttention(1, score=distance(), normalizer=Halves())
    band = (torch.arange(T) - torch.arange(T)[:, None]).abs() <= 1
    expected = (by_hand(x, x) / 2).masked_fill(~band, -math.inf).softmax(-1)
    torch.testing.assert_close(layer(x).context, expected @ x)


def test_hard_attention_takes_a_score_of_ones_own() -> None:
    query, keys = sequence(3), sequence()
    read = HardAttention(distance())(query, keys, need_weights=True)
    chosen = (by_hand(query, keys).log_softmax(-1) * read.weights).sum(-1)
    torch.testing.assert_close(read.log_prob, chosen)


@pytest.mark.parametrize("window", [None, 1])
def test_multi_head_layers_take_a_score_of_ones_own(window: int | None) -> None:
    x = sequence()
    layer = MultiHead(2, 3, input_size=D, score=distance(), window=window).double()
    query, key = (p(x).unflatten(-1, (2, 3)).transpose(1, 2) for p in (layer.query, layer.key))
    weights = layer(x, need_weights=True).weights
    if window is None:
        torch.testing.assert_close(weights, by_hand(query, key).softmax(-1))
    else:
        assert weights.shape == (B, 2, T, 3)
    encoder = TransformerEncoder(1, D, 2, score=distance(), normalizer=Halves(), window=window)
    assert encoder.double()(x).output.shape == x.shape


def alike(module: nn.Module) -> nn.Module:
    """The same in float64, with a score for which all keys are equally far."""
    for name, parameter in module.double().named_parameters():
        if name.endswith("score_scale"):
            nn.init.zeros_(parameter)
    return module


def test_models_and_decoders_take_a_score_of_ones_own() -> None:
    options = {"size": 8, "heads": 2, "layers": 1, "score": distance(), "normalizer": Halves()}
    model = alike(Transformer(9, 9, **options))
    for stack in (model.encoder, model.decoder):  # whose attention to the sequence itself it is of
        x = torch.randn(B, T, 8).double()
        weights = stack.layers[0].attention(x, need_weights=True).weights
        torch.testing.assert_close(weights, torch.full((B, 2, T, T), 1 / T).double())
    encoded = RecurrentEncoder(D, D).double()(sequence())
    for decoder in (
        luong(D, D, D, attention=distance()),
        luong(D, D, D, attention=Attention(distance(), query_size=D)),
        context_only(D, D, D, attention=Attention(distance(), normalizer=Halves())),
        luong(D, D, D, attention=HardAttention(distance())),
    ):
        read = alike(decoder)(sequence(), encoded, need_weights=True)
        if read.log_prob is None:
            torch.testing.assert_close(read.weights, torch.full((B, 1, T, T), 1 / T).double())
        else:
            torch.testing.assert_close(read.log_prob, -torch.full((B, 1, T), T).double().log())


@pytest.mark.parametrize("estimator", ["reinforce", "gumbel"])
def test_hard_attention_scores_once(estimator: str) -> None:
    attention = HardAttention(distance(), estimator)
    scored.clear()
    read = attention(sequence(3), sequence(), need_weights=True)
    assert len(scored) == 1 and read.log_prob is not None
    (gradient,) = torch.autograd.grad(read.log_prob.sum(), attention.score_scale)
    assert gradient != 0


LAYERS = {
    "Attention": lambda **given: Attention(**{"query_size": D} | given),
    "LuongAttention": lambda **given: LuongAttention(**{"query_size": D} | given),
    "LocalAttention": lambda **given: LocalAttention(**{"query_size": D} | given),
    "RestrictedSelfAttention": lambda **given: RestrictedSelfAttention(1, size=D, **given),
    "MultiHead": lambda **given: MultiHead(2, 3, **given),
    "TransformerEncoder": lambda **given: TransformerEncoder(1, D, 2, **given),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"score": 3}, TypeError, "score is 3; known ones are dot.*or pass an attn_core.Score"),
        ({"score": Dot}, TypeError, "score is the class Dot; pass an instance of it"),
        ({"score": "nonsense"}, ValueError, "score is 'nonsense'; "),
        ({"score": None}, TypeError, "score is None; known ones are"),
        ({"normalizer": Softmax}, TypeError, "normalizer is the class Softmax; pass an instance"),
        ({"normalizer": "nonsense"}, ValueError, "normalizer is 'nonsense'; known ones are"),
        ({"normalizer": Dot()}, TypeError, "normalizer is Dot.*pass an attn_core.Normalizer"),
    ],
)
def test_what_is_no_score_or_normalizer_is_refused(
    name: str, given: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LAYERS[name](**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention_size": 3}, "attention_size is 3, but score is a Distance"),
        ({"activation": "relu"}, "activation is 'relu', but score is a Distance"),
        ({"max_length": 3}, "has no use for max_length"),
        ({"score": "dot"}, "query_size is None, but score 'dot'"),
    ],
)
def test_settings_of_a_score_belong_to_the_score(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attention(**{"score": distance()} | given)
