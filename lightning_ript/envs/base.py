"""What the rollout loop asks of a simulator. No module under `envs/` imports torch."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from gymnasium import spaces

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

    def reset(self, context: Context, film: bool = False) -> Observation:
        """Starts an episode and returns the first observation, after any settling steps.

        Args:
            context: Where to start; the same context gives the same episode. Its `perturbation`,
                if it has one, moves the objects.
            film: Whether `step_chunk` returns a frame per control step.
        """

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """Executes actions (n, action_dim) one control step at a time until the first success."""

    def close(self) -> None:
        """Frees the simulator."""


class BatchedEnvironment(Protocol):
    """A simulator of several episodes at once, for specifications with `episodes_per_worker` > 1.

    Episodes have numbers from 0 on; each call is about those that `indices` names, in that order.
    """

    def reset(
        self, indices: list[int], contexts: list[Context], films: list[bool]
    ) -> list[Observation]:
        """As `Environment.reset`, for each of these episodes."""

    def step_chunk(self, indices: list[int], actions: list[np.ndarray]) -> list[ChunkResult]:
        """As `Environment.step_chunk`: chunks may differ in length, and each ends on its own."""

    def close(self) -> None:
        """Frees the simulator."""


class WorkerSpec(Protocol):
    """What `EnvironmentPool` can host: something to build and then to ask for things; picklable."""

    @property
    def least_workers(self) -> int:
        """1 where it cannot run in the main process."""

    @property
    def episodes_per_worker(self) -> int:
        """Episodes that one simulator runs at once, from 1 on."""

    @property
    def scenes_kept(self) -> int | None:
        """As `EnvironmentSpec.scenes_kept`."""

    def scene(self, task: Task) -> str:
        """As `EnvironmentSpec.scene`."""

    def worker_variables(self, device: int) -> dict[str, str]:
        """Environment variables of the workers of a rank, which draw on this GPU."""

    def make(self) -> Any:
        """Builds it; called inside the worker."""


class EnvironmentSpec(ABC):
    """Everything needed to build an environment in another process, and what it is like; picklable.

    Observations are dictionaries. Images are (H, W, 3) uint8 and upright: row 0 is the top. A
    policy whose training data was stored upside down turns them itself.
    """

    max_steps: int
    """Control steps after which an episode has failed."""

    least_workers: ClassVar[int] = 0
    """1 where it cannot run in the main process: drawing by software GL crashes beside torch."""

    episodes_per_worker: int = 1
    """Episodes that one process simulates at once; with more than 1, `make` builds a
    `BatchedEnvironment`."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Installed distributions, beside the project's own, whose version a result depends on."""

    conventions: ClassVar[Mapping[str, str]] = {}
    """What the numbers of each observation key, and of `action`, mean: unit, frame, order, sign."""

    @property
    def scenes_kept(self) -> int | None:
        """Scenes that a worker keeps ready, those it ran last; None if any task is ready at once.

        Episodes are given to workers that have their scene ready, where that is possible.
        """
        return None

    def scene(self, task: Task) -> str:
        """Names what a worker has to prepare for a task; tasks that share it have the same name."""
        return task.name

    @property
    @abstractmethod
    def observation_space(self) -> spaces.Dict:
        """Observations by key, in the order in which policies take them.

        Boxes of (H, W, 3) uint8 are cameras, the first of them the one that videos show; all others
        are proprioception, (width,) float32. Build it from a list of pairs: gymnasium sorts the
        keys of a dictionary.
        """

    @property
    @abstractmethod
    def action_space(self) -> spaces.Box:
        """The action of one control step, (action_dim,)."""

    @abstractmethod
    def tasks(self) -> Sequence[Task]:
        """The tasks this environment can run, cheaply (no simulator is started)."""

    @abstractmethod
    def test_contexts(self, task: Task) -> Sequence[Context]:
        """The evaluation states of a task, never to be trained on (LIBERO: 50 per task)."""

    @abstractmethod
    def check(self) -> None:
        """Raises with one clear sentence when this machine cannot run the environment."""

    def caveats(self) -> tuple[str, ...]:
        """What whoever compares a result with others has to know, a sentence each.

        Reports repeat them, and runs with different ones are not compared. Ask after `check`.
        """
        return ()

    def describe(self) -> dict[str, Any]:
        """The settings in JSON's types, for the files that results are kept in."""
        described: dict[str, Any] = {"class": type(self).__name__}
        if dataclasses.is_dataclass(self):
            # Through JSON, so that the numbers of a result read back equal those written.
            described |= json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return {**described, "caveats": list(self.caveats())}

    def of_suite(self, suite: str) -> EnvironmentSpec:
        """The same environment with another set of tasks, as its field `suite` names them.

        Args:
            suite: Its name, as `Task.suite` has it.

        Raises:
            ValueError: If there are no suites to choose from.
        """
        if dataclasses.is_dataclass(self) and hasattr(self, "suite"):
            return dataclasses.replace(self, suite=suite)
        raise ValueError(
            f"{type(self).__name__} has no suites to choose from: leave --suites {suite} out."
        )

    def worker_variables(self, device: int) -> dict[str, str]:
        """Environment variables of a rank's workers, e.g. to share out the GPUs.

        Args:
            device: Number of the rank's GPU among those that it may use.
        """
        return {}

    @abstractmethod
    def make(self) -> Environment | BatchedEnvironment:
        """Builds the environment; called inside the worker."""


def cameras(observation_space: spaces.Dict) -> dict[str, int]:
    """The cameras of an observation space: key -> height of the image in pixels, in its order."""
    return {key: box.shape[0] for key, box in _boxes(observation_space) if len(box.shape) == 3}


def proprioception(observation_space: spaces.Dict) -> dict[str, int]:
    """The proprioceptive inputs of an observation space: key -> width, in its order."""
    return {key: box.shape[0] for key, box in _boxes(observation_space) if len(box.shape) == 1}


def _boxes(observation_space: spaces.Dict) -> list[tuple[str, spaces.Box]]:
    return [(key, box) for key, box in observation_space.items() if isinstance(box, spaces.Box)]
