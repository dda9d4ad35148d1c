"""The attentions of the literature, local ones too, against their formulas, number by number."""

import copy
import io
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from sequence_attn import (
    Attention,
    BahdanauAttention,
    ContentAddressing,
    CosineAttention,
    LocalAttention,
    LuongAttention,
    RestrictedSelfAttention,
    SinusoidalPositions,
)

B, TQ, TK, D, DV = 2, 3, 6, 4, 3
LENGTHS = torch.tensor([6, 4])

PRESETS = {
    "bahdanau": lambda: BahdanauAttention(D, attention_size=5),
    "luong dot": lambda: LuongAttention("dot", query_size=D),
    "luong general": lambda: LuongAttention("general", query_size=D),
    "luong concat": lambda: LuongAttention("concat", query_size=D, attention_size=5),
    "luong location": lambda: LuongAttention("location", query_size=D, max_length=9),
    "cosine": lambda: CosineAttention(D, temperature=0.5),
    "cosine, learned": lambda: CosineAttention(D, temperature=0.5, learn_temperature=True),
    "local-m": lambda: LocalAttention("monotonic", 1, query_size=D),
    "local-m, gaussian": lambda: LocalAttention("monotonic", 2, 0.7, score="dot", query_size=D),
    "local-p": lambda: LocalAttention("predictive", 2, query_size=D),
    "local-p, sigma": lambda: LocalAttention("predictive", 1, 3.0, score="concat", query_size=D),
    "content": lambda: ContentAddressing(D, strength=2.0, sharpening=1.5),
}
every_preset = pytest.mark.parametrize("name", PRESETS)


def preset(name: str) -> Attention:
    return PRESETS[name]().double()


def inputs(queries: int = TQ, keys: int = TK) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (B, queries, D), (B, keys, D), (B, keys, DV)
    return tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)


def tensor(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def set_to(parameter: Tensor, *numbers) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(numbers))


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def times(matrix: list[list[float]], vector: list[float]) -> list[float]:
    return [dot(row, vector) for row in matrix]


def softmax(scores: list[float]) -> list[float]:
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def by_hand(layer: Attention, q: list[float], keys: list[list[float]], t: int) -> list[float]:
    """The weights of query t over the real keys, as the papers write them, in plain Python."""
    p = {name: parameter.tolist() for name, parameter in layer.named_parameters()}

    def score(j: int) -> float:
        k = keys[j]
        match layer.score_name:
            case "dot":
                return dot(q, k)
            case "general":
                return dot(q, times(p["weight"], k))
            case "concat":
                return dot(p["vector"], [math.tanh(x) for x in times(p["weight"], q + k)])
            case "location":
                return dot(p["weight"][j], q)
            case "additive":
                hidden = zip(times(p["query_weight"], q), times(p["key_weight"], k), strict=True)
                return dot(p["vector"], [math.tanh(a + b) for a, b in hidden])
            case "cosine":
                return dot(q, k) / (math.hypot(*q) * math.hypot(*k))
        raise AssertionError(layer.score_name)

    if isinstance(layer, CosineAttention):
        return softmax([score(j) / 0.5 for j in range(len(keys))])
    if isinstance(layer, ContentAddressing):
        weights = softmax([layer.strength * score(j) for j in range(len(keys))])
        sharp = [w**layer.sharpening for w in weights]
        return [w / sum(sharp) for w in sharp]
    if not isinstance(layer, LocalAttention):
        return softmax([score(j) for j in range(len(keys))])

    centre = float(min(t, len(keys) - 1))
    if layer.align == "predictive":
        hidden = [math.tanh(x) for x in times(p["position.0.weight"], q)]
        centre = len(keys) / (1 + math.exp(-dot(p["position.2.weight"][0], hidden)))
    near = [j for j in range(len(keys)) if abs(j - centre) <= layer.window]
    align = dict(zip(near, softmax([score(j) for j in near]), strict=True))
    sigma = math.inf if layer.sigma is None else layer.sigma
    return [
        align.get(j, 0) * math.exp(-((j - centre) ** 2) / (2 * sigma**2)) for j in range(len(keys))
    ]


# What each preset computes


@every_preset
def test_each_preset_is_its_formula(name: str) -> None:
    layer, (query, keys, values) = preset(name), inputs()
    context, weights = layer(query, keys, values, lengths=LENGTHS, need_weights=True)
    assert context.shape == (B, TQ, DV) and weights.shape == (B, TQ, TK)
    for b, length in enumerate(LENGTHS):
        for t in range(TQ):
            row = by_hand(layer, query[b, t].tolist(), keys[b, :length].tolist(), t)
            torch.testing.assert_close(weights[b, t, :length], tensor(*row))
            torch.testing.assert_close(context[b, t], tensor(*row) @ values[b, :length])
        assert (weights[b, :, length:] == 0).all()


