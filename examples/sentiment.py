"""Trains a classifier of reviews on attention alone, or on what it is compared with.

    python -m examples.sentiment                                   # 50,000 reviews of films
    python -m examples.sentiment --positions sinusoidal --seeds 0 1 2 3 4
    python -m examples.sentiment --encoder lstm+attention --mask
    python -m examples.sentiment --data reviews.csv                # columns text, label
    python -m examples.sentiment predict "a joy to watch" --model runs/imdb-attention
    python -m examples.sentiment predict --file new.csv --output judged.csv --model runs/reviews-…

Training writes the scores of each seed, their mean and the best model to --out. Interrupted, the
same command goes on with the first seed that has no scores yet.
"""

from __future__ import annotations

from examples.commands.sentiment import ENCODERS, POSITIONS, Settings, parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import csv
import hashlib
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from datasets import (
    LabelledReviews,
    Vocabulary,
    imdb,
    last_words,
    reviews_from_csv,
    split_words,
)
from datasets.parallel_text import read_lines
from datasets.vocabulary import PAD, SPECIALS
from examples.shared.files import (
    UserError,
    check_kind,
    check_settings,
    damage_told,
    prepare_folder,
    read_json,
    remove,
    save_model,
    saved_model,
    write_csv,
    write_json,
)
from examples.shared.options import pick
from examples.shared.program import check_device, exit_status, progress_bar, versions
from examples.shared.tables import aligned, spread, summary
from examples.shared.trainer import Trainer
from sequence_attn import LearnedPositions, MultiHead, SinusoidalPositions

WIDTH, HEADS, SIZE_PER_HEAD, DROPOUT, BATCH = 128, 8, 16, 0.5, 32
MEASURES = ("train_accuracy", "train_loss", "val_accuracy", "val_loss")
SCORES = {"epoch": int, **dict.fromkeys(MEASURES, float)}
# What `train` returns
RESULT = {"seed": int, "best": SCORES, "last": SCORES, "history": [SCORES], "seconds": float}


class Judged(NamedTuple):
    """What a `Classifier` makes of a batch.

    Attributes:
        logits: `[B]`, above 0 for class 1; of more than two classes `[B, classes]`.
        attention: `[B, T]`, the weight of each word in the mean over the heads and the positions
            that attend; None unless asked for, and for an encoder without attention.
    """

    logits: Tensor
    attention: Tensor | None


