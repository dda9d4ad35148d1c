"""Restricted self-attention: dense attention with a band mask, at the cost of the band."""

import math

import pytest
import torch
from torch import Tensor

from attn_core import Edges, Location, attend, patterns
from sequence_attn import Attention, RestrictedSelfAttention

B, TK, D = 2, 6, 4
LENGTHS = torch.tensor([6, 4])


def sequence() -> Tensor:
    return torch.randn(B, TK, D, dtype=torch.float64)


def tensor(*numbers) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def band(layer: RestrictedSelfAttention, steps: int) -> Tensor:
    """Which pairs the layer's definition allows, `[T, T]`."""
    radius, dilation, causal = layer.pattern.radius, layer.pattern.dilation, layer.pattern.causal
    offsets = [dilation * n for n in range(-radius, (0 if causal else radius) + 1)]
    return torch.tensor([[j - i in offsets for j in range(steps)] for i in range(steps)])


def test_restricted_worked_out_by_hand() -> None:
    """Scores x_i x_j: among ±ln 2 and 0, the weights are powers of two."""
    two = math.log(2)
    x = torch.tensor([[[1.0], [two], [0.0], [2 * two], [1.0]]])
    layer = RestrictedSelfAttention(radius=1, size=1)
    context, weights = layer(x / x.clamp(min=1), need_weights=True)  # 1, ln 2, 0, 1, 1
    e, f = math.e, 2.0
    torch.testing.assert_close(
        weights[0, [1, 2]],
        torch.tensor([[f, 2**two, 1.0], [1.0, 1.0, 1.0]]) / torch.tensor([[f + 2**two + 1], [3.0]]),
    )
    torch.testing.assert_close(weights[0, 0], torch.tensor([0.0, e, f]) / (e + f))
    torch.testing.assert_close(weights[0, 4], torch.tensor([0.5, 0.5, 0.0]))
    torch.testing.assert_close(context[0, 2], torch.tensor([(two + 1) / 3]))
    dilated = RestrictedSelfAttention(1, dilation=2, size=1, causal=True)
    weights = dilated.weights(torch.ones(1, 4, 1))
    torch.testing.assert_close(weights[0], torch.tensor([[0.0, 1], [0, 1], [0.5, 0.5], [0.5, 0.5]]))


