"""A policy for the toy environment, and the smallest example of a policy adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lightning_ript.policies.base import Decisions, PolicyAdapter
from lightning_ript.policies.sampling import sample_tokens
from lightning_ript.types import Observation, Task

_TASK_SLOTS = 8
# Batches are padded to multiples of this. Products of other sizes are rounded otherwise, and a run
# that was interrupted, and so decides in other batches, would not repeat every bit.
_ROWS = 32


class ToyPolicy(PolicyAdapter):
    """Picks `chunk` moves at once, each one of the eight compass directions.

    Args:
        chunk: Actions, and so tokens T, per decision.
        hidden: Width of the network.
        seed: Seed of the initial parameters.
    """

    directions: Tensor

    def __init__(self, chunk: int = 4, hidden: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.chunk = chunk
        self.noise_shape = (chunk,)
        angles = torch.arange(8) * (torch.pi / 4)
        self.register_buffer("directions", torch.stack([angles.cos(), angles.sin()], -1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Linear(2 * _TASK_SLOTS, hidden), nn.Tanh(), nn.Linear(hidden, chunk * 8)
            )

    @torch.no_grad()
    def act(
        self, observations: Sequence[Observation], tasks: Sequence[Task], noise: Tensor | None
    ) -> Decisions:
        """Decides for B points at once."""
        to_goal = np.stack([o["joint_states"][:2] - o["ee_pos"][:2] for o in observations])
        heading = to_goal / np.linalg.norm(to_goal, axis=1, keepdims=True)
        # Each task sees the heading in places of its own, as it needs another answer to it.
        rows = math.ceil(len(tasks) / _ROWS) * _ROWS
        features = torch.zeros(rows, _TASK_SLOTS, 2, device=self.device)
        slots = [task.index % _TASK_SLOTS for task in tasks]
        features[range(len(tasks)), slots] = torch.from_numpy(heading).to(features)
        features = features.flatten(1)
        logits = self._logits(features)[: len(tasks)]
        features = features[: len(tasks)]
        indices = sample_tokens(logits, noise) if noise is not None else logits.argmax(-1)
        log_probs = logits.log_softmax(-1).gather(-1, indices.unsqueeze(-1)).squeeze(-1)
        record = {
            "features": features,
            "to_goal": torch.from_numpy(to_goal).to(features),
            "indices": indices,
        }
        return Decisions(self.directions[indices], record, log_probs)

    def recorded_actions(self, record: dict[str, Tensor]) -> Tensor:
        """The directions of the recorded moves."""
        return self.directions.cpu()[record["indices"].cpu()]

    def log_prob(self, record: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores recorded moves (N, chunk)."""
        log_softmax = self._logits(record["features"]).log_softmax(-1)
        chosen = log_softmax.gather(-1, record["indices"].unsqueeze(-1)).squeeze(-1)
        return chosen, -(log_softmax.exp() * log_softmax).sum(-1)

    @property
    def feature_size(self) -> int:
        """What the policy sees, and how far it is."""
        return 2 * _TASK_SLOTS + 2

    def features(self, record: dict[str, Tensor]) -> Tensor:
        """The heading in its task's places, and the way to the goal, on which success depends."""
        return torch.cat([record["features"], record["to_goal"]], dim=-1)

    def _logits(self, features: Tensor) -> Tensor:
        return self.net(features).unflatten(-1, (self.chunk, 8))
