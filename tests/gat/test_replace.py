"""Our layers in the place of torch_geometric's, inside models that are there already."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor, nn
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.nn import GCNConv, HeteroConv, Sequential, to_hetero

import gat
from gat import Replacement, attention_weights, replace
from gat.conv.base import AttentionConv

THEIRS = torch_geometric.nn
NAMES = ["GATConv", "GATv2Conv", "TransformerConv", "AGNNConv"]
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
EDGE_ATTR = torch.randn(7, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "GATConv": [
        {},
        {"heads": 2, "concat": False, "edge_dim": 2, "residual": True, "bias": False},
        {"edge_dim": 2, "fill_value": None},
        {"edge_dim": 2, "fill_value": "max", "negative_slope": 0.4},
        {"add_self_loops": False, "aggr": "mean"},
        {"flow": "target_to_source"},
    ],
    "GATv2Conv": [
        {},
        {"heads": 2, "share_weights": True, "residual": True},
        {"heads": 2, "edge_dim": 2, "fill_value": 0.5},
    ],
    "TransformerConv": [
        {},
        {"heads": 2, "beta": True, "edge_dim": 2},
        {"root_weight": False, "bias": False, "concat": False},
    ],
    "AGNNConv": [{}, {"requires_grad": False}, {"add_self_loops": False}],
}
CASES = [(name, options) for name in NAMES for options in OPTIONS[name]]


def build(name: str, **options: Any) -> Any:
    arguments = () if name == "AGNNConv" else (4, 3)
    layer = getattr(THEIRS, name)(*arguments, **options).double()
    for key, parameter in layer.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter)
    return layer


def outcome(layer: Any, *given: Any) -> list[Tensor]:
    layer.zero_grad()
    x = X.clone().requires_grad_()
    out = layer(x, EDGES, *given)
    out.square().sum().backward()
    return [out, x.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_layer_becomes_ours_and_computes_the_same(name: str, options: dict[str, Any]) -> None:
    layer = build(name, **options)
    given = [EDGE_ATTR] * ("edge_dim" in options)
    expected, state, printed = outcome(layer, *given), layer.state_dict(), repr(layer)
    ours = getattr(gat, name)
    report = replace(layer)
    assert report.model is layer
    assert type(layer) is ours
    assert report.replaced == {"": name}
    assert not report.left
    assert_same(outcome(layer, *given), expected)
    assert repr(layer) == printed
    assert list(layer.state_dict()) == list(state)
    if options.get("aggr", "sum") == "sum" and "flow" not in options:
        assert layer._is_fused()
    # It loads into one that was built as ours, and is its equal in every attribute
    arguments = () if name == "AGNNConv" else (4, 3)
    built = ours(*arguments, **options).double()
    built.load_state_dict(layer.state_dict(), strict=True)
    assert_same(outcome(built, *given), expected)
    assert {**built.__dict__, "res": None, "lin_edge": None, "lin_beta": None}.keys() == {
        **layer.__dict__, "res": None, "lin_edge": None, "lin_beta": None
    }.keys()  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_optimiser_that_knows_the_parameters_goes_on(name: str) -> None:
    layers = build(name), build(name)
    layers[1].load_state_dict(layers[0].state_dict())
    optimisers = [torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9) for layer in layers]
    for step in range(4):
        for layer, optimiser in zip(layers, optimisers, strict=True):
            outcome(layer)
            optimiser.step()
        if step == 1:
            identities = [id(p) for p in layers[0].parameters()]
            replace(layers[0])
            assert identities == [id(p) for p in layers[0].parameters()]
    assert_same(*(layer.state_dict() for layer in layers))


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (lambda: THEIRS.GAT(4, 8, 3, 2, jk="cat", norm="layer"), ["GAT", *["GATConv"] * 3]),
        (lambda: THEIRS.GAT(4, 8, 2, 2, v2=True), ["GAT", *["GATv2Conv"] * 2]),
        (
            lambda: Sequential(
                "x, edge_index",
                [
                    (THEIRS.TransformerConv(4, 3), "x, edge_index -> x"),
                    nn.ReLU(),
                    (THEIRS.AGNNConv(), "x, edge_index -> x"),
                ],
            ),
            ["TransformerConv", "AGNNConv"],
        ),
    ],
)
def test_models_of_torch_geometric(model: Any, names: list[str]) -> None:
    net = model().double().eval()
    expected = outcome(net)
    report = replace(net)
    assert list(report.replaced.values()) == names
    assert not report.left
    assert_same(outcome(net), expected)
    found = [layer.name for layer in attention_weights(net, X, EDGES)]
    assert found == [name for name, kind in report.replaced.items() if kind != "GAT"]
    assert not net.training


@pytest.mark.parametrize("options", [{}, {"out_channels": 3, "jk": "lstm", "norm": "layer_norm"}])
def test_a_whole_model_becomes_ours(options: Any) -> None:
    model = THEIRS.GAT(4, 8, 2, dropout=0.5, heads=2, edge_dim=2, **options).double().eval()
    expected, printed = model(X, EDGES, edge_attr=EDGE_ATTR), repr(model)
    state, parameters = model.state_dict(), list(model.parameters())
    assert replace(nn.ModuleList([model])).replaced["0"] == "GAT"
    assert type(model) is gat.GAT and repr(model) == printed and not model.training
    assert list(model.state_dict()) == list(state)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    out, attention = model(X, EDGES, edge_attr=EDGE_ATTR, return_attention_weights=True)
    assert_same(out, expected)
    assert [layer.weights.shape[1] for layer in attention] == [2, 2]
    built = gat.GAT(4, 8, 2, dropout=0.5, heads=2, edge_dim=2, **options).double().eval()
    built.load_state_dict(model.state_dict(), strict=True)
    assert_same(built.embed(X, EDGES, EDGE_ATTR), model.embed(X, EDGES, EDGE_ATTR))
    assert {*built.__dict__} - {"config"} == {*model.__dict__}
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert_same(again(X, EDGES, edge_attr=EDGE_ATTR), expected)


@pytest.mark.parametrize("make", [lambda: THEIRS.GAT(4, 8, 2), lambda: THEIRS.DenseGATConv(4, 8)])
def test_a_model_that_was_built_before_the_name_stood_for_ours(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    name = type(model).__name__
    monkeypatch.setattr(THEIRS, name, getattr(gat, name))
    assert replace(model).replaced[""] == name
    assert all(
        isinstance(m, gat.sparse.Linear) for n, m in model.named_modules() if n.endswith("lin")
    )


def test_a_model_with_changes_of_its_own_keeps_its_class() -> None:
    class Own(THEIRS.GAT):
        """A user's."""

    model, watched = Own(4, 8, 2), THEIRS.GAT(4, 8, 2)
    watched.forward = lambda x, edge_index: x
    for kept, reason in (
        (model, "Own: a subclass of GAT, whose changes would be lost"),
        (watched, "GAT: its forward was replaced on this very module"),
    ):
        before, report = type(kept), replace(kept)
        assert list(report.replaced) == ["convs.0", "convs.1"]
        assert type(kept) is before and report.left == {"": reason}


