"""Sampled neighbours, blocks, and inference layer by layer."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from math import comb, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import LinkLoader, NodeLoader
from torch_geometric.sampler import NegativeSampling

import gat
from attn_core import Edges, backend
from gat.loader import NeighborSampler, block_of, infer, rows_of

NODES, EDGES = 80, 600
EDGE_INDEX = torch.randint(0, NODES - 5, (2, EDGES), generator=torch.Generator().manual_seed(1))


def in_edges(node: int) -> set[int]:
    return set(torch.nonzero(EDGE_INDEX[1] == node).squeeze(1).tolist())


def check_drawn(target: Tensor, edge_ids: Tensor, targets: list[int], fan_out: int) -> None:
    """As many different in-edges as there are, at most the fan-out."""
    for node in targets:
        drawn = edge_ids[target == node].tolist()
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= in_edges(node)
        assert len(drawn) == min(fan_out, len(in_edges(node)))


@pytest.mark.parametrize("seed", [None, 3])
def test_blocks_hold_distinct_in_edges_of_their_targets(seed: int | None) -> None:
    sampler = NeighborSampler(EDGE_INDEX, [3, 2], num_nodes=NODES, seed=seed)
    nodes = torch.tensor([7, 79, 0])
    first, second = sampler.blocks(nodes)
    assert torch.equal(second.sources[:3], nodes)
    assert torch.equal(first.sources[: len(second.sources)], second.sources)
    for block, fan_out in ((second, 3), (first, 2)):
        source, target = (
            block.sources[block.edges.key_index],
            block.sources[block.edges.query_index],
        )
        assert torch.equal(torch.stack([source, target]), EDGE_INDEX[:, block.edge_ids])
        check_drawn(
            target, block.edge_ids, block.sources[: block.edges.num_queries].tolist(), fan_out
        )
        assert len(block.sources.unique()) == len(block.sources) == block.edges.num_keys


def test_all_subsets_are_equally_likely() -> None:
    degree, fan_out, stars = 7, 3, 3000
    pairs = torch.stack(
        [torch.arange(degree).repeat(stars), torch.arange(stars).repeat_interleave(degree)]
    )
    sampler = NeighborSampler(pairs, [fan_out], num_nodes=stars, seed=5)
    counts = dict.fromkeys(combinations(range(degree), fan_out), 0)
    for sampler.epoch in range(3):
        (block,) = sampler.blocks(torch.arange(stars))
        for drawn in (block.edge_ids % degree).view(stars, fan_out).tolist():
            counts[tuple(sorted(drawn))] += 1
    expected = 3 * stars / comb(degree, fan_out)
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    freedom = len(counts) - 1
    assert abs(chi_square - freedom) < 4 * sqrt(2 * freedom)


def test_draws_are_a_function_of_seed_epoch_hop_and_node() -> None:
    sampler = NeighborSampler(EDGE_INDEX, [3, 2], num_nodes=NODES, seed=3)

    def drawn(nodes: list[int]) -> dict[int, list[int]]:
        block = sampler.blocks(torch.tensor(nodes))[-1]
        target = EDGE_INDEX[1, block.edge_ids]
        return {n: block.edge_ids[target == n].tolist() for n in nodes}

    one, other = drawn([1, 2, 3]), drawn([9, 3, 1])
    assert (one[1], one[3]) == (other[1], other[3])
    sampler.epoch = 1
    assert drawn([1, 2, 3]) != one
    sampler.epoch = 0
    assert drawn([1, 2, 3]) == one
    sampler.seed = 4
    assert drawn([1, 2, 3]) != one
    sampler.seed = None
    assert drawn([1, 2, 3]) != drawn([1, 2, 3])


@pytest.mark.parametrize("seed", [3, None])
@pytest.mark.parametrize("workers", [0, 2])
def test_plain_torch_draws_the_same_batches(data: Data, seed: int | None, workers: int) -> None:
    nodes = torch.tensor([7, 79, 0, 7])  # one of them twice

    def batches() -> list[Tensor]:
        torch.manual_seed(0)
        sampler = NeighborSampler(EDGE_INDEX, [3, -1, 2], num_nodes=NODES, seed=seed)
        found: list[Tensor] = []
        for block in sampler.blocks(nodes):
            found += [block.sources, block.edge_ids, block.edges.pairs]
        for batch in NodeLoader(data, sampler, nodes, batch_size=4, num_workers=workers):
            found += [batch.n_id, batch.e_id, batch.edge_index]
        return found

    found = batches()
    with backend("torch"):
        expected = batches()
    assert all(map(torch.equal, found, expected))


def test_a_seed_that_comes_twice_has_its_edges_twice() -> None:
    nodes = torch.tensor([7, 3, 7])
    sampler = NeighborSampler(EDGE_INDEX, [3], num_nodes=NODES, seed=0)
    (block,) = sampler.blocks(nodes)
    source, target = block.edges.pairs
    assert torch.equal(block.sources[:3], nodes)
    assert torch.equal(block.edge_ids[target == 0], block.edge_ids[target == 2])
    assert torch.equal(EDGE_INDEX[0, block.edge_ids], block.sources[source])


@pytest.fixture
def data() -> Data:
    return Data(
        x=torch.randn(NODES, 4),
        edge_index=EDGE_INDEX,
        edge_attr=torch.randn(EDGES, 2),
        num_nodes=NODES,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_node_loader_runs_without_an_extension(data: Data, workers: int) -> None:
    sampler = NeighborSampler(EDGE_INDEX, [3, 2], num_nodes=NODES, seed=0)
    loader = NodeLoader(data, sampler, torch.arange(40), batch_size=16, num_workers=workers)
    model = gat.GATv2(4, 8, 2, 3, edge_dim=2)
    seen = []
    for batch in loader:
        assert torch.equal(data.x[batch.n_id], batch.x)
        assert torch.equal(data.edge_attr[batch.e_id], batch.edge_attr)
        assert torch.equal(batch.n_id[batch.edge_index], EDGE_INDEX[:, batch.e_id])
        seeds = batch.n_id[: batch.batch_size]
        check_drawn(EDGE_INDEX[1, batch.e_id], batch.e_id, seeds.tolist(), 3)
        sampled = batch.num_sampled_nodes, batch.num_sampled_edges
        trimmed = model(
            batch.x,
            batch.edge_index,
            edge_attr=batch.edge_attr,
            num_sampled_nodes_per_hop=sampled[0],
            num_sampled_edges_per_hop=sampled[1],
        )[: batch.batch_size]
        whole = model(batch.x, batch.edge_index, edge_attr=batch.edge_attr)[: batch.batch_size]
        torch.testing.assert_close(trimmed, whole)
        seen.append(seeds)
    assert torch.equal(torch.cat(seen), torch.arange(40))


def test_link_loader_runs_without_an_extension(data: Data) -> None:
    sampler = NeighborSampler(EDGE_INDEX, [3], num_nodes=NODES)
    loader = LinkLoader(
        data,
        sampler,
        EDGE_INDEX[:, :20],
        neg_sampling=NegativeSampling("binary"),
        batch_size=10,
    )
    for i, batch in enumerate(loader):
        positive = batch.edge_label_index[:, batch.edge_label == 1]
        assert torch.equal(batch.n_id[positive], EDGE_INDEX[:, 10 * i : 10 * i + 10])
        assert batch.edge_label_index.shape == (2, 20)


MODELS: dict[str, Any] = {
    "GAT": lambda: gat.GAT(4, 8, 2, 3, heads=2, edge_dim=2, jk="cat", feed_forward=2),
    "GATv2": lambda: gat.GATv2(4, 8, 3, 3, heads=2, edge_dim=2, dropout=0.5),
    "GraphTransformer": lambda: gat.GraphTransformer(4, 8, 2, 3, heads=2, jk="lstm", edge_dim=2),
    "GraphAttention": lambda: gat.GraphAttention(4, 8, 2, 3, normalizer="sparsemax", edge_dim=2),
    "AGNN": lambda: gat.AGNN(4, 8, 2, 3),
    "GAT as it is tuned": lambda: gat.GAT(
        4,
        8,
        3,
        3,
        heads=2,
        edge_dim=2,
        norm="batch_norm",
        input_projection=True,
        linear_residual=True,
    ),
    "GATv2 with residuals, joined": lambda: gat.GATv2(
        4, 8, 2, 3, edge_dim=2, jk="max", linear_residual=True
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_inference_by_chunks_is_exact(data: Data, name: str) -> None:
    model = MODELS[name]().train()
    attr = None if name == "AGNN" else data.edge_attr
    calls: list[tuple[int, int]] = []
    found = infer(
        model,
        data.x,
        Edges(EDGE_INDEX, NODES, NODES),
        edge_attr=attr,
        chunk=17,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert model.training
    expected = model.eval()(data.x, EDGE_INDEX, edge_attr=attr)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert [done for done, _ in calls] == list(range(1, calls[0][1] + 1))


@pytest.mark.parametrize("fill", [None, "mean"])
def test_inference_over_edges_with_self_loops_of_ones_own(data: Data, fill: str | None) -> None:
    """A layer that adds none has them all the same; one that does needs none."""
    edges = Edges(EDGE_INDEX, NODES, NODES).with_self_loops()
    options: dict[str, Any] = {"edge_dim": 2, "fill_value": fill} if fill else {}
    model = gat.GAT(4, 8, 2, 3, add_self_loops=fill is not None, **options).eval()
    attr = data.edge_attr if fill else None
    found = infer(model, data.x, edges, edge_attr=attr, chunk=17)
    torch.testing.assert_close(found, model(data.x, edges, edge_attr=attr), rtol=1e-6, atol=1e-6)
    model = gat.GAT(4, 8, 2, 3, edge_dim=2, add_self_loops=False)
    with pytest.raises(ValueError, match="edges has self-loops that were added"):
        infer(model, data.x, edges, edge_attr=data.edge_attr)


def test_inference_leaves_every_part_as_it_was(data: Data) -> None:
    model = gat.GAT(4, 8, 2, 3, norm="batch_norm", dropout=0.5).train()
    model.norms.eval()  # frozen, as for fine-tuning
    before = [part.training for part in model.modules()]
    infer(model, data.x, EDGE_INDEX)
    assert [part.training for part in model.modules()] == before


def test_inference_without_nodes() -> None:
    nothing = torch.empty(2, 0, dtype=torch.int64)
    assert infer(gat.GAT(4, 8, 2, 3), torch.empty(0, 4), nothing).shape == (0, 3)


@pytest.mark.parametrize("name", MODELS)
def test_models_take_a_block_for_each_layer(data: Data, name: str) -> None:
    model = MODELS[name]().eval()
    nodes = torch.tensor([5, 3, 77])
    sampler = NeighborSampler(EDGE_INDEX, [-1] * model.num_layers, num_nodes=NODES)
    blocks = sampler.blocks(nodes)
    attr = None if name == "AGNN" else [data.edge_attr[b.edge_ids] for b in blocks]
    found = model(data.x[blocks[0].sources], [b.edges for b in blocks], edge_attr=attr)
    whole = None if name == "AGNN" else data.edge_attr
    expected = model(data.x, EDGE_INDEX, edge_attr=whole)[nodes]
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    if "tuned" in name:
        of_blocks = model.embed(data.x[blocks[0].sources], [b.edges for b in blocks], attr)
        whole = model.embed(data.x, EDGE_INDEX, data.edge_attr)
        torch.testing.assert_close(of_blocks[: len(blocks[-1].sources)][:3], whole[nodes])


def test_sparse_features_go_the_same_ways(data: Data) -> None:
    model = MODELS["GAT as it is tuned"]().eval()
    features, attr = data.x.relu(), data.edge_attr
    sparse = features.to_sparse_csr()
    for compute in (model, model.embed):
        expected = compute(features, EDGE_INDEX, edge_attr=attr)
        torch.testing.assert_close(compute(sparse, EDGE_INDEX, edge_attr=attr), expected)
    plain = gat.GAT(4, 8, 2, 3, linear_residual=True).eval()
    torch.testing.assert_close(plain.embed(sparse, EDGE_INDEX), plain.embed(features, EDGE_INDEX))


def test_a_block_holds_all_edges_into_its_targets() -> None:
    block = block_of(Edges(EDGE_INDEX, NODES, NODES), torch.tensor([9, 2]))
    assert set(block.edge_ids.tolist()) == in_edges(9) | in_edges(2)
    assert block.sources[:2].tolist() == [9, 2]


class OfTypes(nn.Module):
    """RGATConv over edges whose relation is that of their number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = gat.RGATConv(4, 3, 2, heads=2)
        self.register_message_forward_hook = self.conv.register_message_forward_hook

    def forward(self, x: Tensor, edges: Any) -> Tensor:
        ids = torch.arange(EDGES) if isinstance(edges, Tensor) else self.edge_ids
        return self.conv(x, edges, ids % 2)


