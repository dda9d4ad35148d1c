"""Contenders side by side, each in a process of its own, which take turns."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._measure import ROOT, Timings, take_turns
from examples.shared.files import UserError


@dataclass(frozen=True)
class Task:
    """What a process shall make.

    Args:
        maker: "module:function"; the function returns a `benchmarks._worker.Contender`.
        arguments: of that function; what json can carry.
        python: the interpreter, of this environment or of another. Default: this one.
    """

    maker: str
    arguments: Mapping[str, Any]
    python: str = sys.executable


class Process:
    """A contender that has been started; calls are `process(verb, run)`, see `Contender`."""

    def __init__(self, name: str, task: Task) -> None:
        self.name = name
        threads = torch.get_num_threads()
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [task.python, "-m", "benchmarks._worker", task.maker,
             json.dumps({**task.arguments, "threads": threads})],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def wait(self) -> list[str]:
        """Until the contender is made; returns the names of its runs."""
        answer: list[str] = self._answer()
        return answer

    def __call__(self, verb: str, run: str = "") -> Any:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended; _answer tells why
            print(json.dumps([verb, run]), file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        if self._process.wait() < 0:
            raise UserError(f"cannot measure {self.name}: killed, perhaps for lack of memory")
        self._errors.seek(0)
        said = self._errors.read().strip().splitlines()
        raise UserError(f"cannot measure {self.name}: {said[-1] if said else 'it just ended'}")


@dataclass
class Group:
    """Contenders that are measured by turns.

    Attributes:
        processes: those that still run, by name.
        failures: why each of the others does not.
    """

    processes: dict[str, Process]
    needed: frozenset[str]
    failures: dict[str, str] = field(default_factory=dict)

    def ask(self, verb: str, run: str = "") -> dict[str, Any]:
        """The answers of all, one after the other; those who fail at it are out."""
        return self._each(lambda process: process(verb, run))

    def time(self, runs: Iterable[str], rounds: int, warm_up: int = 2) -> dict[str, Timings]:
        """The seconds of each run, in which the contenders take turns."""
        found = {}
        for run in runs:
            for _ in range(warm_up):
                self.ask("warm", run)
            turns: dict[str, Callable[[], float]] = {
                name: partial(process, "time", run) for name, process in self.processes.items()
            }
            found[run] = own_clocks(turns, rounds)
        return found

    def left_out(self) -> str:
        """A sentence for each failure, each after a space."""
        return "".join(f" Left out: {reason}." for reason in self.failures.values())

    def assert_agree(self, tolerance: float = 1e-3) -> None:
        """Raise unless all compute the same: only equals are worth a comparison."""
        digests = self.ask("digest")
        first, *others = digests
        for other in others:
            for result, expected in digests[first].items():
                found = digests[other].get(result, expected)  # some compute less
                apart = [abs(a - b) for a, b in zip(found, expected, strict=True)]
                if not all(x <= tolerance * expected[0] for x in apart):  # NaN is not
                    raise AssertionError(
                        f"{other} and {first} do not compute the same {result}: "
                        f"{found} and {expected}"
                    )

    def _each(self, ask: Callable[[Process], Any]) -> dict[str, Any]:
        answers = {}
        for name, process in list(self.processes.items()):
            try:
                answers[name] = ask(process)
            except UserError as error:
                if name in self.needed:
                    raise
                self.failures[name] = str(error)
                process.close()
                del self.processes[name]
        return answers


def own_clocks(turns: Mapping[str, Callable[[], float]], rounds: int) -> Timings:
    """The seconds that contenders measure themselves, by turns."""
    return take_turns(turns, rounds, warm_up=0, timer=lambda turn: turn())


@contextmanager
def started(tasks: Mapping[str, Task], needed: Iterable[str] = ()) -> Iterator[Group]:
    """Processes that have made what they shall run, and that end with the `with` block.

    Args:
        tasks: one for each contender, by name.
        needed: the contenders whose failure is an error; the others may be missing from a report.
    """
    processes: dict[str, Process] = {}
    try:
        for name, task in tasks.items():
            processes[name] = Process(name, task)
        group = Group(dict(processes), frozenset(needed))
        group._each(lambda process: process.wait())
        yield group
    finally:
        for process in processes.values():
            process.close()


def python_with(module: str, name: str, option: str, given: str | None) -> str | None:
    """The python of an environment that has another library; None if it was to be this one's.

    Args:
        module: what it must be able to import.
        name: of the library, for errors.
        option: by which its python is named, for errors.
        given: what was named. Default: this python, if it has the library.

    Raises:
        UserError: the python that was named cannot be run, or has no such library.
    """
    if given is None:
        root = module.partition(".")[0]
        return None if importlib.util.find_spec(root) is None else sys.executable
    asked, found = f"{option} {given}", shutil.which(given)
    if found is None:
        raise UserError(
            f"{asked} is no program that can be run: give the python of a virtual environment that "
            f"has {name}, such as path/to/venv/bin/python"
        )
    # Absolute, but links are kept: by its own path a python knows its virtual environment
    found = str(Path(found).absolute())
    done = subprocess.run([found, "-c", f"import {module}"], capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"{asked} cannot import {name} ({said[-1]}): install it in that environment, or name "
            "another"
        )
    return found
