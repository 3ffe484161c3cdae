"""4, with a value function instead of a group's mean: PPO's critic, for ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_ript.advantages import Credit, concatenate

_EPSILON = 1e-6


@dataclass(frozen=True)
class CriticConfig:
    """Settings of the critic.

    Attributes:
        hidden: Width of its two hidden layers.
        lr: Learning rate of its own optimizer group.
        gamma: Discount per decision. At 1 a value is the probability of success, so that the policy
            is trained for the same as without a critic; below 1 early successes count more.
        gae_lambda: How far a decision answers for what comes later: at 0 for the change of value up
            to the next decision, at 1 for the outcome, whatever the critic thinks in between. 0.95
            is PPO's usual value.
        normalize: Whether advantages get mean 0 and variance 1 over all kept decisions of all
            ranks.

    Raises:
        ValueError: If a setting makes no sense.
    """

    hidden: int = 256
    lr: float = 1e-3
    gamma: float = 1.0
    gae_lambda: float = 0.95
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.hidden < 1 or not self.lr > 0:
            raise ValueError(
                f"model.critic.hidden is {self.hidden} and model.critic.lr {self.lr}: set the "
                "first to 1 or more and the second to more than 0."
            )
        if not 0 < self.gamma <= 1 or not 0 <= self.gae_lambda <= 1:
            raise ValueError(
                f"model.critic.gamma is {self.gamma} and model.critic.gae_lambda "
                f"{self.gae_lambda}: set the first within (0, 1] and the second within [0, 1]."
            )


class Critic(nn.Module):
    """Predicts the return of a decision from what the policy saw.

    Returns lie in [0, 1], so a value is a sigmoid and its loss the cross-entropy: as that of the
    squared error, its minimum is the expected return, but its gradient does not vanish where the
    sigmoid is flat. A fresh critic says 1/2 everywhere: until it has learned, it is a constant
    baseline. Time is not among what it sees, unless the policy sees it.

    Args:
        width: Width F of the features.
        config: Settings.
    """

    def __init__(self, width: int, config: CriticConfig) -> None:
        super().__init__()
        self.config = config
        last = nn.Linear(config.hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            last,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N,) of the values, given features (N, F)."""
        return self.net(features).squeeze(-1)

    @torch.no_grad()
    def values(self, features: Tensor) -> Tensor:
        """Values (N,) in [0, 1], given features (N, F)."""
        return self(features).float().sigmoid()

    def losses(self, features: Tensor, returns: Tensor) -> Tensor:
        """Cross-entropy (N,) between returns (N,) in [0, 1] and the values of features (N, F)."""
        logits = self(features).float()
        return F.binary_cross_entropy_with_logits(logits, returns, reduction="none")


def generalized_advantages(values: Tensor, success: bool, gamma: float, lam: float) -> Tensor:
    """Generalized advantage estimates of one episode (Schulman et al. 2016, equation 16).

    The reward is 1 at the last decision of a successful episode and 0 elsewhere. An episode's end
    is terminal, its time limit too: nothing follows it.

    Args:
        values: The critic's value at each decision, (D,) float.
        success: Whether the episode succeeded.
        gamma: Discount per decision.
        lam: Discount of temporal differences, λ.

    Returns:
        (D,) float32; with the values added, the λ-returns, which are in [0, 1] if the values are.
    """
    advantages = []
    reward, following, advantage = float(success), 0.0, 0.0
    for value in reversed(values.tolist()):
        advantage = reward + gamma * following - value + gamma * lam * advantage
        advantages.append(advantage)
        reward, following = 0.0, value
    return torch.tensor(advantages[::-1], dtype=torch.float)


def discounted_success(decisions: int, success: bool, gamma: float) -> Tensor:
    """What in the end followed each decision of an episode, (D,) float32."""
    left = torch.arange(decisions - 1, -1, -1)
    return float(success) * torch.tensor(gamma) ** left


def temporal_credit(
    values: Sequence[Tensor], successes: Sequence[bool], config: CriticConfig
) -> Credit:
    """Judges each decision by how the critic's values went on after it.

    Args:
        values: Of each episode, (D,) each.
        successes: Whether each episode succeeded.
        config: Discounts.
    """
    advantages = concatenate(
        generalized_advantages(value, success, config.gamma, config.gae_lambda)
        for value, success in zip(values, successes, strict=True)
    )
    return Credit(advantages, advantages + concatenate(values))


def moments(x: Tensor) -> Tensor:
    """Number, sum and sum of squares of x, (3,) float64: what adds up over ranks."""
    x = x.double()
    return torch.stack([torch.tensor(float(len(x)), dtype=x.dtype), x.sum(), x.square().sum()])


def standardize(x: Tensor, total: Tensor) -> Tensor:
    """Shifts and scales x to the mean 0 and variance 1 of those whose `moments` are given."""
    number, sum_, squares = total.tolist()
    mean = sum_ / number
    deviation = max(squares / number - mean**2, 0.0) ** 0.5
    return (x - mean) / (deviation + _EPSILON)
