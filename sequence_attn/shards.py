"""Attention of layers whose sequences are split along time: what they do inside a context.

`sequence_attn.distributed` enters the context; without one, `attend` is `attn_core.attend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import attn_core
from attn_core import Dense, Normalizer, Score, Softmax, Support, Window
from attn_core.call import Attended
from attn_core.distributed import Group, Route, rank, with_received, world_size
from attn_core.dropout import draw_seed
from attn_core.ring import Ring, Run

Bias = Callable[[Tensor], Tensor]  # of relative positions, such as ALiBi


@dataclass(frozen=True)
class Split:
    """How sequences are split along time among processes.

    Args:
        group: the processes. Default: all.
        balanced: each process has a part of the beginning and one of the end ("head and tail"), so
            that causal attention costs all of them the same; else neighbouring steps.
    """

    group: Group = None
    balanced: bool = False

    def runs(self, steps: int) -> list[list[Run]]:
        """The runs of neighbouring steps that each process holds, of `steps` steps each."""
        processes = world_size(self.group)
        if not self.balanced:
            return [[(process * steps, steps)] for process in range(processes)]
        if steps % 2:
            raise ValueError(
                f"each process has {steps} steps; expected an even number, half of them from the "
                "beginning and half from the end: pad the sequences, or leave out balanced=True"
            )
        half = steps // 2
        return [
            [(process * half, half), ((2 * processes - 1 - process) * half, half)]
            for process in range(processes)
        ]

    def positions(self, steps: int, device: torch.device | None = None) -> Tensor:
        """The positions of this process's steps in the whole sequence, int64 `[steps]`."""
        runs = self.runs(steps)[rank(self.group)]
        return torch.cat([torch.arange(first, first + n, device=device) for first, n in runs])

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        score: Score,
        normalizer: Normalizer,
        support: Support,
        bias: Tensor | Bias | None,
        dropout: float,
    ) -> Attended:
        """What `attn_core.attend` gives for the steps of this process."""
        if isinstance(bias, Tensor):
            raise ValueError(
                "bias is a tensor, whose keys other processes hold: give relative positions by "
                "relative_bias, such as ALiBi"
            )
        if isinstance(support, Window):
            if self.balanced:
                raise ValueError(
                    "balanced is True, but a window needs neighbouring steps: split with "
                    "balanced=False"
                )
            given = {"score": score, "normalizer": normalizer, "dropout": dropout}
            return self._in_window(query, key, value, support, bias, given)
        assert isinstance(support, Dense)
        if not isinstance(normalizer, Softmax):
            raise ValueError(
                f"normalizer is {type(normalizer).__name__}, whose weights over parts of the keys "
                "do not add up to those over all: take Softmax, or a window"
            )
        queries, keys = query.shape[-3], key.shape[-3]
        if support.causal and queries != keys:
            raise ValueError(f"causal is True, but there are {queries} queries and {keys} keys")
        seed = draw_seed(query.device) if dropout > 0 else None
        ring = Ring(
            score,
            normalizer,
            self.runs(queries),
            self.runs(keys),
            support.causal,
            support.lengths,
            bias,
            dropout,
            seed,
            self.group,
        )
        return Attended(ring.attend(query, key, value), None, None)

    def _in_window(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        window: Window,
        bias: Bias | None,
        given: dict[str, Any],
    ) -> Attended:
        """With the steps of the neighbours that the window reaches."""
        steps = key.shape[-3]
        if query.shape[-3] != steps:
            raise ValueError(f"a window needs as many queries, {query.shape[-3]}, as keys, {steps}")
        route, before = self.halo(steps, window.reach, 0 if window.causal else window.reach)
        after = route.num_received - before
        width = key.shape[-1]
        both = torch.cat([key, value], -1).movedim(-3, 0).contiguous()  # [T, ..., H, D + Dv]
        found = with_received(both, route)
        own, rest = found[:steps], found[steps:]
        near = torch.cat([rest[:before], own, rest[before:]]).movedim(0, -3)
        # The last query stands at the last key: queries that nobody asked for stand behind
        query = F.pad(query, (0, 0, 0, 0, 0, after)) if after else query
        lengths, centre = window.lengths, None
        if lengths is not None:  # by which the last query would stand elsewhere
            lengths = (lengths - rank(self.group) * steps + before).clamp(0, near.shape[-3])
            centre = before + torch.arange(steps + after, device=query.device)
        support = Window(window.radius, window.dilation, window.causal, centre, lengths)
        if bias is not None:
            whole = Window(window.radius, window.dilation, window.causal)
            relative = whole.relative_positions(steps + after, near.shape[-3], query.device)
            given["bias"] = bias(relative)
        near_key, near_value = near[..., :width], near[..., width:]
        result = attn_core.attend(query, near_key, near_value, support=support, **given)
        return Attended(result.output[..., :steps, :, :], None, None)

    def halo(self, steps: int, before: int, after: int) -> tuple[Route, int]:
        """How the steps before and after this process's come; how many of them are before."""
        here, processes = rank(self.group), world_size(self.group)
        total = steps * processes

        def needed(process: int) -> tuple[range, range]:
            first, last = process * steps, (process + 1) * steps
            return range(max(0, first - before), first), range(last, min(total, last + after))

        def common(wanted: range, process: int) -> range:
            first = process * steps
            return range(max(wanted.start, first), min(wanted.stop, first + steps))

        receive = [
            sum(len(common(wanted, process)) for wanted in needed(here))
            for process in range(processes)
        ]
        sends = [
            [step - here * steps for wanted in needed(process) for step in common(wanted, here)]
            for process in range(processes)
        ]
        send = torch.tensor([step for each in sends for step in each], dtype=torch.int64)
        return Route(send, [*map(len, sends)], receive, self.group), len(needed(here)[0])


_current: list[Split] = []  # of the whole process, as are the steps that processes take together


def split() -> Split | None:
    """How the sequences of the layers that run now are split; None: they are whole."""
    return _current[-1] if _current else None


@contextmanager
def splitting(how: Split) -> Iterator[None]:
    """Inside, layers take their sequences to be split."""
    _current.append(how)
    try:
        yield
    finally:
        _current.pop()


def refuse(**given: Any) -> None:
    """Raise where an argument is given that split sequences do not know."""
    for name, argument in given.items():
        if argument is not None and argument is not False:
            raise ValueError(
                f"{name} is given, but the sequences are split along time, where layers know "
                "causal order, lengths, windows and relative_bias alone: leave it out"
            )


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    score: Score,
    support: Support,
    normalizer: Normalizer = attn_core.softmax,
    bias: Any = None,
    dropout: float = 0.0,
    need_weights: bool = False,
) -> Attended:
    """`attn_core.attend`, over all keys of sequences that are split."""
    if (how := split()) is None:
        return attn_core.attend(
            query,
            key,
            value,
            score=score,
            normalizer=normalizer,
            support=support,
            bias=bias,
            dropout=dropout,
            need_weights=need_weights,
        )
    refuse(need_weights=need_weights)
    return how.attend(
        query,
        key,
        value,
        score=score,
        normalizer=normalizer,
        support=support,
        bias=bias,
        dropout=dropout,
    )
