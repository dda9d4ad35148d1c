"""Sparse node features: the numbers of dense ones, at the cost of what is stored."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

import gat
from attn_core.graph.known import _KNOWN
from gat.dropout import drop
from gat.sparse import Linear, SparseDropout, linear

DENSE = torch.tensor(
    [
        [0.0, 2.0, 0.0, 0.0, -1.0],
        [0.0, 0.0, 0.0, 0.0, 0.0],
        [3.0, 0.0, 0.0, 0.5, 0.0],
        [0.0, -4.0, 0.0, 0.0, 1.5],
    ]
)
EDGES = torch.tensor([[0, 1, 2, 0, 3], [1, 0, 3, 3, 3]])
LAYERS = ("GATConv", "GATv2Conv", "TransformerConv", "GraphAttentionConv")


def gradients(module: torch.nn.Module, out: Tensor) -> dict[str, Tensor]:
    grad = torch.arange(float(out.numel()), dtype=out.dtype).view(out.shape).sin()
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(out, list(parameters.values()), grad)
    return dict(zip(parameters, found, strict=True))


def assert_as_dense(module: torch.nn.Module, call: Any, sparse: Tensor, dense: Tensor) -> None:
    expected, out = call(dense), call(sparse)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients(module, out), gradients(module, expected))


# --- The linear map -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [3, 4, 100])  # the kernels take multiples of 4
@pytest.mark.parametrize("bias", [True, False])
def test_maps_as_if_it_were_dense(
    layout: torch.layout, dtype: torch.dtype, bias: bool, width: int
) -> None:
    dense = DENSE.to(dtype)
    module = Linear(5, width, bias=bias).to(dtype)
    assert_as_dense(module, module, dense.to_sparse(layout=layout), dense)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_either_type_of_index(index: torch.dtype) -> None:
    x = DENSE.to_sparse_csr()
    x = torch.sparse_csr_tensor(
        x.crow_indices().to(index), x.col_indices().to(index), x.values(), x.shape
    )
    module = Linear(5, 3)
    assert_as_dense(module, module, x, DENSE)


@pytest.mark.parametrize("shape", [(0, 5), (4, 5), (1, 1)])
def test_nothing_stored(shape: tuple[int, int]) -> None:
    module = Linear(shape[1], 3)
    assert_as_dense(module, module, torch.zeros(shape).to_sparse_csr(), torch.zeros(shape))


def test_unordered_and_repeated_columns() -> None:
    x = torch.sparse_csr_tensor(
        torch.tensor([0, 3, 4]), torch.tensor([2, 0, 2, 1]), torch.tensor([1.0, 2, 3, 4]), (2, 3)
    )
    module = Linear(3, 2)
    assert_as_dense(module, module, x, torch.tensor([[2.0, 0, 4], [0, 4, 0]]))


def test_values_that_lie_apart() -> None:
    spread = torch.zeros(12).index_copy(0, torch.arange(0, 12, 2), DENSE[DENSE != 0])[::2]
    csr = DENSE.to_sparse_csr()
    x = torch.sparse_csr_tensor(csr.crow_indices(), csr.col_indices(), spread, DENSE.shape)
    module = Linear(5, 3)
    assert_as_dense(module, module, x, DENSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((1, 4096), 1.0, dtype=dtype)
    weight = torch.ones(1, 4096, dtype=dtype, requires_grad=True)
    out = linear(x.to_sparse_csr(), weight)
    assert out.dtype == dtype and out.item() == 4096
    out.backward()
    assert weight.grad is not None and weight.grad.dtype == dtype
    assert (weight.grad == 1).all()


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_gives_the_dtype_that_dense_features_give(name: str) -> None:
    layer = getattr(gat, name)(5, 3, heads=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = layer(DENSE.to_sparse_csr(), EDGES), layer(DENSE, EDGES)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_large_matrix_with_a_full_row_and_a_full_column(threads: int) -> None:
    torch.manual_seed(0)
    dense = torch.randn(6_000, 5_000) * (torch.rand(6_000, 5_000) < 0.002)
    dense[7], dense[:, 9] = 1.0, -1.0
    module = Linear(5_000, 8).double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        exact = gradients(module, module(dense.double()))
        out = module.float()(dense.to_sparse_csr())
        torch.testing.assert_close(out, dense @ module.weight.T + module.bias, rtol=1e-4, atol=1e-4)
        found = gradients(module, out)["weight"].double()
    finally:
        torch.set_num_threads(before)
    assert (found - exact["weight"]).norm() < 1e-6 * exact["weight"].norm()


@pytest.mark.parametrize("width", [3, 4])
def test_second_derivatives(width: int) -> None:
    x = DENSE.double().to_sparse_csr()

    def energy(weight: Tensor) -> Tensor:
        return linear(x, weight).tanh()

    weight = torch.randn(width, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(energy, weight)
    assert torch.autograd.gradgradcheck(energy, weight)


@pytest.mark.parametrize("width", [3, 4])
def test_forward_mode_differentiation(width: int) -> None:
    x, (weight, tangent) = DENSE.to_sparse_csr(), torch.randn(2, width, 5)
    with dual_level():
        out = unpack_dual(linear(x, make_dual(weight, tangent)))
        torch.testing.assert_close(out.primal, DENSE @ weight.T)
        torch.testing.assert_close(out.tangent, DENSE @ tangent.T)


@pytest.mark.parametrize("call", [Linear(4, 2), SparseDropout()])
def test_blocks_are_refused(call: Any) -> None:
    with pytest.raises(TypeError, match=r"x has layout torch\.sparse_bsr; give it as"):
        call(torch.eye(4).to_sparse_bsr((2, 2)))


def test_features_that_want_a_gradient_get_it() -> None:
    x = DENSE.to_sparse_csr().requires_grad_()
    weight = torch.randn(2, 5)
    linear(x, weight).sum().backward()
    assert x.grad is not None
    expected = weight.sum(0).expand(4, 5) * (DENSE != 0)
    torch.testing.assert_close(x.grad.to_dense() * (DENSE != 0), expected)


def test_the_transpose_is_found_once_for_features_and_for_what_dropout_makes_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sorts = []
    argsort = torch.argsort
    monkeypatch.setattr(torch, "argsort", lambda *a, **k: sorts.append(1) or argsort(*a, **k))
    x, dropout, module = DENSE.to_sparse_csr(), SparseDropout(0.5), Linear(5, 3)
    for _ in range(3):
        module(dropout(x)).sum().backward()
        module(x).sum().backward()
    assert len(sorts) == 1


def test_an_edit_in_place_is_noticed() -> None:
    x, module = DENSE.to_sparse_csr(), Linear(5, 3)
    gradients(module, module(x))
    x.values().mul_(2)
    assert_as_dense(module, module, x, 2 * DENSE)
    x.col_indices()[0] = 0
    assert_as_dense(module, module, x, x.to_dense())


def test_no_transpose_outlives_its_features() -> None:
    before = len(_KNOWN)
    x, module = DENSE.to_sparse_csr(), Linear(5, 3)
    out = module(SparseDropout(0.5)(x))
    del x
    gc.collect()
    out.sum().backward()  # which needs the features that went
    del out
    gc.collect()
    assert len(_KNOWN) == before


def test_torch_compile() -> None:
    layer = gat.GATConv(5, 3)
    expected = layer(DENSE, EDGES)
    compiled = torch.compile(layer, backend="eager")
    torch.testing.assert_close(compiled(DENSE.to_sparse_csr(), EDGES), expected)


# --- Dropout --------------------------------------------------------------------------------------


def test_drops_stored_values_and_enlarges_the_rest() -> None:
    x = torch.ones(1, 10_000).to_sparse_csr()
    out = SparseDropout(0.6)(x)
    assert out.layout == torch.sparse_csr
    assert set(out.values().tolist()) == {0.0, 2.5}
    assert abs((out.values() == 0).float().mean() - 0.6) < 0.03
    assert (x.values() == 1).all()


def test_draws_what_dense_dropout_draws_for_the_same_values() -> None:
    x = DENSE.to_sparse_csr()
    torch.manual_seed(1)
    out = SparseDropout(0.5)(x)
    torch.manual_seed(1)
    assert torch.equal(out.values(), drop(x.values(), 0.5))


def test_dense_features_are_dropped_too() -> None:
    assert set(SparseDropout(0.5)(torch.ones(1000)).tolist()) == {0.0, 2.0}


def test_outside_training_nothing_changes() -> None:
    x = DENSE.to_sparse_csr()
    assert SparseDropout(0.5).eval()(x) is x
    assert SparseDropout(0.0)(x) is x


def test_gradients_flow_through_dropout() -> None:
    x = DENSE.to_sparse_csr().requires_grad_()
    torch.manual_seed(3)
    out = SparseDropout(0.5)(x)
    linear(out, torch.ones(1, 5)).sum().backward()
    assert x.grad is not None
    dropped = out.detach().to_dense()
    torch.testing.assert_close((x.grad.to_dense() * DENSE), dropped)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_probability_out_of_range_is_told(p: float) -> None:
    with pytest.raises(ValueError) as raised:
        SparseDropout(p)
    assert str(raised.value) == f"p is {p}; a probability lies between 0 and 1"


# --- Layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("lazy", [False, True])
def test_layers_take_sparse_features(name: str, pair: bool, watched: bool, lazy: bool) -> None:
    width = -1 if lazy else 5
    options = {} if name == "TransformerConv" else {"residual": True}
    layer = getattr(gat, name)((width, width) if pair else width, 3, heads=2, **options)
    sparse = DENSE.to_sparse_csr()
    layer((sparse, sparse) if pair else sparse, EDGES)
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    assert_as_dense(layer, lambda x: layer((x, x) if pair else x, EDGES), sparse, DENSE)
    copied = copy.deepcopy(layer)
    x = (sparse, sparse) if pair else sparse
    torch.testing.assert_close(copied(x, EDGES), layer(x, EDGES))


@pytest.mark.parametrize("name", LAYERS)
def test_layers_never_make_features_dense(name: str) -> None:
    """A bag of 200,000 words for each of 200,000 nodes would take 160 GB."""
    num = 200_000
    word = torch.randperm(num)
    x = torch.sparse_csr_tensor(torch.arange(num + 1), word, torch.ones(num), (num, num))
    layer, dropped = getattr(gat, name)(num, 2), SparseDropout()(x)
    layer(dropped, EDGES).sum().backward()
    weights = [p.grad for p in layer.parameters() if p.shape[-1] == num]
    learned = torch.stack([grad.abs().amax(0) for grad in weights if grad is not None]).amax(0) > 0
    assert torch.equal(learned[word], dropped.to_sparse_coo().values() != 0)


def test_wrong_widths_and_dtypes_are_told_as_for_dense_features() -> None:
    with pytest.raises(ValueError, match=r"x has shape \[4, 5\], but GATConv was built with"):
        gat.GATConv(4, 3)(DENSE.to_sparse_csr(), EDGES)
    with pytest.raises(TypeError, match=r"x has dtype torch\.float64, but the parameters"):
        gat.GATConv(5, 3)(DENSE.double().to_sparse_csr(), EDGES)


def test_agnn_says_that_it_cannot_make_features_dense() -> None:
    with pytest.raises(TypeError, match=r"x has layout torch\.sparse_csr, .* give it x\.to_dense"):
        gat.AGNNConv()(DENSE.to_sparse_csr(), EDGES)


# --- Dropout of what nodes hand on ----------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("watched", [False, True])
def test_value_dropout_spares_the_scores(name: str, watched: bool) -> None:
    layer = getattr(gat, name)(5, 3)
    layer.value_dropout = 1.0
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    out, (_, weights) = layer(DENSE, EDGES, return_attention_weights=True)
    skip = layer.lin_skip(DENSE) if name == "TransformerConv" else layer.bias.expand(4, 3)
    torch.testing.assert_close(out, skip)
    layer.eval()
    torch.testing.assert_close(layer(DENSE, EDGES, return_attention_weights=True)[1][1], weights)
    assert not torch.allclose(layer(DENSE, EDGES), out)


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
def test_value_dropout_drops_numbers_of_a_node_for_all_its_edges(flow: str) -> None:
    layer = gat.GATConv(1, 1000, bias=False, add_self_loops=False, flow=flow)
    layer.value_dropout = 0.5
    edges = torch.tensor([[0, 0], [1, 2]])
    out = layer(torch.ones(3, 1), edges if flow == "source_to_target" else edges.flip(0))
    torch.testing.assert_close(out[1], out[2])
    assert 400 < (out[1] == 0).sum() < 600
