"""What the rollout loop asks of a simulator. No module under `envs/` imports torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from lightning_ript.types import ChunkResult, Context, Observation, Task


class WorkerError(RuntimeError):
    """A simulator process raised, died or hung; carried to the parent with its traceback as text.

    Attributes:
        remote_traceback: What the process had to say.
        unusable: Whether the simulator could not even be built, so that there is no use in trying
            again.
    """

    def __init__(self, message: str, remote_traceback: str, unusable: bool = False) -> None:
        super().__init__(message, remote_traceback, unusable)
        self.remote_traceback = remote_traceback
        self.unusable = unusable

    def __str__(self) -> str:
        return f"{self.args[0]}\n\nIn the simulator process:\n{self.remote_traceback}"


class Environment(Protocol):
    """A simulator living in a worker process."""

    def reset(self, context: Context, record: bool = False) -> Observation:
        """Starts an episode and returns the first observation, after any settling steps.

        Args:
            context: Where to start; the same context gives the same episode. Its `perturbation`,
                if it has one, moves the objects.
            record: Whether `step_chunk` returns a frame per control step.
        """

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Executes actions (n, action_dim) one control step at a time until the first success."""

    def close(self) -> None:
        """Frees the simulator."""


class EnvironmentSpec(ABC):
    """Everything needed to build an environment in another process; picklable."""

    max_steps: int
    """Control steps after which an episode has failed."""

    least_workers: ClassVar[int] = 0
    """1 where it cannot run in the main process: drawing by software GL crashes beside torch."""

    @abstractmethod
    def tasks(self) -> Sequence[Task]:
        """The tasks this environment can run, cheaply (no simulator is started)."""

    @abstractmethod
    def test_contexts(self, task: Task) -> Sequence[Context]:
        """The evaluation states of a task, never to be trained on (LIBERO: 50 per task)."""

    @abstractmethod
    def check(self) -> None:
        """Raises with one clear sentence when this machine cannot run the environment."""

    def worker_variables(self, device: int) -> dict[str, str]:
        """Environment variables of a rank's workers, e.g. to share out the GPUs.

        Args:
            device: Number of the rank's GPU among those that it may use.
        """
        return {}

    @abstractmethod
    def make(self) -> Environment:
        """Builds the environment; called inside the worker."""
