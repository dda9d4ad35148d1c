"""Explains single predictions of a graph attention network, in three ways, and judges them.

    python -m examples.explain                                # handwritten digits, offline
    python -m examples.explain --dataset karate --top 8
    python -m examples.explain --dataset cora --model gatv2 --nodes 1710 2000
    python -m examples.explain --trained runs/explain --nodes 7   # the same network, asked again

Stopped, by Ctrl-C or worse, the same command goes on to the same numbers.

Which of the edges that reach a node decided its class? Three answers:

    attention       the edges that the layers attend to most, the mean over layers and heads
    GNNExplainer    a mask of the edges, as small as possible, that keeps the prediction; it is
                    learned for each node (Ying et al., 2019)
    saliency        how fast the score of the class changes as an edge fades

They are torch_geometric's explainers, which work with these layers as with its own. The program
trains a network, draws the edges that each names for a few nodes (explanations.png in --out), and
then asks the network itself, on more test nodes: does the prediction change without these edges, as
it should (fidelity+)? Does it stay with these edges alone (fidelity-, the share that changes)? How
far are all probabilities from the first ones (unfaithfulness)? Random edges show what such numbers
are worth. That a network attends to an edge is no proof that it needs it.
"""

from __future__ import annotations

from examples.commands.explain import MODELS, parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import k_hop_subgraph, remove_self_loops

from examples._nodes import Model, Run, Settings, evaluate, load_model
from examples._reasons import MEASURES, METHODS, Reason, explain, neighbourhood
from examples.shared.files import (
    UserError,
    check_kind,
    check_settings,
    damage_told,
    load_checkpoint,
    prepare_folder,
    remove,
    save_checkpoint,
    save_model,
    write_json,
)
from examples.shared.graphs import (
    check_splits,
    describe,
    fingerprint,
    is_multi_label,
    load_graph,
    standardise,
)
from examples.shared.pictures import save_figure
from examples.shared.program import SIGNALS, exit_status, progress_bar
from examples.shared.tables import aligned
from examples.shared.trainer import own_weights

LAYERS = 2
CHECKPOINT_EVERY = 20  # epochs
Place = tuple[float, float]


def load_data(args: argparse.Namespace) -> Data:
    """The graph that the options name, without features of edges and without self-loops.

    Raises:
        UserError: its nodes have no class, or several each, or a node of --nodes does not exist.
    """
    data = load_graph(args)
    if args.dataset == "files" and args.labels is None:
        raise UserError("--edges needs --labels: without labels there is nothing to explain")
    if is_multi_label(data):
        raise UserError(f"nodes of {data.name} have several labels each; choose another --dataset")
    check_splits(data)
    data.edge_attr = None
    if data.x.layout == torch.sparse_csr:
        data.x = data.x.to_dense()  # which is what explainers can mask
    data.edge_index, _ = remove_self_loops(data.edge_index)  # which explainers take no account of
    for node in args.nodes or []:
        if node >= data.num_nodes:
            raise UserError(
                f"--nodes {node}: {data.name} has the nodes 0 to {data.num_nodes - 1}; choose one"
            )
    return data


def load(folder: str, data: Data) -> tuple[Model, float]:
    """The model that a training left in a folder, and its accuracy on the test nodes.

    Raises:
        UserError: there is none, or it is of another graph or shows its attention to no explainer.
    """
    model, config = load_model(Path(folder))
    if config["label_scale"] is not None:
        raise UserError(f"the model in {folder} tells quantities; explained are classes")
    if config["kind"] not in (*MODELS, "attention"):
        raise UserError(f"the model in {folder} is {config['kind']}, which no explainer can ask")
    if config["scale"] is not None:
        standardise(data, config["scale"])
    if (model.config["in_channels"], config["class_names"]) != (
        data.num_features, data.class_names
    ):  # fmt: skip
        raise UserError(
            f"the model in {folder} was trained on another graph, with"
            f" {model.config['in_channels']} features and the classes"
            f" {', '.join(config['class_names'])}: name the graph that it was trained on"
        )
    return model, evaluate(model, data, ["test"])["test"][1]


