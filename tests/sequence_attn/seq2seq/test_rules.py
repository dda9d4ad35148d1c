"""Rules of a search: a wide beam finds the best of all targets that keep them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_attn.seq2seq import (
    EncoderDecoder,
    RecurrentEncoder,
    Seq2Seq,
    Transformer,
    generate,
    length_penalty,
    luong,
    plain,
)
from sequence_attn.seq2seq.rules import Rules

SOURCE, TARGET, EOS, LONGEST = 8, 5, 3, 3
WORDS = [word for word in range(TARGET) if word != EOS]
Target = tuple[int, ...]


@pytest.fixture(params=["luong", "transformer"])
def model(request: pytest.FixtureRequest) -> EncoderDecoder[Any]:
    torch.manual_seed(0)
    made: EncoderDecoder[Any]
    if request.param == "luong":
        encoder = RecurrentEncoder(3, 2, "gru", bidirectional=True)
        made = Seq2Seq(encoder, luong(3, 4, 4), source_size=SOURCE, target_size=TARGET)
    else:
        made = Transformer(SOURCE, TARGET, size=4, heads=2, layers=2, tie="none")
    made = made.double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return made


def source(batch: int = 1) -> Tensor:
    return torch.randint(4, SOURCE, (batch, 5), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def told(model: EncoderDecoder[Any], x: Tensor, target: Target) -> Any:
    tokens = torch.tensor([[model.bos, *target]])
    return model(x, tokens, need_weights=True)


def log_prob(
    model: EncoderDecoder[Any],
    x: Tensor,
    target: Target,
    change: Callable[[Tensor, Target], Tensor] = lambda logits, _: logits,
) -> float:
    """Of a target and its end, of logits that may be changed by what stands before."""
    logits = told(model, x, target).logits[0]
    picked = [*target, EOS]
    return sum(
        change(logits[t], target[:t]).log_softmax(-1)[word].item() for t, word in enumerate(picked)
    )


def best(
    model: EncoderDecoder[Any], x: Tensor, keeps: Callable[[Target], bool], number: int = 4
) -> list[Target]:
    """The most probable of all targets that keep a rule."""
    every = [
        one
        for length in range(LONGEST + 1)
        for one in itertools.product(WORDS, repeat=length)
        if keeps(one)
    ]
    return sorted(every, key=lambda one: -log_prob(model, x, one))[:number]


def grams(target: Target, size: int) -> list[Target]:
    return [target[i : i + size] for i in range(len(target) - size + 1)]


RULES: list[tuple[dict[str, Any], Callable[[Target], bool]]] = [
    ({"min_length": 2}, lambda one: len(one) >= 2),
    ({"no_repeat_ngram": 1}, lambda one: len(set(one)) == len(one)),
    ({"no_repeat_ngram": 2}, lambda one: len(set(grams(one, 2))) == len(grams(one, 2))),
    ({"prefix": [[4, 0]]}, lambda one: one[:2] == (4, 0)),
    ({"prefix": [[4]], "forbid": [4]}, lambda one: one[:1] == (4,) and 4 not in one[1:]),
    ({"prefix": [[]]}, lambda one: True),
    ({"min_length": 3, "forbid": [0]}, lambda one: len(one) == 3 and 0 not in one),
]


@pytest.mark.parametrize("number", range(len(RULES)))
def test_a_wide_beam_finds_the_best_that_keep_the_rule(
    model: EncoderDecoder[Any], number: int
) -> None:
    options, keeps = RULES[number]
    x = source()
    (found,) = generate(model, x, beam=400, n_best=4, alpha=0.0, max_length=LONGEST, **options)
    found = [one for one in found if one.finished]
    expected = best(model, x, keeps)
    assert [tuple(one.tokens) for one in found] == expected
    for one in found:
        assert math.isclose(one.log_prob, log_prob(model, x, tuple(one.tokens)), rel_tol=1e-9)


@pytest.mark.parametrize("number", range(len(RULES)))
def test_what_is_drawn_keeps_the_rule(model: EncoderDecoder[Any], number: int) -> None:
    options, keeps = RULES[number]
    (found,) = generate(model, source(), n_best=30, sample=True, max_length=LONGEST, **options)
    drawn = {tuple(one.tokens) for one in found if one.finished}
    assert drawn and all(keeps(one) for one in drawn)


def test_each_source_has_a_prefix_of_its_own(model: EncoderDecoder[Any]) -> None:
    x = source(3)
    prefix = [[4, 4], [], [0]]
    found = generate(model, x, beam=3, n_best=2, max_length=5, prefix=prefix)
    for row, of_source in enumerate(found):
        for one in of_source:
            assert one.tokens[: len(prefix[row])] == prefix[row]
        alone = generate(model, x[row : row + 1], beam=3, n_best=2, max_length=5,
                         prefix=[prefix[row]])[0]  # fmt: skip
        assert [one.tokens for one in of_source] == [one.tokens for one in alone]


def test_the_repetition_penalty_is_that_of_the_formula(model: EncoderDecoder[Any]) -> None:
    def penalised(logits: Tensor, before: Target) -> Tensor:
        changed = logits.clone()
        for word in set(before):
            changed[word] = logits[word] / 1.7 if logits[word] > 0 else logits[word] * 1.7
        return changed

    x = source()
    (found,) = generate(model, x, beam=400, n_best=9, max_length=LONGEST, repetition_penalty=1.7)
    for one in found:
        total = log_prob(model, x, tuple(one.tokens), penalised)
        assert math.isclose(one.log_prob, total, rel_tol=1e-9)


def test_penalties_of_the_length(model: EncoderDecoder[Any]) -> None:
    assert length_penalty(4, 0.5, "power") == 2.0
    options: dict[str, Any] = {"beam": 400, "n_best": 400, "max_length": LONGEST}
    (every,) = generate(model, source(), alpha=0.0, **options)
    for alpha in (1.0, 0.6, -0.5):
        (found,) = generate(model, source(), alpha=alpha, penalty="power", **options)
        expected = sorted(
            (one.log_prob / (len(one.tokens) + 1) ** alpha for one in every), reverse=True
        )
        assert [one.score for one in found] == pytest.approx(expected)
        (few,) = generate(model, source(), alpha=alpha, penalty="power", **options | {"n_best": 2})
        assert [one.tokens for one in few] == [one.tokens for one in found[:2]]


def test_coverage_is_that_of_the_formula(model: EncoderDecoder[Any]) -> None:
    x, beta = source(), 0.8
    options: dict[str, Any] = {"beam": 400, "alpha": 0.7, "max_length": LONGEST}
    (every,) = generate(model, x, n_best=400, **options)

    def score(tokens: list[int], plain: float) -> float:
        weights = told(model, x, tuple(tokens)).weights[0]
        weights = weights[-1].mean(0) if weights.dim() == 4 else weights.mean(0)  # [T, Ts]
        return plain + beta * weights.sum(0).clamp(max=1).log().sum().item()

    expected = {tuple(one.tokens): score(one.tokens, one.score) for one in every}
    (found,) = generate(model, x, n_best=5, coverage=beta, **options)
    best = sorted(expected.items(), key=lambda pair: -pair[1])[:5]
    assert [(tuple(one.tokens), one.score) for one in found] == [
        (tokens, pytest.approx(value)) for tokens, value in best
    ]
    assert found[0].weights is None
    (again,) = generate(model, x, n_best=1, coverage=beta, return_attention=True, **options)
    assert again[0].weights is not None


def test_top_p_draws_the_likeliest_alone(model: EncoderDecoder[Any]) -> None:
    x = source()
    first = told(model, x, ()).logits[0, 0].softmax(-1)
    order = first.argsort(descending=True).tolist()
    top_p = float(first[order[0]] + first[order[1]] / 2)  # reached by the second
    torch.manual_seed(0)
    (found,) = generate(model, x, n_best=200, sample=True, top_p=top_p, max_length=1)
    starts = {one.tokens[0] if one.tokens else EOS for one in found}
    assert starts == set(order[:2])
    (greedy,) = generate(model, x, n_best=20, sample=True, top_p=1e-9, max_length=4)
    assert len({tuple(one.tokens) for one in greedy}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_length": 5, "max_length": 4}, "min_length is 5; expected 0 to 4"),
        ({"min_length": -1}, "min_length is -1"),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram is 0; expected at least 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; expected a number above 0"),
        ({"prefix": [[4], [4]]}, "prefix has 2 beginnings; expected 1"),
        ({"prefix": [[EOS]]}, "prefix has the token 3; .* not the end symbol"),
        ({"prefix": [[9]]}, "prefix has the token 9; expected tokens of the target, 0 to 4"),
        ({"prefix": [[4, 4, 4]], "max_length": 2}, "prefix has 3 tokens; a target has at most 2"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"penalty": "sum"}, "penalty is 'sum'; expected 'wu' or 'power'"),
        ({"coverage": math.inf}, "coverage is inf"),
        ({"coverage": 1.0, "sample": True}, "belongs to beam search"),
    ],
)
def test_rules_that_cannot_be_kept(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(Transformer(SOURCE, TARGET, size=4, heads=1, layers=1), source(), **options)


def test_coverage_needs_attention_to_the_source() -> None:
    encoder = RecurrentEncoder(3, 2, "gru", bidirectional=True)
    model = Seq2Seq(encoder, plain(3, 4, 4), source_size=SOURCE, target_size=TARGET)
    with pytest.raises(ValueError, match="coverage needs the attention to the source"):
        generate(model, source(), beam=2, coverage=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"forbid": [4]}, {"min_length": 3}])
def test_the_best_tokens_are_those_of_all_log_probabilities(dtype, options) -> None:
    logits, rules = 9 * torch.randn(3, 50, dtype=dtype), Rules(EOS, **options)
    written, of_source = torch.zeros(3, 2, dtype=torch.int64), torch.arange(3)
    found, tokens = rules.best(logits, 4, written, of_source)
    every = rules.log_probs(logits, written, of_source)
    torch.testing.assert_close(found, every.topk(4).values, rtol=1e-6, atol=1e-6)
    assert found.dtype == torch.float64 and torch.equal(tokens, every.topk(4).indices)
    assert rules.best(logits, 99, written, of_source)[1].shape == (3, 50)
