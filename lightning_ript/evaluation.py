"""6: evaluation: the success rate per task, on initial states never trained on.

Which episodes there are, how they are run, and the metric that counts them. Validation by Lightning
and the `EvaluationSweep` callback both run them from here. Counts are kept and summed over the
ranks, never averaged, so the result does not depend on how many episodes each rank ran.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.policies.base import PolicyAdapter
from lightning_ript.rollouts import ForwardContext, acting, run_episodes
from lightning_ript.scheduling import EpisodeRequest, TaskByTask
from lightning_ript.storage.evaluation_result import EvaluationResult, TaskResult
from lightning_ript.types import Context, Rollout, Task

_LOOKS_KEPT = 8  # of each task's first episode, for whoever wonders why it failed
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
        states_per_task: Test states of each task to run at most; None for all of them.
        videos: Of this many episodes per task frames are kept, for all tasks or by task name.
    """
    starts: list[Start] = []
    for task in environment.tasks():
        filmed = videos if isinstance(videos, int) else videos.get(task.name, 0)
        states = environment.test_contexts(task)[:states_per_task]
        starts += [(context, i < filmed) for i, context in enumerate(states)]
    return starts


def draws_noise(policy: PolicyAdapter, sampling: bool) -> bool:
    """Whether episodes of another seed are other episodes."""
    return sampling or policy.needs_noise


def run_evaluation(
    policy: PolicyAdapter,
    pool: EnvironmentPool,
    starts: list[Start],
    *,
    max_steps: int,
    seed: int,
    sampling: bool,
    num_workers: int,
    interrupt: Callable[[], None] = lambda: None,
    forward_context: ForwardContext = nullcontext,
) -> Generator[Rollout, None, None]:
    """Runs the episodes and yields each as it finishes; close it if it is not run to its end.

    Args:
        policy: The policy that acts.
        pool: Where the episodes run.
        starts: Where they start.
        max_steps: Control steps after which an episode has failed.
        seed: Seed of the noise.
        sampling: Whether actions are sampled as in training; else the most likely ones are taken.
        num_workers: Simulator processes, which want cores.
        interrupt: Called after every episode; raises to stop.
        forward_context: Makes the context that the policy decides in.
    """

    def episodes() -> Iterator[EpisodeRequest]:
        for context, film in starts:
            noise = None
            if draws_noise(policy, sampling):
                noise = (seed, _EVALUATION, context.task.index, context.index)
            looks = _LOOKS_KEPT if context.index == 0 else 0
            yield EpisodeRequest(context, 0, noise, film, keep_seen=looks)

    with (
        acting(policy, num_workers, exploring=sampling, evaluating=True),
        closing(
            run_episodes(
                policy,
                pool,
                schedule=TaskByTask(episodes()),
                max_steps=max_steps,
                forward_context=forward_context,
            )
        ) as stream,
    ):
        for rollout in stream:
            interrupt()
            yield rollout


class EvaluationEpisodes:
    """A sized iterable of evaluation rollouts; every iteration runs them anew.

    Args:
        starts: Where they start.
        run: Runs them.
    """

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
        """Ends the episodes that still run, and takes the policy out of acting.

        Lightning stops asking once it has its rollouts, so the iteration never ends by itself.
        """
        if self._running is not None:
            self._running.close()
            self._running = None


class SuccessRate(Metric):
    """Counts successes, episodes and control steps per task, summed over the ranks.

    Every rank must hold the same tasks in the same order, and every rank must call `compute`.

    Args:
        tasks: The tasks that are evaluated; `reset_tasks` sets them later.
    """

    full_state_update = False
    higher_is_better = True

    successes: Tensor
    episodes: Tensor
    steps: Tensor

    def __init__(self, tasks: Sequence[Task] = ()) -> None:
        super().__init__()
        self.reset_tasks(tasks)

    def reset_tasks(self, tasks: Sequence[Task]) -> None:
        """Forgets all counts and counts for these tasks from now on.

        Raises:
            ValueError: If two tasks have the same name.
        """
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"Tasks to evaluate are given twice: {', '.join(repeated)}.")
        self.tasks = tuple(tasks)
        for state in ("successes", "episodes", "steps"):
            zeros = torch.zeros(len(self.tasks), dtype=torch.long, device=self.device)
            self.add_state(state, zeros, dist_reduce_fx="sum")
        self.reset()

    def update(self, task_index: int, success: bool, steps: int) -> None:
        """Counts one finished episode.

        Args:
            task_index: Position of its task in `tasks` (not `Task.index`, the suite's order).
            success: Whether it succeeded.
            steps: Control steps it took.

        Raises:
            IndexError: If there is no such task.
        """
        if not 0 <= task_index < len(self.tasks):
            raise IndexError(
                f"Episode of task {task_index}, but {len(self.tasks)} tasks are evaluated."
            )
        self.episodes[task_index] += 1
        self.successes[task_index] += int(success)
        self.steps[task_index] += steps

    def compute(self) -> EvaluationResult:
        """The result over all ranks."""
        counts = torch.stack((self.successes, self.episodes, self.steps), dim=1).tolist()
        return EvaluationResult(
            tasks=tuple(
                TaskResult(
                    task=task.name,
                    language=task.language,
                    episodes=episodes,
                    successes=successes,
                    mean_steps=steps / episodes if episodes else math.nan,
                )
                for task, (successes, episodes, steps) in zip(self.tasks, counts, strict=True)
            ),
            metadata={},
        )
