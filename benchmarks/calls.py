"""Python calls of one forward pass, on a warm cache: what small inputs wait for.

python -m benchmarks.calls
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import attn_core
import gat
import sequence_attn
from attn_core import compiled
from attn_core.graph import known

OURS = tuple(
    str(Path(package.__file__ or "").parent) for package in (attn_core, gat, sequence_attn)
)


KERNELS = "forward", "layer_forward"


def count(function: Callable[[], Any]) -> tuple[int, int, int]:
    """What a call enters before the compiled kernel: our functions and files, and all functions."""
    everything, ours, files, done = 0, 0, set(), False

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal everything, ours, done
        code = frame.f_code
        if code.co_name == "call" and code.co_filename == compiled.__file__:
            done = done or frame.f_locals.get("name") in KERNELS  # not the sum over an index
        if event != "call" or done:
            return
        everything += 1
        if code.co_filename.startswith(OURS):
            ours += 1
            files.add(code.co_filename)

    function()  # whatever is made once
    function()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return ours, len(files), everything - 1  # without the function itself


def look_ups(function: Callable[[], Any]) -> int:
    """How often a call asks what is known of a tensor of the caller's."""
    asked = 0

    class Counted(type(known._KNOWN)):  # type: ignore[misc]
        def get(self, *arguments: Any) -> Any:
            nonlocal asked
            asked += 1
            return super().get(*arguments)

    function()
    before, counted = known._KNOWN, Counted()
    counted.data = before.data
    known._KNOWN = counted
    try:
        function()
    finally:
        known._KNOWN = before
    return asked


def layers() -> dict[str, Callable[[], Any]]:
    """A forward pass of each layer, in training."""
    edge_index, x = torch.randint(50, (2, 200)), torch.randn(50, 32)
    tokens, lengths = torch.randn(2, 5, 32), torch.tensor([5, 3])
    graphs: dict[str, nn.Module] = {
        "GATConv": gat.GATConv(32, 8, heads=4),
        "GATv2Conv": gat.GATv2Conv(32, 8, heads=4),
        "TransformerConv": gat.TransformerConv(32, 8, heads=4),
        "AGNNConv": gat.AGNNConv(),
        "GraphAttentionConv": gat.GraphAttentionConv(32, 8, heads=4),
    }
    found: dict[str, Callable[[], Any]] = {
        name: partial(layer, x, edge_index) for name, layer in graphs.items()
    }
    bahdanau = sequence_attn.BahdanauAttention(32, 32, 32)
    found["BahdanauAttention"] = partial(bahdanau, tokens[:, 0], tokens)
    found["with lengths"] = partial(bahdanau, tokens[:, 0], tokens, lengths=lengths)
    multihead = sequence_attn.MultiHead(32, 4)
    found["MultiHead"] = partial(multihead, tokens)
    return found


def main() -> None:
    """Print a row for each layer."""
    print(f"{'layer':24}{'ours':>6}{'files':>6}{'all':>6}{'look-ups':>9}")
    for name, forward in layers().items():
        ours, files, everything = count(forward)
        print(f"{name:24}{ours:6}{files:6}{everything:6}{look_ups(forward):9}")


if __name__ == "__main__":
    main()
