"""4: advantages of the K rollouts of a group. Pure functions on rewards (..., K)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_ript.types import RolloutGroup

AdvantageEstimator = Literal["leave_one_out", "group_normalized", "plain"] | Callable[[Tensor], Any]
"""One of the functions below by its name, or any from rewards (..., K) to advantages (..., K).

The command line would insist on an annotated result, were it not for `Any`."""


def leave_one_out(rewards: Tensor) -> Tensor:
    """Each reward minus the mean of the other K - 1 (RLOO; RIPT-VLA equation 3).

    Args:
        rewards: (..., K) float, K at least 2.

    Returns:
        Advantages (..., K).

    Raises:
        ValueError: If K is 1: there is no other rollout to compare with.
    """
    _check(rewards)
    k = rewards.shape[-1]
    return (rewards - rewards.mean(-1, keepdim=True)) * (k / (k - 1))


def group_normalized(rewards: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Rewards centred and divided by the group's standard deviation (GRPO)."""
    _check(rewards)
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (rewards.std(-1, keepdim=True) + epsilon)


def plain(rewards: Tensor) -> Tensor:
    """The rewards themselves (REINFORCE without a baseline)."""
    return rewards.clone()


def estimate(estimator: AdvantageEstimator, rewards: Tensor) -> Tensor:
    """Applies an estimator to rewards (..., K).

    Raises:
        ValueError: If it does not return a finite advantage for each reward.
    """
    function = _ESTIMATORS[estimator] if isinstance(estimator, str) else estimator
    advantages = function(rewards)
    if advantages.shape != rewards.shape or not advantages.isfinite().all():
        raise ValueError(
            f"model.advantage made {advantages.tolist()} of the rewards {rewards.tolist()}: it has "
            "to return one finite advantage for each reward."
        )
    return advantages


def group_advantages(estimator: AdvantageEstimator, groups: Sequence[RolloutGroup]) -> Tensor:
    """The advantage of every decision (N,): all decisions of an episode share its advantage."""
    per_rollout = [estimate(estimator, torch.tensor(group.rewards)) for group in groups]
    lengths = torch.tensor([r.decisions for group in groups for r in group.rollouts]).long()
    # An empty tensor first: a rank may hold no group.
    return torch.cat([torch.empty(0), *per_rollout]).repeat_interleave(lengths)


def _check(rewards: Tensor) -> None:
    if rewards.shape[-1] < 2:
        raise ValueError(
            f"a group of {rewards.shape[-1]} rollout has no others to be compared with: "
            "set rollouts_per_context to 2 or more."
        )


_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "leave_one_out": leave_one_out,
    "group_normalized": group_normalized,
    "plain": plain,
}
