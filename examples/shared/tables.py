"""The tables that programs print, and the numbers in them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any


def mean_and_deviation(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample standard deviation, each None where there are too few values."""
    return {
        "mean": statistics.mean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
    }


def summary(results: Sequence[dict[str, Any]], measures: Sequence[str]) -> dict[str, Any]:
    """Mean and standard deviation of each measure over the seeds that have it."""
    return {
        measure: mean_and_deviation([r[measure] for r in results if r[measure] is not None])
        for measure in measures
    }


def percent(values: Sequence[float | None]) -> str:
    """Mean and standard deviation of some shares, in %; "–" where there are none.

    >>> percent([0.5, 0.75]), percent([1.0]), percent([None])
    ('62.5 ± 17.7', '100.0', '–')
    """
    return spread([100 * value for value in values if value is not None])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation of some numbers; "–" where there are none."""
    found = mean_and_deviation(values)
    if found["mean"] is None:
        return "–"
    deviation = "" if found["std"] is None else f" ± {found['std']:.{digits}f}"
    return f"{found['mean']:.{digits}f}{deviation}"


def aligned(rows: Sequence[Sequence[str]], numbers: Callable[..., str] = str.rjust) -> str:
    """A table: the first row above a rule, the first column to the left, the others as `numbers`.

    >>> print(aligned([["model", "%"], ["a", "99.5"]]))
    model     %
    -----  ----
    a      99.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(numbers, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
