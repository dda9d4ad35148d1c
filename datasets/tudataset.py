"""Small graphs that each have a class: PROTEINS, ENZYMES, NCI1."""

import gzip
from collections.abc import Iterator

import torch
from torch_geometric.data import Data

from .fetch import DataFileError, fetch

URL = (
    "https://raw.githubusercontent.com/muhanzhang/pytorch_DGCNN/"
    "50f5041a1f5f6ecdb4a2ff4d7a3d5ef9a5aa5f2f/data/"
)
SHA256 = {
    "PROTEINS": "ccdf106cd248161d24eabbce41bd9d6d3d086ad4c7ab6dd8d0725fc280a00944",
    "ENZYMES": "4961fdf9b5b857d724935c1d4bf1269b50683c3bf90857d9803cb03a04ab97c9",
    "NCI1": "91994dc91b6586a074f911b78d3375d59691c0afc19b683dceead538170432cb",
}


def tudataset(name: str) -> list[Data]:
    """Return the graphs of a collection, each with its class.

    The features of a node are its tag (an atom, a kind of secondary structure) one-hot; edges are
    undirected. Morris, Kriege, Bause, Kersting, Mutzel, Neumann, "TUDataset: A Collection of
    Benchmark Datasets for Learning with Graphs", 2020.

    Args:
        name: ``"PROTEINS"``, ``"ENZYMES"`` or ``"NCI1"``.

    Returns:
        Graphs with ``x`` (float32, ``[N, tags]``), ``edge_index`` (int64, ``[2, E]``) and ``y``
        (int64, ``[1]``).

    Raises:
        ValueError: there is no such collection.
        DataFileError: see `datasets.fetch`; or the file ends early.
    """
    if name not in SHA256:
        raise ValueError(f"name is {name!r}; expected one of {', '.join(map(repr, SHA256))}")
    file = f"{name}.txt.gz"
    path = fetch(file, URL + file, SHA256[name], "tudataset")
    with gzip.open(path, "rt", encoding="ascii") as lines:
        try:
            graphs = [_read(iter(lines)) for _ in range(int(next(lines)))]
        except StopIteration as error:
            raise DataFileError(f"{path} ends early; fetch it again from {URL}") from error
    tags = sorted({tag for of_graph, _, _ in graphs for tag in of_graph})
    number = {tag: i for i, tag in enumerate(tags)}
    classes = {label: i for i, label in enumerate(sorted({label for _, _, label in graphs}))}
    return [
        Data(
            x=torch.eye(len(tags))[[number[tag] for tag in of_graph]],
            edge_index=torch.tensor(edges, dtype=torch.long).view(-1, 2).t().contiguous(),
            y=torch.tensor([classes[label]]),
        )
        for of_graph, edges, label in graphs
    ]


def _read(lines: Iterator[str]) -> tuple[list[int], list[tuple[int, int]], int]:
    """The tags of a graph's nodes, its edges (neighbour, node), and its class."""
    nodes, label = map(int, next(lines).split())
    tags, edges = [], []
    for node in range(nodes):
        tag, count, *rest = next(lines).split()
        tags.append(int(tag))
        edges += [(int(other), node) for other in rest[: int(count)]]
    return tags, edges, label
