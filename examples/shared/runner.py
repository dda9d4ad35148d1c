"""Several models, each trained from several seeds: what is done is kept, and compared."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from examples.shared.files import (
    UserError,
    check_settings,
    damage_told,
    load_checkpoint,
    remove,
    save_checkpoint,
    write_json,
)
from examples.shared.program import SIGNALS, progress_bar
from examples.shared.trainer import WEIGHTS, load_weights, own_weights

# A training of a model from a seed. It calls what it is given after each epoch, with the epoch's
# loss, and returns its results and, where pictures are drawn of it, the model.
Work = Callable[[str, int, Callable[[float], None]], tuple[dict[str, Any], nn.Module | None]]


Results = dict[str, list[dict[str, Any]]]  # of each model, those of its seeds so far


class Found(NamedTuple):
    """What the trainings came to.

    Attributes:
        results: see `Results`.
        models: those that their trainings returned, from the first seed.
        complete: whether all is done; False if it was interrupted.
    """

    results: Results
    models: dict[str, Any]
    complete: bool


def run_all(
    args: argparse.Namespace,
    epochs: Mapping[str, int],
    work: Work,
    kind: Any,
    metrics: Callable[[Results], dict[str, Any]],
    data: str = "",
    build: Callable[[str], nn.Module] | None = None,
) -> Found:
    """Trains each model from each seed, one after another, behind one progress bar.

    What a training came to is kept in --out until all are done. Stopped, by Ctrl-C or worse, the
    same command goes on with the first training that has no results yet.

    Args:
        args: with runs, seed, out and restart (see `add_run_options`); all others are settings
            that must not change in between, but for the models themselves.
        epochs: of each model.
        work: does a training.
        kind: of its results, see `check_kind`.
        metrics: turns results so far into what metrics.json, written after each training, says.
        data: names what is learned from, where the options do not.
        build: makes a model of this name, to put weights into; where trainings return models.

    Raises:
        KeyboardInterrupt: interrupted before there was a result.
        UserError: a loss is not finite; what is in --out is of other settings or damaged.
    """
    path = Path(args.out, "checkpoint.pt")
    others = ("out", "runs", "seed", "restart", "models")
    config = {name: str(value) for name, value in vars(args).items() if name not in others}
    config["data"] = data
    seeds = range(args.seed, args.seed + args.runs)
    if args.restart:
        remove(path)

    def trained() -> dict[str, nn.Module]:
        models = {}
        for model in epochs:
            weights = done["weights"].get(_name(model, args.seed))
            if build is not None and weights is not None:
                models[model] = build(model).eval()
                load_weights(models[model], weights)
        return models

    done: dict[str, Any] = {"config": config, "results": {}, "weights": {}}
    if path.exists():
        layout = {"config": dict, "results": {str: kind}, "weights": {str: WEIGHTS}}
        done = load_checkpoint(path, layout)
        check_settings(path, done["config"], config, data="the data has changed")
        with damage_told(path, "or of another program"):
            trained()

    def so_far() -> Results:
        known = done["results"]
        return {m: [known[_name(m, s)] for s in seeds if _name(m, s) in known] for m in epochs}

    def write() -> None:
        complete = all(len(of_model) == len(seeds) for of_model in so_far().values())
        write_json(path.with_name("metrics.json"), {"complete": complete, **metrics(so_far())})

    with progress_bar("", len(seeds) * sum(epochs.values())) as bar:
        try:
            for seed in seeds:
                for model, count in epochs.items():
                    name = _name(model, seed)
                    if name in done["results"]:
                        bar.update(count)
                        continue
                    bar.set_description(name, refresh=False)

                    def step(loss: float, name: str = name) -> None:
                        if not math.isfinite(loss):
                            raise UserError(f"the loss of {name} became {loss}: lower --lr")
                        bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                        bar.update()

                    result, found = work(model, seed, step)
                    with SIGNALS.held():
                        done["results"][name] = result
                        if found is not None and seed == args.seed:
                            done["weights"][name] = own_weights(found)
                        save_checkpoint(path, done)
                        write()
        except KeyboardInterrupt:
            if not any(so_far().values()):
                raise
            complete = False
        else:
            complete = True
    if complete:
        write()  # again, for all may have been done before
        remove(path)
    else:
        print("\ninterrupted; the same command goes on. What there is so far:", file=sys.stderr)
    return Found(so_far(), trained(), complete)


def _name(model: str, seed: int) -> str:
    return f"{model} (seed {seed})"
