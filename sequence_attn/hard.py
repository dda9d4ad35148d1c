"""Hard attention, to one key at a time, and the loss that trains it by REINFORCE."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attn_core import Hard, Normalizer, Score, Support
from attn_core.normalizers import HardLogProb
from attn_core.rows import Rows
from attn_core.transforms import values_are_visible
from sequence_attn.attention import Attention, Memory


class HardContext(NamedTuple):
    """What `HardAttention` returns.

    Attributes:
        context: the chosen value, `[B, Tq, Dv]`, or `[B, Dv]` for `[B, Dq]`.
        weights: 1 at the chosen key and 0 elsewhere, `[B, Tq, Tk]` (`[B, Tk]`); None unless asked
            for.
        log_prob: the logarithm of the probability of that choice, `[B, Tq]` (`[B]`), with
            gradients, for `HardAttentionLoss`; None in evaluation, where nothing is drawn.
        entropy: of the distribution that was drawn from, likewise, in nats.
    """

    context: Tensor
    weights: Tensor | None
    log_prob: Tensor | None
    entropy: Tensor | None


class HardAttention(Attention):
    """Attention to one key at a time: drawn in training, the best one in evaluation.

    In training the key j is drawn with probability `softmax(score(q, k))_j`. The choice has no
    gradient; it is trained by REINFORCE, with `HardAttentionLoss` on the `log_prob` and `entropy`
    that are returned, or by Gumbel straight-through, in which any loss reaches the scores through
    `softmax((score + g) / τ)`. Xu et al., "Show, Attend and Tell", 2015; Jang, Gu, Poole,
    "Categorical Reparameterization with Gumbel-Softmax", 2017.

    Args:
        score: as in `Attention`. Default "additive".
        estimator: "reinforce" (default) or "gumbel".
        temperature: τ of "gumbel"; lower is closer to the choice, and noisier. Default 1.
        query_size, key_size, attention_size, max_length, activation, bias: as in `Attention`.

    Raises:
        ValueError: another estimator, a temperature that is not above 0.

    >>> attention = HardAttention(query_size=4, key_size=6)
    >>> read = attention(torch.randn(2, 3, 4), torch.randn(2, 5, 6), need_weights=True)
    >>> read.weights.sum(-1)[0], read.log_prob.shape
    (tensor([1., 1., 1.]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        score: str | Score = "additive",
        estimator: str = "reinforce",
        temperature: float = 1.0,
        *,
        query_size: int | None = None,
        key_size: int | None = None,
        attention_size: int | None = None,
        max_length: int | None = None,
        activation: str | None = None,
        bias: bool = False,
    ) -> None:
        if estimator not in ("reinforce", "gumbel"):
            raise ValueError(f"estimator is {estimator!r}; expected 'reinforce' or 'gumbel'")
        super().__init__(
            score,
            Hard("sample" if estimator == "reinforce" else "gumbel", temperature),
            query_size=query_size,
            key_size=key_size,
            attention_size=attention_size,
            max_length=max_length,
            activation=activation,
            bias=bias,
        )

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        keys: Tensor | Memory,
        values: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        key_mask: Tensor | None = None,
        query_mask: Tensor | None = None,
        lengths: Tensor | None = None,
        causal: bool = False,
        bias: Tensor | None = None,
        step: int = 0,
        need_weights: bool = False,
    ) -> HardContext:
        """Attend; arguments as in `Attention.forward`."""
        masks = mask, key_mask, query_mask
        parts = self._parts(query, keys, values, *masks, lengths, causal, bias, step)
        if not self.training:
            return HardContext(*self._read(query, parts, need_weights), None, None)
        drawn = _Drawn(parts.normalizer, [])
        parts = dataclasses.replace(parts, normalizer=drawn)
        read = self._read(query, parts, need_weights)
        (choice,) = drawn.choices
        log_prob, entropy = (x.reshape(query.shape[:-1]) for x in choice)
        return HardContext(*read, log_prob, entropy)

    def _pairs(
        self,
        query: Tensor,
        memory: Memory,
        mask: Tensor | None,
        key_mask: Tensor | None,
        causal: bool,
        bias: Tensor | None,
        step: int,
    ) -> tuple[Support, Tensor | None, Normalizer]:
        support, bias, normalizer = super()._pairs(
            query, memory, mask, key_mask, causal, bias, step
        )
        return support, bias, normalizer if self.training else Hard()


@dataclass(frozen=True, eq=False)
class _Drawn(Normalizer):
    """The weights of a normaliser; how likely its choices were is found of the same scores."""

    normalizer: Normalizer
    choices: list[HardLogProb]

    def normalize(self, scores: Tensor, rows: Rows) -> Tensor:
        weights = self.normalizer.normalize(scores, rows)
        self.choices.append(Hard("sample").log_prob(scores, weights, rows))
        return weights


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
