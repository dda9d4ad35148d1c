"""Early stopping, states and the choice of the best run."""

import copy

import pytest
import torch

from datasets import karate_club
from examples._nodes import Progress, Run, Settings, evaluate
from examples.shared.files import UserError

MODEL = {
    "in_channels": 34, "hidden_channels": 8, "num_layers": 2, "out_channels": 2, "heads": 2,
    "dropout": 0.6,
}  # fmt: skip


def settings(**changed):
    usual = {"model": MODEL, "lr": 0.01, "weight_decay": 5e-4, "epochs": 20, "patience": 3}
    return Settings(**{**usual, **changed})


@pytest.fixture
def data():
    return karate_club()


def test_evaluate_by_hand(data):
    class Votes(torch.nn.Module):
        def forward(self, x, edge_index, edge_attr):
            return torch.tensor([[0.0, 0.0], [9.0, -9.0], [9.0, -9.0], [-9.0, 9.0]])

    data = copy.copy(data)
    data.y = torch.tensor([1, 0, 0, 0])
    data.val_mask = torch.tensor([True, False, False, False])
    data.test_mask = torch.tensor([False, True, True, True])
    scores = evaluate(Votes(), data, ("val", "test"))
    assert scores["val"] == (pytest.approx(0.6931, abs=1e-4), 0.0)
    assert scores["test"] == (pytest.approx(18 / 3, abs=1e-4), pytest.approx(2 / 3))


def test_early_stopping_is_that_of_the_paper(data):
    # (loss, accuracy): patience starts anew when either is at its best, equality included; the
    # weights are kept when the loss is.
    course = [
        ((2.0, 0.5), 0, 1),
        ((1.0, 0.4), 0, 2),  # loss only
        ((1.5, 0.5), 0, 2),  # accuracy only, equal
        ((1.5, 0.4), 1, 2),
        ((1.5, 0.4), 2, 2),
        ((1.0, 0.6), 0, 6),  # both
        ((1.1, 0.5), 1, 6),
        ((1.1, 0.5), 2, 6),
        ((1.1, 0.5), 3, 6),
    ]
    run = Run(data, settings(), seed=0)
    for epoch, (scores, waited, kept) in enumerate(course, start=1):
        assert not run.done
        run.epoch = epoch
        run._stop_early(*scores)
        assert (run.waited, run.best["epoch"]) == (waited, kept)
    assert run.done


def test_epochs_are_limited(data):
    run = Run(data, settings(epochs=4, patience=100), seed=0)
    while not run.done:
        run.step()
    assert run.epoch == 4 and len(run.history["val_loss"]) == 4
    assert run.result()["stopped_early"] is False


def test_kept_weights_are_those_of_the_kept_epoch(data):
    run = Run(data, settings(epochs=15, patience=100), seed=0)
    while not run.done:
        run.step()
    result = run.result()
    assert result["val_loss"] == run.history["val_loss"][result["best_epoch"] - 1]
    assert result["val_accuracy"] == run.history["val_accuracy"][result["best_epoch"] - 1]


def test_training_learns(data):
    run = Run(data, settings(model={**MODEL, "dropout": 0.0}, epochs=100, patience=100), seed=0)
    while not run.done:
        run.step()
    assert run.history["train_loss"][-1] < 0.5 * run.history["train_loss"][0]
    assert run.result()["test_accuracy"] > 0.8


def test_a_state_is_a_copy(data):
    run = Run(data, settings(epochs=9), seed=0)
    run.step()
    state = run.state()
    before = copy.deepcopy(state)
    run.step()
    assert state["epoch"] == before["epoch"] == 1
    assert state["scores"] == before["scores"]
    assert all(torch.equal(state["model"][name], w) for name, w in before["model"].items())
    moments = state["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(moments, before["optimizer"]["state"][0]["exp_avg"])


def test_a_state_brings_back_every_random_number(data):
    import random

    import numpy as np

    run = Run(data, settings(), seed=0)
    run.step()
    state = run.state()
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    Run(data, settings(), 0, state)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn


def test_a_state_of_another_seed_is_not_taken(data):
    first = Run(data, settings(), seed=0)
    first.step()
    assert Run(data, settings(), 1, first.state()).epoch == 0


def test_a_state_of_another_architecture(data):
    run = Run(data, settings(), seed=0)
    run.step()
    wider = settings(model={**MODEL, "hidden_channels": 16})
    with pytest.raises(UserError, match=r"another architecture.*size mismatch"):
        Run(data, wider, 0, run.state())


@pytest.mark.parametrize(
    ("val_accuracy", "val_loss", "wins"),
    [(0.9, 0.9, True), (0.8, 0.4, True), (0.8, 0.5, False), (0.8, 0.6, False), (0.7, 0.1, False)],
)
def test_the_best_run_is_chosen_by_validation(data, val_accuracy, val_loss, wins):
    run = Run(data, settings(), seed=1)
    run.best = {"weights": {}}
    best = {"seed": 0, "val_accuracy": 0.8, "val_loss": 0.5, "test_accuracy": 0.5}
    challenger = {
        "seed": 1, "val_accuracy": val_accuracy, "val_loss": val_loss, "test_accuracy": 0.9,
    }  # fmt: skip
    assert Progress(best=best).better(run, challenger)["seed"] == int(wins)
    assert Progress().better(run, challenger)["seed"] == 1


def test_a_finished_run_is_not_unfinished(data):
    progress = Progress()
    run = Run(data, settings(epochs=2), seed=5)
    progress.step(run)
    assert progress.unfinished["epoch"] == 1 and not progress.has(5)
    progress.step(run)
    progress.finish(run)
    assert progress.unfinished is None and progress.has(5)
