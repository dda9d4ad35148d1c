"""Aggregations, messages and normalisers of one's own."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

import gat
from attn_core import Bounded, Entmax, Softmax
from sequence_attn import Attention, MultiHead

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])


@pytest.mark.parametrize("concat", [True, False])
@pytest.mark.parametrize("name", ["GATConv", "GATv2Conv", "TransformerConv", "GraphAttentionConv"])
def test_several_aggregations(name: str, concat: bool) -> None:
    """torch_geometric's layers give twice as many rows as there are nodes, or fail in `view`."""
    layer = getattr(gat, name)(4, 3, heads=2, concat=concat, aggr=["sum", "max"])
    with pytest.raises(ValueError, match=rf"aggr is \['sum', 'max'\].* \[2, 6\].* but {name} has"):
        layer(X, EDGES)
    joined = {"aggr": ["sum", "max"], "aggr_kwargs": {"mode": "mean"}}
    layer = getattr(gat, name)(4, 3, heads=2, concat=concat, **joined)
    if name != "GraphAttentionConv":
        theirs = getattr(torch_geometric.nn, name)(4, 3, heads=2, concat=concat, **joined)
        theirs.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(X, EDGES), theirs(X, EDGES))


def test_several_aggregations_of_agnn_widen_its_output() -> None:
    layers = [m.AGNNConv(aggr=["sum", "max"]) for m in (gat, torch_geometric.nn)]
    torch.testing.assert_close(*(layer(X, EDGES) for layer in layers))


class Forgetful(gat.TransformerConv):
    def message(self, value_j: Tensor) -> Tensor:  # type: ignore[override]
        return value_j


def test_a_message_that_leaves_no_weights() -> None:
    layer = Forgetful(4, 3, root_weight=False, bias=False)
    expected = torch.zeros(6, 3).index_add(0, EDGES[1], layer.lin_value(X)[EDGES[0]])
    torch.testing.assert_close(layer(X, EDGES), expected)
    for asked in (True, False, torch.tensor([1])):  # a tuple for False too, as in torch_geometric
        with pytest.raises(ValueError, match=r"message of Forgetful leaves no weights"):
            layer(X, EDGES, return_attention_weights=asked)


LEARNED: dict[str, Any] = {
    "temperature": (lambda start: Softmax(nn.Parameter(torch.tensor(start))), (0.01, 100.0)),
    "alpha": (lambda start: Entmax(nn.Parameter(torch.tensor(start))), (1.01, 4.0)),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", LEARNED)
def test_a_bounded_normaliser_never_stops_training(name: str, sign: int) -> None:
    normalizer, bounds = LEARNED[name]
    layer = gat.GraphAttentionConv(4, 3, normalizer=normalizer(1.5))
    before = layer(X, EDGES)
    parameters = list(layer.parameters())
    register_parametrization(layer, f"normalizer_{name}", Bounded(*bounds))
    torch.testing.assert_close(layer(X, EDGES), before)
    assert {id(p) for p in layer.parameters()} == {id(p) for p in parameters}
    raw = layer.parametrizations[f"normalizer_{name}"].original
    optimizer = torch.optim.SGD([raw], lr=1000.0)
    for _ in range(3):  # steps that would carry the number itself far out of its range
        optimizer.zero_grad()
        out, (_, weights) = layer(X, EDGES, return_attention_weights=True)
        assert out.isfinite().all()
        (sign * weights.square().sum()).backward()
        assert raw.grad is not None and raw.grad.isfinite()
        optimizer.step()
    reached = getattr(layer, f"normalizer_{name}").detach()
    low, high = torch.tensor(bounds)
    assert low <= reached <= high
    assert layer(X, EDGES).isfinite().all()
    torch.testing.assert_close(copy.deepcopy(layer)(X, EDGES), layer(X, EDGES))


LAYERS: dict[str, Any] = {
    "graph": lambda n: (gat.GraphAttentionConv(4, 3, normalizer=n), (X, EDGES)),
    "one score": lambda n: (Attention("dot", n, query_size=4), (X[None], X[None])),
    "many heads": lambda n: (MultiHead(2, 3, input_size=4, normalizer=n), (X[None], X[None])),
}


@pytest.mark.parametrize("far", [-5.0, 0.0, 1e9])
@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_learned_number_out_of_its_range_is_taken_at_the_end_and_led_back(
    kind: str, name: str, far: float
) -> None:
    """The parameter is what its layer saves, whatever the step before it."""
    layer, given = LAYERS[kind](LEARNED[name][0](1.5))
    low, high = layer.normalizer.bounds[name]
    (parameter,) = (p for n, p in layer.named_parameters() if n == f"normalizer_{name}")
    with torch.no_grad():
        parameter.fill_(far)
    at_the_end = getattr(layer.normalizer, name)
    assert at_the_end.item() == pytest.approx(low if far < low else high)
    (at_the_end * 2).backward()
    assert parameter.grad is not None and parameter.grad.item() == 2
    found = layer(*given)
    assert (found if isinstance(found, Tensor) else found[0]).isfinite().all()
    assert layer.state_dict()[f"normalizer_{name}"].item() == far
    assert pickle.loads(pickle.dumps(layer)).state_dict().keys() == layer.state_dict().keys()


def test_bounds_are_checked() -> None:
    for bounds in ((0.0, 1.0), (2.0, 1.0), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="expected 0 < low < high"):
            Bounded(*bounds)
    layer = gat.GraphAttentionConv(4, 3, normalizer=Softmax(nn.Parameter(torch.tensor(0.5))))
    with pytest.raises(ValueError, match=r"the parameter is 0\.5; expected a start between 1 and"):
        register_parametrization(layer, "normalizer_temperature", Bounded(1, 2))


def test_a_bounded_number_is_exact_where_it_starts_and_has_its_gradient() -> None:
    for value in (0.011, 0.5, 1.0, 99.0):
        bounded = Bounded(0.01, 100)
        raw = bounded.right_inverse(torch.tensor(value, dtype=torch.float64)).requires_grad_()
        assert bounded(raw).item() == pytest.approx(value, rel=1e-12)
        assert torch.autograd.gradcheck(bounded, raw)
