"""Reading the pairs of a graph, in whichever form an `edge_index` comes.

A tensor `[2, E]`, a torch_geometric.EdgeIndex, a torch sparse matrix, a torch_sparse.SparseTensor:
each becomes one checked list of pairs, with the order that some of them know.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_core.compat import listed
from attn_core.gpu import is_gpu


class Order(NamedTuple):
    """Pairs sorted by one of their ends: those of node n lie at `pointer[n]:pointer[n + 1]`."""

    pointer: Tensor
    permutation: Tensor  # position in the unsorted list of each sorted pair


def row_pointer(nodes: Tensor, num: int) -> Tensor:
    """Where the pairs of each node begin, once they are sorted by node."""
    pointer = nodes.new_zeros(num + 1)
    torch.cumsum(torch.bincount(nodes, minlength=num), 0, out=pointer[1:])
    return pointer


def sort_nodes(nodes: Tensor, num: int) -> Order:
    """The order of pairs by one of their ends, stable, without a look at the numbers."""
    ordered, permutation = torch.sort(nodes.int() if num < 2**31 else nodes, stable=True)
    pointer = torch._convert_indices_from_coo_to_csr(ordered, num)  # int64
    return Order(pointer, permutation.int() if len(nodes) < 2**31 else permutation)


def places_of(mask: Tensor, count: Tensor) -> Tensor:
    """The places of the True entries of a mask, in order; its length, behind the last of them.

    >>> places_of(torch.tensor([False, True, True, False]), torch.arange(3))
    tensor([1, 2, 4])
    """
    return torch.searchsorted(mask.cumsum(0), count, right=True)


class Listed(NamedTuple):
    """The pairs of a graph and its numbers of nodes, with the orders that were known."""

    pairs: Tensor  # int64 [2, E], contiguous, owned by nobody else
    num_keys: int
    num_queries: int
    num_loops: int | None = None  # how many of the pairs are self-loops, if that was counted
    by_query: Order | None = None
    by_key: Order | None = None


def read_edge_index(edge_index: Any, size: int | tuple[int, int] | None) -> Listed:
    """Bring every kind of edge_index into one form, and check it."""
    if isinstance(edge_index, Tensor) and edge_index.is_meta:
        raise ValueError(
            "edge_index is on the device meta, where there are no numbers to read: build Edges "
            "from one on the device of the features"
        )
    num_keys, num_queries = as_sizes(size)
    by_query = by_key = None
    if is_sparse(edge_index):
        pairs, (rows, columns) = _sparse_pairs(edge_index)
        for name, given, known in (("sources", num_keys, columns), ("targets", num_queries, rows)):
            if given not in (None, known):
                raise ValueError(
                    f"size says {given} {name}, but the sparse edge_index of shape "
                    f"[{rows}, {columns}] (targets, sources) has {known}"
                )
        num_keys, num_queries = columns, rows
    elif _is_edge_index(edge_index):
        pairs = _own(edge_index.as_tensor())
        num_keys = _agree("sources", num_keys, edge_index.sparse_size(0), edge_index)
        num_queries = _agree("targets", num_queries, edge_index.sparse_size(1), edge_index)
    else:
        pairs = _own(check_pairs(edge_index))
    num_keys, num_queries, num_loops = _check_range(pairs, num_keys, num_queries, size is None)
    if _is_edge_index(edge_index) and edge_index.sort_order is not None:
        by_query = _known_order(edge_index.get_csc(), pairs[1], num_queries)
        if edge_index.is_sorted_by_row or edge_index._T_perm is not None:
            by_key = _known_order(edge_index.get_csr(), pairs[0], num_keys)
    return Listed(pairs, num_keys, num_queries, num_loops, by_query, by_key)


def as_plain(edge_index: Any) -> Any:
    """The plain tensor inside a torch_geometric.EdgeIndex; anything else as it is."""
    return edge_index.as_tensor() if _is_edge_index(edge_index) else edge_index


def _own(pairs: Tensor) -> Tensor:
    return pairs.long().clone(memory_format=torch.contiguous_format)


def as_sizes(size: Any) -> tuple[int | None, int | None]:
    """The numbers of sources and of targets that a size names, None where it names none."""
    if size is None:
        return None, None
    pair = size if isinstance(size, (tuple, list)) else (size, size)
    if torch.jit.is_tracing() and any(isinstance(num, Tensor) for num in pair):
        raise TypeError(
            "torch.jit.trace, and torch.onnx.export(dynamo=False) by it, would keep the one graph "
            "they see: use torch.export, torch.compile or torch.onnx.export(dynamo=True)"
        )
    if any(num is not None and not hasattr(num, "__index__") for num in pair):
        raise TypeError(f"size is {size}; expected whole numbers of nodes")
    if len(pair) != 2 or any(num is not None and num < 0 for num in pair):
        raise ValueError(
            f"size is {size}; expected the number of nodes, or (number of sources, of targets)"
        )
    num_keys, num_queries = (None if num is None else operator.index(num) for num in pair)
    return num_keys, num_queries


def _is_edge_index(edge_index: Any) -> bool:
    # torch_geometric's class is known by what it does: this package imports torch alone
    if type(edge_index) is Tensor:  # before it is asked for what it lacks, which takes longer
        return False
    return isinstance(edge_index, Tensor) and hasattr(edge_index, "get_csc")


def is_sparse(edge_index: Any) -> bool:
    """Whether this is a sparse matrix, of torch or of torch_sparse, rather than a list of pairs."""
    if isinstance(edge_index, Tensor):
        return edge_index.layout in (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)
    return type(edge_index).__name__ == "SparseTensor" and hasattr(edge_index, "coo")


def _known_order(compressed: Any, nodes: Tensor, num: int) -> Order:
    """The order that a torch_geometric.EdgeIndex has cached, `(pointer, other end), permutation`.

    Its pointer is counted anew, which is cheap: it may have been inferred for fewer nodes, or be
    that of the other end, if the graph was wrongly declared undirected.
    """
    _, permutation = compressed
    if permutation is None:
        permutation = torch.arange(len(nodes), device=nodes.device)
    ordered = nodes[permutation]
    if not bool((ordered[1:] >= ordered[:-1]).all()):
        raise ValueError(
            "edge_index says that it is sorted, but it is not: build the EdgeIndex without "
            "sort_order, or call its sort_by()"
        )
    return Order(row_pointer(nodes, num), permutation.long().clone())


def _sparse_pairs(matrix: Any) -> tuple[Tensor, tuple[int, int]]:
    """Pairs (key, query) of a matrix whose rows are the targets, in the order of its values."""
    if not isinstance(matrix, Tensor):
        row, column, _ = matrix.coo()
        return torch.stack([column, row]).long(), (matrix.size(0), matrix.size(1))
    if matrix.dim() - matrix.dense_dim() != 2:  # an entry may be a vector: the edge's features
        raise ValueError(f"edge_index is sparse of shape {list(matrix.shape)}; expected a matrix")
    size = (matrix.shape[0], matrix.shape[1])
    if matrix.layout == torch.sparse_coo:
        row, column = matrix._indices()  # as in torch_geometric, in the order they are stored
    elif matrix.layout == torch.sparse_csr:
        row, column = _expand(matrix.crow_indices()), matrix.col_indices()
    else:
        row, column = matrix.row_indices(), _expand(matrix.ccol_indices())
    return torch.stack([column, row]).long(), size


def _expand(pointer: Tensor) -> Tensor:
    return torch.arange(len(pointer) - 1, device=pointer.device).repeat_interleave(pointer.diff())


def _agree(what: str, given: int | None, known: int | None, edge_index: Any) -> int | None:
    if None not in (given, known) and given != known:
        raise ValueError(
            f"size says {given} {what}, but edge_index was built with sparse_size "
            f"{tuple(edge_index.sparse_size())}"
        )
    return known if given is None else given


def check_pairs(edge_index: Any) -> Tensor:
    """Raise unless this is an integer tensor `[2, E]`; returns it."""
    if not isinstance(edge_index, Tensor):
        raise TypeError(
            f"edge_index is a {type(edge_index).__name__}; expected an int64 tensor [2, E], a "
            "sparse matrix or Edges"
        )
    if edge_index.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"edge_index has dtype {edge_index.dtype}; expected node numbers as torch.int64: "
            "convert it with .long()"
        )
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        mend = ": pass edge_index.t()" if edge_index.dim() == 2 and edge_index.shape[1] == 2 else ""
        raise ValueError(
            f"edge_index has shape {list(edge_index.shape)}; expected [2, E], sources in row 0 and "
            f"targets in row 1{mend}"
        )
    return edge_index


def _check_range(
    pairs: Tensor, num_keys: int | None, num_queries: int | None, square: bool
) -> tuple[int, int, int | None]:
    """Every node in range; sizes that are not known follow from the largest nodes.

    A GPU is waited for once: the number of self-loops comes along, which is asked for later.
    """
    lowest, largest, loops = (0, 0), (-1, -1), None
    if pairs.shape[1]:
        if is_gpu(pairs.device):
            seen = pairs.new_empty(5)
            torch.aminmax(pairs, dim=1, out=(seen[:2], seen[2:4]))
            torch.sum(pairs[0] == pairs[1], 0, out=seen[4])
            s, t, u, v, loops = seen.tolist()
        else:
            (s, t), (u, v) = map(listed, torch.aminmax(pairs, dim=1))
        lowest, largest = (s, t), (u, v)
    if square and None in (num_keys, num_queries):
        num_keys = num_keys if num_keys is not None else num_queries
        num_keys = num_queries = num_keys if num_keys is not None else max(largest) + 1
    nums = [largest[0] + 1 if num_keys is None else num_keys]
    nums += [largest[1] + 1 if num_queries is None else num_queries]
    for row, (name, num) in enumerate(zip(("sources", "targets"), nums, strict=True)):
        if lowest[row] < 0:
            raise IndexError(
                f"edge_index has the node {lowest[row]} in row {row} ({name}); nodes are numbered "
                "from 0, a negative number names none"
            )
        if largest[row] >= num:
            raise IndexError(
                f"edge_index has the node {largest[row]} in row {row} ({name}), but there are only "
                f"{num} of them (0 to {num - 1}): give x a row for each node, or drop the edge"
            )
    return nums[0], nums[1], loops


def read_csr(pointer: Any, columns: Any, num_keys: int | None) -> tuple[Tensor, Tensor, int]:
    """Check a matrix of compressed rows; its arrays as tensors over the same memory."""
    pointer, columns = _numbers("pointer", pointer), _numbers("columns", columns)
    num_keys = len(pointer) - 1 if num_keys is None else num_keys
    ends = pointer[[0, -1]].tolist() if len(pointer) else None
    if ends != [0, len(columns)] or bool((pointer.diff() < 0).any()):
        raise ValueError(
            f"pointer of {len(pointer)} entries does not rise from 0 to {len(columns)}, the number "
            "of columns"
        )
    low, high = torch.stack(torch.aminmax(columns)).tolist() if len(columns) else (0, -1)
    if low < 0 or high >= num_keys:
        raise IndexError(
            f"columns has the entry {low if low < 0 else high}, but there are only {num_keys} "
            f"sources (0 to {num_keys - 1}): give num_keys, or drop the pair"
        )
    return pointer, columns, num_keys


def _numbers(name: str, given: Any) -> Tensor:
    """A list of whole numbers as a tensor that shares its memory."""
    x = given if isinstance(given, Tensor) else torch.as_tensor(given)
    if x.dim() != 1 or x.dtype not in (torch.int32, torch.int64) or x.device.type != "cpu":
        raise TypeError(
            f"{name} is {x.dtype} of shape {list(x.shape)} on {x.device}; expected int32 or int64 "
            "numbers [n] on the CPU"
        )
    return x
