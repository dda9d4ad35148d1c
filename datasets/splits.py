"""Which nodes are trained on, validated on and tested on, drawn from a seed."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.utils import index_to_mask

Masks = tuple[Tensor, Tensor, Tensor]


def few_labels_split(
    y: Tensor,
    *,
    labels_per_class: int,
    num_val: int,
    num_test: int,
    seed: int,
    first: Sequence[int] = (),
) -> Masks:
    """Draw a split as in Planetoid: few labels of every class to train on, the rest at random.

    Args:
        y: class of each node, ``[N]``; every node has one.
        labels_per_class: training nodes of each class.
        num_val: validation nodes.
        num_test: test nodes; fewer if fewer remain, but at least one.
        seed: of the draw; the same seed gives the same masks.
        first: nodes that come before all others in the draw, so they are trained on first.

    Returns:
        The train, validation and test masks, bool ``[N]``, disjoint.

    Raises:
        ValueError: a class has too few nodes, or nothing is left to test on.

    Example:
        >>> y = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> train, val, test = few_labels_split(
        ...     y, labels_per_class=1, num_val=2, num_test=2, seed=0, first=[2, 5])
        >>> train.nonzero().flatten().tolist(), int(val.sum()), int(test.sum())
        ([2, 5], 2, 2)
    """
    smallest = int(y.bincount().min())
    if not 1 <= labels_per_class <= smallest:
        raise ValueError(
            f"labels_per_class must lie between 1 and {smallest}, the size of the smallest class, "
            f"got {labels_per_class}"
        )
    spare = y.numel() - labels_per_class * len(y.unique())
    if num_val < 0 or num_test < 1 or num_val >= spare:
        raise ValueError(
            f"num_val={num_val} and num_test={num_test} do not fit the {spare} nodes that are not "
            f"trained on; num_val must be at least 0 and leave a node to test on, num_test must "
            f"be at least 1"
        )
    order = _shuffled(y.numel(), seed)
    head = torch.tensor(first, dtype=torch.long)
    order = torch.cat([head, order[~torch.isin(order, head)]])
    train = torch.cat([order[y[order] == c][:labels_per_class] for c in y.unique()])
    rest = order[~torch.isin(order, train)]
    return _masks(y.numel(), train, rest[:num_val], rest[num_val : num_val + num_test])


def stratified_split(y: Tensor, *, labels_per_class: int, seed: int) -> Masks:
    """Split all labelled nodes, class by class: some to train, a third of the rest to validate.

    At most half of a class (a single node at least) is trained on. Of the others one third is for
    validation and two thirds are for the test, the proportion of the Planetoid splits.

    Args:
        y: class of each node, ``[N]``; -1 where there is none, and such nodes are in no mask.
        labels_per_class: training nodes of each class, where the class has twice as many.
        seed: of the draw; the same seed gives the same masks.

    Returns:
        The train, validation and test masks, bool ``[N]``, disjoint.

    Raises:
        ValueError: ``labels_per_class`` is below 1.

    Example:
        >>> y = torch.tensor([0, 0, 0, 0, 0, 0, 1, -1])
        >>> [int(m.sum()) for m in stratified_split(y, labels_per_class=20, seed=0)]
        [4, 1, 2]
    """
    if labels_per_class < 1:
        raise ValueError(f"labels_per_class must be at least 1, got {labels_per_class}")
    order = _shuffled(y.numel(), seed)
    train, val, test = [], [], []
    for c in range(int(y.max()) + 1 if y.numel() else 0):
        members = order[y[order] == c]
        num_train = min(labels_per_class, max(1, len(members) // 2))
        num_val = (len(members) - num_train + 1) // 3
        train.append(members[:num_train])
        val.append(members[num_train : num_train + num_val])
        test.append(members[num_train + num_val :])
    none = order[:0]
    return _masks(y.numel(), *(torch.cat([none, *part]) for part in (train, val, test)))


def _shuffled(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def _masks(size: int, train: Tensor, val: Tensor, test: Tensor) -> Masks:
    return index_to_mask(train, size), index_to_mask(val, size), index_to_mask(test, size)