def test_bahdanau_worked_out_by_hand() -> None:
    """`vᵀ tanh(W s + U h) = 2 tanh(-1 + h)` with h = 1 and h = 1 + artanh(1/2): scores 0 and 1."""
    layer = BahdanauAttention(1, 1)
    set_to(layer.query_weight, [-0.5])
    set_to(layer.key_weight, [1.0])
    set_to(layer.vector, 2.0)
    keys = torch.tensor([[[1.0], [1.0 + math.atanh(0.5)]]])
    weights = layer.weights(torch.tensor([[2.0]]), keys)
    torch.testing.assert_close(weights, torch.tensor([[0.268941421, 0.731058579]]))


def test_luong_worked_out_by_hand() -> None:
    query, keys = torch.tensor([[1.0, 2.0]]), torch.eye(2)[None]
    one_more, one_less = (
        torch.tensor([[0.268941421, 0.731058579]]),
        torch.tensor([[0.731058579, 0.268941421]]),
    )
    layer = LuongAttention("dot", query_size=2)  # scores 1 and 2
    torch.testing.assert_close(layer.weights(query, keys), one_more)
    layer = LuongAttention("general", query_size=2)  # W swaps the channels of a key: 2 and 1
    set_to(layer.weight, [0.0, 1.0], [1.0, 0.0])
    torch.testing.assert_close(layer.weights(query, keys), one_less)
    layer = LuongAttention("concat", query_size=2, attention_size=1)
    set_to(layer.weight, [2.0, -1.0, 0.0, math.atanh(0.25)])  # 4 tanh(0) and 4 tanh(artanh 1/4)
    set_to(layer.vector, 4.0)
    torch.testing.assert_close(layer.weights(query, keys), one_more)
    layer = LuongAttention("location", query_size=2, max_length=3)  # scores 3, 2 and, unused, 9
    set_to(layer.weight, [1.0, 1.0], [0.0, 1.0], [9.0, 0.0])
    torch.testing.assert_close(layer.weights(query, keys), one_less)


def test_normalised_bahdanau_and_scaled_luong_worked_out_by_hand() -> None:
    query, keys = torch.randn(1, 3), torch.randn(1, 2, 4)
    bahdanau = BahdanauAttention(3, 4, 5, normalize=True, bias=True)
    assert bahdanau.length.item() == pytest.approx(5**-0.5)
    with torch.no_grad():
        bahdanau.length.fill_(1.7)
        bahdanau.hidden_bias.normal_()
    v = 1.7 * bahdanau.vector / bahdanau.vector.norm()
    hidden = query @ bahdanau.query_weight.T + keys[0] @ bahdanau.key_weight.T
    expected = (torch.tanh(hidden + bahdanau.hidden_bias) @ v).softmax(0)
    torch.testing.assert_close(bahdanau.weights(query, keys)[0], expected)
    luong = LuongAttention("general", query_size=3, key_size=4, scale=True)
    with torch.no_grad():
        luong.scale.fill_(0.3)
    expected = (0.3 * keys[0] @ luong.weight.T @ query[0]).softmax(0)
    torch.testing.assert_close(luong.weights(query, keys)[0], expected)
    for layer, name in ((bahdanau, "length"), (luong, "scale")):
        layer.weights(query, keys)[0, 0].backward()
        assert getattr(layer, name).grad.abs() > 0
        layer.reset_parameters()
        start = 5**-0.5 if name == "length" else 1
        assert getattr(layer, name).item() == pytest.approx(start)
    with pytest.raises(ValueError, match=r"scale goes with .* got score='concat'"):
        LuongAttention("concat", query_size=3, scale=True)


def test_local_monotonic_worked_out_by_hand() -> None:
    """Equal scores: uniform over the window, whose centre walks along and stops at the end."""
    layer = LocalAttention("monotonic", window=1, score="dot", query_size=1)
    query, keys = torch.zeros(2, 5, 1), torch.zeros(2, 4, 1)
    weights = layer.weights(query, keys, lengths=torch.tensor([4, 2]))
    half, third = 1 / 2, 1 / 3
    expected = [
        [half, half, 0, 0],
        [third, third, third, 0],
        [0, third, third, third],
        [0, 0, half, half],
        [0, 0, half, half],
    ]
    torch.testing.assert_close(weights[0], torch.tensor(expected))
    torch.testing.assert_close(weights[1], torch.tensor([[half, half, 0, 0]] * 5))


