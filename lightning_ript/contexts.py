"""1: where episodes start. Endless streams of contexts, each given by its number.

The n-th context depends on n and the seed alone, so ranks share a stream by sharing a counter, and
a resumed run continues it from one integer.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lightning_ript.demos.find_files import find_files, task_name
from lightning_ript.demos.trajectory import few_shot
from lightning_ript.envs.base import EnvironmentSpec
from lightning_ript.storage.files import listed
from lightning_ript.types import Context, Task

log = logging.getLogger(__name__)


class ContextSource(ABC):
    """An endless, seeded stream of training contexts."""

    def check(self, environment: EnvironmentSpec) -> None:  # noqa: B027 (optional hook)
        """Raises with one clear sentence when this source cannot serve the environment."""

    @abstractmethod
    def context(self, n: int, environment: EnvironmentSpec, seed: int) -> Context:
        """Returns the n-th context of the stream that `seed` names."""


class SampledContexts(ContextSource):
    """Fresh resets, a new one every time: the environment's own distribution of initial states."""

    def context(self, n: int, environment: EnvironmentSpec, seed: int) -> Context:
        """Takes the tasks in turn, each with a reset seed of its own."""
        tasks = environment.tasks()
        # Below 2**31, as NumPy's legacy generators in simulators want it.
        reset_seed = int(np.random.SeedSequence([seed, n]).generate_state(1)[0] >> 1)
        return Context(tasks[n % len(tasks)], n, seed=reset_seed)


class _FixedContexts(ContextSource):
    """A finite set of states in a new random order at every pass over it."""

    def __init__(self) -> None:
        self._states: list[Context] | None = None

    @abstractmethod
    def _load(self, environment: EnvironmentSpec) -> list[Context]:
        """Reads all states."""

    def check(self, environment: EnvironmentSpec) -> None:
        self._states = self._load(environment)

    def context(self, n: int, environment: EnvironmentSpec, seed: int) -> Context:
        """Draws without replacement until every state has had its turn."""
        if self._states is None:
            self._states = self._load(environment)
        round_, place = divmod(n, len(self._states))
        order = np.random.default_rng([seed, round_]).permutation(len(self._states))
        chosen = self._states[order[place]]
        return Context(chosen.task, n, chosen.init_state, chosen.seed)


class DemonstrationContexts(_FixedContexts):
    """The first states of demonstrations, as the reference trains on.

    Args:
        files: LIBERO HDF5 files, `<task name>_demo.hdf5`, or folders with one for each task of the
            environment. One alone need not be in a list.
        per_task: Number of demonstrations of each task to use, evenly spaced over its file: the
            ones that `DemonstrationDataModule` takes when `demonstrations_per_file` is the same.
    """

    def __init__(self, files: Sequence[Path] | Path, per_task: int | None = None) -> None:
        super().__init__()
        self.files = [Path(file) for file in listed(files)]
        if not self.files:
            raise ValueError("DemonstrationContexts.files is empty: name at least one HDF5 file.")
        if per_task is not None and per_task < 1:
            raise ValueError(f"DemonstrationContexts.per_task is {per_task}: set it to 1 or more.")
        self.per_task = per_task

    def _load(self, environment: EnvironmentSpec) -> list[Context]:
        from lightning_ript.demos.hdf5 import read_init_states  # h5py only where it is needed

        by_name: dict[str, Task] = {task.name: task for task in environment.tasks()}
        contexts: list[Context] = []
        for file in find_files(self.files, environment.tasks()):
            states = read_init_states(file)
            for i in few_shot(file, len(states), self.per_task):
                contexts.append(Context(by_name[task_name(file)], len(contexts), states[i]))
        return contexts


class BenchmarkContexts(_FixedContexts):
    """The benchmark's own test states. Training on them makes the evaluation meaningless."""

    def _load(self, environment: EnvironmentSpec) -> list[Context]:
        log.warning(
            "Training contexts are the benchmark's test states: success rates measured on them "
            "are not comparable with published numbers. Use SampledContexts or "
            "DemonstrationContexts to train."
        )
        return [c for task in environment.tasks() for c in environment.test_contexts(task)]
