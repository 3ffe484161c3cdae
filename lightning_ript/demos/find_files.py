"""Which files of demonstrations are meant. Only names are looked at; no file is opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_ript.storage.files import listed
from lightning_ript.types import Task

SUFFIX = "_demo.hdf5"  # a task's file is `<task name>_demo.hdf5`, in LIBERO as here
_ENDINGS = (".hdf5", ".h5")  # in small letters or capitals
_DEMO = "_demo"


def hdf5_files(folder: Path) -> list[Path]:
    """The folder's HDF5 files, without those that are still being written, which are hidden."""
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in _ENDINGS and not file.name.startswith(".")
    ]


def find_files(
    places: Sequence[str | Path] | str | Path, tasks: Sequence[Task] | None = None
) -> list[Path]:
    """Expands folders into the HDF5 files they hold.

    Args:
        places: Files and folders, or one.
        tasks: The tasks that are wanted: of a folder, the files of other tasks are left out. None
            for whatever is there.

    Raises:
        FileNotFoundError: A place does not exist, a folder holds no HDF5 file, or a wanted task has
            no file though there is a folder to look in.
        ValueError: No place is given, or a file is named that is of no wanted task.
    """
    places = listed(places)
    if not places:
        raise ValueError("files is empty: name HDF5 files, or folders of them")
    wanted = None if tasks is None else {task.name for task in tasks}
    files: list[Path] = []
    folders: list[str] = []
    for place in map(Path, places):
        if place.is_dir():
            found = hdf5_files(place)
            if not found:
                raise FileNotFoundError(
                    f"The folder {place} holds no .hdf5 file of demonstrations{_instead(place)}"
                )
            _refuse_twins(found)
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
    return file.stem.removesuffix(_DEMO)


def _refuse_twins(files: Sequence[Path]) -> None:
    """Whoever has converted a file may have left the old one beside it."""
    first: dict[str, Path] = {}
    for file in files:
        if task_name(file) in first:
            raise ValueError(
                f"{first[task_name(file)]} and {file} are of the same task, whose demonstrations "
                "would count twice: keep one of them, or name the files to use"
            )
        first[task_name(file)] = file


def _instead(folder: Path) -> str:
    """A hint for who has OpenVLA's training data, which is not the files it was made from."""
    if next(folder.rglob("*.tfrecord*"), None) is None:
        return ""
    return (
        ", but RLDS's TFRecords, which are not read: name the HDF5 files that they were made from, "
        "or the same in LeRobot's format, e.g. hf://lerobot/libero"
    )
