"""Whether fast mode strays from exact mode, and whether it ever changes the outcome of an episode.

python benchmarks/fast_mode.py --episodes 500 [--tasks "[0, 4]"] [--processes 2]

Every episode starts from its own sampled reset. Half are the scripted expert's, half those of an
expert whose motions are disturbed. The expert runs in both modes, watching its own simulator, and
the two outcomes are compared. Besides, the actions it took in exact mode, and as many random ones,
are replayed in fast mode, and the simulator's positions compared after each of 100 steps.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli

from lightning_ript.commands.collect_demos import MAX_STEPS, attempt_context
from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.libero.environment import LiberoEnvironment
from lightning_ript.envs.libero.expert import PickPlaceExpert
from lightning_ript.types import Context, Task

STEPS = 100
MODES = ("exact", "fast")
Outcome = dict[str, float]


@cache
def environments(spec: LiberoSpec) -> dict[str, LiberoEnvironment]:
    """One environment of each mode per process."""
    return {mode: dataclasses.replace(spec, mode=mode).make() for mode in MODES}


def expert_episode(
    environment: LiberoEnvironment, context: Context, noise: float
) -> tuple[bool, list[np.ndarray]]:
    """Runs the expert; returns whether it succeeded, and its actions."""
    environment.reset(context)
    expert = PickPlaceExpert.for_environment(environment.problem, noise, context.seed)
    actions: list[np.ndarray] = []
    while len(actions) < MAX_STEPS:
        actions.append(expert.act())
        if environment.step_chunk(actions[-1][None]).success:
            return True, actions
    return False, actions


def positions(
    environment: LiberoEnvironment, context: Context, actions: list[np.ndarray]
) -> np.ndarray:
    """The simulator's positions (n, nq) after each action."""
    environment.reset(context)
    seen = []
    for action in actions:
        environment.step_chunk(action[None])
        seen.append(environment.sim_state())
    size = environment.problem.sim.model.nq
    return np.array(seen)[:, 1 : 1 + size]


def compare(spec: LiberoSpec, task: Task, number: int, seed: int, noise: float) -> Outcome:
    """Runs one episode in both modes."""
    both = environments(spec)
    context = attempt_context(task, seed, number)
    won, actions = expert_episode(both["exact"], context, noise)
    won_fast, actions_fast = expert_episode(both["fast"], context, noise)
    random = np.random.default_rng([seed, number]).uniform(-1, 1, (STEPS, 7))
    strayed = {}
    for name, played in (("expert", actions[:STEPS]), ("random", list(random))):
        exact, fast = (positions(both[mode], context, played) for mode in MODES)
        strayed[name] = float(np.abs(exact - fast).max())
    return {
        "task": task.index,
        "noise": noise,
        "exact": won,
        "fast": won_fast,
        "steps": len(actions),
        "steps_fast": len(actions_fast),
        **strayed,
    }


def main(
    suite: str = "libero_object",
    tasks: tuple[int, ...] | None = None,
    episodes: int = 500,
    noise: float = 0.3,
    seed: int = 5,
    processes: int = 2,
    assets: str | None = None,
    json_file: Path | None = None,
) -> None:
    """Prints how often the outcomes agree and how far positions stray.

    Args:
        suite: A suite that the expert knows.
        tasks: Numbers of the tasks; all when left out.
        episodes: Episodes over all tasks.
        noise: Standard deviation of the noise on every other episode's motions.
        seed: Decides resets and noise.
        processes: Processes to share the episodes.
        assets: Folder of LIBERO's assets; looked for when left out.
        json_file: Where to write what was measured of each episode.
    """
    spec = LiberoSpec(suite, tasks, cameras=(), assets=assets, max_compiled=1)
    spec.check()
    chosen = spec.tasks()
    jobs = sorted((n % len(chosen), n) for n in range(episodes))  # a task at a time: it compiles
    outcomes: list[Outcome] = []
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        running = [
            pool.submit(compare, spec, chosen[t], n, seed, noise * (n // len(chosen) % 2))
            for t, n in jobs
        ]
        for number, done in enumerate(running, start=1):
            outcomes.append(done.result())
            sys.stderr.write(f"\r{number}/{episodes} episodes")
    sys.stderr.write("\n")
    if json_file is not None:
        json_file.write_text(json.dumps(outcomes, indent=1))
    report(outcomes)


def report(outcomes: list[Outcome]) -> None:
    """Prints the table."""
    write = sys.stdout.write
    write("| episodes | succeed in exact mode | in fast mode | same outcome | same length |\n")
    write("|---|---|---|---|---|\n")
    for name, part in (
        ("expert", [o for o in outcomes if not o["noise"]]),
        ("disturbed expert", [o for o in outcomes if o["noise"]]),
    ):
        if part:
            exact, fast = (sum(o[mode] for o in part) for mode in MODES)
            same = sum(o["exact"] == o["fast"] for o in part)
            length = sum(o["steps"] == o["steps_fast"] for o in part)
            count = len(part)
            write(f"| {count} of the {name} | {exact:.0f} | {fast:.0f} | {same} | {length} |\n")
    write(f"\n| positions strayed within {STEPS} steps (m, rad) | median | 90 % | 99 % | most |\n")
    write("|---|---|---|---|---|\n")
    for name in ("expert", "random"):
        values = [o[name] for o in outcomes]
        marks = " | ".join(f"{q:.1e}" for q in np.quantile(values, (0.5, 0.9, 0.99, 1.0)))
        within = np.mean(np.array(values) < 1e-6)
        write(f"| {name} actions: {within:.1%} of episodes below 1e-6 | {marks} |\n")


if __name__ == "__main__":
    auto_cli(main)
