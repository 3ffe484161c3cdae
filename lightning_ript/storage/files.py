"""Where generated files go, and writing them so that a killed run never leaves half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Where the project keeps what it can make again: `$XDG_CACHE_HOME/lightning-ript`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lightning-ript"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place once the block succeeds.

    Missing parent folders are made. The temporary name keeps the suffix, since writers of images
    and videos choose their format by it.

    Args:
        path: The file to write or to replace.

    Yields:
        Where to write; removed again when the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
