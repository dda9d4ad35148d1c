"""What a training of the labels of nodes came to: tables, measures, predictions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor

from examples._baselines import errors, r_squared
from examples._nodes import Model, Task, build, name_of
from examples.shared.graphs import is_multi_label, is_regression, score_name
from examples.shared.tables import aligned, percent, spread
from examples.shared.trainer import load_weights


def table(task: Task) -> str:
    """Accuracies of the model and of its rivals, aligned."""
    results, regression = task.progress.results, is_regression(task.data)
    told = partial(spread, digits=3) if regression else percent
    name = score_name(task.data)
    rows = [[name if regression else f"{name} in %", "setting", "validation", "test"]]
    rows += [[r.name, r.setting, told([r.val_accuracy]), told([r.test_accuracy])]
             for r in task.rivals]  # fmt: skip
    scores = [told([r[f"{split}_accuracy"] for r in results]) for split in ("val", "test")]
    rows += [[name_of(task.args), f"{len(results)} run{'s' * (len(results) > 1)}", *scores]]
    text = aligned(rows, str.ljust)
    if len(results) > 1:
        text += "\n±: standard deviation over initialisations; the split is the same in all runs"
    return text


def best_model(task: Task) -> Model:
    """The model of the best run, ready to predict."""
    best = task.progress.best
    assert best is not None
    model = build(task.settings.kind, task.settings.model)
    load_weights(model, best["weights"])
    return model.eval()


@torch.no_grad()
def said_of_test(task: Task) -> tuple[Tensor, Any]:
    """What the best model says of the test nodes, and what is true."""
    data = task.data
    logits = best_model(task)(data.x, data.edge_index, edge_attr=data.get("edge_attr"))
    return logits[data.test_mask].double(), data.y[data.test_mask].numpy()


def judged_on_test(task: Task) -> dict[str, Any]:
    """What accuracy does not tell of the test nodes: macro-F1, ROC AUC, the confusion of classes.

    The ROC AUC is that of each class against all others, the mean over those that the test nodes
    have; None if they have one alone. Of quantities it is the errors, in the unit of the labels.
    """
    data = task.data
    logits, y = said_of_test(task)
    if task.label_scale is not None:
        found = logits.squeeze(1).numpy()
        return {**errors(found, y, task.label_scale[1]), "r2": r_squared(found, y)}
    found, share = logits.argmax(dim=1).numpy(), logits.softmax(dim=1).numpy()
    there = [c for c in range(len(data.class_names)) if 0 < (y == c).sum() < len(y)]
    areas = [roc_auc_score(y == c, share[:, c]) for c in there]
    classes = len(data.class_names)
    confusion = np.bincount(classes * y + found, minlength=classes**2).reshape(classes, classes)
    return {
        "macro_f1": float(f1_score(y, found, average="macro", zero_division=0)),
        "roc_auc": sum(map(float, areas)) / len(areas) if areas else None,
        "confusion": confusion.tolist(),
    }


def further(task: Task) -> str:
    """What there is to say of the best run beside its score, and a warning if it is no good."""
    if is_multi_label(task.data):
        return ""
    return of_classes(task) if task.label_scale is None else of_quantities(task)


def of_quantities(task: Task) -> str:
    """The errors of the best run and of its rivals on the test nodes, in the unit of the labels."""
    test = judged_on_test(task)
    rows = [["test nodes, in the unit of the labels", "mean absolute error", "root mean square"]]
    told = [(rival.name, rival.test_errors or {}) for rival in task.rivals]
    for name, found in (*told, (f"{name_of(task.args)}, best run", test)):
        rows.append([name, *(f"{found[measure]:.4g}" for measure in ("mae", "rmse"))])
    text = aligned(rows)
    reached = max((result["test_accuracy"] for result in task.progress.results), default=1.0)
    bar = max(task.rivals, key=lambda rival: rival.test_accuracy)
    if reached <= 0:
        text += (
            "\nnote: nothing beats the mean of the labels (R² 0): try other features,"
            " --standardise, --layers, --lr or --model"
        )
    elif reached <= bar.test_accuracy:
        text += f"\nnote: {bar.name!r} does as well without a network (R² {bar.test_accuracy:.3f})"
    return text


def of_classes(task: Task) -> str:
    """The best run on the test nodes class by class, and a warning if it tells none apart."""
    data = task.data
    test, names = judged_on_test(task), data.class_names
    auc = "" if test["roc_auc"] is None else f", ROC AUC {100 * test['roc_auc']:.1f}"
    lines = [f"best run, test nodes: macro-F1 {100 * test['macro_f1']:.1f}{auc}"]
    if len(names) <= 12:
        rows = [["class ↓  said →", *names]]
        rows += [[n, *map(str, row)] for n, row in zip(names, test["confusion"], strict=True)]
        lines.append(aligned(rows))
    results = task.progress.results
    reached = max((result["test_accuracy"] for result in results), default=1.0)
    usual = next(r.test_accuracy for r in task.rivals if r.name == "majority class")
    if reached <= usual and len(names) > 1:
        look = " look at the ROC AUC above, where 50 is chance;" if auc else ""
        lines.append(
            f"note: nothing beats the majority class ({100 * usual:.1f} %):{look} try other"
            " features, --layers, --lr or --model"
        )
    return "\n".join(lines)


def predictions(
    logits: Tensor, nodes: Sequence[str], config: dict[str, Any]
) -> list[tuple[str, ...]]:
    """A table: each node's class, its probability and those of all classes; or its labels.

    Of quantities: what the model says, in the unit of the labels.
    """
    classes = config["class_names"]
    if config["label_scale"] is not None:
        mean, deviation = config["label_scale"]
        numbers = (mean + deviation * logits.double().squeeze(1)).tolist()
        told = [(node, f"{number:.6g}") for node, number in zip(nodes, numbers, strict=True)]
        return [("node", "prediction"), *told]
    if config["multi_label"]:
        found = ([classes[c] for c in row.nonzero().flatten()] for row in logits.cpu() > 0)
        labelled = [(node, " ".join(names)) for node, names in zip(nodes, found, strict=True)]
        return [("node", "prediction"), *labelled]
    shares = logits.softmax(dim=1)
    likely = zip(nodes, shares.argmax(dim=1).tolist(), shares.tolist(), strict=True)
    return [
        ("node", "prediction", "probability", *(f"p({name})" for name in classes)),
        *(
            (node, classes[c], f"{row[c]:.6f}", *(f"{share:.6f}" for share in row))
            for node, c, row in likely
        ),
    ]
