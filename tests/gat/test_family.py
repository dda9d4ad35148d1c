"""What holds for every layer that inherits torch_geometric's parameters: one list of them all."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

import gat
from attn_core.compat import TORCH
from gat import attention_weights, replace
from gat.conv.base import AttentionConv
from tests.gat import test_export
from tests.gat.test_hgt_conv import METADATA

THEIRS = torch_geometric.nn
RELATIONS = 3


class Case(NamedTuple):
    """A layer and how it is called on a graph."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    call: Callable[[int, int], tuple[Any, ...]]

    def ours(self) -> Any:
        return getattr(gat, self.name)(*self.arguments, **self.options)

    def theirs(self) -> Any:
        return getattr(THEIRS, self.name)(*self.arguments, **self.options)


def homogeneous(nodes: int, edges: int) -> tuple[Any, ...]:
    return torch.randn(nodes, 4), torch.randint(nodes, (2, edges))


def with_first_features(nodes: int, edges: int) -> tuple[Any, ...]:
    x, edge_index = homogeneous(nodes, edges)
    return x, torch.randn(nodes, 4), edge_index


def with_relations(nodes: int, edges: int) -> tuple[Any, ...]:
    return *homogeneous(nodes, edges), torch.randint(RELATIONS, (edges,))


def with_edge_attr(nodes: int, edges: int) -> tuple[Any, ...]:
    return *homogeneous(nodes, edges), torch.randn(edges, 2)


def of_hyperedges(nodes: int, edges: int) -> tuple[Any, ...]:
    x, edge_index = homogeneous(nodes, edges)
    return x, edge_index, None, torch.randn(nodes, 4)


def of_types(nodes: int, edges: int) -> tuple[Any, ...]:
    sizes = {"author": nodes, "paper": nodes + 2, "venue": nodes - 1}
    pairs = {
        (source, name, target): torch.stack(
            [torch.randint(sizes[source], (edges + i,)), torch.randint(sizes[target], (edges + i,))]
        )
        for i, (source, name, target) in enumerate(METADATA[1])
    }
    return {name: torch.randn(n, 4) for name, n in sizes.items()}, pairs


def of_matrices(nodes: int, edges: int) -> tuple[Any, ...]:
    return torch.randn(2, nodes, 4), (torch.rand(2, nodes, nodes) < 0.3).float()


CASES = {
    "SuperGATConv, MX": Case("SuperGATConv", (4, 3, 2), {}, homogeneous),
    "SuperGATConv, SD": Case("SuperGATConv", (4, 3, 2), {"attention_type": "SD"}, homogeneous),
    "FAConv": Case("FAConv", (4,), {}, with_first_features),
    "RGATConv": Case("RGATConv", (4, 3, RELATIONS), {"heads": 2}, with_relations),
    "RGATConv, multiplicative, within": Case(
        "RGATConv",
        (4, 3, RELATIONS),
        {
            **{"attention_mode": "multiplicative-self-attention", "dim": 2, "heads": 2},
            **{"attention_mechanism": "within-relation", "mod": "f-additive", "num_bases": 2},
        },
        with_relations,
    ),
    "HGTConv": Case("HGTConv", (4, 4, METADATA, 2), {}, of_types),
    "HANConv": Case("HANConv", (4, 4, METADATA, 2), {}, of_types),
    "DenseGATConv": Case("DenseGATConv", (4, 3, 2), {}, of_matrices),
    "GPSConv": Case("GPSConv", (4, None, 2), {"norm": "layer_norm"}, homogeneous),
    "HypergraphConv": Case("HypergraphConv", (4, 3, True, "node", 2), {}, of_hyperedges),
    "GeneralConv": Case(
        *("GeneralConv", (4, 3, 2)),
        {"heads": 2, "attention": True, "directed_msg": False},
        with_edge_attr,
    ),
    "GeneralConv, dot product": Case(
        "GeneralConv", (4, 3), {"attention": True, "attention_type": "dot_product"}, homogeneous
    ),
}
EVERY = pytest.mark.parametrize("name", CASES)
TOLD = [n for n, case in CASES.items() if issubclass(getattr(gat, case.name), AttentionConv)]
ON_EDGES = [n for n in TOLD if CASES[n].call is not of_types and "Hyper" not in n]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors(found: Any) -> list[Tensor]:
    return [x for x in tree_leaves(found) if isinstance(x, Tensor)]


