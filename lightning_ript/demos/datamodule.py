"""Demonstrations as batches for the supervised stages."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset

from lightning_ript.demos.hdf5 import Demonstration, read_demonstrations
from lightning_ript.envs.libero.suites import SUITES, suite_tasks
from lightning_ript.policies.quest.model import CAMERAS, LOWDIM

OBSERVATIONS = {name: f"obs/{name}" for name in (*CAMERAS, *LOWDIM)}
Arrays = Mapping[str, np.ndarray]


class DemonstrationDataset(Dataset[dict[str, Any]]):
    """Every step of some demonstrations, with the block of actions that begins there.

    A block that reaches beyond the end is filled with the last action, as in the reference.

    Args:
        demonstrations: The demonstrations.
        block_size: Actions per block.
        only_actions: Leave out observations and instruction.
        in_memory: Read all of it now instead of at every access.
    """

    def __init__(
        self,
        demonstrations: Sequence[Demonstration],
        block_size: int,
        only_actions: bool,
        in_memory: bool,
    ) -> None:
        self.demonstrations = demonstrations
        self.instructions = [instruction(demonstration) for demonstration in demonstrations]
        self.block_size = block_size
        self.names = {"actions": "actions"} | ({} if only_actions else OBSERVATIONS)
        self.only_actions = only_actions
        self.ends = list(accumulate(demo.num_samples for demo in demonstrations))
        self._files: dict[tuple[int, Path], h5py.File] = {}
        self._memory: list[Arrays] | None = None
        if in_memory:
            self._memory = [
                {name: demo.read(path) for name, path in self.names.items()}
                for demo in demonstrations
            ]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = bisect_right(self.ends, index)
        demo = self.demonstrations[number]
        step = index - (self.ends[number] - demo.num_samples)
        arrays = self._memory[number] if self._memory is not None else self._open(demo)
        actions = np.asarray(arrays["actions"][step : step + self.block_size], dtype=np.float32)
        missing = self.block_size - len(actions)
        item: dict[str, Any] = {"actions": np.pad(actions, ((0, missing), (0, 0)), mode="edge")}
        if not self.only_actions:
            item["images"] = {name: arrays[name][step] for name in CAMERAS}
            item["lowdim"] = {name: np.float32(arrays[name][step]) for name in LOWDIM}
            item["language"] = self.instructions[number]
        return item

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def _open(self, demo: Demonstration) -> Arrays:
        # Opened once per process: an open file must not be shared with forked loader workers.
        place = (os.getpid(), demo.file)
        if place not in self._files:
            self._files[place] = h5py.File(demo.file, "r")
        group = self._files[place]["data"][demo.name]
        return {name: group[path] for name, path in self.names.items()}


class DemonstrationDataModule(L.LightningDataModule):
    """Batches of demonstrated steps from LIBERO's HDF5 files.

    A batch of B steps: `actions` (B, block_size, 7) float32; unless `only_actions`, also `images`
    (camera -> (B, H, W, 3) uint8, as in the file), `lowdim` (name -> (B, width) float32) and
    `language` (B instructions). An instruction is the benchmark's own for the task that the file is
    named after, since that is what the policy reads in the simulator; LIBERO's files of
    LIBERO-Object carry another wording. Files named otherwise keep the instruction they carry.

    Args:
        files: HDF5 files, or folders of such.
        batch_size: Steps per batch and rank.
        validation_fraction: Part of each file's demonstrations, at least one, that is held out; its
            last ones. 0 for none.
        demonstrations_per_file: Use only the first ones of each file.
        block_size: Actions per block; the policy's.
        only_actions: Read actions alone, which is all that the autoencoder needs.
        in_memory: Read everything once; a LIBERO task of 50 demonstrations takes about 0.7 GB.
        num_workers: Processes that read beside the trainer's.
    """

    def __init__(
        self,
        files: Sequence[str],
        batch_size: int = 128,
        validation_fraction: float = 0.1,
        demonstrations_per_file: int | None = None,
        block_size: int = 32,
        only_actions: bool = False,
        in_memory: bool = False,
        num_workers: int = 0,
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
        self.files = files
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.demonstrations_per_file = demonstrations_per_file
        self.block_size = block_size
        self.only_actions = only_actions
        self.in_memory = in_memory
        self.num_workers = num_workers
        self.training: DemonstrationDataset | None = None
        self.validation: DemonstrationDataset | None = None

    def setup(self, stage: str) -> None:
        """Finds the demonstrations and, if `in_memory`, reads them.

        Raises:
            FileNotFoundError: A file or folder does not exist, or a folder holds no HDF5 file.
            ValueError: A file is damaged, is not LIBERO's or has too few demonstrations.
        """
        if self.training is not None:
            return
        training: list[Demonstration] = []
        validation: list[Demonstration] = []
        for file in find_files(self.files):
            found = read_demonstrations(file)[: self.demonstrations_per_file]
            held_out = 0
            if self.validation_fraction:
                held_out = max(1, round(self.validation_fraction * len(found)))
            if len(found) <= held_out:
                raise ValueError(
                    f"{file} has {len(found)} demonstrations to use, of which {held_out} would "
                    "be held out: collect more or lower validation_fraction"
                )
            if not self.only_actions:
                for dataset in OBSERVATIONS.values():
                    found[0].read(dataset, stop=1)  # refuses a file that lacks it, before training
            training += found[: len(found) - held_out]
            validation += found[len(found) - held_out :]
        self.training = self._dataset(training)
        self.validation = self._dataset(validation)

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

    def _dataset(self, found: Sequence[Demonstration]) -> DemonstrationDataset:
        in_memory = self.in_memory or self.only_actions
        return DemonstrationDataset(found, self.block_size, self.only_actions, in_memory)

    def _loader(
        self, dataset: DemonstrationDataset, shuffle: bool = False, drop_last: bool = False
    ) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


def find_files(places: Sequence[str]) -> list[Path]:
    """Expands folders into the HDF5 files they hold.

    Raises:
        FileNotFoundError: A place does not exist, or a folder holds no HDF5 file.
        ValueError: No place is given.
    """
    if isinstance(places, str) or not places:
        raise ValueError(f"files must be a list of HDF5 files or folders, not {places!r}")
    files: list[Path] = []
    for place in map(Path, places):
        found = sorted(place.glob("*.hdf5")) if place.is_dir() else [place]
        if not found:
            raise FileNotFoundError(f"The folder {place} holds no .hdf5 file of demonstrations")
        if not found[0].is_file():
            raise FileNotFoundError(f"There is no file of demonstrations at {place}")
        files += found
    return files


def instruction(demonstration: Demonstration) -> str:
    """Returns the benchmark's instruction of the task that a demonstration's file is named after.

    Or, where no task has that name, the instruction in the file.
    """
    name = demonstration.file.stem.removesuffix("_demo")
    tasks = (task for suite in SUITES for task in suite_tasks(suite))
    return next((task.language for task in tasks if task.name == name), demonstration.language)
