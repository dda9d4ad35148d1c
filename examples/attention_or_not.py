"""What attention buys: one body on one graph, with each kind of attention and without any.

    python -m examples.attention_or_not --graph chameleon-filtered
    python -m examples.attention_or_not --graph minesweeper --models gat gcn mlp --runs 3
    python -m examples.attention_or_not --graph minesweeper --data my_own.npz    # with its settings

The body, its width, depth, norm, dropout and training are those of the tuned GAT on that graph
(`gat.models.preset`): they were chosen for it, which favours GAT. Each layer adds a linear map of
what it is given to what it hears from its neighbours: by one of six kinds of attention, by the mean
of GCN (torch_geometric's GCNConv), or nothing (MLP). Stopped, the same command goes on.
"""

from __future__ import annotations

from examples.commands.attention_or_not import NAMES, parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

import gat
from attn_core import Edges
from examples.shared.files import prepare_folder
from examples.shared.graphs import fingerprint, with_sparse_features
from examples.shared.program import exit_status
from examples.shared.runner import Results, run_all
from examples.shared.tables import aligned, spread
from examples.tuned_tables import RESULT, load, on_its_graph, train
from gat.models import Preset, preset
from gat.sparse import Linear


class Smoothed(nn.Module):
    """A linear map, then AGNN's attention, which has none of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lin, self.conv = (
            Linear(inputs, outputs, bias=False),
            gat.AGNNConv(add_self_loops=False),
        )

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        out: Tensor = self.conv(self.lin(x), edges)
        return out


def layer(kind: str, inputs: int, outputs: int) -> nn.Module | None:
    """What a node hears from its neighbours; None for nothing."""
    plain: dict[str, Any] = {"add_self_loops": False, "bias": False}  # the graph has its loops
    build: dict[str, Callable[[], nn.Module | None]] = {
        "gat": lambda: gat.GATConv(inputs, outputs, **plain),
        "gatv2": lambda: gat.GATv2Conv(inputs, outputs, **plain),
        "transformer": lambda: gat.TransformerConv(inputs, outputs, root_weight=False, bias=False),
        "agnn": lambda: Smoothed(inputs, outputs),
        "supergat": lambda: gat.SuperGATConv(inputs, outputs, is_undirected=True, **plain),
        "sparsemax": lambda: gat.GraphAttentionConv(
            inputs, outputs, score="separable", normalizer="sparsemax", share_weights=True,
            value_projection=False, **plain,
        ),
        "gcn": lambda: GCNConv(inputs, outputs, bias=False),
        "mlp": lambda: None,
    }  # fmt: skip
    return build[kind]()


class Network(nn.Module):
    """The body of the tuned GAT, whose layers hear by `kind`; arguments are `gat.GAT`'s."""

    def __init__(
        self,
        kind: str,
        in_channels: int,
        out_channels: int,
        hidden_channels: int,
        num_layers: int,
        dropout: float,
        norm: str | None,
        linear_residual: bool,
        input_projection: bool = False,
        **_: Any,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.projection = Linear(in_channels, hidden_channels) if input_projection else None
        first = hidden_channels if input_projection else in_channels
        widths = [first, *[hidden_channels] * num_layers]
        pairs = list(pairwise(widths))
        self.convs = nn.ModuleList(layer(kind, *pair) or nn.Module() for pair in pairs)
        with_lin = linear_residual or kind == "mlp"
        self.lins = nn.ModuleList(Linear(*pair) if with_lin else nn.Module() for pair in pairs)
        norms: dict[str | None, Callable[[], nn.Module]] = {
            "layer_norm": lambda: nn.LayerNorm(hidden_channels),
            "batch_norm": lambda: nn.BatchNorm1d(hidden_channels),
            None: nn.Identity,
        }
        self.norms = nn.ModuleList(norms[norm]() for _ in pairs)
        self.out = nn.Linear(hidden_channels, out_channels)
        self._pairs: Tensor | None = None

    def forward(self, x: Tensor, edges: Edges) -> Tensor:
        if self.projection is not None:
            x = F.dropout(self.projection(x), self.dropout, self.training)
        for conv, lin, norm in zip(self.convs, self.lins, self.norms, strict=True):
            heard = []
            if type(conv) is not nn.Module:
                heard.append(conv(x, self._plain(edges) if isinstance(conv, GCNConv) else edges))
            if type(lin) is not nn.Module:
                heard.append(lin(x))
            x = F.dropout(norm(sum(heard)).relu(), self.dropout, self.training)
        out: Tensor = self.out(x)
        return out

    def auxiliary_loss(self) -> Tensor | float:
        """What tells edges from pairs that are none, where attention learns that too."""
        losses = [c.get_attention_loss() for c in self.convs if isinstance(c, gat.SuperGATConv)]
        return torch.stack(losses).sum() if losses else 0.0

    def _plain(self, edges: Edges) -> Tensor:
        if self._pairs is None:
            self._pairs = edges.edge_index
        return self._pairs


def setting(kind: str, tuned: Preset) -> Preset:
    """The tuned GAT's setting, with another way to hear."""
    return replace(tuned, name=kind, model=partial(Network, kind))


def run(args: argparse.Namespace) -> int:
    """Trains each model from each seed, then prints the table."""
    data = with_sparse_features(load(args.graph, args.data))
    tuned = on_its_graph(preset("tuned-gat", args.graph), data, args.data)
    args.out = args.out or f"runs/attention/{tuned.graph}"
    prepare_folder(Path(args.out))
    splits = data.train_mask.shape[1]
    epochs = args.epochs or tuned.epochs

    def work(kind: str, seed: int, step: Callable[[float], None]) -> tuple[dict[str, Any], None]:
        return train(setting(kind, tuned), data, seed % splits, seed, step, epochs), None

    models = dict.fromkeys(args.models, epochs)
    found = run_all(args, models, work, RESULT, metrics, fingerprint(data))
    print(table(tuned, found.results))
    return 0 if found.complete else 130


def metrics(results: Results) -> dict[str, Any]:
    """What metrics.json says."""
    return {"runs": results}


def table(tuned: Preset, results: Results) -> str:
    """Test and validation scores of each model over its seeds."""
    rows = [[tuned.graph, f"test {tuned.metric}, %", "validation", "runs", "seconds a run"]]
    for kind, runs in results.items():
        test, val = (spread([100 * r[name] for r in runs], 2) for name in ("test", "val"))
        seconds = spread([r["seconds"] for r in runs], 0)
        rows.append([NAMES[kind], test, val, str(len(runs)), seconds])
    return aligned(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)), flush_denormal=True)


if __name__ == "__main__":
    sys.exit(main())