@dataclass
class Unfinished:
    """What there is of a command so far, kept in --out until all is done.

    Attributes:
        path: the file.
        config: the settings that it is bound to.
        run: the state of the training after its last full epoch.
        judged: the measures of the test nodes that were judged, for each method.
    """

    path: Path
    config: dict[str, Any]
    run: dict[str, Any] | None = None
    judged: dict[str, list[dict[str, float]]] = field(
        default_factory=lambda: {method: [] for method in METHODS}
    )

    @classmethod
    def of(cls, args: argparse.Namespace, data: Data) -> Unfinished:
        """What was left in --out, or nothing yet.

        Raises:
            UserError: it is of another command, or damaged.
        """
        path = Path(args.out, "checkpoint.pt")
        others = ("out", "restart")
        config = {name: str(value) for name, value in vars(args).items() if name not in others}
        config["graph"] = fingerprint(data)
        if args.restart:
            remove(path)
        if not path.exists():
            return cls(path, config)
        one = dict.fromkeys(MEASURES, float)
        layout = {"config": dict, "run": (type(None), dict),
                  "judged": {method: [one] for method in METHODS}}  # fmt: skip
        state = load_checkpoint(path, layout)
        check_settings(path, state["config"], config, graph="the graph has changed")
        with damage_told(path, "or of another program"):
            if state["run"] is not None:
                check_kind(state["run"]["seed"], int, "seed")
            if len({len(of) for of in state["judged"].values()}) > 1:
                raise ValueError("some methods have judged more than others")
        return cls(path, config, state["run"], state["judged"])

    def save(self) -> None:
        names = "config", "run", "judged"
        save_checkpoint(self.path, {name: getattr(self, name) for name in names})


def train(data: Data, args: argparse.Namespace, so_far: Unfinished) -> tuple[Model, float]:
    """A trained model, and its accuracy on the test nodes."""
    settings = Settings(
        model={
            "in_channels": data.num_features,
            "hidden_channels": 64,
            "num_layers": LAYERS,
            "out_channels": len(data.class_names),
            "dropout": 0.6,
            "act": "elu",
            "heads": 8,
            "out_heads": 1,
            "input_dropout": 0.6,
        },
        lr=0.01,
        weight_decay=5e-4,
        epochs=args.epochs,
        patience=50,
        kind=args.model,
    )
    run = Run(data, settings, args.seed, so_far.run)
    with progress_bar("training", args.epochs, initial=run.epoch) as bar:
        while not run.done:
            run.step()
            so_far.run = run.state()
            if run.epoch % CHECKPOINT_EVERY == 0:
                so_far.save()
            bar.set_postfix_str(f"loss {run.scores[-1]['train_loss']:.3f}", refresh=False)
            bar.update()
    so_far.save()
    return run.best_model(), run.result()["test_accuracy"]


@torch.no_grad()
def choose(model: nn.Module, data: Data) -> list[int]:
    """The surest right and the surest wrong prediction for a test node that has neighbours."""
    probability, predicted = model(data.x, data.edge_index).softmax(dim=1).max(dim=1)
    candidates = data.test_mask.clone()
    candidates &= torch.bincount(data.edge_index[1], minlength=data.num_nodes) > 0
    chosen = []
    for wanted in (predicted == data.y, predicted != data.y):
        sure = probability.masked_fill(~(candidates & wanted), -1)
        if sure.max() >= 0:
            chosen.append(int(sure.argmax()))
    return chosen


def judge(model: Model, data: Data, args: argparse.Namespace, so_far: Unfinished) -> None:
    """Judges the explanations of test nodes drawn at random, those that are not judged so far."""
    nodes = data.test_mask.nonzero().flatten()
    generator = torch.Generator().manual_seed(args.seed)
    nodes = nodes[torch.randperm(len(nodes), generator=generator)[: args.judge]]
    # Where no edge reaches a node there is nothing to explain
    reached = torch.bincount(data.edge_index[1], minlength=data.num_nodes) > 0
    nodes = nodes[reached[nodes]]
    done = len(so_far.judged["attention"])
    with progress_bar("judging", len(nodes), "node", initial=done) as bar:
        for node in nodes[done:].tolist():
            torch.manual_seed(args.seed + node)  # whatever was explained before
            reasons = list(explain(model, neighbourhood(data, node, model.config["num_layers"]),
                                   args.top))  # fmt: skip
            with SIGNALS.held():
                for reason in reasons:
                    measures = {name: float(getattr(reason, name)) for name in MEASURES}
                    so_far.judged[reason.method].append(measures)
                so_far.save()
            bar.update()


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """The mean of each measure, a row for each method."""
    rows = [["mean over nodes", *MEASURES.values()]]
    for method, measured in found.items():
        means = [statistics.mean(of[name] for of in measured) for name in MEASURES]
        rows.append([method, *(f"{mean:.2f}" for mean in means)])
    return aligned(rows)


