"""Messages between a process and its worker: arrays in shared memory, the rest through a pipe."""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_SHARED = Path("/dev/shm")  # where files are memory; elsewhere a temporary file that is mapped
_PAGE = mmap.ALLOCATIONGRANULARITY


def shared_file() -> int:
    """Opens a nameless file to share arrays in, which is gone when all who have it are."""
    folder = str(_SHARED) if _SHARED.is_dir() else None
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


class Channel:
    """Sends and receives objects; the arrays in them do not go through the pipe.

    Both ends take turns: what was received stays valid, but an end must have received the answer
    to its last message before it sends the next.

    Args:
        connection: The pipe.
        memory: Descriptor of the `shared_file` that both ends have; closed with the channel.
    """

    def __init__(self, connection: Connection, memory: int) -> None:
        self.connection = connection
        self._memory = memory
        self._map: mmap.mmap | None = None

    def send(self, message: Any) -> None:
        """Sends a message.

        Raises:
            BrokenPipeError: If the other end is gone.
            OSError: If there is no memory left to share.
        """
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
        sizes = [view.nbytes for view in views]
        if sizes:
            mapped, start = self._mapped(sum(sizes)), 0
            for view in views:
                mapped[start : start + view.nbytes] = view
                start += view.nbytes
        self.connection.send((pickled, sizes))

    def receive(self) -> Any:
        """Waits for a message and returns it; its arrays are copies.

        Raises:
            EOFError: If the other end is gone.
        """
        pickled, sizes = self.connection.recv()
        buffers, start = [], 0
        mapped = self._mapped(sum(sizes)) if sizes else None
        for size in sizes:
            assert mapped is not None
            buffers.append(bytearray(mapped[start : start + size]))
            start += size
        return pickle.loads(pickled, buffers=buffers)

    def close(self) -> None:
        """Hangs up."""
        self.connection.close()
        if self._map is not None:
            self._map.close()
            self._map = None
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _mapped(self, size: int) -> mmap.mmap:
        """The shared memory, made larger where it is too small."""
        if self._map is None or len(self._map) < size:
            if self._map is not None:
                self._map.close()
            size = -(-size // _PAGE) * _PAGE
            if os.fstat(self._memory).st_size < size:
                self._allocate(size)
            self._map = mmap.mmap(self._memory, os.fstat(self._memory).st_size)
        return self._map

    def _allocate(self, size: int) -> None:
        try:
            os.posix_fallocate(self._memory, 0, size)  # else a full disk kills who writes first
        except OSError as error:
            folder = _SHARED if _SHARED.is_dir() else tempfile.gettempdir()
            raise OSError(
                error.errno,
                f"{folder} has no room for {size} bytes that a simulator shares with its parent: "
                "make it larger (docker run --shm-size=1g) or set fewer num_workers",
            ) from error
