"""Which files of demonstrations are meant. Only names are looked at; no file is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_ript.types import Task

SUFFIX = "_demo.hdf5"  # a task's file is `<task name>_demo.hdf5`, in LIBERO as here


def hdf5_files(folder: Path) -> list[Path]:
    """The folder's HDF5 files, without those that are still being written, which are hidden."""
    return [file for file in sorted(folder.glob("*.hdf5")) if not file.name.startswith(".")]


def find_files(places: Sequence[str | Path], tasks: Sequence[Task] | None = None) -> list[Path]:
    """Expands folders into the HDF5 files they hold.

    Args:
        places: Files and folders.
        tasks: The tasks that are wanted: of a folder, the files of other tasks are left out. None
            for whatever is there.

    Raises:
        FileNotFoundError: A place does not exist, a folder holds no HDF5 file, or a wanted task has
            no file though there is a folder to look in.
        ValueError: No place is given, or a file is named that is of no wanted task.
    """
    if isinstance(places, (str, Path)) or not places:
        raise ValueError(f"files must be a list of HDF5 files or folders, not {places!r}")
    wanted = None if tasks is None else {task.name for task in tasks}
    files: list[Path] = []
    folders: list[str] = []
    for place in map(Path, places):
        if place.is_dir():
            found = hdf5_files(place)
            if not found:
                raise FileNotFoundError(f"The folder {place} holds no .hdf5 file of demonstrations")
            files += [file for file in found if wanted is None or task_name(file) in wanted]
            folders.append(str(place))
        elif not place.is_file():
            raise FileNotFoundError(f"There is no file of demonstrations at {place}")
        elif wanted is not None and task_name(place) not in wanted:
            raise ValueError(
                f"{place} holds demonstrations of '{task_name(place)}', which is not a task to use "
                f"here ({', '.join(sorted(wanted))}): name other files or other tasks"
            )
        else:
            files.append(place)
    missing = sorted((wanted or set()) - set(map(task_name, files)))
    if missing and folders:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(
            f"{', '.join(folders)} holds no {missing[0]}{SUFFIX}{more}: add what is missing or "
            "choose fewer tasks"
        )
    return files


def task_name(file: Path) -> str:
    """The name of the task that a file is named after."""
    return file.name.removesuffix(SUFFIX)
