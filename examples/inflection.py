"""Soft or hard? Four attentions learn to inflect words, letter by letter.

    python -m examples.inflection --language finnish
    python -m examples.inflection --data train.tsv valid.tsv test.tsv

The source is a lemma with the features of the form that is wanted, `V PST g o`, the target that
form, `w e n t`. All models have the same encoder and a decoder of the same size:

    soft       reads Σ_j α_ij h_j, then predicts (Luong et al., 2015)
    reinforce  draws one j, predicts from h_j, and learns α by REINFORCE (Xu et al., 2015)
    exact      predicts from every h_j: p(y_i) = Σ_j α_ij p(y_i | h_j) (Wu et al., 2018)
    monotonic  the same, over alignments that never turn back (Wu and Cotterell, 2019)

The best epoch is chosen on the validation words, by words without a mistake, then by edit distance;
the table tells how many test words are right without a mistake, and the edit distance to the right
form. The alignments of one test word are drawn (alignments.png in --out). Data: CoNLL–SIGMORPHON
2017, 1,000 words to train on.
"""

from __future__ import annotations

from examples.commands.inflection import MODELS, Settings, parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy

from attn_core.plotting import Writer
from datasets import (
    EncodedPairs,
    Inflections,
    Pairs,
    Vocabulary,
    bucketed,
    encode_pairs,
    in_order,
    inflections,
    read_inflections,
)
from datasets.vocabulary import PAD
from examples.shared.files import UserError, prepare_folder
from examples.shared.options import pick
from examples.shared.pictures import save_figure
from examples.shared.program import exit_status
from examples.shared.runner import Results, run_all
from examples.shared.tables import aligned, percent, spread, summary
from examples.shared.trainer import Trainer, parameters, seed_everything
from sequence_attn import HardAttention, HardAttentionLoss
from sequence_attn.plot import heatmap
from sequence_attn.seq2seq import (
    EncoderDecoder,
    ExactHardSeq2Seq,
    RecurrentEncoder,
    Seq2Seq,
    generate,
    luong,
)

MEASURES = ("accuracy", "distance", "seconds")
# What `train` returns beside the model
RESULT = {"seed": int, "parameters": int, "loss": float, "epoch": int, "valid": float,
          **dict.fromkeys(MEASURES, float)}  # fmt: skip


class Task(NamedTuple):
    """Words and their numbers."""

    words: Inflections
    source: Vocabulary
    target: Vocabulary

    def encoded(self, pairs: Pairs) -> EncodedPairs:
        return encode_pairs(pairs, self.source, self.target)


def load_task(args: argparse.Namespace) -> Task:
    """Reads the words that the options name.

    Raises:
        UserError: a file cannot be read.
    """
    try:
        if args.data is None:
            words = inflections(args.language)
        else:
            words = Inflections(args.data[0], *map(read_inflections, args.data))
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    if args.words is not None:
        parts = (part[: args.words] for part in vars(words.train).values())
        words = words._replace(train=Pairs(*parts))
    sides = words.train.source, words.train.target
    return Task(words, *map(Vocabulary.build, sides))


def build(task: Task, name: str, settings: Settings) -> EncoderDecoder[Any]:
    """An untrained model, one of `MODELS`."""
    embedding, state, dropout = settings.embedding, settings.state, settings.dropout
    encoder = RecurrentEncoder(embedding, state // 2, "lstm", bidirectional=True)
    sizes: dict[str, Any] = {
        "source_size": len(task.source), "target_size": len(task.target), "dropout": dropout,
    }  # fmt: skip
    if name in ("exact", "monotonic"):
        return ExactHardSeq2Seq(encoder, monotonic=name == "monotonic", **sizes)
    attention: Any = "general"
    if name == "reinforce":
        attention = HardAttention("general", query_size=state)
    decoder = luong(
        embedding, state, state, cell="lstm", attention=attention, input_feeding=False,
        dropout=dropout,
    )  # fmt: skip
    return Seq2Seq(encoder, decoder, **sizes)


def train(
    task: Task,
    name: str,
    settings: Settings,
    seed: int,
    progress: Callable[[float], object] = lambda loss: None,
) -> tuple[dict[str, Any], EncoderDecoder[Any]]:
    """Trains one of `MODELS` from one seed; measures what it was in its best epoch."""
    seed_everything(seed)
    model, pairs = build(task, name, settings), task.encoded(task.words.train)
    choices = HardAttentionLoss(entropy_weight=0.01)

    def batches(epoch: int) -> Any:
        return bucketed(pairs, batch_size=settings.batch_size, seed=seed, epoch=epoch)

    def loss(batch: Any) -> tuple[Tensor, int]:
        inputs, truth = batch.target[:, :-1], batch.target[:, 1:]
        told = model(batch.source, inputs, source_lengths=batch.source_lengths)
        each = cross_entropy(told.logits.mT, truth, ignore_index=PAD, reduction="none")
        real = truth != PAD
        error = each.sum() / real.sum()
        if told.log_prob is not None and told.entropy is not None:
            # The reward of a choice is how well the token was predicted that it was made for
            error = error + choices(
                -each[real], told.log_prob[:, 0][real], told.entropy[:, 0][real]
            )
        return error, batch.num_predictions

    trainer = Trainer(
        model,
        torch.optim.Adam(model.parameters(), lr=settings.lr),
        batches,
        loss,
        epochs=settings.epochs,
        patience=settings.patience,
        clip=5.0,
    )
    # Of epochs with as many words right, that with fewer letters to mend: who learns slowly has no
    # word right for long, and shall not be stopped for it
    best, mean = (-1.0, 0.0), 0.0
    while not trainer.done:
        mean = trainer.train_epoch()
        said = write(task, model, task.words.valid)
        valid = share_right(said, task.words.valid), -letters_to_mend(said, task.words.valid)
        trainer.end_epoch({"valid": valid[0], "epoch": trainer.epoch + 1.0}, valid > best)
        best = max(best, valid)
        progress(mean)
    for _ in range(settings.epochs - trainer.epoch):
        progress(mean)  # of the epochs that were not needed
    model = trainer.best_model()
    said = write(task, model, task.words.test)
    return {
        "seed": seed,
        "parameters": parameters(model),
        "loss": mean,
        "epoch": int(trainer.best["epoch"]),
        "valid": best[0],
        "accuracy": share_right(said, task.words.test),
        "distance": letters_to_mend(said, task.words.test),
        "seconds": trainer.seconds,
    }, model


def write(task: Task, model: EncoderDecoder[Any], pairs: Pairs) -> list[list[str]]:
    """What the model makes of each source, greedily."""
    batches = in_order(task.encoded(pairs), batch_size=200, by_length=True)
    found: list[list[str]] = []
    for batch in batches:
        longest = 2 * batch.source.shape[1] + 10
        best = generate(model, batch.source, batch.source_lengths, max_length=longest)
        found += [task.target.decode(one[0].tokens) for one in best]
    return batches.restore(found)


def share_right(said: Sequence[list[str]], pairs: Pairs) -> float:
    """The share of words without a mistake."""
    return sum(map(list.__eq__, said, pairs.target)) / max(len(said), 1)


def letters_to_mend(said: Sequence[list[str]], pairs: Pairs) -> float:
    """The mean distance to the right forms."""
    return sum(map(distance, said, pairs.target)) / max(len(said), 1)


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """How many letters must be put in, taken out or changed (Levenshtein, 1965).

    >>> distance("went", "goed"), distance("", "abc"), distance("same", "same")
    (4, 3, 0)
    """
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        last, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (a != b))
    return row[-1]


