"""How often the scripted expert succeeds on sampled resets of LIBERO-Object, and in how many steps.

python benchmarks/expert.py --resets 30 [--assets FOLDER | --standins] [--tasks "[0, 4]"]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli

from lightning_ript.commands.collect_demos import MAX_STEPS, attempt_context
from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.libero.environment import LiberoEnvironment
from lightning_ript.envs.libero.expert import PickPlaceExpert
from lightning_ript.envs.libero.standins import build_standins
from lightning_ript.types import Context


def run_expert(environment: LiberoEnvironment, context: Context, noise: float) -> tuple[bool, int]:
    """One episode; returns whether it succeeded and its control steps."""
    environment.reset(context)
    expert = PickPlaceExpert.for_environment(environment.problem, noise, context.seed)
    for step in range(1, MAX_STEPS + 1):
        if environment.step_chunk(expert.act()[None]).success:
            return True, step
    return False, MAX_STEPS


def main(
    tasks: list[int | str] | None = None,
    resets: int = 30,
    seed: int = 1,
    assets: str | None = None,
    standins: bool = False,
    noise: float = 0.0,
) -> None:
    """Prints a row per task.

    Args:
        tasks: Names or numbers of the tasks; all ten when left out.
        resets: Episodes per task.
        seed: Decides the resets.
        assets: Folder of LIBERO's assets; looked for when left out.
        standins: Use the built-in stand-ins.
        noise: Standard deviation of the expert's action noise.
    """
    with tempfile.TemporaryDirectory() as folder:
        if standins:
            assets = str(build_standins(Path(folder)))
        spec = LiberoSpec("libero_object", tasks, cameras=(), assets=assets, max_compiled=1)
        spec.check()
        environment = spec.make()
        sys.stdout.write("| task | successes | mean steps | longest |\n|---|---|---|---|\n")
        for task in spec.tasks():
            results = np.array(
                [
                    run_expert(environment, attempt_context(task, seed, n), noise)
                    for n in range(resets)
                ]
            )
            won, steps = results[:, 0].sum(), results[results[:, 0] == 1, 1]
            sys.stdout.write(
                f"| {task.language} | {won}/{resets} | {steps.mean():.0f} | {steps.max()} |\n"
                if won
                else f"| {task.language} | 0/{resets} | - | - |\n"
            )
            sys.stdout.flush()
        environment.close()


if __name__ == "__main__":
    auto_cli(main)
