"""Where generated files go, and writing them so that a killed run never leaves half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from glob import escape
from pathlib import Path


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
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
    folder.parent.mkdir(parents=True, exist_ok=True)
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