def test_local_predictive_worked_out_by_hand() -> None:
    """`p_t = S · sigmoid(2 ln 3/2 · tanh(artanh 1/2)) = 3/5 S`, and σ = window / 2 = 1."""
    layer = LocalAttention("predictive", window=2, score="dot", query_size=1)
    set_to(layer.position[0].weight, [math.atanh(0.5)])
    set_to(layer.position[2].weight, [2 * math.log(1.5)])
    query, keys = torch.ones(2, 1), torch.zeros(2, 6, 1)
    lengths = torch.tensor([4, 2])
    weights = layer.weights(query, keys, lengths=lengths)
    memory = layer.precompute(keys, lengths=lengths)
    torch.testing.assert_close(layer.centre(query[:, None], memory), torch.tensor([[2.4], [1.2]]))
    expected = [
        # p = 2.4, keys 1 to 3: a third each, times exp(-0.98), exp(-0.08), exp(-0.18)
        [0, 0.125103699, 0.307705449, 0.278423404, 0, 0],
        # p = 1.2, keys 0 and 1: a half each, times exp(-0.72), exp(-0.02); not normalised again
        [0.243376128, 0.490099337, 0, 0, 0, 0],
    ]
    torch.testing.assert_close(weights, torch.tensor(expected))
    values = torch.tensor([0.0, 30.0, 3.0, 6.0, math.nan, math.nan]).expand(2, 6)[..., None]
    context = layer(query, keys, values, lengths=lengths).context
    torch.testing.assert_close(context, torch.tensor([[6.346768], [14.702980]]))


def test_cosine_worked_out_by_hand() -> None:
    """Cosines 24/25 and 1, whatever the lengths; divided by 1/25 they are 24 and 25."""
    layer = CosineAttention(2, temperature=0.04)
    query, keys = torch.tensor([[3.0, 4.0]]), torch.tensor([[[8.0, 6.0], [0.3, 0.4]]])
    expected = torch.tensor([[0.268941421, 0.731058579]])
    torch.testing.assert_close(layer.weights(query, keys), expected)
    learned = CosineAttention(2, temperature=0.04, learn_temperature=True)
    torch.testing.assert_close(learned.weights(query, keys), expected)
    assert [parameter.numel() for parameter in learned.parameters()] == [1]
    whole = CosineAttention(2, temperature=1, learn_temperature=True)
    torch.testing.assert_close(whole.weights(query, keys), CosineAttention(2).weights(query, keys))


def test_content_addressing_worked_out_by_hand() -> None:
    """β = ln 3: weights 3/4 and 1/4; γ = 2 squares them to 9/16 and 1/16, which is 9 to 1."""
    query, keys = torch.tensor([[5.0, 0.0]]), torch.eye(2)[None]
    values = torch.tensor([[[10.0], [20.0]]])
    layer = ContentAddressing(2, strength=math.log(3))
    context, weights = layer(query, keys, values, need_weights=True)
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(context, torch.tensor([[12.5]]))
    sharp = ContentAddressing(2, strength=math.log(3), sharpening=2.0)
    context, weights = sharp(query, keys, values, need_weights=True)
    torch.testing.assert_close(weights, torch.tensor([[0.9, 0.1]]))
    torch.testing.assert_close(context, torch.tensor([[11.0]]))


def test_content_addressing_takes_a_strength_for_each_query() -> None:
    layer, (query, keys, values) = preset("content"), inputs()
    strength = torch.rand(B, TQ, dtype=torch.float64) + 0.5
    many = layer(query, keys, values, strength=strength, lengths=LENGTHS, need_weights=True)
    for b in range(B):
        for t in range(TQ):
            fixed = ContentAddressing(D, strength=float(strength[b, t]), sharpening=1.5)
            row = by_hand(fixed, query[b, t].tolist(), keys[b, : LENGTHS[b]].tolist(), t)
            torch.testing.assert_close(many.weights[b, t, : LENGTHS[b]], tensor(*row))
    one = layer(query[:, 1], keys, values, strength=strength[:, 1], lengths=LENGTHS)
    torch.testing.assert_close(one.context, many.context[:, 1])
    given = {"strength": strength, "lengths": LENGTHS}
    torch.testing.assert_close(layer.weights(query, keys, **given), many.weights)
    memory = layer.precompute(keys, values, lengths=LENGTHS)
    torch.testing.assert_close(layer(query, memory, strength=strength).context, many.context)


def test_a_strong_read_is_a_look_up() -> None:
    layer, (_, keys, values) = ContentAddressing(D, strength=1e4).double(), inputs()
    torch.testing.assert_close(layer(3 * keys, keys, values).context, values)


# Sizes, parameters and defaults of the papers