class Classifier(nn.Module):
    """Embedding, positions, encoder, pooling over time, dropout, a logit (of each class, if many).

    Attention is pooled by the mean over time, a convolution alone by the maximum, of a recurrent
    network alone the last state is taken. All start as in Keras.

    Args:
        words: how many numbers a word can have, padding and unknown included.
        length: T, words in a text.
        encoder: one of `ENCODERS`.
        positions: one of `POSITIONS`, added to the embedding.
        mask: keep padding out. Default False: padding is a word like any other, as in the figure
            that this is compared with.
        classes: how many there are. Default 2.
    """

    def __init__(
        self,
        words: int,
        length: int,
        encoder: str = "attention",
        positions: str = "none",
        mask: bool = False,
        classes: int = 2,
    ) -> None:
        super().__init__()
        if encoder not in ENCODERS or positions not in POSITIONS:
            raise ValueError(f"encoder {encoder!r} or positions {positions!r} is not known")
        self.config: dict[str, Any] = {
            "words": words, "length": length, "encoder": encoder, "positions": positions,
            "mask": mask, "classes": classes,
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
        self.output = nn.Linear(WIDTH, 1 if classes == 2 else classes)
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
        train: tokens int64 `[B, T]` and labels `[B]`, float32 of two classes, int64 of more.
        val: likewise.
    """

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, reviews: LabelledReviews, vocabulary: Vocabulary, length: int) -> Encoded:
        kind = torch.float if len(reviews.class_names) == 2 else torch.long
        parts = [
            (last_words(part.texts, vocabulary, length), torch.tensor(part.labels, dtype=kind))
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


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy, of two classes or of more."""
    kind = binary_cross_entropy_with_logits if logits.dim() == 1 else cross_entropy
    return kind(logits, labels)


def probabilities(logits: Tensor) -> Tensor:
    """The probability of each class, `[B, classes]`."""
    if logits.dim() == 2:
        return logits.softmax(dim=1)
    positive = logits.sigmoid()
    return torch.stack([1 - positive, positive], dim=1)


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which texts are in the class that is said to be the likeliest, `[B]`."""
    if logits.dim() == 2:
        return logits.argmax(dim=1) == labels
    return (logits > 0) == (labels > 0.5)


@torch.no_grad()
def evaluate(model: Classifier, tokens: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy and mean cross-entropy."""
    model.eval()
    logits = torch.cat([model(part).logits for part in tokens.split(500)])
    return is_right(logits, labels).double().mean().item(), loss_of(logits, labels).item()


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
    torch.manual_seed(seed)
    tokens, labels = data.train
    classifier = Classifier(**model).to(tokens.device)
    right = 0

    def batches(epoch: int) -> Sequence[Tensor]:
        return torch.randperm(len(labels)).to(tokens.device).split(BATCH)

    def loss(rows: Tensor) -> tuple[Tensor, int]:
        nonlocal right
        logits = classifier(tokens[rows]).logits
        right += int(is_right(logits, labels[rows]).sum())
        return loss_of(logits, labels[rows]), len(rows)

    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3, fused=True)
    trainer = Trainer(classifier, optimizer, batches, loss, epochs=epochs)
    validated = ""
    while not trainer.done:
        while not trainer.epoch_is_over:
            trainer.train_batch()
            share = right / trainer.loss_terms
            progress(f"loss {trainer.mean_loss:.3f}, accuracy {share:.1%}{validated}")
        accuracy, lost = evaluate(classifier, *data.val)
        validated = f"; validation {lost:.3f}, {accuracy:.1%}"
        found = share, trainer.mean_loss, accuracy, lost
        scores = {"epoch": trainer.epoch + 1, **dict(zip(MEASURES, found, strict=True))}
        trainer.end_epoch(scores, not trainer.best or merit(scores) > merit(trainer.best))
        right = 0
    best = {name: trainer.best[name] for name in SCORES}
    result = {"best": best, "last": trainer.scores[-1], "history": trainer.scores}
    return {"seed": seed, **result, "seconds": trainer.seconds}, trainer.best["weights"]


def merit(scores: dict[str, float]) -> tuple[float, float]:
    """What decides between epochs, and between runs."""
    return scores["val_accuracy"], -scores["val_loss"]


def load_classifier(folder: Path) -> tuple[Classifier, Vocabulary, list[str]]:
    """Rebuilds what a training saved: the model, ready to predict, its words and its classes.

    Raises:
        UserError: a file is missing or damaged, or weights and config do not belong together.
    """
    with saved_model(folder) as (config, weights):
        model = Classifier(**config["model"])
        model.load_state_dict(weights)
        vocabulary, names = Vocabulary.from_dict(config["vocabulary"]), config["class_names"]
        check_kind(names, [str], "class_names")
        if len(names) != model.config["classes"] or len(vocabulary) != config["model"]["words"]:
            raise ValueError("words or classes do not match the model")
    return model.eval(), vocabulary, names


