"""Opening HDF5 files, and keeping files of pictures open."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py

OPEN_FILES = 32  # per process
_POINTER = b"version https://git-lfs"


def open_hdf5(path: str | Path, **settings: Any) -> h5py.File:
    """Opens a file for reading, beside any number of other readers.

    HDF5 locks what it opens. A lock that is refused means that another program is writing: half of
    what it writes must not be read, so its lock is respected. A file system without locks protects
    nothing, and is read without them.

    Args:
        path: The file.
        **settings: Of `h5py.File`.

    Raises:
        BlockingIOError: Another program has it open for writing.
        OSError: The operating system refuses it.
        ValueError: It is no HDF5 file, or cut off.
    """
    try:
        return h5py.File(path, "r", **settings)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"{path} is open for writing in another program: wait until that has closed it, or, if "
            "it only reads, set HDF5_USE_FILE_LOCKING=FALSE."
        ) from error
    except OSError as error:
        if "unable to lock file" in str(error):
            return h5py.File(path, "r", locking=False, **settings)
        raise _explained(Path(path), error) from error


def _explained(path: Path, error: OSError) -> Exception:
    if "already open for write" in str(error):
        return BlockingIOError(
            f"{path} was not closed by the program that wrote it: wait until that is done, or, if "
            f"it has died, run `h5clear -s {path}`."
        )
    if error.errno is not None:
        return OSError(error.errno, os.strerror(error.errno), str(path))
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            return ValueError(
                f"{path} is Git LFS's pointer to a file, not the file: run `git lfs pull` in the "
                "clone that it is from."
            )
    return ValueError(f"{path} is damaged or no HDF5 file: {error}.")


def _pictures(path: Path) -> h5py.File:
    # Steps are read in random order, so what lies beside one is not worth keeping.
    return open_hdf5(path, rdcc_nbytes=0)


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

    def get(self, path: Path, opening: Callable[[Path], Any] = _pictures) -> Any:
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
