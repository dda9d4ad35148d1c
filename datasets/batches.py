"""Padded batches of sentence pairs, in an order that can be computed again at any time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .pairs import Pairs
from .vocabulary import PAD, Vocabulary

T = TypeVar("T")


@dataclass(frozen=True)
class EncodedPairs:
    """Sentence pairs as numbers: ``source`` and ``target``, one list of ints for each pair."""

    source: list[list[int]]
    target: list[list[int]]

    def __len__(self) -> int:
        return len(self.source)


def encode_pairs(
    pairs: Pairs,
    source_vocabulary: Vocabulary,
    target_vocabulary: Vocabulary,
    *,
    source_bos: bool = False,
    source_eos: bool = True,
) -> EncodedPairs:
    """Return pairs as numbers; targets stand between begin and end symbols.

    Args:
        pairs: the pairs.
        source_vocabulary: of the source tokens.
        target_vocabulary: of the target tokens.
        source_bos: whether sources have a begin symbol, by default not.
        source_eos: whether sources have an end symbol (default).

    Example:
        >>> pairs = Pairs([["a"]], [["b", "c"]], ["a"], ["b c"])
        >>> encode_pairs(pairs, Vocabulary(["a"]), Vocabulary(["b", "c"]))
        EncodedPairs(source=[[4, 3]], target=[[2, 4, 5, 3]])
    """
    return EncodedPairs(
        [source_vocabulary.encode(s, bos=source_bos, eos=source_eos) for s in pairs.source],
        [target_vocabulary.encode(t, bos=True, eos=True) for t in pairs.target],
    )


@dataclass(frozen=True)
class Batch:
    """Some pairs side by side, filled up with padding (0) at the end.

    Args:
        source: ``[B, Ts]``, int64.
        source_lengths: entries of each source that are no padding, ``[B]``, int64.
        target: ``[B, Tt]``, int64, begin symbol first, end symbol last.
        target_lengths: as of the sources, ``[B]``.
        index: place of each pair in the data, ``[B]``, int64.
    """

    source: Tensor
    source_lengths: Tensor
    target: Tensor
    target_lengths: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_predictions(self) -> int:
        """Number of target tokens that a decoder predicts: all but the begin symbols."""
        return int(self.target_lengths.sum()) - len(self)

    def to(self, device: torch.device | str) -> "Batch":
        """Return this batch on another device."""
        return Batch(**{name: tensor.to(device) for name, tensor in vars(self).items()})


class Batches(Sequence[Batch]):
    """Batches that are made when they are asked for, by number, slice or loop.

    To go on with a training after ``done`` batches, loop over ``batches[done:]``: what was done
    already costs nothing. ``bucketed`` and ``in_order`` make these.

    Args:
        pairs: the pairs.
        plan: for each batch, the places of its pairs.
    """

    def __init__(self, pairs: EncodedPairs, plan: Sequence[np.ndarray]) -> None:
        self._pairs, self._plan = pairs, plan

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, number: int) -> Batch: ...
    @overload
    def __getitem__(self, number: slice) -> "Batches": ...
    def __getitem__(self, number: int | slice) -> "Batch | Batches":
        if isinstance(number, slice):
            return Batches(self._pairs, self._plan[number])
        places = self._plan[number]
        source, source_lengths = _pad([self._pairs.source[i] for i in places])
        target, target_lengths = _pad([self._pairs.target[i] for i in places])
        return Batch(source, source_lengths, target, target_lengths, torch.from_numpy(places))

    def restore(self, results: Iterable[T]) -> list[T]:
        """Return results, one per pair in the order of the batches, in the order of the pairs.

        Args:
            results: of the first batch's pairs, then of the second's, and so on.

        Raises:
            ValueError: there are not as many results as pairs.

        Example:
            >>> pairs = EncodedPairs([[7, 7, 7], [8], [9, 9]], [[2, 3]] * 3)
            >>> batches = in_order(pairs, batch_size=2, by_length=True)
            >>> [batch.source[:, 0].tolist() for batch in batches]
            [[8, 9], [7]]
            >>> batches.restore([8, 9, 7])
            [7, 8, 9]
        """
        results = list(results)
        places = np.concatenate([np.empty(0, np.int64), *self._plan])
        if len(results) != len(places):
            raise ValueError(
                f"results must be one for each of the {len(places)} pairs, got {len(results)}"
            )
        return [results[i] for i in np.argsort(places, kind="stable")]


def bucketed(
    pairs: EncodedPairs,
    *,
    batch_size: int | None = None,
    tokens: int | None = None,
    seed: int,
    epoch: int,
    pool: int = 8192,
) -> Batches:
    """Return an epoch of training batches of pairs of similar length, in random order.

    The pairs are shuffled and cut into pools; each pool is sorted by length and cut into batches;
    the batches are shuffled. All of it depends on ``seed`` and ``epoch`` alone.

    Args:
        pairs: the pairs; each comes exactly once.
        batch_size: pairs in a batch, but for the last of a pool. Give this or ``tokens``.
        tokens: instead, the padded size of a batch at most: pairs times the longest of all their
            sources and targets. A pair that is longer has a batch of its own.
        seed: of the order, 0 or more.
        epoch: 0 or more; each has another order.
        pool: pairs that are sorted together. More means less padding and less chance.

    Raises:
        ValueError: not one of ``batch_size`` and ``tokens`` is given, or a number is too small.

    Example:
        >>> pairs = EncodedPairs([[5] * n for n in range(1, 9)], [[2, 3]] * 8)
        >>> batches = bucketed(pairs, batch_size=2, seed=0, epoch=0)
        >>> sorted(batch.source_lengths.tolist() for batch in batches)
        [[1, 2], [3, 4], [5, 6], [7, 8]]
    """
    for name, value in (("seed", seed), ("epoch", epoch)):
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    if pool < 1:
        raise ValueError(f"pool must be at least 1, got {pool}")
    cut = _cutter(pairs, batch_size, tokens)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(pairs))
    plan = [
        batch
        for start in range(0, len(order), pool)
        for batch in cut(_by_length(pairs, order[start : start + pool]))
    ]
    return Batches(pairs, [plan[i] for i in rng.permutation(len(plan))])


def in_order(
    pairs: EncodedPairs,
    *,
    batch_size: int | None = None,
    tokens: int | None = None,
    by_length: bool = False,
) -> Batches:
    """Return batches for an evaluation: always the same, nothing drawn at random.

    Args:
        pairs: the pairs; each comes exactly once.
        batch_size: pairs in a batch, but for the last. Give this or ``tokens``.
        tokens: instead, the padded size of a batch at most, as for `bucketed`.
        by_length: the shortest first, for speed; `Batches.restore` brings results back into the
            order of the pairs. By default batches are in that order themselves.

    Raises:
        ValueError: not one of ``batch_size`` and ``tokens`` is given, or it is below 1.

    Example:
        >>> pairs = EncodedPairs([[5, 6], [7]], [[2, 3], [2, 8, 3]])
        >>> batch = in_order(pairs, batch_size=2)[0]
        >>> batch.source.tolist(), batch.target.tolist(), batch.source_lengths.tolist()
        ([[5, 6], [7, 0]], [[2, 3, 0], [2, 8, 3]], [2, 1])
    """
    cut = _cutter(pairs, batch_size, tokens)
    order = np.arange(len(pairs))
    return Batches(pairs, cut(_by_length(pairs, order) if by_length else order))


def _cutter(
    pairs: EncodedPairs, batch_size: int | None, tokens: int | None
) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Return the function that cuts an order of pairs into batches."""
    if (batch_size is None) == (tokens is None):
        raise ValueError(
            f"give either batch_size or tokens, got batch_size={batch_size} and tokens={tokens}"
        )
    name, limit = ("batch_size", batch_size) if batch_size is not None else ("tokens", tokens)
    assert limit is not None
    if limit < 1:
        raise ValueError(f"{name} must be at least 1, got {limit}")

    def cut(order: np.ndarray) -> list[np.ndarray]:
        starts, longest = [0], 0
        for place, pair in enumerate(order):
            length = max(len(pairs.source[pair]), len(pairs.target[pair]), longest)
            size = place - starts[-1] + 1
            full = size > limit if batch_size is not None else size * length > limit
            if full and size > 1:
                starts.append(place)
                length = max(len(pairs.source[pair]), len(pairs.target[pair]))
            longest = length
        return np.split(order, starts[1:]) if len(order) else []

    return cut


def _by_length(pairs: EncodedPairs, order: np.ndarray) -> np.ndarray:
    lengths = [[len(side[i]) for i in order] for side in (pairs.target, pairs.source)]
    return order[np.lexsort(lengths)]  # by source, then target; stable, so ties stay shuffled


def _pad(sentences: list[list[int]]) -> tuple[Tensor, Tensor]:
    rows = [torch.tensor(sentence, dtype=torch.long) for sentence in sentences]
    lengths = torch.tensor([len(row) for row in rows])
    return pad_sequence(rows, batch_first=True, padding_value=PAD), lengths
