"""What differs from torch_geometric on purpose: the rows of the table in docs/compatibility.md.

Both sides are tested. Where theirs has changed, the row has to.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.explain.algorithm.utils import set_masks
from torch_geometric.utils import to_torch_csc_tensor, to_torch_csr_tensor

import gat

EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4, 3], [1, 0, 2, 1, 3, 1, 0, 0]])
SIMPLE = torch.tensor([[0, 0, 1, 1, 2, 3], [1, 4, 0, 3, 2, 2]])  # as in a matrix, rows are targets
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
MAIN = ["GATConv", "GATv2Conv", "TransformerConv"]
LOOPED = MAIN[:2]


@pytest.fixture(params=MAIN)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def pair(name: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """Ours and theirs, with the same parameters."""
    ours, theirs = (getattr(m, name)(*arguments, **options) for m in (gat, torch_geometric.nn))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def without_loops(name: str) -> dict[str, Any]:
    return {} if name == "TransformerConv" else {"add_self_loops": False}


def test_weights_before_dropout(name: str) -> None:
    ours, theirs = (
        layer(X, EDGES, return_attention_weights=True)[1][1]
        for layer in pair(name, 4, 3, 8, dropout=0.9)
    )
    assert ours.all()
    assert theirs.all() == (name == "TransformerConv")


@pytest.mark.parametrize("name", [*MAIN, "AGNNConv"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_hub_of_70_000_edges_that_score_alike(name: str, dtype: torch.dtype) -> None:
    """The divisor of their softmax is infinite in float16, so that they give 0."""
    arguments = () if name == "AGNNConv" else (2, 4, 2)
    nodes = 70_000
    edge_index = torch.stack([torch.arange(nodes), torch.zeros(nodes, dtype=torch.int64)])
    options = {} if name == "AGNNConv" else {"bias": False}
    ours, theirs = (layer.to(dtype) for layer in pair(name, *arguments, **options))
    x = torch.ones(nodes, 2, dtype=dtype)
    expected = ours(x[:1], edge_index[:, :1])[0]  # the mean of what is the same
    torch.testing.assert_close(ours(x, edge_index)[0], expected)
    skipped = theirs.lin_skip(x)[0] if name == "TransformerConv" else 0
    found = theirs(x, edge_index)[0] - skipped
    assert torch.allclose(found, torch.zeros_like(found), atol=1e-2) == (dtype == torch.float16)


def test_all_scores_minus_infinity(name: str) -> None:
    if name == "TransformerConv":
        layers = pair(name, 4, 3, root_weight=False)
        for layer in layers:
            torch.nn.init.constant_(layer.lin_key.bias, -math.inf)
            torch.nn.init.zeros_(layer.lin_query.weight)
            torch.nn.init.ones_(layer.lin_query.bias)
        given: tuple[Any, ...] = X, EDGES
    else:
        layers = pair(name, 4, 3, edge_dim=1, add_self_loops=False, bias=False)
        for layer in layers:
            torch.nn.init.ones_(layer.lin_edge.weight)
            torch.nn.init.ones_(layer.att if name == "GATv2Conv" else layer.att_edge)
        given = X, EDGES, torch.full((8,), -math.inf)
    ours, theirs = (layer(*given) for layer in layers)
    assert torch.equal(ours, torch.zeros_like(ours))
    assert theirs[EDGES[1]].isnan().all()


@pytest.mark.filterwarnings("ignore:edge_attr of shape:UserWarning")
def test_edge_attr_without_edge_dim(name: str) -> None:
    ours, theirs = pair(name, 4, 3, 2)
    edge_attr = torch.ones(8, 2)
    torch.testing.assert_close(ours(X, EDGES, edge_attr), ours(X, EDGES))
    if name == "GATConv":
        torch.testing.assert_close(theirs(X, EDGES, edge_attr), theirs(X, EDGES))
    elif name == "GATv2Conv":
        with pytest.raises(AssertionError, match=r"^$"):
            theirs(X, EDGES, edge_attr)
    else:
        with pytest.raises(RuntimeError, match="size of tensor"):
            theirs(X, EDGES, edge_attr)
        wide = torch.ones(8, 1, 3)
        assert not torch.allclose(theirs(X, EDGES, wide), theirs(X, EDGES))


@pytest.mark.filterwarnings("ignore:edge_attr is None:UserWarning")
def test_edge_dim_without_edge_attr(name: str) -> None:
    ours, theirs = pair(name, 4, 3, 2, edge_dim=2)
    expected = ours(X, EDGES, torch.zeros(8, 2))
    torch.testing.assert_close(ours(X, EDGES), expected)
    if name == "TransformerConv":
        with pytest.raises(AssertionError, match=r"^$"):
            theirs(X, EDGES)
    else:
        torch.testing.assert_close(theirs(X, EDGES), expected)


def test_edge_attr_of_one_dimension(name: str) -> None:
    ours, theirs = pair(name, 4, 3, 2, edge_dim=1)
    flat = torch.randn(8)
    torch.testing.assert_close(ours(X, EDGES, flat), ours(X, EDGES, flat[:, None]))
    if name == "TransformerConv":
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            theirs(X, EDGES, flat)
    else:
        torch.testing.assert_close(theirs(X, EDGES, flat), ours(X, EDGES, flat))


def test_targets_without_features(name: str) -> None:
    ours, theirs = pair(name, (4, 4), 3, 2)
    if name == "GATConv":
        torch.testing.assert_close(ours((X, None), EDGES), theirs((X, None), EDGES))
        return
    with pytest.raises(ValueError, match=r"^x\[1\] is None; "):
        ours((X, None), EDGES)
    with pytest.raises((AssertionError, TypeError)):
        theirs((X, None), EDGES)


def test_an_edge_index_sorted_by_column(name: str) -> None:
    edge_index = EdgeIndex(EDGES, sparse_size=(6, 6)).sort_by("col")[0]
    _, theirs = pair(name, 4, 3)
    _, (pairs, _) = theirs(X, edge_index, return_attention_weights=True)
    assert pairs.sort_order is None if name in LOOPED else pairs.is_sorted_by_col


def test_a_sorted_edge_index_without_a_size(name: str) -> None:
    edge_index = EdgeIndex(EDGES).sort_by("col")[0]  # the last node is isolated
    ours, theirs = pair(name, 4, 3)
    expected = ours(X, edge_index.as_tensor())
    torch.testing.assert_close(ours(X, edge_index), expected)
    if name == "TransformerConv":
        with pytest.raises(ValueError, match="expected size 4"):
            theirs(X, edge_index)
    else:
        torch.testing.assert_close(theirs(X, edge_index), expected)


def test_dtypes_under_autocast(name: str) -> None:
    given = X, EDGES, None
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (layer(*given, return_attention_weights=True) for layer in pair(name, 4, 3))
    assert {ours[0].dtype, ours[1][1].dtype} == {torch.bfloat16}
    assert {theirs[0].dtype, theirs[1][1].dtype} == {
        torch.bfloat16 if name == "TransformerConv" else torch.float32
    }


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8])
def test_small_integers_as_edges(name: str, dtype: torch.dtype) -> None:
    ours, theirs = pair(name, 4, 3, **without_loops(name))
    with pytest.raises(TypeError, match=r"^edge_index has dtype torch\.u?int\d+.*\.long\(\)"):
        ours(X, EDGES.to(dtype))
    with pytest.raises(RuntimeError, match="Expected dtype int32 or int64"):
        theirs(X, EDGES.to(dtype))


def matrices() -> dict[str, tuple[Tensor, Tensor | None]]:
    uncoalesced = torch.sparse_coo_tensor(SIMPLE, torch.ones(6), (6, 6))
    return {
        "CSC": (to_torch_csc_tensor(SIMPLE, size=6), None),
        "uncoalesced COO": (uncoalesced, None),
        "edge_attr beside a matrix": (to_torch_csr_tensor(SIMPLE, size=6), torch.randn(6, 2)),
    }


@pytest.mark.parametrize("kind", matrices())
def test_matrices_that_only_ours_takes(name: str, kind: str) -> None:
    matrix, edge_attr = matrices()[kind]
    options = {} if edge_attr is None else {"edge_dim": 2}
    ours, theirs = pair(name, 4, 3, **options)
    expected = ours(X, SIMPLE.flip(0), edge_attr)
    torch.testing.assert_close(ours(X, matrix, edge_attr), expected)
    if kind == ("uncoalesced COO" if name in LOOPED else "edge_attr beside a matrix"):
        torch.testing.assert_close(theirs(X, matrix, edge_attr), expected)
    else:
        with pytest.raises((ValueError, RuntimeError, AssertionError)):
            theirs(X, matrix, edge_attr)


@pytest.mark.parametrize("name", LOOPED)
def test_features_of_self_loops_where_targets_are_more_than_sources(name: str) -> None:
    ours, theirs = pair(name, (4, 4), 3, edge_dim=2)
    edge_index, edge_attr = torch.tensor([[0], [5]]), torch.ones(1, 2)
    assert ours((X[:5], X), edge_index, edge_attr).isfinite().all()
    with pytest.raises(RuntimeError, match="out of bounds"):
        theirs((X[:5], X), edge_index, edge_attr)


BAD: dict[str, tuple[Any, str]] = {
    "features too wide": (lambda layer: layer(X.repeat(1, 2), EDGES), "x has shape"),
    "edges turned": (lambda layer: layer(X, EDGES.t()), "edge_index has shape"),
    "no features": (lambda layer: layer(None, EDGES), "x is a NoneType"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(name: str, case: str) -> None:
    call, named = BAD[case]
    ours, theirs = pair(name, 4, 3)
    with pytest.raises((TypeError, ValueError), match=f"^{named}"):
        call(ours)
    with pytest.raises((ValueError, RuntimeError, TypeError, AttributeError)) as raised:
        call(theirs)
    assert not str(raised.value).startswith(named)


def test_no_heads(name: str) -> None:
    with pytest.raises(ValueError, match=r"^heads is 0"):
        getattr(gat, name)(4, 3, heads=0)
    getattr(torch_geometric.nn, name)(4, 3, heads=0)


def test_agnn_in_float16() -> None:
    ours, theirs = pair("AGNNConv")
    x = X.half().index_fill(0, torch.tensor([0]), 0)
    assert (ours(x, EDGES).dtype, theirs(x, EDGES).dtype) == (torch.float16, torch.float32)
    expected = theirs(x.float(), EDGES)
    ours, theirs = ours.half(), theirs.half()
    torch.testing.assert_close(ours(x, EDGES).float(), expected, rtol=1e-2, atol=1e-2)
    assert theirs(x, EDGES)[0].isnan().all()


def test_masks_of_explainers_in_a_subclass_of_a_layer_that_was_built_before(name: str) -> None:
    masked = []
    for module in (gat, torch_geometric.nn):
        parent: Any = getattr(module, name)
        parent(4, 3)
        layer = type(f"{module.__name__.replace('.', '')}Sub{name}", (parent,), {})(4, 3)
        before = layer(X, EDGES)
        set_masks(layer, torch.linspace(-2, 2, 8), EDGES)
        masked.append(not torch.allclose(layer(X, EDGES), before))
    assert masked == [True, False]
