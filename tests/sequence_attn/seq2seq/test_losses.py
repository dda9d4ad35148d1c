"""The sampled softmax against the whole one."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core import Entmax
from sequence_attn.seq2seq import entmax_loss, sampled_softmax_loss

N, D, V = 6, 4, 40


def parts(classes: int = V) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden, weight, bias = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((N, D), (classes, D), (classes,))
    )
    return hidden, weight, bias, torch.randint(classes, (N,))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("ignored", [None, 0, -100])
def test_with_every_class_it_is_the_cross_entropy(with_bias, ignored):
    hidden, weight, bias, target = parts()
    bias = bias if with_bias else None
    options = {} if ignored is None else {"ignore_index": ignored}
    if ignored is not None:
        target[1::2] = ignored
    leaves = [hidden, weight] + ([bias] if with_bias else [])
    full = F.cross_entropy(F.linear(hidden, weight, bias), target, **options)
    loss = sampled_softmax_loss(hidden, weight, bias, target, samples=V, **options)
    torch.testing.assert_close(loss, full)
    torch.testing.assert_close(torch.autograd.grad(loss, leaves), torch.autograd.grad(full, leaves))


def test_the_formula(monkeypatch):
    """-log exp(s_t - log q_t) / Σ exp(s_j - log q_j), over the drawn classes and the target."""
    hidden, weight, bias, target = parts()
    drawn, q = [3, 0, 17], torch.rand(V, dtype=torch.float64)
    draw = torch.tensor(drawn), q.log()
    monkeypatch.setattr("sequence_attn.seq2seq.losses._draw", lambda *_: draw)
    target[0] = 17  # drawn as well, and counted once
    expected = 0.0
    for h, true in zip(hidden, target.tolist(), strict=True):
        masses = {j: torch.exp(weight[j] @ h + bias[j]) / q[j] for j in {*drawn, true}}
        expected -= torch.log(masses[true] / sum(masses.values())) / N
    loss = sampled_softmax_loss(hidden, weight, bias, target, samples=3)
    torch.testing.assert_close(loss, expected)


def test_rows_of_any_shape():
    hidden, weight, bias, target = parts()
    shaped = hidden.view(2, 3, D), weight, bias, target.view(2, 3)
    ours = sampled_softmax_loss(*shaped, samples=V)
    torch.testing.assert_close(ours, sampled_softmax_loss(hidden, weight, bias, target, samples=V))


def test_its_gradient_tends_to_that_of_all_classes():
    hidden, weight, bias, target = parts()
    full = F.cross_entropy(F.linear(hidden, weight, bias), target)
    (exact,) = torch.autograd.grad(full, hidden)

    def distance(samples: int, draws: int = 100) -> float:
        losses = [
            sampled_softmax_loss(hidden, weight, bias, target, samples=samples)
            for _ in range(draws)
        ]
        (mean,) = torch.autograd.grad(torch.stack(losses).mean(), hidden)
        return float((mean - exact).norm() / exact.norm())

    distances = [distance(samples) for samples in (2, 8, 24, V - 1)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.3 and distances[-1] < 0.03


def test_a_model_that_is_right_stays_right():
    """Where the scores are the logarithms of how often each class is the target, the full
    gradient is zero; so is the mean of the sampled one, which without the correction for how
    likely a class is to be drawn would make frequent classes rarer."""
    often = torch.tensor([1, 2, 3, 1, 4, 1])
    target = torch.arange(6).repeat_interleave(often)
    bias = often.double().log().requires_grad_()
    hidden, weight = torch.ones(len(target), 1).double(), torch.zeros(6, 1).double()
    full = F.cross_entropy(F.linear(hidden, weight, bias), target)
    assert torch.autograd.grad(full, bias)[0].abs().max() < 1e-12
    losses = [sampled_softmax_loss(hidden, weight, bias, target, samples=3) for _ in range(1500)]
    (mean,) = torch.autograd.grad(torch.stack(losses).mean(), bias)
    assert mean.abs().max() < 0.025  # without the correction 0.05


def test_frequent_classes_are_drawn_more_often():
    """One draw is class j with probability log((j + 2) / (j + 1)) / log(V + 1)."""
    classes, draws = 6, 1000
    hidden, target = torch.ones(1, 1).double(), torch.tensor([classes - 1])
    weight = torch.zeros(classes, 1, dtype=torch.float64, requires_grad=True)
    seen = torch.zeros(classes)
    for _ in range(draws):
        loss = sampled_softmax_loss(hidden, weight, None, target, samples=1)
        seen += torch.autograd.grad(loss, weight)[0].squeeze(1) > 0
    j = torch.arange(classes - 1)
    expected = torch.log((j + 2) / (j + 1)) / math.log(classes + 1)
    assert (seen[:-1] / draws - expected).abs().max() < 0.05
    assert not seen[-1]  # the target itself counts once, and is pushed up


def test_only_the_drawn_classes_and_the_targets_get_a_gradient():
    hidden, weight, bias, target = parts(500)
    sampled_softmax_loss(hidden, weight, bias, target, samples=7).backward()
    moved = weight.grad.abs().sum(1).nonzero().flatten()
    assert len(moved) <= 7 + len(target.unique())
    assert torch.isin(target, moved).all()


def test_rows_that_do_not_count():
    hidden, weight, bias, target = parts()
    dirty = hidden.detach().clone()
    dirty[2:] = math.nan
    dirty.requires_grad_()
    ignored = target.clone()
    ignored[2:] = -100
    loss = sampled_softmax_loss(dirty, weight, bias, ignored, samples=V)
    expected = sampled_softmax_loss(hidden[:2], weight, bias, target[:2], samples=V)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert not dirty.grad[2:].any() and weight.grad.isfinite().all()
    nothing = sampled_softmax_loss(hidden, weight, bias, target.fill_(-100), samples=5)
    assert nothing == 0
    nothing.backward()
    assert not hidden.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("samples", [5, V])
def test_other_precisions(dtype, samples):
    hidden, weight, bias, target = (
        x.detach().to(dtype) if x.is_floating_point() else x for x in parts()
    )
    loss = sampled_softmax_loss(hidden, weight, bias, target, samples=samples)
    assert loss.dtype == dtype and loss.isfinite()
    if samples == V:
        full = F.cross_entropy(F.linear(hidden, weight, bias).float(), target)
        torch.testing.assert_close(loss.float(), full, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(dtype):
    hidden, weight, bias, target = (
        x.detach().float().requires_grad_() if x.is_floating_point() else x for x in parts()
    )
    with torch.autocast("cpu", dtype):
        loss = sampled_softmax_loss(hidden, weight, bias, target, samples=V)
    full = F.cross_entropy(F.linear(hidden, weight, bias), target)
    torch.testing.assert_close(loss.float(), full, rtol=0.03, atol=0.03)
    loss.backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"samples": 0}, ValueError, "samples is 0; expected 1 to 40, the number of classes"),
        ({"samples": V + 1}, ValueError, "samples is 41; expected 1 to 40"),
        (
            {"target": torch.zeros(N + 1).long()},
            ValueError,
            r"target has shape \[7\]; expected \[6\], one class for each row",
        ),
        ({"target": torch.full((N,), V)}, IndexError, "target has the class 40; expected 0 to 39"),
        ({"target": torch.full((N,), -1)}, IndexError, "target has the class -1; expected 0 to 39"),
        ({"target": torch.zeros(N)}, TypeError, "target has dtype torch.float32; expected int64"),
        (
            {"weight": torch.zeros(V, D + 1).double()},
            ValueError,
            r"weight has shape \[40, 5\]; expected \[V, 4\]",
        ),
        ({"bias": torch.zeros(V - 1).double()}, ValueError, r"bias has shape \[39\]; expected"),
    ],
)
def test_bad_input(change, error, message):
    hidden, weight, bias, target = parts()
    given = {"hidden": hidden, "weight": weight, "bias": bias, "target": target, "samples": 5}
    with pytest.raises(error, match=message):
        sampled_softmax_loss(**given | change)


ALPHAS = [1, 1.2, 1.5, 2, 3]


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_gradient_of_the_entmax_loss_is_what_is_predicted_too_much(alpha):
    logits = torch.randn(4, 3, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randint(7, (4, 3))
    (found,) = torch.autograd.grad(entmax_loss(logits, target, alpha=alpha), logits)
    weights = Entmax(alpha).dense(logits.detach())
    torch.testing.assert_close(found, (weights - F.one_hot(target, 7)) / 12)
    small = logits[0, :2].detach().requires_grad_()

    def of(x):
        return entmax_loss(x, target[0, :2], alpha=alpha, reduction="sum")

    assert torch.autograd.gradcheck(of, small)
    assert torch.autograd.gradgradcheck(of, small)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_entmax_loss_is_that_of_the_definition(alpha):
    """Of all distributions, p maximises <p, z> + Ω; the loss compares that with the target's."""
    logits = torch.randn(5, 4, dtype=torch.float64)
    target = torch.randint(4, (5,))
    found = entmax_loss(logits, target, alpha=alpha, reduction="none")
    draws = torch.distributions.Dirichlet(torch.full((4,), 0.5).double()).sample((20000,))
    entropy = -(draws * draws.clamp(min=1e-300).log()).sum(-1)
    if alpha != 1:
        entropy = (1 - draws.pow(alpha).sum(-1)) / (alpha * (alpha - 1))
    best = (draws @ logits.T + entropy[:, None]).amax(0)  # from below
    expected = best - logits.gather(1, target[:, None]).squeeze(1)
    assert (found >= expected - 1e-12).all()
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)


