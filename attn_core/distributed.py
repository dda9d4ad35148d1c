"""What processes send each other, on the plain collectives of torch.distributed.

Everything here is differentiable, works with gloo and NCCL alike, and counts what it sends
(`traffic`). A process whose share is empty takes part in every step like the others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Group = Any  # a torch.distributed.ProcessGroup; None stands for all processes


@dataclass
class Traffic:
    """What this process sent to others.

    Attributes:
        rows: bytes of rows that were exchanged (`exchange`), gradients included.
        calls: how many exchanges that took.
        seconds: how long it was in them, to wait for the others included.
    """

    rows: int = 0
    calls: int = 0
    seconds: float = 0.0


_counting: list[Traffic] = []


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count what this process sends to others inside a `with` block.

    >>> with traffic() as sent:
    ...     pass
    >>> sent
    Traffic(rows=0, calls=0, seconds=0.0)
    """
    counted = Traffic()
    _counting.append(counted)
    try:
        yield counted
    finally:
        _counting.remove(counted)


def is_on(group: Group = None) -> bool:
    """Whether there are several processes, so that anything needs to be sent."""
    return world_size(group) > 1


def world_size(group: Group = None) -> int:
    """How many processes there are; one where torch.distributed was not set up."""
    return dist.get_world_size(group) if _is_set_up() else 1


def rank(group: Group = None) -> int:
    """The number of this process."""
    return dist.get_rank(group) if _is_set_up() else 0


def _is_set_up() -> bool:
    return dist.is_available() and dist.is_initialized()


@dataclass(frozen=True, eq=False)
class Route:
    """Which rows go from each process to which, as one of them knows it; made once.

    Args:
        send: int64 `[S]`, the rows that this process sends, those for process 0 first.
        send_counts, receive_counts: how many rows go to each process and come from it.
        group: the processes. Default: all.
    """

    send: Tensor
    send_counts: Sequence[int]
    receive_counts: Sequence[int]
    group: Group = None

    @property
    def num_received(self) -> int:
        return sum(self.receive_counts)

    def to(self, device: torch.device | str) -> Route:
        """The same on another device."""
        return Route(self.send.to(device), self.send_counts, self.receive_counts, self.group)

    def bytes_sent(self, width: int, itemsize: int) -> int:
        """What `with_received` sends: `rows sent · width · itemsize`."""
        return sum(self.send_counts) * width * itemsize

    def bytes_returned(self, width: int, itemsize: int) -> int:
        """What its backward pass sends: `rows received · width · itemsize`."""
        return self.num_received * width * itemsize


def with_received(x: Tensor, route: Route) -> Tensor:
    """x `[n, ...]` with the rows that others send behind it: `[n + received, ...]`.

    The gradient of a row is the sum of what all processes that received it made of it, in the order
    of the processes, so that the bits do not depend on who came first.
    """
    out: Tensor = _WithReceived.apply(x, route)
    return out


class _WithReceived(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, route: Route) -> Tensor:
        ctx.route = route
        out = x.new_empty(x.shape[0] + route.num_received, *x.shape[1:])
        out[: x.shape[0]] = x
        exchange(
            x.index_select(0, route.send),
            out[x.shape[0] :],
            route.send_counts,
            route.receive_counts,
            route.group,
        )
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Return.apply(grads[0], ctx.route), None


class _Return(torch.autograd.Function):
    """Received rows go back and are added to those that were sent: the gradient, and its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, route: Route) -> Tensor:
        ctx.route = route
        own = x.shape[0] - route.num_received
        back = x.new_empty(len(route.send), *x.shape[1:])
        exchange(x[own:].contiguous(), back, route.receive_counts, route.send_counts, route.group)
        out = x[:own].clone()
        begin = 0
        for count in route.send_counts:  # no row twice in one step: no order of additions is left
            end = begin + count
            out.index_add_(0, route.send[begin:end], back[begin:end])
            begin = end
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _WithReceived.apply(grads[0], ctx.route), None


def exchange(
    send: Tensor,
    receive: Tensor,
    send_counts: Sequence[int],
    receive_counts: Sequence[int],
    group: Group = None,
) -> None:
    """Send rows to each process and receive rows from each, in place, without a gradient.

    Args:
        send: `[S, ...]`, the rows for process 0 first; contiguous.
        receive: `[R, ...]`, to be filled; contiguous.
        send_counts, receive_counts: how many rows go to each process and come from it.
        group: the processes. Default: all.
    """
    if not is_on(group):
        receive.copy_(send)
        return
    if len(send_counts) != world_size(group):
        raise ValueError(
            f"rows are to be exchanged by {len(send_counts)} processes, but there are "
            f"{world_size(group)}: start as many as the partition has parts"
        )
    row = send[0].numel() if len(send) else 0
    for counted in _counting:
        others = sum(send_counts) - send_counts[rank(group)]
        counted.rows += others * row * send.element_size()
        counted.calls += 1
    started = time.perf_counter()
    # As bytes, since gloo does not know every dtype
    dist.all_to_all_single(
        _as_bytes(receive), _as_bytes(send), list(receive_counts), list(send_counts), group=group
    )
    for counted in _counting:
        counted.seconds += time.perf_counter() - started


def leave() -> None:
    """Destroy the process group, once gloo's threads have had time to drop the last collectives.

    They may need Python's lock for that, and whoever destroys the group holds it while it waits for
    them: for ever, in torch 2.13.
    """
    if dist.get_backend() == "gloo":
        time.sleep(0.5)
    dist.destroy_process_group()


def _as_bytes(rows: Tensor) -> Tensor:
    width = rows[0].numel() if len(rows) else 0
    return rows.reshape(len(rows), width).view(torch.uint8)


def sum_over(x: Tensor, group: Group = None) -> Tensor:
    """The sum over all processes, whose gradient is that of each process's own summand.

    What all processes differentiate once, together, is then the sum once: a loss of which each has
    a part is `sum_over(part)`.
    """
    out: Tensor = _SumOver.apply(x, group)
    return out


class _SumOver(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        total = x.clone()
        if is_on(group):
            dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0], None


def mean_over(values: Tensor, weights: Tensor | None = None, group: Group = None) -> Tensor:
    """The (weighted) mean of all processes' values, whose gradient is as that of `sum_over`."""
    if weights is None:
        total = torch.tensor(values.numel(), dtype=values.dtype, device=values.device)
    else:
        total, values = weights.detach().sum().to(values.dtype), values * weights
    return sum_over(values.sum(), group) / sum_over(total, group)


