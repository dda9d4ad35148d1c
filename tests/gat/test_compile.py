"""The graph layers under torch.compile, torch.func, checkpointing and DDP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

from attn_core import Edges, backend
from attn_core.compat import TORCH
from attn_core.distributed import leave
from attn_core.graph.listing import Listing
from gat import (
    AGNN,
    GAT,
    AGNNConv,
    GATConv,
    GATv2,
    GATv2Conv,
    GraphAttention,
    GraphTransformer,
    TransformerConv,
)

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
MAIN = [GATConv, GATv2Conv, TransformerConv]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def graphs(number: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Graphs that all differ in the numbers of their nodes and edges: x, edge_index, edge_attr."""
    return [
        (torch.randn(n, 4), torch.randint(n, (2, e)), torch.randn(e, 2))
        for n, e in ((10 + 3 * i, 41 + 7 * i) for i in range(number))
    ]


def outcome(layer: Any, module: Any, *inputs: Any) -> list[Tensor]:
    """The output and all gradients of one training step."""
    torch.manual_seed(0)
    module.zero_grad()
    out = layer(*inputs)
    out.float().square().sum().backward()
    return [out, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


VARIANTS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "defaults": (GATConv, (4, 3, 2), {}),
    "dropout": (GATConv, (4, 3, 2), {"dropout": 0.5}),
    "edge features": (GATConv, (4, 3, 2), {"edge_dim": 2}),
    "edge features, filled with the largest": (
        *(GATConv, (4, 3, 2)),
        {"edge_dim": 2, "fill_value": "max"},
    ),
    "averaged heads without self-loops": (
        *(GATConv, (4, 3, 2)),
        {"concat": False, "add_self_loops": False},
    ),
    "autocast": (GATConv, (4, 3, 2), {}),
    "passing messages": (GATConv, (4, 3, 2), {"aggr": "mean", "add_self_loops": False}),
    "GATv2Conv": (GATv2Conv, (4, 3, 2), {"edge_dim": 2, "residual": True, "dropout": 0.5}),
    "TransformerConv": (TransformerConv, (4, 3, 2), {"edge_dim": 2, "beta": True, "dropout": 0.5}),
    "AGNNConv": (AGNNConv, (), {}),
    "AGNNConv, passing messages under autocast": (
        *(AGNNConv, ()),
        {"aggr": "mean", "add_self_loops": False},
    ),
}


@pytest.mark.parametrize(
    ("variant", "fullgraph"), [*((variant, True) for variant in VARIANTS), ("edge features", False)]
)
def test_graphs_of_all_sizes_need_one_recompilation_at_most(
    variant: str, fullgraph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, arguments, options = VARIANTS[variant]
    layer = make(*arguments, **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=fullgraph, backend=counter)
    autocast = torch.autocast("cpu", torch.bfloat16) if "autocast" in variant else nullcontext()
    data = [given if "edge_dim" in options else given[:2] for given in graphs(6)]
    with autocast:
        for inputs in data:
            torch.testing.assert_close(
                outcome(compiled, layer, *inputs), outcome(layer, layer, *inputs)
            )
        assert counter.frame_count <= 2  # more would be recompilations or graph breaks
        sorts = []
        read = Listing.of
        monkeypatch.setattr(Listing, "of", lambda *a: sorts.append(1) or read(*a))
        for inputs in data:
            outcome(compiled, layer, *inputs)
        assert counter.frame_count <= 2
    if "passing messages" not in variant:
        assert not sorts  # these graphs are known
        outcome(compiled, layer, data[0][0], data[0][1].clone(), *data[0][2:])
        assert sorts


def test_the_default_compiler_gives_the_same_numbers() -> None:
    layer = GATConv(4, 3, heads=2)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for x, edge_index, _ in graphs(2):
        torch.testing.assert_close(
            outcome(compiled, layer, x, edge_index), outcome(layer, layer, x, edge_index)
        )


@pytest.mark.parametrize("network", [GAT, GATv2, GraphTransformer, GraphAttention, AGNN])
def test_a_model_is_one_graph(network: Any) -> None:
    options = {} if network is AGNN else {"heads": 2, "edge_dim": 2}
    model = network(4, 6, 2, 2, dropout=0.6, **options)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for x, edge_index, edge_attr in graphs(3):
        inputs = (x, edge_index, None, edge_attr) if options else (x, edge_index)
        torch.testing.assert_close(
            outcome(compiled, model, *inputs), outcome(model, model, *inputs)
        )
    assert counter.frame_count <= 2


# After torch 2.8 fullgraph=True says so itself
@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=TORCH < (2, 9))
@pytest.mark.parametrize(
    ("conv", "edge_dim", "aggr"),
    [
        (GATConv, None, "max"),
        (GATConv, 2, "sum"),
        (GATv2Conv, 2, "sum"),
        (TransformerConv, 2, "sum"),
        (TransformerConv, 2, "max"),
    ],
)
def test_weights_come_out_of_one_graph(conv: Any, edge_dim: int | None, aggr: str) -> None:
    layer = conv(4, 3, heads=2, aggr=aggr, edge_dim=edge_dim)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for x, edge_index, edge_attr in graphs(3):
        inputs = {"edge_attr": edge_attr} if edge_dim else {}
        inputs["return_attention_weights"] = True
        torch.testing.assert_close(
            tuple(compiled(x, edge_index, **inputs)), tuple(layer(x, edge_index, **inputs))
        )