@torch.no_grad()
def draw(
    figure: Figure,
    model: nn.Module,
    data: Data,
    explained: Mapping[int, Sequence[Reason]],
    hops: int,
) -> None:
    """Draws a row for each node and a panel for each method, but for the last, random edges.

    An arrow is as thick and as dark as the edge weighs; nodes have the same places in all panels of
    a row: round the node in question those one hop away, round these the next. Images are drawn as
    such, others as discs in the colour of their class.
    """
    predicted = model(data.x, data.edge_index).argmax(dim=1)
    methods = [reason.method for reason in next(iter(explained.values()))[:-1]]
    heights = [5.0] * len(explained) + [0.5]
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)
    *rows, below = parts[:, 0]
    shown: set[int] = set()
    for row, (node, reasons) in zip(rows, explained.items(), strict=True):
        panels = row.subplots(1, len(methods))
        place = layout(data, node, [reason.edges for reason in reasons[:-1]], hops)
        shown.update(place)
        for ax, reason in zip(panels, reasons, strict=False):
            _draw_edges(ax, reason, place)
            _draw_nodes(ax, data, node, place)
            ax.text(
                0.5, 0.0,
                f"{reason.method}\np = {reason.alone:.2f} with these edges alone,"
                f" {reason.without:.2f} without",
                transform=ax.transAxes, ha="center", va="bottom", fontsize=10,
            )  # fmt: skip
            ax.set(xlim=(-1.4, 1.4), ylim=(-1.6, 1.25), aspect="equal")
            ax.set_axis_off()
        names, truth, said = data.class_names, int(data.y[node]), int(predicted[node])
        verdict = "rightly" if said == truth else f"wrongly: it is {names[truth]}"
        row.suptitle(
            f"node {node} is taken for {names[said]} (p = {reasons[0].probability:.2f}), {verdict}",
            fontsize=13, fontweight="bold",
        )  # fmt: skip
    classes = sorted({int(data.y[node]) for node in shown})
    handles = [
        Line2D([], [], ls="", marker="o", ms=9, color=_colour(c), label=data.class_names[c])
        for c in classes
    ]
    below.legend(handles=handles, loc="center", ncols=10, frameon=False, title="class")


def layout(data: Data, node: int, edges: Sequence[Tensor], hops: int) -> dict[int, Place]:
    """Where the ends of the edges lie: the node in the middle, rings round it by distance."""
    drawn = torch.cat([edge.flatten() for edge in edges]).unique().tolist()
    distance = {node: 0}
    for hop in range(1, hops + 1):
        near = k_hop_subgraph(node, hop, data.edge_index, num_nodes=data.num_nodes)[0]
        for other in near.tolist():
            distance.setdefault(other, hop)
    target: dict[int, list[int]] = {}
    for source, end in torch.cat(list(edges), dim=1).t().tolist():
        target.setdefault(source, []).append(end)
    angle: dict[int, float] = {}
    place: dict[int, Place] = {node: (0.0, 0.0)}
    for hop in range(1, hops + 1):
        ring = [other for other in drawn if distance.get(other) == hop]

        def key(other: int) -> tuple[float, float, int]:
            """Behind the nodes that it speaks to, the same class together."""
            heard = [angle[end] for end in target.get(other, []) if end in angle]
            toward = math.atan2(sum(map(math.sin, heard)), sum(map(math.cos, heard)))
            return (toward if heard else math.pi, float(data.y[other]), other)

        ring.sort(key=key)
        for i, other in enumerate(ring):
            angle[other] = -math.pi + 2 * math.pi * (i + 0.5) / len(ring)
            radius = hop / hops * 1.1
            place[other] = (radius * math.cos(angle[other]), radius * math.sin(angle[other]))
    return place


def _colour(label: int) -> tuple[float, float, float, float]:
    return colormaps["tab10"](label % 10)


