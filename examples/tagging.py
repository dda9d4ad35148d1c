"""Where attention is weak: labels that depend on the order of the words, learned in nine ways.

    python -m examples.tagging                                # generated sentences, offline
    python -m examples.tagging --conllu train.conllu test.conllu
    python -m examples.tagging --models attention rotary bilstm --runs 5
    python -m examples.tagging predict --model runs/tagging --file text.txt

Attention sees a set of words. What it knows of their order it is told: by positions, by a window,
by a causal mask. Convolutions and recurrent networks know order by themselves. All of them are
trained here with about as many parameters, on the same sentences for as many epochs.

By default the sentences are generated (see `spell`): what a word is labelled with depends on the
symbol just before it, and on the last bracket before it, however far. With --conllu they are the
reader's own, of which parts of speech are learned (universaldependencies.org has such files). There
models see how words are spelt, too: most words of a small corpus are rare. For both the program
computes what nothing that is blind to order can exceed. It prints a table, and writes the same to
metrics.json and accuracy.png in --out; of --conllu also the model that was best on held-out
sentences, which tags new ones.
"""

from __future__ import annotations

from examples.commands.tagging import LETTERS, Training, Widths, parser
from examples.shared.options import answer_first

if __name__ == "__main__":
    answer_first(parser)  # for torch is not imported yet

import argparse
import math
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from datasets import (
    Batch,
    EncodedPairs,
    TaggedSentences,
    Tokenizer,
    Vocabulary,
    bucketed,
    in_order,
    read_conllu,
)
from datasets.conllu import COLUMNS
from datasets.parallel_text import read_lines
from datasets.vocabulary import PAD, SPECIALS
from examples.shared.files import (
    UserError,
    check_kind,
    prepare_folder,
    save_model,
    saved_model,
    write_text,
)
from examples.shared.options import fill_in, pick
from examples.shared.pictures import bare, legend_below, save_figure
from examples.shared.program import check_device, exit_status, versions
from examples.shared.runner import Results, run_all
from examples.shared.tables import aligned, percent, summary
from examples.shared.trainer import Trainer, load_weights, one_cycle, own_weights, parameters
from sequence_attn import RotaryPositions, SinusoidalPositions, T5RelativeBias, TransformerEncoder

VOWELS, CONSONANTS, BRACKETS = "ae", "bc", "()"
# The same for all models; large enough that most of them learn what they can.
DEFAULTS: dict[str, dict[str, Any]] = {
    "generated sentences": {
        "size": 32, "layers": 2, "heads": 4, "window": 2, "dropout": 0.0,
        "epochs": 12, "batch_size": 32, "lr": 5e-3, "sentences": 800, "device": "cpu",
    },
    "conllu sentences": {
        "size": 64, "layers": 2, "heads": 4, "window": 2, "dropout": 0.3, "letters": 64,
        "epochs": 30, "patience": 8, "batch_size": 16, "lr": 3e-3, "min_count": 2,
        "column": "upos", "device": "cpu",
    },
}  # fmt: skip
TEST_SENTENCES = 500
BASELINE, BOUND = "each word's commonest tag", "upper bound without order"


def spell(sentences: int, seed: int) -> TaggedSentences:
    """Sentences of letters and brackets, whose tags depend on the order of what came before.

    A tag says two things about the letters and brackets before its own: whether the last of them is
    a vowel, which is near, and whether the last bracket is open, however far it is. Each sentence
    has 10 to 30 symbols; one in eight is a bracket, by turns "(" and ")", the others are drawn
    from four letters.

    Args:
        sentences: how many.
        seed: of the generator; the same gives the same sentences.

    Returns:
        TaggedSentences with the tags "vowel|open", "vowel|closed", "other|open", "other|closed".

    >>> spell(1000, 0).tags[0][0]
    'other|closed'
    """
    draw = random.Random(seed)
    words, tags = [], []
    for _ in range(sentences):
        symbols, facts = [], []
        last, is_open = "", False
        for _ in range(draw.randint(10, 30)):
            facts.append(
                f"{'vowel' if last and last in VOWELS else 'other'}|"
                f"{'open' if is_open else 'closed'}"
            )
            if draw.random() < 1 / 8:
                last, is_open = BRACKETS[is_open], not is_open
            else:
                last = draw.choice(VOWELS + CONSONANTS)
            symbols.append(last)
        words.append(symbols)
        tags.append(facts)
    return TaggedSentences(words, tags)


