"""Zachary's karate club, the smallest real graph with known groups."""

import networkx as nx
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from .splits import few_labels_split

CLUBS = ["Mr. Hi", "Officer"]
LEADERS = [0, 33]  # the instructor (Mr. Hi) and the administrator (the officer) themselves


def karate_club(*, labels_per_class: int = 1, num_val: int = 8, seed: int = 0) -> Data:
    """Return the friendships of 34 members of a karate club, labelled by the club they chose.

    After a quarrel between the instructor ("Mr. Hi") and the administrator ("Officer") the club
    split in two; the label of a member is the club that he joined. (W. W. Zachary, An Information
    Flow Model for Conflict and Fission in Small Groups, 1977.) Edges are taken as unweighted. The
    nodes have no attributes, so each gets a one-hot feature of its own: a model learns this graph
    only, and cannot be applied to another.

    This graph is a toy. With the default split 8 members are for validation and 24 for the test,
    so one member is 4 percentage points of test accuracy, and differences of a few points between
    models mean nothing.

    Args:
        labels_per_class: training nodes of each club, 1 to 16: the two leaders (nodes 0 and 33)
            first, the others drawn from the seed.
        num_val: validation nodes; all the others are for the test.
        seed: of the draw; the same seed gives the same masks.

    Returns:
        Data with ``x`` ``[34, 34]`` (the identity), ``edge_index`` with both directions of the 78
        edges, ``y`` (0 for Mr. Hi's club, 1 for the officer's), the masks, ``name`` and
        ``class_names``.

    Raises:
        ValueError: a size of the split is out of range.

    Example:
        >>> data = karate_club()
        >>> data.num_nodes, data.num_edges // 2, data.train_mask.nonzero().flatten().tolist()
        (34, 78, [0, 33])
    """
    club = nx.karate_club_graph()
    num_nodes = club.number_of_nodes()
    y = torch.tensor([CLUBS.index(club.nodes[node]["club"]) for node in range(num_nodes)])
    train_mask, val_mask, test_mask = few_labels_split(
        y,
        labels_per_class=labels_per_class,
        num_val=num_val,
        num_test=num_nodes,
        seed=seed,
        first=LEADERS,
    )
    return Data(
        x=torch.eye(num_nodes),
        edge_index=to_undirected(torch.tensor(list(club.edges)).t(), num_nodes=num_nodes),
        y=y,
        train_mask=train_mask,
        val_mask=val_mask,
        test_mask=test_mask,
        name="karate",
        class_names=list(CLUBS),
    )
