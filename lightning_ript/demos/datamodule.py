"""Demonstrations as batches for the supervised stages."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset

from lightning_ript.envs.libero.suites import SUITES, suite_tasks
from lightning_ript.policies.quest.model import CAMERAS, LOWDIM

OBSERVATIONS = {name: f"obs/{name}" for name in (*CAMERAS, *LOWDIM)}
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """Where one demonstration is: `data/<key>` in `file`, of `length` steps."""

    file: Path
    key: str
    length: int
    language: str


class DemonstrationDataset(Dataset[dict[str, Any]]):
    """Every step of some demonstrations, with the block of actions that begins there.

    A block that reaches beyond the end is filled with the last action, as in the reference.

    Args:
        sources: The demonstrations.
        block_size: Actions per block.
        only_actions: Leave out observations and instruction.
        in_memory: Read all of it now instead of at every access.
    """

    def __init__(
        self, sources: Sequence[Source], block_size: int, only_actions: bool, in_memory: bool
    ) -> None:
        self.sources = sources
        self.block_size = block_size
        self.names = {"actions": "actions"} | ({} if only_actions else OBSERVATIONS)
        self.only_actions = only_actions
        self.ends = list(accumulate(source.length for source in sources))
        self._files: dict[tuple[int, Path], h5py.File] = {}
        self._memory: list[Arrays] | None = None
        if in_memory:
            self._memory = [self._read(source) for source in sources]

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = bisect_right(self.ends, index)
        source = self.sources[number]
        step = index - (self.ends[number] - source.length)
        arrays = self._memory[number] if self._memory is not None else self._open(source)
        actions = np.asarray(arrays["actions"][step : step + self.block_size], dtype=np.float32)
        missing = self.block_size - len(actions)
        item: dict[str, Any] = {"actions": np.pad(actions, ((0, missing), (0, 0)), mode="edge")}
        if not self.only_actions:
            item["images"] = {name: arrays[name][step] for name in CAMERAS}
            item["lowdim"] = {name: np.float32(arrays[name][step]) for name in LOWDIM}
            item["language"] = source.language
        return item

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def _open(self, source: Source) -> Arrays:
        # An open file must not be shared with forked loader workers.
        place = (os.getpid(), source.file)
        if place not in self._files:
            self._files[place] = h5py.File(source.file, "r")
        group = self._files[place]["data"][source.key]
        return {name: group[path] for name, path in self.names.items()}

    def _read(self, source: Source) -> Arrays:
        with h5py.File(source.file, "r") as file:
            group = file["data"][source.key]
            return {name: group[path][()] for name, path in self.names.items()}


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
        training: list[Source] = []
        validation: list[Source] = []
        for file in find_files(self.files):
            sources = list_demonstrations(file, self.only_actions)[: self.demonstrations_per_file]
            held_out = 0
            if self.validation_fraction:
                held_out = max(1, round(self.validation_fraction * len(sources)))
            if len(sources) <= held_out:
                raise ValueError(
                    f"{file} has {len(sources)} demonstrations to use, of which {held_out} would "
                    "be held out: collect more or lower validation_fraction"
                )
            training += sources[: len(sources) - held_out]
            validation += sources[len(sources) - held_out :]
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

    def _dataset(self, sources: Sequence[Source]) -> DemonstrationDataset:
        in_memory = self.in_memory or self.only_actions
        return DemonstrationDataset(sources, self.block_size, self.only_actions, in_memory)

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


def list_demonstrations(file: Path, only_actions: bool = False) -> list[Source]:
    """Lists a file's demonstrations in the order of their numbers.

    Raises:
        ValueError: The file is damaged, or lacks what LIBERO's layout has.
    """
    needed = ["actions", *(() if only_actions else OBSERVATIONS.values())]
    with _libero_file(file) as data:
        language = benchmark_instruction(file)
        if language is None:
            language = json.loads(data.attrs["problem_info"])["language_instruction"]
        sources = []
        for key in sorted(data, key=lambda key: int(key.removeprefix("demo_"))):
            lengths = {path: len(data[key][path]) for path in needed}
            if len(set(lengths.values())) > 1 or not lengths["actions"]:
                raise ValueError(f"{file}: the arrays of {key} differ in length: {lengths}")
            sources.append(Source(file, key, lengths["actions"], language))
    return sources


def benchmark_instruction(file: Path) -> str | None:
    """Returns the benchmark's instruction of the task a file is named after, if it is one."""
    name = file.stem.removesuffix("_demo")
    tasks = (task for suite in SUITES for task in suite_tasks(suite))
    return next((task.language for task in tasks if task.name == name), None)


@contextmanager
def _libero_file(file: Path) -> Iterator[h5py.Group]:
    try:
        with h5py.File(file, "r") as opened:
            yield opened["data"]
    except OSError as error:
        raise ValueError(f"{file} is damaged or no HDF5 file ({error}); make it again") from error
    except KeyError as error:
        raise ValueError(
            f"{file} is not laid out as LIBERO's demonstrations: {error.args[0]}"
        ) from error
