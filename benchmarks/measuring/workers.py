"""The project's environment with a clock. Simulator processes import this: no torch here."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lightning_ript.envs.base import WorkerError
from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.types import ChunkResult, Context, Observation, Task
from measuring.clock import Clock

SUBSTEPS = 25  # physics steps in a control step


@dataclass(frozen=True)
class StagedContext(Context):
    """A context whose episode is made to succeed, so that success does not hang on weights.

    Attributes:
        script: Actions (n, 7) that are executed in place of the policy's, which is asked all the
            same; None to execute the policy's.
        success_at: Control step at which the episode is declared a success; None to leave that
            to the simulator.
    """

    script: np.ndarray | None = None
    success_at: int | None = None

    def actions(self, asked: np.ndarray, step: int) -> np.ndarray:
        """What to execute at a step when the policy asked for actions (n, 7)."""
        if self.script is None:
            return asked
        scripted = self.script[step : step + len(asked)]
        return np.concatenate([scripted, asked[len(scripted) :]])  # a script ends with success

    def succeeded(self, step: int) -> bool:
        """Whether the episode is declared a success once `step` steps were executed."""
        return self.success_at is not None and step >= self.success_at


@dataclass(frozen=True)
class TimedSpec:
    """Builds a `TimedEnvironment` in a worker; picklable."""

    libero: LiberoSpec

    least_workers: ClassVar[int] = 1
    episodes_per_worker: ClassVar[int] = 1

    @property
    def scenes_kept(self) -> int:
        """As the environment's."""
        return self.libero.scenes_kept

    def scene(self, task: Task) -> str:
        """As the environment's."""
        return self.libero.scene(task)

    def worker_variables(self, device: int) -> dict[str, str]:
        """As the environment's."""
        return self.libero.worker_variables(device)

    def make(self) -> TimedEnvironment:
        """Called inside the worker."""
        return TimedEnvironment(self.libero)


class TimedEnvironment:
    """`LiberoEnvironment` with a clock, playing staged contexts."""

    def __init__(self, spec: LiberoSpec) -> None:
        self._environment = spec.make()
        self._clock = Clock()
        self._clock.time_renders()
        self._context: StagedContext | None = None
        self._step = 0

    def reset(self, context: StagedContext, film: bool = False) -> Observation:
        """See `Environment.reset`."""
        self._context, self._step = context, 0
        with self._clock.part("reset"):
            return self._environment.reset(context, film)

    def step_chunk(self, actions: np.ndarray) -> ChunkResult:
        """See `Environment.step_chunk`."""
        context = self._context
        assert context is not None
        actions = context.actions(actions, self._step)
        if context.success_at is not None:
            actions = actions[: context.success_at - self._step]
        with self._clock.part("step"):
            result = self._environment.step_chunk(actions)
        self._clock.count(result.steps)
        self._step += result.steps
        if context.succeeded(self._step):
            result = dataclasses.replace(result, success=True)
        return result

    def reading(self) -> dict[str, float]:
        """The clock's reading."""
        return self._clock.read()

    def probe(self, context: Context, chunks: np.ndarray) -> tuple[list[float], list[float]]:
        """Costs of a control step and of the bare physics it contains, side by side.

        Args:
            context: Where to start.
            chunks: Actions (chunks, n, 7); build the environment without cameras.

        Returns:
            Seconds per control step of each chunk, and seconds of 25 bare `mj_step` from the
            state in which the chunk began.
        """
        import mujoco

        self._environment.reset(context)
        sim = self._environment.problem.sim
        model, data = sim.model._model, sim.data._data
        everything = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(model, everything))
        control, bare = [], []
        for chunk in chunks:
            mujoco.mj_getState(model, data, state, everything)
            started = time.perf_counter()
            for _ in chunk:
                for _ in range(SUBSTEPS):
                    mujoco.mj_step(model, data)
            bare.append((time.perf_counter() - started) / len(chunk))
            mujoco.mj_setState(model, data, state, everything)
            mujoco.mj_forward(model, data)
            started = time.perf_counter()
            self._environment.step_chunk(chunk)
            control.append((time.perf_counter() - started) / len(chunk))
        return control, bare

    def close(self) -> None:
        """Frees the simulator."""
        self._environment.close()


def ask_all(pool: EnvironmentPool, method: str, *arguments: object) -> list:
    """Calls a method in every slot; returns the answers in the order of the slots.

    Raises:
        WorkerError: If a simulator failed.
    """
    for slot in pool.slots:
        pool.ask(slot, method, *arguments)
    answers: dict[int, object] = {}
    while len(answers) < len(pool.slots):
        answers.update(pool.wait())
    for answer in answers.values():
        if isinstance(answer, WorkerError):
            raise answer
    return [answers[slot] for slot in pool.slots]
