"""From command-line options to a graph."""

from __future__ import annotations

import argparse
import hashlib
from typing import Any

import torch
from torch_geometric.data import Batch, Data

from datasets import PPIGraphs, digits_graph, from_files, karate_club, planetoid, ppi
from examples.shared.files import UserError

SPLITS = ("train", "val", "test")
SPARSE_BELOW = 0.25  # the share of features that are not zero
# Options that only some graphs understand; the public splits are what they are.
_OPTIONS = {
    "neighbours": ("digits",),
    "labels_per_class": ("digits", "karate", "files"),
    "split_seed": ("digits", "karate", "files"),
    "directed": ("files",),
    "task": ("files",),
}


def load_graph(args: argparse.Namespace) -> Data:
    """Loads the graph that the options name; sets `args.dataset` ("files" for the reader's own).

    Features that are mostly zero come as a `torch.sparse_csr` matrix.

    Raises:
        UserError: options contradict each other or are out of range.
        GraphFileError, DataFileError: see `datasets`.
    """
    if args.edges is not None and args.dataset is not None:
        raise UserError("--dataset and --edges exclude each other; choose one")
    if args.edges is None and (args.features is not None or args.labels is not None):
        raise UserError("--features and --labels need --edges, the graph they belong to")
    args.dataset = args.dataset or ("digits" if args.edges is None else "files")
    for option, names in _OPTIONS.items():
        if getattr(args, option, None) is not None and args.dataset not in names:
            raise UserError(
                f"--{option.replace('_', '-')} has no meaning for {args.dataset}; leave it out"
            )
    given = {name: value for name in ("labels_per_class", "split_seed", "neighbours")
             if (value := getattr(args, name)) is not None}  # fmt: skip
    rename = {"split_seed": "seed", "neighbours": "k"}
    options = {rename.get(name, name): value for name, value in given.items()}
    try:
        data = with_sparse_features(_load(args, options))
    except ValueError as error:  # GraphFileError is one too
        raise UserError(str(error)) from error
    if is_regression(data) and args.labels_per_class is not None:
        raise UserError(
            "--labels-per-class has no meaning where labels are quantities: half of the labelled"
            " nodes train, unless a column split says which"
        )
    return data


def _load(args: argparse.Namespace, options: dict[str, Any]) -> Data:
    if args.dataset == "digits":
        return digits_graph(**options)
    if args.dataset == "karate":
        return karate_club(**options)
    if args.dataset == "files":
        return from_files(
            args.edges, args.features, args.labels, undirected=not args.directed,
            task=getattr(args, "task", "classification"), **options,
        )  # fmt: skip
    if args.dataset == "ppi":
        return joined(ppi())
    return planetoid(args.dataset)


def joined(graphs: PPIGraphs) -> Data:
    """Many graphs as one without edges between them; `graph` is the number of each node's graph."""
    data = Batch.from_data_list([*graphs.train, *graphs.val, *graphs.test])
    split = torch.tensor([n for n, of_split in enumerate(graphs) for _ in of_split])[data.batch]
    return Data(
        x=data.x,
        edge_index=data.edge_index,
        y=data.y,
        graph=data.batch,
        **{f"{name}_mask": split == n for n, name in enumerate(SPLITS)},
        name="ppi",
        class_names=[str(label) for label in range(data.y.size(1))],  # the files name none
    )


def with_sparse_features(data: Data) -> Data:
    """The same graph; features that are mostly zero become a `torch.sparse_csr` matrix."""
    if data.x.layout == torch.sparse_csr:
        return data
    if data.x.count_nonzero() < SPARSE_BELOW * data.x.numel():
        data.x = data.x.to_sparse_csr()
    return data


def is_multi_label(data: Data) -> bool:
    """Whether a node may have several classes at once."""
    return bool(data.y.dim() == 2)


def is_regression(data: Data) -> bool:
    """Whether the label of a node is a number, a quantity."""
    return bool(data.y.dim() == 1 and data.y.is_floating_point())


def score_name(data: Data) -> str:
    """What a model is judged by."""
    if is_regression(data):
        return "R²"
    return "micro-F1" if is_multi_label(data) else "accuracy"


def score_text(data: Data, score: float) -> str:
    """A score as it is printed."""
    return f"{score:.3f}" if is_regression(data) else f"{score:.1%}"


