"""What `examples.captioning` trains: strips of handwritten digits, and models that spell them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from attn_core import Normalizer, Softmax
from datasets import Vocabulary
from datasets.vocabulary import BOS, EOS, PAD
from sequence_attn import Attention, BahdanauAttention, HardAttention, HardAttentionLoss
from sequence_attn.seq2seq import (
    AttentionDecoder,
    DecoderState,
    Encoded,
    EncoderDecoder,
    Hypothesis,
    Predicted,
)

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = Vocabulary([*sorted(set("".join(NAMES))), " "])
SIDE = 8  # pixels, of the image of a digit
REACH = 5  # pixels across that two convolutions of 3 × 3 see
GREYS = 17  # a pixel is a whole number from 0, paper, to 16, ink


class Digits(NamedTuple):
    """Images of single digits.

    Attributes:
        images: int64 `[N, 8, 8]`, 0 (paper) to 16 (ink).
        labels: int64 `[N]`, which digit it is.
    """

    images: Tensor
    labels: Tensor


class Strips(NamedTuple):
    """Digits side by side, and how they are spelt.

    Attributes:
        pixels: int64 `[N, 8 · 8 · digits]`, row by row.
        labels: int64 `[N, digits]`, from left to right.
        target: int64 `[N, T]`: the begin symbol, letters, the end symbol, padding.
    """

    pixels: Tensor
    labels: Tensor
    target: Tensor


def split_digits(seed: int = 0) -> dict[str, Digits]:
    """scikit-learn's 1,797 digits: 1,197 to train, 240 to validate and 360 to test.

    Each part has its share of every digit, and no image is in two parts.
    """
    images, labels = load_digits(return_X_y=True)
    places = np.arange(len(labels))
    parts = {}
    for name, size in (("test", 360), ("valid", 240)):
        places, held_out = train_test_split(
            places, test_size=size, random_state=seed, stratify=labels[places]
        )
        parts[name] = held_out
    pixels = torch.from_numpy(images).long().view(-1, SIDE, SIDE)
    return {
        name: Digits(pixels[torch.from_numpy(part)], torch.from_numpy(labels[part]).long())
        for name, part in {"train": places, **parts}.items()
    }


def spell(labels: Sequence[int]) -> str:
    """The names of digits, with spaces between them.

    >>> spell([4, 7])
    'four seven'
    """
    return " ".join(NAMES[label] for label in labels)


def longest(width: int) -> int:
    """Letters of the longest spelling of so many digits, spaces included."""
    return max(map(len, NAMES)) * width + width - 1


def strips(digits: Digits, width: int, rounds: int, generator: torch.Generator) -> Strips:
    """Puts digits side by side at random; each occurs once in every place of every round.

    Args:
        digits: to choose from.
        width: digits in a strip.
        rounds: how often.
        generator: of the order.
    """
    count = len(digits.labels)
    order = torch.stack(
        [
            torch.cat([torch.randperm(count, generator=generator) for _ in range(rounds)])
            for _ in range(width)
        ],
        1,
    )
    return together(digits, order)


def together(digits: Digits, order: Tensor) -> Strips:
    """Puts images side by side as `order` `[N, width]` says, which counts them from 0."""
    labels = digits.labels[order]
    spelt = [LETTERS.encode(spell(row), bos=True, eos=True) for row in labels.tolist()]
    return Strips(
        digits.images[order].transpose(1, 2).flatten(1),  # from [N, width, rows, columns]
        labels,
        pad_sequence([torch.tensor(row) for row in spelt], batch_first=True, padding_value=PAD),
    )


class TeachableAttention(HardAttention):
    """Hard attention that can be told to read a mean of all places, weighted by their chances.

    Attributes:
        softly: do so, in training. Default False.
    """

    softly = False

    @property
    def normalizer(self) -> Normalizer:
        return Softmax() if self.softly and self.training else super().normalizer


class Speller(EncoderDecoder[DecoderState]):
    """Reads an image and spells what it shows: an attention decoder over the pixels of a strip.

    Two 3×3 convolutions describe each pixel and the 5×5 pixels around it, `a_i`; a learned vector
    for its row and one for its column are added, and that is what is attended to. Before each
    letter the decoder reads with its state, and its cell takes in the letter before and what was
    read. (Xu et al., "Show, Attend and Tell", 2015.)

    Args:
        width: digits in a strip.
        read: "soft": a mean of all places, by Bahdanau's score; "reinforce" or "gumbel": one place
            at a time; "none": no attention, the mean of all `a_i` at every step.
        size: the width of `a_i`. Default 32.
        state_size: of the decoder's cell. Default 64.
        attention_size: of the hidden layer of the score. Default 16.
        glance: start from `tanh(W mean(a_i))`, as the paper does. Default False: what the decoder
            knows of the image it has attended to. Without attention it always does.
        temperature: of "gumbel". Default 1.

    Raises:
        ValueError: an unknown way to read.
    """

    def __init__(
        self,
        width: int,
        read: str,
        size: int = 32,
        state_size: int = 64,
        attention_size: int = 16,
        *,
        glance: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(GREYS, len(LETTERS), PAD, BOS, EOS)
        attention: Attention | None
        match read:
            case "soft":
                attention = BahdanauAttention(state_size, size, attention_size)
            case "reinforce" | "gumbel":
                attention = TeachableAttention(
                    estimator=read,
                    temperature=temperature,
                    query_size=state_size,
                    key_size=size,
                    attention_size=attention_size,
                )
            case "none":
                attention = None
            case _:
                raise ValueError(
                    f"read is {read!r}; expected 'soft', 'reinforce', 'gumbel', 'none'"
                )
        self.width, self.read = width, read
        self.look = nn.Sequential(
            nn.Conv2d(1, size, 3, padding=1), nn.ReLU(),
            nn.Conv2d(size, size, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.row = nn.Parameter(0.1 * torch.randn(SIDE, 1, size))
        self.column = nn.Parameter(0.1 * torch.randn(1, SIDE * width, size))
        self.embedding = nn.Embedding(len(LETTERS), size)
        self.decoder = AttentionDecoder(
            attention,
            input_size=size,
            state_size=state_size,
            memory_size=size,
            attend="before",
            inputs="both",
            readout="join",
            initial="bridge" if glance or attention is None else "learned",
        )
        self.output = nn.Linear(self.decoder.output_size, len(LETTERS))

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Encoded:
        grey = source.unflatten(1, (1, SIDE, SIDE * self.width)) / (GREYS - 1)
        seen = self.look(grey).permute(0, 2, 3, 1) + self.row + self.column  # [B, rows, columns, D]
        places = seen.flatten(1, 2)
        return Encoded(places, source_lengths, (places.mean(1)[None, None],))

    def start(self, encoded: Encoded) -> DecoderState:
        return self.decoder.start(encoded)

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        output, state, _ = self.decoder.step(self.embedding(token), state)
        return self.output(output), state

    def decode(self, target: Tensor, encoded: Encoded, *, need_weights: bool = False) -> Predicted:
        decoded = self.decoder(self.embedding(target), encoded, need_weights=need_weights)
        logits = self.output(decoded.output)
        return Predicted(logits, decoded.weights, decoded.log_prob, decoded.entropy)


class Training(NamedTuple):
    """How a model is trained.

    Attributes:
        epochs: in each, every training image is seen `rounds` times in every place of a strip.
        rounds: see there.
        batch_size: strips in a batch.
        lr: the highest learning rate of Adam, reached after a tenth of the steps.
        coverage: λ of the doubly stochastic regulariser of soft attention, `λ Σ_i (1 - Σ_t α_ti)²`
            (Xu et al., 2015), which asks it to look everywhere in the course of a strip.
        entropy: λ_H of `HardAttentionLoss`, for "reinforce".
        reward: λ_r of it.
        discount: γ, how much of the next letter's reward counts for the choice before.
        softly: the part of the training that "reinforce" begins with soft attention. From places
            drawn at random a decoder hardly learns to read, and REINFORCE then has nothing to go
            by. (For the same reason the paper reads half of the images softly, throughout.)
    """

    epochs: int
    rounds: int
    batch_size: int
    lr: float
    coverage: float
    entropy: float
    reward: float
    discount: float
    softly: float


def train(
    parts: dict[str, Digits],
    model: Speller,
    training: Training,
    seed: int,
    progress: Callable[[float], object] = lambda loss: None,
) -> dict[str, Any]:
    """Trains a model.

    Args:
        parts: "train" and "valid".
        model: is changed.
        training: how.
        seed: of the strips, and of what hard attention draws.
        progress: called after each epoch with the mean cross-entropy of a letter.

    Returns:
        parameters, seconds, and lists over the epochs: loss (of a letter), valid_exact_match.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    valid = strips(parts["valid"], model.width, 1, torch.Generator().manual_seed(0))
    stochastic = reinforce_losses(model, training)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.lr)
    per_epoch = -(-len(parts["train"].labels) * training.rounds // training.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.lr, total_steps=max(2, training.epochs * per_epoch), pct_start=0.1
    )
    seconds, losses, scores = 0.0, [], []
    for nth in range(training.epochs):
        softly = model.read == "reinforce" and nth < training.softly * training.epochs
        started, total, letters = time.perf_counter(), 0.0, 0
        model.train()
        epoch = strips(parts["train"], model.width, training.rounds, generator)
        for pixels, target in zip(
            epoch.pixels.split(training.batch_size),
            epoch.target.split(training.batch_size),
            strict=True,
        ):
            target = target[:, : int((target != PAD).sum(1).max())]
            loss, error, count = losses_of(model, pixels, target, training, stochastic, softly)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total, letters = total + error, letters + count
        seconds += time.perf_counter() - started
        losses.append(total / letters)
        scores.append(exact_match(write(model, valid), valid))
        progress(losses[-1])
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": seconds,
        "loss": losses,
        "valid_exact_match": scores,
    }


