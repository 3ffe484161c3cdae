"""The episodes of an evaluation: which ones there are, and how they are run.

Validation by Lightning and the `EvaluationSweep` callback both run them from here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, nullcontext

from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.rollouts import Episode, Precision, acting, run_episodes
from lightning_ript.types import Context, Rollout

_EVALUATION = 2**32 - 1  # Stands where training seeds have the iteration.

Start = tuple[Context, bool]
"""Where an episode starts, and whether frames are kept for a video."""


def evaluation_starts(
    environment: EnvironmentSpec,
    states_per_task: int | None = None,
    videos: int | Mapping[str, int] = 0,
) -> list[Start]:
    """The test states of all tasks, task by task.

    Args:
        environment: Whose tasks and test states.
        states_per_task: So many of each task at most; None for all of them.
        videos: Of this many episodes per task frames are kept, for all tasks or by task name.
    """
    starts: list[Start] = []
    for task in environment.tasks():
        recorded = videos if isinstance(videos, int) else videos.get(task.name, 0)
        states = environment.test_contexts(task)[:states_per_task]
        starts += [(context, i < recorded) for i, context in enumerate(states)]
    return starts


def run_evaluation(
    policy: PolicyAdapter,
    pool: EnvironmentPool,
    starts: list[Start],
    max_steps: int,
    seed: int | None,
    num_workers: int,
    check: Callable[[], None] = lambda: None,
    precision: Precision = nullcontext,
) -> Generator[Rollout, None, None]:
    """Runs the episodes and yields each as it finishes; close it if it is not run to its end.

    Args:
        policy: The policy that acts.
        pool: Where the episodes run.
        starts: Where they start.
        max_steps: Control steps after which an episode has failed.
        seed: Seed of the sampling noise; None acts on the most likely action instead.
        num_workers: Simulator processes, which want cores.
        check: Called after every episode; raises to stop.
        precision: Makes the context that the policy decides in.
    """

    def episodes() -> Iterator[Episode]:
        for context, record in starts:
            noise = None
            if seed is not None:
                noise = (seed, _EVALUATION, context.task.index, context.index)
            yield Episode(context, 0, noise, record)

    with (
        acting(policy, num_workers),
        closing(run_episodes(policy, pool, episodes(), max_steps, precision)) as stream,
    ):
        for rollout in stream:
            check()
            yield rollout


class EvaluationEpisodes:
    """A sized iterable of evaluation rollouts; every iteration runs them anew."""

    def __init__(
        self, starts: list[Start], run: Callable[[list[Start]], Generator[Rollout, None, None]]
    ) -> None:
        self._starts, self._run = starts, run
        self._running: Generator[Rollout, None, None] | None = None

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Rollout]:
        self.close()
        self._running = self._run(self._starts)
        return self._running

    def close(self) -> None:
        """Ends the iteration, which Lightning leaves after the last rollout or an earlier one.

        Until then the policy is as it is for acting.
        """
        if self._running is not None:
            self._running.close()
            self._running = None