@dataclass(frozen=True)
class Lexicon:
    """Words, and what a model sees of each.

    Args:
        words: gives every word a number, be it known to the model or not.
        vocabulary: of the words that the model knows.
        alphabet: of the letters that it knows.
        known: `[words]`, the number of each word in the vocabulary.
        letters: `[words, LETTERS]`, the numbers of its last letters, behind padding.
    """

    words: Vocabulary
    vocabulary: Vocabulary
    alphabet: Vocabulary
    known: Tensor
    letters: Tensor

    @classmethod
    def of(
        cls, sentences: Sequence[Sequence[str]], vocabulary: Vocabulary, alphabet: Vocabulary
    ) -> Lexicon:
        words = Vocabulary.build(sentences)
        new = words.tokens[len(SPECIALS) :]
        known = torch.tensor([*range(len(SPECIALS)), *vocabulary.encode(new)])
        letters = torch.zeros(len(words), LETTERS, dtype=torch.long)
        for row, word in enumerate(new, start=len(SPECIALS)):
            last = alphabet.encode(word[-LETTERS:])
            letters[row, LETTERS - len(last) :] = torch.tensor(last)
        return cls(words, vocabulary, alphabet, known, letters)

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch's words by their number in the vocabulary, `[B, T]`, and its lengths `[B]`."""
        return self.known.to(batch.source.device)[batch.source], batch.source_lengths

    def spelt(self, batch: Batch) -> Tensor:
        """The letters of a batch's words, `[B, T, LETTERS]`."""
        return self.letters.to(batch.source.device)[batch.source]


@dataclass(frozen=True)
class Task:
    """What is to be learned, as numbers.

    Args:
        name: of the data.
        train, valid, test: sentences to learn from, to stop by (perhaps none), and others: words as
            `source`, tags as `target`. The number of a tag that the training sentences lack is
            `len(tags)`, which no model says.
        lexicon: of all their words.
        tags: the name of each tag.
        aspects: for each thing that a tag says, the value of each tag. Empty if a tag is one thing.
        column: of a CoNLL-U file, where the tags belong.
    """

    name: str
    train: EncodedPairs
    valid: EncodedPairs
    test: EncodedPairs
    lexicon: Lexicon
    tags: list[str]
    aspects: dict[str, list[str]]
    column: str = "upos"

    @classmethod
    def of(
        cls,
        name: str,
        train: TaggedSentences,
        test: TaggedSentences,
        aspects: tuple[str, ...] = (),
        min_count: int = 1,
        held_out: float = 0.0,
        column: str = "upos",
    ) -> Task:
        """Turns sentences into numbers.

        Args:
            name: of the data.
            train, test: the sentences. Words and tags come from the first alone.
            aspects: names of the things that a tag says, which "|" separates. Default: none.
            min_count: words that are rarer in training are unknown, so that the vector of an
                unknown word is learned from them. Default 1: none.
            held_out: share of the training sentences to stop by. Default: none.
            column: see above.

        Raises:
            ValueError: no word is that frequent.
        """
        places = random.Random(0).sample(range(len(train.words)), int(held_out * len(train.words)))
        valid = train.only(places)
        train = train.only([n for n in range(len(train.words)) if n not in set(places)])
        vocabulary = Vocabulary.build(train.words, min_count=min_count)
        alphabet = Vocabulary.build("".join(words) for words in train.words)
        lexicon = Lexicon.of([*train.words, *valid.words, *test.words], vocabulary, alphabet)
        tags = sorted({tag for sentence in train.tags for tag in sentence})
        number = {tag: place for place, tag in enumerate(tags)}

        def encode(part: TaggedSentences) -> EncodedPairs:
            return EncodedPairs(
                [lexicon.words.encode(words) for words in part.words],
                [[number.get(tag, len(tags)) for tag in sentence] for sentence in part.tags],
            )

        values = [tag.split("|") for tag in tags]
        said = {aspect: [v[place] for v in values] for place, aspect in enumerate(aspects)}
        parts = encode(train), encode(valid), encode(test)
        return cls(name, *parts, lexicon, tags, said, column)

    def build(self, model: str, widths: Widths) -> Tagger:
        """A new model of these words and tags."""
        sizes = len(self.lexicon.vocabulary), len(self.tags)
        return Tagger(*sizes, model, widths, len(self.lexicon.alphabet))

    @property
    def measures(self) -> dict[str, list[str]]:
        """What is measured: the tags themselves, then each thing that they say."""
        return {"accuracy": self.tags, **self.aspects}