@pytest.mark.filterwarnings("ignore:There exist node types:UserWarning")
@pytest.mark.parametrize("lazy", [False, True])
def test_heterogeneous_models(lazy: bool) -> None:
    types = ("paper", "cites", "paper"), ("author", "writes", "paper")
    x = {"paper": X, "author": X[:3, :2]}
    edges = {types[0]: EDGES, types[1]: torch.tensor([[0, 1, 2, 2], [4, 0, 1, 1]])}
    cites = THEIRS.GATConv(4, 3)
    writes = THEIRS.GATv2Conv((-1, -1) if lazy else (2, 4), 3, add_self_loops=False)
    net = HeteroConv({types[0]: cites, types[1]: writes}).double()
    other = copy.deepcopy(net)
    assert len(replace(net).replaced) == 2
    outputs = []
    for each in (net, other):
        torch.manual_seed(0)
        outputs.append(each(x, edges)["paper"])
    assert_same(*outputs)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = THEIRS.TransformerConv((-1, -1), 3)

        # Annotated as a string, it fails in torch.fx before torch 2.7, whatever the layer
        def forward(self, x, edge_index):
            return self.conv(x, edge_index)

    edges["paper", "by", "author"] = edges[types[1]].flip(0)
    model = to_hetero(Net(), (list(x), list(edges))).double()
    if not lazy:
        expected = model(x, edges)
        assert len(replace(model).replaced) == 3
        assert_same(model(x, edges), expected)


