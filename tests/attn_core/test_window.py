"""The Window support: the same numbers as a band mask, at the cost of the band alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attn_core import (
    Additive,
    Cosine,
    Dense,
    Edges,
    Entmax,
    General,
    Identity,
    ScaledDot,
    Separable,
    Softmax,
    Sparsemax,
    Window,
    attend,
    backend,
)

F64 = torch.float64
HEADS, WIDTH = 2, 4


def scores() -> dict[str, Any]:
    vector = torch.randn(HEADS, WIDTH, dtype=F64)
    return {
        "scaled dot": ScaledDot(),
        "general": General(torch.randn(HEADS, WIDTH, WIDTH, dtype=F64)),
        "cosine": Cosine(),
        "additive": Additive(vector),
        "separable": Separable(vector, vector + 1),
    }


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, HEADS, WIDTH, dtype=F64, requires_grad=True)


def distances(window: Window, queries: int, keys: int) -> Tensor:
    """Of each key from each query, whose last stands at the last key of its own sequence."""
    ends = torch.tensor(keys) if window.lengths is None or queries == keys else window.lengths
    return torch.arange(keys) - (torch.arange(queries)[:, None] + ends[..., None, None] - queries)


def band(window: Window, queries: int, keys: int) -> Tensor:
    """The mask `[..., Tq, Tk]` that says the same as a window without a centre, by definition."""
    distance = distances(window, queries, keys)
    near = (distance.abs() <= window.radius * window.dilation) & (distance % window.dilation == 0)
    return near & (distance <= 0) if window.causal else near


def along_keys(window: Window, per_offset: Tensor, keys: int) -> Tensor:
    """What lies along the offsets `[..., Tq, W]`, laid along the keys `[..., Tq, Tk]`."""
    queries, columns = per_offset.shape[-2:]
    distance = distances(window, queries, keys)
    distance = distance.unsqueeze(-3) if distance.dim() > 2 else distance
    column = (distance + window.radius * window.dilation).div(
        window.dilation, rounding_mode="floor"
    )
    column = column.clamp(0, columns - 1).expand(*per_offset.shape[:-1], keys)
    return per_offset.gather(-1, column)


windows = st.builds(Window, st.integers(0, 5), st.integers(1, 3), st.booleans())


@pytest.mark.parametrize("normalizer", [Softmax(), Softmax(0.5), Sparsemax(), Entmax(), Identity()])
@pytest.mark.parametrize("score", ["scaled dot", "general", "cosine", "additive", "separable"])
@given(
    window=windows,
    queries=st.integers(1, 70),
    keys=st.integers(1, 70),
    square=st.booleans(),
    batched=st.booleans(),
    biased=st.booleans(),
    data=st.data(),
)
@settings(max_examples=12)
def test_window_is_dense_with_a_band_mask(
    score: str, normalizer: Any, window: Window, queries: int, keys: int, square: bool,
    batched: bool, biased: bool, data: Any,
) -> None:  # fmt: skip
    keys = queries if square else keys
    batch = (2,) if batched else ()
    if batched and data.draw(st.booleans()):
        lengths = torch.tensor(data.draw(st.tuples(st.integers(0, keys), st.integers(0, keys))))
        window = Window(window.radius, window.dilation, window.causal, lengths=lengths)
    query, key, value = tokens(*batch, queries), tokens(*batch, keys), tokens(*batch, keys)
    inputs = [query, key, value]
    if biased:
        inputs.append(torch.randn(*batch, HEADS, queries, window.width, dtype=F64).requires_grad_())
    bias = inputs[3] if biased else None
    match = scores()[score]

    def outcome(support: Any, bias: Tensor | None, name: str, need_weights: bool) -> list[Tensor]:
        with backend(name):
            result = attend(
                query, key, value, score=match, normalizer=normalizer, support=support, bias=bias,
                need_weights=need_weights,
            )  # fmt: skip
        gradients = torch.autograd.grad(result.output.cos().sum(), inputs)
        weights = result.weights
        if weights is None:
            return [result.output, *gradients]
        if isinstance(support, Window):
            exists = band(window, queries, keys).unsqueeze(-3)
            weights = along_keys(window, weights, keys).masked_fill(~exists, 0)
        return [result.output, *gradients, weights]

    dense = Dense(band(window, queries, keys), window.lengths)
    dense_bias = None if bias is None else along_keys(window, bias, keys)
    expected = outcome(dense, dense_bias, "reference", True)
    torch.testing.assert_close(outcome(window, bias, "reference", True), expected)
    torch.testing.assert_close(outcome(window, bias, "auto", False), expected[:-1])


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize(
    "shape", [(1,), (HEADS, 1, 1), (HEADS, 1, 7), (2, 1, 1, 7), (70, 1), (2, HEADS, 70, 7), (70, 7)]
)
def test_a_bias_may_be_shared(shape: tuple[int, ...], step: int) -> None:
    """By batches, heads, queries or offsets: those of ALiBi are one row per head."""
    inputs = [tokens(2, 70) for _ in range(3)]
    bias = torch.randn(shape, dtype=F64).requires_grad_()
    found = []
    for name in ("auto", "reference"):
        with backend(name):
            output = attend(*inputs, score=ScaledDot(), support=Window(3, step), bias=bias).output
        found.append([output, *torch.autograd.grad(output.cos().sum(), [*inputs, bias])])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("queries", [1, 3])
def test_a_step_of_decoding_reads_its_window_alone(queries: int) -> None:
    query, key = torch.randn(queries, HEADS, WIDTH), torch.randn(1000, HEADS, WIDTH)
    window = Window(4, causal=True)
    with Largest() as largest:
        output = attend(query, key, key, score=ScaledDot(), support=window).output
    assert largest.numbers <= key.numel()  # a view of the keys; what is made is smaller
    with backend("reference"):
        expected = attend(query, key, key, score=ScaledDot(), support=window).output
    torch.testing.assert_close(output, expected)


def test_blocks_read_the_keys_where_they_lie() -> None:
    """No padded and no gathered copy: the largest tensor made is the output."""
    inputs = [torch.randn(1, 2048, 2, 8) for _ in range(3)]
    with Largest() as largest:
        attend(*inputs, score=ScaledDot(), support=Window(16))
    assert largest.numbers == inputs[0].numel()


@given(window=windows, nodes=st.integers(1, 40))
def test_window_is_the_band_graph(window: Window, nodes: int) -> None:
    query, key, value = tokens(nodes), tokens(nodes), tokens(nodes)
    target, source = band(window, nodes, nodes).nonzero().T
    graph = Edges.from_edge_index(torch.stack([source, target]), size=nodes)
    ones = torch.ones(HEADS, WIDTH, dtype=F64)
    for score in (ScaledDot(), Separable(ones, ones)):
        on_graph = attend(query, key, value, score=score, support=graph)
        in_window = attend(query, key, value, score=score, support=window)
        torch.testing.assert_close(in_window.output, on_graph.output)
    assert torch.equal(graph.relative_positions(nodes, nodes), source - target)


@pytest.mark.parametrize("block", [1, 5, 32, 100])
def test_the_size_of_a_block_changes_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from attn_core.backends import window as kernel

    query, key, value = tokens(2, 37), tokens(2, 37), tokens(2, 37)
    expected = attend(query, key, value, score=ScaledDot(), support=Window(3, 2)).output
    monkeypatch.setattr(kernel, "BLOCK", block)
    torch.testing.assert_close(
        attend(query, key, value, score=ScaledDot(), support=Window(3, 2)).output, expected
    )


def test_pair_vectors_lie_along_the_offsets() -> None:
    window, query, key, value = Window(1), tokens(5), tokens(5), tokens(5)
    pair_key, pair_value = (torch.randn(5, 3, HEADS, WIDTH, dtype=F64) for _ in range(2))
    result = attend(
        query, key, value, score=ScaledDot(), support=window, pair_key=pair_key,
        pair_value=pair_value, need_weights=True,
    )  # fmt: skip
    at = slice(1, 4)  # what query 2 sees
    logits = ((key[at] + pair_key[2]) * query[2]).sum(-1) / 2
    weights = logits.softmax(0)
    torch.testing.assert_close(result.weights[:, 2], weights.T)
    expected = (weights[..., None] * (value[at] + pair_value[2])).sum(0)
    torch.testing.assert_close(result.output[2], expected)


def test_a_given_centre_moves_the_window() -> None:
    query, key, value = tokens(2, 3), tokens(2, 9), tokens(2, 9)
    centre = torch.tensor([[0, 4, 8], [2, 2, 20]])
    result = attend(query, key, value, score=ScaledDot(), support=Window(2, centre=centre))
    for b in range(2):
        for i in range(3):
            near = (torch.arange(9) - centre[b, i]).abs() <= 2
            alone = attend(
                query[b, i : i + 1],
                key[b, near],
                value[b, near],
                score=ScaledDot(),
                support=Dense(),
            )
            torch.testing.assert_close(result.output[b, i], alone.output[0])
    assert (result.output[1, 2] == 0).all()  # a centre beyond the keys


def test_a_predicted_centre_holds_what_lies_within_the_radius() -> None:
    positions, exists = Window(2, centre=torch.tensor([3.5, 0.2, 4.0])).positions(3, 6)
    found = [row[real].tolist() for row, real in zip(positions, exists, strict=True)]
    assert found == [[2, 3, 4, 5], [0, 1, 2], [2, 3, 4, 5]]


def test_relative_positions() -> None:
    expected = torch.tensor([[-2, 0, 2]]).expand(4, 3)
    assert torch.equal(Window(1, dilation=2).relative_positions(4, 6), expected)
    assert torch.equal(Dense().relative_positions(1, 3), torch.tensor([[-2, -1, 0]]))
    centre = torch.tensor([3, 0])
    relative = Window(1, centre=centre).relative_positions(2, 2)
    assert torch.equal(relative, torch.tensor([[2, 3, 4], [-2, -1, 0]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("need_weights", [True, False])
def test_queries_without_keys_get_zeros(dtype: torch.dtype, need_weights: bool) -> None:
    inputs = [torch.randn(2, 6, 1, 4).to(dtype).requires_grad_() for _ in range(3)]
    window = Window(1, lengths=torch.tensor([0, 2]))
    result = attend(*inputs, score=ScaledDot(), support=window, need_weights=need_weights)
    assert (result.output[0] == 0).all() and (result.output[1, 3:] == 0).all()
    assert (result.output[1, :3] != 0).any(-1).all()
    result.output.float().square().sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 4)
        return result


@pytest.mark.parametrize("length", [512, 4096])
def test_memory_grows_with_the_band_not_with_the_square(length: int) -> None:
    inputs = [torch.randn(1, length, 1, 8, requires_grad=True) for _ in range(3)]
    with Largest() as largest:
        attend(*inputs, score=ScaledDot(), support=Window(4)).output.sum().backward()
    assert largest.numbers < 100 * length < length**2


def test_compiles_for_sequences_of_any_length() -> None:
    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, score=ScaledDot(), support=Window(2, 2)).output

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="eager")
    for length in (70, 101, 250):
        inputs = [tokens(2, length) for _ in range(3)]
        torch.testing.assert_close(compiled(*inputs), run(*inputs))


def test_compiles_and_differentiates() -> None:
    inputs = [tokens(1, 6), tokens(1, 6), tokens(1, 6)]

    def run(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, score=ScaledDot(), support=Window(1, causal=True)).output

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), run(*inputs))
    assert torch.autograd.gradcheck(run, inputs)
    with backend("reference"):
        assert torch.autograd.gradgradcheck(run, inputs)
    direction = tuple(map(torch.randn_like, inputs))
    _, tangent = torch.func.jvp(run, tuple(inputs), direction)
    steps = [1e-6 * x for x in direction]
    further = run(*(x + step for x, step in zip(inputs, steps, strict=True)))
    before = run(*(x - step for x, step in zip(inputs, steps, strict=True)))
    torch.testing.assert_close(tangent, (further - before) / 2e-6, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Window(-1), ValueError, "radius is -1; a window reaches 0 steps or more"),
        (lambda: Window(1, 0), ValueError, "dilation is 0; a step is at least 1"),
        (lambda: Window(1, lengths=torch.ones(2)), TypeError, "lengths has dtype torch.float32"),
        (lambda: Window(1, centre=torch.zeros(2, 5)), ValueError, r"centre has shape \[2, 5\]"),
        (lambda: Window(1, lengths=torch.tensor([1])), ValueError, r"lengths has shape \[1\]"),
        (
            lambda: Window(1, lengths=torch.tensor([1, 5])),
            ValueError,
            "the entry 5; expected 0 to 4",
        ),
        (lambda: Window(1, centre=torch.zeros(4, device="meta")), ValueError, "centre is on meta"),
    ],
)
def test_refuses(make: Any, error: type[Exception], message: str) -> None:
    inputs = [torch.randn(2, 4, 1, 8) for _ in range(3)]
    with pytest.raises(error, match=message):
        attend(*inputs, score=ScaledDot(), support=make())


def test_refuses_a_bias_of_another_layout() -> None:
    inputs = [torch.randn(2, 4, 1, 8) for _ in range(3)]
    with pytest.raises(ValueError, match=r"bias has shape \[4, 4\]; expected \[2, 1, 4, 3\]"):
        attend(*inputs, score=ScaledDot(), support=Window(1), bias=torch.zeros(4, 4))
