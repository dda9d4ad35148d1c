"""What programs share that train several models from several seeds, and compare them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from examples._files import UserError
from examples._program import mean_and_deviation

# A training. It calls what it is given after each epoch, with the epoch's loss.
Job = Callable[[Callable[[float], None]], object]


def run_jobs(jobs: Mapping[str, Job], total: int) -> bool:
    """Runs trainings one after another behind one progress bar.

    Args:
        jobs: by the names that the bar shows; each keeps its own result.
        total: epochs of all of them together.

    Returns:
        Whether all are done; False if they were interrupted after the first.

    Raises:
        KeyboardInterrupt: interrupted before there was a result.
        UserError: a loss is not finite.
    """
    done, terminal = 0, sys.stderr.isatty()
    with tqdm(
        total=total, unit="epoch", leave=not terminal,
        mininterval=0.1 if terminal else 10,
    ) as bar:  # fmt: skip
        try:
            for name, job in jobs.items():
                bar.set_description(name, refresh=False)

                def step(loss: float, name: str = name) -> None:
                    if not math.isfinite(loss):
                        raise UserError(f"the loss of {name} became {loss}: lower --lr")
                    bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                    bar.update()

                job(step)
                done += 1
        except KeyboardInterrupt:
            if not done:
                raise
            return False
    return True


def percent(values: Sequence[float | None]) -> str:
    """Mean and standard deviation of some shares, in %; "–" where there are none.

    >>> percent([0.5, 0.75]), percent([1.0]), percent([None])
    ('62.5 ± 17.7', '100.0', '–')
    """
    found = mean_and_deviation([100 * value for value in values if value is not None])
    if found["mean"] is None:
        return "–"
    deviation = "" if found["std"] is None else f" ± {found['std']:.1f}"
    return f"{found['mean']:.1f}{deviation}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table: the first row above a rule, the first column to the left, the others to the right.

    >>> print(aligned([["model", "%"], ["a", "99.5"]]))
    model     %
    -----  ----
    a      99.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def summary(results: Sequence[dict[str, Any]], measures: Sequence[str]) -> dict[str, Any]:
    """Mean and standard deviation of each measure over the seeds that have it."""
    return {
        measure: mean_and_deviation(
            [result[measure] for result in results if result[measure] is not None]
        )
        for measure in measures
    }
