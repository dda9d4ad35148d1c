"""What passes from one step of a decoder to the next, and what comes out; nothing changes one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from attn_core.compat import renewed
from attn_core.supports.base import broadcasts_to
from sequence_attn.attention import Memory
from sequence_attn.checks import chosen


class DecoderState(NamedTuple):
    """Where a decoder stands between two steps; nothing ever changes one.

    Attributes:
        cell: the state of every layer, `[layers, B, S]`: one tensor, or for an LSTM two.
        fed: what the next step gets from the last one, `[B, F]`; None if nothing.
        step: how many steps have been taken.
        memories: the keys that each read attends to, projected already.
        summary: the one context of a decoder without attention, `[B, D]`; else None.
    """

    cell: tuple[Tensor, ...]
    fed: Tensor | None
    step: int
    memories: tuple[Memory, ...]
    summary: Tensor | None

    def after(self, read: Read, **changes: Any) -> DecoderState:
        """The state after a step that has read this."""
        return renewed(self, memories=read.memories or self.memories, **changes)

    def select(self, index: Tensor, *, memory: bool = True) -> DecoderState:
        """The sequences `index` `[n]`, in that order; one may occur often.

        With `memory=False` only what the steps have changed is reordered: enough where every
        sequence takes the place of one that reads the same memory.
        """
        cell = tuple(chosen(x, index, 1) for x in self.cell)
        fed = chosen(self.fed, index)
        if not memory:
            moved = tuple(memory.moved(index) for memory in self.memories)
            return self._replace(cell=cell, fed=fed, memories=moved)
        memories = tuple(memory.select(index) for memory in self.memories)
        return DecoderState(cell, fed, self.step, memories, chosen(self.summary, index))


class Decoded(NamedTuple):
    """What a decoder returns.

    Attributes:
        output: `[B, T, output_size]`.
        weights: of every read, `[B, reads, T, Tk]`; None unless asked for.
        state: after the last step.
        log_prob: of the choices of hard attention in training, `[B, hard reads, T]`; else None.
        entropy: of what they were drawn from, likewise.
    """

    output: Tensor
    weights: Tensor | None
    state: DecoderState
    log_prob: Tensor | None
    entropy: Tensor | None


class Read(NamedTuple):
    """What a step has read.

    Attributes:
        context: of all reads, concatenated, `[B, T, reads · D]`.
        weights: `[B, reads, T, Tk]`; None unless asked for.
        log_prob: of the choices of hard attention in training, `[B, hard reads, T]`; else None.
        entropy: of what they were drawn from, likewise.
        memories: what each read attends to next.
    """

    context: Tensor
    weights: Tensor | None
    log_prob: Tensor | None
    entropy: Tensor | None
    memories: tuple[Memory, ...] = ()


def own_inputs(feed_previous: bool | Tensor, inputs: Tensor) -> Tensor | None:
    """Where a step is given its own output, `[B, T]`; None for nowhere."""
    if isinstance(feed_previous, bool):
        if not feed_previous:
            return None
        feed_previous = torch.tensor(True, device=inputs.device)
    given = getattr(feed_previous, "dtype", type(feed_previous).__name__)
    if given != torch.bool:
        raise TypeError(f"feed_previous is of {given}; expected a bool, or a bool tensor")
    batch, steps, _ = inputs.shape
    if feed_previous.dim() == 1:
        feed_previous = feed_previous.unsqueeze(1)
    if not broadcasts_to(feed_previous.shape, (batch, steps)):
        raise ValueError(
            f"feed_previous has shape {list(feed_previous.shape)}; expected [], [{batch}] or "
            f"[{batch}, {steps}]"
        )
    return feed_previous.expand(batch, steps)


def joined(steps: list[Tensor | None]) -> Tensor | None:
    """`[B, reads, 1, …]` of every step as `[B, reads, T, …]`."""
    found = [x for x in steps if x is not None]
    return torch.cat(found, 2) if found else None
