"""Tables as Markdown and json, under a header that says where the numbers come from."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch_geometric

from attn_core.backends import cpu
from examples.shared.files import write_atomically, write_json

Cell = str | int | float | None
# How many tasks wanted a core in the minute before: what a measurement had beside it
_LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@dataclass
class Table:
    """One table.

    Args:
        title: what is compared.
        columns: their names; the first column names the rows. None for what was skipped.
        rows: numbers stay numbers; None is a cell without a value.
        note: what a reader must know about it.
        picture: the name of a picture that belongs to it.
        findings: the numbers that the table was made for, by name.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    picture: str | None = None
    findings: dict[str, float] = field(default_factory=dict)

    def markdown(self) -> str:
        """The table with its title, note and findings.

        >>> print(Table("Title", ["", "ms"], [["a", 1.2345], ["b", None]]).markdown())
        ## Title
        <BLANKLINE>
        | | ms |
        |---|---|
        | a | 1.23 |
        | b | |
        """
        parts = [f"## {self.title}"]
        if self.note:
            parts.append(self.note)
        if self.columns:
            head = [self.columns, ["---"] * len(self.columns)]
            lines = [*head, *(map(shown, row) for row in self.rows)]
            marks = [("|" + "|".join(f" {x} " if x else " " for x in line) + "|") for line in lines]
            marks[1] = marks[1].replace(" ", "")
            parts.append("\n".join(marks))
        if self.findings:
            found = self.findings.items()
            parts.append("\n".join(f"- {name}: **{shown(number)}**" for name, number in found))
        if self.picture:
            parts.append(f"![{self.title}]({self.picture})")
        return "\n\n".join(parts)


@dataclass
class Report:
    """What one benchmark found.

    Args:
        title: its headline.
        tables: in the order in which they are read.
        pictures: what draws each picture, by its name.
        keep: writes the report as far as it came; called with each row of `Report.grow`.
        name: of its files; by default that of the benchmark.
    """

    title: str
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, Callable[[Path], object]] = field(default_factory=dict)
    keep: Callable[[Report], object] = lambda report: None
    name: str = ""

    def add(self, table: Table) -> None:
        """Append a table, and print it: some take minutes to fill."""
        self.tables.append(table)
        print(table.markdown(), end="\n\n", flush=True)

    @contextmanager
    def grow(self, table: Table) -> Iterator[Callable[[list[Cell]], None]]:
        """Append a table whose rows come one by one: each is printed and kept as it comes.

        What follows from the rows, as findings do, may be put into the table inside; it is kept
        with the next row, or at the end, whatever ends it.
        """
        self.tables.append(table)
        print(f"## {table.title}\n\n{' | '.join(table.columns)}", flush=True)

        def add(row: list[Cell]) -> None:
            table.rows.append(row)
            print(" | ".join(map(shown, row)), flush=True)
            self.keep(self)

        try:
            yield add
        finally:
            print(flush=True)
            self.keep(self)


def shown(cell: Cell) -> str:
    """A cell as text, numbers with three digits.

    >>> [shown(x) for x in (1234.5, 0.01234, 12, "text", None)]
    ['1234', '0.0123', '12', 'text', '']
    """
    if cell is None:
        return ""
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"


def header(command: str) -> dict[str, Any]:
    """Where and with what a measurement was made."""
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        **({"memory": f"{_memory() / 2**30:.0f} GiB"} if hasattr(os, "sysconf") else {}),
        "threads": torch.get_num_threads(),
        "CPU kernels": cpu.description(),
        **(_gpu() if torch.cuda.is_available() else {}),
        **({"load before": f"{_LOAD:.1f}"} if _LOAD is not None else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": torch_geometric.__version__,
        **{name: version(name) for name in ("triton",) if find_spec(name) is not None},
    }


@cache
def _gpu() -> dict[str, Any]:
    """The GPU, and what stands between it and torch."""
    where = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver = None
    with suppress(OSError, subprocess.SubprocessError):  # no such program: nothing is said of it
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"],
            capture_output=True, text=True, check=True, timeout=20,
        ).stdout.strip()  # fmt: skip
    return {
        "gpu": f"{where.name}, sm_{where.major}{where.minor}, {where.multi_processor_count} SMs, "
        f"{where.total_memory / 2**30:.0f} GiB",
        "CUDA": torch.version.cuda,
        "driver": driver,
    }


def write(report: Report, folder: Path, name: str, command: str) -> list[Path]:
    """Write `name`.md, `name`.json and the pictures; return their paths."""
    where, name = header(command), report.name or name
    lines = "\n".join(f"- {key}: {value}" for key, value in where.items())
    text = "\n\n".join([f"# {report.title}", lines, *(t.markdown() for t in report.tables)])
    paths = [folder / f"{name}.md", folder / f"{name}.json"]
    write_atomically(paths[0], lambda path: path.write_text(text + "\n", encoding="utf-8"))
    tables = [
        {
            "title": t.title,
            "note": t.note,
            "columns": t.columns,
            "rows": t.rows,
            "findings": t.findings,
        }
        for t in report.tables
    ]
    write_json(paths[1], {"header": where, "tables": tables})
    for picture, draw in report.pictures.items():
        write_atomically(folder / picture, draw)
        paths.append(folder / picture)
    return paths


def _processor() -> str:
    """The model of the processor, as far as the system tells."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int:
    """The bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
