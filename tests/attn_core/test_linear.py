"""Linear maps: the numbers of float64, as far as float32 goes, whichever library multiplies."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attn_core import compiled, linear
from sequence_attn import PositionWise

# Square, tall (whose gradient is one of a convolution), wide, and those below every bound
SHAPES = [
    *[(300, 128, 128), (4500, 64, 24), (4500, 24, 64), (70, 40, 2000), (3, 5, 7), (1, 1, 1)],
    *[(1, 64, 64), (20_000, 16, 9), (20_000, 40, 8)],  # more rows than are summed at once
]
WITHOUT = "no processor on which another library than torch's own is the faster"


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN for all sizes, also on processors on which it is no faster."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(linear, "_LEAST", 1)
    monkeypatch.setattr(linear, "has_faster", lambda: True)


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) + 0.1 for shape in shapes]


def gradients(map_: Callable[..., Tensor], leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in leaves]
    out = map_(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def assert_exact(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 3e-6 * other.abs().max()


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.usefixtures("faster", "threads")
def test_numbers_and_gradients_are_those_of_float64(
    shape: tuple[int, int, int], bias: bool
) -> None:
    rows, inputs, outputs = shape
    x, weight, b, grad = drawn((rows, inputs), (outputs, inputs), (outputs,), (rows, outputs))
    leaves = [x, weight, b][: 2 + bias]
    expected = gradients(F.linear, [one.double() for one in leaves], grad)
    assert_exact(gradients(linear.linear, leaves, grad), expected)


@pytest.mark.usefixtures("faster")
def test_any_number_of_dimensions() -> None:
    x, weight, bias, grad = drawn((2, 3, 5, 8), (6, 8), (6,), (2, 3, 5, 6))
    expected = gradients(F.linear, [x.double(), weight.double(), bias.double()], grad)
    assert_exact(gradients(linear.linear, [x, weight, bias], grad), expected)


@pytest.mark.parametrize("needed", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
@pytest.mark.usefixtures("faster")
def test_gradients_of_some_alone(needed: tuple[int, int, int]) -> None:
    leaves = [
        one.requires_grad_(need > 0)
        for one, need in zip(drawn((40, 8), (6, 8), (6,)), needed, strict=True)
    ]
    asked = [one for one in leaves if one.requires_grad]
    found = torch.autograd.grad(linear.linear(*leaves).sin().sum(), asked)
    torch.testing.assert_close(found, torch.autograd.grad(F.linear(*leaves).sin().sum(), asked))


@pytest.mark.usefixtures("faster")
def test_gradients_that_are_expanded_or_turned() -> None:
    x, weight, bias = drawn((40, 8), (6, 8), (6,))
    for grad in (torch.ones(1, 1).expand(40, 6), torch.randn(6, 40).t()):
        expected = gradients(F.linear, [x.double(), weight.double(), bias.double()], grad)
        assert_exact(gradients(linear.linear, [x, weight, bias], grad), expected)


@pytest.mark.parametrize("rows", [7, 25])  # shorter than a block, and not a multiple of one
@pytest.mark.parametrize("large", [True, False])
def test_gradients_of_gradients(
    rows: int, large: bool, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(linear, "_MANY", 1)
    monkeypatch.setattr(linear, "_BLOCK", 8)
    if large:
        request.getfixturevalue("faster")
    leaves = drawn((rows, 2), (3, 2), (3,))

    def twice(map_: Callable[..., Tensor]) -> list[Tensor]:
        own = [y.clone().requires_grad_() for y in leaves]
        out = map_(*own)
        several = torch.stack([torch.ones_like(out), out.detach()])
        batched = torch.autograd.grad(out, own, several, retain_graph=True, is_grads_batched=True)
        grads = torch.autograd.grad(out.sin().sum(), own, create_graph=True)
        total = sum(g.square().sum() for g in grads)
        return [*batched, *grads, *torch.autograd.grad(total, own)]

    torch.testing.assert_close(twice(linear.linear), twice(F.linear), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mean", [0, 1])
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 16), (64, 96), (96, 8), (96, 2)])
@pytest.mark.usefixtures("threads")
def test_the_gradient_of_a_weight_over_many_rows_is_exact(
    inputs: int, outputs: int, mean: int
) -> None:
    rows = 500_000 + 77  # torch's own float32 product is off by up to 10⁻⁵
    shapes = (rows, inputs), (outputs, inputs), (outputs,), (rows, outputs)
    x, weight, bias, grad = (one - 0.1 + mean for one in drawn(*shapes))
    _, _, of_weight, of_bias = gradients(linear.linear, [x, weight, bias], grad)
    for found, expected in (
        (of_weight, grad.double().t() @ x.double()),
        (of_bias, grad.double().sum(0)),
    ):
        assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize("large", [True, False])
def test_a_weight_may_be_edited_where_x_needs_no_gradient(
    large: bool, request: pytest.FixtureRequest
) -> None:
    if large:
        request.getfixturevalue("faster")
    weight = torch.ones(3, 2, requires_grad=True)
    total = linear.linear(torch.ones(2**15, 2), weight).sum()
    with torch.no_grad():
        weight.zero_()
    total.backward()
    assert weight.grad is not None
    assert (weight.grad == 2**15).all()


@pytest.mark.usefixtures("faster")
def test_what_was_edited_is_found_out() -> None:
    x, weight = drawn((8, 4), (3, 4))
    weight.requires_grad_()
    out = linear.linear(x, weight)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.usefixtures("faster")
def test_what_is_not_served_goes_to_torch() -> None:
    x, weight, bias = drawn((6, 4), (3, 4), (3,))
    expected = F.linear(x, weight, bias)
    # Spread out, of other dtypes, a vector, nothing, under autocast and torch.func
    for spread in (torch.stack([x, x], -1)[..., 0], torch.nn.Parameter(x[:1]).expand(6, 4)):
        found = linear.linear(spread, weight, bias)
        torch.testing.assert_close(found, F.linear(spread, weight, bias))
    for wide in (torch.stack([bias, bias], -1)[..., 0], bias[:1].expand(3)):
        torch.testing.assert_close(linear.linear(x, weight, wide), F.linear(x, weight, wide))
    assert linear.linear(x.double(), weight.double()).dtype == torch.float64
    torch.testing.assert_close(linear.linear(x[0], weight, bias), expected[0])
    assert linear.linear(x[:0], weight, bias).shape == (0, 3)
    assert linear.linear(x[:, :0], weight[:, :0], bias).equal(bias.expand(6, 3))
    assert linear.linear(x, weight[:0]).shape == (6, 0)
    with torch.autocast("cpu"):
        assert linear.linear(x, weight).dtype == torch.bfloat16
    mapped = torch.func.vmap(lambda row: linear.linear(row, weight, bias))(x)
    torch.testing.assert_close(mapped, expected)
    tangent = torch.func.jvp(lambda y: linear.linear(y, weight), (x,), (x,))[1]
    torch.testing.assert_close(tangent, F.linear(x, weight))
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        linear.linear(x, weight[:, :3])


@pytest.mark.filterwarnings("ignore:.*nested:UserWarning")
@pytest.mark.usefixtures("faster")
def test_who_traces_or_nests_it_finds_torchs_own() -> None:
    module = PositionWise(8, 16)
    x = torch.randn(5, 8)
    traced = torch.fx.symbolic_trace(module)
    assert traced(x).equal(module(x))
    nested = module(torch.nested.nested_tensor([x, x[:2]]))
    torch.testing.assert_close(nested.unbind()[1], module(x[:2]))


@pytest.mark.usefixtures("faster")
def test_what_is_no_number_stays_visible() -> None:
    x, weight = drawn((40, 8), (6, 8))
    x[3, 2], x[5, 1] = torch.nan, torch.inf
    torch.testing.assert_close(linear.linear(x, weight), F.linear(x, weight), equal_nan=True)


def test_torch_alone_where_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_is_slow_with_mkl", lambda: True)
    assert linear.has_faster() == (compiled.is_on() and torch.backends.mkldnn.enabled)
    before = compiled.choose("torch")
    try:
        assert not linear.has_faster()
    finally:
        compiled.choose(before)
    if torch.backends.mkldnn.is_available():
        with torch.backends.mkldnn.flags(enabled=False):
            assert not linear.has_faster()


@pytest.mark.skipif(not linear.has_faster(), reason=WITHOUT)
def test_the_faster_library_is_what_large_products_take() -> None:
    x, weight = drawn((1000, 128), (128, 128))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear.linear(x, weight.requires_grad_()).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert "mkldnn::_linear_pointwise" in names
    assert "aten::addmm" not in names and "aten::mm" not in names


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.usefixtures("faster")
def test_a_module_is_called_where_it_is_more_than_its_map() -> None:
    x = torch.randn(5, 4)
    plain, doubled = nn.Linear(4, 3), Doubled(4, 3)
    torch.testing.assert_close(linear.apply(plain, x), plain(x))
    torch.testing.assert_close(linear.apply(doubled, x), doubled(x))
    seen: list[nn.Module] = []
    plain.register_forward_hook(lambda module, *_: seen.append(module))
    linear.apply(plain, x)
    assert seen == [plain]
