"""Search: it finds what enumerating all targets finds, and says of them what the model says."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from sequence_attn import HardAttention
from sequence_attn.seq2seq import (
    EncoderDecoder,
    Hypothesis,
    RecurrentEncoder,
    Seq2Seq,
    Transformer,
    bahdanau,
    context_only,
    generate,
    grammar,
    length_penalty,
    luong,
    plain,
)

SOURCE, TARGET = 8, 5  # sizes of the vocabularies; of the target's, one is the end
BOS, EOS = 2, 3
E, H = 3, 2
D = 2 * H
LENGTHS = torch.tensor([5, 2, 3])


def recurrent(make, cell: str = "gru") -> Seq2Seq:
    encoder = RecurrentEncoder(E, H, cell, bidirectional=True)
    return Seq2Seq(encoder, make(), source_size=SOURCE, target_size=TARGET)


def transformer(positions: str) -> Transformer:
    longest = 12 if positions == "learned" else None
    sizes = {"size": 4, "heads": 1, "layers": 1, "max_length": longest, "tie": "none"}
    return Transformer(SOURCE, TARGET, positions=positions, **sizes)


MODELS = {
    "bahdanau": lambda: recurrent(lambda: bahdanau(E, D, H)),
    "luong": lambda: recurrent(lambda: luong(E, D, D)),
    "luong without input feeding": lambda: recurrent(lambda: luong(E, D, D, input_feeding=False)),
    "local-m": lambda: recurrent(lambda: luong(E, D, D, attention="local-m", window=1)),
    "context_only": lambda: recurrent(lambda: context_only(E, D, D)),
    "grammar": lambda: recurrent(lambda: grammar(E, D, D, reads=2), "lstm"),
    "plain": lambda: recurrent(lambda: plain(E, D, D, context=True)),
    "hard": lambda: recurrent(lambda: luong(E, D, D, attention=HardAttention(query_size=D))),
    **{
        name: lambda name=name: transformer(name)
        for name in ("sinusoidal", "learned", "rotary", "alibi", "t5")
    },
}
every_model = pytest.mark.parametrize("name", MODELS)
some_models = pytest.mark.parametrize("name", ["luong", "grammar", "rotary"])


def model_of(name: str, spread: float = 0.7) -> EncoderDecoder:
    model = MODELS[name]().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=spread)
    return model


def sources(batch: int = 3) -> Tensor:
    return torch.randint(4, SOURCE, (batch, 5))


@torch.no_grad()
def told(model: EncoderDecoder, source: Tensor, lengths: Tensor, targets: list[list[int]]):
    """What the model predicts, given the tokens of targets of one length about one source."""
    target = torch.tensor([[BOS, *tokens] for tokens in targets])
    every = torch.zeros(len(targets), dtype=torch.int64)
    return model(source[every], target, source_lengths=lengths[every], need_weights=True)


def log_probs(model: EncoderDecoder, source: Tensor, lengths: Tensor, targets: list) -> Tensor:
    """`[targets, T + 1, V]`, as the model is trained."""
    return told(model, source, lengths, targets).logits.log_softmax(-1)


def all_targets(
    model: EncoderDecoder, source: Tensor, lengths: Tensor, longest: int
) -> dict[tuple[int, ...], float]:
    """Every target that ends, of at most so many tokens, and its log-probability."""
    words = [word for word in range(TARGET) if word != EOS]
    found = {}
    for length in range(longest + 1):
        targets = [list(one) for one in itertools.product(words, repeat=length)]
        of_tokens = log_probs(model, source, lengths, targets)
        picked = torch.tensor([[*one, EOS] for one in targets])
        totals = of_tokens.gather(-1, picked.unsqueeze(-1)).sum((1, 2)).tolist()
        found |= {tuple(one): total for one, total in zip(targets, totals, strict=True)}
    return found


def log_prob(model: EncoderDecoder, source: Tensor, lengths: Tensor, one: Hypothesis) -> float:
    of_tokens = log_probs(model, source, lengths, [one.tokens])[0]
    picked = one.tokens + [EOS] * one.finished
    return sum(of_tokens[t, word].item() for t, word in enumerate(picked))


def by_the_book(
    model: EncoderDecoder, source: Tensor, lengths: Tensor, beam: int, alpha: float, longest: int
) -> list[tuple[list[int], float, bool]]:
    """Beam search of one source in plain Python, each beginning decoded anew at each step."""
    beginnings, ended = [([], 0.0)], []
    for _ in range(longest + 1):
        if not beginnings:
            break
        of_tokens = log_probs(model, source, lengths, [one for one, _ in beginnings])[:, -1]
        candidates = [
            (total + of_tokens[i, word].item(), one, word)
            for i, (one, total) in enumerate(beginnings)
            for word in range(TARGET)
        ]
        best = sorted(candidates, reverse=True)[: beam - len(ended)]
        ended += [(one, total) for total, one, word in best if word == EOS]
        last, beginnings = (
            beginnings,
            [([*one, word], total) for total, one, word in best if word != EOS],
        )
    finished = [one for one, _ in ended]
    good = [(one, total / ((5 + len(one) + 1) / 6) ** alpha, True) for one, total in ended]
    cut = [
        (one, total / ((5 + len(one)) / 6) ** alpha, False)
        for one, total in (last if beginnings else [])
        if len(one) == longest and one not in finished
    ]
    return sorted(good, key=lambda x: -x[1]) + sorted(cut, key=lambda x: -x[1])


@every_model
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_wide_beam_finds_what_enumeration_finds(name, alpha):
    model, source, lengths = model_of(name), sources(1), torch.tensor([4])
    every = all_targets(model, source, lengths, 3)
    options = {"beam": 400, "alpha": alpha, "max_length": 3}
    (found,) = generate(model, source, lengths, n_best=400, **options)
    assert len(found) == len(every) == 1 + 4 + 16 + 64
    assert all(one.finished for one in found)
    for one in found:
        total = every[tuple(one.tokens)]
        assert math.isclose(one.log_prob, total, rel_tol=1e-9)
        assert math.isclose(one.score, total / ((5 + len(one.tokens) + 1) / 6) ** alpha)
    assert len({tuple(one.tokens) for one in found}) == len(every)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    # Fewer of them are the best of them, though the search then stops early
    (few,) = generate(model, source, lengths, n_best=3, **options)
    assert [one.tokens for one in few] == [one.tokens for one in found[:3]]


def assert_by_the_book(name: str, beam: int, alpha: float) -> None:
    model, source = model_of(name, 1.0), sources()
    found = generate(model, source, LENGTHS, beam=beam, n_best=beam, alpha=alpha, max_length=4)
    for i, ours in enumerate(found):
        row = slice(i, i + 1)
        theirs = by_the_book(model, source[row], LENGTHS[row], beam, alpha, 4)[:beam]
        assert [(one.tokens, one.finished) for one in ours] == [
            (tokens, finished) for tokens, _, finished in theirs
        ]
        for one, (_, score, _) in zip(ours, theirs, strict=True):
            assert math.isclose(one.score, score, rel_tol=1e-9)


@every_model
def test_beam_search_by_the_book(name):
    assert_by_the_book(name, 3, 1.0)


@some_models
@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_beams_of_any_width_by_the_book(name, beam, alpha):
    assert_by_the_book(name, beam, alpha)


@every_model
def test_greedy_search_takes_the_likeliest_token_up_to_the_end(name):
    model, source = model_of(name, 1.0), sources(4)
    lengths = torch.tensor([5, 2, 3, 1])
    found = generate(model, source, lengths, max_length=6)
    for i, (one,) in enumerate(found):
        tokens: list[int] = []
        for _ in range(7):
            of_tokens = log_probs(model, source[i : i + 1], lengths[i : i + 1], [tokens])
            word = int(of_tokens[0, -1].argmax())
            if word == EOS or len(tokens) == 6:
                break
            tokens.append(word)
        assert (one.tokens, one.finished) == (tokens, word == EOS)


@every_model
def test_a_hypothesis_has_the_probability_that_the_model_gives_it(name):
    model, source = model_of(name), sources()
    for options in ({"beam": 3, "n_best": 3}, {"sample": True, "n_best": 4}):
        found = generate(model, source, LENGTHS, max_length=4, **options)
        for i, hypotheses in enumerate(found):
            for one in hypotheses:
                row = slice(i, i + 1)
                expected = log_prob(model, source[row], LENGTHS[row], one)
                assert math.isclose(one.log_prob, expected, rel_tol=1e-9)


@every_model
def test_a_batch_is_searched_as_each_source_alone(name):
    """Also where sources are done at different times, and whatever stands in the padding."""
    model, source = model_of(name, 1.0), sources()
    options = {"beam": 3, "n_best": 2, "max_length": 6, "return_attention": True}
    dirty = source.masked_fill(torch.arange(5) >= LENGTHS[:, None], SOURCE - 1)
    found = generate(model, dirty, LENGTHS, **options)
    for i, length in enumerate(LENGTHS.tolist()):
        (alone,) = generate(model, source[i : i + 1, :length], **options)
        assert [one.tokens for one in found[i]] == [one.tokens for one in alone]
        for ours, theirs in zip(found[i], alone, strict=True):
            assert math.isclose(ours.log_prob, theirs.log_prob, rel_tol=1e-9)
            torch.testing.assert_close(ours.weights, theirs.weights)


@every_model
def test_alignments_are_the_weights_under_teacher_forcing(name):
    model, source = model_of(name), sources()
    found = generate(model, source, LENGTHS, beam=4, n_best=4, max_length=4, return_attention=True)
    for i, hypotheses in enumerate(found):
        for one in hypotheses:
            if name == "plain":
                assert one.weights is None
                continue
            row = slice(i, i + 1)
            expected = told(model, source[row], LENGTHS[row], [one.tokens]).weights[0]
            steps, keys = len(one.tokens) + one.finished, int(LENGTHS[i])
            torch.testing.assert_close(one.weights, expected[..., :steps, :keys])
            assert one.weights.shape[-2:] == (steps, keys)
            assert not one.weights.requires_grad
    assert generate(model, source, LENGTHS, max_length=2)[0][0].weights is None


def test_hypotheses_that_end_leave_their_beam():
    """The end takes a place: of 2, one is left after the first step, none after the second."""
    model, source = model_of("plain"), sources(1)
    model.output.weight.data.zero_()
    model.output.bias.data.copy_(torch.tensor([-9.0, -9.0, -9.0, 5.0, 4.0]))
    steps = []
    step = model.step
    model.step = lambda token, state: (steps.append(len(token)), step(token, state))[1]
    (found,) = generate(model, source, beam=2, n_best=2)
    assert [one.tokens for one in found] == [[], [4]]
    assert steps == [1, 1] or steps == [1, 2]


def test_a_source_that_is_done_is_decoded_no_further():
    model, source = model_of("plain"), torch.tensor([[4], [5], [4]])
    with torch.no_grad():
        # Of the source 4 the target ends at once; of 5 it never does
        for parameter in model.parameters():
            parameter.zero_()
        model.source_embedding.weight[4] = 9
        model.encoder.cell.weight_ih_l0[2 * H :] = 1
        model.encoder.cell.weight_ih_l0_reverse[2 * H :] = 1
        model.output.weight[EOS] = 20
        model.output.bias[4] = 9
    steps = []
    step = model.step
    model.step = lambda token, state: (steps.append(len(token)), step(token, state))[1]
    found = generate(model, source, max_length=5)
    assert [one[0].tokens for one in found] == [[], [4] * 5, []]
    assert [one[0].finished for one in found] == [True, False, True]
    assert steps == [3, 1, 1, 1, 1, 1]


@some_models
@pytest.mark.parametrize("beam", [1, 3])
def test_targets_that_do_not_end_are_cut_off(name, beam):
    model, source = model_of(name), sources()
    with torch.no_grad():
        model.output.bias[EOS] = -1e9
    found = generate(model, source, beam=beam, n_best=beam, max_length=3, alpha=1.0)
    for hypotheses in found:
        assert len(hypotheses) == beam
        for one in hypotheses:
            assert len(one.tokens) == 3 and not one.finished
            assert math.isclose(one.score, one.log_prob / (8 / 6))


def test_one_that_ends_comes_before_one_that_was_cut_off():
    model, source = model_of("plain"), sources(1)
    model.output.weight.data.zero_()
    model.output.bias.data.copy_(torch.tensor([-9.0, -9.0, -9.0, 0.0, 4.0]))
    (found,) = generate(model, source, beam=2, n_best=2, max_length=2)
    assert [(one.tokens, one.finished) for one in found] == [([], True), ([4, 4], False)]
    assert found[1].score > found[0].score


def test_the_length_penalty():
    assert length_penalty(1, 0.7) == 1.0
    assert length_penalty(13, 0.5) == math.sqrt(3)
    assert length_penalty(99, 0.0) == 1.0
    model, source = model_of("plain"), sources(1)
    with torch.no_grad():  # at each step the end has probability 0.4, the token 4 0.6
        model.output.weight.zero_()
        model.output.bias.copy_(torch.tensor([-99, -99, -99, math.log(0.4), math.log(0.6)]))
    for alpha, tokens in ((0.0, []), (4.0, [4, 4, 4])):
        ((best,),) = generate(model, source, beam=9, alpha=alpha, max_length=3)
        assert best.tokens == tokens
        total = len(tokens) * math.log(0.6) + math.log(0.4)
        assert math.isclose(best.score, total / ((6 + len(tokens)) / 6) ** alpha, rel_tol=1e-6)


def frequencies(found: list[Hypothesis]) -> dict[tuple[int, ...], float]:
    counts: dict[tuple[int, ...], float] = {}
    for one in found:
        key = tuple(one.tokens) + (EOS,) * one.finished
        counts[key] = counts.get(key, 0) + 1 / len(found)
    return counts


@some_models
@pytest.mark.parametrize(
    "options, temperature, top_k",
    [({}, 1.0, None), ({"temperature": 0.5}, 0.5, None), ({"top_k": 2, "temperature": 2.0}, 2, 2)],
)
def test_samples_come_as_often_as_the_model_says(name, options, temperature, top_k):
    model, source, lengths = model_of(name), sources(1), torch.tensor([4])
    expected = {}
    words = [word for word in range(TARGET) if word != EOS]
    beginnings = {(): 1.0}
    for t in range(3):  # at most two tokens, then the end or not
        of_tokens = log_probs(model, source, lengths, [list(one) for one in beginnings])[:, -1]
        scores = of_tokens / temperature
        if top_k is not None:
            kept = scores >= scores.sort(descending=True).values[:, top_k - 1, None]
            scores = scores.masked_fill(~kept, -math.inf)
        p, before = scores.softmax(-1), beginnings
        expected |= {
            (*one, EOS): total * p[i, EOS].item() for i, (one, total) in enumerate(before.items())
        }
        if t == 2:
            expected |= {
                one: total * (1 - p[i, EOS].item()) for i, (one, total) in enumerate(before.items())
            }
        beginnings = {
            (*one, word): total * p[i, word].item()
            for i, (one, total) in enumerate(before.items())
            for word in words
        }
    assert math.isclose(sum(expected.values()), 1)
    count = 3000
    (found,) = generate(model, source, lengths, sample=True, n_best=count, max_length=2, **options)
    assert len(found) == count
    seen = frequencies(found)
    assert seen.keys() <= {one for one, p in expected.items() if p > 0}
    for one, p in expected.items():
        assert abs(seen.get(one, 0) - p) <= 5 * math.sqrt(p * (1 - p) / count) + 1e-9


@some_models
def test_samples_are_sorted_and_drawn_for_each_source(name):
    model, source = model_of(name), sources()
    found = generate(model, source, LENGTHS, sample=True, n_best=20, max_length=3)
    for hypotheses in found:
        scores = [one.score for one in hypotheses]
        assert len(scores) == 20 and scores == sorted(scores, reverse=True)
    assert len({str(one) for one in found}) == 3


@pytest.mark.parametrize("options", [{"temperature": 1e-300}, {"temperature": 1e-3}, {"top_k": 1}])
def test_a_cold_sample_is_greedy(options):
    model, source = model_of("luong"), sources()
    greedy = generate(model, source, LENGTHS, max_length=5)
    cold = generate(model, source, LENGTHS, max_length=5, sample=True, **options)
    assert [one[0].tokens for one in cold] == [one[0].tokens for one in greedy]


def test_samples_have_weights_too():
    model, source = model_of("rotary"), sources()
    found = generate(
        model, source, LENGTHS, sample=True, n_best=3, max_length=3, return_attention=True
    )
    for i, hypotheses in enumerate(found):
        for one in hypotheses:
            steps = len(one.tokens) + one.finished
            assert one.weights.shape == (1, 1, steps, int(LENGTHS[i]))
            torch.testing.assert_close(one.weights.sum(-1), torch.ones(1, 1, steps).double())


@every_model
def test_sources_without_a_token(name):
    model, source = model_of(name), sources()
    for lengths in (torch.tensor([0, 3, 0]), torch.zeros(3, dtype=torch.int64)):
        found = generate(model, source, lengths, beam=2, max_length=3, return_attention=True)
        assert all(math.isfinite(one[0].log_prob) for one in found)
        if name != "plain":
            assert found[0][0].weights.shape[-1] == 0


@some_models
def test_no_sources(name):
    model, source = model_of(name), sources()[:0]
    assert generate(model, source) == []
    assert generate(model, source, beam=3, n_best=2, return_attention=True) == []
    assert generate(model, source, sample=True) == []


def test_a_search_is_without_dropout_and_leaves_every_mode_as_it_was():
    model, source = transformer("sinusoidal").train(), sources()
    model.encoder.eval()  # frozen, say
    modes = [module.training for module in model.modules()]
    first = generate(model, source, max_length=5)
    assert generate(model, source, max_length=5) == first
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="source has the token"):
        generate(model, source + SOURCE)
    assert [module.training for module in model.modules()] == modes


@some_models
def test_forbidden_tokens_are_never_written(name):
    model, source = model_of(name), sources(1)
    every = all_targets(model, source, torch.tensor([4]), 3)
    options = {"beam": 400, "n_best": 400, "max_length": 3, "forbid": [0, BOS]}
    (found,) = generate(model, source, torch.tensor([4]), **options)
    allowed = {one: total for one, total in every.items() if not {0, BOS} & set(one)}
    assert len(found) == len(allowed) == 1 + 2 + 4 + 8
    for one in found:  # with the probabilities that they have without
        assert math.isclose(one.log_prob, allowed[tuple(one.tokens)], rel_tol=1e-9)
    drawn = generate(model, source, sample=True, n_best=200, max_length=3, forbid=[0, BOS])[0]
    assert {word for one in drawn for word in one.tokens} == {1, 4}


@pytest.mark.parametrize("name", ["luong", "alibi"])
def test_the_method_is_the_function(name):
    model, source = model_of(name), sources()
    options = {"beam": 2, "n_best": 2, "max_length": 4}
    assert model.generate(source, LENGTHS, **options) == generate(model, source, LENGTHS, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["luong", "sinusoidal"])
def test_autocast(name, dtype):
    model, source = model_of(name).float(), sources()
    with torch.autocast("cpu", dtype):
        found = generate(model, source, LENGTHS, beam=2, max_length=4, return_attention=True)
    assert all(math.isfinite(one[0].log_prob) for one in found)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beam": 0}, "beam is 0; expected at least 1"),
        ({"n_best": 0}, "n_best is 0; expected at least 1"),
        ({"max_length": 0}, "max_length is 0; expected at least 1"),
        ({"beam": 2, "n_best": 3}, "n_best is 3, but beam only 2"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"temperature": math.nan}, "temperature is nan; it must be above 0"),
        ({"top_k": 0}, "top_k is 0; expected at least 1, or None for all"),
        ({"alpha": math.nan}, "alpha is nan; expected a finite number"),
        ({"forbid": [5]}, "forbid has the token 5; expected tokens of the target, 0 to 4"),
        ({"forbid": [EOS]}, "forbid has the token 3; .* not the end symbol, 3"),
        ({"source_lengths": torch.tensor([6, 1, 1])}, "lengths has the entry 6; expected 0 to 5"),
        ({"source": torch.zeros(3, 5)}, "source has .* torch.float32; expected int64"),
        ({"source": torch.full((1, 2), 8)}, "source has the token 8; expected 0 to 7"),
    ],
)
@pytest.mark.parametrize("name", ["luong", "sinusoidal"])
def test_bad_input(name, options, message):
    with pytest.raises(ValueError, match=message):
        generate(model_of(name), **{"source": sources()} | options)


@pytest.mark.parametrize("nothing", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("options", [{}, {"beam": 3}, {"sample": True}])
def test_logits_that_are_no_distribution_are_not_taken_for_an_empty_answer(
    nothing: float, options: dict
) -> None:
    model = model_of("luong")
    with torch.no_grad():
        model.output.bias.fill_(nothing)
    with pytest.raises(ValueError, match="logits of step 0 are no distribution for hypothesis 0"):
        generate(model, sources(), LENGTHS, **options)


def test_a_token_that_is_impossible_is_no_fault() -> None:
    model = model_of("luong")
    with torch.no_grad():
        model.output.bias[4] = -math.inf
    for found in generate(model, sources(), LENGTHS, beam=3, n_best=2, max_length=6):
        assert found and all(4 not in one.tokens for one in found)


def test_one_nan_among_the_logits_is_seen() -> None:
    model = model_of("sinusoidal")
    with torch.no_grad():
        model.output.bias[4] = math.nan
    with pytest.raises(ValueError, match="no distribution"):
        generate(model, sources(), LENGTHS, beam=2)


def test_sampling_says_when_nothing_is_left_to_draw() -> None:
    model = model_of("luong")
    with torch.no_grad():
        model.output.bias.fill_(-math.inf)
        model.output.bias[4] = 0.0
    with pytest.raises(ValueError, match="no token can be drawn at step 0: all that the"):
        generate(model, sources(), LENGTHS, sample=True, forbid=[4])
    assert generate(model, sources(), LENGTHS, beam=2, forbid=[4]) == [[], [], []]  # none exists
