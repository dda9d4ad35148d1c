"""Graphs that tuned baselines are compared on, with the splits that papers report on."""

from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import index_to_mask, remove_self_loops, to_undirected

from .fetch import fetch

HETEROPHILOUS_URL = (
    "https://raw.githubusercontent.com/yandex-research/heterophilous-graphs/"
    "a431395582e929d88271309716bea4fe24ce6318/data/"
)
GNN_BENCHMARK_URL = "https://github.com/shchur/gnn-benchmark/tree/master/data/npz#"
HETEROPHILOUS = {
    "minesweeper": "e664c8dacf1e8ac466c2c09ed4b237bd2c5541f47a6eae9c6092cb87f16412b3",
    "squirrel-filtered": "f06370ffb3116c5de8b7a600005400b2293c025e0ce2f6916d8201a825505ac7",
    "chameleon-filtered": "bf46f07e1fb5249280447e5fe3100f3e82fc4b93ad1e13ffcfdec924b6ac0bb5",
}
# The folder, the file, and the hashes of the graph and of its split
GNN_BENCHMARK = {
    "computers": (
        "amazon",
        "amazon_electronics_computers",
        "be58a1ec75405bfb2f9917b85cc34eb29c606df5a988da355468dda97d19b753",
        "2e9b3084d16de9d80791bdd664b56060bd39a648e10a591932af9eb718811030",
    ),
    "coauthor-cs": (
        "coauthor",
        "ms_academic_cs",
        "7bbda0ec297bb44efc712cc59f9e9a6c9ac959e5c4848e311bc7e011b0be5753",
        "103ac30e99d244dae509290dbfed07ef792edaaa2fa01818baf802a98e252f50",
    ),
}


def heterophilous(name: str) -> Data:
    """Return a graph whose neighbours mostly differ, with its ten splits.

    Edges are undirected, without self-loops. Platonov, Kuznedelev, Diskin, Babenko, Prokhorenkova,
    "A Critical Look at the Evaluation of GNNs under Heterophily", 2023; squirrel and chameleon
    are those without the duplicates that the authors found.

    Args:
        name: ``"minesweeper"``, ``"squirrel-filtered"`` or ``"chameleon-filtered"``.

    Returns:
        A graph as in `datasets`, whose masks are ``[N, 10]``: a column for each split.

    Raises:
        ValueError: there is no such graph.
        DataFileError: see `datasets.fetch`.
    """
    _check(name, HETEROPHILOUS)
    file = f"{name.replace('-', '_')}.npz"
    path = fetch(file, HETEROPHILOUS_URL + file, HETEROPHILOUS[name], "heterophilous")
    with np.load(path) as found:
        masks = {
            f"{split}_mask": torch.from_numpy(found[f"{split}_masks"]).t().contiguous()
            for split in ("train", "val", "test")
        }
        x = torch.from_numpy(found["node_features"]).float()
        y, edges = (torch.from_numpy(found[key]).long() for key in ("node_labels", "edges"))
    return _graph(name, x, edges.t(), y, masks)


def gnn_benchmark(name: str) -> Data:
    """Return a graph of products bought together, or of authors, with one split.

    Features are divided by their sum, edges are undirected, without self-loops. Shchur, Mumme,
    Bojchevski, Günnemann, "Pitfalls of Graph Neural Network Evaluation", 2018; the split is that
    of Luo, Shi, Wu, "Classic GNNs are Strong Baselines", 2024. Both files are read from
    ``GAT_DATA`` alone: ``data/README.md`` there says how they were made without pickled objects.

    Args:
        name: ``"computers"`` or ``"coauthor-cs"``.

    Returns:
        A graph as in `datasets`, whose masks are ``[N, 1]``.

    Raises:
        ValueError: there is no such graph.
        DataFileError: see `datasets.fetch`.
    """
    _check(name, GNN_BENCHMARK)
    folder, file, of_graph, of_split = GNN_BENCHMARK[name]

    def path(name: str, sha256: str) -> Path:
        return fetch(f"{name}.npz", GNN_BENCHMARK_URL + name, sha256, folder)

    with np.load(path(file, of_graph)) as found:
        parts = [
            csr_matrix(
                tuple(found[f"{matrix}_{part}"] for part in ("data", "indices", "indptr")),
                shape=found[f"{matrix}_shape"],
            )
            for matrix in ("adj", "attr")
        ]
        adjacency, features = parts[0].tocoo(), torch.from_numpy(parts[1].toarray()).float()
        y = torch.from_numpy(found["labels"]).long()
    with np.load(path(f"{file}_split", of_split)) as found:
        masks = {
            f"{split}_mask": index_to_mask(
                torch.from_numpy(found[key]).long(), size=len(y)
            ).unsqueeze(1)
            for split, key in (("train", "train"), ("val", "valid"), ("test", "test"))
        }
    edges = torch.from_numpy(np.stack([adjacency.row, adjacency.col])).long()
    x = features / features.sum(1, keepdim=True).clamp(min=1)
    return _graph(name, x, edges, y, masks)


def _check(name: str, known: dict) -> None:
    if name not in known:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(map(repr, known))}")


def _graph(name: str, x: Tensor, edges: Tensor, y: Tensor, masks: dict[str, Tensor]) -> Data:
    edges = to_undirected(remove_self_loops(edges)[0], num_nodes=len(y))
    names = [str(label) for label in range(int(y.max()) + 1)]
    return Data(x=x, edge_index=edges, y=y, name=name, class_names=names, **masks)
