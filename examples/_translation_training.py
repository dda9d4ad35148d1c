"""Training a translation model: batches, validation, and states to go on from, bit for bit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sacrebleu import corpus_bleu
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datasets import (
    Batches,
    EncodedPairs,
    Pairs,
    PairSplits,
    Vocabulary,
    bucketed,
    encode_pairs,
    in_order,
)
from datasets.vocabulary import EOS, PAD
from examples._files import UserError
from examples._translation_models import (
    Architecture,
    Model,
    hidden_outputs,
    load_weights,
    own_weights,
)
from sequence_attn.seq2seq import generate, sampled_softmax_loss

SCHEDULES = ("constant", "inverse-sqrt", "cosine")


@dataclass(frozen=True)
class Corpus:
    """Sentence pairs, as text and as numbers.

    Args:
        splits: the pairs.
        source, target: the vocabularies, of the training sentences.
    """

    splits: PairSplits
    source: Vocabulary
    target: Vocabulary

    def encoded(self, split: str) -> EncodedPairs:
        """The pairs of "train", "valid" or "test" as numbers."""
        return encode_pairs(getattr(self.splits, split), self.source, self.target)


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Args:
        epochs: the most epochs to train for.
        patience: stop after this many epochs without a new best on the validation pairs.
        batch_tokens: the padded size of a batch at most.
        lr: the highest learning rate, of Adam with β = (0.9, 0.98).
        schedule: behind the warm-up the rate stays "constant", falls with the "inverse-sqrt" of
            the steps, or as a "cosine" to zero at the end of the last epoch.
        warmup: steps in which the rate rises from zero.
        clip: the largest norm of the gradient.
        label_smoothing: the share of the target's probability that is spread over all tokens.
        sampled_softmax: how many classes each step draws in place of the whole vocabulary; 0 for
            the whole.
        teacher_forcing: how likely a step gets the true token before rather than the model's guess.
        average: the decay of an exponential average of the weights, which is what is validated and
            kept; 0 for none.
        bfloat16: compute matrix products in bfloat16 (weights and their updates stay float32).
    """

    epochs: int
    patience: int
    batch_tokens: int
    lr: float
    schedule: str
    warmup: int
    clip: float
    label_smoothing: float
    sampled_softmax: int
    teacher_forcing: float
    average: float
    bfloat16: bool


