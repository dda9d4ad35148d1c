"""The edges of a part of a graph, which fetch the rows of foreign nodes themselves."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from attn_core import Edges
from attn_core.distributed import Route, is_on, with_received


class Shard(Edges):
    """The edges into the nodes of one process; a layer takes it as it takes any `Edges`.

    x then has a row for each node of this process. A layer fetches the rows of the foreign nodes
    that its edges come from (the halo), and attends as it always does; in the backward pass the
    gradients of these rows go back to where they belong. All processes call a layer together.
    Attention is dropped by the numbers of nodes and edges in the whole graph, and so in the same
    way whatever the number of processes.

    Made by `Partition`, which has one as `edges`.

    Attributes:
        route: which rows go where.
        source_nodes: int64 `[Nk]`, the nodes of the whole graph that the sources are, those of this
            process first.
        pair_id: int64 `[E']`, the edges of the whole graph that the pairs are.
    """

    route: Route

    @classmethod
    def of(
        cls,
        pairs: Tensor,
        nodes: Tensor,
        halo: Tensor,
        edge_ids: Tensor,
        num_edges: int,
        route: Route,
    ) -> Shard:
        """The edges `pairs` from the nodes and the halo to the nodes.

        Args:
            pairs: int64 `[2, E]`, in local numbers.
            nodes, halo: int64 `[n]`, `[h]`, their numbers in the whole graph.
            edge_ids: int64 `[E]`, the same of the edges.
            num_edges: of the whole graph.
            route: how the rows of the halo come.
        """
        plain = Edges.from_edge_index(pairs, (len(nodes) + len(halo), len(nodes)))
        loop_ids = num_edges + nodes  # what dropout calls the self-loop of a node
        return cls._from(plain, torch.cat([nodes, halo]), edge_ids, loop_ids, route)

    @classmethod
    def _from(
        cls, edges: Edges, sources: Tensor, edge_ids: Tensor, loop_ids: Tensor, route: Route
    ) -> Shard:
        shard: Shard = object.__new__(cls)
        shard.__dict__.update(edges.__dict__)
        shard._sources, shard._edge_ids, shard._loop_ids = sources, edge_ids, loop_ids
        shard.route = route
        shard._register()  # from now on these are the Edges of the pairs
        return shard

    @property
    def is_part(self) -> bool:
        return is_on(self.route.group)

    def all_sources(self, x: Tensor) -> Tensor:
        """The rows of this process and, behind them, those of the halo, fetched."""
        own = self.num_queries
        if x.layout != torch.strided:
            raise TypeError(
                f"x has layout {x.layout}; rows go to other processes dense: give x.to_dense()"
            )
        if x.dim() < 1 or x.shape[0] != own:
            raise ValueError(
                f"x has shape {list(x.shape)}, but this process has {own} nodes of the partition: "
                "give it the rows of these alone, as partition.rows(x) picks them"
            )
        return with_received(x, self.route)

    def from_keys(self, key_index: Tensor, num_keys: int) -> Edges:
        """These pairs from other keys, which dropout knows as it knows these."""
        return _Renumbered.of(super().from_keys(key_index, num_keys), self.pair_id)

    @property
    def source_nodes(self) -> Tensor:
        return self._sources

    @cached_property
    def pair_id(self) -> Tensor:
        if self.given is self:
            return self._edge_ids
        return torch.cat([self._edge_ids, self._loop_ids]).index_select(0, self.source_id)

    @cached_property
    def _with_self_loops(self) -> Shard:
        return self._moved(self._replace_self_loops())

    def _moved(self, edges: Edges) -> Shard:
        """Other Edges between the same nodes as a Shard."""
        sources, of_edges, of_loops = (
            x.to(edges.device) for x in (self._sources, self._edge_ids, self._loop_ids)
        )
        return Shard._from(edges, sources, of_edges, of_loops, self.route.to(edges.device))

    def to(self, device: torch.device | str) -> Shard:
        """The same pairs on another device (this object itself, if it is there already)."""
        edges = super().to(device)
        return self if edges is self else self._moved(edges)

    _sources: Tensor
    _edge_ids: Tensor
    _loop_ids: Tensor


class _Renumbered(Edges):
    """Edges whose pairs dropout knows by other numbers than their places."""

    pair_id: Tensor = None  # type: ignore[assignment]

    @classmethod
    def of(cls, edges: Edges, pair_id: Tensor) -> _Renumbered:
        made: _Renumbered = object.__new__(cls)
        made.__dict__.update(edges.__dict__, pair_id=pair_id)
        made._register()
        return made
