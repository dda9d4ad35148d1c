"""What measurements on a GPU have in common: rows of a table, peaks, and the copy to compare to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks._measure import cuda_events, stopwatch, take_turns
from benchmarks._report import Cell

MIB = 2**20
OURS, PEER, COMPILED = "ours", "peer", "compiled"
LONGEST = 120  # letters of a reason
Function = Callable[..., Tensor]
T = TypeVar("T")
PASSES = ("forward", "forward and backward")


def columns(peer: str) -> list[str]:
    """The columns of the rows of `measure`."""
    return [
        "", "pass", "ms, ours", f"ms, {peer}", "ms, compiled", "ms, bound", f"{peer} × ours",
        "compiled × ours", "ours × bound", "MiB, ours", f"MiB, {peer}", "memory × ours",
    ]  # fmt: skip


def measure(
    name: str,
    contenders: Mapping[str, Function],
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    bounds: tuple[float | None, float | None],
    device: str,
    rounds: int,
) -> Iterator[list[Cell]]:
    """A row for the forward pass, and one for both passes, each as soon as it is measured.

    A contender that fails has the reason in its cell, and the others go on.

    Args:
        name: what is measured.
        contenders: OURS, PEER and perhaps COMPILED; functions of the inputs.
        shapes: of the inputs, which are drawn anew so often that none is in the cache at its turn.
        dtype: of the inputs.
        bounds: the milliseconds that each of the PASSES takes at best.
        device: "cuda", or "cpu" to see that all of it runs.
        rounds: how often each is timed.
    """
    inputs = itertools.cycle(make_inputs(shapes, dtype, device)).__next__
    for name_of_pass, work, bound in zip(PASSES, (forward, step), bounds, strict=True):
        runs = {who: partial(work, function, inputs) for who, function in contenders.items()}
        tried = {who: attempt(partial(peak, run, device)) for who, run in runs.items()}
        peaks = {who: size for who, size in tried.items() if isinstance(size, int)}
        timings = take_turns(
            {who: runs[who] for who in peaks}, rounds, warm_up=1 if rounds > 1 else 0,
            timer=timer(device),
        )  # fmt: skip
        ms: dict[str, Cell] = {who: why for who, why in tried.items() if isinstance(why, str)}
        ms |= {who: timings.milliseconds(who) for who in timings.seconds}
        mine, memory = ms.get(OURS), peaks.get(OURS)
        yield [
            name, name_of_pass, mine, ms.get(PEER), ms.get(COMPILED), bound,
            ratio(ms.get(PEER), mine), ratio(ms.get(COMPILED), mine), ratio(mine, bound),
            mib(memory), mib(peaks.get(PEER)), ratio(peaks.get(PEER), memory),
        ]  # fmt: skip


def attempt(run: Callable[[], T]) -> T | str:
    """What it returns, or in a few words why it fails."""
    try:
        return run()
    except Exception as error:  # a compiler's, a driver's: whatever it is, the others go on
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if isinstance(error, torch.cuda.OutOfMemoryError):
            return "out of memory"
        words = f"{type(error).__name__}: {error}".split()
        return "failed: " + " ".join(words).replace("|", "/")[:LONGEST]


def make_inputs(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: str
) -> list[list[Tensor]]:
    """As many inputs as it takes for none of them to be in the cache when its turn comes."""
    number = 1
    if device == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        size = sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize
        number = 1 + 2 * cache // max(size, 1)
    return [
        [torch.randn(s, device=device, dtype=dtype, requires_grad=True) for s in shapes]
        for _ in range(number)
    ]


def forward(function: Function, inputs: Callable[[], list[Tensor]]) -> None:
    """One forward pass, without gradients."""
    with torch.no_grad():
        function(*inputs())


def step(function: Function, inputs: Callable[[], list[Tensor]]) -> None:
    """One forward and backward pass."""
    given = inputs()
    output = function(*given)
    output.backward(output.detach())
    for x in given:
        x.grad = None


def timer(device: str) -> Callable[[Callable[[], Any]], float]:
    """The clock of a device."""
    return cuda_events if device == "cuda" else stopwatch


def copy_bandwidth(device: str, size: int) -> float:
    """Bytes per second that a copy on the device reads and writes."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copies = take_turns({"copy": lambda: target.copy_(source)}, 9, timer=timer(device))
    return 2 * size / (copies.milliseconds("copy") / 1e3)


def peak(run: Callable[[], Any], device: str) -> int:
    """The most bytes that were taken beyond what was there."""
    if device != "cuda":
        run()
        return 0
    run()  # what is made once is made here
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def errors(found: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    """`‖found - truth‖ / ‖truth‖` of each pair of tensors.

    >>> errors([torch.tensor([3.0, 4.0])], [torch.tensor([3.0, 5.0]).double()])
    [0.17...]
    """
    pairs = [(a.cpu().double(), b.double()) for a, b in zip(found, truth, strict=True)]
    return [float((a - b).norm() / b.norm()) for a, b in pairs]


def passes(ours: Sequence[float], theirs: Sequence[float], dtype: torch.dtype) -> bool:
    """Whether errors are at most twice those of the peer, or what two roundings make.

    >>> passes([2e-3], [1e-3], torch.float32), passes([3e-3], [1e-3], torch.float32)
    (True, False)
    >>> passes([float("nan")], [1.0], torch.float32)
    False
    """
    least = 2 * torch.finfo(dtype).eps
    return all(a <= max(2 * b, least) for a, b in zip(ours, theirs, strict=True))


def verdict(found: Sequence[float] | str, theirs: Sequence[float] | str, dtype: torch.dtype) -> str:
    """What a row of a table says of errors, or of why there are none."""
    for reason in (found, theirs):
        if isinstance(reason, str):
            return reason
    return "yes" if passes(found, theirs, dtype) else "NO"  # type: ignore[arg-type]


def ratio(a: Cell, b: Cell) -> float | None:
    """Of two numbers; None where one of them is none, or 0 below the line."""
    if isinstance(a, str) or isinstance(b, str) or a is None or not b:
        return None
    return a / b


def mib(size: int | None) -> float | None:
    return None if size is None else size / MIB
