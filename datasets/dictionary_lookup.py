"""DictionaryLookup: graphs in which every query must find the key of its own name."""

import math
from itertools import permutations
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data


class LookupGraphs(Dataset[Data]):
    """Dictionaries as graphs: ``graphs[i]`` is one, ``graphs.batch(indices)`` several side by side.

    Each is a ``Data`` with k query nodes, then k key nodes, and an edge from every key to every
    query: ``x`` (int64, ``[2k, 2]``: attribute 0 … k - 1, and value; that of a query is k, which
    stands for "unknown"), ``edge_index`` (``[2, k²]``), ``y`` (``[k]``, the values that the queries
    must find) and ``query_mask`` (bool, ``[2k]``).

    Args:
        values: int64 ``[G, k]``: in each of G graphs, the value of the key of each attribute.

    Raises:
        ValueError: a row of ``values`` is no permutation of 0 … k - 1.

    Example:
        >>> graphs = LookupGraphs(torch.tensor([[1, 0], [0, 1]]))
        >>> graphs[0].x.tolist()
        [[0, 2], [1, 2], [0, 1], [1, 0]]
        >>> graphs[0].edge_index.tolist()
        [[2, 2, 3, 3], [0, 1, 0, 1]]
        >>> graphs[0].y.tolist()
        [1, 0]
    """

    def __init__(self, values: Tensor) -> None:
        if values.dim() != 2 or values.dtype != torch.int64:
            raise ValueError(
                f"values must be int64 of shape [graphs, k], got {values.dtype} of shape"
                f" {list(values.shape)}"
            )
        places = torch.arange(values.shape[1])
        wrong = (values.sort(dim=1).values != places).any(dim=1)
        if wrong.any():
            raise ValueError(
                f"each row of values must be a permutation of 0 … {len(places) - 1}, got"
                f" {values[wrong][0].tolist()}"
            )
        self.values = values

    @property
    def k(self) -> int:
        """The keys, and the queries, of each graph."""
        return self.values.shape[1]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> Data:
        return self._joined(self.values[index][None])

    def batch(self, indices: Tensor | slice) -> Data:
        """Return the graphs of these numbers (int64 ``[B]``, or a slice) as one graph.

        Their nodes come one graph after the other; no edge joins two of them.

        Example:
            >>> LookupGraphs(torch.tensor([[0], [0]])).batch(slice(None)).edge_index.tolist()
            [[1, 3], [0, 2]]
        """
        return self._joined(self.values[indices])

    def _joined(self, values: Tensor) -> Data:
        graphs, k = values.shape
        attribute = torch.arange(k).repeat(graphs, 2)  # [graphs, 2k]
        value = torch.cat([torch.full_like(values, k), values], dim=1)
        edge = torch.cartesian_prod(torch.arange(k, 2 * k), torch.arange(k)).t()  # key -> query
        first = 2 * k * torch.arange(graphs)
        return Data(
            x=torch.stack([attribute, value], dim=2).flatten(0, 1),
            edge_index=(edge[:, None] + first[:, None]).flatten(1),
            y=values.flatten(),
            query_mask=(torch.arange(2 * k) < k).repeat(graphs),
        )


class DictionaryLookup(NamedTuple):
    """Graphs to train on, and graphs to test on.

    Attributes:
        train: graphs all of whose keys and values were paired in training.
        test: graphs with a pair that does not occur in training, at least one each.
        seen: bool ``[k, k]``, which values a key may have in training.
    """

    train: LookupGraphs
    test: LookupGraphs
    seen: Tensor


def dictionary_lookup(
    k: int = 10,
    *,
    seed: int = 0,
    train_fraction: float = 0.8,
    max_graphs: int = 32_000,
) -> DictionaryLookup:
    """Write dictionaries of k keys as bipartite graphs, and ask for the value of each key.

    The benchmark of S. Brody, U. Alon, E. Yahav, How Attentive are Graph Attention Networks?,
    ICLR 2022, as its authors generate it. A graph has k keys, each with an attribute of its own and
    a value, and k queries, each with the attribute of one key; each query hears from all keys, and
    must tell the value of its own. The values are a permutation, so who listens to the same key as
    everybody else is right in one query, and left to guess in the others.

    Every permutation makes a graph if there are at most ``max_graphs`` (k! of them), else so many
    are drawn, with replacement. Of the k² pairs of a key and a value ⌊k² · train_fraction^(1/k)⌋
    are drawn; graphs made of these alone are trained on, the others tested on. What is tested is
    thus whether a network looks up pairs that it has never seen.

    Args:
        k: keys of each graph, at least 2.
        seed: of the permutations, of the pairs and of the order of the graphs to train on.
        train_fraction: about the share of graphs to train on, between 0 and 1.
        max_graphs: graphs in all, at most.

    Returns:
        DictionaryLookup(train, test, seen).

    Raises:
        ValueError: an argument is out of range, or nothing is left to train or to test on.

    Example:
        >>> data = dictionary_lookup(4)
        >>> len(data.train) + len(data.test), int(data.seen.sum())
        (24, 15)
        >>> data.train[0]
        Data(x=[8, 2], edge_index=[2, 16], y=[4], query_mask=[8])
    """
    if k < 2:
        raise ValueError(f"k must be at least 2, got {k}: with one key there is nothing to look up")
    if not 0 < train_fraction < 1:
        raise ValueError(f"train_fraction must lie between 0 and 1, got {train_fraction}")
    if max_graphs < 2:
        raise ValueError(f"max_graphs must be at least 2, got {max_graphs}")
    rng = np.random.default_rng(seed)
    if math.factorial(k) <= max_graphs:
        rows = np.array(list(permutations(range(k))))
    else:
        rows = rng.permuted(np.tile(np.arange(k), (max_graphs, 1)), axis=1)
    num_pairs = int(k**2 * train_fraction ** (1 / k))
    seen = np.zeros((k, k), dtype=bool)
    seen.flat[rng.choice(k**2, num_pairs, replace=False)] = True
    in_train = seen[np.arange(k), rows].all(axis=1)
    train, test = rng.permutation(rows[in_train]), rows[~in_train]
    if not len(train) or not len(test):
        raise ValueError(
            f"with k={k}, train_fraction={train_fraction} and max_graphs={max_graphs} there are"
            f" {len(train)} graphs to train and {len(test)} to test on: choose a train_fraction"
            f" that is {'larger' if len(test) else 'smaller'}, or more graphs"
        )
    return DictionaryLookup(
        LookupGraphs(torch.from_numpy(train).long()),
        LookupGraphs(torch.from_numpy(test).long()),
        torch.from_numpy(seen),
    )
