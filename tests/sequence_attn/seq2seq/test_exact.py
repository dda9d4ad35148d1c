"""Exact hard attention: what it sums over is all alignments, and nothing else."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_attn.seq2seq import ExactHardSeq2Seq, RecurrentEncoder, generate

SOURCE, TARGET, BOS, EOS = 9, 6, 2, 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def model_of(monotonic: bool, cell: str = "lstm", **options: Any) -> ExactHardSeq2Seq:
    encoder = RecurrentEncoder(3, 2, "lstm", bidirectional=True)
    model = ExactHardSeq2Seq(
        encoder,
        source_size=SOURCE,
        target_size=TARGET,
        monotonic=monotonic,
        cell=cell,
        **options,
    )
    model = model.double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


both = pytest.mark.parametrize("monotonic", [False, True])


def parts(model: ExactHardSeq2Seq, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Scores `[T, Ts]` and probabilities of the tokens `[T, Ts, V]` of one pair."""
    state = model.start(model.encode(source[None]))
    read, _ = model._run(target[None], state)
    scores, emission = model._match(read, state)
    return scores[0], emission[0].exp()


@both
@torch.no_grad()
def test_the_probability_of_a_target_is_the_sum_over_its_alignments(monotonic: bool) -> None:
    model = model_of(monotonic)
    source, target = torch.tensor([5, 4, 8, 6]), torch.tensor([BOS, 4, 5, 1])
    told, wanted = target[:-1], target[1:]
    scores, emission = parts(model, source, told)
    total = 0.0
    for alignment in itertools.product(range(len(source)), repeat=len(wanted)):
        probability, before = 1.0, 0
        for t, j in enumerate(alignment):
            open_to = range(before if monotonic else 0, len(source))
            if j not in open_to:
                probability = 0.0
                break
            prior = math.exp(scores[t, j]) / sum(math.exp(scores[t, k]) for k in open_to)
            probability *= prior * emission[t, j, wanted[t]].item()
            before = j
        total += probability
    logits = model(source[None], told[None]).logits[0]
    ours = logits.gather(1, wanted[:, None]).sum().exp().item()
    assert math.isclose(ours, total, rel_tol=1e-10)


@both
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@torch.no_grad()
def test_step_by_step_and_all_at_once(monotonic: bool, cell: str) -> None:
    model = model_of(monotonic, cell)
    source, lengths = torch.randint(4, SOURCE, (3, 5)), torch.tensor([5, 2, 3])
    target = torch.randint(0, TARGET, (3, 4))
    logits = model(source, target, source_lengths=lengths).logits
    state = model.start(model.encode(source, lengths))
    for t, token in enumerate(target.unbind(1)):
        scores, state = model.step(token, state)
        torch.testing.assert_close(scores, logits[:, t])


@both
@torch.no_grad()
def test_padding_changes_nothing_and_takes_no_weight(monotonic: bool) -> None:
    model = model_of(monotonic)
    source, lengths = torch.randint(4, SOURCE, (3, 5)), torch.tensor([5, 2, 3])
    target = torch.randint(0, TARGET, (3, 4))
    found = model(source, target, source_lengths=lengths, need_weights=True)
    assert found.weights is not None and found.weights.shape == (3, 1, 4, 5)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(3, 1, 4).double())
    for row, length in enumerate(lengths.tolist()):
        alone = model(source[row : row + 1, :length], target[row : row + 1], need_weights=True)
        torch.testing.assert_close(found.logits[row], alone.logits[0])
        torch.testing.assert_close(found.weights[row, ..., :length], alone.weights[0])
        assert not found.weights[row, ..., length:].any()


@both
def test_gradients_are_those_of_finite_differences(monotonic: bool) -> None:
    model = model_of(monotonic)
    source, lengths = torch.randint(4, SOURCE, (2, 4)), torch.tensor([4, 2])
    target = torch.tensor([[BOS, 4, 5], [BOS, 1, EOS]])

    def loss(*weights: Tensor) -> Tensor:
        names = ("attention.weight", "of_position.weight", "output.bias")
        changed = dict(zip(names, weights, strict=True))
        logits = torch.func.functional_call(
            model, changed, (source, target), {"source_lengths": lengths}
        ).logits
        return logits[:, :, 4].sum()

    leaves = (model.attention.weight, model.of_position.weight, model.output.bias)
    assert torch.autograd.gradcheck(loss, [x.detach().requires_grad_() for x in leaves])