def train_seeds(args: argparse.Namespace) -> int:
    """Trains from each seed that has no scores yet; writes scores and the best model to --out."""
    check_device(args.device)
    reviews = load_reviews(args.data)
    if args.mask is None:
        args.mask = args.data is not None
    settings = pick(args, Settings)
    args.length, args.encoder, args.positions = settings[:3]
    vocabulary = known_words(reviews.train.texts, args.vocabulary)
    data = Encoded.of(reviews, vocabulary, args.length)
    model = {"words": len(vocabulary), **settings._asdict(), "classes": len(reviews.class_names)}
    config = {"vocabulary": args.vocabulary, **model, "epochs": args.epochs}
    config["reviews"] = data.fingerprint()
    folder = Path(args.out or Path("runs", variant(reviews.name, args)))
    prepare_folder(folder)
    if args.restart:
        remove(*folder.glob("seed-*.json"), folder / "config.json", folder / "metrics.json")
    known = earlier(folder, config)
    train_size, val_size = len(data.train[1]), len(data.val[1])
    print(
        f"{reviews.name}: {train_size:,} reviews to train, {val_size:,} to validate on;"
        f" {len(vocabulary) - len(SPECIALS):,} words, the last {args.length} of each review"
    )

    known_by_words = baseline(reviews)
    data, results = data.to(args.device), []
    seeds = list(dict.fromkeys(args.seeds))
    for nth, seed in enumerate(seeds, start=1):
        name = f"run {nth}/{len(seeds)} (seed {seed})"
        if seed in known:
            results.append(known[seed])
            print(f"{name}: done before")
            continue
        with progress_bar(name, args.epochs * -(-train_size // BATCH), "batch") as bar:

            def progress(text: str, bar: Any = bar) -> None:
                bar.set_postfix_str(text, refresh=False)
                bar.update()

            result, weights = train(data, model, seed, args.epochs, progress)
        # The model first: interrupted in between, the run is done again and gives the same.
        path = folder / "config.json"
        if not path.exists() or merit(result["best"]) > merit(read_json(path)["best"]):
            about = {"class_names": reviews.class_names, "vocabulary": vocabulary.to_dict()}
            origin = {"config": config, "seed": seed, "best": result["best"]}
            save_model(folder, weights, {"model": model, **origin, **about})
        write_json(folder / f"seed-{seed}.json", {"config": config, **result})
        results.append(result)
        print(f"{name}: {result['seconds']:.0f} s; {in_words(result['best'])}")

    note = selection_note(val_size, films=args.data is None)
    means = {epoch: summary([r[epoch] for r in results], MEASURES) for epoch in ("best", "last")}
    write_json(
        folder / "metrics.json",
        {"config": config, "data": reviews.name, "seeds": seeds, "summary": means, "note": note,
         "baseline": known_by_words, "runs": results, "versions": versions("torch")},
    )  # fmt: skip
    reached = statistics.mean(run["best"]["val_accuracy"] for run in results)
    rival = f"TF-IDF and logistic regression: {known_by_words:.2%} in validation"
    if reached <= known_by_words:
        rival += (
            f", which {args.encoder} does not exceed: use that, or give more texts, --epochs or"
            " another --encoder"
        )
    print(f"\n{table(results)}\n\n{rival}\n{note}\nmodel and scores are in {folder}")
    return 0


def baseline(reviews: LabelledReviews) -> float:
    """The accuracy on the held-out texts without a neural network, of scikit-learn's parts."""
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=1000))
    try:
        model.fit(reviews.train.texts, reviews.train.labels)
    except ValueError:  # no word of two letters
        return 0.0
    return float(model.score(reviews.test.texts, reviews.test.labels))


def variant(name: str, args: argparse.Namespace) -> str:
    """The name of what is trained on the reviews of this name."""
    traits = [name, args.encoder]
    traits += [args.positions] if args.positions != "none" else []
    if args.mask != (args.data is not None):
        traits += ["masked" if args.mask else "unmasked"]
    return "-".join(traits)


def selection_note(reviews: int, *, films: bool) -> str:
    """Says what the accuracy of the best epoch is worth."""
    which = "test reviews" if films else "held-out reviews"
    custom = ", as is the custom with this experiment" if films else ""
    return (
        f"The validation reviews are the {reviews:,} {which}, and the best epoch is the one with"
        f" the highest accuracy on them{custom}. So that accuracy is a maximum over what it is"
        " measured on; the last epoch's is not."
    )


def load_reviews(path: str | None) -> LabelledReviews:
    """The reviews of films, or those in a file."""
    if path is None:
        return imdb()
    try:
        return reviews_from_csv(path)
    except ValueError as error:
        raise UserError(str(error)) from error


def known_words(texts: Sequence[str], size: int) -> Vocabulary:
    """The most frequent words of the texts."""
    try:
        return Vocabulary.build(map(split_words, texts), max_size=size + len(SPECIALS))
    except ValueError as error:
        raise UserError(f"the texts to train on have no words ({error})") from error


