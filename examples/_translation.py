"""Translation: sentence pairs, models from plain settings, and how one is trained and judged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, ClassVar

import torch
from sacrebleu import corpus_bleu
from torch import Tensor
from torch.nn.functional import cross_entropy

from attn_core.distributed import sum_over, summed_gradients
from datasets import (
    Batch,
    Batches,
    EncodedPairs,
    Pairs,
    PairSplits,
    Tokenizer,
    Vocabulary,
    bucketed,
    encode_pairs,
    human_dates,
    in_order,
    multi30k,
    parallel_text,
)
from datasets.vocabulary import BOS, EOS, PAD
from examples.commands.translation import KINDS, ArchitectureOptions, DataOptions, Settings
from examples.shared.files import UserError, check_kind, save_model, saved_model, write_json
from examples.shared.processes import rank, world_size
from examples.shared.trainer import Trainer, load_weights
from sequence_attn import Attention, HardAttention, LocalAttention
from sequence_attn.seq2seq import (
    AttentionDecoder,
    EncoderDecoder,
    RecurrentEncoder,
    Seq2Seq,
    Transformer,
    bahdanau,
    context_only,
    generate,
    grammar,
    luong,
    plain,
    sampled_softmax_loss,
)

Model = EncoderDecoder[Any]


@dataclass(frozen=True)
class Data(DataOptions):
    """A choice of sentence pairs."""

    def pairs(self) -> PairSplits:
        """Reads or generates the pairs.

        Raises:
            UserError: names or languages that make no sense.
            TextFileError, DataFileError: files that cannot be read.
        """
        try:
            match self.names:
                case ("dates",):
                    return human_dates(seed=self.seed)
                case ("multi30k",):
                    return multi30k(*self.languages)
                case (source, target):
                    return parallel_text(
                        source, target, languages=self.languages, unit=self.unit,
                        lower=self.lower, seed=self.seed, subwords=self.vocabulary_size,
                    )  # fmt: skip
        except ValueError as error:
            raise UserError(str(error)) from error
        raise UserError(
            f"--data {' '.join(self.names)!r} is neither 'dates' nor 'multi30k' nor two files:"
            " name one file with the source sentences and one with the target sentences"
        )

    def corpus(self) -> Corpus:
        """The pairs with the vocabularies of the training sentences."""
        pairs = self.pairs()
        most = None if pairs.source_tokenizer.unit == "subwords" else self.vocabulary_size
        source, target = (
            Vocabulary.build(side, min_count=self.min_count, max_size=most)
            for side in (pairs.train.source, pairs.train.target)
        )
        return Corpus(pairs, source, target)


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


def describe(corpus: Corpus) -> str:
    """What there is to learn from, in one or two lines."""
    pairs = corpus.splits
    sizes = ", ".join(
        f"{len(getattr(pairs, name)):,} {name}" for name in ("train", "valid", "test")
    )
    dropped = f"; {pairs.dropped:,} pairs with an empty side left out" if pairs.dropped else ""
    return (
        f"{pairs.name}: {sizes} pairs{dropped}\n"
        f"tokens: {pairs.source_tokenizer.name} → {pairs.target_tokenizer.name};"
        f" vocabularies of {len(corpus.source):,} and {len(corpus.target):,}"
    )


def fingerprint(corpus: Corpus) -> str:
    """A hash of all pairs and vocabularies: equal for equal data."""
    content: list[Any] = [corpus.source.fingerprint, corpus.target.fingerprint]
    for name in ("train", "valid", "test"):
        part = getattr(corpus.splits, name)
        content += [part.source_text, part.target_text]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True)
class Architecture(ArchitectureOptions):
    """What a model is built from."""

    @property
    def source_limit(self) -> int | None:
        """The longest source, with its end symbol, that the model can read; None for any."""
        bounded = self.positions == "learned" if self.kind == "transformer" else self.located
        return self.max_length if bounded else None

    @property
    def target_limit(self) -> int | None:
        """The longest target, with its begin symbol, that the model can write; None for any."""
        return self.source_limit if self.kind == "transformer" else None

    @property
    def located(self) -> bool:
        return self.kind != "transformer" and self.attention == "location"

    def build(self) -> Model:
        """A new model, its weights drawn from torch's generator.

        Raises:
            UserError: settings that do not fit each other.
        """
        try:
            return self._transformer() if self.kind == "transformer" else self._recurrent()
        except ValueError as error:
            raise UserError(f"such a model cannot be built: {error}") from error

    def _transformer(self) -> Transformer:
        options: dict[str, Any] = {} if self.attention is None else {"score": self.attention}
        return Transformer(
            self.source_size,
            self.target_size,
            size=self.embedding_size,
            heads=self.heads,
            layers=self.layers,
            feed_forward_size=self.feed_forward_size,
            dropout=self.dropout,
            positions=self.positions,
            max_length=self.target_limit,
            tie="output" if self.tie else "none",
            normalizer=self.normalizer,
            pad=PAD,
            bos=BOS,
            eos=EOS,
            **options,
        )

    def _recurrent(self) -> Seq2Seq:
        if self.state_size % 2:
            raise ValueError(
                f"the state has width {self.state_size}; each direction of the encoder has half of "
                "it, so it must be even"
            )
        encoder = RecurrentEncoder(
            self.embedding_size,
            self.state_size // 2,
            self.cell,
            bidirectional=True,
            layers=self.layers,
            dropout=self.dropout if self.layers > 1 else 0.0,
        )
        return Seq2Seq(
            encoder,
            self._decoder(),
            source_size=self.source_size,
            target_size=self.target_size,
            dropout=self.dropout,
            tie_output=self.tie,
            pad=PAD,
            bos=BOS,
            eos=EOS,
        )

    def _decoder(self) -> AttentionDecoder:
        width, state = self.embedding_size, self.state_size  # the memory is as wide as the state
        options: dict[str, Any] = {
            "cell": self.cell,
            "layers": self.layers,
            "dropout": self.dropout,
        }
        # What the output matrix reads is as wide as an embedding: most of the work lies there
        match self.kind:
            case "bahdanau":
                return bahdanau(
                    width, state, state // 2, attention=self._read("additive"), output_size=width,
                    **options,
                )  # fmt: skip
            case "luong":
                return luong(
                    width, state, state, attention=self._read("general"), output_size=width,
                    input_feeding=self.input_feeding, **options,
                )  # fmt: skip
            case "context_only":
                return context_only(
                    width, state, state, attention=self._read("additive"), **options
                )
            case "grammar":
                if self.attention not in (None, "additive") or self.normalizer != "softmax":
                    raise ValueError("'grammar' has an additive score and softmax of its own")
                return grammar(width, state, state, reads=self.reads, output_size=width, **options)
            case "rnn":
                if self.attention is not None:
                    raise ValueError(f"'rnn' has no attention; got {self.attention!r}")
                return plain(width, state, state, context=self.context, **options)
        raise ValueError(f"{self.kind!r} is no model; known ones are {', '.join(KINDS)}")

    def _read(self, default: str) -> Attention:
        name = self.attention or default
        sizes: dict[str, Any] = {"query_size": self.state_size, "key_size": self.state_size}
        local = {"local-m": "monotonic", "local-p": "predictive"}
        if name in local:
            return LocalAttention(local[name], self.window, normalizer=self.normalizer, **sizes)
        if name == "hard":
            # Straight-through needs no loss of its own, as REINFORCE does
            return HardAttention(estimator="gumbel", **sizes)
        limit = self.max_length if name == "location" else None
        return Attention(name, self.normalizer, max_length=limit, **sizes)


def hidden_outputs(model: Model, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    """What a recurrent model's output matrix would read, `[B, T, output_size]`."""
    assert isinstance(model, Seq2Seq)
    inputs = model.dropout(model.target_embedding(target))
    output: Tensor = model.decoder(inputs, model.encode(source, lengths)).output
    return output


