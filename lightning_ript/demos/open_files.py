"""Files of pictures that stay open for reading."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

OPEN_FILES = 32  # per process


def _hdf5(path: Path) -> h5py.File:
    # Steps are read in random order, so what lies beside one is not worth keeping.
    return h5py.File(path, "r", rdcc_nbytes=0)


class OpenFiles:
    """Files that stay open; the least recently used one makes way for another.

    An open file must not be shared between processes: loader workers open their own.

    Args:
        limit: Files that one process holds open at most.
    """

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.limit = limit
        self._files: OrderedDict[Path, Any] = OrderedDict()
        self._process = os.getpid()

    def get(self, path: Path, opening: Callable[[Path], Any] = _hdf5) -> Any:
        """A file, opened if it is not.

        Args:
            path: The file.
            opening: Opens it; what it returns has a method `close`.
        """
        if self._process != os.getpid():
            self._files, self._process = OrderedDict(), os.getpid()
        if path not in self._files:
            if len(self._files) == self.limit:
                self._files.popitem(last=False)[1].close()
            self._files[path] = opening(path)
        self._files.move_to_end(path)
        return self._files[path]

    def __len__(self) -> int:
        return len(self._files)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": OrderedDict()}
