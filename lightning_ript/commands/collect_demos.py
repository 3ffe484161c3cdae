"""Collecting demonstrations with the scripted expert: `lightning-ript collect-demos`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lightning_ript.console.progress import progress_bar
from lightning_ript.demos.hdf5 import DemonstrationWriter, RecordedEpisode
from lightning_ript.demos.recorder import RecorderSpec
from lightning_ript.envs.base import WorkerError
from lightning_ript.envs.libero import LiberoSpec
from lightning_ript.envs.libero.graphics import Render
from lightning_ript.envs.pool import EnvironmentPool
from lightning_ript.storage.files import make_folder
from lightning_ript.types import Context, Task

log = logging.getLogger(__name__)

EXPERT_SUITES = ("libero_object",)
MAX_STEPS = 300
# The expert succeeds in nearly all attempts: this many failures in a row are a fault.
MAX_FAILURES_IN_A_ROW = 10


@dataclass(frozen=True)
class Collected:
    """What a run left for one task.

    Attributes:
        task: The task.
        file: Its HDF5 file.
        demonstrations: How many the file holds.
        failures: Unsuccessful episodes of this run, which are not in it.
    """

    task: Task
    file: Path
    demonstrations: int
    failures: int


def collect_demos(
    out: Path = Path("demonstrations"),
    suite: str = "libero_object",
    tasks: list[int | str] | None = None,
    demos: int = 10,
    seed: int = 0,
    image_size: int = 128,
    render: Render = "full",
    workers: int = 2,
    assets: str | None = None,
    noise: float = 0.0,
    init_joint_noise: float = 0.02,
) -> list[Collected]:
    """Runs a scripted expert and writes its successful episodes as LIBERO's HDF5 files.

    The expert sees the simulator's true poses; the files hold what a policy sees. Running the same
    command again goes on where an interrupted run stopped, and the files do not depend on the
    number of workers.

    Args:
        out: Folder for the files, `<task name>_demo.hdf5` each.
        suite: Suite of the tasks; the expert knows libero_object.
        tasks: Names or numbers of the tasks; all of the suite when left out.
        demos: Demonstrations per task.
        seed: Decides the sampled resets.
        image_size: Height and width of the images in pixels.
        render: `full` for LIBERO's own pixels, `light` for faster drawing; as in training later.
        workers: Simulator processes.
        assets: Folder of LIBERO's assets; looked for when left out.
        noise: Standard deviation of noise on the expert's motions (actions are in [-1, 1]).
        init_joint_noise: Standard deviation (rad) of noise on the arm's joints at the start; the
            benchmark's test states have 0.02.

    Returns:
        One entry per task.

    Raises:
        OSError: If nothing can be written to `out`.
        ValueError: If a setting is wrong, or a file in `out` does not fit the settings.
        FileNotFoundError: If the assets are missing.
        RuntimeError: If the expert keeps failing.
    """
    if suite not in EXPERT_SUITES:
        raise ValueError(
            f"the scripted expert knows {', '.join(EXPERT_SUITES)} but not {suite!r}: use LIBERO's "
            "published demonstrations for other suites."
        )
    for name, value in (("demos", demos), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} is {value}, but must be 1 or more.")
    if seed < 0:
        raise ValueError(f"seed is {seed}, but must be 0 or more.")
    if not 0 <= noise < np.inf:
        raise ValueError(f"noise is {noise}, but must be 0 or more.")
    make_folder(out, "--out")
    libero = LiberoSpec(
        suite,
        tasks,
        image_size=image_size,
        max_steps=MAX_STEPS,
        render=render,
        assets=assets,
        init_joint_noise=init_joint_noise,
        max_compiled=1,
    )
    libero.check()
    settings = {
        "seed": seed,
        "render": render,
        "noise": noise,
        "init_joint_noise": init_joint_noise,
        "standin_assets": libero.found_assets.standin,
    }
    writers = [
        DemonstrationWriter(out / f"{task.name}_demo.hdf5", task, image_size, settings)
        for task in libero.tasks()
    ]
    for writer in writers:
        if writer.count:
            log.info("%s has %d demonstrations already.", writer.path, writer.count)
    failures = [0] * len(writers)
    missing = sum(max(0, demos - writer.count) for writer in writers)
    if missing:
        pool = EnvironmentPool(RecorderSpec(libero, noise), min(workers, missing))
        wanted = demos * len(writers)
        bar = progress_bar(
            total=wanted, initial=wanted - missing, desc="demonstrations", unit="demo"
        )
        with pool, bar:
            failures = [
                _collect_task(writer, demos, seed=seed, pool=pool, bar=bar) for writer in writers
            ]
    results = []
    for writer, failed in zip(writers, failures, strict=True):
        log.info("%s: %d demonstrations, %d failed attempts.", writer.path, writer.count, failed)
        results.append(Collected(writer.task, writer.path, writer.count, failed))
    return results


def attempt_context(task: Task, seed: int, attempt: int) -> Context:
    """The sampled reset of one attempt at a task."""
    sequence = np.random.SeedSequence([seed, task.index, attempt])
    return Context(task, attempt, seed=int(sequence.generate_state(1)[0]))


def finished(pool: EnvironmentPool) -> list[tuple[int, RecordedEpisode | None]]:
    """Blocks until a recorder is done; the failed episodes are None.

    Raises:
        WorkerError: If a simulator failed. What was written stays, and a new run goes on.
    """
    answers = pool.wait()
    for _, answer in answers:
        if isinstance(answer, WorkerError):
            raise answer
    return answers


def _collect_task(
    writer: DemonstrationWriter, demos: int, seed: int, pool: EnvironmentPool, bar: tqdm
) -> int:
    """Fills a task's file; returns the number of failed attempts.

    Episodes are written in the order of their attempts, whichever worker finishes first, so that
    the file depends on the settings alone and a resumed run knows where to go on.
    """
    start = attempt = writer.next_attempt
    already = writer.count
    idle, running = list(pool.slots), dict[int, int]()  # slot -> attempt
    done: dict[int, RecordedEpisode | None] = {}
    in_a_row = failed = 0
    while writer.count < demos:
        hopeful = sum(episode is not None for episode in done.values()) + len(running)
        while idle and writer.count + hopeful < demos:
            slot = idle.pop()
            pool.ask(slot, "record", attempt_context(writer.task, seed, attempt))
            running[slot] = attempt
            attempt, hopeful = attempt + 1, hopeful + 1
        for slot, episode in finished(pool):
            done[running.pop(slot)] = episode
            idle.append(slot)
        while (number := min(done, default=None)) is not None and (
            not running or number < min(running.values())
        ):
            episode = done.pop(number)
            in_a_row = 0 if episode is not None else in_a_row + 1
            if in_a_row == MAX_FAILURES_IN_A_ROW:
                raise RuntimeError(
                    f"the scripted expert failed {in_a_row} times in a row at task "
                    f"{writer.task.index} ({writer.task.name}); attempts {number - in_a_row + 1} "
                    f"to {number} of seed {seed}."
                )
            if episode is not None:
                writer.append(episode)
                bar.update()
            failed = number + 1 - start - (writer.count - already)
            bar.set_postfix(task=writer.task.index, failed=failed)
    return failed