@pytest.mark.parametrize(
    ("conv", "built_with_loops", "edge_dim"),
    [
        (GATConv, True, 2),
        (GATConv, False, None),
        (GATv2Conv, True, None),
        (GATv2Conv, False, 2),
        (TransformerConv, True, None),
        (TransformerConv, False, 2),  # edges with self-loops would lack their features
    ],
)
def test_edges_in_place_of_an_edge_index_compile(
    conv: Any, built_with_loops: bool, edge_dim: int | None
) -> None:
    edges = Edges.from_edge_index(EDGES, size=6, self_loops=built_with_loops)
    layer = conv(4, 3, heads=2, edge_dim=edge_dim, dropout=0.5)
    given = (X, edges) if edge_dim is None else (X, edges, torch.randn(7, edge_dim))
    expected = outcome(layer, layer, *given)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outcome(compiled, layer, *given), expected)


def test_edges_of_other_sizes_need_one_recompilation_at_most() -> None:
    layer = GATConv(4, 3, heads=2)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for x, edge_index, _ in graphs(4):
        edges = Edges.from_edge_index(edge_index, size=len(x), self_loops=True)
        torch.testing.assert_close(
            outcome(compiled, layer, x, edges), outcome(layer, layer, x, edge_index)
        )
    assert counter.frame_count <= 2


@pytest.mark.parametrize("conv", MAIN)
def test_meta_tensors_give_shapes(conv: Any) -> None:
    layer = conv(4, 3, heads=2).to("meta")
    assert layer(X.to("meta"), EDGES.to("meta")).shape == (6, 6)


@pytest.mark.parametrize("conv", MAIN)
def test_compiled_code_sees_edits_and_bad_edges(conv: Any) -> None:
    layer, edge_index = conv(4, 3), EDGES.clone()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(X, edge_index)
    edge_index[0, 0] = 3
    torch.testing.assert_close(compiled(X, edge_index), layer(X, edge_index.clone()))
    edge_index[0, 0] = 6
    with pytest.raises(IndexError, match="node 6 in row 0"):
        compiled(X, edge_index)


@pytest.mark.parametrize("conv", MAIN)
def test_an_edit_between_the_passes_of_compiled_code_is_refused(conv: Any) -> None:
    """As without compilation: else the gradients would be those of another graph."""
    layer, edge_index = conv(4, 3), EDGES.clone()
    loss = torch.compile(layer, fullgraph=True, backend="aot_eager")(X, edge_index).sum()
    edge_index[0, 0] = 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("conv", MAIN)
def test_gradients_with_respect_to_functional_parameters(conv: Any) -> None:
    layer = conv(4, 3, heads=2)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(layer, parameters, (X, EDGES)).square().sum()

    loss(parameters).backward()
    for name, gradient in grad(loss)(parameters).items():
        torch.testing.assert_close(gradient, parameters[name].grad)


@pytest.mark.parametrize("conv", MAIN)
def test_an_ensemble_runs_as_one_vectorised_call(conv: Any) -> None:
    layers = [conv(4, 3, heads=2, edge_dim=2) for _ in range(3)]
    edge_attr = torch.randn(7, 2)
    out = vmap(lambda *state: functional_call(layers[0], state, (X, EDGES, edge_attr)))(
        *stack_module_state(layers)
    )
    torch.testing.assert_close(out, torch.stack([layer(X, EDGES, edge_attr) for layer in layers]))


@pytest.mark.parametrize("conv", MAIN)
def test_forward_mode_gives_the_directional_derivative(conv: Any) -> None:
    layer, x = conv(4, 3, heads=2).double(), X.double()
    direction = torch.ones_like(x)
    _, derivative = jvp(lambda x: layer(x, EDGES), (x,), (direction,))
    step = 1e-6 * direction
    expected = (layer(x + step, EDGES) - layer(x - step, EDGES)) / 2e-6
    torch.testing.assert_close(derivative, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("conv", MAIN)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_draws_the_same_dropout_again(conv: Any, reentrant: bool) -> None:
    layer = conv(4, 3, heads=2, dropout=0.5)
    x = X.clone().requires_grad_()

    def again(x: Tensor, edge_index: Tensor) -> Tensor:
        return checkpoint(layer, x, edge_index, use_reentrant=reentrant)

    plain, recomputed = (outcome(call, layer, x, EDGES) for call in (layer, again))
    torch.testing.assert_close(recomputed, plain)


@pytest.fixture(scope="module")
def process_group() -> Iterator[None]:
    """Of this process alone."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    leave()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("conv", [GATConv, GATv2Conv, TransformerConv, AGNNConv])
def test_trains_under_distributed_data_parallel(conv: Any) -> None:
    layer = AGNNConv() if conv is AGNNConv else conv(4, 3, heads=2)
    expected = outcome(layer, layer, X, EDGES)
    parallel = torch.nn.parallel.DistributedDataParallel(layer)
    torch.testing.assert_close(outcome(parallel, layer, X, EDGES), expected)


def test_autocast_computes_in_bfloat16_close_to_float32() -> None:
    layer = GATConv(4, 3, heads=2, edge_dim=2)
    edge_attr = torch.randn(7, 2)
    exact = layer(X, EDGES, edge_attr)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(X, EDGES, edge_attr)
        with backend("reference"):
            torch.testing.assert_close(layer(X, EDGES, edge_attr), out, rtol=0.02, atol=0.02)
    torch.testing.assert_close(out.float(), exact, rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert layer.lin.weight.grad.dtype == torch.float32
