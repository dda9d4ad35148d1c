"""What the tests of the graph layers share."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import numpy
import pytest
import torch
import torch_geometric.nn
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch_geometric import EdgeIndex
from torch_geometric.utils import to_torch_coo_tensor, to_torch_csc_tensor, to_torch_csr_tensor

from attn_core import Edges, backend
from gat import GATConv

#: The release of torch_geometric that ours is compared with
PYG = tuple(int(part) for part in torch_geometric.__version__.split(".")[:2])


class Twins(Protocol):
    def __call__(
        self,
        *args: Any,
        dtype: torch.dtype = torch.float64,
        classes: tuple[type, type] = (GATConv, torch_geometric.nn.GATConv),
        **kwargs: Any,
    ) -> tuple[Any, Any]: ...


@pytest.fixture
def twins() -> Twins:
    """Makes our layer and theirs with the same parameters, of which none is zero.

    A `state_dict` goes both ways for it, as it must for whoever comes or goes.
    """

    def make(
        *args: Any,
        dtype: torch.dtype = torch.float64,
        classes: tuple[type, type] = (GATConv, torch_geometric.nn.GATConv),
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        ours, theirs = (cls(*args, **kwargs).to(dtype) for cls in classes)
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.mul_(0.9)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        return ours, theirs

    return make


# --- Ours against theirs --------------------------------------------------------------------------

PATHS = ("fused", "reference", "messages")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
# A duplicate (0 → 1), a self-loop (2), a node without in-edges (4) and an isolated one (5)
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4, 3], [1, 0, 2, 1, 3, 1, 0, 0]])

# name: (edge_dim, shape of edge_attr, add_self_loops, fill_value)
EDGE_OPTIONS: dict[str, tuple[Any, ...]] = {
    "no self-loops": (None, None, False, "mean"),
    "self-loops": (None, None, True, "mean"),
    "edge_attr": (2, (8, 2), False, "mean"),
    "1-D edge_attr": (1, (8,), False, "mean"),
    "1-D edge_attr and self-loops": (1, (8,), True, "mean"),
    "edge_dim without edge_attr": (2, None, True, "mean"),
    **{
        f"self-loops filled with {fill}": (2, (8, 2), True, fill)
        for fill in ("mean", "add", "min", "max", "mul", 0.5, torch.tensor([0.5, -1.0]))
    },
}


def pairwise(*options: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Few rows of the product of options: any two values of two options stand in one of them.

    >>> sorted(pairwise("ab", "cd", "ef"))
    [('a', 'c', 'e'), ('a', 'd', 'f'), ('b', 'c', 'f'), ('b', 'd', 'e')]
    """
    rows = list(itertools.product(*options))
    pairs = [set(itertools.combinations(enumerate(row), 2)) for row in rows]
    left = set().union(*pairs)
    while left:
        best = max(range(len(rows)), key=lambda i: len(pairs[i] & left))
        left -= pairs[best]
        yield rows[best]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to rounding, in proportion to the largest of the numbers that were summed."""
    rtol = TOLERANCE[theirs.dtype]
    largest = max([1.0, *theirs.detach().abs().flatten().tolist()])
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * largest)


def features(nodes: Any, channels: Any, dtype: torch.dtype) -> Any:
    if isinstance(nodes, int):
        return torch.randn(nodes, channels, dtype=dtype)
    channels = channels if isinstance(channels, tuple) else (channels, channels)
    return tuple(
        None if n is None else torch.randn(n, width, dtype=dtype)
        for n, width in zip(nodes, channels, strict=True)
    )


def run(layer: Any, x: Any, edge_index: Any, edge_attr: Any, **given: Any) -> dict[str, Any]:
    """The output, the weights with their edges if the layer gives any, every gradient by name."""

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().clone().requires_grad_()

    x = leaf(x) if isinstance(x, Tensor) else tuple(map(leaf, x))
    edge_attr = leaf(edge_attr)
    if "return_attention_weights" in inspect.signature(layer.forward).parameters:
        given |= {"edge_attr": edge_attr, "return_attention_weights": True}
        out, (pairs, weights) = layer(x, edge_index, **given)
    else:
        out, pairs, weights = layer(x, edge_index, **given), edge_index, torch.ones(0)
    for y in (out, weights):
        if y.requires_grad:  # any gradient will do that is not the same for all entries
            (y * torch.arange(1, y.numel() + 1, dtype=y.dtype).view_as(y).sin()).sum().backward(
                retain_graph=True
            )
    inputs = {"x": x} if isinstance(x, Tensor) else {"x[0]": x[0], "x[1]": x[1]}
    inputs = {**inputs, "edge_attr": edge_attr, **dict(layer.named_parameters())}
    grads = {name: None if tensor is None else tensor.grad for name, tensor in inputs.items()}
    return {"out": out, "pairs": pairs, "weights": weights, "grads": grads}


def assert_parity(
    ours: Any,
    theirs: Any,
    x: Any,
    edge_index: Any,
    edge_attr: Tensor | None = None,
    path: str = "fused",
    **given: Any,
) -> None:
    """The same output, edges in the same order, weights, and gradients."""
    if path == "messages":  # somebody watches
        ours.register_message_forward_hook(lambda *_: None)
    with backend("reference") if path == "reference" else nullcontext():
        a = run(ours, x, edge_index, edge_attr, **given)
    b = run(theirs, x, edge_index, edge_attr, **given)
    assert torch.equal(a["pairs"], b["pairs"])
    assert_same(a["out"], b["out"])
    assert_same(a["weights"], b["weights"])
    for name, (grad, expected) in {n: (a["grads"][n], g) for n, g in b["grads"].items()}.items():
        if grad is None or expected is None:  # a parameter that has no part in the output
            assert all(g is None or not g.any() for g in (grad, expected)), name
        else:
            assert_same(grad, expected)


def assert_same_calls(
    ours: Any,
    theirs: Any,
    call: Callable[..., Any],
    *inputs: Any,
    path: str = "fused",
) -> None:
    """`call(layer, *inputs)` gives the same tensors, and so do all gradients.

    Inputs are trees of tensors, of which those of floating point get gradients; `call` returns any
    tree of tensors. A generator that draws starts from the same seed.
    """
    if path == "messages":
        ours.register_message_forward_hook(lambda *_: None)
    found = []
    for layer in (ours, theirs):
        leaves, tree = tree_flatten(inputs)
        leaves = [
            x.detach().clone().requires_grad_()
            if isinstance(x, Tensor) and x.is_floating_point()
            else x
            for x in leaves
        ]
        layer.zero_grad()
        for seed in (torch.manual_seed, random.seed, numpy.random.seed):
            seed(0)
        with backend("reference") if path == "reference" and layer is ours else nullcontext():
            outputs = [
                y
                for y in tree_leaves(call(layer, *tree_unflatten(leaves, tree)))
                if isinstance(y, Tensor)
            ]
            for y in outputs:
                if y.requires_grad:
                    some = torch.arange(1, y.numel() + 1, dtype=y.dtype).view_as(y).sin()
                    (y * some).sum().backward(retain_graph=True)
        of_inputs = [x.grad for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
        named = dict(layer.named_parameters())
        grads = {**dict(enumerate(of_inputs)), **{n: p.grad for n, p in named.items()}}
        found.append((outputs, grads))
    (outputs, grads), (expected, expected_grads) = found
    assert len(outputs) == len(expected)
    for one, other in zip(outputs, expected, strict=True):
        assert one.dtype == other.dtype
        if one.is_floating_point():
            assert_same(one, other)
        else:
            assert torch.equal(one, other)
    assert grads.keys() == expected_grads.keys()
    for name, other in expected_grads.items():
        one = grads[name]
        if one is None or other is None:  # what has no part in the output
            assert all(g is None or not g.any() for g in (one, other)), name
        else:
            assert_same(one, other)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, int | None, Tensor]:
    """Up to 6 sources, the number of targets (None: the same nodes), and edges in any order."""
    nodes = draw(st.integers(0, 6))
    targets = draw(st.none() | st.integers(0, 6))
    ends = nodes if targets is None else targets
    edge = st.tuples(st.integers(0, max(nodes - 1, 0)), st.integers(0, max(ends - 1, 0)))
    edges = draw(st.lists(edge, max_size=12)) if nodes and ends else []
    return nodes, targets, torch.tensor(edges, dtype=torch.int64).view(-1, 2).t()


def with_options(test: Callable[..., None]) -> Callable[..., None]:
    """Draws what GATConv and GATv2Conv have in common, for `assert_parity_on`."""
    drawn = given(
        graph=graphs(),
        heads=st.integers(1, 3),
        slope=st.sampled_from([0.0, 0.2, 1.5]),
        loops=st.booleans(),
        edge_dim=st.none() | st.integers(1, 2),
        fill=st.sampled_from(["mean", "add", "min", "max", "mul", 2.0]),
        path=st.sampled_from(PATHS),
    )
    return settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)(
        drawn(test)
    )


def assert_parity_on(
    twins: Any,
    graph: tuple[int, int | None, Tensor],
    heads: int,
    slope: float,
    loops: bool,
    edge_dim: int | None,
    fill: Any,
    path: str,
) -> None:
    """The same on a graph, whatever the options."""
    nodes, targets, edge_index = graph
    # Theirs cannot reduce the features of edges to a node that gets no self-loop
    assume(not (loops and edge_dim and isinstance(fill, str)) or (targets or 0) <= nodes)
    in_channels = 2 if targets is None else (2, 3)
    options = {"add_self_loops": loops, "edge_dim": edge_dim, "fill_value": fill}
    ours, theirs = twins(in_channels, 2, heads, negative_slope=slope, **options)
    x = features(nodes if targets is None else (nodes, targets), in_channels, torch.float64)
    edge_attr = None if edge_dim is None else torch.randn(edge_index.shape[1], edge_dim).double()
    assert_parity(ours, theirs, x, edge_index, edge_attr, path)


# --- What an edge_index may be --------------------------------------------------------------------


class SparseTensor:
    """As much of torch_sparse.SparseTensor as the layers use: sorted by row, then column."""

    def __init__(
        self, *, row: Tensor, col: Tensor, value: Tensor | None, sparse_sizes: Any
    ) -> None:
        order = (row * sparse_sizes[1] + col).argsort(stable=True)
        self.row, self.col = row[order], col[order]
        self.value = None if value is None else value[order]
        self.sizes = sparse_sizes

    def coo(self) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.row, self.col, self.value

    def size(self, dim: int) -> int:
        return self.sizes[dim]

    def nnz(self) -> int:
        return len(self.row)

    def device(self) -> torch.device:
        return self.row.device


def sparse_tensor(pairs: Tensor) -> SparseTensor:
    return SparseTensor(row=pairs[1], col=pairs[0], value=None, sparse_sizes=(6, 6))


# Six nodes and no duplicates, which a sparse matrix cannot hold
SIMPLE = torch.tensor([[0, 1, 2, 2, 3, 4], [1, 0, 2, 3, 1, 0]])
KINDS: dict[str, Callable[[Tensor], Any]] = {
    "int64": lambda pairs: pairs,
    "int32": lambda pairs: pairs.int(),
    "not contiguous": lambda pairs: pairs.t().contiguous().t(),
    "EdgeIndex": lambda pairs: EdgeIndex(pairs, sparse_size=(6, 6)),
    "EdgeIndex without a size": lambda pairs: EdgeIndex(pairs),
    "EdgeIndex sorted by row": lambda pairs: EdgeIndex(pairs).sort_by("row")[0],
    "EdgeIndex sorted by column": lambda pairs: EdgeIndex(pairs).sort_by("col")[0],
    "Edges": lambda pairs: Edges.from_edge_index(pairs, size=6),
    "Edges with self-loops": lambda pairs: Edges.from_edge_index(pairs, size=6, self_loops=True),
    "COO": lambda pairs: to_torch_coo_tensor(pairs.flip(0), size=6),
    "COO as it comes": lambda pairs: torch.sparse_coo_tensor(pairs.flip(0), torch.ones(6), (6, 6)),
    "CSR": lambda pairs: to_torch_csr_tensor(pairs.flip(0), size=6),
    "CSC": lambda pairs: to_torch_csc_tensor(pairs.flip(0), size=6),
    "SparseTensor": sparse_tensor,
}