def pairs_of(part: EncodedPairs) -> Iterator[tuple[int, int, int]]:
    """The number of the sentence, the word and the tag of each word."""
    for place, sentence in enumerate(zip(part.source, part.target, strict=True)):
        for word, tag in zip(*sentence, strict=True):
            yield place, word, tag


def commonest_tags(task: Task) -> dict[str, float]:
    """Test accuracies of giving each word the tag that it has most often in training."""
    count: dict[int, Counter[int]] = defaultdict(Counter)
    overall: Counter[int] = Counter()
    for _, word, tag in pairs_of(task.train):
        count[word][tag] += 1
        overall[tag] += 1
    best = {word: tags.most_common(1)[0][0] for word, tags in count.items()}
    usual = overall.most_common(1)[0][0]
    said = [(best.get(word, usual), tag) for _, word, tag in pairs_of(task.test)]
    return {
        name: sum(_agree(values, a, b) for a, b in said) / len(said)
        for name, values in task.measures.items()
    }


def order_blind_bound(task: Task, part: EncodedPairs | None = None) -> dict[str, float]:
    """The accuracies that nothing which is blind to order can exceed, whatever it has learned.

    Attention without positions is equivariant: if the words of a sentence trade places, so do its
    outputs. Trade two places that hold the same word, and the sentence is what it was; so their
    outputs are equal, and so are those of the same word in all sentences of the same words. At best
    they are the tag that is the most frequent there, of which this is the share.

    Args:
        task: names the measures.
        part: the sentences that are judged. Default: the test sentences.
    """
    part = task.test if part is None else part
    groups: dict[tuple[tuple[int, ...], int], Counter[int]] = defaultdict(Counter)
    bags = [tuple(sorted(words)) for words in part.source]
    for place, word, tag in pairs_of(part):
        groups[bags[place], word][tag] += 1
    total = sum(map(len, part.source))
    bounds = {}
    for name, values in task.measures.items():
        right = 0
        for tags in groups.values():
            by_value: Counter[str] = Counter()
            for tag, count in tags.items():
                if tag < len(values):
                    by_value[values[tag]] += count
            right += max(by_value.values(), default=0)
        bounds[name] = right / total
    return bounds


def _agree(values: list[str], said: int, true: int) -> bool:
    return true < len(values) and values[said] == values[true]


class Attention(nn.Module):
    """A Transformer encoder; `options` are those that tell it something about order."""

    def __init__(self, widths: Widths, **options: Any) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(
            widths.layers, widths.size, widths.heads, dropout=widths.dropout, **options
        )
        self.width = widths.size

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.encoder(x, lengths=lengths).output


class Convolutions(nn.Module):
    """Convolutions of width 3, each added to its input: four weigh as much as a Transformer layer.

    A word so sees four words per Transformer layer to either side.
    """

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.width, count = widths.size, 4 * widths.layers
        self.norms = nn.ModuleList(nn.LayerNorm(self.width) for _ in range(count))
        self.layers = nn.ModuleList(
            nn.Conv1d(self.width, self.width, 3, padding=1) for _ in range(count)
        )
        self.dropout = nn.Dropout(widths.dropout)
        self.norm = nn.LayerNorm(self.width)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # [B, T]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y = norm(x).masked_fill(~real[..., None], 0)  # padding looks like the sentence's end
            x = x + self.dropout(relu(layer(y.mT).mT))
        return self.norm(x)


