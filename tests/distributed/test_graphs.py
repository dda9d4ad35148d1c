"""A graph in parts gives what the whole gives, in as many processes as there are parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.nn
from torch import Tensor, nn

import gat
from attn_core import Sparsemax
from gat.distributed import Partition, global_mean, parallelize, traffic

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
NODES, EDGES, CHANNELS, OF_EDGES = 60, 300, 6, 3


def graph(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, edges with duplicates and self-loops, features of edges; the last 7 nodes are
    isolated."""
    generator = torch.Generator().manual_seed(1)
    edge_index = torch.randint(0, NODES - 7, (2, EDGES), generator=generator)
    edge_index[1, :10] = edge_index[0, :10]
    x = torch.randn(NODES, CHANNELS, generator=generator, dtype=dtype)
    edge_attr = torch.randn(EDGES, OF_EDGES, generator=generator, dtype=dtype)
    factors = torch.randn(NODES, 8, generator=generator, dtype=dtype)
    return x, edge_index, edge_attr, factors


def assignments(world: int) -> dict[str, Any]:
    """How the nodes are shared out."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(0, world, (NODES,), generator=generator)
    return {
        "contiguous": "contiguous",
        "given": drawn,
        "one part empty": torch.where(drawn == world - 1, 0, drawn),
        "one part with all": torch.zeros(NODES, dtype=torch.int64),
    }


class OfTypes(nn.Module):
    """RGATConv over edges whose relation their features tell."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = gat.RGATConv(CHANNELS, 4, 3, heads=2, edge_dim=OF_EDGES, **options)

    def forward(self, x: Tensor, edges: Any, edge_attr: Tensor) -> Tensor:
        relation = (edge_attr[:, :2] > 0).sum(1)
        return self.conv(x, edges, relation, edge_attr)