def shared(tensors: Sequence[Tensor], group: Group = None) -> tuple[Tensor, ...]:
    """Tensors that all processes have alike, such as parameters; their gradients are summed.

    One message for all of them. What no process used has no gradient.
    """
    if not is_on(group):
        return tuple(tensors)
    out: tuple[Tensor, ...] = _Shared.apply(group, *tensors)
    return out


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.like = group, tensors
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        found: list[Tensor | None] = [None] * len(grads)
        for dtype in sorted({x.dtype for x in ctx.like}, key=str):
            places = [i for i, x in enumerate(ctx.like) if x.dtype == dtype]
            device = ctx.like[places[0]].device
            used = torch.tensor([grads[i] is not None for i in places], dtype=dtype, device=device)
            given = [(ctx.like[i], grads[i]) for i in places]
            parts = [x.new_zeros(x.numel()) if g is None else g.flatten() for x, g in given]
            total = torch.cat([*parts, used])
            dist.all_reduce(total, group=ctx.group)
            *parts, used = total.split([*map(len, parts), len(places)])
            for i, part, users in zip(places, parts, used.tolist(), strict=True):
                if users:
                    found[i] = part.view_as(ctx.like[i])
        return None, *found


def broadcast(tensors: Sequence[Tensor], group: Group = None) -> None:
    """Let all processes have the tensors of the first one, in place."""
    if is_on(group):
        source = dist.get_global_rank(group, 0) if group is not None else 0
        for x in tensors:
            dist.broadcast(x, source, group=group)


def gather_rows(x: Tensor, group: Group = None) -> list[Tensor]:
    """The rows of all processes, of which each may have another number; without a gradient."""
    if not is_on(group):
        return [x]
    counts = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(world_size(group))]
    dist.all_gather(counts, torch.tensor([len(x)], device=x.device), group=group)
    sizes = [int(count) for count in counts]
    mine = x.detach().contiguous()
    out = x.new_empty(sum(sizes), *x.shape[1:])
    # To each process the same rows
    send = mine.repeat(len(sizes), *[1] * (x.dim() - 1))
    exchange(send, out, [len(x)] * len(sizes), sizes, group)
    return list(out.split(sizes))


@contextmanager
def summed_gradients(model: nn.Module, group: Group = None) -> Iterator[None]:
    """Inside, the parameters are tensors whose gradients are summed over all processes."""
    given = [p for p in model.parameters() if p.requires_grad]
    with in_place_of(model, given, shared(given, group)):
        yield


@contextmanager
def in_place_of(
    model: nn.Module, parameters: Sequence[Tensor], others: Sequence[Tensor]
) -> Iterator[None]:
    """Inside, a model has other tensors in the place of some of its parameters.

    As torch.func.functional_call does it, which leaves a module that stands in two places broken.
    """
    alike = dict(zip(map(id, parameters), others, strict=True))
    places = [(part._parameters, dict(part._parameters)) for part in model.modules()]
    try:
        for own, before in places:
            own.update((name, alike.get(id(p), p)) for name, p in before.items())  # type: ignore[misc]
        yield
    finally:
        for own, before in places:
            own.update(before)


def make_alike(model: nn.Module, group: Group = None) -> None:
    """Let all processes have the first one's parameters, buffers and random numbers to come."""
    if not is_on(group):
        return
    with torch.no_grad():
        broadcast([*model.parameters(), *model.buffers()], group)
    device = next(model.parameters(), torch.empty(0)).device
    if device.type == "cuda":
        state = torch.cuda.get_rng_state(device).to(device)
        broadcast([state], group)
        torch.cuda.set_rng_state(state.cpu(), device)
    state = torch.get_rng_state()
    sent = state.to(device) if dist.get_backend(group) == "nccl" else state
    broadcast([sent], group)
    torch.set_rng_state(sent.cpu())