def reinforce_losses(model: Speller, training: Training) -> nn.ModuleList:
    """A `HardAttentionLoss` for each step."""
    options = {"entropy_weight": training.entropy, "reward_weight": training.reward}
    return nn.ModuleList([HardAttentionLoss(**options) for _ in range(longest(model.width) + 1)])


def losses_of(
    model: Speller,
    pixels: Tensor,
    target: Tensor,
    training: Training,
    stochastic: nn.ModuleList,
    softly: bool = False,
) -> tuple[Tensor, float, int]:
    """The loss of a batch; the sum of its letters' cross-entropies, and how many there are.

    A choice of where to look has for its reward the log-probability of the letter that it was made
    for and, discounted, of those behind it: what came before does not depend on it. `stochastic`
    has a loss for each step, so that each has a baseline of its own; the first letter of a name is
    harder to guess than the last. With `softly`, hard attention reads softly.
    """
    coverage = training.coverage > 0 and model.read == "soft"
    (attention,) = model.decoder.reads or (None,)
    if isinstance(attention, TeachableAttention):
        attention.softly = softly
    predicted = model(pixels, target[:, :-1], need_weights=coverage)
    truth = target[:, 1:]
    real = truth != PAD
    errors = cross_entropy(predicted.logits.transpose(1, 2), truth, reduction="none") * real
    count = int(real.sum())
    loss = errors.sum() / count
    if coverage:
        assert predicted.weights is not None
        looked = (predicted.weights[:, 0] * real.unsqueeze(-1)).sum(1)  # [B, places]
        loss = loss + training.coverage * (1 - looked).square().sum() / count
    if model.read == "reinforce" and not softly:
        assert predicted.log_prob is not None and predicted.entropy is not None
        choices = predicted.log_prob[:, 0], predicted.entropy[:, 0]
        rewards = discounted(-errors.detach(), training.discount)
        for step, of_step in enumerate(stochastic[: truth.shape[1]]):
            there = real[:, step]
            if not there.any():
                break
            chosen = of_step(*(x[there, step] for x in (rewards, *choices)))
            loss = loss + chosen * there.sum() / count
    return loss, float(errors.detach().sum()), count