LAYERS: dict[str, Any] = {
    "AGNNConv": lambda: gat.AGNNConv(),
    "GeneralConv": lambda: gat.GeneralConv(4, 3, heads=2, attention=True, directed_msg=False),
    "GeneralConv, dot": lambda: gat.GeneralConv(
        4, 3, attention=True, attention_type="dot_product", directed_msg=False
    ),
    "GeneralConv, plain": lambda: gat.GeneralConv(4, 3, aggr="mean"),
    "RGATConv": OfTypes,
    "SuperGATConv": lambda: gat.SuperGATConv(4, 3, 2),
    "SuperGATConv, SD": lambda: gat.SuperGATConv(4, 3, 2, attention_type="SD").eval(),
    "GATConv": lambda: gat.GATConv(4, 3, 2, residual=True),
    "GATv2Conv": lambda: gat.GATv2Conv(4, 3, 2, share_weights=True),
    "TransformerConv": lambda: gat.TransformerConv(4, 3, 2),
    "GraphAttentionConv": lambda: gat.GraphAttentionConv(4, 3, 2, share_weights=True),
}


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_first_sources_of_a_block_are_its_targets(data: Data, name: str, watched: bool) -> None:
    layer, nodes = LAYERS[name](), torch.tensor([3, 8, 20])
    expected = layer(data.x, EDGE_INDEX)[nodes]
    if watched:
        layer.register_message_forward_hook(lambda *_: None)
    block = block_of(Edges(EDGE_INDEX, NODES, NODES), nodes)
    layer.edge_ids = block.edge_ids
    if watched and name.startswith("SuperGATConv"):
        with pytest.raises(ValueError, match="messages SuperGATConv cannot show to hooks"):
            layer(data.x[block.sources], block.edges)
        return
    torch.testing.assert_close(layer(data.x[block.sources], block.edges), expected)
    with pytest.raises(TypeError, match="to_dense"):
        layer(data.x[block.sources].to_sparse_csr(), block.edges)


