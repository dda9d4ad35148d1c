"""What is reached without a neural network, on the same split: the bar to clear."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score
from sklearn.semi_supervised import LabelSpreading
from torch_geometric.data import Data

from examples.shared.graphs import is_regression

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
ALPHAS = (0.99, 0.9, 0.7, 0.5, 0.3, 0.1)  # the first of equals counts: what reaches furthest


class Baseline(NamedTuple):
    """A method, the setting that validation chose for it, its accuracies (or micro-F1), 0 to 1.

    Where labels are quantities, R² stands in for accuracy, and there are the errors of the test.
    """

    name: str
    setting: str
    val_accuracy: float
    test_accuracy: float
    test_errors: dict[str, float] | None = None


def baselines(data: Data) -> list[Baseline]:
    """Majority class, logistic regression on the features, label spreading on the graph.

    Each has at most one setting, chosen by validation accuracy (the first of equals). Where nodes
    have several labels: the labels that most nodes have, and logistic regression of each label.
    Where labels are quantities: their mean, linear regression, the mean of the neighbours.

    Args:
        data: a graph on the CPU with `x` [N, F] (dense or sparse), `edge_index` [2, E],
            `y` [N] and the masks.
    """
    if is_regression(data):
        return [mean_label(data), linear_regression(data), neighbours_mean(data)]
    if data.y.dim() == 2:
        return [frequent_labels(data), logistic_regression_of_labels(data)]
    return [majority(data), logistic_regression(data), label_spreading(data)]


def majority(data: Data) -> Baseline:
    """Always the most frequent class of the training nodes; of equals, the best in validation."""
    counts = np.bincount(data.y[data.train_mask].numpy())
    classes = np.flatnonzero(counts == counts.max())
    names = data.class_names
    return _best("majority class", data, ((names[c], np.full(data.num_nodes, c)) for c in classes))


def logistic_regression(data: Data) -> Baseline:
    """Logistic regression on the features of each node alone (scikit-learn)."""
    x, y, train = data.x.to_dense().numpy(), data.y.numpy(), data.train_mask.numpy()
    name = "logistic regression, features only"
    if len(np.unique(y[train])) == 1:
        return _best(name, data, [("", np.full(data.num_nodes, y[train][0]))])
    models = (
        (c, LogisticRegression(C=c, max_iter=5000).fit(x[train], y[train])) for c in STRENGTHS
    )
    return _best(name, data, ((f"C = {c:g}", model.predict(x)) for c, model in models))


def frequent_labels(data: Data) -> Baseline:
    """To each node, the labels that at least half of the training nodes have."""
    often = data.y[data.train_mask].mean(dim=0) >= 0.5
    return _of_labels("frequent labels", "", data, often.expand_as(data.y).numpy())


def logistic_regression_of_labels(data: Data) -> Baseline:
    """For each label, a logistic regression on the features of each node alone (scikit-learn)."""
    x, y, train = data.x.to_dense().numpy(), data.y.numpy(), data.train_mask.numpy()
    found = np.empty_like(y)
    for label, known in enumerate(y[train].T):
        same = known.min() == known.max()  # there is nothing to tell apart
        model = None if same else LogisticRegression(max_iter=1000).fit(x[train], known)
        found[:, label] = known[0] if model is None else model.predict(x)
    return _of_labels("logistic regression, features only", "C = 1", data, found)


def _of_labels(name: str, setting: str, data: Data, found: Any) -> Baseline:
    y = data.y.numpy()
    val, test = (
        float(f1_score(y[mask], found[mask], average="micro", zero_division=0))
        for mask in (data.val_mask.numpy(), data.test_mask.numpy())
    )
    return Baseline(name, setting, val, test)


def mean_label(data: Data) -> Baseline:
    """To each node the mean of the training labels."""
    mean = data.y[data.train_mask].mean().item()
    return _of_quantities("mean label", data, [("", np.full(data.num_nodes, mean))])


def linear_regression(data: Data) -> Baseline:
    """Linear regression on the features of each node alone, with a penalty (scikit-learn)."""
    x, y, train = data.x.to_dense().numpy(), data.y.numpy(), data.train_mask.numpy()
    models = ((c, Ridge(alpha=c).fit(x[train], y[train])) for c in STRENGTHS)
    found = ((f"penalty {c:g}", model.predict(x)) for c, model in models)
    return _of_quantities("linear regression, features only", data, found)


def neighbours_mean(data: Data) -> Baseline:
    """To each node the mean of the training labels that are nearest, along the graph alone.

    What is nearest is a matter of degree: the number of a node is the mean of its neighbours', over
    and over, where training nodes keep theirs and all others begin with the mean of these.
    """
    y, train = data.y.numpy(), data.train_mask.numpy()
    affinity, mean = _affinity(data), y[train].mean()
    degree = affinity.sum(axis=1)

    def after(steps: int) -> Any:
        found = np.where(train, y, mean)
        for _ in range(steps):
            heard = np.where(degree > 0, affinity @ found / np.maximum(degree, 1), mean)
            found = np.where(train, y, heard)
        return found

    found = ((f"{steps} steps", after(steps)) for steps in (1, 2, 4, 8, 16, 32))
    return _of_quantities("mean of neighbours, graph only", data, found)


def r_squared(found: Any, y: Any) -> float:
    """The share of the variance of `y` that `found` explains; 1 for no error, below 0 for worse
    than the mean of `y`. Where `y` does not vary, 0 unless there is no error.

    >>> import numpy as np
    >>> r_squared(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    0.5
    """
    found, y = np.asarray(found, np.float64), np.asarray(y, np.float64)
    error, spread = ((y - found) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    if spread == 0:
        return 1.0 if error == 0 else 0.0
    return float(1 - error / spread)


def errors(found: Any, y: Any, unit: float = 1.0) -> dict[str, float]:
    """The mean absolute and the root mean squared error.

    Args:
        found, y: what is said, and what is true.
        unit: by which both were divided.
    """
    gap = unit * (np.asarray(found, np.float64) - np.asarray(y, np.float64))
    return {"mae": float(np.abs(gap).mean()), "rmse": float(np.sqrt((gap**2).mean()))}


def _of_quantities(name: str, data: Data, predictions: Iterable[tuple[str, Any]]) -> Baseline:
    y, val, test = data.y.numpy(), data.val_mask.numpy(), data.test_mask.numpy()
    unit = data.label_scale[1] if "label_scale" in data else 1.0
    scores = [
        Baseline(name, setting, r_squared(p[val], y[val]), r_squared(p[test], y[test]),
                 errors(p[test], y[test], unit))
        for setting, p in predictions
    ]  # fmt: skip
    return max(scores, key=lambda baseline: baseline.val_accuracy)


def label_spreading(data: Data) -> Baseline:
    """Label spreading along the edges of the graph alone (Zhou et al., 2003; scikit-learn).

    The affinity of two nodes is 1 if an edge joins them, in whichever direction, else 0.
    """
    known = np.where(data.train_mask.numpy(), data.y.numpy(), -1)
    affinity = _affinity(data)
    nodes = np.arange(data.num_nodes)[:, None]  # scikit-learn wants features; the kernel has no use
    # At the default tolerance a small alpha stops before the labels have crossed the graph.
    limits: dict[str, Any] = {"tol": 1e-9, "max_iter": 10_000}
    models = (
        (alpha, LabelSpreading(lambda *_: affinity, **limits, alpha=alpha).fit(nodes, known))
        for alpha in ALPHAS
    )
    return _best(
        "label spreading, graph only",
        data,
        ((f"alpha = {alpha:g}", model.transduction_) for alpha, model in models),
    )


def _affinity(data: Data) -> csr_array:
    source, target = data.edge_index.numpy()
    other = source != target
    source, target = source[other], target[other]
    ends = np.concatenate([source, target]), np.concatenate([target, source])
    size = (data.num_nodes, data.num_nodes)
    affinity = coo_array((np.ones(len(ends[0])), ends), shape=size).tocsr()  # adds up duplicates
    affinity.data[:] = 1
    return affinity


def _best(name: str, data: Data, predictions: Iterable[tuple[str, Any]]) -> Baseline:
    y, val, test = data.y.numpy(), data.val_mask.numpy(), data.test_mask.numpy()
    scores = [
        Baseline(name, setting, float((p == y)[val].mean()), float((p == y)[test].mean()))
        for setting, p in predictions
    ]
    return max(scores, key=lambda baseline: baseline.val_accuracy)
