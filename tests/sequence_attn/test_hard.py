"""Hard attention and its loss, against the gradients that REINFORCE estimates."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attn_core import Dense, Hard, ScaledDot, attend, hard_log_prob
from sequence_attn import HardAttention, HardAttentionLoss

F64 = torch.float64


def test_two_calls_by_hand() -> None:
    loss = HardAttentionLoss(decay=0.9, entropy_weight=0.5, reward_weight=2.0)
    log_prob, entropy = torch.tensor([-1.0, -3.0]), torch.tensor([0.2, 0.6])
    # b = 3: -2 · ((2 - 3) · -1 + (4 - 3) · -3) / 2 - 0.5 · 0.4
    first = loss(torch.tensor([2.0, 4.0]), log_prob, entropy)
    torch.testing.assert_close(first, torch.tensor(1.8))
    assert loss.baseline == 3 and loss.updates == 1
    # b = 3 still: -2 · ((7 - 3) · -1 + (9 - 3) · -3) / 2 - 0.5 · 0.4
    second = loss(torch.tensor([7.0, 9.0]), log_prob, entropy)
    torch.testing.assert_close(second, torch.tensor(21.8))
    torch.testing.assert_close(loss.baseline, torch.tensor(0.9 * 3 + 0.1 * 8))
    assert loss.updates == 2


def test_choices_that_share_a_reward_are_summed() -> None:
    log_prob, entropy = torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    of_sequence, of_step = torch.randn(2), torch.randn(2, 3)
    for reward, shared in ((of_sequence, (1, 2)), (of_step, (2,))):
        advantage = reward - reward.mean()
        expected = -(advantage * log_prob.sum(shared)).mean() - 0.1 * entropy.sum(shared).mean()
        loss = HardAttentionLoss(entropy_weight=0.1)
        torch.testing.assert_close(loss(reward, log_prob, entropy), expected)


def test_gradients_go_to_the_choices_alone() -> None:
    loss = HardAttentionLoss(entropy_weight=0.5)
    loss(torch.tensor([1.0]), torch.zeros(1), torch.zeros(1))  # b = 1
    reward, log_prob, entropy = (torch.ones(2, requires_grad=True) for _ in range(3))
    loss(3 * reward, log_prob, entropy).backward()
    assert reward.grad is None
    assert torch.equal(log_prob.grad, torch.tensor([-1.0, -1.0]))  # -(3 - 1) / 2
    assert torch.equal(entropy.grad, torch.tensor([-0.25, -0.25]))
    assert not loss.baseline.requires_grad


def test_evaluation_leaves_the_baseline_alone() -> None:
    loss = HardAttentionLoss()
    loss(torch.tensor([1.0]), torch.zeros(1), torch.zeros(1))
    loss.eval()
    assert loss(torch.tensor([5.0]), torch.tensor([-1.0]), torch.zeros(1)) == 4
    assert loss.baseline == 1 and loss.updates == 1


def test_the_baseline_is_saved_and_read() -> None:
    loss, other = HardAttentionLoss(), HardAttentionLoss()
    loss(torch.tensor([5.0]), torch.zeros(1), torch.zeros(1))
    other.load_state_dict(loss.state_dict())
    assert other.baseline == 5
    assert list(loss.parameters()) == [] and list(loss.state_dict()) == ["baseline", "updates"]
    given = torch.tensor([2.0]), torch.tensor([-1.0]), torch.zeros(1)
    assert loss(*given) == other(*given) == -3  # (2 - 5) · -1, with the sign of a loss
    assert loss.baseline == other.baseline


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float16, torch.float64])
def test_rewards_of_any_dtype(dtype: torch.dtype) -> None:
    loss = HardAttentionLoss()
    result = loss(torch.tensor([1, 0]).to(dtype), torch.tensor([-1.0, -2.0]), torch.zeros(2))
    assert result.dtype == torch.float32 and result == -0.25
    assert loss.baseline == 0.5 and loss.baseline.dtype == torch.float32


def expected_gradients(loss: HardAttentionLoss, values: Tensor, scores: Tensor) -> list[Tensor]:
    """Of the loss of two independent draws, summed over all of them by their probability."""
    p = scores.softmax(-1)
    total = torch.zeros((), dtype=F64)
    for choice in itertools.product(range(scores.shape[1]), repeat=2):
        chosen = torch.tensor(choice)[:, None]
        log_prob = p.log().gather(1, chosen).squeeze(1)
        result = copy.deepcopy(loss)(values.gather(1, chosen).squeeze(1), log_prob, 0 * log_prob)
        total = total + log_prob.sum().exp().detach() * result
    return list(torch.autograd.grad(total, scores))


def test_the_baseline_does_not_bias_the_gradient() -> None:
    values, scores = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64, requires_grad=True)
    expected_reward = (scores.softmax(-1) * values).sum(-1).mean()
    (truth,) = torch.autograd.grad(-expected_reward, scores)
    loss = HardAttentionLoss().double()
    # At first the two rewards are their own baseline
    torch.testing.assert_close(expected_gradients(loss, values, scores), [truth / 2])
    for before in (-4.0, 0.0, 7.0):
        loss(*torch.tensor([[before], [0.0], [0.0]], dtype=F64))
        torch.testing.assert_close(expected_gradients(loss, values, scores), [truth])


def test_draws_of_attention_average_to_the_gradient_of_the_expected_reward() -> None:
    draws, keys = 200_000, 4
    query = torch.tensor([0.5, -1.0], requires_grad=True)
    key, reward = torch.randn(keys, 1, 2), torch.tensor([1.0, 0.0, 2.0, -1.0])
    p = ((key[:, 0] @ query) / math.sqrt(2)).softmax(0)
    (truth,) = torch.autograd.grad(-(p * reward).sum(), query)
    loss = HardAttentionLoss(entropy_weight=0)
    loss(reward, torch.zeros(keys), torch.zeros(keys))
    given: dict[str, Any] = dict(score=ScaledDot(), support=Dense())
    repeated = query.expand(draws, 1, 2)
    drawn = attend(
        repeated, key, reward.view(keys, 1, 1), normalizer=Hard("sample"), need_weights=True,
        **given,
    )  # fmt: skip
    log_prob, entropy = hard_log_prob(repeated, key, drawn.weights, **given)
    result = loss(drawn.output[:, 0, 0], log_prob[0], entropy[0])
    (estimate,) = torch.autograd.grad(result, query)
    torch.testing.assert_close(estimate, truth, rtol=0, atol=0.01)


class Picker(nn.Module):
    """Reads one of several tokens; it has to learn which kind of token is worth reading."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, 4))

    def forward(self, tokens: Tensor, choose: str) -> tuple[Tensor, Tensor, Tensor]:
        tokens = tokens.unsqueeze(2)  # [B, T, 1, D]
        given: dict[str, Any] = dict(score=ScaledDot(), support=Dense())
        query = self.query.expand(len(tokens), 1, 1, 4)
        read = attend(query, tokens, tokens, normalizer=Hard(choose), need_weights=True, **given)
        log_prob, entropy = hard_log_prob(query, tokens, read.weights, **given)
        return read.output[:, 0, 0], log_prob[:, 0], entropy[:, 0]