def test_parameters_have_the_widths_of_the_papers() -> None:
    def shapes(layer: nn.Module) -> dict[str, list[int]]:
        return {name: list(parameter.shape) for name, parameter in layer.named_parameters()}

    assert shapes(BahdanauAttention(3, 6)) == {
        "query_weight": [6, 3],
        "key_weight": [6, 6],
        "vector": [6],
    }
    with_bias = BahdanauAttention(3, 6, 5, bias=True)
    assert shapes(with_bias)["hidden_bias"] == [5] and (with_bias.hidden_bias == 0).all()
    assert shapes(LuongAttention(query_size=3, key_size=6)) == {"weight": [3, 6]}
    assert shapes(LuongAttention("dot", query_size=3)) == {}
    local = LocalAttention("predictive", query_size=3, key_size=6)
    assert shapes(local) == {
        "weight": [3, 6],
        "position.0.weight": [3, 3],
        "position.2.weight": [1, 3],
    }
    assert (local.window, local.sigma) == (10, 5.0)
    monotonic = LocalAttention("monotonic", 4, query_size=3)
    assert monotonic.sigma is None and shapes(monotonic) == {"weight": [3, 3]}
    assert LocalAttention("predictive", 4, 7.0, query_size=3).sigma == 7.0
    assert shapes(RestrictedSelfAttention(2, size=3)) == {}
    assert shapes(RestrictedSelfAttention(2, size=3, score="additive"))["vector"] == [3]


# Equivalences


@every_preset
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(0, TK), min_size=B, max_size=B),
    masked=st.booleans(),
    biased=st.booleans(),
)
def test_a_memory_and_weights_alone_change_nothing(
    name: str, lengths: list[int], masked: bool, biased: bool
) -> None:
    layer, (query, keys, values) = preset(name), inputs()
    lengths, options = torch.tensor(lengths), {}
    if masked:
        options["mask"] = torch.rand(B, TQ, TK) > 0.3
    if biased and not isinstance(layer, ContentAddressing):
        options["bias"] = torch.randn(B, TQ, TK, dtype=torch.float64)
    once = layer(query, keys, values, lengths=lengths, need_weights=True, **options)
    memory = layer.precompute(keys, values, lengths=lengths)
    torch.testing.assert_close(layer(query, memory, need_weights=True, **options), once)
    torch.testing.assert_close(layer(query, memory, **options).context, once.context)
    torch.testing.assert_close(layer.weights(query, memory, **options), once.weights)
    torch.testing.assert_close(layer.weights(query, keys, lengths=lengths, **options), once.weights)
    assert layer(query, memory, **options).weights is None


@every_preset
def test_one_query_is_a_sequence_of_one(name: str) -> None:
    layer, (query, keys, values) = preset(name), inputs()
    many = layer(query[:, :1], keys, values, lengths=LENGTHS, need_weights=True)
    one = layer(query[:, 0], keys, values, lengths=LENGTHS, need_weights=True)
    torch.testing.assert_close(one.context, many.context[:, 0])
    torch.testing.assert_close(one.weights, many.weights[:, 0])


@pytest.mark.parametrize("name", ["local-m", "local-m, gaussian", "local-p"])
def test_local_attention_step_by_step_is_that_of_all_steps(name: str) -> None:
    layer, (query, keys, values) = preset(name), inputs(queries=8)
    memory = layer.precompute(keys, values, lengths=LENGTHS)
    together = layer(query, memory, need_weights=True)
    for t in range(8):  # beyond the end of the keys too
        context, weights = layer(query[:, t], memory, step=t, need_weights=True)
        torch.testing.assert_close(context, together.context[:, t])
        torch.testing.assert_close(weights, together.weights[:, t])
    later = layer.weights(query[:, 3:], memory, step=3)
    torch.testing.assert_close(later, together.weights[:, 3:])


@pytest.mark.parametrize("window", [2 * TK, 10**9])
@pytest.mark.parametrize("score", ["dot", "general", "concat", "additive"])
def test_a_wide_predictive_window_is_global_attention_times_the_gaussian(
    score: str, window: int
) -> None:
    layer = LocalAttention("predictive", window, 1.7, score=score, query_size=D).double()
    everywhere = Attention(score, query_size=D).double()
    everywhere.load_state_dict(layer.state_dict(), strict=False)
    query, keys, values = inputs()
    context, weights = layer(query, keys, values, lengths=LENGTHS, need_weights=True)
    centre = layer.centre(query, layer.precompute(keys, lengths=LENGTHS))
    distance = torch.arange(TK) - centre[..., None]
    gaussian = torch.exp(-(distance**2) / (2 * 1.7**2))
    expected = everywhere.weights(query, keys, lengths=LENGTHS) * gaussian
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(context, expected @ values)
    assert ((centre > 0) & (centre < LENGTHS[:, None])).all()


def test_a_wide_window_without_gaussian_is_global_attention() -> None:
    layer = LocalAttention("monotonic", TK, query_size=D).double()
    everywhere = LuongAttention("general", query_size=D).double()
    everywhere.load_state_dict(layer.state_dict())
    query, keys, values = inputs(queries=8)
    torch.testing.assert_close(
        layer(query, keys, values, lengths=LENGTHS, need_weights=True),
        everywhere(query, keys, values, lengths=LENGTHS, need_weights=True),
    )


