"""Many tasks at once against one task after the other, with all that changing tasks costs."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.filtering import LocalQueue
from lightning_ript.rollouts import collect_groups
from lightning_ript.scheduling import EpisodeRequest
from lightning_ript.types import Context, Task
from measuring.policy import TimedPolicy
from measuring.processes import pss_mib
from measuring.report import table
from measuring.variants import ReferenceWay
from measuring.workers import StagedContext, ask_all

LEAST_CONTEXTS = 10
REFERENCE_CONTEXTS = 3


def choose_tasks(tasks: Sequence[Task], count: int) -> list[Task]:
    """So many tasks of a suite, evenly spaced.

    Raises:
        ValueError: If the suite has fewer.
    """
    if not 1 <= count <= len(tasks):
        raise ValueError(f"tasks is {count}, but the suite has 1 to {len(tasks)} of them.")
    return [tasks[i * len(tasks) // count] for i in range(count)]


def many_tasks(
    spec: LiberoSpec,
    counts: Sequence[int],
    workers: int,
    per_context: int,
    policy: TimedPolicy,
    seed: int,
    reference: bool,
) -> dict[str, Any]:
    """Runs a group of each task, with every number of tasks.

    Args:
        spec: The suite, with all of its tasks.
        counts: Numbers of tasks; of few tasks several groups are run.
        workers: Simulator processes.
        per_context: Episodes of a group, K.
        policy: Decides.
        seed: Of its noise.
        reference: Whether to run some groups as the reference does, too.

    Returns:
        For each number of tasks: seconds and episodes of `one_by_one`, every task alone in
        simulators that have it ready, of `together`, and of the `reference`; `ratio`, of episodes
        per hour together and one by one; `worker_mib`, the largest proportional set size of a
        worker; `start_seconds`, from starting the workers until all have seen their first state.
    """
    result = {}
    for count in counts:
        tasks = choose_tasks(spec.tasks(), count)
        contexts = [
            spec.test_contexts(tasks[n % count])[n // count]
            for n in range(max(LEAST_CONTEXTS, count))
        ]
        alone = _one_by_one(spec, contexts, workers, per_context, policy, seed)
        _say(f"{count} tasks one by one: {alone['seconds']:.0f} s")
        together = _together(spec, contexts, workers, per_context, policy, seed)
        _say(f"{count} tasks together: {together['seconds']:.0f} s")
        each = {"one_by_one": alone, "together": together}
        if reference:
            some = contexts[:: -(-len(contexts) // REFERENCE_CONTEXTS)]
            each["reference"] = _reference(spec, some, workers, per_context, policy, seed)
            _say(f"{count} tasks, the reference's way: {each['reference']['seconds']:.0f} s")
        ratio = alone["seconds"] / together["seconds"]
        result[str(count)] = {**each, "scenes": len({spec.scene(t) for t in tasks}), "ratio": ratio}
    return result


def _collect(
    pool: EnvironmentPool,
    contexts: Sequence[Context],
    per_context: int,
    policy: TimedPolicy,
    seed: int,
    max_steps: int,
) -> int:
    collection = collect_groups(
        policy,
        pool,
        LocalQueue(0, wanted=len(contexts), limit=len(contexts)),
        lambda n: replace(contexts[n], index=n),
        rollouts_per_context=per_context,
        seed=(seed,),
        max_steps=max_steps,
        dynamic_sampling=False,
    )
    return collection.episodes


def _one_by_one(
    spec: LiberoSpec,
    contexts: Sequence[Context],
    workers: int,
    per_context: int,
    policy: TimedPolicy,
    seed: int,
) -> dict[str, float]:
    seconds, episodes = 0.0, 0
    with closing(EnvironmentPool(spec, workers)) as pool:
        for context in contexts:
            ask_all(pool, "reset", context)  # not counted
            started = time.perf_counter()
            episodes += _collect(pool, [context], per_context, policy, seed, spec.max_steps)
            seconds += time.perf_counter() - started
    return {"seconds": seconds, "episodes": episodes}


def _together(
    spec: LiberoSpec,
    contexts: Sequence[Context],
    workers: int,
    per_context: int,
    policy: TimedPolicy,
    seed: int,
) -> dict[str, float]:
    with closing(EnvironmentPool(spec, workers)) as pool:
        started = time.perf_counter()
        ask_all(pool, "reset", contexts[-1])
        begun = time.perf_counter()
        episodes = _collect(pool, contexts, per_context, policy, seed, spec.max_steps)
        seconds = time.perf_counter() - begun
        memory = max(pss_mib(process.pid) for process in pool.processes)
    return {
        "seconds": seconds,
        "episodes": episodes,
        "start_seconds": begun - started,
        "worker_mib": memory,
    }


def _reference(
    spec: LiberoSpec,
    contexts: Sequence[Context],
    workers: int,
    per_context: int,
    policy: TimedPolicy,
    seed: int,
) -> dict[str, float]:
    """A vector environment for each task, in which the scene is compiled for every episode."""
    seconds, episodes = 0.0, 0
    for context in contexts:
        staged = StagedContext(context.task, context.index, context.init_state)
        requests = [EpisodeRequest(staged, k, (seed, k)) for k in range(per_context)]
        started = time.perf_counter()
        with closing(ReferenceWay(spec, context.task, workers)) as way:
            episodes += len(way.run(policy, requests))
        seconds += time.perf_counter() - started
    return {"seconds": seconds, "episodes": episodes}


def many_tasks_table(results: dict[str, Any]) -> str:
    """What `many_tasks` found, for reading."""
    rows = []
    for count, each in results.items():
        hourly = {
            name: f"{3600 * each[name]['episodes'] / each[name]['seconds']:.0f}"
            for name in ("reference", "one_by_one", "together")
            if name in each
        }
        rows.append(
            [
                count,
                each["scenes"],
                hourly.get("reference", "-"),
                hourly["one_by_one"],
                hourly["together"],
                f"{each['ratio']:.2f}",
                f"{each['together']['start_seconds']:.1f}",
                f"{each['together']['worker_mib']:.0f}",
            ]
        )
    header = ["tasks", "scenes", "reference, episodes/h", "ours, one by one", "ours, together"]
    return table([*header, "ratio", "start, s", "MiB per worker"], rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