class Recurrent(nn.Module):
    """One LSTM that reads from the left and one that reads from the right."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        size = widths.size
        # An LSTM of h units has 4h(size + h) weights, a Transformer layer 12 size². Two of the
        # former weigh as much as the layers with the h that solves 8h(size + h) = 12 size² layers.
        units = round(size * ((1 + 6 * widths.layers) ** 0.5 - 1) / 2)
        self.lstm = nn.LSTM(size, units, batch_first=True, bidirectional=True)
        self.width = 2 * units

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        return states


class Model(NamedTuple):
    """One of the rows of the comparison.

    Attributes:
        title: what the table calls it.
        build: makes its encoder, `[B, T, size]` and lengths `[B]` to `[B, T, width]`.
        sees_order: False for one that is provably blind to it.
    """

    title: str
    build: Callable[[Widths], Any]
    sees_order: bool = True


MODELS = {
    "attention": Model("attention without positions", Attention, sees_order=False),
    "sinusoidal": Model(
        "  + sinusoidal positions", lambda w: Attention(w, positions=SinusoidalPositions(w.size))
    ),
    "rotary": Model(
        "  + rotary positions", lambda w: Attention(w, rotary=RotaryPositions(w.size // w.heads))
    ),
    "relative": Model(
        "  + relative bias", lambda w: Attention(w, relative_bias=T5RelativeBias(w.heads))
    ),
    "causal": Model("  + causal mask", lambda w: Attention(w, causal=True)),
    "window": Model("  + window", lambda w: Attention(w, window=w.window)),
    "window+relative": Model(
        "  + window + relative bias",
        lambda w: Attention(w, window=w.window, relative_bias=T5RelativeBias(w.heads)),
    ),
    "cnn": Model("CNN", Convolutions),
    "bilstm": Model("BiLSTM", Recurrent),
}


class Tagger(nn.Module):
    """An embedding, an encoder of the sentence, and a score for each tag of each word.

    With `widths.letters` a word's embedding is joined by its spelling: convolutions of width 3 over
    the last letters, of which the largest value counts (as in Ma and Hovy, 2016).

    Args:
        words, tags: how many there are.
        model: one of `MODELS`.
        widths: how large it is.
        alphabet: how many letters there are.
    """

    def __init__(
        self, words: int, tags: int, model: str, widths: Widths, alphabet: int = 0
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, widths.size)
        self.spelling: nn.ModuleDict | None = None
        if widths.letters:
            self.spelling = nn.ModuleDict(
                {
                    "letters": nn.Embedding(alphabet, 32, padding_idx=PAD),
                    "convolution": nn.Conv1d(32, widths.letters, 3, padding=1),
                    "output": nn.Linear(widths.letters, widths.size),
                }
            )
        self.encoder = MODELS[model].build(widths)
        self.dropout = nn.Dropout(widths.dropout)
        self.output = nn.Linear(self.encoder.width, tags)

    def forward(self, words: Tensor, lengths: Tensor, letters: Tensor | None = None) -> Tensor:
        """The scores `[B, T, tags]` of words `[B, T]`, of which `lengths` `[B]` are real.

        `letters` `[B, T, LETTERS]` are theirs, for a model that looks at them.
        """
        x = self.embedding(words)
        if self.spelling is not None:
            assert letters is not None
            each = self.spelling["letters"](letters.flatten(0, 1))  # [B · T, LETTERS, 32]
            most = self.spelling["convolution"](self.dropout(each).mT).amax(-1).relu()
            x = x + self.spelling["output"](self.dropout(most)).view_as(x)
        return self.output(self.dropout(self.encoder(self.dropout(x), lengths)))


# What `train` returns
RESULT = {"seed": int, "parameters": int, "seconds": float, "loss": float, "epoch": int,
          "train": {str: float}, "valid": {str: float}, "test": {str: float}}  # fmt: skip


def train(
    task: Task,
    model: str,
    widths: Widths,
    training: Training,
    seed: int,
    progress: Callable[[float], object] = lambda loss: None,
) -> tuple[dict[str, Any], Tagger]:
    """Trains one of `MODELS` from one seed, and measures it.

    The seed is that of the first weights, of the order of the sentences and of dropout. `progress`
    is called after each epoch with its mean loss. The measures are of the last epoch, or, where
    sentences are held out, of the one that tags them best.
    """
    torch.manual_seed(seed)
    tagger = task.build(model, widths).to(training.device)
    optimizer = torch.optim.Adam(tagger.parameters(), lr=training.lr)

    def batches(epoch: int) -> Any:
        return bucketed(task.train, batch_size=training.batch_size, seed=seed, epoch=epoch)

    def loss(batch: Any) -> tuple[Tensor, int]:
        batch = batch.to(training.device)
        real = _real(batch.source, batch.source_lengths)
        logits = tagger(*task.lexicon.seen(batch), task.lexicon.spelt(batch))
        return cross_entropy(logits[real], batch.target[real]), int(real.sum())

    schedule = one_cycle(optimizer, training.lr, training.epochs * len(batches(0)))
    trainer = Trainer(
        tagger, optimizer, batches, loss, epochs=training.epochs, patience=training.patience,
        clip=1.0, schedule=schedule,
    )  # fmt: skip
    mean_loss = math.nan
    while not trainer.done:
        mean_loss = trainer.train_epoch()
        scores = measure(tagger, task, task.valid) if len(task.valid) else {}
        best = trainer.best.get("accuracy", -1.0)
        trainer.end_epoch(scores, scores["accuracy"] > best if scores else None)
        progress(mean_loss)
    if trainer.best:
        tagger = trainer.best_model()
    return {
        "seed": seed,
        "parameters": parameters(tagger),
        "loss": mean_loss,
        "epoch": trainer.epoch - trainer.waited,
        "seconds": trainer.seconds,
        "train": measure(tagger, task, task.train),
        "valid": measure(tagger, task, task.valid) if len(task.valid) else {},
        "test": measure(tagger, task, task.test),
    }, tagger


@torch.no_grad()
def measure(tagger: Tagger, task: Task, part: EncodedPairs) -> dict[str, float]:
    """The share of words whose tag is right, and of each thing that a tag says."""
    device = tagger.output.weight.device
    tagger.eval()
    said, true = [], []
    for batch in in_order(part, batch_size=256, by_length=True):
        real = _real(batch.source, batch.source_lengths)
        batch = batch.to(device)
        logits = tagger(*task.lexicon.seen(batch), task.lexicon.spelt(batch))
        said += logits.argmax(-1).cpu()[real].tolist()
        true += batch.target.cpu()[real].tolist()
    return {
        name: sum(_agree(values, a, b) for a, b in zip(said, true, strict=True)) / len(true)
        for name, values in task.measures.items()
    }


def _real(words: Tensor, lengths: Tensor) -> Tensor:
    """Which of words `[B, T]` are not padding."""
    return torch.arange(words.shape[1], device=words.device) < lengths[:, None]


def load_task(args: argparse.Namespace) -> Task:
    """Reads or generates the sentences; fills in the options that were not given.

    Raises:
        UserError: a file cannot be read, or an option has no meaning for this data.
    """
    kind, other = ("generated", "--conllu") if args.conllu is None else ("conllu", "")
    fill_in(args, f"{kind} sentences", DEFAULTS, other)
    if args.size % (2 * args.heads):
        raise UserError(
            f"--size {args.size} is no multiple of {2 * args.heads}: rotary positions turn pairs of"
            f" channels in each of the {args.heads} heads; choose --size {2 * args.heads} or a"
            " multiple, or fewer --heads"
        )
    if args.conllu is None:
        parts = spell(args.sentences, seed=0), spell(TEST_SENTENCES, seed=1)
        return Task.of("generated", *parts, aspects=("last symbol", "bracket"))
    try:
        learned, judged = (read_conllu(path, column=args.column) for path in args.conllu)
        name = Path(args.conllu[0]).stem
        return Task.of(name, learned, judged, min_count=args.min_count, held_out=0.1,
                       column=args.column)  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error


def describe(task: Task) -> str:
    """One line about the sentences."""
    parts = (
        f"{len(part):,} sentences ({sum(map(len, part.source)):,} words) to {verb}"
        for part, verb in ((task.train, "train"), (task.valid, "stop by"), (task.test, "test"))
        if len(part)
    )
    return f"{task.name}: {', '.join(parts)}; {len(task.tags)} tags"


def run(args: argparse.Namespace) -> int:
    """Trains all models from all seeds; writes what there is after each training."""
    check_device(args.device)
    task = load_task(args)
    folder = Path(args.out)
    prepare_folder(folder)
    print(describe(task))
    widths, training = pick(args, Widths), pick(args, Training)
    results: dict[str, Any] = {
        "task": describe(task),
        "config": {name: value for name, value in vars(args).items() if name != "out"},
        "baselines": {BASELINE: commonest_tags(task), BOUND: order_blind_bound(task)},
        "versions": versions("torch"),
    }

    def metrics(found: Results) -> dict[str, Any]:
        means = {name: summarise(of) for name, of in found.items() if of}
        return {**results, "models": found, "summary": means}

    found = run_all(
        args,
        dict.fromkeys(args.models, args.epochs),
        lambda name, seed, step: train(task, name, widths, training, seed, step),
        RESULT,
        metrics,
        describe(task),
        lambda name: task.build(name, widths),
    )
    results["models"] = found.results
    figure = Figure(figsize=(3 + 3 * len(task.measures), 4.5), layout="constrained")
    draw(figure, results)
    save_figure(folder / "accuracy.png", figure)
    print(f"\n{table(results)}\n\nmetrics.json and accuracy.png are in {folder}")
    if len(task.valid) and found.models:
        best = max(found.models, key=lambda name: found.results[name][0]["valid"]["accuracy"])
        save_tagger(folder, task, best, widths, found.models[best])
        print(f"the model there is {MODELS[best].title}, the best on the held-out sentences")
    return 0 if found.complete else 130


def save_tagger(folder: Path, task: Task, name: str, widths: Widths, tagger: Tagger) -> None:
    """Writes a model and what else it takes to tag with it."""
    lexicon = task.lexicon
    config = {"model": name, "widths": widths._asdict(), "tags": task.tags,
              "column": task.column, "vocabulary": lexicon.vocabulary.to_dict(),
              "alphabet": lexicon.alphabet.to_dict()}  # fmt: skip
    save_model(folder, own_weights(tagger), config)


def load_tagger(folder: Path, sentences: Sequence[list[str]]) -> tuple[Tagger, Task]:
    """The model that `save_tagger` wrote, and these sentences as its test sentences.

    Raises:
        UserError: a file is missing or damaged.
    """
    with saved_model(folder) as (config, weights):
        check_kind(config["tags"], [str], "tags")
        words, letters = (Vocabulary.from_dict(config[name]) for name in ("vocabulary", "alphabet"))
        lexicon, nothing = Lexicon.of(sentences, words, letters), EncodedPairs([], [])
        part = [lexicon.words.encode(sentence) for sentence in sentences]
        told = EncodedPairs(part, [[0] * len(sentence) for sentence in part])
        task = Task("", nothing, nothing, told, lexicon, config["tags"], {}, config["column"])
        tagger = task.build(config["model"], Widths(**config["widths"]))
        load_weights(tagger, weights)
    return tagger.eval(), task


@torch.no_grad()
def predict(args: argparse.Namespace) -> int:
    """Writes the words of a file as CoNLL-U with the tags that a model gives them."""
    path = Path(args.file)
    lines = read_lines(path)
    if any(line.count("\t") == len(COLUMNS) - 1 for line in lines):
        sentences = read_conllu(path, column="form").words
    else:
        tokenizer = Tokenizer("words", args.language)
        sentences = [words for line in lines if (words := tokenizer.tokenize(line))]
        lines = []
        for words in sentences:
            lines += ["\t".join([str(n), word, *"_" * 8]) for n, word in enumerate(words, start=1)]
            lines.append("")
    tagger, task = load_tagger(Path(args.model), sentences)
    batches = in_order(task.test, batch_size=256, by_length=True)
    tags = [
        [task.tags[n] for n in row[:length]]
        for batch in batches
        for row, length in zip(
            tagger(*task.lexicon.seen(batch), task.lexicon.spelt(batch)).argmax(-1).tolist(),
            batch.source_lengths.tolist(),
            strict=True,
        )
    ]
    flat = (tag for sentence in batches.restore(tags) for tag in sentence)
    place = COLUMNS.index(task.column)
    for n, line in enumerate(lines):
        fields = line.split("\t")
        if fields[0].isdigit():
            fields[place] = next(flat)
            lines[n] = "\t".join(fields)
    text = "".join(f"{line}\n" for line in lines)
    if args.output is None:
        sys.stdout.write(text)
    else:
        prepare_folder(Path(args.output).parent)
        write_text(Path(args.output), text)
        print(f"{sum(map(len, sentences)):,} tagged words are in {args.output}")
    return 0


def summarise(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and deviation of a model's measures over the seeds."""
    parts = {part: [result[part] for result in found] for part in ("train", "test")}
    return {part: summary(of, list(of[0])) for part, of in parts.items()}


