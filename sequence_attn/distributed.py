"""Long sequences, split along time among processes.

`context_parallel` runs our layers over such sequences as if they were whole: keys go round in a
ring where a query sees all of them, and only the neighbours' nearest steps are sent where it sees a
window. `shard` and `unshard` cut and join. The engine is torch.distributed under `torchrun`: gloo
on CPUs, NCCL on GPUs. See docs/scaling.md.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attn_core.distributed import (
    Group,
    Traffic,
    gather_rows,
    make_alike,
    mean_over,
    rank,
    summed_gradients,
    traffic,
    world_size,
)
from sequence_attn.multihead import MultiHead
from sequence_attn.multihead_attention import MultiHeadAttention
from sequence_attn.shards import Split, splitting
from sequence_attn.transformer import TransformerEncoder

__all__ = ["ContextParallel", "Traffic", "context_parallel", "shard", "traffic", "unshard"]


def shard(x: Tensor, group: Group = None, *, balanced: bool = False, dim: int = -2) -> Tensor:
    """This process's steps of whole sequences.

    Args:
        x: the same in all processes; time is the dimension `dim`.
        group: a process group, or a DeviceMesh of one dimension. Default: all processes.
        balanced: give each process a part of the beginning and one of the end, see
            `context_parallel`. Default False.
        dim: default -2, as in `[..., T, D]`.

    Raises:
        ValueError: a time that the processes cannot share equally.

    >>> shard(torch.arange(4.0).view(1, 4, 1)).shape  # one process has all
    torch.Size([1, 4, 1])
    """
    how, steps = Split(_group(group), balanced), x.shape[dim]
    parts = world_size(how.group) * (2 if balanced else 1)
    if steps % parts:
        raise ValueError(
            f"x has {steps} steps, which {parts} parts cannot share equally: pad the sequences to "
            f"{-(-steps // parts) * parts}, and give their lengths"
        )
    return x.index_select(dim, how.positions(steps // world_size(how.group), x.device))


def unshard(x: Tensor, group: Group = None, *, balanced: bool = False, dim: int = -2) -> Tensor:
    """The whole sequences, of the steps of all processes; the reverse of `shard`, for everyone.

    Without a gradient: a loss is made of the steps where they are, see `ContextParallel.mean`.

    >>> x = torch.arange(4.0).view(1, 4, 1)
    >>> torch.equal(unshard(shard(x)), x)
    True
    """
    how = Split(_group(group), balanced)
    rows = torch.cat(gather_rows(x.movedim(dim, 0), how.group))
    runs = [run for part in how.runs(x.shape[dim]) for run in part]
    places = torch.cat([torch.arange(first, first + n, device=x.device) for first, n in runs])
    return torch.empty_like(rows).index_copy_(0, places, rows).movedim(0, dim)


def context_parallel(
    module: nn.Module, group: Group = None, *, balanced: bool = False
) -> ContextParallel:
    """Run a layer or model over sequences that are split along time, as if they were whole.

    `MultiHead`, `MultiHeadAttention`, `TransformerEncoder` and modules made of them; sinusoidal,
    learned and rotary positions, ALiBi and other relative biases know where a process's steps
    stand. Where a query sees all keys, these go round in a ring (Liu, Zaharia, Abbeel, 2024), an
    eighth of them at a time; with a window, each process is sent the `window`
    nearest steps of its neighbours, however long the sequences are.

    What is given with the sequences: lengths of the whole ones (`lengths`, `key_lengths`), causal
    order. Masks, caches and returned weights are refused. Attention dropout (over all keys) and the
    parameters are the same in all processes, and gradients of the parameters are summed over them:
    a loss is to be the whole batch's, as `mean` makes it.

    Args:
        module: alike in all processes.
        group: a process group, or a DeviceMesh of one dimension. Default: all processes.
        balanced: sequences are split such that each process has a part of the beginning and one of
            the end, which makes causal attention cost all processes the same; not for windows.
            Default False.

    Returns:
        A module with the given one as `module`, to be called with this process's steps.

    Raises:
        ValueError: a normaliser other than softmax over all keys, whose parts do not merge; in the
            call, an argument that is refused.

    >>> from sequence_attn import TransformerEncoder
    >>> encoder = context_parallel(TransformerEncoder(2, 16, 4, causal=True), balanced=True)
    >>> x = encoder.shard(torch.randn(2, 8, 16))  # what this process holds of it
    >>> loss = encoder.mean(encoder(x).output.square())
    >>> loss.backward()
    """
    return ContextParallel(module, _group(group), balanced)


class ContextParallel(nn.Module):
    """What `context_parallel` returns.

    Attributes:
        module: the layer or model; its parameters are what an optimiser takes, its `state_dict`
            what is saved.
    """

    def __init__(self, module: nn.Module, group: Group, balanced: bool) -> None:
        super().__init__()
        known = MultiHead, MultiHeadAttention, TransformerEncoder
        if not any(isinstance(part, known) for part in module.modules()):
            names = ", ".join(each.__name__ for each in known)
            raise ValueError(f"module is a {type(module).__name__}, which has none of {names}")
        self.module, self._how = module, Split(group, balanced)
        make_alike(module, group)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output for the steps of this process; the arguments are the module's."""
        with splitting(self._how), summed_gradients(self.module, self._how.group):
            return self.module(*args, **kwargs)

    def shard(self, x: Tensor, dim: int = -2) -> Tensor:
        """This process's steps of whole sequences, see `shard`."""
        return shard(x, self._how.group, balanced=self._how.balanced, dim=dim)

    def unshard(self, x: Tensor, dim: int = -2) -> Tensor:
        """The whole sequences, see `unshard`."""
        return unshard(x, self._how.group, balanced=self._how.balanced, dim=dim)

    def mean(self, values: Tensor, weights: Tensor | None = None) -> Tensor:
        """The (weighted) mean of all processes' values: a loss of the whole, or a metric."""
        return mean_over(values, weights, self._how.group)

    def extra_repr(self) -> str:
        here = f"process {rank(self._how.group)} of {world_size(self._how.group)}"
        return f"{here}, balanced={self._how.balanced}"


def _group(given: Any) -> Group:
    """The process group of a DeviceMesh, or what was given."""
    return given.get_group() if hasattr(given, "get_group") else given