def outcome(layer: Any, module: nn.Module, inputs: Any) -> list[Tensor]:
    """What comes out, and all gradients."""
    module.zero_grad()
    found = tensors(layer(*inputs))
    torch.stack([(y * y.detach().sin()).sum() for y in found]).sum().backward()
    return [*found, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@EVERY
def test_graphs_of_all_sizes_need_one_recompilation_at_most(name: str) -> None:
    case = CASES[name]
    layer = case.ours().eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for i in range(3):
        inputs = case.call(10 + 3 * i, 41 + 7 * i)
        expected = outcome(layer, layer, inputs)
        torch.testing.assert_close(outcome(compiled, layer, inputs), expected)
    assert counter.frame_count <= 2


class OfList(nn.Module):
    """A layer called with a list: torch.export names no sizes in dictionaries of types of edges."""

    def __init__(self, layer: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.layer = layer
        _, self.form = tree_flatten(inputs)

    def forward(self, given: list[Any]) -> Any:
        return self.layer(*tree_unflatten(given, self.form))


def to_export(name: str, *sizes: tuple[int, int]) -> tuple[Any, ...]:
    case = CASES[name]
    layer, inputs = case.ours().eval(), [case.call(*each) for each in sizes]
    if case.call is not of_types:
        return layer, *((each, {}) for each in inputs)
    return OfList(layer, inputs[0]), *(((tree_leaves(each),), {}) for each in inputs)


@EVERY
def test_exports_with_any_number_of_nodes_and_edges(name: str, check_export: Any) -> None:
    if name == "HGTConv" and TORCH == (2, 6):
        pytest.skip("torch 2.6 cannot export what reads a ParameterDict")
    check_export(*to_export(name, (10, 41), (13, 48), (5, 3)))


@EVERY
def test_onnxruntime_gives_the_same(name: str, check_onnx: Any) -> None:
    check_onnx(*to_export(name, (10, 41), (13, 48)))


def test_every_public_module_is_exported() -> None:
    made = [make() for make, *_ in test_export.CASES.values()]
    made += [case.ours() for case in CASES.values()]
    exported = {type(module) for each in made for module in each.modules()}
    public = {x for x in vars(gat).values() if isinstance(x, type) and issubclass(x, nn.Module)}
    # Of dropout, an exported program for use has nothing
    assert public - exported <= {gat.Dropout, gat.SparseDropout}


@EVERY
def test_a_layer_becomes_ours_and_computes_the_same(name: str) -> None:
    case = CASES[name]
    layer, ours = case.theirs().double().eval(), getattr(gat, case.name)
    inputs = tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x,
        case.call(10, 41),
    )
    if case.name == "DenseGATConv":
        inputs[1].fill_(1)
    expected, state, printed = outcome(layer, layer, inputs), layer.state_dict(), repr(layer)
    parameters = list(layer.parameters())
    report = replace(layer)
    assert report.replaced == {"": case.name} and not report.left
    assert type(layer) is ours and repr(layer) == printed and not layer.training
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))
    torch.testing.assert_close(outcome(layer, layer, inputs), expected, rtol=1e-10, atol=1e-10)
    if isinstance(layer, AttentionConv):
        assert layer._is_fused()
    built = case.ours().double().eval()
    built.load_state_dict(state, strict=True)
    assert built.__dict__.keys() == layer.__dict__.keys()
    for again in (built, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(outcome(again, again, inputs), expected, rtol=1e-9, atol=1e-9)
    assert replace(layer).left == {"": f"{case.name}: is gat's already"}


@pytest.mark.parametrize("name", TOLD)
def test_torch_geometrics_name_may_stand_for_ours(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a program does whose code is not to change."""
    case = CASES[name]
    layer, inputs = case.ours().eval(), case.call(10, 41)
    expected = layer(*inputs, return_attention_weights=True)
    monkeypatch.setattr(THEIRS, case.name, getattr(gat, case.name))
    steps: list[str] = []
    layer.register_message_forward_hook(lambda *_: steps.append("message"))
    found = layer(*inputs, return_attention_weights=True)
    torch.testing.assert_close(tensors(found), tensors(expected))
    assert steps


@pytest.mark.parametrize("name", TOLD)
def test_a_layer_in_a_model_tells_what_it_attends_to(name: str) -> None:
    case = CASES[name]
    model, inputs = nn.ModuleDict({"conv": case.ours().eval()}), case.call(10, 41)
    model.forward = lambda *given: model["conv"](*given)  # type: ignore[method-assign]
    expected = model(*inputs)
    found = attention_weights(model, *inputs)
    assert {layer.name for layer in found} == {"conv"}
    if case.call is of_types:
        assert [layer.edge_type for layer in found] == METADATA[1]
        pairs = inputs[1]
        assert all(torch.equal(layer.edge_index, pairs[layer.edge_type]) for layer in found)
        assert "edge_type=('author', 'writes', 'paper')" in repr(found[0])
    else:
        assert len(found) == 1 and found[0].edge_type is None
    if case.name not in ("FAConv", "HGTConv") and "within" not in name:  # not a softmax of all
        for layer in found:
            totals = layer.to_dense().sum(-1)
            has = torch.isin(torch.arange(layer.size[1]), layer.edge_index[1]).to(totals.dtype)
            torch.testing.assert_close(totals, has.expand_as(totals))
    torch.testing.assert_close(tensors(model(*inputs)), tensors(expected))  # nothing is left
    if case.call is not of_types:
        nodes = torch.tensor([2, 5])
        (some,) = attention_weights(model, *inputs, nodes=nodes)
        kept = torch.isin(found[0].edge_index[1], nodes)
        assert torch.equal(some.edge_index, found[0].edge_index[:, kept])
        torch.testing.assert_close(some.weights, found[0].weights[kept])


@pytest.mark.parametrize("name", ON_EDGES)
def test_explainers_find_the_same_masks(name: str) -> None:
    case, masks = CASES[name], []
    ours, theirs = case.ours().double(), case.theirs().double()
    ours.load_state_dict(theirs.state_dict())
    x, *rest = (y.double() if y.is_floating_point() else y for y in case.call(6, 15))
    edge_index = rest[1] if case.name == "FAConv" else rest[0]

    class Net(nn.Module):
        def __init__(self, conv: nn.Module) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            others = [edge_index if y is given else y for y in rest]
            return self.conv(x, *others)

    given = edge_index
    for layer in (ours, theirs):
        torch.manual_seed(0)
        config = {"mode": "multiclass_classification", "task_level": "node", "return_type": "raw"}
        explainer = Explainer(
            Net(layer).eval(), GNNExplainer(epochs=3), explanation_type="model",
            edge_mask_type="object", node_mask_type="attributes", model_config=config,
        )  # fmt: skip
        masks.append(explainer(x, edge_index, index=1).edge_mask)
    torch.testing.assert_close(masks[0], masks[1], rtol=1e-8, atol=1e-8)
    assert masks[0].any()
    before = ours(x, *rest)
    set_masks(ours, torch.linspace(-2, 2, 15, dtype=torch.float64), edge_index)
    assert not torch.allclose(ours(x, *rest), before)
    clear_masks(ours)
    torch.testing.assert_close(ours(x, *rest), before)


@EVERY
def test_autocast_gives_one_dtype_throughout(name: str) -> None:
    case = CASES[name]
    layer, inputs = case.ours().eval(), case.call(10, 41)
    exact = tensors(layer(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        found = tensors(layer(*inputs))
    for out, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)
    torch.stack([y.float().sum() for y in found]).sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters() if p.grad is not None)


@EVERY
def test_half_precision_is_close(name: str) -> None:
    case = CASES[name]
    layer, inputs = case.ours().eval(), case.call(10, 41)
    exact = tensors(layer(*inputs))
    half = tree_map(
        lambda x: x.bfloat16() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )
    found = tensors(layer.bfloat16()(*half))
    for out, expected in zip(found, exact, strict=True):
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1)


def test_a_whole_model_of_these_is_saved_and_read_again() -> None:
    model = nn.ModuleList([case.ours() for case in CASES.values()])
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    read = nn.ModuleList([case.theirs() for case in CASES.values()])
    read.load_state_dict(torch.load(file))
    torch.testing.assert_close(read.state_dict(), model.state_dict(), rtol=0, atol=0)


def test_no_layer_is_left_uncompiled() -> None:
    exported = (getattr(gat, name) for name in gat.__all__)
    layers = {x.__name__ for x in exported if isinstance(x, type) and issubclass(x, nn.Module)}
    in_test_compile = {"GATConv", "GATv2Conv", "TransformerConv", "AGNNConv"}
    in_test_compile |= {"GAT", "GATv2", "GraphTransformer", "GraphAttention", "AGNN"}
    in_files_of_their_own = {"GraphAttentionConv", "Dropout", "SparseDropout"}
    here = {case.name for case in CASES.values()}
    assert layers == here | in_test_compile | in_files_of_their_own
