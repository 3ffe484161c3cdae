"""Demonstrations of one task, read from its HDF5 file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from lightning_ript.demos.file_conventions import INSTRUCTION
from lightning_ript.demos.find_files import SUFFIX, find_files, task_name
from lightning_ript.demos.hdf5 import Demonstration, demonstrations_in, inputs_in, opened
from lightning_ript.demos.trajectory import Reading, Trajectory, chosen_steps, few_shot
from lightning_ript.envs.libero.suites import SUITES, suite_tasks
from lightning_ript.types import Task


@dataclass(frozen=True)
class Hdf5Task:
    """A file of one task's demonstrations.

    Attributes:
        file: In LIBERO's layout.
    """

    file: Path

    def __str__(self) -> str:
        return str(self.file)

    def read(self, reading: Reading, few: int | None) -> list[Trajectory]:
        """Reads what belongs in memory, and checks the rest; opens the file once.

        Args:
            reading: What of them.
            few: How many of them, evenly spaced; None for all.

        Raises:
            OSError: The file cannot be read at the moment.
            ValueError: The file is damaged, of another layout, or holds fewer.
        """
        with opened(self.file) as data:
            found = demonstrations_in(self.file, data)
            chosen = few_shot(self.file, len(found), few)
            cameras: tuple[str, ...] = ()
            lowdim: tuple[str, ...] = ()
            if chosen and not reading.only_actions:
                seen, numbers = inputs_in(data)
                cameras = seen if reading.cameras is None else reading.cameras
                lowdim = tuple(numbers) if reading.lowdim is None else reading.lowdim
            return [load(found[i], data, reading, cameras, lowdim) for i in chosen]


def hdf5_tasks(places: Sequence[str | Path], tasks: Sequence[Task] | None) -> list[Hdf5Task]:
    """The files that `find_files` finds."""
    return [Hdf5Task(file) for file in find_files(places, tasks)]


def load(
    demonstration: Demonstration,
    data: h5py.Group,
    reading: Reading,
    cameras: tuple[str, ...],
    lowdim: tuple[str, ...],
) -> Trajectory:
    """Reads what belongs in memory, and checks the rest.

    Args:
        demonstration: The demonstration.
        data: The group `data` of its file, open.
        reading: What of it. With `before_action`, of a file that holds the observations after the
            actions, the first action is left out: nothing was seen before.
        cameras: Pictures to read.
        lowdim: Proprioception to read.

    Raises:
        ValueError: A dataset is missing or has another number of steps than there are actions, or
            no instruction is known.
    """

    def dataset(name: str) -> h5py.Dataset:
        found = demonstration.dataset(data, name)
        if len(found) != demonstration.num_samples:
            raise ValueError(
                f"{demonstration.file} has {len(found)} steps of {name} in "
                f"data/{demonstration.name}, but {demonstration.num_samples} actions."
            )
        return found

    actions = np.asarray(dataset("actions"), np.float32)
    if reading.before_action and demonstration.observed_after:
        actions = actions[1:]  # so that the action of index t meets what was seen after t - 1
    steps = chosen_steps(actions, reading)
    arrays = {"actions": actions[steps]}
    arrays |= {name: np.asarray(dataset(f"obs/{name}"), np.float32)[steps] for name in lowdim}
    pictures = {name: dataset(f"obs/{name}") for name in cameras}
    if reading.in_memory:
        up = slice(None, None, -1 if demonstration.upside_down else 1)
        arrays |= {
            name: np.ascontiguousarray(found[()][steps][:, up]) for name, found in pictures.items()
        }
    return Trajectory(
        demonstration=demonstration,
        instruction=instruction(demonstration.file, demonstration.language),
        steps=steps,
        cameras=cameras,
        arrays=arrays,
    )


def instruction(file: Path, carried: str | None) -> str:
    """Returns the benchmark's instruction of the task that a file is named after.

    Or, where no task has that name, the instruction that the file carries.

    Raises:
        ValueError: It carries none.
    """
    tasks = (task for suite in SUITES for task in suite_tasks(suite))
    found = next((task.language for task in tasks if task.name == task_name(file)), carried)
    if found is None:
        raise ValueError(
            f"{file} does not say what the robot is told: name it after its task of LIBERO, <task "
            f"name>{SUFFIX}, or write the instruction to the attribute {INSTRUCTION} of its group "
            "`data`."
        )
    return found
