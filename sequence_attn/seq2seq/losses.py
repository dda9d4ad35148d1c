"""Losses of predicted tokens: over large vocabularies, and for sparse distributions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn_core import Entmax


def sampled_softmax_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    *,
    samples: int,
    ignore_index: int = -100,
) -> Tensor:
    """The cross-entropy of the target among a few drawn classes, in place of all V.

    `-log exp(s_t - log q_t) / Σ_{j ∈ {t} ∪ S} exp(s_j - log q_j)` with `s_j = w_j·h + b_j`, where
    the classes S are drawn without replacement and q_j is how likely j is to be among them: the
    correction makes the gradient tend to that of the full softmax as S grows. Classes are drawn
    from the log-uniform (Zipf) distribution, so number them by falling frequency. Jean et al., "On
    Using Very Large Target Vocabulary for Neural Machine Translation", 2015. For training only:
    evaluate with all classes.

    Args:
        hidden: h, `[..., D]`.
        weight: w, `[V, D]`.
        bias: b, `[V]`, or None.
        target: int64 `[...]`, the class of each row.
        samples: how many classes to draw for the whole batch, 1 to V. With V it is the full
            cross-entropy.
        ignore_index: the target of rows that do not count. Default -100.

    Returns:
        The mean over the rows that count, a scalar; 0 if there are none.

    Raises:
        ValueError: samples out of range, or shapes that do not fit.
        TypeError: targets that are not int64.
        IndexError: a target that is no class.

    >>> hidden, weight = torch.randn(4, 8), torch.randn(50, 8)
    >>> target = torch.tensor([3, 0, 7, 49])
    >>> full = F.cross_entropy(hidden @ weight.T, target)
    >>> loss = sampled_softmax_loss(hidden, weight, None, target, samples=50)
    >>> torch.allclose(full, loss)
    True
    """
    classes = weight.shape[0]
    if not 1 <= samples <= classes:
        raise ValueError(f"samples is {samples}; expected 1 to {classes}, the number of classes")
    if weight.shape != (classes, hidden.shape[-1]):
        raise ValueError(
            f"weight has shape {list(weight.shape)}; expected [V, {hidden.shape[-1]}], the width "
            "of hidden"
        )
    if bias is not None and bias.shape != (classes,):
        raise ValueError(f"bias has shape {list(bias.shape)}; expected [{classes}]")
    counts = _counting("hidden", hidden, target, classes, ignore_index)
    hidden, target = hidden[counts], target[counts]
    if not target.numel():
        return hidden.sum() * 0
    drawn, log_expected = _draw(classes, samples, hidden.device)

    def scores(of: Tensor) -> Tensor:
        return F.linear(hidden, weight[of], None if bias is None else bias[of])

    log_q = log_expected.to(hidden.dtype)
    true = (hidden * weight[target]).sum(-1)
    true = (true if bias is None else true + bias[target]) - log_q[target]
    others = scores(drawn) - log_q[drawn]
    # A target that was drawn as well counts once
    others = others.masked_fill(drawn == target.unsqueeze(-1), -math.inf)
    return (torch.cat([true.unsqueeze(-1), others], -1).logsumexp(-1) - true).mean()


def _draw(classes: int, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Different classes, and the logarithm of how likely each class is to be among them."""
    if samples == classes:
        return torch.arange(classes, device=device), torch.zeros(classes, device=device)
    edges = torch.arange(1, classes + 2, device=device, dtype=torch.float64).log()
    rate = edges.diff()  # log-uniform: p_j ∝ log((j + 2) / (j + 1))
    # Exponential clocks: the first `samples` to ring are a draw without replacement, and given the
    # moment t of the next one, j is among them with probability 1 - exp(-rate_j t)
    times = torch.empty_like(rate).exponential_() / rate
    order = times.topk(samples + 1, largest=False)
    log_expected = torch.log(-torch.expm1(-rate * order.values[-1]))
    return order.indices[:samples], log_expected


