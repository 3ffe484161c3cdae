"""The places that a command names: its run directory, and the checkpoint that it starts from."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_ript.storage.checkpoint_files import is_checkpoint
from lightning_ript.storage.hub import is_on_hub, local_file


def check_run_dir(folder: Path) -> None:
    """Makes the run directory.

    Raises:
        OSError: Nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"--run_dir names {folder}, which is a file.") from None
    except OSError as error:
        raise PermissionError(f"--run_dir {folder} cannot be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"--run_dir {folder} cannot be written: choose another.")


def check_checkpoint(place: str, setting: str, command: str) -> str:
    """Finds a checkpoint and refuses what cannot be one.

    Lightning would read a file of the hub as a stream, at every start anew.

    Args:
        place: A file, a folder of a policy's own format, or the address of either on the hub.
        setting: The setting that names it.
        command: What it is for; `fit` resumes Lightning's files only.

    Returns:
        The file or folder; a folder on the hub stays there, for the policy to find.

    Raises:
        OSError: If there is none, here or on the hub.
        ValueError: If it is damaged, or cannot be resumed.
    """
    folder_on_hub = is_on_hub(place) and not Path(place).suffix
    path = Path(place) if folder_on_hub else local_file(place)
    if folder_on_hub or path.is_dir():
        if command == "fit":
            raise ValueError(
                f"{setting} names the folder {place}, which has no optimizer to go on with: start "
                "from weights by a setting of the policy (model.policy.checkpoint or .adapter)."
            )
        return str(place)
    if not path.is_file():
        raise FileNotFoundError(f"{setting} names {place}, which does not exist.")
    if not is_checkpoint(path):
        raise ValueError(
            f"{place} is damaged, no checkpoint, or in the format that torch had before 2020: name "
            "another."
        )
    return str(path)
