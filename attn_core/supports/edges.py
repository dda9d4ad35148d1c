"""The Edges support: the pairs of a graph, and the one look-up of what is known of an index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attn_core import compiled
from attn_core.gpu import is_gpu
from attn_core.graph import storage
from attn_core.graph.grouping import End, Grouping
from attn_core.graph.known import known, own, owner_of
from attn_core.graph.listing import Listing, Sorted
from attn_core.graph.read import (
    Order,
    as_plain,
    check_pairs,
    is_sparse,
    places_of,
    read_csr,
    read_edge_index,
    row_pointer,
)
from attn_core.supports.base import Support
from attn_core.supports.pairs import Pairs, TracedPairs, check_nodes
from attn_core.transforms import outside_inference


class Edges(Pairs):
    """The pairs of a graph: an edge (j, i) lets the query of node i attend to the key of node j.

    Immutable, and the owner of its memory: editing the tensor that it was built from changes
    nothing. Build it once and pass it in place of an `edge_index` wherever a layer takes one. What
    it builds in inference mode serves training too.

    On CPUs the compiled kernels sort the pairs and read them in 8 bytes for each end; `pairs` and
    whatever else is named here is made where it is first asked for.

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

    by_query: Grouping
    by_key: Grouping
    _pairs: Tensor
    _source_id: Tensor
    listing: Listing | None = None  # None: of those that hold `pairs` themselves
    _num_loops: int | None = None

    def __init__(
        self, edge_index: Any, num_keys: int | None = None, num_queries: int | None = None
    ) -> None:
        """The same as `Edges.from_edge_index(edge_index, (num_keys, num_queries))`."""
        size = None if num_keys is None and num_queries is None else (num_keys, num_queries)
        self._read(edge_index, size)

    def _read(self, edge_index: Any, size: Any, self_loops: bool = False) -> bool:
        """Take the pairs of any edge_index; returns whether that did what self_loops asks for."""
        with outside_inference():
            if type(edge_index) is Tensor and type(size) is tuple and _are_sizes(*size):
                listing = Listing.of(edge_index, size, self_loops)
                if listing is not None:
                    self._hold(listing)
                    return True
            listed = read_edge_index(edge_index, size)  # which says what is wrong
            sizes = listed.num_keys, listed.num_queries
            if listed.by_query is None:
                listing = Listing.of(listed.pairs, sizes, self_loops)
                if listing is not None:
                    self._hold(listing)
                    return True
            self._take(
                listed.pairs,
                *sizes,
                num_loops=listed.num_loops,
                by_query=listed.by_query,
                by_key=listed.by_key,
            )
            return not self_loops

    def _hold(self, listing: Listing) -> None:
        """Be the pairs of a listing."""
        self.listing = listing
        self.by_query, self.by_key = End(listing, 1), End(listing, 0)

    @classmethod
    def _of(cls, pairs: Tensor, num_keys: int, num_queries: int, **known: Any) -> Edges:
        """The Edges that own these pairs, which nobody else has and which are checked."""
        edges: Edges = object.__new__(cls)
        edges._take(pairs, num_keys, num_queries, **known)
        return edges

    def _take(
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
        self._pairs = pairs
        keys, queries = pairs[0], pairs[1]
        self.by_query = Grouping(queries, num_queries, keys, by_query)
        self.by_key = Grouping(keys, num_keys, queries, by_key)
        self._num_loops = num_loops
        if given is not None:
            self.__dict__["_before_loops"] = given
        if source_id is not None:
            self._source_id = source_id
        self._register()

    def _register(self) -> None:
        """Let ops find these Edges by the tensors they own."""
        if "_pairs" in self.__dict__:
            own(self._pairs, self)
        for side in (self.by_query, self.by_key):
            if "index" in side.__dict__:
                own(side.index, side)

    def __getattr__(self, name: str) -> Any:
        """Make what is asked for the first time; the guards of compiled code ask for attributes."""
        if name not in ("_pairs", "_source_id"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        made = self._make_pairs() if name == "_pairs" else self._make_source_id()
        self.__dict__[name] = made
        return made

    @torch.compiler.assume_constant_result
    def _is_made(self, name: str) -> bool:
        """True: for code that is being traced, which then finds the attribute in its place."""
        return isinstance(getattr(self, name), Tensor)

    @property
    def pairs(self) -> Tensor:  # type: ignore[override]
        if torch.compiler.is_compiling():
            self._is_made("_pairs")
        return self._pairs

    def _make_pairs(self) -> Tensor:
        assert self.listing is not None
        pairs = self.listing.pairs
        own(pairs, self)
        return pairs

    def sorted(self, *, by_key: bool) -> Sorted:
        """The pairs sorted by one end, as kernels read them."""
        side = self.by_key if by_key else self.by_query
        if isinstance(side, End):
            return side.sorted

        def narrowed(side: Grouping) -> Sorted:
            places = side.permutation
            if self.adds_loops:
                places = self.source_id[places]
            return Sorted(side.pointer, side.columns, places)

        found: Sorted = side.once("sorted", narrowed)
        return found

    @classmethod
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
        edges: Edges = object.__new__(cls)
        return edges if edges._read(edge_index, size, self_loops) else edges._replace_self_loops()

    @classmethod
    def from_csr(
        cls, pointer: Any, columns: Any, num_keys: int | None = None, *, self_loops: bool = False
    ) -> Edges:
        """Take the pairs of a matrix of compressed rows (CSR), whose rows are the targets.

        Nothing is sorted, and columns of 32 bits are read where they lie: they may be mapped from a
        file, and must not be edited as long as these Edges live.

        Args:
            pointer: int32 or int64 `[Nq + 1]`, where the pairs of each target begin.
            columns: int32 or int64 `[E]`, the sources; those of 64 bits are copied to 32. Both may
                be NumPy arrays.
            num_keys: how many sources there are. Default: as many as targets.
            self_loops: replace self-loops, as in `from_edge_index`; all columns are copied then.

        Raises:
            TypeError, ValueError: no arrays of whole numbers, or a pointer that does not rise from
                0 to E.
            IndexError: a column below 0 or not below num_keys.

        >>> edges = Edges.from_csr(torch.tensor([0, 1, 3]), torch.tensor([1, 0, 1]))
        >>> edges.edge_index
        tensor([[1, 0, 1],
                [0, 1, 1]])
        """
        pointer, columns, num_keys = read_csr(pointer, columns, num_keys)
        num_queries, num_edges = len(pointer) - 1, len(columns)
        if max(num_keys, num_queries) >= 2**31 - 1 or self_loops or compiled.module is None:
            target = torch.arange(num_queries, device="cpu").repeat_interleave(pointer.diff())
            pairs = torch.stack([columns.long(), target])
            return cls.from_edge_index(pairs, (num_keys, num_queries), self_loops=self_loops)
        place = torch.int32 if num_edges < 2**31 else torch.int64
        places = torch.arange(num_edges, dtype=place, device="cpu")
        order = Sorted(pointer.long().contiguous(), columns.int().contiguous(), places)
        edges: Edges = object.__new__(cls)
        edges._hold(Listing((num_keys, num_queries), num_edges, None, order, num_edges))
        return edges

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the sorted pairs to a folder of .npy files, which `Edges.load` reads.

        The folder is there as a whole or, if something goes wrong, as it was before.

        >>> import tempfile
        >>> folder = tempfile.mkdtemp() + "/edges"
        >>> Edges.from_edge_index(torch.tensor([[0, 1], [1, 2]])).save(folder)
        >>> Edges.load(folder)
        Edges(num_keys=3, num_queries=3, num_edges=2, device='cpu')
        """
        storage.save(self._as_listing(), folder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, mapped: bool = False) -> Edges:
        """Read what `save` wrote.

        Args:
            folder: where it is.
            mapped: leave the numbers in their files, of which the system reads what is needed; they
                must stay there. Default False.

        Raises:
            FileNotFoundError: there is nothing.
            ValueError: files of another format, or that do not fit each other.
        """
        edges: Edges = object.__new__(cls)
        edges._hold(storage.load(folder, mapped=mapped))
        return edges

    def _as_listing(self) -> Listing:
        """These pairs sorted by query, whoever sorted them."""
        if self.listing is not None:
            return self.listing
        pointer, columns, places = (x.cpu() for x in self.sorted(by_key=False))
        left_out = torch.ones(self.num_places, dtype=torch.bool)
        left_out[places.long()] = False
        place = torch.nonzero(left_out).squeeze(1)
        nodes = self.given.pairs.cpu()[0, place]
        room = Sorted(pointer, torch.cat([columns, nodes.int()]), torch.cat([places, place]))
        sizes = self.num_keys, self.num_queries
        loops = min(sizes) if self.adds_loops else None
        return Listing(sizes, self.num_given, loops, room, self.num_edges)

    @classmethod
    def join(cls, parts: Sequence[Edges]) -> Edges:
        """The pairs of several graphs as one without edges between them; nothing is sorted anew.

        The nodes of each graph come behind those of the graphs before it. A batch of small graphs
        is joined so: their orders are kept with them, however often they are drawn.

        Args:
            parts: at least one. Where self-loops were replaced in one, they must be in all.

        Raises:
            ValueError: no parts, or self-loops that were replaced in some of them alone.

        >>> ring = Edges(torch.tensor([[0, 1], [1, 0]]))
        >>> Edges.join([ring, ring]).edge_index
        tensor([[0, 1, 2, 3],
                [1, 0, 3, 2]])
        """
        with_loops = {part.adds_loops for part in parts}
        if len(with_loops) != 1:
            raise ValueError(
                "parts have self-loops that were replaced in some of them alone: build all with "
                "the same self_loops"
                if parts
                else "parts is empty; there is nothing to join"
            )
        if with_loops == {True}:
            return cls.join([part.given for part in parts]).with_self_loops()
        with outside_inference():
            device = parts[0].device
            edges = torch.tensor([part.num_edges for part in parts], device=device)
            first = edges.cumsum(0) - edges  # the number of the first edge of each part
            nodes = [
                torch.tensor([getattr(part, name).num for part in parts], device=device)
                for name in ("by_key", "by_query")
            ]
            offset = [(num.cumsum(0) - num).repeat_interleave(edges) for num in nodes]
            orders: list[Sorted] = []
            for end in (0, 1):
                sides = [part.sorted(by_key=end == 0) for part in parts]
                pointer = torch.cat([side.pointer[:-1] for side in sides])
                pointer = pointer + first.repeat_interleave(nodes[end])
                columns = torch.cat([side.columns for side in sides]) + offset[1 - end]
                places = torch.cat([side.places for side in sides])
                places = places + first.repeat_interleave(edges)
                pointer = torch.cat([pointer, edges.sum().view(1)])
                orders.append(Sorted(pointer, columns.int(), places))
            sizes = int(nodes[0].sum()), int(nodes[1].sum())
            if compiled.is_on() and device.type == "cpu" and not is_gpu(device):
                by_key, by_query = (x.narrowed() for x in orders)
                joined: Edges = object.__new__(cls)
                joined._hold(Listing(sizes, len(places), None, by_query, len(places), by_key))
                return joined
            pairs = torch.cat([part.pairs for part in parts], dim=1) + torch.stack(offset)
            known = [Order(x.pointer, x.places.long()) for x in orders]
            return cls._of(pairs, *sizes, by_key=known[0], by_query=known[1])

    @property
    def num_keys(self) -> int:
        return self.by_key.num

    @property
    def num_queries(self) -> int:
        return self.by_query.num

    @property
    def key_index(self) -> Tensor:
        return self.pairs[0] if torch.compiler.is_compiling() else self.by_key.index

    @property
    def query_index(self) -> Tensor:
        return self.pairs[1] if torch.compiler.is_compiling() else self.by_query.index

    def with_self_loops(self) -> Edges:
        """The same pairs, but with exactly one self-loop for each node that can have one.

        Self-loops that are there already are replaced; the new ones come last. Made once.
        """
        return self if self.adds_loops else self._with_self_loops

    @cached_property
    def _with_self_loops(self) -> Edges:
        return self._replace_self_loops()

    @cached_property
    def transposed(self) -> Edges:
        """The same pairs in the same order, of which each key is now the query. Made once.

        What was sorted already is not sorted again.
        """
        with outside_inference():
            known: dict[str, Any] = {
                name: self.__dict__[other].__dict__.get("order")
                for name, other in (("by_query", "by_key"), ("by_key", "by_query"))
            }
            sizes = self.num_queries, self.num_keys
            return Edges._of(self.pairs.flip(0), *sizes, num_loops=self._num_loops, **known)

    def _replace_self_loops(self) -> Edges:
        with outside_inference():
            if self.listing is not None:
                found: Edges = object.__new__(Edges)
                listing = Listing.of(self.listing.given_pairs(), self.listing.sizes, True)
                if listing is not None:
                    found._hold(listing)
                    return found
            pairs, loops = self.pairs, min(self.num_keys, self.num_queries)
            number = torch.arange(self.num_edges + loops, device=self.device)  # pairs, then loops
            others, count, loop = pairs[0] != pairs[1], None, number[:loops]
            if self._num_loops is not None:
                count = number[: self.num_edges - self._num_loops]
            kept = _places(others, count)
            known: dict[str, Any] = {
                name: _insert_loops(order, pairs, others, loops, end, count)
                for end, name in enumerate(("by_key", "by_query"))
                if (order := self.__dict__[name].__dict__.get("order")) is not None
            }
            merged = torch.cat([pairs[:, kept], loop.expand(2, -1)], dim=1)
            source_id = torch.cat([kept, number[self.num_edges :]])
            sizes = self.num_keys, self.num_queries
            return Edges._of(merged, *sizes, given=self, source_id=source_id, **known)

    @property
    def is_part(self) -> bool:
        """Whether other processes hold more edges of the same graph."""
        return False

    def all_sources(self, x: Tensor) -> Tensor:
        """The rows of all sources, of which the targets are the first: x itself.

        Where a process holds a part of a graph, x has its own nodes, and the others are fetched.
        """
        return x

    def from_keys(self, key_index: Tensor, num_keys: int) -> Edges:
        """These pairs, in their order, each from another key: a node may stand for several."""
        return Edges(torch.stack([key_index, self.query_index]), num_keys, self.num_queries)

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
        with outside_inference():
            queries = self._check_queries(queries)
            pointer = self.by_query.pointer
            first, sizes = pointer[queries], pointer[queries + 1] - pointer[queries]
            ends = sizes.cumsum(0)
            slots = torch.arange(int(sizes.sum()), device=self.device)
            slots += (first - ends + sizes).repeat_interleave(sizes)
            if self.listing is None:
                positions, order = self.by_query.permutation[slots].sort()
                keys = self.key_index[positions]
            else:  # which have no list of all pairs
                columns, places = (x[slots] for x in self.listing.by_query[1:])
                positions, order = self.listing.positions(places).sort()
                keys = columns[order].long()
            positions = positions.long()
            pairs = torch.stack([keys, queries.repeat_interleave(sizes)[order]])
            return Edges._of(pairs, self.num_keys, self.num_queries), positions

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
        listing = self.listing
        return self.pairs.shape[1] if listing is None else listing.num_pairs

    @property
    def num_rows(self) -> int:
        return self.num_edges

    @property
    def num_given(self) -> int:
        """E, how many pairs the caller gave, before self-loops were replaced."""
        return self.given.num_edges if self.listing is None else self.listing.num_given

    @property
    def num_places(self) -> int:
        """What all entries of source_id are below: E, and with self-loops one more for each."""
        loops = min(self.num_keys, self.num_queries) if self.adds_loops else 0
        return self.num_given + loops

    @property
    def adds_loops(self) -> bool:
        """Whether self-loops were replaced."""
        if self.listing is None:
            return "_before_loops" in self.__dict__
        return self.listing.loops is not None

    @property
    def edge_index(self) -> Tensor:
        """A copy of the pairs, int64 `[2, E']`: the caller's edges, then the self-loops."""
        return self.pairs.clone()

    @property
    def device(self) -> torch.device:
        return self.pairs.device if self.listing is None else torch.device("cpu")

    def check(self, query: Tensor | None, key: Tensor, value: Tensor) -> None:
        check_nodes(query, key, value, self.num_queries, self.num_keys, self.device)

    @property
    def given(self) -> Edges:
        """The pairs before self-loops were replaced: these very Edges, if none were."""
        return self if not self.adds_loops else self._before_loops

    @cached_property
    def _before_loops(self) -> Edges:
        assert self.listing is not None
        with outside_inference():
            return Edges(self.listing.given_pairs(), self.num_keys, self.num_queries)

    @property
    def source_id(self) -> Tensor:
        """Where each pair comes from, int64 `[E']`: the caller's edge, or E + node of a loop."""
        if torch.compiler.is_compiling():
            self._is_made("_source_id")
        return self._source_id

    def _make_source_id(self) -> Tensor:
        with outside_inference():
            if self.listing is not None:
                return self.listing.source_id()
            return torch.arange(self.num_edges, device=self.device)

    @property
    def pair_id(self) -> Tensor | None:
        """By which numbers dropout knows the pairs, int64 `[E']`; None: by their places."""
        return self.source_id if self.adds_loops else None

    @property
    def source_nodes(self) -> Tensor | None:
        """By which numbers dropout knows the sources, int64 `[Nk]`; None: by their places."""
        return None

    @cached_property
    def slots_by_key(self) -> Tensor:
        """For the pairs sorted by key: where each stands among the pairs sorted by query."""
        with outside_inference():
            slot = torch.empty_like(self.by_query.permutation, dtype=torch.int64)
            slot[self.by_query.permutation] = torch.arange(self.num_edges, device=self.device)
            return slot[self.by_key.permutation]

    def to(self, device: torch.device | str) -> Edges:
        """The same pairs on another device (this object itself, if it is there already)."""
        with outside_inference():
            if torch.empty(0, device=self.device).to(device).device == self.device:
                return self
            pairs = self.pairs.to(device)
            known: dict[str, Any] = {}
            for name in ("by_query", "by_key"):
                if (order := self.__dict__[name].__dict__.get("order")) is not None:
                    known[name] = Order(*(x.to(device) for x in order))
            if self.adds_loops:
                known["source_id"] = self.source_id.to(device)
            given = self.given.to(device) if self.adds_loops else None
            sizes = self.num_keys, self.num_queries
            return Edges._of(pairs, *sizes, given=given, num_loops=self._num_loops, **known)

    def __repr__(self) -> str:
        return (
            f"Edges(num_keys={self.num_keys}, num_queries={self.num_queries}, "
            f"num_edges={self.num_edges}, device='{self.device}')"
        )

    def __copy__(self) -> Edges:
        return self  # immutable; another owner of the same tensors would take them over

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._register()


@dataclass(frozen=True, eq=False)
class PendingEdges(Support):
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
    found: Edges | None = None  # by whoever has looked them up for this very call

    def resolve(self) -> Edges:
        """The Edges of this edge_index, built once as long as it is not edited."""
        if self.found is not None:
            return self.found
        return edges_of(self.edge_index, self.num_keys, self.num_queries, self.self_loops)

    def look_at_order(self) -> None:
        """Look the Edges up while there is a torch_geometric.EdgeIndex, which knows its order."""
        if self.plain() is not self.edge_index:
            self.resolve()

    def plain(self) -> Tensor:
        """The edge_index as a plain tensor."""
        tensor: Tensor = as_plain(self.edge_index)
        return tensor

    def traced(self, exact: bool) -> TracedPairs:
        """The pairs as tensors alone, for code that is being traced."""
        sizes = self.num_keys, self.num_queries
        return TracedPairs.of(self.plain(), sizes, self.self_loops, exact)

    @property
    def num_rows(self) -> int:
        """How many rows a tensor has that holds something per pair."""
        loops = min(self.num_keys, self.num_queries) if self.self_loops else 0
        return self.edge_index.shape[1] + loops

    def check(self, query: Tensor | None, key: Tensor, value: Tensor) -> None:
        if self.found is not None:
            check_nodes(query, key, value, self.num_queries, self.num_keys, self.found.device)
            return
        if is_sparse(self.edge_index):
            raise TypeError(
                "edge_index is a sparse matrix, whose pairs must be read: call resolve()"
            )
        device = check_pairs(as_plain(self.edge_index)).device
        check_nodes(query, key, value, self.num_queries, self.num_keys, device)


def edges_of(edge_index: Any, num_keys: int, num_queries: int, self_loops: bool = False) -> Edges:
    """The Edges of an edge_index: those that own it, or those made of a caller's, and kept."""
    key, size = as_plain(edge_index), (num_keys, num_queries)

    def make() -> Edges:
        return Edges.from_edge_index(edge_index, size, self_loops=self_loops)

    if not isinstance(key, Tensor):
        return make()
    edges = owner_of(key)
    if edges is None:  # a caller's, or of Edges that are gone by the time of the backward pass
        return known(key, (("edges", self_loops), *size), make)
    found: Edges = edges.with_self_loops() if self_loops else edges
    return found


def _are_sizes(*given: Any) -> bool:
    """Whether these are two numbers of nodes."""
    return len(given) == 2 and all(type(num) is int and num >= 0 for num in given)


def _places(mask: Tensor, count: Tensor | None) -> Tensor:
    """Where a mask is True; a GPU needs not be waited for if it can count them: 0, 1, …"""
    return torch.nonzero(mask).squeeze(1) if count is None else places_of(mask, count)


def _insert_loops(
    order: Order, pairs: Tensor, kept: Tensor, loops: int, to: int, count: Tensor | None
) -> Order:
    """The order after self-loops are removed and added again, without sorting anew.

    A loop goes behind the other pairs of its node: a pair moves down by one place for each node
    before its own that has a loop.
    """
    position = torch.cumsum(kept, 0) - 1  # in the list without self-loops
    permutation = order.permutation[_places(kept[order.permutation], count)]
    nodes = pairs[to][permutation]
    num = len(order.pointer) - 1
    node = torch.arange(num + 1, device=nodes.device)
    pointer = torch.searchsorted(nodes, node) if is_gpu(nodes.device) else row_pointer(nodes, num)
    shift = node.clamp(max=loops)
    merged = nodes.new_empty(len(nodes) + loops)
    merged[torch.arange(len(nodes), device=nodes.device) + shift[nodes]] = position[permutation]
    loop = torch.arange(loops, device=nodes.device)
    merged[pointer[1 : loops + 1] + loop] = loop + len(nodes)
    return Order(pointer + shift, merged.to(order.permutation.dtype))
