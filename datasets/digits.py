"""Handwritten digits as a graph: images are nodes, alike images are joined."""

import numpy as np
import torch
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits
from torch_geometric.data import Data

from .splits import few_labels_split


def digits_graph(
    k: int = 20,
    *,
    labels_per_class: int = 5,
    num_val: int = 500,
    num_test: int = 1000,
    seed: int = 0,
) -> Data:
    """Return scikit-learn's 1,797 handwritten digits as a mutual k-nearest-neighbour graph.

    Nodes i and j are joined when each is among the k nearest of the other:

        {i, j} is an edge  iff  j in kNN(i) and i in kNN(j),

    by Euclidean distance between the images; among equally distant images the one with the lower
    number is nearer. The graph is computed from the images alone and does not depend on the seed.
    With the default k = 20 it has 11,794 undirected edges and 3 isolated nodes, which are left as
    they are; 1,617 nodes hang together in one component. The images are bundled with
    scikit-learn: nothing is downloaded. (Data: E. Alpaydin and C. Kaynak, Optical Recognition of
    Handwritten Digits, UCI Machine Learning Repository, 1998.)

    Args:
        k: neighbours of each image, 1 to 1796.
        labels_per_class: training images of each digit.
        num_val: validation images.
        num_test: test images; fewer if fewer remain.
        seed: of the masks; the same seed gives the same masks.

    Returns:
        Data with ``x`` ``[1797, 64]`` in [0, 1], ``edge_index`` with both directions of each edge
        and no self-loops, ``y`` (the digit), the masks, ``name``, ``class_names`` and ``images``
        ``[1797, 8, 8]`` for drawing. With the defaults 247 nodes are in no mask.

    Raises:
        ValueError: k, or a size of the split, is out of range.

    Example:
        >>> data = digits_graph()
        >>> data.num_nodes, data.num_edges // 2, int(data.train_mask.sum())
        (1797, 11794, 50)
    """
    digits = load_digits()
    if not 1 <= k < len(digits.data):
        raise ValueError(f"k must lie between 1 and {len(digits.data) - 1}, got {k}")

    # Pixels are whole numbers, so these distances are exact, and a stable sort settles ties the
    # same way on every machine and for every number of threads.
    distance = cdist(digits.data, digits.data, "sqeuclidean")
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :k]
    near = np.zeros(distance.shape, dtype=bool)
    np.put_along_axis(near, nearest, True, axis=1)

    y = torch.from_numpy(digits.target)
    train_mask, val_mask, test_mask = few_labels_split(
        y, labels_per_class=labels_per_class, num_val=num_val, num_test=num_test, seed=seed
    )
    images = torch.from_numpy(digits.images / 16).float()  # 16 is the brightest value
    return Data(
        x=images.flatten(1),
        edge_index=torch.from_numpy(np.stack(np.nonzero(near & near.T))),
        y=y,
        train_mask=train_mask,
        val_mask=val_mask,
        test_mask=test_mask,
        images=images,
        name="digits",
        class_names=[str(digit) for digit in digits.target_names],
    )
