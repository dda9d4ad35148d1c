"""The pairs of a graph in as few bytes as the kernels need: sorted, of 32 bits, loops implied."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack

from attn_core import compiled
from attn_core.gpu import is_gpu
from attn_core.graph.read import row_pointer
from attn_core.transforms import bare, is_transformed, outside_inference

_MOST = 2**31 - 1  # nodes are 32-bit numbers in the kernels, and so are places up to so many
_INTEGERS = torch.int32, torch.int64
_TURNING = threading.Lock()


class Sorted(NamedTuple):
    """Pairs sorted by one of their ends, those of each node in the order of their places."""

    pointer: Tensor  # int64 [num + 1], where the pairs of each node begin
    columns: Tensor  # int32 [E'], the other ends
    places: Tensor  # int32 (int64 above 2³¹) [E'], the number of the caller's edge, or E + node

    @classmethod
    def made(cls, handle: Any, *, by_key: bool) -> Sorted | None:
        """What the compiled module has sorted, in its own memory; None if it did not."""
        arrays = handle.order(by_key)
        return None if arrays is None else cls(*map(from_dlpack, arrays))

    @classmethod
    def empty(cls, num: int, room: int) -> Sorted:
        """Memory for one."""
        wide = torch.int32 if room <= _MOST else torch.int64
        return cls(
            torch.empty(num + 1, dtype=torch.int64, device="cpu"),
            torch.empty(room, dtype=torch.int32, device="cpu"),
            torch.empty(room, dtype=wide, device="cpu"),
        )

    def narrowed(self) -> Sorted:
        """With places of as few bits as hold them."""
        return self._replace(places=self.places.int()) if len(self.places) <= _MOST else self

    def cut(self, size: int) -> Sorted:
        """Without the room that was left over."""
        if size == len(self.columns):
            return self
        return Sorted(self.pointer, self.columns[:size], self.places[:size])


class Listing:
    """The pairs of a graph, sorted by the compiled module; all else is made where it is asked for.

    Attributes:
        sizes: how many keys and queries there are.
        num_given: E, how many pairs the caller listed.
        loops: how many nodes got a self-loop, where those that the caller had listed are left out;
            None: self-loops are as the caller listed them.
        num_pairs: E', with the loops and without what they replaced.
        handle: what the kernels take.
    """

    handle: Any

    def __init__(
        self,
        sizes: tuple[int, int],
        num_given: int,
        loops: int | None,
        room: Sorted | None,
        num_pairs: int,
        key_room: Sorted | None = None,
        handle: Any = None,
    ) -> None:
        self.sizes, self.num_given, self.loops, self.num_pairs = sizes, num_given, loops, num_pairs
        self.handle = handle
        if room is not None:  # else it lies in the module's memory, for who asks
            self._room = room
            self._key_room = key_room
            if compiled.module is not None:
                order = map(to_dlpack, map(bare, self.by_query))
                self.handle = compiled.module.SortedPairs(*sizes, self.num_places, *order)
                if key_room is not None:
                    self.handle.set_by_key(*map(to_dlpack, map(bare, self.by_key)))

    @classmethod
    def of(cls, pairs: Tensor, sizes: tuple[int, int], self_loops: bool) -> Listing | None:
        """Check and sort pairs `[2, E]`; None where the module cannot, or a number is out of range.

        Where gradients may be asked for, the order by key is made along with that by query.
        """
        if not (
            compiled.is_on()
            and pairs.is_cpu
            and pairs.layout is torch.strided
            and pairs.dtype in _INTEGERS
            and pairs.dim() == 2
            and pairs.shape[0] == 2
            and max(sizes) < _MOST
            and not is_gpu(pairs.device)
            and not is_transformed()
        ):
            return None
        pairs = bare(pairs)
        given, loops = pairs.shape[1], min(sizes) if self_loops else None
        handle = compiled.module.sort_ends(
            to_dlpack(pairs), *sizes, loops or 0, given + (loops or 0) <= _MOST,
            torch.get_num_threads(), torch.is_grad_enabled(),
        )  # fmt: skip
        if handle is None:
            return None
        return cls(sizes, given, loops, None, handle.count, handle=handle)

    @cached_property
    def _room(self) -> Sorted:
        with outside_inference():
            made = Sorted.made(self.handle, by_key=False)
        assert made is not None
        return made

    @cached_property
    def _key_room(self) -> Sorted | None:
        with outside_inference():
            return Sorted.made(self.handle, by_key=True)

    @cached_property
    def by_query(self) -> Sorted:
        """The order by query."""
        return self._room.cut(self.num_pairs)

    @cached_property
    def by_key(self) -> Sorted:
        """The order by key."""
        if self._key_room is None:
            # Kernels of other threads read what was made first
            with _TURNING, outside_inference():
                if self._key_room is None:
                    self._key_room = self._turn()
        return self._key_room.cut(self.num_pairs)

    def _turn(self) -> Sorted:
        """The order by key, of that by query."""
        by_query = Sorted(*map(bare, self.by_query))
        if compiled.module is None:  # these were built where it is there
            node = torch.arange(self.sizes[1], device="cpu")
            node = node.repeat_interleave(by_query.pointer.diff())
            order = by_query.places.argsort()
            order = order[by_query.columns[order].argsort(stable=True)]
            pointer = row_pointer(by_query.columns.long(), self.sizes[0])
            return Sorted(pointer, node[order].int(), by_query.places[order])
        to = Sorted.empty(self.sizes[0], self.num_pairs)
        to = to._replace(places=to.places.to(by_query.places.dtype))
        threads = torch.get_num_threads()
        compiled.call("turn", *by_query, self.num_places, threads, *to)
        self.handle.set_by_key(*map(to_dlpack, to))
        return to

    def room(self) -> Sorted:
        """The order by query, and behind it what was left out."""
        return self._room

    def key_room(self) -> Sorted | None:
        """The order by key, if it was made."""
        return self._key_room

    def turned(self) -> Any:
        """The handle, with the order by key."""
        if not self.handle.has_key:
            _ = self.by_key
        return self.handle

    @cached_property
    def left_out(self) -> tuple[Tensor, Tensor] | None:
        """Places and nodes of the self-loops that were replaced, in order; None if none were."""
        if self.num_pairs == self.num_places:
            return None
        with outside_inference():
            rest = slice(self.num_pairs, None)
            return self._room.places[rest].long(), self._room.columns[rest].long()

    @property
    def num_places(self) -> int:
        """E + loops, below which all places lie."""
        return self.num_given + (self.loops or 0)

    def positions(self, places: Tensor) -> Tensor:
        """Where pairs of these places stand in `pairs`, int64."""
        places = places.long()
        if self.left_out is None:
            return places
        return places - torch.searchsorted(self.left_out[0], places)

    @cached_property
    def pairs(self) -> Tensor:
        """int64 `[2, E']`, keys and queries: the caller's pairs, then the self-loops."""
        with outside_inference():
            return self._listed(self.positions(self.by_query.places), self.num_pairs, torch.int64)

    def given_pairs(self) -> Tensor:
        """int32 `[2, E]`, as the caller listed them."""
        places = self.by_query.places.long()
        pairs = self._listed(places, self.num_places, torch.int32)[:, : self.num_given]
        if self.left_out is not None:
            places, nodes = self.left_out
            pairs[:, places] = nodes.int()
        return pairs

    def _listed(self, positions: Tensor, room: int, dtype: torch.dtype) -> Tensor:
        pairs = torch.zeros(2, room, dtype=dtype, device="cpu")
        pairs[0, positions] = self.by_query.columns.to(dtype)
        node = torch.arange(self.sizes[1], dtype=dtype, device="cpu")
        pairs[1, positions] = node.repeat_interleave(self.by_query.pointer.diff())
        return pairs

    def source_id(self) -> Tensor:
        """The place of each pair of `pairs`, int64 `[E']`."""
        source = torch.arange(self.num_places, device="cpu")
        if self.left_out is None:
            return source
        kept = torch.ones(self.num_places, dtype=torch.bool, device=source.device)
        kept[self.left_out[0]] = False
        return source[kept]

    def tensors(self) -> list[Tensor]:
        """All that is held."""
        held: list[Any] = [*self._room, *(self._key_room or ()), self.__dict__.get("pairs")]
        return [x for x in held if x is not None]

    def __getstate__(self) -> tuple[Any, ...]:
        return self.sizes, self.num_given, self.loops, self._room, self.num_pairs, self._key_room

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]
