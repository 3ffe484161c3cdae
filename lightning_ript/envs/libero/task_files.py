"""Tasks of one's own: BDDL files, and files of the initial states that test them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_ript.storage.files import listed

BDDL = ".bddl"
STATES = (".pruned_init", ".init", ".npz")  # the first of these wins
_COMMENT = re.compile(r";.*")


@dataclass(frozen=True)
class TaskFile:
    """A task that is given by files.

    Attributes:
        bddl: Its objects, regions, initial conditions and goal.
        states: Its initial states, `suites.read_states` reads them; None to sample some.
        language: The instruction, in lower case as LIBERO has it.
    """

    bddl: Path
    states: Path | None
    language: str


def find_task_files(
    bddl: Sequence[str] | str, init_states: Sequence[str] | str | None = None
) -> dict[str, TaskFile]:
    """Finds tasks by their files.

    Args:
        bddl: BDDL files, and folders of them.
        init_states: Files of initial states, and folders of them, which bear the names of the
            tasks: `NAME.pruned_init`, `NAME.init`, `NAME.npz` or `NAME.pruned_init.npz`. Other
            files in these folders are left alone.

    Returns:
        Name -> task, in the order of `bddl`, those of a folder by name.

    Raises:
        FileNotFoundError: If a file or folder does not exist.
        ValueError: If a task is named twice or has no instruction, or states are of no task.
    """
    files: dict[str, Path] = {}
    for file in _found(bddl, (BDDL,), "bddl"):
        if file.stem in files:
            raise ValueError(
                f"two files give a task {file.stem}, {files[file.stem]} and {file}: name one only."
            )
        files[file.stem] = file
    states: dict[str, Path] = {}
    for suffix in STATES:
        for file in _found(init_states or (), STATES, "init_states"):
            if file.suffix == suffix:
                states.setdefault(_task_of(file), file)
    named = {Path(each).expanduser() for each in listed(init_states or ())}
    for name, file in states.items():
        if name not in files and file in named:
            raise ValueError(
                f"init_states names {file}, but no BDDL file is called {name}{BDDL}: states bear "
                "the name of their task."
            )
    return {name: TaskFile(file, states.get(name), _language(file)) for name, file in files.items()}


def check_task_files(
    tasks: Iterable[TaskFile], assets: Path, object_modules: Sequence[str] = ()
) -> None:
    """Lets LIBERO read the files, in a process of its own: LIBERO would bring OpenGL into this one.

    Args:
        tasks: What to check.
        assets: LIBERO's assets.
        object_modules: Modules that register further classes of objects.

    Raises:
        ValueError: If a file is none that LIBERO can build: which, and why.
    """
    asked = {
        "files": [str(task.bddl) for task in tasks],
        "assets": str(assets),
        "object_modules": list(object_modules),
    }
    done = subprocess.run(
        [sys.executable, "-m", "lightning_ript.envs.libero.read_tasks"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ValueError(f"LIBERO cannot read the tasks: {done.stderr.strip().splitlines()[-1]}")
    wrong = json.loads(done.stdout.splitlines()[-1])
    if wrong:
        more = f" And {len(wrong) - 3} more like these." if len(wrong) > 3 else ""
        raise ValueError(" ".join(wrong[:3]) + more)


def _found(named: Sequence[str] | str, suffixes: tuple[str, ...], setting: str) -> list[Path]:
    """The files that are named, and those of these kinds in the folders that are named."""
    files: list[Path] = []
    for each in listed(named):
        path = Path(each).expanduser()
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix in suffixes)
            if not found:
                kinds = ", ".join(suffixes)
                raise FileNotFoundError(f"{setting} names {path}, which holds no file of {kinds}.")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"{setting} names {path}, which does not exist.")
    return files


def _task_of(states: Path) -> str:
    name = states.name
    for suffix in reversed(STATES):  # `.pruned_init.npz` has two
        name = name.removesuffix(suffix)
    return name


def _language(bddl: Path) -> str:
    try:
        text = _COMMENT.sub("", bddl.read_text())
    except UnicodeDecodeError as error:
        raise ValueError(f"{bddl} is no BDDL file: it is not text ({error}).") from error
    found = re.search(r"\(:language\s+([^()]*)\)", text)
    words = found[1].split() if found else []
    if not words:
        raise ValueError(f"{bddl} gives no instruction: add (:language what the robot is to do).")
    return " ".join(words).lower()
