"""Search: from a model that predicts the next token to whole targets.

Greedy search is beam search with a beam of one. A beam is a set of hypotheses about one source;
those of all sources are decoded as one batch, and a source leaves it once it is done. The end
symbol competes with the other tokens for a place in the beam, and a hypothesis that takes it leaves
the beam, which is then narrower by one (Sutskever, Vinyals, Le, 2014).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class Decodable(Protocol):
    """What a search asks of a model: any `EncoderDecoder`, or an `nn.Module` that is like one."""

    target_size: int
    longest_target: int | None
    pad: int
    bos: int
    eos: int

    def encode(self, source: Tensor, source_lengths: Tensor | None = None) -> Any: ...

    def start(self, encoded: Any) -> Any: ...

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]: ...

    def decode(self, target: Tensor, encoded: Any, *, need_weights: bool = False) -> Any: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def eval(self) -> Any: ...


class Hypothesis(NamedTuple):
    """A target that was found.

    Attributes:
        tokens: without the begin symbol, and without the end symbol.
        log_prob: the logarithm of its probability, the end symbol's included (if it was reached).
        score: log_prob divided by the length penalty; the best is the largest.
        finished: whether it ends with the end symbol, rather than at max_length.
        weights: of the attention to the source, for each token and for the end symbol,
            `[reads, T, Ts]`, of a Transformer `[layers, H, T, Ts]`; None unless asked for.
    """

    tokens: list[int]
    log_prob: float
    score: float
    finished: bool
    weights: Tensor | None = None


def length_penalty(length: Tensor | int, alpha: float) -> Any:
    """`((5 + length) / 6)^α`, by which a log-probability is divided (Wu et al., 2016).

    >>> length_penalty(7, 1.0)
    2.0
    """
    return ((5 + length) / 6) ** alpha


@torch.no_grad()
def generate(
    model: Decodable,
    source: Tensor,
    source_lengths: Tensor | None = None,
    *,
    beam: int = 1,
    n_best: int = 1,
    alpha: float = 1.0,
    max_length: int = 100,
    sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    forbid: Sequence[int] = (),
    return_attention: bool = False,
) -> list[list[Hypothesis]]:
    """Write the targets of some sources.

    Beam search keeps the `beam` most probable beginnings of each target, those that have ended
    included. A source is done when all of them have ended, or when `n_best` of them are as good as
    any that the others could still become. With `sample`, each of `n_best` targets is drawn token
    by token instead.

    Args:
        model: any `EncoderDecoder`; it is put in evaluation mode for the call.
        source: int64 `[B, Ts]`.
        source_lengths: integers `[B]`: how many tokens of each source are real. Default: all.
        beam: how many beginnings to keep. Default 1, greedy search: the most probable token at
            each step, up to the end symbol.
        n_best: how many targets to return for each source, at most beam unless they are sampled.
            Default 1.
        alpha: α of the length penalty; at 0, hypotheses compete by probability alone, which favours
            short ones. Default 1.
        max_length: the most tokens of a target, the end symbol not counted; learned positions may
            allow fewer. Default 100.
        sample: draw the tokens. Default False.
        temperature: of the distribution that is drawn from; below 1 it sharpens. Default 1.
        top_k: draw among so many most probable tokens only. Default: all.
        forbid: tokens never to be written: the symbol for unknown words, or those that no training
            made improbable (padding). The other probabilities stay as they are. Default: none.
        return_attention: return the weights of every hypothesis as well. Default False.

    Returns:
        For each source its hypotheses, the best first; fewer than n_best where no more exist.

    Raises:
        ValueError: a beam or n_best below 1, and the like; logits that are not finite numbers.

    >>> from sequence_attn.seq2seq import Transformer
    >>> model = Transformer(20, 20, size=16, heads=2, layers=1)
    >>> found = generate(model, torch.randint(4, 20, (2, 5)), beam=3, n_best=2, max_length=6)
    >>> len(found), len(found[0]), found[0][0].score >= found[0][1].score
    (2, 2, True)
    """
    _check(beam, n_best, alpha, max_length, sample, temperature, top_k)
    for token in forbid:
        if not 0 <= token < model.target_size or token == model.eos:
            raise ValueError(
                f"forbid has the token {token}; expected tokens of the target, 0 to "
                f"{model.target_size - 1}, and not the end symbol, {model.eos}"
            )
    never = torch.tensor(list(forbid), dtype=torch.int64, device=source.device)
    if model.longest_target is not None:  # the begin symbol takes one place
        max_length = min(max_length, model.longest_target - 1)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        encoded = model.encode(source, source_lengths)
        if sample:
            found = _sample(model, encoded, n_best, alpha, max_length, temperature, top_k, never)
        else:
            found = _beam(model, encoded, beam, n_best, alpha, max_length, never)
        if return_attention:
            found = _with_weights(model, encoded, source, found)
    finally:
        for module in training:
            module.training = True
    return found


def _beam(
    model: Decodable,
    encoded: Any,
    beam: int,
    n_best: int,
    alpha: float,
    max_length: int,
    never: Tensor,
) -> list[list[Hypothesis]]:
    sources, device = len(encoded.output), encoded.output.device
    ended: list[list[Hypothesis]] = [[] for _ in range(sources)]
    cut_off: list[list[Hypothesis]] = [[] for _ in range(sources)]
    live = torch.arange(sources, device=device)  # the sources that are not done
    # At first there is one beginning of each target, the empty one
    width = 1
    state = model.start(encoded)
    token = torch.full((sources,), model.bos, device=device)
    written = token.new_zeros(sources, 1, 0)  # [sources, width, T]
    total = encoded.output.new_zeros(sources, 1, dtype=torch.float64)
    room = torch.full((sources,), beam, device=device)  # the places of a beam that are not taken
    for length in range(max_length + 1):
        if not len(live):
            break
        log_probs, state = _next(model, token, state, never, length)
        log_probs = log_probs.view(len(live), width, -1)
        vocabulary = log_probs.shape[-1]
        candidates = (total.unsqueeze(-1) + log_probs).flatten(1)
        best, place = candidates.topk(min(beam, candidates.shape[1]))
        best = best.masked_fill(
            torch.arange(best.shape[1], device=device) >= room[:, None], -math.inf
        )
        origin, word = place // vocabulary, place % vocabulary
        before = written.gather(1, origin.unsqueeze(-1).expand(-1, -1, length))
        ends = (word == model.eos) & (best > -math.inf)
        ending = best.masked_fill(~ends, -math.inf)
        _collect(ended, n_best, live, before, ending, alpha, finished=True)
        if length == max_length:
            columns = torch.arange(width, device=device)
            has_ended = ((origin.unsqueeze(-1) == columns) & ends.unsqueeze(-1)).any(1)
            total = total.masked_fill(has_ended, -math.inf)
            _collect(cut_off, n_best, live, written, total, alpha, finished=False)
            break
        total, room = best.masked_fill(ends, -math.inf), room - ends.sum(1)
        written = torch.cat([before, word.unsqueeze(-1)], -1)
        rows = torch.arange(len(live), device=device)[:, None] * width + origin
        going = _still_going(ended, live, total, length + 1, n_best, alpha, max_length)
        changed = len(going) < len(live) or word.shape[1] != width
        if len(going) < len(live):
            keep = torch.tensor(going, dtype=torch.int64, device=device)
            live, total, written, word, rows, room = (
                x[keep] for x in (live, total, written, word, rows, room)
            )
        if changed or beam > 1:
            state = state.select(rows.flatten(), memory=changed)
        width, token = word.shape[1], word.flatten()
    # One that was cut off is an answer only where there are not enough that end
    return [(good + bad)[:n_best] for good, bad in zip(ended, cut_off, strict=True)]


def _next(
    model: Decodable, token: Tensor, state: Any, never: Tensor, step: int
) -> tuple[Tensor, Any]:
    """The log-probabilities of what follows each hypothesis, float64, and the next state."""
    logits, state = model.step(token, state)
    log_probs = logits.double().log_softmax(-1)
    if bool(log_probs.isnan().any()):
        # NaN is neither the best nor the worst, and would end a search with nothing found
        row = int(log_probs.isnan().any(-1).nonzero()[0])
        raise ValueError(
            f"the logits of step {step} are no distribution for hypothesis {row}: they contain NaN "
            "or +inf, or are -inf throughout. Look for parameters that are not finite, such as "
            "after a loss that was not"
        )
    return log_probs.index_fill(-1, never, -math.inf), state


def _collect(
    best: list[list[Hypothesis]],
    n_best: int,
    live: Tensor,
    written: Tensor,
    log_probs: Tensor,
    alpha: float,
    *,
    finished: bool,
) -> None:
    """Hand the hypotheses `[sources, width, T]` to their sources, which keep the n_best of them."""
    penalty = length_penalty(written.shape[-1] + finished, alpha)
    for row, (source, of_source) in enumerate(zip(live.tolist(), log_probs.tolist(), strict=True)):
        for column, log_prob in enumerate(of_source):
            kept, score = best[source], log_prob / penalty
            if log_prob > -math.inf and (len(kept) < n_best or score > kept[-1].score):
                tokens = written[row, column].tolist()
                kept.append(Hypothesis(tokens, log_prob, score, finished))
                kept.sort(key=lambda one: -one.score)
                del kept[n_best:]


def _still_going(
    ended: list[list[Hypothesis]],
    live: Tensor,
    total: Tensor,
    length: int,
    n_best: int,
    alpha: float,
    max_length: int,
) -> list[int]:
    """The places in `live` of the sources of which something better may still come."""
    # The probability of a beginning only falls, and the penalty is largest at one of the ends
    penalties = [length_penalty(n, alpha) for n in (length + 1, max_length + 1)]
    hopes = (total.amax(1) / max(penalties)).tolist()
    going = []
    for place, (source, hope) in enumerate(zip(live.tolist(), hopes, strict=True)):
        kept = ended[source]
        if hope > -math.inf and (len(kept) < n_best or hope > kept[-1].score):
            going.append(place)
    return going


def _sample(
    model: Decodable,
    encoded: Any,
    count: int,
    alpha: float,
    max_length: int,
    temperature: float,
    top_k: int | None,
    never: Tensor,
) -> list[list[Hypothesis]]:
    sources, device = len(encoded.output), encoded.output.device
    each = torch.arange(sources, device=device).repeat_interleave(count)
    state = model.start(encoded).select(each)
    token = torch.full((len(each),), model.bos, device=device)
    log_prob = encoded.output.new_zeros(len(each), dtype=torch.float64)
    going = torch.ones(len(each), dtype=torch.bool, device=device)
    words: list[Tensor] = []
    for step in range(max_length + 1):
        if not going.any():
            break
        log_probs, state = _next(model, token, state, never, step)
        if bool(((log_probs == -math.inf).all(-1) & going).any()):
            raise ValueError(
                f"no token can be drawn at step {step}: all that forbid leaves have probability 0"
            )
        # The largest is 0, however low the temperature
        drawn_from = (log_probs - log_probs.amax(-1, keepdim=True)) / temperature
        if top_k is not None and top_k < log_probs.shape[-1]:
            least = drawn_from.topk(top_k).values[:, -1:]
            drawn_from = drawn_from.masked_fill(drawn_from < least, -math.inf)
        token = torch.multinomial(drawn_from.softmax(-1), 1).squeeze(1)
        if len(words) == max_length:  # only the end may still follow
            token = torch.where(token == model.eos, token, -1)
        of_token = log_probs.gather(1, token.clamp(min=0).unsqueeze(1)).squeeze(1)
        log_prob = log_prob + torch.where(going & (token >= 0), of_token, 0)
        words.append(torch.where(going, token, -1))
        going = going & (token != model.eos) & (token >= 0)
        token = token.clamp(min=0)
    found: list[list[Hypothesis]] = [[] for _ in range(sources)]
    columns = torch.stack(words, 1).tolist() if words else [[] for _ in each]
    for source, sequence, total in zip(each.tolist(), columns, log_prob.tolist(), strict=True):
        tokens = [word for word in sequence if word >= 0]
        finished = model.eos in tokens
        tokens = tokens[:-1] if finished else tokens
        penalty = length_penalty(len(tokens) + finished, alpha)
        found[source].append(Hypothesis(tokens, total, total / penalty, finished))
    return [sorted(one, key=lambda h: -h.score) for one in found]


def _with_weights(
    model: Decodable, encoded: Any, source: Tensor, found: list[list[Hypothesis]]
) -> list[list[Hypothesis]]:
    """The same hypotheses with their weights: those of the model when it is told the tokens."""
    which = [i for i, hypotheses in enumerate(found) for _ in hypotheses]
    if not which:
        return found
    flat = [one for hypotheses in found for one in hypotheses]
    told = [torch.tensor([model.bos, *one.tokens], device=source.device) for one in flat]
    target = pad_sequence(told, batch_first=True, padding_value=model.pad)
    repeated = encoded.select(torch.tensor(which, device=source.device))
    weights = model.decode(target, repeated, need_weights=True).weights
    if weights is None:
        return found
    lengths = encoded.lengths
    result: list[list[Hypothesis]] = [[] for _ in found]
    for row, (i, one) in enumerate(zip(which, flat, strict=True)):
        steps = len(one.tokens) + one.finished
        keys = source.shape[1] if lengths is None else int(lengths[i])
        result[i].append(one._replace(weights=weights[row, ..., :steps, :keys]))
    return result


def _check(
    beam: int,
    n_best: int,
    alpha: float,
    max_length: int,
    sample: bool,
    temperature: float,
    top_k: int | None,
) -> None:
    for name, number in (("beam", beam), ("n_best", n_best), ("max_length", max_length)):
        if number < 1:
            raise ValueError(f"{name} is {number}; expected at least 1")
    if not sample and n_best > beam:
        raise ValueError(
            f"n_best is {n_best}, but beam only {beam}: a beam finds no more than that"
        )
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}; expected a finite number, such as 0 or 1")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be above 0")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}; expected at least 1, or None for all")