class Run(Trainer):
    """One training, which may be stopped behind any batch.

    Args:
        corpus: what to learn from.
        architecture: what to train.
        settings: how.
        seed: of the initial weights, of dropout and of the order of the batches.
        device: to train on.
        state: what `state()` gave of such a run, to go on from there.
    """

    KINDS: ClassVar[dict[str, Any]] = {**Trainer.KINDS, "seed": int}

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
        self.corpus, self.architecture, self.settings, self.seed = (
            corpus, architecture, settings, seed
        )  # fmt: skip
        self._train, self._valid = corpus.encoded("train"), corpus.encoded("valid")
        model = architecture.build().to(device)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=settings.lr, betas=(0.9, 0.98), fused=True
        )
        super().__init__(
            model, optimizer, self._batches, self._loss, epochs=settings.epochs,
            patience=settings.patience, clip=settings.clip, average=settings.average,
            mend="lower --lr, or lengthen --warmup",
        )  # fmt: skip
        if state is not None:
            self.load(state)

    def _batches(self, epoch: int) -> Batches:
        tokens = self.settings.batch_tokens
        return bucketed(self._train, tokens=tokens, seed=self.seed, epoch=epoch)

    def rate(self) -> float:
        """The learning rate of the next step."""
        settings = self.settings
        lr = settings.lr * min(1.0, (self.steps + 1) / max(1, settings.warmup))
        match settings.schedule:
            case "inverse-sqrt":
                return lr * min(1.0, math.sqrt(max(1, settings.warmup) / (self.steps + 1)))
            case "cosine":
                share = (self.epoch + self.batch / len(self.plan)) / settings.epochs
                return lr * 0.5 * (1 + math.cos(math.pi * share))
        return lr

    def prepare_step(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        batch = batch.to(self.device)
        if world_size() > 1:
            return self._shared_loss(batch), batch.num_predictions
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bfloat16):
            loss = self._error(batch.source, batch.source_lengths, batch.target)
        return loss, batch.num_predictions

    def _shared_loss(self, batch: Batch) -> Tensor:
        """The same of a batch whose pairs the processes share out; gradients are summed.

        Each process draws by itself, and after a resumption as it would have drawn.
        """
        torch.manual_seed((self.seed * 1_000_003 + self.steps) * world_size() + rank())
        mine = slice(rank(), None, world_size()) if rank() < len(batch) else slice(0, 1)
        part = Batch(**{name: tensor[mine] for name, tensor in vars(batch).items()})
        share = part.num_predictions / batch.num_predictions if rank() < len(batch) else 0.0
        with (
            summed_gradients(self.model),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bfloat16),
        ):
            loss = self._error(part.source, part.source_lengths, part.target)
        return sum_over(loss * share)

    def _error(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
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

    def validate(self, found: list[Found] | None = None) -> dict[str, float]:
        """The scores of the epoch that is over; the translations go to `found`."""
        corpus, model = self.corpus, self.judged
        found = [] if found is None else found
        found += translate(model, self._valid, corpus.target, self.architecture, self.device)
        measured = quality([one.tokens for one in found], corpus.splits.valid, corpus)
        measured["perplexity"] = perplexity(model, self._valid, self.device)
        return {
            "epoch": self.epoch + 1,
            "train_loss": self.mean_loss,
            "seconds": self.seconds,
            **{f"valid_{name}": value for name, value in measured.items()},
        }


def merit(scores: dict[str, Any]) -> tuple[float, float]:
    """What makes one epoch better than another: the translations, then the perplexity.

    A BLEU below 5, or fewer exact matches than 5 %, are noise, and count as none.
    """
    exact = 100 * scores["valid_exact_match"]
    quality = scores.get("valid_bleu", scores.get("valid_sacrebleu", exact))
    return quality if quality >= 5 else 0.0, -scores["valid_perplexity"]


def suited(kind: str, splits: PairSplits) -> dict[str, Any]:
    """Sizes and settings that suit a reader's own pairs, from their number and their length.

    They were chosen on parts of Multi30k (validation pairs, both directions, 10,000 pairs), so that
    10,000 short pairs take three to six minutes on one core, as busy as it is otherwise. With n
    pairs to train on:

    - n / 170 pairs in a batch, 16 to 64: few enough that an epoch has many steps. The batch is
      measured in tokens, by the mean of each pair's longer side.
    - 6 epochs for 10,000 pairs whose longer side has 16 tokens: by the root of n fewer for more,
      and up to twice as many for shorter ones, which take less time; 4 to 30. (8 gained half a
      point of BLEU, and took a third more time.) A tenth of all steps
      warms up, 400 at most. The weights are averaged over about a fortieth of the steps.
    - States are 256 wide (128 below 2,000 pairs, 512 from 50,000 on), and the rate is 0.003 for
      256, less for wider ones. A Transformer has half the width, and two layers.
    """
    pairs = splits.train
    n = len(pairs)
    batch = min(64, max(16, round(n / 170)))
    longer = sum(max(len(s), len(t)) for s, t in zip(pairs.source, pairs.target, strict=True)) / n
    epochs = round(6 * math.sqrt(10_000 / n) * min(2.0, max(0.75, 16 / longer)))
    epochs = min(30, max(4, epochs))
    steps = epochs * math.ceil(n / batch)
    width = 128 if n < 2_000 else 256 if n < 50_000 else 512
    settings = {
        "embedding_size": min(width, 256), "state_size": width, "layers": 1, "heads": 4,
        "feed_forward_size": 2 * width, "dropout": 0.3, "epochs": epochs, "patience": 5,
        "batch_tokens": round(batch * (longer + 2)), "lr": min(5e-3, 3e-3 * 256 / width),
        "warmup": min(400, steps // 10), "label_smoothing": 0.1,
        "average": round(min(0.999, max(0.9, 1 - 40 / steps)), 4), "beam": 5, "alpha": 1.0,
    }  # fmt: skip
    if kind == "transformer":
        settings |= {"embedding_size": max(64, width // 2), "layers": 2, "dropout": 0.15,
                     "lr": 2 / 3 * settings["lr"], "warmup": min(400, steps // 5)}  # fmt: skip
    return settings


def word_by_word(splits: PairSplits, sentences: int = 20_000) -> list[str]:
    """The test sentences translated word by word: what a model must be better than.

    Each word becomes the one that keeps it company most strictly in the first `sentences` training
    pairs, by Dice's 2 · both / (one + other), and itself if it was never seen.
    """
    sides = splits.source_tokenizer, splits.target_tokenizer
    read, write = (Tokenizer("words", side.language, side.lower) for side in sides)
    known: list[Counter[Any]] = [Counter(), Counter(), Counter()]
    texts = zip(splits.train.source_text, splits.train.target_text, strict=True)
    for source, target in islice(texts, sentences):
        words = set(read.tokenize(source)), set(write.tokenize(target))
        for counts, of in zip(known, (*words, product(*words)), strict=True):
            counts.update(of)
    best: dict[str, tuple[float, str]] = {}
    for (one, other), both in known[2].items():
        score = 2 * both / (known[0][one] + known[1][other])
        best[one] = max(best.get(one, (0.0, "")), (score, other))
    return [
        write.detokenize([best.get(word, (0, word))[1] for word in read.tokenize(line)])
        for line in splits.test.source_text
    ]


def bleu_tokens(texts: Sequence[str]) -> str:
    """What sacreBLEU counts: its default, or characters where words have no space between."""
    letters = sum(map(len, texts))
    return "char" if 20 * sum(text.count(" ") for text in texts) < letters else "13a"


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
    """How good translations are: exact match, and the corpus BLEU, but for characters.

    "exact_match" is the share of translations that equal the reference token by token. "bleu" is
    that of sacreBLEU on the words joined by spaces, with tokenize="none" (Papineni et al., 2002);
    subwords, which are no words, have "sacrebleu" alone. With `full` there is "sacrebleu" as well:
    sacreBLEU as it is by default (tokenize="13a", or "char", see `bleu_tokens`) on the detokenised
    translations and the references as they were written, both lower-cased if the tokens are.
    """
    same = [list(a) == b for a, b in zip(found, pairs.target, strict=True)]
    scores = {"exact_match": sum(same) / max(1, len(same))}
    tokenizer = corpus.splits.target_tokenizer
    if tokenizer.unit == "characters":
        return scores
    if tokenizer.unit == "words":
        spaced = [" ".join(tokens) for tokens in found]
        references = [" ".join(tokens) for tokens in pairs.target]
        # force: that the text is tokenised is known, and meant
        scores["bleu"] = corpus_bleu(spaced, [references], tokenize="none", force=True).score
    if full or tokenizer.unit == "subwords":
        texts = [tokenizer.detokenize(tokens) for tokens in found]
        scores["sacrebleu"] = corpus_bleu(
            texts, [pairs.target_text], lowercase=tokenizer.lower,
            tokenize=bleu_tokens(pairs.target_text),
        ).score  # fmt: skip
    return scores


@dataclass(frozen=True)
class Translator:
    """A trained model and all that it takes to use it.

    Args:
        model: in evaluation mode.
        architecture: of the model.
        source, target: the vocabularies it was trained with.
        source_tokenizer, target_tokenizer: how text becomes tokens, and tokens text.
        config: all of config.json.
    """

    model: Model
    architecture: Architecture
    source: Vocabulary
    target: Vocabulary
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    config: dict[str, Any]


def save_translator(
    folder: Path,
    architecture: Architecture,
    weights: dict[str, Tensor],
    vocabularies: tuple[Vocabulary, Vocabulary],
    tokenizers: tuple[Tokenizer, Tokenizer],
    about: dict[str, Any],
) -> None:
    """Writes vocabulary.json, model.safetensors and config.json, which names the other two."""
    sides = dict(zip(("source", "target"), vocabularies, strict=True))
    settings = [dataclasses.asdict(tokenizer) for tokenizer in tokenizers]
    pieces = [{"pieces": of_side.pop("pieces")} for of_side in settings]  # too long for config.json
    saved = [v.to_dict() | of_side for v, of_side in zip(vocabularies, pieces, strict=True)]
    write_json(folder / "vocabulary.json", dict(zip(sides, saved, strict=True)))
    config = {
        "model": dataclasses.asdict(architecture),
        "vocabularies": {side: vocabulary.fingerprint for side, vocabulary in sides.items()},
        "tokenizers": settings,
        **about,
    }
    save_model(folder, weights, config)


def load_translator(folder: Path, device: str = "cpu") -> Translator:
    """Reads what `save_translator` wrote.

    Raises:
        UserError: a file is missing or damaged, or they do not belong together.
    """
    with saved_model(folder) as (config, weights):
        path = folder / "vocabulary.json"
        saved = json.loads(path.read_text(encoding="utf-8"))
        source, target = (Vocabulary.from_dict(saved[side]) for side in ("source", "target"))
        for side, vocabulary in (("source", source), ("target", target)):
            vocabulary.check(config["vocabularies"][side], f"{side} vocabulary in {path}")
        if missing := {"data", "search"} - config.keys():
            raise ValueError(f"without {' and '.join(sorted(missing))}")
        check_kind(config["search"], {"beam": int, "alpha": float}, "search")
        check_kind(config["data"], {field.name: object for field in dataclasses.fields(Data)})
        architecture = Architecture(**config["model"])
        if (architecture.source_size, architecture.target_size) != (len(source), len(target)):
            raise ValueError("the sizes of model and vocabularies differ")
        read, written = (
            Tokenizer(**settings, pieces=of_side["pieces"])
            for settings, of_side in zip(config["tokenizers"], saved.values(), strict=True)
        )
        model = architecture.build()
        load_weights(model, weights)
    return Translator(model.to(device).eval(), architecture, source, target, read, written, config)