def test_a_task_is_learned_from_rewards_alone() -> None:
    """Of five tokens in random places, one of each kind and a spare, reading kind 2 is rewarded."""
    model, loss = Picker(), HardAttentionLoss(entropy_weight=0.01)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2)

    def batch() -> Tensor:
        kinds = torch.stack([torch.randperm(5) for _ in range(32)]) % 4
        return nn.functional.one_hot(kinds, 4).float()

    def accuracy() -> float:
        return model(batch(), "argmax")[0][:, 2].mean().item()

    assert accuracy() < 0.5
    for _ in range(60):
        read, log_prob, entropy = model(batch(), "sample")
        optimizer.zero_grad()
        loss(read[:, 2], log_prob, entropy).backward()
        optimizer.step()
    assert accuracy() == 1
    assert model(batch(), "sample")[0][:, 2].mean() > 0.9


def test_the_entropy_bonus_keeps_the_choice_open() -> None:
    """Where every choice is rewarded alike, it makes them equally likely."""
    scores = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    loss, optimizer = HardAttentionLoss(entropy_weight=1.0), torch.optim.Adam([scores], lr=0.1)
    for _ in range(200):
        p = scores.softmax(-1)
        optimizer.zero_grad()
        loss(torch.ones(1), p[:, 1].log(), torch.special.entr(p).sum(-1)).backward()
        optimizer.step()
    torch.testing.assert_close(scores.softmax(-1), torch.full((1, 3), 1 / 3), rtol=0, atol=0.01)


def test_compiles() -> None:
    loss = HardAttentionLoss()
    compiled = torch.compile(copy.deepcopy(loss), fullgraph=True, backend="aot_eager")
    for _ in range(3):
        given = torch.randn(4), torch.randn(4, 2), torch.rand(4, 2)
        torch.testing.assert_close(compiled(*given), loss(*given))
    torch.testing.assert_close(compiled.baseline, loss.baseline)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"decay is 1\.0; expected 0 or more, and less than 1"),
        ({"decay": -0.1}, r"decay is -0\.1"),
        ({"entropy_weight": -1.0}, r"entropy_weight is -1\.0; expected 0 or more"),
        ({"reward_weight": math.nan}, "reward_weight is nan; expected 0 or more"),
    ],
)
def test_refuses_numbers_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardAttentionLoss(**options)


@pytest.mark.parametrize(
    ("reward", "entropy", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 4), r"reward has shape \[3\]; expected the leading dim"),
        (torch.zeros(2, 4, 1), torch.zeros(2, 4), r"reward has shape \[2, 4, 1\]"),
        (torch.zeros(2), torch.zeros(2), r"entropy has shape \[2\]; expected \[2, 4\]"),
        (torch.tensor([0.0, -math.inf]), torch.zeros(2, 4), "reward has entries that are not fin"),
    ],
)
def test_refuses_what_does_not_fit(reward: Tensor, entropy: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HardAttentionLoss()(reward, torch.zeros(2, 4), entropy)


def test_refuses_no_rewards() -> None:
    with pytest.raises(ValueError, match=r"reward has shape \[0\]; there is none to learn from"):
        HardAttentionLoss()(torch.zeros(0), torch.zeros(0), torch.zeros(0))


def test_what_is_drawn_in_compiled_code_has_its_own_log_probability() -> None:
    attention = HardAttention("dot", query_size=4)
    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    query, keys = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    for read in (
        compiled(query, keys, need_weights=True),
        attention(query, keys, need_weights=True),
    ):
        log_p = (query @ keys.mT).log_softmax(-1)
        torch.testing.assert_close(read.log_prob, (log_p * read.weights).sum(-1))
        torch.testing.assert_close(read.entropy, -(log_p.exp() * log_p).sum(-1))
        torch.testing.assert_close(read.context, read.weights @ keys)
