"""Demonstrated steps one by one. Pictures are read from the files when they are asked for."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch.utils.data import Dataset

from lightning_ript.demos.hdf5 import CAMERAS, LOWDIM, Demonstration

OPEN_FILES = 32  # per process
IDLE = 1e-4  # an arm that moves less than this, of the most it can, stands still


@dataclass(frozen=True)
class Trajectory:
    """T steps of a demonstration, and what of them is in memory.

    Attributes:
        demonstration: Where it lies.
        instruction: What a policy is told.
        steps: The numbers of their observations in the file, (T,) int64.
        cameras: The pictures that are wanted, by their names.
        arrays: `actions` (T, action_dim) float32; if observations are wanted, proprioception
            (T, width) float32; and if pictures are to be in memory as well, they, (T, H, W, 3)
            uint8 and upright.
    """

    demonstration: Demonstration
    instruction: str
    steps: np.ndarray
    cameras: tuple[str, ...]
    arrays: Mapping[str, np.ndarray]


def load(
    demonstration: Demonstration,
    data: h5py.Group,
    instruction: str,
    only_actions: bool = False,
    in_memory: bool = False,
    cameras: Sequence[str] = CAMERAS,
    lowdim: Sequence[str] = tuple(LOWDIM),
    skip_idle: bool = False,
    before_action: bool = False,
) -> Trajectory:
    """Reads what belongs in memory, and checks the rest.

    Args:
        demonstration: The demonstration.
        data: The group `data` of its file, open.
        instruction: What a policy is told.
        only_actions: Leave out observations.
        in_memory: Read the pictures, too.
        cameras: Pictures to read.
        lowdim: Proprioception to read.
        skip_idle: Leave out the steps that `busy_steps` does.
        before_action: Pair each action with the observation before it, whatever the file does. Of a
            file that holds those after it, the first action is left out: nothing was seen before.

    Raises:
        ValueError: A dataset is missing or has another number of steps than there are actions.
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
    if before_action and demonstration.observed_after:
        actions = actions[1:]  # so that the action of index t meets what was seen after t - 1
    steps = busy_steps(actions) if skip_idle else np.arange(len(actions))
    arrays = {"actions": actions[steps]}
    if not only_actions:
        arrays |= {name: np.asarray(dataset(f"obs/{name}"), np.float32)[steps] for name in lowdim}
        pictures = {name: dataset(f"obs/{name}") for name in cameras}
        if in_memory:
            up = slice(None, None, -1 if demonstration.upside_down else 1)
            arrays |= {
                name: np.ascontiguousarray(found[()][steps][:, up])
                for name, found in pictures.items()
            }
    return Trajectory(
        demonstration=demonstration,
        instruction=instruction,
        steps=steps,
        cameras=tuple(cameras),
        arrays=arrays,
    )


def busy_steps(actions: np.ndarray) -> np.ndarray:
    """Numbers of the steps that do something, as OpenVLA's training data was made of.

    Left out is an action (action_dim,) that moves the arm by less than `IDLE` and leaves the
    gripper, its last number, as the last step that was kept has it.
    """
    kept: list[int] = []
    for step, action in enumerate(actions):
        still = np.linalg.norm(action[:-1]) < IDLE
        if not still or (kept and action[-1] != actions[kept[-1]][-1]):
            kept.append(step)
    return np.array(kept, np.int64)


class OpenFiles:
    """HDF5 files that stay open for reading; the least recently used one makes way for another.

    An open HDF5 file must not be shared between processes: loader workers open their own.

    Args:
        limit: Files that one process holds open at most.
    """

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.limit = limit
        self._files: OrderedDict[Path, h5py.File] = OrderedDict()
        self._process = os.getpid()

    def __getitem__(self, path: Path) -> h5py.Group:
        """The group `data` of a file."""
        if self._process != os.getpid():
            self._files, self._process = OrderedDict(), os.getpid()
        if path not in self._files:
            if len(self._files) == self.limit:
                self._files.popitem(last=False)[1].close()
            # Steps are read in random order, so what lies beside one is not worth keeping.
            self._files[path] = h5py.File(path, "r", rdcc_nbytes=0)
        self._files.move_to_end(path)
        return self._files[path]["data"]

    def __len__(self) -> int:
        return len(self._files)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}


class DemonstrationDataset(Dataset[dict[str, Any]]):
    """Every step of some demonstrations, with the block of actions that begins there.

    A block that reaches beyond the end is filled with the last action, as in the reference.

    Args:
        trajectories: The demonstrations.
        block_size: Actions per block.
        only_actions: Leave out observations and instruction.
    """

    def __init__(
        self, trajectories: Sequence[Trajectory], block_size: int, only_actions: bool
    ) -> None:
        self.trajectories = trajectories
        self.block_size = block_size
        self.only_actions = only_actions
        self.ends = list(accumulate(len(each.steps) for each in trajectories))
        self._files = OpenFiles()

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = bisect_right(self.ends, index)
        trajectory = self.trajectories[number]
        arrays = trajectory.arrays
        step = index - (self.ends[number] - len(trajectory.steps))
        actions = arrays["actions"][step : step + self.block_size]
        missing = self.block_size - len(actions)
        item: dict[str, Any] = {"actions": np.pad(actions, ((0, missing), (0, 0)), mode="edge")}
        if not self.only_actions:
            cameras = trajectory.cameras
            item["images"] = {name: self._picture(trajectory, name, step) for name in cameras}
            lowdim = arrays.keys() - {"actions", *cameras}
            item["lowdim"] = {name: arrays[name][step] for name in sorted(lowdim)}
            item["language"] = trajectory.instruction
        return item

    def _picture(self, trajectory: Trajectory, camera: str, step: int) -> np.ndarray:
        if camera in trajectory.arrays:
            return trajectory.arrays[camera][step]
        demonstration = trajectory.demonstration
        data = self._files[demonstration.file]
        picture = data[f"{demonstration.name}/obs/{camera}"][trajectory.steps[step]]
        return np.ascontiguousarray(picture[::-1] if demonstration.upside_down else picture)
