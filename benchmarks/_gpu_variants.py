"""Other tiles for the kernels over edges: which numbers of rows and warps are fastest, on this GPU.

What is measured is the step over the neighbours alone, so that nothing else hides a difference.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from attn_core import clear_cache
from benchmarks._gpu import OURS, PASSES, attempt, measure
from benchmarks._gpu_pieces import Piece, neighbourhood
from benchmarks._report import Cell, Report, Table

SHAPES = (8, 8), (8, 16), (4, 32), (1, 64), (8, 64)  # heads × channels
TILES = (1024, 4), (256, 1), (256, 2), (512, 2), (512, 4), (1024, 8), (2048, 4), (2048, 8)


@contextmanager
def tiles(numbers: int, warps: int) -> Iterator[None]:
    """Inside, the kernels over edges have tiles of so many numbers, and so many warps."""
    from attn_core.backends.triton import run  # which imports Triton

    before = run.TILE, run.WARPS
    run.TILE, run.WARPS = numbers, warps
    try:
        yield
    finally:
        run.TILE, run.WARPS = before


def _measured(piece: Piece, device: str, rounds: int) -> list[list[Cell]]:
    no_bounds = None, None
    contenders = {OURS: piece.ours}
    return list(
        measure(piece.name, contenders, piece.shapes, torch.float32, no_bounds, device, rounds)
    )


def measure_variants(report: Report, device: str, tiny: bool, deadline: float) -> None:
    """A row for each shape and tile; the first of each shape is what the kernels do."""
    note = (
        "The step of GATv2 alone on a uniform graph, float32; first the tiles as they are. A table "
        "of at most three entries by heads × channels is to be made of this."
    )
    table = Table(
        "Tiles",
        ["heads × channels", "numbers in a tile", "warps", *(f"ms, {name}" for name in PASSES)],
        [],
        note,
    )
    left_out = []
    with report.grow(table) as add:
        for heads, width in SHAPES[:1] if tiny else SHAPES:
            piece = neighbourhood("uniform", 64 if tiny else 10**7, heads, width, device)
            best: dict[str, tuple[float, str]] = {}
            for numbers, warps in TILES[:2] if tiny else TILES:
                words = f"{heads} × {width}, {numbers} numbers, {warps} warps"
                if time.monotonic() > deadline:
                    left_out.append(words)
                    table.note = f"{note} Left out for lack of time: {'; '.join(left_out)}."
                    continue
                with tiles(numbers, warps):
                    rows = attempt(partial(_measured, piece, device, 1 if tiny else 7))
                ms: list[Cell] = [rows, None] if isinstance(rows, str) else [r[2] for r in rows]
                add([f"{heads} × {width}", numbers, warps, *ms])
                for name, cell in zip(PASSES, ms, strict=True):
                    if isinstance(cell, float):
                        best[name] = min(best.get(name, (cell, "")), (cell, words))
            for name, (_, words) in best.items():
                table.findings[f"fastest {name}: {words}, ms"] = best[name][0]
            clear_cache()