@pytest.mark.parametrize("score", ["scaled_dot", "dot", "cosine", "general", "additive", "concat"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("radius", "dilation"), [(0, 1), (1, 1), (2, 1), (2, 3), (20, 1)])
def test_restricted_is_dense_attention_with_a_band_mask(
    radius: int, dilation: int, causal: bool, score: str
) -> None:
    steps, lengths = 9, torch.tensor([9, 5])
    layer = RestrictedSelfAttention(radius, dilation, size=D, score=score, causal=causal).double()
    dense = Attention(score, query_size=D).double()
    dense.load_state_dict(layer.state_dict())
    x = torch.randn(B, steps, D, dtype=torch.float64, requires_grad=True)
    real = torch.arange(steps) < lengths[:, None]
    mask = band(layer, steps).expand(B, -1, -1)
    narrow, wide = (
        layer(x, lengths=lengths, need_weights=True),
        dense(x, x, mask=mask, lengths=lengths, need_weights=True),
    )
    torch.testing.assert_close(narrow.context[real], wide.context[real])
    torch.testing.assert_close(layer(x, lengths=lengths).context[real], wide.context[real])
    positions, exists = layer.pattern.positions(steps, steps)
    of_offsets = wide.weights.gather(-1, positions.clamp(0, steps - 1).expand(B, -1, -1))
    of_offsets = of_offsets.masked_fill(~exists, 0)
    torch.testing.assert_close(narrow.weights[real], of_offsets[real])
    torch.testing.assert_close(layer.weights(x, lengths=lengths), narrow.weights)
    outputs = narrow.context[real], wide.context[real]
    wanted = [(x, *module.parameters()) for module in (layer, dense)]
    gradients = (
        torch.autograd.grad(output.square().sum(), inputs)
        for output, inputs in zip(outputs, wanted, strict=True)
    )
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("score", ["scaled_dot", "general"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("radius", "dilation"), [(1, 1), (2, 1), (2, 3)])
def test_restricted_is_attention_over_the_edges_of_the_band_graph(
    radius: int, dilation: int, causal: bool, score: str
) -> None:
    steps, lengths = 9, torch.tensor([9, 5])
    layer = RestrictedSelfAttention(radius, dilation, size=D, score=score, causal=causal).double()
    x = torch.randn(B, steps, D, dtype=torch.float64, requires_grad=True)
    real = torch.arange(steps) < lengths[:, None]
    pattern = patterns.atrous(dilation, radius, causal)
    nodes = x[real].unsqueeze(1)  # one graph for each sequence, side by side
    by_hand_pairs = (band(layer, 9).nonzero(), band(layer, 5).nonzero() + 9)
    edges = Edges.from_edge_index(torch.cat(by_hand_pairs).T.flip(0), size=14)
    for graph in (edges, pattern.edges(lengths)):
        over_edges = attend(nodes, nodes, nodes, score=layer.score, support=graph).output
        over_window = layer(x, lengths=lengths).context[real]
        torch.testing.assert_close(over_window, over_edges.squeeze(1))
        wanted = [x, *layer.parameters()]
        gradients = (
            torch.autograd.grad(output.square().sum(), wanted, retain_graph=True)
            for output in (over_window, over_edges)
        )
        torch.testing.assert_close(*gradients)


def test_restricted_biases_the_offsets() -> None:
    layer = RestrictedSelfAttention(1, size=D).double()
    x = torch.randn(B, TK, D, dtype=torch.float64)
    bias = torch.randn(B, TK, 3, dtype=torch.float64)
    expected = layer.weights(x) * bias.exp()
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(layer.weights(x, bias=bias), expected)
    context, weights = layer(x, bias=bias, need_weights=True)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(layer(x, bias=bias).context, context)
    torch.testing.assert_close(layer.weights(x, bias=bias[0])[0], expected[0])  # one for all


@pytest.mark.parametrize("score", ["scaled_dot", "additive"])
def test_what_stands_behind_the_lengths_does_not_leak_into_restricted_attention(score: str) -> None:
    layer = RestrictedSelfAttention(2, size=D, score=score).double()
    x = torch.randn(B, TK, D, dtype=torch.float64)
    clean = layer(x, lengths=LENGTHS, need_weights=True)
    x[1, 4:] = math.nan
    x.requires_grad_()
    dirty = layer(x, lengths=LENGTHS, need_weights=True)
    torch.testing.assert_close(dirty, clean)
    torch.testing.assert_close(layer(x, lengths=LENGTHS).context, clean.context)
    for gradient in torch.autograd.grad(dirty.context.square().sum(), [x, *layer.parameters()]):
        assert gradient.isfinite().all()


def test_small_and_empty_batches_of_restricted_attention() -> None:
    layer, x = RestrictedSelfAttention(2, size=D).double(), sequence()
    context, weights = layer(x[:0], need_weights=True)
    assert context.shape == (0, TK, D) and weights.shape == (0, TK, 5)
    context, weights = layer(x[:, :1], need_weights=True)
    torch.testing.assert_close(context, x[:, :1])
    torch.testing.assert_close(weights, tensor(0, 0, 1, 0, 0).expand(B, 1, 5))
    lengths = torch.tensor([0, TK])
    context, weights = layer(x, lengths=lengths, need_weights=True)
    assert (context[0] == 0).all() and (weights[0] == 0).all()
    assert (layer(x, lengths=lengths).context[0] == 0).all()


@pytest.mark.parametrize("score", ["scaled_dot", "additive"])
def test_gradients_of_restricted_attention(score: str) -> None:
    layer = RestrictedSelfAttention(1, 2, size=D, score=score).double()
    x = torch.randn(B, 5, D, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def run(x, bias, *_):
        return layer(x, lengths=torch.tensor([5, 3]), bias=bias).context

    assert torch.autograd.gradcheck(run, (x, bias, *layer.parameters()))


@pytest.mark.parametrize(
    ("x", "change", "error", "message"),
    [
        (torch.zeros(B, D), {}, ValueError, r"x has shape \[2, 4\]; expected \[B, T, Dk\]"),
        (torch.zeros(B, TK, 5), {}, ValueError, r"x has shape \[2, 6, 5\].*of width 4"),
        (torch.zeros(B, TK, D).long(), {}, TypeError, "x has dtype torch.int64"),
        (None, {"lengths": torch.tensor([7, 1])}, ValueError, "lengths has the entry 7"),
        (None, {"lengths": torch.tensor([1])}, ValueError, r"lengths has shape \[1\]"),
        (None, {"lengths": torch.ones(2)}, TypeError, "lengths has dtype torch.float32"),
        (None, {"bias": torch.zeros(5)}, ValueError, r"bias has shape \[5\]; expected \[B, T, W\]"),
        (
            None,
            {"bias": torch.zeros(B, TK, TK)},
            ValueError,
            r"bias has shape \[2, 6, 6\]; expected \[B, T, W\] = \[2, 6, 3\]",
        ),
    ],
)
def test_restricted_attention_refuses(x, change: dict, error, message: str) -> None:
    layer = RestrictedSelfAttention(1, size=D)
    x = torch.zeros(B, TK, D) if x is None else x
    for call in (layer, layer.weights):
        with pytest.raises(error, match=message):
            call(x, **change)


def test_dropout_of_restricted_attention_acts_in_training_alone() -> None:
    layer, ones = RestrictedSelfAttention(4, size=1, dropout=0.5), torch.ones(2, 9, 1)
    assert (layer(ones).context != 1).any()
    torch.testing.assert_close(layer.eval()(ones).context, ones)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RestrictedSelfAttention(-1, size=2), "radius is -1; a window reaches 0"),
        (lambda: RestrictedSelfAttention(1, 0, size=2), "dilation is 0; a step is at least 1"),
        (
            lambda: RestrictedSelfAttention(1, size=2, score="location"),
            "'location', which looks at no key.*'scaled_dot'",
        ),
        (
            lambda: RestrictedSelfAttention(1, score=Location(torch.ones(1, 3, 2))),
            "'location', which looks at no key",
        ),
        (lambda: RestrictedSelfAttention(1, size=0), "query_size is 0"),
    ],
)
def test_constructor_of_restricted_attention_refuses(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
