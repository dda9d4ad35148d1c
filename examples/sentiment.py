"""Trains a classifier of reviews on attention alone, or on what it is compared with.

    python -m examples.sentiment                                   # 50,000 reviews of films
    python -m examples.sentiment --positions sinusoidal --seeds 0 1 2 3 4
    python -m examples.sentiment --encoder lstm+attention --mask
    python -m examples.sentiment --data reviews.csv                # columns text, label
    python -m examples.sentiment predict "a joy to watch" --model runs/imdb-attention

Training writes the scores of each seed, their mean and the best model to --out. Interrupted, the
same command goes on with the first seed that has no scores yet.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from datasets import (
    DataFileError,
    LabelledReviews,
    Vocabulary,
    imdb,
    last_words,
    reviews_from_csv,
    split_words,
)
from datasets.vocabulary import SPECIALS
from examples._files import UserError, prepare_folder, save_model, write_json
from examples._graphs import SEED, number
from examples._program import Parser, check_device, mean_and_deviation
from examples._sentiment import (
    BATCH,
    ENCODERS,
    POSITIONS,
    Encoded,
    load_classifier,
    merit,
    read_json,
    train,
)

PROGRAM = "python -m examples.sentiment"
MEASURES = ("train_accuracy", "train_loss", "val_accuracy", "val_loss")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["predict"]:
            return predict(prediction_parser().parse_args(words[1:]))
        words = words[1:] if words[:1] == ["train"] else words
        return train_seeds(training_parser().parse_args(words))
    except (UserError, DataFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\ninterrupted; the scores of finished seeds are kept, and the same command without"
            " --restart goes on",
            file=sys.stderr,
        )
        return 130


def train_seeds(args: argparse.Namespace) -> int:
    """Trains from each seed that has no scores yet; writes scores and the best model to --out."""
    check_device(args.device)
    reviews = load_reviews(args.data)
    vocabulary = known_words(reviews.train.texts, args.vocabulary)
    data = Encoded.of(reviews, vocabulary, args.length)
    model = {
        "words": len(vocabulary), "length": args.length, "encoder": args.encoder,
        "positions": args.positions, "mask": args.mask,
    }  # fmt: skip
    config = {"vocabulary": args.vocabulary, **model, "epochs": args.epochs}
    config["reviews"] = data.fingerprint()
    folder = Path(args.out or Path("runs", variant(reviews.name, args)))
    prepare_folder(folder)
    if args.restart:
        for path in (*folder.glob("seed-*.json"), folder / "config.json", folder / "metrics.json"):
            path.unlink(missing_ok=True)
    known = earlier(folder, config)
    train_size, val_size = len(data.train[1]), len(data.val[1])
    print(
        f"{reviews.name}: {train_size:,} reviews to train, {val_size:,} to validate on;"
        f" {len(vocabulary) - len(SPECIALS):,} words, the last {args.length} of each review"
    )

    data, results = data.to(args.device), []
    seeds = list(dict.fromkeys(args.seeds))
    for nth, seed in enumerate(seeds, start=1):
        name = f"run {nth}/{len(seeds)} (seed {seed})"
        if seed in known:
            results.append(known[seed])
            print(f"{name}: done before")
            continue
        with progress_bar(name, args.epochs * -(-train_size // BATCH)) as bar:

            def progress(text: str, bar: tqdm = bar) -> None:
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
    summary = {
        epoch: {name: mean_and_deviation([r[epoch][name] for r in results]) for name in MEASURES}
        for epoch in ("best", "last")
    }
    versions = {"python": platform.python_version(), "torch": version("torch")}
    write_json(
        folder / "metrics.json",
        {"config": config, "data": reviews.name, "seeds": seeds, "summary": summary,
         "note": note, "runs": results, "versions": versions},
    )  # fmt: skip
    print(f"\n{table(results)}\n\n{note}\nmodel and scores are in {folder}")
    return 0


def variant(name: str, args: argparse.Namespace) -> str:
    """The name of what is trained on the reviews of this name."""
    traits = [name, args.encoder]
    traits += [args.positions] if args.positions != "none" else []
    traits += ["masked"] if args.mask else []
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
        if before != config:
            before = before if isinstance(before, dict) else {}
            changed = [
                f"--{name} was {before.get(name)}, is now {value}"
                for name, value in config.items()
                if name not in ("reviews", "words") and before.get(name) != value
            ]
            raise UserError(
                f"{path} was made with other settings: {'; '.join(changed) or 'other reviews'}."
                " Choose another --out, or start over with --restart"
            )
        if path.name.startswith("seed-"):
            results[result["seed"]] = result
    return results


def progress_bar(name: str, batches: int) -> tqdm:
    """A bar over the batches of a run: on a terminal it moves and goes, in a log it stays."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=name,
        total=batches,
        unit="batch",
        leave=not terminal,
        mininterval=0.1 if terminal else 10,
    )