@pytest.mark.parametrize("mask_rows", [1, TQ])
@pytest.mark.parametrize("name", ["local-m", "local-p"])
def test_masks_and_biases_act_on_the_keys_of_a_local_window(name: str, mask_rows: int) -> None:
    """A masked key is as far away as one outside the window; a bias is added to its score."""
    layer, (query, keys, values) = preset(name), inputs()
    mask = torch.rand(B, mask_rows, TK) > 0.3
    bias = torch.randn(B, TQ, TK, dtype=torch.float64)
    plain = layer.weights(query, keys, lengths=LENGTHS)
    shrunk = layer.weights(query, keys, lengths=LENGTHS, mask=mask, bias=bias)
    # Undo the Gaussian, change the softmax as the definition says, and apply it again
    gaussian = torch.ones(B, TQ, TK, dtype=torch.float64)
    if layer.sigma is not None:
        centre = layer.centre(query, layer.precompute(keys, lengths=LENGTHS))
        distance = torch.arange(TK) - centre[..., None]
        gaussian = torch.exp(-(distance**2) / (2 * layer.sigma**2))
    changed = plain / gaussian * bias.exp() * mask
    total = changed.sum(-1, keepdim=True)
    expected = changed / torch.where(total == 0, 1, total) * gaussian
    torch.testing.assert_close(shrunk, expected)
    context = layer(query, keys, values, lengths=LENGTHS, mask=mask, bias=bias).context
    torch.testing.assert_close(context, expected @ values)
    if mask_rows == 1:
        by_key = layer.weights(query, keys, lengths=LENGTHS, key_mask=mask[:, 0], bias=bias)
        torch.testing.assert_close(by_key, expected)


@pytest.mark.parametrize("name", ["bahdanau", "luong general", "cosine", "content"])
def test_shuffled_keys_change_nothing_without_positions_and_something_with_them(name: str) -> None:
    layer, (query, keys, values) = preset(name), inputs()
    order, positions = torch.tensor([3, 0, 5, 1, 4, 2]), SinusoidalPositions(D)
    context = layer(query, keys, values).context
    torch.testing.assert_close(layer(query, keys[:, order], values[:, order]).context, context)
    placed = layer(query, positions(keys), values).context
    shuffled = layer(query, positions(keys[:, order]), values[:, order]).context
    assert not torch.allclose(shuffled, placed)


@pytest.mark.parametrize("name", ["luong location", "local-m", "local-p"])
def test_attention_to_places_depends_on_the_order_of_the_keys(name: str) -> None:
    layer, (query, keys, values) = preset(name), inputs()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = layer(query, keys[:, order], values[:, order]).context
    assert not torch.allclose(shuffled, layer(query, keys, values).context)


# What is not there does no harm


@every_preset
@pytest.mark.parametrize("nothing", [math.nan, math.inf])
def test_what_stands_behind_the_lengths_does_not_leak(name: str, nothing: float) -> None:
    layer, (query, keys, values) = preset(name), inputs()
    clean = layer(query, keys, values, lengths=LENGTHS, need_weights=True)
    for x in (keys, values):
        x[1, 4:] = nothing
    tensors = [x.requires_grad_() for x in (query, keys, values)]
    for dirty in (
        layer(*tensors, lengths=LENGTHS, need_weights=True),
        layer(query, layer.precompute(keys, values, lengths=LENGTHS), need_weights=True),
    ):
        torch.testing.assert_close(dirty, clean)
        wanted = [query, keys, values, *layer.parameters()]
        gradients = torch.autograd.grad(dirty.context.square().sum(), wanted, allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)
    torch.testing.assert_close(layer(*tensors, lengths=LENGTHS).context, clean.context)


@every_preset
def test_a_sequence_without_keys_reads_zeros_with_finite_gradients(name: str) -> None:
    layer, tensors = preset(name), [x.requires_grad_() for x in inputs()]
    lengths = torch.tensor([0, TK])
    context, weights = layer(*tensors, lengths=lengths, need_weights=True)
    assert (context[0] == 0).all() and (weights[0] == 0).all()
    assert (layer(*tensors, lengths=lengths).context[0] == 0).all()
    assert (context[1] != 0).any()
    wanted = [*tensors, *layer.parameters()]
    gradients = torch.autograd.grad(context.sum(), wanted, allow_unused=True)
    assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@every_preset
def test_small_and_empty_batches(name: str) -> None:
    layer, (query, keys, values) = preset(name), inputs()
    context, weights = layer(query[:0], keys[:0], values[:0], need_weights=True)
    assert context.shape == (0, TQ, DV) and weights.shape == (0, TQ, TK)
    context, weights = layer(query[:, :0], keys, values, need_weights=True)
    assert context.shape == (B, 0, DV) and weights.shape == (B, 0, TK)
    context, weights = layer(query, keys[:, :1], values[:, :1], need_weights=True)
    if not isinstance(layer, LocalAttention):
        torch.testing.assert_close(context, values[:, :1].expand(B, TQ, DV))
    torch.testing.assert_close(context, weights @ values[:, :1])


