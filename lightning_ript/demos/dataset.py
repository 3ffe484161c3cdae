"""Demonstrated steps one by one. Pictures are read from the files when they are asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from lightning_ript.demos.open_files import OpenFiles
from lightning_ript.demos.trajectory import Trajectory


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
        at = int(trajectory.steps[step])
        return trajectory.demonstration.picture(self._files, camera, at)
