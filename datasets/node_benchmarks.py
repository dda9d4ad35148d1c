"""Graphs that tuned baselines are compared on, with the splits that papers report on."""

import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import index_to_mask, remove_self_loops, to_undirected

from .fetch import fetch
from .files import _UNREADABLE, GraphFileError, _error, _read_array

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
    data = from_npz(path)
    data.name = name
    return data


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

    data = from_npz(path(file, of_graph), splits=1)  # in the place of which comes the published one
    data.name = name
    with np.load(path(f"{file}_split", of_split)) as found:
        for split, key in (("train", "train"), ("val", "valid"), ("test", "test")):
            mask = index_to_mask(torch.from_numpy(found[key]).long(), size=data.num_nodes)
            data[f"{split}_mask"] = mask.unsqueeze(1)
    return data


def from_npz(path: str | os.PathLike[str], *, splits: int = 10) -> Data:
    """Read a graph from one npz file, in either of the layouts that graph benchmarks come in.

    - ``node_features`` ``[N, F]``, ``node_labels`` ``[N]``, ``edges`` ``[E, 2]`` and perhaps
      ``train_masks``, ``val_masks``, ``test_masks`` ``[S, N]``: Platonov et al., 2023.
    - ``adj_data``, ``adj_indices``, ``adj_indptr``, ``adj_shape`` and ``attr_...``, two matrices in
      CSR, and ``labels`` ``[N]``: Shchur et al., 2018. Features are divided by their sum, as is
      the custom there.

    Edges become undirected, without self-loops. Other arrays in the file are not read, so that
    they may hold objects.

    Args:
        path: of the file.
        splits: how many are drawn where the file has none: each 60 % of the nodes to train on, 20 %
            to validate and 20 % to test.

    Returns:
        A graph as in `datasets`, whose masks are ``[N, S]``: a column for each split. A label
        below 0 means unknown, and its node is in no split.

    Raises:
        GraphFileError: the file cannot be read, lacks an array, or has one that does not fit; a
            split has no node to train on, to validate or to test.
        ValueError: ``splits`` is below 1.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "ring.npz")
        ...     ring = np.stack([np.arange(10), np.arange(10) - 9], axis=1) % 10
        ...     np.savez(
        ...         path, node_features=np.eye(10), node_labels=np.arange(10) % 2, edges=ring
        ...     )
        ...     data = from_npz(path, splits=3)
        >>> data.num_edges, data.train_mask.shape, data.train_mask.sum(0).tolist()
        (20, torch.Size([10, 3]), [6, 6, 6])
    """
    if splits < 1:
        raise ValueError(f"splits is {splits}; draw one at least")
    path, masks = Path(path), {}
    found = _read(path)
    if "edges" in found:
        x, y, edges = (found[name] for name in PLATONOV)
        if edges.ndim != 2 or edges.shape[1] != 2:
            problem = f"edges have shape {list(edges.shape)}"
            raise _error(path, None, problem, "save one row per edge, [source, target]")
        for split in ("train", "val", "test"):
            if f"{split}_masks" in found:
                masks[f"{split}_mask"] = torch.from_numpy(found[f"{split}_masks"]).bool().t()
    else:
        y = found["labels"]
        adjacency, attributes = (_matrix(path, found, kind) for kind in ("adj", "attr"))
        adjacency = adjacency.tocoo()
        edges = np.stack([adjacency.row, adjacency.col], axis=1)
        x = attributes.toarray()
        x = x / np.maximum(x.sum(1, keepdims=True), 1)
    nodes = len(y)
    if y.ndim != 1 or y.dtype.kind not in "iu" or not nodes:
        problem = f"labels are {y.dtype} of shape {list(y.shape)}"
        raise _error(path, None, problem, "save one whole number per node")
    if x.ndim != 2 or len(x) != nodes or not np.isfinite(x).all():
        problem = f"features of shape {list(x.shape)} for {nodes} labels, or not finite"
        raise _error(path, None, problem, "save a row of finite numbers per node")
    if edges.dtype.kind not in "iu" or (edges.size and not 0 <= edges.min() <= edges.max() < nodes):
        ends = f", {edges.min()} to {edges.max()}" if edges.size else ""
        problem = f"edges are {edges.dtype}{ends}"
        raise _error(path, None, problem, f"number the {nodes} nodes from 0")
    labels = torch.from_numpy(y.astype(np.int64))
    if not masks:
        masks = _drawn(labels, splits)
    for name, mask in masks.items():
        if len(masks) < 3 or mask.shape != (nodes, len(masks["train_mask"].t())):
            there = ", ".join(f"{name}s" for name in masks)
            problem = f"of {there}, {name}s has shape {list(mask.t().shape)}"
            raise _error(path, None, problem, f"save all three as [splits, {nodes}], or none")
        masks[name] = mask = mask & (labels >= 0)[:, None]
        if not mask.any(0).all():
            problem = f"in a split, no node with a label is in {name}s"
            raise _error(path, None, problem, "label more nodes, or put some into it")
    return _graph(path.stem, torch.from_numpy(x).float(), torch.from_numpy(edges).long().t(),
                  labels, masks)  # fmt: skip


PLATONOV = ("node_features", "node_labels", "edges")
_OF_CSR = ("data", "indices", "indptr", "shape")
SHCHUR = (*(f"adj_{part}" for part in _OF_CSR), *(f"attr_{part}" for part in _OF_CSR), "labels")


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one of the layouts."""
    wanted = {*PLATONOV, "train_masks", "val_masks", "test_masks", *SHCHUR}
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if not ({*PLATONOV} <= names or {*SHCHUR} <= names):
                problem = f"it has the arrays {', '.join(sorted(names)) or 'of no name'}"
                mend = f"save {', '.join(PLATONOV)}; or {', '.join(SHCHUR)}"
                raise _error(path, None, problem, mend)
            return {name: _read_array(archive, f"{name}.npy") for name in wanted & names}
    except GraphFileError:
        raise
    except _UNREADABLE as error:
        mend = "write it with numpy.savez, without object arrays"
        raise _error(path, None, f"no readable npz file ({error})", mend) from error


def _matrix(path: Path, found: dict[str, np.ndarray], kind: str) -> csr_matrix:
    parts = tuple(found[f"{kind}_{part}"] for part in ("data", "indices", "indptr"))
    try:
        matrix = csr_matrix(parts, shape=found[f"{kind}_shape"])
        matrix.check_format()
    except (ValueError, TypeError, IndexError) as error:
        raise _error(path, None, f"{kind}_... are no matrix ({error})", "save a CSR") from error
    return matrix


def _drawn(y: Tensor, splits: int) -> dict[str, Tensor]:
    """Splits of the nodes that have a label."""
    known = torch.nonzero(y >= 0).flatten()
    ends = len(known) * 6 // 10, len(known) * 8 // 10
    masks: dict[str, list[Tensor]] = {"train_mask": [], "val_mask": [], "test_mask": []}
    for seed in range(splits):
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
        for name, part in zip(masks, known[order].tensor_split(ends), strict=True):
            masks[name].append(index_to_mask(part, size=len(y)))
    return {name: torch.stack(of_splits, 1) for name, of_splits in masks.items()}


def _check(name: str, known: dict) -> None:
    if name not in known:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(map(repr, known))}")


def _graph(name: str, x: Tensor, edges: Tensor, y: Tensor, masks: dict[str, Tensor]) -> Data:
    edges = to_undirected(remove_self_loops(edges)[0], num_nodes=len(y))
    names = [str(label) for label in range(int(y.max()) + 1)]
    return Data(x=x, edge_index=edges, y=y, name=name, class_names=names, **masks)