def test_a_target_that_is_predicted_alone_costs_nothing():
    logits = torch.tensor([[9.0, 0.0, -math.inf], [0.0, 9.0, 0.0]], requires_grad=True)
    loss = entmax_loss(logits, torch.tensor([0, 1]), reduction="none")
    assert loss.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert not gradient.any()


def test_rows_of_the_entmax_loss_that_do_not_count():
    logits = torch.randn(3, 4)
    target = torch.tensor([1, -100, 3])
    each = entmax_loss(logits, target, reduction="none")
    assert each[1] == 0
    torch.testing.assert_close(entmax_loss(logits, target), each.sum() / 2)
    torch.testing.assert_close(entmax_loss(logits, target, reduction="sum"), each.sum())
    none = entmax_loss(logits, torch.full((3,), -100))
    assert none == 0
    assert entmax_loss(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)) == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"alpha": 0.5}, ValueError, "alpha is 0.5; expected at least 1"),
        ({"reduction": "max"}, ValueError, "reduction is 'max'"),
        ({"target": torch.zeros(3)}, TypeError, "target has dtype torch.float32"),
        ({"target": torch.zeros(2, dtype=torch.int64)}, ValueError, r"expected \[3\]"),
        ({"target": torch.tensor([0, 4, 1])}, IndexError, "the class 4; expected 0 to 3"),
    ],
)
def test_what_the_entmax_loss_refuses(changes, error, message):
    given = {"logits": torch.zeros(3, 4), "target": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(error, match=message):
        entmax_loss(**{**given, **changes})