def table(results: dict[str, Any]) -> str:
    """A row for each model: its size, its time, and its accuracies in %."""
    measures = list(results["baselines"][BOUND])
    rows = [["accuracy in %", "parameters", "seconds", "train", "test", *measures[1:]]]
    for name, known in results["baselines"].items():
        rows.append([name, "", "", "", *(f"{100 * known[measure]:.1f}" for measure in measures)])
    for name, found in results["models"].items():
        if found:
            seconds = f"{mean(result['seconds'] for result in found):.1f}"
            rows.append([MODELS[name].title, f"{found[0]['parameters']:,}", seconds])
            rows[-1] += [percent([result["train"]["accuracy"] for result in found])]
            rows[-1] += [percent([r["test"][measure] for r in found]) for measure in measures]
    lines = [aligned(rows)]
    if len(measures) > 1:
        both = " and ".join(measures[1:])
        lines.append(f"{both}: of the test words, these parts of a tag by themselves")
    lines.append(
        f"{BOUND}: nothing that is blind to order, whatever it has learned, has more of the"
        " test words right"
    )
    if results["config"]["runs"] > 1:
        lines.append("±: standard deviation over seeds; the sentences are the same in all runs")
    known = results["baselines"][BASELINE]["accuracy"]
    for name, found in results["models"].items():
        if found and mean(result["test"]["accuracy"] for result in found) <= known:
            lines.append(
                f"{_full_title(name)}: not above {BASELINE}, so what it learned is of no use; more"
                " sentences help most, then more --epochs"
            )
    return "\n".join(lines)


