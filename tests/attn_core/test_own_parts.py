"""A score and a normaliser of one's own: one class each, over every support and in every layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gat
import sequence_attn
from attn_core import (
    Dense,
    Dot,
    Edges,
    Entmax,
    Hard,
    Identity,
    Normalizer,
    PendingEdges,
    ScaledDot,
    Score,
    Softmax,
    Sparsemax,
    Support,
    Window,
    attend,
    backend,
    weights,
)

T, H, D = 6, 2, 4


@dataclass(frozen=True, eq=False)
class Distance(Score, name="distance"):
    """`-width ‖q - k‖²`."""

    width: Tensor

    def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
        assert query is not None
        return -(query - key).square().sum(-1) * self.width

    @classmethod
    def parameter_shapes(
        cls, heads: int, size: int, max_length: int | None
    ) -> dict[str, tuple[int, ...]]:
        return {"width": (heads,)}


class Shares(Normalizer, name="shares"):
    """`softplus(s) / Σ softplus(s)`."""

    def normalize(self, scores: Tensor, rows: Any) -> Tensor:
        positive = F.softplus(scores)
        total = rows.sum(positive)
        return positive / rows.spread(torch.where(total == 0, 1, total))


# Ours are known while the tests of this file run, which the root's conftest sees to
del Score.named["distance"], Normalizer.named["shares"]


@pytest.fixture(autouse=True)
def _named() -> None:
    Score.named["distance"], Normalizer.named["shares"] = Distance, Shares


def band() -> Tensor:
    """Which keys each query sees: those beside it, and itself; the last query sees none."""
    place = torch.arange(T)
    near = (place - place[:, None]).abs() <= 1
    near[-1] = False
    return near


def edge_index() -> Tensor:
    query, key = band().nonzero().T
    return torch.stack([key, query])


SUPPORTS: dict[str, Callable[[], Support]] = {
    "Dense": lambda: Dense(mask=band()),
    "Window": lambda: Window(1),  # the last query sees two keys here
    "Edges": lambda: Edges(edge_index(), T, T),
    "PendingEdges": lambda: PendingEdges(edge_index(), T, T),
}
NORMALIZERS: dict[str, Callable[[], Normalizer]] = {
    "softmax": Softmax,
    "warm softmax": lambda: Softmax(torch.tensor([0.5, 2.0], dtype=torch.float64)),
    "sparsemax": Sparsemax,
    "entmax": Entmax,
    "entmax 1.3": lambda: Entmax(1.3),
    "hard": Hard,
    "identity": Identity,
    "shares": Shares,
}
over_supports = pytest.mark.parametrize("support", SUPPORTS)


def given() -> list[Tensor]:
    """Queries, keys, values and the width of each head."""
    shapes = (T, H, D), (T, H, D), (T, H, D), (H,)
    drawn = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return [x.requires_grad_() for x in (*drawn[:3], 0.1 + drawn[3].detach().abs())]


def in_full(weights: Tensor, support: str) -> Tensor:
    """The weights that `attend` returns, as a matrix `[H, T, T]`."""
    if support == "Dense":
        return weights
    full = weights.new_zeros(H, T, T)
    if support == "Window":
        for query in range(T):
            for offset in range(3):
                if 0 <= (key := query + offset - 1) < T:
                    full[:, query, key] = weights[:, query, offset]
        return full
    key, query = edge_index()
    full[:, query, key] = weights.T
    return full


@over_supports
@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_score_of_ones_own_over_every_support(normalizer: str, support: str) -> None:
    """The output, the weights and all gradients are those of the formula, written out."""
    query, key, value, width = tensors = given()
    result = attend(
        query, key, value, score=Distance(width), normalizer=NORMALIZERS[normalizer](),
        support=SUPPORTS[support](), need_weights=True,
    )  # fmt: skip
    assert result.weights is not None
    mask = band()
    if support == "Window":
        mask[-1, -2:] = True
    q, k, v = (x.movedim(1, 0) for x in (query, key, value))
    logits = -width[:, None, None] * (q[:, :, None] - k[:, None]).square().sum(-1)
    expected_weights = NORMALIZERS[normalizer]().dense(logits, mask)
    expected = (expected_weights @ v).movedim(0, 1)
    torch.testing.assert_close(in_full(result.weights, support), expected_weights)
    torch.testing.assert_close(result.output, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(result.output, tensors, grad, allow_unused=True),
        torch.autograd.grad(expected, tensors, grad, allow_unused=True),
    )


SCORES: dict[str, Callable[[Tensor], Score]] = {
    "distance": Distance,
    "dot": lambda _: Dot(),
    "scaled_dot": lambda _: ScaledDot(),
}


@over_supports
@pytest.mark.parametrize("normalizer", ["softmax", "entmax", "shares"])
@pytest.mark.parametrize("score", SCORES)
def test_every_backend_agrees_with_the_reference(score: str, normalizer: str, support: str) -> None:
    tensors = given()

    def run() -> Any:
        output = attend(
            *tensors[:3], score=SCORES[score](tensors[3]),
            normalizer=NORMALIZERS[normalizer](), support=SUPPORTS[support](),
        ).output  # fmt: skip
        return output, torch.autograd.grad(output.square().sum(), tensors, allow_unused=True)

    found = run()
    with backend("torch"):
        torch.testing.assert_close(run(), found)
    with backend("reference"):
        torch.testing.assert_close(run(), found)


@over_supports
def test_parts_of_ones_own_compile_into_one_graph(support: str) -> None:
    query, key, value, width = given()
    pairs = SUPPORTS[support]()

    def run(query: Tensor, width: Tensor) -> Tensor:
        return attend(
            query, key, value, score=Distance(width), normalizer=Shares(), support=pairs
        ).output

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, expected = compiled(query, width), run(query, width)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), (query, width)),
        torch.autograd.grad(expected.square().sum(), (query, width)),
    )


def _features(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64).flatten().cumsum(0).sin().view(shape)


def _sequence(layer: Any) -> Tensor:
    output: Tensor = layer(_features(2, 5, D))[0]
    return output


def _graph(layer: Any) -> Tensor:
    out = layer(_features(T, D), edge_index())
    output: Tensor = out[0] if isinstance(out, tuple) else out
    return output


# How each is built and called; of the sequence layers, what they own is for one head or several
LAYERS: dict[str, tuple[int, Callable[..., nn.Module], Callable[[Any], Tensor]]] = {
    "Attention": (
        1,
        lambda **parts: sequence_attn.Attention(query_size=D, **parts),
        lambda layer: layer(_features(2, D), _features(2, 5, D)).context,
    ),
    "RestrictedSelfAttention": (
        1,
        lambda **parts: sequence_attn.RestrictedSelfAttention(1, size=D, **parts),
        _sequence,
    ),
    "MultiHead": (
        H,
        lambda **parts: sequence_attn.MultiHead(H, 3, input_size=D, **parts),
        _sequence,
    ),
    "MultiHead, window": (
        H,
        lambda **parts: sequence_attn.MultiHead(H, 3, input_size=D, window=1, **parts),
        _sequence,
    ),
    "TransformerEncoder": (
        H,
        lambda **parts: sequence_attn.TransformerEncoder(1, D, H, dropout=0.0, **parts),
        _sequence,
    ),
    "GraphAttentionConv": (
        H,
        lambda **parts: gat.GraphAttentionConv(D, 3, heads=H, **parts),
        _graph,
    ),
    "GraphAttention": (
        H,
        lambda **parts: gat.GraphAttention(D, 4, 2, 3, heads=H, **parts),
        _graph,
    ),
}


def _made(layer: str, by: str) -> nn.Module:
    heads, build, _ = LAYERS[layer]
    score: Any = "distance" if by == "name" else Distance(nn.Parameter(torch.ones(heads)))
    return build(score=score, normalizer="shares" if by == "name" else Shares())


@pytest.mark.parametrize("by", ["name", "instance"])
@pytest.mark.parametrize("layer", LAYERS)
def test_parts_of_ones_own_in_every_layer(layer: str, by: str) -> None:
    """By name or by instance: parameters of the layer, learned, and the reference's numbers."""
    module, run = _made(layer, by).double(), LAYERS[layer][2]
    learned = dict(module.named_parameters())
    assert any(name.endswith("score_width") for name in learned)

    def gradients() -> tuple[Tensor, Any]:
        output = run(module)
        return output, torch.autograd.grad(
            output.cos().sum(), list(learned.values()), allow_unused=True
        )

    output, found = gradients()
    for name, grad in zip(learned, found, strict=True):
        if name.endswith("score_width"):
            assert grad is not None and grad.abs().sum() > 0, name
    with backend("reference"):
        torch.testing.assert_close(gradients(), (output, found))
    if by == "name":
        other = _made(layer, "name").double()
        other.load_state_dict(module.state_dict())
        torch.testing.assert_close(run(other), output)


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="name is 'dot', which is that of Dot: choose another"):

        class Mine(Score, name="dot"):
            def pair(self, query: Tensor | None, key: Tensor) -> Tensor:
                return key.sum(-1)

    with pytest.raises(ValueError, match="name is 'softmax', which is that of Softmax: choose"):

        class Soft(Normalizer, name="softmax"):
            def normalize(self, scores: Tensor, rows: Any) -> Tensor:
                return scores

    assert Score.named["dot"] is Dot and Normalizer.named["softmax"] is Softmax