def test_what_a_block_does_not_know_is_refused(data: Data) -> None:
    nodes = torch.tensor([3, 8, 20])
    block = block_of(Edges(EDGE_INDEX, NODES, NODES), nodes)
    x = data.x[block.sources]
    with pytest.raises(ValueError, match="a block, which does not know the degrees"):
        gat.FAConv(4)(x, x, block.edges)
    with pytest.raises(ValueError, match="with cached=True, to keep one graph for all calls"):
        gat.FAConv(4, cached=True)(x, x, block.edges)
    weight = torch.rand(EDGES)
    conv = gat.FAConv(4, normalize=False)
    expected = conv(data.x, data.x, EDGE_INDEX, weight)[nodes]
    found = conv(x, x, block.edges, weight[block.edge_ids])
    torch.testing.assert_close(found, expected)
    conv = gat.SuperGATConv(4, 3)
    conv(x, block.edges)
    with pytest.raises(ValueError, match="there is no loss of pairs"):
        conv.get_attention_loss()
    with pytest.raises(ValueError, match="neg_edge_index was given, but edge_index is Edges"):
        conv(x, block.edges, neg_edge_index=torch.tensor([[0], [1]]))


def test_wrong_arguments_are_named() -> None:
    sampler = NeighborSampler(EDGE_INDEX, [1], num_nodes=NODES)
    for wrong in (-1, NODES):
        with pytest.raises(IndexError, match=f"nodes has the entry {wrong}; expected 0 to 79"):
            sampler.blocks(torch.tensor([0, wrong]))
    with pytest.raises(TypeError, match=r"nodes is torch\.float32; expected a tensor of integers"):
        sampler.blocks(torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"nodes has shape \[1, 1\]"):
        sampler.blocks(torch.tensor([[0]]))
    with pytest.raises(IndexError, match="targets has the entry 80"):
        block_of(Edges(EDGE_INDEX, NODES, NODES), torch.tensor([80]))
    with pytest.raises(ValueError, match=r"num_neighbors is \[\]"):
        NeighborSampler(EDGE_INDEX, [])
    with pytest.raises(ValueError, match="from 3 to 2 nodes"):
        NeighborSampler(Edges(torch.tensor([[0], [1]]), 3, 2), [1])
    model = gat.GAT(4, 8, 2, 3)
    with pytest.raises(ValueError, match="chunk is 0"):
        infer(model, torch.zeros(NODES, 4), EDGE_INDEX, chunk=0)
    with pytest.raises(ValueError, match="features has 3 rows"):
        infer(model, torch.zeros(3, 4), Edges(EDGE_INDEX, NODES, NODES))
    with pytest.raises(ValueError, match="a LayerNorm, which looks at all nodes at once"):
        infer(gat.GAT(4, 8, 2, 3, norm="layer_norm"), torch.zeros(NODES, 4), EDGE_INDEX)


