"""5: the clipped surrogate of PPO on action tokens. Pure tensor functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Surrogate:
    """The loss and what to watch beside it.

    Attributes:
        loss: Scalar, this micro-batch's share of the minibatch's loss.
        ratio: New to old probability of each token, (N, T), detached.
        clipped: Whether the clip took effect on the token, (N, T) float, detached.
        approx_kl: Per-token estimate of KL(old || new), (N, T), detached (Schulman's k3).
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    approx_kl: Tensor


SurrogateLoss = Literal["clipped"] | Callable[..., Any]
"""`clipped_surrogate` by its short name, or any other function of its keywords to a `Surrogate`."""


def clipped_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    normalizer: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Surrogate:
    """Clipped policy-gradient loss (Schulman et al. 2017, equation 7; RIPT-VLA equation 4).

    Args:
        log_probs: Under the current parameters, (N, T), with gradients.
        old_log_probs: At rollout time, (N, T).
        advantages: One per decision step, (N,).
        weights: Each token's share, (N, T); 0 for padding.
        normalizer: Sum of the weights over the whole minibatch on all ranks.
        clip_low: Ratios below 1 - clip_low gain nothing more when the advantage is negative.
        clip_high: Ratios above 1 + clip_high gain nothing more when the advantage is positive.
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    per_decision = advantages.unsqueeze(-1)
    free = ratio * per_decision
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high) * per_decision
    loss = -(weights * torch.minimum(free, bounded)).sum() / normalizer
    with torch.no_grad():
        clipped = (bounded < free).float()
        approx_kl = ratio - 1 - log_ratio
    return Surrogate(loss, ratio.detach(), clipped, approx_kl)


def kl_penalty(
    log_probs: Tensor, reference_log_probs: Tensor, weights: Tensor, normalizer: float
) -> Tensor:
    """Weighted mean of the k3 estimate of KL(current || reference) on sampled tokens (N, T)."""
    log_ratio = reference_log_probs - log_probs
    return (weights * (log_ratio.exp() - 1 - log_ratio)).sum() / normalizer
