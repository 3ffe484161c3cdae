"""LIBERO's suites: which tasks they hold, where their files are and their test states.

Everything is read from the installed hf-libero without importing `libero.libero`, which asks a
question on stdin when it finds no configuration.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_ript.types import Task

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")

_INIT_STATE_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),  # since NumPy 2
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


@functools.cache
def libero_root() -> Path:
    """Folder of the installed `libero.libero` package.

    Raises:
        ModuleNotFoundError: If hf-libero is not installed.
    """
    spec = importlib.util.find_spec("libero")
    for location in (spec.submodule_search_locations or []) if spec else []:
        root = Path(location) / "libero"
        if (root / "bddl_files").is_dir():
            return root
    raise ModuleNotFoundError("LIBERO is not installed: run `pip install hf-libero`.")


@functools.cache
def suite_tasks(suite: str) -> tuple[Task, ...]:
    """All tasks of a suite in the benchmark's official order.

    Raises:
        ValueError: If there is no such suite.
    """
    if suite not in SUITES:
        raise ValueError(f"unknown LIBERO suite {suite!r}: choose one of {', '.join(SUITES)}.")
    file = libero_root() / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("libero_suite_task_map", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = module.libero_task_map[suite]
    return tuple(Task(suite, i, name, _language(name)) for i, name in enumerate(names))


def find_tasks(suite: str, wanted: Sequence[int | str] | None = None) -> tuple[Task, ...]:
    """Chooses tasks of a suite.

    Args:
        suite: One of `SUITES`.
        wanted: Task names or positions in the suite, in the order to keep; None for all.

    Raises:
        ValueError: If the suite or a task does not exist, or a task is named twice.
    """
    return choose_tasks(suite_tasks(suite), suite, wanted)


def choose_tasks(
    tasks: tuple[Task, ...], suite: str, wanted: Sequence[int | str] | None = None
) -> tuple[Task, ...]:
    """Chooses some of a suite's tasks; see `find_tasks`.

    Args:
        tasks: All of them.
        suite: Its name.
        wanted: As for `find_tasks`.
    """
    if wanted is None:
        return tasks
    if isinstance(wanted, str) or not len(wanted):
        raise ValueError(f"tasks must be a list of names or numbers of {suite}, not {wanted!r}.")
    by_name = {task.name: task for task in tasks}
    found: list[Task] = []
    for key in wanted:
        if isinstance(key, str):
            if key not in by_name:
                names = ", ".join(by_name)
                raise ValueError(f"{suite} has no task {key!r}: its tasks are {names}.")
            task = by_name[key]
        elif isinstance(key, bool) or not isinstance(key, int) or not 0 <= key < len(tasks):
            raise ValueError(f"{suite} has no task {key}: they are numbered 0 to {len(tasks) - 1}.")
        else:
            task = tasks[key]
        if task in found:
            raise ValueError(f"task {task.index} ({task.name}) of {suite} is listed twice.")
        found.append(task)
    return tuple(found)


def bddl_path(task: Task) -> Path:
    """The task's BDDL file: its objects, regions, initial conditions and goal."""
    return libero_root() / "bddl_files" / task.suite / f"{task.name}.bddl"


_OF_THE_TASK = ("(:language", "(:obj_of_interest", "(:goal")


@functools.cache
def scene(bddl: Path) -> str:
    """Names what a BDDL file says apart from the task: fixtures, objects, where they are.

    LIBERO-90's tasks take place in 20 scenes, LIBERO-Goal's in one.
    """
    text = bddl.read_text()
    for section in _OF_THE_TASK:
        start = text.find(section)
        if start >= 0:
            text = text[:start] + text[_end(text, start) :]
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def _end(text: str, start: int) -> int:
    """One past the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    return len(text)


def init_states(task: Task) -> np.ndarray:
    """The benchmark's test states of a task, (50, 1 + nq + nv) float64."""
    return read_states(libero_root() / "init_files" / task.suite / f"{task.name}.pruned_init")


def read_states(path: Path) -> np.ndarray:
    """Initial states from a file, (n, 1 + nq + nv) float64: time, positions, velocities.

    Args:
        path: LIBERO's `.pruned_init` or `.init`, a zip file that `torch.save` made, or a `.npz`
            with one array.

    Raises:
        ValueError: If the file holds anything but finite states, or none.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                (name,) = arrays.files
                states = arrays[name]
        else:
            with zipfile.ZipFile(path) as archive:
                (pickled,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
                with archive.open(pickled) as file:
                    states = _ArrayUnpickler(file).load()
        states = np.asarray(states, dtype=np.float64)
    except (zipfile.BadZipFile, EOFError, ImportError, TypeError, ValueError, _Refused) as error:
        raise ValueError(f"{path} is not a file of initial states ({error}).") from error
    if states.ndim != 2 or not states.size:
        raise ValueError(f"{path} holds an array {states.shape}, but states are (n, 1 + nq + nv).")
    if not np.isfinite(states).all():
        raise ValueError(f"{path} holds states that are not finite (NaN or infinite).")
    return states


_Refused = pickle.UnpicklingError


class _ArrayUnpickler(pickle.Unpickler):
    """Reads the NumPy array that `torch.save` put into a zip file, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _INIT_STATE_GLOBALS:
            raise pickle.UnpicklingError(f"it wants to load {module}.{name}")
        return super().find_class(module, name)


def _language(name: str) -> str:
    """The instruction a task's name spells; LIBERO-90's and -10's names begin with a scene."""
    words = name.split("_")
    if name[0].isupper():
        scene = next(i for i, word in enumerate(words) if word.startswith("SCENE"))
        words = words[scene + 1 :]
    return " ".join(words)