# What follows runs in a process of its own, whose memory is limited
NUM, WIDTH = 600_000, 128  # 150 MB of features
LIMIT = 100 * 2**20


def out_of_core(path: str) -> None:
    """Train by sampling and infer, where the features do not fit into the memory allowed."""
    import resource

    torch.set_num_threads(1)
    shape = NUM, WIDTH
    features = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    for i in range(0, NUM, 10_000):
        rows = torch.randn(10_000, WIDTH, generator=torch.Generator().manual_seed(i))
        features[i : i + 10_000] = rows.half().numpy()
    features.flush()
    del features
    features = np.load(path, mmap_mode="r")
    node = torch.arange(NUM)
    edge_index = torch.stack([node, (node * 7 + 3) % NUM])
    edges = Edges.from_edge_index(torch.cat([edge_index, edge_index.flip(0)], 1), NUM)
    model = gat.GAT(WIDTH, 8, 2, 3, heads=2)
    sampler = NeighborSampler(edges, [2, 2], seed=0)

    def memory(what: str) -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if what in x)
        return int(line.split()[1]) * 1024

    sampler.blocks(torch.arange(8))  # what is made once
    used = memory("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (used + LIMIT, used + LIMIT))
    try:
        torch.from_numpy(np.array(features))
    except MemoryError:
        print("the features do not fit")
    optimizer = torch.optim.Adam(model.parameters())
    for nodes in torch.randperm(NUM)[:2048].split(1024):
        blocks = sampler.blocks(nodes)
        x = rows_of(features, blocks[0].sources, torch.float32)
        model(x, [b.edges for b in blocks]).square().mean().backward()
        optimizer.step()
    before, peak = memory("VmRSS"), 0

    def watch(done: int, total: int) -> None:
        nonlocal peak
        peak = max(peak, memory("VmRSS"))

    found = infer(model, features, edges, chunk=2048, progress=watch)
    assert peak - before < NUM * WIDTH * 2 / 2, (peak - before) / 2**20
    with torch.no_grad():
        some = block_of(edges, torch.arange(0, NUM, 997))
        inner = block_of(edges, some.sources)
        x = torch.from_numpy(features[inner.sources.numpy()]).float()
        expected = model.eval()(x, [inner.edges, some.edges])
    assert (found[::997] - expected).abs().max() < 1e-6
    print("inferred")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_features_need_not_fit_into_memory(tmp_path: Path) -> None:
    code = "import runpy, sys; runpy.run_path(sys.argv[1])['out_of_core'](sys.argv[2])"
    ended = subprocess.run(
        [sys.executable, "-c", code, __file__, str(tmp_path / "features.npy")],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split("\n")[:2] == ["the features do not fit", "inferred"]
