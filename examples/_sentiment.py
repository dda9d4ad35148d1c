"""A classifier of reviews: its parts, its training, its files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from datasets import LabelledReviews, Vocabulary, last_words
from datasets.vocabulary import PAD
from examples._files import UserError
from sequence_attn import LearnedPositions, MultiHead, SinusoidalPositions

ENCODERS = ("attention", "lstm", "cnn", "lstm+attention", "cnn+attention")
POSITIONS = ("none", "sinusoidal", "learned")
WIDTH, HEADS, SIZE_PER_HEAD, DROPOUT, BATCH = 128, 8, 16, 0.5, 32


class Judged(NamedTuple):
    """What a `Classifier` makes of a batch.

    Attributes:
        logits: `[B]`, above 0 for class 1.
        attention: `[B, T]`, the weight of each word in the mean over the heads and the positions
            that attend; None unless asked for, and for an encoder without attention.
    """

    logits: Tensor
    attention: Tensor | None


class Classifier(nn.Module):
    """Embedding, positions, encoder, pooling over time, dropout, one logit.

    Attention is pooled by the mean over time, a convolution alone by the maximum, of a recurrent
    network alone the last state is taken. All start as in Keras.

    Args:
        words: how many numbers a word can have, padding and unknown included.
        length: T, words in a text.
        encoder: one of `ENCODERS`.
        positions: one of `POSITIONS`, added to the embedding.
        mask: keep padding out. Default False: padding is a word like any other, as in the figure
            that this is compared with.
    """

    def __init__(
        self,
        words: int,
        length: int,
        encoder: str = "attention",
        positions: str = "none",
        mask: bool = False,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS or positions not in POSITIONS:
            raise ValueError(f"encoder {encoder!r} or positions {positions!r} is not known")
        self.config: dict[str, Any] = {
            "words": words, "length": length, "encoder": encoder, "positions": positions,
            "mask": mask,
        }  # fmt: skip
        self.mask = mask
        self.embedding = nn.Embedding(words, WIDTH)
        self.positions: nn.Module | None = None
        if positions == "sinusoidal":
            self.positions = SinusoidalPositions(WIDTH)
        elif positions == "learned":
            self.positions = LearnedPositions(length, WIDTH)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True) if "lstm" in encoder else None
        self.cnn = nn.Conv1d(WIDTH, WIDTH, 3, padding="same") if "cnn" in encoder else None
        self.attention = (
            MultiHead(HEADS, SIZE_PER_HEAD, input_size=WIDTH) if "attention" in encoder else None
        )
        self.dropout = nn.Dropout(DROPOUT)
        self.output = nn.Linear(WIDTH, 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the parameters anew, as Keras does; attention starts that way by itself."""
        nn.init.uniform_(self.embedding.weight, -0.05, 0.05)
        for layer in (self.cnn, self.output):
            if layer is not None and layer.bias is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        if self.lstm is not None:
            of = dict(self.lstm.named_parameters())
            nn.init.xavier_uniform_(of["weight_ih_l0"])
            nn.init.orthogonal_(of["weight_hh_l0"])
            nn.init.zeros_(of["bias_hh_l0"])
            nn.init.zeros_(of["bias_ih_l0"])
            nn.init.ones_(of["bias_ih_l0"][WIDTH : 2 * WIDTH])  # the forget gate starts open

    def forward(self, tokens: Tensor, need_weights: bool = False) -> Judged:
        """Judges texts.

        Args:
            tokens: int64 `[B, T]`, padded in front.
            need_weights: return the attention as well.
        """
        lengths = None
        if self.mask:  # the padding goes behind the words, where lengths can say what it is
            is_padding = tokens == PAD
            lengths = (~is_padding).sum(dim=1)
            order = is_padding.byte().argsort(dim=1, stable=True)
            tokens = tokens.gather(1, order)
        x = self.embedding(tokens)  # [B, T, D]
        x = x if self.positions is None else self.positions(x)

        if self.lstm is not None:
            x, pooled = _recur(self.lstm, x, lengths)
        if self.cnn is not None:
            x = _without_padding(x, lengths)
            x = self.cnn(x.transpose(1, 2)).transpose(1, 2).relu()
            pooled = _without_padding(x, lengths).amax(dim=1)
        attention = None
        if self.attention is not None:
            x, weights = self.attention(
                x, key_lengths=lengths, query_lengths=lengths, need_weights=need_weights
            )
            pooled = _mean(x, lengths)
            if weights is not None:  # [B, H, Tq, Tk]
                attention = _mean(_without_padding(weights.mean(dim=1), lengths), lengths)
                if self.mask:  # back to where the words were
                    attention = torch.zeros_like(attention).scatter(1, order, attention)
        return Judged(self.output(self.dropout(pooled)).squeeze(-1), attention)


def _recur(lstm: nn.LSTM, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """All states `[B, T, D]`, and the last of each text `[B, D]`."""
    if lengths is None:
        states, (last, _) = lstm(x)
        return states, last[-1]
    some = lengths.clamp(min=1).cpu()  # what is packed cannot be empty
    packed = pack_padded_sequence(x, some, batch_first=True, enforce_sorted=False)
    states, (last, _) = lstm(packed)
    return pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])[0], last[-1]


