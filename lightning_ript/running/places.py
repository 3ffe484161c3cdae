"""The places that a command names: its run directory, and the checkpoint that it starts from."""

from __future__ import annotations

from pathlib import Path

from lightning_ript.storage.checkpoint_files import read_checkpoint
from lightning_ript.storage.hub import is_on_hub, local_file
from lightning_ript.storage.torch_files import fault


def check_checkpoint(place: str, setting: str, command: str, trusted: bool = False) -> str:
    """Finds a checkpoint and refuses what cannot be one.

    Lightning would read a file of the hub as a stream, at every start anew.

    Args:
        place: A file, a folder of a policy's own format, or the address of either on the hub.
        setting: The setting that names it.
        command: What it is for; `fit` resumes Lightning's files only.
        trusted: Whether it may hold objects that code makes when they are read.

    Returns:
        The file or folder; a folder on the hub stays there, for the policy to find.

    Raises:
        OSError: If there is none, here or on the hub, or it cannot be read at the moment.
        ValueError: If it is damaged, or cannot be resumed.
    """
    if not place:
        raise FileNotFoundError(f"{setting} is empty: name a checkpoint, or leave it out.")
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
    if wrong := fault(path):
        raise ValueError(f"{setting} names {place}, which {wrong}: name another.")
    if command == "fit":
        read_checkpoint(path, trusted)
    return str(path)
