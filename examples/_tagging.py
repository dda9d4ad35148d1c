"""Sequence labelling: what is learned from, what learns it, and how."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from datasets import EncodedPairs, TaggedSentences, Vocabulary, bucketed, in_order
from sequence_attn import RotaryPositions, SinusoidalPositions, T5RelativeBias, TransformerEncoder

VOWELS, CONSONANTS, BRACKETS = "ae", "bc", "()"


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
class Task:
    """What is to be learned, as numbers.

    Args:
        name: of the data.
        train, test: sentences to learn from, and others: words as `source`, tags as `target`. The
            number of a tag that the training sentences lack is `len(tags)`, which no model says.
        vocabulary: of the words.
        tags: the name of each tag.
        aspects: for each thing that a tag says, the value of each tag. Empty if a tag is one thing.
    """

    name: str
    train: EncodedPairs
    test: EncodedPairs
    vocabulary: Vocabulary
    tags: list[str]
    aspects: dict[str, list[str]]

    @classmethod
    def of(
        cls,
        name: str,
        train: TaggedSentences,
        test: TaggedSentences,
        aspects: tuple[str, ...] = (),
        min_count: int = 1,
    ) -> Task:
        """Turns sentences into numbers.

        Args:
            name: of the data.
            train, test: the sentences. Words and tags come from the first alone.
            aspects: names of the things that a tag says, which "|" separates. Default: none.
            min_count: words that are rarer in training are unknown, so that the vector of an
                unknown word is learned from them. Default 1: none.

        Raises:
            ValueError: no word is that frequent.
        """
        vocabulary = Vocabulary.build(train.words, min_count=min_count)
        tags = sorted({tag for sentence in train.tags for tag in sentence})
        number = {tag: place for place, tag in enumerate(tags)}

        def encode(part: TaggedSentences) -> EncodedPairs:
            return EncodedPairs(
                [vocabulary.encode(words) for words in part.words],
                [[number.get(tag, len(tags)) for tag in sentence] for sentence in part.tags],
            )

        values = [tag.split("|") for tag in tags]
        said = {aspect: [v[place] for v in values] for place, aspect in enumerate(aspects)}
        return cls(name, encode(train), encode(test), vocabulary, tags, said)

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


class Widths(NamedTuple):
    """How large a model is.

    Attributes:
        size: of the embedding and between layers; even, and heads divides it.
        layers: of a Transformer; the others are built to have about as many parameters.
        heads: of the attention.
        window: how many words to either side attention in a window sees.
        dropout: in training, of embeddings, hidden units and attention weights.
    """

    size: int
    layers: int
    heads: int
    window: int
    dropout: float


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

    Args:
        words, tags: how many there are.
        model: one of `MODELS`.
        widths: how large it is.
    """

    def __init__(self, words: int, tags: int, model: str, widths: Widths) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, widths.size)
        self.encoder = MODELS[model].build(widths)
        self.dropout = nn.Dropout(widths.dropout)
        self.output = nn.Linear(self.encoder.width, tags)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """The scores `[B, T, tags]` of words `[B, T]`, of which `lengths` `[B]` are real."""
        x = self.dropout(self.embedding(words))
        return self.output(self.dropout(self.encoder(x, lengths)))


class Training(NamedTuple):
    """How a model is trained.

    Attributes:
        epochs: how many times every training sentence is seen.
        batch_size: sentences in a batch.
        lr: the highest learning rate of Adam, which rises for a tenth of the steps, then falls.
        device: where.
    """

    epochs: int
    batch_size: int
    lr: float
    device: str


def train(
    task: Task,
    model: str,
    widths: Widths,
    training: Training,
    seed: int,
    progress: Callable[[float], object] = lambda loss: None,
) -> dict[str, Any]:
    """Trains a model from one seed, and measures it.

    Args:
        task: what it learns.
        model, widths: which of `MODELS`, and how large.
        training: how.
        seed: of the first weights, the order of the sentences, and dropout.
        progress: called after each epoch with its mean loss.

    Returns:
        seed, parameters, seconds of training, the last epoch's loss, and the measures on the
        training and the test sentences.
    """
    torch.manual_seed(seed)
    tagger = Tagger(len(task.vocabulary), len(task.tags), model, widths).to(training.device)
    started, loss = time.perf_counter(), float("nan")
    steps = training.epochs * len(bucketed(task.train, batch_size=training.batch_size,
                                           seed=seed, epoch=0))  # fmt: skip
    optimizer = torch.optim.Adam(tagger.parameters(), lr=training.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.lr, total_steps=max(steps, 2), pct_start=0.1
    )
    for epoch in range(training.epochs):
        total, words = 0.0, 0
        tagger.train()
        for batch in bucketed(task.train, batch_size=training.batch_size, seed=seed, epoch=epoch):
            batch = batch.to(training.device)
            real = _real(batch.source, batch.source_lengths)
            logits = tagger(batch.source, batch.source_lengths)
            error = cross_entropy(logits[real], batch.target[real])
            optimizer.zero_grad()
            error.backward()
            nn.utils.clip_grad_norm_(tagger.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            count = int(real.sum())
            total, words = total + float(error.detach()) * count, words + count
        loss = total / words
        progress(loss)
    return {
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in tagger.parameters()),
        "seconds": time.perf_counter() - started,
        "loss": loss,
        "train": measure(tagger, task, task.train),
        "test": measure(tagger, task, task.test),
    }


@torch.no_grad()
def measure(tagger: Tagger, task: Task, part: EncodedPairs) -> dict[str, float]:
    """The share of words whose tag is right, and of each thing that a tag says."""
    device = tagger.output.weight.device
    tagger.eval()
    said, true = [], []
    for batch in in_order(part, batch_size=256, by_length=True):
        real = _real(batch.source, batch.source_lengths)
        logits = tagger(batch.source.to(device), batch.source_lengths.to(device))
        said += logits.argmax(-1).cpu()[real].tolist()
        true += batch.target[real].tolist()
    return {
        name: sum(_agree(values, a, b) for a, b in zip(said, true, strict=True)) / len(true)
        for name, values in task.measures.items()
    }


def _real(words: Tensor, lengths: Tensor) -> Tensor:
    """Which of words `[B, T]` are not padding."""
    return torch.arange(words.shape[1], device=words.device) < lengths[:, None]
