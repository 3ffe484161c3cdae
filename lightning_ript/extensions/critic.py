"""PPO's critic: a learned value function judges decisions in place of the group's mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import ExplainedVariance, MeanMetric, Metric

from lightning_ript.distributed.sharding import gathered, shard
from lightning_ript.module import RIPTLightningModule
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.types import DecisionBatch, Minibatch, RolloutGroup

_EPSILON = 1e-6
_RETURNS = "returns"


@runtime_checkable
class DecisionFeatures(Protocol):
    """What a policy offers so that a critic can judge its decisions."""

    @property
    def feature_size(self) -> int:
        """Width F of `features`."""

    def features(self, record: dict[str, Tensor]) -> Tensor:
        """What a critic sees of recorded decisions, (N, F) float; it trains none of it."""


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


DEFAULT_CRITIC = CriticConfig()


class Critic(nn.Module):
    """Predicts the return of a decision from what the policy saw.

    Returns lie in [0, 1], so a value is a sigmoid and its loss the cross-entropy: as that of the
    squared error, its minimum is the expected return, but its gradient does not vanish where the
    sigmoid is flat. A fresh critic predicts 1/2 everywhere: until it has learned, it is a constant
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


class CriticModule(RIPTLightningModule):
    """RIPT with a value function that judges every decision, by generalized advantage estimation.

    Its own optimizer group comes after the policy's. `advantage` is unused.

    Args:
        policy: A policy with `DecisionFeatures`.
        critic: The critic's settings.
        **settings: Of `RIPTLightningModule`.

    Raises:
        ValueError: If a setting makes no sense.
        TypeError: If the policy offers a critic nothing to see.
    """

    def __init__(
        self, policy: PolicyAdapter, critic: CriticConfig = DEFAULT_CRITIC, **settings: Any
    ) -> None:
        super().__init__(policy, **settings)
        self.critic = Critic(features_of(policy).feature_size, critic)
        self.watched.add_metrics({"value_loss": MeanMetric()})
        self.explained_variance = ExplainedVariance()

    def shard_parts(self, mesh: Any) -> None:
        """The critic is a part of its own."""
        policy = self.policy
        shard(policy, mesh, policy.blocks(), (*policy.entry_points, "features"))
        if self.reference is not None:
            self.reference.shard(policy)
        shard(self.critic, mesh)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The policy's groups, then the critic's, which has no name."""
        critic = {"params": list(self.critic.parameters()), "lr": self.critic.config.lr}
        return [*super().parameter_groups(), critic]

    def judge(self, groups: Sequence[RolloutGroup], decisions: DecisionBatch) -> DecisionBatch:
        """Judges each decision by how the critic's values went on after it."""
        config = self.critic.config
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        with gathered(self.policy, self.critic):  # ranks have different numbers of groups
            values = list(self._values(groups, decisions))
        advantages = concatenate(
            generalized_advantages(value, rollout.success, config.gamma, config.gae_lambda)
            for value, rollout in zip(values, rollouts, strict=True)
        )
        returns = advantages + concatenate(values)
        outcomes = [discounted_success(r.decisions, r.success, config.gamma) for r in rollouts]
        self.explained_variance.update(
            concatenate(values).to(self.device), concatenate(outcomes).to(self.device)
        )
        if config.normalize:
            mine = moments(advantages).to(self.device)
            total = self.trainer.strategy.reduce(mine, reduce_op="sum")
            advantages = standardize(advantages, total)
        return replace(decisions, advantages=advantages, targets={_RETURNS: returns})

    def _values(self, groups: Sequence[RolloutGroup], decisions: DecisionBatch) -> Iterator[Tensor]:
        """The critic's values of each rollout, (D,) each.

        A group at a time, so that not even rounding depends on how ranks share the groups.
        """
        start = 0
        for group in groups:
            lengths = [rollout.decisions for rollout in group.rollouts]
            record = decisions[start : start + sum(lengths)].record
            record = {name: value.to(self.device) for name, value in record.items()}
            with self.trainer.precision_plugin.forward_context():
                values = self.critic.values(decision_features(self.policy, record)).cpu()
            yield from values.split(lengths)
            start += sum(lengths)

    def auxiliary_losses(self, batch: Minibatch) -> dict[str, Tensor]:
        """The critic's loss at each decision, the same at each of its tokens (N, T)."""
        features = decision_features(self.policy, batch.record)
        losses = self.critic.losses(features, batch.targets[_RETURNS])
        return {"value_loss": losses.unsqueeze(-1).expand_as(batch.weights)}

    def learning_metrics(self) -> dict[str, Metric]:
        """With how much of the outcomes' variance the values had told before."""
        return {**super().learning_metrics(), "explained_variance": self.explained_variance}


def features_of(policy: PolicyAdapter) -> DecisionFeatures:
    """The policy, if it has features.

    Raises:
        TypeError: It has none.
    """
    if not isinstance(policy, DecisionFeatures):
        raise TypeError(
            f"{type(policy).__name__} has no features that a critic could judge decisions by: use "
            "RIPTLightningModule without a critic, or implement feature_size and features."
        )
    return policy


@torch.no_grad()
def decision_features(policy: PolicyAdapter, record: dict[str, Tensor]) -> Tensor:
    """What a critic sees of recorded decisions, (N, F).

    Raises:
        TypeError: The policy has no features.
        ValueError: They have another shape than it says.
    """
    seeing = features_of(policy)
    features = seeing.features(record)
    size, width = len(next(iter(record.values()))), seeing.feature_size
    if features.shape != (size, width):
        raise ValueError(
            f"{type(policy).__name__}'s features are {tuple(features.shape)}, not ({size}, "
            f"feature_size {width})"
        )
    return features


def concatenate(parts: Iterable[Tensor]) -> Tensor:
    """Joins tensors (n,) float32, of which there may be none."""
    return torch.cat([torch.empty(0), *parts])


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
