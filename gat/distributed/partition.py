"""A graph cut into parts, one for each process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attn_core.distributed import Group, Route, gather_rows, rank
from gat.distributed.shard import Shard

_TENSORS = "nodes", "halo", "edge_ids", "pairs", "send", "send_counts", "receive_counts"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Partition:
    """One process's part of a graph: some nodes, all edges into them, and whom to ask for the rest.

    `Partition.split` cuts a graph; `save` writes a part to a folder, from which the process that
    needs it loads it alone, so that none ever holds the whole.

    Attributes:
        nodes: int64 `[n]`, the nodes of this part by their numbers in the whole graph, ascending.
        halo: int64 `[h]`, the foreign nodes that edges come from, sorted by part, then number.
        edge_ids: int64 `[E]`, the edges of this part by their numbers in the whole graph,
            ascending.
        pairs: int64 `[2, E]`, sources and targets of these edges: node i of this part is i, and
            node i of the halo n + i.
        send: int64 `[S]`, the nodes of this part (0 to n - 1) whose rows others need, those for
            part 0 first.
        send_counts, receive_counts: int64 `[P]`, how many rows go to each part and come from it.
        part: the number of this part, which is that of its process.
        num_parts: P.
        num_nodes, num_edges: of the whole graph.
        group: the processes, one for each part. Default: all.

    >>> ring = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    >>> first, second = Partition.split(ring, parts=2)
    >>> second.nodes, second.halo, second.pairs
    (tensor([2, 3]), tensor([1]), tensor([[2, 0],
            [0, 1]]))
    """

    nodes: Tensor
    halo: Tensor
    edge_ids: Tensor
    pairs: Tensor
    send: Tensor
    send_counts: Tensor
    receive_counts: Tensor
    part: int
    num_parts: int
    num_nodes: int
    num_edges: int
    group: Group = None

    @classmethod
    def split(
        cls,
        edge_index: Tensor,
        parts: int,
        num_nodes: int | None = None,
        *,
        assignment: Tensor | str = "contiguous",
    ) -> list[Partition]:
        """Cut a graph; a node goes to one part, an edge to that of its target.

        Args:
            edge_index: int64 `[2, E]`, sources and targets.
            parts: P, how many parts.
            num_nodes: N. Default: the largest node plus 1.
            assignment: integers `[N]`, the part of each node; or "contiguous" (default), which
                gives each part equally many neighbouring nodes; or "metis", which cuts few edges
                (Karypis and Kumar, 1998; needs the extra `gat-attention[metis]`).

        Returns:
            One Partition for each part; a part may be empty.

        Raises:
            ValueError, TypeError: no such assignment, fewer than one part, an edge_index of another
                shape or with a node that is not there.
            ModuleNotFoundError: pymetis is missing.
        """
        edge_index, num_nodes = _checked(edge_index, parts, num_nodes)
        part_of = _assigned(assignment, edge_index, parts, num_nodes)
        source, target = edge_index
        local = torch.empty(num_nodes, dtype=torch.int64)  # the number of each node in its part
        nodes = [torch.nonzero(part_of == part).squeeze(1) for part in range(parts)]
        for own in nodes:
            local[own] = torch.arange(len(own))
        edges, halos = [], []
        of_edge = part_of[target]
        for part in range(parts):
            ids = torch.nonzero(of_edge == part).squeeze(1)
            sources = source[ids]
            foreign = sources[part_of[sources] != part].unique()
            halos.append(foreign[torch.argsort(part_of[foreign], stable=True)])
            edges.append(ids)
        made = []
        for part in range(parts):
            ids, halo, own = edges[part], halos[part], nodes[part]
            position = local.clone()
            position[halo] = len(own) + torch.arange(len(halo))
            sends = [local[other[part_of[other] == part]] for other in halos]
            made.append(
                cls(
                    own,
                    halo,
                    ids,
                    torch.stack([position[source[ids]], local[target[ids]]]),
                    torch.cat(sends),
                    torch.tensor([len(rows) for rows in sends]),
                    torch.bincount(part_of[halo], minlength=parts),
                    part,
                    parts,
                    num_nodes,
                    edge_index.shape[1],
                )
            )
        return made

    @cached_property
    def edges(self) -> Shard:
        """What a layer takes for its edge_index."""
        counts = self.send_counts.tolist(), self.receive_counts.tolist()
        route = Route(self.send, *counts, self.group)
        return Shard.of(self.pairs, self.nodes, self.halo, self.edge_ids, self.num_edges, route)

    def rows(self, x: Any) -> Tensor:
        """The rows of this part's nodes of a tensor or (memory-mapped) array `[N, ...]`."""
        return _picked("x", x, self.nodes, self.num_nodes, "nodes")

    def edge_rows(self, edge_attr: Any) -> Tensor:
        """The rows of this part's edges of a tensor or (memory-mapped) array `[E, ...]`."""
        return _picked("edge_attr", edge_attr, self.edge_ids, self.num_edges, "edges")

    def collect(self, x: Tensor) -> Tensor:
        """The rows of all parts' nodes in the order of the whole graph, `[N, ...]`, for everyone.

        Without a gradient; for results that are small enough to be in one place.
        """
        rows, nodes = (gather_rows(part, self.group) for part in (x, self.nodes))
        out = x.new_empty(self.num_nodes, *x.shape[1:])
        for part, places in zip(rows, nodes, strict=True):
            out[places] = part.detach()
        return out

    def to(self, device: torch.device | str) -> Partition:
        """The same on another device."""
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in _TENSORS}
        return Partition(**{**self._fields, **moved})

    def within(self, group: Group) -> Partition:
        """The same among some processes alone, one for each part."""
        return Partition(**{**self._fields, "group": group})

    @property
    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def save(self, folder: str | Path) -> Path:
        """Write this part below a folder, as .npy files and a .json, and return where.

        >>> import tempfile
        >>> parts = Partition.split(torch.tensor([[0, 1], [1, 0]]), parts=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for part in parts:
        ...         _ = part.save(folder)
        ...     Partition.load(folder, part=1).nodes
        tensor([1])
        """
        place = _place(folder, self.part)
        place.mkdir(parents=True, exist_ok=True)
        for name in _TENSORS:
            np.save(place / f"{name}.npy", getattr(self, name).cpu().numpy(), allow_pickle=False)
        numbers = {n: getattr(self, n) for n in ("part", "num_parts", "num_nodes", "num_edges")}
        text = json.dumps({"format": _FORMAT, **numbers}, indent=1)
        (place / "partition.json").write_text(text + "\n", encoding="utf-8")
        return place

    @classmethod
    def load(cls, folder: str | Path, part: int | None = None, group: Group = None) -> Partition:
        """Read one part of those that were saved below a folder.

        Args:
            folder: as given to `save`.
            part: its number. Default: that of this process.
            group: the processes. Default: all.

        Raises:
            FileNotFoundError: there is no such part.
            ValueError: it was written by another version of this format.
        """
        place = _place(folder, rank(group) if part is None else part)
        if not (place / "partition.json").is_file():
            raise FileNotFoundError(
                f"{place} holds no part of a partition: write one with partition.save({folder})"
            )
        numbers = json.loads((place / "partition.json").read_text(encoding="utf-8"))
        if (found := numbers.pop("format", None)) != _FORMAT:
            raise ValueError(f"{place} has format {found}, not {_FORMAT}: split and save it anew")
        tensors: dict[str, Any] = {
            name: torch.from_numpy(np.load(place / f"{name}.npy", allow_pickle=False))
            for name in _TENSORS
        }
        return cls(**tensors, **numbers, group=group)

    def __repr__(self) -> str:
        return (
            f"Partition(part {self.part} of {self.num_parts}: {len(self.nodes)} nodes, "
            f"{self.pairs.shape[1]} edges, {len(self.halo)} foreign nodes)"
        )


