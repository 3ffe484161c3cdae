"""Episodes per hour of LIBERO rollouts: the reference's way against ours, side by side.

python benchmarks/rollouts.py [--suite libero_spatial] [--assets FOLDER] [--json FILE]
python benchmarks/rollouts.py --success 0.5 --max_steps 150
python benchmarks/rollouts.py --suite libero_spatial --success 0.5 --success_at 80
python benchmarks/rollouts.py --scaling "[1, 2, 4, 8]" --episodes 32
python benchmarks/rollouts.py --tasks "[1, 10, 90]" --suite libero_90 --render light

All variants run the same episodes: the same states of the benchmark, the quickstart's QueST with
the same random weights, the same sampling noise, and the same settling steps.

a_reference   LIBERO's OffScreenRenderEnv in its SubprocVectorEnv: `seed(0)`, `reset()`, which
              compiles the scene anew, and `set_init_state` for every episode, both cameras in
              every control step, one message per step, a decision for all environments every
              8 steps, and all step on until the last has finished.
b_kept        The same without compiling again and with one message and one look per 8 steps:
              what a careful user can get out of robosuite's own switches.
c_exact       Ours, bit-identical to LIBERO's own stepping.
d_fast        Ours, one forward pass per physics step.
e_fast_light  The same with fewer triangles and no shadows.

Rounds of episodes alternate between the variants, so that a machine that gets slower does so for
all of them; medians and ranges are over the rounds. Starting the processes is not counted, nor is
compiling what a variant keeps. Every simulator has one thread. Parts are measured in the simulator
processes while the rounds run: `render` is all drawing, `reset` includes settling, `waiting` is the
rest of a worker's time, in which decisions are made and messages travel. Memory is the main
process's plus the peaks of the variant's own processes. A success is staged, so that it does not
hang on weights: the episode executes what the scripted expert did from the same state, or is
declared successful at a given step; the policy is asked all the same.

With `--tasks`, groups of many tasks run together, as an iteration of training runs them, and one
by one in simulators that have the task ready, which costs nothing for changing tasks. Every
simulator's first scene and what one_by_one prepares are not counted; the scenes are in the cache
then. Of the reference, which builds a vector environment for each task, three groups are run.
"""

from __future__ import annotations

import json as json_format
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

# LIBERO's spawned processes import this file: they need this module, and must not load torch.
import measuring.reference  # noqa: F401
from jsonargparse import auto_cli

from lightning_ript.envs.libero import LiberoSpec


def main(
    suite: str = "libero_object",
    task: int | str = 0,
    success: float = 0.0,
    success_at: int | None = None,
    workers: int = 2,
    episodes: int = 8,
    rollouts_per_context: int = 8,
    rounds: int = 3,
    max_steps: int = 120,
    variants: list[str] | None = None,
    scaling: list[int] | None = None,
    tasks: list[int] | None = None,
    render: Literal["full", "light"] = "full",
    reference: bool = True,
    device: str = "cpu",
    seed: int = 0,
    assets: str | None = None,
    json: Path | None = None,
) -> None:
    """Measures and prints tables.

    Args:
        suite: Suite of the task.
        task: Name or number of the task.
        success: Share of the episodes that succeed; the others run to the limit.
        success_at: Declare those successful at this step instead of replaying the expert, which
            only libero_object has.
        workers: Simulator processes of each variant.
        episodes: Episodes per round.
        rollouts_per_context: Episodes in a row that start from the same state.
        rounds: Rounds per variant.
        max_steps: Control steps until an episode has failed.
        variants: What to run; all five when left out, or ours in fast mode when `scaling`.
        scaling: Numbers of workers: instead of comparing, runs ours in fast mode with each of them
            and says what bounds it.
        tasks: Numbers of tasks, evenly spaced over the suite: instead of comparing, runs ours in
            fast mode with each of them.
        render: How ours draws with `tasks`.
        reference: Whether the reference runs, too, with `tasks`.
        device: Where the policy decides.
        seed: Decides weights, sampling and which episodes succeed.
        assets: Folder of LIBERO's assets; looked for when left out.
        json: File to write all numbers to.

    Raises:
        ValueError: If a setting makes no sense.
    """
    _check(success, success_at, scaling or [workers], episodes, rounds, max_steps)
    here = str(Path(__file__).parent)  # the simulators import the modules beside this file
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    multiprocessing.set_start_method("spawn")

    from measuring.comparison import (
        choose,
        compare,
        comparison_table,
        machine,
        probe,
        probe_table,
        scale,
        scaling_table,
    )
    from measuring.many_tasks import many_tasks, many_tasks_table
    from measuring.plan import plan
    from measuring.policy import TimedPolicy

    names = choose(variants, bool(scaling))
    policy = TimedPolicy(seed).to(device)
    size = policy.model.config.image_size
    chosen = None if tasks else [task]
    spec = LiberoSpec(suite, chosen, image_size=size, max_steps=max_steps, assets=assets)
    spec.check()
    settings = {
        "suite": suite,
        "task": None if tasks else spec.tasks()[0].name,
        "render": render,
        "success": success,
        "success_at": success_at,
        "workers": scaling or workers,
        "episodes_per_round": episodes,
        "rounds": rounds,
        "max_steps": max_steps,
        "image_size": size,
        "device": device,
        "machine": machine(),
    }
    results: dict[str, Any] = {"settings": settings}
    if tasks:
        spec = replace(spec, render=render)
        arguments = (workers, rollouts_per_context, policy, seed, reference)
        results["many_tasks"] = many_tasks(spec, tasks, *arguments)
        print(many_tasks_table(results["many_tasks"]))
    else:
        one = spec.tasks()[0]
        of_rounds = (rounds, episodes, rollouts_per_context, success, success_at, seed)
        laid_out = plan(spec, one, *of_rounds)
        if scaling:
            results["scaling"] = scale(spec, one, scaling, laid_out, policy, names)
            print(scaling_table(results["scaling"]))
        else:
            results["variants"] = compare(spec, one, workers, laid_out, policy, names)
            results["control_step"] = probe(spec, spec.test_contexts(one)[0], seed)
            print(comparison_table(results["variants"]))
            print()
            print(probe_table(results["control_step"]))
    if json is not None:
        json.write_text(json_format.dumps(results, indent=2))


def _check(
    success: float,
    success_at: int | None,
    workers: list[int],
    episodes: int,
    rounds: int,
    max_steps: int,
) -> None:
    if not 0 <= success <= 1:
        raise ValueError(f"success is {success}, but must be from 0 to 1.")
    if success_at is not None and not 1 <= success_at <= max_steps:
        raise ValueError(f"success_at is {success_at}, but must be from 1 to max_steps.")
    if min(workers) < 1 or rounds < 1 or max_steps < 1:
        raise ValueError("workers, rounds and max_steps must be 1 or more.")
    if episodes < 1 or any(episodes % count for count in workers):
        raise ValueError(
            f"episodes is {episodes}, but must be a multiple of the number of workers: the "
            "reference runs that many at a time, and nobody should idle at the end of a round."
        )


if __name__ == "__main__":
    auto_cli(main)