X = torch.eye(3)[:, None]
CORE = {"attend": attend, "weights": weights}
EXAMPLE = {
    "score": r"expected one such as ScaledDot\(\)",
    "normalizer": r"expected one such as Softmax\(\)",
    "support": r"expected one such as Dense\(\) or Edges\.from_edge_index\(edge_index\)",
}
WRONG = [
    ("score", "dot", "score is 'dot'"),
    ("score", 3, "score is 3"),
    ("score", Dot, "score is the class Dot, not an instance"),
    ("score", None, "score is a NoneType"),
    ("normalizer", "softmax", "normalizer is 'softmax'"),
    ("normalizer", Softmax, "normalizer is the class Softmax, not an instance"),
    ("normalizer", torch.softmax, "normalizer is a builtin_function_or_method"),
    ("support", torch.tensor([[0], [1]]), r"support is a tensor of shape \[2, 1\]"),
    ("support", Dense, "support is the class Dense, not an instance"),
    ("support", None, "support is a NoneType"),
]


@pytest.mark.parametrize("call", CORE)
@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_the_core_says_what_it_expects(call: str, name: str, value: Any, words: str) -> None:
    arguments = {"score": Dot(), "support": Dense(), name: value}
    tokens = (X, X, X) if call == "attend" else (X, X)
    with pytest.raises(TypeError, match=f"{words}; {EXAMPLE[name]}"):
        CORE[call](*tokens, **arguments)


REFUSED: dict[str, Callable[..., Any]] = {
    name: build for name, (_, build, _) in LAYERS.items() if name != "MultiHead, window"
}


@pytest.mark.parametrize("layer", REFUSED)
def test_layers_say_what_they_expect(layer: str) -> None:
    def build(**parts: Any) -> None:
        REFUSED[layer](**{"score": "dot", "normalizer": "softmax", **parts})

    for name, base, part, known in (
        ("score", Score, Dot, "distance"),
        ("normalizer", Normalizer, Softmax, "shares"),
    ):
        with pytest.raises(TypeError, match=rf"{name} is .*{part.__name__}.*pass an instance"):
            build(**{name: part})
        with pytest.raises(
            TypeError, match=rf"{name} is 3; .*pass an? .*attn_core\.{base.__name__}"
        ):
            build(**{name: 3})
        with pytest.raises(ValueError, match=rf"{name} is 'dotty'; known ones are .*{known}"):
            build(**{name: "dotty"})