@torch.no_grad()
def test_monotonic_alignments_do_not_turn_back() -> None:
    model = model_of(True)
    source, target = torch.randint(4, SOURCE, (1, 6)), torch.randint(0, TARGET, (1, 5))
    model.attention.weight.zero_()
    model.output.weight.zero_()  # tokens say nothing of where they come from
    weights = model(source, target, need_weights=True).weights[0, 0]
    passed = weights.cumsum(-1)  # how likely a position is passed falls with time
    assert (passed.diff(dim=0) <= 1e-12).all()
    assert not torch.allclose(weights[0], weights[-1])


@both
def test_a_wide_beam_finds_the_most_probable(monotonic: bool) -> None:
    model = model_of(monotonic)
    source = torch.randint(4, SOURCE, (2, 4))
    words = [word for word in range(TARGET) if word != EOS]
    found = generate(model, source, beam=200, n_best=3, alpha=0.0, max_length=2)
    for row, hypotheses in enumerate(found):
        every = {}
        for length in range(3):
            for one in itertools.product(words, repeat=length):
                told = torch.tensor([[BOS, *one]])
                with torch.no_grad():
                    logits = model(source[row : row + 1], told).logits[0]
                every[one] = sum(logits[t, word].item() for t, word in enumerate([*one, EOS]))
        best = sorted(every, key=lambda one: -every[one])[:3]
        assert [tuple(one.tokens) for one in hypotheses] == best


@both
def test_a_source_without_a_token_and_a_target_without_one(monotonic: bool) -> None:
    model = model_of(monotonic)
    source = torch.randint(4, SOURCE, (2, 3))
    lengths = torch.tensor([0, 3])
    logits = model(source, torch.randint(0, TARGET, (2, 3)), source_lengths=lengths).logits
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    empty = model(source, torch.zeros(2, 0, dtype=torch.int64), need_weights=True)
    assert empty.logits.shape == (2, 0, TARGET) and empty.weights.shape == (2, 1, 0, 3)
    none = model.eval()(source[:, :0], source[:, :2] % TARGET, need_weights=True)
    assert none.weights.shape == (2, 1, 2, 0)
    alone = model(source, source[:, :2] % TARGET, source_lengths=torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(none.logits, alone.logits)
    assert len(model.generate(source[:, :0], max_length=3)) == 2


@both
def test_it_learns_to_copy(monotonic: bool) -> None:
    torch.manual_seed(0)
    encoder = RecurrentEncoder(12, 16, "lstm", bidirectional=True)
    model = ExactHardSeq2Seq(
        encoder, source_size=12, target_size=12, state_size=32, monotonic=monotonic
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        source = torch.randint(4, 12, (32, 5))
        target = torch.cat([torch.full((32, 1), BOS), source, torch.full((32, 1), EOS)], 1)
        logits = model(source, target[:, :-1]).logits
        loss = torch.nn.functional.nll_loss(logits.flatten(0, 1), target[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.randint(4, 12, (20, 5))
    found = generate(model, source, max_length=6)
    right = sum(
        one[0].tokens == row.tolist() for one, row in zip(found, source, strict=True) if one
    )
    assert right >= 18


@both
def test_what_the_output_layer_reads_is_dropped_alike_at_all_positions(monotonic: bool) -> None:
    model = model_of(monotonic, dropout=0.5).train()
    with torch.no_grad():
        model.of_position.weight.zero_()  # all positions then say the same
    source, target = torch.randint(4, SOURCE, (2, 5)), torch.randint(0, TARGET, (2, 3))
    state = model.start(model.encode(source))
    read, _ = model._run(target, state)
    _, emission = model._match(read, state)
    torch.testing.assert_close(emission, emission[:, :, :1].expand_as(emission))
    assert not torch.allclose(emission, model._match(read, state)[1])
    model.eval()
    torch.testing.assert_close(model._match(read, state)[1], model._match(read, state)[1])
    logits = model(source, target).logits
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones_like(logits[..., 0]))
