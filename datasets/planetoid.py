"""The citation graphs Cora, Citeseer and Pubmed, with the public split that papers report on."""

import collections
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch_geometric.data import Data
from torch_geometric.utils import index_to_mask, remove_self_loops, to_undirected

from .fetch import fetch

URL = "https://raw.githubusercontent.com/kimiyoung/planetoid/master/data/"

SHA256 = {
    "cora": {
        "x": "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab",
        "tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
        "allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
        "y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
        "ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
        "ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
        "graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
        "test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    },
    "citeseer": {
        "x": "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6",
        "tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
        "allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
        "y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
        "ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
        "ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
        "graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
        "test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    },
    "pubmed": {
        "x": "fbe9cb5c47200d1b7769a26e579be3b7130b556831f9d850e77c4c74f2599b33",
        "tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
        "allx": "508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e",
        "y": "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
        "ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
        "ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
        "graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
        "test.index": "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
    },
}

# The files carry numbers only. The names of Cora and Citeseer follow from the sizes of the
# classes, which all differ; for Pubmed published lists contradict each other, so it keeps numbers.
CLASS_NAMES = {
    "cora": [
        "Theory",
        "Reinforcement Learning",
        "Genetic Algorithms",
        "Neural Networks",
        "Probabilistic Methods",
        "Case Based",
        "Rule Learning",
    ],
    "citeseer": ["AI", "ML", "IR", "DB", "Agents", "HCI"],
    "pubmed": ["0", "1", "2"],
}


def planetoid(name: str, *, normalize_features: bool = True) -> Data:
    """Return a citation graph with its public split: 20 training papers per class, 500, 1000.

    Papers are nodes, citations undirected edges, and the features are the words of a paper (0 or
    1 in Cora and Citeseer, TF-IDF in Pubmed). With ``normalize_features`` each row is divided by
    its sum, as in the paper on graph attention networks (Velickovic et al., 2018):

        x[i, f] / sum over f' of x[i, f']

    Graphs, features, labels and masks equal those of ``torch_geometric.datasets.Planetoid``:
    duplicate edges and self-loops are removed, and the 15 papers of Citeseer that are known only
    by their citations get zero features and class 0, and are in no mask. (Split: Yang, Cohen,
    Salakhutdinov, Revisiting Semi-Supervised Learning with Graph Embeddings, 2016.)

    The files come from the authors' repository, or from ``$GAT_DATA/planetoid`` where the
    environment variable ``GAT_DATA`` is set. They are pickles: each is opened only after its
    sha256 has matched.

    Args:
        name: "cora", "citeseer" or "pubmed".
        normalize_features: divide each row of features by its sum (default), or leave it.

    Returns:
        Data with ``x`` ``[N, F]``, ``edge_index`` with both directions of each edge, ``y``, the
        masks, ``name`` and ``class_names``. N, undirected edges, F and classes are 2708, 5278,
        1433, 7 (cora); 3327, 4552, 3703, 6 (citeseer); 19717, 44324, 500, 3 (pubmed).

    Raises:
        ValueError: ``name`` is none of the three.
        DataFileError: a file is missing, cannot be downloaded, or has another hash.

    Example:
        >>> data = planetoid("cora")  # doctest: +SKIP
        >>> data.num_nodes, data.num_edges // 2  # doctest: +SKIP
        (2708, 5278)
        >>> planetoid("Cora")
        Traceback (most recent call last):
        ValueError: name must be one of 'cora', 'citeseer', 'pubmed', got 'Cora'
    """
    if name not in SHA256:
        raise ValueError(f"name must be one of {str(list(SHA256))[1:-1]}, got {name!r}")
    files = {
        part: fetch(f"ind.{name}.{part}", f"{URL}ind.{name}.{part}", sha256, "planetoid")
        for part, sha256 in SHA256[name].items()
    }
    test = np.loadtxt(files.pop("test.index"), dtype=np.int64)  # node of each row of tx and ty
    parts = {part: _unpickle(path) for part, path in files.items()}
    num_train, num_known = len(parts["y"]), len(parts["ally"])

    # Rows that neither allx nor tx fills are papers known only by their citations.
    num_nodes = int(test.max()) + 1
    features = np.zeros((num_nodes, parts["allx"].shape[1]), dtype=np.float32)
    features[:num_known], features[test] = parts["allx"].toarray(), parts["tx"].toarray()
    one_hot = np.zeros((num_nodes, parts["ally"].shape[1]), dtype=np.int64)
    one_hot[:num_known], one_hot[test] = parts["ally"], parts["ty"]

    x = torch.from_numpy(features)
    if normalize_features:
        total = x.sum(dim=1, keepdim=True)
        x = x / total.masked_fill(total == 0, 1)

    links = [(paper, cited) for paper, all_cited in parts["graph"].items() for cited in all_cited]
    edge_index, _ = remove_self_loops(torch.tensor(links).t())
    return Data(
        x=x,
        edge_index=to_undirected(edge_index, num_nodes=num_nodes),
        y=torch.from_numpy(one_hot.argmax(axis=1)),
        train_mask=index_to_mask(torch.arange(num_train), num_nodes),
        val_mask=index_to_mask(torch.arange(num_train, num_train + 500), num_nodes),
        test_mask=index_to_mask(torch.from_numpy(test), num_nodes),
        name=name,
        class_names=list(CLASS_NAMES[name]),
    )


class _Unpickler(pickle.Unpickler):
    """Builds the types that the files hold, by their old names, and nothing else."""

    known: ClassVar[dict[tuple[str, str], Any]] = {
        ("scipy.sparse.csr", "csr_matrix"): csr_matrix,
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "defaultdict"): collections.defaultdict,
        ("__builtin__", "list"): list,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.known:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a Planetoid file")
        return self.known[module, name]


def _unpickle(path: Path) -> Any:
    with path.open("rb") as file:
        return _Unpickler(file, encoding="latin1").load()  # written by Python 2
