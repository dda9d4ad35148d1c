"""Python calls of one forward pass, on a warm cache: what small inputs wait for.

python -m benchmarks.calls
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import gat
import sequence_attn
from attn_core.graph import known


def count(function: Callable[[], Any]) -> tuple[int, int]:
    """The Python functions that a call enters, and the files that they are in."""
    calls, files = 0, set()

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        if event == "call":
            calls += 1
            files.add(frame.f_code.co_filename)

    function()  # whatever is made once
    function()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls - 1, len(files)  # without the function itself


def look_ups(function: Callable[[], Any]) -> int:
    """How often a call asks what is known of a tensor of the caller's."""
    asked = 0
    get = type(known._KNOWN).get

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal asked
        asked += self is known._KNOWN
        return get(self, *arguments)

    function()
    type(known._KNOWN).get = counted
    try:
        function()
    finally:
        type(known._KNOWN).get = get
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
        name: lambda layer=layer: layer(x, edge_index) for name, layer in graphs.items()
    }
    bahdanau = sequence_attn.BahdanauAttention(32, 32, 32)
    found["BahdanauAttention"] = lambda: bahdanau(tokens[:, 0], tokens, lengths=lengths)
    multihead = sequence_attn.MultiHead(32, 4)
    found["MultiHead"] = lambda: multihead(tokens)
    return found


def main() -> None:
    """Print a row for each layer."""
    print(f"{'layer':24}{'calls':>6}{'files':>6}{'look-ups':>9}")
    for name, forward in layers().items():
        calls, files = count(forward)
        print(f"{name:24}{calls:6}{files:6}{look_ups(forward):9}")


if __name__ == "__main__":
    main()
