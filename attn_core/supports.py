"""Axis 3, supports: which (query, key) pairs exist?

`Dense` has all of them, less a mask. `Edges` has those of a graph. A support lays out the scores
of its pairs, names the rows that a normaliser reduces, and carries the values back to the queries;
`attend` needs nothing else of it, so that every score and every normaliser works over each.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from attn_core import compiled, segments
from attn_core.dropout import draw_seed, dropout_scale
from attn_core.edge_index import (
    Order,
    as_plain,
    check_pairs,
    is_sparse,
    places_of,
    read_edge_index,
    row_pointer,
    sort_nodes,
)
from attn_core.gpu import is_gpu
from attn_core.normalizers import DenseRows, EdgeRows, Rows
from attn_core.scores import Score
from attn_core.transforms import bare, is_transformed, values_are_visible


class Support(Protocol):
    """Which (query, key) pairs exist."""

    def scores(
        self, score: Score, query: Tensor | None, key: Tensor, pair_key: Tensor | None
    ) -> Tensor:
        """The logit of each pair and head."""

    def rows(self, scores: Tensor, num_keys: int) -> Rows:
        """The pairs of each query."""

    def drop(self, weights: Tensor, p: float) -> Tensor:
        """The weights after attention dropout."""

    def aggregate(self, weights: Tensor, value: Tensor, pair_value: Tensor | None) -> Tensor:
        """The weighted sum of the values, for each query and head."""

    def check(self, query: Tensor | None, key: Tensor, value: Tensor) -> None:
        """Raise if the tensors do not fit this support."""

    def relative_positions(
        self, queries: int, keys: int, device: torch.device | None = None
    ) -> Tensor:
        """Position of the key minus position of the query, int64, for each pair."""


@dataclass(frozen=True, eq=False)
class Dense(Support):
    """Every query with every key, less what is masked; queries and keys are `[..., T, H, D]`.

    Args:
        mask: bool, True where the query may attend to the key: `[Tq, Tk]`, `[..., Tq, Tk]` (one
            for all heads) or `[..., H, Tq, Tk]`; a dimension of size 1 is repeated. Default: all.
        lengths: integer, of the shape of the batch dimensions: how many keys of each sequence are
            real; those behind them get no weight. Default: all.
        causal: the last query sees every key, the one before all but the last, and so on: query i
            sees the keys up to i + Tk - Tq. Default False.

    Raises:
        TypeError: a mask that is not bool, lengths that are not integers.
        ValueError: shapes that do not fit the queries and keys (when it is used).

    >>> Dense(lengths=torch.tensor([2, 0]), causal=True).allowed((2,), heads=1, queries=2, keys=2)
    tensor([[[[ True, False],
              [ True,  True]]],
    <BLANKLINE>
    <BLANKLINE>
            [[[False, False],
              [False, False]]]])
    """

    mask: Tensor | None = None
    lengths: Tensor | None = None
    causal: bool = False

    def __post_init__(self) -> None:
        for name, given in (("mask", self.mask), ("lengths", self.lengths)):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(f"{name} is a {type(given).__name__}; expected a tensor")
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise TypeError(
                f"mask has dtype {self.mask.dtype}; expected bool, where True means 'may attend'. "
                "A float mask that is added to the scores goes into bias="
            )
        check_lengths_dtype(self.lengths)

    def allowed(
        self,
        batch: tuple[int, ...],
        heads: int,
        queries: int,
        keys: int,
        device: torch.device | None = None,
    ) -> Tensor | None:
        """The mask, lengths and causal order as one bool that broadcasts to `[..., H, Tq, Tk]`.

        None where every query may attend to every key.
        """
        allowed = self._shaped_mask((*batch, heads, queries, keys))
        if self.lengths is not None:
            check_lengths(self.lengths, batch, keys)
            real = torch.arange(keys, device=self.lengths.device) < self.lengths[..., None]
            real = real[..., None, None, :]
            allowed = real if allowed is None else allowed & real
        if self.causal:
            device = device if allowed is None else allowed.device
            order = torch.ones(queries, keys, dtype=torch.bool, device=device)
            order = order.tril(keys - queries)
            allowed = order if allowed is None else allowed & order
        return allowed

    def _shaped_mask(self, shape: tuple[int, ...]) -> Tensor | None:
        if self.mask is None:
            return None
        mask = self.mask
        if mask.dim() == len(shape) - 1 and len(shape) > 3:  # no heads
            mask = mask.unsqueeze(-3)
        if mask.dim() not in (2, len(shape)) or not broadcasts_to(mask.shape, shape):
            raise ValueError(
                f"mask has shape {list(self.mask.shape)}; expected [Tq, Tk] = {list(shape[-2:])}, "
                f"the batch before it {[*shape[:-3], *shape[-2:]]}, or heads too {list(shape)}"
            )
        return mask

    def check(self, query: Tensor | None, key: Tensor, value: Tensor) -> None:
        check_tokens(query, key, value, mask=self.mask, lengths=self.lengths)

    def num_queries(self, query: Tensor | None, keys: int) -> int:
        """Tq; without a query there is one, which reads all the keys."""
        return 1 if query is None else query.shape[-3]

    def columns(self, keys: int) -> int:
        """How many pairs each query has, the masked ones included: all the keys."""
        return keys

    def relative_positions(
        self, queries: int, keys: int, device: torch.device | None = None
    ) -> Tensor:
        """Position of the key minus position of the query, `[Tq, Tk]`; the last ones coincide."""
        here = torch.arange(keys - queries, keys, device=device)
        return torch.arange(keys, device=device) - here[:, None]

    def scores(
        self, score: Score, query: Tensor | None, key: Tensor, pair_key: Tensor | None
    ) -> Tensor:
        if pair_key is None:
            return score.dense(query, key)
        query = None if query is None else query.unsqueeze(-3)
        return score.pair(query, key.unsqueeze(-4) + pair_key).movedim(-1, -3)

    def rows(self, scores: Tensor, num_keys: int) -> Rows:
        *batch, heads, queries, keys = scores.shape
        return DenseRows(self.allowed(tuple(batch), heads, queries, keys, scores.device))

    def drop(self, weights: Tensor, p: float) -> Tensor:
        return F.dropout(weights, p)

    def aggregate(self, weights: Tensor, value: Tensor, pair_value: Tensor | None) -> Tensor:
        output = (weights @ value.movedim(-2, -3)).movedim(-3, -2)
        if pair_value is not None:
            pair_value = pair_value[(None,) * (4 - pair_value.dim())]
            output = output + torch.einsum("...hqk,...qkhd->...qhd", weights, pair_value)
        return output


def check_tokens(query: Tensor | None, key: Tensor, value: Tensor, **beside: Tensor | None) -> None:
    """Raise unless these are tokens `[..., T, H, D]`, and what is given beside on their device."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor is not None and tensor.dim() < 3:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; expected [..., T, H, D]: time, heads "
                "and channels last"
            )
    if value.shape[-3] != key.shape[-3]:
        raise ValueError(
            f"value has {value.shape[-3]} positions and key {key.shape[-3]}; each key needs "
            "its value"
        )
    for name, tensor in beside.items():
        if tensor is not None and tensor.device != key.device:
            raise ValueError(
                f"{name} is on {tensor.device}, but key is on {key.device}: move one of them "
                "with .to()"
            )