@pytest.mark.parametrize("sign", [1, -1])
def test_a_predicted_centre_at_an_end_keeps_to_the_sequence(sign: int) -> None:
    """A saturated sigmoid: p_t = S, one behind the last key, or p_t = 0."""
    layer = LocalAttention("predictive", 1, score="dot", query_size=1).double()
    set_to(layer.position[0].weight, [1.0])
    set_to(layer.position[2].weight, [sign * 1e4])
    query = torch.ones(2, 1, 1, dtype=torch.float64, requires_grad=True)
    keys = torch.zeros(2, 4, 1, dtype=torch.float64)
    lengths = torch.tensor([4, 2])
    weights = layer.weights(query, keys, lengths=lengths)[:, 0]
    near, far = math.exp(-1 / (2 * 0.5**2)), 1.0
    expected = [[0, 0, 0, near], [0, near, 0, 0]] if sign > 0 else [[far / 2, near / 2, 0, 0]] * 2
    torch.testing.assert_close(weights, tensor(*expected))
    weights.sum().backward()
    assert query.grad.isfinite().all() and layer.position[0].weight.grad.isfinite().all()


# Gradients, dtypes, compilation, state


@every_preset
def test_gradients(name: str) -> None:
    layer, tensors = preset(name), [x.requires_grad_() for x in inputs(queries=2, keys=4)]
    names = [name for name, _ in layer.named_parameters()]

    def run(query, keys, values, *parameters):
        named = dict(zip(names, parameters, strict=True))
        options = {"lengths": torch.tensor([4, 2]), "need_weights": True}
        read = torch.func.functional_call(layer, named, (query, keys, values), options)
        return read.context, read.weights

    assert torch.autograd.gradcheck(run, (*tensors, *layer.parameters()))


def test_the_gaussian_teaches_where_to_look() -> None:
    layer = LocalAttention("predictive", 4, query_size=1).double()
    query, keys = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 9, 1, dtype=torch.float64)
    values = torch.zeros(1, 9, 1, dtype=torch.float64)
    values[0, 2] = 1  # what is worth reading
    set_to(layer.position[0].weight, [1.0])
    set_to(layer.position[2].weight, [0.2])
    memory = layer.precompute(keys, values)
    before = layer.centre(query[:, None], memory).item()
    (-layer(query, memory).context).sum().backward()
    with torch.no_grad():
        layer.position[2].weight -= layer.position[2].weight.grad
    after = layer.centre(query[:, None], memory).item()
    assert 2 < after < before


@every_preset
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    layer, tensors = preset(name).to(dtype), [x.to(dtype) for x in inputs()]
    context, weights = layer(*tensors, lengths=LENGTHS, need_weights=True)
    assert context.dtype == weights.dtype == dtype
    exact = layer.double()(*(x.double() for x in tensors), lengths=LENGTHS, need_weights=True)
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    torch.testing.assert_close(context.double(), exact.context, rtol=0, atol=tolerance)
    torch.testing.assert_close(weights.double(), exact.weights, rtol=0, atol=tolerance)