def earlier(folder: Path, config: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The scores in `folder`, by seed.

    Raises:
        UserError: they, or the model beside them, come from other settings or other reviews.
    """
    results = {}
    for path in (*sorted(folder.glob("seed-*.json")), folder / "config.json"):
        if not path.exists():
            continue
        result = read_json(path)
        before = result.pop("config", None)
        check_settings(path, before, config, reviews="other reviews", words="other reviews")
        with damage_told(path, "or not of this program"):
            if path.name == "config.json":
                check_kind(result["best"], SCORES, "best")
            else:
                check_kind(result, RESULT)
                results[result["seed"]] = result
    return results


def in_words(scores: dict[str, float]) -> str:
    """The scores of one epoch."""
    return (
        f"best epoch {scores['epoch']}: accuracy {scores['train_accuracy']:.2%} in training,"
        f" {scores['val_accuracy']:.2%} in validation"
    )


def table(results: Sequence[dict[str, Any]]) -> str:
    """Accuracy and loss of each run in its best and in its last epoch, and their means, aligned."""
    rows = []
    for which in ("best", "last"):
        rows.append([f"{which} epoch", "", "training: %", "loss", "validation: %", "loss"])
        of_seeds = [(f"seed {run['seed']}", f"{run[which]['epoch']}", [run]) for run in results]
        everything = [("mean ± sd", "", results)] if len(results) > 1 else []
        for name, epoch, runs in of_seeds + everything:
            cells = [
                spread([100 * run[which][measure] for run in runs], 2)
                if "accuracy" in measure
                else spread([run[which][measure] for run in runs], 3)
                for measure in MEASURES
            ]
            rows.append([name, epoch, *cells])
    best, _, *others = aligned(rows, str.ljust).splitlines()
    middle = len(others) // 2
    return "\n".join([best, *others[:middle], "", *others[middle:]])


@torch.no_grad()
def predict(args: argparse.Namespace) -> int:
    """Prints the class of each text; of a single one, how much attention its words receive."""
    if bool(args.texts) == (args.file is not None):
        raise UserError("give either texts, in quotes, or a --file of them")
    model, vocabulary, class_names = load_classifier(Path(args.model))
    texts = args.texts or texts_of(Path(args.file))
    length = model.config["length"]
    if len(texts) > 1 or args.output is not None:
        tokens = last_words(texts, vocabulary, length)
        found = torch.cat([probabilities(model(part).logits) for part in tokens.split(500)])
        likely = [(class_names[row.argmax()], row.tolist()) for row in found]
        if args.output is None:
            for text, (name, row) in zip(texts, likely, strict=True):
                print(f"{name}  {max(row):.1%}  {text}")
            return 0
        rows = [["text", "prediction", *(f"p({name})" for name in class_names)]]
        rows += [
            [text, name, *(f"{share:.6f}" for share in row)]
            for text, (name, row) in zip(texts, likely, strict=True)
        ]
        prepare_folder(Path(args.output).parent)
        write_csv(Path(args.output), rows)
        print(f"{len(texts):,} judged texts are in {args.output}")
        return 0
    words = split_words(texts[0])
    if not words:
        raise UserError(f"the text {texts[0]!r} has no words; write some")
    logits, attention = model(last_words(texts, vocabulary, length), need_weights=True)
    share, chosen = probabilities(logits)[0].max(dim=0)
    print(f"{class_names[chosen]}  {share.item():.1%}")
    read = words[-length:]
    unknown = sum(word not in vocabulary for word in read)
    print(f"read {len(read)} of {len(words)} words, of which {unknown} unknown (in brackets)")
    if attention is None:
        print(f"the encoder {model.config['encoder']} has no attention to show")
        return 0
    received = attention[0].tolist()
    shares = received[-len(read) :]
    print("\nattention, averaged over heads and positions")
    for word, share in zip(read, shares, strict=True):
        shown = word if word in vocabulary else f"[{word}]"
        bar = "█" * round(20 * share / max(shares))
        print(f"{share:7.2%}  {bar:20}  {shown}")
    if padding := received[: -len(read)]:
        print(f"{sum(padding):7.2%}  {'':20}  ({len(padding)} positions of padding in front)")
    return 0


def texts_of(path: Path) -> list[str]:
    """The texts of a csv with a column "text", or of a file with one on each line."""
    lines = read_lines(path)
    rows = list(csv.DictReader(lines)) if path.suffix == ".csv" else []
    if rows and "text" in rows[0]:
        return [row["text"] or "" for row in rows]
    if path.suffix == ".csv":
        raise UserError(f"{path} has no column 'text'; name one so, or give a text file")
    return [line for line in lines if line]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""

    def work() -> int:
        args = parser().parse_args(argv)
        return {"train": train_seeds, "predict": predict}[args.command](args)

    kept = "interrupted; the scores of finished seeds are kept, and the same command without"
    return exit_status(work, f"{kept} --restart goes on")


if __name__ == "__main__":
    sys.exit(main())
