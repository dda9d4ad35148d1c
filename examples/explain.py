"""Explains single predictions of a graph attention network, in three ways, and judges them.

    python -m examples.explain                                # handwritten digits, offline
    python -m examples.explain --dataset karate --top 8
    python -m examples.explain --dataset cora --model gatv2 --nodes 1710 2000

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

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn
from torch_geometric.data import Data
from torch_geometric.utils import remove_self_loops
from tqdm import tqdm

from examples._comparison import aligned
from examples._explaining import METHODS, Reason, explain, neighbourhood
from examples._explanation_pictures import draw
from examples._files import UserError, prepare_folder, write_atomically, write_json
from examples._graphs import (
    SEED,
    add_graph_options,
    check_splits,
    describe,
    is_multi_label,
    load_graph,
    number,
)
from examples._program import Parser, exit_status
from examples._training import Run, Settings

PROGRAM = "python -m examples.explain"
MODELS = ("gat", "gatv2", "transformer")  # AGNN shows its weights to no explainer
LAYERS = 2
MEASURES = {
    "fidelity_plus": "fidelity+",
    "fidelity_minus": "fidelity-",
    "unfaithfulness": "unfaithfulness",
    "alone": "p alone",
    "without": "p without",
    "seconds": "seconds",
}


def load(args: argparse.Namespace) -> Data:
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


def train(data: Data, args: argparse.Namespace) -> tuple[nn.Module, float]:
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
    run = Run(data, settings, args.seed)
    terminal = sys.stderr.isatty()
    with tqdm(
        desc="training", total=args.epochs, leave=not terminal, mininterval=0.1 if terminal else 10
    ) as bar:
        while not run.done:
            run.step()
            bar.set_postfix_str(f"loss {run.history['train_loss'][-1]:.3f}", refresh=False)
            bar.update()
    run.model.load_state_dict(run.best["weights"])
    run.model.eval()
    return run.model, run.result()["test_accuracy"]


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


def judge(model: nn.Module, data: Data, args: argparse.Namespace) -> dict[str, list[Reason]]:
    """The explanations of test nodes drawn at random; those so far when interrupted."""
    nodes = data.test_mask.nonzero().flatten()
    generator = torch.Generator().manual_seed(args.seed)
    nodes = nodes[torch.randperm(len(nodes), generator=generator)[: args.judge]]
    found: dict[str, list[Reason]] = {method: [] for method in METHODS}
    terminal = sys.stderr.isatty()
    for node in tqdm(
        nodes.tolist(), desc="judging", leave=not terminal, mininterval=0.1 if terminal else 10
    ):
        around = neighbourhood(data, node, LAYERS)
        if around.graph.num_edges:  # else there is nothing to explain
            for reason in explain(model, around, args.top):
                found[reason.method].append(reason)
    return found


def table(found: dict[str, list[Reason]]) -> str:
    """The mean of each measure, a row for each method."""
    rows = [["mean over nodes", *MEASURES.values()]]
    for method, reasons in found.items():
        means = [statistics.mean(getattr(reason, name) for reason in reasons) for name in MEASURES]
        rows.append([method, *(f"{mean:.2f}" for mean in means)])
    return aligned(rows)


def run(args: argparse.Namespace) -> int:
    """Trains, explains, draws and judges."""
    data = load(args)
    folder = Path(args.out or Path("runs", "explain"))
    prepare_folder(folder)
    print(describe(data))
    model, accuracy = train(data, args)
    print(f"{args.model}: test accuracy {accuracy:.1%}")
    torch.manual_seed(args.seed)  # whatever the number of epochs
    explained: dict[int, list[Reason]] = {}
    for node in args.nodes or choose(model, data):
        around = neighbourhood(data, node, LAYERS)
        if not around.graph.num_edges:
            raise UserError(f"--nodes {node}: no edge reaches this node; choose another one")
        explained[node] = list(explain(model, around, args.top))
    figure = Figure(figsize=(13, 5.2 * len(explained)), layout="constrained")
    draw(figure, model, data, explained, LAYERS)
    path = folder / "explanations.png"
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130))
    print(f"the explanations of {', '.join(f'node {node}' for node in explained)} are in {path}")
    found = judge(model, data, args)
    count = len(found["attention"])
    if not count:
        raise UserError("no edge reaches the test nodes that were drawn; raise --judge")
    summary: dict[str, Any] = {
        method: {
            name: statistics.mean(getattr(reason, name) for reason in reasons) for name in MEASURES
        }
        for method, reasons in found.items()
    }
    write_json(
        folder / "metrics.json",
        {"nodes": count, "top": args.top, "test_accuracy": accuracy, "summary": summary},
    )
    print(
        f"\n{table(found)}\n\n{count} test nodes, {args.top} edges each. fidelity+: predictions"
        " that change without these edges (more\nis better); fidelity-: with these alone (less is"
        " better); p: the probability of the predicted class then"
    )
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of the program."""
    parser = Parser(
        prog=PROGRAM, description="Explain predictions of a graph network.", allow_abbrev=False
    )
    add_graph_options(parser)
    count = number(int, 1)
    group = parser.add_argument_group("model")
    group.add_argument("--model", choices=MODELS, default="gat", help="default: gat")
    group.add_argument("--epochs", type=count, default=200, help="at most; default: 200")
    group.add_argument("--seed", type=SEED, default=0, help="default: 0")
    group = parser.add_argument_group("explanations")
    group.add_argument(
        "--nodes", type=number(int, 0), nargs="+", metavar="NODE",
        help="to explain and to draw; default: the surest right and the surest wrong prediction",
    )  # fmt: skip
    group.add_argument("--top", type=count, default=15, help="edges of each; default: 15")
    group.add_argument("--judge", type=count, default=20, help="test nodes; default: 20")
    group.add_argument("--out", metavar="DIR", help="default: runs/explain")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
