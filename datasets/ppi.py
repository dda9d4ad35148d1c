"""Protein-protein interactions: 24 graphs of human tissues, some of which are never trained on."""

import os
import tempfile
import zipfile
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch_geometric
from torch_geometric.data import Data
from torch_geometric.datasets import PPI

from .fetch import DataFileError, cache_folder, fetch

# The hash of this archive, 7,088,822 bytes, as published by those who pin it; see `ppi`.
URL = "https://data.dgl.ai/dataset/ppi.zip"
SHA256 = "1f5b2b09ac0f897fa6aa1338c64ab75a5473674cbba89380120bede8cddb2a6a"
RAW = [
    f"{split}_{part}"
    for split, part in product(
        ("train", "valid", "test"), ("feats.npy", "graph_id.npy", "graph.json", "labels.npy")
    )
]


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

    The archive is that of ``torch_geometric.datasets.PPI``, which reads it here too. It comes from
    its address, or from ``$GAT_DATA/ppi/ppi.zip`` where the environment variable ``GAT_DATA`` is
    set, and is opened only if its sha256 is the one that other libraries for graphs pin. What
    torch_geometric makes of it is kept in ``cache_folder()/ppi``.

    Returns:
        PPIGraphs of ``Data`` with ``x``, ``edge_index`` and ``y``.

    Raises:
        DataFileError: the archive is missing, cannot be downloaded, or has another hash.

    Example:
        >>> graphs = ppi()  # doctest: +SKIP
        >>> len(graphs.train), len(graphs.val), len(graphs.test)  # doctest: +SKIP
        (20, 2, 2)
    """
    archive = fetch("ppi.zip", URL, SHA256, "ppi")
    folder = cache_folder() / "ppi" / f"{SHA256[:12]}-{torch_geometric.__version__}"
    if not folder.exists():
        _read(archive, folder)
    train, val, test = (list(PPI(str(folder), split)) for split in ("train", "val", "test"))
    return PPIGraphs(train, val, test)


def _read(archive: Path, folder: Path) -> None:
    """Have torch_geometric make its files of the archive; the folder appears when all are there."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            root = Path(temporary, "ppi")
            with zipfile.ZipFile(archive) as content:
                for name in RAW:
                    content.extract(name, root / "raw")
            PPI(str(root))
            os.replace(root, folder)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataFileError(f"{archive} is not the archive of PPI: {error}") from error
    except OSError as error:
        if not folder.exists():  # another process may have been faster
            raise DataFileError(
                f"cannot write to {folder.parent}: {error}; set GAT_CACHE to a writable folder"
            ) from error
