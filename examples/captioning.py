"""Soft against hard attention: spells handwritten digits, looking at their pixels letter by letter.

    python -m examples.captioning                               # scikit-learn's digits, offline
    python -m examples.captioning --digits 2 --models soft gumbel --runs 3
    python -m examples.captioning --models soft --coverage 0.1  # the doubly stochastic regulariser
    python -m examples.captioning ask 4 7 --model runs/captioning --picture letters.png

An image of one digit is to be spelt ("four"), or a strip of two ("four seven"). Before each letter
the decoder looks at the image: softly, at a mean of all pixels, or hard, at one of them, which it
learns by REINFORCE (after a soft beginning) or by the Gumbel straight-through estimator. This is
"Show, Attend and Tell" (Xu et al., 2015) in small. What a decoder knows of the image comes through
its attention alone, but for the model without attention, which sees the mean of all pixels'
features at every step. The program prints how many images of a held-out set are spelt without a
mistake, and writes to --out the same as metrics.json, the progress of training (curves.png), and
where each letter looked (letters-1.png, letters-2.png), and the models of the first seed.
"""

from __future__ import annotations

from examples.commands.captioning import MODELS, Training, parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from attn_core import Normalizer, Softmax
from datasets import Vocabulary
from datasets.vocabulary import BOS, EOS, PAD
from examples.shared.files import UserError, prepare_folder, save_model, saved_model
from examples.shared.options import pick
from examples.shared.pictures import apart, bare, legend_below, save_figure
from examples.shared.program import exit_status, versions
from examples.shared.runner import Results, run_all
from examples.shared.tables import aligned, percent, summary
from examples.shared.trainer import Trainer, load_weights, one_cycle, own_weights, parameters
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
SHORT = {"soft": "soft", "reinforce": "hard,\nREINFORCE", "gumbel": "hard,\nGumbel"}
COLOURS = {"soft": "#3f90da", "reinforce": "#e76300", "gumbel": "#832db6", "none": "#94a4a2"}
LOOK = "#e76300"
MEASURES = ("exact_match", "places", "on_its_digit")
TEST_ROUNDS = 3  # how often each test image occurs in every place of the strips to test on
EPOCHS = {1: 40, 2: 24}  # a strip has more letters to learn from
# Labels of the images that are drawn: for each, the first test images of these digits
DRAWN: dict[int, list[tuple[int, ...]]] = {1: [(4,), (7,), (2,)], 2: [(4, 7), (3, 6)]}


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


def held_out_strips(digits: Digits, width: int) -> Strips:
    """What is tested on: single images once, strips of several in a fixed random order."""
    rounds = 1 if width == 1 else TEST_ROUNDS
    return strips(digits, width, rounds, torch.Generator().manual_seed(0))


def chosen_strips(digits: Digits, width: int) -> Strips:
    """What is drawn: the first images there are of fixed digits."""
    wanted = DRAWN.get(width, [tuple(range(1, width + 1))])
    first = {label: i for i, label in reversed(list(enumerate(digits.labels.tolist())))}
    return together(digits, torch.tensor([[first[label] for label in row] for row in wanted]))


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


# What `train` and `measure` return
RESULT = {
    "seed": int, "parameters": int, "seconds": float, "loss": [float],
    "valid_exact_match": [float], "exact_match": float, "places": (float, type(None)),
    "on_its_digit": (float, type(None)),
}  # fmt: skip


