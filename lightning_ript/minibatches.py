"""From groups to the PPO micro-batches of all passes, the same however ranks share the groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lightning_ript.advantages import Credit
from lightning_ript.types import Minibatch, RolloutGroup

Aggregation = Literal["token", "sequence"]


@dataclass(frozen=True)
class EpisodeEntry:
    """One kept episode as every rank knows it: who holds it, and how long it is.

    Attributes:
        number: Number of its context.
        k: Its number in the group.
        rank: The rank that holds it.
        decisions: Its decision steps D.
        needed: How many of them have to be computed.
    """

    number: int
    k: int
    rank: int
    decisions: int
    needed: int


def episode_entries(
    groups: Sequence[RolloutGroup], rank: int, needed: Tensor | None = None
) -> list[EpisodeEntry]:
    """Lists the episodes of this rank's groups.

    Args:
        groups: This rank's groups.
        rank: This rank.
        needed: Which of their decisions have to be computed, (N,) bool; None for all.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    lengths = [rollout.decisions for rollout in rollouts]
    counts = lengths if needed is None else [int(part.sum()) for part in needed.split(lengths)]
    return [
        EpisodeEntry(rollout.context.index, rollout.k, rank, rollout.decisions, count)
        for rollout, count in zip(rollouts, counts, strict=True)
    ]


class MinibatchSchedule:
    """Yields this rank's micro-batches; a re-iteration yields the same.

    A minibatch, between two optimizer steps, is a random set of `episodes_per_minibatch` episodes
    out of all ranks' together. Each rank contributes the decision steps it holds, batched without
    padding in micro-batches of a bounded size; ranks with less add micro-batches of weight zero so
    that all take the same number of steps.

    Decisions that nothing is learned from may be left out. They still count in the normalizer and
    their minibatch still steps, even if none is left in it, on a micro-batch of weight zero: its
    gradient is zero, but optimizers with momentum or weight decay would move, and leaving out must
    change nothing but the time it takes.

    Args:
        groups: The groups this rank holds.
        entries: The episodes of all ranks, the same list on every rank.
        rank: This rank.
        world_size: Number of ranks.
        filler: A record of one decision, name -> (1, ...), for micro-batches of weight zero.
        num_tokens: Action tokens per decision, T.
        passes: PPO passes over all episodes.
        episodes_per_minibatch: Episodes per optimizer step over all ranks; sizes are evened out,
            so that no step rests on a small remainder.
        decisions_per_microbatch: Decision steps per forward pass at most.
        aggregation: "token" weighs every token alike, "sequence" every episode.
        credit: Advantages and returns of all decisions of `groups`.
        seed: Entropy of the shuffling.
        needed: Which decisions of `groups` have to be computed, (N,) bool, as `entries` were told;
            None for all.
    """

    def __init__(
        self,
        groups: Sequence[RolloutGroup],
        entries: Sequence[EpisodeEntry],
        rank: int,
        world_size: int,
        filler: dict[str, Tensor],
        num_tokens: int,
        passes: int,
        episodes_per_minibatch: int,
        decisions_per_microbatch: int,
        aggregation: Aggregation,
        credit: Credit,
        seed: tuple[int, ...],
        needed: Tensor | None = None,
    ) -> None:
        self._entries = sorted(entries, key=lambda e: (e.number, e.k))
        self._rank, self._world_size = rank, world_size
        self._filler, self._num_tokens = filler, num_tokens
        self._passes, self._per_minibatch = passes, episodes_per_minibatch
        self._per_microbatch = decisions_per_microbatch
        self._aggregation, self._credit, self._seed = aggregation, credit, seed
        self._needed = needed

        rollouts = [rollout for group in groups for rollout in group.rollouts]
        self._offsets: dict[tuple[int, int], int] = {}
        total = 0
        for rollout in rollouts:
            self._offsets[rollout.context.index, rollout.k] = total
            total += rollout.decisions
        self._record = (
            {name: torch.cat([r.record[name] for r in rollouts]) for name in rollouts[0].record}
            if rollouts
            else {}
        )
        if rollouts:
            self._old_log_probs = torch.cat([r.log_probs for r in rollouts])
            lengths = torch.tensor([r.decisions for r in rollouts])
            self._lengths = lengths.repeat_interleave(lengths)
        self._plan = [list(self._minibatches(number)) for number in range(passes)]

    def _minibatches(self, number: int) -> Iterator[list[EpisodeEntry]]:
        order = np.random.default_rng((*self._seed, number)).permutation(len(self._entries))
        parts = max(1, math.ceil(len(order) / self._per_minibatch))
        for part in np.array_split(order, parts):
            yield [self._entries[i] for i in part]

    def _num_microbatches(self, minibatch: list[EpisodeEntry]) -> int:
        per_rank = [0] * self._world_size
        for entry in minibatch:
            per_rank[entry.rank] += entry.needed
        return max(1, math.ceil(max(per_rank) / self._per_microbatch))

    def __len__(self) -> int:
        return sum(self._num_microbatches(m) for minibatches in self._plan for m in minibatches)

    def __iter__(self) -> Iterator[Minibatch]:
        for minibatches in self._plan:
            for minibatch in minibatches:
                yield from self._microbatches(minibatch)

    def _microbatches(self, minibatch: list[EpisodeEntry]) -> Iterator[Minibatch]:
        normalizer = float(
            len(minibatch)
            if self._aggregation == "sequence"
            else sum(entry.decisions for entry in minibatch) * self._num_tokens
        )
        mine = [
            torch.arange(entry.decisions) + self._offsets[entry.number, entry.k]
            for entry in minibatch
            if entry.rank == self._rank
        ]
        rows = torch.cat(mine) if mine else torch.empty(0, dtype=torch.long)
        if self._needed is not None:
            rows = rows[self._needed[rows]]
        count = self._num_microbatches(minibatch)
        for i, part in enumerate(rows.tensor_split(count)):
            is_last = i == count - 1
            yield (
                self._gather(part, normalizer, is_last)
                if len(part)
                else self._zero_weight(normalizer, is_last)
            )

    def _gather(self, rows: Tensor, normalizer: float, is_last: bool) -> Minibatch:
        weights = torch.ones(len(rows), self._num_tokens)
        if self._aggregation == "sequence":
            weights /= (self._lengths[rows] * self._num_tokens).unsqueeze(-1)
        return Minibatch(
            {name: value[rows] for name, value in self._record.items()},
            self._old_log_probs[rows],
            self._credit.advantages[rows],
            self._credit.returns[rows],
            weights,
            normalizer,
            is_last,
        )

    def _zero_weight(self, normalizer: float, is_last: bool) -> Minibatch:
        tokens, decision = torch.zeros(1, self._num_tokens), torch.zeros(1)
        return Minibatch(self._filler, tokens, decision, decision, tokens, normalizer, is_last)
