"""Recording the scripted expert, in the simulator's process: nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lightning_ript.demos.hdf5 import RecordedEpisode
from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.libero.environment import LiberoEnvironment
from lightning_ript.types import Context, Observation, Task


@dataclass(frozen=True)
class RecorderSpec:
    """What a worker builds to record demonstrations; picklable.

    Attributes:
        libero: The environment.
        noise: Standard deviation of the expert's action noise.
    """

    libero: LiberoSpec
    noise: float = 0.0

    least_workers: ClassVar[int] = 1
    episodes_per_worker: ClassVar[int] = 1
    scenes_kept: ClassVar[int | None] = None

    def scene(self, task: Task) -> str:
        """As the environment's."""
        return self.libero.scene(task)

    def worker_variables(self, device: int) -> dict[str, str]:
        """As the environment's."""
        return self.libero.worker_variables(device)

    def make(self) -> Recorder:
        """Builds the recorder; called inside the worker."""
        return Recorder(self)


class Recorder:
    """Runs the expert and keeps what it did."""

    def __init__(self, spec: RecorderSpec) -> None:
        self._spec = spec
        self._environment: LiberoEnvironment = LiberoEnvironment(spec.libero)

    def record(self, context: Context) -> RecordedEpisode | None:
        """Runs one episode.

        Args:
            context: Where to start; its seed also seeds the expert's noise, its index is the number
                of the attempt.

        Returns:
            The episode, or None when it did not succeed within the environment's `max_steps`.
        """
        from lightning_ript.envs.libero.expert import PickPlaceExpert

        environment = self._environment
        init_state = context.init_state
        if init_state is None:
            init_state = environment.sample_state(context.task, context.seed)
        observation = environment.reset(Context(context.task, context.index, init_state))
        problem = environment.problem
        expert = PickPlaceExpert.for_environment(problem, self._spec.noise, context.seed)
        observations: list[Observation] = []
        states: list[np.ndarray] = []
        actions: list[np.ndarray] = []
        for _ in range(self._spec.libero.max_steps):
            observations.append(observation)
            states.append(environment.sim_state())
            actions.append(expert.act())
            result = environment.step_chunk(actions[-1][None])
            observation = result.observation
            if result.success:
                return RecordedEpisode(
                    actions=np.stack(actions),
                    states=np.stack(states),
                    observations={
                        key: np.stack([seen[key] for seen in observations]) for key in observation
                    },
                    init_state=np.asarray(init_state, dtype=np.float64),
                    model_file=environment.model_xml,
                    attempt=context.index,
                )
        return None

    def close(self) -> None:
        """Frees the simulator."""
        self._environment.close()
