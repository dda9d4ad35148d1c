"""The loss that trains stochastic hard attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn_core.transforms import values_are_visible


class HardAttentionLoss(nn.Module):
    """REINFORCE for hard attention, with a baseline and an entropy bonus (Xu et al., 2015).

    `loss = -λ_r · mean((R - b) · log p) - λ_H · mean(H)`, where log p and H are the log-probability
    and the entropy of the choices that led to the reward R, and the mean is over the rewards. In
    expectation its gradient is that of `-λ_r · E[R] - λ_H · mean(H)`.

    The baseline b is a moving average of the rewards of earlier calls, `b ← decay · b +
    (1 - decay) · mean(R)`, and changes in training mode only. It lowers the variance and, as it
    does not depend on the present choices, leaves the expected gradient as it is. It starts at the
    first mean reward, which is also the baseline of that first call; that multiplies the first
    expected gradient by 1 - 1/n, for n independent rewards.

    The loss trains the choice alone. What else the reward depends on (the decoder that reads the
    chosen value) has a loss of its own, to which this one is added; R is often minus that loss, for
    each sequence. Attention with `Hard("gumbel")` passes on gradients from there and needs no loss
    of this kind.

    Args:
        decay: of the moving average, in [0, 1). Default 0.9, as in the paper.
        entropy_weight: λ_H, at least 0. Default 0.002, as in the authors' program.
        reward_weight: λ_r, at least 0. Default 1.

    Attributes:
        baseline: b, a buffer `[]`.
        updates: how many times b was updated, a buffer.

    Raises:
        ValueError: a number out of its range.

    >>> loss = HardAttentionLoss(entropy_weight=0)
    >>> log_prob = torch.tensor([[-1.0, -1.0], [-2.0, -1.0]])  # [B, Tq]
    >>> loss(torch.tensor([1.0, 0.0]), log_prob, torch.zeros(2, 2))  # b = 0.5
    tensor(-0.2500)
    >>> loss.baseline
    tensor(0.5000)
    """

    baseline: Tensor
    updates: Tensor

    def __init__(
        self, decay: float = 0.9, entropy_weight: float = 0.002, reward_weight: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}; expected 0 or more, and less than 1")
        for name, weight in (("entropy_weight", entropy_weight), ("reward_weight", reward_weight)):
            if not weight >= 0:
                raise ValueError(f"{name} is {weight}; expected 0 or more")
        self.decay, self.entropy_weight, self.reward_weight = decay, entropy_weight, reward_weight
        self.register_buffer("baseline", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, reward: Tensor, log_prob: Tensor, entropy: Tensor) -> Tensor:
        """The loss of some choices.

        Args:
            reward: R, larger is better; `[B]`, one for all choices of a sequence, or of any leading
                dimensions of log_prob. No gradient goes through it.
            log_prob: of each choice, `[B, ...]`, as `attn_core.hard_log_prob` returns it. It is
                summed over the dimensions that the reward lacks: the choices that share a reward.
                Those of padding belong to none: multiply by a mask, or select `x[real]`.
            entropy: of each choice, of the same shape; summed likewise.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: shapes that do not fit, no reward at all, or one that is not finite.
        """
        self._check(reward, log_prob, entropy)
        reward = reward.detach().to(log_prob.dtype)
        mean = reward.mean()
        baseline = torch.where(self.updates == 0, mean, self.baseline.to(mean.dtype))
        if self.training:
            with torch.no_grad():
                moved = torch.where(self.updates == 0, mean, torch.lerp(mean, baseline, self.decay))
                self.baseline.copy_(moved)
                self.updates += 1
        log_prob, entropy = (
            x.unsqueeze(-1).flatten(reward.dim()).sum(-1) for x in (log_prob, entropy)
        )
        gain = ((reward - baseline) * log_prob).mean()
        return -self.reward_weight * gain - self.entropy_weight * entropy.mean()

    def _check(self, reward: Tensor, log_prob: Tensor, entropy: Tensor) -> None:
        if entropy.shape != log_prob.shape:
            raise ValueError(
                f"entropy has shape {list(entropy.shape)}; expected {list(log_prob.shape)}, that "
                "of log_prob"
            )
        if reward.shape != log_prob.shape[: reward.dim()]:
            raise ValueError(
                f"reward has shape {list(reward.shape)}; expected the leading dimensions of "
                f"log_prob, {list(log_prob.shape)}"
            )
        if reward.numel() == 0:
            raise ValueError(f"reward has shape {list(reward.shape)}; there is none to learn from")
        # One such reward would stay in the moving average for good
        if values_are_visible() and not bool(reward.isfinite().all()):
            raise ValueError("reward has entries that are not finite: clip them")

    def extra_repr(self) -> str:
        return (
            f"decay={self.decay}, entropy_weight={self.entropy_weight}, "
            f"reward_weight={self.reward_weight}"
        )