def in_words(scores: dict[str, float]) -> str:
    """The scores of one epoch."""
    return (
        f"best epoch {scores['epoch']}: accuracy {scores['train_accuracy']:.2%} in training,"
        f" {scores['val_accuracy']:.2%} in validation"
    )


def table(results: Sequence[dict[str, Any]]) -> str:
    """Accuracy and loss of each run in its best and in its last epoch, and their means, aligned."""

    def cell(values: Sequence[float], measure: str) -> str:
        factor, digits = (100, 2) if "accuracy" in measure else (1, 3)
        found = mean_and_deviation([factor * value for value in values])
        deviation = "" if found["std"] is None else f" ± {found['std']:.{digits}f}"
        return f"{found['mean']:.{digits}f}{deviation}"

    rows = []
    for which in ("best", "last"):
        rows.append([f"{which} epoch", "", "training: %", "loss", "validation: %", "loss"])
        of_seeds = [(f"seed {run['seed']}", f"{run[which]['epoch']}", [run]) for run in results]
        everything = [("mean ± sd", "", results)] if len(results) > 1 else []
        for name, epoch, runs in of_seeds + everything:
            cells = [cell([run[which][measure] for run in runs], measure) for measure in MEASURES]
            rows.append([name, epoch, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(len(lines) // 2, "")
    return "\n".join(lines)


def predict(args: argparse.Namespace) -> int:
    """Prints the class of a text, and how much attention its words receive."""
    model, vocabulary, class_names = load_classifier(Path(args.model))
    words = split_words(args.text)
    if not words:
        raise UserError(f"the text {args.text!r} has no words; write some")
    length = model.config["length"]
    logits, attention = model(last_words([args.text], vocabulary, length), need_weights=True)
    positive = logits.sigmoid().item()
    print(f"{class_names[positive > 0.5]}  {max(positive, 1 - positive):.1%}")
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


def training_parser() -> argparse.ArgumentParser:
    """The options of a training."""
    parser = Parser(
        prog=PROGRAM,
        description="Train a classifier of reviews on attention, or on what it is compared with.",
        epilog=f"'{PROGRAM} predict --help': judge a text of your own.",
        allow_abbrev=False,
    )
    count = number(int, 1)
    group = parser.add_argument_group("reviews")
    group.add_argument(
        "--data", metavar="CSV",
        help="your own: columns text, label (two labels); a fifth is held out to validate on."
        " Default: 50,000 reviews of films, from $GAT_DATA/imdb or downloaded",
    )  # fmt: skip
    group.add_argument("--vocabulary", type=count, default=20_000, help="words; default: 20000")
    group.add_argument("--length", type=count, default=80, help="last words kept; default: 80")
    group = parser.add_argument_group("model")
    group.add_argument("--encoder", choices=ENCODERS, default="attention")
    group.add_argument("--positions", choices=POSITIONS, default="none")
    group.add_argument(
        "--mask", action="store_true", help="keep padding out; default: it is a word like others"
    )
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=count, default=5)
    group.add_argument("--seeds", type=SEED, nargs="+", default=[0], metavar="S")
    group.add_argument("--device", default="cpu", help="as torch names it; default: cpu")
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="DIR", help="default: runs/<reviews>-<encoder>…")
    group.add_argument("--restart", action="store_true", help="give up the scores in --out, if any")
    return parser


def prediction_parser() -> argparse.ArgumentParser:
    """The options of a prediction."""
    parser = Parser(
        prog=f"{PROGRAM} predict",
        description="Judge a text, and show the attention that its words receive.",
        allow_abbrev=False,
    )
    parser.add_argument("text", help="in quotes")
    parser.add_argument("--model", required=True, metavar="DIR", help="the --out of a training")
    return parser


if __name__ == "__main__":
    sys.exit(main())