def _draw_edges(ax: Axes, reason: Reason, place: Mapping[int, Place]) -> None:
    largest = float(reason.weights.max()) if len(reason.weights) else 1.0
    order = reason.weights.argsort()  # the heaviest on top
    for i in order.tolist():
        source, end = reason.edges[:, i].tolist()
        share = float(reason.weights[i]) / max(largest, 1e-12)
        ax.annotate(
            "", place[end], place[source], zorder=2,
            arrowprops={
                "arrowstyle": "-|>", "linewidth": 0.6 + 2.6 * share, "shrinkA": 11, "shrinkB": 13,
                "color": str(0.75 - 0.65 * share), "connectionstyle": "arc3,rad=0.1",
            },
        )  # fmt: skip


def _draw_nodes(ax: Axes, data: Data, node: int, place: Mapping[int, Place]) -> None:
    for other, (x, y) in place.items():
        colour = _colour(int(data.y[other]))
        if "images" in data:
            zoom = 3.2 if other == node else 2.3
            picture = OffsetImage(
                data.images[other].numpy(), zoom=zoom, cmap="gray_r", norm=Normalize(0, 1)
            )
            style = {"edgecolor": colour, "linewidth": 2.4 if other == node else 1.6}
            box = AnnotationBbox(picture, (x, y), pad=0.08, bboxprops=style)
            box.set_zorder(3)
            ax.add_artist(box)
        else:
            size = 620 if other == node else 380
            ax.scatter(x, y, s=size, color=[colour], edgecolors="black",
                       linewidths=2.0 if other == node else 0.6, zorder=3)  # fmt: skip
            ax.text(x, y, str(other), size=7.5, ha="center", va="center", color="white", zorder=4)


def run(args: argparse.Namespace) -> int:
    """Trains, explains, draws and judges; what was interrupted goes on."""
    data = load_data(args)
    folder = Path(args.out)
    prepare_folder(folder)
    so_far = Unfinished.of(args, data)
    print(describe(data))
    try:
        return work(args, data, so_far)
    except KeyboardInterrupt:
        if so_far.run is None and not so_far.judged["attention"]:
            raise  # there is nothing to keep
        so_far.save()
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130


def work(args: argparse.Namespace, data: Data, so_far: Unfinished) -> int:
    """All of it, from where it stands."""
    folder = Path(args.out)
    if args.trained is None:
        model, accuracy = train(data, args, so_far)
        config = {"kind": args.model, "model": model.config, "class_names": data.class_names,
                  "multi_label": False, "node_ids": None, "scale": None,
                  "label_scale": None}  # fmt: skip
        save_model(folder, own_weights(model), config)
    else:
        model, accuracy = load(args.trained, data)
    layers = model.config["num_layers"]
    print(f"{args.model if args.trained is None else args.trained}: test accuracy {accuracy:.1%}")
    torch.manual_seed(args.seed)  # whatever the number of epochs
    explained: dict[int, list[Reason]] = {}
    for node in args.nodes or choose(model, data):
        around = neighbourhood(data, node, layers)
        if not around.graph.num_edges:
            raise UserError(f"--nodes {node}: no edge reaches this node; choose another one")
        explained[node] = list(explain(model, around, args.top))
    figure = Figure(figsize=(13, 5.2 * len(explained)), layout="constrained")
    draw(figure, model, data, explained, layers)
    path = folder / "explanations.png"
    save_figure(path, figure, dpi=130)
    print(f"the explanations of {', '.join(f'node {node}' for node in explained)} are in {path}")
    judge(model, data, args, so_far)
    found = so_far.judged
    count = len(found["attention"])
    if not count:
        raise UserError("no edge reaches the test nodes that were drawn; raise --judge")
    summary: dict[str, Any] = {
        method: {name: statistics.mean(of[name] for of in measured) for name in MEASURES}
        for method, measured in found.items()
    }
    write_json(
        folder / "metrics.json",
        {"nodes": count, "top": args.top, "seed": args.seed, "test_accuracy": accuracy,
         "summary": summary},
    )  # fmt: skip
    remove(so_far.path)
    print(
        f"\n{table(found)}\n\n{count} test nodes, {args.top} edges each. fidelity+: predictions"
        " that change without these edges (more\nis better); fidelity-: with these alone (less is"
        " better); p: the probability of the predicted class then"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