def entmax_loss(
    logits: Tensor,
    target: Tensor,
    *,
    alpha: float = 1.5,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """What the cross-entropy is to softmax, for α-entmax: 0 once the target alone is predicted.

    `(1 - Σ p^α) / (α (α - 1)) + Σ p z - z_t` with `p = α-entmax(z)`, a Fenchel–Young loss, whose
    gradient is `p - e_t`. Blondel, Martins, Niculae, "Learning with Fenchel–Young Losses", 2020;
    Peters, Niculae, Martins, "Sparse Sequence-to-Sequence Models", 2019. α = 2 is the loss of
    sparsemax (Martins and Astudillo, 2016), α = 1 the cross-entropy.

    Args:
        logits: z, `[..., V]`.
        target: int64 `[...]`, the class t of each row.
        alpha: α ≥ 1. Default 1.5.
        ignore_index: the target of rows that do not count. Default -100.
        reduction: "mean" over the rows that count (0 if there are none; default), "sum", or "none".

    Returns:
        A scalar, or `[...]`.

    Raises:
        ValueError: an alpha below 1, shapes that do not fit, another reduction.
        TypeError: targets that are not int64.
        IndexError: a target that is no class.

    >>> logits = torch.tensor([[3.0, 1.0, 0.0]])
    >>> entmax_loss(logits, torch.tensor([0])), entmax_loss(logits, torch.tensor([1]), alpha=2)
    (tensor(0.), tensor(2.))
    """
    if not alpha >= 1:
        raise ValueError(f"alpha is {alpha}; expected at least 1, the cross-entropy")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; expected 'mean', 'sum' or 'none'")
    counts = _counting("logits", logits, target, logits.shape[-1], ignore_index)
    chosen = target.where(counts, 0)
    if alpha == 1:
        each = F.cross_entropy(logits.flatten(0, -2), chosen.flatten(), reduction="none").view_as(
            target
        )
    else:
        each = _FenchelYoung.apply(logits, chosen, alpha)
    each = each.masked_fill(~counts, 0)
    if reduction == "none":
        return each
    return each.sum() / counts.sum().clamp(min=1) if reduction == "mean" else each.sum()


def _counting(name: str, rows: Tensor, target: Tensor, classes: int, ignore_index: int) -> Tensor:
    """Which rows `[..., D]` count, bool `[...]`; raise unless each of them has a class."""
    if target.dtype != torch.int64:
        raise TypeError(f"target has dtype {target.dtype}; expected int64")
    if rows.shape[:-1] != target.shape:
        raise ValueError(
            f"target has shape {list(target.shape)}; expected {list(rows.shape[:-1])}, one class "
            f"for each row of {name}"
        )
    counts = target != ignore_index
    chosen = target[counts]
    if chosen.numel():
        low, high = (int(x) for x in torch.aminmax(chosen))
        if low < 0 or high >= classes:
            raise IndexError(
                f"target has the class {low if low < 0 else high}; expected 0 to {classes - 1}, or "
                f"ignore_index, {ignore_index}"
            )
    return counts


class _FenchelYoung(torch.autograd.Function):
    """The loss of each row, whose gradient needs no derivative of the weights."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, alpha: float) -> Tensor:
        weights = Entmax(alpha).dense(logits)
        ctx.save_for_backward(logits, target, weights)
        ctx.alpha = alpha
        # Of differences to the target's logit, which are small where it is predicted
        above = logits - logits.gather(-1, target.unsqueeze(-1))
        above = above.masked_fill(weights == 0, 0)  # an infinite one is not counted
        return (1 - weights.pow(alpha).sum(-1)) / (alpha * (alpha - 1)) + (weights * above).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, target, weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody differentiates this in turn
            weights = Entmax(ctx.alpha).dense(logits)
        one_hot = torch.zeros_like(weights).scatter(-1, target.unsqueeze(-1), 1)
        return grad.unsqueeze(-1) * (weights - one_hot), None, None