@every_preset
def test_autocast(name: str) -> None:
    layer, tensors = PRESETS[name](), [x.float() for x in inputs()]
    exact = layer(*tensors, lengths=LENGTHS, need_weights=True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(*tensors, lengths=LENGTHS, need_weights=True)
    assert rounded.context.dtype == rounded.weights.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.context.float(), exact.context, rtol=0, atol=0.05)
    torch.testing.assert_close(rounded.weights.float(), exact.weights, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_centre_far_away_is_not_rounded_to_half_precision(dtype: torch.dtype) -> None:
    layer = LocalAttention("predictive", query_size=D)
    nn.init.zeros_(layer.position[2].weight)  # p_t = S / 2
    query, keys = torch.zeros(1, 1, D), torch.zeros(1, 3001, D)
    with torch.autocast("cpu", dtype):
        assert layer.centre(query, layer.precompute(keys)).item() == 1500.5
    layer, query, keys = layer.to(dtype), query.to(dtype), keys.to(dtype)
    assert layer.centre(query, layer.precompute(keys)).item() == 1500.5
    weights = layer.weights(query, keys)[0, 0]
    assert weights.nonzero().flatten().tolist() == list(range(1491, 1511))


def test_a_compiled_decoding_loop_settles() -> None:
    torch._dynamo.reset()
    layer, counter = preset("local-m, gaussian"), CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    query, keys, values = inputs(queries=8)
    memory = layer.precompute(keys, values, lengths=LENGTHS)
    expected = layer(query, memory).context
    for t in range(8):
        torch.testing.assert_close(compiled(query[:, t], memory, step=t).context, expected[:, t])
    assert counter.frame_count <= 3  # the first step, the second, any other


@every_preset
def test_copies_and_state_round_trip(name: str) -> None:
    layer, other, tensors = preset(name), preset(name), inputs()
    expected = layer(*tensors, need_weights=True)
    if list(layer.parameters()) and name != "cosine, learned":
        assert not torch.allclose(other(*tensors).context, expected.context)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    for same in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(same(*tensors, need_weights=True), expected)
    assert name.startswith(("bahdanau", "luong", "cosine", "content")) or layer.align in repr(layer)


@every_preset
def test_inputs_need_not_be_contiguous(name: str) -> None:
    layer, (query, keys, values) = preset(name), inputs()
    expected = layer(query, keys, values, lengths=LENGTHS, need_weights=True)
    strided = [x.mT.contiguous().mT for x in (query, keys, values)]
    assert not any(x.is_contiguous() for x in strided)
    lengths = torch.stack([LENGTHS, LENGTHS], 1)[:, 0]
    torch.testing.assert_close(layer(*strided, lengths=lengths, need_weights=True), expected)
    shared = [x[:1].expand(B, -1, -1) for x in (query, keys, values)]
    torch.testing.assert_close(layer(*shared).context[1], layer(query, keys, values).context[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@every_preset
def test_lengths_of_any_integer_dtype(name: str, dtype: torch.dtype) -> None:
    layer, tensors, lengths = preset(name), inputs(), torch.tensor([0, 4])
    expected = layer(*tensors, lengths=lengths, need_weights=True)
    torch.testing.assert_close(
        layer(*tensors, lengths=lengths.to(dtype), need_weights=True), expected
    )


def test_dropout_acts_in_training_alone() -> None:
    for layer in (
        LocalAttention("monotonic", 8, score="dot", query_size=1, dropout=0.5),
        ContentAddressing(1, dropout=0.5),
    ):
        ones = torch.ones(2, 9, 1)
        assert (layer(ones, ones).context != 1).any()
        torch.testing.assert_close(layer.eval()(ones, ones).context, ones)


# Bad input


def local(align: str = "predictive", **options) -> LocalAttention:
    return LocalAttention(align, query_size=D, **options)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BahdanauAttention(0), "query_size is 0; expected at least 1"),
        (lambda: BahdanauAttention(2, -3), "key_size is -3; expected at least 1"),
        (lambda: BahdanauAttention(2, 2, 0), "attention_size is 0; expected at least 1"),
        (lambda: BahdanauAttention(2, dropout=2), "dropout is 2; a probability lies"),
        (lambda: BahdanauAttention(2, normalizer="hardmax"), "normalizer is 'hardmax'; known"),
        (
            lambda: LuongAttention("additive", query_size=2),
            "score is 'additive'; Luong's are 'dot'",
        ),
        (lambda: LuongAttention("dot", query_size=2, key_size=3), "use 'general', 'concat'"),
        (lambda: LuongAttention("location", query_size=2), "'location' needs max_length"),
        (lambda: LuongAttention("dot", query_size=2, max_length=4), "no use for max_length"),
        (lambda: CosineAttention(2, temperature=0), "temperature is 0; it must be above 0"),
        (lambda: CosineAttention(2, temperature=math.nan), "temperature is nan"),
        (
            lambda: CosineAttention(2, temperature=-1, learn_temperature=True),
            "temperature is -1; it must be above 0",
        ),
        (lambda: local("local-p"), "align is 'local-p'; expected 'monotonic' or 'predictive'"),
        (lambda: local("monotonic", window=-1), "window is -1; monotonic .* reaches 0 or more"),
        (lambda: local(window=0), "window is 0; predictive .* reaches 1 or more"),
        (lambda: local(sigma=0), "sigma is 0; the width of a Gaussian is above 0"),
        (lambda: local(sigma=math.nan), "sigma is nan"),
        (lambda: local("monotonic", sigma=-1.0), "sigma is -1.0"),
        (lambda: local(score="location"), "'location', which looks at no key.*'general'"),
        (lambda: local(score="sum"), "score is 'sum'; known ones are"),
        (lambda: local(activation="sin"), "activation is 'sin'; known ones are"),
        (lambda: ContentAddressing(2, strength=0), "strength is 0; the strength of a key"),
        (lambda: ContentAddressing(2, strength=math.nan), "strength is nan"),
        (lambda: ContentAddressing(2, sharpening=0.5), "sharpening is 0.5; it is at least 1"),
        (lambda: ContentAddressing(0), "query_size is 0"),
    ],
)
def test_constructors_refuse(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


BAD_ARGUMENTS = [
    ({"query": torch.zeros(B, TQ, 5)}, ValueError, r"query has shape \[2, 3, 5\].*width 4"),
    ({"query": torch.zeros(D)}, ValueError, r"query has shape \[4\]"),
    ({"query": torch.zeros(3, TQ, D)}, ValueError, "query has batch size 3, but keys 2"),
    ({"query": torch.zeros(B, TQ, D).long()}, TypeError, r"query has dtype torch.int64.*\.float\("),
    ({"keys": torch.zeros(B, D)}, ValueError, r"keys has shape \[2, 4\]; expected \[B, T, Dk\]"),
    ({"keys": torch.zeros(B, TK, D).long()}, TypeError, "keys has dtype torch.int64"),
    ({"keys": torch.zeros(B, TK, D, device="meta")}, ValueError, "keys .*on meta.*move one of"),
    ({"values": torch.zeros(B, 4, 3)}, ValueError, r"values has shape \[2, 4, 3\]; expected"),
    ({"mask": torch.ones(7, 5) > 0}, ValueError, r"mask has shape \[7, 5\]; expected \[Tq, Tk\]"),
    ({"mask": torch.ones(TQ, TK)}, TypeError, "mask has dtype torch.float32.*True.*bias="),
    ({"lengths": torch.tensor([7, 1])}, ValueError, "lengths has the entry 7; expected 0 to 6"),
    ({"lengths": torch.tensor([-1, 1])}, ValueError, "lengths has the entry -1"),
    ({"lengths": torch.tensor([1])}, ValueError, r"lengths has shape \[1\]; expected \[2\]"),
    ({"lengths": torch.tensor([1.0, 2.0])}, TypeError, "lengths has dtype torch.float32"),
    ({"lengths": torch.ones(B).long().to("meta")}, ValueError, "lengths is on meta.*move one of"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD_ARGUMENTS)
@pytest.mark.parametrize("name", ["bahdanau", "luong dot", "local-m", "local-p", "content"])
def test_forward_and_weights_refuse(
    name: str, change: dict, error: type[Exception], message: str
) -> None:
    layer = PRESETS[name]()
    given = {"query": torch.zeros(B, TQ, D), "keys": torch.zeros(B, TK, D)} | change
    query, keys = given.pop("query"), given.pop("keys")
    with pytest.raises(error, match=message):
        layer(query, keys, **given)
    if "values" not in change:
        with pytest.raises(error, match=message):
            layer.weights(query, keys, **given)


def test_arguments_of_single_presets_are_refused() -> None:
    query, keys = torch.zeros(B, TQ, D), torch.zeros(B, TK, D)
    with pytest.raises(ValueError, match=r"causal is True, but LocalAttention.*pass a mask"):
        local()(query, keys, causal=True)
    with pytest.raises(ValueError, match=r"step is -1; .*0 or more"):
        local("monotonic")(query, keys, step=-1)
    with pytest.raises(ValueError, match=r"bias has shape \[2, 3, 5\]; expected \[Tq, Tk\]"):
        local()(query, keys, bias=torch.zeros(B, TQ, 5))
    with pytest.raises(ValueError, match=r"strength has shape \[2\]; expected \[2, 3\], one for"):
        ContentAddressing(D)(query, keys, strength=torch.ones(B))
    with pytest.raises(ValueError, match=r"key has 6 positions.*at most 5"):
        LuongAttention("location", query_size=D, max_length=5)(query, keys)


def test_a_learned_temperature_stays_above_zero() -> None:
    """A step that would take τ itself below 0 is a step of its logarithm."""
    layer = CosineAttention(D, temperature=0.1, learn_temperature=True).double()
    query, keys, _ = inputs()
    torch.testing.assert_close(
        layer.weights(query, keys), CosineAttention(D, temperature=0.1).weights(query, keys)
    )
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e3)
    for _ in range(5):
        optimizer.zero_grad()
        loss = -layer.weights(query, keys).amax(-1).sum()  # sharper is better
        loss.backward()
        optimizer.step()
        assert layer.normalizer.temperature > 0
    assert layer.normalizer.temperature < 0.1


def test_a_checkpoint_that_holds_the_temperature_itself() -> None:
    layer = CosineAttention(D, learn_temperature=True)
    outer = nn.ModuleDict({"read": layer})
    outer.load_state_dict({"read.normalizer_temperature": torch.tensor(0.25)})
    torch.testing.assert_close(layer.normalizer.temperature, torch.tensor(0.25))
    assert list(outer.state_dict()) == ["read.normalizer_log_temperature"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_no_logarithm_makes_a_temperature_of_zero_or_infinity(
    dtype: torch.dtype, far: float
) -> None:
    layer = CosineAttention(D, learn_temperature=True).to(dtype)
    with torch.no_grad():
        layer.normalizer_log_temperature.fill_(far)
    query, keys, _ = (x.to(dtype) for x in inputs())
    weights = layer.weights(query, keys)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, TQ, dtype=dtype))
