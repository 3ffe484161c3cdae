"""Many episodes with workers killed at random: is each accounted for once, and does anything grow?

python benchmarks/soak.py --episodes 1000 --kill_every 20 [--workers 2] [--max_steps 16]

Episodes of LIBERO-Object's first task with random actions. About every `kill_every` episodes a
worker is killed while it works. Prints memory and open files over time, and fails if an episode is
missing or came twice.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter

import numpy as np
import torch
from jsonargparse import auto_cli
from measuring.processes import pss_mib

from lightning_ript.contexts import SampledContexts
from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.policies.base import Decisions, PolicyAdapter
from lightning_ript.rollouts import run_episodes
from lightning_ript.scheduling import EpisodeRequest, InOrder

CHUNK = 8
REPORTS = 20


class RandomPolicy(PolicyAdapter):
    """Uniform actions."""

    noise_shape = (CHUNK, 7)

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def act(self, observations, tasks, noise):  # type: ignore[no-untyped-def]
        """Turns the noise into actions."""
        return Decisions(2 * noise - 1, {"noise": noise}, torch.zeros(len(noise), 1))

    def log_prob(self, record):  # type: ignore[no-untyped-def]
        """Never asked for."""
        raise NotImplementedError


def main(
    episodes: int = 1000,
    kill_every: int = 20,
    workers: int = 2,
    max_steps: int = 16,
    image_size: int = 64,
    seed: int = 0,
    assets: str | None = None,
) -> None:
    """Runs the episodes and prints a table.

    Args:
        episodes: Episodes to run.
        kill_every: Episodes between two kills on average; 0 for none.
        workers: Simulator processes.
        max_steps: Control steps per episode.
        image_size: Pixels of the images.
        seed: Decides contexts, actions and kills.
        assets: Folder of LIBERO's assets; looked for when left out.
    """
    spec = LiberoSpec(
        "libero_object", [0], image_size=image_size, max_steps=max_steps, render="light",
        assets=assets,
    )  # fmt: skip
    spec.check()
    source, random = SampledContexts(), np.random.default_rng(seed)
    stream = (EpisodeRequest(source.context(n, spec, seed), n, (seed, n)) for n in range(episodes))
    seen: Counter[int] = Counter()
    kills, started = 0, time.monotonic()
    sys.stdout.write("| episodes | kills | minutes | main MiB | workers MiB | open files |\n")
    sys.stdout.write("|---|---|---|---|---|---|\n")
    with EnvironmentPool(spec, workers) as pool:
        for rollout in run_episodes(RandomPolicy(), pool, InOrder(stream), max_steps):
            seen[rollout.k] += 1
            alive = pool.processes
            if seen.total() % max(1, episodes // REPORTS) == 0:
                sizes = " + ".join(f"{pss_mib(process.pid):.0f}" for process in alive)
                files = len(os.listdir("/proc/self/fd"))
                minutes = (time.monotonic() - started) / 60
                sys.stdout.write(
                    f"| {seen.total()} | {kills} | {minutes:.1f} | {pss_mib():.0f} | {sizes} | "
                    f"{files} |\n"
                )
                sys.stdout.flush()
            if kill_every and random.random() < 1 / kill_every and alive:
                # In turn: one that has just been replaced still compiles while others finish many
                # episodes, and an episode that is hit three times rightly ends a run.
                alive[kills % len(alive)].kill()
                kills += 1
    wrong = {n: seen[n] for n in range(episodes) if seen[n] != 1}
    sys.stdout.write(f"\n{seen.total()} episodes, {kills} kills; not exactly once: {wrong}\n")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    auto_cli(main)
