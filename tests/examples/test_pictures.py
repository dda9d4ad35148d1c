"""What the pictures of a training show."""

import pytest
import torch
from matplotlib.figure import Figure

from examples._baselines import Baseline
from examples._pictures import draw_curves, most_selective_node


def hub(target, weights):
    """In-edges of one node."""
    sources = torch.arange(100, 100 + len(weights))
    return torch.stack([sources, torch.full_like(sources, target)]), torch.tensor(weights)[:, None]


def test_the_most_selective_node():
    parts = [
        hub(0, [0.1] * 10),  # even
        hub(1, [0.55] + [0.05] * 9),
        hub(2, [0.45, 0.15] + [0.05] * 8),
        hub(3, [0.97, 0.01, 0.01, 0.01]),  # too few neighbours to choose from
        hub(4, [0.9] + [0.1 / 39] * 39),  # too many to read
    ]
    edge_index, weights = (torch.cat(columns, dim=-1 if n == 0 else 0)
                           for n, columns in enumerate(zip(*parts, strict=True)))  # fmt: skip
    assert most_selective_node(edge_index, weights, num_nodes=140) == 1


def test_weights_of_zero_and_sparse_graphs():
    assert most_selective_node(*hub(7, [1.0, 0.0]), num_nodes=102) == 7


def test_curves_show_every_run_and_mark_the_best():
    def result(seed, best_epoch):
        history = {
            f"{split}_{measure}": [0.1, 0.2 + seed / 10]
            for split in ("train", "val")
            for measure in ("loss", "accuracy")
        }
        return {"seed": seed, "best_epoch": best_epoch, "history": history}

    figure = Figure()
    draw_curves(figure, [result(3, 1), result(4, 2)], 4, [Baseline("majority", "a", 0.25, 0.75)])
    _, accuracy = figure.axes
    lines = {line.get_label(): line for line in accuracy.lines}
    assert lines["validation nodes"].get_ydata() == pytest.approx([0.1, 0.6])
    assert list(lines["majority (validation)"].get_ydata()) == [0.25, 0.25]
    assert lines["weights kept (epoch 2)"].get_xdata()[0] == 2
    widths = sorted(line.get_linewidth() for line in accuracy.lines if len(line.get_xdata()) == 2
                    and line.get_ydata()[0] == pytest.approx(0.1))  # fmt: skip
    assert widths[:2] < widths[2:]
    assert "seed 4" in figure.get_suptitle() and "faint: the other 1" in figure.get_suptitle()