class Twice(nn.Module):
    """FAConv of features that are the first ones too, over weights of edges if it takes some."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.conv = gat.FAConv(CHANNELS, **options)
        self.lin_edge = None if self.conv.normalize else "the weights"

    def forward(self, x: Tensor, edges: Any, edge_attr: Tensor | None = None) -> Tensor:
        return self.conv(x, x.sin(), edges, None if edge_attr is None else edge_attr[:, 0])


def layers() -> dict[str, nn.Module]:
    """Each layer and model, with 8 numbers for a node."""
    torch.manual_seed(3)
    of_edges = {"edge_dim": OF_EDGES}
    general = {"in_edge_channels": OF_EDGES, "attention": True, "heads": 2}
    body = {"in_channels": CHANNELS, "hidden_channels": 8, "num_layers": 2, "out_channels": 8}
    node_norm = {"norm": "layer_norm", "norm_kwargs": {"mode": "node"}}
    return {
        "GATConv": gat.GATConv(CHANNELS, 4, 2, residual=True, **of_edges),
        "GATConv, wide": gat.GATConv(CHANNELS, 1, 8, add_self_loops=False),
        "GATv2Conv": gat.GATv2Conv(CHANNELS, 4, 2, residual=True, **of_edges),
        "GATv2Conv, shared": gat.GATv2Conv(CHANNELS, 4, 2, share_weights=True),
        "TransformerConv": gat.TransformerConv(CHANNELS, 4, 2, beta=True, **of_edges),
        "GraphAttentionConv": gat.GraphAttentionConv(CHANNELS, 4, 2, score="dot", **of_edges),
        "sparsemax": gat.GraphAttentionConv(
            CHANNELS, 4, 2, normalizer=Sparsemax(), share_weights=True
        ),
        "AGNNConv": nn.Sequential(),  # put together below: it has no map of its own
        "GAT": gat.GAT(**body, heads=2, jk="cat", feed_forward=2, **node_norm, **of_edges),
        "GATv2": gat.GATv2(**body, heads=2, **of_edges),
        "GraphTransformer": gat.GraphTransformer(**body, heads=2, jk="lstm"),
        "GraphAttention": gat.GraphAttention(**body, heads=2, score="cosine"),
        "AGNN": gat.AGNN(CHANNELS, 8, 2, 8),
        "FAConv": Twice(),
        "FAConv, weighted": Twice(normalize=False),
        "GeneralConv": gat.GeneralConv(CHANNELS, 8, directed_msg=False, **general),
        "GeneralConv, dot": gat.GeneralConv(CHANNELS, 8, attention_type="dot_product", **general),
        "GeneralConv, plain": gat.GeneralConv(CHANNELS, 8, OF_EDGES, aggr="mean"),
        "RGATConv": OfTypes(),
        "RGATConv, within": OfTypes(
            attention_mechanism="within-relation",
            attention_mode="multiplicative-self-attention",
            mod="scaled",
            num_bases=2,
        ),
        "SuperGATConv": gat.SuperGATConv(CHANNELS, 4, 2),
        "SuperGATConv, SD": gat.SuperGATConv(CHANNELS, 4, 2, attention_type="SD"),
    } | {"AGNNConv": gat.AGNNConv()}


def with_edge_features(layer: nn.Module) -> bool:
    return any(getattr(part, "lin_edge", None) is not None for part in layer.modules())


def run(
    layer: nn.Module, x: Tensor, edges: Any, edge_attr: Tensor, factors: Tensor, part: Any = None
) -> dict[str, Tensor]:
    """The output, and the gradients of what came in and of all parameters."""
    x, edge_attr = x.clone().requires_grad_(), edge_attr.clone().requires_grad_()
    given = {"edge_attr": edge_attr} if with_edge_features(layer) else {}
    out = layer(x, edges, **given)
    loss = global_mean((out * factors[:, : out.shape[1]]).sin(), part)
    loss.backward()
    found = {"out": out.detach(), "loss": loss.detach(), "x": x.grad}
    found |= {"edge_attr": edge_attr.grad} if given else {}
    return found | {
        name.removeprefix("module."): p.grad
        for name, p in layer.named_parameters()
        if p.grad is not None
    }


def alone(dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """All layers over the whole graph."""
    x, edge_index, edge_attr, factors = graph(dtype)
    return {
        name: run(layer.to(dtype), x, edge_index, edge_attr, factors)
        for name, layer in layers().items()
    }


def together(world: int, dtype: torch.dtype, how: Any, rank: int) -> Any:
    """All layers over this process's part; and the numbers of its nodes and edges."""
    x, edge_index, edge_attr, factors = graph(dtype)
    part = Partition.split(edge_index, world, NODES, assignment=how)[rank]
    rows, of_edges, factors = part.rows(x), part.edge_rows(edge_attr), part.rows(factors)
    found = {}
    for name, layer in layers().items():
        if rank:  # which parallelize replaces by those of the first process
            nn.ModuleList([layer]).requires_grad_(False)
            for parameter in layer.parameters():
                parameter.fill_(7.0)
            layer.requires_grad_(True)
        model = parallelize(layer.to(dtype), part)
        found[name] = run(model, rows, part.edges, of_edges, factors)
        if name == "GATConv":  # the same once more, to the bit
            model.zero_grad()
            again = run(model, rows, part.edges, of_edges, factors)
            assert all(torch.equal(again[key], value) for key, value in found[name].items())
    return {"found": found, "nodes": part.nodes, "edges": part.edge_ids}


def everything(rank: int, world: int) -> Any:
    return {
        (dtype, how): together(world, dtype, given, rank)
        for dtype in (torch.float32, torch.float64)
        for how, given in assignments(world).items()
    }