def discounted(reward: Tensor, discount: float) -> Tensor:
    """What followed each step: `R_t = r_t + γ R_{t+1}`, of rewards `[B, T]`.

    >>> discounted(torch.tensor([[1.0, 0.0, 2.0]]), 0.5)
    tensor([[1.5000, 1.0000, 2.0000]])
    """
    total = torch.zeros_like(reward)
    for step in reversed(range(reward.shape[1])):
        later = total[:, step + 1] if step + 1 < reward.shape[1] else 0
        total[:, step] = reward[:, step] + discount * later
    return total


def write(model: Speller, images: Strips, *, need_weights: bool = False) -> list[Hypothesis]:
    """What the model spells: greedily, and with the best place where attention is hard."""
    found = []
    for pixels in images.pixels.split(256):
        found += model.generate(
            pixels, max_length=longest(model.width), return_attention=need_weights
        )
    return [best for best, *_ in found]


def text(hypothesis: Hypothesis) -> str:
    """The letters."""
    return "".join(LETTERS.decode(hypothesis.tokens))


def exact_match(found: Sequence[Hypothesis], images: Strips) -> float:
    """The share of strips that are spelt without a mistake."""
    rows = zip(found, images.labels.tolist(), strict=True)
    return sum(text(one) == spell(labels) for one, labels in rows) / len(found)


