"""The shell of a program: its command line, how it ends, what it prints."""

from __future__ import annotations

import ctypes
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType

import torch
from tqdm import tqdm

from datasets import DataFileError, GraphFileError, TextFileError, VocabularyError
from examples.shared.files import UserError


class Signals:
    """Ctrl-C and a polite kill as KeyboardInterrupt, held back while a step must not be torn."""

    def __init__(self) -> None:
        self._holding = self._pending = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Handles the signals from here on, where that is possible: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._pending = False
        kinds = signal.SIGINT, signal.SIGTERM
        before = [signal.signal(kind, self._handle) for kind in kinds]
        try:
            yield
        finally:
            for kind, handler in zip(kinds, before, strict=True):
                signal.signal(kind, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What happens inside happens to its end."""
        outer, self._holding = self._holding, True
        try:
            yield
        finally:
            self._holding = outer
        if self._pending and not outer:
            self._pending = False
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._holding:
            raise KeyboardInterrupt
        self._pending = True


SIGNALS = Signals()
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them


def exit_status(
    work: Callable[[], int], interrupted: str = "interrupted", flush_denormal: bool = False
) -> int:
    """What `work` returns; 2 after an error that the user can mend, 130 if interrupted.

    Args:
        work: the program.
        interrupted: what to say then.
        flush_denormal: numbers that are next to nothing count as 0, for they take long.

    >>> exit_status(lambda: 0)
    0
    """
    torch.set_flush_denormal(flush_denormal)
    keep_memory()
    try:
        with SIGNALS.caught():
            return work()
    except (UserError, GraphFileError, DataFileError, TextFileError, VocabularyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    finally:
        torch.set_flush_denormal(False)


def keep_memory() -> None:
    """Let this process keep what it frees, for the next step.

    glibc maps what is larger than 32 MB anew each time, and the system clears it, which takes a
    third of a training step of some ten thousand nodes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(parameter, 2**30)


def check_device(name: str) -> None:
    """Raises UserError unless tensors can live there."""
    try:
        torch.empty(0, device=name).cpu()  # "meta" gives nothing back
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        reason = str(error).splitlines()[0].partition(". ")[0]  # then torch lists all its backends
        raise UserError(f"--device {name} is of no use here: {reason}") from error


def progress_bar(
    name: str, total: int, unit: str = "epoch", initial: int = 0, patient: bool = False
) -> tqdm:
    """A bar that on a terminal moves and goes, and in a log stays and says now and then how it is.

    Args:
        name, total, unit, initial: what is done, how much of what it is, and how much was done.
        patient: there are other lines to read in a log; leave no bar there.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=name, total=total, initial=initial, unit=f" {unit}", unit_scale=patient,
        leave=not terminal and not patient,
        mininterval=0.1 if terminal else 30 if patient else 10,
    )  # fmt: skip


def remaining(done: int, total: int, seconds: float) -> str:
    """How long an epoch takes, and how long those that are left will, as of `done` of them.

    >>> remaining(2, 10, 30), remaining(10, 10, 1500)
    ('15 s an epoch, 2 min left', '2.5 min an epoch')
    """

    def words(seconds: float) -> str:
        return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.2g} min"

    each = seconds / max(1, done)
    left = f", {words(each * (total - done))} left" if done < total else ""
    return f"{words(each)} an epoch{left}"


def versions(*packages: str) -> dict[str, str]:
    """What a result was made with: python, and some packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
