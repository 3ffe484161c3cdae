"""Single pictures out of videos and tables of encoded pictures."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from lightning_ript.storage.files import cache_folder, replacing
from lightning_ript.storage.hub import first_line

AHEAD = 1.0  # up to so many seconds ahead, decoding goes on instead of seeking
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
log = logging.getLogger(__name__)


class VideoFile:
    """A video whose pictures are read by their time.

    Args:
        path: The file, of any format that FFmpeg reads.

    Raises:
        ValueError: It is damaged or no video.
    """

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        try:
            self._container = av.open(str(path))
            self._stream = self._container.streams.video[0]
            self._stream.codec_context.thread_count = 1  # loaders are processes already
            # Half of a picture's time, and the unit of times in the file, in seconds.
            self._half = 0.5 / float(self._stream.average_rate or 0)
            self._tick = float(self._stream.time_base or 0)
        except (av.error.FFmpegError, IndexError, ZeroDivisionError) as error:
            raise ValueError(f"{path} is damaged or no video: {error}.") from error
        self._frames: Iterator[Any] = iter(())
        self._at = -np.inf  # the time of the last picture that was decoded

    def picture(self, seconds: float) -> np.ndarray:
        """The picture at a time.

        Args:
            seconds: From the video's beginning; half a picture's duration is tolerated.

        Returns:
            (H, W, 3) uint8.

        Raises:
            ValueError: There is none, or the video is damaged.
        """
        import av

        try:
            if not self._at + self._half < seconds < self._at + AHEAD:
                self._container.seek(int(seconds / self._tick), stream=self._stream)
                self._frames = self._container.decode(self._stream)
            for frame in self._frames:
                self._at = frame.pts * self._tick
                if self._at > seconds - self._half:
                    break
        except av.error.FFmpegError as error:
            raise ValueError(f"{self.path} is damaged near {seconds:.2f} s: {error}.") from error
        if abs(self._at - seconds) >= self._half:
            raise ValueError(f"{self.path} has no picture at {seconds:.2f} s: it is cut off.")
        return frame.to_ndarray(format="rgb24")

    def close(self) -> None:
        """Closes the file."""
        self._container.close()


class PictureTable:
    """An Arrow file of encoded pictures, a column per camera; it stays on disk until it is read."""

    def __init__(self, path: Path) -> None:
        from pyarrow import ipc, memory_map

        self._source = memory_map(str(path))
        self._table = ipc.open_file(self._source).read_all()

    def picture(self, camera: str, row: int) -> np.ndarray:
        """One picture, (H, W, 3) uint8."""
        encoded = self._table[camera][row].as_buffer()
        return np.asarray(Image.open(BytesIO(encoded)).convert("RGB"))

    def close(self) -> None:
        """Closes the file."""
        self._source.close()


def unpacked(file: Path, camera: str, feature: str) -> Path:
    """A copy of a table's encoded pictures that can be read one by one, kept in the cache.

    Parquet's smallest part is a group of rows, often a hundred pictures and more.

    Args:
        file: A Parquet file.
        camera: The copy's only column.
        feature: The column there, of structs whose `bytes` are a PNG or JPEG.

    Raises:
        ValueError: The file is damaged or has no such pictures.
    """
    import pyarrow
    from pyarrow import ipc, parquet

    seen = os.stat(file)
    text = f"{file.resolve()} {seen.st_size} {seen.st_mtime_ns} {feature} {camera}"
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    path = cache_folder() / "pictures" / f"{name}.arrow"
    schema = pyarrow.schema([(camera, pyarrow.binary())])
    path.parent.mkdir(parents=True, exist_ok=True)
    # The other processes of a run wait instead of writing the same.
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            return path
        log.info("Copying the pictures of %s to %s, where they can be read one by one", file, path)
        with (
            explained(file),
            replacing(path) as draft,
            parquet.ParquetFile(file) as table,
            ipc.new_file(str(draft), schema) as writer,
        ):
            _copy(table, f"{feature}.bytes", schema, writer)
    return path


def _copy(table: Any, column: str, schema: Any, writer: Any) -> None:
    import pyarrow

    for batch in table.iter_batches(columns=[column], batch_size=256):
        pictures = batch.column(0).field("bytes").cast(pyarrow.binary())
        if pictures.null_count:
            raise ValueError("its pictures are not in it")
        writer.write_batch(pyarrow.record_batch([pictures], schema=schema))


@contextmanager
def explained(file: Path) -> Iterator[None]:
    """Turns what pyarrow raises about a file into one sentence."""
    from pyarrow import ArrowException

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file} is missing: download the dataset again.") from error
    except (ArrowException, ValueError, KeyError, OSError) as error:
        reason = first_line(error)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise OSError(
                f"The pictures of {file} could not be copied to {cache_folder()} ({reason}): set "
                "XDG_CACHE_HOME to a folder with room."
            ) from error
        raise ValueError(f"{file} is damaged or not as LeRobot writes it: {reason}.") from error
