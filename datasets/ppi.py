"""Protein-protein interactions: 24 graphs of human tissues, some of which are never trained on."""

import io
import json
import zipfile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import remove_self_loops, to_undirected

from .fetch import DataFileError, fetch

# The hash of this archive, 7,088,822 bytes, as published by those who pin it; see `ppi`.
URL = "https://data.dgl.ai/dataset/ppi.zip"
SHA256 = "1f5b2b09ac0f897fa6aa1338c64ab75a5473674cbba89380120bede8cddb2a6a"


class PPIGraphs(NamedTuple):
    """The graphs to train on, to validate on and to test on.

    Attributes:
        train, val, test: each graph has ``x`` (float32, ``[N, 50]``), ``edge_index`` (int64,
            ``[2, E]``) and ``y`` (float32, ``[N, 121]``: 1 for each label that a protein has).
    """

    train: list[Data]
    val: list[Data]
    test: list[Data]


def ppi() -> PPIGraphs:
    """Return the protein-protein interactions of 24 tissues: 20 to train on, 2 and 2 to judge by.

    Nodes are proteins, and edges say that two interact. The 50 features are positional gene sets,
    motif gene sets and immunological signatures; the 121 labels, of which a protein has several,
    are its roles (gene ontology). Models that are tested on tissues they have never seen are called
    inductive. (Zitnik, Leskovec, Predicting Multicellular Function through Multi-Layer Tissue
    Networks, 2017; Hamilton, Ying, Leskovec, Inductive Representation Learning on Large Graphs,
    2017.)

    The archive is that of ``torch_geometric.datasets.PPI``, with the same graphs, features and
    labels. It comes from its address, or from ``$GAT_DATA/ppi/ppi.zip`` where the environment
    variable ``GAT_DATA`` is set, and is opened only if its sha256 is the one that other libraries
    for graphs pin. It is read anew at every call: no file made of it is kept, which would have no
    such hash.

    Returns:
        PPIGraphs of ``Data`` with ``x``, ``edge_index`` and ``y``.

    Raises:
        DataFileError: the archive is missing, cannot be downloaded, or has another hash.

    Example:
        >>> graphs = ppi()  # doctest: +SKIP
        >>> len(graphs.train), len(graphs.val), len(graphs.test)  # doctest: +SKIP
        (20, 2, 2)
    """
    path = fetch("ppi.zip", URL, SHA256, "ppi")
    try:
        with zipfile.ZipFile(path) as archive:
            return PPIGraphs(*(_graphs(archive, split) for split in ("train", "valid", "test")))
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataFileError(f"{path} is not the archive of PPI: {error}") from error


def _graphs(archive: zipfile.ZipFile, split: str) -> list[Data]:
    """The graphs of a split, whose nodes the archive numbers through."""

    def array(part: str, dtype: torch.dtype) -> Tensor:
        content = io.BytesIO(archive.read(f"{split}_{part}.npy"))
        return torch.from_numpy(np.load(content, allow_pickle=False)).to(dtype)

    x, y = array("feats", torch.float), array("labels", torch.float)
    graph_id = array("graph_id", torch.long)
    links: list[dict[str, Any]] = json.loads(archive.read(f"{split}_graph.json"))["links"]
    ends = [[link["source"] for link in links], [link["target"] for link in links]]
    edge_index, _ = remove_self_loops(torch.tensor(ends, dtype=torch.long).view(2, -1))
    edge_index = to_undirected(edge_index, num_nodes=len(x))
    graphs = []
    for number in graph_id.unique().tolist():
        inside = graph_id == number
        place = inside.cumsum(0) - 1  # of each node among those of its graph
        own = inside[edge_index].all(dim=0)
        graphs.append(Data(x=x[inside], edge_index=place[edge_index[:, own]], y=y[inside]))
    return graphs
