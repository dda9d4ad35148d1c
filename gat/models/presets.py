"""Published settings by name: what a model was built and trained with on a graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gat.models.heterophilous import ResidualAttention
from gat.models.networks import GAT

TUNED = "LUOyk1999/tunedGNN, medium_graph/run_gnn.sh at 23f9604"
PLATONOV = "yandex-research/heterophilous-graphs, train.py at a431395"


@dataclass(frozen=True)
class Preset:
    """Settings of a published result.

    Attributes:
        name, graph: what it is called.
        model: builds the model of `arguments`, in_channels and out_channels.
        arguments: of the model.
        lr, weight_decay: of Adam. (Platonov et al. take AdamW without weight decay: the same.)
        epochs: of training on the whole graph; the best on the validation nodes counts.
        runs: how many were averaged.
        metric: "accuracy", or "roc_auc" of the second class.
        published: its mean, in %; None where that is not known here.
        deviation: its standard deviation, likewise.
        source: where the settings come from.
    """

    name: str
    graph: str
    model: Callable[..., nn.Module]
    arguments: dict[str, Any]
    lr: float
    weight_decay: float
    epochs: int
    runs: int
    metric: str
    published: float | None
    deviation: float | None
    source: str

    def build(self, in_channels: int, out_channels: int) -> nn.Module:
        """The model, freshly drawn."""
        return self.model(in_channels=in_channels, out_channels=out_channels, **self.arguments)


def _tuned(
    graph: str,
    hidden: int,
    layers: int,
    dropout: float,
    lr: float,
    weight_decay: float,
    published: tuple[float | None, float | None] = (None, None),
    *,
    norm: str | None = None,
    residual: bool = True,
    projection: bool = False,
    epochs: int = 500,
    runs: int = 5,
    metric: str = "accuracy",
) -> Preset:
    arguments: dict[str, Any] = {
        "hidden_channels": hidden,
        "num_layers": layers,
        "dropout": dropout,
        "attention_dropout": 0.0,
        "jk": "last",  # all layers are hidden ones, and a linear map makes the output
        "norm": norm,
        "linear_residual": residual,
        "input_projection": projection,
        "add_self_loops": False,
        "bias": False,
    }
    if norm == "layer_norm":
        arguments["norm_kwargs"] = {"mode": "node"}
    return Preset(
        "tuned-gat",
        graph,
        GAT,
        arguments,
        lr,
        weight_decay,
        epochs,
        runs,
        metric,
        *published,
        TUNED,
    )


def _platonov(name: str, kind: str, published: float | None) -> Preset:
    arguments = {"hidden_channels": 512, "num_layers": 5, "kind": kind}
    return Preset(
        name, "minesweeper", ResidualAttention, arguments, 3e-5, 0.0, 1000, 10, "roc_auc",
        published, None, PLATONOV,
    )  # fmt: skip


PRESETS = {
    (preset.name, preset.graph): preset
    for preset in (
        _tuned("cora", 512, 3, 0.2, 1e-3, 5e-4, (84.46, 0.55)),
        _tuned("citeseer", 256, 3, 0.5, 1e-3, 0.01, (72.22, 0.84)),
        _tuned("pubmed", 512, 2, 0.5, 0.01, 5e-4, (80.28, 0.64), residual=False),
        _tuned(
            *("computers", 64, 2, 0.5, 1e-3, 5e-5, (94.09, 0.37)),
            norm="layer_norm", residual=False, epochs=1000, runs=3,
        ),
        _tuned(
            *("coauthor-cs", 256, 1, 0.3, 1e-3, 5e-4, (96.21, 0.14)),
            norm="layer_norm", epochs=1500, runs=3,
        ),
        _tuned(
            *("minesweeper", 64, 15, 0.2, 0.01, 0.0, (97.73, 0.73)),
            norm="batch_norm", epochs=2000, runs=3, metric="roc_auc",
        ),
        _tuned(
            *("squirrel-filtered", 512, 7, 0.5, 5e-3, 5e-4, (41.73, 2.07)),
            norm="batch_norm", runs=10,
        ),
        _tuned(
            *("chameleon-filtered", 256, 2, 0.7, 0.01, 1e-3, (44.13, 4.17)),
            norm="batch_norm", epochs=200, runs=10,
        ),
        _tuned(
            *("photo", 64, 3, 0.5, 1e-3, 5e-5), norm="layer_norm", epochs=1000, runs=3,
        ),
        _tuned(
            *("coauthor-physics", 256, 2, 0.7, 1e-3, 5e-4), norm="batch_norm", epochs=1500, runs=3,
        ),
        _tuned(
            *("wikics", 512, 2, 0.7, 1e-3, 0.0), norm="layer_norm", epochs=1000, runs=3,
        ),
        _tuned(
            *("amazon-ratings", 512, 4, 0.5, 1e-3, 0.0), norm="batch_norm", epochs=2500, runs=3,
        ),
        _tuned(
            *("roman-empire", 512, 10, 0.3, 1e-3, 0.0),
            norm="batch_norm", projection=True, epochs=2500, runs=3,
        ),
        _tuned(
            *("questions", 512, 3, 0.2, 3e-5, 0.0),
            norm="layer_norm", projection=True, epochs=1500, runs=3, metric="roc_auc",
        ),
        _platonov("gat", "GAT", 92.01),
        _platonov("gat-sep", "GAT-sep", 93.91),
        _platonov("gt", "GT", None),
        _platonov("gt-sep", "GT-sep", 92.29),
    )
}  # fmt: skip


def preset(name: str, graph: str) -> Preset:
    """Published settings of a model on a graph.

    "tuned-gat" is GAT as Luo, Shi, Wu, "Classic GNNs are Strong Baselines: Reassessing GNNs for
    Node Classification", NeurIPS 2024, tuned it: on cora, citeseer, pubmed, computers, photo,
    coauthor-cs, coauthor-physics, wikics, minesweeper, amazon-ratings, roman-empire, questions,
    squirrel-filtered and chameleon-filtered. It expects a graph made undirected, with a self-loop
    for each node, and adds none. "gat", "gat-sep", "gt" and "gt-sep"
    are those of Platonov et al., ICLR 2023, on minesweeper (the deepest of the five that they
    chose from).

    Args:
        name: of the model.
        graph: of the graph.

    Raises:
        ValueError: there are no such settings.

    >>> settings = preset("tuned-gat", "minesweeper")
    >>> settings.lr, settings.epochs, settings.arguments["num_layers"]
    (0.01, 2000, 15)
    >>> len(settings.build(in_channels=7, out_channels=2).convs)
    15
    """
    if (name, graph) not in PRESETS:
        of_name = [g for n, g in PRESETS if n == name]
        names = ", ".join(repr(n) for n in dict.fromkeys(n for n, _ in PRESETS))
        raise ValueError(
            f"there is no preset {name!r} for {graph!r}: it has settings for {', '.join(of_name)}"
            if of_name
            else f"name is {name!r}; expected one of {names}"
        )
    return PRESETS[name, graph]