def run(args: argparse.Namespace) -> int:
    """Trains the models from all seeds; writes what there is at the end, or when interrupted."""
    settings = pick(args, Settings)
    if settings.state % 2:
        raise UserError(
            f"--state {settings.state} is odd: each direction of the encoder has half of it;"
            f" choose --state {settings.state + 1}"
        )
    task, folder = load_task(args), Path(args.out)
    prepare_folder(folder)
    words = task.words
    print(
        f"{words.name}: {len(words.train):,} words to train on, {len(words.valid):,} to validate,"
        f" {len(words.test):,} to test on"
    )

    def metrics(found: Results) -> dict[str, Any]:
        means = {name: summary(of, MEASURES) for name, of in found.items()}
        return {"settings": settings._asdict(), "models": found, "summary": means}

    found = run_all(
        args,
        dict.fromkeys(args.models, settings.epochs),
        lambda name, seed, step: train(task, name, settings, seed, step),
        RESULT,
        metrics,
        data=" ".join((words.name, task.source.fingerprint, task.target.fingerprint)),
        build=lambda name: build(task, name, settings),
    )
    print(f"\n{table(task, found.results)}\n")
    if found.models:
        figure = Figure(layout="constrained")
        draw(figure, task, found.models)
        save_figure(folder / "alignments.png", figure)
    print(f"metrics.json and alignments.png are in {folder}")
    return 0 if found.complete else 130


def table(task: Task, results: Results) -> str:
    """Right words in %, beside the one that is there without any learning."""
    rows = [["", "right words in %", "letters to mend", "parameters", "seconds"]]
    copied = [[c for c in source if len(c) == 1] for source in task.words.test.source]
    far = letters_to_mend(copied, task.words.test)
    rows.append(
        ["the lemma as it is", f"{100 * share_right(copied, task.words.test):.1f}", f"{far:.2f}",
         "", ""]
    )  # fmt: skip
    for name, of_model in results.items():
        if of_model:
            rows.append([
                MODELS[name],
                percent([one["accuracy"] for one in of_model]),
                spread([one["distance"] for one in of_model], 2),
                f"{of_model[0]['parameters']:,}",
                spread([one["seconds"] for one in of_model], 0),
            ])  # fmt: skip
    return aligned(rows)


@torch.no_grad()
def draw(figure: Figure, task: Task, models: dict[str, EncoderDecoder[Any]]) -> None:
    """Where each letter of one test word comes from, of each model."""
    source, target = task.words.test.source, task.words.test.target
    lengths = [len(a) + len(b) for a, b in zip(source, target, strict=True)]
    place = sorted(range(len(lengths)), key=lambda i: lengths[i])[len(lengths) // 2]
    numbers = torch.tensor([task.source.encode(source[place], eos=True)])
    figure.set_size_inches(1 + 4.6 * len(models), 5)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for panel, (name, model) in zip(panels, models.items(), strict=True):
        (best,), *_ = generate(model, numbers, max_length=60, return_attention=True)
        assert best.weights is not None
        said = [*task.target.decode(best.tokens), *(["end"] if best.finished else [])]
        keys = [*source[place], "end"]
        heatmap(best.weights[0], keys, said, vmax=1.0, ax=panel)
        right = "right" if best.tokens == task.target.encode(target[place]) else "wrong"
        title = f"{MODELS[name]}\n{''.join(said[:-1])} ({right})"
        writer = Writer([title])  # in the script of the language
        panel.set_title(writer.text(title), fontsize=10, **writer.font)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    return exit_status(lambda: run(parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
