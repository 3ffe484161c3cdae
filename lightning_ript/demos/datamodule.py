"""Demonstrations as batches for the supervised stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from gymnasium import spaces
from torch.utils.data import DataLoader

from lightning_ript.console.progress import progress_bar
from lightning_ript.demos.dataset import DemonstrationDataset
from lightning_ript.demos.find_files import find_files
from lightning_ript.demos.hdf5 import spaces_in
from lightning_ript.demos.hdf5_tasks import Hdf5Task, hdf5_tasks
from lightning_ript.demos.lerobot import LeRobotDataset, LeRobotTask, is_lerobot
from lightning_ript.demos.trajectory import Reading, Trajectory, shared_out
from lightning_ript.envs.libero.suites import find_tasks
from lightning_ript.storage.files import listed


class DemonstrationDataModule(L.LightningDataModule):
    """Batches of demonstrated steps from LIBERO's HDF5 files or LeRobot's datasets.

    A batch of B steps: `actions` (B, block_size, action_dim) float32; unless `only_actions`, also
    `images` (camera -> (B, H, W, 3) uint8, upright), `lowdim` (name -> (B, width) float32) and
    `language` (B instructions). An instruction is the benchmark's own for the task that the file is
    named after, since that is what the policy reads in the simulator; LIBERO's files of
    LIBERO-Object carry another wording. Files named otherwise keep the instruction they carry, and
    so do LeRobot's datasets.

    Actions and proprioception are kept in memory (LIBERO-90's 4,500 demonstrations take 50 MB),
    pictures are read when they are asked for.

    Args:
        files: HDF5 files, or folders of such, or datasets in LeRobot's format v3: folders, or
            `hf://owner/name` on the hub. One alone need not be in a list.
        suite: Use only files or episodes of this suite's tasks; a folder must hold all of them.
        task_subset: Of these tasks, names or numbers in the suite; the whole suite by default.
        batch_size: Steps per batch over all ranks.
        validation_fraction: Part of each file's demonstrations, at least one, that is held out; its
            last ones. 0 holds out none. Of LeRobot's datasets, of each task's.
        demonstrations_per_file: Number to use of each file, or of each task of LeRobot's datasets,
            evenly spaced over it; all by default.
        block_size: Actions per block; the policy's.
        only_actions: Read actions alone, which is all that the autoencoder needs.
        lowdim: Proprioception to read, by the names in the files; by default what QueST was
            published with, or all that the files hold where they lack some of that. OpenVLA-OFT
            needs `[ee_pos, ee_ori, gripper_states]`.
        cameras: Images to read, by the names in the files; the default is as for `lowdim`.
        before_action: Pair each action with the observation before it, as OpenVLA-OFT was trained.
            By default pairs are as the file has them: LIBERO's published files hold the observation
            after the action of the same index, and QueST was trained on that; OpenVLA's replayed
            files, robomimic's and LeRobot's datasets hold the one before it. Which of the two an
            HDF5 file holds is seen from its `states`; without them it counts as one of LIBERO's if
            it has the attribute `problem_info`.
        skip_idle: Leave out the steps in which neither arm nor gripper does anything, as the data
            of OpenVLA-OFT does.
        in_memory: Read pictures once, too; a LIBERO task of 50 demonstrations takes about 0.7 GB.
        num_workers: Processes that read beside the trainer's.
        lerobot_features: Of LeRobot's datasets, the features that are `agentview_rgb`,
            `eye_in_hand_rgb`, `state`, `joint_states` or `actions`, where they have other names
            than those of published ones.
        lerobot_turned: Whether the pictures of LeRobot's datasets are turned by 180 degrees against
            what the simulator renders, as those of published ones are.
    """

    def __init__(
        self,
        files: Sequence[str] | str,
        suite: str | None = None,
        task_subset: Sequence[int | str] | None = None,
        batch_size: int = 128,
        validation_fraction: float = 0.1,
        demonstrations_per_file: int | None = None,
        block_size: int = 32,
        only_actions: bool = False,
        lowdim: Sequence[str] | None = None,
        cameras: Sequence[str] | None = None,
        before_action: bool = False,
        skip_idle: bool = False,
        in_memory: bool = False,
        num_workers: int = 0,
        lerobot_features: Mapping[str, str] | None = None,
        lerobot_turned: bool = True,
    ) -> None:
        super().__init__()
        if batch_size < 1 or block_size < 1:
            raise ValueError(
                f"batch_size is {batch_size} and block_size {block_size}; both must be at least 1"
            )
        if not 0 <= validation_fraction < 1:
            raise ValueError(
                f"validation_fraction is {validation_fraction}; it must be at least 0 and below 1"
            )
        if demonstrations_per_file is not None and demonstrations_per_file < 1:
            raise ValueError(
                f"demonstrations_per_file is {demonstrations_per_file}; it must be at least 1"
            )
        if suite is None and task_subset is not None:
            raise ValueError("task_subset chooses tasks of a suite: set suite, too")
        self.files = listed(files)
        self.tasks = None if suite is None else find_tasks(suite, task_subset)
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.demonstrations_per_file = demonstrations_per_file
        self.block_size = block_size
        self.reading = Reading(
            only_actions=only_actions,
            in_memory=in_memory,
            cameras=None if cameras is None else tuple(cameras),
            lowdim=None if lowdim is None else tuple(lowdim),
            skip_idle=skip_idle,
            before_action=before_action,
        )
        self.num_workers = num_workers
        self.lerobot_features = dict(lerobot_features or {})
        self.lerobot_turned = lerobot_turned
        self.training: DemonstrationDataset | None = None
        self.validation: DemonstrationDataset | None = None

    @classmethod
    def spaces_of(cls, settings: Mapping[str, Any]) -> tuple[spaces.Dict, spaces.Box] | None:
        """The observation and action space of the first file that settings of this class name.

        Args:
            settings: As for `__init__`.

        Returns:
            None where no file can be found, which `setup` will say.
        """
        suite = settings.get("suite")
        tasks = None if suite is None else find_tasks(suite, settings.get("task_subset"))
        try:
            files = listed(settings["files"])
            if is_lerobot(first := next(iter(files), "")):
                names = settings.get("lerobot_features")
                return LeRobotDataset(first, names, parts=()).spaces()
            return spaces_in(find_files(files, tasks)[0])
        except (OSError, ValueError):
            return None

    def setup(self, stage: str) -> None:
        """Finds the demonstrations and reads what belongs in memory; opens each file once.

        Raises:
            OSError: A file or folder does not exist or cannot be read at the moment, or a folder
                lacks a task's file.
            ImportError: What reads LeRobot's datasets is not installed.
            ValueError: A file is damaged, is of another layout or has too few demonstrations, or
                the batch cannot be shared by the ranks.
        """
        if self.batch_size % self._ranks:
            raise ValueError(
                f"batch_size is {self.batch_size}, which {self._ranks} processes cannot share "
                "evenly: set it to a multiple of their number"
            )
        if self.training is not None:
            return
        training: list[Trajectory] = []
        validation: list[Trajectory] = []
        quiet = self.trainer is not None and self.trainer.global_rank > 0
        # A bar only where it takes longer than two seconds.
        tasks = progress_bar(
            self._tasks(), "reading demonstrations", unit="task", delay=2, disable=quiet
        )
        for task in tasks:
            found = task.read(self.reading, self.demonstrations_per_file)
            used, held_out = shared_out(found, task, self.validation_fraction)
            training += used
            validation += held_out
        only_actions = self.reading.only_actions
        self.training = DemonstrationDataset(training, self.block_size, only_actions)
        self.validation = DemonstrationDataset(validation, self.block_size, only_actions)

    @property
    def instructions(self) -> list[str]:
        """The different instructions of all demonstrations, once they are set up."""
        datasets = [each for each in (self.training, self.validation) if each is not None]
        return sorted({each.instruction for found in datasets for each in found.trajectories})

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled steps of the training demonstrations."""
        assert self.training is not None
        # A last batch of a step or two would upset batch norm; a small set has no other batch.
        return self._loader(
            self.training, shuffle=True, drop_last=len(self.training) >= self.batch_size
        )

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Steps of the demonstrations held out, in order; none if nothing is held out."""
        return self._loader(self.validation) if self.validation else []

    @property
    def _ranks(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _tasks(self) -> list[Hdf5Task | LeRobotTask]:
        """The demonstrations' files, or parts of datasets, of a task each."""
        datasets = [place for place in self.files if is_lerobot(place)]
        files = [place for place in self.files if place not in datasets]
        found: list[Hdf5Task | LeRobotTask] = []
        if files or not datasets:
            found += hdf5_tasks(files, self.tasks)
        for place in datasets:
            blind = self.reading.only_actions or self.reading.cameras == ()
            dataset = LeRobotDataset(
                place,
                self.lerobot_features,
                self.lerobot_turned,
                parts=("data",) if blind else ("data", "videos"),
            )
            found += dataset.by_task(self.tasks)
        return found

    def _loader(
        self, dataset: DemonstrationDataset, shuffle: bool = False, drop_last: bool = False
    ) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size // self._ranks,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )
