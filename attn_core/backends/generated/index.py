"""Where numbers of a graph lie: affine sums of loop variables."""

from __future__ import annotations

from typing import NamedTuple

HEAD = "h"


class Index(NamedTuple):
    """`const + Σ coefficient · variable`."""

    const: int = 0
    terms: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        terms = [v if c == 1 else f"{c} * {v}" for v, c in self.terms]
        return " + ".join([*terms, *([str(self.const)] if self.const or not terms else [])])


class Split(Exception):
    """A loop must be cut: at an iteration, or into those of each remainder."""

    def __init__(self, variable: str, at: int = 0, remainders: int = 0) -> None:
        super().__init__(variable)
        self.variable, self.at, self.remainders = variable, at, remainders


def linear(*parts: tuple[Index, int], const: int = 0) -> Index:
    """The sum of multiples of indices."""
    terms: dict[str, int] = {}
    for index, factor in parts:
        const += index.const * factor
        for variable, coefficient in index.terms:
            terms[variable] = terms.get(variable, 0) + coefficient * factor
    return Index(const, tuple(sorted((v, c) for v, c in terms.items() if c)))