def _place(folder: str | Path, part: int) -> Path:
    return Path(folder) / f"part-{part:05d}"


def _checked(edge_index: Tensor, parts: int, num_nodes: int | None) -> tuple[Tensor, int]:
    if not isinstance(edge_index, Tensor) or edge_index.is_floating_point():
        raise TypeError("edge_index is no tensor of integers [2, E]")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"edge_index has shape {list(edge_index.shape)}; expected [2, E]")
    if parts < 1:
        raise ValueError(f"parts is {parts}; a graph has at least one")
    edge_index = edge_index.long().cpu()
    low, high = (int(x) for x in edge_index.aminmax()) if edge_index.numel() else (0, -1)
    num_nodes = high + 1 if num_nodes is None else num_nodes
    if low < 0 or high >= num_nodes:
        raise ValueError(
            f"edge_index names node {low if low < 0 else high}, but num_nodes is {num_nodes}"
        )
    return edge_index, num_nodes


def _assigned(assignment: Tensor | str, edge_index: Tensor, parts: int, num_nodes: int) -> Tensor:
    """The part of each node."""
    if isinstance(assignment, str):
        if assignment == "contiguous":
            return torch.arange(num_nodes) * parts // max(num_nodes, 1)
        if assignment == "metis":
            return _by_metis(edge_index, parts, num_nodes)
        raise ValueError(
            f"assignment is {assignment!r}; expected 'contiguous', 'metis', or the part of each "
            "node"
        )
    if assignment.shape != (num_nodes,) or assignment.is_floating_point():
        raise ValueError(
            f"assignment has shape {list(assignment.shape)} and dtype {assignment.dtype}; expected "
            f"integers [{num_nodes}], the part of each node"
        )
    part_of = assignment.long().cpu()
    if num_nodes and (int(part_of.min()) < 0 or int(part_of.max()) >= parts):
        wrong = int(part_of.min()) if int(part_of.min()) < 0 else int(part_of.max())
        raise ValueError(f"assignment names part {wrong}; expected 0 to {parts - 1}")
    return part_of


def _by_metis(edge_index: Tensor, parts: int, num_nodes: int) -> Tensor:
    """METIS looks at an undirected graph without self-loops or duplicates."""
    try:
        import pymetis
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "assignment='metis' needs pymetis: pip install 'gat-attention[metis]'",
            name=error.name,
        ) from error
    if parts == 1 or num_nodes == 0:
        return torch.zeros(num_nodes, dtype=torch.int64)
    source, target = edge_index[:, edge_index[0] != edge_index[1]]
    both = torch.cat([source * num_nodes + target, target * num_nodes + source]).unique()
    pointer = torch.zeros(num_nodes + 1, dtype=torch.int64)
    pointer[1:] = torch.bincount(both // num_nodes, minlength=num_nodes).cumsum(0)
    adjacency = pymetis.CSRAdjacency(pointer.tolist(), (both % num_nodes).tolist())
    _, membership = pymetis.part_graph(parts, adjacency)
    return torch.tensor(membership, dtype=torch.int64)


def _picked(name: str, x: Any, rows: Tensor, length: int, what: str) -> Tensor:
    if len(x) != length:
        raise ValueError(
            f"{name} has {len(x)} rows; expected {length}, one for each of the whole graph's {what}"
        )
    if isinstance(x, Tensor):
        return x.index_select(0, rows.to(x.device))
    return torch.from_numpy(np.ascontiguousarray(x[rows.cpu().numpy()]))
