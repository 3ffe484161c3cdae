"""The ways of running rollouts that are compared; each keeps its simulator processes."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.rollouts import run_episodes
from lightning_ript.scheduling import EpisodeRequest, InOrder
from lightning_ript.types import Task
from measuring.policy import TimedPolicy
from measuring.processes import processor_seconds, tree_memory_mib
from measuring.reference import NO_OP, KeptReference, Reference, make_vector, observations
from measuring.workers import StagedContext, TimedSpec, ask_all


@dataclass(frozen=True)
class Outcome:
    """How an episode ended: whether it succeeded, and its control steps up to then."""

    success: bool
    steps: int


class Variant(ABC):
    """A way of running rollouts."""

    pids: list[int]

    def __init__(self, spec: LiberoSpec, task: Task, workers: int) -> None:
        self.spec, self.task, self.workers = spec, task, workers

    @abstractmethod
    def warm_up(self, start: StagedContext) -> None:
        """Does what is done once, such as compiling kept models."""

    @abstractmethod
    def run(self, policy: TimedPolicy, episodes: Sequence[EpisodeRequest]) -> list[Outcome]:
        """Runs episodes of `StagedContext`s."""

    @abstractmethod
    def readings(self) -> list[dict[str, float]]:
        """What the simulator processes' clocks read."""

    @abstractmethod
    def close(self) -> None:
        """Ends the simulator processes."""

    def measure(self, policy: TimedPolicy, episodes: Sequence[EpisodeRequest]) -> dict[str, Any]:
        """Runs episodes and measures them; times in seconds, memory in MiB."""
        policy.seconds = 0.0
        before, processors = self._totals(), processor_seconds(self.pids)
        started = time.perf_counter()
        outcomes = self.run(policy, episodes)
        wall = time.perf_counter() - started
        main, workers = np.subtract(processor_seconds(self.pids), processors)
        after = self._totals()
        return {
            "wall": wall,
            "episodes": len(outcomes),
            "successes": sum(outcome.success for outcome in outcomes),
            "steps": sum(outcome.steps for outcome in outcomes),
            **{name: value - before[name] for name, value in after.items()},
            "inference": policy.seconds,
            "main_processor": float(main),
            "worker_processor": float(workers),
            "memory": tree_memory_mib(self.pids),
        }

    def _totals(self) -> dict[str, float]:
        readings = self.readings()
        return {name: sum(reading[name] for reading in readings) for name in readings[0]}


class Lockstep(Variant):
    """All environments step together until all of them have finished."""

    kind: type[Reference]

    def __init__(self, spec: LiberoSpec, task: Task, workers: int) -> None:
        super().__init__(spec, task, workers)
        self._vector = make_vector(self.kind, spec, task, workers)
        self.pids = [worker.process.pid for worker in self._vector.workers]

    def warm_up(self, start: StagedContext) -> None:
        """Waits until the environments are built."""
        self._start([start] * self.workers)

    def run(self, policy: TimedPolicy, episodes: Sequence[EpisodeRequest]) -> list[Outcome]:
        """Runs as many episodes at a time as there are environments."""
        return [
            outcome
            for first in range(0, len(episodes), self.workers)
            for outcome in self._run_together(policy, episodes[first : first + self.workers])
        ]

    def _start(self, contexts: Sequence[StagedContext]) -> Any:
        vector = self._vector
        vector.seed([0] * self.workers)
        vector.reset()
        vector.set_init_state(np.stack([context.init_state for context in contexts]))
        seen, _ = self._execute(np.tile(NO_OP, (self.workers, self.spec.settle_steps, 1)))
        return seen

    def _run_together(
        self, policy: TimedPolicy, episodes: Sequence[EpisodeRequest]
    ) -> list[Outcome]:
        contexts: list[StagedContext] = [episode.context for episode in episodes]  # type: ignore[misc]
        generators = [np.random.default_rng(episode.seed) for episode in episodes]
        seen = self._start(contexts)
        limit, steps = self.spec.max_steps, 0
        ends = np.full(self.workers, limit + 1)  # step of the first success
        while steps < limit and (ends > steps).any():
            draws = [rng.random(policy.noise_shape, np.float32) for rng in generators]
            noise = torch.from_numpy(np.stack(draws)).to(policy.device)
            asked = policy.act(observations(seen), [self.task] * self.workers, noise)
            actions = asked.actions.cpu().numpy()[:, : limit - steps]
            staged = [
                context.actions(each, steps)
                for context, each in zip(contexts, actions, strict=True)
            ]
            seen, first = self._execute(np.stack(staged), contexts, steps, ends > steps)
            ends = np.minimum(ends, steps + first)
            steps += actions.shape[1]
        return [Outcome(end <= limit, min(end, limit)) for end in ends.tolist()]

    @abstractmethod
    def _execute(
        self,
        actions: np.ndarray,
        contexts: Sequence[StagedContext] = (),
        step: int = 0,
        unfinished: np.ndarray | None = None,
    ) -> tuple[Any, np.ndarray]:
        """Executes actions (environments, n, 7).

        Args:
            actions: What to execute.
            contexts: Of the running episodes; none while settling.
            step: Control steps executed before.
            unfinished: Which episodes go on; when these succeed too, nothing more need be executed.

        Returns:
            The last observations, and after how many of these steps each environment first
            succeeded; a large number if it did not.
        """

    def readings(self) -> list[dict[str, float]]:
        """See `Variant`."""
        return self._vector.get_env_attr("reading")

    def close(self) -> None:
        """See `Variant`."""
        self._vector.close()


