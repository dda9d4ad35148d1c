"""What `examples.long_sentences` trains: sequences by length, models, and how they are measured."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from string import ascii_lowercase
from typing import Any, NamedTuple

import sacrebleu
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from datasets import EncodedPairs, Pairs, Vocabulary, bucketed, encode_pairs, in_order
from datasets.parallel_text import parallel_text
from datasets.tokens import Unit
from datasets.vocabulary import PAD
from sequence_attn.seq2seq import RecurrentEncoder, Seq2Seq, bahdanau, generate, luong, plain

ALPHABET = ascii_lowercase
TASKS: dict[str, Callable[[list[str]], list[str]]] = {
    "copy": list,
    "reverse": lambda letters: letters[::-1],
    "sort": sorted,
}
MODELS = {
    "rnn": "no attention: the last state starts the decoder",
    "context": "no attention: the last state enters every step",
    "bahdanau": "attention, Bahdanau et al.",
    "luong": "attention, Luong et al.",
}
WITHOUT_ATTENTION = ("rnn", "context")


class Task(NamedTuple):
    """Sequences to learn from, and longer ones to test on.

    Attributes:
        name: of what is learned.
        length: L, the tokens of the longest source to train on.
        train: pairs of 1 to L source tokens.
        test: pairs of 1 to 2 · L source tokens, none of which is trained on.
        source, target: the vocabularies.
        unit: of the target, "words" or "characters".
    """

    name: str
    length: int
    train: Pairs
    test: Pairs
    source: Vocabulary
    target: Vocabulary
    unit: Unit

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """First and last length of each bucket: up to four for L tokens, up to four beyond."""
        step = -(-self.length // 4)
        return [
            (low, min(low + step - 1, end))
            for end in (self.length, 2 * self.length)
            for low in range(end - self.length + 1, end + 1, step)
        ]

    @property
    def measures(self) -> tuple[str, ...]:
        """The first is drawn; translations have many right answers, so exact match says little."""
        if self.unit == "words":
            return ("bleu", "exact_match")
        return ("exact_match", "token_accuracy")

    def encoded(self, pairs: Pairs) -> EncodedPairs:
        """Pairs as numbers."""
        return encode_pairs(pairs, self.source, self.target)


def letters_task(kind: str, length: int, sentences: int, per_bucket: int) -> Task:
    """Random letters and what becomes of them: the same, the reverse, or the sorted letters.

    Args:
        kind: one of `TASKS`.
        length: L.
        sentences: to train on; their lengths are spread evenly over 1 to L.
        per_bucket: sequences to test on in each bucket of lengths.
    """
    vocabulary = Vocabulary(ALPHABET)
    nothing = Pairs([], [], [], [])
    task = Task(kind, length, nothing, nothing, vocabulary, vocabulary, "characters")

    def pairs(lengths: Sequence[int], seed: int, known: set[str]) -> Pairs:
        rng = random.Random(seed)
        rows = [rng.choices(ALPHABET, k=n) for n in lengths]
        rows = [row for row in rows if "".join(row) not in known]
        made = [TASKS[kind](row) for row in rows]
        return Pairs(rows, made, ["".join(row) for row in rows], ["".join(row) for row in made])

    train = pairs([1 + i % length for i in range(sentences)], 0, set())
    # The shortest sequences are so few that most of them are trained on
    lengths = [low + i % (high + 1 - low) for low, high in task.buckets for i in range(per_bucket)]
    return task._replace(train=train, test=pairs(lengths, 1, set(train.source_text)))


def text_task(
    source: str, target: str, length: int, unit: Unit, lower: bool, min_count: int
) -> Task:
    """Sentence pairs of two files: the held-out ones, and all that are too long, are tested on.

    Raises:
        ValueError: the files cannot be read, or have too few pairs of these lengths.
    """
    splits = parallel_text(source, target, unit=unit, lower=lower)

    def chosen(low: int, high: int, *parts: Pairs) -> Pairs:
        fields = ("source", "target", "source_text", "target_text")
        rows = [
            tuple(getattr(part, name)[i] for name in fields)
            for part in parts
            for i in range(len(part))
            if low <= len(part.source[i]) <= high
        ]
        return Pairs(*map(list, zip(*rows, strict=True))) if rows else Pairs([], [], [], [])

    train = chosen(1, length, splits.train)
    held_out = chosen(1, 2 * length, splits.valid, splits.test)
    longer = chosen(length + 1, 2 * length, splits.train)
    if not len(train) or not len(longer):
        raise ValueError(
            f"{source} has {len(train)} training sentences of up to {length} tokens and"
            f" {len(longer)} of {length + 1} to {2 * length}: choose another --length"
        )
    both = (getattr(held_out, name) + getattr(longer, name) for name in vars(held_out))
    source_words, target_words = (
        Vocabulary.build(side, min_count=min_count) for side in (train.source, train.target)
    )
    return Task(splits.name, length, train, Pairs(*both), source_words, target_words, unit)


class Widths(NamedTuple):
    """How large the models are.

    Attributes:
        embedding: the width of an embedded token.
        state: of a decoder with attention; each direction of its encoder has half of it.
        dropout: of embeddings and outputs.
    """

    embedding: int
    state: int
    dropout: float


def build(task: Task, name: str, widths: Widths) -> Seq2Seq:
    """An untrained model, one of `MODELS`; all have a bidirectional GRU for an encoder."""
    embedding, state, dropout = widths
    encoder = RecurrentEncoder(embedding, state // 2, bidirectional=True)
    match name:
        case "bahdanau":
            decoder = bahdanau(embedding, state, state // 2, dropout=dropout)
        case "luong":
            decoder = luong(embedding, state, state, dropout=dropout)
        case _:
            context = name == "context"
            decoder = plain(embedding, state, state, context=context, dropout=dropout)
    return Seq2Seq(
        encoder,
        decoder,
        source_size=len(task.source),
        target_size=len(task.target),
        dropout=dropout,
    )


def parameters(model: nn.Module) -> int:
    """How many numbers it learns."""
    return sum(parameter.numel() for parameter in model.parameters())


def fair_widths(task: Task, name: str, widths: Widths) -> Widths:
    """Those that give a model without attention at least as many parameters as one with it has."""
    if name not in WITHOUT_ATTENTION:
        return widths
    enough = max(
        parameters(build(task, other, widths)) for other in MODELS if other not in WITHOUT_ATTENTION
    )
    while parameters(build(task, name, widths)) < enough:
        widths = widths._replace(state=widths.state + 2)
    return widths


class Training(NamedTuple):
    """How every model is trained.

    Attributes:
        epochs: how often each pair is seen.
        batch_size: pairs in a batch.
        lr: the highest learning rate of Adam, reached after a tenth of the steps.
    """

    epochs: int
    batch_size: int
    lr: float


def train(
    task: Task,
    name: str,
    widths: Widths,
    training: Training,
    seed: int,
    progress: Callable[[float], object] = lambda loss: None,
) -> dict[str, Any]:
    """Trains a model from one seed, and measures it.

    Args:
        task: what it learns.
        name: which of `MODELS`.
        widths: of the models with attention; see `fair_widths`.
        training: how.
        seed: of the first weights and the order of the pairs.
        progress: called after each epoch with the mean loss of a token.

    Returns:
        seed, state (the width), parameters, seconds of training, loss, and buckets: see `measure`.
    """
    widths = fair_widths(task, name, widths)
    torch.manual_seed(seed)
    model = build(task, name, widths)
    pairs = task.encoded(task.train)
    started, loss = time.perf_counter(), float("nan")
    plan = {"batch_size": training.batch_size, "seed": seed}
    steps = training.epochs * len(bucketed(pairs, epoch=0, **plan))
    optimizer = torch.optim.Adam(model.parameters(), lr=training.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.lr, total_steps=max(steps, 2), pct_start=0.1
    )
    for epoch in range(training.epochs):
        total, tokens = 0.0, 0
        model.train()
        for batch in bucketed(pairs, epoch=epoch, **plan):
            logits = model(
                batch.source, batch.target[:, :-1], source_lengths=batch.source_lengths
            ).logits
            truth = batch.target[:, 1:]
            error = cross_entropy(logits.flatten(0, 1), truth.flatten(), ignore_index=PAD)
            optimizer.zero_grad()
            error.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            count = batch.num_predictions
            total, tokens = total + error.item() * count, tokens + count
        loss = total / tokens
        progress(loss)
    return {
        "seed": seed,
        "state": widths.state,
        "parameters": parameters(model),
        "seconds": time.perf_counter() - started,
        "loss": loss,
        "buckets": measure(task, model),
    }


def measure(task: Task, model: Seq2Seq) -> list[dict[str, Any]]:
    """How good the model's targets are, found greedily, for each bucket of source lengths.

    Returns:
        For each bucket: low, high, pairs, and unless it is empty "exact_match" (the share of
        targets without a mistake), "token_accuracy" (the share of the true tokens, the end symbol
        included, that stand in their place) and, for words, "bleu" (of the tokens, 0 to 1).
    """
    found: list[list[str]] = []
    batches = in_order(task.encoded(task.test), batch_size=128, by_length=True)
    for batch in batches:
        longest = 2 * batch.source.shape[1] + 10
        written = generate(model, batch.source, batch.source_lengths, max_length=longest)
        found += [task.target.decode(best.tokens) for best, *_ in written]
    found = batches.restore(found)
    buckets = []
    for low, high in task.buckets:
        places = [i for i, source in enumerate(task.test.source) if low <= len(source) <= high]
        bucket: dict[str, Any] = {"low": low, "high": high, "pairs": len(places)}
        if places:
            said = [found[i] for i in places]
            bucket |= scores(said, [task.test.target[i] for i in places], task.unit)
        buckets.append(bucket)
    return buckets


def scores(said: Sequence[list[str]], true: Sequence[list[str]], unit: Unit) -> dict[str, float]:
    """The measures of some targets; see `measure`.

    >>> scores([["a", "b"], ["a"]], [["a", "b"], ["a", "c"]], "characters")
    {'exact_match': 0.5, 'token_accuracy': 0.6666666666666666}
    """
    right = total = 0
    for one, other in zip(said, true, strict=True):
        ends = [*one, None], [*other, None]  # None: the end symbol
        right += sum(a == b for a, b in zip(*ends, strict=False))
        total += len(ends[1])
    same = sum(one == other for one, other in zip(said, true, strict=True))
    known = {"exact_match": same / len(true), "token_accuracy": right / total}
    if unit == "words":
        spaced = [[" ".join(tokens) for tokens in side] for side in (said, true)]
        bleu = sacrebleu.corpus_bleu(spaced[0], [spaced[1]], tokenize="none", force=True)
        known["bleu"] = bleu.score / 100
    return known