def train(
    parts: dict[str, Digits],
    model: Speller,
    training: Training,
    seed: int,
    progress: Callable[[float], object] = lambda loss: None,
) -> dict[str, Any]:
    """Trains a model on `parts["train"]`, and tells after each epoch how well it does on "valid".

    The seed is that of the strips and of what hard attention draws. `progress` is called after each
    epoch with the mean cross-entropy of a letter.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    valid = strips(parts["valid"], model.width, 1, torch.Generator().manual_seed(0))
    stochastic = reinforce_losses(model, training)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.lr)
    scores, losses = [], []

    def batches(epoch: int) -> list[tuple[Tensor, Tensor]]:
        made = strips(parts["train"], model.width, training.rounds, generator)
        parts_of = (tensor.split(training.batch_size) for tensor in (made.pixels, made.target))
        return list(zip(*parts_of, strict=True))

    def loss(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        pixels, target = batch
        target = target[:, : int((target != PAD).sum(1).max())]
        softly = model.read == "reinforce" and trainer.epoch < training.softly * training.epochs
        total, error, count = losses_of(model, pixels, target, training, stochastic, softly)
        errors.append(error)
        return total, count

    per_epoch = -(-len(parts["train"].labels) * training.rounds // training.batch_size)
    schedule = one_cycle(optimizer, training.lr, training.epochs * per_epoch)
    trainer = Trainer(
        model, optimizer, batches, loss, epochs=training.epochs, clip=1.0, schedule=schedule
    )
    while not trainer.done:
        errors: list[float] = []
        trainer.train_epoch()
        losses.append(sum(errors) / trainer.loss_terms)
        scores.append(exact_match(write(model, valid), valid))
        trainer.end_epoch({})
        progress(losses[-1])
    return {
        "parameters": parameters(model),
        "seconds": trainer.seconds,
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


def run(args: argparse.Namespace) -> int:
    """Trains all models from all seeds; writes what there is after each training."""
    folder = Path(args.out)
    prepare_folder(folder)
    parts = split_digits()
    sizes = {name: len(part.labels) for name, part in parts.items()}
    print("images: {train:,} to train, {valid} to validate, {test} to test".format(**sizes))
    epochs = {width: args.epochs or EPOCHS.get(width, EPOCHS[2]) for width in args.digits}
    tests = {width: held_out_strips(parts["test"], width) for width in args.digits}
    jobs = {
        f"{width} digit{'s' * (width > 1)}, {name}": (width, name)
        for width in args.digits
        for name in args.models
    }
    tasks = {
        width: {
            "strips": len(test.labels),
            "support_vector_machine": classify(parts, test),
        }
        for width, test in tests.items()
    }
    about = {
        "images": sizes,
        "config": {name: value for name, value in vars(args).items() if name != "out"}
        | {"epochs": {str(width): count for width, count in epochs.items()}},
        "versions": versions("torch", "scikit-learn"),
    }

    def options(job: str) -> dict[str, Any]:
        width, read = jobs[job]
        return {"width": width, "read": read, "size": args.size, "state_size": args.state,
                "glance": args.glance, "temperature": args.temperature}  # fmt: skip

    def build(job: str) -> Speller:
        return Speller(**options(job))

    def one(job: str, seed: int, step: Any) -> tuple[dict[str, Any], Speller]:
        torch.manual_seed(seed)
        model = build(job)
        width = model.width
        settings = pick(args, Training)._replace(epochs=epochs[width])
        found = {"seed": seed, **train(parts, model, settings, seed, step)}
        return found | measure(model, tests[width]), model

    def metrics(found: Results) -> dict[str, Any]:
        models: dict[int, Results] = {width: {} for width in tasks}
        for job, (width, name) in jobs.items():
            models[width][name] = found[job]
        all_of = {
            str(width): {
                **task,
                "models": models[width],
                "summary": {n: summary(of, MEASURES) for n, of in models[width].items() if of},
            }
            for width, task in tasks.items()
        }
        return {**about, "tasks": all_of}

    lengths = {job: epochs[width] for job, (width, _) in jobs.items()}
    found = run_all(args, lengths, one, RESULT, metrics, build=build)
    for width in tasks:
        models = {
            jobs[job][1]: model
            for job, model in found.models.items()
            if jobs[job][0] == width and jobs[job][1] != "none"
        }
        if models:
            figure = draw_letters(models, chosen_strips(parts["test"], width))
            save_figure(folder / f"letters-{width}.png", figure)
    for job, model in found.models.items():
        width, name = jobs[job]
        prepare_folder(folder / f"{name}-{width}")
        save_model(folder / f"{name}-{width}", own_weights(model), {"model": options(job)})
    results = metrics(found.results)
    figure = Figure(figsize=(1 + 4 * len(args.digits), 4.2), layout="constrained")
    draw_curves(figure, results)
    save_figure(folder / "curves.png", figure)
    print(f"\n{table(results)}\n\nmetrics.json and pictures are in {folder}")
    return 0 if found.complete else 130


def ask(args: argparse.Namespace) -> int:
    """Prints what each model in a folder spells of an image, and draws where it looked."""
    width, test = len(args.digits), split_digits()["test"]
    models = {}
    for name in MODELS:
        if (folder := Path(args.model, f"{name}-{width}")).is_dir():
            with saved_model(folder) as (config, weights):
                models[name] = Speller(**config["model"]).eval()
                load_weights(models[name], weights)
    if not models:
        raise UserError(
            f"no model in {args.model} reads {width} digits; train with --digits {width}"
        )
    places = [(test.labels == digit).nonzero().flatten() for digit in args.digits]
    if (most := min(map(len, places))) < args.nth:
        raise UserError(f"--nth {args.nth}: there are {most} test images of one of the digits")
    images = together(test, torch.stack([of[args.nth - 1] for of in places])[None])
    for name, model in models.items():
        print(f"{name:10}  {text(write(model, images)[0])}")
    models.pop("none", None)
    if args.picture is not None and models:
        prepare_folder(Path(args.picture).parent)
        save_figure(Path(args.picture), draw_letters(models, images))
    return 0


def table(results: dict[str, Any]) -> str:
    """For each number of digits, a row for each model."""
    blocks = []
    for width, task in results["tasks"].items():
        strips_of = "single digits" if width == "1" else f"strips of {width} digits"
        head = [f"{strips_of}, {task['strips']:,} to test"]
        rows = [[*head, "parameters", "seconds", "exact match in %", "pixels per letter"]]
        several = width != "1"
        rows[0] += ["weight on its digit in %"] * several
        for name, found in task["models"].items():
            if not found:
                continue
            seconds = mean(result["seconds"] for result in found)
            pixels = [result["places"] for result in found if result["places"] is not None]
            row = [MODELS[name], f"{found[0]['parameters']:,}", f"{seconds:.1f}"]
            row += [percent([result["exact_match"] for result in found])]
            row += [f"{mean(pixels):.1f}" if pixels else "–"]
            rows.append(row + [percent([r["on_its_digit"] for r in found])] * several)
        machine = f"{100 * task['support_vector_machine']:.1f}"
        rows.append(["support vector machine", *["–"] * 2, machine, *["–"] * (len(rows[0]) - 4)])
        blocks.append(aligned(rows))
    notes = [
        "pixels per letter: exp(entropy) of the weights; of each pixel a letter sees the 5 × 5"
        " around it",
        "support vector machine: classifies each digit by itself, and need not spell",
    ]
    if len(results["tasks"]) > 1 or "1" not in results["tasks"]:
        notes.insert(1, "weight on its digit: of the letters of strips that are spelt right")
    if results["config"]["runs"] > 1:
        notes.append("±: standard deviation over seeds; the images are the same in all runs")
    return "\n\n".join([*blocks, "\n".join(notes)])


def draw_curves(figure: Figure, results: dict[str, Any]) -> None:
    """Exact match on the validation images over the epochs: bold the first seed, faint others."""
    tasks = results["tasks"]
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for panel, (width, task) in zip(panels, tasks.items(), strict=True):
        for place, (name, found) in enumerate(task["models"].items()):
            for nth, result in enumerate(found):
                curve = result["valid_exact_match"]
                bold = apart(place, len(task["models"]))
                style = {"linewidth": 0.8, "alpha": 0.4} if nth else bold
                panel.plot(
                    range(1, len(curve) + 1), curve, color=COLOURS[name],
                    label=None if nth else MODELS[name], **style,
                )  # fmt: skip
        panel.set_title("single digits" if width == "1" else f"strips of {width}", fontsize=11)
        panel.set(xlabel="epoch", ylim=(-0.02, 1.03))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        bare(panel)
    panels[0].set_ylabel("validation images spelt without a mistake")
    legend_below(figure, panels, ncols=2)


def draw_letters(models: dict[str, Speller], images: Strips) -> Figure:
    """Where each letter looked: a row for each image and model, a panel for each letter."""
    width = images.labels.shape[1]
    found = {name: write(model, images, need_weights=True) for name, model in models.items()}
    columns = max(len(text(one)) for row in found.values() for one in row)
    rows = len(images.labels) * len(models)
    across, down = 0.62 * (1 + 0.7 * (width - 1)), 0.92
    size = 1 + across * max(columns, 1), down * rows + 0.8  # inches
    figure = Figure(figsize=size)
    panels = figure.subplots(
        rows, max(columns, 1), squeeze=False,
        gridspec_kw={
            "left": 0.9 / size[0], "right": 1 - 0.1 / size[0], "wspace": 0.1, "hspace": 0.4,
            "bottom": 0.6 / size[1], "top": 1 - 0.3 / size[1],
        },
    )  # fmt: skip
    for panel in panels.flat:
        panel.axis("off")
    for nth, labels in enumerate(images.labels.tolist()):
        image = images.pixels[nth].view(SIDE, SIDE * width)
        for place, (name, hypotheses) in enumerate(found.items()):
            row = panels[nth * len(models) + place]
            weights, written = hypotheses[nth].weights, text(hypotheses[nth])
            assert weights is not None
            right = written == spell(labels)
            row[0].text(
                -0.15, 0.5, SHORT[name], transform=row[0].transAxes, ha="right", va="center",
                fontsize=8, color=COLOURS[name],
            )  # fmt: skip
            for letter, weight, panel in zip(written, weights[0], row, strict=False):
                look(panel, image, weight.view_as(image), hard=name != "soft")
                panel.set_title(
                    "space" if letter == " " else letter,
                    fontsize=8 if letter == " " else 12, pad=2,
                    color="black" if right else "#bd1f01",
                )  # fmt: skip
    caption = (
        "orange: where the decoder looked to write the letter above"
        f" (frame: the {REACH} × {REACH} pixels that it saw); red letters: a mistake"
    )
    figure.text(
        0.1 / size[0], 0.1 / size[1], textwrap.fill(caption, int(14 * size[0])),
        fontsize=8, color="#717581",
    )  # fmt: skip
    return figure


def look(panel: Axes, image: Tensor, weight: Tensor, *, hard: bool) -> None:
    """An image with the weight of each pixel on it; the largest weight is opaque."""
    panel.imshow(image.numpy(), cmap="Greys", vmin=0, vmax=1.25 * (GREYS - 1))
    overlay = torch.empty(*weight.shape, 4)
    overlay[..., :3] = torch.tensor(to_rgb(LOOK))
    overlay[..., 3] = 0.85 * weight / weight.max()
    panel.imshow(overlay.numpy())
    panel.axis("on")
    panel.set(xticks=[], yticks=[])
    panel.spines[:].set(linewidth=0.5, color="#bbbbbb")
    if hard:
        y, x = divmod(int(weight.argmax()), weight.shape[1])
        corner = x - REACH / 2, y - REACH / 2
        panel.add_patch(Rectangle(corner, REACH, REACH, fill=False, edgecolor=LOOK, linewidth=1))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""

    def work() -> int:
        args = parser().parse_args(argv)
        return ask(args) if args.command == "ask" else run(args)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
