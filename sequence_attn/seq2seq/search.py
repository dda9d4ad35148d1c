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

from sequence_attn.seq2seq.rules import Rules, top_p_only


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
        score: log_prob divided by the length penalty, plus what coverage adds; the best is the
            largest.
        finished: whether it ends with the end symbol, rather than at max_length.
        weights: of the attention to the source, for each token and for the end symbol,
            `[reads, T, Ts]`, of a Transformer `[layers, H, T, Ts]`; None unless asked for.
    """

    tokens: list[int]
    log_prob: float
    score: float
    finished: bool
    weights: Tensor | None = None


def length_penalty(length: Tensor | int, alpha: float, kind: str = "wu") -> Any:
    """What the log-probability of a target is divided by.

    Args:
        length: how many tokens it has, the end symbol counted.
        alpha: α; at 0 nothing is divided.
        kind: "wu" (default), `((5 + length) / 6)^α` (Wu et al., 2016), or "power", `length^α`,
            which at α = 1 is the average per token.

    >>> length_penalty(7, 1.0), length_penalty(7, 1.0, "power")
    (2.0, 7.0)
    """
    return ((5 + length) / 6 if kind == "wu" else length) ** alpha


class Scale(NamedTuple):
    """By what the log-probability of a target of some length is divided."""

    alpha: float
    kind: str

    def __call__(self, length: int) -> float:
        return float(length_penalty(length, self.alpha, self.kind))


class Draw(NamedTuple):
    """How a token is drawn of its log-probabilities `[n, V]`."""

    temperature: float
    top_k: int | None
    top_p: float | None

    def __call__(self, log_probs: Tensor) -> Tensor:
        # The largest is 0, however low the temperature
        logits = (log_probs - log_probs.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p is not None:
            logits = top_p_only(logits, self.top_p)
        return torch.multinomial(logits.softmax(-1), 1).squeeze(1)


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
    top_p: float | None = None,
    penalty: str = "wu",
    coverage: float = 0.0,
    min_length: int = 0,
    no_repeat_ngram: int | None = None,
    repetition_penalty: float = 1.0,
    prefix: Sequence[Sequence[int]] = (),
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
        top_p: draw among the fewest tokens that have this probability together (nucleus sampling;
            Holtzman et al., 2020). Default: all.
        penalty: of the length, "wu" or "power"; see `length_penalty`. Default "wu".
        coverage: β of the coverage penalty `β Σ_j log min(Σ_i weight_ij, 1)` over the positions j
            of the source (Wu et al., 2016), which is added to the scores of what the beam found
            before the n_best are chosen: it prefers targets that have read all of the source. Of a
            Transformer the mean of the last layer's heads counts. Default 0, none.
        min_length: the fewest tokens of a target, the end symbol not counted. Default 0.
        no_repeat_ngram: no so many tokens in a row stand twice in a target. Default: they may.
        repetition_penalty: θ: the logit of a token that was written already is divided by θ where
            it is positive, else multiplied (Keskar et al., 2019); above 1 it makes repetitions
            rarer, and log_prob is that of the penalised distribution. Default 1, none.
        prefix: the tokens that each target must begin with, one sequence per source. Their
            probabilities count. Default: none.
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
    _check(beam, n_best, alpha, max_length, sample, temperature, top_k, top_p, penalty, coverage)
    if model.longest_target is not None:  # the begin symbol takes one place
        max_length = min(max_length, model.longest_target - 1)
    rules = Rules(model.eos, forbid, min_length, no_repeat_ngram, repetition_penalty, prefix)
    rules.check(model.target_size, len(source), max_length)
    scale = Scale(alpha, penalty)
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        encoded = model.encode(source, source_lengths)
        if sample:
            draw = Draw(temperature, top_k, top_p)
            found = _sample(model, encoded, n_best, scale, max_length, draw, rules)
        else:
            kept = beam if coverage else n_best
            found = _beam(model, encoded, beam, kept, scale, max_length, rules)
        if return_attention or coverage:
            found = _with_weights(model, encoded, source, found)
        if coverage:
            found = [_covering(one, coverage, return_attention)[:n_best] for one in found]
    finally:
        for module in training:
            module.training = True
    return found


def _beam(
    model: Decodable,
    encoded: Any,
    beam: int,
    n_best: int,
    scale: Scale,
    max_length: int,
    rules: Rules,
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
    room = torch.full((sources, 1), beam, device=device)  # places of a beam that are not taken
    places = torch.arange(beam, device=device)
    for length in range(max_length + 1):
        if not len(live):
            break
        logits, state = _next(model, token, state, length)
        of_source = live.repeat_interleave(width)
        log_probs, words = rules.best(logits, beam, written.flatten(0, 1), of_source)
        each = words.shape[1]  # the best of a source are among those of its hypotheses
        candidates = (total.unsqueeze(-1) + log_probs.view(len(live), width, each)).flatten(1)
        best, place = candidates.topk(min(beam, width * each))
        best = best.masked_fill(places[: best.shape[1]] >= room, -math.inf)
        origin, word = place // each, words.view(len(live), -1).gather(1, place)
        before = written.gather(1, origin.unsqueeze(-1).expand(-1, -1, length))
        ends = (word == model.eos) & (best > -math.inf)
        some_end = bool(ends.any())
        if some_end:
            ending = best.masked_fill(~ends, -math.inf)
            _collect(ended, n_best, live, before, ending, scale, finished=True)
        if length == max_length:
            columns = torch.arange(width, device=device)
            has_ended = ((origin.unsqueeze(-1) == columns) & ends.unsqueeze(-1)).any(1)
            total = total.masked_fill(has_ended, -math.inf)
            _collect(cut_off, n_best, live, written, total, scale, finished=False)
            break
        total = best
        if some_end:
            total, room = best.masked_fill(ends, -math.inf), room - ends.sum(1, keepdim=True)
        written = torch.cat([before, word.unsqueeze(-1)], -1)
        rows = torch.arange(len(live), device=device)[:, None] * width + origin
        going = _still_going(ended, live, total, length + 1, n_best, scale, max_length)
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


def _next(model: Decodable, token: Tensor, state: Any, length: int) -> tuple[Tensor, Any]:
    """The logits of what follows each hypothesis, and the next state."""
    logits, state = model.step(token, state)
    # The largest is not finite if any is NaN or +inf, or all are -inf
    bad = ~logits.amax(-1).isfinite()
    if bool(bad.any()):
        # NaN is neither the best nor the worst, and would end a search with nothing found
        raise ValueError(
            f"the logits of step {length} are no distribution for hypothesis "
            f"{int(bad.nonzero()[0])}: they contain NaN or +inf, or are -inf throughout. Look for "
            "parameters that are not finite, such as after a loss that was not"
        )
    return logits, state


def _collect(
    best: list[list[Hypothesis]],
    n_best: int,
    live: Tensor,
    written: Tensor,
    log_probs: Tensor,
    scale: Scale,
    *,
    finished: bool,
) -> None:
    """Hand the hypotheses `[sources, width, T]` to their sources, which keep the n_best of them."""
    penalty = scale(written.shape[-1] + finished)
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
    scale: Scale,
    max_length: int,
) -> list[int]:
    """The places in `live` of the sources of which something better may still come."""
    # The probability of a beginning only falls, and the penalty is largest at one of the ends
    penalties = [scale(n) for n in (length + 1, max_length + 1)]
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
    scale: Scale,
    max_length: int,
    draw: Draw,
    rules: Rules,
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
        written = torch.stack(words, 1) if words else token.new_zeros(len(each), 0)
        logits, state = _next(model, token, state, step)
        log_probs = rules.log_probs(logits, written.clamp(min=0), each)
        stuck = (log_probs == -math.inf).all(-1)
        if bool((stuck & going).any()):
            raise ValueError(
                f"no token can be drawn at step {step}: all that the rules leave (forbid, "
                "min_length, no_repeat_ngram, prefix) have probability 0"
            )
        token = draw(log_probs.masked_fill(stuck[:, None], 0))
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
        penalty = scale(len(tokens) + finished)
        found[source].append(Hypothesis(tokens, total, total / penalty, finished))
    return [sorted(one, key=lambda h: -h.score) for one in found]


def _covering(found: list[Hypothesis], beta: float, return_attention: bool) -> list[Hypothesis]:
    """The hypotheses of one source by their scores with the coverage of the source."""
    scored = []
    for one in found:
        if one.weights is None:
            raise ValueError("coverage needs the attention to the source, which the model has not")
        weights = one.weights[-1].mean(0) if one.weights.dim() == 4 else one.weights.mean(0)
        covered = weights.double().sum(0).clamp(1e-9, 1).log().sum()  # of each source token
        kept = one.weights if return_attention else None
        scored.append(one._replace(score=one.score + beta * float(covered), weights=kept))
    return sorted(scored, key=lambda one: (-one.finished, -one.score))


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
    top_p: float | None,
    penalty: str,
    coverage: float,
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
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected a probability above 0, or None for all")
    if penalty not in ("wu", "power"):
        raise ValueError(f"penalty is {penalty!r}; expected 'wu' or 'power'")
    if not math.isfinite(coverage):
        raise ValueError(f"coverage is {coverage}; expected a finite number, 0 for none")
    if sample and coverage:
        raise ValueError(f"coverage is {coverage}, but belongs to beam search: sample=False")
