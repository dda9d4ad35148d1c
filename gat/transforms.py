"""Transforms of graphs, to be composed with torch_geometric's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform
from torch_geometric.utils import is_torch_sparse_tensor

__all__ = ["Reorder"]

_METHODS = "rcm", "degree", "community"


class Reorder(BaseTransform):
    """Number the nodes so that neighbours stand close in memory, where attention reads them faster.

    The graph stays what it is. New node i is old node `data.node_order[i]`; with the nodes go
    whatever has a row for each of them (features, labels, masks, positions), with the edges what
    has a row for each of these, and the edges come sorted by target, then by source. Numbers of
    nodes elsewhere (`edge_label_index`, every attribute whose name torch_geometric takes for one of
    indices) are renamed. `undo` leads back, `original` gives rows that a model made in the order of
    the old nodes.

    How much it gains is a matter of the graph: much where the numbers were drawn at random and the
    rows of all nodes do not fit the cache, nothing where they came in a good order
    (`python -m benchmarks reorder`).

    Args:
        method: "rcm" (default), reverse Cuthill–McKee, which keeps the ends of an edge close
            (Cuthill and McKee, 1969; George, 1971), by scipy; "degree", the most read nodes first;
            or "community", Louvain's communities one after the other (Blondel et al., 2008), by
            networkx, which takes minutes for millions of edges.

    Raises:
        ValueError: another method.

    >>> data = Data(x=torch.arange(4.0)[:, None], edge_index=torch.tensor([[0, 1, 3], [2, 3, 2]]))
    >>> close = Reorder()(data)
    >>> close.node_order
    tensor([1, 3, 2, 0])
    >>> close.edge_index
    tensor([[0, 1, 3],
            [1, 2, 2]])
    >>> close.x.flatten()
    tensor([1., 3., 2., 0.])
    >>> Reorder.original(close.x, close).flatten()
    tensor([0., 1., 2., 3.])
    """

    def __init__(self, method: str = "rcm") -> None:
        if method not in _METHODS:
            known = ", ".join(map(repr, _METHODS))
            raise ValueError(f"method is {method!r}; expected one of {known}")
        self.method = method

    def forward(self, data: Data) -> Data:
        """A copy of the graph with its nodes and edges in the new order.

        Args:
            data: one homogeneous graph with an edge_index, or a batch of such graphs, of which each
                is ordered for itself.

        Returns:
            The same attributes, and `node_order` `[N]`, `edge_order` `[E]`: where each was before.

        Raises:
            TypeError: a graph of several types, or none.
            ValueError: no edge_index, a sparse matrix of edges, or one that was reordered already.
            ModuleNotFoundError: scipy or networkx is missing.
        """
        if not isinstance(data, Data):
            raise TypeError(
                f"data is a {type(data).__name__}; Reorder takes a torch_geometric.data.Data of "
                "one type of nodes and edges"
            )
        if not isinstance(data.edge_index, Tensor):
            raise ValueError("data has no edge_index [2, edges]; Reorder looks at nothing else")
        if "node_order" in data:
            raise ValueError("data has a node_order already: call Reorder.undo(data) first")
        for name, value in data:
            if isinstance(value, Tensor) and is_torch_sparse_tensor(value) and name != "x":
                raise ValueError(
                    f"data.{name} is a sparse matrix, whose nodes would keep their numbers: give "
                    "the graph as edge_index (ToSparseTensor comes after Reorder)"
                )
        number = data.num_nodes
        assert number is not None
        nodes = _ORDERS[self.method](data.edge_index, number)
        if isinstance(data.get("batch"), Tensor):  # graphs stay together, and where they are
            nodes = nodes[torch.argsort(data.batch[nodes], stable=True)]
        place = torch.empty_like(nodes)
        place[nodes] = torch.arange(number, device=nodes.device)
        source, target = place[data.edge_index]
        edges = torch.argsort(target * number + source, stable=True)
        moved = _moved(data, nodes, place, edges)
        moved.node_order, moved.edge_order = nodes, edges
        return moved

    @staticmethod
    def undo(data: Data) -> Data:
        """The graph as it was before, with whatever was added since in that order too.

        Raises:
            ValueError: Reorder did not make this graph.
        """
        _check(data)
        nodes, edges = data.node_order, data.edge_order
        plain = copy.copy(data)
        del plain.node_order, plain.edge_order
        return _moved(plain, nodes.argsort(), nodes, edges.argsort())

    @staticmethod
    def original(rows: Tensor, data: Data) -> Tensor:
        """Rows `[N, ...]` in the order of the reordered nodes, in that of the caller's."""
        _check(data)
        return torch.empty_like(rows).index_copy(0, data.node_order, rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.method!r})"


