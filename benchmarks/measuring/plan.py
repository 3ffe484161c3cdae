"""Which episodes a benchmark runs, the same for all variants."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lightning_ript.commands.collect_demos import EXPERT_SUITES, finished
from lightning_ript.demos.recorder import RecorderSpec
from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.scheduling import EpisodeRequest
from lightning_ript.types import Context, Task
from measuring.workers import StagedContext


def plan(
    spec: LiberoSpec,
    task: Task,
    rounds: int,
    episodes: int,
    per_context: int,
    success: float,
    success_at: int | None,
    seed: int,
) -> list[list[EpisodeRequest]]:
    """Lays out the episodes of each round, on the benchmark's test states in their order.

    A share of each round's episodes, at random places in it, is made to succeed: by what the
    scripted expert did from the same state, or by declaring them successful at a step.

    Args:
        spec: The environment.
        task: The task.
        rounds: Number of rounds.
        episodes: Episodes per round.
        per_context: Consecutive episodes that start from one state.
        success: The share.
        success_at: The step at which to declare success; None for the expert's actions.
        seed: Decides the policy's sampling and which episodes succeed.

    Raises:
        ValueError: If there is no expert for the suite, or it cannot solve enough states in time.
    """
    states = list(spec.test_contexts(task))
    needed = min(len(states), -(-rounds * episodes // per_context))
    scripts: dict[int, np.ndarray] = {}
    if success and success_at is None:
        scripts = _expert_scripts(spec, task, states, needed)
        states = [state for state in states if state.index in scripts]
    result = []
    for number in range(rounds):
        order = np.random.default_rng((seed, number)).permutation(episodes)
        wins = set(order[: round(success * episodes)].tolist())
        result.append(
            [
                EpisodeRequest(
                    _stage(
                        states,
                        (number * episodes + i) // per_context,
                        i in wins,
                        scripts,
                        success_at,
                    ),
                    i % per_context,
                    seed=(seed, number, i),
                )
                for i in range(episodes)
            ]
        )
    return result


def _stage(
    states: Sequence[Context],
    number: int,
    wins: bool,
    scripts: dict[int, np.ndarray],
    success_at: int | None,
) -> StagedContext:
    state = states[number % len(states)]
    return StagedContext(
        state.task,
        state.index,
        state.init_state,
        script=scripts.get(state.index) if wins else None,
        success_at=success_at if wins else None,
    )


def _expert_scripts(
    spec: LiberoSpec, task: Task, states: Sequence[Context], needed: int
) -> dict[int, np.ndarray]:
    """The expert's actions (n, 7) from the first states that it solves within the limit."""
    if spec.suite not in EXPERT_SUITES:
        raise ValueError(
            f"there is no scripted expert for {spec.suite}: use --success_at STEP to declare "
            "episodes successful at a step."
        )
    scripts: dict[int, np.ndarray] = {}
    recorder = RecorderSpec(replace(spec, cameras=(), max_compiled=1))
    print("recording the scripted expert", file=sys.stderr, flush=True)
    with EnvironmentPool(recorder, 1) as pool:
        for state in states:
            pool.ask(0, "record", state)
            ((_, episode),) = finished(pool)
            if episode is not None:
                scripts[state.index] = episode.actions
            if len(scripts) == needed:
                return scripts
    raise ValueError(
        f"the scripted expert solves only {len(scripts)} of task {task.index}'s {len(states)} "
        f"states within {spec.max_steps} steps, but {needed} are needed: raise --max_steps or run "
        "fewer episodes."
    )
