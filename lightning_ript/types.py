"""The records that travel through the loop, in the order in which they are made.

Simulator workers unpickle `Task` and `Context`, so this module imports torch for annotations only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Observation = Mapping[str, np.ndarray]
"""What a policy sees at a decision point: images (H, W, 3) uint8, upright, and proprioception
(width,) float32, by the keys of the environment's `observation_space`."""


@dataclass(frozen=True)
class Task:
    """One task of a suite.

    Attributes:
        suite: Suite name, e.g. `libero_object`.
        index: Position of the task in the suite's official order.
        name: LIBERO's task name (file stem of the BDDL file).
        language: The instruction.
    """

    suite: str
    index: int
    name: str
    language: str


@dataclass(frozen=True)
class Perturbation:
    """Gaussian noise on where the movable objects of an initial state stand.

    Attributes:
        object_noise: Its standard deviation (m) along each of the two horizontal axes.
        seed: Entropy that it depends on alone.
    """

    object_noise: float
    seed: tuple[int, ...]

    def offsets(self, objects: int) -> np.ndarray:
        """How far to move each object, (objects, 2) in metres."""
        return np.random.default_rng(self.seed).normal(0.0, self.object_noise, (objects, 2))


@dataclass(frozen=True)
class Context:
    """Where an episode starts (paper section 3: a task, its instruction, an initial state).

    Attributes:
        task: The task.
        index: Number of this context in its source; names it in logs and seeds its episodes.
        init_state: Flattened simulator state (1 + nq + nv,) float64, or None when the environment
            samples a reset from `seed`.
        seed: Seed of a sampled reset; unused when `init_state` is given.
        perturbation: Moves the objects of that state before they settle; test states have none.
    """

    task: Task
    index: int
    init_state: np.ndarray | None = None
    seed: int = 0
    perturbation: Perturbation | None = None


@dataclass(frozen=True)
class ChunkResult:
    """What came of executing one action chunk.

    Attributes:
        observation: The observation after the last executed step.
        success: Whether the task succeeded at any executed step; execution stops there.
        steps: Control steps executed, at most the chunk's length.
        frames: One agent-view image (H, W, 3) uint8 per executed step, empty unless filmed.
    """

    observation: Observation
    success: bool
    steps: int
    frames: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Rollout:
    """One finished episode of D decision steps with T action tokens each.

    Attributes:
        context: Where it started.
        k: Its number within the group, 0 to K - 1.
        success: The reward bit.
        steps: Control steps executed.
        record: What the policy needs to score its own actions again: name -> (D, ...).
        log_probs: Log-probability of each action token when it was sampled, (D, T) float32.
        frames: Images for a video, empty unless filmed.
        seen: What the policy saw in its first decisions, all cameras side by side, (H, W, 3) uint8;
            empty unless asked for.
    """

    context: Context
    k: int
    success: bool
    steps: int
    record: dict[str, Tensor]
    log_probs: Tensor
    frames: tuple[np.ndarray, ...] = ()
    seen: tuple[np.ndarray, ...] = ()

    @property
    def decisions(self) -> int:
        """Number of decision steps D."""
        return len(self.log_probs)


@dataclass(frozen=True)
class RolloutGroup:
    """The K rollouts of one context."""

    context: Context
    rollouts: tuple[Rollout, ...]

    @property
    def rewards(self) -> list[float]:
        """Success bits in the order of k."""
        return [float(rollout.success) for rollout in self.rollouts]


@dataclass(frozen=True)
class Experience:
    """What an iteration's rollouts brought to one rank, for the module to learn from.

    Attributes:
        groups: The groups that this rank keeps, in the order of their context numbers.
        statistics: Metric -> value over all ranks.
        seed: Entropy that the order of learning depends on, the same on every rank.
    """

    groups: tuple[RolloutGroup, ...]
    statistics: dict[str, float]
    seed: tuple[int, ...]


@dataclass
class CollectingProgress:
    """How far the collecting of an iteration is.

    Attributes:
        iteration: Number of the iteration, 0 for the first.
        wanted: Groups to keep.
        kept: Groups kept so far, over all ranks.
        dropped: Groups dropped so far, over all ranks.
        episodes: Episodes of this rank so far.
        successes: How many of them succeeded.
    """

    iteration: int
    wanted: int
    kept: int = 0
    dropped: int = 0
    episodes: int = 0
    successes: int = 0

    def __str__(self) -> str:
        rate = self.successes / max(1, self.episodes)
        return f"groups kept {self.kept}/{self.wanted} dropped {self.dropped}, success {rate:.0%}"


@dataclass(frozen=True)
class DecisionBatch:
    """The N decisions of a rank's groups, in the order of groups, rollouts and time.

    Attributes:
        record: What the policy needs to score the decisions again, name -> (N, ...).
        old_log_probs: (N, T) float32, from rollout time.
        lengths: Decisions of each rollout, adding up to N.
        advantages: (N,) float32.
        targets: What else the loss compares the decisions with, name -> (N, ...); RIPT alone needs
            nothing.
    """

    record: dict[str, Tensor]
    old_log_probs: Tensor
    lengths: tuple[int, ...]
    advantages: Tensor
    targets: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.old_log_probs)

    def __getitem__(self, rows: Tensor | slice) -> DecisionBatch:
        """The decisions of these rows, which then belong to no rollout."""
        return DecisionBatch(
            record={name: value[rows] for name, value in self.record.items()},
            old_log_probs=self.old_log_probs[rows],
            lengths=(),
            advantages=self.advantages[rows],
            targets={name: value[rows] for name, value in self.targets.items()},
        )


@dataclass(frozen=True)
class Minibatch:
    """A PPO micro-batch: N decision steps out of one optimizer step's minibatch.

    Attributes:
        record: The policy's record of each decision, name -> (N, ...).
        old_log_probs: (N, T) float32, from rollout time.
        advantages: (N,) float32.
        targets: As `DecisionBatch.targets`.
        weights: (N, T) float32: each token's share of the loss before division by `normalizer`;
            0 for padding.
        normalizer: Sum of the weights over the whole minibatch on all ranks, so that neither the
            micro-batch size nor the number of ranks changes the gradient.
        is_last: Whether the optimizers step after this micro-batch.
    """

    record: dict[str, Tensor]
    old_log_probs: Tensor
    advantages: Tensor
    targets: dict[str, Tensor]
    weights: Tensor
    normalizer: float
    is_last: bool

    def to(self, device: torch.device) -> Minibatch:
        """Returns a copy on `device`."""
        return replace(
            self,
            record={name: value.to(device) for name, value in self.record.items()},
            old_log_probs=self.old_log_probs.to(device),
            advantages=self.advantages.to(device),
            targets={name: value.to(device) for name, value in self.targets.items()},
            weights=self.weights.to(device),
        )