def _check(data: Data) -> None:
    if "node_order" not in data:
        raise ValueError("data has no node_order: it did not come from Reorder()(data)")


def _moved(data: Data, nodes: Tensor, place: Tensor, edges: Tensor) -> Data:
    """A copy whose row i of nodes and edges is the old row `nodes[i]`, `edges[i]`."""
    moved = copy.copy(data)
    for name, value in data:
        if not isinstance(value, (Tensor, np.ndarray, list, tuple)) or name == "ptr":
            continue
        order = edges if data.is_edge_attr(name) else nodes if data.is_node_attr(name) else None
        if order is not None:
            value = _rows(value, order, data.__cat_dim__(name, value))
        if isinstance(value, Tensor) and _names_nodes(data, name, value):
            renamed = place[value.long().clamp(min=0)].to(value.dtype)
            value = torch.where(value < 0, value, renamed)
        moved[name] = value
    return moved


def _rows(value: Any, order: Tensor, dim: int | None) -> Any:
    """Row i is the old row `order[i]`."""
    if isinstance(value, (list, tuple)):
        return type(value)([value[i] for i in order.tolist()])
    if isinstance(value, np.ndarray):
        return value.take(order.cpu().numpy(), axis=dim or 0)
    if value.layout == torch.strided:
        return value.index_select(dim or 0, order)
    return value.to_sparse_coo().index_select(0, order).coalesce().to_sparse(layout=value.layout)


def _names_nodes(data: Data, name: str, value: Tensor) -> bool:
    """Whether the numbers in an attribute are nodes, which torch_geometric counts on in batches."""
    integers = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    step: Any = data.__inc__(name, value)
    return integers and isinstance(step, int) and step > 0 and step == data.num_nodes


def _by_rcm(edge_index: Tensor, number: int) -> Tensor:
    try:
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import reverse_cuthill_mckee
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Reorder('rcm') needs scipy: pip install scipy", name=error.name
        ) from error
    if number == 0:
        return edge_index.new_empty(0)
    source, target = edge_index.cpu().numpy()
    ones = torch.ones(len(source), dtype=torch.bool).numpy()
    matrix = coo_matrix((ones, (source, target)), (number, number)).tocsr()
    order = reverse_cuthill_mckee(matrix + matrix.T, symmetric_mode=True)
    return torch.from_numpy(order.astype("int64")).to(edge_index.device)


def _by_degree(edge_index: Tensor, number: int) -> Tensor:
    degree = torch.bincount(edge_index[0], minlength=number)
    return torch.argsort(degree, descending=True, stable=True)


def _by_community(edge_index: Tensor, number: int) -> Tensor:
    try:
        import networkx as nx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Reorder('community') needs networkx: pip install 'gat-attention[plot]'",
            name=error.name,
        ) from error
    graph = nx.Graph()
    graph.add_nodes_from(range(number))
    graph.add_edges_from(edge_index.t().tolist())
    found = nx.community.louvain_communities(graph, seed=0)
    ordered = [node for part in sorted(found, key=lambda part: (-len(part), min(part)))
               for node in sorted(part)]  # fmt: skip
    return torch.tensor(ordered, dtype=torch.int64, device=edge_index.device)


_ORDERS = {"rcm": _by_rcm, "degree": _by_degree, "community": _by_community}