_NEVER = 10**9


class ReferenceWay(Lockstep):
    """LIBERO's environment as it is: one message per control step, a new model per episode."""

    kind = Reference

    def _execute(
        self,
        actions: np.ndarray,
        contexts: Sequence[StagedContext] = (),
        step: int = 0,
        unfinished: np.ndarray | None = None,
    ) -> tuple[Any, np.ndarray]:
        first = np.full(self.workers, _NEVER)
        for number in range(1, actions.shape[1] + 1):
            seen, _, success, _ = self._vector.step(actions[:, number - 1])
            declared = [context.succeeded(step + number) for context in contexts]
            success = success | np.array(declared or False)
            first = np.where(success, np.minimum(first, number), first)
            if unfinished is not None and (first[unfinished] < _NEVER).all():
                break
        return seen, first


class KeptWay(Lockstep):
    """The same with kept models, and one message and one look per chunk of actions."""

    kind = KeptReference

    def _execute(
        self,
        actions: np.ndarray,
        contexts: Sequence[StagedContext] = (),
        step: int = 0,
        unfinished: np.ndarray | None = None,
    ) -> tuple[Any, np.ndarray]:
        seen, _, success, info = self._vector.step(actions)
        first = np.where(success, [each["steps"] for each in info], _NEVER)
        for i, context in enumerate(contexts):
            if context.succeeded(step + actions.shape[1]):
                first[i] = min(first[i], max(1, context.success_at - step))
        return seen, first


class Ours(Variant):
    """The project's environment pool and rollout loop."""

    def __init__(self, spec: LiberoSpec, task: Task, workers: int) -> None:
        super().__init__(spec, task, workers)
        self._pool = EnvironmentPool(TimedSpec(spec), workers)

    def warm_up(self, start: StagedContext) -> None:
        """Starts the workers, and compiles the task in each."""
        ask_all(self._pool, "reset", start)
        self.pids = [process.pid for process in self._pool.processes]

    def run(self, policy: TimedPolicy, episodes: Sequence[EpisodeRequest]) -> list[Outcome]:
        """See `Variant`."""
        rollouts = run_episodes(policy, self._pool, InOrder(episodes), self.spec.max_steps)
        return [Outcome(rollout.success, rollout.steps) for rollout in rollouts]

    def readings(self) -> list[dict[str, float]]:
        """See `Variant`."""
        return ask_all(self._pool, "reading")

    def close(self) -> None:
        """See `Variant`."""
        self._pool.close()
