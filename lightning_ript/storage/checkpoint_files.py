"""A run's checkpoints on the disk: each is put in place whole, and the last but one is kept."""

from __future__ import annotations

import errno
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_ript.storage.files import drafts_of, replacing
from lightning_ript.storage.torch_files import fault, read_data

LAST, PREVIOUS, UNREADABLE = "last.ckpt", "previous.ckpt", "unreadable.ckpt"
_OF_LIGHTNING = {"state_dict", "pytorch-lightning_version"}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PAUSE = 10.0  # seconds between tries
log = logging.getLogger(__name__)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the old one and puts it in place once it is on the disk.

    So a process that is killed at any moment leaves a whole file. Of `last.ckpt`, the one before is
    kept as `previous.ckpt`. No second copy is made in memory.

    Args:
        wait_minutes: How long to try again where the disk is full. Other processes wait as well, so
            keep it below the time-out of their collectives (half an hour by default).
    """

    def __init__(self, wait_minutes: float = 0.0) -> None:
        super().__init__()
        if wait_minutes < 0:
            raise ValueError(f"wait_minutes is {wait_minutes}; it must not be negative.")
        self.wait_minutes = wait_minutes

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint.

        Raises:
            OSError: It cannot be written; what was there before is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path, end = Path(path), time.monotonic() + 60 * self.wait_minutes
        while True:
            try:
                _replace(checkpoint, path)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                kept = "the earlier one is kept" if path.exists() else "there is no earlier one"
                full = f"{path} could not be written: the disk is full or a quota is used up"
                if time.monotonic() >= end:
                    raise OSError(
                        f"{full}, and {kept}. Make room, and start the same command again."
                    ) from error
                log.warning("%s, and %s. Trying again.", full, kept)
                time.sleep(_PAUSE)
            else:
                return


def _replace(checkpoint: dict[str, Any], path: Path) -> None:
    previous = path.with_name(PREVIOUS)
    for left in (*drafts_of(path), *drafts_of(previous)):  # of a process that was killed
        left.unlink(missing_ok=True)
    with replacing(path, durable=True) as draft:
        _write(checkpoint, draft)
        if path.name == LAST and path.exists():
            _keep(path, previous)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:
        # Torch fails once more as it closes what it could not finish; the reason came before.
        reason: BaseException | None = error
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__context__
        raise reason or error from None


def _keep(path: Path, as_: Path) -> None:
    """Gives a file a second name; it is never without its first."""
    if as_.exists() and path.samefile(as_):
        return
    link = as_.with_name(f".{as_.stem}.{os.getpid()}{as_.suffix}")
    try:
        os.link(path, link)
        os.replace(link, as_)
    except OSError:  # no links on this file system: for a moment there is no `path`
        os.replace(path, as_)


def checkpoint_to_resume(folder: Path, set_aside: bool = True) -> Path | None:
    """The checkpoint that a run goes on from: `last.ckpt`, or `previous.ckpt` where it is no good.

    Args:
        folder: The run's checkpoints.
        set_aside: Whether to rename an unreadable `last.ckpt`; one process of a run does it.

    Returns:
        None where there is none at all.

    Raises:
        OSError: A checkpoint may not be read.
        ValueError: The only one is unreadable.
    """
    last, before, aside = (folder / name for name in (LAST, PREVIOUS, UNREADABLE))
    if is_checkpoint(last):
        return last
    if not is_checkpoint(before):
        if last.exists() or aside.exists():
            raise ValueError(
                f"{last if last.exists() else aside} is not a whole checkpoint, and there is no "
                "earlier one: name another with --ckpt_path, or another --run_dir to begin anew."
            )
        return None
    if last.exists() and set_aside:
        with suppress(FileNotFoundError):
            os.replace(last, aside)
        log.warning("%s is not a whole checkpoint and is now %s.", last, aside.name)
    log.warning("Going on from %s, the one before %s.", before, last.name)
    return before


def is_checkpoint(path: Path) -> bool:
    """Whether a file is there and whole.

    Raises:
        OSError: It may not be read, or not at the moment.
    """
    return path.is_file() and fault(path) is None


def read_checkpoint(path: str | Path, trusted: bool = False) -> dict[str, Any]:
    """What Lightning has written of a run, mapped into memory.

    Args:
        path: The file.
        trusted: Whether it may hold objects that code makes when they are read.

    Raises:
        OSError: It cannot be read at the moment.
        ValueError: It is damaged, holds more than data, or is not a checkpoint of a run.
    """
    way_out = "if it is a checkpoint of a run that you trust, add --weights_only false"
    contents: Any = read_data(Path(path), trusted, way_out)
    if not isinstance(contents, dict) or not contents.keys() >= _OF_LIGHTNING:
        raise ValueError(
            f"{path} is not a checkpoint of a run, which Lightning writes: name weights by a "
            "setting of the policy (model.policy.checkpoint)."
        )
    return contents