def losses(model: nn.Module, x: Tensor, edges: Any, factors: Tensor, part: Any) -> list[float]:
    """Of a few steps with dropout everywhere."""
    torch.manual_seed(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    found = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = global_mean((model(x, edges) * factors).sin(), part)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def dropping_model() -> nn.Module:
    torch.manual_seed(4)
    drops = {"dropout": 0.3, "input_dropout": 0.2, "value_dropout": 0.2, "feed_forward": 2}
    return gat.GAT(CHANNELS, 16, 3, 8, heads=2, **drops).double()


def training(rank: int, world: int) -> Any:
    """Losses with dropout, what was sent, what helpers say, and what is refused."""
    x, edge_index, edge_attr, factors = graph(torch.float64)
    part = Partition.split(edge_index, world, NODES)[rank]
    rows = part.rows(x)
    with traffic() as sent:
        found = losses(
            parallelize(dropping_model(), part), rows, part.edges, part.rows(factors), part
        )
    model = parallelize(dropping_model(), part)
    torch.manual_seed(6)
    of_types = parallelize(OfTypes(dropout=0.4).double(), part)
    dropped = of_types(rows, part.edges, part.edge_rows(edge_attr))
    twice = []
    for _ in range(2):  # gradients of two steps add up
        global_mean(model(rows, part.edges).square(), part).backward()
        twice.append([p.grad.clone() for p in model.parameters()])
    refused = []
    options: list[dict[str, Any]] = [{"norm": "batch_norm"}, {"level": "graph"}]
    for given in options:
        try:
            parallelize(gat.GAT(CHANNELS, 8, 2, **given), part)
        except ValueError as error:
            refused.append(str(error))
    return {
        "losses": found,
        "sent": sent.rows,
        "calls": sent.calls,
        "collected": part.collect(rows),
        "dropped relations": part.collect(dropped),
        "mean": global_mean(rows, part).item(),
        "weighted": global_mean(rows[:, 0], part, weights=rows[:, 1]).item(),
        "twice": twice,
        "refused": refused,
    }


@pytest.fixture(scope="module", params=[2, 4])
def everywhere(request: pytest.FixtureRequest, in_processes: Any) -> list[Any]:
    return in_processes(__file__, "everything", request.param)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("how", assignments(2))
def test_layers_and_models_give_what_one_process_gives(
    everywhere: list[Any], dtype: torch.dtype, how: str
) -> None:
    truth = alone(dtype)
    parts = [each[dtype, how] for each in everywhere]
    for name in layers():
        for what, expected in truth[name].items():
            found = [part["found"][name][what] for part in parts]
            if what in ("out", "x", "edge_attr"):
                whole = torch.empty_like(expected)
                for part, rows in zip(parts, found, strict=True):
                    whole[part["edges" if what == "edge_attr" else "nodes"]] = rows
                found = [whole]
            scale = expected.abs().max().clamp(min=1)
            for each in found:
                assert (each - expected).abs().max() <= TOLERANCE[dtype] * scale, (name, what)


@pytest.fixture(scope="module", params=[2, 4])
def trained(request: pytest.FixtureRequest, in_processes: Any) -> list[Any]:
    return in_processes(__file__, "training", request.param)


def test_dropout_does_not_depend_on_the_number_of_processes(trained: list[Any]) -> None:
    x, edge_index, _, factors = graph(torch.float64)
    expected = losses(dropping_model(), x, edge_index, factors, None)
    torch.manual_seed(6)
    of_types = OfTypes(dropout=0.4).double()(x, edge_index, graph(torch.float64)[2])
    for each in trained:
        torch.testing.assert_close(each["losses"], expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(each["dropped relations"], of_types, rtol=1e-10, atol=1e-10)


def test_bytes_sent_are_what_the_formula_says(trained: list[Any]) -> None:
    parts = Partition.split(graph(torch.float64)[1], len(trained), NODES)
    for each, part in zip(trained, parts, strict=True):
        route = part.edges.route
        # Three layers, whose inputs have 6, 16 and 16 numbers; that of the first has no gradient
        forward = 4 * sum(route.bytes_sent(width, 8) for width in (CHANNELS, 16, 16))
        backward = 4 * sum(route.bytes_returned(width, 8) for width in (16, 16))
        assert each["sent"] == forward + backward
        assert each["calls"] == 4 * 5


def test_all_processes_know_sums_means_and_collected_rows(trained: list[Any]) -> None:
    x = graph(torch.float64)[0]
    for each in trained:
        assert torch.equal(each["collected"], x)
        assert each["mean"] == pytest.approx(x.mean().item(), abs=1e-12)
        weighted = (x[:, 0] * x[:, 1]).sum() / x[:, 1].sum()
        assert each["weighted"] == pytest.approx(weighted.item(), abs=1e-10)


def test_gradients_of_two_backward_passes_add_up(trained: list[Any]) -> None:
    for each in trained:
        assert all(a.isfinite().all() and a.any() for a in each["twice"][0])
    for rest in trained[1:]:  # all processes have the same
        for a, b in zip(trained[0]["twice"][1], rest["twice"][1], strict=True):
            assert torch.equal(a, b)


def test_what_needs_all_nodes_at_once_is_refused(trained: list[Any]) -> None:
    for each in trained:
        norm, level = each["refused"]
        assert "BatchNorm, which looks at all nodes at once" in norm
        assert "level is 'graph'" in level


def test_layers_that_fetch_no_rows_are_refused() -> None:
    (part,) = Partition.split(torch.tensor([[0], [1]]), 1)
    for layer in (torch_geometric.nn.GATConv(2, 2), torch_geometric.nn.GCNConv(2, 2)):
        with pytest.raises(ValueError, match="looks at this process's nodes alone"):
            parallelize(nn.Sequential(layer), part)
    metadata = ["a"], [("a", "to", "a")]
    for layer, why in {
        nn.MultiheadAttention(2, 1): "attends to all rows it is given",
        gat.GPSConv(2, gat.GATConv(2, 2), norm=None): "attends to all nodes of the graph",
        gat.DenseGATConv(2, 2): "takes a whole adjacency matrix",
        gat.HGTConv(2, 2, metadata): "takes nodes of several types",
        gat.HANConv(2, 2, metadata): "weighs types of edges by a mean over all nodes",
        gat.HypergraphConv(2, 2, use_attention=True): "hyperedges join nodes of several processes",
        gat.FAConv(2, cached=True): "keeps one graph for all calls: build it with cached=False",
    }.items():
        with pytest.raises(ValueError, match=why):
            parallelize(nn.Sequential(layer), part)
    with pytest.raises(ValueError, match="whose flow is 'target_to_source'"):
        parallelize(gat.GATConv(2, 2, flow="target_to_source"), part)
    with pytest.raises(ValueError, match="whose parameters have no shape yet"):
        parallelize(gat.GATConv(-1, 2), part)


def test_a_part_is_saved_and_loaded_alone(tmp_path: Path) -> None:
    _, edge_index, _, _ = graph(torch.float32)
    parts = Partition.split(edge_index, 3, NODES)
    for part in parts:
        part.save(tmp_path)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {".npy", ".json"}
    for part in parts:
        loaded = Partition.load(tmp_path, part.part)
        assert repr(loaded) == repr(part)
        for name in ("nodes", "halo", "edge_ids", "pairs", "send", "send_counts"):
            assert torch.equal(getattr(loaded, name), getattr(part, name))
    with pytest.raises(FileNotFoundError, match=r"write one with partition\.save"):
        Partition.load(tmp_path, 3)


def test_parts_cover_the_graph_once() -> None:
    _, edge_index, _, _ = graph(torch.float32)
    for how in assignments(4).values():
        parts = Partition.split(edge_index, 4, NODES, assignment=how)
        assert torch.equal(torch.cat([p.nodes for p in parts]).sort().values, torch.arange(NODES))
        ids = torch.cat([p.edge_ids for p in parts])
        assert torch.equal(ids.sort().values, torch.arange(edge_index.shape[1]))
        for p in parts:
            sources = torch.cat([p.nodes, p.halo])
            local = torch.stack([sources[p.pairs[0]], p.nodes[p.pairs[1]]])
            assert torch.equal(local, edge_index[:, p.edge_ids])
            for q in parts:
                assert p.send_counts[q.part] == q.receive_counts[p.part]


def test_metis_cuts_fewer_edges_than_chance() -> None:
    pytest.importorskip("pymetis")
    grid = torch.arange(400).view(20, 20)
    right = torch.stack([grid[:, :-1].flatten(), grid[:, 1:].flatten()])
    down = torch.stack([grid[:-1].flatten(), grid[1:].flatten()])
    edge_index = torch.cat([right, down, right.flip(0), down.flip(0)], 1)
    order = torch.randperm(400)
    parts = Partition.split(order[edge_index], 4, assignment="metis")
    assert max(len(p.nodes) for p in parts) < 1.1 * 100
    assert sum(len(p.halo) for p in parts) < 150  # of some 300 × 3 / 4 × 4 by chance


def test_wrong_arguments_are_named() -> None:
    edge_index = torch.tensor([[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="assignment is 'random'"):
        Partition.split(edge_index, 2, assignment="random")
    with pytest.raises(ValueError, match=r"integers \[3\], the part of each node"):
        Partition.split(edge_index, 2, assignment=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="names part 2; expected 0 to 1"):
        Partition.split(edge_index, 2, assignment=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="names node 2, but num_nodes is 2"):
        Partition.split(edge_index, 2, 2)
    part = Partition.split(edge_index, 2)[0]
    with pytest.raises(ValueError, match="there are 1 processes"):
        parallelize(layers()["GATConv"], part)
    with pytest.raises(ValueError, match="this process has 2 nodes of the partition"):
        layers()["GATConv, wide"](torch.zeros(3, CHANNELS), part.edges)


def test_mean_of_nothing_is_no_number() -> None:
    assert global_mean(torch.empty(0)).isnan()