class Run:
    """One training, batch by batch.

    Between two calls of its methods it is consistent, and `state` has all that the rest depends on:
    random numbers, the optimiser, and the place within the epoch.

    Args:
        corpus: what to learn from.
        architecture: what to train.
        settings: how.
        seed: of the initial weights, of dropout and of the order of the batches.
        device: to train on.
        state: what `state()` gave of such a run, to go on from there.
    """

    def __init__(
        self,
        corpus: Corpus,
        architecture: Architecture,
        settings: Settings,
        seed: int,
        device: str = "cpu",
        state: dict[str, Any] | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.corpus, self.architecture, self.settings = corpus, architecture, settings
        self.seed, self.device = seed, torch.device(device)
        self.model = architecture.build().to(device)
        self.averaged: AveragedModel | None = None
        if settings.average:
            average = get_ema_multi_avg_fn(settings.average)
            self.averaged = AveragedModel(self.model, multi_avg_fn=average)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=settings.lr, betas=(0.9, 0.98), fused=True
        )
        self.epoch = self.batch = self.steps = self.waited = 0
        self.seconds = 0.0  # spent in training, without validation
        self.tokens = 0  # target tokens that were predicted in training
        self.loss_sum, self.loss_tokens = 0.0, 0  # of the epoch under way
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self._train, self._valid = corpus.encoded("train"), corpus.encoded("valid")
        self._planned: tuple[int, Batches] | None = None
        if state is not None:
            self._load(state)

    @property
    def batches(self) -> Batches:
        """Those of the epoch under way; the same every time."""
        if self._planned is None or self._planned[0] != self.epoch:
            tokens = self.settings.batch_tokens
            plan = bucketed(self._train, tokens=tokens, seed=self.seed, epoch=self.epoch)
            self._planned = self.epoch, plan
        return self._planned[1]

    @property
    def done(self) -> bool:
        return self.epoch >= self.settings.epochs or self.waited >= self.settings.patience

    @property
    def epoch_is_over(self) -> bool:
        """Whether all of its batches have been trained on, so that `end_epoch` comes next."""
        return self.batch >= len(self.batches)

    @property
    def result(self) -> Model:
        """The model whose weights are validated: the average, or the model itself."""
        averaged: Any = self.averaged
        model: Model = self.model if averaged is None else averaged.module
        return model

    def rate(self) -> float:
        """The learning rate of the next step."""
        settings = self.settings
        lr = settings.lr * min(1.0, (self.steps + 1) / max(1, settings.warmup))
        match settings.schedule:
            case "inverse-sqrt":
                return lr * min(1.0, math.sqrt(max(1, settings.warmup) / (self.steps + 1)))
            case "cosine":
                share = (self.epoch + self.batch / len(self.batches)) / settings.epochs
                return lr * 0.5 * (1 + math.cos(math.pi * share))
        return lr

    def train_batch(self) -> float:
        """Trains on the next batch; returns its loss per token."""
        started = time.perf_counter()
        batch = self.batches[self.batch].to(self.device)
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bfloat16):
            loss = self._loss(batch.source, batch.source_lengths, batch.target)
        self.optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(self.model.parameters(), self.settings.clip)
        value = loss.item()
        if not math.isfinite(value) or not math.isfinite(norm):
            raise UserError(
                f"the loss became {value} (gradient {norm.item()}) in epoch {self.epoch + 1}: lower"
                " --lr, or lengthen --warmup"
            )
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        count = batch.num_predictions
        self.loss_sum, self.loss_tokens = self.loss_sum + value * count, self.loss_tokens + count
        self.batch, self.steps, self.tokens = self.batch + 1, self.steps + 1, self.tokens + count
        self.seconds += time.perf_counter() - started
        return value

    def _loss(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        settings, inputs, truth = self.settings, target[:, :-1], target[:, 1:]
        if settings.sampled_softmax:
            hidden = hidden_outputs(self.model, source, lengths, inputs)
            output: Any = self.model.output
            return sampled_softmax_loss(
                hidden, output.weight, output.bias, truth,
                samples=min(settings.sampled_softmax, len(output.weight)), ignore_index=PAD,
            )  # fmt: skip
        logits = self.model(
            source, inputs, source_lengths=lengths, teacher_forcing=settings.teacher_forcing
        ).logits
        return cross_entropy(
            logits.flatten(0, 1).float(), truth.flatten(), ignore_index=PAD,
            label_smoothing=settings.label_smoothing,
        )  # fmt: skip

    def validate(self) -> dict[str, float]:
        """The scores of the epoch that is over; changes nothing."""
        corpus, model = self.corpus, self.result
        found = translate(model, self._valid, corpus.target, self.architecture, self.device)
        measured = quality([one.tokens for one in found], corpus.splits.valid, corpus)
        measured["perplexity"] = perplexity(model, self._valid, self.device)
        return {
            "epoch": self.epoch + 1,
            "train_loss": self.loss_sum / max(1, self.loss_tokens),
            "seconds": self.seconds,
            **{f"valid_{name}": value for name, value in measured.items()},
        }

    def end_epoch(self, scores: dict[str, float]) -> None:
        """Keeps the weights if the scores are the best so far, and turns to the next epoch."""
        better = not self.best or merit(scores) > merit(self.best)
        if better:
            self.best = {**scores, "weights": own_weights(self.result)}
        self.waited = 0 if better else self.waited + 1
        self.history.append(scores)
        self.epoch, self.batch, self.loss_sum, self.loss_tokens = self.epoch + 1, 0, 0.0, 0

    _PLAIN = (
        *("seed", "epoch", "batch", "steps", "waited", "seconds", "tokens"),
        *("loss_sum", "loss_tokens", "history", "best"),
    )

    def state(self) -> dict[str, Any]:
        """Everything that the rest of this run depends on."""
        cuda = self.device.type == "cuda"
        return {
            **{name: copy.copy(getattr(self, name)) for name in self._PLAIN},
            "model": own_weights(self.model),
            "averaged": None if self.averaged is None else own_weights(self.averaged),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if cuda else None,
        }

    def _load(self, state: dict[str, Any]) -> None:
        try:
            for name in self._PLAIN:
                setattr(self, name, state[name])
            load_weights(self.model, state["model"])
            if self.averaged is not None:
                load_weights(self.averaged, state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"])
            if state["cuda_random"] is not None:
                torch.cuda.set_rng_state(state["cuda_random"], self.device)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the checkpoint is of another architecture or damaged ({reason});"
                " start over with --restart"
            ) from error


def merit(scores: dict[str, Any]) -> tuple[float, float]:
    """What makes one epoch better than another: the translations, then the perplexity."""
    quality = scores["valid_bleu"] if "valid_bleu" in scores else scores["valid_exact_match"]
    return quality, -scores["valid_perplexity"]


@torch.no_grad()
def perplexity(
    model: Model, pairs: EncodedPairs, device: torch.device | str, tokens: int = 4000
) -> float:
    """`exp` of the mean negative log-likelihood of a target token, the end symbol included."""
    model.eval()
    total, count = 0.0, 0
    for batch in in_order(pairs, tokens=tokens, by_length=True):
        batch = batch.to(device)
        inputs, truth = batch.target[:, :-1], batch.target[:, 1:]
        logits = model(batch.source, inputs, source_lengths=batch.source_lengths).logits
        loss = cross_entropy(
            logits.flatten(0, 1), truth.flatten(), ignore_index=PAD, reduction="sum"
        )
        total, count = total + loss.item(), count + batch.num_predictions
    return math.exp(min(total / max(1, count), 700.0))


@dataclass(frozen=True)
class Found:
    """A translation.

    Args:
        tokens: of the target.
        labels: of what was written, as long as the weights: special symbols too.
        weights: of the attention, see `generate`; None unless asked for, or without attention.
    """

    tokens: list[str]
    labels: list[str]
    weights: Tensor | None


def translate(
    model: Model,
    pairs: EncodedPairs,
    vocabulary: Vocabulary,
    architecture: Architecture,
    device: torch.device | str,
    *,
    beam: int = 1,
    alpha: float = 1.0,
    tokens: int = 2000,
    need_weights: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> list[Found]:
    """The best translation of each source, in the order of the pairs.

    A translation ends at the latest when it has twice as many tokens as the longest source of its
    batch, and ten more.
    """
    found = []
    batches = in_order(pairs, tokens=max(1, tokens // beam), by_length=True)
    limit = architecture.target_limit
    for batch in batches:
        longest = 2 * batch.source.shape[1] + 10
        hypotheses = generate(
            model, batch.source.to(device), batch.source_lengths.to(device), beam=beam, alpha=alpha,
            max_length=longest if limit is None else min(longest, limit - 1),
            return_attention=need_weights,
        )  # fmt: skip
        for best, *_ in hypotheses:
            numbers = [*best.tokens, EOS] if best.finished else best.tokens
            labels = [vocabulary.tokens[number] for number in numbers]
            found.append(Found(vocabulary.decode(best.tokens), labels, best.weights))
        progress(len(batch))
    return batches.restore(found)


def quality(
    found: Sequence[Sequence[str]], pairs: Pairs, corpus: Corpus, *, full: bool = False
) -> dict[str, float]:
    """How good translations are: exact match, and for words the corpus BLEU of the tokens.

    "exact_match" is the share of translations that equal the reference token by token. "bleu" is
    that of sacreBLEU on the tokens joined by spaces, with tokenize="none" (Papineni et al., 2002).
    With `full` there is "sacrebleu" as well: sacreBLEU as it is by default (tokenize="13a") on the
    detokenised translations and the references as they were written, both lower-cased if the
    tokens are.
    """
    same = [list(a) == b for a, b in zip(found, pairs.target, strict=True)]
    scores = {"exact_match": sum(same) / max(1, len(same))}
    tokenizer = corpus.splits.target_tokenizer
    if tokenizer.unit == "characters":
        return scores
    spaced = [" ".join(tokens) for tokens in found]
    references = [" ".join(tokens) for tokens in pairs.target]
    # force: that the text is tokenised is known, and meant
    scores["bleu"] = corpus_bleu(spaced, [references], tokenize="none", force=True).score
    if full:
        texts = [tokenizer.detokenize(tokens) for tokens in found]
        written = [pairs.target_text]
        scores["sacrebleu"] = corpus_bleu(texts, written, lowercase=tokenizer.lower).score
    return scores
