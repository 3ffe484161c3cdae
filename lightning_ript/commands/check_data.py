"""What is in a folder of demonstrations, and what is wrong with it: `lightning-ript data check`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from lightning_ript.console.progress import progress_bar
from lightning_ript.demos.find_files import SUFFIX, hdf5_files, task_name
from lightning_ript.demos.hdf5 import demonstrations_in, opened
from lightning_ript.demos.hdf5_tasks import instruction
from lightning_ript.demos.trajectory import ACTION_DIM, CAMERAS, LOWDIM
from lightning_ript.envs.libero.suites import suite_tasks

PICTURES = [f"obs/{name}" for name in CAMERAS]
WIDTHS = {"actions": ACTION_DIM} | {f"obs/{name}": width for name, width in LOWDIM.items()}
SHOWN = 2  # problems of a file in the table


@dataclass(frozen=True)
class FileReport:
    """What a file of demonstrations holds.

    Attributes:
        file: The file.
        demonstrations: How many.
        steps: Of all of them together.
        images: Their height and width in pixels, e.g. `128x128`; several if they differ.
        problems: What is wrong with it; nothing is if this is empty.
    """

    file: Path
    demonstrations: int = 0
    steps: int = 0
    images: str = ""
    problems: tuple[str, ...] = ()


def check(folder: Path, suite: str | None = None) -> None:
    """Prints what the files of a folder hold and what is missing or broken.

    Every file is opened and all actions are read; images are only measured.

    Args:
        folder: The folder.
        suite: Look for one file of each task of this suite, instead of at all files there are.

    Raises:
        FileNotFoundError: There is no such folder, or no HDF5 file in it.
        ValueError: There is no such suite.
        SystemExit: Something is missing or has problems, with status 1.
    """
    reports = inspect_folder(folder, suite)
    sys.stdout.write(table(reports) + "\n")
    bad = sum(bool(report.problems) for report in reports)
    if bad:
        raise SystemExit(
            f"{bad} of {len(reports)} files in {folder} are missing or have problems: delete what "
            "is damaged, then download or collect again what is damaged or missing."
        )


def inspect_folder(folder: Path, suite: str | None = None) -> list[FileReport]:
    """As `check`, without a word."""
    wanted = [] if suite is None else [task.name for task in suite_tasks(suite)]
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    files = hdf5_files(folder)
    if wanted:
        there = {task_name(file): file for file in files}
        files = [there.get(name, folder / f"{name}{SUFFIX}") for name in wanted]
    elif not files:
        raise FileNotFoundError(f"the folder {folder} holds no .hdf5 file of demonstrations.")
    return [
        inspect(file) for file in progress_bar(files, "checking", unit="file", delay=2, leave=False)
    ]


def inspect(file: Path) -> FileReport:
    """Looks at one file; whatever is wrong is in the report, nothing is raised."""
    if not file.is_file():
        return FileReport(file, problems=("missing",))
    try:
        with opened(file) as data:
            found = demonstrations_in(file, data)
            if found:
                instruction(file, found[0].language)
            groups = {each.name: data[each.name] for each in found}
            problems = [
                f"{name}: {problem}" for name, group in groups.items() for problem in wrong(group)
            ]
            sizes = {
                "x".join(map(str, group[name].shape[1:3]))
                for group in groups.values()
                for name in PICTURES
                if name in group
            }
    # A file that is damaged inside makes HDF5 raise any of these, wherever it is first met.
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        reason = str(error).removeprefix(f"{file} ").strip("'. ")
        return FileReport(file, problems=(reason,))
    if not found:
        problems.append("holds no demonstration")
    if len(sizes) > 1:
        problems.append("images of different sizes")
    return FileReport(
        file=file,
        demonstrations=len(found),
        steps=sum(each.num_samples for each in found),
        images=" ".join(sorted(sizes)),
        problems=tuple(problems),
    )


def wrong(group: h5py.Group) -> Iterator[str]:
    """What is wrong with one demonstration's group."""
    actions = group["actions"][()]
    if not len(actions):
        yield "no steps"
    if not np.isfinite(actions).all():
        yield "actions that are not finite"
    for name in ("states", *PICTURES, *WIDTHS):
        if name not in group:
            yield f"no {name}"
        elif len(group[name]) != len(actions):
            yield f"{len(group[name])} steps of {name}, but {len(actions)} actions"
        elif name in WIDTHS and group[name].shape[1:] != (WIDTHS[name],):
            yield f"{name} of shape {group[name].shape[1:]}, not {(WIDTHS[name],)}"


def table(reports: list[FileReport]) -> str:
    """The reports as aligned text, one line per file and one for all."""
    rows = [["file", "demonstrations", "steps", "images", "problems"]]
    for report in reports:
        more = len(report.problems) - SHOWN
        problems = "; ".join(report.problems[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        counts = [str(report.demonstrations), str(report.steps)]
        rows.append([report.file.name, *counts, report.images, problems or "none"])
    totals = [
        str(sum(report.demonstrations for report in reports)),
        str(sum(report.steps for report in reports)),
    ]
    bad = sum(bool(report.problems) for report in reports)
    rows.append([f"{len(reports)} files", *totals, "", f"{bad} files" if bad else "none"])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(row[column].rjust(widths[column]) for column in (1, 2, 3)),
                row[4],
            ]
        )
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
