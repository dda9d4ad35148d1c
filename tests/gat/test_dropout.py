"""Dropout of features: what torch's does, drawn in another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from attn_core import compiled
from attn_core.dropout import draw_seed, dropout_scale
from gat import Dropout
from gat.dropout import drop

SIZES = [(0,), (1,), (16,), (127,), (128,), (129,), (2049,), (70_001,), (3, 5, 7)]


def defined(x: Tensor, p: float) -> Tensor:
    """Sixteen neighbours in memory are the heads of one edge of attention dropout."""
    edges = torch.arange((x.numel() + 15) // 16)
    scale = dropout_scale(draw_seed(x.device), edges, 16, p).flatten()[: x.numel()]
    return x * scale.view(x.shape).to(x.dtype)


@pytest.mark.skipif(not compiled.is_on(), reason="needs the compiled kernels")
@pytest.mark.parametrize("name", ["avx512", "avx2", "baseline"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_draws_what_attention_dropout_would(
    size: tuple[int, ...], dtype: torch.dtype, name: str
) -> None:
    before, threads = compiled.module.instruction_set(), torch.get_num_threads()
    if not compiled.module.choose_instruction_set(name):
        pytest.skip(f"this machine has no {name}")
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            x = torch.randn(size, dtype=dtype, requires_grad=True)
            found = []
            for function in (drop, defined):
                torch.manual_seed(3)
                out = function(x, 0.6)
                found += [(out, *torch.autograd.grad(out, x, out.detach().cos()))]
            assert all(torch.equal(ours, right) for ours, right in zip(*found, strict=True))
    finally:
        torch.set_num_threads(threads)
        compiled.module.choose_instruction_set(before)


def test_numbers_that_lie_apart_and_their_gradient() -> None:
    x = torch.randn(6, 40)[:, ::2].t().requires_grad_()
    torch.manual_seed(4)
    out = drop(x, 0.5)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad == 0, out == 0) and 0 < (out == 0).sum() < out.numel()


def test_infinite_numbers_stay_and_dropped_ones_are_nan_as_in_torch() -> None:
    torch.manual_seed(5)
    out = drop(torch.full((100,), torch.inf), 0.5)
    assert ((out == torch.inf) | out.isnan()).all() and 0 < out.isnan().sum() < 100


def test_compiled_draws_the_same() -> None:
    x = torch.randn(300, requires_grad=True)
    results = []
    for function in (drop, torch.compile(drop, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(6)
        out = function(x, 0.5)
        results.append((out, *torch.autograd.grad(out.sum(), x)))
    assert all(torch.equal(ours, right) for ours, right in zip(*results, strict=True))


def test_second_derivatives_and_transforms() -> None:
    x = torch.randn(20, dtype=torch.float64, requires_grad=True)

    def smooth(x: Tensor) -> Tensor:
        torch.manual_seed(7)
        return drop(x.sin(), 0.5)

    assert torch.autograd.gradcheck(smooth, x) and torch.autograd.gradgradcheck(smooth, x)
    expected = torch.autograd.functional.jvp(smooth, x, torch.ones_like(x))[1]
    with dual_level():
        tangent = unpack_dual(smooth(make_dual(x, torch.ones_like(x)))).tangent
    torch.testing.assert_close(tangent, expected)
    torch.testing.assert_close(torch.func.jacfwd(smooth, randomness="same")(x).diagonal(), expected)
    many = torch.autograd.grad(smooth(x), x, torch.eye(20, dtype=x.dtype), is_grads_batched=True)[0]
    torch.testing.assert_close(many.sum(0), expected)
    rows = torch.func.vmap(lambda row: drop(row, 0.5), randomness="different")(torch.ones(2, 64))
    assert set(rows.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_drops_the_share_that_was_asked_for_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    out = drop(torch.ones(200_000), p)
    assert set(out.tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    assert (out == 0).float().mean().item() == pytest.approx(p, abs=0.005)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype_and_passes_gradients_to_what_was_kept(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.full((50, 4), 3.0, dtype=dtype, requires_grad=True)
    out = drop(x, 0.5)
    out.sum().backward()
    assert out.dtype == dtype and 0 < (out == 0).sum() < out.numel()
    assert x.grad is not None and torch.equal(x.grad, torch.where(out == 0, 0, 2).to(dtype))


def test_drops_anew_at_each_call_and_alike_from_the_same_seed() -> None:
    x = torch.ones(100)
    torch.manual_seed(2)
    first, second = drop(x, 0.5), drop(x, 0.5)
    torch.manual_seed(2)
    assert torch.equal(drop(x, 0.5), first) and not torch.equal(first, second)


def test_probability_one_leaves_nothing_and_no_nan() -> None:
    x = torch.ones(3, requires_grad=True)
    drop(x, 1.0).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0, 0]


def test_probability_zero_leaves_everything() -> None:
    assert torch.equal(drop(torch.ones(9), 0.0), torch.ones(9))


def test_the_module_is_torchs_by_another_draw() -> None:
    module, x = Dropout(0.5), torch.ones(300, requires_grad=True)
    assert isinstance(module, torch.nn.Dropout) and repr(module) == repr(torch.nn.Dropout(0.5))
    torch.manual_seed(8)
    out = module(x)
    torch.manual_seed(8)
    assert torch.equal(out, drop(x, 0.5))
    assert module.eval()(x) is x and Dropout(0.0)(x) is x
    with pytest.raises(ValueError, match=r"p is 1\.5"):
        Dropout(1.5)


def test_in_place_writes_the_result_and_its_gradient_into_x() -> None:
    leaf = torch.full((200,), 3.0, requires_grad=True)
    x = leaf * 1
    out = Dropout(0.5, inplace=True)(x)
    assert out is x
    (grad,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.equal(grad, torch.where(out == 0, 0.0, 2.0)) and set(out.tolist()) == {0.0, 6.0}


def test_a_sparse_matrix_loses_stored_values_alone() -> None:
    dense = torch.eye(200)
    for x in (dense.to_sparse_csr(), dense.to_sparse_coo(), dense.to_sparse_csc()):
        out = Dropout(0.5)(x).to_dense()
        assert torch.equal(out, torch.diag(out.diagonal()))
        assert set(out.diagonal().tolist()) == {0.0, 2.0}


@pytest.mark.skipif(not compiled.is_on(), reason="needs the compiled kernels")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_drops_what_single_precision_does(dtype: torch.dtype) -> None:
    found = []
    for x in (torch.ones(500), torch.ones(500, dtype=dtype)):
        torch.manual_seed(9)
        found.append(drop(x, 0.5) == 0)
    assert torch.equal(*found)


def test_whole_numbers_are_refused_as_torch_refuses_them() -> None:
    with pytest.raises(RuntimeError, match="can't be cast"):
        drop(torch.ones(100, dtype=torch.int64), 0.5)
