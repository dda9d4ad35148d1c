"""Rules of a search: what may be written next, whatever the model thinks of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attn_core.normalizers import at_least_float32


@dataclass(frozen=True)
class Rules:
    """What a search may write; the arguments are those of `generate`.

    >>> rules = Rules(eos=3, no_repeat_ngram=2)
    >>> written = torch.tensor([[4, 5, 4]])  # after which 5 would repeat "4 5"
    >>> rules.log_probs(torch.zeros(1, 6), written, torch.tensor([0])).exp()
    tensor([[0.1667, 0.1667, 0.1667, 0.1667, 0.1667, 0.0000]], dtype=torch.float64)
    """

    eos: int
    forbid: Sequence[int] = ()
    min_length: int = 0
    no_repeat_ngram: int | None = None
    repetition_penalty: float = 1.0
    prefix: Sequence[Sequence[int]] = field(default_factory=list)  # one per source, or none

    def check(self, tokens: int, sources: int, max_length: int) -> None:
        """Raise unless these rules fit a vocabulary, a number of sources and the longest target."""
        for token in self.forbid:
            if not 0 <= token < tokens or token == self.eos:
                raise ValueError(
                    f"forbid has the token {token}; expected tokens of the target, 0 to "
                    f"{tokens - 1}, and not the end symbol, {self.eos}"
                )
        if not 0 <= self.min_length <= max_length:
            raise ValueError(
                f"min_length is {self.min_length}; expected 0 to {max_length}, the most tokens "
                "that a target may have"
            )
        if self.no_repeat_ngram is not None and self.no_repeat_ngram < 1:
            raise ValueError(
                f"no_repeat_ngram is {self.no_repeat_ngram}; expected at least 1, or None"
            )
        if not self.repetition_penalty > 0 or not math.isfinite(self.repetition_penalty):
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; expected a number above 0: "
                "above 1 it makes repetitions rarer"
            )
        if self.prefix and len(self.prefix) != sources:
            raise ValueError(
                f"prefix has {len(self.prefix)} beginnings; expected {sources}, one per source"
            )
        for one in self.prefix:
            if len(one) > max_length:
                raise ValueError(
                    f"prefix has {len(one)} tokens; a target has at most {max_length}: raise "
                    "max_length"
                )
            for token in one:
                if not 0 <= token < tokens or token == self.eos:
                    raise ValueError(
                        f"prefix has the token {token}; expected tokens of the target, 0 to "
                        f"{tokens - 1}, and not the end symbol, {self.eos}"
                    )

    def best(
        self, logits: Tensor, number: int, written: Tensor, source: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The log-probabilities, float64 `[n, number]`, of the best tokens that follow, and they.

        Arguments as of `log_probs`; there may be fewer tokens than `number`.
        """
        number = min(number, logits.shape[1])
        if self._changes(written.shape[1]):
            log_probs, token = self.log_probs(logits, written, source).topk(number)
            return log_probs, token
        # Summed up in float64, in which there is no need to have each of them
        logits = at_least_float32(logits)
        best, token = logits.topk(number)
        largest = best[:, :1]
        total = (logits - largest).exp_().sum(-1, keepdim=True, dtype=torch.float64)
        return best.double() - (largest.double() + total.log()), token

    def _changes(self, length: int) -> bool:
        """Whether anything is banned or penalised behind so many tokens."""
        return bool(
            self.forbid
            or length < self.min_length
            or self.no_repeat_ngram is not None
            or self.repetition_penalty != 1
            or any(len(one) > length for one in self.prefix)
        )

    def log_probs(self, logits: Tensor, written: Tensor, source: Tensor) -> Tensor:
        """The log-probabilities of what follows each hypothesis, float64 `[n, V]`.

        Args:
            logits: `[n, V]`.
            written: int64 `[n, T]`, the tokens of each hypothesis so far.
            source: int64 `[n]`, of which source each is.

        A penalty changes the distribution; a ban leaves the others what they were.
        """
        logits, length = logits.double(), written.shape[1]
        if self.repetition_penalty != 1 and length:
            of_written, theta = logits.gather(1, written), self.repetition_penalty
            penalised = torch.where(of_written > 0, of_written / theta, of_written * theta)
            logits = logits.scatter(1, written, penalised)
        log_probs = allowed = logits.log_softmax(-1)
        if self.forbid:
            never = torch.tensor(list(self.forbid), dtype=torch.int64, device=logits.device)
            allowed = allowed.index_fill(-1, never, -math.inf)
        if length < self.min_length:
            end = torch.tensor([self.eos], device=logits.device)
            allowed = allowed.index_fill(-1, end, -math.inf)
        if self.no_repeat_ngram is not None:
            allowed = allowed.masked_fill(self._repeats(written, logits.shape[1]), -math.inf)
        if any(len(one) > length for one in self.prefix):
            next_of = [one[length] if len(one) > length else -1 for one in self.prefix]
            forced = torch.tensor(next_of, device=logits.device)[source]  # [n]
            others = torch.arange(logits.shape[1], device=logits.device) != forced[:, None]
            told = log_probs.masked_fill(others, -math.inf)
            allowed = torch.where((forced >= 0)[:, None], told, allowed)
        return allowed

    def _repeats(self, written: Tensor, tokens: int) -> Tensor:
        """Which tokens would end an n-gram that stands there already, bool `[n, V]`."""
        size, length = self.no_repeat_ngram or 1, written.shape[1]
        repeats = torch.zeros(len(written), tokens, dtype=torch.bool, device=written.device)
        if length < size:
            return repeats
        grams = written.unfold(1, size, 1)  # [n, T - size + 1, size]
        last = written[:, length - size + 1 :]
        row, place = (grams[..., :-1] == last[:, None]).all(-1).nonzero(as_tuple=True)
        repeats[row, grams[row, place, -1]] = True
        return repeats


def top_p_only(logits: Tensor, top_p: float) -> Tensor:
    """Logits `[n, V]` of the fewest tokens that have the probability `top_p` together.

    The others get -inf (nucleus sampling; Holtzman et al., 2020).

    >>> top_p_only(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.6).exp()
    tensor([[0.5000, 0.3000, 0.0000]])
    """
    best, token = logits.softmax(-1).sort(-1, descending=True)
    before = best.cumsum(-1) - best  # the most probable one always stays
    out = torch.zeros_like(before, dtype=torch.bool).scatter(-1, token, before >= top_p)
    return logits.masked_fill(out, -math.inf)
