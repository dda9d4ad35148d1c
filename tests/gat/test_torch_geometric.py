"""The layers among torch_geometric's models, explainers, hooks and subclasses, in theirs' place."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.explain import AttentionExplainer, Explainer, GNNExplainer, PGExplainer
from torch_geometric.explain.algorithm.utils import clear_masks, set_masks
from torch_geometric.nn import HeteroConv, SAGPooling, SumAggregation, to_hetero
from torch_geometric.nn.models.basic_gnn import BasicGNN

import gat
from attn_core import Edges
from gat import AGNNConv, GATConv, GATv2Conv, TransformerConv

TheirGATConv = torch_geometric.nn.GATConv
PROJECTING = ["GATConv", "GATv2Conv", "TransformerConv"]  # AGNNConv has no channels of its own
ALL = [*PROJECTING, "AGNNConv"]
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
EDGES = torch.tensor([[0, 1, 2, 0, 2, 3, 4], [1, 0, 2, 1, 3, 1, 0]])
EDGE_ATTR = torch.randn(7, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

CLASSIFICATION = {
    "mode": "multiclass_classification",
    "task_level": "node",
    "return_type": "raw",
}


class Net(nn.Module):
    """Two layers of a kind."""

    def __init__(self, conv: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.first = conv(4, 3, heads=2)
        self.second = conv(6, 2, heads=2, concat=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)


def classes(name: str) -> tuple[type, type]:
    """Our class and theirs."""
    return getattr(gat, name), getattr(torch_geometric.nn, name)


@pytest.fixture(params=ALL)
def nets(request: pytest.FixtureRequest, twins: Any) -> tuple[Net, Net]:
    """A net of each, built after layers of every other kind, which share a base with them."""
    for name in ALL:
        for cls in classes(name):
            cls(*(() if name == "AGNNConv" else (4, 3)))

    def make(cls: type) -> Callable[[], Net]:
        return lambda: Net((lambda *_, **__: cls()) if request.param == "AGNNConv" else cls)

    return twins(classes=tuple(map(make, classes(request.param))))


def assert_same(*outputs: Any) -> None:
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "index", "node_mask"),
    [
        (AttentionExplainer, None, None),
        (AttentionExplainer, 1, None),
        (lambda: GNNExplainer(epochs=5), 1, "attributes"),
    ],
)
def test_explainers_find_the_same_masks(
    nets: Any, algorithm: Callable[[], Any], index: int | None, node_mask: str | None
) -> None:
    masks = []
    for net in nets:
        torch.manual_seed(0)
        explainer = Explainer(
            net,
            algorithm(),
            explanation_type="model",
            edge_mask_type="object",
            node_mask_type=node_mask,
            model_config=CLASSIFICATION,
        )
        if algorithm is AttentionExplainer and isinstance(nets[0].first, AGNNConv):
            with pytest.raises(ValueError, match="Could not collect any attention"):
                explainer(X, EDGES, index=index)  # this layer shows its weights to nobody
        else:
            masks.append(explainer(X, EDGES, index=index).edge_mask)
    if masks:
        assert_same(*masks)
        assert masks[0].any()


def test_a_network_that_draws_masks_learns_the_same(nets: Any) -> None:
    masks, target = [], torch.tensor([0, 1, 0, 1, 0])
    for net in nets:
        torch.manual_seed(0)
        explainer = Explainer(
            net,
            PGExplainer(epochs=3).double(),
            explanation_type="phenomenon",
            edge_mask_type="object",
            model_config=CLASSIFICATION,
        )
        for epoch, index in itertools.product(range(3), range(5)):
            explainer.algorithm.train(epoch, net, X, EDGES, target=target, index=index)
        masks.append(explainer(X, EDGES, target=target, index=1).edge_mask)
    assert_same(*masks)
    assert masks[0].any()


def test_edge_masks_act_until_they_are_cleared(nets: Any) -> None:
    before = [net(X, EDGES) for net in nets]
    for net in nets:
        set_masks(net, torch.linspace(-2, 2, 7, dtype=torch.float64), EDGES)
    masked = [net(X, EDGES) for net in nets]
    assert_same(*masked)
    assert not torch.allclose(masked[0], before[0])
    for net in nets:
        clear_masks(net)
    torch.testing.assert_close(nets[0](X, EDGES), before[0])


@pytest.mark.parametrize("name", [*ALL, "GraphAttentionConv"])
def test_edge_masks_act_on_subclasses_of_layers_that_were_built_before(name: str) -> None:
    """In torch_geometric they have no effect: it takes code made for the parent for its own."""
    parent: Any = getattr(gat, name)
    sub = type(f"Sub{name}", (parent,), {})
    subsub = type(f"Another{name}", (sub,), {})
    arguments = () if name == "AGNNConv" else (4, 3)
    layers = [cls(*arguments).double() for cls in (parent, sub, subsub)]
    outputs = []
    for layer in layers:
        layer.load_state_dict(layers[0].state_dict())
        before = layer(X, EDGES)
        set_masks(layer, torch.linspace(-2, 2, 7, dtype=torch.float64), EDGES)
        outputs.append(layer(X, EDGES))
        assert not torch.allclose(outputs[-1], before)
        clear_masks(layer)
        torch.testing.assert_close(layer(X, EDGES), before)
    assert_same(outputs[1], outputs[0])
    assert_same(outputs[2], outputs[0])


def test_a_propagate_of_a_subclass_is_what_explainers_go_back_to() -> None:
    class Counting(GATConv):
        calls = 0

        def propagate(self, *args: Any, **kwargs: Any) -> Tensor:
            self.calls += 1
            return torch_geometric.nn.MessagePassing.propagate(self, *args, **kwargs)

    GATConv(4, 3)
    layer = Counting(4, 3).double()
    layer(X, EDGES)
    set_masks(layer, torch.zeros(7, dtype=torch.float64), EDGES)
    layer(X, EDGES)
    assert layer.calls == 2


def seen_by_hooks(layer: Any) -> dict[str, Any]:
    """What every hook of message passing is handed, in one call."""
    seen: dict[str, Any] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: Any, output: Any = None) -> None:
            edge_index, size = inputs[:2] if len(inputs) > 1 else (None, None)
            seen[name] = (edge_index, None if size is None else list(size), inputs[-1], output)

        return hook

    for step in ("propagate", "message", "aggregate", "edge_update"):
        getattr(layer, f"register_{step}_forward_pre_hook")(note(f"{step} before"))
        getattr(layer, f"register_{step}_forward_hook")(note(f"{step} after"))
    layer(X, EDGES, EDGE_ATTR)
    return seen


@pytest.mark.parametrize(
    ("name", "steps"), [("GATConv", 8), ("GATv2Conv", 8), ("TransformerConv", 6)]
)
def test_hooks_see_what_theirs_see(twins: Any, name: str, steps: int) -> None:
    layers = twins(4, 3, 2, edge_dim=2, classes=classes(name))
    ours, theirs = (seen_by_hooks(layer) for layer in layers)
    assert len(ours) == steps
    assert_same(ours, theirs)


def test_a_hook_may_change_what_it_sees(twins: Any) -> None:
    layers = twins(4, 3, 2)
    for layer in layers:
        layer.register_message_forward_hook(lambda _, __, out: 2 * out)
        layer.register_propagate_forward_pre_hook(
            lambda _, inputs: (*inputs[:2], {**inputs[2], "alpha": inputs[2]["alpha"] ** 2})
        )
    assert_same(*(layer(X, EDGES) for layer in layers))


def overriding(step: str) -> Callable[[type], type]:
    """Makes a subclass that replaces one step of message passing."""

    def make(conv: Any) -> type:
        class Sub(conv):  # type: ignore[misc]
            if step == "message":

                def message(self, x_j: Tensor, alpha: Tensor, index: Tensor) -> Tensor:
                    return alpha.unsqueeze(-1) * x_j.tanh() + index.view(-1, 1, 1)

            elif step == "edge_update":

                def edge_update(  # a copy of theirs, temperature added
                    self,
                    alpha_j: Tensor,
                    alpha_i: Tensor | None,
                    index: Tensor,
                    ptr: Tensor | None,
                    dim_size: int | None,
                ) -> Tensor:
                    alpha = alpha_j if alpha_i is None else alpha_j + alpha_i
                    alpha = F.leaky_relu(alpha / 2, self.negative_slope)
                    alpha = torch_geometric.utils.softmax(alpha, index, ptr, dim_size)
                    return F.dropout(alpha, p=self.dropout, training=self.training)

            elif step == "edge_update that calls ours":

                def edge_update(
                    self,
                    alpha_j: Tensor,
                    alpha_i: Tensor | None,
                    edge_attr: Tensor | None,
                    index: Tensor,
                    ptr: Tensor | None,
                    dim_size: int | None,
                ) -> Tensor:
                    return 3 * super().edge_update(
                        alpha_j, alpha_i, edge_attr, index, ptr, dim_size
                    )

            elif step == "aggregate":

                def aggregate(
                    self,
                    inputs: Tensor,
                    index: Tensor,
                    ptr: Tensor | None = None,
                    dim_size: int | None = None,
                ) -> Tensor:
                    return super().aggregate(inputs, index, ptr, dim_size) + 1

            elif step == "update":

                def update(self, inputs: Tensor, x: Any) -> Tensor:
                    return inputs - x[1]

            elif step == "forward":

                def forward(
                    self, x: Tensor, edge_index: Tensor
                ) -> Tensor:  # in the style of theirs
                    h = self.lin(x).view(-1, self.heads, self.out_channels)
                    alpha = ((h * self.att_src).sum(-1), (h * self.att_dst).sum(-1))
                    alpha = self.edge_updater(edge_index, alpha=alpha, edge_attr=None)
                    return self.propagate(edge_index, x=(h, h), alpha=alpha).flatten(1)

            else:  # a step set on the instance

                def __init__(self, *args: Any, **kwargs: Any) -> None:
                    super().__init__(*args, **kwargs)
                    self.message = lambda x_j, alpha: x_j

        Sub.__name__ += f"{step.replace(' ', '')}Of{conv.__module__.partition('.')[0]}"
        return Sub

    return make


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    "step",
    ["message", "edge_update", "edge_update that calls ours", "aggregate", "update", "forward",
     "message of the instance"],
)  # fmt: skip
def test_steps_that_a_subclass_replaces_count(twins: Any, step: str, dropout: float) -> None:
    make = overriding(step)
    classes = make(GATConv), make(TheirGATConv)
    layers = twins(4, 3, 2, dropout=dropout, classes=classes)
    outputs = []
    for layer in layers:
        torch.manual_seed(0)
        outputs.append(layer(X, EDGES))
    assert_same(*outputs)
    assert not torch.allclose(outputs[0], twins(4, 3, 2)[0](X, EDGES))


def test_a_step_mixed_in_counts(twins: Any) -> None:
    class Doubled:
        def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
            return 2 * alpha.unsqueeze(-1) * x_j

    class Mixed(Doubled, GATConv): ...

    plain, _ = twins(4, 3, 2, bias=False)
    mixed = Mixed(4, 3, 2, bias=False).double()
    mixed.load_state_dict(plain.state_dict())
    assert_same(mixed(X, EDGES), 2 * plain(X, EDGES))


class WatchedGATv2Conv(GATv2Conv):
    calls = 0

    def message(self, x_j: Tensor, alpha: Tensor) -> Tensor:
        self.calls += 1
        return super().message(x_j, alpha)


class WatchedTransformerConv(TransformerConv):
    calls = 0

    def message(
        self,
        query_i: Tensor,
        key_j: Tensor,
        value_j: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        self.calls += 1
        return super().message(query_i, key_j, value_j, edge_attr, index, ptr, size_i)


class WatchedAGNNConv(AGNNConv):
    calls = 0

    def message(
        self,
        x_j: Tensor,
        x_norm_i: Tensor,
        x_norm_j: Tensor,
        index: Tensor,
        ptr: Tensor | None,
        size_i: int | None,
    ) -> Tensor:
        self.calls += 1
        return super().message(x_j, x_norm_i, x_norm_j, index, ptr, size_i)


@pytest.mark.parametrize("watched", [WatchedGATv2Conv, WatchedTransformerConv, WatchedAGNNConv])
def test_a_message_that_only_watches_changes_no_number(watched: Any) -> None:
    arguments = () if watched is WatchedAGNNConv else (4, 3, 2)
    layer, plain = (cls(*arguments).double() for cls in (watched, watched.__bases__[0]))
    plain.load_state_dict(layer.state_dict())
    assert_same(layer(X, EDGES), plain(X, EDGES))
    assert layer.calls == 1


@pytest.mark.parametrize("step", ["aggregate", "update", "message of the instance"])
@pytest.mark.parametrize("name", ALL)
def test_each_layer_heeds_the_steps_that_are_replaced(name: str, step: str) -> None:
    ours: Any = getattr(gat, name)

    class Aggregating(ours):
        def aggregate(self, inputs: Tensor, index: Tensor, dim_size: int | None) -> Tensor:
            return inputs.new_zeros(dim_size, *inputs.shape[1:]).index_add(0, index, 3 * inputs)

    class Updating(ours):
        def update(self, inputs: Tensor) -> Tensor:
            return 3 * inputs

    for sub in (Aggregating, Updating):
        sub.__name__ += name  # torch_geometric generates code by the name of a class
    cls = {"aggregate": Aggregating, "update": Updating}.get(step, ours)
    arguments = () if name == "AGNNConv" else (4, 3, 2)
    options = {} if name == "AGNNConv" else {"bias": False}
    if name == "TransformerConv":
        options["root_weight"] = False
    layer = cls(*arguments, **options).double()
    plain = ours(*arguments, **options).double()
    plain.load_state_dict(layer.state_dict())
    if step == "message of the instance":
        original = layer.message
        layer.message = lambda *args, **kwargs: 3 * original(*args, **kwargs)
    assert_same(layer(X, EDGES), 3 * plain(X, EDGES))


def test_an_edge_update_of_gatv2_that_a_subclass_replaces_counts(twins: Any) -> None:
    def make(conv: Any) -> type:
        class Sub(conv):  # type: ignore[misc]
            def edge_update(
                self,
                x_j: Tensor,
                x_i: Tensor,
                edge_attr: Tensor | None,
                index: Tensor,
                ptr: Tensor | None,
                dim_size: int | None,
            ) -> Tensor:
                return 3 * super().edge_update(x_j, x_i, edge_attr, index, ptr, dim_size)

        Sub.__name__ += f"Of{conv.__module__.partition('.')[0]}"
        return Sub

    layers = twins(4, 3, 2, edge_dim=2, classes=tuple(map(make, classes("GATv2Conv"))))
    results = [layer(X, EDGES, EDGE_ATTR, return_attention_weights=True) for layer in layers]
    assert_same(results[0][0], results[1][0])
    assert_same(results[0][1][1], results[1][1][1])


def test_an_aggregation_put_in_later_counts(twins: Any) -> None:
    layers = twins(4, 3, 2)
    for layer in layers:
        layer.aggr_module = torch_geometric.nn.MaxAggregation()
    assert_same(*(layer(X, EDGES) for layer in layers))


@pytest.mark.parametrize("name", ALL)
def test_propagate_is_generated_for_the_class(name: str) -> None:
    """torch_geometric hides it when that fails, and then reads the source in each constructor."""
    cls = getattr(gat, name)
    layer = cls(*(() if name == "AGNNConv" else (4, 3)), aggr=SumAggregation())
    for step in ("propagate", *["edge_updater"] * ("edge_update" in cls.__dict__)):
        assert getattr(layer, step).__module__ == f"{cls.__module__}_{name}_{step}"


@pytest.mark.parametrize("flow", ["source_to_target", "target_to_source"])
@pytest.mark.parametrize("edge_dim", [None, 2])
def test_weights_are_those_before_dropout_where_messages_pass_too(
    twins: Any, flow: str, edge_dim: int | None
) -> None:
    layer, _ = twins(4, 3, 2, dropout=0.9, flow=flow, aggr="mean", edge_dim=edge_dim)
    edge_attr = None if edge_dim is None else EDGE_ATTR
    _, (_, training) = layer(X, EDGES, edge_attr, return_attention_weights=True)
    _, (_, evaluating) = layer.eval()(X, EDGES, edge_attr, return_attention_weights=True)
    assert_same(training, evaluating)
    assert training.all()


EDGE_TYPES = [("paper", "cites", "paper"), ("author", "writes", "paper")]
WITHOUT_LOOPS: dict[str, dict[str, Any]] = {
    "GATConv": {"add_self_loops": False},
    "GATv2Conv": {"add_self_loops": False},
    "TransformerConv": {},
}
HETERO_X = {"paper": X, "author": X[:3, :2]}
HETERO_EDGES = {EDGE_TYPES[0]: EDGES, EDGE_TYPES[1]: torch.tensor([[0, 1, 2, 2], [4, 0, 1, 1]])}


@pytest.mark.filterwarnings("ignore:There exist node types:UserWarning")
@pytest.mark.parametrize("name", PROJECTING)
def test_hetero_conv(twins: Any, name: str) -> None:
    def make(conv: Any) -> Callable[[], Any]:
        between = conv((2, 4), 3, **WITHOUT_LOOPS[name])
        return lambda: HeteroConv({EDGE_TYPES[0]: conv(4, 3), EDGE_TYPES[1]: between}, aggr="sum")

    nets = twins(classes=tuple(map(make, classes(name))))
    assert_same(*(net(HETERO_X, HETERO_EDGES)["paper"] for net in nets))


def test_agnn_among_the_nodes_of_one_type(twins: Any) -> None:
    """It looks at one set of nodes; between two types HeteroConv would hand it a pair."""

    class Model(nn.Module):
        def __init__(self, conv: Any) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x, edge_index).relu()

    metadata = ["paper"], EDGE_TYPES[:1]
    for make in (
        lambda conv: lambda: HeteroConv({EDGE_TYPES[0]: conv()}),
        lambda conv: lambda: to_hetero(Model(conv), metadata),
    ):
        nets = twins(classes=tuple(map(make, classes("AGNNConv"))))
        assert_same(*(net({"paper": X}, {EDGE_TYPES[0]: EDGES})["paper"] for net in nets))


@pytest.mark.parametrize("name", PROJECTING)
def test_to_hetero(name: str) -> None:
    class Lazy(nn.Module):
        def __init__(self, conv: Any) -> None:
            super().__init__()
            self.conv = conv((-1, -1), 3, heads=2, **WITHOUT_LOOPS[name])
            self.lin = torch_geometric.nn.Linear(-1, 2)

        # Annotated as a string, it fails in torch.fx before torch 2.7, whatever the layer
        def forward(self, x, edge_index):
            return self.lin(self.conv(x, edge_index).relu())

    edges = {**HETERO_EDGES, ("paper", "by", "author"): HETERO_EDGES[EDGE_TYPES[1]].flip(0)}
    metadata = ["paper", "author"], list(edges)
    ours, theirs = (to_hetero(Lazy(conv), metadata).double() for conv in classes(name))
    theirs(HETERO_X, edges)  # draws the lazy parameters
    ours.load_state_dict(theirs.state_dict())
    assert_same(ours(HETERO_X, edges), theirs(HETERO_X, edges))


@pytest.mark.parametrize(
    "options", [{}, {"edge_dim": 2, "jk": "cat", "v2": False, "norm": "layer"}]
)
def test_in_the_models_of_torch_geometric(twins: Any, options: dict[str, Any]) -> None:
    class WithOurs(torch_geometric.nn.GAT):
        def init_conv(self, *args: Any, **kwargs: Any) -> nn.Module:
            theirs = super().init_conv(*args, **kwargs)
            ours = GATConv(
                *(theirs.in_channels, theirs.out_channels),
                heads=theirs.heads,
                concat=theirs.concat,
                add_self_loops=theirs.add_self_loops,
                edge_dim=theirs.edge_dim,
            )
            ours.load_state_dict(theirs.state_dict())
            return ours

    nets = twins(4, 8, 3, 2, heads=2, classes=(WithOurs, torch_geometric.nn.GAT), **options)
    edge_attr = EDGE_ATTR if "edge_dim" in options else None
    assert_same(*(net(X, EDGES, edge_attr=edge_attr) for net in nets))
    assert isinstance(nets[0].convs[0], GATConv)


@pytest.mark.parametrize("options", [{}, {"jk": "cat", "norm": "layer"}])
@pytest.mark.parametrize("name", ALL)
def test_in_a_model_built_on_torch_geometrics_base(
    twins: Any, name: str, options: dict[str, Any]
) -> None:
    def make(conv: Any) -> type:
        class Model(BasicGNN):
            supports_edge_weight = supports_norm_batch = False
            supports_edge_attr = name != "AGNNConv"

            def init_conv(self, inputs: int, outputs: int, **kwargs: Any) -> nn.Module:
                return conv() if name == "AGNNConv" else conv(inputs, outputs, **kwargs)

        return Model

    more = {} if name == "AGNNConv" else {"edge_dim": 2}
    nets = twins(4, 4, 3, 2, classes=tuple(map(make, classes(name))), **options, **more)
    given = (X, EDGES), {"edge_attr": EDGE_ATTR} if more else {}
    assert_same(*(net(*given[0], **given[1]) for net in nets))


@pytest.mark.parametrize("name", ALL)
def test_as_the_score_of_self_attention_pooling(twins: Any, name: str) -> None:
    ours, theirs = classes(name)
    pools = twins(classes=(lambda: SAGPooling(4, GNN=ours), lambda: SAGPooling(4, GNN=theirs)))
    assert_same(*(pool(X, EDGES)[0] for pool in pools))


@pytest.mark.parametrize("name", ALL)
def test_a_batch_of_graphs_is_their_disjoint_union(name: str) -> None:
    layer = getattr(gat, name)(*(() if name == "AGNNConv" else (4, 3, 2))).double()
    graphs = [Data(x=X, edge_index=EDGES), Data(x=X[:2] + 1, edge_index=EDGES[:, :2])]
    batch = Batch.from_data_list(graphs)
    apart = [layer(graph.x, graph.edge_index) for graph in graphs]
    assert_same(layer(batch.x, batch.edge_index), torch.cat(apart))


def test_summary_lists_it(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = types.ModuleType("tabulate")
    table.tabulate = lambda rows, **_: "\n".join(map(str, rows))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tabulate", table)
    ours, theirs = (torch_geometric.nn.summary(net, X, EDGES) for net in nets)
    assert ours == theirs
    assert "[5, 4], [2, 7]" in ours


def through_torch_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch_save]
)
@pytest.mark.parametrize("hooked", [False, True])
def test_copies_compute_the_same_and_on_their_own(
    nets: Any, copied: Callable[[nn.Module], nn.Module], hooked: bool
) -> None:
    net = nets[0]
    expected = net(X, EDGES)
    if hooked:
        net.first.register_message_forward_hook(lambda_hook)
    other = copied(net)
    torch.testing.assert_close(other(X, EDGES), net(X, EDGES))
    assert_same(other(X, EDGES), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.allclose(other(X, EDGES), expected)
    assert_same(net(X, EDGES), expected)


def lambda_hook(*_: Any) -> None:
    """A hook that only watches (and, having a name, can be pickled)."""


@pytest.mark.parametrize("name", PROJECTING)
def test_a_lazy_layer_can_be_copied_before_it_is_used(name: str) -> None:
    layer = getattr(gat, name)(-1, 3)
    copies = [copy.deepcopy(layer) for _ in range(2)]
    outputs = []
    for one in copies:
        torch.manual_seed(0)
        outputs.append(one(X.float(), EDGES))
    torch.testing.assert_close(*outputs)


def test_moves_to_another_dtype(nets: Any) -> None:
    net = nets[0]
    expected = net(X, EDGES)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        out = copy.deepcopy(net).to(dtype)(X.to(dtype), EDGES)
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", [*ALL, "GraphAttentionConv", "SuperGATConv"])
def test_a_trace_over_a_graph_is_refused_in_words(name: str) -> None:
    layer = getattr(gat, name)(*(() if name == "AGNNConv" else (4, 3))).double()
    for _ in range(2):  # whether the graph was seen before or not
        with pytest.raises(TypeError, match=r"torch\.jit\.trace, and .* use torch\.export"):
            torch.jit.trace(layer, (X, EDGES))
        layer(X, EDGES)


@pytest.mark.parametrize("name", PROJECTING)
def test_to_look_at_the_weights_changes_no_bit_of_what_comes_out(name: str) -> None:
    """Theirs neither: their tests compare numbers near zero by `allclose`."""
    for _ in range(20):
        layer, x = getattr(gat, name)(8, 32, heads=2, dropout=0.5), torch.randn(4, 8)
        edge_index = torch.randint(4, (2, 6))
        for graph in (edge_index, Edges(edge_index, 4)):
            for _ in range(2):
                torch.manual_seed(1)
                out = layer(x, graph)
                torch.manual_seed(1)
                assert torch.equal(layer(x, graph, return_attention_weights=True)[0], out)
                layer.train(not layer.training)
    calls: list[str] = []
    next(m for n, m in layer.named_children() if n.startswith("lin")).register_forward_hook(
        lambda *_: calls.append(name)
    )
    layer(x, edge_index, return_attention_weights=True)
    assert calls == [name]