def _without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """`[B, T, D]` with zeros behind the end of each text."""
    if lengths is None:
        return x
    steps = torch.arange(x.shape[1], device=x.device)
    return x.masked_fill((steps >= lengths[:, None])[..., None], 0)


def _mean(x: Tensor, lengths: Tensor | None) -> Tensor:
    """The mean over time of `[B, T, D]`, zeros behind the end of each text."""
    return x.mean(dim=1) if lengths is None else x.sum(dim=1) / lengths.clamp(min=1)[:, None]


class Encoded(NamedTuple):
    """Reviews as numbers.

    Attributes:
        train: tokens int64 `[B, T]` and labels float32 `[B]`.
        val: likewise.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, reviews: LabelledReviews, vocabulary: Vocabulary, length: int) -> Encoded:
        parts = [
            (
                last_words(part.texts, vocabulary, length),
                torch.tensor(part.labels, dtype=torch.float),
            )
            for part in (reviews.train, reviews.test)
        ]
        return cls(*parts)

    def to(self, device: str) -> Encoded:
        return Encoded(*((tokens.to(device), labels.to(device)) for tokens, labels in self))

    def fingerprint(self) -> str:
        """The sha256 of all that a training sees."""
        digest = hashlib.sha256()
        for tensor in (*self.train, *self.val):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


@torch.no_grad()
def evaluate(model: Classifier, tokens: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    model.eval()
    logits = torch.cat([model(part).logits for part in tokens.split(500)])
    right = (logits > 0) == (labels > 0.5)
    return right.double().mean().item(), binary_cross_entropy_with_logits(logits, labels).item()


def train(
    data: Encoded,
    model: dict[str, Any],
    seed: int,
    epochs: int,
    progress: Callable[[str], object],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Trains a classifier from one seed, with Adam (rate 0.001) in batches of 32.

    Args:
        data: on the device to train on.
        model: the arguments of `Classifier`.
        seed: of the initial weights, of the order of the reviews and of dropout.
        epochs: how many times each review is learned from.
        progress: called after each batch with how well it goes.

    Returns:
        The results, and the weights after the best epoch: that with the highest validation
        accuracy, of equal ones that with the lowest loss. Accuracy and loss in training are means
        over the batches of an epoch, dropout included, as Keras reports them.
    """
    started = time.perf_counter()
    torch.manual_seed(seed)
    tokens, labels = data.train
    classifier = Classifier(**model).to(tokens.device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3, fused=True)
    history: list[dict[str, float]] = []
    best, weights = -1, {}
    validated = ""
    for epoch in range(epochs):
        classifier.train()
        seen, right, loss_sum = 0, 0, 0.0
        for rows in torch.randperm(len(labels)).to(tokens.device).split(BATCH):
            logits = classifier(tokens[rows]).logits
            loss = binary_cross_entropy_with_logits(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(rows)
            right += int(((logits > 0) == (labels[rows] > 0.5)).sum())
            loss_sum += loss.item() * len(rows)
            progress(f"loss {loss_sum / seen:.3f}, accuracy {right / seen:.1%}{validated}")
        accuracy, loss_now = evaluate(classifier, *data.val)
        validated = f"; validation {loss_now:.3f}, {accuracy:.1%}"
        history.append(
            {"epoch": epoch + 1, "train_accuracy": right / seen, "train_loss": loss_sum / seen,
             "val_accuracy": accuracy, "val_loss": loss_now}
        )  # fmt: skip
        if best < 0 or merit(history[-1]) > merit(history[best]):
            best = epoch
            weights = {k: w.detach().cpu().clone() for k, w in classifier.state_dict().items()}
    seconds = time.perf_counter() - started
    result = {"best": history[best], "last": history[-1], "history": history, "seconds": seconds}
    return {"seed": seed, **result}, weights


def merit(scores: dict[str, float]) -> tuple[float, float]:
    """What decides between epochs, and between runs."""
    return scores["val_accuracy"], -scores["val_loss"]


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object that was written by this program.

    Raises:
        UserError: the file cannot be read or is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; choose another folder") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); start over with --restart") from error
    return content


def load_classifier(folder: Path) -> tuple[Classifier, Vocabulary, list[str]]:
    """Rebuilds what a training saved: the model, ready to predict, its words and its classes.

    Raises:
        UserError: a file is missing or damaged, or weights and config do not belong together.
    """
    path = folder / "model.safetensors"
    config = read_json(folder / "config.json")
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != config["weights_sha256"]:
            raise ValueError("its sha256 is not the one in config.json")
        model = Classifier(**config["model"])
        model.load_state_dict(load(content))
        return model.eval(), Vocabulary.from_dict(config["vocabulary"]), list(config["class_names"])
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; --model must name the --out folder of a"
            " training"
        ) from error
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is damaged or belongs to another config.json ({type(error).__name__}:"
            f" {reason}); train again, or copy both files together"
        ) from error