def _full_title(name: str) -> str:
    """A title that can do without the row above it."""
    return MODELS[name].title.replace("  +", "attention +")


def draw(figure: Figure, results: dict[str, Any]) -> None:
    """Test accuracies, a panel for each measure: bars are means, dots seeds, lines baselines."""
    measures = list(results["baselines"][BOUND])
    models = {name: found for name, found in results["models"].items() if found}
    titles = list(map(_full_title, models))
    colours = ["#3f90da" if MODELS[name].sees_order else "#e76300" for name in models]
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for measure, panel in zip(measures, panels, strict=True):
        seeds = [[100 * run["test"][measure] for run in found] for found in models.values()]
        panel.barh(titles, list(map(mean, seeds)), color=colours)
        for title, values in zip(titles, seeds, strict=True):
            panel.scatter(values, [title] * len(values), color="black", s=6, zorder=3, label="seed")
        for (name, known), style in zip(results["baselines"].items(), (":", "--"), strict=True):
            panel.axvline(
                100 * known[measure], color="black", linewidth=1, linestyle=style, label=name
            )
        panel.set(xlim=(0, 100), xlabel="% of the test words")
        panel.set_title("whole tag" if measure == "accuracy" else measure, fontsize=11)
        bare(panel)
    panels[0].invert_yaxis()  # the first on top
    legend_below(figure, panels[:1], ncols=3)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program; returns 0, 2 after an error that the user can mend, 130 if interrupted."""

    def work() -> int:
        args = parser().parse_args(argv)
        return predict(args) if args.command == "predict" else run(args)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