@pytest.mark.parametrize("name", NAMES[:3])
def test_lazy_layers_draw_what_they_would_have_drawn(name: str) -> None:
    layer = getattr(THEIRS, name)(-1, 3)
    layers = [layer, copy.deepcopy(layer)]
    torch.manual_seed(0)
    expected = layers[0](X.float(), EDGES)
    torch.manual_seed(0)
    replace(layers[1])
    torch.testing.assert_close(layers[1](X.float(), EDGES), expected)
    assert type(layers[1]) is getattr(gat, name)


def test_a_shared_layer_is_replaced_once_wherever_it_is_referred_to() -> None:
    layer = build("GATConv")
    model = nn.ModuleDict({"a": layer, "b": nn.ModuleList([layer])})
    elsewhere = [layer]
    report = replace(model)
    assert report.replaced == {"a": "GATConv"}
    assert model["a"] is model["b"][0] is elsewhere[0]  # type: ignore[index]
    assert type(elsewhere[0]) is gat.GATConv


def test_what_is_set_on_a_layer_stays() -> None:
    model = nn.ModuleList([build("GATConv", dropout=0.5), build("GATConv").float()])
    layer: Any = model[0]
    layer.eval()
    layer.note = "kept"
    layer.lin.weight.requires_grad_(False)
    layer.register_buffer("mine", torch.ones(2))
    layer.register_module("child", nn.Linear(1, 1))
    seen: list[str] = []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_message_forward_hook(lambda *_: seen.append("message"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    layer.lin.register_forward_hook(lambda *_: seen.append("lin"))
    expected = layer(X, EDGES)
    replace(model)
    assert (layer.training, model[1].training, model.training) == (False, True, True)
    assert (layer.note, layer.lin.weight.requires_grad) == ("kept", False)
    assert "mine" in layer.state_dict() and "child.weight" in layer.state_dict()
    seen.clear()
    out = layer(X, EDGES)
    out.sum().backward()
    assert_same(out, expected)
    assert seen == ["lin", "message", "forward", "backward"]
    assert [p.dtype for p in model[1].parameters()] == [torch.float32] * 4


def test_no_random_number_is_drawn() -> None:
    model = THEIRS.GAT(4, 8, 2)
    state = torch.get_rng_state()
    replace(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_ours_too(copied: Any) -> None:
    layer = build("GATConv")
    replace(layer)
    other = copied(layer)
    assert type(other) is gat.GATConv
    assert_same(other(X, EDGES), layer(X, EDGES))


def test_a_checkpoint_of_the_whole_model_still_loads() -> None:
    model, file = THEIRS.GAT(4, 8, 2).double(), io.BytesIO()
    torch.save(model.state_dict(), file)
    expected = model(X, EDGES)
    other = THEIRS.GAT(4, 8, 2).double()
    replace(other)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert_same(other(X, EDGES), expected)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_replaced_layers_take_sparse_features() -> None:
    layer = build("GATConv")
    replace(layer)
    assert_same(layer(X.relu().to_sparse_csr(), EDGES), layer(X.relu(), EDGES))


def test_code_that_was_compiled_before_follows() -> None:
    torch._dynamo.reset()
    model = THEIRS.GAT(4, 8, 2).double().eval()
    compiled = torch.compile(model, backend="aot_eager")
    expected = compiled(X, EDGES)
    assert len(replace(compiled).replaced) == 3
    assert all(isinstance(conv, AttentionConv) for conv in model.convs)
    assert_same(compiled(X, EDGES), expected)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_was_explained_before(name: str) -> None:
    layer = build(name)
    explainer = Explainer(
        layer,
        GNNExplainer(epochs=3),
        explanation_type="model",
        edge_mask_type="object",
        model_config={
            "mode": "multiclass_classification",
            "task_level": "node",
            "return_type": "raw",
        },
    )

    def explain() -> Tensor:
        torch.manual_seed(0)
        return explainer(X, EDGES, index=1).edge_mask

    expected, out = explain(), layer(X, EDGES)
    assert "propagate" in layer.__dict__  # torch_geometric leaves its own there
    assert not replace(layer).left
    assert layer._is_fused()
    assert_same(layer(X, EDGES), out)
    assert_same(explain(), expected)
    assert_same(layer(X, EDGES), out)


def test_a_decomposed_layer_stays_decomposed() -> None:
    layer = build("AGNNConv", decomposed_layers=2)
    expected = layer(X, EDGES)
    replace(layer)
    assert (layer.decomposed_layers, type(layer)) == (2, gat.AGNNConv)
    assert_same(layer(X, EDGES), expected)


class OwnGATConv(THEIRS.GATConv):
    """A user's."""


class OwnDenseGATConv(THEIRS.DenseGATConv):
    """A user's."""


class ScoringGATConv(THEIRS.GATConv):
    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        return 2 * alpha.unsqueeze(-1) * x_j


def test_what_is_left_is_reported_with_the_reason() -> None:
    watched, explained, filled = (build("GATConv") for _ in range(3))
    watched.message = lambda x_j, alpha: x_j
    explained.explain = True
    filled.fill_value = "median"
    model = nn.ModuleDict(
        {
            "theirs": build("GATConv"),
            "own": OwnGATConv(4, 3),
            "scoring": ScoringGATConv(4, 3),
            "ours": gat.GATConv(4, 3),
            "gcn": GCNConv(4, 3),
            "watched": watched,
            "explained": explained,
            "filled": filled,
            "linear": nn.Linear(4, 3),
            "dense": THEIRS.DenseGATConv(4, 3),
            "own dense": OwnDenseGATConv(4, 3),
            "plain": THEIRS.GeneralConv(4, 3),
        }
    )
    classes = {name: type(module) for name, module in model.items()}
    report = replace(model)
    assert str(report) == (
        "replaced 2 modules\n"
        "  theirs: GATConv\n"
        "  dense: DenseGATConv\n"
        "left 9 modules\n"
        "  own: OwnGATConv: a subclass of GATConv, whose changes would be lost\n"
        "  scoring: ScoringGATConv: a subclass of GATConv, whose changes would be lost\n"
        "  ours: GATConv: is gat's already\n"
        "  gcn: GCNConv: gat has no such layer\n"
        "  watched: GATConv: its message was replaced on this very module\n"
        "  explained: GATConv: being explained; set its `explain` to None first\n"
        "  filled: GATConv: fill_value is 'median'; expected a number, a tensor, or one of 'add', "
        "'max', 'mean', 'min', 'mul', 'sum'\n"
        "  own dense: OwnDenseGATConv: a subclass of DenseGATConv, whose changes would be lost\n"
        "  plain: GeneralConv: built without attention"
    )
    classes |= {"theirs": gat.GATConv, "dense": gat.DenseGATConv}
    assert {n: type(m) for n, m in model.items()} == classes
    assert replace(model).replaced == {}


def test_the_model_itself_is_named_in_print() -> None:
    assert str(replace(OwnGATConv(4, 3))).splitlines()[-1].startswith("  (the model itself): Own")
    assert isinstance(replace(nn.Linear(1, 1)), Replacement)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError) as raised:
        replace(torch_geometric.nn.GATConv)  # type: ignore[arg-type]
    assert str(raised.value) == "model is a type; expected a torch.nn.Module"


def test_dropout_is_replaced_where_that_is_asked_for() -> None:
    class Own(nn.Dropout):
        pass

    model = nn.ModuleList([nn.Dropout(0.3, inplace=True), Own(0.2), nn.Dropout2d(0.1)])
    assert not replace(model).replaced and type(model[0]) is nn.Dropout
    assert replace(model, dropout=True).replaced == {"0": "Dropout"}
    assert [type(x) for x in model] == [gat.Dropout, Own, nn.Dropout2d]
    dropped = model[0](torch.ones(300))
    assert model[0].p == 0.3 and len(dropped.unique()) == 2


def test_a_model_with_its_dropout_computes_the_same_in_evaluation() -> None:
    model = THEIRS.GAT(4, 8, num_layers=2, out_channels=3, dropout=0.5).double().eval()
    expected = model(X, EDGES)
    assert replace(model, dropout=True).replaced["dropout"] == "Dropout"
    torch.testing.assert_close(model(X, EDGES), expected)
    assert not torch.equal(model.train()(X, EDGES), model(X, EDGES))
