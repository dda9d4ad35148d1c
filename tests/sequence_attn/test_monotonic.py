"""Monotonic attention: the weights are the chances of a walk along the keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sequence_attn import MonotonicAttention
from sequence_attn.monotonic import alignment
from sequence_attn.seq2seq import AttentionDecoder, RecurrentEncoder

B, TQ, TK, D = 3, 4, 5, 6


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def walked(stop: Tensor, before: Tensor) -> Tensor:
    """The chance of each key to be stopped at: every way to get there, one by one."""
    chances = torch.zeros_like(before)
    for first, chance in enumerate(before):
        for key in range(first, len(stop)):
            chances[key] += chance * stop[key]
            chance = chance * (1 - stop[key])
    return chances


def layer(score: str = "additive", **options: float) -> MonotonicAttention:
    return MonotonicAttention(score, query_size=D, noise=0, **options).double()


def drawn() -> tuple[Tensor, Tensor]:
    return (torch.randn(B, n, D, dtype=torch.float64, requires_grad=True) for n in (TQ, TK))  # type: ignore[return-value]


def test_an_alignment_is_the_chance_of_a_walk() -> None:
    logits = 3 * torch.randn(20, TK, dtype=torch.float64)
    before = torch.rand(20, TK, dtype=torch.float64).softmax(-1)
    expected = torch.stack([walked(*one) for one in zip(logits.sigmoid(), before, strict=True)])
    torch.testing.assert_close(alignment(logits, before), expected, rtol=1e-12, atol=1e-14)


def test_gradients_are_those_of_the_formula() -> None:
    logits = torch.randn(2, TK, dtype=torch.float64, requires_grad=True)
    before = torch.rand(2, TK, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(alignment, (logits, before))


@pytest.mark.parametrize("scale", [1.0, 50.0, 1e4])
def test_large_scores_lose_no_digit_that_counts(scale: float) -> None:
    logits = (scale * torch.randn(3, 100)).requires_grad_()
    before = torch.zeros(3, 100)
    before[:, 50] = 1
    found = alignment(logits, before)
    each = zip(logits.detach().double().sigmoid(), before.double(), strict=True)
    expected = torch.stack([walked(*one) for one in each])
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-7)
    found.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_the_layer_goes_on_from_query_to_query() -> None:
    attention, (query, keys) = layer(), drawn()
    read = attention(query, keys, lengths=torch.tensor([5, 3, 1]), need_weights=True)
    asked, read_from = attention._project_query(query), attention._project_keys(keys)
    pairs = attention.score.pair(asked[:, :, None, None], read_from[:, None, :, None])
    logits = pairs.squeeze(-1) + attention.offset
    for sequence, length in enumerate((5, 3, 1)):
        stands = torch.zeros(TK, dtype=torch.float64)
        stands[0] = 1
        stop = logits[sequence].sigmoid()
        stop[:, length:] = 0
        for step in range(TQ):
            stands = walked(stop[step], stands)
            torch.testing.assert_close(read.weights[sequence, step], stands)
    torch.testing.assert_close(read.context, read.weights @ keys)
    assert read.memory.stands is not None
    torch.testing.assert_close(read.memory.stands, read.weights[:, -1])


def test_in_evaluation_it_stops_at_the_first_key_above_one_half() -> None:
    attention, (query, keys) = layer("dot", offset=0.0).eval(), drawn()
    weights = attention(query, keys, need_weights=True).weights
    scores = query @ keys.mT
    for sequence in range(B):
        at: int | None = 0
        for step in range(TQ):
            ahead = [] if at is None else range(at, TK)
            at = next((key for key in ahead if scores[sequence, step, key] > 0), None)
            expected = torch.zeros(TK, dtype=torch.float64)
            if at is not None:
                expected[at] = 1
            assert torch.equal(weights[sequence, step], expected)


@pytest.mark.parametrize("training", [True, False])
def test_step_by_step_it_reads_what_it_reads_at_once(training: bool) -> None:
    attention, (query, keys) = layer().train(training), drawn()
    together = attention(query, keys)
    memory = attention.precompute(keys)
    for step in range(TQ):
        one = attention(query[:, step], memory)
        torch.testing.assert_close(one.context, together.context[:, step])
        memory = one.memory
    chosen = torch.tensor([2, 0])
    assert torch.equal(memory.moved(chosen).stands, memory.stands[chosen])  # type: ignore[index]
    assert torch.equal(memory.select(chosen).key, memory.key[chosen])


def test_noise_is_for_training_alone() -> None:
    attention = MonotonicAttention("dot", query_size=D, noise=2.0)
    query, keys = torch.randn(B, TQ, D), torch.randn(B, TK, D)
    assert not torch.equal(attention(query, keys).context, attention(query, keys).context)
    attention.eval()
    assert torch.equal(attention(query, keys).context, attention(query, keys).context)
    with pytest.raises(ValueError, match="noise is -1; a standard deviation is 0 or more"):
        MonotonicAttention("dot", query_size=D, noise=-1)


@pytest.mark.parametrize("feed", [None, "context"])
def test_a_decoder_hands_it_from_step_to_step(feed: str | None) -> None:
    encoder = RecurrentEncoder(D, D).double()
    attention = layer()
    decoder = AttentionDecoder(attention, input_size=D, state_size=D, memory_size=D, feed=feed)
    decoder = decoder.double()
    encoded = encoder(torch.randn(B, TK, D, dtype=torch.float64), torch.tensor([5, 2, 4]))
    inputs = torch.randn(B, TQ, D, dtype=torch.float64)
    together = decoder(inputs, encoded, need_weights=True)
    state = decoder.start(encoded)
    for step in range(TQ):
        output, state, read = decoder.step(inputs[:, step], state, need_weights=True)
        torch.testing.assert_close(output, together.output[:, step])
        torch.testing.assert_close(read.weights, together.weights[:, :, step : step + 1])  # type: ignore[index]
    torch.testing.assert_close(together.state.memories[0].stands, state.memories[0].stands)
    order = torch.tensor([1, 0, 2])
    same = state.select(order, memory=False).memories[0]
    assert torch.equal(same.stands, state.memories[0].stands[order])  # type: ignore[index, arg-type]
    assert same.key is state.memories[0].key


def test_it_learns_to_walk() -> None:
    attention = MonotonicAttention("general", query_size=8, offset=-1.0)
    words = torch.eye(8)[torch.randint(8, (64, 6))] + 0.1 * torch.randn(64, 6, 8)
    optimizer = torch.optim.Adam(attention.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (attention(words, words).context - words).square().sum(-1).mean().backward()
        optimizer.step()
    attention.eval()
    right = attention(words, words).context.argmax(-1) == words.argmax(-1)
    assert right.float().mean() > 0.95  # each word is found, going forward alone


@pytest.mark.parametrize("training", [True, False])
def test_without_queries_or_keys_it_reads_nothing(training: bool) -> None:
    attention = layer().train(training)
    for queries, keys in ((0, TK), (TQ, 0), (0, 0)):
        query, key = (torch.randn(B, n, D, dtype=torch.float64) for n in (queries, keys))
        read = attention(query, key, need_weights=True)
        assert read.context.shape == (B, queries, D) and not read.context.any()
        assert read.weights.shape == (B, queries, keys)
