"""Videos of episodes: which ones are kept, how their frames look, and writing them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lightning_ript.storage.files import replacing
from lightning_ript.storage.hub import first_line

_OUTCOME = re.compile(r"-(success|failure)$")


class VideoError(Exception):
    """A video could not be written; the first line of the reason."""


class Video(NamedTuple):
    """A video of this evaluation; sorted, failures and early test states come first."""

    task: str
    success: bool
    state: int
    path: str


def surplus(videos: Sequence[Video], per_task: int) -> list[Video]:
    """The videos beyond the first `per_task` of each task: failures first, then early states."""
    seen: Counter[str] = Counter()
    beyond = []
    for video in sorted(videos):
        seen[video.task] += 1
        if seen[video.task] > per_task:
            beyond.append(video)
    return beyond


def prepare_frame(frame: np.ndarray, height: int, colour: tuple[int, int, int]) -> np.ndarray:
    """Enlarges and frames one image.

    Args:
        frame: Image (H, W, 3) uint8.
        height: Height in pixels that the enlarged image has at least.
        colour: RGB of the border.

    Returns:
        Image (H', W', 3) uint8 with even sides, which H.264 needs.
    """
    factor = -(-height // frame.shape[0])
    enlarged = frame.repeat(factor, axis=0).repeat(factor, axis=1)
    rows, columns = enlarged.shape[:2]
    border = max(2, rows // 64)
    canvas = np.empty(
        (rows + rows % 2 + 2 * border, columns + columns % 2 + 2 * border, 3), dtype=np.uint8
    )
    canvas[:] = colour
    canvas[border : border + rows, border : border + columns] = enlarged
    return canvas


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int) -> None:
    """Writes an H.264 mp4 that common players show.

    Args:
        path: The file; it takes its name only when complete.
        frames: At least one image (H, W, 3) uint8, all of the same even size.
        fps: Frames per second.

    Raises:
        VideoError: FFmpeg is not there or fails.
    """
    rows, columns = frames[0].shape[:2]
    with replacing(path) as temporary:
        try:
            import imageio_ffmpeg

            # One thread: simulators share the cores.
            writer = imageio_ffmpeg.write_frames(
                str(temporary),
                (columns, rows),
                fps=fps,
                codec="libx264",
                macro_block_size=2,
                ffmpeg_log_level="error",
                output_params=["-threads", "1", "-movflags", "+faststart"],
            )
            writer.send(None)
            for frame in frames:
                writer.send(np.ascontiguousarray(frame))
            writer.close()
        except (ImportError, OSError, RuntimeError) as error:
            raise VideoError(first_line(error)) from error


def file_name(text: str) -> str:
    """A text as the name of a file."""
    return re.sub(r"[^\w.-]+", "_", text)


def by_episode(files: Iterable[Path]) -> dict[str, Path]:
    """An evaluation's videos by episode: the same one has the same name in another evaluation."""
    return {_OUTCOME.sub("", file.stem): file for file in files}


def failed(file: Path) -> bool:
    """Whether the episode of a video failed, as its name says."""
    return file.stem.endswith("failure")
