"""Values that are fitted to the other rollouts of an iteration judge decisions, one by one.

RIPT judges all decisions of a rollout alike, by the other rollouts of its group. Here a decision is
judged by how the probability of success changed after it. That probability is fitted in every
iteration anew, from what the policy saw at its decisions and how these rollouts ended. As in RIPT,
a rollout has no part in what it is compared with: rollouts are split into folds, and the values of
a fold come from a network that learned from the others (cross-fitting).

Time is among what the values see: an episode that has not succeeded ends at its time limit, so the
same view is worth less, the later it is (Pardo et al. 2018, Time Limits in Reinforcement Learning).

Where many numbers are drawn in every decision, most of a policy gradient is noise. This takes much
of it away, and keeps nothing from one iteration to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import ExplainedVariance, Metric

from lightning_ript.distributed.exchange import gather_objects
from lightning_ript.extensions.critic import (
    concatenate,
    decision_features,
    discounted_success,
    features_of,
    generalized_advantages,
)
from lightning_ript.module import RIPTLightningModule
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.types import DecisionBatch, RolloutGroup

_BATCH = 256  # decisions
_WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class ValueFit:
    """How values are fitted.

    Attributes:
        gae_lambda: How far a decision answers for what comes later: at 0 for the change of value up
            to the next decision, at 1 for the outcome, whatever the values are in between.
        folds: Parts that the rollouts of each group are split into, 2 or more.
        hidden: Width of the network's two hidden layers.
        epochs: Passes over the decisions.
        lr: AdamW's learning rate.

    Raises:
        ValueError: If a setting makes no sense.
    """

    gae_lambda: float = 0.95
    folds: int = 4
    hidden: int = 64
    epochs: int = 40
    lr: float = 3e-3

    def __post_init__(self) -> None:
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"model.values.gae_lambda is {self.gae_lambda}: set it within [0, 1].")
        if self.folds < 2:
            raise ValueError(
                f"model.values.folds is {self.folds}: set it to 2 or more, so that no rollout is "
                "judged by values that were fitted to it."
            )
        if self.hidden < 1 or self.epochs < 1 or not self.lr > 0:
            raise ValueError(
                f"model.values has hidden {self.hidden}, epochs {self.epochs} and lr {self.lr}: "
                "set the first two to 1 or more and the third to more than 0."
            )


DEFAULT_FIT = ValueFit()


@dataclass(frozen=True)
class Ended:
    """What values are fitted to: one rollout.

    Attributes:
        number: Number of its context.
        k: Its number within the group.
        success: How it ended.
        features: What a policy saw at its D decisions, (D, F) float32, their numbers among it.
    """

    number: int
    k: int
    success: bool
    features: Tensor


def cross_fitted_values(rollouts: Sequence[Ended], fit: ValueFit) -> list[Tensor]:
    """The probability of success at each decision, fitted to the rollouts of the other folds.

    Args:
        rollouts: All rollouts of whole groups; their order decides how rounding goes.
        fit: How.

    Returns:
        (D,) float32 in [0, 1] for each rollout.
    """
    seen = torch.cat([rollout.features for rollout in rollouts])
    scaled = (seen - seen.mean(0)) / (seen.std(0) + 1e-3)
    lengths = torch.tensor([len(rollout.features) for rollout in rollouts])
    outcomes = torch.tensor([float(r.success) for r in rollouts]).repeat_interleave(lengths)
    folds = torch.tensor([r.k % fit.folds for r in rollouts]).repeat_interleave(lengths)
    values = torch.empty(len(seen))
    for fold in folds.unique().tolist():
        own = folds == fold
        values[own] = _fitted(scaled[~own], outcomes[~own], fit, seed=fold)(scaled[own])
    return list(values.split(lengths.tolist()))


def _fitted(
    features: Tensor, outcomes: Tensor, fit: ValueFit, seed: int
) -> Callable[[Tensor], Tensor]:
    """A function from features (N, F) to values (N,)."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(features.shape[1], fit.hidden),
            nn.GELU(),
            nn.Linear(fit.hidden, fit.hidden),
            nn.GELU(),
            nn.Linear(fit.hidden, 1),
        )
        optimizer = torch.optim.AdamW(net.parameters(), lr=fit.lr, weight_decay=_WEIGHT_DECAY)
        for _ in range(fit.epochs):
            for rows in torch.randperm(len(features)).split(_BATCH):
                logits = net(features[rows]).squeeze(-1)
                loss = F.binary_cross_entropy_with_logits(logits, outcomes[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    net.requires_grad_(False)
    return lambda x: net(x).squeeze(-1).sigmoid()


def advantages_of(rollouts: Sequence[Ended], values: Sequence[Tensor], lam: float) -> Tensor:
    """The advantages of all decisions of rollouts with these values, (N,) float32."""
    return concatenate(
        generalized_advantages(value, rollout.success, 1.0, lam)
        for value, rollout in zip(values, rollouts, strict=True)
    )


class FittedValueModule(RIPTLightningModule):
    """RIPT with cross-fitted values that judge every decision, by generalized advantage estimation.

    `advantage` is unused.

    Args:
        policy: A policy with `DecisionFeatures`.
        values: How values are fitted.
        **settings: Of `RIPTLightningModule`.

    Raises:
        ValueError: If a setting makes no sense.
        TypeError: If the policy offers nothing to see.
    """

    def __init__(
        self, policy: PolicyAdapter, values: ValueFit = DEFAULT_FIT, **settings: Any
    ) -> None:
        super().__init__(policy, **settings)
        features_of(policy)
        self.values = values
        self.explained_variance = ExplainedVariance()

    def judge(self, groups: Sequence[RolloutGroup], decisions: DecisionBatch) -> DecisionBatch:
        """Judges each decision by how the values went on after it."""
        rollouts, values = self.fitted(groups, decisions)
        outcomes = [discounted_success(len(r.features), r.success, 1.0) for r in rollouts]
        self.explained_variance.update(
            concatenate(values).to(self.device), concatenate(outcomes).to(self.device)
        )
        return replace(
            decisions, advantages=advantages_of(rollouts, values, self.values.gae_lambda)
        )

    def fitted(
        self, groups: Sequence[RolloutGroup], decisions: DecisionBatch
    ) -> tuple[list[Ended], list[Tensor]]:
        """This rank's rollouts, and their values (D,); every rank has to call it."""
        mine = list(self._ended(groups, decisions))
        everyone = sorted(chain(*gather_objects(mine)), key=lambda r: (r.number, r.k))
        fitted = cross_fitted_values(everyone, self.values)
        of = {(r.number, r.k): values for r, values in zip(everyone, fitted, strict=True)}
        return mine, [of[rollout.number, rollout.k] for rollout in mine]

    def _ended(self, groups: Sequence[RolloutGroup], decisions: DecisionBatch) -> Iterator[Ended]:
        start = 0
        for rollout in (rollout for group in groups for rollout in group.rollouts):
            record = decisions[start : start + rollout.decisions].record
            record = {name: value.to(self.device) for name, value in record.items()}
            seen = decision_features(self.policy, record).float().cpu()
            time = torch.arange(len(seen), dtype=torch.float).unsqueeze(-1)
            features = torch.cat([seen, time], dim=-1)
            yield Ended(rollout.context.index, rollout.k, rollout.success, features)
            start += rollout.decisions

    def learning_metrics(self) -> dict[str, Metric]:
        """With how much of the outcomes' variance the values tell."""
        return {**super().learning_metrics(), "explained_variance": self.explained_variance}
