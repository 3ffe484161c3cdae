"""4: advantages of the K rollouts of a group. Pure functions on rewards (..., K)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_ript.types import RolloutGroup

AdvantageEstimator = Literal["leave_one_out", "group_normalized", "plain"]


class Credit(NamedTuple):
    """How the N decisions of some groups are judged, in the order of groups, rollouts and time.

    Attributes:
        advantages: (N,) float32.
        returns: What followed each decision, (N,) float32 in [0, 1]: its episode's reward, or what
            a critic's value of it should have been.
    """

    advantages: Tensor
    returns: Tensor


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
    """Applies the estimator of that name to rewards (..., K)."""
    return _ESTIMATORS[estimator](rewards)


def group_credit(estimator: AdvantageEstimator, groups: Sequence[RolloutGroup]) -> Credit:
    """Judges all decisions of an episode alike, by its reward and those of its group."""
    rewards = [torch.tensor(group.rewards) for group in groups]
    lengths = torch.tensor([r.decisions for group in groups for r in group.rollouts]).long()
    advantages = concatenate(estimate(estimator, each) for each in rewards)
    return Credit(
        advantages.repeat_interleave(lengths), concatenate(rewards).repeat_interleave(lengths)
    )


def concatenate(parts: Iterable[Tensor]) -> Tensor:
    """Joins tensors (n,) float32, of which there may be none."""
    return torch.cat([torch.empty(0), *parts])


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