def check_lengths_dtype(lengths: Tensor | None) -> None:
    """Raise unless lengths are integers, or None."""
    if lengths is not None and (lengths.is_floating_point() or lengths.dtype == torch.bool):
        raise TypeError(f"lengths has dtype {lengths.dtype}; expected integers")


def check_lengths(lengths: Tensor, batch: tuple[int, ...], keys: int) -> None:
    """Raise unless there is one length per sequence, each at most the number of keys."""
    if lengths.shape != batch:
        raise ValueError(
            f"lengths has shape {list(lengths.shape)}; expected {list(batch)}, one "
            "length per sequence of the batch"
        )
    if lengths.numel() == 0 or not values_are_visible():
        return
    low, high = torch.stack(torch.aminmax(lengths)).tolist()
    if low < 0 or high > keys:
        raise ValueError(
            f"lengths has the entry {low if low < 0 else high}; expected 0 to {keys}, the number "
            "of keys"
        )


def broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape can be expanded to the target shape."""
    pairs = zip(shape[::-1], target[::-1], strict=False)
    return len(shape) <= len(target) and all(have in (1, want) for have, want in pairs)


class Edges(Support):
    """The pairs of a graph: an edge (j, i) lets the query of node i attend to the key of node j.

    Immutable, and the owner of its memory: editing the tensor that it was built from changes
    nothing. Build it once and pass it in place of an `edge_index` wherever a layer takes one. What
    it builds in inference mode serves training too.

    Build it with `Edges.from_edge_index`; move it with `.to(device)`.

    Attributes:
        num_keys: Nk, how many source nodes there are.
        num_queries: Nq, how many target nodes there are.
        pairs: int64 `[2, E']`, keys and queries: the caller's edges, then the self-loops that were
            added. Read-only, as every tensor here; `edge_index` is a copy.
        key_index, query_index: the two rows of pairs.
        num_edges: E', how many pairs there are.

    >>> Edges.from_edge_index(torch.tensor([[0, 1], [1, 2]]))
    Edges(num_keys=3, num_queries=3, num_edges=2, device='cpu')
    """

    pairs: Tensor
    key_index: Tensor
    query_index: Tensor
    num_keys: int
    num_queries: int

    def __init__(
        self,
        pairs: Tensor,
        num_keys: int,
        num_queries: int,
        *,
        given: Edges | None = None,
        source_id: Tensor | None = None,
        num_loops: int | None = None,
        by_query: Order | None = None,
        by_key: Order | None = None,
    ) -> None:
        """Take over checked pairs, int64 `[2, E]`; `from_edge_index` is the public way in."""
        self.pairs = pairs
        # The same two tensors for good: by them the ops over groups know whose pairs they are
        self.key_index, self.query_index = pairs[0], pairs[1]
        self._given = given
        self._num_loops = num_loops
        self.num_keys, self.num_queries = num_keys, num_queries
        for name, known in (("source_id", source_id), ("by_query", by_query), ("by_key", by_key)):
            if known is not None:
                self.__dict__[name] = known
        self._register()

    def _register(self) -> None:
        _HANDLES[self.pairs] = weakref.ref(self)
        segments.own(self.key_index, self, "key")
        segments.own(self.query_index, self, "query")

    @classmethod
    @torch.inference_mode(False)
    def from_edge_index(
        cls, edge_index: Any, size: int | tuple[int, int] | None = None, *, self_loops: bool = False
    ) -> Edges:
        """Check and take over the pairs of a graph.

        Args:
            edge_index: int32 or int64 `[2, E]` with sources (keys) in row 0 and targets (queries)
                in row 1; or a `torch_geometric.EdgeIndex`, whose cached order is used; or a torch
                sparse matrix (COO, CSR, CSC) or `torch_sparse.SparseTensor`, which as in
                torch_geometric holds the transposed adjacency: its rows are the targets.
            size: the numbers of source and target nodes, or one number for both. Default: what
                edge_index knows itself, else its largest entry plus 1.
            self_loops: replace the self-loops that are there by one for each node that is both
                source and target; they come last, in the order of the nodes. Default False.

        Raises:
            TypeError: entries that are not int32 or int64.
            ValueError: a shape other than `[2, E]`, or a size that contradicts a sparse matrix.
            IndexError: a node below 0 or not below the number of nodes.

        >>> edges = Edges.from_edge_index(torch.tensor([[0, 1, 1], [1, 0, 1]]), self_loops=True)
        >>> edges.edge_index
        tensor([[0, 1, 0, 1],
                [1, 0, 0, 1]])
        """
        listed = read_edge_index(edge_index, size)
        edges = cls(
            listed.pairs,
            listed.num_keys,
            listed.num_queries,
            num_loops=listed.num_loops,
            by_query=listed.by_query,
            by_key=listed.by_key,
        )
        return edges._replace_self_loops() if self_loops else edges

    def with_self_loops(self) -> Edges:
        """The same pairs, but with exactly one self-loop for each node that can have one.

        Self-loops that are there already are replaced; the new ones come last. Made once.
        """
        return self if self.given is not self else self._with_self_loops

    @cached_property
    @torch.inference_mode(False)
    def _with_self_loops(self) -> Edges:
        return self._replace_self_loops()

    def _replace_self_loops(self) -> Edges:
        pairs, loops = self.pairs, min(self.num_keys, self.num_queries)
        loop = torch.arange(loops, device=self.device)
        others, num_others = pairs[0] != pairs[1], None
        if self._num_loops is not None:
            num_others = self.num_edges - self._num_loops
        kept = _places(others, num_others)
        known: dict[str, Any] = {
            name: _insert_loops(self.__dict__[name], pairs, others, loops, end, num_others)
            for end, name in enumerate(("by_key", "by_query"))
            if name in self.__dict__
        }
        merged = torch.cat([pairs[:, kept], loop.expand(2, -1)], dim=1)
        source_id = torch.cat([kept, loop + self.num_edges])
        sizes = self.num_keys, self.num_queries
        return Edges(merged, *sizes, given=self, source_id=source_id, **known)

    @torch.inference_mode(False)
    def of_queries(self, queries: Tensor) -> tuple[Edges, Tensor]:
        """The pairs of some queries, all of each, and where they stand among the pairs.

        What is found, such as weights, is the same over these as over all pairs; only theirs are
        looked at.

        Args:
            queries: integers `[n]`, of which duplicates count once, or bool `[Nq]`, True for the
                chosen ones.

        Returns:
            Edges over the same nodes, with the pairs in the order that they have here, and their
            positions in it, int64 `[E']`.

        Raises:
            TypeError, ValueError, IndexError: queries of another dtype or shape, or out of range.

        >>> edges = Edges.from_edge_index(torch.tensor([[0, 1, 2, 0], [1, 0, 1, 2]]))
        >>> chosen, positions = edges.of_queries(torch.tensor([1]))
        >>> chosen.edge_index, positions
        (tensor([[0, 2],
                [1, 1]]), tensor([0, 2]))
        """
        queries = self._check_queries(queries)
        order = self.by_query
        first, sizes = order.pointer[queries], order.pointer[queries + 1] - order.pointer[queries]
        ends = sizes.cumsum(0)
        slots = torch.arange(int(sizes.sum()), device=self.device)
        slots += (first - ends + sizes).repeat_interleave(sizes)
        positions = order.permutation[slots].sort().values
        pairs = self.pairs.index_select(1, positions)
        return Edges(pairs, self.num_keys, self.num_queries), positions

    def _check_queries(self, queries: Tensor) -> Tensor:
        """Numbers of queries, each once, on the device of the pairs."""
        if not isinstance(queries, Tensor) or queries.is_floating_point():
            kind = queries.dtype if isinstance(queries, Tensor) else type(queries).__name__
            raise TypeError(f"queries is {kind}; expected a tensor of integers, or a bool mask")
        if queries.dtype == torch.bool:
            if queries.shape != (self.num_queries,):
                raise ValueError(
                    f"queries is a mask of shape {list(queries.shape)}; expected "
                    f"[{self.num_queries}], one entry for each query"
                )
            return torch.nonzero(queries.to(self.device)).squeeze(1)
        if queries.dim() != 1:
            raise ValueError(
                f"queries has shape {list(queries.shape)}; expected [n], numbers of queries"
            )
        queries = queries.long().to(self.device).unique()
        if len(queries) and (queries[0] < 0 or queries[-1] >= self.num_queries):
            wrong = int(queries[0] if queries[0] < 0 else queries[-1])
            raise IndexError(f"queries has the entry {wrong}; expected 0 to {self.num_queries - 1}")
        return queries

    @property
    def num_edges(self) -> int:
        return self.pairs.shape[1]

    @property
    def num_rows(self) -> int:
        """How many rows a tensor has that holds something per pair: one for each."""
        return self.num_edges

    @property
    def edge_index(self) -> Tensor:
        """A copy of the pairs, int64 `[2, E']`: the caller's edges, then the self-loops."""
        return self.pairs.clone()

    @property
    def device(self) -> torch.device:
        return self.pairs.device

    @property
    def given(self) -> Edges:
        """The pairs before self-loops were replaced: these very Edges, if none were."""
        return self if self._given is None else self._given

    @cached_property
    @torch.inference_mode(False)
    def source_id(self) -> Tensor:
        """Where each pair comes from, int64 `[E']`: the caller's edge, or E + node of a loop."""
        return torch.arange(self.num_edges, device=self.device)

    @cached_property
    @torch.inference_mode(False)
    def by_query(self) -> Order:
        """The pairs sorted by query, those of one query in the caller's order (CSR)."""
        order, keys = sort_pairs(self.query_index, self.num_queries, self.key_index)
        if keys is not None:
            self.__dict__["keys_by_query"] = keys
        return order

    @cached_property
    @torch.inference_mode(False)
    def by_key(self) -> Order:
        """The pairs sorted by key (the transpose)."""
        order, queries = sort_pairs(self.key_index, self.num_keys, self.query_index)
        if queries is not None:
            self.__dict__["queries_by_key"] = queries
        return order

    @cached_property
    @torch.inference_mode(False)
    def keys_by_query(self) -> Tensor:
        """The key of each pair, int32, in the order of `by_query`."""
        order = self.by_query.permutation  # which may bring them along
        known = self.__dict__.get("keys_by_query")
        return self.key_index[order].int() if known is None else known

    @cached_property
    @torch.inference_mode(False)
    def queries_by_key(self) -> Tensor:
        """The query of each pair, int32, in the order of `by_key`."""
        order = self.by_key.permutation
        known = self.__dict__.get("queries_by_key")
        return self.query_index[order].int() if known is None else known

    @cached_property
    @torch.inference_mode(False)
    def slots_by_key(self) -> Tensor:
        """For the pairs sorted by key: where each stands among the pairs sorted by query."""
        slot = torch.empty_like(self.by_query.permutation)
        slot[self.by_query.permutation] = torch.arange(self.num_edges, device=self.device)
        return slot[self.by_key.permutation]

    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> Edges:
        """The same pairs on another device (this object itself, if it is there already)."""
        pairs = self.pairs.to(device)
        if pairs is self.pairs:
            return self
        known: dict[str, Any] = {}
        for name in ("source_id", "by_query", "by_key"):
            if name in self.__dict__:
                parts = self.__dict__[name]
                moved = isinstance(parts, Tensor)
                known[name] = parts.to(device) if moved else Order(*(x.to(device) for x in parts))
        given = None if self._given is None else self._given.to(device)
        sizes = self.num_keys, self.num_queries
        return Edges(pairs, *sizes, given=given, num_loops=self._num_loops, **known)

    def __repr__(self) -> str:
        return (
            f"Edges(num_keys={self.num_keys}, num_queries={self.num_queries}, "
            f"num_edges={self.num_edges}, device='{self.device}')"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register()

    def check(self, query: Tensor | None, key: Tensor, value: Tensor) -> None:
        check_nodes(query, key, value, self.num_queries, self.num_keys, self.device)

    def scores(
        self, score: Score, query: Tensor | None, key: Tensor, pair_key: Tensor | None
    ) -> Tensor:
        of_pair = segments.gather(key, self.key_index)
        if pair_key is not None:
            of_pair = of_pair + pair_key
        return score.pair(
            None if query is None else segments.gather(query, self.query_index), of_pair
        )

    def relative_positions(
        self, queries: int, keys: int, device: torch.device | None = None
    ) -> Tensor:
        """Number of the key minus number of the query, `[E']`, as if nodes were positions."""
        return self.key_index - self.query_index

    def rows(self, scores: Tensor, num_keys: int) -> Rows:
        return EdgeRows(self.query_index, self.num_queries, self.pairs)

    def drop(self, weights: Tensor, p: float) -> Tensor:
        seed = draw_seed(weights.device)
        return weights * dropout_scale(seed, self.source_id, weights.shape[-1], p).to(weights.dtype)

    def aggregate(self, weights: Tensor, value: Tensor, pair_value: Tensor | None) -> Tensor:
        of_pair = segments.gather(value, self.key_index)
        if pair_value is not None:
            of_pair = of_pair + pair_value
        return EdgeRows(self.query_index, self.num_queries).sum(weights.unsqueeze(-1) * of_pair)


@dataclass(frozen=True, eq=False)
class PendingEdges:
    """An `edge_index` whose `Edges` are looked up where they are needed.

    Layers hand this to `attend`, which passes the plain tensor on to the fused ops: there, out of
    torch.compile's sight, `resolve` finds the `Edges` in the cache. What is given per pair comes
    with one row for each of the caller's edges (those of self-loops that are replaced are not
    read), then one for each self-loop, so that its length does not depend on the data.
    """

    edge_index: Any
    num_keys: int
    num_queries: int
    self_loops: bool = False

    def resolve(self) -> Edges:
        """The Edges of this edge_index, built once as long as it is not edited."""
        return cached_edges(self.edge_index, self.num_keys, self.num_queries, self.self_loops)

    @property
    def num_rows(self) -> int:
        """How many rows a tensor has that holds something per pair."""
        loops = min(self.num_keys, self.num_queries) if self.self_loops else 0
        return self.edge_index.shape[1] + loops

    def check(self, query: Tensor | None, key: Tensor, value: Tensor) -> None:
        if is_sparse(self.edge_index):
            raise TypeError(
                "edge_index is a sparse matrix, whose pairs must be read: call resolve()"
            )
        device = check_pairs(as_plain(self.edge_index)).device
        check_nodes(query, key, value, self.num_queries, self.num_keys, device)


_Sizes = tuple[int, int, bool]
_LOCK = threading.RLock()
# Every living Edges, by the tensor it owns: an op is handed that tensor and finds the Edges again.
_HANDLES: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
# The Edges built for a caller's tensor, with the version that the tensor had. No Edges refers to
# the caller's tensor, so that entries die with it.
_CACHE: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def cached_edges(edge_index: Any, num_keys: int, num_queries: int, self_loops: bool) -> Edges:
    """The Edges of a caller's edge_index: from the cache, unless it is new or was edited."""
    key = as_plain(edge_index)
    if not isinstance(key, Tensor) or key.is_inference():  # these have no version to go by
        return Edges.from_edge_index(edge_index, (num_keys, num_queries), self_loops=self_loops)
    sizes: _Sizes = (num_keys, num_queries, self_loops)
    with _LOCK:
        version, built = _CACHE.get(key, (None, {}))
        if version != key._version:
            version, built = key._version, {}
        if sizes not in built:
            built[sizes] = Edges.from_edge_index(
                edge_index, (num_keys, num_queries), self_loops=self_loops
            )
            _CACHE[key] = (version, built)
        return built[sizes]


def handled_edges(edge_index: Tensor) -> Edges | None:
    """The living Edges that own this very tensor, if any do."""
    reference = _HANDLES.get(edge_index)
    return None if reference is None else reference()


# The order of a caller's index, with its version and the number of rows.
_ORDERS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def cached_order(index: Tensor, num: int) -> Order:
    """The entries of a checked index sorted by row, kept while the index lives unedited."""
    if index.is_inference():  # has no version to go by
        return sort_pairs(index, num, index)[0]
    with _LOCK:
        version, rows, order = _ORDERS.get(index, (None, None, None))
        if order is None or (version, rows) != (index._version, num):
            with torch.inference_mode(False):
                order = sort_pairs(index, num, index)[0]
            _ORDERS[index] = (index._version, num, order)
        return order


def clear_cache() -> None:
    """Forget the Edges kept for edge_index tensors, and the order of other indices.

    They are dropped by themselves when the tensor dies or is edited in place. Only an edit that
    torch does not count (through `.data` or a NumPy array that shares the memory) needs this call.

    >>> clear_cache()
    """
    with _LOCK:
        _CACHE.clear()
        _ORDERS.clear()
    segments.forget()


def sort_pairs(nodes: Tensor, num: int, others: Tensor) -> tuple[Order, Tensor | None]:
    """Sort pairs by one of their ends, stably, and their other ends too if that costs nothing."""
    if is_gpu(nodes.device):
        return sort_nodes(nodes, num), None
    if compiled.is_on() and nodes.device.type == "cpu" and not is_transformed():
        nodes, others = bare(nodes), bare(others)
        pointer, order = nodes.new_empty(num + 1), nodes.new_empty(len(nodes))
        sorted_others = nodes.new_empty(len(nodes), dtype=torch.int32)
        if compiled.call(
            "sort", nodes.contiguous(), others.contiguous(), pointer, order, sorted_others
        ):
            return Order(pointer, order), sorted_others
    pointer = row_pointer(nodes, num)
    if bool((nodes[1:] >= nodes[:-1]).all()):  # sorted already
        return Order(pointer, torch.arange(len(nodes), device=nodes.device)), None
    return Order(pointer, torch.argsort(nodes, stable=True)), None


def _places(mask: Tensor, number: int | None) -> Tensor:
    """Where a mask is True; a GPU needs not be waited for if it is known how often."""
    return torch.nonzero(mask).squeeze(1) if number is None else places_of(mask, number)


def _insert_loops(
    order: Order, pairs: Tensor, kept: Tensor, loops: int, to: int, num_kept: int | None
) -> Order:
    """The order after self-loops are removed and added again, without sorting anew.

    A loop goes behind the other pairs of its node: a pair moves down by one place for each node
    before its own that has a loop.
    """
    position = torch.cumsum(kept, 0) - 1  # in the list without self-loops
    permutation = order.permutation[_places(kept[order.permutation], num_kept)]
    nodes = pairs[to][permutation]
    num = len(order.pointer) - 1
    node = torch.arange(num + 1, device=nodes.device)
    pointer = torch.searchsorted(nodes, node) if is_gpu(nodes.device) else row_pointer(nodes, num)
    shift = node.clamp(max=loops)
    merged = nodes.new_empty(len(nodes) + loops)
    merged[torch.arange(len(nodes), device=nodes.device) + shift[nodes]] = position[permutation]
    loop = torch.arange(loops, device=nodes.device)
    merged[pointer[1 : loops + 1] + loop] = loop + len(nodes)
    return Order(pointer + shift, merged)


def check_nodes(
    query: Tensor | None,
    key: Tensor,
    value: Tensor,
    num_queries: int,
    num_keys: int,
    device: torch.device,
) -> None:
    """Raise unless query, key and value are node tensors `[N, H, D]` that fit the sizes."""
    for name, tensor, num in (
        ("query", query, num_queries),
        ("key", key, num_keys),
        ("value", value, num_keys),
    ):
        if tensor is None:
            continue
        if tensor.dim() != 3 or tensor.shape[0] != num:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; over edges it must be [N, H, D] with "
                f"N = {num}, the number of {'targets' if name == 'query' else 'sources'}"
            )
        if tensor.device != device:
            raise ValueError(
                f"edge_index is on {device}, but {name} is on {tensor.device}: move one of them "
                "with .to()"
            )