def measure(model: Speller, images: Strips) -> dict[str, float | None]:
    """How well a model spells, and how it looks.

    Returns:
        "exact_match": the share of strips without a mistake; "places": at how many pixels a letter
        looks, exp of the entropy of its weights; "on_its_digit": the share of a letter's weight on
        the digit that it belongs to, in strips that are spelt right. The last two are means over
        letters, None without attention; spaces and end symbols do not count.
    """
    found = write(model, images, need_weights=True)
    places, on_its_digit = [], []
    for one, labels in zip(found, images.labels.tolist(), strict=True):
        if one.weights is None:
            continue
        weights = one.weights[0].unflatten(-1, (SIDE, model.width, SIDE))  # [T, 8, width, 8]
        written = text(one)
        letters = torch.tensor([letter != " " for letter in written], dtype=torch.bool)
        weights = weights[: len(written)][letters]
        entropy = -torch.special.xlogy(weights, weights).flatten(1).sum(1)
        places += entropy.exp().tolist()
        if written == spell(labels):
            digit = torch.tensor([i for i, label in enumerate(labels) for _ in NAMES[label]])
            of_digits = weights.sum((1, 3))  # [letters, width]
            on_its_digit += of_digits.gather(1, digit[:, None]).flatten().tolist()
    return {
        "exact_match": exact_match(found, images),
        "places": sum(places) / len(places) if places else None,
        "on_its_digit": sum(on_its_digit) / len(on_its_digit) if on_its_digit else None,
    }


def classify(parts: dict[str, Digits], images: Strips) -> float:
    """The share of strips of which a support vector machine, given the digits, knows them all."""
    machine = SVC(C=10, gamma="scale")
    machine.fit(parts["train"].images.flatten(1).numpy(), parts["train"].labels.numpy())
    width = images.labels.shape[1]
    single = images.pixels.unflatten(1, (SIDE, width, SIDE)).transpose(1, 2).flatten(2)
    said = machine.predict(single.flatten(0, 1).numpy()).reshape(-1, width)
    return float((said == images.labels.numpy()).all(1).mean())
