"""Where generated files go, and writing them so that a killed run never leaves half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """Where the project keeps what it can make again: `$XDG_CACHE_HOME/lightning-ript`.

    Raises:
        OSError: It cannot be made.
    """
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base).expanduser() / "lightning-ript"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"The cache folder {folder} cannot be written ({error.strerror}): set XDG_CACHE_HOME "
            "to a folder that can."
        ) from error
    return folder


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: It may not be read.
        ValueError: It is cut off, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no JSON ({error}): fetch it again.") from error


def make_folder(folder: str | Path, setting: str = "The folder") -> Path:
    """Makes a folder for what a command writes, if it is not there, before anything is computed.

    Args:
        folder: The folder.
        setting: The option that names it.

    Raises:
        OSError: Nothing can be written there.
    """
    if not str(folder):
        raise FileNotFoundError(f"{setting} is empty: name a folder.")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(f"{setting} {folder} is a file: choose another.") from None
    except OSError as error:
        raise PermissionError(f"{setting} {folder} cannot be made: {error.strerror}.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{setting} {folder} cannot be written: choose another.")
    return folder


@contextmanager
def replacing(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place once the block succeeds.

    Missing parent folders are made. The temporary name keeps the suffix, since writers of images
    and videos choose their format by it.

    Args:
        path: The file to write or to replace.
        durable: Whether it is on the disk, not only on its way there, before it takes the place.

    Yields:
        Where to write; removed again when the block raises.

    Raises:
        OSError: Nothing can be written there.
    """
    path = Path(path)
    make_folder(path.parent)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file.")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        if durable:
            _flush(temporary)
        os.replace(temporary, path)
        if durable:
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def making(folder: str | Path) -> Iterator[Path]:
    """As `replacing`, for a folder that does not exist yet."""
    folder = Path(folder)
    make_folder(folder.parent)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        temporary.mkdir()
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def below(folder: Path, name: str, said_by: str | Path) -> Path:
    """A file that another file names, and that must lie in its folder or below.

    Args:
        folder: The folder.
        name: The name, relative to it.
        said_by: What names it.

    Raises:
        ValueError: It would lie elsewhere.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{said_by} names {name}, which is not below {folder}.")
    return folder / name


def listed(places: Sequence[str | Path] | str | Path) -> list[str | Path]:
    """Files and folders as a list; one alone need not be in brackets."""
    return [places] if isinstance(places, (str, Path)) else list(places)


def drafts_of(path: Path) -> list[Path]:
    """What killed processes have left of `replacing` a file."""
    return list(path.parent.glob(f".{escape(path.stem)}.*{escape(path.suffix)}"))


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
