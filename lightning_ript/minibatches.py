"""From kept groups to the PPO micro-batches of all passes, the same however ranks share the groups.

`flatten` is the one place where the records of episodes become a flat batch of decisions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_ript.types import DecisionBatch, Minibatch, RolloutGroup

LossAggregation = Literal["token", "sequence"]


@dataclass(frozen=True)
class LearningSchedule:
    """How often, and in what portions, an iteration's rollouts are learned from.

    Attributes:
        passes: PPO passes over all episodes.
        episodes_per_minibatch: Episodes per optimizer step over all ranks; sizes are evened out,
            so that no step rests on a small remainder.
        decisions_per_microbatch: Decision steps per forward pass at most.
        loss_aggregation: "token" weighs every token alike, "sequence" every episode.
        minibatch_parts: With "token", parts of a minibatch whose token means are averaged.
    """

    passes: int
    episodes_per_minibatch: int
    decisions_per_microbatch: int
    loss_aggregation: LossAggregation
    minibatch_parts: int = 1


@dataclass(frozen=True)
class KeptEpisode:
    """One kept episode as every rank knows it: who holds it, and how long it is.

    Attributes:
        number: Number of its context.
        k: Its number in the group.
        rank: The rank that holds it.
        decisions: Its decision steps D.
    """

    number: int
    k: int
    rank: int
    decisions: int


def kept_episodes(groups: Sequence[RolloutGroup], rank: int) -> list[KeptEpisode]:
    """Lists the episodes of this rank's groups."""
    return [
        KeptEpisode(rollout.context.index, rollout.k, rank, rollout.decisions)
        for group in groups
        for rollout in group.rollouts
    ]


def flatten(groups: Sequence[RolloutGroup]) -> DecisionBatch:
    """Joins the records of all rollouts; advantages are still zero."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = tuple(rollout.decisions for rollout in rollouts)
    if not rollouts:
        return DecisionBatch({}, torch.empty(0, 0), lengths, torch.empty(0))
    return DecisionBatch(
        record={name: torch.cat([r.record[name] for r in rollouts]) for name in rollouts[0].record},
        old_log_probs=torch.cat([r.log_probs for r in rollouts]),
        lengths=lengths,
        advantages=torch.zeros(sum(lengths)),
    )


class MinibatchSchedule:
    """Yields this rank's micro-batches; a re-iteration yields the same.

    A minibatch, between two optimizer steps, is a random set of episodes out of all ranks'
    together. Each rank contributes the decision steps it holds, batched without padding in
    micro-batches of a bounded size; ranks with less add micro-batches of weight zero so that all
    take the same number of steps.

    Args:
        mine: The decisions that this rank holds.
        episodes: The episodes of all ranks, the same list on every rank; this rank's in the order
            of `mine`.
        filler: One decision, for micro-batches of weight zero.
        schedule: How they are learned from.
        rank: This rank.
        world_size: Number of ranks.
        seed: Entropy of the shuffling.

    Attributes:
        minibatches: Of each pass, the episodes of each optimizer step.
    """

    def __init__(
        self,
        mine: DecisionBatch,
        episodes: Sequence[KeptEpisode],
        filler: DecisionBatch,
        schedule: LearningSchedule,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: tuple[int, ...] = (),
    ) -> None:
        self._mine, self._filler, self._schedule = mine, filler, schedule
        self._rank, self._world_size, self._seed = rank, world_size, seed
        self._num_tokens = filler.old_log_probs.shape[1]
        self._first_row: dict[tuple[int, int], int] = {}
        row = 0
        for episode in episodes:
            if episode.rank == rank:
                self._first_row[episode.number, episode.k] = row
                row += episode.decisions
        self._episodes = sorted(episodes, key=lambda e: (e.number, e.k))
        self.minibatches = [list(self._shuffled(number)) for number in range(schedule.passes)]

    def _shuffled(self, number: int) -> Iterator[list[KeptEpisode]]:
        """The minibatches of one pass."""
        order = np.random.default_rng((*self._seed, number)).permutation(len(self._episodes))
        parts = max(1, math.ceil(len(order) / self._schedule.episodes_per_minibatch))
        for part in np.array_split(order, parts):
            yield [self._episodes[i] for i in part]

    def _num_microbatches(self, minibatch: list[KeptEpisode]) -> int:
        per_rank = [0] * self._world_size
        for episode in minibatch:
            per_rank[episode.rank] += episode.decisions
        return max(1, math.ceil(max(per_rank) / self._schedule.decisions_per_microbatch))

    def __len__(self) -> int:
        return sum(
            self._num_microbatches(m) for minibatches in self.minibatches for m in minibatches
        )

    def __iter__(self) -> Iterator[Minibatch]:
        for minibatches in self.minibatches:
            for minibatch in minibatches:
                yield from self._microbatches(minibatch)

    def _microbatches(self, minibatch: list[KeptEpisode]) -> Iterator[Minibatch]:
        parts = self._parts(minibatch)
        tokens = [sum(e.decisions for e in part) * self._num_tokens for part in parts]
        # One part: the sum over tokens divided by their number, with weights that are exactly 1.
        normalizer = float(len(parts) if len(parts) > 1 else tokens[0])
        rows, shares = [torch.empty(0, dtype=torch.long)], [torch.empty(0)]
        for number, part in enumerate(parts):
            share = 1.0 / tokens[number] if len(parts) > 1 else 1.0
            for episode in part:
                if episode.rank == self._rank:
                    first = self._first_row[episode.number, episode.k]
                    rows.append(torch.arange(episode.decisions) + first)
                    shares.append(torch.full((episode.decisions,), share))
        mine, weights = torch.cat(rows), torch.cat(shares)
        count = self._num_microbatches(minibatch)
        pieces = zip(mine.tensor_split(count), weights.tensor_split(count), strict=True)
        for i, (some, theirs) in enumerate(pieces):
            yield self._microbatch(some, theirs, normalizer, is_last=i == count - 1)

    def _parts(self, minibatch: list[KeptEpisode]) -> list[list[KeptEpisode]]:
        """The parts of a minibatch whose token means are averaged."""
        if self._schedule.loss_aggregation == "sequence":
            return [[episode] for episode in minibatch]
        count = min(self._schedule.minibatch_parts, len(minibatch))
        return [
            [minibatch[i] for i in part] for part in np.array_split(range(len(minibatch)), count)
        ]

    def _microbatch(
        self, rows: Tensor, shares: Tensor, normalizer: float, is_last: bool
    ) -> Minibatch:
        decisions = self._mine[rows] if len(rows) else self._filler
        weights = torch.zeros_like(decisions.old_log_probs)
        if len(rows):
            weights += shares.unsqueeze(-1)
        return Minibatch(
            record=decisions.record,
            old_log_probs=decisions.old_log_probs,
            advantages=decisions.advantages,
            targets=decisions.targets,
            weights=weights,
            normalizer=normalizer,
            is_last=is_last,
        )


def filler_of(decisions: DecisionBatch) -> DecisionBatch | None:
    """The first decision with a log-probability and an advantage of zero; None without any."""
    if not len(decisions):
        return None
    first = decisions[:1]
    return replace(
        first,
        # Copies: what travels to other ranks is not the whole batch that a view belongs to.
        record={name: value.clone() for name, value in first.record.items()},
        old_log_probs=torch.zeros_like(first.old_log_probs),
        advantages=torch.zeros_like(first.advantages),
        targets={name: value.clone() for name, value in first.targets.items()},
    )