def standardise_labels(data: Data) -> list[float]:
    """Gives quantities the mean 0 and the deviation 1 over the training nodes.

    Returns the mean and the deviation that they had.
    """
    known = data.y[data.train_mask].double()
    mean, deviation = known.mean().item(), known.std(correction=0).item()
    deviation = deviation if deviation > 0 else 1.0  # where all are equal there is nothing to learn
    data.y = ((data.y.double() - mean) / deviation).float()
    return [mean, deviation]


def split_views(data: Data) -> dict[str, Data]:
    """What a model may see when it is judged on each split.

    That is the one graph; where there are several, numbered by `data.graph` for each node,
    those whose nodes are in the split.
    """
    if "graph" not in data:
        return dict.fromkeys(SPLITS, data)
    return {split: data.subgraph(data[f"{split}_mask"]) for split in SPLITS}


def graphs_of(data: Data) -> list[Data]:
    """The graphs that `data` holds, each by itself."""
    if "graph" not in data:
        return [data]
    return [data.subgraph(data.graph == graph) for graph in data.graph.unique().tolist()]


def check_splits(data: Data) -> None:
    """Raises UserError unless there are nodes to train on, to validate on and to test on."""
    for split in SPLITS:
        if not data[f"{split}_mask"].any():
            raise UserError(
                f"no node is in the split {split!r}: --labels must label nodes for train, val and"
                " test (with more labelled nodes, or a column split)"
            )


def fingerprint(data: Data) -> str:
    """The sha256 of all that a training sees of a graph."""
    digest = hashlib.sha256()
    for name in ("x", "edge_index", "edge_attr", "y", "graph", *(f"{s}_mask" for s in SPLITS)):
        if name not in data:
            continue
        tensor: torch.Tensor = data[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        parts = [tensor]
        if tensor.layout == torch.sparse_csr:
            parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        for part in parts:
            digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def doubts(data: Data) -> list[str]:
    """What makes it unlikely that a training on this graph comes to anything, in words."""
    found = []
    if is_regression(data):
        known = data.y[data.y.isfinite()]
        if len(known) and known.min() == known.max():
            found.append(f"all labels are {known.min():g}: there is nothing to learn")
    elif not is_multi_label(data):
        names, labelled = data.class_names, int((data.y >= 0).sum())
        if len(names) == 1:
            found.append(f"there is one class alone, {names[0]!r}: nothing can be told apart")
        elif len(names) > max(10, labelled / 3):
            found.append(
                f"{len(names)} different labels for {labelled} nodes, each learned as a class of"
                " its own: are they names of classes? Quantities are learned with --task regression"
            )
    x = data.x.to_dense() if data.x.layout != torch.strided else data.x
    sizes = x.abs().amax(dim=0)
    sizes = sizes[sizes > 0]
    if len(sizes) and sizes.max() > 100 * sizes.min() and sizes.max() > 10:
        found.append(
            f"the features are not on one scale: the largest of a column is from {sizes.min():.2g}"
            f" to {sizes.max():.2g}; try --standardise"
        )
    return found


def standardise(data: Data, scale: dict[str, list[float]] | None = None) -> dict[str, list[float]]:
    """Gives every feature the mean 0 and the deviation 1 over the nodes, or takes another scale.

    Returns the scale, to do the same with another graph.
    """
    x = data.x.to_dense()
    if scale is None:
        deviation = x.std(dim=0, correction=0)
        deviation[deviation == 0] = 1.0  # a column that is the same everywhere becomes 0
        scale = {"mean": x.mean(dim=0).tolist(), "deviation": deviation.tolist()}
    data.x = (x - torch.tensor(scale["mean"])) / torch.tensor(scale["deviation"])
    return scale


def describe(data: Data) -> str:
    """One line about a graph."""
    sizes = " / ".join(f"{int(data[f'{split}_mask'].sum()):,}" for split in SPLITS)
    if is_regression(data):
        known = data.y[data.y.isfinite()].tolist()
        what = f"labels from {min(known):.4g} to {max(known):.4g}"
    else:
        what = f"{len(data.class_names)} {'labels' if is_multi_label(data) else 'classes'}"
    return (
        f"{data.name}: {data.num_nodes:,} nodes, {data.num_edges:,} directed edges,"
        f" {data.num_features:,} features, {what};"
        f" {sizes} nodes to train / validate / test"
    )
