"""Pairs in a list: what `Edges` and an edge_index that is being traced have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from attn_core.dropout import draw_seed, dropout_scale
from attn_core.rows import EdgeRows
from attn_core.scores import Score
from attn_core.supports.base import Support


class Pairs(Support):
    """A list of pairs over which nodes `[N, H, D]` attend; per-pair tensors have a row for each.

    `attend` takes nodes `[..., N, H, D]`, whose batch dimensions it hands on as more heads.

    Attributes:
        pairs: int64 `[2, E]`, keys and queries.
        num_keys, num_queries: Nk and Nq.
        source_id: int64 `[E]`, the number by which dropout knows each pair.
        exists: bool `[E]`, which of the pairs there are; None: all.
    """

    pairs: Tensor
    exists: Tensor | None = None

    @property
    def pair_id(self) -> Tensor | None:
        """The numbers by which dropout knows the pairs where `source_id` does not say them."""
        return None

    @property
    def num_keys(self) -> int:
        raise NotImplementedError

    @property
    def num_queries(self) -> int:
        raise NotImplementedError

    @property
    def key_index(self) -> Tensor:
        return self.pairs[0]

    @property
    def query_index(self) -> Tensor:
        return self.pairs[1]

    @property
    def source_id(self) -> Tensor:
        raise NotImplementedError

    @property
    def num_rows(self) -> int:
        """How many rows a tensor has that holds something per pair: one for each."""
        return self.pairs.shape[1]

    def check(self, query: Tensor | None, key: Tensor, value: Tensor) -> None:
        check_nodes(query, key, value, self.num_queries, self.num_keys, self.pairs.device)

    def scores(
        self, score: Score, query: Tensor | None, key: Tensor, pair_key: Tensor | None
    ) -> Tensor:
        of_query = None if query is None else query.index_select(0, self.query_index)
        return score.of_pairs(of_query, key.index_select(0, self.key_index), pair_key)

    def rows(self, scores: Tensor, num_keys: int) -> EdgeRows:
        return EdgeRows(self.query_index, self.num_queries, self.exists)

    def drop(self, weights: Tensor, p: float, seed: Tensor | None = None) -> Tensor:
        seed = draw_seed(weights.device) if seed is None else seed
        ids = self.source_id if self.pair_id is None else self.pair_id
        return weights * dropout_scale(seed, ids, weights.shape[-1], p).to(weights.dtype)

    def aggregate(self, weights: Tensor, value: Tensor, pair_value: Tensor | None) -> Tensor:
        of_pair = value.index_select(0, self.key_index)  # [E, H, D]
        if pair_value is not None:
            of_pair = of_pair + pair_value
        return EdgeRows(self.query_index, self.num_queries).sum(weights.unsqueeze(-1) * of_pair)

    def relative_positions(
        self, queries: int, keys: int, device: torch.device | None = None
    ) -> Tensor:
        """Number of the key minus number of the query, `[E]`, as if nodes were positions."""
        return self.key_index - self.query_index


class TracedPairs(Pairs):
    """The pairs of an edge_index that torch.compile traces, which looks into no cache.

    How many self-loops are replaced depends on the data. So all of the caller's edges are here,
    then all loops, and `exists` leaves out what was replaced; unless the pairs are to be exact,
    which makes tensors whose sizes depend on the data.
    """

    def __init__(self, pairs: Tensor, sizes: tuple[int, int], source_id: Tensor) -> None:
        self.pairs, self._sizes, self._source_id = pairs, sizes, source_id

    @classmethod
    def of(
        cls, edge_index: Tensor, sizes: tuple[int, int], self_loops: bool, exact: bool
    ) -> TracedPairs:
        """The pairs of an edge_index from sizes[0] to sizes[1] nodes."""
        pairs, device = edge_index.long(), edge_index.device
        source_id = torch.arange(pairs.shape[1], device=device)
        if not self_loops:
            return cls(pairs, sizes, source_id)
        loop = torch.arange(min(sizes), device=device)
        others = pairs[0] != pairs[1]
        if exact:
            kept = torch.nonzero(others).squeeze(1)
            source_id = torch.cat([kept, loop + pairs.shape[1]])
            pairs = torch.cat([pairs.index_select(1, kept), loop.expand(2, -1)], dim=1)
            return cls(pairs, sizes, source_id)
        source_id = torch.cat([source_id, loop + pairs.shape[1]])
        found = cls(torch.cat([pairs, loop.expand(2, -1)], dim=1), sizes, source_id)
        found.exists = torch.cat([others, torch.ones_like(loop, dtype=torch.bool)])
        return found

    def of_queries(self, queries: Tensor) -> tuple[TracedPairs, Tensor]:
        """The pairs of some queries, and where they stand among the pairs."""
        if queries.dtype != torch.bool:
            chosen = torch.zeros(self.num_queries, dtype=torch.bool, device=queries.device)
            queries = chosen.index_fill(0, queries, True)
        positions = torch.nonzero(queries.index_select(0, self.query_index)).squeeze(1)
        pairs = self.pairs.index_select(1, positions)
        return TracedPairs(pairs, self._sizes, self.source_id.index_select(0, positions)), positions

    @property
    def source_id(self) -> Tensor:
        return self._source_id

    @property
    def num_keys(self) -> int:
        return self._sizes[0]

    @property
    def num_queries(self) -> int:
        return self._sizes[1]


def check_nodes(
    query: Tensor | None,
    key: Tensor,
    value: Tensor,
    num_queries: int,
    num_keys: int,
    device: torch.device,
) -> None:
    """Raise unless query, key and value are node tensors `[..., N, H, D]` that fit the sizes."""
    for name, tensor, num in (
        ("query", query, num_queries),
        ("key", key, num_keys),
        ("value", value, num_keys),
    ):
        if tensor is None:
            continue
        if tensor.dim() < 3 or tensor.shape[-3] != num:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}; over edges it must be [..., N, H, D] with "
                f"N = {num}, the number of {'targets' if name == 'query' else 'sources'}"
            )
        if tensor.device != device:
            raise ValueError(
                f"edge_index is on {device}, but {name} is on {tensor.device}: move one of them "
                "with .to()"
            )
